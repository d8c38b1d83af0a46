//! Failing well: what farmctl says when it cannot begin, or a build does not go on. Each
//! gives one clear error with a hint, and leaves nothing.

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/mistake.rs"]
mod mistake;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use common::{FARMCTL, Farm, Ran, called, run, tool};
use mistake::fails;
use signal::{masked, word};

/// Writes the profile `tiny` with this text after its environment, and files beside it.
fn profile(farm: &Farm, rest: &str) -> PathBuf {
    let directory = farm.root().join("profiles/tiny");
    fs::create_dir_all(&directory).expect("there is room");
    fs::write(directory.join("profile.toml"), tiny::profile("tiny", "1.0", rest))
        .expect("there is room");
    directory
}

#[track_caller]
fn says(ran: &Ran, farm: &Farm, error: &str, hint: &str) {
    assert_eq!(masked(ran.error(), farm), error);
    assert_eq!(masked(ran.hint(), farm), hint);
}

#[test]
fn who_is_not_root_is_told_how_to_be() {
    let farm = Farm::new();
    // Where nobody may look, whatever the target directory is.
    let place = tempfile::tempdir_in("/var/tmp").expect("there is room");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let program = place.path().join("farmctl");
    fs::copy(FARMCTL, &program).expect("there is room");
    let help = run(called(FARMCTL, &["--help"])).ok().stdout;
    let known = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let known = known.take_while(|line| !line.is_empty());
    let known = known.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let known = known.filter(|verb| !verb.is_empty());
    // What only reads files that are named, or prints, is for everybody.
    let free = ["init", "completions", "manual", "help"];
    let mut verbs: Vec<Vec<&str>> = Vec::new();
    for verb in known.filter(|verb| !free.contains(verb)) {
        verbs.push(match verb {
            "list" | "gc" | "doctor" | "tend" | "storage" | "key" => vec![verb],
            "upgrade" => vec![verb, "shop", "f"],
            "diff" => vec![verb, "shop", "shop"],
            _ => vec![verb, "shop"],
        });
    }
    verbs.extend([vec!["key", "generate"], vec!["storage", "attach"], vec!["doctor", "--fix"]]);
    assert!(verbs.len() >= 30, "the verbs were found: {verbs:?}");
    for verb in verbs {
        let mut arguments =
            vec!["--reuid=65534", "--regid=65534", "--clear-groups", word(&program)];
        arguments.extend(["--root", word(farm.root())]);
        arguments.extend(&verb);
        let ran = run(called("setpriv", &arguments)).failed(1);
        assert_eq!(
            (ran.error(), ran.hint()),
            ("farmctl must run as root", "sudo farmctl …"),
            "{verb:?}"
        );
        mistake::row("not root", "1", "none", &masked(ran.stderr.trim_end(), &farm));
    }
}

#[test]
fn all_missing_programs_are_named_with_their_packages() {
    let farm = Farm::new();
    let profile = profile(&farm, "");
    // A device in a program's place is no program; nobody else sees it.
    let hidden = |words: &str| {
        let root = word(farm.root());
        let script = format!(
            "for path in /usr/sbin/debootstrap /usr/bin/schroot /usr/bin/supervisord; do \
             mount --bind /dev/null $path; done; exec {FARMCTL} --root {root} {words}"
        );
        run(called("unshare", &["--mount", "sh", "-euc", &script]))
    };
    let ran = hidden(&format!("bootstrap {}", profile.display()));
    let ran = mistake::met("programs of a bootstrap missing", &farm, ran, 1, || {
        assert!(farm.volumes().is_empty(), "a volume is left");
    });
    says(
        &ran,
        &farm,
        "missing programs: debootstrap, schroot",
        "apt-get install debootstrap schroot",
    );
    let ran = hidden("doctor");
    assert_eq!(ran.code, 3, "{}", ran.stdout);
    for line in [
        "bad   bootstrap and bake  missing debootstrap: apt-get install debootstrap",
        "bad   sessions            missing schroot: apt-get install schroot",
        "bad   processes           missing supervisord: apt-get install supervisor",
    ] {
        assert!(ran.stdout.lines().any(|found| found == line), "{line}\n{}", ran.stdout);
    }
    farm.assert_clean();
}

