//! What became of a tree since it was packed.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, Result};

use super::Progress;
use super::member::{Body, Member};
use super::walk::{Found, Shape, Tree, read_file};
use crate::hash::from_hex;
use crate::manifest::{Capability, FileEntry, FileIndex, FileKind, Owner};
use crate::parallel;

/// One way in which a tree differs from its file index.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "difference")]
pub enum Difference {
    /// A path of the index that is not in the tree.
    Missing {
        /// Path, no leading slash.
        path: String,
        /// Whose it is.
        owner: Owner,
    },
    /// A path of the tree that is not in the index.
    Unexpected {
        /// Path, no leading slash; bytes that are not UTF-8 are replaced.
        path: String,
    },
    /// A path that is not what the index says.
    Changed {
        /// Path, no leading slash.
        path: String,
        /// Whose it is.
        owner: Owner,
        /// What it is now, in words: `mode 0644 instead of 0755, content`.
        what: String,
    },
}

impl Difference {
    /// The path that differs.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Difference::Missing { path, .. }
            | Difference::Unexpected { path }
            | Difference::Changed { path, .. } => path,
        }
    }
}

impl Difference {
    /// Whose the path is; nobody's, if the release does not have it.
    #[must_use]
    pub fn owner(&self) -> Option<&Owner> {
        match self {
            Difference::Missing { owner, .. } | Difference::Changed { owner, .. } => Some(owner),
            Difference::Unexpected { .. } => None,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Missing { path, .. } => write!(f, "{path}: missing"),
            Difference::Unexpected { path } => write!(f, "{path}: unexpected"),
            Difference::Changed { path, what, .. } => write!(f, "{path}: {what}"),
        }
    }
}

/// Compares a tree on disk with the file index and the capabilities it was extracted
/// from, ascending by path. Progress counts bytes of file contents.
///
/// Times of directories are not compared: they say that a name came or went, which is
/// reported by itself. `lost+found` at the top is no part of the tree.
///
/// # Errors
/// When the tree cannot be read; what differs is no error.
pub fn compare(
    tree: &Path,
    index: &FileIndex,
    capabilities: &[Capability],
    progress: Progress<'_>,
) -> Result<Vec<Difference>> {
    compare_tree(tree, index, capabilities, &Opened::All(progress))
        .with_context(|| format!("comparing {}", tree.display()))
}

/// As [`compare`], but what files hold is not read, and only those that were `made` anew are
/// opened, for their capabilities.
///
/// # Errors
/// When the tree cannot be read.
pub(super) fn compare_unread(
    tree: &Path,
    index: &FileIndex,
    capabilities: &[Capability],
    made: &HashSet<&str>,
) -> Result<Vec<Difference>> {
    compare_tree(tree, index, capabilities, &Opened::Only(made))
        .with_context(|| format!("comparing {}", tree.display()))
}

/// Which files are opened.
enum Opened<'a> {
    /// All, and read.
    All(Progress<'a>),
    /// Those at these paths, and not read. The rest have the capabilities they should.
    Only(&'a HashSet<&'a str>),
}

fn compare_tree(
    tree: &Path,
    index: &FileIndex,
    capabilities: &[Capability],
    opened: &Opened<'_>,
) -> Result<Vec<Difference>> {
    let tree = Tree::open(tree)?;
    let all = tree.walk()?;
    let capabilities: HashMap<&str, Vec<u8>> = capabilities
        .iter()
        .filter_map(|one| Some((one.path.as_str(), from_hex(&one.value)?)))
        .collect();
    let total = all.iter().map(Found::content).sum();
    let done = AtomicU64::new(0);
    let advance = |count| match opened {
        Opened::All(progress) => progress(done.fetch_add(count, Relaxed) + count, total),
        Opened::Only(_) => Ok(()),
    };
    // Twice as many: they wait for the disk.
    let threads = 2 * parallel::processors();
    let compared = parallel::each(&paired(index, &all), threads, |pair| {
        let difference = match *pair {
            (Some(FileEntry { path, owner, .. }), None) => {
                Some(Difference::Missing { path: path.clone(), owner: owner.clone() })
            }
            (None, Some(found)) => Some(Difference::Unexpected { path: found.shown() }),
            (Some(entry), Some(found)) => {
                let capability = capabilities.get(entry.path.as_str()).cloned();
                let expected = Member::of_entry(entry, capability);
                let look = || match opened {
                    Opened::Only(made) if !made.contains(entry.path.as_str()) => {
                        Ok((found.member(&all, expected.capability.clone())?, None))
                    }
                    Opened::Only(_) => Ok((tree.describe(&all, found)?.0, None)),
                    Opened::All(_) => tree.describe(&all, found),
                };
                let what = describe_change(&all, found, entry, &expected, &look, &advance)?;
                let (path, owner) = (entry.path.clone(), entry.owner.clone());
                (!what.is_empty()).then_some(Difference::Changed { path, owner, what })
            }
            (None, None) => None,
        };
        Ok(difference)
    })?;
    Ok(compared.into_iter().flatten().collect())
}

/// Every path of the index or the tree, ascending, with what is there in each.
fn paired<'a>(
    index: &'a FileIndex,
    all: &'a [Found],
) -> Vec<(Option<&'a FileEntry>, Option<&'a Found>)> {
    let mut pairs = Vec::with_capacity(all.len());
    let mut entries = index.files.iter().peekable();
    let mut finds = all.iter().peekable();
    loop {
        let order = match (entries.peek(), finds.peek()) {
            (None, None) => return pairs,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(entry), Some(found)) => entry.path.as_bytes().cmp(&found.path),
        };
        let entry = if order.is_le() { entries.next() } else { None };
        let found = if order.is_ge() { finds.next() } else { None };
        pairs.push((entry, found));
    }
}

/// What a path on disk is, and the file if its content counts.
type Look<'a> = &'a dyn Fn() -> Result<(Member, Option<File>)>;

/// What a path has become, in words; empty if it is what it was. `advance` is told how many
/// bytes more were read.
fn describe_change(
    all: &[Found],
    found: &Found,
    entry: &FileEntry,
    expected: &Member,
    look: Look<'_>,
    advance: &dyn Fn(u64) -> Result<()>,
) -> Result<String> {
    let target = match found.shape {
        Shape::Special(what) => return Ok(format!("{what} instead of {}", expected.body.name())),
        // A link to a name that is not UTF-8 cannot be the one in the index.
        Shape::Symlink(ref target) => std::str::from_utf8(target).ok(),
        Shape::HardLink(original) => std::str::from_utf8(&all[original].path).ok(),
        Shape::File | Shape::Directory => Some(""),
    };
    if target.is_none() {
        return Ok("link to a name that is not UTF-8".to_owned());
    }
    let (mut now, file) = look()?;
    if now.body == Body::Directory {
        now.mtime = expected.mtime;
    }
    let mut what = now.difference(expected);
    if let (FileKind::File { size, sha256 }, Some(file)) = (&entry.kind, file) {
        if *size == found.size() {
            let read = read_file(&file, *size, &mut |piece| advance(piece.len() as u64));
            if read.with_context(|| format!("reading {}", entry.path))? != *sha256 {
                what.push_str(if what.is_empty() { "content" } else { ", content" });
            }
        }
    }
    Ok(what)
}
