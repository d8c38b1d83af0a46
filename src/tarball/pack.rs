//! Packing a scanned tree into a node tarball.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::Progress;
use super::member::{END, Member, padded};
use super::segment::{self, SegmentCache};
use super::walk::{Scan, Tree, capability_of, read_file};
use super::xz::{self, Block, BlockWriter, Filter};
use crate::hash::{from_hex, hex, sha256};
use crate::manifest::{
    FILES_LIMIT, FILES_MEMBER, FileEntry, FileKind, Hashed, MANIFEST_LIMIT, MANIFEST_MEMBER,
    Manifest, Payload, SCHEMA, Segment,
};

/// Bytes of tar a segment has, about: twice the encoder's dictionary, so that cutting costs
/// little, and small enough for many threads.
const SEGMENT: u64 = 16 << 20;
/// Files below this size, bytes, are not looked at whether they are machine code.
const LEAST_CODE: u64 = 8 << 10;

/// A packed node tarball.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The draft with its files, payload, segments, set-id files and capabilities.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes in the tarball, hex: the identity of the release.
    pub identity: String,
    /// Bytes of the tarball.
    pub size: u64,
}

/// Packs a tree that was scanned into `out`, which is created or emptied; the caller
/// publishes it by renaming. The file is synced.
///
/// The bytes depend on the tree, the scan and the draft alone, also if a `cache` has
/// segments compressed before; those it lacks are kept there. What lies between is a
/// nameless file in the directory of `out`. Each of the `threads` (at least one) takes
/// about 100 MiB, and as long as it is compressed, the file index. Progress counts bytes of tar.
///
/// # Errors
/// Also when a file is not what it was when it was scanned.
pub fn pack(
    tree: &Path,
    scan: &Scan,
    draft: Manifest,
    out: &Path,
    threads: usize,
    cache: Option<&SegmentCache>,
    progress: Progress<'_>,
) -> Result<Packed> {
    pack_cut(tree, scan, draft, out, threads, cache, progress, SEGMENT)
        .with_context(|| format!("packing {}", out.display()))
}

/// [`pack`] with segments of another size.
#[expect(clippy::too_many_arguments, reason = "those of pack, and one for its tests")]
pub(super) fn pack_cut(
    tree: &Path,
    scan: &Scan,
    draft: Manifest,
    out: &Path,
    threads: usize,
    cache: Option<&SegmentCache>,
    progress: Progress<'_>,
    cut: u64,
) -> Result<Packed> {
    ensure!(
        draft.epoch == scan.epoch,
        "the tree was scanned with another epoch than the manifest's"
    );
    let source = Source::new(tree, scan)?;
    let plan = segment::plan(&source.members, source.entries, cut);
    let directory = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let files = to_json(&scan.index)?;
    ensure!(files.len() as u64 <= FILES_LIMIT, "the file index is larger than {FILES_LIMIT} bytes");
    let spool = tempfile::tempfile_in(directory)?;
    let (segments, second) = thread::scope(|scope| {
        let second = || own_block(&spool, 0, FILES_MEMBER, &files, scan.epoch);
        let second = scope.spawn(second);
        let segments = Encoding::new(&source, &plan, cache, progress).run(directory, threads);
        (segments, join(second.join()))
    });
    let (segments, second) = (segments?, second?);

    let manifest = Manifest {
        schema: SCHEMA,
        files: Hashed { size: files.len() as u64, sha256: sha256(&files) },
        payload: Payload {
            size: segments.blocks.iter().map(|made| made.block.size).sum(),
            sha256: segments.sha256,
            entries: scan.index.files.len() as u64,
            content: scan.content,
        },
        segments: segments
            .blocks
            .iter()
            .map(|made| Segment {
                size: made.block.size,
                xz_size: made.block.xz_size(),
                sha256: made.sha256.clone(),
            })
            .collect(),
        set_id: scan.set_id.clone(),
        capabilities: scan.capabilities.clone(),
        ..draft
    };
    let bytes = to_json(&manifest)?;
    ensure!(
        bytes.len() as u64 <= MANIFEST_LIMIT,
        "the manifest is larger than {MANIFEST_LIMIT} bytes"
    );

    let first = own_block(&spool, second.xz_size(), MANIFEST_MEMBER, &bytes, manifest.epoch)?;
    let mut blocks = vec![(&spool, first), (&spool, second)];
    blocks.extend(segments.blocks.iter().map(|made| (&segments.spools[made.spool], made.block)));
    let file = File::create(out)?;
    let size = xz::assemble(&file, &blocks)?;
    file.sync_all()?;
    Ok(Packed { manifest, identity: sha256(&bytes), size })
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Writes a block that holds one member of farmctl's own.
pub(super) fn own_block(
    spool: &File,
    at: u64,
    path: &str,
    content: &[u8],
    epoch: i64,
) -> Result<Block> {
    let mut writer = BlockWriter::new(spool, at, Filter::None)?;
    let size = content.len() as u64;
    writer.write(&Member::own(path, size, epoch).encode())?;
    writer.write(content)?;
    writer.write(&vec![0; usize::try_from(padded(size) - size)?])?;
    Ok(writer.finish()?.0)
}

/// The tree and what it was when it was scanned.
struct Source<'a> {
    tree: Tree,
    entries: &'a [FileEntry],
    members: Vec<Member>,
}

