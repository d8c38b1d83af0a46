//! A payload of which some segments are decoded and the others are known already.

use std::ops::Range;

use anyhow::{Context as _, Result};

use super::Progress;
use super::archive::Archive;
use super::decode::decode_blocks;
use super::extract::{Opened, write};
use super::member::Members;
use super::segment::contents;
use super::walk::Tree;
use crate::manifest::{FileEntry, FileKind};

/// The segments in which certain files lie.
#[derive(Debug)]
pub(super) struct Partial<'a> {
    archive: &'a Archive,
    /// All segments: the entries in each, and whether it is one of these.
    segments: Vec<(Range<usize>, bool)>,
}

impl<'a> Partial<'a> {
    /// The segments with the files `is_wanted` says.
    pub fn new(archive: &'a Archive, is_wanted: impl Fn(&FileEntry) -> bool) -> Self {
        let is_file = |entry: &FileEntry| matches!(entry.kind, FileKind::File { .. });
        let holds = |range: &Range<usize>| {
            let entries = &archive.files().files[range.clone()];
            entries.iter().any(|entry| is_file(entry) && is_wanted(entry))
        };
        // Of a tarball not cut at members, members are not found where they are looked for.
        let segments = contents(archive.manifest(), archive.files()).into_iter();
        Self { archive, segments: segments.map(|range| (range.clone(), holds(&range))).collect() }
    }

    /// Bytes of tar in these segments.
    pub fn size(&self) -> u64 {
        let segments = self.segments.iter().zip(&self.archive.manifest().segments);
        segments.filter(|((_, wanted), _)| *wanted).map(|(_, segment)| segment.size).sum()
    }

    /// What lies in each of the other segments.
    pub fn others(&self) -> Vec<&'a [FileEntry]> {
        let others = self.segments.iter().filter(|(_, wanted)| !wanted);
        others.map(|(range, _)| &self.archive.files().files[range.clone()]).collect()
    }

    /// Decodes these segments and writes those files in them that `is_wanted` says, whose
    /// directories are there. Progress counts bytes of tar.
    pub fn write(
        &self,
        tree: &Tree,
        is_wanted: impl Fn(&FileEntry) -> bool,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        let archive = self.archive;
        let hashes = archive.manifest().segments.iter().map(|segment| segment.sha256.as_str());
        let blocks = archive.blocks.iter().copied().zip(hashes).zip(&self.segments).enumerate();
        let wanted = blocks.filter(|(_, (_, (_, wanted)))| *wanted);
        let blocks: Vec<_> =
            wanted.map(|(number, ((block, sha256), _))| (number, block, sha256)).collect();
        decode_blocks(&archive.file, &blocks, threads, progress, |decoded| {
            let mut opened = Opened::new(tree)?;
            let mut members = Members::new(decoded);
            let ranges = self.segments.iter().filter(|(_, wanted)| *wanted);
            for entry in ranges.flat_map(|(range, _)| &archive.files().files[range.clone()]) {
                let member = archive.next_member(&mut members, entry)?;
                if matches!(entry.kind, FileKind::File { .. }) && is_wanted(entry) {
                    write(tree, &mut opened, &member, entry.sha256(), &mut members)
                        .with_context(|| format!("writing {}", entry.path))?;
                } else {
                    members.content(member.content(), &mut |_| Ok(()))?;
                }
            }
            Ok(())
        })
    }

    /// Makes what has no content: those entries that `is_wanted` says.
    pub fn make(&self, tree: &Tree, is_wanted: impl Fn(&FileEntry) -> bool) -> Result<()> {
        let mut opened = Opened::new(tree)?;
        let mut nothing = Members::new(&[][..]);
        for entry in self.archive.files().files.iter().filter(|entry| is_wanted(entry)) {
            write(tree, &mut opened, &self.archive.member(entry), None, &mut nothing)
                .with_context(|| format!("writing {}", entry.path))?;
        }
        Ok(())
    }
}
