//! The tarball as a whole: what goes in comes out, and other programs agree.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::fixture::{
    Cage, EPOCH, NET_RAW, describe, has, noise, packed, quiet, run, sample, scanned, tarball,
};
use super::{Archive, Difference, compare, pack, restore_tree, save_tree, scan};
use crate::error::{Exit, exit_of, hint_of, interrupted};
use crate::hash::{hex, sha256};
use crate::manifest::{FileKind, Owner};

fn open(path: &Path) -> Archive {
    Archive::open(path).expect("a tarball without faults")
}

/// Why a file is refused, by whichever of opening and verifying does.
fn refusal(path: &Path) -> String {
    let cage = Cage::new();
    let extracted =
        Archive::open(path).and_then(|archive| archive.extract(&cage.target(), 2, &quiet));
    cage.assert_kept();
    assert!(extracted.is_err(), "extract took it");
    let verified = Archive::open(path).and_then(|archive| archive.verify(2, &quiet));
    format!("{:#}", verified.expect_err("verify took it"))
}

#[test]
fn extracting_and_packing_again_gives_the_same_bytes() {
    let (directory, path, packed) = tarball();
    let archive = open(&path);
    assert_eq!(archive.identity(), packed.identity);
    assert_eq!(archive.identity(), sha256(archive.manifest_bytes()));
    assert_eq!(archive.manifest(), &packed.manifest);
    assert_eq!(archive.size(), packed.size);
    archive.verify(2, &quiet).expect("as packed");
    let target = tempfile::tempdir().expect("a temporary directory");
    archive.extract(target.path(), 2, &quiet).expect("as packed");
    let again = directory.path().join("again.tar.xz");
    super::fixture::packed(target.path(), &again, 1);
    assert!(fs::read(path).expect("a file") == fs::read(again).expect("a file"));
}

#[test]
fn an_extracted_tree_is_the_tree_that_was_packed() {
    let tree = sample();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("a.tar.xz");
    packed(tree.path(), &path, 2);
    let target = tempfile::tempdir().expect("a temporary directory");
    open(&path).extract(target.path(), 2, &quiet).expect("as packed");
    // Only times move: to the epoch, where they were later.
    let clamp = |line: String| {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let time: i64 = words[3].parse().expect("a time");
        words[3] = time.min(EPOCH).to_string();
        words.join(" ")
    };
    let before: Vec<String> = describe(tree.path()).into_iter().map(clamp).collect();
    assert_eq!(describe(target.path()), before);
    let line = |name: &str| before.iter().find(|line| line.starts_with(name)).expect("a line");
    assert!(line("usr/bin/su ").starts_with("usr/bin/su 104755 0:0 "));
    assert!(line("usr/bin/wall ").starts_with("usr/bin/wall 102755 0:5 "));
    assert!(line("usr/bin/ping ").contains("Some([1, 0, 0, 2, 10, 32, "));
    assert!(line("usr/bin/perl ").contains(" 2 "));
    assert!(line("etc/passwd ").starts_with("etc/passwd 100644 0:0 86400 "));
    assert!(line("tmp ").starts_with("tmp 41777 "));
    let attributes = xattr::list(target.path().join("usr/bin/ping")).expect("xattrs");
    assert_eq!(attributes.collect::<Vec<_>>(), ["security.capability"]);
}

#[test]
fn one_two_and_three_threads_give_the_same_bytes() {
    let tree = sample();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let bytes: Vec<Vec<u8>> = (1..=3)
        .map(|threads| {
            let path = directory.path().join(threads.to_string());
            packed(tree.path(), &path, threads);
            fs::read(path).expect("a file")
        })
        .collect();
    assert!(bytes[0] == bytes[1] && bytes[0] == bytes[2]);
}

