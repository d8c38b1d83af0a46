//! The clean-up of a tree before it is packed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::BUILD_DPKG;
use crate::file;

/// Removes what must not be packed: keys, logs, apt's lists, history, identity, and
/// what differs between two builds of the same (`live-build`'s hooks 8000–8110 and
/// mmdebstrap list the same files).
///
/// # Errors
/// When something cannot be removed.
pub fn clean(tree: &Path) -> Result<()> {
    let removed = [
        "etc/.pwd.lock",
        "etc/debian_chroot",
        "etc/group-",
        "etc/gshadow-",
        "etc/passwd-",
        "etc/shadow-",
        "etc/subgid-",
        "etc/subuid-",
        "etc/adjtime",
        "etc/mtab.bak",
        "root/.bash_history",
        "root/.python_history",
        "root/.wget-hsts",
        "root/.rnd",
        "usr/sbin/policy-rc.d",
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
        "var/lib/dbus/machine-id",
        "var/lib/dpkg/available",
        "var/lib/dpkg/lock",
        "var/lib/dpkg/lock-frontend",
        "var/lib/dpkg/triggers/Lock",
        "var/lib/apt/lists/lock",
        "var/lib/apt/daily_lock",
        "var/cache/apt/archives/lock",
        "var/lib/systemd/random-seed",
        "var/lib/systemd/credential.secret",
        "var/lib/systemd/catalog/database",
        BUILD_DPKG,
    ];
    for path in removed {
        file::remove_if_there(&tree.join(path))?;
    }
    for directory in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "var/lib/apt/lists",
        "var/cache/apt/archives",
        "var/cache/ldconfig",
        "var/cache/man",
        "var/backups",
        "var/lib/apt/periodic",
        "root/.cache",
        "debootstrap",
    ] {
        empty(&tree.join(directory))?;
    }
    if tree.join("debootstrap").is_dir() {
        fs::remove_dir(tree.join("debootstrap")).context("removing /debootstrap")?;
    }
    // apt wants them back with its own modes.
    for partial in ["var/lib/apt/lists/partial", "var/cache/apt/archives/partial"] {
        file::make_directory(&tree.join(partial), 0o700)?;
    }
    file::make_directory(&tree.join("run/lock"), 0o1777)?;
    remove_logs(&tree.join("var/log"))?;
    for directory in ["etc/ssh", "var/lib/dpkg", "var/cache/debconf"] {
        for name in file::names_in(&tree.join(directory))? {
            let key = directory == "etc/ssh" && name.starts_with("ssh_host_");
            if key || (directory != "etc/ssh" && name.ends_with("-old")) {
                file::remove_if_there(&tree.join(directory).join(name))?;
            }
        }
    }
    let homes = tree.join("home");
    for home in file::names_in(&homes)? {
        for name in [".bash_history", ".python_history", ".wget-hsts"] {
            file::remove_if_there(&homes.join(&home).join(name))?;
        }
    }
    let temporary = tree.join("var/tmp");
    if !temporary.is_symlink() {
        empty(&temporary)?;
        if temporary.exists() {
            fs::remove_dir(&temporary).context("removing /var/tmp")?;
        }
        symlink("/tmp", &temporary).context("linking /var/tmp to /tmp")?;
    }
    // Fixed contents and modes where debootstrap copies the host's.
    file::put(&tree.join("etc/machine-id"), b"", 0o444)?;
    file::put(&tree.join("etc/hostname"), b"localhost\n", 0o644)?;
    file::put(&tree.join("etc/resolv.conf"), b"", 0o644)?;
    file::put(
        &tree.join("etc/hosts"),
        b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        0o644,
    )
}

/// Removes what is in a directory; the directory stays.
fn empty(directory: &Path) -> Result<()> {
    if let Some(point) = crate::mount::mounts_beneath(directory)?.first() {
        bail!("{} is still mounted", point.display());
    }
    for name in file::names_in(directory)? {
        let path = directory.join(name);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        } else {
            file::remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Removes log files; their directories stay, with the modes packages gave them.
fn remove_logs(directory: &Path) -> Result<()> {
    for name in file::names_in(directory)? {
        let path = directory.join(name);
        if path.is_dir() && !path.is_symlink() {
            remove_logs(&path)?;
        } else {
            file::remove_if_there(&path)?;
        }
    }
    Ok(())
}
