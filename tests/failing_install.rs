//! Failing well: tarballs that are not whole, do not fit, or find their name taken.

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/mistake.rs"]
mod mistake;
#[path = "common/newer.rs"]
mod newer;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use common::{FARMCTL, Farm, Ran, called, run, tool};
use farmctl::manifest::FileKind;
use farmctl::tarball::Archive;
use mistake::fails;
use signal::{masked, word};
use tiny::Tiny;

const SLEEP: &str = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n";

/// A directory of the farm.
fn directory(farm: &Farm, name: &str) -> PathBuf {
    let directory = farm.root().join(name);
    fs::create_dir_all(&directory).expect("there is room");
    directory
}

/// A baked `hello`, by another name: it may really run here.
fn hello(farm: &Farm) -> PathBuf {
    farm.bake(&farm.profile("hello", "greeter", 18_084))
}

#[track_caller]
fn says(ran: &Ran, farm: &Farm, error: &str, hint: &str) {
    assert_eq!(masked(ran.error(), farm), error);
    assert_eq!(masked(ran.hint(), farm), hint);
}

/// What to do about a file that is not whole.
const HINTS: [&str; 3] = [
    COPY,
    "give a node tarball: what farmctl bake writes",
    "the file is damaged: copy it again, or bake it again",
];
const COPY: &str = "copy the file again from where it was baked and compare its sha256sum";

#[test]
fn a_tarball_cut_short_anywhere_is_refused() {
    let farm = Farm::new();
    let whole = tiny::tarball(&tiny::profile("shop", "1.0", SLEEP), &directory(&farm, "out"));
    let bytes = fs::read(&whole).expect("it was packed");
    let cut = directory(&farm, "cut").join("shop_1.0_amd64.tar.xz");
    let length = bytes.len();
    for at in [0, 3, 11, 20, 200, length / 2, length - 30, length - 12, length - 1] {
        fs::write(&cut, &bytes[..at]).expect("there is room");
        let (what, hint) = match at {
            0 => ("not an .xz file".to_owned(), "give a node tarball: what farmctl bake writes"),
            _ => (format!("cut short at byte {at}"), COPY),
        };
        let ran = fails("tarball truncated", &farm, &["install", word(&cut)], 1);
        says(&ran, &farm, &format!("reading ROOT/cut/shop_1.0_amd64.tar.xz: {what}"), hint);
        let ran = fails("tarball truncated, verified", &farm, &["verify", word(&cut)], 3);
        says(&ran, &farm, &format!("reading ROOT/cut/shop_1.0_amd64.tar.xz: {what}"), hint);
    }
    assert_eq!(farm.run(&["verify", word(&whole)]).ok().code, 0);
}

#[test]
fn a_tarball_with_one_bad_byte_anywhere_is_refused() {
    let farm = Farm::new();
    let whole = tiny::tarball(&tiny::profile("shop", "1.0", SLEEP), &directory(&farm, "out"));
    let bytes = fs::read(&whole).expect("it was packed");
    let archive = Archive::open(&whole).expect("it is whole");
    let payload: u64 = archive.manifest().segments.iter().map(|segment| segment.xz_size).sum();
    let payload = usize::try_from(payload).expect("it is small");
    let length = bytes.len();
    // The index of four blocks and the footer take less than 60 bytes.
    let files = length - 60 - payload - 100;
    let bad = directory(&farm, "bad").join("shop_1.0_amd64.tar.xz");
    let cases = [
        (0, "not an .xz file"),
        (7, "the xz stream at byte 0 is damaged, or another program compressed it"),
        (14, "the xz stream at byte 12 is damaged, or another program compressed it"),
        (100, "reading .farmctl/manifest.json: decoding an xz block: "),
        (files, "reading .farmctl/files.json: decoding an xz block: "),
        (length - 60 - payload / 2, "its bytes are not the ones that were packed"),
        (length - 20, "the xz index at byte "),
        (length - 1, "the xz index at byte "),
    ];
    for (at, what) in cases {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&bad, &damaged).expect("there is room");
        let ran = fails("tarball corrupted", &farm, &["install", word(&bad)], 1);
        let error = ran.error();
        assert!(error.contains(what), "byte {at}: {error}");
        assert!(error.contains("shop"), "the tarball is named: {error}");
        assert!(HINTS.contains(&ran.hint()), "byte {at}: {}", ran.hint());
        let ran = fails("tarball corrupted, verified", &farm, &["verify", word(&bad)], 3);
        assert!(ran.error().contains(what), "byte {at}: {}", ran.error());
        assert!(HINTS.contains(&ran.hint()), "byte {at}: {}", ran.hint());
    }
    let mut longer = bytes;
    longer.push(0);
    fs::write(&bad, &longer).expect("there is room");
    let ran = fails("tarball with bytes after its end", &farm, &["install", word(&bad)], 1);
    says(
        &ran,
        &farm,
        &format!(
            "reading ROOT/bad/shop_1.0_amd64.tar.xz: 1 byte follows the end of the tarball at byte {length}"
        ),
        COPY,
    );
}

