//! Moving an application from release to release while visitors come: none may notice, and
//! whatever goes wrong, one whole release serves.
//!
//! The application is a real nginx that listens on its socket: as a server it is as good as
//! any, and its tarball is made in a second.

#[path = "common/mod.rs"]
mod common;
#[path = "common/shop.rs"]
mod shop;
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/web.rs"]
mod web;

use std::env;
use std::fs;
use std::time::{Duration, Instant};

use common::{Farm, wait_for};
use nix::sys::signal::Signal;
use shop::{PORT, Shop, assert_alone, assert_serves, url};
use signal::{Working, masked, runs, word};
use web::{Load, get};

/// How long farmctl and the machine may take to settle.
const SOON: Duration = Duration::from_secs(60);

/// Milliseconds from the call to the first answer of the release.
fn timed(farm: &Farm, arguments: &[&str], version: &str) -> u128 {
    let begun = Instant::now();
    let mut command = farm.command(arguments);
    let mut working = command.spawn().expect("farmctl can be started");
    wait_for("the switch", SOON, || get(PORT, "/").body == version);
    let switched = begun.elapsed().as_millis();
    assert!(working.wait().expect("it is our child").success(), "{arguments:?} failed");
    switched
}

/// Upgrades, rollbacks and reloads by turns while requests come at half the rate that is
/// possible: as many as `FARMCTL_TEST_SWITCHES` says. Who says that has nothing else running,
/// and times are judged, too.
#[expect(clippy::print_stderr, reason = "measured figures, shown with --nocapture")]
fn switch_often(farm: &Farm, storage: &str) {
    let asked = env::var("FARMCTL_TEST_SWITCHES").ok();
    let rounds: usize = asked
        .as_deref()
        .map_or(10, |count| count.parse().expect("FARMCTL_TEST_SWITCHES is a number"));
    Shop::new("1.0").start(farm);
    let status = farm.run(&["status", "shop"]).ok().stdout;
    assert!(status.contains(&format!("\nstorage      {storage}, ")), "{status}");
    let second = Shop::new("1.1").pack(farm);
    let pause = Load::pause_for_half(&url());
    let usual = Load::pausing(&url(), pause).end(Duration::from_secs(5));
    let load = Load::pausing(&url(), pause);
    // A visitor with a slow line keeps the answer that has begun.
    let slow = std::thread::spawn(|| get(PORT, "/slow"));
    let quick = ["--watch", "1s"];
    let mut upgrades =
        vec![timed(farm, &[&["upgrade", "shop", word(&second)][..], &quick].concat(), "1.1")];
    let slow = slow.join().expect("it was answered");
    assert_eq!((slow.status, slow.body.len()), (200, 100 << 10));
    let mut rollbacks = Vec::new();
    for round in 1..rounds {
        let next = if get(PORT, "/").body == "1.0" { "1.1" } else { "1.0" };
        match round % 3 {
            1 => rollbacks.push(timed(farm, &["rollback", "shop"], next)),
            2 => drop(farm.run(&["reload", "shop"]).ok()),
            _ => {
                let upgrade = [&["upgrade", "shop", next][..], &quick].concat();
                upgrades.push(timed(farm, &upgrade, next));
            }
        }
    }
    let report = load.end(Duration::from_secs(1));
    eprintln!(
        "{rounds} switches and reloads on {storage}: {} requests, {} a second, {} failed; \
         p50 {:.1?}, p99 {:.1?}, without switches {:.1?} and {:.1?}; to the switch: upgrades {}, \
         rollbacks {}",
        report.requests,
        report.rate,
        report.socket_errors + report.bad_answers,
        report.p50,
        report.p99,
        usual.p50,
        usual.p99,
        spread(&mut upgrades),
        spread(&mut rollbacks),
    );
    if asked.is_some() {
        assert!(report.p99 <= 3 * usual.p99, "{:?} without switches: {report:?}", usual.p99);
        assert!(rollbacks.iter().all(|time| *time < 2000), "{rollbacks:?}");
    }
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert!(report.requests > 1000, "{report:?}");
    assert_alone(farm);
    let status = farm.run(&["status", "shop"]).ok().stdout;
    assert!(status.starts_with("shop         running\n"), "{status}");
    // Twice leads forward again.
    let now = get(PORT, "/").body;
    farm.run(&["rollback", "shop"]).ok();
    assert_ne!(get(PORT, "/").body, now);
    farm.run(&["rollback", "shop"]).ok();
    assert_serves(&now);
}

