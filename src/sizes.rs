//! What the bytes of a release are spent on, by whose they are.
//!
//! Pure values out of a manifest and a file index. What a part takes of the tarball is an
//! estimate: a segment is compressed as a whole, and its bytes are shared out among its
//! files by how large they are.

use std::collections::{BTreeMap, HashMap};
use std::ops::{AddAssign, Range};

use schemars::JsonSchema;
use serde::Serialize;

use crate::manifest::{FileEntry, FileIndex, FileKind, Manifest, Owner, Segment};

/// A directory with more than this share of its kind's bytes is listed by what is in it.
const LARGE: u64 = 20;

/// What the bytes of a release are spent on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Sizes {
    /// All of it.
    pub total: Amount,
    /// By whose it is: packages, distributions, project, generated; those there are.
    pub groups: Vec<Group>,
}

/// So many paths and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Amount {
    /// Files, directories and links.
    pub paths: u64,
    /// Bytes of file contents; a file with several names counts once.
    pub unpacked: u64,
    /// Bytes in the tarball, an estimate but for the whole. None for a release that was never
    /// packed: one that was made of another one on its node.
    pub packed: Option<u64>,
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.paths += other.paths;
        self.unpacked = self.unpacked.saturating_add(other.unpacked);
        self.packed = match (self.packed, other.packed) {
            (Some(one), Some(other)) => Some(one.saturating_add(other)),
            (one, other) => one.or(other),
        };
    }
}

/// Everything that is of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Group {
    /// What its parts are.
    pub kind: Kind,
    /// All of it.
    pub total: Amount,
    /// Those with bytes, the largest first.
    pub parts: Vec<Part>,
}

/// What the parts of a group are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Debian packages.
    Packages,
    /// Python distributions.
    Distributions,
    /// Directories of the project.
    Project,
    /// Directories of what maintainer scripts or farmctl made.
    Generated,
}

impl Kind {
    /// In words, as a heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Kind::Packages => "Debian packages",
            Kind::Distributions => "Python distributions",
            Kind::Project => "The project",
            Kind::Generated => "Generated",
        }
    }
}

/// A package, a distribution or a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Part {
    /// Name of the package or distribution, or path of the directory: all in it but what
    /// other parts are.
    pub name: String,
    /// Version, where the manifest has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How much it is.
    #[serde(flatten)]
    pub amount: Amount,
}

/// Adds up a release, whose segments have these entries of the index: none, if it was never
/// packed.
#[must_use]
pub fn measure(manifest: &Manifest, files: &FileIndex, segments: &[Range<usize>]) -> Sizes {
    let amounts = amounts(manifest, files, segments);
    let mut named: BTreeMap<(Kind, &str), Amount> = BTreeMap::new();
    let mut totals: BTreeMap<Kind, Amount> = BTreeMap::new();
    let mut total = Amount::default();
    for (entry, amount) in files.files.iter().zip(&amounts) {
        let kind = kind(&entry.owner);
        total += *amount;
        *totals.entry(kind).or_default() += *amount;
        if let Owner::Package(name) | Owner::Distribution(name) = &entry.owner {
            *named.entry((kind, name)).or_default() += *amount;
        }
    }
    let whole = |sum: u64, segment: &Segment| sum.saturating_add(segment.xz_size);
    total.packed = (!manifest.segments.is_empty()).then(|| manifest.segments.iter().fold(0, whole));
    let versions = versions(manifest);
    let groups = totals.into_iter().map(|(kind, total)| {
        let mut parts = match kind {
            Kind::Packages | Kind::Distributions => named
                .iter()
                .filter(|((of, _), _)| *of == kind)
                .map(|(key, amount)| {
                    let version = versions.get(key).map(|version| (*version).to_owned());
                    Part { name: key.1.to_owned(), version, amount: *amount }
                })
                .collect(),
            Kind::Project | Kind::Generated => directories(kind, total, files, &amounts),
        };
        parts.retain(|part| part.amount.unpacked > 0);
        parts.sort_by(|one, other| {
            let sizes = other.amount.unpacked.cmp(&one.amount.unpacked);
            sizes.then_with(|| one.name.cmp(&other.name))
        });
        Group { kind, total, parts }
    });
    Sizes { groups: groups.collect(), total }
}

fn kind(owner: &Owner) -> Kind {
    match owner {
        Owner::Package(_) => Kind::Packages,
        Owner::Distribution(_) => Kind::Distributions,
        Owner::Project => Kind::Project,
        Owner::Generated => Kind::Generated,
    }
}

