//! A lock of Debian packages: written, followed, kept, moved, and what refuses to drift.

#![expect(clippy::disallowed_types, reason = "tests start the program as a user does")]

mod common;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "its profiles are used here")]
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Farm, Ran, tool};

const NAME: &str = "locked";
const YEAR: i64 = 365 * 86_400;

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is ours")
}

/// farmctl in an empty network namespace.
fn without_network(farm: &Farm, arguments: &[&str]) -> Ran {
    let mut command = Command::new("unshare");
    command.args(["--net", "--", common::FARMCTL, "--root", text(farm.root())]);
    command.args(arguments).env("FARMCTL_CACHE", common::cache()).env("NO_COLOR", "1");
    common::run(command)
}

fn write_profile(farm: &Farm, rest: &str) -> PathBuf {
    let directory = farm.root().join("profiles").join(NAME);
    fs::create_dir_all(&directory).expect("there is room");
    let profile = tiny::profile(NAME, "1.0", &format!("{}{rest}", tiny::LIGHT));
    fs::write(directory.join("profile.toml"), profile).expect("there is room");
    directory
}

fn read(lock: &Path) -> toml::Table {
    fs::read_to_string(lock).expect("it was written").parse().expect("it is TOML")
}

/// The lock with something else in it.
fn edit(lock: &Path, change: impl FnOnce(&mut toml::Table)) {
    let mut table = read(lock);
    change(table["debian"].as_table_mut().expect("it is a table"));
    fs::write(lock, table.to_string()).expect("it is ours");
}

fn packages(debian: &mut toml::Table) -> &mut Vec<toml::Value> {
    debian["package"].as_array_mut().expect("it is a list")
}

/// As if the lock had been written when tzdata was older.
fn age(lock: &Path) -> (String, String) {
    let mut version = String::new();
    edit(lock, |debian| {
        for release in debian["release"].as_array_mut().expect("it is a list") {
            release["sha256"] = "0".repeat(64).into();
            let date = release["date"].as_integer().expect("it is a time");
            release["date"] = (date - YEAR).into();
        }
        let tzdata = packages(debian).iter_mut().find(|one| one["name"].as_str() == Some("tzdata"));
        let tzdata = tzdata.expect("it is locked");
        version = tzdata["version"].as_str().expect("it is text").to_owned();
        tzdata["version"] = "2001a-1".into();
        tzdata["file"] = "tzdata_2001a-1_all.deb".into();
        tzdata["sha256"] = "0".repeat(64).into();
    });
    (version, text(lock.parent().expect("it lies in a directory")).to_owned())
}