#[test]
fn an_unknown_key_is_shown_with_its_line_and_the_nearest_key() {
    let farm = Farm::new();
    let directory = profile(&farm, "[[process]]\nname = \"web\"\ncomand = \"sleep 86017\"\n");
    for verb in ["bootstrap", "lock", "bake"] {
        let ran = fails("profile: misspelt key", &farm, &[verb, word(&directory)], 2);
        says(
            &ran,
            &farm,
            "reading the profile ROOT/profiles/tiny/profile.toml: line 13, column 1: \
             unknown key \"comand\" in [[process]]",
            "did you mean \"command\"?",
        );
    }
}

#[test]
fn a_value_that_cannot_be_used_is_shown_with_its_line() {
    let farm = Farm::new();
    let directory = profile(&farm, "[[process]]\nname = \"web\"\n");
    let ran = fails("profile: missing key", &farm, &["bootstrap", word(&directory)], 2);
    says(
        &ran,
        &farm,
        "reading the profile ROOT/profiles/tiny/profile.toml: line 11, column 1: \
         missing key \"command\" in [[process]]",
        "add a line command = …, a string",
    );
}

#[test]
fn a_profile_that_is_not_there_is_asked_for() {
    let farm = Farm::new();
    let path = farm.root().join("profiles/none");
    for verb in ["bootstrap", "lock", "bake"] {
        let ran = fails("profile: not there", &farm, &[verb, word(&path)], 2);
        says(
            &ran,
            &farm,
            "reading the profile ROOT/profiles/none: No such file or directory",
            "PROFILE is a profile's file, or a directory with a profile.toml",
        );
    }
}

#[test]
fn a_bake_or_lock_without_an_environment_asks_for_a_bootstrap() {
    let farm = Farm::new();
    let directory = profile(&farm, "");
    for verb in ["lock", "bake"] {
        let ran = fails("no environment", &farm, &[verb, word(&directory)], 1);
        says(&ran, &farm, "there is no environment tiny", "farmctl bootstrap ROOT/profiles/tiny");
    }
}

#[test]
fn a_suite_the_mirror_does_not_have_is_named() {
    let farm = Farm::new();
    let directory = farm.root().join("profiles/tiny");
    fs::create_dir_all(&directory).expect("there is room");
    let text = tiny::profile("tiny", "1.0", "").replace("bookworm", "bookwork");
    fs::write(directory.join("profile.toml"), text).expect("there is room");
    let ran = fails("unknown suite", &farm, &["bootstrap", word(&directory)], 1);
    let error = "bootstrapping tiny: fetching the index of bookwork from http";
    assert!(ran.error().starts_with(error), "{}", ran.error());
    assert!(ran.error().contains("404"), "{}", ran.error());
    let hint = "is \"bookwork\" a suite of that mirror? correct [environment] suite or mirror";
    assert_eq!(ran.hint(), hint);
}

#[test]
fn a_debian_package_that_does_not_exist_is_named() {
    let farm = Farm::new();
    let directory = farm.root().join("profiles/tiny");
    fs::create_dir_all(&directory).expect("there is room");
    let text = tiny::profile("tiny", "1.0", "").replace("\"python3\"", "\"pyhton3\"");
    fs::write(directory.join("profile.toml"), text).expect("there is room");
    let cached = cached();
    let ran = fails("unknown package", &farm, &["bootstrap", word(&directory)], 1);
    says(
        &ran,
        &farm,
        "bootstrapping tiny: apt-get: exit status 100\n  | E: Unable to locate package pyhton3",
        "are all packages of environment.packages in one of the environment's apt sources?",
    );
    assert_eq!(self::cached(), cached, "half a tree is not kept");
}