/// The versions of packages and distributions.
fn versions(manifest: &Manifest) -> BTreeMap<(Kind, &str), &str> {
    let inputs = &manifest.inputs;
    let packages = inputs.packages.iter();
    let packages = packages.map(|one| ((Kind::Packages, one.name.as_str()), one.version.as_str()));
    let distributions = inputs.distributions.iter();
    let distributions =
        distributions.map(|one| ((Kind::Distributions, one.name.as_str()), one.version.as_str()));
    packages.chain(distributions).collect()
}

/// How much each entry is.
fn amounts(manifest: &Manifest, files: &FileIndex, segments: &[Range<usize>]) -> Vec<Amount> {
    let packed = (!manifest.segments.is_empty()).then_some(0);
    let amount = |entry: &FileEntry| Amount { paths: 1, unpacked: content(entry), packed };
    let mut amounts: Vec<Amount> = files.files.iter().map(amount).collect();
    for (segment, range) in manifest.segments.iter().zip(segments) {
        let all = &mut amounts[range.clone()];
        let whole: u128 = all.iter().map(|amount| u128::from(amount.unpacked)).sum();
        let count = all.len() as u128;
        // Shares of what is shared out so far, so that they add up to the segment.
        let (mut upto, mut given) = (0, 0);
        for amount in all {
            // Directories and links alone: by their number.
            upto += if whole > 0 { amount.unpacked.into() } else { 1 };
            let share = u128::from(segment.xz_size) * upto / if whole > 0 { whole } else { count };
            let share = u64::try_from(share).unwrap_or(u64::MAX);
            amount.packed = Some(share - given);
            given = share;
        }
    }
    amounts
}

fn content(entry: &FileEntry) -> u64 {
    match entry.kind {
        FileKind::File { size, .. } => size,
        _ => 0,
    }
}

/// A directory, with what is in it of one kind.
struct Directory<'a> {
    path: &'a str,
    /// What lies in it and in no directory of it, and itself.
    own: Amount,
    /// With all beneath it.
    all: Amount,
    inside: Vec<usize>,
}

