//! Places that keep environment trees.
//!
//! Session copies are schroot's business: a backend says, as a [`Stanza`] value, how
//! schroot makes one. schroot is not trusted with them, though: what it is about to make
//! is looked at first ([`Storage::check_copy`]), and what it leaves is removed here
//! ([`Storage::remove_copy`]).

mod btrfs;
mod choice;
mod directory;
pub mod ground;
mod lvm;
mod shelf;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::refuse;
use crate::mount::Mount;
use crate::profile::Volumes;
use crate::run::Tool;
use crate::settings::{Settings, Site};
use crate::size::Size;

pub use choice::{Choice, choose};
pub use shelf::remove_tree;

/// Whose a volume is, kept with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mark {
    /// Id of the node that made it.
    pub node: String,
    /// Id of the transaction that made it.
    pub transaction: String,
}

/// A volume of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Whose it is.
    pub mark: Mark,
    /// Bytes set aside for it; none where volumes share their place.
    pub size: Option<u64>,
    /// Whether it may be changed.
    pub access: Access,
}

/// Whether a tree may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Sealed: a release.
    ReadOnly,
    /// Open for a build.
    ReadWrite,
}

/// How full the place is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// What new volumes and copies may take.
    pub free: u64,
    /// How full the thin pool's metadata is, in percent; only a thin pool has some.
    pub metadata_percent: Option<f64>,
}

/// What schroot needs to know to make session copies of a volume: the keys of its
/// `schroot.conf` stanza that depend on the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stanza(pub Vec<(&'static str, String)>);

/// How session copies of a volume are to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// Room set aside for what a session changes; none: as much as the whole volume, so
    /// that it cannot run out. Only classic LVM snapshots have such a size.
    pub size: Option<Size>,
}

impl Copies {
    /// As the profile says, else as the node's settings do.
    #[must_use]
    pub fn of(profile: &Volumes, settings: &Settings) -> Self {
        Self { size: profile.snapshot_size.or(settings.snapshot_size) }
    }
}

/// A session's writable copy as its storage sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionCopy {
    /// Name of the session.
    pub session: String,
    /// Volume it is a copy of.
    pub origin: String,
    /// Bytes that differ from the volume, about; none where nobody counts them.
    pub written: Option<u64>,
    /// Bytes that can differ before it breaks; none where it has room for all, or only the
    /// whole place can get full.
    pub room: Option<u64>,
    /// Bytes of room it would take more to have room for all; 0 where it has.
    pub wanting: u64,
    /// Whether it still holds what the session wrote.
    pub whole: bool,
}

/// What [`Storage::grow_copy`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Bytes of room before.
    pub from: u64,
    /// Bytes of room now.
    pub to: u64,
}

/// A volume's tree, usable as long as the guard lives.
#[derive(Debug)]
#[must_use = "the tree is given back when this is dropped"]
pub struct Tree {
    path: PathBuf,
    mount: Option<Mount>,
}

impl Tree {
    /// A tree that is where it is.
    fn lying(path: PathBuf) -> Self {
        Self { path, mount: None }
    }

    /// A tree mounted on a directory of its own, which goes with the mount.
    fn mounted(path: PathBuf, mount: Mount) -> Self {
        Self { path, mount: Some(mount) }
    }

    /// Root of the tree.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the tree back as long as `body` runs, which answers it opened again.
    ///
    /// # Errors
    /// As [`Self::close`], and `body`'s own; then it stays given back.
    pub fn suspended(&mut self, body: impl FnOnce() -> Result<Self>) -> Result<()> {
        let path = self.path.clone();
        std::mem::replace(self, Self::lying(path)).close()?;
        *self = body()?;
        Ok(())
    }

    /// Gives the tree back and says if that did not work: before the volume is sealed,
    /// renamed or removed.
    ///
    /// # Errors
    /// When something still uses it.
    pub fn close(mut self) -> Result<()> {
        self.mount.take().map_or(Ok(()), |mount| {
            mount.close()?;
            // Only a mount point; one that is left is empty, and removed with the volume.
            drop(fs::remove_dir(&self.path));
            Ok(())
        })
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            drop(mount);
            drop(fs::remove_dir(&self.path));
        }
    }
}

