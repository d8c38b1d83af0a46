//! What is saved in a project reaches the application that runs of it, by the way it takes.

mod common;
#[path = "common/signal.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod signal;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Farm, wait_for};
use nix::sys::signal::Signal::SIGINT;
use serde_json::Value;
use signal::{Working, word};
use web::get;

const NAME: &str = "developed";
const PORT: u16 = 18_131;
/// How long a change may take that is put there; what is measured is printed.
const SOON: Duration = Duration::from_secs(30);
/// And one that is baked.
const LATER: Duration = Duration::from_secs(180);
const GUNICORN: &str = "gunicorn==27.0.1 \
    --hash=sha256:378b26b9a38adcf4592f28828233c1716acc55e833ea06bf48719782efaa0d10 \
    --hash=sha256:b1514965361c8b7e8107a80aa2a92636878df1ccfac6dd204a676426e04d9e3e\n";
const SIX: &str =
    "six==1.17.0 --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274\n";

/// A copy of the shipped profile `hello` that runs.
struct Project {
    farm: Farm,
    directory: PathBuf,
}

impl Project {
    fn new(change: impl FnOnce(&Self)) -> Self {
        let farm = Farm::new();
        let directory = farm.profile("hello", NAME, PORT);
        let project = Self { farm, directory };
        change(&project);
        let tarball = project.farm.bake(&project.directory);
        project.farm.run(&["install", word(&tarball)]).ok();
        project.farm.run(&["start", NAME]).ok();
        project
    }

    /// A `farmctl dev` for it, which may not watch yet.
    fn begin(&self) -> Working {
        Working::begin(&self.farm, &["dev", word(&self.directory)])
    }

    /// A `farmctl dev` that watches it.
    #[track_caller]
    fn dev(&self) -> Working {
        let mut dev = self.begin();
        dev.wait("watching", SOON);
        dev
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("it is there")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is beneath")).expect("there is room");
        fs::write(path, text).expect("there is room");
    }

    /// Saves a file as editors do: another one takes its name.
    fn save(&self, name: &str, text: &str) {
        let path = self.path(name);
        let (own, old) = (path.with_extension("swp"), path.with_extension("py~"));
        fs::write(&own, text).expect("there is room");
        fs::copy(&path, &old).expect("there is room");
        fs::rename(&own, &path).expect("it is ours");
        fs::remove_file(&old).expect("it is ours");
    }

    fn replace(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{text}");
        self.write(name, &text.replace(from, to));
    }

    fn status(&self) -> Value {
        let status = self.farm.run(&["status", NAME, "--json"]).stdout;
        serde_json::from_str(&status).expect("it is JSON")
    }

    /// The paths that are not as in the release.
    fn edited(&self) -> Vec<String> {
        let paths = self.status()["session"]["edited"]["paths"].clone();
        let paths = paths.as_array().cloned().unwrap_or_default();
        paths.iter().map(|path| path.as_str().expect("it is text").to_owned()).collect()
    }
}

/// What the page says.
#[track_caller]
fn assert_page(text: &str) {
    let answer = get(PORT, "/");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains(text), "{text}: {}", answer.body);
}