#[test]
fn what_a_profile_cannot_mean_is_shown_with_its_line() {
    let farm = Farm::new();
    let cases = [
        ("profile: wrong type", "[[process]]\nname = 7\ncommand = \"x\"\n", "line 12, column 8: "),
        (
            "profile: template error",
            "[[file]]\npath = \"/etc/x\"\ncontent = \"a\\nb {{ nmae }}\"\n",
            "line 2, column 6: ",
        ),
        (
            "profile: path outside the project",
            "[[copy]]\nfrom = \"../secret\"\nto = \"/srv/x\"\n",
            "line 12, column ",
        ),
        ("profile: project outside of it", "[python]\nproject = \"../lib\"\n", "line 12, column "),
    ];
    for (mistake, rest, place) in cases {
        let directory = profile(&farm, rest);
        let ran = fails(mistake, &farm, &["bootstrap", word(&directory)], 2);
        let error = masked(ran.error(), &farm);
        let start = "reading the profile ROOT/profiles/tiny/profile.toml: ";
        assert!(error.starts_with(start) && error.contains(place), "{error}");
    }
    // Of a template in a file of its own, there.
    let directory = profile(&farm, "[[file]]\npath = \"/etc/x\"\ntemplate = \"x.j2\"\n");
    let bootstrap = ["bootstrap", word(&directory)];
    let ran = fails("profile: template missing", &farm, &bootstrap, 2);
    says(
        &ran,
        &farm,
        "reading the template ROOT/profiles/tiny/x.j2: No such file or directory",
        "file.template is relative to the profile",
    );
    fs::write(directory.join("x.j2"), "a\nb {{ nmae }}\n").expect("there is room");
    let ran = fails("profile: error in a template", &farm, &bootstrap, 2);
    says(
        &ran,
        &farm,
        "reading the template ROOT/profiles/tiny/x.j2: template line 2, column 6: \
         there is no value \"nmae\"",
        "did you mean \"name\"?",
    );
}

#[test]
fn packages_that_exclude_each_other_are_named() {
    let farm = Farm::new();
    let rest = "[build]\npackages = [\"exim4-daemon-light\", \"exim4-daemon-heavy\"]\n";
    let directory = profile(&farm, rest);
    farm.run(&["bootstrap", word(&directory)]).ok();
    let ran = fails("packages that conflict", &farm, &["bake", word(&directory)], 1);
    let error = ran.error();
    let start = "baking tiny 1.0: installing the build packages: exim4-daemon-";
    assert!(error.starts_with(start) && error.contains("Conflicts: "), "{error}");
    let hint = "some of build.packages exclude each other, or want what no apt source has";
    assert_eq!(ran.hint(), hint);
}

#[test]
#[ignore = "a debootstrap of its own: scripts/mistakes"]
fn a_maintainer_script_that_fails_is_named() {
    let farm = Farm::new();
    let directory = profile(&farm, "");
    let control = farm.root().join("package/DEBIAN");
    fs::create_dir_all(&control).expect("there is room");
    let text = "Package: broken\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\n\
                Description: a script that fails\n";
    fs::write(control.join("control"), text).expect("there is room");
    let script = control.join("postinst");
    fs::write(&script, "#!/bin/sh\necho no such table >&2\nexit 4\n").expect("there is room");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let deb = directory.join("broken.deb");
    tool("dpkg-deb", &["--build", word(&farm.root().join("package")), word(&deb)]);
    let text = tiny::profile("tiny", "1.0", "")
        .replace("user = \"app\"\n", "user = \"app\"\ndebs = [\"broken.deb\"]\n");
    fs::write(directory.join("profile.toml"), text).expect("there is room");
    let ran = fails("maintainer script that fails", &farm, &["bootstrap", word(&directory)], 1);
    let error = ran.error();
    assert!(error.starts_with("bootstrapping tiny: installing local packages: "), "{error}");
    assert_eq!(ran.hint(), "a maintainer script of the package failed: -vv shows all it printed");
}

