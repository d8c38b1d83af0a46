//! What the tests of this folder share: a tree with one of everything, and a forger of
//! tarballs that are right in all but one thing.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::member::{END, Member, padded};
use super::pack::own_block;
use super::xz::{self, BlockWriter, Filter};
use super::{Archive, Packed, Scan, scan};
use crate::hash::sha256;
use crate::manifest::{
    Capability, FILES_MEMBER, FileEntry, FileIndex, FileKind, Hashed, Inputs, MANIFEST_MEMBER,
    Manifest, Owner, Payload, SCHEMA, Segment, SetId,
};

/// No file of a fixture is newer.
pub const EPOCH: i64 = 1_700_000_000;
/// cap_net_raw=ep with a newline and a zero in the middle, version 2.
pub const NET_RAW: &[u8] = b"\x01\0\0\x02\x0a\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Progress nobody looks at.
pub fn quiet(_: u64, _: u64) -> anyhow::Result<()> {
    Ok(())
}

/// A manifest that lacks what packing fills in.
pub fn draft() -> Manifest {
    let profile = serde_json::json!({
        "schema": 1, "name": "shop", "version": "1.4.2", "environment": { "suite": "bookworm" },
    });
    Manifest {
        schema: SCHEMA,
        farmctl: "0.1.0".to_owned(),
        name: "shop".to_owned(),
        version: "1.4.2".to_owned(),
        architecture: "amd64".to_owned(),
        epoch: EPOCH,
        serial: None,
        expires: None,
        derived: None,
        profile: serde_json::from_value(profile).expect("a minimal profile"),
        inputs: Inputs::default(),
        files: Hashed { size: 0, sha256: String::new() },
        payload: Payload { size: 0, sha256: String::new(), entries: 0, content: 0 },
        segments: Vec::new(),
        set_id: Vec::new(),
        capabilities: Vec::new(),
    }
}

/// Bytes that hardly compress, the same ones for the same seed.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(count)
    .collect()
}

