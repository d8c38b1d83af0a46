//! Volumes as logical volumes: classic, with snapshots that set room aside, or thin.
//!
//! A volume or copy is ours if it carries the tag `farmctl.node=ID` of this node; it is
//! tagged by the command that makes it, and nothing else is ever changed or removed.
//! Volumes are found by name and tag in every group, so they stay ours when a setting
//! changes. Sealed is LVM's own read-only permission: snapshots of a sealed volume can be
//! written all the same.
//!
//! LVM's programs read all disks each time, so an [`Lvm`] asks once and remembers the answer
//! until it changes something itself. It lives as long as one operation; what others change
//! meanwhile LVM itself refuses, and what schroot or udev may have done is asked for anew.

mod claim;
mod report;
mod session;
mod superblock;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::mount::MsFlags;

use self::report::{Group, LVS, LogicalVolume, Said};
pub use self::report::{groups, volumes};
use super::{
    Access, Copies, Growth, Mark, SessionCopy, Stanza, Storage, Tree, UNNAMED, Usage, Volume,
};
use crate::error::refuse;
use crate::file;
use crate::mount::{self, Mount};
use crate::run::{Invocation, Tool};
use crate::settings::{FileSystem, Site};
use crate::size::Size;

const LVCREATE: Tool = Tool { name: "lvcreate", package: "lvm2" };
const LVREMOVE: Tool = Tool { name: "lvremove", package: "lvm2" };
const LVRENAME: Tool = Tool { name: "lvrename", package: "lvm2" };
const LVCHANGE: Tool = Tool { name: "lvchange", package: "lvm2" };
const MKFS_XFS: Tool = Tool { name: "mkfs.xfs", package: "xfsprogs" };
const MKFS_EXT4: Tool = Tool { name: "mkfs.ext4", package: "e2fsprogs" };
const XFS_COPY: Tool = Tool { name: "xfs_copy", package: "xfsprogs" };
const E2IMAGE: Tool = Tool { name: "e2image", package: "e2fsprogs" };
/// LVM runs it whenever it activates a thin pool.
const THIN_CHECK: Tool = Tool { name: "thin_check", package: "thin-provisioning-tools" };

/// Tag of everything of this node: `farmctl.node=ID`.
pub(super) const NODE_TAG: &str = "farmctl.node";
/// Tag of a volume: the transaction that made it.
const TRANSACTION_TAG: &str = "farmctl.tx";
/// Tag of a volume: its file system.
const FILE_SYSTEM_TAG: &str = "farmctl.fs";
/// Tag of a session's copy.
const SESSION_TAG: &str = "farmctl.session";

/// How snapshots are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Room is set aside for each; what does not fit breaks it.
    Classic,
    /// All share a pool.
    Thin,
}

/// The `lvm` and `lvm-thin` backends.
#[derive(Debug)]
pub struct Lvm {
    kind: Kind,
    node: Option<String>,
    group: Option<String>,
    pool: Option<String>,
    file_system: FileSystem,
    trees: PathBuf,
    said: Said,
}

/// A call of one of LVM's tools.
fn call(tool: &Tool) -> Invocation {
    let call = Invocation::of(tool).env("LVM_SUPPRESS_FD_WARNINGS", "1");
    // Without a udevd, nobody else would make the device nodes it waits for.
    if Path::new("/run/udev/control").exists() { call } else { call.env("DM_DISABLE_UDEV", "1") }
}

/// A call that changes volumes. It goes on when farmctl is killed: one that is killed
/// between suspending a device and resuming it makes everything hang that uses it.
pub fn changing(tool: &Tool) -> Invocation {
    call(tool).surviving()
}

