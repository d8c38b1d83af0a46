//! What dpkg says of a tree: the packages in it, and what they own.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::DPKG;
use super::unpack::MERGED;
use crate::chroot::Chroot;
use crate::file;
use crate::manifest::Package;
use crate::run::{Invocation, Tool};

/// Reads a package's file.
pub(super) const DPKG_DEB: Tool = Tool { name: "dpkg-deb", package: "dpkg" };

/// Debian packages installed in a tree, by name.
///
/// # Errors
/// When dpkg does not answer.
pub fn installed_packages(chroot: &Chroot) -> Result<Vec<Package>> {
    let text = chroot
        .call("dpkg-query")
        .args([
            "--show",
            "--showformat",
            "${db:Status-Status} ${Package} ${Version} ${Architecture}\\n",
        ])
        .output()?;
    let mut packages: Vec<Package> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("installed"), Some(name), Some(version), Some(architecture)) => {
                    Some(Package {
                        name: name.to_owned(),
                        version: version.to_owned(),
                        architecture: architecture.to_owned(),
                    })
                }
                _ => None,
            }
        })
        .collect();
    packages.sort();
    Ok(packages)
}

/// Whether one Debian version is older than another, by dpkg's own comparison.
///
/// # Errors
/// When one of them is no version.
pub fn is_older(version: &str, than: &str) -> Result<bool> {
    let call = Invocation::of(&DPKG).args(["--compare-versions", version, "lt", than]);
    let outcome = call.outcome()?;
    match outcome.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("comparing the versions {version:?} and {than:?}: {}", outcome.stderr.trim()),
    }
}

/// Name of the package in a file.
///
/// # Errors
/// When it is none.
pub fn name_of(file: &Path) -> Result<String> {
    let call = Invocation::of(&DPKG_DEB).arg("--field").arg(file).arg("Package");
    Ok(call.output()?.trim().to_owned())
}

/// Which package owns each path of a tree, from dpkg's file lists.
#[derive(Debug, Default)]
pub struct Ownership(HashMap<String, String>);

impl Ownership {
    /// Reads `/var/lib/dpkg/info/*.list`. With a merged /usr the lists name `/bin/sh`
    /// where the tree has `/usr/bin/sh`.
    ///
    /// # Errors
    /// When a list cannot be read.
    pub fn read(tree: &Path) -> Result<Self> {
        let info = tree.join("var/lib/dpkg/info");
        let merged: Vec<&str> =
            MERGED.into_iter().filter(|name| tree.join(name).is_symlink()).collect();
        let mut owners = HashMap::new();
        for name in file::names_in(&info)? {
            let Some(package) = name.strip_suffix(".list") else { continue };
            let package = package.split(':').next().unwrap_or(package);
            let path = info.join(&name);
            let list =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            for line in list.lines() {
                let path = line.trim_start_matches('/');
                let first = path.split('/').next().unwrap_or_default();
                let path = if merged.contains(&first) && path != first {
                    format!("usr/{path}")
                } else {
                    path.to_owned()
                };
                owners.entry(path).or_insert_with(|| package.to_owned());
            }
        }
        Ok(Self(owners))
    }

    /// The package that owns `path` (no leading slash).
    #[must_use]
    pub fn of(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }
}