#[test]
#[expect(clippy::print_stderr, reason = "measured figures, shown with --nocapture")]
fn a_saved_file_reaches_the_session_and_what_breaks_it_is_mended_by_the_next_one() {
    let project = Project::new(|_| ());
    let first = project.read("app/hello.py");
    let named = |name: &str| first.replace("NAME = \"hello\"", &format!("NAME = \"{name}\""));
    let mut dev = project.dev();
    assert_eq!(project.edited(), [""; 0]);

    let saved = Instant::now();
    project.save("app/hello.py", &named("saved"));
    let said = dev.wait("app/hello.py", SOON);
    eprintln!("from save to said: {:.2} s: {said}", saved.elapsed().as_secs_f64());
    assert!(said.starts_with("✓ app/hello.py: put there, web reloaded ("), "{said}");
    assert_page("saved");
    assert_eq!(project.edited(), ["/srv/hello/app/hello.py"]);
    let status = project.farm.run(&["status", NAME]).ok().stdout;
    let edited = format!("not as 1.0.0: 1 path as saved in {}", project.directory.display());
    assert!(status.contains(&edited), "{status}");
    project.farm.run(&["verify", NAME]).ok();
    let verified = project.farm.run(&["verify", NAME, "--session"]);
    assert_eq!(verified.code, 3);
    assert!(verified.stderr.contains("farmctl dev has 1 path as in"), "{}", verified.stderr);
    let changed: Vec<&str> = verified.stdout.lines().collect();
    assert_eq!(changed.len(), 2, "the source and its byte code: {changed:?}");

    // What the application does not get, and what an editor keeps beside an open file.
    project.write("notes.txt", "nobody's\n");
    project.write("app/.hello.py.swp", "vim's\n");
    // Many files are one change; nginx has the static ones at once.
    for number in 0..40 {
        project.write(&format!("app/static/more/{number}.css"), &format!("/* {number} */"));
    }
    project.write("app/page.html", &project.read("app/page.html").replace("<h1>", "<h1>New: "));
    let said = dev.wait("put there", SOON);
    assert!(said.starts_with("✓ app/page.html and 40 more: put there"), "{said}");
    assert_page("<h1>New: ");
    assert_eq!(get(PORT, "/static/more/39.css").body, "/* 39 */");
    let status = project.status();
    let session = status["session"]["name"].as_str().expect("it is started");
    let put =
        Path::new("/run/schroot/mount").join(session).join("srv/hello/app/static/more/39.css");
    assert_eq!(fs::metadata(put).expect("it is there").permissions().mode() & 0o7777, 0o644);
    fs::remove_dir_all(project.path("app/static/more")).expect("it is ours");
    dev.wait("app/static/more/0.css and 39 more: put there", SOON);
    assert_eq!(get(PORT, "/static/more/39.css").status, 404);

    project.save("app/hello.py", "def application(:\n");
    let said = dev.wait("hint: ", SOON);
    assert!(said.starts_with("error: taking app/hello.py: checking process web"), "{said}");
    assert!(said.contains("SyntaxError"), "{said}");
    assert_page("saved");
    let saved = Instant::now();
    project.save("app/hello.py", &named("mended"));
    let said = dev.wait("put there", SOON);
    eprintln!("after a broken one: {:.2} s: {said}", saved.elapsed().as_secs_f64());
    assert_page("mended");

    // All as it was: so is the session.
    project.write("app/page.html", &project.read("app/page.html").replace("<h1>New: ", "<h1>"));
    dev.wait("put there", SOON);
    project.save("app/hello.py", &first);
    dev.wait("put there", SOON);
    wait_for("nothing is edited", SOON, || project.edited().is_empty());
    project.farm.run(&["verify", NAME, "--session"]).ok();

    project.save("app/hello.py", &named("last"));
    dev.wait("put there", SOON);
    let ran = dev.end(SIGINT);
    assert_eq!((ran.code, ran.stdout.trim()), (0, format!("http://127.0.0.1:{PORT}/").as_str()));
    let back = "developed goes on as it is: farmctl stop developed and start developed go back";
    assert!(ran.stderr.contains(back), "{}", ran.stderr);
    assert_page("last");
    project.farm.assert_clean();

    // Another one finds what that has left, and what changed meanwhile.
    project.write("app/new.py", "");
    let mut dev = project.begin();
    let said = dev.wait("watching", SOON);
    assert!(said.contains("put there"), "{said}");
    assert_eq!(project.edited(), ["/srv/hello/app/hello.py", "/srv/hello/app/new.py"]);
    // Nobody is kept from the application meanwhile.
    project.farm.run(&["stop", NAME]).ok();
    let ran = dev.ended();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("developed was stopped"), "{}", ran.stderr);
    project.farm.run(&["start", NAME]).ok();
    assert_page("hello");
    assert_eq!(project.edited(), [""; 0]);
    project.farm.run(&["verify", NAME, "--session"]).ok();
    project.farm.assert_clean();
}

