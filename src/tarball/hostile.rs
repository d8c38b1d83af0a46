//! Tarballs that mean harm. Each is right in all but one thing, so that it is that thing
//! which is refused; each goes through opening, verifying, extracting and, as a plain
//! tar, restoring, in a directory whose surroundings are watched.

use std::io::Write as _;

use tar::Header;

use super::fixture::{
    Cage, EPOCH, Forgery, NET_RAW, draft, entry, file_entry, member, quiet, write_blocks,
};
use super::member::END;
use super::xz::{BlockWriter, Filter};
use super::{Archive, restore_tree};
use crate::hash::{hex, sha256};
use crate::manifest::{
    Capability, FileEntry, FileIndex, FileKind, Hashed, Payload, SCHEMA, Segment, SetId,
};

/// A header as the tar crate makes it, for what our own code would not.
fn header(name: &str, typeflag: u8, size: u64, link: &str) -> Header {
    let mut header = Header::new_ustar();
    let ustar = header.as_ustar_mut().expect("new_ustar makes one");
    ustar.name[..name.len()].copy_from_slice(name.as_bytes());
    ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.as_mut_bytes()[156] = typeflag;
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_device_major(0).expect("it fits");
    header.set_device_minor(0).expect("it fits");
    header.set_cksum();
    header
}

fn bytes_of(header: &Header) -> Vec<u8> {
    header.as_bytes().to_vec()
}

/// A pax header with these records before a member.
fn pax(records: &[u8], member: &[u8]) -> Vec<u8> {
    let mut bytes = bytes_of(&header("././@PaxHeader", b'x', records.len() as u64, ""));
    bytes.extend(records);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(member);
    bytes
}

/// Why these tar bytes are refused by the extractor alone.
fn restore_refusal(tar: &[u8]) -> String {
    let cage = Cage::new();
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(tar).expect("a file");
    let restored = restore_tree(&file, &cage.target(), &quiet);
    cage.assert_kept();
    format!("{:#}", restored.expect_err("restore took it"))
}

/// Checks that members no index can name are refused for this reason, in an archive
/// whose index says `a`, an empty file, and as a plain tar.
#[track_caller]
fn assert_refused(members: &[Vec<u8>], why: &str) {
    let plain = restore_refusal(&[members.concat(), END.to_vec()].concat());
    assert!(plain.contains(why), "restore: {plain:?} is not about {why:?}");
    let mut forgery = Forgery::new(vec![file_entry("a", b"")], members);
    // The sizes must add up for the payload to be read at all.
    let size = 512 + END.len();
    if forgery.payload.len() == size {
        let refusal = forgery.refusal();
        assert!(refusal.contains(why), "extract: {refusal:?} is not about {why:?}");
    } else {
        assert!(forgery.refusal().contains("do not add up"));
        // The extractor must not rely on that.
        forgery.files = pad_index(forgery.payload.len() - END.len());
        let refusal = forgery.refusal();
        assert!(refusal.contains(why), "extract: {refusal:?} is not about {why:?}");
    }
}

/// An index whose members take this many bytes of tar.
fn pad_index(size: usize) -> Vec<FileEntry> {
    let name = |number: usize| format!("a{}", "a".repeat(number));
    (0..size / 512).map(|number| file_entry(&name(number), b"")).collect()
}

/// Checks that what an index can say is refused for this reason, with a payload that
/// agrees with the index, and as a plain tar.
#[track_caller]
fn assert_index_refused(files: &[FileEntry], why: &str) {
    let members: Vec<_> = files.iter().map(|entry| member(entry, b"")).collect();
    let forgery = Forgery::new(files.to_vec(), &members);
    let refusal = forgery.refusal();
    assert!(refusal.contains(why), "extract: {refusal:?} is not about {why:?}");
    let plain = restore_refusal(&forgery.payload);
    assert!(plain.contains(why), "restore: {plain:?} is not about {why:?}");
}

fn directory(path: &str) -> FileEntry {
    entry(path, FileKind::Directory, 0o755)
}