#[test]
#[ignore = "a bake, and a hundred looks at hello"]
fn hello_with_a_bad_byte_at_fifty_places_is_refused() {
    let farm = Farm::new();
    let whole = hello(&farm);
    let bad = directory(&farm, "bad").join("greeter_1.0.0_amd64.tar.xz");
    fs::copy(&whole, &bad).expect("there is room");
    let file = fs::File::options().read(true).write(true).open(&bad).expect("it is ours");
    let length = file.metadata().expect("it is open").len();
    for number in 0..50 {
        let at = number * (length - 1) / 49;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it is within");
        file.write_all_at(&[byte[0] ^ (1 << (number % 8))], at).expect("it is ours");
        let ran = fails("hello corrupted", &farm, &["install", word(&bad)], 1);
        assert!(HINTS.contains(&ran.hint()), "byte {at}: {}", ran.stderr);
        let ran = fails("hello corrupted, verified", &farm, &["verify", word(&bad)], 3);
        assert!(HINTS.contains(&ran.hint()), "byte {at}: {}", ran.stderr);
        file.write_all_at(&byte, at).expect("it is ours");
    }
    farm.run(&["verify", word(&bad)]).ok();
}

#[test]
#[ignore = "a bake, and hello decompressed five times"]
fn other_programs_list_the_members_of_hello() {
    let farm = Farm::new();
    let whole = hello(&farm);
    let archive = Archive::open(&whole).expect("it was baked");
    let mut expected = ".farmctl/manifest.json\n.farmctl/files.json\n".to_owned();
    for entry in &archive.files().files {
        let directory = matches!(entry.kind, FileKind::Directory);
        expected += &format!("{}{}\n", entry.path, if directory { "/" } else { "" });
    }
    let path = word(&whole);
    assert_eq!(tool("xz", &["-t", path]), "");
    let piped = "xz -T0 -dc \"$0\" | tar --quoting-style=literal -tf -";
    let python = "import sys, tarfile\nfor m in tarfile.open(sys.argv[1]):\n \
                  print(m.name + '/' * m.isdir())";
    for (program, arguments) in [
        ("sh", &["-c", piped, path][..]),
        ("tar", &["--quoting-style=literal", "-tJf", path]),
        ("bsdtar", &["-tf", path]),
        ("python3", &["-c", python, path]),
    ] {
        assert!(tool(program, arguments) == expected, "{program} lists other members");
    }
}

#[test]
fn damage_found_while_unpacking_leaves_nothing() {
    let farm = Farm::new();
    let file = Tiny::new(&tiny::profile("shop", "1.0", SLEEP))
        .zeros("srv/large", 64 << 20)
        .pack(&directory(&farm, "out"));
    let mut bytes = fs::read(&file).expect("it was packed");
    let at = bytes.len() - 200;
    bytes[at] ^= 1;
    fs::write(&file, bytes).expect("there is room");
    let ran = fails("tarball corrupted far inside", &farm, &["install", word(&file)], 1);
    says(
        &ran,
        &farm,
        "installing shop 1.0: unpacking shop_1.0_amd64.tar.xz: reading tar member 20: reading segment 3: its bytes are not the ones that were packed",
        COPY,
    );
}

#[test]
fn a_tarball_that_is_not_there_is_asked_for() {
    let farm = Farm::new();
    let file = farm.root().join("none_1.0_amd64.tar.xz");
    let error = "reading ROOT/none_1.0_amd64.tar.xz: No such file or directory";
    let ran = fails("tarball not there", &farm, &["install", word(&file)], 1);
    says(&ran, &farm, error, "FILE is a node tarball: what farmctl bake writes");
    let ran = fails("tarball not there, verified", &farm, &["verify", word(&file)], 1);
    says(&ran, &farm, error, "FILE is a node tarball: what farmctl bake writes");
}

