//! What surrounds the switch of an application from release to release: what nginx is told
//! and when, what stands by, what a killed farmctl left, and what is known of it all later.

#![expect(clippy::disallowed_types, reason = "tests start the program as a user does")]

#[path = "common/mod.rs"]
mod common;
#[path = "common/shop.rs"]
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

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Farm, tool, wait_for};
use nix::sys::signal::Signal;
use shop::{PORT, Shop, assert_alone, assert_serves, url};
use signal::{Working, runs, word};
use web::{Load, ask, get, get_with};

/// Where a site that is not farmctl's listens.
const FOREIGN: u16 = 18_086;
/// How long nginx may take to take up a configuration.
const SOON: Duration = Duration::from_secs(20);

/// A site of somebody else's in nginx, gone with the test.
struct Foreign(PathBuf);

impl Foreign {
    fn new(text: &str) -> Self {
        let path = PathBuf::from("/etc/nginx/sites-enabled/zz-farmctl-test");
        fs::write(&path, text).expect("tests run as root");
        Self(path)
    }

    /// One that serves.
    #[track_caller]
    fn serving() -> Self {
        let text = "listen 127.0.0.1:18086 default_server; location / { return 200 foreign; }";
        let site = Self::new(&format!("server {{ {text} }}\n"));
        tool("nginx", &["-s", "reload"]);
        wait_for("the foreign site", SOON, || {
            std::net::TcpStream::connect(("127.0.0.1", FOREIGN)).is_ok()
        });
        site
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
        drop(std::process::Command::new("nginx").args(["-s", "reload"]).status());
    }
}

fn vhost() -> String {
    fs::read_to_string("/etc/nginx/sites-enabled/farmctl-shop").expect("it is published")
}

#[test]
fn while_a_release_is_watched_the_one_before_answers_what_it_breaks_off() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    // 444 has nginx close the connection without a word.
    let broken = Shop { locations: "location = /gone { return 444; }", ..Shop::new("1.1") };
    let file = broken.pack(&farm);
    let watched =
        Working::until(&farm, &["upgrade", "shop", word(&file), "--watch", "600s"], "watching");
    assert_serves("1.1");
    let answer = get(PORT, "/gone");
    assert_eq!((answer.status, answer.body.as_str()), (200, "1.0"));
    // What may not be done twice is not asked twice, once it is sent.
    assert_eq!(ask("POST", PORT, "/gone", "Content-Length: 0\r\n").status, 503);
    assert_eq!(watched.end(Signal::SIGINT).code, 130);
    assert_serves("1.0");
    assert_alone(&farm);
    // Not watched any more, it is asked alone, once.
    farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok();
    assert_eq!(get(PORT, "/gone").status, 503);
    assert_serves("1.1");
    assert_alone(&farm);
}

#[test]
fn a_vhost_nginx_refuses_costs_nothing() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    let before = vhost();
    // It is not even replaced for a moment, in which nginx might be started by others.
    let published = || fs::metadata("/etc/nginx/sites-available/farmctl-shop").map(|it| it.ino());
    let file = published().expect("it serves");
    let foreign = Foreign::serving();
    let larger = Shop { front: "max-body-mib = 17", ..Shop::new("1.1") }.pack(&farm);
    let taken = Shop { listen: ", \"127.0.0.1:18086\"", ..Shop::new("1.2") }.pack(&farm);
    let load = Load::start(&url());
    let refused = farm.run(&["upgrade", "shop", word(&taken)]).failed(1);
    assert_eq!(
        refused.error(),
        "upgrading shop from 1.0 to 1.2: publishing the vhost farmctl-shop: nginx refuses it: a \
         duplicate default server for 127.0.0.1:18086 in /etc/nginx/sites-enabled/zz-farmctl-test:1"
    );
    assert!(refused.hint().starts_with("another vhost takes all names"), "{}", refused.hint());
    assert_eq!(get(FOREIGN, "/").body, "foreign");
    // Somebody saves a fault into the other site: nginx has not been told yet.
    fs::write(&foreign.0, "server { bogus; }\n").expect("it is ours");
    let refused = farm.run(&["upgrade", "shop", word(&larger)]).failed(1);
    assert_eq!(
        refused.error(),
        "upgrading shop from 1.0 to 1.1: publishing the vhost farmctl-shop: nginx's configuration \
         is not valid already without the new vhost: unknown directive \"bogus\" in \
         /etc/nginx/sites-enabled/zz-farmctl-test:1"
    );
    assert_eq!(refused.hint(), "correct it and try again: nginx -t");
    assert_eq!(vhost(), before);
    assert_eq!(published().expect("it serves"), file);
    assert_serves("1.0");
    // A release with the same vhost needs no word of nginx.
    let same = Shop::new("1.3").pack(&farm);
    farm.run(&["upgrade", "shop", word(&same), "--watch", "1s"]).ok();
    assert_serves("1.3");
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert_eq!(get(FOREIGN, "/").body, "foreign");
    assert_alone(&farm);
}

