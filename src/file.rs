//! Files that are whole or not there.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Puts `contents` at `path` in one atomic act: a temporary file beside it, synced,
/// renamed over it, and the directory synced. The temporary's name begins with a dot,
/// which schroot, nginx and run-parts(8) pass over.
///
/// # Errors
/// When the directory cannot be written; `path` is then as it was.
pub fn publish(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let write = || -> std::io::Result<()> {
        let mut temporary = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(directory)?;
        temporary.write_all(contents)?;
        // The umask may have narrowed the mode given at creation.
        temporary.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        temporary.as_file().sync_all()?;
        temporary.persist(path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
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
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", std::process::id()));
    let make = || -> std::io::Result<()> {
        remove(&temporary)?;
        std::os::unix::fs::symlink(target, &temporary)?;
        fs::rename(&temporary, path)
    };
    make().with_context(|| format!("linking {} to {}", path.display(), target.display()))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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
    sync_directory(path.parent().unwrap_or(Path::new("/")))
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
