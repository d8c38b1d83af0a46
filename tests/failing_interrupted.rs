//! Failing well: signals in every long verb, two farmctl at once, and what SIGKILL
//! leaves for `gc`.

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/mistake.rs"]
mod mistake;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/picture.rs"]
mod picture;
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{FARMCTL, Farm, wait_for};
use nix::sys::signal::Signal::{self, SIGHUP, SIGINT, SIGKILL, SIGTERM};
use picture::Picture;
use signal::{Working, masked, runs, word};
use tiny::Tiny;

fn profile(farm: &Farm, rest: &str) -> PathBuf {
    let directory = farm.root().join("profiles/tiny");
    fs::create_dir_all(&directory).expect("there is room");
    fs::write(directory.join("profile.toml"), tiny::profile("tiny", "1.0", rest))
        .expect("there is room");
    directory
}

fn out(farm: &Farm) -> PathBuf {
    let directory = farm.root().join("out");
    fs::create_dir_all(&directory).expect("there is room");
    directory
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it is there").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Sends the signal when a line with `at` in it was said and a process with `with` in
/// its command line runs: what was begun is undone. Answers the error.
#[track_caller]
fn interrupt(farm: &Farm, arguments: &[&str], at: &str, with: &str, signal: Signal) -> String {
    let before = farm.volumes();
    let working = Working::until(farm, arguments, at);
    wait_for(with, Duration::from_secs(20), || runs(with));
    let ran = working.end(signal);
    assert!(with == FARMCTL || !runs(with), "{with} is left");
    mistake::ended(&format!("{} gets {signal}", arguments[0]), farm, &ran, &before);
    masked(ran.error(), farm)
}

#[test]
fn an_interrupted_bootstrap_leaves_nothing() {
    let farm = Farm::new();
    let directory = profile(&farm, "");
    let bootstrap = ["bootstrap", word(&directory)];
    let tree = farm.state("volumes/fv-stage-").display().to_string();
    let fresh = [&bootstrap[..], &["--fresh"]].concat();
    let error = interrupt(&farm, &fresh, "configuring it", &tree, SIGINT);
    assert_eq!(error, "bootstrapping tiny: interrupted");
    let error = interrupt(&farm, &bootstrap, "unpacking the tree made on", FARMCTL, SIGTERM);
    let step = "bootstrapping tiny: restoring ROOT/var/lib/farmctl/volumes/fv-stage-ID/root: ";
    assert!(error == "bootstrapping tiny: interrupted" || error.starts_with(step), "{error}");
    assert!(error.ends_with(": interrupted"), "{error}");
}

#[test]
fn an_interrupted_lock_leaves_nothing() {
    let farm = Farm::new();
    let directory = profile(
        &farm,
        "[build]\nbefore = [\"sleep 86017\"]\n[python]\nrequirements = \"requirements.txt\"\n",
    );
    farm.run(&["bootstrap", word(&directory)]).ok();
    let lock = ["lock", word(&directory)];
    for signal in [SIGINT, SIGTERM] {
        let error = interrupt(&farm, &lock, "sleep 86017", "sleep 86017", signal);
        let step = "locking tiny: running build.before: running \"sleep 86017\": interrupted";
        assert_eq!(error, step);
        assert_eq!(names(&directory), ["profile.toml"]);
    }
}

#[test]
fn an_interrupted_bake_leaves_nothing() {
    let farm = Farm::new();
    let directory = profile(&farm, "[build]\nbefore = [\"sleep 86017\"]\n");
    farm.run(&["bootstrap", word(&directory)]).ok();
    let out = out(&farm);
    let bake = ["bake", word(&directory), "--output", word(&out)];
    let error = interrupt(&farm, &bake, "sleep 86017", "sleep 86017", SIGTERM);
    let step = "baking tiny 1.0: running build.before: running \"sleep 86017\": interrupted";
    assert_eq!(error, step);
    profile(&farm, "");
    let error = interrupt(&farm, &bake, "packing ", FARMCTL, SIGINT);
    let step = "baking tiny 1.0: packing ROOT/out/tiny_1.0_amd64.tar.xz.part: ";
    assert!(error.starts_with(step) && error.ends_with("interrupted"), "{error}");
    assert_eq!(names(&out), [""; 0]);
}

/// An application whose install takes a while.
fn large(farm: &Farm) -> PathBuf {
    let rest = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n";
    Tiny::new(&tiny::profile("shop", "1.0", rest)).zeros("srv/large", 128 << 20).pack(&out(farm))
}

#[test]
fn an_interrupted_install_leaves_nothing() {
    let farm = Farm::new();
    let file = large(&farm);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let error = interrupt(&farm, &["install", word(&file)], "unpacking", FARMCTL, signal);
        let step = "installing shop 1.0: unpacking shop_1.0_amd64.tar.xz: ";
        assert!(error.starts_with(step) && error.ends_with("interrupted"), "{error}");
    }
    assert!(farm.run(&["list"]).ok().stdout.starts_with("nothing yet"));
}

