//! What saved changes of a project's files mean for the application that runs of them.
//!
//! A project is looked at as a whole before and after, not event by event: what an editor
//! makes and takes away again while it saves is no change then, and a checkout of another
//! branch is one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::layout::START_SCRIPT;
use crate::lockfile;
use crate::manifest::{FileIndex, FileKind, Owner};
use crate::profile::{Profile, When};

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A symbolic link, and where it leads.
    Link(String),
    /// A file.
    File {
        /// SHA-256 of its contents, hex.
        sha256: String,
        /// Whether it may be executed.
        program: bool,
    },
    /// Nobody knows what: it is not what anything else is.
    Unknown,
}

/// What a project has, by paths relative to its directory.
pub type Files = BTreeMap<PathBuf, Kind>;

/// A project as it is at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its profile.
    pub profile: Profile,
    /// SHA-256 of its `farmctl.lock`, hex; empty if there is none.
    pub lock: String,
    /// SHA-256 of its requirements with the files they include, hex; empty if there are none.
    pub requirements: String,
    /// Its files, but for those that an editor makes for itself.
    pub files: Files,
    /// The SHA-256 over all of it that a bake's manifest has, hex.
    pub sha256: String,
}

impl Snapshot {
    /// Whether an application would get the same of both.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        is_same_profile(&self.profile, &other.profile)
            && self.lock == other.lock
            && self.requirements == other.requirements
            && self.files == other.files
    }
}

/// How a change is taken to what runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The application gets nothing of it.
    Nothing,
    /// Its files are put where a bake would have put them.
    Place,
    /// By another release: why, as the beginning of a sentence.
    Bake(String),
    /// Its environment has to be made anew.
    Bootstrap,
}

/// How a change of the project is taken to an application that runs of it as it was.
#[must_use]
pub fn way(before: &Snapshot, after: &Snapshot) -> Way {
    let profile = &after.profile;
    let paths = changed(&before.files, &after.files);
    let is_deb = |path: &PathBuf| profile.environment.debs.iter().any(|it| plain(it) == *path);
    if before.profile.environment != profile.environment || paths.iter().any(is_deb) {
        return Way::Bootstrap;
    }
    if !is_same_profile(&before.profile, profile) {
        return Way::Bake("the profile changed".to_owned());
    }
    if before.lock != after.lock {
        return Way::Bake(format!("{} changed", lockfile::FILE));
    }
    if before.requirements != after.requirements {
        return Way::Bake("the requirements changed".to_owned());
    }
    let is_got = paths.iter().any(|path| is_copied(profile, path));
    match reason(profile, &paths, is_got) {
        Some(reason) => Way::Bake(reason),
        None if is_got => Way::Place,
        None => Way::Nothing,
    }
}

/// Whether two profiles say the same of an application, whatever version they give it.
#[must_use]
pub fn is_same_profile(one: &Profile, other: &Profile) -> bool {
    let versioned = Profile { version: other.version.clone(), ..one.clone() };
    versioned == *other
}

/// What a bake makes of project files besides copying them, if these may be among them.
fn reason(profile: &Profile, paths: &[PathBuf], is_got: bool) -> Option<String> {
    if paths.is_empty() {
        return None;
    }
    if !profile.build.before.is_empty() {
        return Some("build.before may take it".to_owned());
    }
    if let Some(project) = installed(profile) {
        if paths.iter().any(|path| path.starts_with(plain(&project))) {
            return Some("it is installed as a distribution".to_owned());
        }
    }
    let job = profile.jobs_at(When::Bake).next().filter(|_| is_got)?;
    Some(format!("the job {} may take it", job.name))
}

/// Where the project is installed from as a distribution, if it is and that is its own file.
fn installed(profile: &Profile) -> Option<PathBuf> {
    let project = profile.python.as_ref()?.project.as_ref()?;
    (!project.starts_with("git+")).then(|| PathBuf::from(project))
}

