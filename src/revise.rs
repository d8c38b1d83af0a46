//! Changing the files of a session that runs, from those of its release to those of another
//! one of the application, and back.
//!
//! A HUP has a server read its files again, and those of a session are a copy of its
//! release's: so the files are changed there first, one rename at a time.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result};

use crate::chroot;
use crate::edit::{Edit, Kind};
use crate::error::refuse;
use crate::front;
use crate::hash;
use crate::inside::{Inside, Owner};
use crate::manifest::{FileEntry, FileIndex, FileKind};
use crate::mount;
use crate::node::Node;
use crate::profile::Profile;
use crate::python;
use crate::release::App;
use crate::schroot;
use crate::serve::Served;
use crate::session;
use crate::stage;
use crate::storage::{self, Access};
use crate::supervise;
use crate::tarball::Difference;

/// A path that two releases do not have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change<'a> {
    /// As it was, if it was there.
    before: Option<&'a FileEntry>,
    /// As it is to be, if it is to be there.
    after: Option<&'a FileEntry>,
}

impl Change<'_> {
    /// The path, without a leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        self.after.or(self.before).map_or("", |entry| &entry.path)
    }

    /// Whether what was there has to go before anything else can be there.
    fn clears(&self) -> bool {
        let directory = |entry: &FileEntry| entry.kind == FileKind::Directory;
        match (self.before, self.after) {
            (Some(_), None) => true,
            (Some(before), Some(after)) => directory(before) != directory(after),
            (None, _) => false,
        }
    }
}

/// What separates two releases, ascending by path, without what beginning a session of one
/// writes itself.
#[must_use]
pub fn changes<'a>(
    before: &'a FileIndex,
    after: &'a FileIndex,
    written: &[PathBuf],
) -> Vec<Change<'a>> {
    // Whose a path is makes no difference to it, and when a name came or went in a directory is
    // no more than that.
    let same = |before: &FileEntry, after: &FileEntry| {
        let mut other = FileEntry { owner: before.owner.clone(), ..after.clone() };
        if other.kind == FileKind::Directory {
            other.mtime = before.mtime;
        }
        *before == other
    };
    let pairs = before.paired(after).into_iter();
    pairs
        .filter(|(before, after)| !before.zip(*after).is_some_and(|(one, other)| same(one, other)))
        .map(|(before, after)| Change { before, after })
        .filter(|change| !written.contains(&Path::new("/").join(change.path())))
        .collect()
}

/// Makes the changes in a tree, with the contents another one has.
///
/// # Errors
/// When something cannot be changed: the rest may be.
pub fn apply(tree: &Path, contents: &Path, changes: &[Change<'_>]) -> Result<()> {
    let (inside, contents) = (Inside::open(tree)?, Inside::open(contents)?);
    let rooted = |path: &str| Path::new("/").join(path);
    for change in changes.iter().rev().filter(|change| change.clears()) {
        inside.remove(&rooted(change.path()))?;
    }
    for entry in changes.iter().filter_map(|change| change.after) {
        let path = rooted(&entry.path);
        let owner = Owner { uid: entry.uid, gid: entry.gid };
        match &entry.kind {
            FileKind::Directory => inside.make_directory(&path, entry.mode, owner)?,
            FileKind::Symlink { target } => inside.link(&path, target, owner)?,
            // Another name of a file becomes a file of its own; installers make none.
            FileKind::File { .. } | FileKind::HardLink { .. } => {
                let bytes = contents.read_bytes(&path)?;
                let bytes = bytes.with_context(|| format!("no {} to take", path.display()))?;
                inside.publish(&path, &bytes, entry.mode, owner)?;
            }
        }
        inside.set_time(&path, entry.mtime)?;
    }
    inside.sync()
}

/// Puts files of a project where a tree of the profile has them, as a bake would: owned by
/// root, 0644 or 0755, with the time `epoch` and their byte code. Answers the paths of those
/// that are other files now than the edits have: saved again meanwhile.
///
/// # Errors
/// When one cannot be read or put there: the rest may be.
pub fn place(
    tree: &Path,
    project: &Path,
    edits: &[Edit],
    profile: &Profile,
    epoch: i64,
) -> Result<Vec<PathBuf>> {
    let inside = Inside::open(tree)?;
    // From the last on: what is in a directory goes before it, and what is in its place now
    // before anything else can be.
    let edited: BTreeSet<&Path> = edits.iter().map(|edit| edit.path.as_path()).collect();
    for edit in edits.iter().rev() {
        // Below what is a link now, or a file, there is nothing of the tree's to take away:
        // behind a link is what something else has.
        let mut above = edit.path.ancestors().skip(1).filter(|above| edited.contains(above));
        if !above.try_fold(true, |all, above| Ok::<_, Error>(all && inside.is_directory(above)?))? {
            continue;
        }
        let was_folder = match &edit.before {
            Some(Kind::Unknown) | None => inside.is_directory(&edit.path)?,
            Some(kind) => *kind == Kind::Directory,
        };
        let stays =
            edit.after.as_ref().is_some_and(|(_, it)| (*it == Kind::Directory) == was_folder);
        forget_byte_code(&inside, &edit.path)?;
        if !stays {
            inside.remove(&edit.path)?;
        }
    }
    let (mut sources, mut others) = (Vec::new(), Vec::new());
    for Edit { path, after, .. } in edits {
        let Some((from, kind)) = after else { continue };
        match kind {
            Kind::Directory => inside.make_directory(path, 0o755, Owner::ROOT)?,
            Kind::Link(target) => inside.link(path, target, Owner::ROOT)?,
            Kind::File { program, sha256 } => {
                let from = project.join(from);
                let bytes =
                    fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
                let mode = if *program { 0o755 } else { 0o644 };
                inside.publish(path, &bytes, mode, Owner::ROOT)?;
                sources.extend(is_source(path).then(|| path.clone()));
                others.extend((hash::sha256(&bytes) != *sha256).then(|| path.clone()));
            }
            Kind::Unknown => continue,
        }
        inside.set_time(path, epoch)?;
    }
    compile(&inside, tree, &sources, profile, epoch)?;
    Ok(others)
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "py")
}