#[test]
fn set_id_files_and_capabilities_are_listed() {
    let tree = sample();
    let scan = scanned(tree.path());
    let listed: Vec<_> = scan.set_id.iter().map(|one| (one.path.as_str(), one.mode)).collect();
    assert_eq!(listed, [("usr/bin/su", 0o4755), ("usr/bin/wall", 0o2755)]);
    assert_eq!(scan.capabilities.len(), 1);
    assert_eq!(scan.capabilities[0].path, "usr/bin/ping");
    assert_eq!(scan.capabilities[0].value, hex(NET_RAW));
    let entry = |path: &str| {
        let found = scan.index.files.iter().find(|entry| entry.path == path);
        found.expect("it is in the tree").clone()
    };
    let target = "usr/bin/perl".to_owned();
    assert_eq!(entry("usr/bin/perl5.36.0").kind, FileKind::HardLink { target });
    assert_eq!(entry("usr/bin/su").owner, Owner::Package("su".to_owned()));
    assert_eq!(entry("etc/passwd").mtime, 86_400);
    let names: Vec<_> = scan.index.files.iter().map(|entry| entry.path.as_str()).collect();
    assert!(names.is_sorted() && !names.contains(&"lost+found"));
    let at = |name| names.iter().position(|other| *other == name).expect("it is in the tree");
    assert!(at("usr/share") < at("usr/share-doc"));
    assert!(at("usr/share-doc") < at("usr/share/Főtanúsítvány.crt"));
}

#[test]
fn other_programs_list_the_same_members() {
    let (directory, path, packed) = tarball();
    let archive = open(&path);
    let mut expected = vec![".farmctl/manifest.json".to_owned(), ".farmctl/files.json".to_owned()];
    expected.extend(archive.files().files.iter().map(|entry| match entry.kind {
        FileKind::Directory => format!("{}/", entry.path),
        _ => entry.path.clone(),
    }));
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    run("xz", &["-t"], &path);
    let listed = run("xz", &["--robot", "--list"], &path);
    let blocks = packed.manifest.segments.len() + 2;
    assert!(blocks > 4, "the fixture fills several segments");
    assert!(listed.contains(&format!("\nfile\t1\t{blocks}\t")), "{listed}");
    assert!(listed.contains("\tCRC64\t"), "{listed}");
    assert_eq!(lines(run("tar", &["--quoting-style=literal", "-tJf"], &path)), expected);
    let piped = "xz -T0 -dc \"$0\" | tar --quoting-style=literal -tf -";
    assert_eq!(lines(run("sh", &["-c", piped], &path)), expected);
    let python = "import sys, tarfile\nfor m in tarfile.open(sys.argv[1]):\n \
                  print(m.name + '/' * m.isdir())";
    assert_eq!(lines(run("python3", &["-c", python], &path)), expected);
    if has("bsdtar") {
        assert_eq!(lines(run("bsdtar", &["-tf"], &path)), expected);
    }
    // What GNU tar extracts is what we extract, extended attributes included.
    let (ours, theirs) = (directory.path().join("ours"), directory.path().join("theirs"));
    fs::create_dir(&ours).and_then(|()| fs::create_dir(&theirs)).expect("directories");
    archive.extract(&ours, 1, &quiet).expect("as packed");
    let into = theirs.to_str().expect("UTF-8");
    let flags = ["--numeric-owner", "-p", "--xattrs", "--xattrs-include=*", "-C", into];
    // Without it GNU tar gives a directory its time before its last member is there,
    // where a sibling's name sorts in between: usr/share, usr/share-doc, usr/share/x.
    let flags = [&flags[..], &["--delay-directory-restore", "-xJf"]].concat();
    run("tar", &flags, &path);
    fs::remove_dir_all(theirs.join(".farmctl")).expect("extracted by tar");
    assert_eq!(describe(&ours), describe(&theirs));
}

#[test]
fn the_tar_stream_is_the_one_it_always_was() {
    // Whatever changes it makes every release another one: say so in the release notes.
    let (_directory, _, packed) = tarball();
    assert_eq!(
        packed.manifest.payload.sha256,
        "53afcd17de56aa28e9d334f522e210ef310ef34a10973e0b5a0b71f76ae3ee69"
    );
}

