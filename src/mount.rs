//! Mounts: guards for the ones a build makes, and a look at what is mounted.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Gives this process a mount table of its own: what it mounts from now on, nobody
/// else sees, and it is gone with the process, however that ends. What others unmount is
/// unmounted here as well, where mounts are shared (as systemd has them): a session that is
/// ended meanwhile is not held. To be called before any thread is started, because a mount
/// namespace belongs to a thread.
///
/// # Errors
/// When the kernel refuses (no `CAP_SYS_ADMIN`).
pub fn private_namespace() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a private mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context("making mounts our own")
}

/// Calls `body` in a [`private_namespace`] that ends with it, for a verb that has more to do
/// outside of it.
///
/// # Errors
/// As [`private_namespace`], and those of `body`.
pub fn in_private_namespace<T: Send>(body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            private_namespace()?;
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A mount that ends with the guard.
#[derive(Debug)]
#[must_use = "the mount ends when this is dropped"]
pub struct Mount {
    target: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts a new file system of `kind` on the existing directory `target`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<Self> {
        mount(Some(kind), target, Some(kind), flags, Some(options))
            .with_context(|| format!("mounting {kind} on {}", target.display()))?;
        Ok(Self { target: target.to_owned(), mounted: true })
    }

    /// Mounts the file system on a block device on the existing directory `target`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn device(
        device: &Path,
        target: &Path,
        kind: &str,
        flags: MsFlags,
        options: &str,
    ) -> Result<Self> {
        mount(Some(device), target, Some(kind), flags, Some(options))
            .with_context(|| format!("mounting {} on {}", device.display(), target.display()))?;
        Ok(Self { target: target.to_owned(), mounted: true })
    }

    /// Binds the file or directory `source` on the existing `target`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bind(source: &Path, target: &Path, read_only: bool) -> Result<Self> {
        let none = None::<&str>;
        mount(Some(source), target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("binding {} on {}", source.display(), target.display()))?;
        let guard = Self { target: target.to_owned(), mounted: true };
        if read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, target, none, flags, none)
                .with_context(|| format!("making {} read-only", target.display()))?;
        }
        Ok(guard)
    }

    /// Ends the mount and says if that did not work.
    ///
    /// # Errors
    /// When something still uses it.
    pub fn close(mut self) -> Result<()> {
        self.mounted = false;
        umount2(&self.target, MntFlags::UMOUNT_NOFOLLOW)
            .with_context(|| format!("unmounting {}", self.target.display()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = umount2(&self.target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH);
        }
    }
}

/// Mounts a file system that stays when farmctl ends.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_lasting(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<()> {
    let mut guard = Mount::new(kind, target, flags, options)?;
    guard.mounted = false;
    Ok(())
}

/// Adds flags (`nosuid`, …) to what is mounted on `target`, for this mount point only.
///
/// # Errors
/// When the kernel refuses.
pub fn restrict(target: &Path, flags: MsFlags) -> Result<()> {
    let none = None::<&str>;
    mount(none, target, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none)
        .with_context(|| format!("restricting {}", target.display()))
}

/// Unmounts `target` if it is a mount point.
///
/// # Errors
/// When something still uses it.
pub fn unmount(target: &Path) -> Result<()> {
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", target.display())),
    }
}

/// Every mount point, in the order of mounting.
///
/// # Errors
/// When the mount table cannot be read.
pub fn mount_points() -> Result<Vec<PathBuf>> {
    Ok(parse_mountinfo(&mountinfo()?))
}

fn mountinfo() -> Result<String> {
    fs::read_to_string("/proc/thread-self/mountinfo").context("reading the mount table")
}

/// Mount points at `path` or beneath it, innermost last.
///
/// # Errors
/// When the mount table cannot be read.
pub fn mounts_beneath(path: &Path) -> Result<Vec<PathBuf>> {
    let mut found = mount_points()?;
    found.retain(|point| point.starts_with(path));
    Ok(found)
}

/// Whether something is mounted on `path`.
///
/// # Errors
/// When the mount table cannot be read.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mount_points()?.iter().any(|point| point == path))
}

/// Whether the file system on a mount point has an option of its own, as it says.
///
/// # Errors
/// When the mount table cannot be read.
pub fn has_option(point: &Path, option: &str) -> Result<bool> {
    let table = mountinfo()?;
    let mut lines = table.lines().filter(|line| parse_mountinfo(line) == [point]);
    let options = lines.next_back().and_then(|line| line.rsplit(' ').next());
    Ok(options.is_some_and(|options| options.split(',').any(|one| one == option)))
}

/// Mount points of a `/proc/PID/mountinfo` (proc(5)): the fifth field, with octal escapes.
fn parse_mountinfo(table: &str) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .collect()
}

/// A field of mountinfo or fstab(5) as it was before its octal escapes.
#[must_use]
pub fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    let escapes =
        [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\")];
    for (escape, plain) in escapes {
        text = text.replace(escape, plain);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                     31 22 0:26 / /mnt/a\\040b rw shared:3 - tmpfs tmpfs rw\n";
        assert_eq!(parse_mountinfo(table), [PathBuf::from("/"), PathBuf::from("/mnt/a b")]);
    }
}
