//! The same lock gives the same bytes, wherever and whenever it is baked.
//!
//! The default test bakes twice: here, and where everything is different at once, out of
//! the pool in an empty network namespace. `every_variation_alone_gives_the_same_bytes`
//! takes an environment and a bake for each, a quarter of an hour:
//! `scripts/test --test reproducible -- --ignored`.
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

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Farm, tool};

/// The application: `hello` may really run here.
const TWIN: &str = "twin";
const PORT: u16 = 18_087;
/// Where preloaded programs find the library, on the host and in a tree.
const LIBRARY: &str = "/run/farmctl-elsewhere.so";

/// Where and how a bake is made. The default is: here and now.
#[derive(Clone, Debug, Default)]
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
    /// The library with the changes, and programs that preload it into what runs in a tree.
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
        for (program, given) in [
            ("chroot", format!("[ -e \"$1{LIBRARY}\" ] || cp {LIBRARY} \"$1/run/\" 2>/dev/null\n")),
            ("debootstrap", String::new()),
        ] {
            let real = work.join(format!("{program}.real"));
            fs::copy(Path::new("/usr/sbin").join(program), &real).expect("it is installed");
            let script =
                format!("#!/bin/sh\n{given}LD_PRELOAD={LIBRARY} exec {} \"$@\"\n", real.display());
            let path = work.join(program);
            fs::write(&path, script).expect("there is room");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
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
            for program in ["chroot", "debootstrap"] {
                say(&format!("mount --bind {}/{program} /usr/sbin/{program}", work.display()));
            }
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
        say(&format!("{farmctl} bake '{profile}' {offline} --output {tarballs}"));
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

/// A copy of `hello`, locked.
fn locked(farm: &Farm) -> PathBuf {
    let profile = farm.profile("hello", TWIN, PORT);
    farm.run(&["bootstrap", text(&profile)]).ok();
    farm.run(&["lock", text(&profile)]).ok();
    farm.run(&["remove", "--environment", TWIN]).ok();
    profile
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
    let profile = locked(&farm);
    let here = Place { name: "here and now", ..Place::default() };
    let first = here.bake(&farm, &profile, true);
    say(&hashes(&farm, &first), here.name);
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
    let here = Place { name: "here", ..Place::default() };
    let there = Place {
        name: "there",
        host: ELSEWHERE.host,
        changes: ELSEWHERE.changes,
        ..Place::default()
    };
    let [one, other] = [here, there].map(|place| place.bake(&farm, &directory, false));
    assert_ne!(hashes(&farm, &one).1, hashes(&farm, &other).1);
    let diff = farm.run(&["diff", text(&one), text(&other)]);
    assert_eq!(diff.code, 3);
    for what in ["time", "host", "order"] {
        let line = format!("  changed  /etc/seen-{what}: content\n");
        assert!(diff.stdout.contains(&line), "{}", diff.stdout);
    }
}

#[test]
#[ignore = "a quarter of an hour"]
fn every_variation_alone_gives_the_same_bytes() {
    let farm = Farm::new();
    let profile = locked(&farm);
    let here = Place { name: "here and now", ..Place::default() };
    let first = here.bake(&farm, &profile, true);
    say(&hashes(&farm, &first), here.name);
    let of = |name: &'static str| Place { name, ..Place::default() };
    for place in [
        Place { host: ELSEWHERE.host, ..of("another host name") },
        Place { environment: &USER[..1], ..of("TZ=GMT-14") },
        Place { environment: &USER[1..3], ..of("another locale") },
        Place { environment: &USER[3..], ..of("another HOME, user and PATH") },
        Place { umask: ELSEWHERE.umask, ..of("umask 0077") },
        Place { moved: true, ..of("another checkout path") },
        Place { one_cpu: true, ..of("1 CPU") },
        Place { btrfs: true, ..of("btrfs") },
        // Without a network: certificates have expired by then.
        Place { changes: &["CLOCK"], offline: true, ..of("400 days later, another time of day") },
        Place { changes: &["ORDER"], ..of("directories in another order") },
        Place { offline: true, ..of("without a network") },
    ] {
        let other = place.bake(&farm, &profile, true);
        assert_same(&farm, &place, &first, &other);
    }
}
