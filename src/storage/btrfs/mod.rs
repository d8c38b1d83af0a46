//! Volumes as btrfs subvolumes, sessions as their snapshots.
//!
//! A volume is a directory as with the `directory` backend, but its `root` is a subvolume.
//! Sealed is btrfs's own read-only property. schroot's snapshots lie beside the volumes, in
//! a directory that is nobody else's.

mod subvolume;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use super::shelf::{Shelf, remove_tree};
use super::{Access, Copies, Mark, SessionCopy, Stanza, Storage, Tree, Usage, Volume};
use crate::error::refuse;
use crate::layout::Layout;
use crate::mount;
use crate::run::{Invocation, Tool};
use crate::size::Size;

const BTRFS: Tool = Tool { name: "btrfs", package: "btrfs-progs" };
/// Inode number of every subvolume's root: `BTRFS_FIRST_FREE_OBJECTID`.
const SUBVOLUME_INODE: u64 = 256;
/// Room below which no session is begun, in bytes: btrfs takes new space for metadata in
/// pieces of up to a GiB, and refuses all writes when it finds none.
const SPARE: u64 = 64 << 20;

/// The `btrfs` backend.
#[derive(Debug)]
pub struct Btrfs {
    shelf: Shelf,
    volumes: PathBuf,
    snapshots: PathBuf,
}

/// Whether volumes lie on btrfs, and its program is there.
pub fn is_usable(layout: &Layout) -> bool {
    BTRFS.path().is_some() && is_on_btrfs(&layout.volumes())
}

/// Whether a path, or the first directory above it that is there, is on btrfs.
fn is_on_btrfs(path: &Path) -> bool {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    statfs(existing).is_ok_and(|stat| stat.filesystem_type() == BTRFS_SUPER_MAGIC)
}

fn is_subvolume(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.ino() == SUBVOLUME_INODE)
}

fn subvolume(verb: &str) -> Invocation {
    Invocation::of(&BTRFS).args(["subvolume", verb])
}

/// Removes a subvolume with the ones nested in it, or a plain directory. btrfs(8) refuses
/// nested ones, and so does schroot, silently; rmdir(2) removes an empty one since Linux
/// 4.18, so what holds some is removed as any directory.
fn remove_subvolume(path: &Path) -> Result<()> {
    if let Some(point) = mount::mounts_beneath(path)?.first() {
        bail!("{} is still mounted", point.display());
    }
    if is_subvolume(path) {
        let outcome = subvolume("delete").arg(path).outcome()?;
        if outcome.success() {
            return Ok(());
        }
        make_writable(path)?;
    }
    remove_tree(path)
}

fn set_read_only(path: &Path, read_only: bool) -> Invocation {
    Invocation::of(&BTRFS)
        .args(["property", "set", "-f", "-t", "subvol"])
        .arg(path)
        .args(["ro", if read_only { "true" } else { "false" }])
}