/// The header by which a browser asks for what it has not got yet.
fn etag(path: &str) -> String {
    let head = get(PORT, path).head;
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: "));
    format!("If-None-Match: {}\r\n", tag.unwrap_or_else(|| panic!("{head}")))
}

#[test]
fn a_changed_vhost_is_in_force_before_the_first_page_of_its_release() {
    let statics = |locations: &[&str]| -> String {
        let one =
            |it: &&str| format!("[[front.static]]\nlocation = \"{it}\"\npath = \"/srv/static\"\n");
        locations.iter().map(one).collect()
    };
    let farm = Farm::new();
    let first = statics(&["/static/"]);
    Shop { front: &first, ..Shop::new("1.0") }.start(&farm);
    // The location has another place among them: its files are the same place's.
    let both = statics(&["/assets/", "/static/"]);
    let second = Shop { front: &both, ..Shop::new("1.1") }.pack(&farm);
    let page = format!("{}static/page.css", url());
    let load = Load::start(&page);
    let (style, logo) = (etag("/static/page.css"), etag("/static/logo.txt"));
    farm.run(&["upgrade", "shop", word(&second), "--watch", "1s"]).ok();
    // What a browser has is good if it is as it was.
    assert_eq!(get_with(PORT, "/static/logo.txt", &logo).status, 304);
    assert_eq!(get_with(PORT, "/static/page.css", &style).body, "1.1");
    assert_eq!(get(PORT, "/assets/page.css").body, "1.1");
    assert_eq!(get(PORT, "/static/page.css").body, "1.1");
    farm.run(&["rollback", "shop"]).ok();
    assert_eq!(get(PORT, "/static/page.css").body, "1.0");
    assert_eq!(get(PORT, "/assets/page.css").body, "1.0", "the application's own answer");
    // One that does not prove itself takes its vhost with it.
    let before = vhost();
    let bad = Shop { front: &both, page: 500, ..Shop::new("1.2") }.pack(&farm);
    let more = Load::start(&url());
    farm.run(&["upgrade", "shop", word(&bad), "--watch", "60s"]).failed(1);
    drop(more);
    assert_eq!(vhost(), before);
    assert_eq!(get(PORT, "/static/page.css").body, "1.0");
    // nginx before 1.27.4 resets idle connections at a reload: no promise about those.
    let report = load.end(Duration::from_secs(1));
    assert_eq!(report.bad_answers, 0, "{report:?}");
    assert_alone(&farm);
}

/// What status ends with while something is left of a verb that was killed.
fn unfinished(verb: &str) -> String {
    format!("\nhint         farmctl tend clears up after it; the same farmctl {verb} finishes it\n")
}

#[test]
fn the_verb_repeated_finishes_what_a_killed_one_began() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    farm.run(&["install", word(&Shop::new("1.1").pack(&farm))]).ok();
    // What runs then: the old session, and of the new one all but the switch.
    let kill = || {
        let upgrade = Working::until(&farm, &["upgrade", "shop", "1.1"], "starting the process");
        drop(upgrade.end(Signal::SIGKILL));
        let status = farm.run(&["status", "shop"]).ok().stdout;
        let said = status.lines().find(|line| line.starts_with("last change"));
        let said = said.expect("there has been one");
        assert!(said.contains("upgrade from 1.0 to 1.1 by root, cut short"), "{said}");
        assert!(status.ends_with(&unfinished("upgrade")), "{status}");
        assert_eq!(farm.run(&["gc", "--check"]).code, 3, "something is left");
    };
    kill();
    let again = farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok().stderr;
    assert!(again.contains(" of the upgrade that was cut short\n"), "{again}");
    assert_serves("1.1");
    assert_alone(&farm);
    farm.run(&["rollback", "shop"]).ok();
    kill();
    farm.run(&["tend"]).ok();
    assert_serves("1.0");
    assert_alone(&farm);
    let status = farm.run(&["status", "shop"]).ok().stdout;
    let rows: Vec<&str> = status.lines().rev().take(2).collect();
    assert!(rows[1].starts_with("last change  upgrade from 1.0 to 1.1 by root, cut"), "{status}");
    assert!(rows[0].starts_with("tended       removed the session fs-shop-"), "{status}");
    // A file that was being written may have been left as well.
    assert!(rows[0].contains(" of the upgrade that was cut short"), "{status}");
    assert!(rows[0].contains(", done "), "{status}");
    kill();
    farm.run(&["stop", "shop"]).ok();
    farm.assert_clean();
    assert!(!runs("nginx -e stderr"), "a server of a killed upgrade runs on");
}