#[test]
fn an_empty_tree_makes_a_tarball_too() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("empty.tar.xz");
    let tree = tempfile::tempdir().expect("a temporary directory");
    let packed = packed(tree.path(), &path, 2);
    assert_eq!(packed.manifest.payload.size, 1024);
    let target = tempfile::tempdir().expect("a temporary directory");
    open(&path).extract(target.path(), 2, &quiet).expect("as packed");
    assert!(describe(target.path()).is_empty());
}

#[test]
fn segments_compressed_before_give_the_same_bytes() {
    let tree = tempfile::tempdir().expect("a temporary directory");
    for number in 0..60 {
        let name = tree.path().join(format!("file-{number:02}"));
        fs::write(name, noise(number, 4_000)).expect("a file");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("tree.tar.xz");
    let segments = directory.path().join("segments");
    let cache = super::SegmentCache::at(segments.clone());
    let pack = |cache| {
        let (scan, draft) = (scanned(tree.path()), super::fixture::draft());
        super::pack::pack_cut(tree.path(), &scan, draft, &path, 2, cache, &quiet, 16 << 10)
            .expect("there is room");
        fs::read(&path).expect("it was packed")
    };
    let kept = || crate::file::names_in(&segments).expect("it is a directory").len();
    let fresh = pack(None);
    assert_eq!(kept(), 0);
    assert!(pack(Some(&cache)) == fresh);
    let before = kept();
    assert!(before > 6, "{before}");
    assert!(pack(Some(&cache)) == fresh);
    assert_eq!(kept(), before);

    fs::write(tree.path().join("file-30"), noise(99, 9_000)).expect("a file");
    let fresh = pack(None);
    assert!(pack(Some(&cache)) == fresh);
    assert!(kept() - before <= 2, "{} more", kept() - before);
}

#[test]
fn a_large_file_is_a_segment_of_its_own() {
    let (_directory, path, packed) = tarball();
    let large = packed.manifest.segments.iter().filter(|segment| segment.size >= 70_000);
    assert_eq!(large.map(|segment| segment.size).collect::<Vec<_>>(), [512 + 70_144]);
    assert_eq!(open(&path).files().files.len() as u64, packed.manifest.payload.entries);
}

#[test]
fn a_flipped_byte_anywhere_is_refused() {
    // A small tree: it is extracted some hundred times.
    let tree = tempfile::tempdir().expect("a temporary directory");
    for (name, size) in [("a", 700), ("b", 20_000), ("c", 0)] {
        fs::write(tree.path().join(name), noise(8, size)).expect("a file");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("small.tar.xz");
    let packed = packed(tree.path(), &path, 1);
    assert_eq!(packed.manifest.segments.len(), 3);
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("a file");
    // A prime number of steps meets headers, blocks, checks, index and footer.
    let step = usize::try_from(packed.size).expect("small") / 199;
    let ends = (0..30).chain(packed.size - 30..packed.size);
    for at in (0..packed.size).step_by(step).chain(ends) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("within the file");
        file.write_all_at(&[byte[0] ^ (1 << (at % 8))], at).expect("a byte");
        refusal(&path);
        file.write_all_at(&byte, at).expect("a byte");
    }
    open(&path).verify(1, &quiet).expect("whole again");
}

#[test]
fn a_tarball_cut_short_is_refused_where_it_ends() {
    let (_directory, path, packed) = tarball();
    let bytes = fs::read(&path).expect("a file");
    let blocks = super::xz::read_layout(&File::open(&path).expect("a file")).expect("as packed");
    let mut cuts: Vec<u64> =
        blocks.iter().flat_map(|block| [block.at, block.at + 4, block.at + 40]).collect();
    let end = blocks.last().map(|block| block.at + block.xz_size()).expect("blocks");
    cuts.extend(end..packed.size);
    cuts.extend([1, 6, 11]);
    for cut in cuts {
        fs::write(&path, &bytes[..usize::try_from(cut).expect("small")]).expect("a file");
        let refusal = refusal(&path);
        assert!(refusal.contains(&format!("cut short at byte {cut}")), "{cut}: {refusal}");
    }
    fs::write(&path, b"").expect("a file");
    assert!(refusal(&path).contains("not an .xz file"));
}

#[test]
fn anything_after_the_end_is_refused() {
    let (_directory, path, _) = tarball();
    let bytes = fs::read(&path).expect("a file");
    for rest in [&b"\0"[..], &[0; 4], b"garbage", &bytes] {
        fs::write(&path, [&bytes, rest].concat()).expect("a file");
        let refusal = refusal(&path);
        let count = rest.len();
        let follow =
            if count == 1 { "1 byte follows".to_owned() } else { format!("{count} bytes follow") };
        assert!(refusal.contains(&format!("{follow} the end")), "{refusal}");
    }
}

#[test]
fn other_files_are_told_apart() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("other");
    fs::write(&path, "PK\x03\x04 and so on, for longer than a header").expect("a file");
    assert!(refusal(&path).contains("not an .xz file"));
    for (bytes, kind) in [
        (&b"PK\x03\x04\x14"[..], "a zip file"),
        (b"\x1f\x8b\x08\0", "a gzip file"),
        (b"\x28\xb5\x2f\xfd\x24", "a zstd file"),
        (b"BZh91AY", "a bzip2 file"),
        (b"!<arch>\ndebian-binary", "a Debian package"),
        (b" <!DOCTYPE html><title>Sign in</title>", "a web page"),
        (&[&[b'a'; 257][..], b"ustar\x0000"].concat(), "a tar that is not compressed"),
    ] {
        fs::write(&path, bytes).expect("a file");
        let refusal = refusal(&path);
        assert!(refusal.ends_with(&format!("not an .xz file but {kind}")), "{refusal}");
    }
    let plain = directory.path().join("plain");
    fs::write(&plain, "hello").expect("a file");
    let here = directory.path().to_str().expect("UTF-8");
    run("tar", &["-C", here, "-cJ", "plain", "-f"], &path);
    let refusal = refusal(&path);
    let words = "not a farmctl node tarball: the first member is plain";
    assert!(refusal.contains(words), "{refusal}");
}

