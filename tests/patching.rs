//! A release is made of what an installed one has and of what that lacks.

mod common;
#[path = "common/signal.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::path::PathBuf;

use common::{Farm, in_namespace, tool};
use nix::sys::signal::Signal::SIGKILL;
use signal::{Working, word};
use tiny::Tiny;

const SLEEP: &str = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n";
const TAKEN: &str = "· forking 1.0, unpacking ";
const WHOLE: &str = "· unpacking ";

/// A release whose large file the others have as well.
fn release(farm: &Farm, version: &str) -> PathBuf {
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    Tiny::new(&tiny::profile("shop", version, SLEEP))
        .zeros("srv/large", 64 << 20)
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
    assert!(plan.contains("fork volume fv-shop-1.0: directory"), "{plan}");
    assert!(plan.contains("unpack what 1.0 lacks, and verify all of 6"), "{plan}");
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
    if !in_namespace("on_btrfs_a_snapshot_of_the_release_is_changed") {
        return;
    }
    let farm = Farm::new();
    let (image, volumes) = (farm.root().join("image"), farm.state("volumes"));
    fs::File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("there is room");
    fs::create_dir_all(&volumes).expect("there is room");
    tool("mkfs.btrfs", &["--quiet", word(&image)]);
    tool("mount", &["-o", "loop", word(&image), word(&volumes)]);
    installed(&farm);
    let ran = farm.run(&["install", word(&release(&farm, "1.1"))]).ok();
    assert!(ran.stderr.contains(TAKEN) && !ran.stderr.contains("warning"), "{}", ran.stderr);
    for version in ["1.0", "1.1"] {
        farm.run(&["verify", "shop", "--release", version]).ok();
    }
    farm.run(&["remove", "shop", "--data"]).ok();
    farm.assert_clean();
    tool("umount", &[word(&volumes)]);
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
               srv/large: 10 bytes instead of 67108864";
    assert!(ran.stderr.contains(why), "{}", ran.stderr);
    assert!(ran.stderr.contains(WHOLE), "{}", ran.stderr);
    farm.run(&["verify", "shop", "--release", "1.1"]).ok();
    assert_eq!(fs::read(&large).expect("it is there"), b"somebody's");
    // Its papers are gone, and so is what they are compared with.
    fs::remove_file(farm.state("releases/shop/1.0/files.json")).expect("it was installed");
    farm.run(&["remove", "shop", "--release", "1.1"]).ok();
    let ran = farm.run(&["install", word(&release(&farm, "1.2"))]).ok();
    assert!(!ran.stderr.contains("forking"), "{}", ran.stderr);
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