/// A place that keeps environment trees.
pub trait Storage: std::fmt::Debug + Sync {
    /// Name in settings, state and `--storage`.
    fn name(&self) -> &'static str;
    /// Programs it needs on the host.
    fn tools(&self) -> Vec<&'static Tool>;
    /// Whether the machine has what this backend needs.
    ///
    /// # Errors
    /// Saying what is missing.
    fn check(&self) -> Result<()>;
    /// Makes an empty volume, of at least this size where volumes have one.
    ///
    /// # Errors
    /// When there is one of that name, or no room.
    fn create(&self, name: &str, size: Size, mark: &Mark) -> Result<()>;
    /// Makes a volume with the contents of another: copy-on-write where there is any.
    ///
    /// # Errors
    /// As [`Storage::create`].
    fn fork(&self, from: &str, to: &str, mark: &Mark) -> Result<()>;
    /// Whether a fork is less work than writing its files: it shares with its origin what both
    /// have, or is copied block by block.
    fn forks_quickly(&self) -> bool {
        false
    }
    /// Makes a volume with the contents of another that stays as it is meanwhile, for a build
    /// that removes it again: a layer over the other one, where that is less work than a fork.
    /// Callers have a mount namespace of their own, as with [`Storage::open`]. It is opened,
    /// forked and removed, no more.
    ///
    /// # Errors
    /// As [`Storage::create`].
    fn layer(&self, from: &str, to: &str, mark: &Mark) -> Result<()> {
        self.fork(from, to, mark)
    }
    /// Whether a volume is whole by itself: no layer over another one, which may go.
    fn lasts(&self, _name: &str) -> bool {
        true
    }
    /// Bytes of the place a fork of a volume takes, about.
    ///
    /// # Errors
    /// When there is none of that name.
    fn fork_takes(&self, name: &str) -> Result<u64>;
    /// Opens a volume's tree. Where it has to be mounted for that, callers have a mount
    /// namespace of their own ([`crate::mount::private_namespace`]), so that no mount is
    /// left whatever becomes of them.
    ///
    /// # Errors
    /// When there is none, or it is sealed and `access` would change it.
    fn open(&self, name: &str, access: Access) -> Result<Tree>;
    /// Says whether a volume may be changed from now on; one that may not is on the disk as it
    /// is, also after a power cut. Its tree must not be open.
    ///
    /// # Errors
    /// When there is none.
    fn seal(&self, name: &str, access: Access) -> Result<()>;
    /// Names the last change of a volume's tree: another one after any change of a file, a
    /// name or an attribute, whoever made it; the same as long as there was none. None where
    /// the storage does not know, or not of a volume that is open for changes.
    fn last_change(&self, _name: &str) -> Option<String> {
        None
    }
    /// How full the place is.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn usage(&self) -> Result<Usage>;
    /// Gives a volume another name, in one act. Its tree must not be open.
    ///
    /// # Errors
    /// When there is none, or one of the new name.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Refuses a name that [`Storage::remove`] would remove something of: to be called before it
    /// is written down that a volume of it is made, because what is written down is removed if
    /// that fails. A volume that no record names may be what a session runs on.
    ///
    /// # Errors
    /// Exactly then.
    fn check_new(&self, name: &str) -> Result<()>;
    /// Removes a volume if it is there, whole or half made.
    ///
    /// # Errors
    /// When something uses it, or it cannot be removed.
    fn remove(&self, name: &str) -> Result<()>;
    /// Our volumes.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn list(&self) -> Result<Vec<Volume>>;
    /// The commands that make a volume, for `--dry-run`.
    ///
    /// # Errors
    /// When the place cannot be looked at.
    fn describe_create(&self, name: &str, size: Size) -> Result<Vec<String>>;
    /// The commands that fork a volume, for `--dry-run`.
    ///
    /// # Errors
    /// As [`Storage::describe_create`].
    fn describe_fork(&self, from: &str, to: &str) -> Result<Vec<String>>;
    /// The commands that layer a volume over another, for `--dry-run`.
    ///
    /// # Errors
    /// As [`Storage::describe_create`].
    fn describe_layer(&self, from: &str, to: &str) -> Result<Vec<String>> {
        self.describe_fork(from, to)
    }
    /// How schroot makes session copies of the volume.
    ///
    /// # Errors
    /// When there is no such volume.
    fn stanza(&self, name: &str, copies: Copies) -> Result<Stanza>;