/// Compiles byte code of these sources.
fn compile(
    inside: &Inside,
    tree: &Path,
    sources: &[PathBuf],
    profile: &Profile,
    epoch: i64,
) -> Result<()> {
    let has_python = profile.python.is_some() || inside.exists(Path::new("/usr/bin/python3"))?;
    if sources.is_empty() || !has_python {
        return Ok(());
    }
    let call = chroot::invocation(tree, epoch, stage::interpreter(profile));
    python::compiling(call, sources).run()?;
    for source in sources {
        for compiled in byte_code(inside, source)? {
            inside.set_time(&compiled, epoch)?;
        }
    }
    Ok(())
}

/// Byte code of a source (PEP 3147).
fn byte_code(inside: &Inside, source: &Path) -> Result<Vec<PathBuf>> {
    let (Some(parent), Some(stem)) = (source.parent(), source.file_stem()) else {
        return Ok(Vec::new());
    };
    let cache = parent.join("__pycache__");
    let begin = format!("{}.", stem.to_string_lossy());
    let is_its = |name: &String| {
        let rest = name.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(".pyc"));
        // Of `shop.py`, and not of `shop.cart.py`.
        rest.is_some_and(|tag| {
            !tag.trim_end_matches(".opt-1").trim_end_matches(".opt-2").contains('.')
        })
    };
    let names = inside.names(&cache)?.into_iter();
    Ok(names.filter(is_its).map(|name| cache.join(name)).collect())
}

/// Removes the byte code of a source that is another one now, or none.
fn forget_byte_code(inside: &Inside, source: &Path) -> Result<()> {
    if !is_source(source) {
        return Ok(());
    }
    for compiled in byte_code(inside, source)? {
        inside.remove(&compiled)?;
    }
    // With the last one its directory, which has to be empty for that.
    inside.remove(&source.with_file_name("__pycache__"))
}

/// Gives everything in a tree the time its index says: what was unpacked has it.
///
/// # Errors
/// When something is not there.
pub fn set_times(tree: &Path, index: &FileIndex) -> Result<()> {
    let inside = Inside::open(tree)?;
    let mut files = index.files.iter();
    files.try_for_each(|entry| inside.set_time(&Path::new("/").join(&entry.path), entry.mtime))
}

