//! A node tarball, opened: verifying and extracting it.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};

use super::decode::{Decoded, decode_blocks};
use super::extract::Extractor;
use super::member::{END, Member, Members, Pieces};
use super::pack::own_block;
use super::rules::{check_capability, check_index};
use super::walk::SET_ID;
use super::xz::{self, Block};
use super::{Progress, from_hex, hex, sha256};
use crate::manifest::{
    self, ENTRIES_LIMIT, FILES_LIMIT, FILES_MEMBER, FileEntry, FileIndex, FileKind, MANIFEST_LIMIT,
    MANIFEST_MEMBER, Manifest, SCHEMA, SIGNATURE_LIMIT, SIGNATURE_MEMBER, SetId,
};

/// What is asked about the manifest's bytes and the signature over them.
pub type Check<'a> = &'a dyn Fn(&[u8], Option<&str>) -> Result<()>;

/// A node tarball: one open file, its manifest and its file index read and checked.
///
/// Everything is read through the descriptor that was opened first, so a file put in
/// the tarball's place later changes nothing.
#[derive(Debug)]
pub struct Archive {
    pub(super) file: File,
    size: u64,
    pub(super) name: String,
    pub(super) manifest: Manifest,
    manifest_bytes: Vec<u8>,
    identity: String,
    pub(super) index: FileIndex,
    /// A `.minisig` file over the manifest's bytes.
    signature: Option<String>,
    /// The block of the manifest and that of the file index.
    own: [Block; 2],
    /// The payload's blocks; the manifest has their hashes.
    pub(super) blocks: Vec<Block>,
    pub(super) capabilities: HashMap<String, Vec<u8>>,
}

impl Archive {
    /// Opens a node tarball: checks the whole .xz stream's structure, reads the first two
    /// members and checks them against each other. The payload is not read.
    ///
    /// # Errors
    /// Says what is wrong where: not an .xz file, cut short, not a node tarball, made by
    /// a newer farmctl, a manifest and a file index that contradict each other.
    pub fn open(path: &Path) -> Result<Archive> {
        Archive::open_if(path, &|_, _| Ok(()))
    }

    /// Like [`Archive::open`], if `check` has nothing against the manifest's bytes and the
    /// signature over them: nothing else is read before that, and nothing parsed.
    ///
    /// # Errors
    /// As [`Archive::open`], and what `check` says.
    pub fn open_if(path: &Path, check: Check<'_>) -> Result<Archive> {
        Archive::read(path, check).with_context(|| format!("reading {}", path.display()))
    }