fn tag(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

/// Arguments that tag what is made.
fn adding(tags: &[String]) -> impl Iterator<Item = &str> {
    tags.iter().flat_map(|tag| ["--addtag", tag])
}

impl Lvm {
    /// Volumes in the group the settings name, or the one farmctl made.
    pub fn new(kind: Kind, site: &Site<'_>) -> Self {
        Self {
            kind,
            node: site.node.map(str::to_owned),
            group: site.settings.volume_group.clone(),
            pool: site.settings.thin_pool.clone(),
            file_system: site.settings.file_system,
            trees: site.layout.trees(),
            said: Said::default(),
        }
    }

    /// Makes a change, after which LVM is asked anew.
    fn change(&self, call: &Invocation) -> Result<()> {
        self.said.forget();
        call.run()
    }

    fn is_ours(&self, volume: &LogicalVolume) -> bool {
        self.node.as_deref().is_some_and(|node| volume.tagged(NODE_TAG) == Some(node))
    }

    fn is_of_kind(&self, volume: &LogicalVolume) -> bool {
        (volume.kind == "thin") == (self.kind == Kind::Thin)
    }

    /// Ours of this kind among all logical volumes of the machine.
    pub(super) fn volumes_among(&self, all: &[LogicalVolume]) -> Vec<Volume> {
        let ours = |volume: &&LogicalVolume| {
            self.is_ours(volume)
                && self.is_of_kind(volume)
                && !volume.has(SESSION_TAG)
                && volume.kind != "thin-pool"
        };
        let volume = |volume: &LogicalVolume| {
            let of = |key| volume.tagged(key).unwrap_or_default().to_owned();
            Volume {
                mark: Mark { node: of(NODE_TAG), transaction: of(TRANSACTION_TAG) },
                size: Some(volume.size),
                access: if volume.writeable { Access::ReadWrite } else { Access::ReadOnly },
                name: volume.name.clone(),
            }
        };
        all.iter().filter(ours).map(volume).collect()
    }

    /// The volume of this name, if it is there and ours.
    fn find(&self, name: &str) -> Result<Option<LogicalVolume>> {
        if self.node.is_none() {
            return Ok(None);
        }
        let found = self.said.volumes()?.into_iter();
        Ok(found.filter(|volume| volume.name == name).find(|volume| self.is_ours(volume)))
    }

    fn require(&self, name: &str) -> Result<LogicalVolume> {
        self.find(name)?.map_or_else(|| super::no_volume(name), Ok)
    }

    /// Makes a volume's device, if there is none.
    fn activate(&self, volume: &LogicalVolume) -> Result<()> {
        if volume.active {
            return Ok(());
        }
        let activate = changing(&LVCHANGE)
            .args(["--quiet", "--activate", "y", "--ignoreactivationskip"])
            .arg(volume.path());
        self.change(&activate).with_context(|| format!("activating {}", volume.path()))
    }

    /// Removes a volume nothing uses.
    fn remove_unused(&self, volume: &LogicalVolume) -> Result<()> {
        claim::require_unused(volume)?;
        let remove = changing(&LVREMOVE).args(["--quiet", "--yes"]).arg(volume.path());
        self.change(&remove).with_context(|| format!("removing {}", volume.path()))
    }

    /// The group new volumes go to.
    fn group(&self) -> Result<Group> {
        if let Some(name) = &self.group {
            return match self.said.group(name)? {
                Some(group) => Ok(group),
                None => refuse(
                    format_args!("there is no volume group {name}"),
                    "vgs shows the groups there are; volume-group in node.toml names the one to use",
                ),
            };
        }
        match made_by(self.node.as_deref(), self.said.groups()?).as_slice() {
            [group] => Ok(group.clone()),
            [] => refuse(
                "no volume group is set",
                "set volume-group in node.toml, or farmctl storage init makes one",
            ),
            several => refuse(
                format_args!("farmctl made {} volume groups", several.len()),
                "set volume-group in node.toml",
            ),
        }
    }

    /// The pool new volumes go to.
    fn pool(&self, group: &Group) -> Result<LogicalVolume> {
        let pools = self
            .said
            .volumes()?
            .into_iter()
            .filter(|volume| volume.group == group.name && volume.kind == "thin-pool");
        let found = match &self.pool {
            Some(name) => pools.into_iter().find(|pool| pool.name == *name),
            None => pools.into_iter().find(|pool| self.is_ours(pool)),
        };
        match found {
            Some(pool) => Ok(pool),
            None => refuse(
                match &self.pool {
                    Some(name) => format!("volume group {} has no thin pool {name}", group.name),
                    None => format!("volume group {} has no thin pool of farmctl's", group.name),
                },
                "set thin-pool in node.toml, or farmctl storage init --backend lvm-thin makes one",
            ),
        }
    }

    /// The calls that make a volume, the last one its file system.
    fn creating(
        &self,
        name: &str,
        size: Size,
        mark: &Mark,
        group: &Group,
    ) -> Result<[Invocation; 2]> {
        let size = size.max(self.file_system.smallest()).whole_mib().argument();
        let create = changing(&LVCREATE)
            .args(["--quiet", "--yes", "--wipesignatures", "y", "--name", name])
            .args(adding(&tags(mark, self.file_system)));
        let create = match self.kind {
            Kind::Classic => create.args(["--size", &size]).arg(&group.name),
            Kind::Thin => create
                .args(["--virtualsize", &size, "--thinpool", &self.pool(group)?.name])
                .arg(&group.name),
        };
        let device = format!("/dev/{}/{name}", group.name);
        let make = match self.file_system {
            FileSystem::Xfs => Invocation::of(&MKFS_XFS).args(["-q", &device]),
            FileSystem::Ext4 => Invocation::of(&MKFS_EXT4).args(["-q", &device]),
        };
        Ok([create, make])
    }

    /// The calls that make a volume with the contents of another one.
    fn forking(&self, from: &LogicalVolume, to: &str, mark: &Mark) -> Vec<Invocation> {
        let system = self.file_system_of(from);
        let create = changing(&LVCREATE)
            .args(["--quiet", "--yes", "--name", to])
            .args(adding(&tags(mark, system)));
        match self.kind {
            Kind::Thin => vec![
                create
                    .args(["--snapshot", "--permission", "rw", "--setactivationskip", "n"])
                    .arg(from.path()),
            ],
            // Not a snapshot: it would depend on its origin, and each would slow the other.
            Kind::Classic => {
                let (size, source) = (format!("{}b", from.size), from.device());
                let target = format!("/dev/{}/{to}", from.group);
                let create = create.args(["--wipesignatures", "y", "--size", &size]);
                let copy = match system {
                    // It wants to make a file for its log, and leaves that behind.
                    FileSystem::Xfs => {
                        Invocation::of(&XFS_COPY).args(["-d", "-L"]).arg(self.mount_point(to))
                    }
                    FileSystem::Ext4 => Invocation::of(&E2IMAGE).args(["-r", "-a"]),
                };
                vec![create.arg(&from.group), copy.args([source, target])]
            }
        }
    }

    fn file_system_of(&self, volume: &LogicalVolume) -> FileSystem {
        let name = volume.tagged(FILE_SYSTEM_TAG);
        let known = FileSystem::ALL.into_iter().find(|system| Some(system.name()) == name);
        known.unwrap_or(self.file_system)
    }

    /// Refuses a name that a volume of the group has, whoever's it is.
    fn check_free(&self, name: &str, group: &str) -> Result<()> {
        let all = self.said.volumes()?;
        match all.iter().find(|volume| volume.group == group && volume.name == name) {
            Some(volume) => refuse(
                format_args!("there is a volume {} already", volume.path()),
                format!("farmctl gc --check; lvs {} shows whose it is", volume.path()),
            ),
            None => Ok(()),
        }
    }

    /// Refuses when a volume of this size does not fit.
    fn check_room(&self, size: Size, group: &Group) -> Result<()> {
        let wanted = size.max(self.file_system.smallest()).bytes();
        match self.kind {
            Kind::Classic if group.free < wanted => refuse(
                format_args!(
                    "a volume of {} does not fit into volume group {}: {} are free",
                    Size::of_bytes(wanted).whole_mib(),
                    group.name,
                    Size::of_bytes(group.free)
                ),
                "farmctl gc --stages, farmctl remove NAME --release VERSION, vgextend, or a smaller \
                 volume-size in node.toml",
            ),
            Kind::Classic => Ok(()),
            Kind::Thin => session::check_pool(&self.pool(group)?),
        }
    }

    fn mount_point(&self, name: &str) -> PathBuf {
        // rmdir(2) of a mount point ends the mount in every namespace: two farmctl that look
        // at one volume have a directory each.
        self.trees.join(format!("{name}.{}", std::process::id()))
    }

    /// Mounts a volume of ours on a directory of its own.
    fn mount(&self, volume: &LogicalVolume, access: Access) -> Result<Tree> {
        self.activate(volume)?;
        let target = self.mount_point(&volume.name);
        file::make_directory(&self.trees, 0o700)?;
        file::make_directory(&target, 0o700)?;
        let system = self.file_system_of(volume);
        let flags = match access {
            Access::ReadOnly => MsFlags::MS_RDONLY | MsFlags::MS_NODEV,
            Access::ReadWrite => MsFlags::empty(),
        };
        let mount = Mount::device(
            Path::new(&volume.device()),
            &target,
            system.name(),
            flags,
            system.mount_options(),
        )?;
        Ok(Tree::mounted(target, mount))
    }

    /// Removes mount points, mounts, and logs in their place, that a farmctl left which was
    /// killed.
    fn clear_mount_points(&self, name: &str) -> Result<()> {
        for entry in file::names_in(&self.trees)? {
            let Some(pid) = entry.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
                let target = self.trees.join(&entry);
                mount::unmount(&target)?;
                drop(std::fs::remove_dir(&target).or_else(|_| std::fs::remove_file(&target)));
            }
        }
        Ok(())
    }
}

