//! Changing the files of a session that runs, from those of its release to those of another
//! one of the application, and back.
//!
//! A HUP has a server read its files again, and those of a session are a copy of its
//! release's: so the files are changed there first, one rename at a time.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::error::refuse;
use crate::inside::{Inside, Owner};
use crate::manifest::{FileEntry, FileIndex, FileKind};
use crate::mount;
use crate::node::Node;
use crate::release::App;
use crate::schroot;
use crate::serve::Served;
use crate::session;
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
    mount::in_private_namespace(|| {
        let tree = storage.open(&release.volume, Access::ReadOnly)?;
        apply(&schroot::mount_of(&session.name), tree.path(), &back)?;
        tree.close()
    })?;
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
