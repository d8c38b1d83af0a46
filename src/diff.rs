//! What separates two releases, grouped by whose it is.
//!
//! Pure values: all of it is in the manifests and the file indexes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::manifest::{FileEntry, FileIndex, FileKind, InRelease, Manifest, Owner};

/// One of the two.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// Its file index.
    pub files: &'a FileIndex,
}

/// Everything that separates two releases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Diff {
    /// What went in, files aside.
    pub inputs: Vec<Input>,
    /// Keys of the profile with another value: `process[0].command`.
    pub profile: Vec<String>,
    /// What differs in files or version: packages, distributions, the project, the rest.
    pub groups: Vec<Group>,
}

/// Something that went in and is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Input {
    /// What it is, in words.
    pub what: String,
    /// How it was.
    pub before: Option<String>,
    /// How it is.
    pub after: Option<String>,
}

/// The differences that are one owner's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Group {
    /// Whose they are: after the change, or before it for what is gone.
    pub owner: Owner,
    /// Version before, where the owner has versions and was there.
    pub before: Option<String>,
    /// Version after.
    pub after: Option<String>,
    /// The paths, ascending.
    pub changes: Vec<Change>,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// Path, no leading slash.
    pub path: String,
    /// How it differs.
    pub how: How,
}

/// How a path differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// It is another one, in words: `content, mode 0755 → 4755`.
    Changed(String),
    /// Its time alone is another.
    Time,
}

impl Group {
    /// How many paths differ in each way, in words: `2 changed, 1 added`.
    #[must_use]
    pub fn counts(&self) -> String {
        let count = |which: fn(&How) -> bool, word: &str| {
            let count = self.changes.iter().filter(|change| which(&change.how)).count();
            (count > 0).then(|| format!("{count} {word}"))
        };
        let words = [
            count(|how| matches!(how, How::Changed(_)), "changed"),
            count(|how| *how == How::Added, "added"),
            count(|how| *how == How::Removed, "removed"),
            count(|how| *how == How::Time, "with another time"),
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Whether another version says why the paths differ.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        self.before != self.after
    }
}

impl Diff {
    /// Whether nothing separates the two but what their names say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Diff::default()
    }
}

/// Compares two releases.
#[must_use]
pub fn compare(before: Side<'_>, after: Side<'_>) -> Diff {
    Diff {
        inputs: inputs(before.manifest, after.manifest),
        profile: profile(before.manifest, after.manifest),
        groups: groups(before, after),
    }
}

fn inputs(before: &Manifest, after: &Manifest) -> Vec<Input> {
    let mut found = Vec::new();
    let mut add = |what: &str, same: bool, before: Option<String>, after: Option<String>| {
        if !same {
            found.push(Input { what: what.to_owned(), before, after });
        }
    };
    for (what, of) in [
        ("name", (|manifest| Some(manifest.name.clone())) as fn(&Manifest) -> Option<String>),
        ("architecture", |manifest| Some(manifest.architecture.clone())),
        ("farmctl", |manifest| Some(manifest.farmctl.clone())),
        ("serial", |manifest| manifest.serial.map(|serial| serial.to_string())),
        ("expires", |manifest| manifest.expires.clone()),
        ("epoch", |manifest| Some(time(manifest.epoch))),
        ("project, sha256", |manifest| some(&manifest.inputs.project_sha256)),
        ("locked packages, sha256", |manifest| some(&manifest.inputs.packages_sha256)),
        ("farmctl.lock, sha256", |manifest| some(&manifest.inputs.lock_sha256)),
    ] {
        let (before, after) = (of(before), of(after));
        add(what, before == after, before, after);
    }
    let (olds, news) = (releases(before), releases(after));
    for suite in olds.keys().chain(news.keys()).collect::<BTreeSet<_>>() {
        let (old, new) = (olds.get(suite), news.get(suite));
        // Two of one second may differ all the same.
        let same = old.map(|one| &one.sha256) == new.map(|one| &one.sha256);
        let date = |one: Option<&&InRelease>| one.map(|one| time(one.date));
        add(&format!("InRelease of {suite}"), same, date(old), date(new));
    }
    found
}

fn releases(manifest: &Manifest) -> BTreeMap<&str, &InRelease> {
    manifest.inputs.releases.iter().map(|one| (one.suite.as_str(), one)).collect()
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn time(seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(seconds);
    time.map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn profile(before: &Manifest, after: &Manifest) -> Vec<String> {
    let value = |manifest: &Manifest| serde_json::to_value(&manifest.profile).unwrap_or_default();
    let mut keys = Vec::new();
    compare_values("", &value(before), &value(after), &mut keys);
    // The heading says both.
    keys.retain(|key| key != "name" && key != "version");
    keys
}

/// Collects the places where two values differ, as deep as both have something.
fn compare_values(place: &str, before: &Value, after: &Value, keys: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                let missing = Value::Null;
                let (old, new) = (old.get(key), new.get(key));
                compare_values(&place, old.unwrap_or(&missing), new.unwrap_or(&missing), keys);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            for index in 0..old.len().max(new.len()) {
                let missing = Value::Null;
                let (old, new) = (old.get(index), new.get(index));
                let place = format!("{place}[{index}]");
                compare_values(&place, old.unwrap_or(&missing), new.unwrap_or(&missing), keys);
            }
        }
        (old, new) if old == new => {}
        _ => keys.push(place.to_owned()),
    }
}