/// The median and the most of some milliseconds, in words.
fn spread(times: &mut [u128]) -> String {
    times.sort_unstable();
    let Some(most) = times.last() else { return "none".to_owned() };
    format!("{} ms, at most {most} ms", times[times.len() / 2])
}

#[test]
fn no_request_is_lost_over_many_switches() {
    switch_often(&Farm::new(), "directory");
}

#[test]
fn no_request_is_lost_over_many_switches_on_btrfs() {
    switch_often(&Farm::on("mkfs.btrfs"), "btrfs");
}

#[test]
fn whatever_is_wrong_with_a_release_the_one_before_serves_on() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    let migrate = "[[job]]\nname = \"migrate\"\nwhen = \"upgrade\"\n\
                   command = \"sh -c 'echo no such column: price; exit 1'\"\n";
    let cases = [
        (
            Shop { ready: 503, ..Shop::new("2.1") },
            "upgrading shop from 1.0 to 2.1: process web: it is not ready after N s: it answers N",
            0,
        ),
        (
            Shop { rest: migrate, ..Shop::new("2.2") },
            "upgrading shop from 1.0 to 2.2: job migrate: exit status 1\n  | no such column: price",
            0,
        ),
        (
            Shop { before: "timeout 10 ", ..Shop::new("2.3") },
            "upgrading shop from 1.0 to 2.3: 1.0 serves again: process web: ",
            // Until that is seen, what stands by answers.
            0,
        ),
        (
            // It answers 500, and prints why.
            Shop { locations: "location = / { try_files /nothing /; }", ..Shop::new("2.4") },
            "upgrading shop from 1.0 to 2.4: 1.0 serves again: N of N requests failed since the \
             switch\n  | ",
            1,
        ),
        (
            // It breaks off every page; what stands by answers all of them.
            Shop { locations: "location = / { return 444; }", ..Shop::new("2.5") },
            "upgrading shop from 1.0 to 2.5: 1.0 serves again: N of N requests failed since the \
             switch",
            0,
        ),
        (
            Shop {
                locations: "location = / { try_files /nothing /; }",
                front: "warm-up = [\"/\"]",
                ..Shop::new("2.6")
            },
            "upgrading shop from 1.0 to 2.6: process web: it answers N to /\n  | ",
            0,
        ),
    ];
    for (shop, error, failures) in cases {
        let file = shop.pack(&farm);
        let load = Load::start(&url());
        let ran = farm.run(&["upgrade", "shop", word(&file), "--watch", "20s"]).failed(1);
        let report = load.end(Duration::from_secs(1));
        let number = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        let said: Vec<String> = masked(ran.error(), &farm)
            .split(' ')
            .map(|word| if number(word) { "N".to_owned() } else { word.to_owned() })
            .collect();
        let said = said.join(" ");
        assert!(said.starts_with(error), "{said}\nis not\n{error}");
        let printed = "rewrite or internal redirection cycle";
        assert_eq!(said.contains(printed), ["2.4", "2.6"].contains(&shop.version), "{said}");
        assert_eq!(report.bad_answers > 0, failures > 0, "{}: {report:?}", shop.version);
        assert_eq!(report.socket_errors, 0, "{}: {report:?}", shop.version);
        assert_serves("1.0");
        assert_alone(&farm);
        farm.run(&["status", "shop"]).ok();
    }
    assert!(!runs("timeout 10 nginx"), "a process of a failed release is left");
}

