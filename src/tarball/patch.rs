//! Making a release's tree out of a fork of another release's.
//!
//! What both have stays as it is, what is new is unpacked from the segments it lies in, and at
//! the end the whole tree is compared with the file index. Nothing in it is taken on trust:
//! what a file holds was verified as it was written, is read now, or was verified when the
//! other release was installed and the storage knows that nobody changed it since.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::Progress;
use super::archive::Archive;
use super::compare::{compare, compare_unread};
use super::extract::finish;
use super::partial::Partial;
use super::walk::Tree;
use crate::hash::from_hex;
use crate::manifest::{Capability, FileEntry, FileIndex, FileKind};

/// What is known of a copy of another release's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Each file was verified when it was written, and nothing was changed since.
    Verified,
    /// Nothing.
    Unknown,
}

/// What is to be done to the tree of one release for it to be that of another.
#[derive(Debug)]
pub struct Patch<'a> {
    archive: &'a Archive,
    /// What goes, the last path first.
    removed: Vec<&'a FileEntry>,
    /// Paths that are made anew.
    made: HashSet<&'a str>,
    /// Where files lie that are made anew.
    lacking: Partial<'a>,
}

impl Archive {
    /// What separates the tree of another release, with this file index and these
    /// capabilities, from the one in this tarball.
    #[must_use]
    pub fn patch<'a>(&'a self, before: &'a FileIndex, capabilities: &[Capability]) -> Patch<'a> {
        let had: HashMap<&str, Option<Vec<u8>>> =
            capabilities.iter().map(|one| (one.path.as_str(), from_hex(&one.value))).collect();
        let mut removed = Vec::new();
        let mut made = HashSet::new();
        for (old, new) in before.paired(self.files()) {
            if let (Some(old), Some(new)) = (old, new) {
                let has = self.opening.capabilities.get(&new.path);
                let had = had.get(new.path.as_str()).and_then(Option::as_ref);
                // A file that is made anew takes its other names along; they come later.
                let is_of_new = matches!(&new.kind, FileKind::HardLink { target } if made.contains(target.as_str()));
                if is_same(old, new) && has == had && !is_of_new {
                    continue;
                }
            }
            removed.extend(old);
            made.extend(new.map(|new| new.path.as_str()));
        }
        removed.reverse();
        let lacking = Partial::new(self, |entry| made.contains(entry.path.as_str()));
        Patch { archive: self, lacking, removed, made }
    }
}

/// Whether a path is the same in two releases. When a name came or went in a directory, and
/// what it may be used for, is set on all of them at the end.
fn is_same(old: &FileEntry, new: &FileEntry) -> bool {
    let attributes = |entry: &FileEntry| (entry.mode, entry.uid, entry.gid, entry.mtime);
    old.kind == new.kind && (old.kind == FileKind::Directory || attributes(old) == attributes(new))
}

