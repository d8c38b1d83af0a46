//! Secrets of an application on this node: `/etc/farmctl/apps/NAME.env`, root's alone.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::error::refuse;
use crate::file;
use crate::layout::Layout;
use crate::manifest::Manifest;

/// Bytes of randomness in a generated secret.
const RANDOM: usize = 32;

/// Reads the file: `KEY=VALUE` lines, `#` comments, values as they stand or in quotes.
///
/// # Errors
/// When others may read it, or a line is no assignment.
pub fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let Some(text) = file::read_if_there(path)? else { return Ok(BTreeMap::new()) };
    let metadata = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    if metadata.uid() != 0 || metadata.mode() & 0o077 != 0 {
        return refuse(
            format_args!("{} can be read by others than root", path.display()),
            format!("chown root: {0} && chmod 600 {0}", path.display()),
        );
    }
    parse(&text).with_context(|| format!("reading {}", path.display()))
}

fn parse(text: &str) -> Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            // The line itself may be a secret: only its number is told.
            return refuse(
                format_args!("line {} is not KEY=VALUE", number + 1),
                "correct the file",
            );
        };
        let value = value.trim();
        let quoted = value.len() >= 2
            && ["\"", "'"].iter().any(|quote| value.starts_with(quote) && value.ends_with(quote));
        let value = if quoted { &value[1..value.len() - 1] } else { value };
        values.insert(key.trim().to_owned(), value.to_owned());
    }
    Ok(values)
}

/// Makes the random values the profile asks for, where the node has none. They stay
/// when the release goes: like data, they outlive it.
///
/// # Errors
/// When the file cannot be read or written.
pub fn generate(layout: &Layout, manifest: &Manifest) -> Result<()> {
    let path = layout.secrets(&manifest.name);
    let known = read(&path)?;
    let mut text = file::read_if_there(&path)?.unwrap_or_default();
    let before = text.len();
    for secret in manifest.profile.secrets.iter().filter(|secret| secret.generate) {
        if known.contains_key(&secret.name) {
            continue;
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("{}={}\n", secret.name, random()?));
    }
    if text.len() == before {
        return Ok(());
    }
    file::make_directory(path.parent().unwrap_or(Path::new("/")), 0o700)?;
    file::publish(&path, text.as_bytes(), 0o600)
}

fn random() -> Result<String> {
    let mut bytes = [0u8; RANDOM];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(crate::hash::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_be_quoted_and_a_bad_line_is_told_by_number_only() {
        let values = parse("# comment\nA=one two\nB=\"three=3\"\n").expect("all are assignments");
        assert_eq!(values["A"], "one two");
        assert_eq!(values["B"], "three=3");
        let error = parse("A=1\nhunter2\n").expect_err("line 2 is none");
        assert_eq!(error.to_string(), "line 2 is not KEY=VALUE");
    }
}