#[test]
fn a_rollback_that_was_cut_short_is_finished_by_the_same_again_and_not_reversed() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    farm.run(&["upgrade", "shop", word(&Shop::new("1.1").pack(&farm)), "--watch", "1s"]).ok();
    let load = Load::start(&url());
    let kill = || {
        let rollback = ["rollback", "shop", "--watch", "600s"];
        drop(Working::until(&farm, &rollback, "watching").end(Signal::SIGKILL));
        assert_serves("1.0");
        let status = farm.run(&["status", "shop"]).ok().stdout;
        let standing = " of 1.1, which farmctl tend ends, or leads back to if 1.0 does not serve\n";
        assert!(status.contains(standing), "{status}");
        assert!(status.ends_with(&unfinished("rollback")), "{status}");
    };
    kill();
    let plan = farm.run(&["rollback", "shop", "--dry-run"]).ok().stdout;
    assert_eq!(
        plan,
        "would finish the rollback of shop from 1.1 to 1.0:\n  \
         1. have 1.0 serve, and end what stands by\n"
    );
    let done = "rolled back shop from 1.1 to 1.0 (";
    for tends in [false, true] {
        if tends {
            kill();
            farm.run(&["tend"]).ok();
            assert_serves("1.0");
        }
        let again = farm.run(&["rollback", "shop"]).ok().stderr;
        assert!(again.contains(done), "{again}");
        assert_serves("1.0");
        assert_alone(&farm);
        let status = farm.run(&["status", "shop"]).ok().stdout;
        assert!(status.contains("rollback from 1.1 to 1.0 by root, done "), "{status}");
        // The next one is another one.
        farm.run(&["rollback", "shop"]).ok();
        assert_serves("1.1");
    }
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert_alone(&farm);
}

#[test]
fn a_rollback_names_the_jobs_between_that_it_does_not_undo() {
    let farm = Farm::new();
    let job = |name: &str| {
        format!("[[job]]\nname = \"{name}\"\nwhen = \"upgrade\"\ncommand = \"true\"\n")
    };
    Shop { rest: &job("create"), ..Shop::new("1.0") }.start(&farm);
    for (version, name) in [("1.1", "migrate"), ("1.2", "index")] {
        let file = Shop { rest: &job(name), ..Shop::new(version) }.pack(&farm);
        farm.run(&["upgrade", "shop", word(&file), "--watch", "1s"]).ok();
    }
    let warned = |words: &[&str]| -> Vec<String> {
        let said = farm.run(&[&["rollback", "shop"], words].concat()).ok().stderr;
        said.lines().filter_map(|it| it.strip_prefix("warning: ")).map(str::to_owned).collect()
    };
    let [migrate, index] = ["migrate of 1.1", "index of 1.2"]
        .map(|job| format!("what the job {job} did to the data stays"));
    assert_eq!(warned(&["--dry-run"]), [index.as_str()]);
    assert_eq!(warned(&["1.0"]), [index, migrate]);
    // Forward nothing is to be undone, nor of a release that was started: no job of it ran.
    assert_eq!(warned(&[]), [""; 0]);
    assert_serves("1.2");
    farm.run(&["stop", "shop"]).ok();
    farm.run(&["start", "shop", "--release", "1.1"]).ok();
    assert_eq!(warned(&[]), [""; 0]);
    assert_serves("1.2");
    assert_alone(&farm);
}

