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
//! | `foreign` | what is no tarball, told by what it is instead |
//! | `opening` | the members before the payload |
//! | `partial` | a payload of which not all is decoded |
//! | `pack`, `archive`, `extract`, `patch`, `reuse`, `compare`, `plain` | what the recipes call |

mod archive;
mod compare;
mod decode;
mod extract;
mod foreign;
mod incoming;
mod member;
mod opening;
mod pack;
mod partial;
mod patch;
mod pax;
mod plain;
mod reuse;
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
pub use patch::{Copied, Patch};
pub use plain::{restore_tree, save_tree};
pub use reuse::Reuse;
pub use segment::{SegmentCache, contents};
pub use walk::{Scan, scan};

/// What long work tells its caller: called often and cheaply with (bytes done, bytes in
/// all). An error it returns ends the work and is passed on, which is how an
/// interruption gets in.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) -> anyhow::Result<()> + Sync);

/// Pieces files are read and written in, bytes.
const PIECE: usize = 256 << 10;
