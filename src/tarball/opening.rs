//! What a node tarball begins with: its manifest, perhaps a signature over that, and its
//! file index, each a block of its own.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::incoming::{Incoming, Source};
use super::member::{BLOCK, END, Member, Members};
use super::rules::{check_capability, check_index};
use super::walk::SET_ID;
use super::xz::Block;
use crate::hash::{from_hex, sha256};
use crate::manifest::{
    self, ENTRIES_LIMIT, FILES_LIMIT, FILES_MEMBER, FileIndex, FileKind, MANIFEST_LIMIT,
    MANIFEST_MEMBER, Manifest, SCHEMA, SIGNATURE_LIMIT, SIGNATURE_MEMBER, Segment, SetId,
};

/// What is asked about the manifest's bytes and the signature over them.
pub type Check<'a> = &'a dyn Fn(&[u8], Option<&str>) -> Result<()>;

/// Bytes of a member's header and of the padding after its content, at most.
const AROUND: u64 = 2 * BLOCK as u64;

/// The blocks of a tarball, from the first one on.
pub(super) trait Blocks {
    /// The next block, of which nothing but the header was read.
    fn next(&mut self) -> Result<Block>;

    /// Decodes the block that was taken last, in pieces.
    fn decode(&mut self, block: Block, sink: &mut dyn FnMut(Vec<u8>) -> Result<()>) -> Result<()>;

    /// The blocks that were not taken yet, where those are known.
    fn rest(&self) -> Option<&[Block]>;
}

/// What a node tarball begins with, read and checked.
#[derive(Debug)]
pub struct Opening {
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    identity: String,
    index: FileIndex,
    /// A `.minisig` file over the manifest's bytes.
    signature: Option<String>,
    /// The block of the manifest and that of the file index.
    pub(super) own: [Block; 2],
    /// Values of `security.capability` by path.
    pub(super) capabilities: HashMap<String, Vec<u8>>,
}

impl Opening {
    /// Reads a tarball forwards, as it comes out of a pipe, to the end of its file index and
    /// not a byte further. What [`Archive::open`](super::Archive::open) checks is checked but
    /// for what lies behind that: whether the payload is there, in blocks of the sizes the
    /// manifest says.
    ///
    /// # Errors
    /// As [`Archive::open`](super::Archive::open), and what `source` says.
    pub fn read(source: Source<'_>) -> Result<Opening> {
        Opening::of(&mut Incoming::new(source)?, &|_, _| Ok(()))
    }

