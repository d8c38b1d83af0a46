//! What serves gets other Python distributions where it runs, or stays as it was.

mod common;
#[path = "common/signal.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Farm, copy};
use nix::sys::signal::Signal::SIGKILL;
use serde_json::Value;
use signal::{Working, word};
use web::{Load, get};

const NAME: &str = "revised";
const PORT: u16 = 18_098;

/// The project with another text, or none that Python could read.
fn project(farm: &Farm, name: &str, text: &str) -> PathBuf {
    let directory = farm.root().join(name);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/revised/project"), &directory);
    let module = directory.join("revised.py");
    let code = fs::read_to_string(&module).expect("it was copied");
    fs::write(&module, code.replace("b\"one\"", text)).expect("it was copied");
    directory
}

#[track_caller]
fn assert_says(text: &str) {
    let answer = get(PORT, "/");
    assert_eq!((answer.status, answer.body.as_str()), (200, text));
}

#[test]
fn what_serves_gets_other_code_where_it_runs_and_keeps_it() {
    let farm = Farm::new();
    let directory = farm.root().join("profiles").join(NAME);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/revised"), &directory);
    let tarball = farm.bake(&directory);
    farm.run(&["install", word(&tarball)]).ok();
    farm.run(&["start", NAME]).ok();
    assert_says("one");
    let (two, broken) = (project(&farm, "two", "b\"two\""), project(&farm, "broken", "b\"two"));

    let load = Load::start(&format!("http://127.0.0.1:{PORT}/"));
    let ran = farm.run(&["upgrade", NAME, "--in-place", word(&two)]).ok();
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert!(ran.stderr.contains("upgraded revised in place from 1.0 to 1.0.p1"), "{}", ran.stderr);
    assert_says("two");
    let verified = farm.run(&["verify", NAME]).ok().stderr;
    let derived = format!("derived from 1.0 by installing {}", word(&two));
    assert!(verified.contains(&derived), "{verified}");
    farm.run(&["verify", NAME, "--session"]).ok();
    let status = farm.run(&["status", NAME, "--json"]).ok().stdout;
    let status: Value = serde_json::from_str(&status).expect("it is JSON");
    assert_eq!(status["release"], "1.0.p1");
    assert_eq!(status["derived"]["from"], "1.0");
    assert_eq!(status["derived"]["by"], serde_json::json!([word(&two)]));

    let again = farm.run(&["upgrade", NAME, "--in-place", word(&two)]).ok();
    assert!(again.stderr.contains("revised 1.0.p1 has that already"), "{}", again.stderr);
    let volumes = farm.volumes();
    let refused = farm.run(&["upgrade", NAME, "--in-place", word(&broken)]).failed(1);
    assert!(refused.error().contains("checking process web"), "{refused:?}");
    assert_says("two");
    farm.run(&["verify", NAME, "--session"]).ok();
    farm.assert_clean();
    assert_eq!(farm.volumes(), volumes);
    for (what, error) in [
        ("revised-that-is-nowhere==1", "revised-that-is-nowhere"),
        ("--pre", "--pre is neither a requirement nor a path"),
        ("/etc", "/etc is neither a wheel, an sdist, nor a directory"),
    ] {
        let refused = farm.run(&["upgrade", NAME, &format!("--in-place={what}")]).failed(1);
        assert!(refused.error().contains(error), "{refused:?}");
        assert!(refused.stderr.contains("\nhint: "), "{refused:?}");
    }
    farm.assert_clean();
    assert_eq!(farm.volumes(), volumes);
    // It can be loaded, but does not answer: found after the HUP.
    let lost = project(&farm, "lost", "lost");
    let refused = farm.run(&["upgrade", NAME, "--in-place", word(&lost)]).failed(1);
    assert!(refused.error().contains("process web: it is not ready"), "{refused:?}");
    assert!(refused.stderr.contains("NameError: name 'lost' is not defined"), "{refused:?}");
    assert_says("two");
    farm.run(&["verify", NAME, "--session"]).ok();
    farm.assert_clean();
    assert_eq!(farm.volumes(), volumes);
    // The session is a copy of it.
    let refused = farm.run(&["remove", NAME, "--release", "1.0"]).failed(1);
    assert_eq!(refused.error(), "revised 1.0 is running");

    let three = project(&farm, "three", "b\"three\"");
    let words = ["upgrade", NAME, "--in-place", word(&three)];
    let killed = Working::until(&farm, &words, "reloading the process web");
    assert_eq!(killed.end(SIGKILL).code, -1);
    farm.run(&["gc"]).ok();
    assert_says("two");
    farm.run(&["verify", NAME, "--session"]).ok();
    farm.assert_clean();
    assert_eq!(farm.volumes(), volumes);

    let module = "/srv/revised/venv/lib/python3.11/site-packages/revised.py";
    let change = format!("echo >> {module}");
    farm.run(&["shell", NAME, "--as-root", "--", "sh", "-c", &change]).ok();
    let refused = farm.run(&words).failed(1);
    assert!(refused.error().contains(&format!("{module} was changed")), "{refused:?}");
    farm.assert_clean();

    farm.run(&["restart", NAME]).ok();
    assert_says("two");
    let ran = farm.run(&["upgrade", NAME, "--in-place", "click==8.1.8"]).ok();
    let done = "upgraded revised in place from 1.0.p1 to 1.0.p2: click 8.1.8 new";
    assert!(ran.stderr.contains(done), "{}", ran.stderr);
    assert_says("two");
    farm.run(&["stop", NAME]).ok();
    farm.run(&["start", NAME]).ok();
    assert_says("two");
    farm.run(&["rollback", NAME, "1.0", "--watch", "1s"]).ok();
    assert_says("one");
    farm.run(&["remove", NAME, "--release", "1.0.p1"]).ok();
    farm.assert_clean();
}

#[test]
fn what_cannot_be_installed_in_place_is_refused() {
    let farm = Farm::new();
    let in_place = |name: &str, what: &str| {
        let option = format!("--in-place={what}");
        farm.run(&["upgrade", name, &option]).failed(1)
    };
    let rest = "[[process]]\nname = \"web\"\ncommand = \"sleep 86018\"\n";
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    let file = tiny::tarball(&tiny::profile("shop", "1.0", rest), &out);
    farm.run(&["install", word(&file)]).ok();
    let refused = in_place("shop", "click==8.1.8");
    assert_eq!((refused.error(), refused.hint()), ("shop is not started", "farmctl start shop"));
    farm.run(&["start", "shop"]).ok();
    assert_eq!(in_place("shop", "click==8.1.8").error(), "shop 1.0 has no virtualenv");
    farm.run(&["stop", "shop"]).ok();
    farm.assert_clean();
}