fn groups(before: Side<'_>, after: Side<'_>) -> Vec<Group> {
    let (olds, news) = (versions(before.manifest), versions(after.manifest));
    let mut changes: BTreeMap<Owner, Vec<Change>> = BTreeMap::new();
    for owner in olds.keys().chain(news.keys()) {
        if olds.get(owner) != news.get(owner) {
            changes.entry(owner.clone()).or_default();
        }
    }
    let (from, to) = (capabilities(before.manifest), capabilities(after.manifest));
    for (old, new) in before.files.paired(after.files) {
        let (Some(entry), how) = (match (old, new) {
            (Some(old), Some(new)) => {
                let path = old.path.as_str();
                (Some(new), change(old, new, from.get(path) == to.get(path)))
            }
            (Some(old), None) => (Some(old), Some(How::Removed)),
            (None, new) => (new, Some(How::Added)),
        }) else {
            unreachable!("one of the two is the next path")
        };
        if let Some(how) = how {
            let change = Change { path: entry.path.clone(), how };
            changes.entry(entry.owner.clone()).or_default().push(change);
        }
    }
    let group = |(owner, changes): (Owner, Vec<Change>)| Group {
        before: olds.get(&owner).cloned(),
        after: news.get(&owner).cloned(),
        owner,
        changes,
    };
    changes.into_iter().map(group).collect()
}

/// Versions of the owners that have one. Two packages of one name are of two
/// architectures.
fn versions(manifest: &Manifest) -> BTreeMap<Owner, String> {
    let mut versions: BTreeMap<Owner, String> = BTreeMap::new();
    let packages = manifest.inputs.packages.iter();
    let packages = packages.map(|one| (Owner::Package(one.name.clone()), &one.version));
    let distributions = manifest.inputs.distributions.iter();
    let distributions =
        distributions.map(|one| (Owner::Distribution(one.name.clone()), &one.version));
    for (owner, version) in packages.chain(distributions) {
        let known = versions.entry(owner).or_default();
        if !known.is_empty() {
            known.push_str(", ");
        }
        known.push_str(version);
    }
    versions
}

fn capabilities(manifest: &Manifest) -> HashMap<&str, &str> {
    manifest.capabilities.iter().map(|one| (one.path.as_str(), one.value.as_str())).collect()
}

/// How a path differs that both have, if it does.
fn change(old: &FileEntry, new: &FileEntry, same_capabilities: bool) -> Option<How> {
    let mut words = Vec::new();
    match (&old.kind, &new.kind) {
        (FileKind::File { sha256: old, .. }, FileKind::File { sha256: new, .. }) => {
            if old != new {
                words.push("content".to_owned());
            }
        }
        (FileKind::Symlink { target: old }, FileKind::Symlink { target: new })
        | (FileKind::HardLink { target: old }, FileKind::HardLink { target: new }) => {
            if old != new {
                words.push(format!("link {old:?} → {new:?}"));
            }
        }
        (old, new) if old == new => {}
        (old, new) => words.push(format!("{} → {}", name(old), name(new))),
    }
    if old.mode != new.mode {
        words.push(format!("mode {:04o} → {:04o}", old.mode, new.mode));
    }
    if (old.uid, old.gid) != (new.uid, new.gid) {
        words.push(format!("owner {}:{} → {}:{}", old.uid, old.gid, new.uid, new.gid));
    }
    if !same_capabilities {
        words.push("capabilities".to_owned());
    }
    if old.owner != new.owner {
        words.push(format!("was {}", describe(&old.owner)));
    }
    match words.is_empty() {
        false => Some(How::Changed(words.join(", "))),
        true if old.mtime != new.mtime => Some(How::Time),
        true => None,
    }
}

fn name(kind: &FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "a directory",
        FileKind::File { .. } => "a file",
        FileKind::Symlink { .. } => "a symbolic link",
        FileKind::HardLink { .. } => "a hard link",
    }
}

/// An owner in words: `package openssl`.
#[must_use]
pub fn describe(owner: &Owner) -> String {
    match owner {
        Owner::Package(name) => format!("package {name}"),
        Owner::Distribution(name) => format!("distribution {name}"),
        Owner::Project => "project".to_owned(),
        Owner::Generated => "generated".to_owned(),
    }
}
