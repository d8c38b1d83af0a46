//! What separates two releases as text, for `diff` and for `verify --rebuild`.

use super::Reading;
use crate::diff::{self, Change, Diff, Group, How, Input, Side};
use crate::ui;

/// How many paths of one owner are printed before the rest is counted.
const SHOWN: usize = 20;

/// A release as one side of a comparison.
pub(super) fn side(reading: &Reading) -> Side<'_> {
    Side { manifest: &reading.manifest, files: &reading.files }
}

/// Differences as people read them; with every path if `all` are asked for, the
/// tables within so many columns.
pub(super) fn render(diff: &Diff, all: bool, width: usize) -> String {
    let mut text = String::new();
    if diff.is_empty() {
        return "no file, package, distribution or key of the profile differs".to_owned();
    }
    let mut rows: Vec<Vec<String>> = diff.inputs.iter().map(input).collect();
    if !diff.profile.is_empty() {
        rows.push(vec!["profile".to_owned(), diff.profile.join(", ")]);
    }
    text += &ui::folded(&rows, width);
    let counted =
        |group: &Group| vec![diff::describe(&group.owner), versions(group), group.counts()];
    let table = ui::folded_rows(&diff.groups.iter().map(counted).collect::<Vec<_>>(), width);
    if !text.is_empty() && !table.is_empty() {
        text += "\n\n";
    }
    for (group, lines) in diff.groups.iter().zip(&table) {
        text += lines;
        text.push('\n');
        text += &paths(group, all);
    }
    text
}

fn input(input: &Input) -> Vec<String> {
    let side = |side: &Option<String>| match side {
        // A hash is for telling apart; its beginning does that.
        Some(text) if input.what.ends_with(", sha256") => text.chars().take(12).collect(),
        Some(text) => text.clone(),
        None => "none".to_owned(),
    };
    let (before, after) = (side(&input.before), side(&input.after));
    let text = match before == after {
        true => format!("{before}, with other contents"),
        false => format!("{before} → {after}"),
    };
    vec![input.what.clone(), text]
}

fn versions(group: &Group) -> String {
    let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
    match (&group.before, &group.after) {
        (None, None) => String::new(),
        (before, after) if before == after => version(before),
        (before, after) => format!("{} → {}", version(before), version(after)),
    }
}