    fn read(path: &Path, signed: Check<'_>) -> Result<Archive> {
        // O_NONBLOCK: a fifo must not hold us up.
        let nonblock = OFlag::O_NONBLOCK.bits();
        let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
        let metadata = file.metadata()?;
        ensure!(metadata.is_file(), "not a regular file");
        let mut blocks = VecDeque::from(xz::read_layout(&file)?);
        let count = blocks.len();
        let mut next = || match blocks.pop_front() {
            // The payload has one at least.
            Some(block) if !blocks.is_empty() => Ok((block, blocks[0])),
            _ => bail!("not a farmctl node tarball: it has {count} xz blocks"),
        };
        let (first, second) = next()?;
        let (time, manifest_bytes) = read_own(&file, first, MANIFEST_MEMBER, MANIFEST_LIMIT)?;
        let signature = if holds(&file, second, SIGNATURE_MEMBER, SIGNATURE_LIMIT) {
            Some(read_signature(&file, next()?.0, time)?)
        } else {
            None
        };
        signed(&manifest_bytes, signature.as_deref())?;
        let (last, _) = next()?;
        let blocks = Vec::from(blocks);
        let manifest = manifest::parse(&manifest_bytes)?;
        manifest.validate().context("checking the manifest")?;
        let (files_time, files) = read_own(&file, last, FILES_MEMBER, FILES_LIMIT)?;
        ensure!(
            time == manifest.epoch && files_time == manifest.epoch,
            "the time of {MANIFEST_MEMBER} or {FILES_MEMBER} is not the manifest's epoch"
        );
        ensure!(
            manifest.files.size == files.len() as u64 && manifest.files.sha256 == sha256(&files),
            "the file index is not the one the manifest names"
        );
        let index = serde_json::from_slice(&files).context("reading the file index")?;
        let capabilities = check(&manifest, &index, &blocks)?;
        Ok(Archive {
            file,
            size: metadata.len(),
            name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            identity: sha256(&manifest_bytes),
            manifest,
            manifest_bytes,
            index,
            signature,
            own: [first, last],
            blocks,
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

    /// Writes the same tarball with this signature, in place of the one it has, to `out`,
    /// which is created or emptied and synced; the caller publishes it by renaming.
    ///
    /// # Errors
    /// When it cannot be written, or the signature is larger than one is.
    pub fn write_signed(&self, signature: &str, out: &Path) -> Result<()> {
        let write = || {
            ensure!(
                signature.len() as u64 <= SIGNATURE_LIMIT,
                "the signature is larger than {SIGNATURE_LIMIT} bytes"
            );
            let spool = tempfile::tempfile()?;
            let epoch = self.manifest.epoch;
            let block = own_block(&spool, 0, SIGNATURE_MEMBER, signature.as_bytes(), epoch)?;
            let [first, last] = self.own;
            let mut blocks = vec![(&self.file, first), (&spool, block), (&self.file, last)];
            blocks.extend(self.blocks.iter().map(|block| (&self.file, *block)));
            let file = File::create(out)?;
            xz::assemble(&file, &blocks)?;
            Ok(file.sync_all()?)
        };
        write().with_context(|| format!("writing {}", out.display()))
    }

    /// SHA-256 of [`Archive::manifest_bytes`], hex: the identity of the release.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The file index.
    #[must_use]
    pub fn files(&self) -> &FileIndex {
        &self.index
    }

    /// The file index, when nothing else is wanted any more.
    #[must_use]
    pub fn into_files(self) -> FileIndex {
        self.index
    }

    /// Bytes of the tarball.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Checks everything: each segment's hash before it is decoded, every member and its
    /// content against the file index, the payload's hash. Progress counts bytes of tar.
    ///
    /// # Errors
    /// Names the first thing that is not as it was packed.
    pub fn verify(&self, threads: usize, progress: Progress<'_>) -> Result<()> {
        self.replay(threads, progress, |member, sha256, members| {
            let mut hash = Sha256::new();
            members.content(member.content(), &mut |piece| {
                hash.update(piece);
                Ok(())
            })?;
            ensure!(
                sha256.is_none_or(|wanted| hex(&hash.finalize()) == wanted),
                "the content of {:?} is not what the file index says",
                member.path
            );
            Ok(())
        })
        .with_context(|| format!("verifying {}", self.name))
    }

    /// Extracts the payload into an existing empty directory and checks it on the way as
    /// [`Archive::verify`] does. Ends with syncfs(2). Wants root.
    ///
    /// The directory itself keeps its owner, mode and time. After an error it holds
    /// part of the tree: the caller throws it away.
    ///
    /// # Errors
    /// As [`Archive::verify`], and whatever writing runs into.
    pub fn extract(&self, target: &Path, threads: usize, progress: Progress<'_>) -> Result<()> {
        let extract = || {
            let mut extractor = Extractor::new(target)?;
            self.replay(threads, progress, |member, sha256, members| {
                extractor.add(member, sha256, members)
            })?;
            extractor.finish()
        };
        extract().with_context(|| format!("unpacking {}", self.name))
    }

    /// The member an entry of the file index stands for.
    pub(super) fn member(&self, entry: &FileEntry) -> Member {
        Member::of_entry(entry, self.capabilities.get(&entry.path).cloned())
    }

    /// Reads the next member, which must be the one the file index has there.
    pub(super) fn next_member<P: Pieces>(
        &self,
        members: &mut Members<P>,
        entry: &FileEntry,
    ) -> Result<Member> {
        let expected = self.member(entry);
        let member = members.next()?;
        let member = member.with_context(|| format!("{:?} is missing", entry.path))?;
        let difference = member.difference(&expected);
        ensure!(
            member == expected,
            "{:?} is not what the file index says: {difference}",
            entry.path
        );
        Ok(member)
    }

    /// Reads the payload and hands each member, when it is the one the index has there,
    /// to `take`, which must take its content.
    fn replay(
        &self,
        threads: usize,
        progress: Progress<'_>,
        mut take: impl FnMut(Member, Option<&str>, &mut Members<&mut Decoded<'_>>) -> Result<()>,
    ) -> Result<()> {
        let hashes = self.manifest.segments.iter().map(|segment| segment.sha256.as_str());
        let blocks = self.blocks.iter().copied().zip(hashes).enumerate();
        let blocks: Vec<_> = blocks.map(|(number, (block, hash))| (number, block, hash)).collect();
        decode_blocks(&self.file, &blocks, threads, progress, |decoded| {
            let mut members = Members::new(&mut *decoded);
            for entry in &self.index.files {
                let member = self.next_member(&mut members, entry)?;
                take(member, entry.sha256(), &mut members)?;
            }
            if let Some(member) = members.next()? {
                bail!("{:?} is not in the file index", member.path);
            }
            decoded.check(&self.manifest.payload)
        })
    }
}

/// Whether a block begins with this member of farmctl's own; not, if it is too large for
/// that or cannot be decoded, which reading what belongs there will say.
fn holds(file: &File, block: Block, path: &str, limit: u64) -> bool {
    let mut bytes = Vec::new();
    block.size <= limit + 1024
        && xz::decode(file, block, None, &mut |piece| {
            bytes.extend(piece);
            Ok(())
        })
        .is_ok()
        && bytes.strip_prefix(path.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

fn read_signature(file: &File, block: Block, epoch: i64) -> Result<String> {
    let (time, bytes) = read_own(file, block, SIGNATURE_MEMBER, SIGNATURE_LIMIT)?;
    ensure!(time == epoch, "the time of {SIGNATURE_MEMBER} is not {MANIFEST_MEMBER}'s");
    String::from_utf8(bytes).ok().with_context(|| format!("{SIGNATURE_MEMBER} is not UTF-8"))
}

/// Reads a block that holds one member of farmctl's own; returns its time and content.
fn read_own(file: &File, block: Block, path: &str, limit: u64) -> Result<(i64, Vec<u8>)> {
    let read = || {
        // The headers, the content and its padding.
        ensure!(block.size <= limit + 1024, "it is larger than {limit} bytes");
        let mut bytes = Vec::new();
        xz::decode(file, block, None, &mut |piece| {
            bytes.extend(piece);
            Ok(())
        })?;
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
    read().with_context(|| format!("reading {path}"))
}

/// Checks manifest, file index and blocks against each other; returns the capabilities
/// by path.
fn check(
    manifest: &Manifest,
    index: &FileIndex,
    blocks: &[Block],
) -> Result<HashMap<String, Vec<u8>>> {
    ensure!(index.schema == SCHEMA, "the file index has schema {}", index.schema);
    ensure!(
        manifest.payload.entries == index.files.len() as u64 && index.files.len() <= ENTRIES_LIMIT,
        "the manifest counts {} members, the file index {}",
        manifest.payload.entries,
        index.files.len()
    );
    check_index(index).context("checking the file index")?;
    ensure!(
        manifest.segments.len() == blocks.len(),
        "the manifest counts {} segments, the file has {}",
        manifest.segments.len(),
        blocks.len()
    );
    for (number, (segment, block)) in manifest.segments.iter().zip(blocks).enumerate() {
        ensure!(
            (segment.size, segment.xz_size) == (block.size, block.xz_size()),
            "segment {} has other sizes than the manifest says",
            number + 1
        );
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