/// Has the session that serves an application have the files of its release again, and not
/// those of `to`, and its processes run what is there.
///
/// # Errors
/// When something cannot be changed back.
pub fn undo(node: &Node, app: &App, to: &str) -> Result<()> {
    let layout = node.layout();
    let Some(session) = &app.session else { return Ok(()) };
    let from = &session.version;
    let Some(release) = app.release(from) else { return Ok(()) };
    let (before, after) = (node.index(&app.name, from)?, node.index(&app.name, to)?);
    // Without the index of the other one nothing has been changed.
    let (Some(before), Some(after)) = (before, after) else { return Ok(()) };
    let Some(manifest) = node.manifest(&app.name, from)? else { return Ok(()) };
    let storage = storage::named(&release.storage, &node.site())?;
    if !schroot::is_live(&session.name)? {
        storage.activate_copy(&session.name)?;
        schroot::recover(&session.name)?;
    }
    let back = changes(&after, &before, &session::written_paths(&manifest));
    let mount = schroot::mount_of(&session.name);
    mount::in_private_namespace(|| {
        let tree = storage.open(&release.volume, Access::ReadOnly)?;
        apply(&mount, tree.path(), &back)?;
        tree.close()
    })?;
    front::export_session_again(&manifest, &session.name, &mount, layout)?;
    let supervisor = supervise::detect(layout);
    let served =
        Served { app, session, manifest: &manifest, node, supervisor: supervisor.as_ref() };
    served.make_way()?;
    served.take_back()
}

