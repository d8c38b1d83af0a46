//! Places that keep environment trees.
//!
//! Session copies are schroot's business: a backend only says, as a [`Stanza`] value,
//! how schroot can make one.

mod directory;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::refuse;
use crate::layout::Layout;

pub use directory::remove_tree;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// What a new volume may take.
    pub free: u64,
}

/// What schroot needs to know to make session copies of a volume: the keys of its
/// `schroot.conf` stanza that depend on the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stanza(pub Vec<(&'static str, String)>);

/// A volume's tree, usable as long as the guard lives.
#[derive(Debug)]
#[must_use = "the tree is given back when this is dropped"]
pub struct Tree {
    path: PathBuf,
}

impl Tree {
    /// Root of the tree.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A place that keeps environment trees.
pub trait Storage: std::fmt::Debug {
    /// Name in settings, state and `--storage`.
    fn name(&self) -> &'static str;
    /// Whether the machine has what this backend needs.
    ///
    /// # Errors
    /// Saying what is missing.
    fn check(&self) -> Result<()>;
    /// Makes an empty volume.
    ///
    /// # Errors
    /// When there is one of that name, or no room.
    fn create(&self, name: &str, mark: &Mark) -> Result<()>;
    /// Makes a volume with the contents of another: copy-on-write where there is any.
    ///
    /// # Errors
    /// As [`Storage::create`].
    fn fork(&self, from: &str, to: &str, mark: &Mark) -> Result<()>;
    /// Opens a volume's tree.
    ///
    /// # Errors
    /// When there is none, or it is sealed and `access` would change it.
    fn open(&self, name: &str, access: Access) -> Result<Tree>;
    /// Says whether a volume may be changed from now on.
    ///
    /// # Errors
    /// When there is none.
    fn seal(&self, name: &str, access: Access) -> Result<()>;
    /// How full the place is.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn usage(&self) -> Result<Usage>;
    /// Gives a volume another name, in one act.
    ///
    /// # Errors
    /// When there is none, or one of the new name.
    fn rename(&self, from: &str, to: &str) -> Result<()>;
    /// Removes a volume if it is there, whole or half made.
    ///
    /// # Errors
    /// When something is mounted beneath it, or it cannot be removed.
    fn remove(&self, name: &str) -> Result<()>;
    /// Our volumes.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn list(&self) -> Result<Vec<Volume>>;
    /// The commands that make a volume, for `--dry-run`.
    fn describe_create(&self, name: &str) -> Vec<String>;
    /// The commands that fork a volume, for `--dry-run`.
    fn describe_fork(&self, from: &str, to: &str) -> Vec<String>;
    /// How schroot makes session copies of the volume.
    fn stanza(&self, name: &str) -> Stanza;
}

/// The backend of this name.
///
/// # Errors
/// When there is none.
pub fn named(name: &str, layout: &Layout) -> Result<Box<dyn Storage>> {
    match name {
        "auto" | "directory" => Ok(Box::new(directory::Directory::new(layout))),
        other => refuse(
            format_args!("unknown storage \"{other}\""),
            "storage is \"auto\" or \"directory\"",
        ),
    }
}
