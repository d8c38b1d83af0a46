//! What separates two releases, and a running session from its release.

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::path::Path;

use common::Farm;
use farmctl::manifest::Distribution;
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

/// The first text in a value that begins like this.
fn find(value: &serde_json::Value, start: &str) -> Option<String> {
    match value {
        serde_json::Value::String(text) => text.starts_with(start).then(|| text.clone()),
        serde_json::Value::Array(all) => all.iter().find_map(|one| find(one, start)),
        serde_json::Value::Object(all) => all.values().find_map(|one| find(one, start)),
        _ => None,
    }
}