#[test]
fn a_lock_is_written_followed_kept_and_moved() {
    let farm = Farm::new();
    let directory = write_profile(&farm, "");
    let profile = text(&directory);
    let lock = directory.join("farmctl.lock");
    farm.run(&["bootstrap", profile]).ok();
    let ran = farm.run(&["lock", profile]).ok();
    assert_eq!(ran.stdout, "", "a first lock has no changes to show");

    // Every package of the environment, with what it takes to check it.
    let written = fs::read_to_string(&lock).expect("it was written");
    let table = read(&lock);
    let debian = table["debian"].as_table().expect("it is a table");
    let suites: Vec<&str> = debian["release"]
        .as_array()
        .expect("it is a list")
        .iter()
        .map(|release| release["suite"].as_str().expect("it is text"))
        .collect();
    assert_eq!(suites, ["bookworm", "bookworm-updates", "bookworm-security"]);
    let locked = debian["package"].as_array().expect("it is a list");
    let field = |one: &toml::Value, key: &str| one[key].as_str().expect("it is text").to_owned();
    let pool = common::cache().join("debs/bookworm_amd64");
    for one in locked {
        let line = tool("sha256sum", &[text(&pool.join(field(one, "file")))]);
        assert!(line.starts_with(&field(one, "sha256")), "{line}");
    }

    // Kept: nothing is asked of any mirror.
    let ran = without_network(&farm, &["lock", profile]).ok();
    assert_eq!(ran.stderr, format!("✓ {} is up to date\n", lock.display()));

    // The environment there was made of what the mirror offered; a locked bake wants its own.
    for (flag, more) in [("--locked", ""), ("--offline", " --offline")] {
        let ran = farm.run(&["bake", profile, "--output", text(farm.root()), flag]).failed(1);
        assert_eq!(ran.error(), "the environment was not made of the packages in farmctl.lock");
        assert_eq!(ran.hint(), format!("farmctl bootstrap {profile}{more}"));
    }
    without_network(&farm, &["bootstrap", profile, "--offline", "--fresh"]).ok();
    let installed = farm.run(&[
        "shell",
        NAME,
        "--source",
        "--",
        "dpkg-query",
        "-Wf",
        "${Package} ${Version}\\n",
    ]);
    let mut installed: Vec<String> = installed.ok().stdout.lines().map(str::to_owned).collect();
    installed.sort();
    let mut named: Vec<String> = locked
        .iter()
        .map(|one| format!("{} {}", field(one, "name"), field(one, "version")))
        .collect();
    named.sort();
    assert_eq!(named, installed);
    let out = text(farm.root());
    without_network(&farm, &["bake", profile, "--output", out, "--offline"]).ok();
    farm.run(&["bake", profile, "--output", out, "--locked", "--fresh"]).ok();
    let tarball = farm.root().join(format!("{NAME}_1.0_amd64.tar.xz"));
    let again = farm.run(&["verify", text(&tarball), &format!("--rebuild={profile}")]).ok().stderr;
    assert!(again.contains("has the same bytes: sha256 "), "{again}");

    // Baked from another project: said, and by whom it is.
    let notes = directory.join("profile.toml");
    let before = fs::read_to_string(&notes).expect("it is ours");
    fs::write(&notes, format!("{before}# another\n")).expect("it is ours");
    let other = farm.run(&["verify", text(&tarball), &format!("--rebuild={profile}")]);
    assert_eq!(other.code, 3, "{}", other.stderr);
    assert!(other.stdout.contains("project, sha256"), "{}", other.stdout);
    fs::write(&notes, before).expect("it is ours");

    // The mirror has moved on since.
    let (version, shown) = age(&lock);
    let said = format!(
        "the mirror has moved on from farmctl.lock in 1 package:\n  \
         | tzdata 2001a-1 is locked, {version} is offered"
    );
    let ran = farm.run(&["bake", profile, "--output", out, "--locked"]).failed(1);
    assert_eq!(ran.error(), said);
    assert_eq!(ran.hint(), format!("farmctl lock {shown} --update"));
    let ran = farm.run(&["bootstrap", profile]).failed(1);
    assert_eq!(ran.error(), format!("bootstrapping {NAME}: {said}"));
    assert_eq!(ran.hint(), format!("farmctl lock {shown} --update"));
    let ran = without_network(&farm, &["bootstrap", profile, "--offline"]).failed(1);
    assert_eq!(ran.error(), format!("bootstrapping {NAME}: the pool lacks tzdata 2001a-1"));
    let hint = format!("farmctl lock {shown} fetches what is missing, with a network");
    assert_eq!(ran.hint(), hint);

    let unknown = farm.run(&["lock", profile, "--update", "nosuch"]).failed(2);
    assert_eq!(unknown.error(), "farmctl.lock has no nosuch");
    let ran = farm.run(&["lock", profile, "--update", "tzdata"]).ok();
    assert_eq!(ran.stdout, format!("tzdata  2001a-1 → {version}\n"));
    assert_eq!(fs::read_to_string(&lock).expect("it was written"), written);

    // What the profile asks for on top is added, and nothing else moves: another source has
    // an index of its own.
    let profile_file = directory.join("profile.toml");
    let sources = "/etc/apt/sources.list.d/debian.sources";
    let mirror = farm.run(&["shell", NAME, "--source", "--", "sed", "-n", "s/^URIs: //p", sources]);
    let mirror = mirror.ok().stdout;
    let mirror = mirror.lines().next().expect("an environment has a mirror");
    let source = format!(
        "apt-sources = [\"\"\"\nTypes: deb\nURIs: {mirror}/\nSuites: bookworm-backports\n\
         Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\"\"\"]"
    );
    let more = fs::read_to_string(&profile_file).expect("it is ours").replace(
        "packages = [\"python3\"]",
        &format!("packages = [\"python3\", \"less\"]\n{source}"),
    );
    fs::write(&profile_file, more).expect("it is ours");
    let stale = without_network(&farm, &["bootstrap", profile, "--offline"]).failed(1);
    assert_eq!(stale.error(), "the profile has changed since farmctl.lock was written");
    assert_eq!(stale.hint(), format!("farmctl lock {profile}"));
    let ran = farm.run(&["lock", profile]).ok();
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    assert!(ran.stdout.starts_with("less  none → "), "{}", ran.stdout);

    // A mirror that went back is not followed, one of the profile's own neither.
    let address = mirror.split_once("://").map_or(mirror, |(_, rest)| rest);
    let own = format!("bookworm-backports@{address}");
    let kept = fs::read_to_string(&lock).expect("it was written");
    for (number, suite) in [(0, "bookworm"), (3, own.as_str())] {
        fs::write(&lock, &kept).expect("it is ours");
        edit(&lock, |debian| {
            let releases = debian["release"].as_array_mut().expect("it is a list");
            assert_eq!(releases.len(), 4);
            let release = &mut releases[number];
            assert_eq!(release["suite"].as_str(), Some(suite));
            let date = release["date"].as_integer().expect("it is a time");
            release["date"] = (date + YEAR).into();
        });
        for arguments in [&["lock", profile, "--update"][..], &["bake", profile, "--locked"]] {
            let ran = farm.run(arguments).failed(1);
            let error = ran.error();
            let begin = format!("the mirror's index of {suite} is of 20");
            assert!(error.contains(&begin), "{error}");
            assert!(error.contains(", older than the locked one of 20"), "{error}");
        }
    }
    farm.assert_clean();
}

