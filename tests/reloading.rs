//! Reloads of real servers under load: each by its own way, and nobody notices.

mod common;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Farm, copy};
use serde_json::Value;
use web::{Load, get};

const NAME: &str = "servers";
const PORT: u16 = 18_095;
/// How each process takes up new code.
const WAYS: [(&str, &str); 5] = [
    ("php", "USR2"),
    ("uwsgi", "HUP"),
    ("apache", "USR1"),
    ("pages", "command"),
    ("balance", "USR2"),
];

#[test]
#[expect(clippy::print_stderr, reason = "measured figures, shown with --nocapture")]
fn every_server_is_reloaded_under_load_in_its_own_way_without_a_failure() {
    let farm = Farm::new();
    let directory = farm.root().join("profiles").join(NAME);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(NAME), &directory);
    let tarball = farm.bake(&directory);
    farm.run(&["install", tarball.to_str().expect("the path is ours")]).ok();
    farm.run(&["start", NAME]).ok();
    for path in ["/php", "/uwsgi", "/apache"] {
        let answer = get(PORT, path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let load = Load::start(&format!("http://127.0.0.1:{PORT}{path}"));
        let begun = Instant::now();
        let done = farm.run(&["reload", NAME, "--json"]).ok().stdout;
        let took = begun.elapsed().as_millis();
        let done: Vec<Value> = serde_json::from_str(&done).expect("it is a list");
        for (one, (process, by)) in done.iter().zip(WAYS) {
            assert_eq!((one["process"].as_str(), one["by"].as_str()), (Some(process), Some(by)));
            let pids = |when: &str| one[when].as_array().expect("they are a list").clone();
            let (before, after) = (pids("before"), pids("after"));
            assert!(!before.is_empty() && !after.is_empty(), "{one}");
            if by != "command" {
                assert!(after.iter().all(|pid| !before.contains(pid)), "{one}");
            }
        }
        assert_eq!(done.len(), WAYS.len());
        let report = load.end(Duration::from_secs(5));
        eprintln!("{path}: {report:?}; five reloads took {took} ms");
        assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{path}: {report:?}");
    }
    farm.run(&["stop", NAME]).ok();
    farm.assert_clean();
}
