//! Setup scripts of schroot that keep it from removing our volumes, also when somebody
//! uses it by hand.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::file;
use crate::layout::SCHROOT_SETUP;

/// schroot runs setup scripts in ascending order to begin a session and in descending order
/// to end one: the first is before 05lvm makes the snapshot, the last before anything is
/// taken down.
const NAMES: [&str; 2] = ["04farmctl-guard", "99farmctl-guard"];
const SCRIPT: &str = include_str!("guard.sh");

fn scripts() -> impl Iterator<Item = PathBuf> {
    NAMES.iter().map(|name| Path::new(SCHROOT_SETUP).join(name))
}

/// Puts the scripts in place, as this farmctl has them.
///
/// # Errors
/// When they cannot be written.
pub fn post() -> Result<()> {
    for path in scripts() {
        if file::read_if_there(&path)?.as_deref() != Some(SCRIPT) {
            file::publish(&path, SCRIPT.as_bytes(), 0o755)?;
        }
    }
    Ok(())
}

/// Removes them.
///
/// # Errors
/// When one cannot be removed.
pub fn withdraw() -> Result<()> {
    scripts().try_for_each(|path| file::remove_if_there(&path))
}

/// Whether they are there, as this farmctl has them.
///
/// # Errors
/// When one cannot be read.
pub fn is_posted() -> Result<bool> {
    for path in scripts() {
        if file::read_if_there(&path)?.as_deref() != Some(SCRIPT) {
            return Ok(false);
        }
    }
    Ok(true)
}