fn symlink(path: &str, target: &str) -> FileEntry {
    entry(path, FileKind::Symlink { target: target.to_owned() }, 0o777)
}

fn hard_link(path: &str, target: &str) -> FileEntry {
    entry(path, FileKind::HardLink { target: target.to_owned() }, 0o644)
}

#[test]
fn a_forgery_with_nothing_wrong_is_taken() {
    let files = [directory("d"), file_entry("d/a", b"hello"), hard_link("d/b", "d/a")];
    let members = [member(&files[0], b""), member(&files[1], b"hello"), member(&files[2], b"")];
    let forgery = Forgery::new(files.to_vec(), &members);
    let cage = Cage::new();
    let path = cage.target().with_file_name("secret");
    forgery.write(&path, |_| {});
    let archive = Archive::open(&path).expect("nothing wrong");
    archive.verify(1, &quiet).expect("nothing wrong");
    archive.extract(&cage.target(), 1, &quiet).expect("nothing wrong");
    assert_eq!(std::fs::read(cage.target().join("d/b")).expect("a file"), b"hello");
}

#[test]
fn devices_fifos_and_unknown_types_are_refused() {
    for (typeflag, why) in [
        (b'3', "a character device"),
        (b'4', "a block device"),
        (b'6', "a fifo"),
        (b'7', "a contiguous file"),
        (b'S', "a GNU sparse file"),
        (b'L', "a GNU long name"),
        (b'K', "a GNU long name"),
        (b'g', "a global extended header"),
        (b'V', "a member of type 'V'"),
        (b'D', "a member of type 'D'"),
        (0, "a member of type '\\0'"),
    ] {
        assert_refused(&[bytes_of(&header("a", typeflag, 0, ""))], why);
    }
}