/// The history without what is another in every run: a line for each change.
#[track_caller]
fn told(farm: &Farm) -> Vec<String> {
    let json = farm.run(&["history", "shop", "--json"]).ok().stdout;
    let changes: Vec<serde_json::Value> = serde_json::from_str(&json).expect("it is JSON");
    let line = |change: &serde_json::Value| {
        let began = change["began"].as_i64().expect("every change has begun");
        let ended = change["ended"].as_i64().expect("every change has ended");
        assert!((began..began + 600).contains(&ended), "{change}");
        let text = |key: &str| change[key].as_str().unwrap_or_default().to_owned();
        let error = text("error");
        let digits = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
        let error: Vec<&str> =
            error.split(' ').map(|word| if digits(word) { "N" } else { word }).collect();
        let line = [text("verb"), text("what"), text("result"), error.join(" ")].join(" ");
        line.trim_end_matches([' ', 'N']).to_owned()
    };
    changes.iter().map(line).collect()
}

#[test]
fn every_change_is_told_with_its_reason_until_the_data_goes() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    let bad = Shop { page: 500, ..Shop::new("1.1") }.pack(&farm);
    let load = Load::start(&url());
    farm.run(&["upgrade", "shop", word(&bad), "--watch", "60s"]).failed(1);
    drop(load);
    let status = farm.run(&["status", "shop"]).ok().stdout;
    let last = status.lines().last().expect("it is not empty");
    assert!(last.contains(" 1.1 by root, switched back "), "{status}");
    assert!(last.ends_with(" requests failed since the switch"), "{status}");
    farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok();
    let mut rollback = farm.command(&["rollback", "shop"]);
    rollback.env("SUDO_USER", "anna");
    common::run(rollback).ok();
    farm.run(&["reload", "shop"]).ok();
    farm.run(&["restart", "shop", "web"]).ok();
    let upgrade = Working::until(&farm, &["upgrade", "shop", "1.1"], "starting the process");
    assert_eq!(upgrade.end(Signal::SIGINT).code, 130);
    fs::remove_file(farm.root().join("run/farmctl/front/shop")).expect("it leads to a session");
    farm.run(&["tend"]).ok();
    let status = farm.run(&["status", "shop"]).ok().stdout;
    let asked = "\nlast change  upgrade from 1.0 to 1.1 by root, interrupted ";
    assert!(status.contains(asked), "{status}");
    assert!(status.contains(" ago: upgrading shop from 1.0 to 1.1: interrupted\n"), "{status}");
    assert!(status.contains("\ntended       publishing the vhost, done "), "{status}");
    // Nothing to do is no change.
    for verb in [&["tend"][..], &["start", "shop"], &["upgrade", "shop", "1.0"]] {
        farm.run(verb).ok();
    }
    farm.run(&["stop", "shop"]).ok();
    farm.run(&["stop", "shop"]).ok();
    farm.run(&["remove", "shop", "--release", "1.1"]).ok();
    farm.run(&["remove", "shop"]).ok();
    assert_eq!(
        told(&farm),
        [
            "install 1.0 done",
            "start 1.0 done",
            "install 1.1 done",
            "upgrade from 1.0 to 1.1 switched-back upgrading shop from 1.0 to 1.1: 1.0 serves \
             again: N of N requests failed since the switch",
            "upgrade from 1.0 to 1.1 done",
            "rollback from 1.1 to 1.0 done",
            "reload web done",
            "restart web done",
            "upgrade from 1.0 to 1.1 interrupted upgrading shop from 1.0 to 1.1: interrupted",
            "tend publishing the vhost done",
            "stop 1.0 done",
            "remove 1.1 done",
            "remove 1.0 done",
        ]
    );
    let table = farm.run(&["history", "shop"]).ok().stdout;
    let line = |what: &str| table.lines().find(|line| line.contains(what)).expect("it was done");
    assert!(line("rollback").ends_with("  anna  rollback from 1.1 to 1.0: done"), "{table}");
    assert!(line("tend").ends_with("  tend  tend publishing the vhost: done"), "{table}");
    // A history outlives what it is about, and goes with its data.
    farm.run(&["remove", "shop", "--data"]).ok();
    let error = farm.run(&["history", "shop"]).failed(1);
    assert_eq!(error.error(), "no application shop is installed");
    let left = fs::read_dir(farm.state("history")).expect("it was made").count();
    assert_eq!(left, 0);
}