impl Patch<'_> {
    /// Bytes of tar that are to be decoded.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.lacking.size()
    }

    /// Changes a copy of the other release's tree and compares all of it with the file index;
    /// what files of a verified copy hold, and their capabilities, are not read again. Ends with
    /// syncfs(2). Wants root. Progress counts bytes of what is being done.
    ///
    /// After an error the tree is neither: the caller throws it away.
    ///
    /// # Errors
    /// As [`Archive::extract`], and when the tree is not what the other release's file index
    /// says.
    pub fn apply(
        &self,
        target: &Path,
        copied: Copied,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        let archive = self.archive;
        let apply = || {
            let tree = Tree::open(target)?;
            self.remove(&tree)?;
            self.make(&tree, threads, progress)?;
            let entries = archive.files().files.iter();
            finish(&tree, entries.map(|entry| archive.member(entry)))?;
            let capabilities = &archive.manifest().capabilities;
            let differences = match copied {
                Copied::Unknown => compare(target, archive.files(), capabilities, progress),
                Copied::Verified => {
                    compare_unread(target, archive.files(), capabilities, &self.made)
                }
            }?;
            if let Some(first) = differences.first() {
                bail!("{first}");
            }
            Ok(())
        };
        apply().with_context(|| format!("unpacking {}", archive.name))
    }

    fn remove(&self, tree: &Tree) -> Result<()> {
        self.removed.iter().try_for_each(|entry| {
            let (parent, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
            let flags = match entry.kind {
                FileKind::Directory => UnlinkatFlags::RemoveDir,
                _ => UnlinkatFlags::NoRemoveDir,
            };
            let parent = tree.open_directory(parent.as_bytes())?;
            unlinkat(parent.as_fd(), name, flags)
                .with_context(|| format!("removing {}", entry.path))
        })
    }

    fn make(&self, tree: &Tree, threads: usize, progress: Progress<'_>) -> Result<()> {
        let made = |entry: &FileEntry| self.made.contains(entry.path.as_str());
        let is_directory = |entry: &FileEntry| entry.kind == FileKind::Directory;
        let is_link = |entry: &FileEntry| {
            matches!(entry.kind, FileKind::Symlink { .. } | FileKind::HardLink { .. })
        };
        self.lacking.make(tree, |entry| is_directory(entry) && made(entry))?;
        self.lacking.write(tree, made, threads, progress)?;
        self.lacking.make(tree, |entry| is_link(entry) && made(entry))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
    use std::path::PathBuf;

    use super::*;
    use crate::tarball::fixture::{NET_RAW, describe, noise, packed, quiet, run, sample};

    /// Two releases, packed.
    struct Pair {
        directory: tempfile::TempDir,
        before: Archive,
        after: Archive,
    }

    impl Pair {
        /// The second one is the sample, changed like that.
        fn new(change: impl FnOnce(&Path)) -> Self {
            let tree = sample();
            let directory = tempfile::tempdir().expect("a temporary directory");
            let pack = |name: &str| {
                let path = directory.path().join(name);
                packed(tree.path(), &path, 2);
                Archive::open(&path).expect("as packed")
            };
            let before = pack("before.tar.xz");
            change(tree.path());
            let after = pack("after.tar.xz");
            Self { directory, before, after }
        }

        fn empty(&self, name: &str) -> PathBuf {
            let target = self.directory.path().join(name);
            fs::create_dir(&target).expect("a directory");
            target
        }

        fn extracted(&self, archive: &Archive, name: &str) -> PathBuf {
            let target = self.empty(name);
            archive.extract(&target, 2, &quiet).expect("as packed");
            target
        }

        fn patch(&self) -> Patch<'_> {
            let capabilities = &self.before.manifest().capabilities;
            self.after.patch(self.before.files(), capabilities)
        }

        /// Patches the first tree, and makes a new one with its help: the second one must
        /// come out. Answers bytes decoded for a patch.
        #[track_caller]
        fn assert_patched(&self) -> u64 {
            let whole = self.extracted(&self.after, "whole");
            let patch = self.patch();
            for (name, copied) in [("read", Copied::Unknown), ("patched", Copied::Verified)] {
                let target = self.extracted(&self.before, name);
                patch.apply(&target, copied, 2, &quiet).expect("it is a copy");
                assert_eq!(describe(&target), describe(&whole));
            }
            let (source, target) = (self.extracted(&self.before, "before"), self.empty("reused"));
            let reuse = self.after.reuse(self.before.files());
            reuse.extract(&source, &target, 2, &quiet).expect("it is as it was");
            assert_eq!(describe(&target), describe(&whole));
            assert!(reuse.size() <= patch.size());
            patch.size()
        }
    }

    #[test]
    fn what_is_the_same_is_not_decoded() {
        assert_eq!(Pair::new(|_| ()).assert_patched(), 0);
        let line = Pair::new(|tree| {
            fs::write(tree.join("etc/shadow"), "root:*:1:::::\n").expect("a file");
        });
        let decoded = line.assert_patched();
        assert!((1..line.after.manifest().payload.size / 3).contains(&decoded), "{decoded}");
    }

    #[test]
    fn every_change_a_release_may_bring_is_made() {
        let pair = Pair::new(|tree| {
            let at = |path: &str| tree.join(path);
            let mode = |path: &str, mode| {
                fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).expect("a mode");
            };
            // A file becomes a directory, a directory a file, a link another kind of thing.
            fs::remove_file(at("usr/lib/block")).expect("a file");
            fs::create_dir(at("usr/lib/block")).expect("a directory");
            fs::write(at("usr/lib/block/new"), noise(9, 9_000)).expect("a file");
            fs::remove_dir_all(at("var/mail")).expect("a directory");
            fs::write(at("var/mail"), "x").expect("a file");
            fs::remove_file(at("etc/dangling")).expect("a link");
            fs::write(at("etc/dangling"), "x").expect("a file");
            fs::remove_file(at("bin")).expect("a link");
            symlink("usr/sbin", at("bin")).expect("a link");
            // Attributes alone.
            mode("usr/lib/empty", 0o644);
            mode("tmp", 0o755);
            chown(at("usr/share"), Some(0), Some(7)).expect("root");
            xattr::set(at("usr/bin/su"), "security.capability", NET_RAW).expect("root");
            xattr::remove(at("usr/bin/ping"), "security.capability").expect("root");
            // Both names of one file; a third one comes, and one of another file's.
            fs::write(at("usr/bin/perl"), noise(7, 4_000)).expect("a file");
            fs::hard_link(at("usr/bin/perl"), at("usr/bin/perl5")).expect("a link");
            fs::hard_link(at("etc/passwd"), at("etc/passwd-")).expect("a link");
            // A whole tree goes and another comes.
            fs::remove_dir_all(at(&format!("usr/share/{}", "d".repeat(99)))).expect("a directory");
            fs::create_dir_all(at("srv/shop/deep/deeper")).expect("a directory");
            fs::write(at("srv/shop/deep/deeper/x"), "x").expect("a file");
        });
        pair.assert_patched();
        let inode = |path: &str| {
            let path = pair.directory.path().join("patched").join(path);
            fs::metadata(path).expect("it was patched").ino()
        };
        assert_eq!(inode("usr/bin/perl"), inode("usr/bin/perl5.36.0"));
        assert_eq!(inode("usr/bin/perl"), inode("usr/bin/perl5"));
        assert_eq!(inode("etc/passwd"), inode("etc/passwd-"));
    }

    #[test]
    fn a_name_that_is_not_a_files_other_one_any_more_is_parted_from_it() {
        let pair = Pair::new(|tree| {
            fs::remove_file(tree.join("usr/bin/perl5.36.0")).expect("a link");
            fs::copy(tree.join("usr/bin/perl"), tree.join("usr/bin/perl5.36.0")).expect("a file");
        });
        pair.assert_patched();
    }

    #[test]
    fn a_copy_that_is_not_as_it_was_is_refused() {
        let pair = Pair::new(|tree| fs::write(tree.join("etc/new"), "x").expect("a file"));
        let whole = pair.extracted(&pair.after, "whole");
        for (number, harm) in [
            // Of what nobody changed, content is not read; all else is looked at.
            "printf y | dd conv=notrunc status=none of=usr/lib/large",
            "chmod 755 usr/lib/large",
            "rm usr/lib/empty",
            "touch etc/more",
            "ln -sfn /tmp etc/dangling",
            "rm usr/bin/ping",
            "rm -r etc && ln -s usr etc",
        ]
        .into_iter()
        .enumerate()
        {
            let target = pair.extracted(&pair.before, &number.to_string());
            run("sh", &["-ec", &format!("cd \"$0\"; {harm}")], &target);
            // What is made anew is right whatever is wrong with the other one, or refused.
            let reused = pair.empty(&format!("reused-{number}"));
            let reuse = pair.after.reuse(pair.before.files());
            match reuse.extract(&target, &reused, 2, &quiet) {
                Ok(()) => assert!(number > 0 && describe(&reused) == describe(&whole), "{harm}"),
                Err(error) => assert!(number != 1, "{harm}: {error:#}"),
            }
            let copied = if number == 0 { Copied::Unknown } else { Copied::Verified };
            let error = pair.patch().apply(&target, copied, 2, &quiet).expect_err(harm);
            assert!(format!("{error:#}").starts_with("unpacking after.tar.xz: "), "{error:#}");
        }
    }
}
