//! Reloads of real servers under load: each by its own way, and nobody notices.

#[path = "common/broker.rs"]
mod broker;
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod tiny;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Farm, called, copy, run, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use signal::{Working, word};
use web::{Load, get};

const NAME: &str = "servers";
const PORT: u16 = 18_095;
/// Where the broker of tests/queue listens.
const BROKER: u16 = 18_097;
/// How each process takes up new code.
const WAYS: [(&str, &str); 8] = [
    ("php", "USR2"),
    ("uwsgi", "HUP"),
    ("chain", "command"),
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
    for path in ["/php", "/uwsgi", "/chain", "/apache", "/waitress"] {
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
                "command" if process == "pages" => {
                    assert!(!before.is_empty() && !after.is_empty(), "{one}");
                }
                "rolling" => assert!(restarted.insert(one["pid"].as_u64()), "{one}"),
                _ => {
                    assert!(!before.is_empty() && !after.is_empty(), "{one}");
                    assert!(after.iter().all(|pid| !before.contains(pid)), "{one}");
                }
            }
        }
        assert_eq!(done.len(), WAYS.len());
        let report = load.end(Duration::from_secs(5));
        eprintln!("{path}: {report:?}; eight reloads took {took} ms");
        assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{path}: {report:?}");
    }
    farm.run(&["stop", NAME]).ok();
    farm.assert_clean();
}

/// Tasks sent before each step: seconds of work.
const TASKS: [usize; 3] = [400, 150, 150];

#[test]
#[expect(clippy::print_stderr, reason = "measured figures, shown with --nocapture")]
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
    let _broker = broker::start(&farm, BROKER);
    farm.run(&["install", first.to_str().expect("the path is ours")]).ok();
    farm.run(&["start", "queue"]).ok();
    let numbers = farm.root().join("var/lib/farmctl/data/queue/done/numbers");
    // Numbers of the tasks that were done, and when.
    let done = || -> Vec<(usize, f64)> {
        let text = fs::read_to_string(&numbers).unwrap_or_default();
        let parse = |line: &str| -> Option<(usize, f64)> {
            let (number, time) = line.split_once(' ')?;
            Some((number.parse().ok()?, time.parse().ok()?))
        };
        text.lines().map(|line| parse(line).expect("it is a number and a time")).collect()
    };
    let steps: [&[&str]; 3] = [
        &["reload", "queue"],
        &["upgrade", "queue", second.to_str().expect("the path is ours"), "--watch", "1s"],
        &["rollback", "queue", "--watch", "1s"],
    ];
    let mut sent = 0;
    for (step, tasks) in steps.iter().zip(TASKS) {
        let (from, to) = (sent, sent + tasks);
        let send = format!(
            "import sys; sys.path.append('/srv/queue/app'); import tasks\n\
             for number in range({from}, {to}): tasks.note.delay(number)"
        );
        farm.run(&["shell", "queue", "--", "/srv/queue/venv/bin/python", "-c", &send]).ok();
        wait_for("the first task", Duration::from_secs(60), || done().len() > from);
        assert!(done().len() < to, "there is no work left: {step:?}");
        let begun = Instant::now();
        farm.run(step).ok();
        if step[0] == "reload" {
            let took = begun.elapsed().as_millis();
            let done = done();
            assert!(done.len() < to, "there is no work left after {took} ms");
            let ends = done.windows(2).map(|two| two[1].1 - two[0].1);
            let longest = ends.fold(0.0, f64::max);
            eprintln!("replaced in {took} ms, no task done for {longest:.3} s at most");
            assert!(longest < 1.0, "one of the two takes tasks at any time");
        }
        sent = to;
    }
    wait_for("the last task", Duration::from_secs(60), || done().len() >= sent);
    let mut done: Vec<usize> = done().into_iter().map(|(number, _)| number).collect();
    done.sort_unstable();
    assert!(done.into_iter().eq(0..sent));
    farm.run(&["stop", "queue"]).ok();
    farm.assert_clean();
}

/// How many processes have this command line.
fn running(pattern: &str) -> usize {
    run(called("pgrep", &["--full", pattern])).stdout.lines().count()
}

/// How many of the process of [`what_is_replaced_goes_on_until_another_is_ready`] run.
fn replaced() -> usize {
    running("queue-86018$")
}

