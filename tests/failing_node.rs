//! Failing well: a node whose nginx is stopped, whose file systems cannot be written, or whose
//! files are damaged, missing or from the future, one by one.

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/mistake.rs"]
mod mistake;
#[expect(dead_code, reason = "other tests use more of it")]
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
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{FARMCTL, Farm, Ran, called, in_lane, run, tool, wait_for};
use shop::{Shop, assert_alone, assert_serves};
use signal::{masked, word};

/// `nginx -t` leaves the file empty where there was none.
fn nginx_runs() -> bool {
    fs::read_to_string("/run/nginx.pid").is_ok_and(|pid| !pid.is_empty())
}

/// Ends nginx, as an administrator does.
fn end_nginx() {
    tool("nginx", &["-s", "quit"]);
    wait_for("nginx ends", Duration::from_secs(20), || !nginx_runs());
}

/// A row about a run that did what was asked for nevertheless.
fn done(mistake: &str, farm: &Farm, ran: Ran) -> Ran {
    let ran = ran.ok();
    let warnings = ran.stderr.lines().filter(|line| line.starts_with("warning: "));
    let words: Vec<String> = warnings.map(|line| masked(line, farm)).collect();
    let words = if words.is_empty() { "(started again)".to_owned() } else { words.join("\n") };
    mistake::row(mistake, "0", "none", &words);
    ran
}

#[test]
fn an_nginx_that_is_stopped_is_started_again() {
    if !in_lane("an_nginx_that_is_stopped_is_started_again") {
        return;
    }
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    farm.run(&[
        "install",
        word(&Shop { front: "max-body-mib = 17", ..Shop::new("1.1") }.pack(&farm)),
    ])
    .ok();
    end_nginx();
    let status = farm.run(&["status", "shop"]);
    assert_eq!(status.code, 3, "{}", status.stdout);
    assert!(status.stdout.contains("farmctl start shop brings it back"), "{}", status.stdout);
    let doctor = farm.run(&["doctor"]).stdout;
    assert!(doctor.contains("nginx does not run: farmctl doctor --fix\n"), "{doctor}");
    for (words, version) in [
        (&["tend"][..], "1.0"),
        (&["start", "shop"], "1.0"),
        (&["upgrade", "shop", "1.1", "--watch", "1s"], "1.1"),
        (&["rollback", "shop", "--watch", "1s"], "1.0"),
    ] {
        if nginx_runs() {
            end_nginx();
        }
        done(&format!("nginx stopped, {}", words[0]), &farm, farm.run(words));
        assert_serves(version);
        assert_alone(&farm);
    }
    farm.run(&["stop", "shop"]).ok();
    end_nginx();
    let ran = done("nginx stopped, start anew", &farm, farm.run(&["start", "shop"]));
    assert!(ran.stderr.contains("warning: nginx was not running and has been started\n"));
    assert_serves("1.0");

    // Another program has what another vhost of the administrator's listens on.
    let foreign = "/etc/nginx/sites-enabled/zz-farmctl-test";
    end_nginx();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound");
    fs::write(foreign, format!("server {{ listen {address}; }}\n")).expect("it is a lane's");
    let why =
        format!("nginx does not start: bind() to {address} failed (98: Address already in use)");
    let fails = |mistake: &str, words: &[&str]| {
        let ran = mistake::met(mistake, &farm, farm.run(words), 1, || ());
        assert!(ran.error().ends_with(&why), "{}", ran.error());
        assert_eq!(ran.hint(), "look at /var/log/nginx/error.log");
        assert!(!nginx_runs(), "nginx is left");
    };
    fails("nginx cannot start, upgrade", &["upgrade", "shop", "1.1", "--watch", "1s"]);
    farm.run(&["stop", "shop"]).ok();
    fails("nginx cannot start, start", &["start", "shop"]);
    assert_eq!(farm.state_of("shop"), "stopped");
    drop(taken);
    fs::remove_file(foreign).expect("it was ours");
    farm.run(&["start", "shop"]).ok();
    assert_serves("1.0");
}

/// Where [`read_only`] has farmctl keep what it downloads.
fn cache(farm: &Farm) -> PathBuf {
    farm.root().join("cache")
}

/// Runs farmctl where this directory cannot be written, which nobody else sees.
fn read_only(farm: &Farm, place: &Path, words: &[&str]) -> Ran {
    let place = place.display();
    let script = format!(
        "mount --bind {place} {place}; mount -o remount,bind,ro {place}; \
         FARMCTL_CACHE={} exec {FARMCTL} --root {} {}",
        cache(farm).display(),
        farm.root().display(),
        words.join(" ")
    );
    run(called("unshare", &["--mount", "sh", "-euc", &script]))
}

