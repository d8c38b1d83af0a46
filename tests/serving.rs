//! The main job on real input: the shipped profiles become served applications.

#![expect(clippy::disallowed_types, reason = "tests start the program as a user does")]

mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/web.rs"]
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Farm, Running, tool, wait_for};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use web::{Load, get, get_with};

/// Names and ports of the tests' own: `hello` and `mezzanine` may really run here.
const GREETER: &str = "greeter";
const GREETER_PORT: u16 = 18_080;
const MAGAZINE: &str = "magazine";
const MAGAZINE_PORT: u16 = 18_081;
const BARE_PORT: u16 = 18_082;
const SOON: Duration = Duration::from_secs(20);

/// What the second bake's host would leave if it left something.
const TRACE: &str = "trace-of-this-host";

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is ours")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("it is JSON")
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|number| number.try_into().ok()).expect("it is a number")
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().expect("it is a list").iter().map(number).collect()
}

fn cores() -> usize {
    std::thread::available_parallelism().expect("there is one").get()
}

fn status(farm: &Farm, app: &str) -> Value {
    json(&farm.run(&["status", app, "--json"]).stdout)
}

fn server(status: &Value) -> u32 {
    number(&status["processes"][0]["pid"])
}

/// Where the application's session is mounted.
fn mount(status: &Value) -> PathBuf {
    Path::new("/run/schroot/mount").join(status["session"]["name"].as_str().expect("it is started"))
}

/// Processes whose root directory is this one.
fn rooted(root: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("it is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if fs::read_link(entry.path().join("root")).is_ok_and(|link| link == root) {
            found.push(pid);
        }
    }
    found
}

fn send(signal: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["-s", signal];
    arguments.extend(pids.iter().map(String::as_str));
    // One may have ended with another one before it.
    drop(common::run({
        let mut command = Command::new("kill");
        command.args(arguments);
        command
    }));
}

/// The page's count of visits, this one included.
#[track_caller]
fn visits() -> u32 {
    let page = get(GREETER_PORT, "/").body;
    let (_, rest) = page.split_once("<dt>Visits</dt><dd>").expect("the page counts visits");
    let (digits, _) = rest.split_once('<').expect("a tag ends it");
    digits.replace(',', "").parse().expect("visits are counted")
}

/// The application runs as state says: one server with its workers, and nothing twice.
#[track_caller]
fn assert_one_copy(farm: &Farm) {
    let mount = mount(&status(farm, GREETER));
    let wanted = 1 + 2 * cores() + 1;
    wait_for("one server and its workers", SOON, || rooted(&mount).len() == wanted);
    wait_for("a running application", SOON, || status(farm, GREETER)["state"] == "running");
    assert_eq!(get(GREETER_PORT, "/health").status, 200);
}

/// The tarball of a second release: another version, other installer, other host.
fn bake_second(farm: &Farm, first: &Path) -> PathBuf {
    let profile = farm.root().join("profiles").join(GREETER);
    let file = profile.join("profile.toml");
    let shipped = fs::read_to_string(&file).expect("it is our copy");
    let section = "[python]\n";
    let with_pip = shipped.replace(section, "[python]\ninstaller = \"pip\"\n");
    assert_ne!(with_pip, shipped);
    fs::write(&file, with_pip).expect("it is our copy");
    let out = first.parent().expect("it is in a directory");
    let bake =
        farm.command(&["bake", text(&profile), "--set-version", "1.0.1", "--output", text(out)]);
    let mut elsewhere = Command::new("unshare");
    elsewhere
        .args(["--uts", "sh", "-c", &format!("hostname {TRACE}; exec \"$@\""), "sh"])
        .arg(bake.get_program())
        .args(bake.get_args())
        .stdin(Stdio::null())
        .env("no_proxy", format!("{TRACE}.example"))
        .env("PIP_TRUSTED_HOST", format!("{TRACE}.example"));
    for (name, value) in bake.get_envs() {
        elsewhere.env(name, value.expect("it is set"));
    }
    let baked = common::run(elsewhere).ok();
    fs::write(&file, shipped).expect("it is our copy");
    PathBuf::from(baked.stdout.trim())
}

type Listing = BTreeMap<PathBuf, String>;

/// Everything beneath a directory, with what would show a change.
fn listing(root: &Path) -> Listing {
    let mut found = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let meta = entry.metadata().expect("nobody removes it");
            let times = format!("{}.{}", meta.mtime(), meta.mtime_nsec());
            let known = format!("{:o} {} {} {times}", meta.mode(), meta.uid(), meta.len());
            found.insert(entry.path(), known);
            // What is mounted there is not the directory's.
            if meta.is_dir() && meta.dev() == fs::metadata(root).expect("it is there").dev() {
                pending.push(entry.path());
            }
        }
    }
    found
}

