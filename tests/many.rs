//! A node with many releases and a long history: to look at it is quick.
//!
//! `FARMCTL_TEST_RELEASES=100 cargo test --release --test many -- --nocapture` prints how
//! quick.

#[path = "common/mod.rs"]
mod common;
#[path = "common/shop.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod shop;
#[expect(dead_code, reason = "other tests use more of it")]
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
use std::time::Instant;

use common::Farm;
use farmctl::history::{self, Outcome};
use farmctl::layout::Layout;
use shop::Shop;
use signal::word;

const SLEEP: &str = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n";
/// As many as fill both files of a history.
const CHANGES: usize = 1500;
/// How often each verb is asked.
const RUNS: usize = 11;

#[test]
#[expect(clippy::print_stderr, reason = "measured figures, shown with --nocapture")]
fn looking_at_many_releases_is_quick() {
    let releases: usize = env::var("FARMCTL_TEST_RELEASES")
        .map_or(5, |count| count.parse().expect("FARMCTL_TEST_RELEASES is a number"));
    let farm = Farm::new();
    let node = farm.root().join("etc/farmctl/node.toml");
    fs::create_dir_all(node.parent().expect("it has one")).expect("there is room");
    fs::write(&node, "keep = 1000\n").expect("there is room");
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    let last = format!("1.{}", releases - 1);
    for number in 0..releases - 1 {
        // The last one is to serve; the others are there.
        let profile = tiny::profile("shop", &format!("1.{number}"), SLEEP);
        let file = tiny::tarball(&profile, &out);
        farm.run(&["install", word(&file)]).ok();
        fs::remove_file(file).expect("it was packed");
    }
    farm.run(&["install", word(&Shop::new(&last).pack(&farm))]).ok();
    let layout = Layout::new(farm.root(), None);
    for number in 0..CHANGES {
        let what = format!("from 1.{number} to 1.{}", number + 1);
        history::begin(&layout, "shop", "upgrade", &what, "anna")
            .and_then(|it| it.end(&layout, "shop", Outcome::Failed, Some("it is not ready")))
            .expect("there is room");
    }
    farm.run(&["start", "shop", "--release", &last]).ok();
    for verb in
        [&["status", "shop"][..], &["list"], &["history", "shop"], &["gc"], &["gc", "--check"]]
    {
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let begun = Instant::now();
            let ran = farm.run(verb).ok();
            times.push(begun.elapsed().as_micros());
            let said = [ran.stdout, ran.stderr].concat();
            let expected = if verb[0] == "gc" { "nothing to collect" } else { &last };
            assert!(said.contains(expected), "{verb:?}: {said}");
        }
        times.sort_unstable();
        let milliseconds = |micros: u128| micros.div_ceil(1000);
        let (middle, most) = (milliseconds(times[RUNS / 2]), milliseconds(times[RUNS - 1]));
        eprintln!("{releases} releases: {} in {middle} ms, at most {most} ms", verb.join(" "));
    }
}
