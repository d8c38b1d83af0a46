//! What dpkg says of a tree: the packages in it, and what they own.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::chroot::Chroot;
use crate::file;
use crate::manifest::Package;

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
        let merged: Vec<&str> = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"]
            .into_iter()
            .filter(|name| tree.join(name).is_symlink())
            .collect();
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