#[test]
fn what_nobody_confirms_is_taken_back_and_what_somebody_does_stays() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    farm.run(&["install", word(&Shop::new("1.1").pack(&farm))]).ok();
    let load = Load::start(&url());
    let upgrade = |within: &'static str| {
        farm.run(&["upgrade", "shop", "1.1", "--watch", "1s", "--confirm-within", within]).ok()
    };
    let said = upgrade("1h").stderr;
    // Who leads back must be somebody.
    let tended = Path::new("/run/systemd/system").is_dir();
    let who = if tended { "" } else { ", if cron(8) runs farmctl tend" };
    let warning = format!("warning: 1.0 serves again in 1h{who}, unless: farmctl confirm shop\n");
    assert!(said.contains(&warning), "{said}");
    // Both run, and nothing but an answer changes that.
    farm.run(&["tend"]).ok();
    assert_serves("1.1");
    let status = farm.run(&["status", "shop"]).ok().stdout;
    assert!(status.contains(" of 1.0, serves again in "), "{status}");
    let refused = farm.run(&["upgrade", "shop", "1.0"]).failed(1);
    assert_eq!(refused.error(), "shop 1.1 waits to be confirmed");
    // Yes.
    farm.run(&["confirm", "shop"]).ok();
    assert_serves("1.1");
    assert_alone(&farm);
    assert!(farm.run(&["confirm", "shop"]).ok().stderr.contains("nothing waits"));
    farm.run(&["rollback", "shop"]).ok();
    // No: the session that stands by serves again, it is not begun anew.
    let session = || {
        let text = farm.run(&["status", "shop", "--json"]).ok().stdout;
        let status: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        status["session"]["name"].as_str().expect("it has one").to_owned()
    };
    let before = session();
    upgrade("1h");
    farm.run(&["rollback", "shop"]).ok();
    assert_serves("1.0");
    assert_eq!(session(), before);
    assert_alone(&farm);
    // Silence.
    upgrade("1s");
    wait_for("tend to lead back", SOON, || {
        farm.run(&["tend"]).ok();
        get(PORT, "/").body == "1.0"
    });
    assert_eq!(session(), before);
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert_alone(&farm);
    let told = told(&farm).pop().expect("there is a history");
    assert!(told.starts_with("tend nobody has confirmed 1.1, back to 1.0; "), "{told}");
    assert!(told.contains("; ending session fs-shop-"), "{told}");
    assert!(told.ends_with(", which stood by switched-back"), "{told}");
    // Killed while it waits, as a reboot does: the time is over when tend comes again.
    let waiting = ["upgrade", "shop", "1.1", "--watch", "600s", "--confirm-within", "1h"];
    drop(Working::until(&farm, &waiting, "watching").end(Signal::SIGKILL));
    farm.run(&["tend"]).ok();
    assert_serves("1.1");
    let file = farm.state("apps/shop.json");
    let state = fs::read_to_string(&file).expect("it is there");
    let mut state: serde_json::Value = serde_json::from_str(&state).expect("it is JSON");
    let by = state["confirm-by"].as_i64().expect("it is a time");
    state["confirm-by"] = (by - 4201).into();
    fs::write(&file, state.to_string()).expect("it is there");
    farm.run(&["tend"]).ok();
    assert_serves("1.0");
    assert_alone(&farm);
    farm.run(&["stop", "shop"]).ok();
    let refused = farm.run(&["upgrade", "shop", "1.1", "--confirm-within", "1m"]).failed(1);
    assert_eq!(refused.hint(), "farmctl start shop");
}

#[test]
fn gc_keeps_the_newest_releases_and_those_that_are_needed() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    for version in ["1.1", "1.2", "1.3", "1.4"] {
        farm.run(&["install", word(&Shop::new(version).pack(&farm))]).ok();
    }
    farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok();
    let releases = || {
        let status = farm.run(&["status", "shop", "--json"]).ok().stdout;
        let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
        status["releases"]
            .as_array()
            .expect("there are some")
            .iter()
            .map(|it| it.as_str().expect("it is text").to_owned())
            .collect::<Vec<_>>()
    };
    // 1.1 runs, 1.0 ran before.
    farm.run(&["gc"]).ok();
    assert_eq!(releases(), ["1.0", "1.1", "1.2", "1.3", "1.4"]);
    farm.run(&["upgrade", "shop", "1.4", "--watch", "1s"]).ok();
    let check = farm.run(&["gc", "--check"]).ok().stdout;
    assert_eq!(check, "old: release 1.0 of shop (farmctl gc removes it)\n");
    let node = farm.root().join("etc/farmctl/node.toml");
    fs::create_dir_all(node.parent().expect("it has one")).expect("there is room");
    fs::write(&node, "keep = 1\n").expect("there is room");
    let load = Load::start(&url());
    let said = farm.run(&["gc"]).ok().stderr;
    for version in ["1.0", "1.2", "1.3"] {
        assert!(said.contains(&format!("removed the old release {version} of shop\n")), "{said}");
    }
    assert_eq!(releases(), ["1.1", "1.4"]);
    assert!(farm.run(&["gc"]).ok().stderr.contains("nothing to collect"));
    farm.run(&["rollback", "shop"]).ok();
    assert_serves("1.1");
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert_alone(&farm);
    fs::write(&node, "keep = 0\n").expect("there is room");
    let refused = farm.run(&["gc"]).failed(1);
    assert!(refused.error().contains("expected a nonzero"), "{}", refused.error());
    fs::remove_file(&node).expect("it is there");
}

