//! Readers fed with what nobody would write.
//!
//! Stable Rust has no coverage for a fuzzer to follow, but these readers say why they
//! refuse: an input with a reason that was not seen before is kept and changed further,
//! so the search gets behind one check after the other. Every accepted input must hold
//! what its reader promises. As a test each target runs a fixed number of times from a
//! fixed seed; `scripts/fuzz` runs it for as long as one likes.
//!
//! `tests/fuzz/TARGET` keeps inputs of earlier runs, one for a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};

use super::fixture::{Cage, quiet};
use super::member::{END, Members};
use super::rules::{Rules, check_index};
use super::{Archive, Opening, pax, restore_tree, save_tree, xz};
use crate::hash::sha256;
use crate::manifest::FileIndex;
use crate::profile;
use crate::release::{App, EnvironmentRecord};
use crate::settings::{Ground, Settings};
use crate::signature::{PublicKey, Signature};

/// Runs of a target as an ordinary test.
const RUNS: u64 = 4000;
/// Longest time one input may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most reasons that are told apart.
const REASONS: usize = 400;
/// Most inputs of one run that are kept on disk, the smallest ones.
const KEPT: usize = 12;
/// Largest input: the readers' own limits are met by other tests.
const SIZE: usize = 64 << 10;

/// Numbers that look random, the same ones for the same seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 16).expect("48 bits fit") % limit
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// A place in, and a length within, so many bytes.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = (length - start).min(1 << self.below(10));
        start..start + self.below(most + 1)
    }
}

/// What means something to one reader or another.
const WORDS: [&[u8]; 32] = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\n",
    b"\"",
    b"\\u0000",
    b"{",
    b"}",
    b"[[[[[[[[[[[[[[[[",
    b"]",
    b",",
    b":",
    b"null",
    b"-1",
    b"0",
    b"18446744073709551615",
    b"9223372036854775808",
    b"1e999",
    b"../",
    b"/",
    b"/etc/passwd",
    b".farmctl/",
    b"lost+found",
    b"path=",
    b"linkpath=",
    b"size=",
    b"SCHILY.xattr.security.capability=",
    b"ustar\x0000",
    b"00000000000\0",
    b"77777777777\0",
    "é\u{202e}".as_bytes(),
    b"\x1b[2J",
];

/// Another input, from those known.
fn mutate(dice: &mut Dice, pool: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = dice.pick(pool).clone();
    for _ in 0..1 << dice.below(4) {
        let range = dice.range(bytes.len());
        match dice.below(9) {
            0 | 1 if !bytes.is_empty() => {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1 << dice.below(8);
            }
            2 if !bytes.is_empty() => {
                let at = dice.below(bytes.len());
                bytes[at] = *dice.pick(&[0, 1, b' ', b'0', b'7', b'9', b'x', 0x7f, 0x80, 0xff]);
            }
            3 => drop(bytes.drain(range)),
            4 => {
                let copy = bytes[range].to_vec();
                let at = dice.below(bytes.len() + 1);
                drop(bytes.splice(at..at, copy));
            }
            5 => {
                let word = dice.pick(&WORDS).to_vec();
                let end = if dice.below(2) == 0 { range.start } else { range.end };
                drop(bytes.splice(range.start..end, word));
            }
            6 => {
                let other = dice.pick(pool);
                let piece = other[dice.range(other.len())].to_vec();
                drop(bytes.splice(range, piece));
            }
            7 => bytes.truncate(range.end),
            _ => {
                // Whole blocks of tar change places.
                let at = range.start / 512 * 512;
                let end = (at + 512).min(bytes.len());
                let block: Vec<u8> = bytes.drain(at.min(end)..end).collect();
                let to = (dice.below(bytes.len() / 512 + 1) * 512).min(bytes.len());
                drop(bytes.splice(to..to, block));
            }
        }
    }
    bytes.truncate(SIZE);
    bytes
}

/// A reason without what is different in every input: quoted words and numbers.
fn reason(error: &anyhow::Error) -> String {
    let mut quoted = None;
    let mut plain = String::new();
    let text = format!("{error:#}").replace("\\\"", "");
    for letter in text.chars().filter(|letter| letter.is_ascii() && !letter.is_ascii_digit()) {
        match quoted {
            Some(quote) if letter == quote => quoted = None,
            Some(_) => {}
            None if matches!(letter, '"' | '`') => quoted = Some(letter),
            None => plain.push(letter),
        }
    }
    // What is left of others' words in it makes reasons without end.
    plain.truncate(160);
    plain
}