/// The paths of a group, unless its versions say enough. Times alone say nothing.
fn paths(group: &Group, all: bool) -> String {
    let told = |change: &&Change| all || change.how != How::Time;
    let changes: Vec<&Change> = group.changes.iter().filter(told).collect();
    if group.is_explained() && !all {
        return String::new();
    }
    let limit = if all { usize::MAX } else { SHOWN };
    let mut text = String::new();
    for change in changes.iter().take(limit) {
        let path = ui::one_line(&change.path);
        text += &match &change.how {
            How::Added => format!("  added    /{path}\n"),
            How::Removed => format!("  removed  /{path}\n"),
            How::Changed(what) => format!("  changed  /{path}: {}\n", ui::one_line(what)),
            How::Time => format!("  time     /{path}\n"),
        };
    }
    if changes.len() > limit {
        text += &format!("  … and {} more\n", changes.len() - limit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Distribution, FileEntry, FileIndex, FileKind, Manifest, Owner, Package};

    fn manifest(change: impl FnOnce(&mut serde_json::Value)) -> Manifest {
        let hash = serde_json::json!({ "size": 0, "sha256": "" });
        let payload = serde_json::json!({ "size": 0, "sha256": "", "entries": 0, "content": 0 });
        let mut value = serde_json::json!({
            "schema": 1, "farmctl": "0.1.0", "name": "shop", "version": "1.0",
            "architecture": "amd64", "epoch": 1_700_000_000,
            "profile": {
                "schema": 1, "name": "shop", "version": "1.0",
                "environment": { "suite": "bookworm" },
                "process": [{ "name": "web", "command": "gunicorn shop" }],
            },
            "inputs": {
                "releases": [{ "suite": "bookworm", "sha256": "aa", "date": 1_699_000_000 }],
                "packages": [], "distributions": [], "project-sha256": "0123456789abcdef",
            },
            "files": hash, "payload": payload, "segments": [], "set-id": [], "capabilities": [],
        });
        change(&mut value);
        serde_json::from_value(value).expect("every key is there")
    }

    fn file(path: &str, content: &str, owner: Owner) -> FileEntry {
        let kind = FileKind::File { size: 1, sha256: content.to_owned() };
        FileEntry { path: path.to_owned(), kind, mode: 0o644, uid: 0, gid: 0, mtime: 7, owner }
    }

    fn compared() -> Diff {
        let package = |version: &str| Package {
            name: "openssl".to_owned(),
            version: version.to_owned(),
            architecture: "amd64".to_owned(),
        };
        let distribution =
            |name: &str| Distribution { name: name.to_owned(), version: "4.2".to_owned() };
        let mut old = manifest(|_| ());
        old.inputs.packages = vec![package("3.0.15-1")];
        old.inputs.distributions = vec![distribution("Django"), distribution("pytz")];
        let mut new = manifest(|value| {
            value["version"] = "1.1".into();
            value["profile"]["version"] = "1.1".into();
            value["profile"]["process"][0]["command"] = "gunicorn --preload shop".into();
            value["inputs"]["project-sha256"] = "fedcba9876543210".into();
            value["inputs"]["releases"][0]["sha256"] = "bb".into();
        });
        new.inputs.packages = vec![package("3.0.16-1")];
        new.inputs.distributions = vec![distribution("Django")];
        let ssl = || Owner::Package("openssl".to_owned());
        let django = || Owner::Distribution("Django".to_owned());
        let before = [
            file("etc/hostname", "a", Owner::Generated),
            file("srv/shop/app.py", "a", Owner::Project),
            file("usr/bin/openssl", "a", ssl()),
            file("usr/lib/ssl", "a", ssl()),
            file("venv/django.py", "a", django()),
            file("venv/pytz.py", "a", Owner::Distribution("pytz".to_owned())),
        ];
        let mut after = [
            file("etc/hostname", "a", Owner::Generated),
            file("srv/shop/app.py", "b", Owner::Project),
            file("srv/shop/new\n.py", "b", Owner::Project),
            file("usr/bin/openssl", "b", ssl()),
            file("usr/lib/ssl", "a", ssl()),
            file("venv/django.py", "b", django()),
        ];
        after[0].mtime = 8;
        after[1].mode = 0o755;
        let read = |manifest: Manifest, files: &[FileEntry]| Reading {
            identity: String::new(),
            manifest,
            files: FileIndex { schema: 1, files: files.to_vec() },
        };
        diff::compare(side(&read(old, &before)), side(&read(new, &after)))
    }

    #[test]
    fn differences_are_grouped_by_whose_they_are() {
        insta::assert_snapshot!(render(&compared(), false, 80), @r"
        project, sha256        0123456789ab → fedcba987654
        InRelease of bookworm  2023-11-03T08:26:40Z, with other contents
        profile                process[0].command

        package openssl      3.0.15-1 → 3.0.16-1  1 changed
        distribution Django  4.2                  1 changed
          changed  /venv/django.py: content
        distribution pytz    4.2 → none           1 removed
        project                                   1 changed, 1 added
          changed  /srv/shop/app.py: content, mode 0644 → 0755
          added    /srv/shop/new\n.py
        generated                                 1 with another time
        ");
    }

    #[test]
    fn differences_keep_to_a_narrow_terminal() {
        insta::assert_snapshot!(render(&compared(), false, 50), @r"
        project, sha256        0123456789ab → fedcba987654
        InRelease of bookworm  2023-11-03T08:26:40Z, with
                               other contents
        profile                process[0].command

        package openssl      3.0.15-1 → 3.0.16-1
            1 changed
        distribution Django  4.2
            1 changed
          changed  /venv/django.py: content
        distribution pytz    4.2 → none
            1 removed
        project
            1 changed, 1 added
          changed  /srv/shop/app.py: content, mode 0644 → 0755
          added    /srv/shop/new\n.py
        generated
            1 with another time
        ");
    }

    #[test]
    fn every_path_is_listed_when_asked_for() {
        let text = render(&compared(), true, 80);
        for line in [
            "  changed  /usr/bin/openssl: content\n",
            "  removed  /venv/pytz.py\n",
            "  time     /etc/hostname\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_release_does_not_differ_from_itself() {
        let (manifest, files) = (manifest(|_| ()), FileIndex { schema: 1, files: Vec::new() });
        let side = Side { manifest: &manifest, files: &files };
        assert!(diff::compare(side, side).is_empty());
    }
}
