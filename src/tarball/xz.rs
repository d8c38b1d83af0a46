//! Blocks, index and ends of the .xz stream.
//!
//! The .xz file format 1.2.1 (<https://tukaani.org/xz/xz-file-format.txt>): a stream is a
//! header, blocks, an index of their sizes, and a footer. Each block is made on its own,
//! so blocks can be made in any order and by any number of threads; the stream is put
//! together here. Block headers say both sizes, as liblzma's threaded encoder has it, so
//! that `xz -T0` decodes our files in threads too.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use xz2::stream::{Action, Filters, LzmaOptions, Status, Stream, TELL_UNSUPPORTED_CHECK};

use super::PIECE;
use super::foreign::{check_head, cut_short, refuse_foreign};
use crate::error::refuse;
use crate::hash::hex;

/// What every .xz file begins with.
pub(super) const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// Stream flags: CRC64.
const FLAGS: [u8; 2] = [0, 4];
/// Size of the stream's header and of its footer, bytes.
pub(super) const END_SIZE: u64 = 12;
/// Size of our block headers, bytes: flags and filters take 7, the CRC32 4, and there is room
/// for two sizes below 256 TiB. A fixed size lets a block be written before its sizes are known.
pub(super) const BLOCK_HEADER: usize = 28;
/// Size of a CRC64, bytes.
const CHECK: u64 = 8;
/// Compression level: that of xz when it is not told.
const PRESET: u32 = 6;
/// Most blocks of a stream that is read: 1 TiB of segments.
const BLOCKS_LIMIT: usize = 1 << 16;
/// Memory a decoder may take, bytes. LZMA2 as we admit it has an 8 MiB dictionary.
pub(super) const DECODER_LIMIT: u64 = 32 << 20;
/// What to do about a file that is not whole.
pub(super) const COPY_AGAIN: &str =
    "copy the file again from where it was baked and compare its sha256sum";

/// What a block's bytes go through before they are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// Nothing.
    None,
    /// The branch/call/jump filter for x86 machine code: its relative addresses become
    /// absolute ones, so that calls of one function are alike.
    X86,
}

impl Filter {
    /// Its entry in a block header, and that of LZMA2 after it.
    fn flags(self) -> &'static [u8] {
        match self {
            // LZMA2, one byte of properties: the 8 MiB dictionary of preset 6.
            Self::None => &[0x21, 1, 22],
            Self::X86 => &[0x04, 0, 0x21, 1, 22],
        }
    }
}

/// One block of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    filter: Filter,
    /// Where it begins in its file, bytes.
    pub at: u64,
    /// Its bytes without the final padding.
    unpadded: u64,
    /// Bytes it decodes to.
    pub size: u64,
}

impl Block {
    /// The same block at another place of a file.
    pub fn moved(self, at: u64) -> Self {
        Self { at, ..self }
    }

    /// Its header.
    pub fn header(&self) -> [u8; BLOCK_HEADER] {
        block_header(self.unpadded - BLOCK_HEADER as u64 - CHECK, self.size, self.filter)
    }

    /// Bytes it takes in the file.
    pub fn xz_size(&self) -> u64 {
        self.unpadded.next_multiple_of(4)
    }
}

/// The table of a reflected CRC of `width` bits.
const fn crc_table(polynomial: u64) -> [u64; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ polynomial } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

/// CRC32 of IEEE 802.3 and CRC64 of ECMA-182, the polynomials the format names.
static CRC32: [u64; 256] = crc_table(0xedb8_8320);
static CRC64: [u64; 256] = crc_table(0xc96c_5795_d787_0f42);