/// One reader under test.
struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    /// Puts checksums right, which chance never would.
    mend: fn(&mut Vec<u8>),
    read: fn(&[u8]) -> Result<()>,
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
}

impl Target {
    fn run(self) {
        let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seconds: Option<u64> = setting("FARMCTL_FUZZ_SECONDS");
        let seed: u64 = setting("FARMCTL_FUZZ_SEED").unwrap_or(1);
        let mut kept: Vec<_> = fs::read_dir(directory(self.name))
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("an entry").path())
            .collect();
        kept.sort();
        let kept = kept.iter().map(|path| fs::read(path).expect("a file"));
        let mut pool: Vec<Vec<u8>> = self.seeds.iter().cloned().chain(kept).collect();
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for (number, input) in pool.iter().enumerate() {
            let outcome = self.judge(input);
            reasons.entry(outcome).or_insert(number);
        }
        let known: BTreeSet<String> = reasons.keys().cloned().collect();
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let began = Instant::now();
        let mut runs = 0;
        while seconds.map_or(runs < RUNS, |limit| began.elapsed().as_secs() < limit) {
            runs += 1;
            let mut input = mutate(&mut dice, &pool);
            if dice.below(4) > 0 {
                (self.mend)(&mut input);
            }
            let outcome = self.judge(&input);
            match reasons.get(&outcome) {
                Some(number) if input.len() >= pool[*number].len() => {}
                Some(number) if *number >= self.seeds.len() => pool[*number] = input,
                Some(_) => {}
                None if reasons.len() >= REASONS => {}
                None => {
                    reasons.insert(outcome, pool.len());
                    pool.push(input);
                }
            }
        }
        if std::env::var_os("FARMCTL_FUZZ_KEEP").is_some() {
            fs::create_dir_all(directory(self.name)).expect("a directory");
            let new = reasons.iter().filter(|(outcome, _)| !known.contains(*outcome));
            let mut new: Vec<_> = new.map(|(outcome, number)| (outcome, &pool[*number])).collect();
            new.sort_by_key(|(_, input)| input.len());
            for (outcome, input) in new.into_iter().take(KEPT) {
                let name = &sha256(outcome.as_bytes())[..16];
                fs::write(directory(self.name).join(name), input).expect("a file");
            }
        }
        if seconds.is_some() {
            let took = began.elapsed().as_secs_f64();
            let rate = runs as f64 / took;
            #[expect(clippy::print_stderr, reason = "scripts/fuzz shows it")]
            {
                eprintln!(
                    "{}: {runs} inputs in {took:.0} s ({rate:.0}/s), {} reasons",
                    self.name,
                    reasons.len()
                );
            }
        }
    }

    /// Reads an input; answers why it was refused, or that it was not.
    fn judge(&self, input: &[u8]) -> String {
        let began = Instant::now();
        let read = catch_unwind(AssertUnwindSafe(|| (self.read)(input)));
        let slow = began.elapsed() > PATIENCE;
        match read {
            Ok(result) if !slow => result.err().map_or("taken".to_owned(), |error| reason(&error)),
            _ => {
                let place = std::env::temp_dir().join(format!("farmctl-fuzz-{}", self.name));
                fs::write(&place, input).expect("room for the input");
                let what = if slow { "took too long" } else { "panicked or broke a promise" };
                panic!("{} {what}: its input is in {}", self.name, place.display());
            }
        }
    }
}

fn leave(_: &mut Vec<u8>) {}

/// A small tree with a bit of everything, as a plain tar.
fn small_tar() -> Vec<u8> {
    let tree = tempfile::tempdir().expect("a temporary directory");
    let at = |path: &str| tree.path().join(path);
    fs::create_dir_all(at("etc/x")).expect("a directory");
    fs::write(at("etc/passwd"), "root:x:0:0::/:\n").expect("a file");
    fs::write(at(&format!("etc/{}", "n".repeat(120))), "long").expect("a file");
    fs::hard_link(at("etc/passwd"), at("etc/passwd-")).expect("a link");
    std::os::unix::fs::symlink("../etc", at("etc/x/up")).expect("a link");
    fs::write(at("ping"), "ping").expect("a file");
    xattr::set(at("ping"), "security.capability", super::fixture::NET_RAW).expect("root");
    let mut tar = tempfile::tempfile().expect("a temporary file");
    save_tree(tree.path(), &mut tar, &quiet).expect("a tree without faults");
    read_all(&tar)
}