/// What was added, changed or removed.
fn changes(before: &Listing, after: &Listing) -> Vec<PathBuf> {
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    paths.into_iter().filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

#[test]
fn hello_is_served_survives_what_kills_it_and_goes_without_a_trace() {
    let farm = Farm::new();
    let profile = farm.profile("hello", GREETER, GREETER_PORT);
    let first = farm.bake(&profile);
    let second = bake_second(&farm, &first);

    // Done already, each time.
    let again = farm.run(&["bootstrap", text(&profile)]).ok();
    assert_eq!(again.stderr, "✓ environment greeter is there already, from the same inputs\n");
    let out = first.parent().expect("it is in a directory");
    let again = farm.run(&["bake", text(&profile), "--output", text(out)]).ok();
    assert_eq!(again.stderr, "✓ greeter 1.0.0 is baked already, from the same inputs\n");
    assert_eq!(Path::new(again.stdout.trim()), first);
    farm.run(&["install", text(&first)]).ok();
    let again = farm.run(&["install", text(&first)]).ok();
    assert_eq!(again.stderr, "✓ greeter 1.0.0 is installed already\n");
    let started = farm.run(&["start", GREETER]).ok();
    assert_eq!(started.stdout, "http://127.0.0.1:18080/\n");
    let again = farm.run(&["start", GREETER]).ok();
    assert_eq!(again.stderr, "✓ greeter 1.0.0 is started already\n");
    assert_eq!(again.stdout, "http://127.0.0.1:18080/\n");

    pages_come_through_nginx();
    verbs_say_what_is_there(&farm, &first);
    commands_run_inside(&farm);
    what_is_killed_comes_back(&farm);
    a_reboot_is_recovered_from(&farm);

    let before = server(&status(&farm, GREETER));
    farm.run(&["restart", GREETER]).ok();
    assert_ne!(server(&status(&farm, GREETER)), before);
    assert_one_copy(&farm);
    data_outlives_sessions_and_releases(&farm, &second);
    nothing_is_left(&farm);
}

fn pages_come_through_nginx() {
    let page = get(GREETER_PORT, "/");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("server: nginx"), "{}", page.head);
    assert!(page.body.contains("<dt>Version</dt><dd>1.0.0</dd>"), "{}", page.body);
    let style = get(GREETER_PORT, "/static/style.css");
    assert_eq!(style.status, 200);
    assert!(style.head.contains("content-type: text/css"), "{}", style.head);
    assert_eq!(style.body, include_str!("../profiles/hello/app/static/style.css"));
    // Files of all releases have the same time, so a browser's copy says nothing.
    let copy = "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n";
    assert_eq!(get_with(GREETER_PORT, "/static/style.css", copy).status, 200);
    assert_eq!(get(GREETER_PORT, "/static/none.css").status, 404);
    assert_eq!(get(GREETER_PORT, "/none").status, 404);
    assert!(visits() < visits(), "visits are counted");
}

