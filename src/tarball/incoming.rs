//! An .xz stream read forwards, as it comes out of a pipe: block by block, the index at its
//! end never reached.

use anyhow::{Result, bail, ensure};

use super::PIECE;
use super::foreign;
use super::opening::Blocks;
use super::xz::{self, BLOCK_HEADER, Block, END_SIZE};

/// Where the bytes come from: fills the beginning of what it is given and answers how many
/// bytes that were; none at the end.
pub type Source<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<usize>;

/// The stream, and how far it was read.
pub(super) struct Incoming<'a> {
    source: Source<'a>,
    /// Bytes read.
    at: u64,
    /// Blocks begun.
    count: usize,
}

impl<'a> Incoming<'a> {
    /// Reads the stream's header.
    pub fn new(source: Source<'a>) -> Result<Self> {
        let mut incoming = Self { source, at: 0, count: 0 };
        let mut start = incoming.take(END_SIZE as usize)?;
        ensure!(!start.is_empty(), "it is empty");
        if start != xz::stream_header() {
            // What it is instead is told by more of it.
            start.extend(incoming.take(PIECE)?);
        }
        foreign::check_head(&start)?;
        Ok(incoming)
    }

    /// The next bytes: fewer than wanted at the end of the stream only.
    fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let mut taken = 0;
        while taken < count {
            match (self.source)(&mut bytes[taken..])? {
                0 => break,
                more => taken += more,
            }
        }
        bytes.truncate(taken);
        self.at += taken as u64;
        Ok(bytes)
    }
}

impl Blocks for Incoming<'_> {
    fn next(&mut self) -> Result<Block> {
        let at = self.at;
        let head = self.take(BLOCK_HEADER)?;
        match head.first() {
            Some(0) => bail!("not a farmctl node tarball: it has {} xz blocks", self.count),
            _ if head.len() < BLOCK_HEADER => return foreign::cut_short(self.at),
            _ => {}
        }
        let Some(block) = xz::parse_header(&head, at) else {
            // The first one tells whose stream it is.
            let start = if at == END_SIZE {
                [xz::stream_header(), head, self.take(PIECE)?].concat()
            } else {
                Vec::new()
            };
            return foreign::refuse_foreign(&start, at);
        };
        self.count += 1;
        Ok(block)
    }

    fn decode(&mut self, block: Block, sink: &mut dyn FnMut(Vec<u8>) -> Result<()>) -> Result<()> {
        let mut read = |feed: &mut dyn FnMut(&[u8]) -> Result<()>| {
            feed(&block.header())?;
            let mut left = block.xz_size() - BLOCK_HEADER as u64;
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let bytes = self.take(count)?;
                feed(&bytes)?;
                if bytes.len() < count {
                    return foreign::cut_short(self.at);
                }
                left -= count as u64;
            }
            Ok(())
        };
        xz::decode_pieces(block, &mut read, sink)
    }

    fn rest(&self) -> Option<&[Block]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;

    use super::super::fixture::{packed, run, tarball};
    use super::super::{Archive, Opening};
    use super::*;

    /// What is read of a stream that comes in pieces of this size, and how many bytes of it.
    fn read(bytes: &[u8], piece: usize) -> (Result<Opening>, usize) {
        let mut rest = bytes;
        let mut source = |into: &mut [u8]| {
            let count = into.len().min(piece);
            Ok(rest.read(&mut into[..count])?)
        };
        let opening = Opening::read(&mut source);
        (opening, bytes.len() - rest.len())
    }

    #[track_caller]
    fn refusal(bytes: &[u8]) -> String {
        let error = read(bytes, usize::MAX).0.expect_err("it has a fault");
        format!("{error:#}")
    }

    #[test]
    fn a_pipe_says_what_the_file_says_and_is_read_no_further_than_its_index() {
        let (directory, path, _) = tarball();
        let signed = directory.path().join("signed.tar.xz");
        let archive = Archive::open(&path).expect("as packed");
        archive.write_signed("untrusted comment: a\nb\n", &signed).expect("there is room");
        for path in [path, signed] {
            let archive = Archive::open(&path).expect("as packed");
            let bytes = fs::read(&path).expect("a file");
            let before = archive.opening().size();
            assert!(before < archive.size() / 2);
            for piece in [1, 7, 4096, usize::MAX] {
                let (opening, count) = read(&bytes, piece);
                let opening = opening.expect("as packed");
                assert_eq!(opening.manifest(), archive.manifest());
                assert_eq!(opening.manifest_bytes(), archive.manifest_bytes());
                assert_eq!(opening.identity(), archive.identity());
                assert_eq!(opening.signature(), archive.signature());
                assert_eq!(opening.files(), archive.files());
                assert_eq!((count as u64, opening.size()), (before, before));
            }
        }
    }

    #[test]
    fn a_pipe_that_ends_early_is_refused_where_it_ends() {
        let tree = tempfile::tempdir().expect("a temporary directory");
        fs::write(tree.path().join("a"), "hello").expect("a file");
        let path = tree.path().with_extension("tar.xz");
        packed(tree.path(), &path, 1);
        let bytes = fs::read(&path).expect("a file");
        fs::remove_file(&path).expect("it was made");
        let (opening, count) = read(&bytes, usize::MAX);
        assert_eq!(opening.expect("as packed").files().files.len(), 1);
        for cut in 1..count {
            let refusal = refusal(&bytes[..cut]);
            assert!(refusal.contains(&format!("cut short at byte {cut}")), "{cut}: {refusal}");
        }
        assert_eq!(refusal(b""), "it is empty");
        for at in 0..count {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 8);
            refusal(&bytes);
        }
    }

    #[test]
    fn what_is_no_tarball_is_told_apart_in_a_pipe_too() {
        for (bytes, why) in [
            (&b"PK\x03\x04\x14 and so on"[..], "not an .xz file but a zip file"),
            (b"<!DOCTYPE html><title>Sign in</title>", "not an .xz file but a web page"),
            (b"hello\n", "not an .xz file"),
            (
                &[&[b'a'; 257][..], b"ustar\x0000"].concat(),
                "not an .xz file but a tar that is not compressed",
            ),
        ] {
            assert_eq!(refusal(bytes), why);
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("other");
        fs::write(directory.path().join("plain"), "hello").expect("a file");
        let here = directory.path().to_str().expect("UTF-8");
        run("tar", &["-C", here, "-cJ", "plain", "-f"], &path);
        let bytes = fs::read(&path).expect("a file");
        assert_eq!(refusal(&bytes), "not a farmctl node tarball: the first member is plain");
        // An .xz file of nothing.
        let empty = [&xz::stream_header()[..], &[0; 28]].concat();
        assert_eq!(refusal(&empty), "not a farmctl node tarball: it has 0 xz blocks");
    }

    #[test]
    fn a_block_that_says_it_is_larger_than_may_be_is_not_decoded() {
        let (_directory, path, _) = tarball();
        let bytes = fs::read(&path).expect("a file");
        let header = xz::block_header(1 << 40, (1 << 20) + 1025, xz::Filter::None);
        let large = [&bytes[..END_SIZE as usize], &header, &bytes[40..]].concat();
        assert_eq!(
            refusal(&large),
            "reading .farmctl/manifest.json: it is larger than 1048576 bytes"
        );
    }
}