fn crc(table: &[u64; 256], start: u64, bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(start, |crc, byte| table[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let crc = !crc(&CRC32, 0xffff_ffff, bytes);
    *crc.to_le_bytes().first_chunk().expect("eight bytes have four")
}

/// Appends a variable-length integer, seven bits to a byte.
fn push_vli(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

/// Takes a variable-length integer off the front: at most nine bytes.
fn take_vli(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

pub(super) fn stream_header() -> Vec<u8> {
    [&MAGIC[..], &FLAGS, &crc32(&FLAGS)].concat()
}

/// The index of these blocks and the footer after it: what a stream ends with.
fn stream_tail(blocks: &[Block]) -> Vec<u8> {
    let mut index = vec![0];
    push_vli(&mut index, blocks.len() as u64);
    for block in blocks {
        push_vli(&mut index, block.unpadded);
        push_vli(&mut index, block.size);
    }
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(crc32(&index));
    let words = u32::try_from(index.len() / 4 - 1).expect("BLOCKS_LIMIT keeps an index small");
    let footer = [&words.to_le_bytes()[..], &FLAGS].concat();
    [&index[..], &crc32(&footer), &footer, b"YZ"].concat()
}

/// The header of a block with `compressed` bytes that decode to `size`.
pub(super) fn block_header(compressed: u64, size: u64, filter: Filter) -> [u8; BLOCK_HEADER] {
    // Header size in words less one; flags: how many filters besides one, both sizes present.
    let more = u8::from(filter != Filter::None);
    let mut bytes = vec![(BLOCK_HEADER / 4 - 1) as u8, 0xc0 | more];
    push_vli(&mut bytes, compressed);
    push_vli(&mut bytes, size);
    bytes.extend(filter.flags());
    bytes.resize(BLOCK_HEADER - 4, 0);
    bytes.extend(crc32(&bytes));
    *bytes.first_chunk().expect("the vector was given this length")
}

/// Encodes one block straight into a file, so that its size does not matter to memory:
/// liblzma takes about 94 MiB, whatever the block.
pub(super) struct BlockWriter<'a> {
    file: &'a File,
    filter: Filter,
    encoder: Stream,
    buffer: Vec<u8>,
    start: u64,
    /// Where the next bytes go.
    end: u64,
    size: u64,
    check: u64,
}

impl BlockWriter<'_> {
    /// Begins a block at this place of the file, bytes.
    pub fn new(file: &File, start: u64, filter: Filter) -> Result<BlockWriter<'_>> {
        let mut filters = Filters::new();
        if filter == Filter::X86 {
            filters.x86();
        }
        filters.lzma2(&LzmaOptions::new_preset(PRESET).context("preparing the xz encoder")?);
        let encoder = Stream::new_raw_encoder(&filters).context("preparing the xz encoder")?;
        let (buffer, end) = (Vec::with_capacity(PIECE), start + BLOCK_HEADER as u64);
        Ok(BlockWriter { file, filter, encoder, buffer, start, end, size: 0, check: u64::MAX })
    }

    /// Encodes more bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.check = crc(&CRC64, self.check, bytes);
        self.size += bytes.len() as u64;
        let mut left = bytes;
        while !left.is_empty() {
            let before = self.encoder.total_in();
            self.step(left, Action::Run)?;
            let taken = self.encoder.total_in() - before;
            left = &left[usize::try_from(taken).expect("no more than was given")..];
        }
        Ok(())
    }

    fn step(&mut self, bytes: &[u8], action: Action) -> Result<Status> {
        let status = self.encoder.process_vec(bytes, &mut self.buffer, action);
        let status = status.context("encoding an xz block")?;
        if self.buffer.len() == self.buffer.capacity() || status == Status::StreamEnd {
            self.put(&self.buffer, self.end)?;
            self.end += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(status)
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).context("writing an xz block")
    }

    /// Ends the block and returns it with the SHA-256 of its bytes, hex.
    pub fn finish(mut self) -> Result<(Block, String)> {
        while self.step(&[], Action::Finish)? != Status::StreamEnd {}
        let compressed = self.end - self.start - BLOCK_HEADER as u64;
        let mut tail = vec![0; usize::try_from(compressed.wrapping_neg() % 4).expect("below 4")];
        tail.extend((!self.check).to_le_bytes());
        self.put(&tail, self.end)?;
        self.put(&block_header(compressed, self.size, self.filter), self.start)?;
        let unpadded = BLOCK_HEADER as u64 + compressed + CHECK;
        let block = Block { filter: self.filter, at: self.start, unpadded, size: self.size };
        let sha256 = hash_range(self.file, block.at, block.xz_size(), &mut |_| Ok(()))?;
        Ok((block, sha256))
    }
}