#[test]
fn what_is_replaced_goes_on_until_another_is_ready() {
    const PROCESS: &str = r#"[[process]]
name = "queue"
command = """sh -c 'test ! -e /srv/calls/short || exit 3; \
  trap "test ! -e /srv/calls/slow || sleep 4.86; exit 0" TERM; while :; do sleep 0.1; done' queue-86018"""
reload = "replace"
ready = { command = "kill -s 0 $pid && test ! -e /srv/calls/unready", within = "4s" }
[[data]]
name = "calls"
path = "/srv/calls"
"#;
    let farm = Farm::new();
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    let tarball = tiny::Tiny::new(&tiny::profile("shop", "1.0", PROCESS)).pack(&out);
    farm.run(&["install", word(&tarball)]).ok();
    farm.run(&["start", "shop"]).ok();
    let pid = || {
        let status = farm.run(&["status", "shop", "--json"]).stdout;
        let status: Value = serde_json::from_str(&status).expect("it is JSON");
        assert_eq!(status["processes"].as_array().map(Vec::len), Some(1), "{status}");
        status["processes"][0]["pid"].as_u64().expect("it runs")
    };
    let troubles = || farm.run(&["tend", "--dry-run"]).stdout;
    let has = |name: &str| {
        fs::write(farm.state("data/shop/calls").join(name), "").expect("there is room");
    };
    let has_not = |name: &str| {
        fs::remove_file(farm.state("data/shop/calls").join(name)).expect("it is there");
    };
    let mut now = pid();
    // From its first seat to the second, and back.
    for _ in 0..2 {
        let said = farm.run(&["reload", "shop"]).ok().stderr;
        assert!(said.contains("queue was replaced by another"), "{said}");
        assert_ne!(pid(), now);
        now = pid();
        assert_eq!((replaced(), troubles().as_str()), (1, ""));
    }

    for (place, reason) in
        [("unready", "it is not ready after 4 s"), ("short", "it ends as soon as it is started")]
    {
        has(place);
        let failed = farm.run(&["reload", "shop"]).failed(1);
        let expected = format!(
            "reloading shop: the new one does not serve, and the one that ran goes on: process \
             queue: {reason}"
        );
        assert!(failed.error().starts_with(&expected), "{}", failed.stderr);
        assert_eq!((pid(), replaced(), troubles().as_str()), (now, 1, ""));
        has_not(place);
    }

    // Killed in between; the new one gets ready, or it does not.
    for is_ready in [false, true] {
        has("unready");
        let working = Working::begin(&farm, &["reload", "shop"]);
        wait_for("the new one", Duration::from_secs(60), || replaced() == 2);
        working.end(Signal::SIGKILL);
        assert_eq!(troubles(), "shop: process queue was being replaced: there are two\n");
        if is_ready {
            has_not("unready");
        }
        let tended = farm.run(&["tend"]).ok().stderr;
        assert!(tended.contains("shop: ending one of two of the process queue"), "{tended}");
        assert_eq!((replaced(), troubles().as_str()), (1, ""));
        assert_eq!(pid() != now, is_ready);
    }
    // And while the old one has something to finish.
    now = pid();
    has("slow");
    let working = Working::begin(&farm, &["reload", "shop"]);
    wait_for("the old one's end", Duration::from_secs(60), || running("^sleep 4.86$") == 1);
    working.end(Signal::SIGKILL);
    farm.run(&["restart", "shop"]).ok();
    assert_ne!(pid(), now);
    assert_eq!((replaced(), troubles().as_str()), (1, ""));
    farm.run(&["stop", "shop"]).ok();
    farm.assert_clean();
}

/// Two processes behind a balancer that writes down what it is told, and refuses or hangs where
/// the test wants it.
struct Balanced {
    farm: Farm,
}

