//! Which backend new volumes go to, and why.

use std::fmt;

use anyhow::Result;

use super::{Storage, btrfs, lvm, named};
use crate::settings::Site;

/// A backend, and why it is this one.
#[derive(Debug)]
pub struct Choice {
    /// The backend.
    pub storage: Box<dyn Storage>,
    /// Why, in half a sentence.
    pub why: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.storage.name(), self.why)
    }
}

/// The backend asked for, else the one set in `node.toml`, else the best this machine is
/// set up for. A volume group that was neither named there nor made by farmctl is nobody's
/// to take.
///
/// # Errors
/// When there is no backend of that name, or LVM cannot be asked.
pub fn choose(asked: Option<&str>, site: &Site<'_>) -> Result<Choice> {
    let (name, whose) = match asked {
        Some(name) => (name, "asked for"),
        None => (site.settings.storage.as_str(), "set in node.toml"),
    };
    if name != "auto" {
        return Ok(Choice { storage: named(name, site)?, why: whose.to_owned() });
    }
    if let Some((lvm, why)) = lvm::offered(site)? {
        return Ok(Choice { storage: Box::new(lvm), why });
    }
    let (name, why) = if btrfs::is_usable(site.layout) {
        ("btrfs", format!("{} is on btrfs", site.layout.volumes().display()))
    } else {
        let why = "no volume group is set or made by farmctl, and no btrfs is there";
        ("directory", why.to_owned())
    };
    Ok(Choice { storage: named(name, site)?, why })
}