#[test]
fn a_server_that_ends_of_a_change_is_started_again_with_the_next_one() {
    let project = Project::new(|project| {
        let text = project.read("profile.toml");
        let lines = text.lines().filter(|line| !line.starts_with("check = "));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        project.write("profile.toml", &text.replace("within = \"30s\" }", "within = \"5s\" }"));
    });
    let first = project.read("app/hello.py");
    let mut dev = project.dev();
    project.save("app/hello.py", "raise SystemExit('no such thing')\n");
    let said = dev.wait("hint: ", SOON);
    assert!(said.starts_with("error: taking app/hello.py: "), "{said}");
    assert!(said.contains("  | "), "its last lines: {said}");
    project.save("app/hello.py", &first.replace("NAME = \"hello\"", "NAME = \"again\""));
    let said = dev.wait("put there", SOON);
    assert!(said.contains("put there, web "), "{said}");
    assert_page("again");
    assert_eq!(dev.end(SIGINT).code, 0);
    project.farm.run(&["stop", NAME]).ok();
    project.farm.assert_clean();
}

#[test]
#[expect(clippy::print_stderr, reason = "measured figures, shown with --nocapture")]
fn what_a_bake_makes_something_of_is_baked_and_upgraded_to() {
    let project = Project::new(|project| {
        fs::remove_file(project.path("farmctl.lock")).expect("it was copied");
        project.write("requirements.txt", GUNICORN);
    });
    let mut dev = project.dev();
    let saved = Instant::now();
    project.write("requirements.txt", &format!("{GUNICORN}{SIX}"));
    let said = dev.wait("baked and upgraded to", LATER);
    eprintln!("requirements: {:.2} s: {said}", saved.elapsed().as_secs_f64());
    assert!(said.contains("the requirements changed: baking 1.0.0.dev1"), "{said}");
    assert!(said.contains("✓ requirements.txt: 1.0.0.dev1 baked and upgraded to"), "{said}");
    let six = ["shell", NAME, "--", "/srv/developed/venv/bin/python", "-c", "import six"];
    project.farm.run(&six).ok();
    assert_page("1.0.0.dev1");
    // One that is put into its session, then another bake.
    project.replace("app/hello.py", "NAME = \"hello\"", "NAME = \"put\"");
    dev.wait("put there", SOON);
    assert_page("put");
    let saved = Instant::now();
    project.replace("profile.toml", "environment = {", "environment = { HELLO_MORE = \"1\",");
    let said = dev.wait("baked and upgraded to", LATER);
    eprintln!("profile: {:.2} s: {said}", saved.elapsed().as_secs_f64());
    assert!(said.contains("the profile changed: baking 1.0.0.dev2"), "{said}");
    assert_page("put");
    assert_eq!(project.status()["releases"], serde_json::json!(["1.0.0", "1.0.0.dev2"]));
    project.farm.run(&["verify", NAME, "--session"]).ok();

    // One that does not get ready goes again.
    let profile = project.read("profile.toml");
    project.replace("profile.toml", "gunicorn --bind", "gunicorn --no-such-option --bind");
    let said = dev.wait("hint: ", LATER);
    assert!(said.contains("unrecognized arguments: --no-such-option"), "{said}");
    assert_page("put");
    assert_eq!(project.status()["releases"], serde_json::json!(["1.0.0", "1.0.0.dev2"]));

    // What cannot be read or baked is said, and what served does so still.
    project.write("profile.toml", "name = ");
    dev.wait("hint: ", SOON);
    project.write("profile.toml", &profile.replace("packages = [\"python3\"]", "packages = []"));
    let said = dev.wait("hint: farmctl bootstrap ", SOON);
    assert!(said.contains("the profile wants another environment"), "{said}");
    project.write("profile.toml", &profile);
    project.write("requirements.txt", "gunicorn\n");
    let said = dev.wait("hint: ", LATER);
    assert!(said.contains("the requirements carry no hashes"), "{said}");
    assert_page("put");
    project.farm.assert_clean();

    project.farm.run(&["rollback", NAME, "--watch", "1s"]).ok();
    let ran = dev.ended();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("developed 1.0.0 serves in another session"), "{}", ran.stderr);
    assert_page("1.0.0");
    project.farm.run(&["verify", NAME, "--session"]).ok();

    // The project is not what that release was baked of. What is cut short leaves nothing.
    project.write("requirements.txt", GUNICORN);
    let volumes = project.farm.volumes();
    let mut dev = project.begin();
    dev.wait("the release is of other files: baking 1.0.0.dev3", SOON);
    dev.wait("copying app", LATER);
    let ran = dev.end(SIGINT);
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    project.farm.assert_clean();
    assert_page("1.0.0");
    let kept = |name: &String| name.contains("-stage-");
    let (before, after) = (volumes.iter(), project.farm.volumes());
    assert!(before.filter(|it| !kept(it)).eq(after.iter().filter(|it| !kept(it))), "{after:?}");
    project.farm.run(&["stop", NAME]).ok();
    project.farm.assert_clean();
}

