//! Files inside a tree whose contents somebody else controls.
//!
//! A release's files come from a tarball and a session's from the application, so a
//! path in one may lead anywhere by symbolic links. Every path here is resolved by the
//! kernel with the tree as root (openat2(2), `RESOLVE_IN_ROOT`), and what is written
//! replaces a link instead of following it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fchmod, fstat, fstatat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, syncfs, unlinkat};

/// How often a look-up that raced a rename is tried again (openat2(2), `EAGAIN`).
const TRIES: u32 = 64;

/// User and group id of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// root:root.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// A tree, held open.
#[derive(Debug)]
pub struct Inside {
    root: OwnedFd,
    path: PathBuf,
}

impl Inside {
    /// Takes hold of the tree at `root`, a path of ours.
    ///
    /// # Errors
    /// When there is no such directory.
    pub fn open(root: &Path) -> Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(root, flags, Mode::empty())
            .with_context(|| format!("opening {}", root.display()))?;
        Ok(Self { root: fd, path: root.to_owned() })
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        resolve(&self.root, path, flags, ResolveFlag::RESOLVE_IN_ROOT)
    }

    fn shown(&self, path: &Path) -> String {
        format!("{} in {}", path.display(), self.path.display())
    }

    /// A file's text; none if it is not there.
    ///
    /// # Errors
    /// When it is not a regular file or cannot be read.
    pub fn read(&self, path: &Path) -> Result<Option<String>> {
        let text = self.read_bytes(path)?.map(String::from_utf8).transpose();
        text.with_context(|| format!("reading {}", self.shown(path)))
    }

    /// A file's contents; none if it is not there.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_bytes(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        let read = || -> Result<Option<Vec<u8>>> {
            // Without blocking: a FIFO would wait for a writer.
            let fd = match self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
                Ok(fd) => fd,
                Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            if !is(&fstat(&fd)?, libc::S_IFREG) {
                bail!("it is not a regular file");
            }
            let mut bytes = Vec::new();
            File::from(fd).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        read().with_context(|| format!("reading {}", self.shown(path)))
    }

    /// Whether there is anything at a path, be it a link that leads nowhere.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn exists(&self, path: &Path) -> Result<bool> {
        match self.resolve(path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("opening {}", self.shown(path))),
        }
    }

    /// Whether there is a directory at a path, and no link to one.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn is_directory(&self, path: &Path) -> Result<bool> {
        match self.resolve(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("opening {}", self.shown(path))),
        }
    }

    /// Opens a directory of the tree; none if it is not there.
    ///
    /// # Errors
    /// When it is something else, or links go in circles.
    pub fn directory(&self, path: &Path) -> Result<Option<OwnedFd>> {
        match self.resolve(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("opening {}", self.shown(path))),
        }
    }

    /// Names in a directory, sorted, those that are text; none if it is not there.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn names(&self, path: &Path) -> Result<Vec<String>> {
        let Some(fd) = self.directory(path)? else { return Ok(Vec::new()) };
        let read = || -> nix::Result<Vec<CString>> { entries(&mut Dir::from_fd(fd)?) };
        let names = read().with_context(|| format!("reading {}", self.shown(path)))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// Makes a directory and the missing ones above it; the last one gets `mode` and
    /// `owner`, also if it was there.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make_directory(&self, path: &Path, mode: u32, owner: Owner) -> Result<()> {
        let make = || -> nix::Result<()> {
            let fd = self.make_directories(path)?;
            let fd = resolve(
                &fd,
                Path::new("."),
                OFlag::O_RDONLY | OFlag::O_DIRECTORY,
                ResolveFlag::RESOLVE_BENEATH,
            )?;
            fchown(&fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
            fchmod(&fd, Mode::from_bits_truncate(mode))
        };
        make().with_context(|| format!("making {}", self.shown(path)))
    }

    fn make_directories(&self, path: &Path) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut at = PathBuf::from("/");
        let mut fd = self.resolve(&at, flags)?;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            at.push(name);
            fd = match self.resolve(&at, flags) {
                Err(Errno::ENOENT) => {
                    mkdirat(&fd, name, Mode::from_bits_truncate(0o755))?;
                    self.resolve(&at, flags)?
                }
                other => other?,
            };
        }
        Ok(fd)
    }

    /// Puts `contents` at `path` in one rename, replacing a link there. Missing
    /// directories are made, owned by root.
    ///
    /// # Errors
    /// When it cannot be written; what was there is then still there.
    pub fn publish(&self, path: &Path, contents: &[u8], mode: u32, owner: Owner) -> Result<()> {
        let write = || -> Result<()> {
            let Beside { directory, name, temporary } = self.beside(path)?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
            let how = OpenHow::new()
                .flags(flags | OFlag::O_CLOEXEC)
                .mode(Mode::from_bits_truncate(0o600))
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
            let fd = openat2(&directory, temporary.as_str(), how)?;
            let mut file = File::from(fd);
            let fill = |file: &mut File| -> Result<()> {
                file.write_all(contents)?;
                fchown(&*file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
                // After fchown(2), which clears the set-id bits.
                fchmod(&*file, Mode::from_bits_truncate(mode))?;
                Ok(renameat(&directory, temporary.as_str(), &directory, name)?)
            };
            fill(&mut file).inspect_err(|_| {
                // The write's own error says more than that of the tidying up.
                let _ = unlinkat(&directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
            })
        };
        write().with_context(|| format!("writing {}", self.shown(path)))
    }

    /// Puts a symbolic link at `path` in one rename. Missing directories are made.
    ///
    /// # Errors
    /// When it cannot be made; what was there is then still there.
    pub fn link(&self, path: &Path, target: &str, owner: Owner) -> Result<()> {
        let make = || -> Result<()> {
            let Beside { directory, name, temporary } = self.beside(path)?;
            let temporary = temporary.as_str();
            symlinkat(target, &directory, temporary)?;
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            fchownat(&directory, temporary, Some(uid), Some(gid), flags)?;
            Ok(renameat(&directory, temporary, &directory, name)?)
        };
        make().with_context(|| format!("linking {}", self.shown(path)))
    }

    /// Removes a file, a link, or a directory with nothing in it; one with something in it
    /// stays. Nothing there is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<()> {
        let remove = || -> nix::Result<()> {
            let parent = path.parent().unwrap_or(Path::new("/"));
            let name = path.file_name().unwrap_or_default();
            let directory = self.resolve(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            match unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => unlinkat(&directory, name, UnlinkatFlags::RemoveDir),
                other => other,
            }
        };
        match remove() {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENOTEMPTY) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("removing {}", self.shown(path))),
        }
    }

    /// Sets when a path was changed last, in seconds since 1970; of a link its own.
    ///
    /// # Errors
    /// When it is not there.
    pub fn set_time(&self, path: &Path, time: i64) -> Result<()> {
        let set = || -> nix::Result<()> {
            let parent = path.parent().unwrap_or(Path::new("/"));
            let name = Path::new(path.file_name().unwrap_or_default());
            let directory = self.resolve(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            let time = TimeSpec::new(time, 0);
            utimensat(&directory, name, &time, &time, UtimensatFlags::NoFollowSymlink)
        };
        set().with_context(|| format!("setting the time of {}", self.shown(path)))
    }

    /// Where a temporary of `path` is made. Its name is the same each time, for only who has the
    /// lock writes here: one that a killed farmctl left goes.
    fn beside<'a>(&self, path: &'a Path) -> Result<Beside<'a>> {
        let name = path.file_name().context("the path names no file")?;
        let directory = self.make_directories(path.parent().unwrap_or(Path::new("/")))?;
        let temporary = format!(".{}.farmctl", name.to_string_lossy());
        match unlinkat(&directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(Beside { directory, name, temporary }),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives what belongs to `from` in a directory, itself included, to `to`. Links are
    /// not followed and other file systems not entered: a data directory may be bound
    /// there. No directory is fine.
    ///
    /// # Errors
    /// When something cannot be given.
    pub fn give(&self, path: &Path, from: Owner, to: Owner) -> Result<()> {
        let Some(fd) = self.directory(path)? else {
            return Ok(());
        };
        let gift = || -> nix::Result<()> {
            let meta = fstat(&fd)?;
            if let Some((uid, gid)) = changed(&meta, from, to) {
                fchown(&fd, uid, gid)?;
            }
            let device = meta.st_dev;
            give_beneath(Dir::from_fd(fd)?, device, from, to)
        };
        gift().with_context(|| format!("changing the owner of {}", self.shown(path)))
    }

    /// Has everything in the tree outlive a power cut, with its file system (syncfs(2)).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.resolve(Path::new("/"), OFlag::O_RDONLY | OFlag::O_DIRECTORY)
            .and_then(syncfs)
            .with_context(|| format!("writing {} to the disk", self.path.display()))
    }
}