    /// Reads the first blocks, if `signed` has nothing against the manifest's bytes and the
    /// signature over them: nothing else is read before that, and nothing parsed.
    pub(super) fn of(blocks: &mut impl Blocks, signed: Check<'_>) -> Result<Opening> {
        let first = blocks.next()?;
        let bytes = read_block(blocks, first, MANIFEST_LIMIT);
        let (time, manifest_bytes) = parse_own(bytes, MANIFEST_MEMBER)?;
        let mut last = blocks.next()?;
        // A small one may be either.
        let small = last.size <= SIGNATURE_LIMIT + AROUND;
        let mut read = small.then(|| read_block(blocks, last, SIGNATURE_LIMIT));
        let mut signature = None;
        if let Some(bytes) = read.take_if(|bytes| holds(bytes, SIGNATURE_MEMBER)) {
            signature = Some(parse_signature(bytes, time)?);
            last = blocks.next()?;
        }
        signed(&manifest_bytes, signature.as_deref())?;
        let manifest = manifest::parse(&manifest_bytes)?;
        manifest.validate().context("checking the manifest")?;
        let bytes = read.unwrap_or_else(|| read_block(blocks, last, FILES_LIMIT));
        let (files_time, files) = parse_own(bytes, FILES_MEMBER)?;
        ensure!(
            time == manifest.epoch && files_time == manifest.epoch,
            "the time of {MANIFEST_MEMBER} or {FILES_MEMBER} is not the manifest's epoch"
        );
        ensure!(
            manifest.files.size == files.len() as u64 && manifest.files.sha256 == sha256(&files),
            "the file index is not the one the manifest names"
        );
        let index = serde_json::from_slice(&files).context("reading the file index")?;
        let capabilities = check(&manifest, &index, blocks.rest())?;
        Ok(Opening {
            identity: sha256(&manifest_bytes),
            manifest,
            manifest_bytes,
            index,
            signature,
            own: [first, last],
            capabilities,
        })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's bytes as they lie in the tarball: what a signature is over.
    #[must_use]
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// The signature over them, a `.minisig` file; whose it is and whether it is right is
    /// not looked at here.
    #[must_use]
    pub fn signature(&self) -> Option<&str> {
        self.signature.as_deref()
    }

    /// SHA-256 of [`Opening::manifest_bytes`], hex: the identity of the release.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The file index.
    #[must_use]
    pub fn files(&self) -> &FileIndex {
        &self.index
    }

    /// Manifest and file index, when nothing else is wanted any more.
    #[must_use]
    pub fn into_parts(self) -> (Manifest, FileIndex) {
        (self.manifest, self.index)
    }

    /// Bytes of the tarball up to the end of the file index.
    #[must_use]
    pub fn size(&self) -> u64 {
        let [_, last] = self.own;
        last.at + last.xz_size()
    }
}

/// Decodes a block that holds one member, whose content has at most `limit` bytes.
fn read_block(blocks: &mut impl Blocks, block: Block, limit: u64) -> Result<Vec<u8>> {
    ensure!(block.size <= limit + AROUND, "it is larger than {limit} bytes");
    let mut bytes = Vec::new();
    blocks.decode(block, &mut |piece| {
        bytes.extend(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// Whether a block begins with this member of farmctl's own; not, if it cannot be decoded,
/// which parsing what belongs there will say.
fn holds(bytes: &Result<Vec<u8>>, path: &str) -> bool {
    let rest = bytes.as_ref().ok().and_then(|bytes| bytes.strip_prefix(path.as_bytes()));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}

fn parse_signature(bytes: Result<Vec<u8>>, epoch: i64) -> Result<String> {
    let (time, bytes) = parse_own(bytes, SIGNATURE_MEMBER)?;
    ensure!(time == epoch, "the time of {SIGNATURE_MEMBER} is not {MANIFEST_MEMBER}'s");
    String::from_utf8(bytes).ok().with_context(|| format!("{SIGNATURE_MEMBER} is not UTF-8"))
}

/// Parses a block that holds one member of farmctl's own; answers its time and content.
fn parse_own(bytes: Result<Vec<u8>>, path: &str) -> Result<(i64, Vec<u8>)> {
    let parse = || {
        let mut bytes = bytes?;
        let mut members = Members::new(bytes.as_slice());
        let member = members.next()?.context("it is empty")?;
        if member.path != path {
            bail!("not a farmctl node tarball: {} lies there", member.path);
        }
        ensure!(
            member == Member::own(path, member.content(), member.mtime),
            "its header is not as farmctl writes it"
        );
        members.content(member.content(), &mut |_| Ok(()))?;
        ensure!(members.into_pieces().is_empty(), "something follows it in its block");
        // In place: a file index may be large.
        drop(bytes.drain(..member.encode().len()));
        bytes.truncate(usize::try_from(member.content())?);
        Ok((member.mtime, bytes))
    };
    parse().with_context(|| format!("reading {path}"))
}

/// Checks manifest, file index and, where they are known, the payload's blocks against each
/// other; returns the capabilities by path.
fn check(
    manifest: &Manifest,
    index: &FileIndex,
    blocks: Option<&[Block]>,
) -> Result<HashMap<String, Vec<u8>>> {
    ensure!(index.schema == SCHEMA, "the file index has schema {}", index.schema);
    ensure!(
        manifest.payload.entries == index.files.len() as u64 && index.files.len() <= ENTRIES_LIMIT,
        "the manifest counts {} members, the file index {}",
        manifest.payload.entries,
        index.files.len()
    );
    check_index(index).context("checking the file index")?;
    if let Some(blocks) = blocks {
        check_segments(&manifest.segments, blocks)?;
    }
    let members = index.files.iter().map(|entry| Member::of_entry(entry, None));
    let mut content = Some(0_u64);
    let mut tar = Some(END.len() as u64);
    let capabilities = check_capabilities(manifest, index)?;
    for mut member in members {
        content = content.and_then(|sum| sum.checked_add(member.content()));
        member.capability = capabilities.get(&member.path).cloned();
        tar = tar.and_then(|sum| sum.checked_add(member.archived()));
    }
    let segments = manifest.segments.iter().try_fold(0_u64, |sum, one| sum.checked_add(one.size));
    ensure!(
        content == Some(manifest.payload.content)
            && tar == Some(manifest.payload.size)
            && segments == Some(manifest.payload.size),
        "the sizes in the manifest do not add up to those of the file index"
    );

    let late = index.files.iter().find(|entry| entry.mtime > manifest.epoch);
    if let Some(entry) = late {
        bail!("the time of {:?} is after the manifest's epoch", entry.path);
    }
    let set_id: Vec<SetId> = index
        .files
        .iter()
        .filter(|entry| entry.mode & SET_ID != 0 && entry.kind != FileKind::Directory)
        .map(|entry| {
            let (path, mode) = (entry.path.clone(), entry.mode);
            SetId { path, mode, uid: entry.uid, gid: entry.gid }
        })
        .collect();
    let listed = |entry: &SetId| manifest.set_id.binary_search_by(|one| one.path.cmp(&entry.path));
    if set_id != manifest.set_id {
        // Both ascend by path, or the manifest is wrong anyway.
        match set_id.iter().find(|entry| listed(entry).is_err()) {
            Some(entry) => {
                bail!("the manifest does not list {:?} with mode {:04o}", entry.path, entry.mode)
            }
            None => bail!("the manifest lists other set-id files than the file index has"),
        }
    }
    Ok(capabilities)
}

fn check_segments(segments: &[Segment], blocks: &[Block]) -> Result<()> {
    ensure!(
        segments.len() == blocks.len(),
        "the manifest counts {} segments, the file has {}",
        segments.len(),
        blocks.len()
    );
    for (number, (segment, block)) in segments.iter().zip(blocks).enumerate() {
        ensure!(
            (segment.size, segment.xz_size) == (block.size, block.xz_size()),
            "segment {} has other sizes than the manifest says",
            number + 1
        );
    }
    Ok(())
}

fn check_capabilities(manifest: &Manifest, index: &FileIndex) -> Result<HashMap<String, Vec<u8>>> {
    let mut capabilities = HashMap::new();
    let mut last = "";
    for capability in &manifest.capabilities {
        let path = capability.path.as_str();
        ensure!(last < path, "the manifest's capabilities are not in order");
        last = path;
        let entry = index
            .files
            .binary_search_by(|entry| entry.path.as_bytes().cmp(path.as_bytes()))
            .ok()
            .map(|at| &index.files[at]);
        ensure!(
            entry.is_some_and(|entry| matches!(entry.kind, FileKind::File { .. })),
            "the manifest lists capabilities of {path:?}, which is not a file"
        );
        let value = from_hex(&capability.value)
            .with_context(|| format!("the capabilities of {path:?} are not hexadecimal"))?;
        check_capability(&value).with_context(|| format!("{path:?}"))?;
        capabilities.insert(path.to_owned(), value);
    }
    Ok(capabilities)
}