/// script(1) has a terminal of its own, which closes when it is killed.
#[test]
fn a_terminal_that_closes_ends_an_install_with_nothing_left() {
    let farm = Farm::new();
    let file = large(&farm);
    let line = format!("{FARMCTL} --root {} install {}", farm.root().display(), file.display());
    let mut script = common::called("script", &["--quiet", "--command", &line, "/dev/null"]);
    script.stdout(std::process::Stdio::null());
    let mut terminal = common::Running(script.spawn().expect("bsdutils is essential"));
    let volume = farm.state("volumes/fv-shop-1.0");
    wait_for("the volume", Duration::from_secs(20), || volume.exists());
    terminal.0.kill().expect("it runs");
    terminal.0.wait().expect("it is our child");
    let root = format!("{} install", farm.root().display());
    wait_for("the end of farmctl", Duration::from_secs(20), || !runs(&root));
    farm.assert_clean();
    mistake::row("terminal that closes during install", "", "none", "nobody is there to read any");
    assert!(farm.run(&["list"]).ok().stdout.starts_with("nothing yet"));
}

#[test]
fn an_interrupted_start_leaves_nothing_running() {
    let farm = Farm::new();
    let rest = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n\
                ready = { http = \"/\", within = \"5m\" }\n\n\
                [[job]]\nname = \"migrate\"\nwhen = \"start\"\ncreates = \"/home/app/done\"\n\
                command = \"sleep 86029\"\n";
    let file = tiny::tarball(&tiny::profile("shop", "1.0", rest), &out(&farm));
    farm.run(&["install", word(&file)]).ok();
    for signal in [SIGINT, SIGTERM] {
        let start = ["start", "shop"];
        let error = interrupt(&farm, &start, "running the job migrate", "sleep 86029", signal);
        assert_eq!(error, "starting shop 1.0: running job migrate: interrupted");
    }
    let rest = rest.split("[[job]]").next().expect("it has one");
    let file = tiny::tarball(&tiny::profile("shop", "2.0", rest), &out(&farm));
    farm.run(&["install", word(&file)]).ok();
    let before = farm.volumes();
    for signal in [SIGINT, SIGTERM] {
        let working = Working::until(&farm, &["start", "shop"], "starting the process web");
        wait_for("the process", Duration::from_secs(20), || runs("sleep 86017"));
        let ran = working.end(signal);
        // supervisord, which has started it, may not have said so yet.
        let error = ran.error();
        assert!(error.starts_with("starting shop 2.0: "), "{error}");
        assert!(error.ends_with("interrupted"), "{error}");
        assert!(!runs("sleep 86017"), "the process is left");
        assert!(!runs(word(&farm.state("supervisor"))), "supervisord is left");
        mistake::ended(&format!("start of a process gets {signal}"), &farm, &ran, &before);
    }
    assert_eq!(farm.state_of("shop"), "stopped");
}

/// An application that neither gets ready nor lets itself be checked, or ended by SIGTERM, as
/// long as its directory of data has a file `hold`.
const HELD: &str = r#"[[data]]
name = "flag"
path = "/srv/flag"
[[process]]
name = "web"
check = "test ! -e /srv/flag/hold || exec sleep 86029"
command = "sleep 86017"
ready = { command = "test ! -e /srv/flag/hold", within = "5m" }
"#;

#[test]
fn an_interrupted_change_of_what_serves_leaves_it_serving() {
    let farm = Farm::new();
    for version in ["1.0", "1.1"] {
        let file = tiny::tarball(&tiny::profile("shop", version, HELD), &out(&farm));
        farm.run(&["install", word(&file)]).ok();
    }
    farm.run(&["start", "shop", "--release", "1.0"]).ok();
    farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok();
    let hold = farm.state("data/shop/flag/hold");
    for (words, at, error) in [
        (&["reload", "shop"][..], "reloading the process web", "reloading shop: "),
        (&["restart", "shop"], "restarting the process web", "restarting shop: "),
        (&["rollback", "shop"], "starting the process web", "rolling back shop from 1.1 to 1.0: "),
        (&["upgrade", "shop", "1.0"], "starting the process web", "upgrading shop "),
        (
            &["upgrade", "shop", "1.0", "--preview"],
            "starting the process web",
            "upgrading shop to 1.0: ",
        ),
    ] {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            fs::write(&hold, "").expect("there is room");
            let said = interrupt(&farm, words, at, FARMCTL, signal);
            fs::remove_file(&hold).expect("it was there");
            assert!(said.starts_with(error) && said.ends_with("interrupted"), "{said}");
            assert!(!runs("sleep 86029"), "the check is left");
            let status = farm.run(&["status", "shop", "--json"]).ok().stdout;
            assert!(status.contains("\"release\": \"1.1\""), "{words:?}: {status}");
        }
    }
    // What ends something goes on to the end of it.
    let stop = Working::until(&farm, &["stop", "shop"], "removing the session");
    let ran = stop.end(SIGINT);
    assert_eq!((ran.code, farm.state_of("shop").as_str()), (0, "stopped"), "{}", ran.stderr);
    mistake::row("stop gets SIGINT", "0", "none", "(it goes on to its end)");
    let remove = Working::until(&farm, &["remove", "shop"], "removing the chroot");
    let ran = remove.end(SIGTERM);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    mistake::row("remove gets SIGTERM", "0", "none", "(it goes on to its end)");
    assert!(farm.volumes().is_empty());
    farm.run(&["remove", "shop", "--data"]).ok();
}

