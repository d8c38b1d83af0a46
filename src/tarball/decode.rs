//! Blocks decoded in threads, read in order.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use super::member::Pieces;
use super::xz::{self, Block};
use super::{PIECE, Progress};
use crate::hash::hex;
use crate::manifest::Payload;

/// Most decoding threads. One thread consumes what they decode, and four keep it busy.
const THREADS_LIMIT: usize = 4;
/// Pieces a block may be ahead of its reader: a whole segment of the usual size, so
/// that the next block's thread does not wait for the end of this one.
const AHEAD: usize = (32 << 20) / PIECE;

/// A block and where its decoded pieces go.
struct Job {
    number: usize,
    pieces: SyncSender<Result<Vec<u8>>>,
}

/// The decoded stream of some blocks, in order, hashed as it is read.
pub(super) struct Decoded<'a> {
    /// Receivers of the blocks being decoded, the one being read in front.
    window: VecDeque<Receiver<Result<Vec<u8>>>>,
    jobs: Sender<Job>,
    next: usize,
    count: usize,
    piece: Vec<u8>,
    used: usize,
    hash: Sha256,
    taken: u64,
    total: u64,
    progress: Progress<'a>,
}

/// Decodes blocks, each with the number of its segment and the SHA-256 its bytes must have, in
/// threads, while `consume` reads them in order in this one.
pub(super) fn decode_blocks<T>(
    file: &File,
    blocks: &[(usize, Block, &str)],
    threads: usize,
    progress: Progress<'_>,
    consume: impl FnOnce(&mut Decoded<'_>) -> Result<T>,
) -> Result<T> {
    let threads = threads.clamp(1, THREADS_LIMIT);
    let (jobs, queue) = mpsc::channel::<Job>();
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Job { number, pieces }) = job else { return };
                    let (segment, block, sha256) = blocks[number];
                    let decoded = xz::decode(file, block, Some(sha256), &mut |piece| {
                        pieces.send(Ok(piece)).context("nobody reads any more")
                    });
                    if let Err(error) = decoded {
                        let error = error.context(format!("reading segment {}", segment + 1));
                        // Nobody reads any more: then nobody wants to know.
                        drop(pieces.send(Err(error)));
                    }
                }
            });
        }
        let total = blocks.iter().map(|(_, block, _)| block.size).sum();
        let mut decoded = Decoded {
            window: VecDeque::new(),
            jobs,
            next: 0,
            count: blocks.len(),
            piece: Vec::new(),
            used: 0,
            hash: Sha256::new(),
            taken: 0,
            total,
            progress,
        };
        (0..=threads).for_each(|_| decoded.begin());
        // The closure owns the stream: its end closes the channels and so ends the threads.
        consume(&mut decoded)
    })
}

impl Decoded<'_> {
    fn begin(&mut self) {
        if self.next < self.count {
            let (pieces, receiver) = mpsc::sync_channel(AHEAD);
            // The queue lives as long as this does; were it gone, the block would end at
            // once and the archive be found too short.
            drop(self.jobs.send(Job { number: self.next, pieces }));
            self.window.push_back(receiver);
            self.next += 1;
        }
    }

    /// Checks that what was read, to the end, is this payload.
    pub fn check(&self, payload: &Payload) -> Result<()> {
        ensure!(
            self.taken == payload.size,
            "the payload has {} bytes instead of {}",
            self.taken,
            payload.size
        );
        ensure!(
            hex(&self.hash.clone().finalize()) == payload.sha256,
            "the payload's SHA-256 is not the manifest's"
        );
        Ok(())
    }
}

impl Pieces for &mut Decoded<'_> {
    fn piece(&mut self, limit: usize) -> Result<&[u8]> {
        while self.used == self.piece.len() {
            let Some(front) = self.window.front() else { return Ok(&[]) };
            if let Ok(piece) = front.recv() {
                self.piece = piece?;
                self.used = 0;
                (self.progress)(self.taken, self.total)?;
            } else {
                self.window.pop_front();
                self.begin();
            }
        }
        let end = self.piece.len().min(self.used.saturating_add(limit));
        let piece = &self.piece[self.used..end];
        self.hash.update(piece);
        self.taken += piece.len() as u64;
        self.used = end;
        Ok(piece)
    }
}
