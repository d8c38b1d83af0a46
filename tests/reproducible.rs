//! The same lock gives the same bytes, wherever and whenever it is baked.
//!
//! The default test bakes `hello` twice: here, and where everything is different at once,
//! out of the pool in an empty network namespace. The ignored ones take about an hour: each
//! variation alone, every other shipped profile, and a tarball unpacked and packed again.
//! `scripts/test --test reproducible -- --ignored --test-threads 1`.
//!
//! The clock of a machine others use cannot be set, and a time namespace moves the
//! monotonic clock alone (time_namespaces(7)). So every program of a build that asks the C
//! library is answered with a time 400 days ahead (`common/elsewhere.c`, preloaded);
//! the kernel's own stamps on files are of today, as they are all after the lock's epoch
//! anyway. It also shuffles directories. Programs without the C library see neither:
//! ldconfig, and uv where that is static.

#![expect(clippy::disallowed_types, reason = "tests start the program as a user does")]

mod common;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "its profiles are used here")]
mod tiny;

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Farm, tool};
use farmctl::manifest::{Hashed, Manifest, Owner, Payload};
use farmctl::tarball::{self, Archive};

/// The profiles that are shipped, each with a test here.
const SHIPPED: [&str; 2] = ["hello", "mezzanine"];
/// The application: what is shipped may really run here.
const TWIN: &str = "twin";
const PORT: u16 = 18_087;
/// Where preloaded programs find the library, on the host and in a tree.
const LIBRARY: &str = "/run/farmctl-elsewhere.so";
/// What farmctl runs everything in a tree by.
const CHROOT: &str = "/usr/sbin/chroot";

/// Where and how a bake is made. The default is: here and now.
#[derive(Clone, Debug)]
struct Place {
    name: &'static str,
    host: Option<&'static str>,
    environment: &'static [(&'static str, &'static str)],
    umask: Option<&'static str>,
    /// On the first processor alone.
    one_cpu: bool,
    /// `CLOCK`, `ORDER`: what `elsewhere.c` is to change.
    changes: &'static [&'static str],
    /// Volumes on a btrfs, not in a directory.
    btrfs: bool,
    /// The profile at another path.
    moved: bool,
    /// In an empty network namespace.
    offline: bool,
}

const USER: &[(&str, &str)] = &[
    ("TZ", "GMT-14"),
    ("LANG", "de_AT.UTF-8"),
    ("LC_ALL", "de_AT.UTF-8"),
    ("HOME", "/tmp"),
    ("USER", "somebody"),
    ("LOGNAME", "somebody"),
    ("PATH", "/bin:/usr/bin:/sbin:/usr/sbin"),
];

const HERE: Place = place("here and now");
/// Everything different at once.
const ELSEWHERE: Place = Place {
    name: "everything at once",
    host: Some("elsewhere"),
    environment: USER,
    umask: Some("0077"),
    one_cpu: true,
    changes: &["CLOCK", "ORDER"],
    btrfs: true,
    moved: true,
    offline: true,
};

