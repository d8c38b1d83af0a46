//! Files that are whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;
use tempfile::TempPath;

use crate::process;

/// What stands between a name and the number of the farmctl that publishes it, in the name of
/// a temporary.
const PUBLISHER: &str = ".farmctl-";

/// Puts `contents` at `path` in one atomic act: a temporary file beside it, synced,
/// renamed over it, and the directory synced. The temporary's name begins with a dot,
/// which schroot, nginx and run-parts(8) pass over, and ends with the number of this
/// process: what a killed farmctl leaves is told by it, here and by `gc`.
///
/// # Errors
/// When the directory cannot be written; `path` is then as it was.
pub fn publish(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let write = || -> Result<()> {
        let (file, temporary) = write_temporary(path, contents, mode)?;
        file.sync_all()?;
        temporary.persist(path)?;
        Ok(File::open(directory_of(path))?.sync_all()?)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Like [`publish`], and nothing is synced: for trees that go if the machine does. One sync has
/// ext4 write all that was made of such a tree before.
///
/// # Errors
/// As [`publish`].
pub fn put(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let write = || -> Result<()> {
        let (_, temporary) = write_temporary(path, contents, mode)?;
        Ok(temporary.persist(path)?)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Puts `contents` at `path`, where nothing is. It has no name before it is whole (open(2),
/// `O_TMPFILE`): who is killed leaves nothing, but what [`publish`] leaves where the file system
/// cannot do that.
///
/// # Errors
/// When something is there, or the directory cannot be written.
pub fn create(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let write = || -> Result<()> {
        let directory = directory_of(path);
        let flags = OFlag::O_TMPFILE.bits();
        let nameless =
            OpenOptions::new().write(true).mode(mode).custom_flags(flags).open(directory);
        let mut file = match nameless {
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                if path.symlink_metadata().is_ok() {
                    return Err(std::io::Error::from(Errno::EEXIST).into());
                }
                return publish(path, contents, mode);
            }
            file => file?,
        };
        file.write_all(contents)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(AT_FDCWD, open.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)
            .map_err(std::io::Error::from)?;
        sync_directory(directory)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

fn write_temporary(path: &Path, contents: &[u8], mode: u32) -> Result<(File, TempPath)> {
    let temporary = temporary(path)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(contents)?;
    // The umask may have narrowed the mode given at creation.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok((file, temporary))
}

fn temporary_prefix(path: &Path) -> String {
    format!(".{}{PUBLISHER}", path.file_name().unwrap_or_default().to_string_lossy())
}

/// What stands beside `path` while this farmctl publishes it: for who does so where `gc` does
/// not look.
#[must_use]
pub fn temporary_of(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}{}", temporary_prefix(path), std::process::id()))
}

/// A name beside `path` that is removed unless it is persisted. Those that killed farmctls
/// left of the same path go.
fn temporary(path: &Path) -> Result<TempPath> {
    let directory = directory_of(path);
    let (prefix, own) = (temporary_prefix(path), temporary_of(path));
    for name in names_in(directory)? {
        let other = directory.join(&name);
        if other == own || name.starts_with(&prefix) && is_abandoned(&name) {
            remove(&other)?;
        }
    }
    Ok(TempPath::try_from_path(own)?)
}

/// What killed farmctls left in a directory, and in those beneath it so many floors down,
/// of files and links that were about to be published. Nothing there is fine.
///
/// # Errors
/// When a directory cannot be read.
pub fn unpublished(directory: &Path, floors: usize) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in names_in(directory)? {
        let path = directory.join(&name);
        if is_abandoned(&name) {
            found.push(path);
        } else if floors > 0 && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            found.extend(unpublished(&path, floors - 1)?);
        }
    }
    Ok(found)
}

/// Whether a name is that of a temporary whose farmctl is gone.
fn is_abandoned(name: &str) -> bool {
    let number = name.strip_prefix('.').and_then(|name| name.rsplit_once(PUBLISHER));
    let number = number.and_then(|(_, number)| number.parse().ok());
    number.is_some_and(|pid| !process::is_farmctl(pid))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Like [`publish`], unless that is what is there; answers whether it was not.
///
/// # Errors
/// As [`publish`], and when what is there cannot be read.
pub fn publish_if_new(path: &Path, text: &str, mode: u32) -> Result<bool> {
    if read_if_there(path)?.as_deref() == Some(text) {
        return Ok(false);
    }
    publish(path, text.as_bytes(), mode)?;
    Ok(true)
}

/// Makes a symbolic link at `path`, or moves the one there, by one rename(2).
///
/// # Errors
/// When the directory cannot be written.
pub fn link(target: &Path, path: &Path) -> Result<()> {
    let make = || -> Result<()> {
        let temporary = temporary(path)?;
        std::os::unix::fs::symlink(target, &temporary)?;
        Ok(temporary.persist(path)?)
    };
    make().with_context(|| format!("linking {} to {}", path.display(), target.display()))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        // On a file system that cannot be written unlink(2) does not say which of both it is.
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem && is_missing(path) => Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Removes a file or link if it is there.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_if_there(path: &Path) -> Result<()> {
    remove(path).with_context(|| format!("removing {}", path.display()))
}

/// Reads a file if it is there.
///
/// # Errors
/// When it is there and cannot be read.
pub fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Makes a directory and the missing ones above it, each with `mode`.
///
/// # Errors
/// When one cannot be made.
pub fn make_directory(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("making {}", path.display()))
}

/// Names of the entries of a directory, sorted; none if it is not there.
///
/// # Errors
/// When it cannot be read.
pub fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("reading {}", directory.display()));
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Makes a file last that another program has just written, without syncing it.
///
/// # Errors
/// When it cannot be synced.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("syncing {}", path.display()))?;
    sync_directory(directory_of(path))
}

/// Makes a rename in this directory last.
///
/// # Errors
/// When it cannot be synced.
pub fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("syncing {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created_is_never_in_the_place_of_something() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("a");
        create(&path, b"text", 0o640).expect("there is room");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "text");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        let error = create(&path, b"other", 0o640).expect_err("it is there");
        assert!(format!("{error:#}").contains("File exists"), "{error:#}");
        assert_eq!(names_in(root.path()).expect("it can be read"), ["a"]);
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "text");
    }

    #[test]
    fn what_a_killed_farmctl_was_about_to_publish_is_told_from_what_another_one_is() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| root.path().join(name);
        // The number of no process: beyond the largest (proc(5), pid_max).
        let (dead, alive) = (".a.farmctl-4194305", format!(".a.farmctl-{}", std::process::id()));
        for name in [dead, &alive, ".b.farmctl-4194305", "a.farmctl-4194305", ".a.farmctl-x"] {
            fs::write(path(name), "").expect("there is room");
        }
        let found = unpublished(root.path(), 0).expect("it can be read");
        assert_eq!(found, [path(dead), path(".b.farmctl-4194305")]);
        assert_eq!(unpublished(&path("none"), 1).expect("it is fine").len(), 0);

        publish(&path("a"), b"text", 0o640).expect("there is room");
        link(Path::new("a"), &path("b")).expect("there is room");
        let names = names_in(root.path()).expect("it can be read");
        assert_eq!(names, [".a.farmctl-x", "a", "a.farmctl-4194305", "b"]);
        assert_eq!(fs::read_to_string(path("b")).expect("it leads to it"), "text");
        let mode = fs::metadata(path("a")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }
}