#[test]
fn a_second_farmctl_is_told_about_the_first() {
    let farm = Farm::new();
    let rest = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n\n[[job]]\nname = \"migrate\"\n\
                when = \"start\"\ncommand = \"sleep 86029\"\n";
    let file = tiny::tarball(&tiny::profile("shop", "1.0", rest), &out(&farm));
    farm.run(&["install", word(&file)]).ok();
    let first = Working::until(&farm, &["start", "shop"], "running the job migrate");
    wait_for("the job", Duration::from_secs(20), || runs("sleep 86029"));
    for arguments in [&["start", "shop"][..], &["install", word(&file)], &["remove", "shop"]] {
        let ran =
            mistake::refused("two farmctl at once", &farm, arguments, || Picture::of(farm.root()));
        let error =
            format!("shop is being changed by another farmctl (pid {}, start)", first.pid());
        assert_eq!((ran.error(), ran.hint()), (error.as_str(), "try again when it has ended"));
    }
    // Looking and collecting go on beside it, and take nothing from it.
    farm.run(&["list"]).ok();
    farm.run(&["status", "shop"]).ok();
    assert_eq!(farm.run(&["gc"]).ok().stdout, "");
    assert!(runs("sleep 86029"), "the first one goes on");
    assert_eq!(first.end(SIGTERM).code, 130);

    let directory = profile(&farm, "[build]\nbefore = [\"sleep 86017\"]\n");
    farm.run(&["bootstrap", word(&directory)]).ok();
    let first = Working::until(&farm, &["bake", word(&directory)], "sleep 86017");
    for arguments in [
        &["bootstrap", word(&directory), "--fresh"][..],
        &["lock", word(&directory)],
        &["bake", word(&directory)],
        &["remove", "--environment", "tiny"],
    ] {
        let ran = farm.run(arguments).failed(1);
        let error = format!(
            "environment tiny is being changed by another farmctl (pid {}, bake)",
            first.pid()
        );
        assert_eq!((ran.error(), ran.hint()), (error.as_str(), "try again when it has ended"));
    }
    assert_eq!(farm.run(&["gc"]).ok().stdout, "");
    assert_eq!(first.end(SIGTERM).code, 130);
}

