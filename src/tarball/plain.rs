//! A whole tree as a plain tar, for the cache of bootstrapped environments.
//!
//! Ours on both ends, on the machine that made it; read with the same care all the same.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::extract::Extractor;
use super::member::{END, Members, Pieces, padded};
use super::rules::Rules;
use super::walk::{Found, Shape, Tree, read_file};
use super::{PIECE, Progress};

/// Writes a whole tree to `out`, from where that stands: set-id files, capabilities and
/// true times (whole seconds) included, devices, fifos and sockets left out, as is
/// `lost+found` at the top. Progress counts bytes of file contents.
///
/// # Errors
/// Names the path of what cannot be read or has no place in a tree of ours.
pub fn save_tree(tree: &Path, out: &mut File, progress: Progress<'_>) -> Result<()> {
    save(tree, out, progress).with_context(|| format!("saving {}", tree.display()))
}

fn save(tree: &Path, out: &mut File, progress: Progress<'_>) -> Result<()> {
    let tree = Tree::open(tree)?;
    let all = tree.walk()?;
    let total = all.iter().map(Found::content).sum();
    let mut out = BufWriter::with_capacity(PIECE, out);
    let mut rules = Rules::default();
    let mut done = 0;
    for found in all.iter().filter(|found| !matches!(found.shape, Shape::Special(_))) {
        let (member, file) = tree.describe(&all, found)?;
        out.write_all(&member.encode())?;
        if let Some(file) = file {
            let size = member.content();
            read_file(&file, size, &mut |piece| {
                out.write_all(piece)?;
                done += piece.len() as u64;
                progress(done, total)
            })
            .with_context(|| format!("reading {}", member.path))?;
            out.write_all(&vec![0; usize::try_from(padded(size) - size)?])?;
        }
        rules.admit(member)?;
        progress(done, total)?;
    }
    out.write_all(&END)?;
    Ok(out.flush()?)
}

/// Extracts what [`save_tree`] wrote at the beginning of `file`, and nothing after it,
/// into an existing empty directory. Ends with syncfs(2). Wants root. Progress counts
/// bytes of tar.
///
/// # Errors
/// When the file is not exactly what [`save_tree`] writes; the directory then holds part
/// of the tree.
pub fn restore_tree(file: &File, target: &Path, progress: Progress<'_>) -> Result<()> {
    let restore = || {
        let mut extractor = Extractor::new(target)?;
        let total = file.metadata()?.len();
        let buffer = vec![0; PIECE];
        let saved = Saved { file, buffer, used: 0, filled: 0, at: 0, total, progress };
        let mut members = Members::new(saved);
        while let Some(member) = members.next()? {
            extractor.add(member, None, &mut members)?;
        }
        extractor.finish()
    };
    restore().with_context(|| format!("restoring {}", target.display()))
}

/// The bytes of a file, from its beginning.
struct Saved<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    used: usize,
    filled: usize,
    /// Bytes read from the file.
    at: u64,
    total: u64,
    progress: Progress<'a>,
}

impl Pieces for Saved<'_> {
    fn piece(&mut self, limit: usize) -> Result<&[u8]> {
        if self.used == self.filled {
            self.filled = loop {
                match self.file.read_at(&mut self.buffer, self.at) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    read => break read?,
                }
            };
            self.used = 0;
            self.at += self.filled as u64;
            (self.progress)(self.at, self.total)?;
        }
        let end = self.filled.min(self.used.saturating_add(limit));
        let piece = &self.buffer[self.used..end];
        self.used = end;
        Ok(piece)
    }
}
