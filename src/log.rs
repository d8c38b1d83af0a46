//! The logs of processes: their last lines, and following them.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// How far back from its end a log is read for its last lines, in bytes.
const WINDOW: u64 = 256 << 10;

/// The last lines of logs, the newest of which comes last; none if there is no log.
///
/// # Errors
/// When one is there and cannot be read.
pub fn last_lines(paths: &[PathBuf], count: usize) -> Result<Vec<String>> {
    let mut last: Vec<String> = Vec::new();
    for path in paths.iter().rev() {
        let mut lines = lines_since(path, size(path)?.saturating_sub(WINDOW))?;
        lines.drain(..lines.len().saturating_sub(count - last.len()));
        lines.append(&mut last);
        last = lines;
        if last.len() == count {
            break;
        }
    }
    Ok(last)
}

/// Bytes of a log so far.
///
/// # Errors
/// When it is there and cannot be looked at.
pub fn size(path: &Path) -> Result<u64> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

/// Lines written after `offset`.
///
/// # Errors
/// When the log cannot be read.
pub fn lines_since(path: &Path, offset: u64) -> Result<Vec<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
}

/// A log that is being written and rotated.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    inode: u64,
    offset: u64,
    /// The line that is being written.
    begun: Vec<u8>,
}

impl Follower {
    /// Follows the log from its present end.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn at_end(path: &Path) -> Result<Self> {
        let inode = std::fs::metadata(path).map_or(0, |metadata| metadata.ino());
        Ok(Self { path: path.to_owned(), inode, offset: size(path)?, begun: Vec::new() })
    }

    /// Follows the log from its start.
    #[must_use]
    pub fn at_start(path: &Path) -> Self {
        Self { path: path.to_owned(), inode: 0, offset: 0, begun: Vec::new() }
    }

    /// Lines that were finished since the last call, after a rotation from the new file's
    /// start.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn lines(&mut self) -> Result<Vec<String>> {
        let Ok(mut file) = File::open(&self.path) else { return Ok(Vec::new()) };
        let metadata =
            file.metadata().with_context(|| format!("looking at {}", self.path.display()))?;
        if metadata.ino() != self.inode || metadata.len() < self.offset {
            self.inode = metadata.ino();
            self.offset = 0;
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.offset))
            .and_then(|_| file.read_to_end(&mut bytes))
            .with_context(|| format!("reading {}", self.path.display()))?;
        self.offset += bytes.len() as u64;
        self.begun.append(&mut bytes);
        let end = self.begun.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.begun.drain(..end).collect();
        Ok(String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_follower_goes_on_in_the_new_file_after_a_rotation() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("web.log");
        std::fs::write(&path, "old\n").expect("it is writable");
        let mut follower = Follower::at_end(&path).expect("it is there");
        let mut log = File::options().append(true).open(&path).expect("it is there");
        log.write_all(b"one\nand a ha").expect("it is writable");
        assert_eq!(follower.lines().expect("it is readable"), ["one"]);
        log.write_all(b"lf\n").expect("it is writable");
        assert_eq!(follower.lines().expect("it is readable"), ["and a half"]);
        std::fs::rename(&path, root.path().join("web.log.1")).expect("same directory");
        std::fs::write(&path, "two\n").expect("it is writable");
        assert_eq!(follower.lines().expect("it is readable"), ["two"]);
        let logs = [root.path().join("web.log.1"), path];
        assert_eq!(last_lines(&logs, 1).expect("it is readable"), ["two"]);
        assert_eq!(last_lines(&logs, 2).expect("it is readable"), ["and a half", "two"]);
    }
}