/// Tags of a new volume.
fn tags(mark: &Mark, file_system: FileSystem) -> Vec<String> {
    vec![
        tag(NODE_TAG, &mark.node),
        tag(TRANSACTION_TAG, &mark.transaction),
        tag(FILE_SYSTEM_TAG, file_system.name()),
    ]
}

/// Groups that `farmctl storage init` made on this node.
fn made_by(node: Option<&str>, groups: Vec<Group>) -> Vec<Group> {
    let Some(node) = node else { return Vec::new() };
    let tag = node_tag(node);
    groups.into_iter().filter(|group| group.tags.contains(&tag)).collect()
}

/// The tag of everything of a node.
pub fn node_tag(node: &str) -> String {
    format!("{NODE_TAG}={node}")
}

/// Names of the volumes in a group, whoever's they are.
///
/// # Errors
/// When LVM cannot be asked.
pub fn names_in(group: &str) -> Result<Vec<String>> {
    let volumes = report::volumes()?.into_iter().filter(|volume| volume.group == group);
    Ok(volumes.map(|volume| volume.name).collect())
}

/// Whether a group has a volume without a device.
///
/// # Errors
/// When LVM cannot be asked.
pub fn is_inactive(group: &str) -> Result<bool> {
    Ok(report::volumes()?.iter().any(|volume| volume.group == group && !volume.active))
}