/// What Python's lzma makes of a payload: the variants of the format we never write.
#[test]
fn streams_other_programs_would_read_and_farmctl_does_not_write_are_refused() {
    let (directory, path, _) = tarball();
    let tar = directory.path().join("tar");
    let into = tar.to_str().expect("UTF-8");
    let python = "import lzma, sys\n\
        tar = lzma.open(sys.argv[-1]).read()\n\
        open(sys.argv[1], 'wb').write(tar)\n\
        lzma2 = {'id': lzma.FILTER_LZMA2, 'preset': 6}\n\
        x = lambda name, *a, **k: open(sys.argv[1] + name, 'wb').write(lzma.compress(tar, *a, **k))\n\
        x('.crc32', check=lzma.CHECK_CRC32)\n\
        x('.none', check=lzma.CHECK_NONE)\n\
        x('.sha256', check=lzma.CHECK_SHA256)\n\
        x('.whole', check=lzma.CHECK_CRC64)\n\
        x('.delta', filters=[{'id': lzma.FILTER_DELTA, 'dist': 1}, lzma2])\n\
        x('.x86', filters=[{'id': lzma.FILTER_X86}, lzma2])\n\
        x('.dict', filters=[{'id': lzma.FILTER_LZMA2, 'dict_size': 1 << 30}])\n\
        x('.legacy', lzma.FORMAT_ALONE)\n\
        ours = open(sys.argv[-1], 'rb').read()\n\
        open(sys.argv[1] + '.first', 'wb').write(lzma.compress(b'') + ours)\n\
        open(sys.argv[1] + '.twice', 'wb').write(ours + ours)\n";
    run("python3", &["-c", python, into], &path);
    for (name, why) in [
        ("crc32", "the xz stream at byte 0 is damaged, or another program compressed it"),
        ("none", "the xz stream at byte 0 is damaged"),
        ("sha256", "the xz stream at byte 0 is damaged"),
        ("whole", "the xz stream at byte 12 is damaged"),
        ("delta", "the xz stream at byte 12 is damaged"),
        ("x86", "the xz stream at byte 12 is damaged"),
        ("dict", "the xz stream at byte 12 is damaged"),
        ("legacy", "not an .xz file but an .lzma file"),
        ("first", "bytes follow the end of the tarball at byte 32"),
        ("twice", "bytes follow the end of the tarball"),
    ] {
        let refusal = refusal(&tar.with_extension(name));
        assert!(refusal.contains(why), "{name}: {refusal}");
    }
}

