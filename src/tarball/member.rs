//! One tar member as bytes and back.
//!
//! ustar headers, and a pax extended header only where ustar cannot say it: a path or
//! link target of more than 100 bytes, 8 GiB or more, `security.capability`. The formats
//! are POSIX.1-2024's, pax, "pax Interchange Format" and "ustar Interchange Format".

use anyhow::{Context as _, Result, bail, ensure};

use super::pax;
use crate::hash::hex;
use crate::manifest::{FileEntry, FileKind};

/// Size of a tar block, bytes.
pub(super) const BLOCK: usize = 512;
/// The two zero blocks a tar archive ends with.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// The extended attribute that holds file capabilities.
pub(super) const CAPABILITY: &str = "security.capability";

/// Name of every extended header; programs that do not know pax make a file of it. It
/// is what Python's tarfile writes.
const PAX_NAME: &[u8] = b"././@PaxHeader";
/// Largest extended header that is read, bytes: a path, a link target and a capability
/// need less than 10 KiB.
const PAX_LIMIT: u64 = 1 << 20;
/// Names longer than this do not fit a ustar header, bytes.
const NAME_LIMIT: usize = 100;
/// Sizes from here on do not fit the eleven octal digits of a ustar header.
const SIZE_LIMIT: u64 = 1 << 33;

/// What one member says, its content aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Path: no slash at either end.
    pub path: String,
    pub body: Body,
    /// Permission bits, 12 of them.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Value of `security.capability`.
    pub capability: Option<Vec<u8>>,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Directory,
    File { size: u64 },
    Symlink { target: String },
    HardLink { target: String },
}

impl Body {
    fn typeflag(&self) -> u8 {
        match self {
            Body::File { .. } => b'0',
            Body::HardLink { .. } => b'1',
            Body::Symlink { .. } => b'2',
            Body::Directory => b'5',
        }
    }

    /// The kind in words.
    pub fn name(&self) -> &'static str {
        match self {
            Body::File { .. } => "a file",
            Body::HardLink { .. } => "a hard link",
            Body::Symlink { .. } => "a symbolic link",
            Body::Directory => "a directory",
        }
    }
}

impl Member {
    /// The member an entry of the file index stands for.
    pub fn of_entry(entry: &FileEntry, capability: Option<Vec<u8>>) -> Member {
        Member {
            path: entry.path.clone(),
            body: match &entry.kind {
                FileKind::Directory => Body::Directory,
                FileKind::File { size, .. } => Body::File { size: *size },
                FileKind::Symlink { target } => Body::Symlink { target: target.clone() },
                FileKind::HardLink { target } => Body::HardLink { target: target.clone() },
            },
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            capability,
        }
    }

    /// A member of farmctl's own: mode 0644, root's.
    pub fn own(path: &str, size: u64, mtime: i64) -> Member {
        Member {
            path: path.to_owned(),
            body: Body::File { size },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime,
            capability: None,
        }
    }

    /// Bytes of content that follow the headers, padding aside.
    pub fn content(&self) -> u64 {
        match self.body {
            Body::File { size } => size,
            _ => 0,
        }
    }

    /// Bytes the member takes in the archive: headers, content, padding.
    pub fn archived(&self) -> u64 {
        self.encode().len() as u64 + padded(self.content())
    }

    /// The headers: an extended one where needed, then the ustar one.
    pub fn encode(&self) -> Vec<u8> {
        let mut name = self.path.clone().into_bytes();
        if self.body == Body::Directory {
            name.push(b'/');
        }
        let target = match &self.body {
            Body::Symlink { target } | Body::HardLink { target } => target.as_bytes(),
            _ => b"",
        };
        let mut size = self.content();
        let mut records = Vec::new();
        if let Some(capability) = &self.capability {
            pax::push_record(&mut records, pax::CAPABILITY, capability);
        }
        if target.len() > NAME_LIMIT {
            pax::push_record(&mut records, "linkpath", target);
        }
        if name.len() > NAME_LIMIT {
            pax::push_record(&mut records, "path", &name);
        }
        if size >= SIZE_LIMIT {
            pax::push_record(&mut records, "size", size.to_string().as_bytes());
            // What Python's tarfile writes there too; programs take the record.
            size = 0;
        }
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let pax = Member::own("", records.len() as u64, 0);
            bytes.extend(pax.header(PAX_NAME, b"", b'x', records.len() as u64));
            bytes.extend(&records);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.extend(self.header(&name, target, self.body.typeflag(), size));
        bytes
    }

