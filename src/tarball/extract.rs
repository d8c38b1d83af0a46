//! Extracting members that nobody vouches for, as root.
//!
//! The order on files is chown, chmod, setxattr, utimens: chown(2) takes set-id bits and
//! capabilities away. Directories are closed to everybody but root until the end, when
//! they get their own mode and time, the last one first.

use std::borrow::Borrow;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, fstat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat, syncfs};
use sha2::{Digest as _, Sha256};
use xattr::FileExt as _;

use super::member::{Body, CAPABILITY, Member, Members, Pieces};
use super::rules::Rules;
use super::walk::{Tree, is_empty};
use crate::error::refuse;
use crate::hash::hex;

/// A tree being written.
pub(super) struct Extractor {
    tree: Tree,
    rules: Rules,
    parent: Opened,
}

/// The directory of the last member, open: the next one mostly lies there too.
pub(super) struct Opened {
    path: String,
    directory: OwnedFd,
}

impl Opened {
    /// That of a member at the top of a tree.
    pub fn new(tree: &Tree) -> Result<Opened> {
        Ok(Opened { path: String::new(), directory: tree.open_directory(b"")? })
    }

    /// The directory a path lies in, and its name there.
    fn parent<'a>(&mut self, tree: &Tree, path: &'a str) -> Result<(BorrowedFd<'_>, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if self.path != parent {
            let directory = tree.open_directory(parent.as_bytes())?;
            *self = Opened { path: parent.to_owned(), directory };
        }
        Ok((self.directory.as_fd(), name))
    }

    /// Makes a file, open for reading and writing.
    pub fn create(&mut self, tree: &Tree, path: &str) -> Result<File> {
        let (parent, name) = self.parent(tree, path)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?))
    }
}

/// Opens an existing empty directory, `lost+found` aside.
pub(super) fn open_empty(target: &Path) -> Result<Tree> {
    let tree = Tree::open(target)?;
    if !is_empty(target).with_context(|| format!("reading {}", target.display()))? {
        return refuse(format!("{} is not empty", target.display()), "give an empty directory");
    }
    Ok(tree)
}

impl Extractor {
    /// Begins in an existing empty directory, `lost+found` aside.
    pub fn new(target: &Path) -> Result<Extractor> {
        let tree = open_empty(target)?;
        let parent = Opened::new(&tree)?;
        Ok(Extractor { tree, rules: Rules::default(), parent })
    }

    /// Writes one member, its content from `members`. Where the content's SHA-256 is
    /// known, hex, a file that has another one gets neither its owner nor its mode.
    pub fn add<P: Pieces>(
        &mut self,
        member: Member,
        sha256: Option<&str>,
        members: &mut Members<P>,
    ) -> Result<()> {
        let Extractor { tree, rules, parent } = self;
        rules.admit(member)?;
        let member = rules.last().expect("it was just taken");
        write(tree, parent, member, sha256, members)
            .with_context(|| format!("writing {}", member.path))
    }

    /// Gives directories what was held back and writes everything to the disk.
    pub fn finish(self) -> Result<()> {
        finish(&self.tree, self.rules.seen().iter())
    }
}

/// Gives those of a tree's members that are directories their owner, mode and time, the last
/// one first, and writes everything to the disk. What is right already is not written.
pub(super) fn finish<M: Borrow<Member>>(
    tree: &Tree,
    members: impl DoubleEndedIterator<Item = M>,
) -> Result<()> {
    for member in members.rev() {
        let member = member.borrow();
        if member.body == Body::Directory {
            let directory = File::from(tree.open_directory(member.path.as_bytes())?);
            if !is_settled(&directory, member)? {
                settle(&directory, member).with_context(|| format!("writing {}", member.path))?;
            }
        }
    }
    syncfs(tree.root()).context("writing everything to the disk")
}

/// Makes what a member is, with its content from `members` if it has some.
pub(super) fn write<P: Pieces>(
    tree: &Tree,
    open: &mut Opened,
    member: &Member,
    sha256: Option<&str>,
    members: &mut Members<P>,
) -> Result<()> {
    if let Body::File { size } = member.body {
        let file = open.create(tree, &member.path)?;
        return write_file(file, member, size, sha256, members);
    }
    let (parent, name) = open.parent(tree, &member.path)?;
    match &member.body {
        Body::Directory => mkdirat(parent, name, Mode::S_IRWXU)?,
        Body::Symlink { target } => {
            symlinkat(target.as_str(), parent, name)?;
            let (uid, gid) = owner(member);
            fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let time = time(member);
            utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
        }
        Body::HardLink { target } => {
            let (from, file) = target.rsplit_once('/').unwrap_or(("", target));
            let from = tree.open_directory(from.as_bytes())?;
            // Without AT_SYMLINK_FOLLOW, and the rules know it for a regular file.
            linkat(from, file, parent, name, AtFlags::empty())?;
        }
        Body::File { .. } => unreachable!("it was written"),
    }
    Ok(())
}

fn write_file<P: Pieces>(
    mut file: File,
    member: &Member,
    size: u64,
    sha256: Option<&str>,
    members: &mut Members<P>,
) -> Result<()> {
    let mut hash = Sha256::new();
    members.content(size, &mut |piece| {
        if sha256.is_some() {
            hash.update(piece);
        }
        Ok(file.write_all(piece)?)
    })?;
    if let Some(wanted) = sha256 {
        ensure!(hex(&hash.finalize()) == wanted, "its content is not what the file index says");
    }
    settle(&file, member)
}

/// Gives an open file or directory its owner, mode, capabilities and time.
pub(super) fn settle(file: &File, member: &Member) -> Result<()> {
    let (uid, gid) = owner(member);
    fchown(file, uid, gid)?;
    fchmod(file, Mode::from_bits_truncate(member.mode))?;
    if let Some(value) = &member.capability {
        file.set_xattr(CAPABILITY, value).context("setting its capabilities")?;
    }
    let time = time(member);
    futimens(file, &time, &time)?;
    Ok(())
}

/// Whether an open directory has its owner, mode and time.
fn is_settled(directory: &File, member: &Member) -> Result<bool> {
    let stat = fstat(directory)?;
    Ok((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (member.uid, member.gid, member.mode)
        && (stat.st_mtime, stat.st_mtime_nsec) == (member.mtime, 0))
}

fn owner(member: &Member) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(member.uid)), Some(Gid::from_raw(member.gid)))
}

fn time(member: &Member) -> TimeSpec {
    TimeSpec::new(member.mtime, 0)
}