fn read_all(file: &fs::File) -> Vec<u8> {
    let size = file.metadata().expect("a file").len();
    let mut bytes = vec![0; usize::try_from(size).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("all of it");
    bytes
}

/// Right checksums for every block that looks like a header.
fn mend_tar(bytes: &mut Vec<u8>) {
    for block in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    if !bytes.ends_with(&END) {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(END);
    }
}

/// A right index and footer for the blocks the file seems to have, and right headers.
fn mend_xz(bytes: &mut Vec<u8>) {
    if let Some(tail) = xz::mended(bytes) {
        *bytes = tail;
    }
}

fn read_tar(input: &[u8]) -> Result<()> {
    let mut members = Members::new(input);
    let mut rules = Rules::default();
    let mut bytes = 0;
    while let Some(member) = members.next()? {
        let size = member.content();
        bytes += member.archived();
        members.content(size, &mut |_| Ok(()))?;
        rules.admit(member)?;
    }
    assert_eq!(bytes + END.len() as u64, input.len() as u64, "every byte was looked at");
    Ok(())
}

fn extract_tar(input: &[u8]) -> Result<()> {
    let cage = Cage::new();
    let mut file = tempfile::tempfile()?;
    file.write_all(input)?;
    let restored = restore_tree(&file, &cage.target(), &quiet);
    cage.assert_kept();
    restored?;
    // What was taken is what is there, down to the byte.
    let mut again = tempfile::tempfile()?;
    save_tree(&cage.target(), &mut again, &quiet)?;
    assert_eq!(read_all(&again), input, "extracting and saving again gives the same bytes");
    Ok(())
}

fn read_xz(input: &[u8]) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    file.write_all(input)?;
    for block in xz::read_layout(&file)? {
        ensure!(block.size < 16 << 20, "too large to be tried");
        xz::decode(&file, block, None, &mut |_| Ok(()))?;
    }
    Ok(())
}

fn open_archive(input: &[u8]) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(input)?;
    let context = "reading";
    let opened = Archive::open(file.path()).map_err(|error| {
        // The temporary name would make every reason another one.
        anyhow::anyhow!(
            "{}",
            error.chain().skip(1).map(ToString::to_string).collect::<Vec<_>>().join(": ")
        )
    });
    // Out of a pipe it says the same.
    if let Ok(archive) = &opened {
        let mut rest = input;
        let mut source = |bytes: &mut [u8]| Ok(rest.read(bytes)?);
        let opening = Opening::read(&mut source).expect("it was opened as a file");
        assert_eq!(opening.files(), archive.files());
        assert_eq!(opening.manifest_bytes(), archive.manifest_bytes());
        assert_eq!(input.len() - rest.len(), usize::try_from(opening.size()).expect("small"));
    } else {
        let mut rest = input;
        drop(Opening::read(&mut |bytes: &mut [u8]| Ok(rest.read(bytes)?)));
    }
    opened.context(context)?.verify(1, &quiet)
}

/// Reads JSON; what was taken must read back as itself.
fn json<T: DeserializeOwned + Serialize + PartialEq>(input: &[u8]) -> Result<T> {
    let value: T = serde_json::from_slice(input)?;
    let again: T = serde_json::from_slice(&serde_json::to_vec(&value)?).expect("as written");
    assert!(again == value, "it reads back as itself");
    Ok(value)
}

fn small_archive() -> Vec<u8> {
    let tree = tempfile::tempdir().expect("a temporary directory");
    fs::write(tree.path().join("a"), "hello").expect("a file");
    let out = tree.path().with_extension("tar.xz");
    super::fixture::packed(tree.path(), &out, 1);
    let bytes = fs::read(&out).expect("a file");
    fs::remove_file(out).expect("it was made");
    bytes
}

fn profiles() -> Vec<Vec<u8>> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    let read = |name: &str| fs::read(shipped.join(name).join("profile.toml")).expect("shipped");
    vec![read("hello"), read("mezzanine")]
}

#[test]
fn tar_reader() {
    let seeds = vec![small_tar(), END.to_vec()];
    Target { name: "tar_reader", seeds, mend: mend_tar, read: read_tar }.run();
}

#[test]
fn extractor() {
    let seeds = vec![small_tar(), END.to_vec()];
    Target { name: "extractor", seeds, mend: mend_tar, read: extract_tar }.run();
}

#[test]
fn pax_records() {
    let mut seed = Vec::new();
    pax::push_record(&mut seed, "path", &[b'p'; 120]);
    pax::push_record(&mut seed, pax::CAPABILITY, super::fixture::NET_RAW);
    let read = |input: &[u8]| pax::parse_records(input).map(drop);
    Target { name: "pax_records", seeds: vec![seed], mend: leave, read }.run();
}