#[test]
fn what_fails_is_kept_for_a_look_if_that_is_asked_for() {
    let farm = Farm::new();
    let directory = profile(&farm, "[build]\nbefore = [\"echo made >made; exit 3\"]\n");
    farm.run(&["bootstrap", word(&directory)]).ok();
    let refused = farm.run(&["shell", "tiny", "--kept", "--", "true"]).failed(1);
    assert_eq!(refused.error(), "nothing is kept of a bake of tiny");
    let ran = farm.run(&["bake", word(&directory), "--keep"]).failed(4);
    let said =
        "warning: the tree is kept: farmctl shell tiny --kept enters it, farmctl gc removes it\n";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    // The hint is true, in the directory in which the step failed.
    let shell = ["shell", "tiny", "--kept", "--", "sh", "-c", "cat made; echo more >more"];
    assert_eq!(farm.run(&shell).ok().stdout, "made\n");
    let again = ["shell", "tiny", "--kept", "--", "cat", "more"];
    assert_eq!(farm.run(&again).ok().stdout, "more\n");
    let doctor = farm.run(&["doctor"]).stdout;
    assert!(doctor.contains("1 bake for a look: farmctl gc removes it"), "{doctor}");
    assert_eq!(farm.run(&again).ok().stdout, "more\n");
    let check = farm.run(&["gc", "--check"]);
    assert_eq!(check.code, 3, "{}", check.stderr);
    assert!(check.stdout.starts_with("rubbish: volume fv-stage-"), "{}", check.stdout);
    farm.run(&["gc"]).ok();
    farm.assert_clean();
}

#[test]
fn what_a_requirement_lacks_is_said() {
    let farm = Farm::new();
    let directory = profile(&farm, "[python]\nrequirements = \"requirements.txt\"\n");
    let wheels = directory.join("wheels");
    fs::create_dir_all(&wheels).expect("there is room");
    farm.run(&["bootstrap", word(&directory)]).ok();
    // A wheel that wants another Python, and an sdist with C in it that brings its own setuptools.
    let script = "import sys, zipfile, tarfile, io, hashlib\n\
        def wheel(name, more, files={}):\n\
        \x20path = f'{sys.argv[1]}/{name}-1.0-py3-none-any.whl'\n\
        \x20with zipfile.ZipFile(path, 'w') as out:\n\
        \x20 out.writestr(f'{name}-1.0.dist-info/METADATA', f'Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n{more}')\n\
        \x20 out.writestr(f'{name}-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
        \x20 out.writestr(f'{name}-1.0.dist-info/RECORD', '')\n\
        \x20return path\n\
        def sdist(name):\n\
        \x20path = f'{sys.argv[1]}/{name}-1.0.tar.gz'\n\
        \x20with tarfile.open(path, 'w:gz') as out:\n\
        \x20 def add(file, text):\n\
        \x20  info = tarfile.TarInfo(f'{name}-1.0/{file}'); info.size = len(text)\n\
        \x20  out.addfile(info, io.BytesIO(text.encode()))\n\
        \x20 add('PKG-INFO', f'Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n')\n\
        \x20 add('pyproject.toml', '[build-system]\\nrequires = []\\nbuild-backend = \"backend\"\\nbackend-path = [\".\"]\\n')\n\
        \x20 add('backend.py', 'import subprocess\\ndef build_wheel(*a, **k): subprocess.run([\"gcc\", \"-c\", \"x.c\"], check=True)\\n')\n\
        \x20return path\n\
        for path in (wheel('later', 'Requires-Python: >=3.99\\n'), sdist('compiled')):\n\
        \x20print(hashlib.sha256(open(path, 'rb').read()).hexdigest())\n";
    let printed = tool("python3", &["-c", script, word(&wheels)]);
    let hashes: Vec<&str> = printed.lines().collect();
    let cases = [
        (
            "requirement for another Python",
            "later",
            hashes[0],
            "is it in the index, for this Python? farmctl shell NAME --source shows the environment's",
        ),
        (
            "requirement that needs a compiler",
            "compiled",
            hashes[1],
            "add what it needs to build.packages, e.g. \"build-essential\", or lock a version with a wheel",
        ),
    ];
    for (mistake, name, sha256, hint) in cases {
        let text = format!(
            "--no-index\n--find-links /run/farmctl-build/project/wheels\n{name}==1.0 --hash=sha256:{sha256}\n"
        );
        fs::write(directory.join("requirements.txt"), text).expect("it is ours");
        let ran = fails(mistake, &farm, &["bake", word(&directory)], 1);
        assert!(ran.error().contains(name), "{}", ran.error());
        assert_eq!(ran.hint(), hint, "{}", ran.error());
    }
}

