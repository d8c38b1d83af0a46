//! All that farmctl may change on a machine, so that two moments can be compared: every
//! file of its root, and its mounts, sessions, chroots, vhosts, accounts and processes; and
//! the files of others beside those, by their contents.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::common;
use crate::signal::masked_ids;

/// What is another at every run, or grows with it: what was done and printed, locks that
/// nobody holds, and what a test keeps for itself.
const PASSING: [&str; 8] = [
    "var/lib/farmctl/history",
    "var/lib/farmctl/supervisor",
    "var/log",
    "run/farmctl/lock",
    "cache",
    "image",
    "trace",
    "trace.pipe",
];
/// What a volume on btrfs had last, in the state: another one for each volume.
const LAST_CHANGE: &str = "\"last-change\": ";
/// Where schroot, nginx and the accounts are: others' as well as ours.
const SHARED: [&str; 6] =
    ["/etc/schroot", "/etc/nginx", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];
/// Where schroot has its sessions.
const SESSIONS: [&str; 5] = [
    "/var/lib/schroot/session",
    "/var/lib/schroot/mount",
    "/var/lib/schroot/union/overlay",
    "/var/lib/schroot/union/underlay",
    "/run/schroot/mount",
];

/// A line for each thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture(BTreeSet<String>);

impl Picture {
    /// As it is now.
    pub fn of(root: &Path) -> Self {
        let name = root.display().to_string();
        let mut lines = BTreeSet::new();
        let mut add = |text: String| lines.insert(masked_ids(&text.replace(&name, "ROOT")));
        walk(root, &mut |path, meta| {
            let within = path.strip_prefix(root).expect("it was found there");
            if PASSING.iter().any(|passing| within.starts_with(passing)) {
                return false;
            }
            add(described(path, meta, is_state(within)));
            true
        });
        for place in SHARED {
            walk(Path::new(place), &mut |path, meta| {
                add(described(path, meta, true));
                true
            });
        }
        for place in SESSIONS {
            for session in common::names(Path::new(place)) {
                add(format!("{place}/{session}"));
            }
        }
        for line in common::mounts(root) {
            add(format!("mount {line}"));
        }
        let mut processes = BTreeMap::new();
        for line in common::processes(root) {
            // Without its pid, and without what a server says of itself.
            let line = line.split_once(' ').map_or("", |(_, line)| line).trim_end();
            *processes.entry(line.to_owned()).or_insert(0) += 1;
        }
        for (line, count) in processes {
            add(format!("process {line}, {count} of it"));
        }
        Self(lines)
    }

    /// What came and what went since then, a line each.
    pub fn changes(&self, before: &Self) -> Vec<String> {
        let new = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        new.chain(before.0.difference(&self.0).map(|line| format!("- {line}"))).collect()
    }
}

/// Whether the contents of a file are farmctl's own words, and not a tree's or a log's.
fn is_state(within: &Path) -> bool {
    let own = ["var/lib/farmctl/apps", "var/lib/farmctl/environments", "etc/farmctl"];
    own.iter().any(|place| within.starts_with(place))
        || within == Path::new("var/lib/farmctl/node.json")
}

/// Whether a file has other contents each time it is made: the node's own key.
fn is_made_at_random(path: &Path) -> bool {
    ["etc/farmctl/signing.key", "etc/farmctl/signing.pub"].iter().any(|it| path.ends_with(it))
}

fn described(path: &Path, meta: &fs::Metadata, contents: bool) -> String {
    let kind = meta.file_type();
    let what = if kind.is_symlink() {
        fs::read_link(path).unwrap_or_default().display().to_string()
    } else if kind.is_file() && contents && !is_made_at_random(path) {
        // A line each: where one of them differs, it is shown.
        let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let lines = text.lines().map(|line| match line.split_once(LAST_CHANGE) {
            Some((indent, _)) => format!("{indent}{LAST_CHANGE}"),
            None => line.to_owned(),
        });
        return lines.fold(format!("{} {:o}", path.display(), meta.mode()), |all, line| {
            all + "\n    " + &line
        });
    } else if kind.is_file() && path.extension().is_some_and(|it| it == "xz") {
        // A signature has random bytes in it, which are compressed.
        "tarball".to_owned()
    } else if kind.is_file() && path.extension().is_some_and(|it| it == "pid") {
        // Of as many digits as it happens.
        "a number".to_owned()
    } else if kind.is_file() {
        format!("{} bytes", meta.len())
    } else if kind.is_socket() {
        "socket".to_owned()
    } else {
        String::new()
    };
    format!("{} {:o} {}:{} {what}", path.display(), meta.mode(), meta.uid(), meta.gid())
}

/// Calls `visit` with everything beneath a path, itself included, as long as it says to go
/// deeper.
fn walk(path: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata) -> bool) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    if !visit(path, &meta) || !meta.is_dir() {
        return;
    }
    let Ok(entries) = fs::read_dir(path) else { return };
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    for path in paths {
        walk(&path, visit);
    }
}