/// The directories of a kind: large ones by those in them, small ones as a whole.
fn directories(kind: Kind, total: Amount, files: &FileIndex, amounts: &[Amount]) -> Vec<Part> {
    let empty = |path| Directory {
        path,
        own: Amount::default(),
        all: Amount::default(),
        inside: Vec::new(),
    };
    let mut found = vec![empty("")];
    let mut above = vec![0];
    let mut places = HashMap::from([("", 0)]);
    for (entry, amount) in files.files.iter().zip(amounts) {
        let (parent, _) = entry.path.rsplit_once('/').unwrap_or_default();
        let parent = places.get(parent).copied().unwrap_or_default();
        let mut place = parent;
        if entry.kind == FileKind::Directory {
            place = found.len();
            places.insert(&entry.path, place);
            found.push(empty(&entry.path));
            found[parent].inside.push(place);
            above.push(parent);
        }
        if self::kind(&entry.owner) == kind {
            found[place].own += *amount;
        }
    }
    // A directory comes before those in it.
    for place in (0..found.len()).rev() {
        let own = found[place].own;
        found[place].all += own;
        if place > 0 {
            let all = found[place].all;
            found[above[place]].all += all;
        }
    }
    let mut parts = Vec::new();
    let mut pending = vec![0];
    while let Some(place) = pending.pop() {
        let directory = &found[place];
        let large = directory.all.unpacked > total.unpacked / LARGE || place == 0;
        let amount = if large { directory.own } else { directory.all };
        if large {
            pending.extend(&directory.inside);
        }
        parts.push(Part { name: format!("/{}", directory.path), version: None, amount });
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    /// A release whose files are these: path, bytes, owner.
    fn release(files: &[(&str, u64, Owner)], segments: &[u64]) -> (Manifest, FileIndex) {
        let segments: Vec<_> = segments
            .iter()
            .map(|size| serde_json::json!({ "size": 0, "xz-size": size, "sha256": "" }))
            .collect();
        let manifest = serde_json::json!({
            "schema": 1, "farmctl": "0.1.0", "name": "shop", "version": "1.0",
            "architecture": "amd64", "epoch": 1_700_000_000,
            "profile": {
                "schema": 1, "name": "shop", "version": "1.0",
                "environment": { "suite": "bookworm" },
            },
            "inputs": {
                "releases": [],
                "packages": [
                    { "name": "perl-base", "version": "5.36.0-7", "architecture": "amd64" },
                ],
                "distributions": [{ "name": "Django", "version": "5.2" }],
            },
            "files": { "size": 0, "sha256": "" },
            "payload": { "size": 0, "sha256": "", "entries": 0, "content": 0 },
            "segments": segments, "set-id": [], "capabilities": [],
        });
        let entry = |(path, size, owner): &(&str, u64, Owner)| FileEntry {
            path: path.trim_end_matches('/').to_owned(),
            kind: match path.ends_with('/') {
                true => FileKind::Directory,
                false => FileKind::File { size: *size, sha256: String::new() },
            },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            owner: owner.clone(),
        };
        let files = FileIndex { schema: 1, files: files.iter().map(entry).collect() };
        (serde_json::from_value(manifest).expect("every key is there"), files)
    }

    fn perl() -> Owner {
        Owner::Package("perl-base".to_owned())
    }

    fn lines(sizes: &Sizes) -> String {
        let line = |name: &str, amount: Amount| {
            let packed = amount.packed.map_or("-".to_owned(), |bytes| bytes.to_string());
            format!("{name} {} {} {packed}\n", amount.paths, amount.unpacked)
        };
        let mut text = line("total", sizes.total);
        for group in &sizes.groups {
            text += &line(group.kind.title(), group.total);
            for part in &group.parts {
                let version = part.version.as_deref().map_or(String::new(), |it| format!("={it}"));
                text += &line(&format!("  {}{version}", part.name), part.amount);
            }
        }
        text
    }

    #[test]
    fn bytes_are_added_up_by_whose_they_are() {
        let django = || Owner::Distribution("Django".to_owned());
        let (manifest, files) = release(
            &[
                ("etc/", 0, Owner::Generated),
                ("etc/passwd", 100, Owner::Generated),
                ("srv/", 0, Owner::Generated),
                ("srv/app/", 0, Owner::Project),
                ("srv/app/app.py", 40, Owner::Project),
                ("srv/venv/", 0, Owner::Generated),
                ("srv/venv/django.py", 700, django()),
                ("usr/", 0, perl()),
                ("usr/perl", 3000, perl()),
                ("usr/who", 500, Owner::Package("who".to_owned())),
            ],
            &[60, 1000],
        );
        // The first segment has the first seven.
        let sizes = measure(&manifest, &files, &[0..7, 7..10]);
        insta::assert_snapshot!(lines(&sizes), @r"
        total 10 4340 1060
        Debian packages 3 3500 1000
          perl-base=5.36.0-7 2 3000 857
          who 1 500 143
        Python distributions 1 700 50
          Django=5.2 1 700 50
        The project 2 40 3
          /srv/app 2 40 3
        Generated 4 100 7
          /etc 2 100 7
        ");
    }

    #[test]
    fn shares_of_a_segment_add_up_to_it() {
        let files: Vec<(String, u64, Owner)> =
            (0..7).map(|number| (format!("{number}"), 3 + number, perl())).collect();
        let files: Vec<_> =
            files.iter().map(|(path, size, owner)| (path.as_str(), *size, owner.clone())).collect();
        let (manifest, index) = release(&files, &[101]);
        let packed = amounts(&manifest, &index, from_ref(&(0..7)));
        let packed: Vec<_> = packed.iter().filter_map(|amount| amount.packed).collect();
        assert_eq!(packed, [7, 9, 12, 15, 17, 19, 22]);
        // Of directories alone, which have no bytes, each takes the same.
        let (manifest, index) =
            release(&[("a/", 0, perl()), ("b/", 0, perl()), ("c/", 0, perl())], &[100]);
        let packed = amounts(&manifest, &index, from_ref(&(0..3)));
        let packed: Vec<_> = packed.iter().filter_map(|amount| amount.packed).collect();
        assert_eq!(packed, [33, 33, 34]);
        // The largest that are read do not overflow.
        let (manifest, index) = release(&[("a", u64::MAX, perl()), ("b", 1, perl())], &[u64::MAX]);
        let sizes = measure(&manifest, &index, from_ref(&(0..2)));
        assert_eq!(sizes.total.packed, Some(u64::MAX));
    }

    #[test]
    fn a_large_directory_is_listed_by_what_is_in_it() {
        let own = || Owner::Project;
        let (manifest, files) = release(
            &[
                ("srv/", 0, own()),
                ("srv/app/", 0, own()),
                ("srv/app/main.py", 30, own()),
                ("srv/app/static/", 0, own()),
                ("srv/app/static/css/", 0, own()),
                ("srv/app/static/css/site.css", 300, own()),
                ("srv/app/static/img/", 0, own()),
                ("srv/app/static/img/logo/", 0, own()),
                ("srv/app/static/img/logo/small.png", 600, own()),
                ("srv/app/tests/", 0, own()),
                ("srv/app/tests/data/", 0, own()),
                ("srv/app/tests/data/one", 20, own()),
                ("srv/app/tests/two", 10, own()),
            ],
            &[],
        );
        insta::assert_snapshot!(lines(&measure(&manifest, &files, &[])), @r"
        total 13 960 -
        The project 13 960 -
          /srv/app/static/img/logo 2 600 -
          /srv/app/static/css 2 300 -
          /srv/app 2 30 -
          /srv/app/tests 4 30 -
        ");
    }
}