#[test]
fn static_files_that_were_put_there_are_served_after_a_change_in_place() {
    let project = Project::new(|project| {
        fs::remove_file(project.path("farmctl.lock")).expect("it was copied");
        project.write("requirements.txt", &format!("{GUNICORN}{SIX}"));
        let profile = project.read("profile.toml");
        let packages = "/srv/developed/venv/lib/python3.11/site-packages";
        let served = format!("[[front.static]]\nlocation = \"/python/\"\npath = \"{packages}\"\n");
        project.write("profile.toml", &format!("{profile}\n{served}"));
    });
    let mut dev = project.dev();
    project.write("app/static/new.css", "/* new */");
    dev.wait("put there", SOON);
    assert_eq!(dev.end(SIGINT).code, 0);
    assert!(get(PORT, "/python/six.py").body.contains("__version__ = \"1.17.0\""));
    project.farm.run(&["upgrade", NAME, "--in-place", "six==1.16.0"]).ok();
    assert!(get(PORT, "/python/six.py").body.contains("__version__ = \"1.16.0\""));
    assert_eq!(get(PORT, "/static/new.css").body, "/* new */");
    project.farm.run(&["stop", NAME]).ok();
    project.farm.assert_clean();
}

#[test]
fn what_does_not_run_is_refused_with_the_next_thing_to_type() {
    let farm = Farm::new();
    let directory = farm.profile("hello", NAME, PORT);
    let profile = word(&directory);
    let refused = |error: &str, hint: &str| {
        let ran = farm.run(&["dev", profile]).failed(1);
        assert_eq!((ran.error(), ran.hint()), (error, hint));
        assert_eq!(ran.stdout, "");
    };
    let none = farm.run(&["dev", "/nonexistent"]).failed(2);
    assert!(none.error().contains("reading the profile /nonexistent"), "{none:?}");
    refused("there is no environment developed", &format!("farmctl bootstrap {profile}"));
    let tarball = farm.bake(&directory);
    let next = format!("farmctl bake {profile}, then farmctl install what it has made");
    refused("no application developed is installed", &next);
    farm.run(&["install", word(&tarball)]).ok();
    refused("developed is not started", "farmctl start developed");
    farm.run(&["start", NAME]).ok();
    let plan = farm.run(&["dev", profile, "--dry-run"]).ok().stdout;
    assert!(plan.contains("wait for a change, and take it there"), "{plan}");
    assert!(!plan.contains("reload"), "{plan}");
    fs::write(directory.join("app/new.py"), "").expect("there is room");
    let plan = farm.run(&["dev", profile, "--dry-run"]).ok().stdout;
    assert!(plan.contains("put 1 path into session"), "{plan}");
    farm.run(&["stop", NAME]).ok();
    farm.assert_clean();
}
