//! The floors stay apart: what each room of `src/` may use, read from its `use` lines.
//! `src/lib.rs` is the map.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FACE: [&str; 3] = ["main", "cli", "ui"];
const HANDS: [&str; 37] = [
    "run",
    "parallel",
    "mount",
    "file",
    "input",
    "hash",
    "process",
    "place",
    "machine",
    "inside",
    "storage",
    "chroot",
    "debian",
    "python",
    "git",
    "source",
    "locked",
    "stage",
    "tarball",
    "signature",
    "trust",
    "account",
    "secret",
    "schroot",
    "session",
    "supervise",
    "probe",
    "ready",
    "log",
    "front",
    "serve",
    "switch",
    "history",
    "node",
    "revise",
    "watch",
    "undo",
];
const PLANS: [&str; 17] = [
    "profile",
    "project",
    "reference",
    "template",
    "start_script",
    "lockfile",
    "manifest",
    "kept",
    "edit",
    "diff",
    "sbom",
    "sizes",
    "release",
    "layout",
    "plan",
    "settings",
    "size",
];

/// One file of `src/`, without its tests and its comments.
struct Room {
    path: PathBuf,
    /// The module at the top: `storage` for `storage/directory.rs`.
    name: String,
    code: String,
}

impl Room {
    /// The modules of ours it names.
    fn uses(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut rest = self.code.as_str();
        while let Some(at) = rest.find("crate::") {
            let before = rest[..at].chars().next_back();
            rest = &rest[at + "crate::".len()..];
            if before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_') {
                continue;
            }
            let (names, shared) = match rest.strip_prefix('{') {
                Some(names) => (names.split('}').next().unwrap_or(names), true),
                None => (rest, false),
            };
            for name in names.split(',').take(if shared { usize::MAX } else { 1 }) {
                let ours = |letter: &char| letter.is_alphanumeric() || *letter == '_';
                found.insert(name.trim().chars().take_while(ours).collect());
            }
        }
        found.remove(&self.name);
        found
    }

    fn names(&self, text: &str) -> bool {
        self.code.contains(text)
    }
}

fn rooms() -> Vec<Room> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms = Vec::new();
    let mut pending = vec![source.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("it is part of the source").flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(&source).expect("it was found there");
                let top = inside.components().next().expect("it has a name");
                let name = Path::new(top.as_os_str()).file_stem().expect("it has a name");
                let text = fs::read_to_string(&path).expect("it is text");
                let name = name.to_string_lossy().into_owned();
                rooms.push(Room { name, code: code_of(&text), path: inside.to_owned() });
            }
        }
    }
    // Modules that are tests as a whole.
    let tests = ["fixture.rs", "fuzz.rs", "hostile.rs", "tests.rs"]
        .map(|name| Path::new("tarball").join(name));
    rooms.retain(|room| !tests.contains(&room.path));
    assert!(rooms.len() > 50, "the source was found");
    rooms
}

/// The code of a file up to its tests, without comments.
fn code_of(text: &str) -> String {
    let tests = text.find("\n#[cfg(test)]\n").map_or(text, |end| {
        // A module of tests in a file of its own does not end this one.
        if text[end..].contains("\nmod tests {") { &text[..end] } else { text }
    });
    let lines = tests.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Every sentence of what is wrong, at once.
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rooms `of` that use one of `never`.
fn meetings(of: &[&str], never: &[&str]) -> Vec<String> {
    let rooms = rooms();
    for name in of {
        assert!(rooms.iter().any(|room| room.name == *name), "there is no room {name}");
    }
    let mut wrong = Vec::new();
    for room in rooms.iter().filter(|room| of.contains(&room.name.as_str())) {
        let uses = room.uses();
        let met = never.iter().filter(|name| **name != room.name && uses.contains(**name));
        wrong.extend(met.map(|name| format!("{} uses {name}", room.path.display())));
    }
    wrong
}

fn texts(rooms: impl Iterator<Item = Room>, never: &[&str]) -> Vec<String> {
    rooms
        .flat_map(|room| {
            let met = never.iter().filter(|text| room.names(text));
            met.map(|text| format!("{} names {text}", room.path.display())).collect::<Vec<_>>()
        })
        .collect()
}

fn except(names: &[&str]) -> impl Iterator<Item = Room> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    rooms().into_iter().filter(move |room| !names.contains(&room.name))
}

