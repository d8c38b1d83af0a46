//! A tree on disk: descriptors, names, hashes.
//!
//! Everything is opened beneath one descriptor of the tree's root with openat2(2), no
//! symbolic link followed and no mount point crossed, so a tree that changes under us
//! can make us fail but not leave it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use sha2::{Digest as _, Sha256};
use xattr::FileExt as _;

use super::member::{Body, CAPABILITY, Member};
use super::rules::{LOST_AND_FOUND, Rules};
use super::{PIECE, Progress};
use crate::hash::hex;
use crate::manifest::{Capability, FileEntry, FileIndex, FileKind, Owner, SCHEMA, SetId};
use crate::parallel;

/// The set-user-ID and set-group-ID bits.
pub(super) const SET_ID: u32 = 0o6000;

/// The tree as it will lie in the tarball: sorted, clamped, hashed.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The file index.
    pub index: FileIndex,
    /// Files with set-user-ID or set-group-ID bits; directories are not listed.
    pub set_id: Vec<SetId>,
    /// Files with `security.capability`.
    pub capabilities: Vec<Capability>,
    /// No time in the index is later, seconds since 1970.
    pub epoch: i64,
    /// Bytes of file contents, hard links counted once.
    pub content: u64,
}

/// Scans a tree: what [`pack`](super::pack()) packs.
///
/// Times are whole seconds, no later than `epoch` (seconds since 1970) and no earlier
/// than 1970. `owner_of` is asked whose a path is, without leading slash. Of extended
/// attributes only `security.capability` is kept. `lost+found` at the top is no part of
/// the tree.
///
/// # Errors
/// Names the path of a device, fifo or socket, of a name that is not UTF-8, of a mount
/// point inside the tree, and of whatever else a tarball must not hold.
pub fn scan(
    tree: &Path,
    epoch: i64,
    owner_of: &dyn Fn(&str) -> Owner,
    progress: Progress<'_>,
) -> Result<Scan> {
    scan_tree(tree, epoch, owner_of, progress)
        .with_context(|| format!("scanning {}", tree.display()))
}

fn scan_tree(
    tree: &Path,
    epoch: i64,
    owner_of: &dyn Fn(&str) -> Owner,
    progress: Progress<'_>,
) -> Result<Scan> {
    let root = Tree::open(tree)?;
    let all = root.walk()?;
    let total = all.iter().map(Found::content).sum();
    let done = AtomicU64::new(0);
    let described = parallel::each(&all, parallel::processors(), |found| {
        let (mut member, file) = root.describe(&all, found)?;
        member.mtime = member.mtime.min(epoch);
        let kind = match (&member.body, file) {
            (Body::Directory, _) => FileKind::Directory,
            (Body::Symlink { target }, _) => FileKind::Symlink { target: target.clone() },
            (Body::HardLink { target }, _) => FileKind::HardLink { target: target.clone() },
            (Body::File { size }, Some(file)) => {
                let sha256 = read_file(&file, *size, &mut |piece| {
                    let count = piece.len() as u64;
                    progress(done.fetch_add(count, Ordering::Relaxed) + count, total)
                })
                .with_context(|| format!("reading {}", member.path))?;
                FileKind::File { size: *size, sha256 }
            }
            (Body::File { .. }, None) => unreachable!("files come with a descriptor"),
        };
        Ok((member, kind))
    })?;
    let mut files = Vec::with_capacity(all.len());
    let (mut set_id, mut capabilities) = (Vec::new(), Vec::new());
    let mut rules = Rules::default();
    for (member, kind) in described {
        let Member { path, mode, uid, gid, mtime, .. } = member.clone();
        if mode & SET_ID != 0 && member.body != Body::Directory {
            set_id.push(SetId { path: path.clone(), mode, uid, gid });
        }
        if let Some(value) = &member.capability {
            capabilities.push(Capability { path: path.clone(), value: hex(value) });
        }
        rules.admit(member)?;
        let owner = owner_of(&path);
        files.push(FileEntry { path, kind, mode, uid, gid, mtime, owner });
    }
    let index = FileIndex { schema: SCHEMA, files };
    Ok(Scan { index, set_id, capabilities, epoch, content: total })
}

/// One path of a tree on disk.
pub(super) struct Found {
    /// Path, no leading slash.
    pub path: Vec<u8>,
    pub stat: FileStat,
    pub shape: Shape,
}

/// What a path on disk is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Directory,
    File,
    Symlink(Vec<u8>),
    /// Another name of the file with this number in the walk.
    HardLink(usize),
    /// Something with no place in a release, in words.
    Special(&'static str),
}

impl Found {
    /// Bytes of content under this path.
    pub fn content(&self) -> u64 {
        if self.shape == Shape::File { self.size() } else { 0 }
    }

    pub fn size(&self) -> u64 {
        self.stat.st_size.unsigned_abs()
    }