    fn header(&self, name: &[u8], target: &[u8], typeflag: u8, size: u64) -> [u8; BLOCK] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(typeflag));
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(self.mtime.unsigned_abs());
        header.set_size(size);
        let ustar = header.as_ustar_mut().expect("new_ustar makes a ustar header");
        ustar.set_device_major(0);
        ustar.set_device_minor(0);
        copy_name(&mut ustar.name, name);
        copy_name(&mut ustar.linkname, target);
        header.set_cksum();
        *header.as_bytes()
    }

    /// What tells this member from the one expected, in words; empty if nothing does.
    pub fn difference(&self, expected: &Member) -> String {
        let mut differences = Vec::new();
        if self.path != expected.path {
            return format!("{:?} where {:?} belongs", self.path, expected.path);
        }
        match (&self.body, &expected.body) {
            (found, wanted) if found == wanted => {}
            (Body::File { size: found }, Body::File { size: wanted }) => {
                differences.push(format!("{found} bytes instead of {wanted}"));
            }
            (Body::Symlink { target: found }, Body::Symlink { target: wanted })
            | (Body::HardLink { target: found }, Body::HardLink { target: wanted }) => {
                differences.push(format!("link to {found:?} instead of {wanted:?}"));
            }
            (found, wanted) => {
                differences.push(format!("{} instead of {}", found.name(), wanted.name()));
            }
        }
        if self.mode != expected.mode {
            differences.push(format!("mode {:04o} instead of {:04o}", self.mode, expected.mode));
        }
        if (self.uid, self.gid) != (expected.uid, expected.gid) {
            differences.push(format!(
                "owner {}:{} instead of {}:{}",
                self.uid, self.gid, expected.uid, expected.gid
            ));
        }
        if self.mtime != expected.mtime {
            differences.push(format!("time {} instead of {}", self.mtime, expected.mtime));
        }
        if self.capability != expected.capability {
            let words = |value: &Option<Vec<u8>>| match value {
                Some(value) => hex(value),
                None => "none".to_owned(),
            };
            differences.push(format!(
                "capabilities {} instead of {}",
                words(&self.capability),
                words(&expected.capability)
            ));
        }
        differences.join(", ")
    }
}

/// A size rounded up to whole tar blocks; `u64::MAX` where that does not fit.
pub(super) fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX)
}

/// Copies as much of a name as fits, cut between characters: programs that read the
/// extended header never look at it.
fn copy_name(field: &mut [u8; NAME_LIMIT], name: &[u8]) {
    let mut length = name.len().min(NAME_LIMIT);
    while length < name.len() && name[length] & 0xc0 == 0x80 {
        length -= 1;
    }
    field[..length].copy_from_slice(&name[..length]);
}

/// A stream of bytes read in pieces that nobody copies.
pub(super) trait Pieces {
    /// The next bytes: at least one, at most `limit`; none at the end of the stream.
    fn piece(&mut self, limit: usize) -> Result<&[u8]>;
}

impl Pieces for &[u8] {
    fn piece(&mut self, limit: usize) -> Result<&[u8]> {
        let (piece, rest) = self.split_at(limit.min(self.len()));
        *self = rest;
        Ok(piece)
    }
}

/// The members of a tar stream, strictly read.
pub(super) struct Members<P> {
    pieces: P,
    count: u64,
}

impl<P: Pieces> Members<P> {
    pub fn new(pieces: P) -> Members<P> {
        Members { pieces, count: 0 }
    }

    pub fn into_pieces(self) -> P {
        self.pieces
    }

    /// The next member, whose content must be taken before the one after it; `None`
    /// after the end marker, which nothing may follow.
    pub fn next(&mut self) -> Result<Option<Member>> {
        let number = self.count + 1;
        let member = self.read().with_context(|| format!("reading tar member {number}"))?;
        self.count = number;
        Ok(member)
    }

    fn read(&mut self) -> Result<Option<Member>> {
        let mut raw = Vec::new();
        self.append(&mut raw, BLOCK)?;
        if raw == END[..BLOCK] {
            raw.clear();
            self.append(&mut raw, BLOCK)?;
            ensure!(raw == END[..BLOCK], "the end marker is one block of zeros instead of two");
            ensure!(self.pieces.piece(1)?.is_empty(), "bytes follow the end marker");
            return Ok(None);
        }
        let mut records = pax::Records::default();
        let mut start = 0;
        if raw[156] == b'x' {
            let size = tar::Header::from_byte_slice(&raw).entry_size().unwrap_or(u64::MAX);
            ensure!(size <= PAX_LIMIT, "the extended header is larger than {PAX_LIMIT} bytes");
            let size = usize::try_from(size).expect("PAX_LIMIT fits");
            self.append(&mut raw, size.next_multiple_of(BLOCK))?;
            records = pax::parse_records(&raw[BLOCK..BLOCK + size])?;
            start = raw.len();
            self.append(&mut raw, BLOCK)?;
        }
        let member = parse(tar::Header::from_byte_slice(&raw[start..]), records)?;
        // The one test that leaves nothing open: checksum, prefix, user names, numbers
        // in other notations, records that were not needed.
        ensure!(
            member.encode() == raw,
            "the headers of {:?} are not as farmctl writes them",
            member.path
        );
        Ok(Some(member))
    }