/// `gc --check` says what a killed run left, `gc` removes it, and then there is nothing.
#[track_caller]
fn collect(mistake: &str, farm: &Farm, expected: &[&str]) {
    let ran = farm.run(&["gc", "--check"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let found: Vec<String> = ran.stdout.lines().map(|line| masked(line, farm)).collect();
    assert_eq!(found, expected);
    let ran = farm.run(&["gc"]).ok();
    let removed = ran.stderr.lines().map(|line| masked(line, farm));
    let mut removed: Vec<String> =
        removed.map(|line| line.replace("· removed the ", "rubbish: ")).collect();
    removed.sort();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(removed, expected);
    farm.assert_clean();
    mistake::row(mistake, "137", "to gc", &expected.join("\n"));
}

#[test]
fn gc_removes_what_a_killed_bootstrap_left() {
    let farm = Farm::new();
    let directory = profile(&farm, "");
    let first =
        Working::until(&farm, &["bootstrap", word(&directory), "--fresh"], "configuring it");
    let own = format!("{}", farm.state("volumes/fv-stage-").display());
    wait_for("dpkg", Duration::from_secs(20), || runs(&own));
    assert_eq!(first.end(SIGKILL).code, -1);
    wait_for("the end of dpkg", Duration::from_secs(5), || !runs(&own));
    collect(
        "bootstrap gets SIGKILL",
        &farm,
        &[
            "rubbish: volume fv-stage-ID (bootstrap of tiny)",
            "rubbish: ROOT/var/lib/farmctl/work/ID (bootstrap of tiny)",
        ],
    );
    farm.run(&["bootstrap", word(&directory)]).ok();
    farm.run(&["shell", "--source", "tiny", "--", "/usr/bin/python3", "--version"]).ok();
}

#[test]
fn gc_removes_what_a_killed_bake_left() {
    let farm = Farm::new();
    let directory = profile(&farm, tiny::LIGHT);
    farm.run(&["bootstrap", word(&directory)]).ok();
    let out = out(&farm);
    let bake = ["bake", word(&directory), "--output", word(&out)];

    let first = Working::until(&farm, &bake, "packing ");
    assert_eq!(first.end(SIGKILL).code, -1);
    collect(
        "bake gets SIGKILL",
        &farm,
        &[
            "rubbish: volume fv-stage-ID (bake of tiny)",
            "rubbish: ROOT/out/tiny_1.0_amd64.tar.xz.part (bake of tiny)",
        ],
    );
    assert_eq!(names(&out), [""; 0]);
    let baked = farm.run(&bake).ok();
    farm.run(&["verify", baked.stdout.trim()]).ok();
    assert_eq!(names(&out), ["tiny_1.0_amd64.tar.xz"]);

    // Installing: packages and requirements come over the network, which takes a while.
    let installing = "[build]\npackages = [\"gcc\"]\n";
    profile(&farm, installing);
    let first = Working::until(&farm, &bake, "installing build packages: gcc");
    wait_for("apt-get", Duration::from_secs(20), || runs("apt-get"));
    assert_eq!(first.end(SIGKILL).code, -1);
    wait_for("the end of apt-get", Duration::from_secs(5), || !runs("apt-get"));
    collect(
        "bake while apt-get runs gets SIGKILL",
        &farm,
        &["rubbish: volume fv-stage-ID (bake of tiny)"],
    );
    profile(&farm, tiny::LIGHT);
    let again = farm.run(&bake).ok();
    assert!(again.stderr.contains("is baked already"), "{}", again.stderr);
}

#[test]
fn gc_removes_what_a_killed_install_left() {
    let farm = Farm::new();
    let file = large(&farm);
    let first = Working::until(&farm, &["install", word(&file)], "unpacking");
    let volume = farm.state("volumes/fv-shop-1.0/root/srv/large");
    wait_for("the large file", Duration::from_secs(20), || volume.exists());
    assert_eq!(first.end(SIGKILL).code, -1);
    collect(
        "install gets SIGKILL",
        &farm,
        &[
            "rubbish: account of shop (install of shop)",
            "rubbish: volume fv-shop-1.0 (install of shop)",
        ],
    );
    farm.run(&["install", word(&file)]).ok();
    farm.run(&["verify", "shop"]).ok();
}

#[test]
fn gc_ends_what_a_killed_start_left_running() {
    let farm = Farm::new();
    let rest = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\nready = { http = \"/\", within = \"5m\" }\n";
    let file = tiny::tarball(&tiny::profile("shop", "1.0", rest), &out(&farm));
    farm.run(&["install", word(&file)]).ok();
    let first = Working::until(&farm, &["start", "shop"], "starting the process web");
    wait_for("the process", Duration::from_secs(20), || runs("sleep 86017"));
    assert_eq!(first.end(SIGKILL).code, -1);
    assert!(runs("sleep 86017"), "a daemon outlives farmctl");
    collect(
        "start gets SIGKILL",
        &farm,
        &[
            "rubbish: sockets of shop (start of shop)",
            "rubbish: session fs-shop-ID (start of shop)",
            "rubbish: processes of session fs-shop-ID (start of shop)",
        ],
    );
    assert!(!runs("sleep 86017"), "the process is left");
    assert!(!runs(word(&farm.state("supervisor"))), "supervisord is left");
}