#[test]
fn a_package_index_that_is_down_is_told_from_one_that_lacks_something() {
    let farm = Farm::new();
    // Nobody listens there (port 9 is discard's).
    let index = "http://127.0.0.1:9/simple";
    let variables = [
        ("UV_DEFAULT_INDEX", index),
        ("PIP_INDEX_URL", index),
        ("UV_HTTP_RETRIES", "0"),
        ("PIP_RETRIES", "1"),
    ];
    for installer in ["uv", "pip"] {
        let rest =
            format!("[python]\nrequirements = \"requirements.txt\"\ninstaller = \"{installer}\"\n");
        let directory = profile(&farm, &rest);
        let wanted = format!("nothing==1.0 --hash=sha256:{}\n", "0".repeat(64));
        fs::write(directory.join("requirements.txt"), wanted).expect("it is ours");
        farm.run(&["bootstrap", word(&directory)]).ok();
        let mut bake = farm.command(&["bake", word(&directory), "--output", word(farm.root())]);
        bake.envs(variables);
        let before = farm.volumes();
        let mistake = format!("package index down, {installer}");
        let ran = mistake::met(&mistake, &farm, run(bake), 1, || ());
        // What bakes keep for the next one stays.
        assert!(before.is_subset(&farm.volumes()));
        let error = ran.error();
        let start = "baking tiny 1.0: installing the requirements: ";
        assert!(error.starts_with(start) && error.contains("onnection refused"), "{error}");
        assert!(!error.contains("0x"), "{error}");
        assert!(ran.hint().starts_with("is the package index reachable? "), "{}", ran.hint());
    }
}

#[test]
fn state_that_cannot_be_written_is_the_thing_to_look_at() {
    let farm = Farm::new();
    let directory = profile(&farm, "");
    let place = farm.state("");
    fs::create_dir_all(&place).expect("there is room");
    farm.run(&["list"]).ok();
    // Nobody else sees it.
    let state = word(&place);
    let script = format!(
        "mount --bind {state} {state}; mount -o remount,bind,ro {state}; \
         exec {FARMCTL} --root {} bootstrap {}",
        farm.root().display(),
        directory.display()
    );
    let ran = run(called("unshare", &["--mount", "sh", "-euc", &script]));
    let ran = mistake::met("read-only file system", &farm, ran, 1, || ());
    assert!(ran.error().contains("Read-only file system"), "{}", ran.error());
    assert!(ran.hint().starts_with("findmnt --options ro"), "{}", ran.hint());
}

/// What is in the cache of bootstrapped trees.
fn cached() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(common::cache().join("bootstrap"));
    entries.map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

#[test]
fn a_failing_step_of_a_build_is_shown_with_its_last_lines() {
    let farm = Farm::new();
    let directory =
        profile(&farm, "[build]\nbefore = [\"true\", \"echo one; echo why >&2; exit 3\"]\n");
    farm.run(&["bootstrap", word(&directory)]).ok();
    for (verb, what) in [("bake", "baking"), ("lock", "locking")] {
        // lock runs the steps only where there is something to lock.
        if verb == "lock" {
            let python = "[python]\nrequirements = \"requirements.txt\"\n[build]\nbefore = [\"echo one; echo why >&2; exit 3\"]\n";
            profile(&farm, python);
        }
        let out = farm.root().join("out");
        fs::create_dir_all(&out).expect("there is room");
        let arguments: &[&str] = if verb == "bake" {
            &[verb, word(&directory), "--output", word(&out)]
        } else {
            &[verb, word(&directory)]
        };
        let ran = fails("build step that fails", &farm, arguments, 1);
        says(
            &ran,
            &farm,
            &format!(
                "{what} tiny{}: running build.before: \"echo one; echo why >&2; exit 3\": exit status 3\n  | one\n  | why",
                if verb == "bake" { " 1.0" } else { "" }
            ),
            "build.before runs as root in a fork of the environment, in a copy of the profile's \
             directory: -vv shows all it prints, farmctl bake PROFILE --keep keeps it",
        );
        assert_eq!(fs::read_dir(&out).expect("it is there").count(), 0);
    }
}

