//! Where the payload is cut into segments, and the segments compressed before.
//!
//! A segment is compressed by itself, so that threads share the work and one that a bake
//! before this one compressed is not compressed again.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::member::Member;
use super::xz::{self, Block};
use crate::file;
use crate::hash::{from_hex, hex};
use crate::manifest::{FileEntry, FileIndex, FileKind, Manifest, Owner, Segment};

/// Bytes of a SHA-256.
const HASH: u64 = 32;
/// The library's version and this program's choices: other ones may give other bytes.
const LOCK: &str = include_str!("../../Cargo.lock");
/// Changes whenever segments are filtered by another rule.
const FILTERS: &str = "x86 where half is of it";

/// Where the payload's segments begin and end, as ranges of members.
///
/// A segment has half of `cut` to twice as many bytes of tar, and of the members there it
/// ends before the one whose path has the least hash: not where some number of bytes is
/// full, so that a file that grows moves the ends of one or two segments and not of all that
/// follow. Base system, virtualenv and project share none, and a file of `cut` bytes or more
/// is a segment of its own.
pub(super) fn plan(members: &[Member], entries: &[FileEntry], cut: u64) -> Vec<Range<usize>> {
    let virtualenvs = virtualenvs(entries);
    let places: Vec<Place> = entries.iter().map(|entry| Place::of(entry, &virtualenvs)).collect();
    let mut plan = Vec::new();
    let mut start = 0;
    while start < members.len() {
        let end = end_of(start, members, &places, cut);
        plan.push(start..end);
        start = end;
    }
    if plan.is_empty() {
        plan.push(0..0);
    }
    plan
}

/// Which entries of a file index lie in which segment, a range for each: an entry lies where
/// its member begins. None for a release that was never packed.
#[must_use]
pub fn contents(manifest: &Manifest, files: &FileIndex) -> Vec<Range<usize>> {
    let capabilities: HashMap<&str, Vec<u8>> = manifest
        .capabilities
        .iter()
        .filter_map(|one| Some((one.path.as_str(), from_hex(&one.value)?)))
        .collect();
    let (mut next, mut at, mut end) = (0, 0_u64, 0_u64);
    let range = |segment: &Segment| {
        let start = next;
        end = end.saturating_add(segment.size);
        while let Some(entry) = files.files.get(next).filter(|_| at < end) {
            let capability = capabilities.get(entry.path.as_str()).cloned();
            at = at.saturating_add(Member::of_entry(entry, capability).archived());
            next += 1;
        }
        start..next
    };
    manifest.segments.iter().map(range).collect()
}

/// Where the segment ends that begins with this member.
fn end_of(start: usize, members: &[Member], places: &[Place], cut: u64) -> usize {
    let is_large = |index: usize| members[index].content() >= cut;
    if is_large(start) {
        return start + 1;
    }
    let mut size = members[start].archived();
    let mut least = None;
    for index in start + 1..members.len() {
        if is_large(index) || places[index] != places[start] {
            return index;
        }
        if size >= 2 * cut {
            return least.map_or(index, |(_, index)| index);
        }
        if size >= cut / 2 {
            let hash: [u8; HASH as usize] = Sha256::digest(&members[index].path).into();
            least = least.min(Some((hash, index))).or(Some((hash, index)));
        }
        size += members[index].archived();
    }
    members.len()
}

/// Parts of a tree that change at different times.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Base,
    Virtualenv,
    Project,
}

impl Place {
    fn of(entry: &FileEntry, virtualenvs: &BTreeSet<&str>) -> Self {
        let inside = |root: &&&str| {
            entry.path.strip_prefix(**root).is_some_and(|rest| rest.starts_with('/'))
        };
        match entry.owner {
            Owner::Project => Self::Project,
            _ if virtualenvs.iter().any(|root| inside(&root)) => Self::Virtualenv,
            _ => Self::Base,
        }
    }
}

/// Directories with a `pyvenv.cfg` (PEP 405).
fn virtualenvs(entries: &[FileEntry]) -> BTreeSet<&str> {
    entries.iter().filter_map(|entry| entry.path.strip_suffix("/pyvenv.cfg")).collect()
}