/// Whether files can be put into a session of this profile as a bake puts them into a release,
/// whichever they are.
#[must_use]
pub fn is_placed_only(profile: &Profile) -> bool {
    profile.build.before.is_empty()
        && installed(profile).is_none()
        && profile.jobs_at(When::Bake).next().is_none()
}

/// Whether a path is one of those that are copied as they are.
#[must_use]
pub fn is_copied(profile: &Profile, path: &Path) -> bool {
    profile.copies.iter().any(|copied| path.starts_with(plain(&copied.from)))
}

/// A relative path without its `.`.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|it| matches!(it, Component::Normal(_))).collect()
}

/// Paths that are not what they were, in their order; a directory only if nothing in it says
/// so already.
#[must_use]
pub fn changed(before: &Files, after: &Files) -> Vec<PathBuf> {
    let gone = before.iter().filter(|(path, _)| !after.contains_key(*path));
    let here = after.iter().filter(|(path, kind)| before.get(*path) != Some(*kind));
    let mut paths: Vec<&PathBuf> = gone.chain(here).map(|(path, _)| path).collect();
    paths.sort();
    let says =
        |next: Option<&&PathBuf>, path: &PathBuf| next.is_some_and(|it| it.starts_with(path));
    let enough = paths.iter().enumerate().filter(|(at, path)| !says(paths.get(at + 1), path));
    enough.map(|(_, path)| (*path).clone()).collect()
}

/// Names of what editors make for themselves while a file is open: no part of a project, and
/// nothing that was saved.
#[must_use]
pub fn is_editors(name: &str) -> bool {
    let swap = [".swp", ".swo", ".swx", ".kate-swp", "___jb_tmp___", "___jb_old___"];
    let begins = [".#", ".goutputstream-"];
    // What vim tries a directory with.
    name == "4913"
        || name.ends_with('~')
        || (name.starts_with('#') && name.ends_with('#'))
        || swap.iter().any(|end| name.ends_with(end))
        || begins.iter().any(|begin| name.starts_with(begin))
}

/// A path of the project, and what is there, by where the application gets it.
pub type Placed = BTreeMap<PathBuf, (PathBuf, Kind)>;

/// Where the application has what it gets of these files as they are; but for paths that are
/// `written` otherwise, and data.
#[must_use]
pub fn placed(profile: &Profile, files: &Files, written: &[PathBuf]) -> Placed {
    let mut placed = Placed::new();
    for copied in &profile.copies {
        let from = plain(&copied.from);
        for (path, kind) in files.range(from.clone()..) {
            let Ok(rest) = path.strip_prefix(&from) else { continue };
            // Joining an empty path would add a slash.
            let to = &copied.to;
            let to = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
            placed.insert(to, (path.clone(), kind.clone()));
        }
    }
    placed.retain(|path, _| is_ours(profile, path, written));
    placed
}

/// Where a release has what it got of a project's files as they were.
#[must_use]
pub fn placed_in(profile: &Profile, index: &FileIndex, written: &[PathBuf]) -> Placed {
    let entries = index.files.iter().filter(|entry| entry.owner == Owner::Project);
    let entries = entries.map(|entry| (Path::new("/").join(&entry.path), entry));
    let is_copied = |path: &Path| profile.copies.iter().any(|copied| path.starts_with(&copied.to));
    let found = entries.filter(|(path, _)| {
        is_copied(path) && !is_byte_code(path) && is_ours(profile, path, written)
    });
    let kind = |kind: &FileKind, mode: u32| match kind {
        FileKind::Directory => Kind::Directory,
        FileKind::Symlink { target } => Kind::Link(target.clone()),
        FileKind::File { sha256, .. } => {
            Kind::File { sha256: sha256.clone(), program: mode & 0o100 != 0 }
        }
        FileKind::HardLink { .. } => Kind::Unknown,
    };
    found.map(|(path, it)| (path, (PathBuf::new(), kind(&it.kind, it.mode)))).collect()
}

