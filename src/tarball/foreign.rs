//! What is given for a tarball and is none: said in words that tell what it is instead.

use anyhow::Result;
use xz2::stream::{Action, Stream, TELL_UNSUPPORTED_CHECK};

use super::member;
use super::xz::{COPY_AGAIN, DECODER_LIMIT, MAGIC, stream_header};
use crate::error::refuse;
use crate::manifest::MANIFEST_MEMBER;

/// Checks that a stream begins as [`super::xz::assemble`] writes it; `start` is its first bytes, and
/// more than its header, where there are more, to tell what it is instead.
pub(super) fn check_head(start: &[u8]) -> Result<()> {
    let head = &start[..start.len().min(stream_header().len())];
    if head.is_empty() || !head.starts_with(&MAGIC[..head.len().min(MAGIC.len())]) {
        let what = other_kind(start).map_or(String::new(), |kind| format!(" but {kind}"));
        return refuse(
            format!("not an .xz file{what}"),
            "give a node tarball: what farmctl bake writes",
        );
    }
    if head.len() < stream_header().len() {
        return cut_short(head.len() as u64);
    }
    if head != stream_header() {
        return refuse_foreign(start, 0);
    }
    Ok(())
}

/// Says that a stream ends at this byte, and not where it should.
pub(super) fn cut_short<T>(at: u64) -> Result<T> {
    refuse(format!("cut short at byte {at}"), COPY_AGAIN)
}

/// What a file is that does not begin like an .xz file, in words, where its first bytes
/// tell: what people have at hand instead, and what downloads turn out to be.
fn other_kind(start: &[u8]) -> Option<&'static str> {
    let head = &start[..start.len().min(512)];
    let kinds: [(&[u8], &str); 8] = [
        (b"\x1f\x8b", "a gzip file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"BZh", "a bzip2 file"),
        (b"\x5d\0\0", "an .lzma file"),
        (b"PK\x03\x04", "a zip file"),
        (b"!<arch>\n", "a Debian package"),
        (b"untrusted comment: ", "a key or signature of minisign"),
        (b"{", "JSON"),
    ];
    let page = |head: &[u8]| {
        let text = String::from_utf8_lossy(head).trim_start().to_ascii_lowercase();
        text.starts_with("<!doctype") || text.starts_with("<html")
    };
    match kinds.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, kind)) => Some(kind),
        None if head.get(257..262) == Some(b"ustar") => Some("a tar that is not compressed"),
        None if page(head) => Some("a web page"),
        None => None,
    }
}

/// Says why a stream is not one of ours: by the first tar member where its first bytes
/// have one.
pub(super) fn refuse_foreign<T>(start: &[u8], at: u64) -> Result<T> {
    match first_member(start) {
        Some(name) if name != MANIFEST_MEMBER => refuse(
            format!("not a farmctl node tarball: the first member is {name}"),
            "give a node tarball: what farmctl bake writes",
        ),
        _ => refuse(
            format!("the xz stream at byte {at} is damaged, or another program compressed it"),
            COPY_AGAIN,
        ),
    }
}

fn first_member(start: &[u8]) -> Option<String> {
    let mut decoder = Stream::new_stream_decoder(DECODER_LIMIT, TELL_UNSUPPORTED_CHECK).ok()?;
    let mut output = Vec::with_capacity(member::BLOCK);
    // What has come out counts, whatever the decoder thinks of the rest.
    if decoder.process_vec(start, &mut output, Action::Run).is_err() && output.len() < 100 {
        return None;
    }
    let name = output.get(..100)?.split(|byte| *byte == 0).next()?;
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty() && !name.contains(char::is_control)).then(|| name.to_owned())
}