/// What a segment holds, told without reading it: what was found of its members when the
/// tree was scanned, and what encodes them.
pub(super) fn key(members: &[Member], entries: &[FileEntry], last: bool) -> String {
    let mut hash = Sha256::new();
    hash.update(encoder());
    for (member, entry) in members.iter().zip(entries) {
        hash.update(member.encode());
        if let FileKind::File { sha256, .. } = &entry.kind {
            hash.update(sha256);
        }
    }
    hash.update([u8::from(last)]);
    hex(&hash.finalize())
}

/// The stanzas of the libraries that encode, as cargo locked them, and how they are used.
fn encoder() -> String {
    let libraries = LOCK.split("\n\n").filter(|stanza| stanza.contains("name = \"liblzma"));
    libraries.chain([FILTERS]).collect()
}

/// Compressed segments that are kept for the next bake: files named by what the segment
/// holds, each a block and after it the SHA-256 of the block.
#[derive(Clone, Debug)]
pub struct SegmentCache {
    directory: PathBuf,
}

impl SegmentCache {
    /// The cache in this directory, which is made when something is kept there.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Copies a segment's block to this place of a file, and answers it with its SHA-256,
    /// hex. None if it is not kept, or damaged.
    pub(super) fn find(&self, key: &str, spool: &File, at: u64) -> Result<Option<(Block, String)>> {
        let path = self.directory.join(key);
        let Ok(file) = File::open(&path) else { return Ok(None) };
        let context = || format!("reading {}", path.display());
        let Some(block) = xz::first_block(&file).with_context(context)? else { return Ok(None) };
        let size = block.xz_size();
        if file.metadata().with_context(context)?.len() != size + HASH {
            return Ok(None);
        }
        let mut known = [0; HASH as usize];
        file.read_exact_at(&mut known, size).with_context(context)?;
        let mut end = at;
        let sha256 = xz::hash_range(&file, 0, size, &mut |piece| {
            spool.write_all_at(piece, end).context("writing an xz block")?;
            end += piece.len() as u64;
            Ok(())
        })
        .with_context(context)?;
        if sha256 != hex(&known) {
            return Ok(None);
        }
        // For `shrink`.
        file.set_modified(SystemTime::now()).with_context(context)?;
        Ok(Some((block.moved(at), sha256)))
    }

    /// Keeps a block that lies in a file.
    pub(super) fn keep(&self, key: &str, spool: &File, block: Block, sha256: &str) -> Result<()> {
        let context = || format!("keeping a segment in {}", self.directory.display());
        let keep = || -> Result<()> {
            file::make_directory(&self.directory, 0o755)?;
            let kept = tempfile::NamedTempFile::new_in(&self.directory)?;
            let mut end = 0;
            let found = xz::hash_range(spool, block.at, block.xz_size(), &mut |piece| {
                kept.as_file().write_all_at(piece, end)?;
                end += piece.len() as u64;
                Ok(())
            })?;
            ensure!(found == sha256, "it is not what was written");
            let hash = from_hex(sha256).context("it is a SHA-256")?;
            kept.as_file().write_all_at(&hash, end)?;
            kept.persist(self.directory.join(key))?;
            Ok(())
        };
        keep().with_context(context)
    }

    /// Removes the segments that were not used for longest, until no more than `limit`
    /// bytes are kept, and what a killed bake left; answers how many bytes went.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn shrink(&self, limit: u64) -> Result<u64> {
        let mut kept = Vec::new();
        for name in file::names_in(&self.directory)? {
            let path = self.directory.join(&name);
            // Another farmctl's, which has removed it meanwhile.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            kept.push((metadata.modified()?, metadata.len(), path));
        }
        kept.sort_unstable();
        let mut size: u64 = kept.iter().map(|(_, size, _)| size).sum();
        let before = size;
        for (_, length, path) in kept {
            if size <= limit {
                break;
            }
            file::remove_if_there(&path)?;
            size -= length;
        }
        Ok(before - size)
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::tarball::xz::{BlockWriter, Filter};

    /// Entries of a tree with many files, by path.
    fn entries(count: usize, size: impl Fn(usize) -> u64) -> Vec<FileEntry> {
        let entry = |path: String, size, owner| FileEntry {
            path,
            kind: FileKind::File { size, sha256: "0".repeat(64) },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            owner,
        };
        let mut all: Vec<FileEntry> = (0..count)
            .map(|number| entry(format!("lib/{number:05}"), size(number), Owner::Generated))
            .collect();
        all.push(entry("srv/shop/app/main.py".to_owned(), 100, Owner::Project));
        all.push(entry("srv/shop/venv/lib/x.py".to_owned(), 100, Owner::Generated));
        all.push(entry("srv/shop/venv/pyvenv.cfg".to_owned(), 100, Owner::Generated));
        all.push(entry("usr/bin/x".to_owned(), 100, Owner::Generated));
        all
    }

