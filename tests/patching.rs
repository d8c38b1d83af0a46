//! A release is made of what an installed one has and of what that lacks.

mod common;
#[path = "common/signal.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use common::{Farm, tool};
use nix::sys::signal::Signal::SIGKILL;
use signal::{Working, word};
use tiny::Tiny;

const SLEEP: &str = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n";
const TAKEN: &str = "· taking what 1.0 has, unpacking ";
const WHOLE: &str = "· unpacking ";
/// What the file `srv/marked` holds in every release: a block and nothing else has it.
const MARKED: [u8; 4096] = [b'm'; 4096];

/// A release whose large file the others have as well.
fn release(farm: &Farm, version: &str) -> PathBuf {
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    Tiny::new(&tiny::profile("shop", version, SLEEP))
        .zeros("srv/large", 64 << 20)
        .file("srv/marked", std::str::from_utf8(&MARKED).expect("it is ASCII"), 0o644)
        .file("srv/version", version, 0o644)
        .pack(&out)
}

fn installed(farm: &Farm) {
    farm.run(&["install", word(&release(farm, "1.0"))]).ok();
}

#[test]
fn an_install_takes_what_a_release_has_and_the_release_may_go() {
    let farm = Farm::new();
    installed(&farm);
    let second = release(&farm, "1.1");
    let plan = farm.run(&["install", word(&second), "--dry-run"]).ok().stdout;
    let copy = "copy what 1.0 has, unpack what it lacks, and verify all of 6";
    assert!(plan.contains(copy), "{plan}");
    let ran = farm.run(&["install", word(&second)]).ok();
    assert!(ran.stderr.contains(TAKEN), "{}", ran.stderr);
    farm.run(&["remove", "shop", "--release", "1.0"]).ok();
    farm.run(&["verify", "shop", "--release", "1.1"]).ok();
    let version = fs::read_to_string(farm.state("volumes/fv-shop-1.1/root/srv/version"));
    assert_eq!(version.expect("it was unpacked"), "1.1");
    farm.assert_clean();
}

/// There a fork shares what it has in common, and is read-only until it is unsealed.
#[test]
fn on_btrfs_a_snapshot_of_the_release_is_changed() {
    let farm = Farm::on("mkfs.btrfs");
    installed(&farm);
    let ran = farm.run(&["install", word(&release(&farm, "1.1"))]).ok();
    assert!(ran.stderr.contains(TAKEN) && !ran.stderr.contains("warning"), "{}", ran.stderr);
    for version in ["1.0", "1.1"] {
        farm.run(&["verify", "shop", "--release", version]).ok();
    }
    farm.assert_clean();
}

/// Where files can share what they hold, a directory takes no room twice.
#[test]
fn on_xfs_the_files_of_both_releases_share_what_they_hold() {
    let farm = Farm::on("mkfs.xfs");
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&farm.state("volumes")).expect("it is mounted");
        (stat.blocks_free() * stat.fragment_size()) >> 20
    };
    let empty = free();
    installed(&farm);
    let one = free();
    assert!(empty - one >= 64, "{empty} MiB, then {one}");
    let ran = farm.run(&["install", word(&release(&farm, "1.1"))]).ok();
    assert!(ran.stderr.contains(TAKEN) && !ran.stderr.contains("warning"), "{}", ran.stderr);
    let two = free();
    assert!(one.saturating_sub(two) < 16, "{one} MiB, then {two}");
    for version in ["1.0", "1.1"] {
        farm.run(&["verify", "shop", "--release", version]).ok();
    }
    farm.assert_clean();
}