#[test]
fn a_tarball_of_another_architecture_is_refused() {
    let farm = Farm::new();
    let mut other = Tiny::new(&tiny::profile("shop", "1.0", SLEEP));
    other.architecture = "s390x".to_owned();
    let other = other.pack(&directory(&farm, "out"));
    let own = tool("dpkg", &["--print-architecture"]);
    let ran = fails("tarball of another architecture", &farm, &["install", word(&other)], 1);
    says(
        &ran,
        &farm,
        &format!("the tarball is for s390x, this machine is {}", own.trim()),
        "bake it on a machine of this architecture",
    );
}

#[test]
fn a_tarball_of_a_newer_farmctl_is_refused() {
    let farm = Farm::new();
    let file = tiny::tarball(&tiny::profile("shop", "1.0", SLEEP), &directory(&farm, "out"));
    newer::with_manifest(&file, |text| text.replacen("{\"schema\":1,", "{\"schema\":2,", 1));
    let error = "reading ROOT/out/shop_1.0_amd64.tar.xz: \
                 made by a newer farmctl (schema 2, this one reads 1)";
    let ran = fails("tarball of a newer schema", &farm, &["install", word(&file)], 1);
    says(&ran, &farm, error, "upgrade farmctl");
    let ran = fails("tarball of a newer schema, verified", &farm, &["verify", word(&file)], 3);
    says(&ran, &farm, error, "upgrade farmctl");
}

#[test]
fn a_release_with_other_contents_does_not_replace_one_of_its_name() {
    let farm = Farm::new();
    let text = tiny::profile("shop", "1.0", SLEEP);
    let first = tiny::tarball(&text, &directory(&farm, "out"));
    let second = Tiny::new(&text).file("srv/more", "x", 0o644).pack(&directory(&farm, "more"));
    farm.run(&["install", word(&first)]).ok();
    let again = farm.run(&["install", word(&first)]).ok();
    assert!(again.stderr.contains("shop 1.0 is installed already\n"), "{}", again.stderr);
    let ran = fails("release of a name that is taken", &farm, &["install", word(&second)], 1);
    says(
        &ran,
        &farm,
        "shop 1.0 is installed already, with other contents",
        "bake it as another version (--set-version), or farmctl remove shop --release 1.0",
    );
    farm.run(&["verify", "shop"]).ok();
}

#[test]
fn the_names_of_another_root_are_left_alone() {
    let farm = Farm::new();
    let file = tiny::tarball(&tiny::profile("shop", "1.0", SLEEP), &directory(&farm, "out"));
    farm.run(&["install", word(&file)]).ok();
    farm.run(&["start", "shop"]).ok();
    let definition = Path::new("/etc/schroot/chroot.d/farmctl-shop-1.0");
    let before = fs::read(definition).expect("it was registered");

    let other = directory(&farm, "other");
    let second = |arguments: &[&str]| {
        let words = [&["--root", word(&other)], arguments].concat();
        run(called(FARMCTL, &words))
    };
    let ran = second(&["install", word(&file)]).failed(1);
    says(
        &ran,
        &farm,
        "/etc/schroot/chroot.d/farmctl-shop-1.0 is there already, and not this node's",
        "remove it if it is not in use: farmctl never replaces a file of others",
    );
    assert_eq!(second(&["gc", "--check"]).ok().stdout, "");
    assert!(!other.join("var/lib/farmctl/volumes/fv-shop-1.0").exists(), "no volume was made");
    assert_eq!(fs::read(definition).expect("it is still there"), before);
    farm.run(&["status", "shop"]).ok();
    farm.run(&["verify", "shop"]).ok();
}

/// A small disk for all of the farm's state.
struct Disk<'a>(&'a Farm);

impl<'a> Disk<'a> {
    fn new(farm: &'a Farm, options: &str) -> Self {
        let place = farm.state("");
        fs::create_dir_all(&place).expect("there is room");
        let options = format!("mode=755,{options}");
        tool("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", word(&place)]);
        Self(farm)
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        drop(self.0.run(&["remove", "--environment", "tiny"]));
        drop(self.0.run(&["remove", "shop", "--data"]));
        tool("umount", &[word(&self.0.state(""))]);
    }
}