    fn cut(entries: &[FileEntry]) -> Vec<Vec<String>> {
        let members: Vec<Member> =
            entries.iter().map(|entry| Member::of_entry(entry, None)).collect();
        let paths =
            |range: Range<usize>| entries[range].iter().map(|entry| entry.path.clone()).collect();
        plan(&members, entries, 1 << 20).into_iter().map(paths).collect()
    }

    #[test]
    fn a_file_that_grows_moves_the_ends_of_two_segments_at_most() {
        let before = cut(&entries(4000, |_| 5_000));
        assert!(before.len() > 12, "{}", before.len());
        for grown in [0, 700, 2000, 3999] {
            let after = cut(&entries(4000, |number| if number == grown { 300_000 } else { 5_000 }));
            let kept = after.iter().filter(|segment| before.contains(segment)).count();
            assert!(before.len() - kept <= 2, "{grown}: {kept} of {}", before.len());
        }
    }

    #[test]
    fn base_virtualenv_and_project_share_no_segment() {
        let segments = cut(&entries(3, |_| 10));
        let names: Vec<Vec<&str>> =
            segments.iter().map(|segment| segment.iter().map(String::as_str).collect()).collect();
        assert_eq!(
            names,
            [
                &["lib/00000", "lib/00001", "lib/00002"][..],
                &["srv/shop/app/main.py"],
                &["srv/shop/venv/lib/x.py", "srv/shop/venv/pyvenv.cfg"],
                &["usr/bin/x"],
            ]
        );
    }

    #[test]
    fn the_encoders_version_is_known() {
        assert!(encoder().contains("name = \"liblzma-sys\""), "{}", encoder());
    }

    #[test]
    fn what_is_kept_is_found_and_what_is_damaged_is_not() {
        let directory = tempfile::tempdir().expect("there is room");
        let cache = SegmentCache::at(directory.path().join("segments"));
        let spool = tempfile::tempfile().expect("there is room");
        let block = |spool: &File, at, text: &[u8]| {
            let mut writer = BlockWriter::new(spool, at, Filter::None).expect("it can be encoded");
            writer.write(text).expect("it can be encoded");
            writer.finish().expect("it can be encoded")
        };
        let (first, hash) = block(&spool, 0, b"one");
        assert_eq!(cache.find("one", &spool, 0).expect("it can be read"), None);
        cache.keep("one", &spool, first, &hash).expect("there is room");
        let other = tempfile::tempfile().expect("there is room");
        let found = cache.find("one", &other, 12).expect("it can be read");
        assert_eq!(found, Some((first.moved(12), hash.clone())));
        let mut copied = vec![0; first.xz_size() as usize];
        other.read_exact_at(&mut copied, 12).expect("it was copied");
        assert_eq!(hex(&Sha256::digest(&copied)), hash);

        let path = cache.directory().join("one");
        let whole = fs::read(&path).expect("it is kept");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).expect("there is room");
            assert_eq!(cache.find("one", &other, 0).expect("it can be read"), None, "byte {at}");
        }
        for length in [0, 1, 27, whole.len() - 1] {
            fs::write(&path, &whole[..length]).expect("there is room");
            assert_eq!(cache.find("one", &other, 0).expect("it can be read"), None, "{length}");
        }
    }

    #[test]
    fn the_segments_used_last_stay() {
        let directory = tempfile::tempdir().expect("there is room");
        let cache = SegmentCache::at(directory.path().to_owned());
        for (number, name) in ["b", "c", "a"].into_iter().enumerate() {
            let mut file = File::create(directory.path().join(name)).expect("there is room");
            file.write_all(&[0; 100]).expect("there is room");
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            file.set_modified(time).expect("it is ours");
        }
        assert_eq!(cache.shrink(1000).expect("it can be read"), 0);
        assert_eq!(cache.shrink(150).expect("it can be removed"), 200);
        assert_eq!(file::names_in(directory.path()).expect("it is there"), ["a"]);
    }
}
