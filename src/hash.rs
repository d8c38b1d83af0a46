//! SHA-256 as hexadecimal text.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of some bytes.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    format(&Sha256::digest(bytes))
}

/// The SHA-256 of a file's contents.
///
/// # Errors
/// When it cannot be read.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0u8; 256 << 10];
    loop {
        let count = file.read(&mut chunk).with_context(|| format!("reading {}", path.display()))?;
        if count == 0 {
            return Ok(format(&hasher.finalize()));
        }
        hasher.update(&chunk[..count]);
    }
}

fn format(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