/// A wheel of nothing, and the name and SHA-256 of it.
fn wheel(directory: &Path) -> String {
    let script = "import sys, zipfile, hashlib\n\
        path = sys.argv[1] + '/nothing-1.0-py3-none-any.whl'\n\
        wheel = zipfile.ZipFile(path, 'w')\n\
        wheel.writestr('nothing.py', '')\n\
        wheel.writestr('nothing-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: nothing\\nVersion: 1.0\\n')\n\
        wheel.writestr('nothing-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
        wheel.writestr('nothing-1.0.dist-info/RECORD', '')\n\
        wheel.close()\n\
        print(hashlib.sha256(open(path, 'rb').read()).hexdigest())\n";
    tool("python3", &["-c", script, word(directory)]).trim().to_owned()
}

#[test]
fn requirements_are_installed_by_hash_or_not_at_all() {
    let farm = Farm::new();
    let directory = profile(&farm, "[python]\nrequirements = \"requirements.txt\"\n");
    let local = "--no-index\n--find-links /run/farmctl-build/project/wheels\n";
    let requirements = |text: &str| {
        fs::write(directory.join("requirements.txt"), format!("{local}{text}\n"))
            .expect("it is ours");
    };
    fs::create_dir(directory.join("wheels")).expect("there is room");
    let sha256 = wheel(&directory.join("wheels"));
    farm.run(&["bootstrap", word(&directory)]).ok();

    requirements("nothing==1.0");
    let ran = fails("requirements without hashes", &farm, &["bake", word(&directory)], 1);
    says(
        &ran,
        &farm,
        "baking tiny 1.0: the requirements carry no hashes and there is no farmctl.lock",
        "farmctl lock ROOT/profiles/tiny",
    );

    requirements(&format!("nothing==1.0 --hash=sha256:{}", "0".repeat(64)));
    let ran = fails("requirement with another hash", &farm, &["bake", word(&directory)], 1);
    let error = ran.error();
    assert!(error.starts_with("baking tiny 1.0: installing the requirements: "), "{error}");
    // uv and pip both name what they wanted and what they got.
    for part in ["nothing", &"0".repeat(64), &sha256] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(
        ran.hint(),
        "the index serves other bytes than were locked: find out why before farmctl lock"
    );

    requirements("nothing==2.0");
    let ran = fails("requirement not found", &farm, &["lock", word(&directory)], 1);
    assert!(ran.error().starts_with("locking tiny: "), "{}", ran.error());
    assert_eq!(
        ran.hint(),
        "is it in the index, for this Python? farmctl shell NAME --source shows the environment's"
    );
    assert!(!directory.join("farmctl.lock").exists());

    let locked = "schema = 1\n[debian]\nepoch = 1\nrelease = []\n[python]\n\
                  requirements-sha256 = \"00\"\ndistribution = []\n";
    fs::write(directory.join("farmctl.lock"), locked).expect("it is ours");
    let ran = fails("requirements changed since the lock", &farm, &["bake", word(&directory)], 1);
    says(
        &ran,
        &farm,
        "baking tiny 1.0: the requirements have changed since farmctl.lock was written",
        "farmctl lock ROOT/profiles/tiny",
    );

    fs::write(directory.join("farmctl.lock"), locked.replace("schema = 1", "schema = 2"))
        .expect("it is ours");
    let ran = fails("lock file of a newer farmctl", &farm, &["bake", word(&directory)], 1);
    says(
        &ran,
        &farm,
        "reading ROOT/profiles/tiny/farmctl.lock: farmctl.lock was written by a newer farmctl (schema 2, this one reads 1)",
        "farmctl lock writes it anew",
    );
}
