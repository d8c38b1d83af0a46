//! What a profile can ask of an environment, and the kinds of project a bake takes.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::UNIX_EPOCH;

use common::{Farm, called, run, tool};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs a command in the environment's source.
fn inside(farm: &Farm, name: &str, command: &str) -> String {
    farm.run(&["shell", name, "--source", "--", "sh", "-c", command]).ok().stdout
}

#[test]
fn an_environment_is_made_as_the_profile_asks() {
    let farm = Farm::new();
    let directory = farm.root().join("rich");
    fs::create_dir(&directory).expect("there is room");
    let deb = directory.join("package");
    fs::create_dir_all(deb.join("DEBIAN")).expect("there is room");
    fs::create_dir_all(deb.join("opt/local")).expect("there is room");
    fs::write(deb.join("opt/local/mark"), "local\n").expect("there is room");
    fs::write(
        deb.join("DEBIAN/control"),
        "Package: local-mark\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: a mark\n",
    )
    .expect("there is room");
    let file = directory.join("local-mark_1.0_all.deb");
    tool(
        "dpkg-deb",
        &[
            "--build",
            "--root-owner-group",
            deb.to_str().expect("ours"),
            file.to_str().expect("ours"),
        ],
    );
    let hello = farm.profile("hello", "plan", 18085);
    let plan =
        farm.run(&["bootstrap", hello.to_str().expect("ours"), "--dry-run", "--fresh"]).ok().stdout;
    let mirror = plan
        .lines()
        .find_map(|line| line.split_once("fetch from ")?.1.strip_suffix(" those the pool lacks"))
        .expect("the plan names the mirror");
    let profile = format!(
        r#"schema = 1
name = "rich"
version = "1"
[environment]
suite = "bookworm"
include = ["less"]
exclude = ["tzdata"]
packages = ["lsb-release"]
debs = ["local-mark_1.0_all.deb"]
locale = "de_AT.UTF-8"
timezone = "Europe/Vienna"
user = "operador"
apt-sources = ["""
Types: deb
URIs: {mirror}
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""]
apt-preferences = ["""
Package: *
Pin: release n=bookworm-backports
Pin-Priority: 50
"""]
"#
    );
    fs::write(directory.join("profile.toml"), profile).expect("there is room");
    farm.run(&["bootstrap", directory.to_str().expect("ours"), "--fresh"]).ok();

    assert_eq!(inside(&farm, "rich", "cat /opt/local/mark"), "local\n");
    assert_eq!(
        inside(&farm, "rich", "dpkg-query -Wf '${db:Status-Status}' less lsb-release"),
        "installedinstalled"
    );
    assert_eq!(inside(&farm, "rich", "date -d @0 +%H"), "01\n");
    assert_eq!(
        inside(&farm, "rich", "cat /etc/timezone /etc/default/locale"),
        "Europe/Vienna\nLANG=de_AT.UTF-8\n"
    );
    let german = inside(&farm, "rich", "LC_ALL=de_AT.UTF-8 locale decimal_point");
    assert_eq!(german, ",\n");
    assert_eq!(inside(&farm, "rich", "stat -c '%U %a' /home/operador; ls -A /home/operador"), {
        "operador 700\n.bash_logout\n.bashrc\n.profile\n"
    });
    let sources = inside(&farm, "rich", "cat /etc/apt/sources.list.d/*.sources");
    for suite in ["bookworm", "bookworm-updates", "bookworm-security", "bookworm-backports"] {
        assert!(sources.contains(suite), "{suite} is in\n{sources}");
    }
    assert!(
        inside(&farm, "rich", "cat /etc/apt/preferences.d/profile").contains("Pin-Priority: 50")
    );
    // Cleaned: no keys, logs, lists, history, identity; nothing of the host's accounts.
    let left = inside(
        &farm,
        "rich",
        "find /etc/ssh/ssh_host_* /var/log /var/lib/apt/lists /var/cache/apt /root/.bash_history -type f 2>&1 \
         | grep -v 'No such file'; readlink /var/tmp; cat /etc/machine-id",
    );
    assert_eq!(left, "/tmp\n");
    let shadow = fs::read_to_string("/etc/shadow").expect("tests run as root");
    let theirs = inside(&farm, "rich", "cat /etc/shadow");
    for line in shadow.lines().filter(|line| line.contains(":$")) {
        assert!(!theirs.contains(line), "a password of the host is in the environment");
    }
}

/// What there is in a tree, contents by their hash, and what dpkg says is installed. What is
/// younger than `began` has no time.
fn listed(tree: &Path, began: u64) -> BTreeSet<String> {
    let script = "find . -xdev -not -type d -printf '%T@ %p %M %U:%G %l\\n'; \
                  find . -xdev -type d -printf '- %p %M %U:%G\\n'; \
                  find . -xdev -type f -not -path ./var/lib/dpkg/status -exec sha256sum {} +";
    let mut command = called("sh", &["-euc", script]);
    command.current_dir(tree);
    let ran = run(command);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let untimed = |line: &str| match line.split_once('.') {
        Some((seconds, rest)) if seconds.parse().is_ok_and(|time: u64| time >= began) => {
            rest.split_once(' ').map_or_else(String::new, |(_, rest)| rest.to_owned())
        }
        _ => line.to_owned(),
    };
    let mut lines: BTreeSet<String> = ran.stdout.lines().map(untimed).collect();
    let status = fs::read_to_string(tree.join("var/lib/dpkg/status")).expect("dpkg wrote it");
    for stanza in status.split("\n\n") {
        let lines_of = stanza.lines();
        // In the archive that debootstrap is given all packages of the base system are required.
        let kept: Vec<&str> = lines_of.filter(|line| !line.starts_with("Priority: ")).collect();
        lines.insert(kept.join("\n"));
    }
    lines
}

#[test]
fn a_base_system_is_what_debootstrap_makes() {
    let farm = Farm::new();
    let now = || UNIX_EPOCH.elapsed().expect("it is past 1970").as_secs();
    for suite in ["bookworm", "trixie"] {
        let directory = farm.root().join(suite);
        fs::create_dir(&directory).expect("there is room");
        let profile = format!(
            "schema = 1\nname = \"{suite}\"\nversion = \"1\"\n\
             [environment]\nsuite = \"{suite}\"\n"
        );
        fs::write(directory.join("profile.toml"), profile).expect("there is room");
        let tree = farm.state(&format!("volumes/fv-env-{suite}/root"));
        let made = |options: &[&str], step: &str| {
            let began = now();
            let arguments = ["bootstrap", directory.to_str().expect("ours"), "--fresh"];
            let ran = farm.run(&[&arguments, options].concat()).ok();
            assert!(ran.stderr.contains(&format!("{step} {suite}")), "{}", ran.stderr);
            listed(&tree, began)
        };
        let ours = made(&[], "unpacking the base system of");
        let reference = made(&["--debootstrap"], "debootstrapping");
        let differ: Vec<&String> = ours.symmetric_difference(&reference).collect();
        assert!(differ.is_empty(), "{suite}: {differ:#?}");
        assert!(ours.len() > 5000, "{suite} has {} lines", ours.len());
    }
}

/// Bakes until the project is installed and the tree is about to be packed, then
/// interrupts: packing costs a minute and has tests of its own. Answers what was said.
fn bake_up_to_packing(farm: &Farm, profile: &Path) -> Vec<String> {
    let profile = profile.to_str().expect("the path is ours");
    let mut command = farm.command(&["bake", profile, "--output", "/var/tmp"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    let mut lines = Vec::new();
    for line in BufReader::new(child.stderr.take().expect("it is piped")).lines() {
        let line = line.expect("it is text");
        if line.contains("hashing the tree") {
            kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT)
                .expect("it is ours");
        }
        lines.push(line);
    }
    assert_eq!(child.wait().expect("it ends").code(), Some(130), "{lines:#?}");
    farm.assert_clean();
    lines
}

#[test]
fn every_kind_of_project_is_installed() {
    let farm = Farm::new();
    let directory = farm.root().join("kinds");
    fs::create_dir_all(directory.join("thing/thing")).expect("there is room");
    let write =
        |path: &str, text: &str| fs::write(directory.join(path), text).expect("there is room");
    write("thing/thing/__init__.py", "VALUE = 42\n");
    write(
        "thing/pyproject.toml",
        "[build-system]\nrequires = [\"setuptools>=61\"]\nbuild-backend = \"setuptools.build_meta\"\n\
         [project]\nname = \"thing\"\nversion = \"0.1\"\n",
    );
    let environment = "[environment]\nsuite = \"bookworm\"\npackages = [\"python3\"]\nlocale = \"C.UTF-8\"\nuser = \"app\"\n";
    let profile = |project: &str, before: &str| {
        write(
            "profile.toml",
            &format!(
                "schema = 1\nname = \"kinds\"\nversion = \"1\"\n{environment}\
                 [build]\nbefore = [{before}]\n[python]\nproject = \"{project}\"\n\
                 [[job]]\nname = \"import\"\nwhen = \"bake\"\n\
                 command = \"python -c 'import thing; assert thing.VALUE == 42'\"\n"
            ),
        );
    };
    profile("thing", "");
    farm.run(&["bootstrap", directory.to_str().expect("ours")]).ok();
    let said = bake_up_to_packing(&farm, &directory);
    assert!(said.iter().any(|line| line.contains("installing the project thing")), "{said:#?}");

    // A wheel and an sdist, as a build step makes them.
    let wheel = "\"mkdir out && cd thing && python3 -c 'import zipfile; z = zipfile.ZipFile(\\\"../out/thing-0.1-py3-none-any.whl\\\", \\\"w\\\"); z.write(\\\"thing/__init__.py\\\"); z.writestr(\\\"thing-0.1.dist-info/METADATA\\\", \\\"Metadata-Version: 2.1\\\\nName: thing\\\\nVersion: 0.1\\\\n\\\"); z.writestr(\\\"thing-0.1.dist-info/WHEEL\\\", \\\"Wheel-Version: 1.0\\\\nRoot-Is-Purelib: true\\\\nTag: py3-none-any\\\\n\\\"); z.writestr(\\\"thing-0.1.dist-info/RECORD\\\", \\\"\\\")'\"";
    profile("out/thing-0.1-py3-none-any.whl", wheel);
    bake_up_to_packing(&farm, &directory);
    profile("thing-0.1.tar.gz", "\"cp -r thing thing-0.1 && tar -czf thing-0.1.tar.gz thing-0.1\"");
    bake_up_to_packing(&farm, &directory);

    // A pinned commit; a branch is refused.
    let repository = farm.root().join("repository");
    common::copy(&directory.join("thing"), &repository);
    let at = repository.to_str().expect("ours");
    tool("git", &["-C", at, "init", "--quiet"]);
    tool("git", &["-C", at, "add", "."]);
    tool(
        "git",
        &[
            "-C",
            at,
            "-c",
            "user.name=A",
            "-c",
            "user.email=a@example.org",
            "commit",
            "--quiet",
            "-m",
            "one",
        ],
    );
    let commit = tool("git", &["-C", at, "rev-parse", "HEAD"]);
    profile(&format!("git+file://{at}@{}", commit.trim()), "");
    bake_up_to_packing(&farm, &directory);
    profile(&format!("git+file://{at}@main"), "");
    let ran =
        farm.run(&["bake", directory.to_str().expect("ours"), "--output", "/var/tmp"]).failed(2);
    assert!(ran.error().contains("main"), "{}", ran.error());
}