/// Here and now, by another name.
const fn place(name: &'static str) -> Place {
    Place {
        name,
        host: None,
        environment: &[],
        umask: None,
        one_cpu: false,
        changes: &[],
        btrfs: false,
        moved: false,
        offline: false,
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is ours")
}

/// Removes the library, whatever happens.
struct Library;

impl Drop for Library {
    fn drop(&mut self) {
        drop(fs::remove_file(LIBRARY));
    }
}

impl Place {
    /// The library with the changes, and a chroot(8) that preloads it into what runs in a tree.
    fn library(&self, work: &Path) -> Option<Library> {
        if self.changes.is_empty() {
            return None;
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/elsewhere.c");
        let mut arguments = vec!["-shared", "-fPIC", "-O2", "-o", LIBRARY, text(&source)];
        let defines: Vec<String> = self.changes.iter().map(|one| format!("-D{one}")).collect();
        arguments.extend(defines.iter().map(String::as_str));
        arguments.extend(["-ldl", "-lpthread"]);
        tool("cc", &arguments);
        let real = work.join("chroot.real");
        fs::copy(CHROOT, &real).expect("it is installed");
        let script = format!(
            "#!/bin/sh\n[ -e \"$1{LIBRARY}\" ] || cp {LIBRARY} \"$1/run/\" 2>/dev/null\n\
             LD_PRELOAD={LIBRARY} exec {} \"$@\"\n",
            real.display()
        );
        let path = work.join("chroot");
        fs::write(&path, script).expect("there is room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        Some(Library)
    }

    /// Makes the environment and bakes; answers the tarball. What this mounts ends with it.
    fn bake(&self, farm: &Farm, profile: &Path, fresh: bool) -> PathBuf {
        let work = tempfile::Builder::new().prefix("place.").tempdir_in(farm.root());
        let work = work.expect("there is room").keep();
        let _library = self.library(&work);
        let profile = if self.moved {
            let other = work.join("a checkout");
            common::copy(profile, &other);
            other
        } else {
            profile.to_owned()
        };
        // A farm of its own: another node, another storage.
        let root = work.join("root");
        let volumes = root.join("var/lib/farmctl/volumes");
        let out = work.join("out");
        for directory in [&volumes, &out] {
            fs::create_dir_all(directory).expect("there is room");
        }
        let mut script = String::from("set -e\n");
        let mut say = |line: &str| script += &format!("{line}\n");
        if !self.changes.is_empty() {
            say(&format!("mount --bind {}/chroot {CHROOT}", work.display()));
        }
        if self.btrfs {
            let image = work.join("image");
            fs::File::create(&image).and_then(|file| file.set_len(2 << 30)).expect("there is room");
            tool("mkfs.btrfs", &["--quiet", text(&image)]);
            say(&format!("mount -o loop {} {}", image.display(), volumes.display()));
        }
        if let Some(host) = self.host {
            say(&format!("hostname {host}"));
        }
        if let Some(umask) = self.umask {
            say(&format!("umask {umask}"));
        }
        let given: Vec<String> =
            self.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cpu = if self.one_cpu { "taskset --cpu-list 0" } else { "" };
        let preload =
            if self.changes.is_empty() { String::new() } else { format!("LD_PRELOAD={LIBRARY}") };
        let farmctl = format!(
            "{cpu} env {} {preload} {} --root {}",
            given.join(" "),
            common::FARMCTL,
            root.display()
        );
        let offline = if self.offline { "--offline" } else { "" };
        let fresh = if fresh { "--fresh" } else { "" };
        let storage = if self.btrfs { "btrfs" } else { "directory" };
        let (profile, tarballs) = (profile.display(), out.display());
        say(&format!("{farmctl} bootstrap '{profile}' {offline} {fresh} --storage {storage}"));
        // Compressed anew, and not taken from what was compressed in the other place.
        say(&format!("{farmctl} bake '{profile}' {offline} --fresh --output {tarballs}"));
        say(&format!("{farmctl} remove --environment {TWIN}"));
        say(&format!("{farmctl} gc --check"));
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "--propagation", "private"]);
        if self.offline {
            command.arg("--net");
        }
        command.args(["--", "/bin/sh", "-c", &script]).env("FARMCTL_CACHE", common::cache());
        let ran = common::run(command);
        assert_eq!(ran.code, 0, "{}:\n{}\n{}", self.name, ran.stdout, ran.stderr);
        let mut names = fs::read_dir(&out).expect("it is there").flatten();
        names.next().expect("a tarball was written").path()
    }
}

/// SHA-256 of the file and of the tar in it.
fn hashes(farm: &Farm, tarball: &Path) -> (String, String) {
    let line = tool("sha256sum", &[text(tarball)]);
    let shown = farm.run(&["show", text(tarball), "--json"]).ok().stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("it is JSON");
    let tar = shown["manifest"]["payload"]["sha256"].as_str().expect("it is text").to_owned();
    (line.split(' ').next().expect("it prints the hash first").to_owned(), tar)
}

/// Says it also when the test passes.
fn say(hashes: &(String, String), name: &str) {
    let line = format!("{}  .tar.xz\n{}  .tar     {name}\n", hashes.0, hashes.1);
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// A copy of a shipped profile, locked.
fn locked(farm: &Farm, shipped: &str) -> PathBuf {
    let profile = farm.profile(shipped, TWIN, PORT);
    farm.run(&["bootstrap", text(&profile)]).ok();
    farm.run(&["lock", text(&profile)]).ok();
    farm.run(&["remove", "--environment", TWIN]).ok();
    profile
}

/// A locked profile and its tarball, baked here and now, once for each build of the
/// program: the directory they lie in.
fn reference(shipped: &str) -> (PathBuf, PathBuf) {
    let kept = common::kept().join(format!("reference-{shipped}"));
    let of = |directory: &Path| (directory.join("profile"), directory.join("tarball"));
    // Let go of before another begins: nobody waits longer than for two bakes.
    let farm = Farm::new();
    if !kept.exists() {
        let part = farm.root().join("reference");
        let (profile, tarball) = of(&part);
        common::copy(&locked(&farm, shipped), &profile);
        let baked = HERE.bake(&farm, &profile, false);
        fs::rename(baked, tarball).expect("it is one file system");
        let copied = kept.with_extension("part");
        common::copy(&part, &copied);
        fs::rename(copied, &kept).expect("it is one directory");
    }
    say(&hashes(&farm, &of(&kept).1), &format!("{shipped}, {}", HERE.name));
    of(&kept)
}

/// Bakes a shipped profile here and at this place, and compares.
fn compare(shipped: &str, place: &Place) {
    let (profile, first) = reference(shipped);
    let farm = Farm::new();
    let other = place.bake(&farm, &profile, true);
    assert_same(&farm, place, &first, &other);
}

/// What differs, if something does, by whose it is.
#[track_caller]
fn assert_same(farm: &Farm, place: &Place, first: &Path, other: &Path) {
    let (one, two) = (hashes(farm, first), hashes(farm, other));
    say(&two, place.name);
    let diff = farm.run(&["diff", text(first), text(other), "--files"]).stdout;
    assert_eq!(one, two, "{}: {diff}", place.name);
}

#[test]
fn a_bake_elsewhere_at_another_time_gives_the_same_bytes() {
    let farm = Farm::new();
    let profile = locked(&farm, "hello");
    // From the cache, if it is there: at another time then, too.
    let first = HERE.bake(&farm, &profile, false);
    say(&hashes(&farm, &first), HERE.name);
    let other = ELSEWHERE.bake(&farm, &profile, true);
    assert_same(&farm, &ELSEWHERE, &first, &other);
}

#[test]
fn a_build_that_looks_at_the_clock_or_the_disk_is_not_the_same_elsewhere() {
    // Without this the other tests could pass because nothing was really different.
    let farm = Farm::new();
    let directory = farm.root().join("profiles").join(TWIN);
    fs::create_dir_all(&directory).expect("there is room");
    let seen = "date +%Y-%m >/etc/seen-time; hostname >/etc/seen-host; \
                python3 -c 'import os; print(os.listdir(\\\"/etc\\\"))' >/etc/seen-order";
    let light = tiny::LIGHT.replace("before = [", &format!("before = [\"{seen}\", "));
    let profile = tiny::profile(TWIN, "1.0", &light);
    fs::write(directory.join("profile.toml"), profile).expect("there is room");
    let there = Place { host: ELSEWHERE.host, changes: ELSEWHERE.changes, ..place("there") };
    let [one, other] = [HERE, there].map(|place| place.bake(&farm, &directory, false));
    assert_ne!(hashes(&farm, &one).1, hashes(&farm, &other).1);
    let diff = farm.run(&["diff", text(&one), text(&other)]);
    assert_eq!(diff.code, 3);
    for what in ["time", "host", "order"] {
        let line = format!("  changed  /etc/seen-{what}: content\n");
        assert!(diff.stdout.contains(&line), "{}", diff.stdout);
    }
}

#[test]
fn every_shipped_profile_is_baked_twice_by_a_test() {
    let profiles = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles"));
    let mut names: Vec<String> = profiles
        .expect("they are part of the source")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, SHIPPED);
}

/// A test for each variation, which holds the machine for a bake and no longer.
macro_rules! alone {
    ($($test:ident: $place:expr;)*) => {$(
        #[test]
        #[ignore = "a bootstrap and a bake"]
        fn $test() {
            compare("hello", &$place);
        }
    )*};
}

alone! {
    alone_another_host_name: Place { host: ELSEWHERE.host, ..place("another host name") };
    alone_another_time_zone: Place { environment: &USER[..1], ..place("TZ=GMT-14") };
    alone_another_locale: Place { environment: &USER[1..3], ..place("another locale") };
    alone_another_user: Place { environment: &USER[3..], ..place("another HOME, user and PATH") };
    alone_another_umask: Place { umask: ELSEWHERE.umask, ..place("umask 0077") };
    alone_another_checkout: Place { moved: true, ..place("another checkout path") };
    alone_one_cpu: Place { one_cpu: true, ..place("1 CPU") };
    alone_another_storage: Place { btrfs: true, ..place("btrfs") };
    // Without a network: certificates have expired by then.
    alone_another_year: Place {
        changes: &["CLOCK"], offline: true, ..place("400 days later, another time of day")
    };
    alone_another_order: Place { changes: &["ORDER"], ..place("directories in another order") };
    alone_without_a_network: Place { offline: true, ..place("without a network") };
}

#[test]
#[ignore = "two bootstraps and two bakes"]
fn mezzanine_baked_elsewhere_at_another_time_has_the_same_bytes() {
    compare("mezzanine", &ELSEWHERE);
}

#[test]
#[ignore = "a bake"]
fn what_is_unpacked_and_packed_again_has_the_same_bytes() {
    let (_, path) = reference("hello");
    let farm = Farm::new();
    let archive = Archive::open(&path).expect("it was baked");
    let tree = farm.root().join("tree");
    fs::create_dir(&tree).expect("there is room");
    let quiet = |_, _| Ok(());
    archive.extract(&tree, 2, &quiet).expect("as packed");
    let owners: HashMap<&str, &Owner> =
        archive.files().files.iter().map(|file| (file.path.as_str(), &file.owner)).collect();
    let owner_of = |path: &str| (*owners.get(path).expect("it came from there")).clone();
    let epoch = archive.manifest().epoch;
    let scan = tarball::scan(&tree, epoch, &owner_of, &quiet).expect("as packed");
    // What packing finds out is taken away first.
    let draft = Manifest {
        files: Hashed { size: 0, sha256: String::new() },
        payload: Payload { size: 0, sha256: String::new(), entries: 0, content: 0 },
        segments: Vec::new(),
        set_id: Vec::new(),
        capabilities: Vec::new(),
        ..archive.manifest().clone()
    };
    let again = farm.root().join("again");
    tarball::pack(&tree, &scan, draft, &again, 2, None, &quiet).expect("there is room");
    let (one, two) = (hashes(&farm, &path), hashes(&farm, &again));
    say(&two, "unpacked and packed again");
    assert_eq!(one, two);
}