impl Balanced {
    fn start() -> Self {
        const BALANCE: &str = "#!/bin/sh\n\
             echo \"$1 $2\" >> /srv/calls/log\n\
             [ \"$1\" = drain ] || exit 0\n\
             [ ! -e \"/srv/calls/hang-$2\" ] || exec sleep 20\n\
             [ ! -e \"/srv/calls/refuse-$2\" ] || { echo \"no such server: $2\" >&2; exit 1; }\n";
        let farm = Farm::new();
        let process = |name: &str| {
            format!(
                "[[process]]\nname = \"{name}\"\ncommand = \"sleep 86017\"\nreload = \"rolling\"\n\
                 drain = \"/srv/balance drain {name}\"\nadmit = \"/srv/balance admit {name}\"\n\n"
            )
        };
        let data = "[[data]]\nname = \"calls\"\npath = \"/srv/calls\"\n";
        let profile = tiny::profile("shop", "1.0", &(process("one") + &process("two") + data));
        let out = farm.root().join("out");
        fs::create_dir_all(&out).expect("there is room");
        let tarball = tiny::Tiny::new(&profile).file("srv/balance", BALANCE, 0o755).pack(&out);
        farm.run(&["install", word(&tarball)]).ok();
        farm.run(&["start", "shop"]).ok();
        Self { farm }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.farm.state("data/shop/calls").join(name)
    }

    /// What the balancer has been told since it was asked last.
    fn told(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file("log")).unwrap_or_default();
        drop(fs::remove_file(self.file("log")));
        text.lines().map(str::to_owned).collect()
    }

    fn pids(&self) -> [u64; 2] {
        let status = self.farm.run(&["status", "shop", "--json"]).ok().stdout;
        let status: Value = serde_json::from_str(&status).expect("it is JSON");
        [0, 1].map(|index| status["processes"][index]["pid"].as_u64().expect("it runs"))
    }

    fn troubles(&self) -> String {
        self.farm.run(&["tend", "--dry-run"]).stdout
    }
}

#[test]
fn a_process_that_cannot_be_drained_stays_as_it_was_and_so_do_those_after_it() {
    let balanced = Balanced::start();
    let (farm, before) = (&balanced.farm, balanced.pids());
    fs::write(balanced.file("refuse-one"), "").expect("there is room");
    let refused = farm.run(&["reload", "shop"]).failed(1);
    assert!(refused.error().starts_with("reloading shop: drain of one"), "{}", refused.stderr);
    assert!(refused.stderr.contains("no such server: one"), "{}", refused.stderr);
    assert_eq!(refused.hint(), "it was not restarted, and gets requests as before");
    assert_eq!(balanced.told(), ["drain one", "admit one"]);
    assert_eq!(balanced.pids(), before);

    // What went before it has its new code.
    fs::rename(balanced.file("refuse-one"), balanced.file("refuse-two")).expect("it is ours");
    let refused = farm.run(&["reload", "shop"]).failed(1);
    assert!(refused.error().starts_with("reloading shop: drain of two"), "{}", refused.stderr);
    assert_eq!(balanced.told(), ["drain one", "admit one", "drain two", "admit two"]);
    let after = balanced.pids();
    assert!(after[0] != before[0] && after[1] == before[1], "{before:?} {after:?}");
    assert_eq!(balanced.troubles(), "");
    farm.run(&["stop", "shop"]).ok();
    farm.assert_clean();
}

#[test]
fn a_process_that_a_killed_reload_has_left_drained_is_admitted_again() {
    let balanced = Balanced::start();
    let (farm, before) = (&balanced.farm, balanced.pids());
    fs::write(balanced.file("hang-two"), "").expect("there is room");
    let working = Working::begin(farm, &["reload", "shop"]);
    wait_for("the second to be drained", Duration::from_secs(60), || {
        fs::read_to_string(balanced.file("log")).is_ok_and(|told| told.contains("drain two"))
    });
    working.end(Signal::SIGKILL);
    assert_eq!(balanced.told(), ["drain one", "admit one", "drain two"]);
    assert_eq!(balanced.troubles(), "shop: process two was drained and not admitted\n");
    let tended = farm.run(&["tend"]).ok();
    assert!(tended.stderr.contains("shop: admitting the process two"), "{}", tended.stderr);
    assert_eq!(balanced.told(), ["admit two"]);
    assert_eq!(balanced.troubles(), "");
    let after = balanced.pids();
    assert!(after[0] != before[0] && after[1] == before[1], "{before:?} {after:?}");

    // Who interrupts has it admitted at once.
    let working = Working::begin(farm, &["reload", "shop", "two"]);
    wait_for("it to be drained", Duration::from_secs(60), || balanced.file("log").exists());
    assert_eq!(working.end(Signal::SIGINT).code, 130);
    assert_eq!(balanced.told(), ["drain two", "admit two"]);
    assert_eq!(balanced.troubles(), "");
    farm.run(&["stop", "shop"]).ok();
    farm.assert_clean();
}