fn is_ours(profile: &Profile, path: &Path, written: &[PathBuf]) -> bool {
    let is_rendered = profile.files.iter().any(|rendered| rendered.path == path);
    let is_data = profile.data.iter().any(|data| path.starts_with(&data.path));
    let is_written = written.iter().any(|it| it == path) || path == Path::new(START_SCRIPT);
    !is_rendered && !is_data && !is_written
}

/// Whether a path is byte code, or the directory it is in.
fn is_byte_code(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "pyc") || path.ends_with("__pycache__")
}

/// A path that an application is to have otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where it has it.
    pub path: PathBuf,
    /// What it has there, if it has anything.
    pub before: Option<Kind>,
    /// The path in the project, and what is there; none if it is to have it no more.
    pub after: Option<(PathBuf, Kind)>,
}

/// What separates what an application has from what it is to have, in the order of the paths.
#[must_use]
pub fn edits(before: &Placed, after: &Placed) -> Vec<Edit> {
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    let edit = |path: &PathBuf| Edit {
        path: path.clone(),
        before: before.get(path).map(|(_, kind)| kind.clone()),
        after: after.get(path).cloned(),
    };
    let is_one = |edit: &Edit| edit.before.as_ref() != edit.after.as_ref().map(|(_, kind)| kind);
    paths.into_iter().map(edit).filter(is_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"
schema = 1
name = "shop"
version = "1.0"

[environment]
suite = "bookworm"
debs = ["debs/own.deb"]

[python]
requirements = "requirements.txt"

[[copy]]
from = "app"
to = "/srv/shop/app"

[[copy]]
from = "./other/settings.py"
to = "/srv/shop/app/settings.py"

[[process]]
name = "web"
command = "gunicorn shop"

[[file]]
path = "/srv/shop/app/rendered.ini"
content = "x"

[[data]]
name = "uploads"
path = "/srv/shop/app/uploads"
"#;

    fn file(text: &str) -> Kind {
        Kind::File { sha256: text.to_owned(), program: false }
    }

    fn files(all: &[(&str, &str)]) -> Files {
        let entry = |(path, text): &(&str, &str)| (PathBuf::from(path), file(text));
        let mut files: Files = all.iter().map(entry).collect();
        for directory in ["app", "app/sub"] {
            files.insert(PathBuf::from(directory), Kind::Directory);
        }
        files
    }

    fn snapshot(profile: &str, all: &[(&str, &str)]) -> Snapshot {
        Snapshot {
            profile: crate::profile::parse(profile).expect("it is a profile"),
            lock: "aa".to_owned(),
            requirements: "bb".to_owned(),
            files: files(all),
            sha256: String::new(),
        }
    }

    const BEFORE: [(&str, &str); 4] =
        [("app/shop.py", "1"), ("app/sub/x.py", "1"), ("notes.txt", "1"), ("debs/own.deb", "1")];

    fn way_after(profile: &str, changes: &[(&str, &str)]) -> Way {
        let before = snapshot(profile, &BEFORE);
        let mut after = before.clone();
        for (path, text) in changes {
            after.files.insert(PathBuf::from(path), file(text));
        }
        way(&before, &after)
    }

    #[test]
    fn files_that_are_copied_are_placed_and_what_is_not_got_is_nothing() {
        assert_eq!(way_after(PROFILE, &[]), Way::Nothing);
        assert_eq!(way_after(PROFILE, &[("notes.txt", "2")]), Way::Nothing);
        assert_eq!(way_after(PROFILE, &[("app.py", "2")]), Way::Nothing);
        assert_eq!(way_after(PROFILE, &[("notes.txt", "2"), ("app/shop.py", "2")]), Way::Place);
        assert_eq!(way_after(PROFILE, &[("other/settings.py", "1")]), Way::Place);
        assert_eq!(way_after(PROFILE, &[("debs/own.deb", "2")]), Way::Bootstrap);
    }

    #[test]
    fn what_else_a_bake_takes_needs_one() {
        let before = snapshot(PROFILE, &BEFORE);
        let after = |change: &dyn Fn(&mut Snapshot)| {
            let mut after = before.clone();
            change(&mut after);
            way(&before, &after)
        };
        let bake = |why: &str| Way::Bake(why.to_owned());
        assert_eq!(after(&|it| it.profile.version = "2".to_owned()), Way::Nothing);
        assert_eq!(after(&|it| it.profile.description.push('x')), bake("the profile changed"));
        assert_eq!(after(&|it| it.profile.environment.packages.push("x".into())), Way::Bootstrap);
        assert_eq!(after(&|it| it.lock.push('x')), bake("farmctl.lock changed"));
        assert_eq!(after(&|it| it.requirements.push('x')), bake("the requirements changed"));
        let with = |more: &str| format!("{PROFILE}\n{more}");
        let job = with("[[job]]\nname = \"static\"\ncommand = \"x\"\nwhen = \"bake\"");
        assert_eq!(way_after(&job, &[("app/shop.py", "2")]), bake("the job static may take it"));
        assert_eq!(way_after(&job, &[("notes.txt", "2")]), Way::Nothing);
        let before = with("[build]\nbefore = [\"make\"]");
        assert_eq!(way_after(&before, &[("notes.txt", "2")]), bake("build.before may take it"));
        let project = PROFILE.replace("[python]\n", "[python]\nproject = \"lib\"\n");
        assert_eq!(
            way_after(&project, &[("lib/a.py", "2")]),
            bake("it is installed as a distribution")
        );
        assert_eq!(way_after(&project, &[("app/shop.py", "2")]), Way::Place);
        assert!(is_placed_only(&snapshot(PROFILE, &[]).profile));
        assert!(!is_placed_only(&snapshot(&project, &[]).profile));
    }

    #[test]
    fn a_change_is_told_by_its_files() {
        let before = files(&BEFORE);
        let mut after = before.clone();
        after.remove(Path::new("app/sub/x.py"));
        after.remove(Path::new("app/sub"));
        after.insert("app/new".into(), Kind::Directory);
        after.insert("notes.txt".into(), file("2"));
        let paths = changed(&before, &after);
        assert_eq!(paths, ["app/new", "app/sub/x.py", "notes.txt"].map(PathBuf::from));
    }

    #[test]
    fn everything_is_placed_where_a_bake_puts_it_and_nothing_else_is_touched() {
        let profile = snapshot(PROFILE, &[]).profile;
        let all = [
            ("app/shop.py", "1"),
            ("app/settings.py", "the one of app"),
            ("app/rendered.ini", "1"),
            ("app/uploads/x", "1"),
            ("app/hosts", "1"),
            ("other/settings.py", "the other one"),
            ("zoo", "1"),
        ];
        let written = [PathBuf::from("/srv/shop/app/hosts")];
        let one = placed(&profile, &files(&all), &written);
        let paths: Vec<&str> = one.keys().filter_map(|path| path.to_str()).collect();
        let app = "/srv/shop/app";
        let expected = ["", "/settings.py", "/shop.py", "/sub"].map(|it| format!("{app}{it}"));
        assert_eq!(paths, expected);
        let settings = &one[Path::new("/srv/shop/app/settings.py")];
        assert_eq!(settings, &(PathBuf::from("other/settings.py"), file("the other one")));
        assert_eq!(edits(&one, &one), []);
        let other = placed(&profile, &files(&[("app/shop.py", "2")]), &written);
        let found = edits(&one, &other);
        let paths: Vec<_> =
            found.iter().map(|it| (it.path.as_path(), it.after.is_some())).collect();
        let (gone, here) =
            (Path::new("/srv/shop/app/settings.py"), Path::new("/srv/shop/app/shop.py"));
        assert_eq!(paths, [(gone, false), (here, true)]);
    }

    #[test]
    fn what_editors_make_for_themselves_is_known() {
        for name in [".shop.py.swp", "shop.py~", "4913", "#shop.py#", ".#shop.py"] {
            assert!(is_editors(name), "{name}");
        }
        for name in ["shop.py", ".env", "#notes", "49130"] {
            assert!(!is_editors(name), "{name}");
        }
    }
}