    /// Hands the content of the member just read to `sink`, in pieces.
    pub fn content(&mut self, size: u64, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let limit = usize::try_from(left).unwrap_or(usize::MAX).min(super::PIECE);
            let piece = self.pieces.piece(limit)?;
            ensure!(!piece.is_empty(), "the archive ends in the middle of a file");
            left -= piece.len() as u64;
            sink(piece)?;
        }
        let mut padding = Vec::new();
        let length = usize::try_from(padded(size) - size).expect("less than a block");
        self.append(&mut padding, length)?;
        ensure!(padding.iter().all(|byte| *byte == 0), "the padding after a file is not zero");
        Ok(())
    }

    fn append(&mut self, bytes: &mut Vec<u8>, count: usize) -> Result<()> {
        let mut left = count;
        while left > 0 {
            let piece = self.pieces.piece(left)?;
            ensure!(!piece.is_empty(), "the archive ends before its end marker");
            bytes.extend(piece);
            left -= piece.len();
        }
        Ok(())
    }
}

fn parse(header: &tar::Header, records: pax::Records) -> Result<Member> {
    let ustar = header.as_ustar().context("not a ustar header")?;
    let text = |record: Option<Vec<u8>>, field: &[u8]| {
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
        let bytes = record.unwrap_or_else(|| field[..end].to_vec());
        String::from_utf8(bytes).ok().context("a name is not UTF-8")
    };
    let name = text(records.path, &ustar.name)?;
    let target = text(records.linkpath, &ustar.linkname)?;
    let (path, body) = match header.as_bytes()[156] {
        b'0' => {
            let size = match records.size {
                None => header.entry_size().with_context(|| format!("the size of {name:?}"))?,
                Some(digits) => std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|digits| digits.parse().ok())
                    .with_context(|| format!("the size of {name:?} is not a number"))?,
            };
            (name, Body::File { size })
        }
        b'1' => (name, Body::HardLink { target }),
        b'2' => (name, Body::Symlink { target }),
        b'5' => {
            let path = name.strip_suffix('/');
            let path = path.with_context(|| format!("directory {name:?} has no final slash"))?;
            (path.to_owned(), Body::Directory)
        }
        other => bail!("{name:?} is {}, which has no place in a release", kind_of(other)),
    };
    let small = |number: std::io::Result<u64>| number.ok().and_then(|n| u32::try_from(n).ok());
    Ok(Member {
        body,
        mode: header.mode().with_context(|| format!("the mode of {path:?}"))?,
        uid: small(header.uid()).with_context(|| format!("the owner of {path:?}"))?,
        gid: small(header.gid()).with_context(|| format!("the group of {path:?}"))?,
        mtime: i64::try_from(header.mtime().with_context(|| format!("the time of {path:?}"))?)
            .with_context(|| format!("the time of {path:?}"))?,
        capability: records.capability,
        path,
    })
}

/// A type of member we do not take, in words.
fn kind_of(typeflag: u8) -> String {
    match typeflag {
        b'3' => "a character device".to_owned(),
        b'4' => "a block device".to_owned(),
        b'6' => "a fifo".to_owned(),
        b'7' => "a contiguous file".to_owned(),
        b'L' | b'K' => "a GNU long name".to_owned(),
        b'S' => "a GNU sparse file".to_owned(),
        b'g' => "a global extended header".to_owned(),
        b'x' => "a second extended header".to_owned(),
        other => format!("a member of type {:?}", char::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Member {
        Member::own(path, 0, 0)
    }

    fn read_back(member: &Member) -> Result<Option<Member>> {
        Members::new(member.encode().as_slice()).next()
    }

    #[test]
    fn members_read_back_as_they_were_written() {
        let long = "d/".repeat(60) + "é.txt";
        let capability = b"\x01\0\0\x02\0 \n\0=\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        for member in [
            file("a"),
            Member { body: Body::Directory, ..file(&"x".repeat(99)) },
            Member { body: Body::Directory, ..file(&"x".repeat(100)) },
            Member { body: Body::File { size: SIZE_LIMIT - 1 }, ..file(&"x".repeat(100)) },
            Member { body: Body::File { size: SIZE_LIMIT }, ..file(&long) },
            Member { body: Body::Symlink { target: long.clone() }, mode: 0o777, ..file("l") },
            Member { body: Body::HardLink { target: long.clone() }, ..file(&long) },
            Member { capability: Some(capability), mode: 0o4755, ..file("usr/bin/ping") },
        ] {
            assert_eq!(read_back(&member).expect("as written"), Some(member));
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_header_is_refused() {
        let header = Member { mode: 0o4755, uid: 33, mtime: 7, ..file("usr/bin/su") }.encode();
        for bit in 0..BLOCK * 8 {
            let mut bytes = header.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Members::new(bytes.as_slice()).next().is_err(), "bit {bit}");
        }
    }
}