/// SHA-256 of a range of a file, hex; each piece of it is handed to `sink`.
pub(super) fn hash_range(
    file: &File,
    at: u64,
    size: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<String> {
    let mut hash = Sha256::new();
    each_piece(file, at, size, &mut |piece| {
        hash.update(piece);
        sink(piece)
    })?;
    Ok(hex(&hash.finalize()))
}

/// Reads a range of a file in pieces; an error if the file ends before it.
fn each_piece(
    file: &File,
    at: u64,
    size: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    while done < size {
        let length = usize::try_from(size - done).unwrap_or(PIECE).min(PIECE);
        file.read_exact_at(&mut buffer[..length], at + done)?;
        sink(&buffer[..length])?;
        done += length as u64;
    }
    Ok(())
}

/// Puts blocks that lie in other files together as one stream, and returns its size.
pub(super) fn assemble(mut out: &File, blocks: &[(&File, Block)]) -> Result<u64> {
    out.write_all(&stream_header())?;
    let mut size = END_SIZE;
    for (file, block) in blocks {
        each_piece(file, block.at, block.xz_size(), &mut |piece| Ok(out.write_all(piece)?))?;
        size += block.xz_size();
    }
    let tail = stream_tail(&blocks.iter().map(|(_, block)| *block).collect::<Vec<_>>());
    out.write_all(&tail)?;
    Ok(size + tail.len() as u64)
}

/// The block that begins at `at` with this header, if that is one of ours.
pub(super) fn parse_header(head: &[u8], at: u64) -> Option<Block> {
    let mut sizes = head.get(2..)?;
    let (compressed, size) = (take_vli(&mut sizes)?, take_vli(&mut sizes)?);
    let unpadded = (BLOCK_HEADER as u64 + CHECK).checked_add(compressed)?;
    let of = |filter| Block { filter, at, unpadded, size };
    [Filter::None, Filter::X86].map(of).into_iter().find(|block| head == block.header())
}

/// The block a file begins with, if it does with one of ours.
pub(super) fn first_block(file: &File) -> Result<Option<Block>> {
    if file.metadata()?.len() < BLOCK_HEADER as u64 {
        return Ok(None);
    }
    let mut head = [0; BLOCK_HEADER];
    file.read_exact_at(&mut head, 0)?;
    Ok(parse_header(&head, 0))
}

/// Finds the blocks of a file that is one stream as [`assemble`] writes it and nothing
/// more. Reads a few bytes of each block.
///
/// # Errors
/// Says what is wrong where: not an .xz file, cut short, damaged, something after the
/// end, or made by another program.
pub(super) fn read_layout(file: &File) -> Result<Vec<Block>> {
    let length = file.metadata()?.len();
    let read = |at: u64, count: usize| -> Result<Vec<u8>> {
        let count =
            usize::try_from(length.saturating_sub(at)).map_or(count, |left| left.min(count));
        let mut bytes = vec![0; count];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    };
    let cut = || cut_short(length);
    if read(0, stream_header().len())? != stream_header() {
        check_head(&read(0, PIECE)?)?;
    }
    let mut blocks = Vec::new();
    let mut at = END_SIZE;
    loop {
        let head = read(at, BLOCK_HEADER)?;
        match head.first() {
            None => return cut(),
            Some(0) => break,
            Some(_) if head.len() < BLOCK_HEADER => return cut(),
            Some(_) => {}
        }
        let Some(block) = parse_header(&head, at) else {
            return refuse_foreign(&read(0, PIECE)?, at);
        };
        at += block.xz_size();
        if at > length {
            return cut();
        }
        ensure!(blocks.len() < BLOCKS_LIMIT, "more than {BLOCKS_LIMIT} xz blocks");
        blocks.push(block);
    }
    let expected = stream_tail(&blocks);
    let tail = read(at, expected.len())?;
    if tail != expected {
        if expected.starts_with(&tail) {
            return cut();
        }
        return refuse(format!("the xz index at byte {at} is damaged"), COPY_AGAIN);
    }
    let end = at + tail.len() as u64;
    if end != length {
        let more = match length - end {
            1 => "1 byte follows".to_owned(),
            more => format!("{more} bytes follow"),
        };
        return refuse(format!("{more} the end of the tarball at byte {end}"), COPY_AGAIN);
    }
    Ok(blocks)
}

/// The stream its blocks seem to make, with every checksum of its structure right: what a
/// fuzzer wants, because chance never gets one right.
#[cfg(test)]
pub(super) fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut blocks) = (stream_header(), Vec::new());
    let mut at = out.len();
    while bytes.get(at).is_some_and(|first| *first != 0) {
        let head = bytes.get(at..at + BLOCK_HEADER)?;
        let mut sizes = &head[2..];
        let (compressed, size) = (take_vli(&mut sizes)?, take_vli(&mut sizes)?);
        let unpadded = BLOCK_HEADER as u64 + compressed + CHECK;
        let filter = if head[1] & 1 == 1 { Filter::X86 } else { Filter::None };
        let block = Block { filter, at: at as u64, unpadded, size };
        let end = at.checked_add(usize::try_from(block.xz_size()).ok()?)?;
        out.extend(block.header());
        out.extend(bytes.get(at + BLOCK_HEADER..end)?);
        blocks.push(block);
        at = end;
    }
    out.extend(stream_tail(&blocks));
    Some(out)
}

