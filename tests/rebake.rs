//! A bake begins with what the one before installed, and makes the same bytes as one that
//! begins anew.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use common::{FARMCTL, Farm, Ran, called, in_namespace, names, run, tool};

const NAME: &str = "again";
const SIX: &str =
    "six==1.17.0 --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274\n";
const PACKAGING: &str = "packaging==26.2 --hash=sha256:5fc45236b9446107ff2415ce77c807cee2862cb6fac22b8a73826d0693b0980e\n";
const PROFILE: &str = r#"
schema = 1
name = "again"
version = "1.0"

[environment]
suite = "bookworm"
packages = ["python3"]

[build]
packages = ["unzip"]

[python]
requirements = "requirements.txt"
project = "project"

[[copy]]
from = "app"
to = "/srv/again/app"

[[process]]
name = "web"
command = "python -m six"
"#;
const PROJECT: &str = "[project]\nname = \"again\"\nversion = \"1\"\n[tool.setuptools]\n\
                       py-modules = [\"again\"]\n";

/// A project with requirements by hash, and a farm it is baked on.
struct Project {
    farm: Farm,
    directory: PathBuf,
}

impl Project {
    fn new() -> Self {
        let farm = Farm::new();
        let directory = farm.root().join("profiles").join(NAME);
        let project = Self { farm, directory };
        for (path, text) in [
            ("profile.toml", PROFILE),
            ("requirements.txt", SIX),
            ("app/main.py", "print(1)\n"),
            ("project/pyproject.toml", PROJECT),
            ("project/again.py", "ONE = 1\n"),
        ] {
            project.write(path, text);
        }
        project.farm.run(&["bootstrap", project.profile()]).ok();
        project
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.directory.join(path);
        fs::create_dir_all(path.parent().expect("it is beneath")).expect("there is room");
        fs::write(path, text).expect("there is room");
    }

    fn profile(&self) -> &str {
        self.directory.to_str().expect("the path is ours")
    }

    fn bake(&self, more: &[&str]) -> Ran {
        let out = self.farm.root().to_str().expect("the path is ours");
        self.farm.run(&[&["bake", self.profile(), "--output", out], more].concat())
    }

    /// The bytes of a bake for which nothing is kept.
    #[track_caller]
    fn baked_anew(&self) -> String {
        self.farm.run(&["gc", "--stages"]).ok();
        let out = tempfile::tempdir_in(self.farm.root()).expect("there is room");
        let out = out.path().to_str().expect("the path is ours");
        let baked = self.farm.run(&["bake", self.profile(), "--output", out]).ok();
        assert!(!baked.stderr.contains("as the last bake"), "{}", baked.stderr);
        sha256(&baked.stdout)
    }

    /// Volumes of trees that are kept.
    fn kept(&self) -> Vec<String> {
        let stages = self.farm.volumes().into_iter();
        stages.filter(|name| name.starts_with("fv-stage-")).collect()
    }
}

fn sha256(path: &str) -> String {
    tool("sha256sum", &[path.trim()]).split(' ').next().unwrap_or_default().to_owned()
}

#[track_caller]
fn assert_says(said: &str, lines: &[&str]) {
    for line in lines {
        assert!(said.lines().any(|there| there.contains(line)), "{line} is not in:\n{said}");
    }
}

const TAKES_BOTH: &str =
    "taking the build packages and the requirements as the last bake installed them";
const TAKES_PACKAGES: &str = "taking the build packages as the last bake installed them";
const INSTALLS: [&str; 2] = ["installing build packages: ", "installing the requirements with "];

#[test]
fn a_bake_takes_what_is_as_it_was_and_says_why_it_installs_the_rest() {
    let again = Project::new();
    let first = again.bake(&[]).ok();
    assert_says(&first.stderr, &INSTALLS);
    let bytes = sha256(&first.stdout);
    let kept = again.kept();
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(kept[0].starts_with("fv-stage-again-packages-"), "{kept:?}");
    assert!(kept[1].starts_with("fv-stage-again-requirements-"), "{kept:?}");

    for line in ["ONE = 2\n", "ONE = 1\n"] {
        again.write("project/again.py", line);
        let changed = again.bake(&[]).ok();
        assert_says(&changed.stderr, &[TAKES_BOTH]);
        assert!(!INSTALLS.iter().any(|step| changed.stderr.contains(step)), "{changed:?}");
        assert_eq!(sha256(&changed.stdout) == bytes, line == "ONE = 1\n", "{changed:?}");
    }
    assert_eq!(again.kept(), kept);

    again.write("requirements.txt", &format!("{SIX}{PACKAGING}"));
    let changed = again.bake(&[]).ok();
    let why = "installing the requirements anew: they have changed";
    assert_says(&changed.stderr, &[TAKES_PACKAGES, why, INSTALLS[1]]);
    assert!(!changed.stderr.contains(INSTALLS[0]), "{changed:?}");
    assert_eq!(sha256(&changed.stdout), again.baked_anew(), "{changed:?}");

    let profile = PROFILE.replace("\"unzip\"", "\"zip\"");
    again.write("profile.toml", &profile);
    let changed = again.bake(&[]).ok().stderr;
    let why = "installing the build packages anew: the list of build packages has changed";
    assert_says(&changed, &[why, INSTALLS[0], INSTALLS[1]]);

    // What its lines do nobody knows.
    again.write("profile.toml", &profile.replace("[build]", "[build]\nbefore = [\"true\"]"));
    let changed = again.bake(&[]).ok().stderr;
    assert_says(&changed, &[TAKES_PACKAGES, INSTALLS[1]]);
    again.farm.assert_clean();
}