    /// Refuses a session that would meet something of its name, or whose copy does not
    /// fit: schroot would do damage, or begin a session that breaks.
    ///
    /// # Errors
    /// Exactly then.
    fn check_copy(&self, session: &str, volume: &str, copies: Copies) -> Result<()>;
    /// The writable copies of sessions. Overlays, which are schroot's alone, are not among
    /// them.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn copies(&self) -> Result<Vec<SessionCopy>> {
        Ok(Vec::new())
    }
    /// Makes a session's copy available again, after a reboot.
    ///
    /// # Errors
    /// When it is there and that is not possible.
    fn activate_copy(&self, _session: &str) -> Result<()> {
        Ok(())
    }
    /// Gives a session's copy more room, if it is small and filling up; before it is
    /// full, because afterwards it is lost.
    ///
    /// # Errors
    /// When it is lost already, or there is no room.
    fn grow_copy(&self, _session: &str) -> Result<Option<Growth>> {
        Ok(None)
    }
    /// Removes a session's copy that schroot left behind, if there is one, and only if it
    /// is ours and a copy.
    ///
    /// # Errors
    /// When something uses it, or it cannot be removed.
    fn remove_copy(&self, _session: &str) -> Result<()> {
        Ok(())
    }
}

/// What to do about a volume that no record names.
const UNNAMED: &str =
    "farmctl gc --check says of whom it is; farmctl gc, or gc --orphans, removes it";

/// How many seconds `left` bytes last when `written` were written in the `elapsed` seconds
/// before; none when nothing was, or the time is too short to tell.
#[must_use]
pub fn lasts(written: u64, elapsed: i64, left: u64) -> Option<i64> {
    let elapsed = u64::try_from(elapsed).ok().filter(|elapsed| *elapsed >= MEASURED)?;
    let seconds = u128::from(left) * u128::from(elapsed) / u128::from(written).max(1);
    (written > 0).then(|| i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// Seconds after which a session's writing says something about its pace.
const MEASURED: u64 = 60;

/// What to do about a volume that is gone or damaged.
const OF_VOLUMES: &str = "farmctl doctor says whose it is, and how it is made again";

/// Refuses because a volume that is wanted is not there.
fn no_volume<T>(name: &str) -> Result<T> {
    refuse(format_args!("there is no volume {name}"), OF_VOLUMES)
}

/// Names of all backends, the best first.
pub const NAMES: [&str; 4] = ["lvm-thin", "lvm", "btrfs", "directory"];

/// The backend of this name, as `node.toml`, `--storage` and the state write it.
///
/// # Errors
/// When there is none.
pub fn named(name: &str, site: &Site<'_>) -> Result<Box<dyn Storage>> {
    match name {
        "auto" => Ok(choose(None, site)?.storage),
        "directory" => Ok(Box::new(directory::Directory::new(site.layout))),
        "btrfs" => Ok(Box::new(btrfs::Btrfs::new(site.layout))),
        "lvm" => Ok(Box::new(lvm::Lvm::new(lvm::Kind::Classic, site))),
        "lvm-thin" => Ok(Box::new(lvm::Lvm::new(lvm::Kind::Thin, site))),
        other => refuse(
            format_args!("unknown storage \"{other}\""),
            format!("storage is \"auto\" or one of {}", NAMES.join(", ")),
        ),
    }
}

/// What a backend holds of ours.
#[derive(Debug)]
pub struct Holdings {
    /// The backend.
    pub storage: &'static str,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Writable copies of sessions.
    pub copies: Vec<SessionCopy>,
}

/// What every backend holds of ours that can on this machine, whatever is set: what was made
/// before a setting was changed is still there. LVM, the slowest to ask, is asked once.
///
/// # Errors
/// When one cannot be looked at.
pub fn holdings(site: &Site<'_>) -> Result<Vec<Holdings>> {
    let is_there = |storage: &dyn Storage| storage.tools().iter().all(|tool| tool.path().is_some());
    let mut found = Vec::new();
    let thin = lvm::Lvm::new(lvm::Kind::Thin, site);
    if is_there(&thin) {
        let all = lvm::volumes()?;
        for lvm in [thin, lvm::Lvm::new(lvm::Kind::Classic, site)] {
            found.push(Holdings {
                storage: lvm.name(),
                volumes: lvm.volumes_among(&all),
                copies: lvm.copies_among(&all),
            });
        }
    }
    let btrfs: Box<dyn Storage> = Box::new(btrfs::Btrfs::new(site.layout));
    let directory: Box<dyn Storage> = Box::new(directory::Directory::new(site.layout));
    for storage in [btrfs, directory].iter().filter(|storage| is_there(storage.as_ref())) {
        let (volumes, copies) = (storage.list()?, storage.copies()?);
        found.push(Holdings { storage: storage.name(), volumes, copies });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_lasts_as_long_as_the_pace_says() {
        // 1 MiB a second, 3 hours of it left.
        assert_eq!(lasts(100 << 20, 100, 10_800 << 20), Some(10_800));
        assert_eq!(lasts(0, 100, 1), None);
        assert_eq!(lasts(1, 59, 1), None);
        assert_eq!(lasts(1, i64::MAX, u64::MAX), Some(i64::MAX));
    }
}
