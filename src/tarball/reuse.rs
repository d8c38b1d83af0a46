//! A release's tree out of the tarball and of another release's tree, where a fork of that one
//! would be a copy: what both have is copied file by file, and verified as it is written.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, Result, ensure};

use super::Progress;
use super::archive::Archive;
use super::extract::{Opened, finish, open_empty, settle};
use super::member::Member;
use super::partial::Partial;
use super::walk::{Tree, read_file};
use crate::manifest::{FileEntry, FileIndex, FileKind};
use crate::parallel;

/// What a tarball's tree can take of another release's.
#[derive(Debug)]
pub struct Reuse<'a> {
    archive: &'a Archive,
    /// What the other tree lacks.
    lacking: Partial<'a>,
}

impl Archive {
    /// What can be taken from the tree of another release with this file index: the files of
    /// the segments all of whose files it has at the same paths.
    #[must_use]
    pub fn reuse(&self, before: &FileIndex) -> Reuse<'_> {
        let has: HashMap<&str, &str> = before
            .files
            .iter()
            .filter_map(|entry| Some((entry.path.as_str(), entry.sha256()?)))
            .collect();
        let lacks = |entry: &FileEntry| has.get(entry.path.as_str()).copied() != entry.sha256();
        Reuse { archive: self, lacking: Partial::new(self, lacks) }
    }
}

impl Reuse<'_> {
    /// Bytes of tar that are to be decoded.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.lacking.size()
    }

    /// As [`Archive::extract`], with what `source` has out of there. Progress counts bytes of
    /// what is being done.
    ///
    /// # Errors
    /// As [`Archive::extract`], and when the source is not what its file index says.
    pub fn extract(
        &self,
        source: &Path,
        target: &Path,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        let extract = || {
            let (source, target) = (Tree::open(source)?, open_empty(target)?);
            let is_file = |entry: &FileEntry| matches!(entry.kind, FileKind::File { .. });
            let is_directory = |entry: &FileEntry| entry.kind == FileKind::Directory;
            self.lacking.make(&target, is_directory)?;
            self.copy(&source, &target, threads, progress)?;
            self.lacking.write(&target, |_| true, threads, progress)?;
            self.lacking.make(&target, |entry| !is_file(entry) && !is_directory(entry))?;
            let entries = self.archive.files().files.iter();
            finish(&target, entries.map(|entry| self.archive.member(entry)))
        };
        extract().with_context(|| format!("unpacking {}", self.archive.name))
    }

    /// Copies the files of the segments that are not decoded.
    fn copy(
        &self,
        source: &Tree,
        target: &Tree,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        let others = self.lacking.others();
        let content = |entry: &FileEntry| self.archive.member(entry).content();
        let total = others.iter().flat_map(|entries| entries.iter()).map(content).sum();
        let done = AtomicU64::new(0);
        let advance = |count| progress(done.fetch_add(count, Relaxed) + count, total);
        parallel::each(&others, threads, |entries| {
            let mut opened = Opened::new(target)?;
            for entry in *entries {
                if let Some(sha256) = entry.sha256() {
                    let original = source
                        .open_file(entry.path.as_bytes())
                        .context("reading the other release")?;
                    let member = self.archive.member(entry);
                    let file = opened.create(target, &member.path);
                    file.and_then(|file| copy_file(&original, &file, &member, sha256, &advance))
                        .with_context(|| format!("copying {}", entry.path))?;
                }
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// Copies the content of a file, or has the file system share it, and gives the copy what else
/// the member has.
fn copy_file(
    original: &File,
    mut copy: &File,
    member: &Member,
    sha256: &str,
    advance: &dyn Fn(u64) -> Result<()>,
) -> Result<()> {
    let (has, size) = (original.metadata()?.len(), member.content());
    ensure!(has == size, "the other release's has {has} bytes instead of {size}");
    let found = if rustix::fs::ioctl_ficlone(copy, original).is_ok() {
        read_file(copy, size, &mut |piece| advance(piece.len() as u64))?
    } else {
        read_file(original, size, &mut |piece| {
            copy.write_all(piece)?;
            advance(piece.len() as u64)
        })?
    };
    ensure!(found == sha256, "the other release's content is not what its file index says");
    settle(copy, member)
}
