//! What a member may be, and in which order.
//!
//! Strictly ascending paths leave no room for duplicates, for a directory replaced by a
//! link, or for members below a link; the rest follows from it.

use anyhow::{Context as _, Result, bail, ensure};

use super::member::{Body, Member};
use crate::hash::hex;
use crate::manifest::{ENTRIES_LIMIT, FileIndex};

/// Longest path and longest link target, bytes: PATH_MAX without its final zero.
const PATH_LIMIT: usize = 4095;
/// Longest name, bytes: NAME_MAX.
const NAME_LIMIT: usize = 255;
/// Largest user or group number: all that Debian packages own or allocate lies below
/// (Debian Policy 9.2.2); numbers above are the node's own accounts.
const ID_LIMIT: u32 = 65535;
/// First time that does not fit the eleven octal digits of a ustar header.
const TIME_LIMIT: i64 = 1 << 33;
/// Where the file systems ext2 to ext4 keep what fsck finds; part of no tree.
pub(super) const LOST_AND_FOUND: &str = "lost+found";
/// Top directory of the members that are never extracted.
const OWN: &str = ".farmctl";

/// The members so far, in order.
#[derive(Default)]
pub(super) struct Rules {
    seen: Vec<Member>,
}

impl Rules {
    /// Takes the next member, or says which rule it breaks.
    pub fn admit(&mut self, member: Member) -> Result<()> {
        self.check(&member).with_context(|| format!("{:?}", member.path))?;
        self.seen.push(member);
        Ok(())
    }

    /// The member taken last.
    pub fn last(&self) -> Option<&Member> {
        self.seen.last()
    }

    /// The members so far, ascending by path.
    pub fn seen(&self) -> &[Member] {
        &self.seen
    }

    fn get(&self, path: &str) -> Option<&Member> {
        let found = self.seen.binary_search_by(|seen| seen.path.as_bytes().cmp(path.as_bytes()));
        found.ok().map(|index| &self.seen[index])
    }

    fn check(&self, member: &Member) -> Result<()> {
        ensure!(self.seen.len() < ENTRIES_LIMIT, "there are more than {ENTRIES_LIMIT} members");
        check_path(&member.path)?;
        if let Some(last) = self.seen.last() {
            ensure!(
                last.path.as_bytes() < member.path.as_bytes(),
                "paths must ascend, and this one comes after {:?}",
                last.path
            );
        }
        if let Some((parent, _)) = member.path.rsplit_once('/') {
            let parent = self.get(parent).context("its directory does not come before it")?;
            ensure!(
                parent.body == Body::Directory,
                "what it lies in is {}, not a directory",
                parent.body.name()
            );
        }
        match &member.body {
            Body::Directory | Body::File { .. } => {}
            Body::Symlink { target } => {
                check_target(target)?;
                ensure!(member.mode == 0o777, "a symbolic link with mode {:04o}", member.mode);
            }
            Body::HardLink { target } => {
                let file = self.get(target).with_context(|| {
                    format!("a hard link to {target:?}, which does not come before it")
                })?;
                ensure!(
                    matches!(file.body, Body::File { .. }),
                    "a hard link to {target:?}, which is {}",
                    file.body.name()
                );
                ensure!(
                    (file.mode, file.uid, file.gid, file.mtime)
                        == (member.mode, member.uid, member.gid, member.mtime),
                    "a hard link with another mode, owner or time than {target:?}"
                );
            }
        }
        ensure!(member.mode <= 0o7777, "mode {:o} has more than the permission bits", member.mode);
        ensure!(
            member.uid <= ID_LIMIT && member.gid <= ID_LIMIT,
            "owner {}:{} is beyond {ID_LIMIT}",
            member.uid,
            member.gid
        );
        ensure!((0..TIME_LIMIT).contains(&member.mtime), "time {} is out of range", member.mtime);
        if let Some(value) = &member.capability {
            ensure!(
                matches!(member.body, Body::File { .. }),
                "capabilities on {}",
                member.body.name()
            );
            check_capability(value)?;
        }
        Ok(())
    }
}

/// The path of a member: relative, plain names only, none of it farmctl's own.
pub(super) fn check_path(path: &str) -> Result<()> {
    ensure!(!path.is_empty(), "an empty path");
    ensure!(!path.starts_with('/'), "an absolute path");
    ensure!(path.len() <= PATH_LIMIT, "a path of {} bytes", path.len());
    for name in path.split('/') {
        match name {
            "" => bail!("a path with an empty name in it"),
            "." | ".." => bail!("a path with {name:?} in it"),
            name => {
                ensure!(name.len() <= NAME_LIMIT, "a name of {} bytes", name.len());
                ensure!(!name.contains('\0'), "a path with a zero byte in it");
            }
        }
    }
    let top = path.split('/').next().unwrap_or(path);
    ensure!(top != OWN, "the name {OWN} is reserved for farmctl");
    // Neither scanned nor compared, so nothing may hide in it.
    ensure!(top != LOST_AND_FOUND, "{LOST_AND_FOUND} is part of no tree");
    Ok(())
}

fn check_target(target: &str) -> Result<()> {
    ensure!(!target.is_empty(), "a symbolic link to nothing");
    ensure!(target.len() <= PATH_LIMIT, "a symbolic link to {} bytes", target.len());
    ensure!(!target.contains('\0'), "a symbolic link with a zero byte in it");
    Ok(())
}

/// `security.capability` of version 2: 20 bytes, no user namespace in it
/// (capabilities(7), "File capability versions"; `VFS_CAP_REVISION_2` of linux/capability.h).
pub(super) fn check_capability(value: &[u8]) -> Result<()> {
    let version = value.first_chunk().map(|magic| u32::from_le_bytes(*magic) >> 24);
    ensure!(
        value.len() == 20 && version == Some(2),
        "capabilities that are not of version 2: {}",
        hex(value)
    );
    Ok(())
}

/// Checks a whole file index. Capabilities are the manifest's business.
pub(super) fn check_index(index: &FileIndex) -> Result<()> {
    let mut rules = Rules::default();
    index.files.iter().try_for_each(|entry| {
        rules.admit(Member::of_entry(entry, None))?;
        entry.owner.validate().with_context(|| format!("{:?}", entry.path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_a_million_members_at_most() {
        let mut rules = Rules { seen: vec![Member::own("a", 0, 0); ENTRIES_LIMIT - 1] };
        rules.admit(Member::own("b", 0, 0)).expect("the millionth");
        let error = rules.admit(Member::own("c", 0, 0)).expect_err("one more");
        assert_eq!(format!("{error:#}"), "\"c\": there are more than 1000000 members");
    }

    #[test]
    fn capabilities_are_of_version_two() {
        let mut value = [0; 20];
        value[3] = 2;
        check_capability(&value).expect("version 2");
        for wrong in [&value[..19], &[&value[..], &[0; 4]].concat(), &[0; 20], b""] {
            check_capability(wrong).expect_err("not 20 bytes of version 2");
        }
    }
}