const FULL: &str = "farmctl gc --stages, farmctl remove NAME --release VERSION, or a larger disk";

#[test]
fn a_release_that_does_not_fit_is_refused_before_anything_is_made() {
    let farm = Farm::new();
    let file = Tiny::new(&tiny::profile("shop", "1.0", SLEEP))
        .zeros("srv/large", 64 << 20)
        .pack(&directory(&farm, "out"));
    let _disk = Disk::new(&farm, "size=100m");
    let ran = fails("install that does not fit", &farm, &["install", word(&file)], 1);
    let error = ran.error();
    assert!(error.starts_with("shop 1.0 needs 13") && error.ends_with(" are free"), "{error}");
    assert_eq!(ran.hint(), FULL);
}

#[test]
fn a_disk_that_gets_full_while_unpacking_leaves_nothing() {
    let farm = Farm::new();
    let tiny = Tiny::new(&tiny::profile("shop", "1.0", SLEEP));
    let tiny = (0..500).fold(tiny, |tiny, number| tiny.file(&format!("srv/{number}"), "x", 0o644));
    let file = tiny.pack(&directory(&farm, "out"));
    // Room enough, as far as bytes go.
    let _disk = Disk::new(&farm, "size=200m,nr_inodes=600");
    let ran = fails("disk full during install", &farm, &["install", word(&file)], 1);
    let error = masked(ran.error(), &farm);
    assert!(
        error.starts_with("installing shop 1.0: unpacking shop_1.0_amd64.tar.xz: writing ")
            && error.ends_with(": No space left on device"),
        "{error}"
    );
    assert_eq!(ran.hint(), FULL);
}

/// A file of the project that a release has.
const COPIED: &str = "[[copy]]\nfrom = \"large\"\nto = \"/srv/large\"\n";

#[test]
fn a_full_disk_ends_a_bootstrap_and_a_bake_with_nothing_left() {
    let farm = Farm::new();
    let profile = directory(&farm, "profiles/tiny");
    fs::write(profile.join("profile.toml"), tiny::profile("tiny", "1.0", COPIED))
        .expect("there is room");
    {
        let _disk = Disk::new(&farm, "size=100m");
        let ran = fails("disk full during bootstrap", &farm, &["bootstrap", word(&profile)], 1);
        let error = masked(ran.error(), &farm);
        assert!(
            error.starts_with("bootstrapping tiny: restoring ROOT/var/lib/farmctl/volumes/fv-stage-ID/root: writing ")
                && error.ends_with("No space left on device"),
            "{error}"
        );
        assert_eq!(ran.hint(), FULL);
    }
    {
        // Room for one tree and half of what a bake brings to it.
        let _disk = Disk::new(&farm, "size=270m");
        farm.run(&["bootstrap", word(&profile)]).ok();
        fs::write(profile.join("large"), vec![1; 180 << 20]).expect("there is room");
        let ran = fails("disk full during bake", &farm, &["bake", word(&profile)], 1);
        let error = masked(ran.error(), &farm);
        assert!(
            error.starts_with("baking tiny 1.0: copying ROOT/var/lib/farmctl/volumes/fv-stage-ID/")
                && error.ends_with("/large: No space left on device"),
            "{error}"
        );
        assert_eq!(ran.hint(), FULL);
    }
}

#[test]
fn a_full_disk_for_tarballs_leaves_no_part_of_one() {
    let farm = Farm::new();
    let profile = directory(&farm, "profiles/tiny");
    fs::write(profile.join("profile.toml"), tiny::profile("tiny", "1.0", tiny::LIGHT))
        .expect("there is room");
    farm.run(&["bootstrap", word(&profile)]).ok();
    let out = directory(&farm, "out");
    tool("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", word(&out)]);
    let ran = farm.run(&["bake", word(&profile), "--output", word(&out)]);
    let left = fs::read_dir(&out).expect("it is there").count();
    tool("umount", &[word(&out)]);
    let ran = mistake::met("disk full for the tarball", &farm, ran, 1, || assert_eq!(left, 0));
    let error = masked(ran.error(), &farm);
    assert!(
        error.starts_with("baking tiny 1.0: packing ROOT/out/tiny_1.0_amd64.tar.xz.part: ")
            && error.ends_with(": writing an xz block: No space left on device"),
        "{error}"
    );
    assert_eq!(ran.hint(), FULL);
}