/// The one of the two backends a machine is set up for, if any, and why.
///
/// # Errors
/// When LVM cannot be asked.
pub fn offered(site: &Site<'_>) -> Result<Option<(Lvm, String)>> {
    if LVS.path().is_none() {
        return Ok(None);
    }
    let thin = Lvm::new(Kind::Thin, site);
    let whose = match &site.settings.volume_group {
        Some(name) => format!("volume group {name} is set in node.toml"),
        None => match made_by(site.node, thin.said.groups()?).as_slice() {
            [group] => format!("farmctl made volume group {}", group.name),
            _ => return Ok(None),
        },
    };
    match thin.group().and_then(|group| thin.pool(&group)) {
        Ok(pool) => Ok(Some((thin, format!("{whose}, with thin pool {}", pool.name)))),
        Err(error) if site.settings.thin_pool.is_some() => Err(error),
        Err(_) => Ok(Some((Lvm { kind: Kind::Classic, ..thin }, whose))),
    }
}

impl Storage for Lvm {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Classic => "lvm",
            Kind::Thin => "lvm-thin",
        }
    }

    fn tools(&self) -> Vec<&'static Tool> {
        let mut tools = vec![&LVCREATE, &LVS];
        tools.push(match self.file_system {
            FileSystem::Xfs => &MKFS_XFS,
            FileSystem::Ext4 => &MKFS_EXT4,
        });
        if self.kind == Kind::Thin {
            tools.push(&THIN_CHECK);
        }
        tools
    }

    fn check(&self) -> Result<()> {
        crate::run::require(&self.tools())?;
        let group = self.group()?;
        if self.kind == Kind::Thin { session::check_pool(&self.pool(&group)?) } else { Ok(()) }
    }

    fn create(&self, name: &str, size: Size, mark: &Mark) -> Result<()> {
        let group = self.group()?;
        self.check_free(name, &group.name)?;
        self.check_room(size, &group)?;
        let [create, make] = self.creating(name, size, mark, &group)?;
        self.change(&create)?;
        make.run()?;
        if self.file_system == FileSystem::Ext4 {
            // Not part of any release; e2fsck makes one when it needs one.
            let tree = self.mount(&self.require(name)?, Access::ReadWrite)?;
            std::fs::remove_dir(tree.path().join("lost+found")).context("removing lost+found")?;
            tree.close()?;
        }
        Ok(())
    }

    fn fork(&self, from: &str, to: &str, mark: &Mark) -> Result<()> {
        let origin = self.require(from)?;
        self.check_free(to, &origin.group)?;
        if self.kind == Kind::Classic {
            let group = self.said.group(&origin.group)?;
            let group = group.with_context(|| format!("no volume group {}", origin.group))?;
            self.check_room(Size::of_bytes(origin.size), &group)?;
            self.activate(&origin)?;
            file::make_directory(&self.trees, 0o700)?;
            self.clear_mount_points(to)?;
        }
        for call in self.forking(&origin, to, mark) {
            call.run().inspect_err(|_| self.said.forget())?;
        }
        file::remove_if_there(&self.mount_point(to))?;
        self.said.has_now(LogicalVolume {
            name: to.to_owned(),
            tags: tags(mark, self.file_system_of(&origin)),
            origin: if self.kind == Kind::Thin { origin.name.clone() } else { String::new() },
            writeable: true,
            active: true,
            open: false,
            ..origin
        });
        Ok(())
    }

    fn forks_quickly(&self) -> bool {
        true
    }

    fn fork_takes(&self, name: &str) -> Result<u64> {
        let volume = self.require(name)?;
        Ok(if self.kind == Kind::Thin { 0 } else { volume.size })
    }

    fn open(&self, name: &str, access: Access) -> Result<Tree> {
        let volume = self.require(name)?;
        if access == Access::ReadWrite && !volume.writeable {
            bail!("volume {name} is sealed");
        }
        self.mount(&volume, access)
    }

    fn seal(&self, name: &str, access: Access) -> Result<()> {
        let volume = self.require(name)?;
        // LVM fails when it is so already.
        if volume.writeable == (access == Access::ReadWrite) {
            return Ok(());
        }
        if access == Access::ReadOnly {
            claim::require_unclaimed(&volume)?;
        }
        let permission = if access == Access::ReadWrite { "rw" } else { "r" };
        changing(&LVCHANGE)
            .args(["--quiet", "--permission", permission])
            .arg(volume.path())
            .run()
            .with_context(|| format!("sealing volume {name}"))?;
        self.said.is_now(&volume, access);
        Ok(())
    }

    fn last_change(&self, name: &str) -> Option<String> {
        let known = || -> Result<Option<String>> {
            let volume = self.require(name)?;
            // A device that may be written can change without its superblock knowing yet.
            if volume.writeable {
                return Ok(None);
            }
            self.activate(&volume)?;
            superblock::sha256(Path::new(&volume.device())).map(Some)
        };
        // Who does not know reads all of it instead.
        known().inspect_err(|error| tracing::info!("{error:#}")).ok().flatten()
    }

    fn usage(&self) -> Result<Usage> {
        let group = self.group()?;
        if self.kind == Kind::Classic {
            return Ok(Usage { total: group.size, free: group.free, metadata_percent: None });
        }
        let pool = self.pool(&group)?;
        Ok(Usage {
            total: pool.size,
            free: pool.size.saturating_sub(pool.used()),
            metadata_percent: pool.metadata_percent,
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let volume = self.require(from)?;
        self.change(&changing(&LVRENAME).args(["--quiet", &volume.group, from, to]))
    }

    fn check_new(&self, name: &str) -> Result<()> {
        // Another instance may have removed it since.
        self.said.forget();
        match self.find(name)? {
            Some(volume) => {
                refuse(format_args!("there is a volume {} already", volume.path()), UNNAMED)
            }
            None => Ok(()),
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.clear_mount_points(name)?;
        self.said.forget();
        let Some(volume) = self.find(name)? else { return Ok(()) };
        // lvremove takes the snapshots of a volume along.
        let copies = self.said.volumes()?;
        let mut copies =
            copies.iter().filter(|copy| copy.group == volume.group && copy.origin == name);
        if let Some(copy) = copies.find(|_| self.kind == Kind::Classic) {
            return refuse(
                format_args!("{} is a snapshot of volume {name}", copy.path()),
                "farmctl stop the application, or farmctl gc",
            );
        }
        self.remove_unused(&volume)
    }

    fn list(&self) -> Result<Vec<Volume>> {
        Ok(self.volumes_among(&self.said.volumes()?))
    }

    fn describe_create(&self, name: &str, size: Size) -> Result<Vec<String>> {
        let node = self.node.clone().unwrap_or_else(|| "…".to_owned());
        let mark = Mark { node, transaction: "…".to_owned() };
        let calls = self.creating(name, size, &mark, &self.group()?)?;
        Ok(calls.iter().map(Invocation::display).collect())
    }

    fn describe_fork(&self, from: &str, to: &str) -> Result<Vec<String>> {
        let origin = self.require(from)?;
        let node = self.node.clone().unwrap_or_default();
        let mark = Mark { node, transaction: "…".to_owned() };
        Ok(self.forking(&origin, to, &mark).iter().map(Invocation::display).collect())
    }

    fn stanza(&self, name: &str, copies: Copies) -> Result<Stanza> {
        let volume = self.require(name)?;
        let options = self.file_system_of(&volume).mount_options();
        let mut keys = vec![("type", "lvm-snapshot".to_owned()), ("device", volume.device())];
        if !options.is_empty() {
            keys.push(("mount-options", format!("-o {options}")));
        }
        keys.push(("lvm-snapshot-options", self.snapshot_options(copies)));
        Ok(Stanza(keys))
    }

    fn check_copy(&self, session: &str, volume: &str, copies: Copies) -> Result<()> {
        self.check_new_copy(session, volume, copies)
    }

    fn copies(&self) -> Result<Vec<SessionCopy>> {
        Ok(self.copies_among(&report::volumes()?))
    }

    fn activate_copy(&self, session: &str) -> Result<()> {
        self.find_copy(session)?.map_or(Ok(()), |copy| self.activate(&copy))
    }

    fn grow_copy(&self, session: &str) -> Result<Option<Growth>> {
        self.grow(session)
    }

    fn remove_copy(&self, session: &str) -> Result<()> {
        self.find_copy(session)?.map_or(Ok(()), |copy| self.remove_unused(&copy))
    }
}
