//! What separates two releases, and a running session from its release; what one is made of.

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{Farm, Ran};
use farmctl::manifest::Distribution;
use farmctl::tarball::Archive;
use signal::word;
use tiny::Tiny;

const SLEEP: &str = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n";
const FILE: &str = "[[file]]\npath = \"/etc/shop.conf\"\ncontent = \"{{ workers }}\\n\"\n";

#[test]
fn tarballs_and_releases_are_compared_with_each_other() {
    let farm = Farm::new();
    let pack = |version: &str, content: &str| {
        let out = farm.root().join(version);
        fs::create_dir_all(&out).expect("there is room");
        let tiny = Tiny::new(&tiny::profile("shop", version, SLEEP));
        tiny.file("srv/shop", content, 0o644).pack(&out)
    };
    let (first, second) = (pack("1.0", "one"), pack("1.1", "two!"));
    let ran = farm.run(&["diff", word(&first), word(&second)]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    // The start script has the version in it.
    let expected = "shop 1.0 → shop 1.1\ngenerated    2 changed\n  changed  /srv/shop: content\n  \
                    changed  /usr/local/bin/project: content\n";
    assert_eq!(ran.stdout, expected);
    let ran = farm.run(&["diff", word(&first), word(&first)]).ok();
    assert!(ran.stderr.contains("the same release, sha256 "), "{}", ran.stderr);

    farm.run(&["install", word(&first)]).ok();
    farm.run(&["install", word(&second)]).ok();
    for words in [["shop=1.0", "shop=1.1"], ["shop=1.0", "shop"]] {
        let ran = farm.run(&["diff", words[0], words[1]]);
        assert_eq!((ran.code, ran.stdout.as_str()), (3, expected), "{}", ran.stderr);
    }
    farm.run(&["diff", "shop=1.1", word(&second)]).ok();
    let ran = farm.run(&["diff", "shop", word(&first), "--json"]);
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(value["before"]["version"], "1.1");
    assert_eq!(value["groups"][0]["changes"][0]["path"], "srv/shop");
    let ran = farm.run(&["diff", "shop=2.0", "shop"]).failed(1);
    assert_eq!(ran.hint(), "installed are: 1.0, 1.1");
    farm.run(&["diff", "none", "shop"]).failed(1);
    farm.assert_clean();
}

#[test]
fn a_session_is_compared_with_its_release() {
    let farm = Farm::new();
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    let text = tiny::profile("shop", "1.0", &format!("{FILE}\n{SLEEP}"));
    let tiny = Tiny::new(&text).file("etc/shop.conf", "1\n", 0o644);
    let mut tiny = tiny.file("srv/shop", "baked", 0o644).file("srv/till/till.py", "", 0o644);
    let (name, version) = ("till".to_owned(), "2.0".to_owned());
    tiny.distributions = vec![Distribution { name, version }];
    let file = tiny.pack(&out);
    farm.run(&["install", word(&file)]).ok();
    let ran = farm.run(&["verify", "shop", "--session"]).failed(1);
    assert_eq!((ran.error(), ran.hint()), ("shop is not started", "farmctl start shop"));
    farm.run(&["start", "shop"]).ok();
    // What beginning a session writes is no drift: users, rendered files, the resolver.
    let ran = farm.run(&["verify", "shop", "--session"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("is as its release 1.0"), "{}", ran.stderr);

    let status = farm.run(&["status", "shop", "--json"]).ok().stdout;
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let session = find(&status, "fs-shop-").expect("status names the session");
    let root = Path::new("/run/schroot/mount").join(session);
    fs::write(root.join("srv/shop"), "edited").expect("it is mounted");
    fs::write(root.join("srv/more"), "new").expect("it is mounted");
    fs::write(root.join("srv/till/till.py"), "edited").expect("it is mounted");
    fs::remove_file(root.join("usr/bin/setpriv")).expect("it is mounted");
    fs::write(root.join("tmp/scratch"), "not looked at").expect("it is mounted");
    let ran = farm.run(&["verify", "shop", "--session"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[0], "unexpected  /srv/more");
    assert!(lines[1].starts_with("changed     /srv/shop: 6 bytes instead of 5"), "{lines:?}");
    assert!(
        lines[2].starts_with("changed     /srv/till/till.py: 6 bytes instead of 0"),
        "{lines:?}"
    );
    assert!(lines[2].ends_with(" (distribution till)"), "{lines:?}");
    assert_eq!(lines[3..], ["missing     /usr/bin/setpriv"]);
    let whose = "in 4 paths: distribution till 1, generated 2, not of the release 1\n";
    assert!(
        ran.stderr.ends_with(&format!("differs from its release 1.0 {whose}")),
        "{}",
        ran.stderr
    );
    // The release itself is as it was, until somebody writes to its volume.
    farm.run(&["verify", "shop"]).ok();
    let volume = farm.volumes().into_iter().find(|name| name.starts_with("fv-shop"));
    let volume = volume.expect("it is installed");
    let edited = farm.state("volumes").join(volume).join("root/srv/till/till.py");
    fs::write(edited, "edited").expect("it is a directory");
    let ran = farm.run(&["verify", "shop"]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (3, 1), "{}", ran.stdout);
    assert!(ran.stdout.ends_with(" (distribution till)\n"), "{}", ran.stdout);
    let said = ran.stderr;
    assert!(said.contains("shop 1.0 differs from what was installed in 1 path"), "{said}");
    assert!(said.ends_with(": distribution till 1\n"), "{said}");
    farm.assert_clean();
}

/// Runs `farmctl show -` and what follows with this as its standard input.
fn show_input(farm: &Farm, more: &[&str], input: impl Into<Stdio>) -> Ran {
    let mut command = farm.command(&[&["show", "-"], more].concat());
    command.stdin(input);
    common::run(command)
}

#[test]
fn a_tarball_is_shown_out_of_a_pipe_and_by_its_sizes() {
    let farm = Farm::new();
    let mut tiny = Tiny::new(&tiny::profile("shop", "1.0", SLEEP));
    tiny.distributions = vec![Distribution { name: "till".to_owned(), version: "2.0".to_owned() }];
    let text = "0123456789".repeat(2000);
    let path = tiny.file("srv/till/till.py", text, 0o644).pack(farm.root());
    farm.run(&["install", word(&path)]).ok();

    // It is read to the end of the file index and not a byte further.
    let mut file = File::open(&path).expect("it was packed");
    let end = Archive::open(&path).expect("as packed").opening().size();
    for more in [&[][..], &["--json"], &["--sizes"], &["--sizes", "--html"], &["--sizes", "--json"]]
    {
        file.rewind().expect("it is a file");
        let piped = show_input(&farm, more, file.try_clone().expect("it is open")).ok();
        assert_eq!(file.stream_position().expect("it is a file"), end, "{more:?}");
        assert!(piped.stderr.contains("whether the rest is whole is not known"), "{more:?}");
        let shown = farm.run(&[&["show", word(&path)], more].concat()).ok();
        assert_eq!(piped.stdout, shown.stdout, "{more:?}");
        assert_eq!(shown.stderr, "", "{more:?}");
        let installed = farm.run(&[&["show", "shop"], more].concat()).ok();
        assert_eq!(installed.stdout, shown.stdout, "{more:?}");
    }

    let shown = farm.run(&["show", "shop", "--sizes"]).ok().stdout;
    let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).expect(start);
    assert!(line("Python distributions, ").contains("  19.53 KiB  "), "{shown}");
    assert!(line("  till ").contains("  19.53 KiB  "), "{shown}");
    assert!(line("  /usr/bin ").contains('█'), "{shown}");
    let json = farm.run(&["show", "shop", "--sizes", "--json"]).ok().stdout;
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let (sizes, manifest) = (&value["sizes"], &value["manifest"]);
    assert_eq!(sizes["total"]["unpacked"], manifest["payload"]["content"]);
    assert_eq!(sizes["total"]["paths"], manifest["payload"]["entries"]);
    let sum = |values: &serde_json::Value, number: &dyn Fn(&serde_json::Value) -> u64| -> u64 {
        values.as_array().expect("a list").iter().map(number).sum()
    };
    let segments = sum(&manifest["segments"], &|one| one["xz-size"].as_u64().expect("bytes"));
    assert_eq!(sizes["total"]["packed"], segments);
    let groups = &sizes["groups"];
    assert_eq!(sum(groups, &|one| one["total"]["packed"].as_u64().expect("bytes")), segments);
    assert_eq!(groups[0]["kind"], "distributions");
    assert_eq!(groups[0]["parts"][0]["version"], "2.0");
    assert_eq!(groups[0]["parts"][0]["unpacked"], 20_000);
    assert!(farm.run(&["show", "shop", "--sizes", "--html"]).ok().stdout.starts_with("<!DOCTYPE"));
    assert_eq!(farm.run(&["show", "shop", "--html"]).code, 2);
    farm.assert_clean();
}

#[test]
fn standard_input_that_is_no_tarball_is_told_apart() {
    let farm = Farm::new();
    let path = Tiny::new(&tiny::profile("shop", "1.0", SLEEP)).pack(farm.root());
    let bytes = fs::read(&path).expect("it was packed");
    let given = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().expect("there is room");
        file.write_all(bytes).and_then(|()| file.rewind()).expect("there is room");
        let ran = show_input(&farm, &[], file).failed(1);
        assert_eq!(ran.stdout, "");
        let error = ran.error().strip_prefix("reading standard input: ").expect("it was");
        (error.to_owned(), ran.hint().to_owned())
    };
    let pipe = "curl -fsSL URL | farmctl show -, where URL is a node tarball's";
    let copy = "copy the file again from where it was baked and compare its sha256sum";
    let bake = "give a node tarball: what farmctl bake writes";
    for (bytes, error, hint) in [
        (&b""[..], "it is empty", pipe),
        (b"hello\n", "not an .xz file", bake),
        (b"<!DOCTYPE html>\n<title>404</title>", "not an .xz file but a web page", bake),
        (&bytes[..11], "cut short at byte 11", copy),
        (&bytes[..300], "reading .farmctl/manifest.json: cut short at byte 300", copy),
    ] {
        assert_eq!(given(bytes), (error.to_owned(), hint.to_owned()));
    }
    let mut flipped = bytes.clone();
    flipped[200] ^= 1;
    let (error, hint) = given(&flipped);
    assert!(error.starts_with("reading .farmctl/manifest.json: "), "{error}");
    assert_eq!(hint, pipe);
    let ends = nix::pty::openpty(None, None).expect("devpts is mounted");
    let ran = show_input(&farm, &[], ends.slave).failed(2);
    assert_eq!((ran.error(), ran.hint()), ("standard input is a terminal", pipe));
    // Who waits for it is left by a signal.
    let (reader, _writer) = nix::unistd::pipe().expect("there are descriptors");
    let mut command = farm.command(&["show", "-"]);
    let child = command.stdin(reader).stderr(Stdio::piped()).spawn().expect("it can be started");
    let caught = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"));
        u64::from_str_radix(line.unwrap_or("0"), 16).is_ok_and(|all| all & (1 << 14) != 0)
    };
    common::wait_for("farmctl to take signals", Duration::from_secs(10), || caught(child.id()));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    let ended = child.wait_with_output().expect("it is ours");
    assert_eq!(ended.status.code(), Some(130));
    assert_eq!(ended.stderr, b"error: reading standard input: interrupted\n");
    farm.assert_clean();
}

/// The first text in a value that begins like this.
fn find(value: &serde_json::Value, start: &str) -> Option<String> {
    match value {
        serde_json::Value::String(text) => text.starts_with(start).then(|| text.clone()),
        serde_json::Value::Array(all) => all.iter().find_map(|one| find(one, start)),
        serde_json::Value::Object(all) => all.values().find_map(|one| find(one, start)),
        _ => None,
    }
}
