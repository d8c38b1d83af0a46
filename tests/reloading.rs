//! Reloads of real servers under load: each by its own way, and nobody notices.

mod common;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Farm, Running, called, copy, wait_for};
use serde_json::Value;
use web::{Load, get};

const NAME: &str = "servers";
const PORT: u16 = 18_095;
/// Where the broker of tests/queue listens.
const BROKER: u16 = 18_097;
/// How each process takes up new code.
const WAYS: [(&str, &str); 7] = [
    ("php", "USR2"),
    ("uwsgi", "HUP"),
    ("apache", "USR1"),
    ("pages", "command"),
    ("one", "rolling"),
    ("two", "rolling"),
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
    let mut restarted = BTreeSet::new();
    for path in ["/php", "/uwsgi", "/apache", "/waitress"] {
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
            match by {
                // The workers that wait for their last requests are there with the new ones.
                "command" => assert!(!before.is_empty() && !after.is_empty(), "{one}"),
                "rolling" => assert!(restarted.insert(one["pid"].as_u64()), "{one}"),
                _ => {
                    assert!(!before.is_empty() && !after.is_empty(), "{one}");
                    assert!(after.iter().all(|pid| !before.contains(pid)), "{one}");
                }
            }
        }
        assert_eq!(done.len(), WAYS.len());
        let report = load.end(Duration::from_secs(5));
        eprintln!("{path}: {report:?}; seven reloads took {took} ms");
        assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{path}: {report:?}");
    }
    farm.run(&["stop", NAME]).ok();
    farm.assert_clean();
}

/// Tasks sent before each step: seconds of work.
const TASKS: usize = 150;

/// Starts a Redis.
fn broker(farm: &Farm) -> Running {
    // The package with the daemon would start one; its program is this one by that name.
    let program = farm.root().join("redis-server");
    symlink("/usr/bin/redis-check-rdb", &program).expect("there is room");
    let program = program.to_str().expect("the path is ours");
    let port = BROKER.to_string();
    let mut command = called(program, &["--port", &port, "--bind", "127.0.0.1", "--save", ""]);
    let child = command.stdout(Stdio::null()).spawn().expect("redis-tools is installed");
    let broker = Running(child);
    wait_for("Redis", Duration::from_secs(10), || {
        TcpStream::connect(("127.0.0.1", BROKER)).is_ok()
    });
    broker
}

#[test]
fn no_task_is_lost_or_done_twice_when_its_worker_is_replaced() {
    let farm = Farm::new();
    let directory = farm.root().join("profiles/queue");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/queue"), &directory);
    let first = farm.bake(&directory);
    let profile = directory.join("profile.toml");
    let text = fs::read_to_string(&profile).expect("it was copied");
    fs::write(&profile, text.replace("version = \"1.0\"", "version = \"1.1\""))
        .expect("it was copied");
    let second = farm.bake(&directory);
    let _broker = broker(&farm);
    farm.run(&["install", first.to_str().expect("the path is ours")]).ok();
    farm.run(&["start", "queue"]).ok();
    let numbers = farm.root().join("var/lib/farmctl/data/queue/done/numbers");
    let done = || -> Vec<usize> {
        let text = fs::read_to_string(&numbers).unwrap_or_default();
        text.lines().map(|line| line.parse().expect("it is a number")).collect()
    };
    let steps: [&[&str]; 3] = [
        &["reload", "queue"],
        &["upgrade", "queue", second.to_str().expect("the path is ours"), "--watch", "1s"],
        &["rollback", "queue", "--watch", "1s"],
    ];
    for (number, step) in steps.iter().enumerate() {
        let (from, to) = (number * TASKS, (number + 1) * TASKS);
        let send = format!(
            "import sys; sys.path.append('/srv/queue/app'); import tasks\n\
             for number in range({from}, {to}): tasks.note.delay(number)"
        );
        farm.run(&["shell", "queue", "--", "/srv/queue/venv/bin/python", "-c", &send]).ok();
        wait_for("the first task", Duration::from_secs(20), || done().len() > from);
        assert!(done().len() < to, "there is no work left: {step:?}");
        farm.run(step).ok();
    }
    wait_for("the last task", Duration::from_secs(60), || done().len() >= steps.len() * TASKS);
    let mut done = done();
    done.sort_unstable();
    assert!(done.into_iter().eq(0..steps.len() * TASKS));
    farm.run(&["stop", "queue"]).ok();
    farm.assert_clean();
}