/// Decodes one block, in pieces. Where the SHA-256 of its bytes is known, hex, they are
/// checked before anything is decoded, and again while they are.
pub(super) fn decode(
    file: &File,
    block: Block,
    sha256: Option<&str>,
    sink: &mut dyn FnMut(Vec<u8>) -> Result<()>,
) -> Result<()> {
    let damaged = || refuse("its bytes are not the ones that were packed", COPY_AGAIN);
    if let Some(wanted) = sha256 {
        if hash_range(file, block.at, block.xz_size(), &mut |_| Ok(()))? != wanted {
            return damaged();
        }
    }
    let mut hash = Sha256::new();
    let mut read = |feed: Sink<'_>| {
        each_piece(file, block.at, block.xz_size(), &mut |piece| {
            hash.update(piece);
            feed(piece)
        })?;
        // Again, because the file may have been changed in between.
        match sha256 {
            Some(wanted) if hex(&hash.finalize_reset()) != wanted => damaged(),
            _ => Ok(()),
        }
    };
    decode_pieces(block, &mut read, sink)
}

/// What takes bytes in pieces.
type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Decodes one block, in pieces, whose bytes in the stream are what `read` gives.
pub(super) fn decode_pieces(
    block: Block,
    read: &mut dyn FnMut(Sink<'_>) -> Result<()>,
    sink: &mut dyn FnMut(Vec<u8>) -> Result<()>,
) -> Result<()> {
    // liblzma decodes streams: a stream of this one block, its sizes checked by its index.
    let mut decoder = Stream::new_stream_decoder(DECODER_LIMIT, TELL_UNSUPPORTED_CHECK)
        .context("preparing the xz decoder")?;
    let mut status = Status::Ok;
    let mut output = Vec::with_capacity(PIECE);
    let mut feed = |bytes: &[u8]| -> Result<()> {
        let mut left = bytes;
        loop {
            let before = decoder.total_in();
            status = match decoder.process_vec(left, &mut output, Action::Run) {
                Ok(status) => status,
                Err(error) => {
                    return Err(anyhow::Error::new(error)).context("decoding an xz block");
                }
            };
            let taken = decoder.total_in() - before;
            left = &left[usize::try_from(taken).expect("no more than was given")..];
            ensure!(decoder.total_out() <= block.size, "an xz block is larger than it says");
            if output.len() == output.capacity() {
                sink(std::mem::replace(&mut output, Vec::with_capacity(PIECE)))?;
            } else if left.is_empty() {
                return Ok(());
            } else if status == Status::StreamEnd || taken == 0 {
                bail!("an xz block ends before its bytes do");
            }
        }
    };
    feed(&stream_header())?;
    read(&mut feed)?;
    feed(&stream_tail(&[block]))?;
    let total = decoder.total_out();
    if status != Status::StreamEnd || total != block.size {
        bail!("an xz block ends early");
    }
    if !output.is_empty() {
        sink(output)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_format() {
        // The check values of the CRC catalogue, over "123456789".
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926_u32.to_le_bytes());
        assert_eq!(!crc(&CRC64, u64::MAX, b"123456789"), 0x995d_c9bb_df19_39fa);
    }

    #[test]
    fn integers_read_back_and_long_ones_end() {
        for value in [0, 0x7f, 0x80, 1 << 21, (1 << 63) - 1] {
            let mut bytes = Vec::new();
            push_vli(&mut bytes, value);
            assert_eq!(take_vli(&mut &bytes[..]), Some(value));
        }
        assert_eq!(take_vli(&mut &[0xff; 12][..]), None);
        assert_eq!(take_vli(&mut &[0x80, 0x80][..]), None);
    }

    #[test]
    fn a_block_does_not_depend_on_the_pieces_it_was_written_in() {
        let bytes: Vec<u8> = (0..60_000_u32).flat_map(|n| (n * n % 251).to_le_bytes()).collect();
        let encode = |piece: usize, filter: Filter| {
            let file = tempfile::tempfile().expect("a temporary file");
            let mut writer = BlockWriter::new(&file, 4, filter).expect("an encoder");
            bytes.chunks(piece).for_each(|piece| writer.write(piece).expect("room"));
            let (block, sha256) = writer.finish().expect("room");
            let mut decoded = Vec::new();
            decode(&file, block, Some(&sha256), &mut |piece| {
                decoded.extend(piece);
                Ok(())
            })
            .expect("as written");
            assert!(decoded == bytes);
            sha256
        };
        for filter in [Filter::None, Filter::X86] {
            assert_eq!(encode(1000, filter), encode(240_000, filter));
            assert_eq!(encode(7777, filter), encode(65_536, filter));
        }
    }

    #[test]
    fn the_encoder_still_writes_the_bytes_it_always_wrote() {
        // A hash that changes with liblzma means that old releases can no longer be
        // baked again bit for bit: say so in the release notes.
        for (filter, expected) in [
            (Filter::None, "fb6a141657bb81bbcf3dd61a758fb27db120f493c9dec03be622abcc070694ed"),
            (Filter::X86, "f65bfb8f71f97be132c574b6cd2c69f006c5713b556358f7a2b483178901f21d"),
        ] {
            let file = tempfile::tempfile().expect("a temporary file");
            let mut writer = BlockWriter::new(&file, 0, filter).expect("an encoder");
            for number in 0..40_000_u32 {
                let word = number.wrapping_mul(2_654_435_761) >> (number % 29);
                writer.write(format!("{word} {number}\n").as_bytes()).expect("room");
                if filter == Filter::X86 {
                    // A call, and where it leads to.
                    writer.write(&[0xe8]).expect("room");
                    writer.write(&(number * 16).to_le_bytes()).expect("room");
                }
            }
            let (_, sha256) = writer.finish().expect("room");
            assert_eq!(sha256, expected, "{filter:?}");
        }
    }
}