/// A profile with a distribution that is only to be had as an sdist, and a project of its
/// own; `rest` is what it ends with.
fn write_built(directory: &Path, installer: &str, rest: &str) {
    let write =
        |path: &str, text: &str| fs::write(directory.join(path), text).expect("there is room");
    fs::create_dir_all(directory.join("thing/thing")).expect("there is room");
    write("requirements.txt", "docopt==0.6.2\n");
    write("thing/thing/__init__.py", "VALUE = 42\n");
    write(
        "thing/pyproject.toml",
        "[build-system]\nrequires = [\"setuptools>=61\"]\nbuild-backend = \"setuptools.build_meta\"\n\
         [project]\nname = \"thing\"\nversion = \"0.1\"\n",
    );
    let python = format!(
        "[python]\nrequirements = \"requirements.txt\"\nproject = \"thing\"\ninstaller = \"{installer}\"\n"
    );
    write("profile.toml", &tiny::profile(NAME, "1.0", &format!("{python}{rest}")));
}

#[test]
fn what_is_built_is_built_of_what_was_locked() {
    let farm = Farm::new();
    let directory = farm.root().join("profiles").join(NAME);
    // Leaves little to be packed, when all is built.
    let light = tiny::LIGHT
        .replace("[build]\nbefore = [", "[[job]]\nname = \"lighten\"\nwhen = \"bake\"\ncommand = ")
        .replace("\"\"\"]", "\"\"\"")
        .replace("python3*\n", "python3*; ");
    write_built(&directory, "uv", &light);
    let profile = text(&directory);
    let lock = directory.join("farmctl.lock");
    farm.run(&["bootstrap", profile]).ok();
    let said = farm.run(&["lock", profile]).ok().stderr;
    assert!(said.contains("asking sdists and the project what their builds take"), "{said}");
    let table = read(&lock);
    let build = table["python"]["build"].as_array().expect("it is a list").clone();
    let setuptools = build.iter().find(|one| one["name"].as_str() == Some("setuptools"));
    let version = setuptools.expect("both ask for it")["version"].as_str().expect("it is text");
    let again = without_network(&farm, &["lock", profile]).ok().stderr;
    assert!(again.ends_with("farmctl.lock is up to date\n"), "{again}");

    without_network(&farm, &["bootstrap", profile, "--offline"]).ok();
    let out = text(farm.root());
    without_network(&farm, &["bake", profile, "--output", out, "--offline"]).ok();
    let tarball = farm.root().join(format!("{NAME}_1.0_amd64.tar.xz"));
    for distribution in ["thing-0.1", "docopt-0.6.2"] {
        let packages = "srv/locked/venv/lib/python3.11/site-packages";
        let member = format!("{packages}/{distribution}.dist-info/WHEEL");
        let wheel = tool("tar", &["-xJOf", text(&tarball), &member]);
        assert!(wheel.contains(&format!("setuptools ({version})\n")), "{wheel}");
    }
    // With a network it is of the same; no index is asked.
    let ran = farm.run(&["verify", text(&tarball), &format!("--rebuild={profile}")]).ok();
    assert!(ran.stderr.contains("has the same bytes: sha256 "), "{}", ran.stderr);

    // Of something else nothing is built.
    let project = directory.join("thing/pyproject.toml");
    let before = fs::read_to_string(&project).expect("it is ours");
    fs::write(&project, before.replace("61", "62")).expect("it is ours");
    for flag in ["--offline", "--locked"] {
        let ran = farm.run(&["bake", profile, "--output", out, flag]).failed(1);
        let error = ran.error();
        assert!(
            error.ends_with("what is built has changed since farmctl.lock was written"),
            "{error}"
        );
        assert_eq!(ran.hint(), format!("farmctl lock {profile}"));
    }
    fs::write(&project, before).expect("it is ours");
    let written = fs::read_to_string(&lock).expect("it was written");
    let mut table = read(&lock);
    for one in table["python"]["build"].as_array_mut().expect("it is a list") {
        one["sha256"] = toml::Value::Array(vec!["0".repeat(64).into()]);
    }
    fs::write(&lock, table.to_string()).expect("it is ours");
    let ran = farm.run(&["bake", profile, "--output", out, "--offline"]).failed(1);
    let lacks = ran.error();
    assert!(lacks.starts_with("the pool lacks ") && lacks.contains(version), "{lacks}");
    fs::write(&lock, written).expect("it is ours");

    // pip builds of the same; the job comes after all that is installed.
    let job = "[[job]]\nname = \"import\"\nwhen = \"bake\"\n\
               command = \"python -c 'import docopt, thing; assert thing.VALUE == 42; exit(7)'\"\n";
    write_built(&directory, "pip", job);
    let ran = without_network(&farm, &["bake", profile, "--output", out, "--offline"]).failed(1);
    assert!(ran.stderr.contains("installing the requirements with pip"), "{}", ran.stderr);
    assert!(ran.error().contains("job import"), "{}", ran.error());
    assert!(ran.error().contains('7'), "{}", ran.error());
    farm.assert_clean();
}