#[test]
fn every_room_stands_on_a_floor() {
    let floors: BTreeSet<&str> =
        FACE.into_iter().chain(HANDS).chain(PLANS).chain(["commands", "error", "lib"]).collect();
    let there: BTreeSet<String> = rooms().into_iter().map(|room| room.name).collect();
    assert_eq!(there.iter().map(String::as_str).collect::<BTreeSet<_>>(), floors);
}

#[test]
fn nothing_calls_upstairs() {
    let upstairs_of_hands: Vec<&str> = FACE.into_iter().chain(["commands"]).collect();
    let upstairs_of_plans: Vec<&str> = upstairs_of_hands.iter().copied().chain(HANDS).collect();
    let everything: Vec<&str> = upstairs_of_plans.iter().copied().chain(PLANS).collect();
    assert_none(&meetings(&HANDS, &upstairs_of_hands));
    assert_none(&meetings(&PLANS, &upstairs_of_plans));
    assert_none(&meetings(&["error"], &everything));
    assert_none(&meetings(&["ui"], &everything));
    assert_none(&meetings(&["commands"], &["main", "cli"]));
}

#[test]
fn plans_touch_no_file_no_process_no_clock_and_no_environment() {
    let plans = rooms().into_iter().filter(|room| PLANS.contains(&room.name.as_str()));
    let never = [
        "std::fs",
        "fs::",
        "std::process",
        "std::env::",
        "env::var",
        "SystemTime",
        "Instant",
        "Timestamp::now",
        "Zoned::now",
        "std::io",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "ToSocketAddrs",
        "std::os::unix::net",
        "nix::",
        ".exists()",
        ".is_file()",
        ".is_dir()",
        ".canonicalize()",
        ".metadata()",
    ];
    assert_none(&texts(plans, &never));
}

/// What verbs have in common; no verbs.
const SHARED: [&str; 5] = ["mod", "incoming", "record", "baking", "comparison"];

#[test]
fn a_verb_never_uses_another_verb() {
    let mut wrong = Vec::new();
    let rooms = rooms();
    let file = |room: &Room| room.path.file_stem().map(|name| name.to_string_lossy().into_owned());
    let verbs: BTreeSet<String> =
        rooms.iter().filter(|room| room.name == "commands").filter_map(file).collect();
    assert!(verbs.len() > 15, "the verbs were found");
    for room in rooms.iter().filter(|room| room.name == "commands") {
        let own = file(room).expect("it has a name");
        for verb in verbs.iter().filter(|verb| **verb != own && !SHARED.contains(&verb.as_str())) {
            for way in [
                format!("super::{verb}::"),
                format!("commands::{verb}"),
                format!("use super::{verb}"),
            ] {
                if room.names(&way) && own != "mod" {
                    wrong.push(format!("{} uses {verb}", room.path.display()));
                }
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn processes_are_started_in_one_place() {
    let never = ["process::Command", "Command::new", "libc::fork", "unistd::fork", "unistd::exec"];
    assert_none(&texts(except(&["run"]), &never));
}

#[test]
fn only_ui_writes_to_standard_output_and_standard_error() {
    let never = ["println!", "eprintln!", "print!(", "stdout()", "stderr()"];
    let quiet = texts(except(&["ui", "main"]), &never);
    // main gives tracing its writer and prints nothing itself.
    let main = rooms().into_iter().filter(|room| room.name == "main");
    assert_none(&[quiet, texts(main, &["println!", "print!("])].concat());
    let face = ["main", "cli", "commands", "ui", "lib"];
    let below: Vec<Room> = except(&face).filter(|room| room.uses().contains("ui")).collect();
    assert_none(
        &below.iter().map(|room| format!("{} uses ui", room.path.display())).collect::<Vec<_>>(),
    );
}

#[test]
fn rooms_do_not_know_rooms_they_need_not_know() {
    assert_none(&meetings(&["storage"], &["schroot", "node", "tarball", "session", "undo"]));
    assert_none(&meetings(&["tarball"], &["run", "node", "storage", "schroot", "chroot"]));
    assert_none(&meetings(&["node"], &["run", "schroot", "session", "undo", "tarball"]));
    assert_none(&meetings(&["schroot"], &["node", "tarball", "session", "undo"]));
    assert_none(&meetings(&["run"], &HANDS));
    // The one thing schroot and node take from storage is a value.
    let values = [("schroot", "storage::Stanza"), ("node", "storage::Mark")];
    for (name, value) in values {
        for room in rooms().into_iter().filter(|room| room.name == name) {
            assert_none(&texts(
                std::iter::once(Room {
                    code: room.code.replace(&format!("crate::{value};"), ""),
                    ..room
                }),
                &["storage::", "Storage"],
            ));
        }
    }
}