/// Refuses a session whose own changes the new ones would meet.
///
/// # Errors
/// Then, naming the first.
pub fn check(app: &str, differences: &[Difference], changes: &[Change<'_>]) -> Result<()> {
    let meets = |path: &&str| {
        changes.binary_search_by(|it| it.path().as_bytes().cmp(path.as_bytes())).is_ok()
    };
    let met = differences.iter().map(Difference::path).find(meets);
    match met {
        None => Ok(()),
        Some(path) => refuse(
            format_args!("/{path} was changed in the session since it began"),
            format!(
                "farmctl verify {app} --session shows all that was; farmctl stop {app} and farmctl \
                 start {app} begin a new one"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::manifest::Owner as Whose;
    use crate::tarball;

    /// Seconds since 1970: no file in a test is older.
    const EPOCH: i64 = 1_700_000_000;

    /// A tree in which every name is a path, and what is there a text, a link or a directory.
    fn tree(paths: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in paths {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("there is room");
            match text.split_once(' ') {
                Some(("link", target)) => symlink(target, &path).expect("there is room"),
                Some(("mode", mode)) => {
                    fs::write(&path, "").expect("there is room");
                    let mode = u32::from_str_radix(mode, 8).expect("it is octal");
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
                }
                _ => fs::write(&path, text).expect("there is room"),
            }
        }
        root
    }

    fn index(tree: &Path) -> FileIndex {
        let scanned = tarball::scan(tree, EPOCH, &|_| Whose::Generated, &|_, _| Ok(()));
        scanned.expect("it can be read").index
    }

    #[test]
    fn a_tree_becomes_the_other_one_and_the_first_again() {
        let before = [
            ("same", "same"),
            ("changed", "one"),
            ("mode", "mode 644"),
            ("link", "link same"),
            ("gone/below/file", "x"),
            ("kind", "a file"),
            ("other-kind/file", "in a directory"),
        ];
        let after = [
            ("same", "same"),
            ("changed", "two"),
            ("mode", "mode 755"),
            ("link", "link changed"),
            ("new/below/file", "x"),
            ("kind/file", "in a directory"),
            ("other-kind", "a file"),
        ];
        let (one, other) = (tree(&before), tree(&after));
        let (old, new) = (index(one.path()), index(other.path()));
        let subject = tree(&before);
        let forth = changes(&old, &new, &[]);
        let paths: Vec<&str> = forth.iter().map(Change::path).collect();
        assert_eq!(
            paths,
            [
                "changed",
                "gone",
                "gone/below",
                "gone/below/file",
                "kind",
                "kind/file",
                "link",
                "mode",
                "new",
                "new/below",
                "new/below/file",
                "other-kind",
                "other-kind/file"
            ]
        );
        apply(subject.path(), other.path(), &forth).expect("it can be changed");
        assert_eq!(changes(&index(subject.path()), &new, &[]), []);
        apply(subject.path(), one.path(), &changes(&new, &old, &[])).expect("it can be changed");
        assert_eq!(changes(&index(subject.path()), &old, &[]), []);
    }

    #[test]
    fn files_of_a_project_are_put_where_a_bake_puts_them() {
        let project =
            tree(&[("app/new.py", "x = 1\n"), ("app/run", "mode 755"), ("app/kind", "x")]);
        let before = [
            ("srv/gone/gone.py", "x"),
            ("srv/gone/__pycache__/gone.cpython-311.pyc", "x"),
            ("srv/stays.py", "x"),
            ("srv/__pycache__/stays.cpython-311.pyc", "x"),
            ("srv/__pycache__/new.cpython-311.pyc", "x"),
            ("srv/__pycache__/new.other.cpython-311.pyc", "x"),
            ("srv/kind/file", "x"),
            ("srv/tool", "x"),
            ("srv/other/kept.py", "x"),
            ("srv/other/__pycache__/kept.cpython-311.pyc", "x"),
        ];
        let subject = tree(&before);
        symlink("other", subject.path().join("srv/was")).expect("there is room");
        let here = |path: &str, from: &str, kind: Kind| Edit {
            path: path.into(),
            before: Some(Kind::Unknown),
            after: Some((from.into(), kind)),
        };
        let gone =
            |path: &str| Edit { path: path.into(), before: Some(Kind::Unknown), after: None };
        let file = |program| Kind::File { sha256: hash::sha256(b"x = 1\n"), program };
        let edits = [
            gone("/srv/gone"),
            gone("/srv/gone/gone.py"),
            here("/srv/kind", "app/kind", file(false)),
            gone("/srv/kind/file"),
            here("/srv/link", "app/link", Kind::Link("new.py".to_owned())),
            here("/srv/new.py", "app/new.py", file(false)),
            here("/srv/run", "app/run", file(true)),
            here("/srv/sub", "app/sub", Kind::Directory),
            here("/srv/tool", "app/tool", Kind::Directory),
            here("/srv/tool/new.py", "app/new.py", file(false)),
            here("/srv/was", "app/was", Kind::Directory),
            gone("/srv/was/kept.py"),
        ];
        let text = "schema = 1\nname = \"x\"\nversion = \"1\"\n[environment]\nsuite = \"bookworm\"\n\
                    [[process]]\nname = \"web\"\ncommand = \"x\"\n";
        let profile = crate::profile::parse(text).expect("it is a profile");
        let others = place(subject.path(), project.path(), &edits, &profile, EPOCH);
        let others = others.expect("it can be changed");
        assert_eq!(others, ["/srv/kind", "/srv/run"].map(PathBuf::from), "not as they were seen");
        let found = index(subject.path());
        let named = |entry: &FileEntry| format!("{} {:o} {}", entry.path, entry.mode, entry.mtime);
        let files: Vec<String> =
            found.files.iter().filter(|it| it.kind != FileKind::Directory).map(named).collect();
        let expected = |path: &str, mode: u32| format!("srv/{path} {mode:o} {EPOCH}");
        assert_eq!(
            files,
            [
                expected("__pycache__/new.other.cpython-311.pyc", 0o644),
                expected("__pycache__/stays.cpython-311.pyc", 0o644),
                expected("kind", 0o644),
                expected("link", 0o777),
                expected("new.py", 0o644),
                expected("other/__pycache__/kept.cpython-311.pyc", 0o644),
                expected("other/kept.py", 0o644),
                expected("run", 0o755),
                expected("stays.py", 0o644),
                expected("tool/new.py", 0o644),
            ]
        );
        assert!(
            subject.path().join("srv/sub").is_dir() && !subject.path().join("srv/gone").exists()
        );
    }

    #[test]
    fn what_a_session_wrote_itself_is_no_change_and_what_it_changed_is_not_lost() {
        let (one, other) = (tree(&[("a", "1"), ("b", "1")]), tree(&[("a", "2"), ("b", "2")]));
        let (old, new) = (index(one.path()), index(other.path()));
        let found = changes(&old, &new, &[PathBuf::from("/a")]);
        assert!(found.iter().map(Change::path).eq(["b"]));
        let differs = |path: &str| Difference::Unexpected { path: path.to_owned() };
        check("shop", &[differs("a")], &found).expect("it is none of the changes");
        let error = check("shop", &[differs("a"), differs("b")], &found).expect_err("it is one");
        assert_eq!(error.to_string(), "/b was changed in the session since it began");
    }
}
