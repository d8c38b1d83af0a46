//! A tarball as a newer farmctl might write it.

use std::fs;
use std::path::Path;

/// Writes a tarball anew with other bytes of the same length in its manifest, as a
/// newer farmctl might have written it. Sizes and checksums of the .xz file are right.
pub fn with_manifest(tarball: &Path, edit: impl FnOnce(&str) -> String) {
    use std::io::Read as _;
    let bytes = fs::read(tarball).expect("it was packed");
    let mut tar = Vec::new();
    let mut decoder = xz2::read::XzDecoder::new_multi_decoder(bytes.as_slice());
    decoder.read_to_end(&mut tar).expect("it is an .xz file");
    let (length, first) = size_of_first(&bytes);
    let block = &tar[..first];
    let edited = edit(std::str::from_utf8(block).expect("the manifest is text"));
    assert_eq!(edited.len(), first, "the edit keeps the length");
    let made = block_of(edited.as_bytes());
    // The blocks that follow stay; the index says how long each is.
    let tail = index_at(&bytes);
    let records = records(&bytes[tail..]);
    let mut records: Vec<(u64, u64)> = records;
    records[0] = (made.1, first as u64);
    let mut out = bytes[..12].to_vec();
    out.extend(&made.0);
    out.extend(&bytes[12 + length..tail]);
    out.extend(tail_of(&records));
    fs::write(tarball, out).expect("it is ours");
}

/// Bytes of the first block in the file, and bytes it decodes to.
fn size_of_first(bytes: &[u8]) -> (usize, usize) {
    let (unpadded, size) = records(&bytes[index_at(bytes)..])[0];
    let number = |value: u64| usize::try_from(value).expect("it is small");
    (number(unpadded.next_multiple_of(4)), number(size))
}

/// Where the index begins: the footer has its size (xz-file-format.txt, 2.1.2.2).
fn index_at(bytes: &[u8]) -> usize {
    let footer = &bytes[bytes.len() - 12..];
    let words = u32::from_le_bytes(*footer[4..].first_chunk().expect("it has 12 bytes"));
    bytes.len() - 12 - (words as usize + 1) * 4
}

fn records(index: &[u8]) -> Vec<(u64, u64)> {
    let mut at = 1;
    let mut number = || {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = index[at];
            at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    };
    (0..number()).map(|_| (number(), number())).collect()
}

fn push(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

/// A block with these bytes in LZMA2 chunks that are not compressed, and its unpadded
/// size.
fn block_of(content: &[u8]) -> (Vec<u8>, u64) {
    let mut data = Vec::new();
    for (number, chunk) in content.chunks(1 << 16).enumerate() {
        // The first one begins the dictionary.
        data.push(if number == 0 { 1 } else { 2 });
        data.extend(u16::try_from(chunk.len() - 1).expect("at most 64 KiB").to_be_bytes());
        data.extend(chunk);
    }
    data.push(0);
    let mut block = vec![6, 0xc0];
    push(&mut block, data.len() as u64);
    push(&mut block, content.len() as u64);
    block.extend([0x21, 1, 22]);
    block.resize(24, 0);
    block.extend(&crc(&block, 0xedb8_8320, 0xffff_ffff).to_le_bytes()[..4]);
    let unpadded = 28 + data.len() as u64 + 8;
    block.extend(data);
    block.resize(block.len().next_multiple_of(4), 0);
    block.extend(crc(content, 0xc96c_5795_d787_0f42, u64::MAX).to_le_bytes());
    (block, unpadded)
}

fn tail_of(records: &[(u64, u64)]) -> Vec<u8> {
    let mut index = vec![0];
    push(&mut index, records.len() as u64);
    for (unpadded, size) in records {
        push(&mut index, *unpadded);
        push(&mut index, *size);
    }
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(&crc(&index, 0xedb8_8320, 0xffff_ffff).to_le_bytes()[..4]);
    let words = u32::try_from(index.len() / 4 - 1).expect("it is small");
    let footer = [&words.to_le_bytes()[..], &[0, 4]].concat();
    let sum = crc(&footer, 0xedb8_8320, 0xffff_ffff).to_le_bytes();
    [&index[..], &sum[..4], &footer, b"YZ"].concat()
}

/// CRC32 or CRC64, bit by bit.
fn crc(bytes: &[u8], polynomial: u64, start: u64) -> u64 {
    let step = |crc: u64| if crc & 1 == 1 { crc >> 1 ^ polynomial } else { crc >> 1 };
    let byte = |crc: u64, byte: &u8| (0..8).fold(crc ^ u64::from(*byte), |crc, _| step(crc));
    bytes.iter().fold(start, byte) ^ start
}
