//! Node tarballs: packing a tree, opening, verifying and extracting one.
//!
//! A node tarball is one standard .xz stream around one standard pax tar. Its first
//! members, each a block of its own, are the manifest, a signature over that if the
//! tarball is signed, and the file index; the payload follows in blocks cut at file
//! boundaries, those of machine code through xz's filter for it. What we write is the only
//! form we read: every header, of tar and of xz, must be the bytes this module would have
//! written, so reading one is comparing rather than interpreting.
//!
//! | module | holds |
//! |---|---|
//! | `walk` | a tree on disk: descriptors, names, hashes |
//! | `member`, `pax` | one tar member as bytes and back |
//! | `rules` | what a member may be, and in which order |
//! | `xz` | blocks, index and ends of the stream |
//! | `decode` | blocks decoded in threads, read in order |
//! | `incoming` | blocks out of a pipe |
//! | `opening` | the members before the payload |
//! | `pack`, `archive`, `extract`, `patch`, `compare`, `plain` | what the recipes call |

mod archive;
mod compare;
mod decode;
mod extract;
mod incoming;
mod member;
mod opening;
mod pack;
mod patch;
mod pax;
mod plain;
mod rules;
mod segment;
mod walk;
mod xz;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

pub use archive::Archive;
pub use compare::{Difference, compare};
pub use incoming::Source;
pub use opening::{Check, Opening};
pub use pack::{Packed, pack};
pub use patch::Patch;
pub use plain::{restore_tree, save_tree};
pub use segment::{SegmentCache, contents};
pub use walk::{Scan, scan};

/// What long work tells its caller: called often and cheaply with (bytes done, bytes in
/// all). An error it returns ends the work and is passed on, which is how an
/// interruption gets in.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) -> anyhow::Result<()> + Sync);

/// Pieces files are read and written in, bytes.
const PIECE: usize = 256 << 10;

/// Bytes as lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The bytes that lower-case hexadecimal digits stand for.
fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let bytes = digits.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> =
        bytes.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    // Anything else that parses, such as a sign, is not what `hex` writes.
    bytes.filter(|bytes| hex(bytes) == digits)
}

/// SHA-256 of bytes, hex.
fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(bytes))
}