impl<'a> Source<'a> {
    fn new(tree: &Path, scan: &'a Scan) -> Result<Source<'a>> {
        let capabilities: HashMap<&str, &str> = scan
            .capabilities
            .iter()
            .map(|capability| (capability.path.as_str(), capability.value.as_str()))
            .collect();
        let entries = scan.index.files.as_slice();
        let member = |entry: &FileEntry| {
            let value = capabilities.get(entry.path.as_str());
            Member::of_entry(entry, value.and_then(|value| from_hex(value)))
        };
        let members = entries.iter().map(member).collect();
        Ok(Source { tree: Tree::open(tree)?, entries, members })
    }

    /// What a segment of these members holds, as a name.
    fn key(&self, range: Range<usize>) -> String {
        let last = range.end == self.members.len();
        segment::key(&self.members[range.clone()], &self.entries[range], last)
    }

    /// How a segment of these members is filtered: as machine code if half of it is.
    fn filter(&self, range: Range<usize>) -> Result<Filter> {
        let (mut code, mut all) = (0, 0);
        for (entry, member) in self.entries[range.clone()].iter().zip(&self.members[range]) {
            all += member.archived();
            let FileKind::File { size, .. } = &entry.kind else { continue };
            if *size >= LEAST_CODE {
                let file = self.tree.open_file(entry.path.as_bytes());
                let file = file.with_context(|| format!("reading {}", entry.path))?;
                code += if is_x86(&file) { *size } else { 0 };
            }
        }
        Ok(if 2 * code >= all { Filter::X86 } else { Filter::None })
    }

    /// Hands the tar bytes of these members to `sink`.
    fn read(&self, range: Range<usize>, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let last = range.end == self.members.len();
        for (entry, member) in self.entries[range.clone()].iter().zip(&self.members[range]) {
            sink(&member.encode())?;
            let FileKind::File { size, sha256 } = &entry.kind else { continue };
            let mut read = || {
                let file = self.tree.open_file(entry.path.as_bytes())?;
                let found = read_file(&file, *size, sink)?;
                ensure!(
                    found == *sha256 && capability_of(&file)? == member.capability,
                    "it changed after it was scanned"
                );
                sink(&vec![0; usize::try_from(padded(*size) - size)?])
            };
            read().with_context(|| format!("reading {}", entry.path))?;
        }
        if last { sink(&END) } else { Ok(()) }
    }
}

/// Whether a file is machine code of x86, of 32 bits or 64: elf(5).
fn is_x86(file: &File) -> bool {
    let mut head = [0; 20];
    // What cannot be read is found out by who reads all of it.
    file.read_exact_at(&mut head, 0).is_ok()
        && head.starts_with(b"\x7fELF")
        && head[5] == 1
        && matches!(u16::from_le_bytes([head[18], head[19]]), 3 | 62)
}

/// A segment that was encoded.
struct Made {
    block: Block,
    sha256: String,
    /// Number of the file it lies in.
    spool: usize,
}

/// All segments, in order, the files they lie in, and the payload's SHA-256, hex.
struct Segments {
    spools: Vec<File>,
    blocks: Vec<Made>,
    sha256: String,
}

/// The encoding of the payload in threads. Each thread has a file of its own and
/// takes the next segment when it is done with one; where a block lies does not matter.
struct Encoding<'a> {
    source: &'a Source<'a>,
    plan: &'a [Range<usize>],
    /// Numbers of the segments, the largest first: none takes long when the others are done.
    order: Vec<usize>,
    cache: Option<&'a SegmentCache>,
    next: AtomicUsize,
    done: AtomicU64,
    total: u64,
    stop: AtomicBool,
    progress: Progress<'a>,
}