/// A tree with one of everything a tarball may hold.
pub fn sample() -> TempDir {
    let tree = tempfile::tempdir().expect("a temporary directory");
    let at = |path: &str| tree.path().join(path);
    let write = |path: &str, content: &[u8], mode: u32| {
        fs::create_dir_all(at(path).parent().expect("a parent")).expect("a directory");
        fs::write(at(path), content).expect("a file");
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).expect("a mode");
    };
    write("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644);
    write("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o640);
    std::os::unix::fs::chown(at("etc/shadow"), Some(0), Some(42)).expect("root");
    write("usr/bin/ping", &noise(1, 3000), 0o755);
    xattr::set(at("usr/bin/ping"), "security.capability", NET_RAW).expect("root and xattrs");
    xattr::set(at("usr/bin/ping"), "user.comment", b"left behind").expect("xattrs");
    write("usr/bin/su", &noise(2, 2000), 0o4755);
    write("usr/bin/wall", &noise(3, 1000), 0o2755);
    std::os::unix::fs::chown(at("usr/bin/wall"), Some(0), Some(5)).expect("root");
    fs::set_permissions(at("usr/bin/wall"), fs::Permissions::from_mode(0o2755)).expect("a mode");
    write("usr/bin/perl", &noise(4, 5000), 0o755);
    fs::hard_link(at("usr/bin/perl"), at("usr/bin/perl5.36.0")).expect("a hard link");
    write("usr/lib/empty", b"", 0o600);
    write("usr/lib/block", &noise(5, 512), 0o444);
    write("usr/lib/large", &noise(6, 70_000), 0o644);
    write(&format!("usr/share/{}/{}.txt", "d".repeat(99), "é".repeat(100)), b"long", 0o644);
    write("usr/share/Főtanúsítvány.crt", b"certificate", 0o644);
    write("usr/share-doc", b"sorts before usr/share/", 0o644);
    symlink("usr/bin", at("bin")).expect("a link");
    symlink("/etc/../nowhere", at("etc/dangling")).expect("a link");
    symlink("x".repeat(300), at("usr/long-link")).expect("a link");
    fs::create_dir(at("tmp")).expect("a directory");
    fs::set_permissions(at("tmp"), fs::Permissions::from_mode(0o1777)).expect("a mode");
    fs::create_dir_all(at("var/mail")).expect("a directory");
    fs::set_permissions(at("var/mail"), fs::Permissions::from_mode(0o2775)).expect("a mode");
    fs::create_dir(at("lost+found")).expect("a directory");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_millis(86_400_500);
    File::open(at("etc/passwd")).and_then(|file| file.set_modified(old)).expect("a time");
    tree
}

/// Scans with an owner for everything.
pub fn scanned(tree: &Path) -> Scan {
    let owner = |path: &str| match path.strip_prefix("usr/bin/") {
        Some(name) => Owner::Package(name.to_owned()),
        None => Owner::Generated,
    };
    scan(tree, EPOCH, &owner, &quiet).expect("a tree without faults")
}

/// Packs with segments of 16 KiB.
pub fn packed(tree: &Path, out: &Path, threads: usize) -> Packed {
    let scan = scanned(tree);
    super::pack::pack_cut(tree, &scan, draft(), out, threads, None, &quiet, 16 << 10)
        .expect("a tree without faults")
}

/// The sample tree packed, in a directory of its own.
pub fn tarball() -> (TempDir, PathBuf, Packed) {
    let tree = sample();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("shop_1.4.2_amd64.tar.xz");
    let packed = packed(tree.path(), &path, 2);
    (directory, path, packed)
}

/// All there is to know about a tree, one line for each path.
pub fn describe(tree: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut directories = vec![tree.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(tree).expect("below the tree").display().to_string();
            if name == "lost+found" {
                continue;
            }
            let stat = path.symlink_metadata().expect("it is there");
            let what = if stat.is_dir() {
                directories.push(path.clone());
                String::new()
            } else if stat.is_symlink() {
                format!("{}", fs::read_link(&path).expect("a link").display())
            } else {
                let capability = xattr::get(&path, "security.capability").expect("xattrs");
                let content = sha256(&fs::read(&path).expect("a file"));
                format!("{} {content} {capability:?}", stat.nlink())
            };
            let (mode, uid, gid) = (stat.mode(), stat.uid(), stat.gid());
            lines.push(format!("{name} {mode:o} {uid}:{gid} {} {what}", stat.mtime()));
        }
    }
    lines.sort();
    lines
}

/// An empty directory inside one whose every change shows.
pub struct Cage {
    outer: TempDir,
}

impl Cage {
    pub fn new() -> Cage {
        let outer = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(outer.path().join("target")).expect("a directory");
        fs::write(outer.path().join("secret"), "untouched").expect("a file");
        fs::set_permissions(outer.path().join("secret"), fs::Permissions::from_mode(0o600))
            .expect("a mode");
        Cage { outer }
    }

    pub fn target(&self) -> PathBuf {
        self.outer.path().join("target")
    }

    /// The path of the file outside the target.
    pub fn secret(&self) -> String {
        self.outer.path().join("secret").to_str().expect("UTF-8").to_owned()
    }

    /// Checks that nothing outside the target is there, gone or changed.
    pub fn assert_kept(&self) {
        let mut names: Vec<_> = fs::read_dir(self.outer.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["secret", "target"]);
        let stat = fs::symlink_metadata(self.secret()).expect("the secret");
        assert_eq!((stat.mode() & 0o7777, stat.nlink()), (0o600, 1));
        assert_eq!(fs::read(self.secret()).expect("the secret"), b"untouched");
    }
}

/// A tarball whose manifest, segments and hashes fit whatever index and payload it is
/// given.
pub struct Forgery {
    pub files: Vec<FileEntry>,
    /// Tar, end marker included.
    pub payload: Vec<u8>,
    pub set_id: Vec<SetId>,
    pub capabilities: Vec<Capability>,
}

/// An entry of the index, root's.
pub fn entry(path: &str, kind: FileKind, mode: u32) -> FileEntry {
    let owner = Owner::Generated;
    FileEntry { path: path.to_owned(), kind, mode, uid: 0, gid: 0, mtime: 0, owner }
}