#[test]
fn an_audit_names_what_the_security_suite_has_newer() {
    let farm = Farm::new();
    let mut old = tiny::Tiny::new(&tiny::profile(NAME, "1.0", ""));
    let package = |name: &str, version: &str| farmctl::manifest::Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: "amd64".to_owned(),
    };
    // One that is older, one that is newer than any, one nobody offers.
    old.packages =
        vec![package("libssl3", "3.0.0-1"), package("tzdata", "9999a-1"), package("own", "1")];
    let tarball = old.pack(farm.root());
    let ran = farm.run(&["audit", text(&tarball)]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("libssl3  3.0.0-1 → 3.0."), "{}", ran.stdout);
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    let said = "warning: locked 1.0: 1 package has a newer version in bookworm-security\n";
    assert_eq!(ran.stderr, said);
    let ran = farm.run(&["audit", text(&tarball), "--json"]);
    assert_eq!(ran.code, 3);
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    assert_eq!(found["suite"], "bookworm-security");
    assert_eq!(found["packages"][0]["name"], "libssl3");
    assert_eq!(found["packages"][0]["installed"], "3.0.0-1");

    let mut new = tiny::Tiny::new(&tiny::profile(NAME, "1.1", ""));
    new.packages = vec![package("libssl3", "9999:1")];
    let tarball = new.pack(farm.root());
    let said = farm.run(&["audit", text(&tarball)]).ok().stderr;
    let none = "✓ locked 1.1: no package of 1 has a newer version in bookworm-security";
    assert!(said.starts_with(none), "{said}");

    // A suite of nobody's: asked for, and not there.
    let profile = tiny::profile(NAME, "1.2", "").replace("bookworm", "sid");
    let tarball = tiny::Tiny::new(&profile).pack(farm.root());
    let ran = farm.run(&["audit", text(&tarball)]).failed(1);
    assert_eq!(ran.error(), "no mirror of security updates for sid is known");
    farm.assert_clean();
}