    /// The path for people.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// A tree, open.
pub(super) struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Opens a tree by its top directory, which is not a symbolic link.
    pub fn open(path: &Path) -> Result<Tree> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty())
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Tree { root })
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens what lies at a path, without following anything.
    pub fn open_at(&self, path: &[u8], flags: OFlag) -> Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
        loop {
            match openat2(&self.root, path, how) {
                // EAGAIN: a rename or mount elsewhere got in between (openat2(2)).
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(Errno::EXDEV) => {
                    bail!("{} lies on another file system", String::from_utf8_lossy(path))
                }
                opened => {
                    return opened
                        .with_context(|| format!("opening {}", String::from_utf8_lossy(path)));
                }
            }
        }
    }

    /// Opens a directory for reading or as the parent of what is made in it.
    pub fn open_directory(&self, path: &[u8]) -> Result<OwnedFd> {
        self.open_at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Opens a regular file for reading.
    pub fn open_file(&self, path: &[u8]) -> Result<File> {
        // O_NONBLOCK: a fifo put in its place must not hold us up.
        let fd = self.open_at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        ensure!(
            file_type(&fstat(&fd)?) == SFlag::S_IFREG,
            "{} is not a regular file any more",
            String::from_utf8_lossy(path)
        );
        Ok(File::from(fd))
    }

    /// Every path, ascending by bytes.
    pub fn walk(&self) -> Result<Vec<Found>> {
        let device = fstat(&self.root)?.st_dev;
        let mut all = Vec::new();
        let mut directories = vec![Vec::new()];
        while let Some(directory) = directories.pop() {
            for found in self.list(&directory)? {
                if found.shape == Shape::Directory {
                    ensure!(
                        found.stat.st_dev == device,
                        "{} lies on another file system",
                        found.shown()
                    );
                    directories.push(found.path.clone());
                }
                all.push(found);
            }
        }
        all.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        let mut originals = HashMap::new();
        for (index, found) in all.iter_mut().enumerate() {
            if found.shape == Shape::File && found.stat.st_nlink > 1 {
                let file = (found.stat.st_dev, found.stat.st_ino);
                let original = *originals.entry(file).or_insert(index);
                if original != index {
                    found.shape = Shape::HardLink(original);
                }
            }
        }
        Ok(all)
    }

    fn list(&self, directory: &[u8]) -> Result<Vec<Found>> {
        let context = || format!("reading {}", String::from_utf8_lossy(directory));
        let fd = self.open_directory(directory)?;
        let mut entries = Dir::from_fd(fd.try_clone()?).with_context(context)?;
        let mut list = Vec::new();
        for entry in entries.iter() {
            let entry = entry.with_context(context)?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            if matches!(bytes, b"." | b"..")
                || (directory.is_empty() && bytes == LOST_AND_FOUND.as_bytes())
            {
                continue;
            }
            let mut path = directory.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(bytes);
            let stat = fstatat(&fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .with_context(|| format!("reading {}", String::from_utf8_lossy(&path)))?;
            let shape = match file_type(&stat) {
                SFlag::S_IFDIR => Shape::Directory,
                SFlag::S_IFREG => Shape::File,
                SFlag::S_IFLNK => Shape::Symlink(
                    readlinkat(&fd, name)
                        .with_context(|| format!("reading {}", String::from_utf8_lossy(&path)))?
                        .into_vec(),
                ),
                SFlag::S_IFCHR => Shape::Special("a character device"),
                SFlag::S_IFBLK => Shape::Special("a block device"),
                SFlag::S_IFIFO => Shape::Special("a fifo"),
                SFlag::S_IFSOCK => Shape::Special("a socket"),
                _ => Shape::Special("of an unknown type"),
            };
            list.push(Found { path, stat, shape });
        }
        Ok(list)
    }

    /// The member a path on disk makes, its time unclamped, and the open file if it is
    /// one. `all` is the walk it comes from.
    pub fn describe(&self, all: &[Found], found: &Found) -> Result<(Member, Option<File>)> {
        if found.shape != Shape::File {
            return Ok((found.member(all, None)?, None));
        }
        let file = self.open_file(&found.path)?;
        let capability = capability_of(&file)
            .with_context(|| format!("reading the capabilities of {}", found.shown()))?;
        Ok((found.member(all, capability)?, Some(file)))
    }
}

impl Found {
    /// The member it makes, with these capabilities and its time unclamped. `all` is the walk
    /// it comes from.
    pub fn member(&self, all: &[Found], capability: Option<Vec<u8>>) -> Result<Member> {
        let text = |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).ok();
            text.with_context(|| format!("{}: a name that is not UTF-8", self.shown()))
        };
        let body = match &self.shape {
            Shape::Directory => Body::Directory,
            Shape::Symlink(target) => Body::Symlink { target: text(target)? },
            Shape::HardLink(original) => Body::HardLink { target: text(&all[*original].path)? },
            Shape::File => Body::File { size: self.size() },
            Shape::Special(what) => {
                bail!("{} is {what}, which has no place in a release", self.shown())
            }
        };
        Ok(Member {
            path: text(&self.path)?,
            body,
            mode: self.mode(),
            uid: self.stat.st_uid,
            gid: self.stat.st_gid,
            mtime: self.stat.st_mtime.max(0),
            capability,
        })
    }

    /// Permission bits, 12 of them.
    pub fn mode(&self) -> u32 {
        self.stat.st_mode & 0o7777
    }
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The capabilities of a file; none where the file system has no extended attributes.
pub(super) fn capability_of(file: &File) -> Result<Option<Vec<u8>>> {
    match file.get_xattr(CAPABILITY) {
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(None),
        read => Ok(read?),
    }
}

/// Hands a file's content to `sink` in pieces and returns its SHA-256, hex. A file that
/// is not of this size, in bytes, has changed meanwhile: an error.
pub(super) fn read_file(
    mut file: &File,
    size: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE) + 1)];
    let mut left = size;
    loop {
        let count = match file.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if count == 0 {
            break;
        }
        left = left.checked_sub(count as u64).context("it grew while it was read")?;
        hash.update(&buffer[..count]);
        sink(&buffer[..count])?;
    }
    ensure!(left == 0, "it shrank while it was read");
    Ok(hex(&hash.finalize()))
}

/// Whether a directory is empty, `lost+found` aside.
pub(super) fn is_empty(directory: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(directory)? {
        if entry?.file_name().as_bytes() != LOST_AND_FOUND.as_bytes() {
            return Ok(false);
        }
    }
    Ok(true)
}