fn verbs_say_what_is_there(farm: &Farm, tarball: &Path) {
    // Its supervisor calls it started for two seconds.
    let settled = || status(farm, GREETER)["processes"][0]["state"] == "running";
    wait_for("a process that stays up", SOON, settled);
    let found = status(farm, GREETER);
    assert_eq!(found["state"], "running");
    assert_eq!(found["release"], "1.0.0");
    assert_eq!(found["session"]["live"], true);
    assert_eq!(found["processes"][0]["ready"], "200");
    assert_eq!(found["processes"][0]["workers"], 2 * cores() + 1);
    assert_eq!(found["front"]["published"], true);
    let screen = farm.run(&["status", GREETER]).ok().stdout;
    assert!(
        screen.starts_with("greeter          running\n")
            || screen.starts_with("greeter      running\n"),
        "{screen}"
    );
    assert!(screen.lines().count() < 10 && screen.lines().all(|line| line.len() < 100), "{screen}");

    // The supervised process is the server itself, in the session, as its own user.
    let pid = server(&found);
    let socket = farm.root().join("run/farmctl/supervisor.sock");
    let supervised = common::run({
        let mut command = Command::new("supervisorctl");
        command.args(["-s", &format!("unix://{}", socket.display()), "status"]);
        command
    });
    assert!(supervised.stdout.contains(&format!("pid {pid},")), "{supervised:?}");
    let proc = Path::new("/proc").join(pid.to_string());
    assert_eq!(fs::read_link(proc.join("root")).expect("it runs"), mount(&found));
    let command = fs::read_to_string(proc.join("cmdline")).expect("it runs").replace('\0', " ");
    assert!(command.contains("/gunicorn --bind unix:"), "{command}");
    let listed = json(&farm.run(&["list", "--json"]).ok().stdout);
    let uid = number(&listed["applications"][0]["uid"]);
    assert!(uid >= 200_000, "{uid}");
    let identity = fs::read_to_string(proc.join("status")).expect("it runs");
    assert!(identity.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{identity}");
    assert!(identity.contains("CapEff:\t0000000000000000\n"), "{identity}");
    assert_eq!(listed["applications"][0]["name"], GREETER);
    assert_eq!(listed["applications"][0]["state"], "started");
    assert_eq!(listed["applications"][0]["releases"], serde_json::json!(["1.0.0"]));
    assert_eq!(listed["environments"][0]["suite"], "bookworm");
    let list = farm.run(&["list"]).ok().stdout;
    assert!(list.contains("\ngreeter      started  1.0.0    1.0.0\n"), "{list}");

    let shown = json(&farm.run(&["show", GREETER, "--json"]).ok().stdout);
    assert_eq!(shown, json(&farm.run(&["show", text(tarball), "--json"]).ok().stdout));
    assert_eq!(shown["manifest"]["name"], GREETER);
    assert_eq!(shown["identity"], found["identity"]);
    let shown = farm.run(&["show", GREETER]).ok().stdout;
    assert!(shown.contains("\nPython         1 distribution: gunicorn 27.0.1\n"), "{shown}");
    let verified = farm.run(&["verify", GREETER]).ok().stderr;
    assert!(verified.starts_with("✓ greeter 1.0.0 is as installed: "), "{verified}");
    let verified = farm.run(&["verify", text(tarball)]).ok().stderr;
    let identity = found["identity"].as_str().expect("it is text");
    let whole = format!("✓ {} is whole: sha256 {identity}", tarball.display());
    assert!(verified.starts_with(&whole), "{verified}");
    let logs = farm.run(&["logs", GREETER]).ok().stdout;
    assert!(logs.contains("Listening at: unix:/run/farmctl/sockets/fs-greeter-"), "{logs}");
    assert_eq!(logs.matches("Booting worker with pid: ").count(), 2 * cores() + 1, "{logs}");
    assert_eq!(farm.run(&["logs", GREETER, "-n", "1"]).ok().stdout.lines().count(), 1);
    farm.run(&["doctor"]).ok();
}

fn commands_run_inside(farm: &Farm) {
    let uid = number(&json(&farm.run(&["list", "--json"]).ok().stdout)["applications"][0]["uid"]);
    let inside = |words: &[&str]| farm.run(&[&["shell", GREETER], words].concat());
    assert_eq!(inside(&["--", "id", "-u"]).ok().stdout, format!("{uid}\n"));
    assert_eq!(inside(&["--", "id", "-un"]).ok().stdout, "app\n");
    assert_eq!(inside(&["--as-root", "--", "id", "-u"]).ok().stdout, "0\n");
    assert_eq!(inside(&["--", "false"]).code, 1);

    // A look at the source is a look at a copy: it stays as it was made.
    let etc = farm.state("volumes/fv-env-greeter/root/etc");
    let before = listing(&etc);
    let shadow = fs::read_to_string(etc.join("shadow")).expect("a tree has one");
    let version = inside(&["--source", "--", "cat", "/etc/debian_version"]).ok().stdout;
    assert!(version.starts_with("12."), "{version}");
    inside(&["--source", "--", "touch", "/etc/mark"]).ok();
    assert_eq!(changes(&before, &listing(&etc)), Vec::<PathBuf>::new());
    inside(&["--source", "--write", "--", "touch", "/etc/mark"]).ok();
    // schroot's 50chrootname writes the first; a bake removes it.
    assert_eq!(changes(&before, &listing(&etc)), [etc.join("debian_chroot"), etc.join("mark")]);
    assert_eq!(fs::read_to_string(etc.join("shadow")).expect("a tree has one"), shadow);
    let passwd = inside(&["--source", "--", "cat", "/etc/passwd"]).ok().stdout;
    assert_eq!(passwd, fs::read_to_string(etc.join("passwd")).expect("a tree has one"));
    assert!(passwd.contains("\napp:x:1000:1000:") && !passwd.contains("farmctl-"), "{passwd}");
}

fn what_is_killed_comes_back(farm: &Farm) {
    let before = status(farm, GREETER);
    send("KILL", &[server(&before)]);
    wait_for("another server", SOON, || {
        let pid = &status(farm, GREETER)["processes"][0]["pid"];
        pid.is_number() && *pid != before["processes"][0]["pid"]
    });
    assert_one_copy(farm);

    // Its processes go on, and nobody watches them.
    let pid = fs::read_to_string(farm.root().join("run/farmctl/supervisord.pid"));
    let daemon: u32 = pid.expect("it runs").trim().parse().expect("a pid file holds a pid");
    send("KILL", &[daemon]);
    wait_for("no supervisord", SOON, || !Path::new(&format!("/proc/{daemon}")).exists());
    assert_eq!(farm.run(&["tend", "--dry-run"]).code, 3);
    farm.run(&["tend"]).ok();
    assert_one_copy(farm);
    let after = status(farm, GREETER);
    assert_eq!(after["session"], before["session"]);
    assert_eq!(farm.run(&["tend", "--dry-run"]).ok().stdout, "");
}

fn a_reboot_is_recovered_from(farm: &Farm) {
    farm.run(&["shell", GREETER, "--as-root", "--", "sh", "-c", "echo kept >/srv/note"]).ok();
    let before = status(farm, GREETER);
    let (mount, visited) = (mount(&before), visits());
    let session = before["session"]["name"].as_str().expect("it is started");
    let pid = fs::read_to_string(farm.root().join("run/farmctl/supervisord.pid"));
    let daemon = pid.expect("it runs").trim().parse().expect("a pid file holds a pid");
    send("KILL", &[daemon]);
    send("KILL", &rooted(&mount));
    wait_for("no process", SOON, || rooted(&mount).is_empty());
    tool("umount", &["--recursive", text(&mount)]);
    tool("umount", &["--recursive", &format!("/var/lib/schroot/union/underlay/{session}")]);
    tool("umount", &[text(&farm.root().join("run/farmctl/apps").join(GREETER))]);
    fs::remove_dir(&mount).expect("nothing is mounted there");
    fs::remove_dir_all(farm.root().join("run")).expect("nothing is mounted there");

    let found = status(farm, GREETER);
    assert_eq!((&found["state"], &found["session"]["live"]), (&"broken".into(), &false.into()));
    farm.run(&["tend"]).ok();
    assert_one_copy(farm);
    let after = status(farm, GREETER);
    assert_eq!(after["session"]["name"], before["session"]["name"]);
    assert_eq!(after["session"]["begun"], before["session"]["begun"]);
    let note = farm.run(&["shell", GREETER, "--", "cat", "/srv/note"]).ok();
    assert_eq!(note.stdout, "kept\n");
    assert_eq!(visits(), visited + 1);
}

fn data_outlives_sessions_and_releases(farm: &Farm, second: &Path) {
    let visited = visits();
    let refused = farm.run(&["remove", GREETER]).failed(1);
    assert_eq!(refused.error(), "greeter 1.0.0 is running");
    assert_eq!(refused.hint(), "farmctl stop greeter");
    stop(farm);
    farm.run(&["start", GREETER]).ok();
    assert_eq!(visits(), visited + 1);
    // What was written into the session went with it.
    assert_eq!(farm.run(&["shell", GREETER, "--", "cat", "/srv/note"]).code, 1);

    let installed = farm.run(&["install", text(second)]).ok().stderr;
    let next =
        "installed greeter 1.0.1: 1.0.0 runs on; farmctl upgrade greeter 1.0.1 switches to it";
    assert!(installed.contains(next), "{installed}");
    assert!(get(GREETER_PORT, "/").body.contains("<dd>1.0.0</dd>"), "the first release runs on");
    stop(farm);
    farm.run(&["start", GREETER, "--release", "1.0.1"]).ok();
    assert!(get(GREETER_PORT, "/").body.contains("<dd>1.0.1</dd>"));
    assert_eq!(visits(), visited + 4);
    let other = farm.run(&["start", GREETER, "--release", "1.0.0"]).failed(1);
    assert_eq!(other.error(), "greeter runs release 1.0.1");
    farm.run(&["remove", GREETER, "--release", "1.0.0"]).ok();
    assert_eq!(status(farm, GREETER)["releases"], serde_json::json!(["1.0.1"]));
    stop(farm);
}

/// Stops the application; nothing of its session may be left.
#[track_caller]
fn stop(farm: &Farm) {
    let before = status(farm, GREETER);
    let session = before["session"]["name"].as_str().expect("it is started");
    farm.run(&["stop", GREETER]).ok();
    assert_eq!(rooted(&mount(&before)), Vec::<u32>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    assert!(!mounts.contains(session), "{mounts}");
    let sockets = farm.root().join("run/farmctl/apps").join(GREETER);
    assert!(!mounts.contains(text(&sockets)), "{mounts}");
    for place in ["session", "union/overlay", "union/underlay"] {
        assert!(!Path::new("/var/lib/schroot").join(place).join(session).exists(), "{place}");
    }
    assert!(!farm.root().join("run/farmctl/supervisor.sock").exists(), "it was the last one");
    let vhost = Path::new("/etc/nginx/sites-enabled/farmctl-greeter");
    assert!(fs::symlink_metadata(vhost).is_ok(), "it says that nobody is there");
    assert_eq!(get(GREETER_PORT, "/").status, 503);
    assert_eq!(status(farm, GREETER)["state"], "stopped");
    assert_eq!(farm.run(&["stop", GREETER]).ok().stderr, "✓ greeter is stopped already\n");
    farm.assert_clean();
}

fn nothing_is_left(farm: &Farm) {
    let data = farm.state("data/greeter/visits/visits");
    farm.run(&["remove", GREETER]).ok();
    assert!(data.exists(), "data stays");
    assert!(fs::read_to_string("/etc/passwd").expect("it is there").contains("farmctl-greeter:"));
    farm.run(&["remove", GREETER, "--data"]).ok();
    farm.run(&["remove", "--environment", GREETER]).ok();
    let again = farm.run(&["remove", GREETER, "--data"]).ok();
    assert_eq!(again.stderr, "✓ greeter is not installed\n");
    for place in ["var", "etc"] {
        let mut left: Vec<PathBuf> = listing(&farm.root().join(place)).into_keys().collect();
        left.retain(|path| {
            path.strip_prefix(farm.root()).is_ok_and(|path| text(path).contains(GREETER))
        });
        assert_eq!(left, Vec::<PathBuf>::new());
    }
    assert!(!Path::new("/etc/schroot/chroot.d/farmctl-greeter-1.0.1").exists());
    assert!(!fs::read_to_string("/etc/passwd").expect("it is there").contains("farmctl-greeter:"));
}

/// Reloads three times while thirty-two visitors come: none of them may notice.
#[track_caller]
#[expect(clippy::print_stderr, reason = "measured figures, shown with --nocapture")]
fn assert_reloads_lose_nothing(farm: &Farm, app: &str, port: u16, least: u64) {
    let load = Load::full(&format!("http://127.0.0.1:{port}/"));
    let mut took = Vec::new();
    for _ in 0..3 {
        let begun = Instant::now();
        let done = json(&farm.run(&["reload", app, "--json"]).ok().stdout);
        took.push(begun.elapsed().as_millis());
        let (before, after) = (numbers(&done[0]["before"]), numbers(&done[0]["after"]));
        assert_eq!((before.len(), after.len()), (2 * cores() + 1, 2 * cores() + 1), "{done}");
        assert!(after.iter().all(|pid| !before.contains(pid)), "{done}");
        assert_eq!(number(&done[0]["pid"]), server(&status(farm, app)));
    }
    let report = load.end(Duration::from_secs(10));
    eprintln!("{app}: {report:?}; reloads took {took:?} ms");
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert!(report.requests > least, "{report:?}");
}

#[test]
fn hello_is_reloaded_under_load_without_a_failure_and_refuses_broken_code() {
    let farm = Farm::new();
    farm.serve("hello", GREETER, GREETER_PORT);
    assert_reloads_lose_nothing(&farm, GREETER, GREETER_PORT, 1000);

    let before = server(&status(&farm, GREETER));
    let change =
        |command: &str| farm.run(&["shell", GREETER, "--as-root", "--", "sh", "-c", command]).ok();
    let load = Load::start("http://127.0.0.1:18080/");
    drop(change("echo 'def broken(:' >>/srv/hello/app/hello.py"));
    let refused = farm.run(&["reload", GREETER]).failed(1);
    assert!(refused.error().starts_with("reloading greeter: checking process web"), "{refused:?}");
    assert!(refused.error().contains("SyntaxError: invalid syntax"), "{refused:?}");
    assert_eq!(
        refused.hint(),
        "the running code was left alone: correct the new one and reload again"
    );
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert_eq!(server(&status(&farm, GREETER)), before);

    drop(change(
        "sed -i '$d' /srv/hello/app/hello.py && sed -i 's/Hello</Hello again</' /srv/hello/app/page.html",
    ));
    assert!(!get(GREETER_PORT, "/").body.contains("Hello again"));
    farm.run(&["reload", GREETER, "web"]).ok();
    assert!(get(GREETER_PORT, "/").body.contains("<h1>Hello again</h1>"));
    assert_eq!(server(&status(&farm, GREETER)), before);
}

#[test]
fn a_page_edited_in_mezzanine_is_still_there_after_stop_and_start() {
    let farm = Farm::new();
    let address = farm.serve("mezzanine", MAGAZINE, MAGAZINE_PORT);
    assert_eq!(address, "http://127.0.0.1:18081/");
    let home = get(MAGAZINE_PORT, "/");
    assert_eq!(home.status, 200);
    assert!(
        home.body.contains("<title>Home | Mezzanine</title>") || home.body.contains("Mezzanine"),
        "{}",
        home.body
    );
    let style = get(MAGAZINE_PORT, "/static/css/bootstrap.css");
    assert_eq!(style.status, 200);
    assert!(style.body.contains("Bootstrap v3"), "{}", style.head);

    let secrets = farm.root().join("etc/farmctl/apps/magazine.env");
    assert_eq!(
        fs::metadata(&secrets).expect("it was generated").permissions().mode() & 0o777,
        0o600
    );
    let secrets = fs::read_to_string(secrets).expect("it was generated");
    let password = secrets.lines().find_map(|line| line.strip_prefix("ADMIN_PASSWORD="));
    let password = password.expect("it was generated");
    let edited = "<p>Edited by a test: 42.</p>";
    assert!(!get(MAGAZINE_PORT, "/about/").body.contains(edited));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/edit_page.py");
    tool("/usr/bin/python3", &[text(&script), "18081", password, edited]);
    assert!(get(MAGAZINE_PORT, "/about/").body.contains(edited));

    assert_reloads_lose_nothing(&farm, MAGAZINE, MAGAZINE_PORT, 100);

    farm.run(&["stop", MAGAZINE]).ok();
    assert_eq!(get(MAGAZINE_PORT, "/about/").status, 503);
    farm.run(&["start", MAGAZINE]).ok();
    let about = get(MAGAZINE_PORT, "/about/");
    assert_eq!(about.status, 200);
    assert!(about.body.contains(edited), "{}", about.body);
}

/// A tarball unpacked with stock tar.
fn unpack(farm: &Farm, tarball: &Path) -> PathBuf {
    let tree = farm.root().join("tree");
    fs::create_dir(&tree).expect("there is room");
    tool("tar", &["-xJf", text(tarball), "-C", text(&tree)]);
    tree
}

#[test]
fn the_tarball_runs_with_stock_tar_and_plain_chroot_without_farmctl() {
    let farm = Farm::new();
    let tarball = farm.bake(&farm.profile("hello", GREETER, GREETER_PORT));
    let tree = unpack(&farm, &tarball);
    // Port 8000 of the tests' machine may be taken.
    let run = tree.join("run/project");
    fs::create_dir(&run).expect("/run is empty");
    fs::write(run.join("env"), format!("listen_web='127.0.0.1:{BARE_PORT}'\n"))
        .expect("there is room");
    tool("chroot", &[text(&tree), "chown", "app:app", "/run/project"]);

    let start = Command::new("chroot")
        .arg(&tree)
        .args(["project", "run", "web"])
        .stdin(Stdio::null())
        .spawn();
    let mut running = Running(start.expect("chroot is there"));
    wait_for("a page", SOON, || std::net::TcpStream::connect(("127.0.0.1", BARE_PORT)).is_ok());
    let page = get(BARE_PORT, "/");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("server: gunicorn"), "{}", page.head);
    assert!(page.body.contains("<dt>Version</dt><dd>1.0.0</dd>"), "{}", page.body);
    // chroot became the server, with all its workers and as the baked user.
    let pid = running.0.id();
    assert_eq!(fs::metadata(format!("/proc/{pid}")).expect("it runs").uid(), 1000);
    wait_for("all workers", SOON, || rooted(&tree).len() == 1 + 2 * cores() + 1);
    let said = tool("chroot", &[text(&tree), "project", "status"]);
    assert_eq!(said, format!("web: running, pid {pid}, 127.0.0.1:{BARE_PORT}\n"));
    send("TERM", &[pid]);
    assert!(running.0.wait().expect("it is our child").success());
    wait_for("no worker", SOON, || rooted(&tree).is_empty());
}

/// The tar stream of a tarball without its first two members, the manifest and the index.
fn payload(tarball: &Path) -> Vec<u8> {
    let output = Command::new("xz").args(["-dc", text(tarball)]).output().expect("xz is there");
    assert!(output.status.success());
    let mut stream = output.stdout;
    let mut start = 0;
    for name in [".farmctl/manifest.json", ".farmctl/files.json"] {
        assert!(stream[start..].starts_with(name.as_bytes()));
        // ustar: the size is octal, at 124, and contents fill blocks of 512 bytes.
        let size = String::from_utf8_lossy(&stream[start + 124..start + 135]).into_owned();
        let size = usize::from_str_radix(&size, 8).expect("it is octal");
        start += 512 + size.next_multiple_of(512);
    }
    stream.drain(..start);
    stream
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn two_bakes_differ_in_their_version_only_and_hold_nothing_of_the_host() {
    let farm = Farm::new();
    let profile = farm.profile("hello", GREETER, GREETER_PORT);
    let first = farm.bake(&profile);
    let plan = farm.run(&["bake", text(&profile), "--fresh", "--dry-run"]).ok().stdout;
    let second = bake_second(&farm, &first);

    // Same size, same bytes: pip for uv, another day, another host.
    assert!(
        plan.contains("install requirements.txt with uv, by hash"),
        "this test needs uv and an index for it (UV_DEFAULT_INDEX):\n{plan}"
    );
    let wanted = |tarball: &Path| {
        json(&farm.run(&["show", text(tarball), "--json"]).ok().stdout)["manifest"]["payload"]["sha256"]
            .as_str()
            .expect("it is text")
            .to_owned()
    };
    let mut bytes = payload(&first);
    assert_eq!(sha256(&bytes), wanted(&first));
    for (old, new) in
        [("greeter 1.0.0 in", "greeter 1.0.1 in"), ("_VERSION=1.0.0", "_VERSION=1.0.1")]
    {
        let found: Vec<usize> = bytes
            .windows(old.len())
            .enumerate()
            .filter_map(|(at, window)| (window == old.as_bytes()).then_some(at))
            .collect();
        assert_eq!(found.len(), 1, "{old} is in the start script");
        bytes[found[0]..found[0] + new.len()].copy_from_slice(new.as_bytes());
    }
    assert_eq!(sha256(&bytes), wanted(&second));

    let tree = unpack(&farm, &second);
    let bundle = fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").expect("hosts have it");
    // Of the last certificate: administrators add theirs there.
    let certificate = bundle.trim_end().lines().rev().nth(2).expect("it holds certificates");
    let mut search = Command::new("grep");
    search.args(["-rlaF", "-e", TRACE, "-e", certificate, "-e", "/run/farmctl-build"]);
    search.args(["-e", text(&common::cache()), "-e", text(farm.root()), "."]);
    let found = common::run({
        search.current_dir(&tree);
        search
    });
    assert_eq!((found.code, found.stdout.as_str()), (1, ""), "{}", found.stderr);

    assert_eq!(fs::read_link(tree.join("var/tmp")).expect("it is a link"), Path::new("/tmp"));
    assert_eq!(fs::read(tree.join("etc/machine-id")).unwrap_or_default(), b"");
    let everything = listing(&tree);
    for empty in ["run/lock", "tmp", "dev", "proc", "sys"] {
        assert!(!everything.keys().any(|path| path.parent() == Some(&tree.join(empty))), "{empty}");
    }
    let name = |path: &Path| path.file_name().expect("it has one").to_string_lossy().into_owned();
    let bad: Vec<&PathBuf> = everything
        .keys()
        .filter(|path| {
            let inside = path.strip_prefix(&tree).expect("it is beneath");
            let kept = ["var/log", "var/cache/apt", "var/lib/apt/lists"];
            let kept = kept.iter().any(|place| inside.starts_with(place)) && path.is_file();
            kept || name(path).starts_with("ssh_host_") || name(path).ends_with("_history")
        })
        .collect();
    assert_eq!(bad, Vec::<&PathBuf>::new());
}

#[test]
fn a_dry_run_names_the_commands_and_changes_nothing() {
    let farm = Farm::new();
    let profile = farm.profile("hello", GREETER, GREETER_PORT);
    let profile = text(&profile);
    let look = || {
        let mut found = Listing::new();
        for place in [farm.root(), Path::new("/etc/schroot"), Path::new("/etc/nginx")] {
            found.extend(listing(place));
        }
        let passwd = fs::read_to_string("/etc/passwd").expect("it is readable");
        found.insert("/etc/passwd".into(), passwd);
        // What runs goes on.
        found.retain(|path, _| !path.starts_with(farm.root().join("var/log")));
        found
    };
    let plan = |words: &[&str]| {
        let before = look();
        let ran = farm.run(&[words, &["--dry-run"]].concat()).ok();
        assert_eq!(changes(&before, &look()), Vec::<PathBuf>::new(), "{words:?}");
        ran.stdout.replace(text(farm.root()), "ROOT")
    };
    insta::assert_snapshot!(plan(&["bootstrap", profile]), @r"
    would bootstrap greeter (bookworm amd64):
      1. make volume fv-env-greeter: directory, no volume group is set or made by farmctl, and no btrfs is there
           + mkdir ROOT/var/lib/farmctl/volumes/fv-env-greeter/root
      2. unpack the tree from the cache (--fresh makes it anew)
      3. register farmctl-env-greeter with schroot
    ");
    let fresh = plan(&["bootstrap", profile, "--fresh"]);
    assert!(fresh.contains("\n       + "), "{fresh}");
    let configure = "dpkg --force-depends --force-configure-any --configure --pending\n";
    assert!(fresh.contains(&format!("/usr/sbin/chroot TREE {configure}")), "{fresh}");
    let reference = plan(&["bootstrap", profile, "--fresh", "--debootstrap"]);
    assert!(reference.contains("/usr/sbin/debootstrap --variant=minbase"), "{reference}");
    let tarball = farm.bake(Path::new(profile));
    let known = json(&farm.run(&["show", text(&tarball), "--json"]).ok().stdout);
    let epoch = format!("EPOCH={}", known["manifest"]["epoch"]);
    let bake = plan(&["bake", profile, "--fresh", "--output", text(farm.root())]);
    insta::assert_snapshot!(bake.replace(&epoch, "EPOCH=…"), @r"
    would bake greeter 1.0.0:
      1. fork volume fv-env-greeter
           + ln -s ../fv-env-greeter/root 'ROOT/var/lib/farmctl/volumes/fv-stage-…/lower'
           + mkdir 'ROOT/var/lib/farmctl/volumes/fv-stage-…/upper' 'ROOT/var/lib/farmctl/volumes/fv-stage-…/work' 'ROOT/var/lib/farmctl/volumes/fv-stage-…/root'
           + mount -t overlay -o 'redirect_dir=on,index=on,metacopy=off,volatile,lowerdir=ROOT/var/lib/farmctl/volumes/fv-stage-…/lower,upperdir=ROOT/var/lib/farmctl/volumes/fv-stage-…/upper,workdir=ROOT/var/lib/farmctl/volumes/fv-stage-…/work' overlay 'ROOT/var/lib/farmctl/volumes/fv-stage-…/root'
      2. copy the project ROOT/profiles/greeter in
      3. make the virtualenv
           + SOURCE_DATE_EPOCH=… PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true TZ=UTC unshare --pid --fork --kill-child -- /usr/sbin/chroot TREE python3 -m venv --without-pip /srv/greeter/venv
      4. install requirements.txt with uv, by hash
      5. copy app to /srv/hello/app
      6. write the start script /usr/local/bin/project
      7. purge the build packages, clean up
      8. pack ROOT/greeter_1.0.0_amd64.tar.xz
    ");
    insta::assert_snapshot!(plan(&["lock", profile]), @r"
    would lock greeter:
      1. read the archive's indexes: bookworm, bookworm-updates, bookworm-security
      2. resolve the Debian packages; fetch those the pool lacks
      3. fork volume fv-env-greeter
           + ln -s ../fv-env-greeter/root 'ROOT/var/lib/farmctl/volumes/fv-stage-…/lower'
           + mkdir 'ROOT/var/lib/farmctl/volumes/fv-stage-…/upper' 'ROOT/var/lib/farmctl/volumes/fv-stage-…/work' 'ROOT/var/lib/farmctl/volumes/fv-stage-…/root'
           + mount -t overlay -o 'redirect_dir=on,index=on,metacopy=off,volatile,lowerdir=ROOT/var/lib/farmctl/volumes/fv-stage-…/lower,upperdir=ROOT/var/lib/farmctl/volumes/fv-stage-…/upper,workdir=ROOT/var/lib/farmctl/volumes/fv-stage-…/work' overlay 'ROOT/var/lib/farmctl/volumes/fv-stage-…/root'
      4. resolve the requirements for its Python; fetch what the pool lacks
      5. write ROOT/profiles/greeter/farmctl.lock
    ");
    let install = plan(&["install", text(&tarball)]);
    let install = install.replace(known["identity"].as_str().expect("it is text"), "…");
    let (_, id) = install.split_once(" --gid ").expect("the account is made");
    let (id, _) = id.split_once(' ').expect("its name follows");
    assert!(id.parse::<u32>().expect("it is a number") >= 200_000, "{install}");
    let install = install.replace(id, "ID");
    // Sizes change with Debian's updates.
    let (sizes, rest): (Vec<&str>, Vec<&str>) =
        install.lines().partition(|line| line.contains(" MiB in "));
    assert_eq!(sizes.len(), 1, "{install}");
    insta::assert_snapshot!(rest.join("\n"), @r"
    would install greeter 1.0.0 (sha256 …):
      1. make the account farmctl-greeter
           + /usr/sbin/groupadd --system --gid ID farmctl-greeter
           + /usr/sbin/useradd --system --uid ID --gid ID --no-create-home --no-log-init --home-dir /nonexistent --shell /usr/sbin/nologin --comment 'farmctl application greeter' farmctl-greeter
      2. make volume fv-greeter-1.0.0: directory, no volume group is set or made by farmctl, and no btrfs is there
           + mkdir ROOT/var/lib/farmctl/volumes/fv-greeter-1.0.0/root
      4. make ROOT/var/lib/farmctl/data/greeter/visits unless it is there
      5. register farmctl-greeter-1.0.0 with schroot
    ");
    farm.run(&["install", text(&tarball)]).ok();
    let start = plan(&["start", GREETER]);
    // nginx is started if it does not run.
    let start = start
        .replace("/usr/sbin/service nginx start", "/usr/sbin/nginx -s reload")
        .replace("/usr/bin/systemctl start nginx", "/usr/sbin/nginx -s reload");
    insta::assert_snapshot!(start, @r"
    would start greeter 1.0.0:
      1. begin a session
           + /usr/bin/schroot --begin-session --session-name 'fs-greeter-…' --chroot chroot:farmctl-greeter-1.0.0
      2. run the process web
           + gunicorn --bind {{ listen.web }} --workers {{ workers }} --no-control-socket --env HELLO_VERSION={{ version }} --chdir /srv/hello/app hello:application
      3. lead ROOT/run/farmctl/front/greeter to the session's socket
      4. publish the vhost farmctl-greeter
           + /usr/sbin/nginx -t
           + /usr/sbin/nginx -s reload
    ");
    farm.run(&["start", GREETER]).ok();
    let session =
        status(&farm, GREETER)["session"]["name"].as_str().expect("it is text").to_owned();
    let reload = plan(&["reload", GREETER]);
    insta::assert_snapshot!(reload.replace(&session, "SESSION"), @r"
    would reload greeter:
      1. check the new code of web
           + /usr/bin/schroot --run-session --chroot session:SESSION --directory / --user root -- /usr/local/bin/project check web
      2. send SIGHUP to the process web
    ");
    insta::assert_snapshot!(plan(&["restart", GREETER]), @r"
    would restart greeter:
      1. stop the process web (SIGTERM) and start it
    ");
    assert_eq!(plan(&["tend"]), "");
    let stop = plan(&["stop", GREETER]);
    insta::assert_snapshot!(stop.replace(&session, "SESSION"), @r"
    would stop greeter 1.0.0:
      1. have the vhost answer 503
      2. stop the processes
      3. end the session
           + /usr/bin/schroot --end-session --chroot session:SESSION
    ");
    farm.run(&["stop", GREETER]).ok();
    insta::assert_snapshot!(plan(&["remove", GREETER, "--data"]), @r"
    would remove greeter:
      1. remove the vhost of greeter
      2. remove the log of requests to greeter
      3. remove ROOT/var/lib/farmctl/history/greeter.jsonl.1
      4. remove ROOT/var/lib/farmctl/history/greeter.jsonl
      5. remove ROOT/var/log/farmctl/greeter
      6. remove ROOT/etc/farmctl/apps/greeter.env
      7. remove ROOT/var/lib/farmctl/data/greeter
      8. remove the account of greeter
      9. remove the chroot farmctl-greeter-1.0.0
     10. remove ROOT/var/lib/farmctl/static/greeter/1.0.0
     11. remove ROOT/var/lib/farmctl/releases/greeter/1.0.0
     12. remove the volume fv-greeter-1.0.0
    ");
    insta::assert_snapshot!(plan(&["remove", GREETER, "--release", "1.0.0"]), @r"
    would remove greeter 1.0.0:
      1. remove the vhost of greeter
      2. remove the chroot farmctl-greeter-1.0.0
      3. remove ROOT/var/lib/farmctl/static/greeter/1.0.0
      4. remove ROOT/var/lib/farmctl/releases/greeter/1.0.0
      5. remove the volume fv-greeter-1.0.0
    ");
    // Whichever test baked it first has kept something for the next bake.
    farm.run(&["gc", "--stages"]).ok();
    insta::assert_snapshot!(plan(&["remove", "--environment", GREETER]), @r"
    would remove environment greeter:
      1. remove the chroot farmctl-env-greeter
      2. remove the volume fv-env-greeter
    ");
    assert_eq!(plan(&["gc"]), "");
}

#[test]
fn every_help_fits_eighty_columns_and_ends_with_an_example() {
    let help = |words: &[&str]| {
        let mut command = Command::new(common::FARMCTL);
        command.args(words).arg("--help");
        let text = common::run(command).ok().stdout;
        let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
        assert_eq!(wide, Vec::<&str>::new(), "{words:?}");
        text
    };
    let all = help(&[]);
    let (_, verbs) = all.split_once("Commands:\n").expect("it lists them");
    let verbs: Vec<&str> = verbs
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|verb| !verb.is_empty())
        .collect();
    assert_eq!(
        verbs,
        [
            "init",
            "bootstrap",
            "lock",
            "bake",
            "sign",
            "install",
            "start",
            "stop",
            "restart",
            "reload",
            "dev",
            "upgrade",
            "rollback",
            "confirm",
            "status",
            "history",
            "logs",
            "shell",
            "list",
            "show",
            "verify",
            "diff",
            "sbom",
            "audit",
            "remove",
            "gc",
            "doctor",
            "tend",
            "storage",
            "key",
            "completions",
            "manual",
        ]
    );
    for verb in verbs {
        let text = help(&[verb]);
        let (_, end) =
            text.split_once("\nExample").unwrap_or_else(|| panic!("{verb} has no example"));
        assert!(end.contains(&format!("\n  farmctl {verb}")), "{text}");
        assert!(!end.contains("Options:"), "{text}");
    }
}