#[test]
fn xz_index() {
    let seeds = vec![small_archive()];
    Target { name: "xz_index", seeds, mend: mend_xz, read: read_xz }.run();
}

#[test]
fn archive() {
    let seeds = vec![small_archive()];
    Target { name: "archive", seeds, mend: mend_xz, read: open_archive }.run();
}

#[test]
fn manifest() {
    let (_directory, _, packed) = super::fixture::tarball();
    let seeds = vec![serde_json::to_vec(&packed.manifest).expect("plain values")];
    let read = |input: &[u8]| {
        let manifest = crate::manifest::parse(input)?;
        manifest.validate()?;
        json::<crate::manifest::Manifest>(input).map(drop)
    };
    Target { name: "manifest", seeds, mend: leave, read }.run();
}

#[test]
fn file_index() {
    let (_directory, path, _) = super::fixture::tarball();
    let archive = Archive::open(&path).expect("as packed");
    let seeds = vec![serde_json::to_vec(archive.files()).expect("plain values")];
    let read = |input: &[u8]| check_index(&json::<FileIndex>(input)?);
    Target { name: "file_index", seeds, mend: leave, read }.run();
}

#[test]
fn profile_reader() {
    let read = |input: &[u8]| {
        let text = std::str::from_utf8(input)?;
        let read = profile::parse(text)?;
        read.validate().expect("what is parsed is checked");
        Ok(())
    };
    Target { name: "profile_reader", seeds: profiles(), mend: leave, read }.run();
}

#[test]
fn state_readers() {
    let release = serde_json::json!({
        "version": "1.0", "identity": "00", "storage": "directory", "volume": "fv-shop-1.0", "installed": 7,
    });
    let app = serde_json::json!({
        "schema": 1, "name": "shop", "uid": 200_000, "releases": [release], "current": "1.0",
        "previous": null, "session": { "name": "fs-shop-1", "version": "1.0", "begun": 8 },
    });
    let environment = serde_json::json!({
        "schema": 1, "name": "shop", "inputs": "00", "storage": "lvm", "volume": "fv-env-shop",
        "suite": "bookworm", "architecture": "amd64", "epoch": 7, "releases": [], "made": 9,
    });
    let ground = serde_json::json!({
        "schema": 1, "backend": "lvm", "base": { "file": { "path": "/x", "size": "20G" } }, "group": "farmctl", "node": "0",
    });
    let settings = b"schema = 1\nstorage = \"lvm\"\nvolume-group = \"vg0\"\nvolume-size = \"4G\"\n";
    let seeds = [app, environment, ground].map(|value| value.to_string().into_bytes());
    let seeds = seeds.into_iter().chain([settings.to_vec()]).collect();
    let read = |input: &[u8]| {
        let text = std::str::from_utf8(input)?;
        let known = [
            json::<App>(input).map(drop),
            json::<EnvironmentRecord>(input).map(drop),
            json::<Ground>(input).map(drop),
            toml::from_str::<Settings>(text).map(drop).map_err(Into::into),
            crate::lockfile::LockFile::parse(text).map(drop),
        ];
        let reasons: Vec<_> =
            known.iter().map(|one| one.as_ref().err().map_or("taken".to_owned(), reason)).collect();
        // All five count: one that changes is worth following.
        ensure!(reasons.iter().any(|one| one == "taken"), "{}", reasons.join(" | "));
        Ok(())
    };
    Target { name: "state_readers", seeds, mend: leave, read }.run();
}

#[test]
fn keys_and_signatures() {
    // From minisign's documentation: random ones would make every run another.
    let public = "untrusted comment: minisign public key E7620F1842B4E81F\n\
        RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";
    let signature = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1556193335\tfile:test\n\
        y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n";
    let seeds = [signature, public, "RWQAAEIyAAAAAAAA\n"].map(|text| text.as_bytes().to_vec());
    let read = |input: &[u8]| {
        let text = std::str::from_utf8(input)?;
        let key = PublicKey::parse("RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3");
        let key = key.expect("a key");
        drop(crate::signature::SecretKey::parse(text, None));
        if PublicKey::parse(text).is_ok() {
            return Ok(());
        }
        let signature = Signature::parse(text)?;
        assert!(!key.verifies(b"hello", &signature), "nobody has the key to this one");
        Ok(())
    };
    let target = Target { name: "keys_and_signatures", seeds: seeds.into(), mend: leave, read };
    target.run();
}