impl<'a> Encoding<'a> {
    fn new(
        source: &'a Source<'a>,
        plan: &'a [Range<usize>],
        cache: Option<&'a SegmentCache>,
        progress: Progress<'a>,
    ) -> Self {
        let size = |range: Range<usize>| -> u64 {
            source.members[range].iter().map(Member::archived).sum()
        };
        let total = size(0..source.members.len()) + END.len() as u64;
        let mut order: Vec<usize> = (0..plan.len()).collect();
        order.sort_by_cached_key(|number| Reverse(size(plan[*number].clone())));
        let (next, done, stop) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Encoding { source, plan, order, cache, next, done, total, stop, progress }
    }

    fn run(&self, directory: &Path, threads: usize) -> Result<Segments> {
        let threads = threads.clamp(1, self.plan.len());
        let spools: Vec<File> = (0..threads)
            .map(|_| tempfile::tempfile_in(directory))
            .collect::<std::io::Result<_>>()
            .with_context(|| format!("making a temporary file in {}", directory.display()))?;
        let (sha256, made) = thread::scope(|scope| {
            let hash = scope.spawn(|| self.watch(self.hash()));
            let workers: Vec<_> =
                spools.iter().map(|spool| scope.spawn(|| self.watch(self.work(spool)))).collect();
            let made: Vec<_> = workers.into_iter().map(|worker| join(worker.join())).collect();
            (join(hash.join()), made)
        });
        // The thread that failed, not one of those that stopped because of it.
        let mut errors = Vec::new();
        let mut blocks: Vec<Option<Made>> = self.plan.iter().map(|_| None).collect();
        for (spool, made) in made.into_iter().enumerate() {
            match made {
                Ok(made) => {
                    for (number, block, sha256) in made {
                        blocks[number] = Some(Made { block, sha256, spool });
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        let sha256 = sha256.unwrap_or_else(|error| {
            errors.push(error);
            String::new()
        });
        if !errors.is_empty() {
            let own = errors.iter().position(|error| !error.is::<Stopped>()).unwrap_or(0);
            return Err(errors.swap_remove(own));
        }
        let blocks: Option<Vec<Made>> = blocks.into_iter().collect();
        let blocks = blocks.expect("threads that end well have taken every segment");
        Ok(Segments { spools, blocks, sha256 })
    }

    /// Has the other threads stop after an error.
    fn watch<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        result
    }

    fn work(&self, spool: &File) -> Result<Vec<(usize, Block, String)>> {
        let mut made = Vec::new();
        let mut end = 0;
        loop {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&number) = self.order.get(next) else { return Ok(made) };
            let range = &self.plan[number];
            let cached = self.cache.map(|cache| (cache, self.source.key(range.clone())));
            if let Some((cache, key)) = &cached {
                if let Some((block, sha256)) = cache.find(key, spool, end)? {
                    self.advance(block.size)?;
                    end = block.at + block.xz_size();
                    made.push((number, block, sha256));
                    continue;
                }
            }
            let filter = self.source.filter(range.clone())?;
            let mut writer = BlockWriter::new(spool, end, filter)?;
            self.source.read(range.clone(), &mut |bytes| {
                self.go_on()?;
                writer.write(bytes)?;
                self.advance(bytes.len() as u64)
            })?;
            let (block, sha256) = writer.finish()?;
            if let Some((cache, key)) = &cached {
                cache.keep(key, spool, block, &sha256)?;
            }
            end = block.at + block.xz_size();
            made.push((number, block, sha256));
        }
    }

    fn advance(&self, count: u64) -> Result<()> {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        (self.progress)(done, self.total)
    }

    /// SHA-256 of the whole payload, hex, by reading the tree once more: reading costs
    /// nothing beside encoding, and so segments need not wait for each other.
    fn hash(&self) -> Result<String> {
        let mut hash = Sha256::new();
        self.source.read(0..self.source.members.len(), &mut |bytes| {
            self.go_on()?;
            hash.update(bytes);
            Ok(())
        })?;
        Ok(hex(&hash.finalize()))
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { bail!(Stopped) } else { Ok(()) }
    }
}

/// Why a thread ended that had nothing wrong of its own.
#[derive(Debug)]
struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

fn join<T>(joined: thread::Result<Result<T>>) -> Result<T> {
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