#[test]
fn a_preview_is_looked_at_before_requests_are_led_to_it() {
    let farm = Farm::new();
    let statics = "[[front.static]]\nlocation = \"/static/\"\npath = \"/srv/static\"\n";
    Shop { front: statics, ..Shop::new("1.0") }.start(&farm);
    let migrate = "[[job]]\nname = \"migrate\"\nwhen = \"upgrade\"\n\
                   command = \"sh -c 'echo once >>/tmp/migrated'\"\n";
    let file = Shop { front: statics, rest: migrate, ..Shop::new("1.1") }.pack(&farm);
    let preview = ["upgrade", "shop", word(&file), "--preview"];
    let address = farm.run(&preview).ok().stdout;
    let port = address.trim().strip_prefix("http://127.0.0.1:").and_then(|it| it.strip_suffix('/'));
    let port: u16 = port.and_then(|it| it.parse().ok()).unwrap_or_else(|| panic!("{address}"));
    let looks = || {
        assert_serves("1.0");
        assert_eq!(get(port, "/").body, "1.1");
        assert_eq!(get(port, "/static/page.css").body, "1.1");
        farm.assert_clean();
    };
    looks();
    let status = farm.run(&["status", "shop"]).ok().stdout;
    assert!(status.contains(&format!(" of 1.1, {}\n", address.trim())), "{status}");
    // Asked again, it is the same; another one would be a second preview.
    assert_eq!(farm.run(&preview).ok().stdout, address);
    let other = Shop::new("1.2").pack(&farm);
    let refused = farm.run(&["upgrade", "shop", word(&other)]).failed(1);
    assert_eq!(refused.error(), "shop has a preview of 1.1");
    // It is brought back as what serves is.
    let front = farm.root().join("run/farmctl/front");
    let session = fs::read_link(front.join("shop")).expect("it leads to a session");
    for way in fs::read_dir(front.join(".sessions")).expect("it is there").flatten() {
        if way.path() != session {
            fs::remove_file(way.path().join("socket")).expect("the way leads to its socket");
        }
    }
    assert_eq!(get(port, "/").status, 503);
    farm.run(&["tend"]).ok();
    looks();
    // The session that was looked at serves, and its jobs are done.
    let load = Load::start(&url());
    let upgraded = farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok().stderr;
    assert!(!upgraded.contains("beginning session"), "{upgraded}");
    assert_serves("1.1");
    let migrated = farm.run(&["shell", "shop", "--", "cat", "/tmp/migrated"]).ok().stdout;
    assert_eq!(migrated, "once\n");
    // nginx before 1.27.4 resets idle connections at a reload: its vhost is gone.
    let report = load.end(Duration::from_secs(1));
    assert_eq!(report.bad_answers, 0, "{report:?}");
    std::net::TcpStream::connect(("127.0.0.1", port)).expect_err("nobody listens there");
    assert_alone(&farm);
    // One that is not wanted goes, and what serves does not notice.
    farm.run(&["rollback", "shop"]).ok();
    farm.run(&["upgrade", "shop", "1.1", "--preview"]).ok();
    let refused = farm.run(&["remove", "shop", "--release", "1.1"]).failed(1);
    assert_eq!(refused.hint(), "farmctl stop shop --preview ends what is looked at");
    farm.run(&["stop", "shop", "--preview"]).ok();
    farm.run(&["stop", "shop", "--preview"]).ok();
    assert_serves("1.0");
    assert_alone(&farm);
    // With what serves, a preview stops as well.
    farm.run(&["upgrade", "shop", "1.1", "--preview"]).ok();
    farm.run(&["stop", "shop"]).ok();
    assert!(!runs("nginx -e stderr"), "the preview runs on");
    let refused = farm.run(&["upgrade", "shop", "1.1", "--preview"]).failed(1);
    assert_eq!(refused.hint(), "farmctl start shop");
}