#[test]
fn a_file_system_that_cannot_be_written_is_the_thing_to_look_at() {
    let farm = Farm::new();
    let tarball = Shop::new("1.0").pack(&farm);
    let fails = |name: &str, place: &Path, words: &[&str]| {
        let ran = read_only(&farm, place, words);
        let mistake = format!("{name} read-only");
        let ran = mistake::met(&mistake, &farm, ran, 1, || ());
        assert!(ran.error().ends_with(": Read-only file system"), "{name}: {}", ran.error());
        assert!(ran.hint().starts_with("findmnt --options ro"), "{name}: {}", ran.hint());
        assert!(farm.volumes().is_empty(), "a volume is left");
    };
    for place in ["/etc/schroot", "/etc"] {
        fails(place, Path::new(place), &["install", word(&tarball)]);
    }
    let profile = farm.root().join("profiles/tiny/profile.toml");
    fs::create_dir_all(profile.with_file_name("")).expect("there is room");
    fs::write(&profile, tiny::profile("tiny", "1.0", "")).expect("there is room");
    fs::create_dir(cache(&farm)).expect("there is room");
    fails("cache", &cache(&farm), &["bootstrap", word(&profile)]);
    farm.run(&["install", word(&tarball)]).ok();
    for place in ["/etc/nginx", "/etc/nginx/sites-enabled", "/var/lib/schroot", "/run/schroot"] {
        let before = common::mounts(farm.root());
        let ran = read_only(&farm, Path::new(place), &["start", "shop"]);
        let ran = mistake::met(&format!("{place} read-only"), &farm, ran, 1, || ());
        assert!(ran.error().contains(": Read-only file system"), "{place}: {}", ran.error());
        assert!(ran.hint().starts_with("findmnt --options ro"), "{place}: {}", ran.hint());
        assert_eq!(common::mounts(farm.root()), before);
        assert_eq!(farm.state_of("shop"), "stopped");
    }
    farm.run(&["start", "shop"]).ok();
    assert_serves("1.0");
}

/// Files beneath a directory, without the trees in volumes.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in common::names(directory) {
        let path = directory.join(name);
        if path.is_file() {
            found.push(path);
        } else if path.is_dir() && !path.ends_with("root") && !path.ends_with("static") {
            found.extend(files(&path));
        }
    }
    found
}

/// What becomes of a file; nothing if it cannot.
fn harmed(how: &str, good: &str) -> Option<String> {
    let bad = match how {
        "damaged" => good[..good.len() / 2].to_owned(),
        "newer" => good.replacen("\"schema\": 1", "\"schema\": 7", 1).replacen(
            "\"schema\":1",
            "\"schema\":7",
            1,
        ),
        _ => return None,
    };
    (bad != good).then_some(bad)
}

#[test]
fn each_file_of_a_node_may_be_damaged_missing_or_from_the_future() {
    let farm = Farm::new();
    Shop { rest: "[[secret]]\nname = \"KEY\"\ngenerate = true\n", ..Shop::new("1.0") }.start(&farm);
    let profile = farm.root().join("profiles/tiny");
    fs::create_dir_all(&profile).expect("there is room");
    fs::write(profile.join("profile.toml"), tiny::profile("tiny", "1.0", ""))
        .expect("there is room");
    farm.run(&["bootstrap", word(&profile)]).ok();
    let volumes = farm.volumes();
    let session = farm.run(&["status", "shop", "--json"]).ok().stdout;
    let state = farm.state("");
    let all = files(&state);
    for wanted in ["node.json", "apps/shop.json", "environments/tiny.json", "files.json"] {
        assert!(all.iter().any(|path| path.ends_with(wanted)), "{wanted} is not in {all:?}");
    }
    let verbs: [&[&str]; 6] = [
        &["list"],
        &["status", "shop"],
        &["gc", "--check"],
        &["start", "shop"],
        &["verify", "shop"],
        &["shell", "tiny", "--source", "--", "true"],
    ];
    let gone =
        ["no application shop is ", "there is no volume fv-", "there is no environment tiny"];
    for path in all {
        let good = fs::read_to_string(&path).expect("state is text");
        let name = path.strip_prefix(&state).expect("it is there").display().to_string();
        for how in ["damaged", "missing", "newer"] {
            match harmed(how, &good) {
                Some(bad) => fs::write(&path, bad).expect("it is ours"),
                None if how == "missing" => fs::remove_file(&path).expect("it is ours"),
                None => continue,
            }
            let mut words = "(none of the verbs needs it)".to_owned();
            let mut code = "0".to_owned();
            for verb in verbs {
                let ran = farm.run(verb);
                let what = format!("{name} {how}: {verb:?}: {}{}", ran.stdout, ran.stderr);
                match ran.code {
                    0 => {}
                    // Looked: it names what is not as it should be.
                    3 => assert!(
                        ran.stdout.contains("shop") || ran.stdout.contains("tiny"),
                        "{what}"
                    ),
                    _ => {
                        let ran = ran.failed(1);
                        assert!(!ran.hint().starts_with("-v shows"), "{what}");
                        let named = gone.iter().any(|gone| ran.error().contains(gone));
                        assert!(named || ran.error().contains(&name), "{what}");
                        code = "1".to_owned();
                        words =
                            masked(&format!("error: {}\nhint: {}", ran.error(), ran.hint()), &farm);
                    }
                }
            }
            assert_eq!(farm.volumes(), volumes, "{name} {how}: nothing was removed");
            fs::write(&path, &good).expect("it is ours");
            let mut row = masked(&format!("{name} {how}"), &farm);
            for parents in ["supervisor/", "releases/shop/"] {
                row = row.replace(parents, "");
            }
            mistake::row(&row, &code, "none", &words);
            assert_eq!(farm.state_of("shop"), "running", "{name} {how}");
        }
    }
    farm.assert_clean();
    let id = |text: &str| -> serde_json::Value {
        let status: serde_json::Value = serde_json::from_str(text).expect("it is JSON");
        status["session"]["name"].clone()
    };
    let now = farm.run(&["status", "shop", "--json"]).ok().stdout;
    assert_eq!(id(&now), id(&session), "the session that serves is the same");
    assert_serves("1.0");
    farm.run(&["verify", "shop"]).ok();
}