/// A file of the index with this content.
pub fn file_entry(path: &str, content: &[u8]) -> FileEntry {
    let kind = FileKind::File { size: content.len() as u64, sha256: sha256(content) };
    entry(path, kind, 0o644)
}

/// The bytes of a member: its headers, content and padding.
pub fn member(entry: &FileEntry, content: &[u8]) -> Vec<u8> {
    let mut bytes = Member::of_entry(entry, None).encode();
    bytes.extend(content);
    bytes.resize(padded(bytes.len() as u64) as usize, 0);
    bytes
}

impl Forgery {
    /// One whose payload is these members, each its headers, content and padding.
    pub fn new(files: Vec<FileEntry>, members: &[Vec<u8>]) -> Forgery {
        let payload = [members.concat(), END.to_vec()].concat();
        Forgery { files, payload, set_id: Vec::new(), capabilities: Vec::new() }
    }

    /// The manifest and the index's bytes, with nothing of the payload's segments.
    fn manifest(&self) -> (Manifest, Vec<u8>) {
        let index = FileIndex { schema: SCHEMA, files: self.files.clone() };
        let files = serde_json::to_vec(&index).expect("plain values");
        let content = self.files.iter().map(|entry| match entry.kind {
            FileKind::File { size, .. } => size,
            _ => 0,
        });
        let manifest = Manifest {
            files: Hashed { size: files.len() as u64, sha256: sha256(&files) },
            payload: Payload {
                size: self.payload.len() as u64,
                sha256: sha256(&self.payload),
                entries: self.files.len() as u64,
                content: content.sum(),
            },
            set_id: self.set_id.clone(),
            capabilities: self.capabilities.clone(),
            ..draft()
        };
        (manifest, files)
    }

    /// Writes it, with a last touch to the manifest.
    pub fn write(&self, path: &Path, touch: impl FnOnce(&mut Manifest)) {
        let (mut manifest, files) = self.manifest();
        let spool = tempfile::tempfile().expect("a temporary file");
        let mut writer = BlockWriter::new(&spool, 0, Filter::None).expect("an encoder");
        writer.write(&self.payload).expect("room");
        let (segment, sha256) = writer.finish().expect("room");
        let (size, xz_size) = (segment.size, segment.xz_size());
        manifest.segments = vec![Segment { size, xz_size, sha256 }];
        touch(&mut manifest);
        let bytes = serde_json::to_vec(&manifest).expect("plain values");
        write_blocks(path, &bytes, &files, &[(&spool, segment)]);
    }

    /// Writes it and tries to open and extract it; returns why that did not go.
    pub fn refusal(&self) -> String {
        let cage = Cage::new();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("forged.tar.xz");
        self.write(&path, |_| {});
        let verified = Archive::open(&path).and_then(|archive| archive.verify(1, &quiet));
        let extracted =
            Archive::open(&path).and_then(|archive| archive.extract(&cage.target(), 1, &quiet));
        cage.assert_kept();
        assert!(verified.is_err(), "verify took it");
        format!("{:#}", extracted.expect_err("extract took it"))
    }
}

/// Puts a tarball together from the bytes of its two first members and the blocks of
/// its payload.
pub fn write_blocks(path: &Path, manifest: &[u8], files: &[u8], payload: &[(&File, xz::Block)]) {
    let spool = tempfile::tempfile().expect("a temporary file");
    let first = own_block(&spool, 0, MANIFEST_MEMBER, manifest, EPOCH).expect("room");
    let second = own_block(&spool, first.xz_size(), FILES_MEMBER, files, EPOCH).expect("room");
    let blocks = [&[(&spool, first), (&spool, second)], payload].concat();
    xz::assemble(&File::create(path).expect("a file"), &blocks).expect("room");
}

/// Runs a program of the machine and returns what it wrote.
#[expect(clippy::disallowed_types, reason = "the tests ask other readers of the format")]
pub fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .arg(path)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.is_empty(), "{program}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a program is on PATH.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(std::ffi::OsStr::from_bytes(path.as_bytes()))
        .any(|directory| directory.join(program).exists())
}
