//! A node tarball, opened: verifying and extracting it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};

use super::Progress;
use super::decode::{Decoded, decode_blocks};
use super::extract::Extractor;
use super::member::{Member, Members, Pieces};
use super::opening::{Blocks, Check, Opening};
use super::pack::own_block;
use super::xz::{self, Block};
use crate::hash::hex;
use crate::manifest::{FileEntry, FileIndex, Manifest, SIGNATURE_LIMIT, SIGNATURE_MEMBER};

/// A node tarball: one open file, its manifest and its file index read and checked.
///
/// Everything is read through the descriptor that was opened first, so a file put in
/// the tarball's place later changes nothing.
#[derive(Debug)]
pub struct Archive {
    pub(super) file: File,
    size: u64,
    pub(super) name: String,
    pub(super) opening: Opening,
    /// The payload's blocks; the manifest has their hashes.
    pub(super) blocks: Vec<Block>,
}

/// The blocks of a file, whose layout was read.
struct Laid<'a> {
    file: &'a File,
    blocks: Vec<Block>,
    taken: usize,
}

impl Blocks for Laid<'_> {
    fn next(&mut self) -> Result<Block> {
        // The payload has one at least.
        let [block, _, ..] = self.payload() else {
            let count = self.blocks.len();
            bail!("not a farmctl node tarball: it has {count} xz blocks");
        };
        let block = *block;
        self.taken += 1;
        Ok(block)
    }

    fn decode(&mut self, block: Block, sink: &mut dyn FnMut(Vec<u8>) -> Result<()>) -> Result<()> {
        xz::decode(self.file, block, None, sink)
    }

    fn rest(&self) -> Option<&[Block]> {
        Some(self.payload())
    }
}

impl Laid<'_> {
    /// What was not taken yet.
    fn payload(&self) -> &[Block] {
        &self.blocks[self.taken..]
    }
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
        let blocks = xz::read_layout(&file)?;
        let mut laid = Laid { file: &file, blocks, taken: 0 };
        let opening = Opening::of(&mut laid, signed)?;
        let blocks = laid.blocks.split_off(laid.taken);
        Ok(Archive {
            file,
            size: metadata.len(),
            name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            opening,
            blocks,
        })
    }

    /// What it begins with.
    #[must_use]
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// The same, when nothing else is wanted any more.
    #[must_use]
    pub fn into_opening(self) -> Opening {
        self.opening
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.opening.manifest()
    }

    /// The manifest's bytes: [`Opening::manifest_bytes`].
    #[must_use]
    pub fn manifest_bytes(&self) -> &[u8] {
        self.opening.manifest_bytes()
    }

    /// The signature over them: [`Opening::signature`].
    #[must_use]
    pub fn signature(&self) -> Option<&str> {
        self.opening.signature()
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
            let epoch = self.manifest().epoch;
            let block = own_block(&spool, 0, SIGNATURE_MEMBER, signature.as_bytes(), epoch)?;
            let [first, last] = self.opening.own;
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
        self.opening.identity()
    }

    /// The file index.
    #[must_use]
    pub fn files(&self) -> &FileIndex {
        self.opening.files()
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
        Member::of_entry(entry, self.opening.capabilities.get(&entry.path).cloned())
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
        let hashes = self.manifest().segments.iter().map(|segment| segment.sha256.as_str());
        let blocks = self.blocks.iter().copied().zip(hashes).enumerate();
        let blocks: Vec<_> = blocks.map(|(number, (block, hash))| (number, block, hash)).collect();
        decode_blocks(&self.file, &blocks, threads, progress, |decoded| {
            let mut members = Members::new(&mut *decoded);
            for entry in &self.files().files {
                let member = self.next_member(&mut members, entry)?;
                take(member, entry.sha256(), &mut members)?;
            }
            if let Some(member) = members.next()? {
                bail!("{:?} is not in the file index", member.path);
            }
            decoded.check(&self.manifest().payload)
        })
    }
}