/// Makes a subvolume and the ones nested in it writable.
fn make_writable(path: &Path) -> Result<()> {
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        if is_subvolume(&directory) {
            set_read_only(&directory, false).run()?;
        }
        for entry in fs::read_dir(&directory)
            .with_context(|| format!("reading {}", directory.display()))?
            .flatten()
        {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}

impl Btrfs {
    /// Volumes where `layout` says.
    pub fn new(layout: &Layout) -> Self {
        Self {
            shelf: Shelf::new(layout.volumes(), "btrfs"),
            volumes: layout.volumes(),
            snapshots: layout.snapshots(),
        }
    }

    fn snapshot(&self, session: &str) -> PathBuf {
        self.snapshots.join(session)
    }

    fn creating(&self, name: &str) -> Invocation {
        subvolume("create").arg(self.shelf.tree(name))
    }

    fn forking(&self, from: &str, to: &str) -> Invocation {
        subvolume("snapshot").args([self.shelf.tree(from), self.shelf.tree(to)])
    }
}

impl Storage for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn tools(&self) -> Vec<&'static Tool> {
        vec![&BTRFS]
    }

    fn check(&self) -> Result<()> {
        if is_on_btrfs(&self.volumes) {
            return Ok(());
        }
        refuse(
            format_args!("{} is not on btrfs", self.volumes.display()),
            "mount one there, or farmctl storage init --backend btrfs --size SIZE",
        )
    }

    fn create(&self, name: &str, _size: Size, mark: &Mark) -> Result<()> {
        self.check()?;
        self.shelf.begin(name, mark)?;
        self.creating(name).run()?;
        self.shelf.settle_root(name)
    }

    fn fork(&self, from: &str, to: &str, mark: &Mark) -> Result<()> {
        self.shelf.require(from)?;
        self.shelf.begin(to, mark)?;
        self.forking(from, to).run()
    }

    fn forks_quickly(&self) -> bool {
        true
    }

    fn fork_takes(&self, name: &str) -> Result<u64> {
        self.shelf.require(name).map(|()| 0)
    }

    fn open(&self, name: &str, access: Access) -> Result<Tree> {
        Ok(Tree::lying(self.shelf.open(name, access)?))
    }

    fn seal(&self, name: &str, access: Access) -> Result<()> {
        // The property first: a record that says sealed is never wrong.
        set_read_only(&self.shelf.tree(name), access == Access::ReadOnly)
            .named(format!("sealing volume {name}"))
            .run()?;
        self.shelf.seal(name, access)
    }

    fn last_change(&self, name: &str) -> Option<String> {
        // Who does not know reads all of it instead.
        let answer = subvolume::last_change(&self.shelf.tree(name));
        answer.inspect_err(|error| tracing::info!("{error:#}")).ok()
    }

    fn usage(&self) -> Result<Usage> {
        self.shelf.usage()
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.shelf.rename(from, to)
    }

    fn check_new(&self, name: &str) -> Result<()> {
        self.shelf.check_new(name)
    }

    fn remove(&self, name: &str) -> Result<()> {
        remove_subvolume(&self.shelf.tree(name))?;
        self.shelf.remove(name)
    }

    fn list(&self) -> Result<Vec<Volume>> {
        self.shelf.list()
    }

    fn describe_create(&self, name: &str, _size: Size) -> Result<Vec<String>> {
        Ok(vec![self.creating(name).display()])
    }

    fn describe_fork(&self, from: &str, to: &str) -> Result<Vec<String>> {
        Ok(vec![self.forking(from, to).display()])
    }

    fn stanza(&self, name: &str, _copies: Copies) -> Result<Stanza> {
        // schroot refuses to begin a session when it is not there.
        crate::file::make_directory(&self.snapshots, 0o700)?;
        Ok(Stanza(vec![
            ("type", "btrfs-snapshot".to_owned()),
            ("btrfs-source-subvolume", self.shelf.tree(name).display().to_string()),
            ("btrfs-snapshot-directory", self.snapshots.display().to_string()),
        ]))
    }

    fn check_copy(&self, session: &str, volume: &str, _copies: Copies) -> Result<()> {
        self.shelf.require(volume)?;
        let path = self.snapshot(session);
        if fs::symlink_metadata(&path).is_ok() {
            return refuse(format_args!("{} is there already", path.display()), "farmctl gc");
        }
        let free = self.usage()?.free;
        if free < SPARE {
            return refuse(
                format_args!("{} is full", self.volumes.display()),
                crate::error::NO_SPACE,
            );
        }
        Ok(())
    }

    fn copies(&self) -> Result<Vec<SessionCopy>> {
        let names = crate::file::names_in(&self.snapshots)?;
        let copy = |session: String| SessionCopy {
            session,
            origin: String::new(),
            written: None,
            room: None,
            wanting: 0,
            whole: true,
        };
        Ok(names.into_iter().map(copy).collect())
    }

    fn remove_copy(&self, session: &str) -> Result<()> {
        remove_subvolume(&self.snapshot(session))
    }
}