/// btrfs knows that nobody changed a release since its files were verified. Shown by what no
/// install could miss if it read them, a disk that answers other bytes; `verify` does.
#[test]
fn on_btrfs_what_nobody_changed_is_not_read_again() {
    let farm = Farm::on("mkfs.btrfs");
    installed(&farm);
    let image = fs::File::options().read(true).write(true).open(farm.root().join("image"));
    let image = image.expect("it was made");
    let (mut block, mut harmed) = (vec![0; MARKED.len()], 0);
    for offset in (0..1 << 30).step_by(4096) {
        image.read_exact_at(&mut block, offset).expect("it is a file");
        if block == MARKED {
            image.write_all_at(&[0; 512], offset).expect("there is room");
            harmed += 1;
        }
    }
    assert_eq!(harmed, 1, "the file lies elsewhere");
    let ran = farm.run(&["install", word(&release(&farm, "1.1"))]).ok();
    assert!(ran.stderr.contains(TAKEN) && !ran.stderr.contains("warning"), "{}", ran.stderr);
    let ran = farm.run(&["verify", "shop", "--release", "1.1"]);
    let why = "reading srv/marked: Input/output error";
    assert!(ran.code != 0 && ran.error().ends_with(why), "{}", ran.stderr);
    // Papers that are not those it was verified with say nothing.
    let index = farm.state("releases/shop/1.1/files.json");
    let text = fs::read_to_string(&index).expect("it was installed");
    fs::write(&index, text + "\n").expect("root may");
    let ran = farm.run(&["install", word(&release(&farm, "1.2"))]).ok();
    assert!(ran.stderr.contains("warning: not taking what 1.1 has: "), "{}", ran.stderr);
    assert!(ran.stderr.contains(WHOLE), "{}", ran.stderr);
    farm.run(&["verify", "shop", "--release", "1.2"]).ok();
    farm.assert_clean();
}

#[test]
fn on_btrfs_a_release_that_was_changed_is_read_and_not_taken() {
    let farm = Farm::on("mkfs.btrfs");
    installed(&farm);
    // As carefully as one can: size, mode and time stay.
    let harm = "cd \"$0\"; btrfs property set -f . ro false; touch -r srv/marked /run/when
        printf x | dd conv=notrunc status=none of=srv/marked
        touch -r /run/when srv/marked; rm /run/when; btrfs property set . ro true";
    tool("sh", &["-ec", harm, word(&farm.state("volumes/fv-shop-1.0/root"))]);
    let ran = farm.run(&["install", word(&release(&farm, "1.1"))]).ok();
    let why = "warning: not taking what 1.0 has: unpacking shop_1.1_amd64.tar.xz: \
               srv/marked: content";
    assert!(ran.stderr.contains(why) && ran.stderr.contains(WHOLE), "{}", ran.stderr);
    farm.run(&["verify", "shop", "--release", "1.1"]).ok();
    farm.assert_clean();
}

#[test]
fn nothing_is_taken_of_a_release_that_is_not_as_it_was_installed() {
    let farm = Farm::new();
    installed(&farm);
    let large = farm.state("volumes/fv-shop-1.0/root/srv/large");
    fs::write(&large, "somebody's").expect("root may");
    let ran = farm.run(&["install", word(&release(&farm, "1.1"))]).ok();
    assert!(ran.stderr.contains(TAKEN), "{}", ran.stderr);
    let why = "warning: not taking what 1.0 has: unpacking shop_1.1_amd64.tar.xz: \
               copying srv/large: the other release's has 10 bytes instead of 67108864";
    assert!(ran.stderr.contains(why), "{}", ran.stderr);
    assert!(ran.stderr.contains(WHOLE), "{}", ran.stderr);
    farm.run(&["verify", "shop", "--release", "1.1"]).ok();
    assert_eq!(fs::read(&large).expect("it is there"), b"somebody's");
    // Its papers are gone, and so is what they are compared with.
    fs::remove_file(farm.state("releases/shop/1.0/files.json")).expect("it was installed");
    farm.run(&["remove", "shop", "--release", "1.1"]).ok();
    let ran = farm.run(&["install", word(&release(&farm, "1.2"))]).ok();
    assert!(!ran.stderr.contains("taking"), "{}", ran.stderr);
    assert!(ran.stderr.contains(WHOLE), "{}", ran.stderr);
    farm.run(&["verify", "shop", "--release", "1.2"]).ok();
    farm.assert_clean();
}

#[test]
fn a_killed_install_leaves_the_release_it_took_from_whole() {
    let farm = Farm::new();
    installed(&farm);
    let volumes = farm.volumes();
    let second = release(&farm, "1.1");
    assert_eq!(Working::until(&farm, &["install", word(&second)], TAKEN).end(SIGKILL).code, -1);
    farm.run(&["gc"]).ok();
    farm.assert_clean();
    assert_eq!(farm.volumes(), volumes);
    farm.run(&["verify", "shop", "--release", "1.0"]).ok();
    farm.run(&["install", word(&second)]).ok();
    farm.run(&["verify", "shop", "--release", "1.1"]).ok();
}