/// A name to write under before a rename.
struct Beside<'a> {
    directory: OwnedFd,
    name: &'a std::ffi::OsStr,
    temporary: String,
}

/// openat2(2) from `at`, tried again when it raced a rename.
fn resolve(at: impl AsFd, path: &Path, flags: OFlag, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut tries = 0;
    loop {
        match openat2(at.as_fd(), path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) if tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// Whether a file is of a kind (`S_IFMT` of inode(7)).
pub(crate) fn is(meta: &FileStat, kind: libc::mode_t) -> bool {
    meta.st_mode & libc::S_IFMT == kind
}

fn changed(meta: &FileStat, from: Owner, to: Owner) -> Option<(Option<Uid>, Option<Gid>)> {
    let uid = (meta.st_uid == from.uid).then(|| Uid::from_raw(to.uid));
    let gid = (meta.st_gid == from.gid).then(|| Gid::from_raw(to.gid));
    (uid.is_some() || gid.is_some()).then_some((uid, gid))
}

fn give_beneath(
    mut directory: Dir,
    device: libc::dev_t,
    from: Owner,
    to: Owner,
) -> nix::Result<()> {
    for name in entries(&mut directory)? {
        let meta = fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let folder = is(&meta, libc::S_IFDIR);
        // Only for directories: overlayfs reports other devices for other files.
        if folder && meta.st_dev != device {
            continue;
        }
        if let Some((uid, gid)) = changed(&meta, from, to) {
            fchownat(&directory, name.as_c_str(), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        }
        if folder {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let below = Dir::openat(&directory, name.as_c_str(), flags, Mode::empty())?;
            give_beneath(below, device, from, to)?;
        }
    }
    Ok(())
}

/// Names in a directory, without `.` and `..`, sorted.
pub(crate) fn entries(directory: &mut Dir) -> nix::Result<Vec<CString>> {
    let mut found = Vec::new();
    for entry in directory.iter() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            found.push(name.to_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a directory with what is in it, but nothing that is mounted there, even if it
/// is mounted at this very moment: no look-up crosses a mount point (openat2(2),
/// `RESOLVE_NO_XDEV`; comparing devices would not notice a bind mount). No directory is
/// fine. However deep the tree, two descriptors are enough: what is found in a directory
/// below is moved up before it is looked into.
///
/// # Errors
/// When something is mounted in it, or cannot be removed.
pub fn remove_unmounted(directory: &Path) -> Result<()> {
    let remove = || -> nix::Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = directory.parent().unwrap_or(Path::new("/"));
        let name = Path::new(directory.file_name().unwrap_or_default());
        let (parent, top) = match nix::fcntl::open(parent, flags, Mode::empty())
            .and_then(|parent| open_here(&parent, name).map(|top| (parent, top)))
        {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        let mut moved = 0u64;
        let mut pending = remove_files(&top, None, &mut moved)?;
        while let Some(name) = pending.pop() {
            let below = open_here(&top, &name)?;
            pending.extend(remove_files(&below, Some(&top), &mut moved)?);
            unlinkat(&top, &name, UnlinkatFlags::RemoveDir)?;
        }
        unlinkat(&parent, name, UnlinkatFlags::RemoveDir)
    };
    remove().with_context(|| format!("removing {}", directory.display()))
}

fn open_here(parent: &OwnedFd, name: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let bounds = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_XDEV
        | ResolveFlag::RESOLVE_NO_SYMLINKS;
    resolve(parent, name, flags, bounds)
}

/// Removes what is no directory, moves directories to `up` if there is one, and answers
/// their names.
fn remove_files(fd: &OwnedFd, up: Option<&OwnedFd>, moved: &mut u64) -> nix::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    let copy = fd.try_clone().map_err(|_| Errno::EMFILE)?;
    for name in entries(&mut Dir::from_fd(copy)?)? {
        let name = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
        match unlinkat(fd, &name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => match up {
                None => directories.push(name),
                Some(up) => directories.push(move_up(fd, &name, up, moved)?),
            },
            Err(Errno::ENOENT) => {}
            other => other?,
        }
    }
    Ok(directories)
}

fn move_up(fd: &OwnedFd, name: &Path, up: &OwnedFd, moved: &mut u64) -> nix::Result<PathBuf> {
    loop {
        *moved += 1;
        let target = PathBuf::from(format!(".farmctl-{moved}"));
        match renameat2(fd, name, up, &target, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST) => {}
            other => return other.map(|()| target),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn links_lead_nowhere_but_into_the_tree() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let tree = place.path().join("tree");
        std::fs::create_dir_all(tree.join("etc")).expect("it is writable");
        let outside = place.path().join("outside");
        std::fs::write(&outside, "host").expect("it is writable");
        symlink(&outside, tree.join("etc/passwd")).expect("it is writable");
        symlink("../../../../..", tree.join("etc/up")).expect("it is writable");
        let inside = Inside::open(&tree).expect("it is there");
        assert_eq!(inside.read(Path::new("/etc/passwd")).expect("it is not there"), None);
        let me = std::fs::metadata(&tree).expect("it is there");
        let owner = Owner { uid: me.uid(), gid: me.gid() };
        // What a killed farmctl left.
        let left = tree.join("etc/.passwd.farmctl");
        symlink(&outside, &left).expect("it is writable");
        inside.publish(Path::new("/etc/passwd"), b"tree", 0o644, owner).expect("it is writable");
        assert!(left.symlink_metadata().is_err());
        inside.publish(Path::new("/etc/up/new/file"), b"x", 0o400, owner).expect("it is writable");
        assert_eq!(std::fs::read_to_string(&outside).expect("it is there"), "host");
        assert_eq!(std::fs::read_to_string(tree.join("etc/passwd")).expect("it is there"), "tree");
        let mode = std::fs::metadata(tree.join("new/file")).expect("`up` is the tree's root");
        assert_eq!(mode.permissions().mode() & 0o7777, 0o400);
        assert!(!place.path().join("new").exists());
    }

    #[test]
    fn a_link_to_a_directory_outside_cannot_be_written_through() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let tree = place.path().join("tree");
        std::fs::create_dir_all(tree.join("run")).expect("it is writable");
        let outside = place.path().join("outside");
        std::fs::create_dir(&outside).expect("it is writable");
        symlink(&outside, tree.join("run/project")).expect("it is writable");
        let inside = Inside::open(&tree).expect("it is there");
        let me = std::fs::metadata(&tree).expect("it is there");
        let owner = Owner { uid: me.uid(), gid: me.gid() };
        inside
            .publish(Path::new("/run/project/env"), b"x", 0o644, owner)
            .expect_err("the link points to nothing inside the tree");
        assert_eq!(std::fs::read_dir(&outside).expect("it is there").count(), 0);
    }

    #[test]
    fn removing_a_directory_removes_nothing_mounted_in_it() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (tree, other) = (place.path().join("tree"), place.path().join("other"));
        std::fs::create_dir_all(tree.join("a/b")).expect("it is writable");
        std::fs::create_dir_all(&other).expect("it is writable");
        std::fs::write(other.join("kept"), "x").expect("it is writable");
        symlink(&other, tree.join("a/link")).expect("it is writable");
        if nix::unistd::geteuid().is_root() {
            let mount =
                crate::mount::Mount::bind(&other, &tree.join("a/b"), false).expect("root may bind");
            remove_unmounted(&tree).expect_err("it is mounted there");
            mount.close().expect("nothing uses it");
        }
        remove_unmounted(&tree).expect("it is ours");
        remove_unmounted(&tree).expect("it is gone");
        assert!(!tree.exists());
        assert!(other.join("kept").exists());
    }

    #[test]
    fn a_tree_deeper_than_any_limit_is_removed() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let tree = place.path().join("tree");
        std::fs::create_dir(&tree).expect("it is writable");
        std::fs::create_dir(tree.join(".farmctl-2")).expect("a name that is needed later");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut at = nix::fcntl::open(&tree, flags, Mode::empty()).expect("it is there");
        for _ in 0..3000 {
            mkdirat(&at, "deep", Mode::from_bits_truncate(0o700)).expect("it is writable");
            at = nix::fcntl::openat(&at, "deep", flags, Mode::empty()).expect("it is there");
        }
        remove_unmounted(&tree).expect("it is ours");
        assert!(!tree.exists());
    }
}
