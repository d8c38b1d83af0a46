//! A chroot as schroot is told about it: its stanza of schroot.conf(5) and its fstab(5).

use std::path::{Path, PathBuf};

use super::{NODE_KEY, TRANSACTION_KEY};
use crate::mount;
use crate::profile::Grants;
use crate::storage::Stanza;

/// A chroot as schroot is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Name to schroot.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The keys that depend on the storage.
    pub stanza: Stanza,
    /// What is mounted in it: [`release_fstab`] or [`source_fstab`].
    pub fstab: String,
    /// Who else than root may use it.
    pub grants: Grants,
    /// Whether it has a `source:` chroot that changes the original: environments only.
    pub source_clone: bool,
    /// Id of the node that made it.
    pub node: String,
    /// Id of the transaction that made it.
    pub transaction: String,
}

impl Definition {
    /// The stanza of schroot.conf(5). No `users` unless the profile asks: each of those
    /// can become root of the host.
    #[must_use]
    pub fn render(&self) -> String {
        let Self { name, node, transaction, .. } = self;
        let Grants { users, root_users, source_root_users } = &self.grants;
        let description = self.description.replace(['\n', '#'], " ");
        let mut text = format!(
            "# Written by farmctl; changes are lost.\n[{name}]\ndescription={description}\n"
        );
        for (key, value) in &self.stanza.0 {
            text.push_str(&format!("{key}={value}\n"));
        }
        // schroot knows the last key only where there is a source.
        let source_root_users: &[String] = if self.source_clone { source_root_users } else { &[] };
        for (key, users) in [
            ("users", users.as_slice()),
            ("root-users", root_users.as_slice()),
            ("source-root-users", source_root_users),
        ] {
            if !users.is_empty() {
                text.push_str(&format!("{key}={}\n", users.join(",")));
            }
        }
        // A source is changed for good: nothing of the host may get into it.
        let copyfiles = if self.source_clone { "" } else { "farmctl/copyfiles" };
        let source_clone = self.source_clone;
        text.push_str(&format!(
            "profile=farmctl\n\
             setup.fstab=farmctl/{name}.fstab\n\
             setup.copyfiles={copyfiles}\n\
             setup.nssdatabases=\n\
             source-clone={source_clone}\n\
             {NODE_KEY}={node}\n\
             {TRANSACTION_KEY}={transaction}\n"
        ));
        text
    }
}

/// What every session and source has mounted. /home and /tmp are its own.
pub(super) const FSTAB: &str = "\
/proc /proc none rw,bind 0 0
/sys /sys none ro,bind 0 0
/dev /dev none rw,bind 0 0
devpts /dev/pts devpts rw,newinstance,ptmxmode=666,mode=620,gid=5 0 0
tmpfs /dev/shm tmpfs rw,nosuid,nodev,mode=1777 0 0
tmpfs /run tmpfs rw,nosuid,nodev,mode=755 0 0
tmpfs /tmp tmpfs rw,nosuid,nodev,mode=1777 0 0
";

/// The fstab(5) of a release's sessions, with directories of the host (first) bound to
/// where the application expects them (second).
#[must_use]
pub fn release_fstab(binds: &[(PathBuf, PathBuf)]) -> String {
    let mut text = FSTAB.to_owned();
    for (host, inside) in binds {
        let (host, inside) = (escape(host), escape(inside));
        text.push_str(&format!("{host} {inside} none rw,bind,nosuid,nodev 0 0\n"));
    }
    text
}

/// The fstab(5) of an environment.
#[must_use]
pub fn source_fstab() -> String {
    FSTAB.to_owned()
}

/// The mount points of a [`release_fstab`].
pub(super) fn parse_fstab(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|field| PathBuf::from(mount::unescape(field)))
        .collect()
}

/// A path as a field of fstab(5).
fn escape(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('#', "\\043")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_were_written() {
        let bind = (PathBuf::from("/srv/a"), PathBuf::from("/srv/it's # 1\\040 \tb"));
        let points = parse_fstab(&release_fstab(std::slice::from_ref(&bind)));
        assert_eq!((points.len(), points.last()), (8, Some(&bind.1)));
    }

    fn hello() -> Definition {
        Definition {
            name: "farmctl-hello-1.0".to_owned(),
            description: "farmctl release hello 1.0".to_owned(),
            stanza: Stanza(vec![
                ("type", "directory".to_owned()),
                ("directory", "/var/lib/farmctl/volumes/fv-hello-1.0/root".to_owned()),
                ("union-type", "overlay".to_owned()),
            ]),
            fstab: String::new(),
            grants: Grants::default(),
            source_clone: false,
            node: "0badcafe".to_owned(),
            transaction: "12345678".to_owned(),
        }
    }

    #[test]
    fn a_release_gets_resolver_and_hosts_in_its_sessions_and_no_source() {
        insta::assert_snapshot!(hello().render(), @r"
        # Written by farmctl; changes are lost.
        [farmctl-hello-1.0]
        description=farmctl release hello 1.0
        type=directory
        directory=/var/lib/farmctl/volumes/fv-hello-1.0/root
        union-type=overlay
        profile=farmctl
        setup.fstab=farmctl/farmctl-hello-1.0.fstab
        setup.copyfiles=farmctl/copyfiles
        setup.nssdatabases=
        source-clone=false
        farmctl.node=0badcafe
        farmctl.transaction=12345678
        ");
    }

    #[test]
    fn nothing_of_the_host_is_copied_into_an_environment() {
        let environment = Definition { source_clone: true, ..hello() };
        insta::assert_snapshot!(environment.render(), @r"
        # Written by farmctl; changes are lost.
        [farmctl-hello-1.0]
        description=farmctl release hello 1.0
        type=directory
        directory=/var/lib/farmctl/volumes/fv-hello-1.0/root
        union-type=overlay
        profile=farmctl
        setup.fstab=farmctl/farmctl-hello-1.0.fstab
        setup.copyfiles=
        setup.nssdatabases=
        source-clone=true
        farmctl.node=0badcafe
        farmctl.transaction=12345678
        ");
    }

    #[test]
    fn data_directories_are_bound_without_set_id_programs() {
        let binds = [(PathBuf::from("/srv/a b/data"), PathBuf::from("/srv/hello/uploads"))];
        insta::assert_snapshot!(release_fstab(&binds), @r"
        /proc /proc none rw,bind 0 0
        /sys /sys none ro,bind 0 0
        /dev /dev none rw,bind 0 0
        devpts /dev/pts devpts rw,newinstance,ptmxmode=666,mode=620,gid=5 0 0
        tmpfs /dev/shm tmpfs rw,nosuid,nodev,mode=1777 0 0
        tmpfs /run tmpfs rw,nosuid,nodev,mode=755 0 0
        tmpfs /tmp tmpfs rw,nosuid,nodev,mode=1777 0 0
        /srv/a\040b/data /srv/hello/uploads none rw,bind,nosuid,nodev 0 0
        ");
    }
}