#[test]
fn what_is_kept_goes_with_the_environment_and_when_that_is_changed_and_when_asked() {
    let again = Project::new();
    let bake = |version| again.bake(&["--set-version", version]).ok().stderr;
    bake("1.1");
    assert_eq!(again.kept().len(), 2);
    let listed = again.farm.run(&["gc", "--check", "--stages"]).ok();
    assert_eq!(
        listed.stdout,
        "stage: build packages of environment again (farmctl gc --stages removes it)\n\
         stage: requirements of environment again (farmctl gc --stages removes it)\n"
    );
    assert_eq!(again.kept().len(), 2);
    again.farm.run(&["gc"]).ok();
    assert_eq!(again.kept().len(), 2);
    again.farm.run(&["gc", "--stages"]).ok();
    assert_eq!(again.kept(), [""; 0]);
    assert_says(&bake("1.2"), &INSTALLS);
    let fresh = again.bake(&["--fresh"]).ok().stderr;
    assert_says(&fresh, &INSTALLS);
    assert!(!fresh.contains("as the last bake"), "{fresh}");
    assert_eq!(again.kept().len(), 2);

    again.farm.run(&["shell", NAME, "--source", "--write", "--", "true"]).ok();
    assert_eq!(again.kept(), [""; 0]);
    assert_says(&bake("1.3"), &INSTALLS);

    again.write("profile.toml", &PROFILE.replace("[build]", "user = \"other\"\n[build]"));
    again.farm.run(&["bootstrap", again.profile()]).ok();
    assert_eq!(again.kept(), [""; 0]);
    assert_says(&bake("1.4"), &INSTALLS);
    again.farm.run(&["remove", "--environment", NAME]).ok();
    assert_eq!(again.farm.volumes().len(), 0);
}

#[test]
fn a_bake_that_fails_or_finds_nothing_leaves_what_was_kept_as_it_was() {
    let again = Project::new();
    again.bake(&[]).ok();
    let kept = again.kept();
    again.write("project/pyproject.toml", "[project\n");
    again.bake(&[]).failed(1);
    assert_eq!(again.kept(), kept);
    again.farm.assert_clean();

    // Somebody's `rm`.
    again.write("project/pyproject.toml", PROJECT);
    for volume in kept {
        fs::remove_dir_all(again.farm.state("volumes").join(volume)).expect("it is there");
    }
    again.write("app/main.py", "print(2)\n");
    let said = again.bake(&[]).ok().stderr;
    let gone = "installing the build packages anew: what was kept of them is gone";
    assert_says(&said, &[gone, INSTALLS[0], INSTALLS[1]]);
    assert_eq!(again.kept().len(), 2);
}

/// Killed before the record of the environment names a tree that was made: the tree goes.
#[test]
fn a_killed_bake_leaves_no_tree_that_nothing_names() {
    let again = Project::new();
    let root = again.farm.root().to_str().expect("the path is ours");
    let record = again.farm.state("environments/again.json");
    let record = record.to_str().expect("the path is ours");
    for (when, kept) in [(1, 0), (2, 1)] {
        let inject = format!("inject=?rename,?renameat,?renameat2:signal=KILL:when={when}");
        let strace = ["-f", "-qq", "-b", "execve", "-o", "/dev/null", "-P", record, "-e"];
        let bake = [FARMCTL, "--root", root, "bake", again.profile(), "--output", root];
        let words = [&strace[..], &[inject.as_str()], &bake].concat();
        let killed = run(called("strace", &words));
        assert_ne!(killed.code, 0, "{killed:?}");
        assert_eq!(again.kept().len(), kept + 2, "with the stage: {}", killed.stderr);
        again.farm.run(&["gc"]).ok();
        again.farm.assert_clean();
        assert_eq!(again.kept().len(), kept, "{}", killed.stderr);
    }
    assert_says(&again.bake(&[]).ok().stderr, &[TAKES_PACKAGES, INSTALLS[1]]);
    assert_eq!(again.kept().len(), 2);
}

/// A tree is kept where there is room for it and for what comes after.
#[test]
fn nothing_is_kept_where_room_is_scarce() {
    if !in_namespace("nothing_is_kept_where_room_is_scarce") {
        return;
    }
    let again = Project::new();
    let volumes = again.farm.state("volumes");
    let volumes = volumes.to_str().expect("the path is ours");
    again.farm.run(&["remove", "--environment", NAME]).ok();
    tool("mount", &["-t", "tmpfs", "-o", "mode=700,size=600m", "tmpfs", volumes]);
    again.farm.run(&["bootstrap", again.profile()]).ok();
    let said = again.bake(&[]).ok().stderr;
    let why = |what| format!("not keeping the {what} for the next bake: room is scarce");
    assert_says(&said, &[&why("build packages"), &why("requirements")]);
    assert_eq!(again.kept(), [""; 0]);
    again.farm.run(&["remove", "--environment", NAME]).ok();
    assert!(names(Path::new(volumes)).is_empty());
    tool("umount", &[volumes]);
    let mode = fs::metadata(volumes).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