#[test]
fn a_flipped_byte_at_two_thousand_places_of_two_megabytes_is_refused() {
    let tree = tempfile::tempdir().expect("a temporary directory");
    for number in 0..40 {
        let content = noise(100 + number, 52_000);
        fs::write(tree.path().join(format!("{number:02}")), content).expect("a file");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("two.tar.xz");
    let packed = packed(tree.path(), &path, 2);
    assert!(packed.size > 2_000_000, "{}", packed.size);
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("a file");
    for number in 0..2000 {
        let at = number * packed.size / 2000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("within the file");
        file.write_all_at(&[byte[0] ^ (1 << (number % 8))], at).expect("a byte");
        // What opening refuses, verifying and extracting never see.
        if let Ok(archive) = Archive::open(&path) {
            assert!(archive.verify(1, &quiet).is_err(), "byte {at}: verify took it");
            let cage = Cage::new();
            let extracted = archive.extract(&cage.target(), 1, &quiet);
            assert!(extracted.is_err(), "byte {at}: extract took it");
            cage.assert_kept();
        }
        file.write_all_at(&byte, at).expect("a byte");
    }
    open(&path).verify(1, &quiet).expect("whole again");
}

#[test]
fn saving_and_restoring_a_tree_keeps_everything() {
    let tree = sample();
    let mut saved = tempfile::tempfile().expect("a temporary file");
    save_tree(tree.path(), &mut saved, &quiet).expect("a tree without faults");
    let target = tempfile::tempdir().expect("a temporary directory");
    restore_tree(&saved, target.path(), &quiet).expect("as saved");
    assert_eq!(describe(target.path()), describe(tree.path()));
    let size = saved.metadata().expect("a file").len();
    for change in ["longer", "shorter"] {
        let length = if change == "longer" { size + 512 } else { size - 512 };
        saved.set_len(length).expect("a file");
        let target = tempfile::tempdir().expect("a temporary directory");
        let error = restore_tree(&saved, target.path(), &quiet).expect_err(change);
        assert!(format!("{error:#}").contains("end marker"), "{error:#}");
    }
}

#[test]
fn saving_leaves_devices_out_and_scanning_names_them() {
    let tree = tempfile::tempdir().expect("a temporary directory");
    let device = tree.path().join("dev/null");
    fs::create_dir(tree.path().join("dev")).expect("a directory");
    nix::sys::stat::mknod(
        &device,
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::S_IRUSR,
        nix::sys::stat::makedev(1, 3),
    )
    .expect("root");
    let error = scan(tree.path(), EPOCH, &|_| Owner::Generated, &quiet).expect_err("a device");
    assert!(format!("{error:#}").contains("dev/null is a character device"), "{error:#}");
    let mut saved = tempfile::tempfile().expect("a temporary file");
    save_tree(tree.path(), &mut saved, &quiet).expect("a device is left out");
    let target = tempfile::tempdir().expect("a temporary directory");
    restore_tree(&saved, target.path(), &quiet).expect("as saved");
    assert_eq!(describe(target.path()).len(), 1);
}

#[test]
fn scanning_refuses_what_a_tarball_must_not_hold() {
    use std::os::unix::ffi::OsStrExt as _;
    let refusal = |make: &dyn Fn(&Path)| {
        let tree = tempfile::tempdir().expect("a temporary directory");
        make(tree.path());
        let refused = scan(tree.path(), EPOCH, &|_| Owner::Generated, &quiet);
        format!("{:#}", refused.expect_err("it has a fault"))
    };
    let fifo = refusal(&|tree| {
        nix::unistd::mkfifo(&tree.join("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("a fifo");
    });
    assert!(fifo.contains("pipe is a fifo"), "{fifo}");
    let socket = refusal(&|tree| {
        drop(std::os::unix::net::UnixListener::bind(tree.join("sock")).expect("a socket"));
    });
    assert!(socket.contains("sock is a socket"), "{socket}");
    let name = refusal(&|tree| {
        fs::write(tree.join(std::ffi::OsStr::from_bytes(b"caf\xe9")), "").expect("a file");
    });
    assert!(name.contains("not UTF-8"), "{name}");
    let own = refusal(&|tree| fs::create_dir(tree.join(".farmctl")).expect("a directory"));
    assert!(own.contains("reserved for farmctl"), "{own}");
    let owner = refusal(&|tree| {
        fs::write(tree.join("a"), "").expect("a file");
        std::os::unix::fs::chown(tree.join("a"), Some(200_000), None).expect("root");
    });
    assert!(owner.contains("beyond 65535"), "{owner}");
}

#[test]
fn a_mount_point_inside_a_tree_is_refused() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let tree = tempfile::tempdir().expect("a temporary directory");
    for name in ["mounted", "bound", "plain"] {
        fs::create_dir(tree.path().join(name)).expect("a directory");
    }
    let path = tree.path().to_path_buf();
    // Mounts of a thread with a mount namespace of its own go with the thread.
    let refusals = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("root");
        let refusal = || {
            let refused = scan(&path, EPOCH, &|_| Owner::Generated, &quiet);
            format!("{:#}", refused.expect_err("a mount point"))
        };
        let bound = path.join("bound");
        mount(Some(&path.join("plain")), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .expect("root");
        let first = refusal();
        nix::mount::umount(&bound).expect("root");
        let mounted = path.join("mounted");
        mount(Some("tmpfs"), &mounted, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("root");
        [first, refusal()]
    })
    .join()
    .expect("the thread ends well");
    assert!(refusals[0].contains("bound lies on another file system"), "{refusals:?}");
    assert!(refusals[1].contains("mounted lies on another file system"), "{refusals:?}");
}

#[test]
fn a_file_that_changes_between_scan_and_pack_is_noticed() {
    let tree = sample();
    let scan = scanned(tree.path());
    let out = tree.path().with_extension("tar.xz");
    for content in [noise(7, 70_000), noise(6, 69_999), noise(6, 70_001)] {
        fs::write(tree.path().join("usr/lib/large"), content).expect("a file");
        let draft = super::fixture::draft();
        let error = pack(tree.path(), &scan, draft, &out, 2, None, &quiet).expect_err("it changed");
        let words = format!("{error:#}");
        assert!(words.contains("reading usr/lib/large: it "), "{words}");
    }
}

#[test]
fn an_interruption_ends_the_work_and_is_passed_on() {
    let (directory, path, _) = tarball();
    let tree = sample();
    let stop = |done: u64, _: u64| if done > 8000 { Err(interrupted()) } else { Ok(()) };
    let scan = scanned(tree.path());
    let out = directory.path().join("out");
    let archive = open(&path);
    let target = tempfile::tempdir().expect("a temporary directory");
    let mut saved = tempfile::tempfile().expect("a temporary file");
    for (what, ended) in [
        ("pack", pack(tree.path(), &scan, super::fixture::draft(), &out, 2, None, &stop).map(drop)),
        ("verify", archive.verify(2, &stop)),
        ("extract", archive.extract(target.path(), 2, &stop)),
        ("save", save_tree(tree.path(), &mut saved, &stop)),
        ("compare", compare(tree.path(), archive.files(), &[], &stop).map(drop)),
    ] {
        let error = ended.expect_err(what);
        assert_eq!(exit_of(&error), Exit::Interrupted, "{what}: {error:#}");
    }
}

#[test]
fn extracting_wants_an_empty_directory() {
    let (directory, path, _) = tarball();
    let error = open(&path).extract(directory.path(), 1, &quiet).expect_err("it is not empty");
    assert!(format!("{error:#}").contains("is not empty"), "{error:#}");
    assert_eq!(hint_of(&error), Some("give an empty directory"));
    let fresh = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(fresh.path().join("lost+found")).expect("a directory");
    open(&path).extract(fresh.path(), 1, &quiet).expect("a fresh ext4 looks like this");
}

#[test]
fn comparing_finds_what_was_changed_added_and_removed() {
    let (_directory, path, packed) = tarball();
    let archive = open(&path);
    let tree = tempfile::tempdir().expect("a temporary directory");
    archive.extract(tree.path(), 2, &quiet).expect("as packed");
    let capabilities = &packed.manifest.capabilities;
    let differences = || {
        let found = compare(tree.path(), archive.files(), capabilities, &quiet).expect("a tree");
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(differences(), Vec::<String>::new());

    let at = |path: &str| tree.path().join(path);
    fs::remove_file(at("etc/dangling")).expect("a link");
    fs::write(at("etc/new"), "").expect("a file");
    // In place and with the time put back: only the content tells.
    let file = OpenOptions::new().write(true).open(at("usr/lib/large")).expect("a file");
    let time = file.metadata().and_then(|stat| stat.modified()).expect("a time");
    file.write_all_at(b"!", 4000).and_then(|()| file.set_modified(time)).expect("a file");
    fs::set_permissions(at("usr/bin/su"), fs::Permissions::from_mode(0o755)).expect("a mode");
    xattr::remove(at("usr/bin/ping"), "security.capability").expect("root");
    fs::remove_file(at("usr/bin/perl5.36.0")).expect("a link");
    fs::copy(at("usr/bin/perl"), at("usr/bin/perl5.36.0")).expect("a file");
    fs::remove_file(at("bin")).expect("a link");
    std::os::unix::fs::symlink("usr/sbin", at("bin")).expect("a link");
    File::options().append(true).open(at("etc/passwd")).expect("a file").write_all(b"x").expect("");
    let found = differences();
    let now = |path: &str| found.iter().find(|line| line.starts_with(path)).map(String::as_str);
    assert_eq!(now("etc/dangling"), Some("etc/dangling: missing"));
    assert_eq!(now("etc/new"), Some("etc/new: unexpected"));
    assert_eq!(now("usr/lib/large"), Some("usr/lib/large: content"));
    assert_eq!(now("usr/bin/su"), Some("usr/bin/su: mode 0755 instead of 4755"));
    assert_eq!(
        now("usr/bin/ping"),
        Some("usr/bin/ping: capabilities none instead of 010000020a200000000000000000000000000000")
    );
    assert!(now("usr/bin/perl5").is_some_and(|line| line.contains("a file instead of a hard")));
    assert!(now("bin").is_some_and(|line| line.contains(r#"link to "usr/sbin" instead of"#)));
    assert!(now("etc/passwd").is_some_and(|line| line.contains("31 bytes instead of 30")));
    assert_eq!(found.len(), 8, "{found:?}");
    let all = compare(tree.path(), archive.files(), capabilities, &quiet).expect("a tree");
    let owner = Owner::Package("su".to_owned());
    assert!(all.iter().any(|difference| matches!(
        difference,
        Difference::Changed { path, owner: whose, .. } if path == "usr/bin/su" && *whose == owner
    )));
}
