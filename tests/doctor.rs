//! `farmctl doctor --fix`: what was broken about a node that serves is mended.

mod common;
#[path = "common/shop.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod shop;
#[path = "common/signal.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod signal;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod tiny;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use common::Farm;
use nix::sys::signal::Signal;
use shop::{Shop, assert_alone, assert_serves};
use signal::{Working, word};
use tiny::Tiny;

const DEFINITION: &str = "/etc/schroot/chroot.d/farmctl-shop-1.0";
const VHOST: &str = "/etc/nginx/sites-enabled/farmctl-shop";

#[test]
fn what_is_broken_is_named_and_mended() {
    let farm = Farm::new();
    Shop { rest: "[[secret]]\nname = \"KEY\"\ngenerate = true\n", ..Shop::new("1.0") }.start(&farm);
    let said = farm.run(&["doctor"]).ok().stdout;
    assert!(said.lines().any(|line| line == "good  application shop    1.0 is started"), "{said}");

    let definition = fs::read_to_string(DEFINITION).expect("it is registered");
    fs::write(DEFINITION, format!("{definition}users=nobody\n")).expect("tests run as root");
    fs::remove_file(VHOST).expect("it is published");
    let secrets = farm.root().join("etc/farmctl/apps/shop.env");
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o644)).expect("it is there");
    let second = tiny::profile("shop", "1.1", "[[process]]\nname = \"web\"\ncommand = \"true\"\n");
    let second = Tiny::new(&second).zeros("srv/large", 128 << 20).pack(farm.root());
    let install = Working::until(&farm, &["install", word(&second)], "unpacking");
    assert_eq!(install.end(Signal::SIGKILL).code, -1);

    let found = farm.run(&["doctor"]);
    assert_eq!(found.code, 3, "{}", found.stdout);
    for (what, detail, fix) in [
        (
            "application shop",
            "the files that tell schroot of farmctl-shop-1.0 were changed; the vhost is not \
             published: farmctl doctor --fix",
            "register farmctl-shop-1.0 with schroot",
        ),
        ("application shop", "the vhost is not published", "bring back what should run"),
        ("secrets", "shop.env can be read by others: chmod 600", "shop.env root's alone"),
        ("leftovers", "1 unfinished transaction: farmctl gc", "remove what unfinished work left"),
    ] {
        let line = found.stdout.lines().find(|line| line.contains(what)).unwrap_or_default();
        assert!(line.starts_with("bad ") && line.contains(detail), "{detail}\n{}", found.stdout);
        let offer =
            |line: &str| line.starts_with("· farmctl doctor --fix would ") && line.ends_with(fix);
        assert!(found.stderr.lines().any(offer), "{fix}\n{}", found.stderr);
    }

    let mended = farm.run(&["doctor", "--fix"]).ok();
    assert!(!mended.stdout.contains("bad "), "{}", mended.stdout);
    let again = fs::read_to_string(DEFINITION).expect("it is registered");
    let without = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("farmctl.transaction="));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(without(&again), without(&definition));
    assert!(Path::new(VHOST).is_symlink());
    let mode = fs::metadata(&secrets).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_serves("1.0");
    assert_alone(&farm);
    let nothing = farm.run(&["doctor", "--fix"]).ok();
    assert_eq!(nothing.stderr, "", "there was nothing left to do");

    let (mark, away) = (farm.state("volumes/fv-shop-1.0/volume.json"), farm.root().join("away"));
    fs::rename(&mark, &away).expect("it is there");
    let found = farm.run(&["doctor"]);
    fs::rename(&away, &mark).expect("it was moved");
    assert_eq!(found.code, 3, "{}", found.stdout);
    let gone = "volume fv-shop-1.0 is not on directory: farmctl remove shop --release 1.0, then \
                install it again\n";
    assert!(found.stdout.contains(gone), "{}", found.stdout);
}