#[test]
fn a_disk_that_gets_full_in_an_upgrade_costs_nothing() {
    // So few inodes that they are soon used up: of bytes, enough is asked for beforehand.
    let farm = Farm::on("mkfs.ext4 -N 1000");
    Shop::new("1.0").start(&farm);
    let file = Shop::new("1.1").pack(&farm);
    let load = Load::start(&url());
    let volumes = farm.state("volumes");
    let free = nix::sys::statvfs::statvfs(&volumes).expect("it is mounted").files_free();
    let filler = volumes.join("filler");
    fs::create_dir(&filler).expect("there is room");
    for number in 0..free - 20 {
        fs::write(filler.join(number.to_string()), "").expect("there is room");
    }
    let ran = farm.run(&["upgrade", "shop", word(&file)]).failed(1);
    assert!(ran.error().starts_with("installing shop 1.1: "), "{}", ran.stderr);
    assert!(ran.error().ends_with("No space left on device"), "{}", ran.stderr);
    assert_serves("1.0");
    assert_alone(&farm);
    fs::remove_dir_all(filler).expect("it is ours");
    farm.run(&["upgrade", "shop", word(&file), "--watch", "1s"]).ok();
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert_serves("1.1");
    assert_alone(&farm);
}

#[test]
fn killed_in_the_middle_of_a_switch_one_whole_release_serves() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    farm.run(&["install", word(&Shop::new("1.1").pack(&farm))]).ok();
    for at in [
        "beginning session",
        "starting the process",
        "leading requests",
        "watching it",
        "ending session",
    ] {
        let load = Load::start(&url());
        drop(
            Working::until(&farm, &["upgrade", "shop", "1.1", "--watch", "2s"], at)
                .end(Signal::SIGKILL),
        );
        farm.run(&["gc"]).ok();
        farm.run(&["tend"]).ok();
        assert_alone(&farm);
        let serving = get(PORT, "/").body;
        assert!(["1.0", "1.1"].contains(&serving.as_str()), "{at}: {serving}");
        let status = farm.run(&["status", "shop"]).ok().stdout;
        assert!(status.contains(&format!("{serving} (sha256")), "{at}: {status}");
        // The verb repeated finishes the work.
        farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok();
        assert_serves("1.1");
        farm.run(&["rollback", "shop"]).ok();
        assert_serves("1.0");
        let report = load.end(Duration::from_secs(1));
        assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{at}: {report:?}");
        assert_alone(&farm);
    }
}

/// A rename(2) is where a change begins to count: state, links, vhosts.
#[test]
fn killed_at_any_rename_of_a_switch_one_whole_release_serves() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    // Another vhost, so that there is more to rename.
    let second = Shop { front: "max-body-mib = 17", ..Shop::new("1.1") }.pack(&farm);
    farm.run(&["install", word(&second)]).ok();
    let load = Load::start(&url());
    let upgrade = ["upgrade", "shop", "1.1", "--watch", "1s"];
    let mut renames = 0;
    for count in 1.. {
        // farmctl itself, and none of the tools it starts.
        let calls = "/^rename";
        let inject = format!("inject={calls}:signal=KILL:when={count}");
        let mut strace = vec!["-qq", "-o", "/dev/null", "-e", &inject, common::FARMCTL];
        let root = farm.root().to_owned();
        strace.extend(["--root", word(&root)]);
        strace.extend(upgrade);
        let ran = common::run(common::called("strace", &strace));
        if ran.code == 0 {
            break;
        }
        assert_eq!(ran.code, -1, "rename {count}: {}", ran.stderr);
        renames = count;
        let serving = get(PORT, "/").body;
        assert!(["1.0", "1.1"].contains(&serving.as_str()), "rename {count}: {serving}");
        // By turns, whoever comes first finishes the work.
        let verb = if count % 2 == 0 { &["tend"][..] } else { &upgrade };
        farm.run(verb).ok();
        assert_alone(&farm);
        farm.run(&["status", "shop"]).ok();
        farm.run(&upgrade).ok();
        assert_serves("1.1");
        farm.run(&["rollback", "shop", "--watch", "1s"]).ok();
        assert_serves("1.0");
        assert_alone(&farm);
    }
    assert!(renames > 5, "only {renames}");
    // nginx before 1.27.4 resets idle connections at a reload, and the vhosts differ.
    let report = load.end(Duration::from_secs(1));
    assert_eq!(report.bad_answers, 0, "{report:?}");
    assert_alone(&farm);
}