#[test]
fn paths_that_leave_the_tree_are_refused() {
    for (path, why) in [
        ("/etc/passwd", "an absolute path"),
        ("..", r#"with ".." in it"#),
        ("../secret", r#"with ".." in it"#),
        ("a/../../secret", r#"with ".." in it"#),
        ("./a", r#"with "." in it"#),
        ("a//b", "an empty name"),
        ("a/", "an empty name"),
        (".farmctl", "reserved for farmctl"),
        (".farmctl/x", "reserved for farmctl"),
        ("lost+found", "lost+found is part of no tree"),
        ("missing/a", "its directory does not come before it"),
    ] {
        assert_index_refused(&[file_entry(path, b"")], why);
    }
    assert_index_refused(&[directory("")], "an empty path");
    assert_index_refused(&[file_entry(&"x".repeat(256), b"")], "a name of 256 bytes");
    let deep = "a/".repeat(32_000) + "a";
    assert_index_refused(&[file_entry(&deep, b"")], "a path of 64001 bytes");
}

#[test]
fn members_below_a_link_are_refused() {
    let cage = Cage::new();
    let outside = cage.target();
    let outside = outside.parent().and_then(|path| path.to_str()).expect("UTF-8");
    for target in [outside, "..", "d"] {
        let files = [symlink("link", target), file_entry("link/secret", b"")];
        assert_index_refused(&files, "what it lies in is a symbolic link");
    }
    let files = [file_entry("file", b""), file_entry("file/a", b"")];
    assert_index_refused(&files, "what it lies in is a file");
}

#[test]
fn duplicates_and_members_out_of_order_are_refused() {
    let why = "paths must ascend";
    assert_index_refused(&[file_entry("a", b""), file_entry("a", b"")], why);
    assert_index_refused(&[directory("a"), symlink("a", "/etc"), directory("a")], why);
    assert_index_refused(&[directory("a"), symlink("a", "/etc")], why);
    assert_index_refused(&[file_entry("b", b""), file_entry("a", b"")], why);
    let files = [directory("d"), file_entry("d/a", b""), file_entry("d-a", b"")];
    assert_index_refused(&files, why);
}

#[test]
fn hard_links_lead_to_earlier_regular_files_only() {
    let cage = Cage::new();
    let late = [hard_link("a", "b"), file_entry("b", b"")];
    assert_index_refused(&late, "does not come before it");
    assert_index_refused(&[hard_link("a", "a")], "does not come before it");
    for outside in ["/etc/passwd", "../secret", cage.secret().as_str()] {
        assert_index_refused(&[hard_link("a", outside)], "does not come before it");
    }
    let through = [symlink("a", &cage.secret()), hard_link("b", "a")];
    assert_index_refused(&through, "which is a symbolic link");
    assert_index_refused(&[directory("a"), hard_link("b", "a")], "which is a directory");
    let chain = [file_entry("a", b""), hard_link("b", "a"), hard_link("c", "b")];
    assert_index_refused(&chain, "which is a hard link");
    let other = FileEntry { mode: 0o600, ..hard_link("b", "a") };
    assert_index_refused(&[file_entry("a", b""), other], "another mode, owner or time");
}

#[test]
fn values_out_of_range_are_refused() {
    let file = || file_entry("a", b"");
    assert_index_refused(&[FileEntry { uid: 65_536, ..file() }], "beyond 65535");
    assert_index_refused(&[FileEntry { gid: 200_000, ..file() }], "beyond 65535");
    assert_index_refused(&[FileEntry { mode: 0o10_0644, ..file() }], "more than the permission");
    let link = FileEntry { mode: 0o644, ..symlink("a", "b") };
    assert_index_refused(&[link], "a symbolic link with mode 0644");
    assert_index_refused(&[symlink("a", "")], "a symbolic link to nothing");
}

#[test]
fn spoofed_extended_headers_are_refused() {
    let file = bytes_of(&header("a", b'0', 0, ""));
    // GNU tar reads a harmless link here, the tar crate a link to /etc/evil.
    let value = "a\n22 linkpath=/etc/evil\n";
    let record = format!(" SCHILY.xattr.security.capability={value}\n");
    let record = format!("{}{record}", record.len() + 2);
    let link = bytes_of(&header("a", b'2', 0, "harmless"));
    for member in [&link, &file] {
        let bytes = [pax(record.as_bytes(), member), END.to_vec()].concat();
        let refusal = restore_refusal(&bytes);
        assert!(refusal.contains("symbolic link") || refusal.contains("not of version 2"));
        let forgery = Forgery::new(pad_index(bytes.len() - END.len()), &[bytes]);
        forgery.refusal();
    }
    assert_refused(&[pax(b"9 path=b\n", &file)], "not as farmctl writes them");
    assert_refused(&[pax(b"9 path=b\n9 path=c\n", &file)], r#"says "path" twice"#);
    assert_refused(&[pax(b"11 mtime=9\n", &file)], r#"unknown key "mtime""#);
    assert_refused(&[pax(b"24 GNU.sparse.major=1.0\n", &file)], "unknown key");
    assert_refused(&[pax(b"11 size=12\n", &file)], "not as farmctl writes them");
    assert_refused(&[pax(b"99 path=b\n", &file)], "longer or shorter than it says");
    assert_refused(&[pax(b"9 path=a\n", &pax(b"9 path=b\n", &file))], "second extended header");
    assert_refused(&[pax(b"", &file)], "not as farmctl writes them");
    let huge = bytes_of(&header("././@PaxHeader", b'x', 200 << 20, ""));
    assert_refused(&[huge, file.clone()], "larger than 1048576 bytes");
    let huge = bytes_of(&header("././@LongLink", b'L', 200 << 20, ""));
    assert_refused(&[huge, file], "a GNU long name");
}

#[test]
fn numbers_in_other_notations_are_refused() {
    let refuse = |change: &dyn Fn(&mut [u8; 512])| {
        let mut header = header("a", b'0', 0, "");
        change(header.as_mut_bytes());
        header.set_cksum();
        restore_refusal(&[bytes_of(&header), END.to_vec()].concat())
    };
    // Base 256: minus one, and zero.
    refuse(&|bytes| bytes[124..136].fill(0xff));
    refuse(&|bytes| bytes[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\0\0\0\0\0"));
    refuse(&|bytes| bytes[108..116].copy_from_slice(b"\x80\0\0\0\0\0\0\0"));
    // Spaces for zeros, a sign, no digits, user names, a prefix, the GNU magic.
    refuse(&|bytes| bytes[124..136].copy_from_slice(b"          0\0"));
    refuse(&|bytes| bytes[124..136].copy_from_slice(b"-0000000001\0"));
    refuse(&|bytes| bytes[124..136].fill(0));
    refuse(&|bytes| bytes[265..269].copy_from_slice(b"root"));
    refuse(&|bytes| bytes[345..349].copy_from_slice(b"/etc"));
    refuse(&|bytes| bytes[257..265].copy_from_slice(b"ustar  \0"));
    let mut wrong = header("a", b'0', 0, "");
    wrong.as_mut_bytes()[148] ^= 1;
    restore_refusal(&[bytes_of(&wrong), END.to_vec()].concat());
}

#[test]
fn an_archive_that_ends_early_or_late_is_refused() {
    let file = member(&file_entry("a", b"hello"), b"hello");
    for (payload, why) in [
        (file.clone(), "ends before its end marker"),
        ([&file[..], &END[..512]].concat(), "ends before its end marker"),
        ([&file[..], &END[..512], &file, &END].concat(), "one block of zeros instead of two"),
        (file[..512].to_vec(), "ends in the middle of a file"),
        ([&file[..], &END, &END].concat(), "bytes follow the end marker"),
        ([&file[..], &END, &file].concat(), "bytes follow the end marker"),
        ([&file[..1000], b"hidden in pa", &END].concat(), "padding after a file is not zero"),
    ] {
        let refusal = restore_refusal(&payload);
        assert!(refusal.contains(why), "{refusal:?} is not about {why:?}");
        let mut forgery = Forgery::new(vec![file_entry("a", b"hello")], &[]);
        forgery.payload = payload;
        forgery.refusal();
    }
}

#[test]
fn a_payload_other_than_the_index_is_refused() {
    let content = file_entry("a", b"hello");
    let forge = |entry: &FileEntry, bytes: &[u8]| {
        Forgery::new(vec![content.clone()], &[member(entry, bytes)]).refusal()
    };
    assert!(forge(&content, b"hallo").contains("not what the file index says"));
    let refusal = forge(&file_entry("a", b"help"), b"help");
    assert!(refusal.contains("4 bytes instead of 5"), "{refusal}");
    let refusal = forge(&FileEntry { mode: 0o4755, ..content.clone() }, b"hello");
    assert!(refusal.contains("mode 4755 instead of 0644"), "{refusal}");
    let refusal = forge(&FileEntry { uid: 33, ..content.clone() }, b"hello");
    assert!(refusal.contains("owner 33:0 instead of 0:0"), "{refusal}");
    let refusal = forge(&FileEntry { mtime: 7, ..content.clone() }, b"hello");
    assert!(refusal.contains("time 7 instead of 0"), "{refusal}");
    let refusal = forge(&file_entry("b", b"hello"), b"hello");
    assert!(refusal.contains(r#""b" where "a" belongs"#), "{refusal}");
    let files = vec![symlink("l", "safe")];
    let refusal = Forgery::new(files, &[member(&symlink("l", "/etc"), b"")]).refusal();
    assert!(refusal.contains(r#"link to "/etc" instead of "safe""#), "{refusal}");
}

#[test]
fn set_id_and_capabilities_must_be_listed() {
    let su = FileEntry { mode: 0o4755, ..file_entry("su", b"") };
    let mut forgery = Forgery::new(vec![su.clone()], &[member(&su, b"")]);
    assert!(forgery.refusal().contains(r#"does not list "su" with mode 4755"#));
    forgery.set_id = vec![SetId { path: "su".to_owned(), mode: 0o4755, uid: 33, gid: 0 }];
    assert!(forgery.refusal().contains("other set-id files than the file index has"));
    let plain = file_entry("su", b"");
    let mut forgery = Forgery::new(vec![plain.clone()], &[member(&plain, b"")]);
    forgery.set_id = vec![SetId { path: "su".to_owned(), mode: 0o4755, uid: 0, gid: 0 }];
    assert!(forgery.refusal().contains("other set-id files than the file index has"));

    let ping = file_entry("ping", b"");
    let with = |value: &[u8]| super::member::Member::of_entry(&ping, Some(value.to_vec())).encode();
    let listed = |value: &[u8]| vec![Capability { path: "ping".to_owned(), value: hex(value) }];
    // In the payload and not in the manifest: the sizes tell.
    let forgery = Forgery::new(vec![ping.clone()], &[with(NET_RAW)]);
    assert!(forgery.refusal().contains("do not add up"));
    let mut forgery = Forgery::new(vec![ping.clone()], &[with(NET_RAW)]);
    let mut other = NET_RAW.to_vec();
    other[4] ^= 1;
    forgery.capabilities = listed(&other);
    assert!(forgery.refusal().contains("capabilities 01000002"));
    // Version 3 names a user namespace's root.
    let mut third = [NET_RAW, &[0; 4]].concat();
    third[3] = 3;
    let mut forgery = Forgery::new(vec![ping.clone()], &[with(&third)]);
    forgery.capabilities = listed(&third);
    assert!(forgery.refusal().contains("not of version 2"));
    let mut forgery = Forgery::new(vec![symlink("ping", "x")], &[]);
    forgery.capabilities = listed(NET_RAW);
    assert!(forgery.refusal().contains("which is not a file"));
}

#[test]
fn a_manifest_that_contradicts_the_rest_is_refused() {
    let file = file_entry("a", b"hello");
    let forgery = Forgery::new(vec![file.clone()], &[member(&file, b"hello")]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("forged.tar.xz");
    let refusal = |touch: &dyn Fn(&mut crate::manifest::Manifest)| {
        forgery.write(&path, touch);
        let refused = Archive::open(&path).and_then(|archive| archive.verify(1, &quiet));
        format!("{:#}", refused.expect_err("it contradicts"))
    };
    for (touch, why) in [
        (
            (|manifest| manifest.schema = 2) as fn(&mut crate::manifest::Manifest),
            "made by a newer farmctl (schema 2, this one reads 1)",
        ),
        (|manifest| manifest.schema = 0, "schema 0, which never was"),
        (|manifest| manifest.epoch = -1, "not the manifest's epoch"),
        (|manifest| manifest.files.size += 1, "not the one the manifest names"),
        (|manifest| manifest.files.sha256.clear(), "not the one the manifest names"),
        (|manifest| manifest.payload.entries += 1, "counts 2 members"),
        (|manifest| manifest.payload.size += 512, "do not add up"),
        (|manifest| manifest.payload.content += 1, "do not add up"),
        (|manifest| manifest.payload.content = u64::MAX, "its payload is larger than"),
        (|manifest| manifest.payload.size = u64::MAX, "its payload is larger than"),
        (|manifest| manifest.payload.sha256.clear(), "payload's SHA-256"),
        (|manifest| manifest.segments.clear(), "counts 0 segments, the file has 1"),
        (|manifest| manifest.segments[0].size = u64::MAX, "segment 1 has other sizes"),
        (|manifest| manifest.segments[0].xz_size -= 4, "segment 1 has other sizes"),
        (|manifest| manifest.segments[0].sha256.clear(), "not the ones that were packed"),
    ] {
        let refusal = refusal(&touch);
        assert!(refusal.contains(why), "{refusal:?} is not about {why:?}");
    }
    let late = FileEntry { mtime: EPOCH + 1, ..file };
    let forgery = Forgery::new(vec![late.clone()], &[member(&late, b"hello")]);
    assert!(forgery.refusal().contains("after the manifest's epoch"));
}

#[test]
fn a_manifest_whose_words_would_become_paths_or_commands_is_refused() {
    let file = file_entry("a", b"hello");
    let forgery = Forgery::new(vec![file.clone()], &[member(&file, b"hello")]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("forged.tar.xz");
    for (touch, why) in [
        // The version is a directory's name beneath /var/lib/farmctl, and a volume's.
        (
            (|manifest| manifest.version = "../../../../etc/cron.d".to_owned())
                as fn(&mut crate::manifest::Manifest),
            r#"its version is "../../../../etc/cron.d", its profile's "1.4.2""#,
        ),
        (
            |manifest| {
                manifest.version = "../x".to_owned();
                manifest.profile.version = manifest.version.clone();
            },
            r#"its profile: "version": "../x" is not a version"#,
        ),
        (
            |manifest| {
                manifest.name = "env-x".to_owned();
                manifest.profile.name = manifest.name.clone();
            },
            r#"its profile: "name": "env-x" begins with "env-""#,
        ),
        (|manifest| manifest.name = "other".to_owned(), r#"its name is "other""#),
        (|manifest| manifest.architecture = "amd64\n".to_owned(), "not a Debian architecture"),
        (
            |manifest| manifest.profile.environment.user = "root:x".to_owned(),
            r#"its profile: "user" in [environment]: "root:x" is not"#,
        ),
        (
            |manifest| manifest.profile.description = "\u{1b}[2J✓ verified".to_owned(),
            "its profile: \"description\": must be one line without control characters",
        ),
        (
            |manifest| manifest.farmctl = "9\u{1b}]0;x".to_owned(),
            r#"its farmctl has "9\u{1b}]0;x", which is not a name or version"#,
        ),
        (
            |manifest| {
                let word = || "a\nb".to_owned();
                manifest.inputs.packages = vec![crate::manifest::Package {
                    name: word(),
                    version: word(),
                    architecture: word(),
                }];
            },
            r#"its inputs.packages has "a\nb""#,
        ),
    ] {
        forgery.write(&path, touch);
        let refused = Archive::open(&path).expect_err(why);
        let refused = format!("{refused:#}");
        assert!(refused.contains("checking the manifest: "), "{refused:?}");
        assert!(refused.contains(why), "{refused:?} is not about {why:?}");
    }
    let owner = crate::manifest::Owner::Package("\u{1b}[31m".to_owned());
    let owned = FileEntry { owner, ..file };
    let refusal = Forgery::new(vec![owned.clone()], &[member(&owned, b"hello")]).refusal();
    assert!(refusal.contains("not a name or version"), "{refusal}");
}

#[test]
fn a_bomb_is_stopped_by_its_sizes() {
    // A segment that says it holds a tebibyte, hash and block header in agreement, is
    // caught before anything of that size is made room for.
    let spool = tempfile::tempfile().expect("a temporary file");
    let mut writer = BlockWriter::new(&spool, 0, Filter::None).expect("an encoder");
    writer.write(&vec![0; 4 << 20]).expect("room");
    let (block, segment_sha256) = writer.finish().expect("room");
    let file = file_entry("a", b"");
    let index = FileIndex { schema: SCHEMA, files: vec![file] };
    let files = serde_json::to_vec(&index).expect("plain values");
    let manifest = crate::manifest::Manifest {
        files: Hashed { size: files.len() as u64, sha256: sha256(&files) },
        payload: Payload { size: 1536, sha256: String::new(), entries: 1, content: 0 },
        segments: vec![Segment {
            size: block.size,
            xz_size: block.xz_size(),
            sha256: segment_sha256,
        }],
        ..draft()
    };
    let bytes = serde_json::to_vec(&manifest).expect("plain values");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("bomb.tar.xz");
    write_blocks(&path, &bytes, &files, &[(&spool, block)]);
    let error = Archive::open(&path).expect_err("four MiB are not 1536 bytes");
    assert!(format!("{error:#}").contains("do not add up"), "{error:#}");
    // The same as a manifest: larger than a manifest may be.
    let large = vec![b' '; 2 << 20];
    write_blocks(&path, &large, &files, &[(&spool, block)]);
    let error = Archive::open(&path).expect_err("two MiB of manifest");
    assert!(format!("{error:#}").contains("larger than 1048576 bytes"), "{error:#}");
}
