//! Copies for nginx of what an application's tree holds: files alone, root's, of one time.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fchmod, fstatat};

use crate::inside::{entries, is};
use crate::{file, run};

/// Copies the regular files and directories beneath `from` to the existing directory
/// `to`, owned by root, 0644 and 0755, the files with this time. Links and special files
/// are passed over. A file that is as in `before`, an earlier copy nobody writes to, is a
/// hard link to that one: it keeps its time, and takes no room.
///
/// # Errors
/// When something cannot be read or written.
pub(super) fn copy_plain(
    from: OwnedFd,
    to: &Path,
    before: Option<&Path>,
    time: SystemTime,
) -> Result<()> {
    let mut directory = Dir::from_fd(from).context("reading a directory")?;
    for name in entries(&mut directory).context("reading a directory")? {
        run::check_interrupted()?;
        let plain = std::ffi::OsStr::from_bytes(name.to_bytes());
        let (target, before) = (to.join(plain), before.map(|it| it.join(plain)));
        let copy = || -> Result<()> {
            let meta = fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            if is(&meta, libc::S_IFDIR) {
                let fd = nix::fcntl::openat(
                    &directory,
                    name.as_c_str(),
                    flags | OFlag::O_DIRECTORY,
                    Mode::empty(),
                )?;
                file::make_directory(&target, 0o755)?;
                return copy_plain(fd, &target, before.as_deref(), time);
            }
            if is(&meta, libc::S_IFREG) {
                let fd = nix::fcntl::openat(&directory, name.as_c_str(), flags, Mode::empty())?;
                let mut file = File::from(fd);
                // Whatever is wrong with that one, this file is copied, or is the error.
                let is_there = |it: &Path| is_plain_copy(&mut file, it).unwrap_or(false);
                if before.as_deref().is_some_and(is_there)
                    && before.is_some_and(|it| fs::hard_link(it, &target).is_ok())
                {
                    return Ok(());
                }
                file.rewind()?;
                let mut out = File::create_new(&target)?;
                std::io::copy(&mut file, &mut out)?;
                fchmod(&out, Mode::from_bits_truncate(0o644))?;
                out.set_modified(time)?;
            }
            Ok(())
        };
        copy().with_context(|| format!("writing {}", target.display()))?;
    }
    Ok(())
}

/// Whether there is a copy of a file at a path, as [`copy_plain`] makes it.
fn is_plain_copy(file: &mut File, copy: &Path) -> std::io::Result<bool> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut copy = File::options().read(true).custom_flags(flags.bits()).open(copy)?;
    let meta = copy.metadata()?;
    let is_plain = meta.is_file() && meta.mode() & 0o7777 == 0o644;
    if !is_plain || meta.len() != file.metadata()?.len() {
        return Ok(false);
    }
    let (mut one, mut other) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = file.read(&mut one)?;
        if length == 0 {
            return Ok(true);
        }
        copy.read_exact(&mut other[..length])?;
        if one[..length] != other[..length] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::inside::Inside;

    /// A copy of a directory, beside an earlier one.
    fn copied(from: &Path, to: &Path, before: Option<&Path>) {
        fs::create_dir(to).expect("it is writable");
        let fd = Inside::open(from).expect("it is there").directory(Path::new("/"));
        let fd = fd.expect("it opens").expect("it is there");
        copy_plain(fd, to, before, SystemTime::UNIX_EPOCH).expect("it copies");
    }

    #[test]
    fn a_plain_copy_has_no_links() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let from = place.path().join("from");
        fs::create_dir_all(from.join("css")).expect("it is writable");
        fs::write(from.join("css/a.css"), "a").expect("it is writable");
        symlink("/etc/shadow", from.join("css/b.css")).expect("it is writable");
        symlink("/etc", from.join("etc")).expect("it is writable");
        let to = place.path().join("to");
        copied(&from, &to, None);
        assert_eq!(fs::read_to_string(to.join("css/a.css")).expect("it is there"), "a");
        assert_eq!(fs::read_dir(to.join("css")).expect("it is there").count(), 1);
        assert_eq!(fs::read_dir(&to).expect("it is there").count(), 1);
    }

    #[test]
    fn a_second_plain_copy_is_links_to_what_is_the_same() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (from, one, two) =
            (place.path().join("from"), place.path().join("one"), place.path().join("two"));
        fs::create_dir_all(from.join("css")).expect("it is writable");
        fs::create_dir(from.join("new")).expect("it is writable");
        for name in ["css/same", "css/other", "css/longer", "linked", "touched"] {
            fs::write(from.join(name), name).expect("it is writable");
        }
        copied(&from, &one, None);
        fs::write(from.join("css/other"), "CSS/OTHER").expect("it is writable");
        fs::write(from.join("css/longer"), "css/longer still").expect("it is writable");
        fs::write(from.join("new/file"), "new").expect("it is writable");
        // Not as it was made.
        fs::remove_file(one.join("linked")).expect("it is there");
        symlink(one.join("css/same"), one.join("linked")).expect("it is writable");
        let open = fs::Permissions::from_mode(0o666);
        fs::set_permissions(one.join("touched"), open).expect("it is ours");
        copied(&from, &two, Some(&one));
        let inode = |path: PathBuf| fs::symlink_metadata(path).ok().map(|meta| meta.ino());
        for name in ["css/same", "css/other", "css/longer", "new/file", "linked", "touched"] {
            let is_one = inode(one.join(name)) == inode(two.join(name));
            assert_eq!(is_one, name == "css/same", "{name}");
            let read = |tree: &Path| fs::read(tree.join(name)).expect("it is there");
            assert_eq!(read(&two), read(&from), "{name}");
            let mode = fs::metadata(two.join(name)).expect("it is there").mode();
            assert_eq!(mode & 0o7777, 0o644, "{name}");
            let time = fs::metadata(two.join(name)).expect("it is there").mtime();
            assert_eq!(time, 0, "{name}");
        }
        assert_eq!(fs::read(one.join("css/other")).expect("it is there"), b"css/other");
    }
}
