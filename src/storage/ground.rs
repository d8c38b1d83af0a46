//! What volumes stand on when farmctl makes it: a volume group, with a thin pool or
//! without, or a btrfs, on a disk that was named or in a file.
//!
//! A file stands behind a loop device, which is gone after a reboot: [`attach`] brings it
//! back, called by a unit of systemd ([`crate::supervise::keep_storage`]) and by `farmctl
//! tend`.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::fcntl::{FallocateFlags, fallocate};
use serde::Deserialize;

use super::lvm;
use crate::error::{NO_SPACE, refuse};
use crate::file;
use crate::mount;
use crate::run::{self, Invocation, Tool};
use crate::settings::{Base, Ground, Site};
use crate::size::Size;

const PVCREATE: Tool = Tool { name: "pvcreate", package: "lvm2" };
const PVREMOVE: Tool = Tool { name: "pvremove", package: "lvm2" };
const VGCREATE: Tool = Tool { name: "vgcreate", package: "lvm2" };
const VGREMOVE: Tool = Tool { name: "vgremove", package: "lvm2" };
const VGCHANGE: Tool = Tool { name: "vgchange", package: "lvm2" };
const LVCREATE: Tool = Tool { name: "lvcreate", package: "lvm2" };
const LVCHANGE: Tool = Tool { name: "lvchange", package: "lvm2" };
const LVREMOVE: Tool = Tool { name: "lvremove", package: "lvm2" };
const THIN_CHECK: Tool = Tool { name: "thin_check", package: "thin-provisioning-tools" };
const MKFS_BTRFS: Tool = Tool { name: "mkfs.btrfs", package: "btrfs-progs" };
const MOUNT: Tool = Tool { name: "mount", package: "mount" };
const LOSETUP: Tool = Tool { name: "losetup", package: "mount" };
const WIPEFS: Tool = Tool { name: "wipefs", package: "util-linux" };

/// Name of the thin pool.
const POOL: &str = "farmctl-pool";
/// What is left of the root's file system beside a file, in bytes.
const SPARE: u64 = 256 << 20;
/// The least that is worth it: two small volumes on XFS.
const SMALLEST: Size = Size::of_mib(1024);

/// Programs it needs on the host.
#[must_use]
pub fn tools(ground: &Ground) -> Vec<&'static Tool> {
    let mut tools = vec![&LOSETUP, &WIPEFS, &MOUNT];
    match ground.backend.as_str() {
        "btrfs" => tools.push(&MKFS_BTRFS),
        "lvm-thin" => tools.extend([&LVCREATE, &THIN_CHECK]),
        _ => tools.push(&LVCREATE),
    }
    tools
}

/// Refuses what is in use, has something on it, or does not fit.
///
/// # Errors
/// Exactly then.
pub fn check(ground: &Ground, site: &Site<'_>) -> Result<()> {
    if let Some(group) = &ground.group {
        let letters = |letter: char| letter.is_ascii_alphanumeric() || "+_.-".contains(letter);
        if group.is_empty() || group.starts_with('-') || !group.chars().all(letters) {
            return refuse(
                format_args!("{group:?} is not the name of a volume group"),
                "letters, digits and + _ . - are possible (lvm(8))",
            );
        }
        if lvm::groups()?.iter().any(|known| known.name == *group) {
            return refuse(
                format_args!("there is a volume group {group} already"),
                "set volume-group in node.toml to use it, or give --group another name",
            );
        }
    } else if !file::names_in(&site.layout.volumes())?.is_empty() {
        return refuse(
            format_args!("{} has volumes in it", site.layout.volumes().display()),
            "remove the applications and environments first: they would be covered",
        );
    }
    match &ground.base {
        Base::Device(device) => check_device(device),
        Base::File { path, size } => check_file(path, *size),
    }
}

fn check_device(device: &Path) -> Result<()> {
    let meta = fs::metadata(device).with_context(|| format!("looking at {}", device.display()))?;
    if !meta.file_type().is_block_device() {
        return refuse(
            format_args!("{} is not a block device", device.display()),
            "lsblk shows the disks; --size SIZE makes a file instead",
        );
    }
    // O_EXCL of a block device fails while it is mounted or part of something (open(2)).
    let exclusive = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    if let Err(error) = exclusive {
        return refuse(
            format_args!("{} is in use: {error}", device.display()),
            "lsblk shows by what; name another one",
        );
    }
    if let Some(kind) = signatures(device)?.first() {
        return refuse(
            format_args!("{} has something on it: {kind}", device.display()),
            format!("wipefs --all {}, if that is not needed any more", device.display()),
        );
    }
    Ok(())
}

fn check_file(path: &Path, size: Size) -> Result<()> {
    if size < SMALLEST {
        return refuse(
            format_args!("{size} is too small for volumes"),
            format!("--size {SMALLEST} is the least"),
        );
    }
    if path.exists() {
        return refuse(format_args!("{} is there already", path.display()), "farmctl gc");
    }
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(existing)
        .with_context(|| format!("looking at {}", existing.display()))?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < size.bytes() + SPARE {
        return refuse(
            format_args!(
                "a file of {size} does not fit: {} are free",
                Size::of_bytes(free >> 20 << 20)
            ),
            NO_SPACE,
        );
    }
    Ok(())
}

/// What is found on a device: `ext4`, `LVM2_member`, `gpt`, …
fn signatures(device: &Path) -> Result<Vec<String>> {
    let text = Invocation::of(&WIPEFS).args(["--no-act", "--json"]).arg(device).output()?;
    parse_wipefs(&text)
}

fn parse_wipefs(text: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Signature {
        #[serde(rename = "type")]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Signatures {
        signatures: Vec<Signature>,
    }
    // Nothing at all is printed when there is nothing.
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let found: Signatures = serde_json::from_str(text).context("reading what wipefs says")?;
    Ok(found.signatures.into_iter().map(|signature| signature.kind).collect())
}

/// The loop device a file stands behind.
fn loop_of(path: &Path) -> Result<Option<PathBuf>> {
    let text =
        Invocation::of(&LOSETUP).args(["--json", "--output", "NAME", "--associated"]).arg(path);
    parse_losetup(&text.output()?)
}

fn parse_losetup(text: &str) -> Result<Option<PathBuf>> {
    #[derive(Deserialize)]
    struct Device {
        name: PathBuf,
    }
    #[derive(Deserialize)]
    struct Devices {
        loopdevices: Vec<Device>,
    }
    if text.trim().is_empty() {
        return Ok(None);
    }
    let found: Devices = serde_json::from_str(text).context("reading what losetup says")?;
    Ok(found.loopdevices.into_iter().map(|device| device.name).next())
}

/// Steps that make it, with their commands.
#[must_use]
pub fn describe(ground: &Ground, site: &Site<'_>) -> Vec<(String, Vec<String>)> {
    let mut steps = Vec::new();
    let mut device = ground.base.path().to_owned();
    if let Base::File { path, size } = &ground.base {
        let path = run::quote(&path.display().to_string());
        let mut commands = vec![format!("fallocate --length {} {path}", size.bytes())];
        if ground.group.is_some() {
            commands.push(format!("losetup --find --show {path}"));
            device = "/dev/loopN".into();
        }
        steps.push((format!("make a file of {size}"), commands));
    }
    let commands = making(ground, &device, site).iter().map(Invocation::display).collect();
    steps.push((format!("make {} on it", ground.backend), commands));
    steps
}

/// The calls that make it on a device.
fn making(ground: &Ground, device: &Path, site: &Site<'_>) -> Vec<Invocation> {
    let Some(group) = &ground.group else {
        return vec![
            Invocation::of(&MKFS_BTRFS).args(["--quiet", "--label", "farmctl"]).arg(device),
            mounting(ground, site),
        ];
    };
    let tag = lvm::node_tag(&ground.node);
    let mut calls = vec![
        lvm::changing(&PVCREATE).args(["--quiet", "--yes"]).arg(device),
        lvm::changing(&VGCREATE).args(["--quiet", "--addtag", &tag, group]).arg(device),
    ];
    if ground.backend == "lvm-thin" {
        // A tenth is left for the pool's metadata to grow into. A full pool refuses writes
        // at once: the default is to let them hang for a minute first (lvmthin(7)).
        calls.extend([
            lvm::changing(&LVCREATE)
                .args(["--quiet", "--yes", "--type", "thin-pool", "--name", POOL])
                .args(["--extents", "90%FREE", "--addtag", &tag, group]),
            lvm::changing(&LVCHANGE).args(["--quiet", "--errorwhenfull", "y"]).arg(pool_of(group)),
        ]);
    }
    calls
}

fn pool_of(group: &str) -> String {
    format!("{group}/{POOL}")
}

fn mounting(ground: &Ground, site: &Site<'_>) -> Invocation {
    let options = match ground.base {
        Base::Device(_) => "noatime",
        // The loop device goes with the mount.
        Base::File { .. } => "noatime,loop",
    };
    Invocation::of(&MOUNT)
        .args(["--types", "btrfs", "--options", options])
        .arg(ground.base.path())
        .arg(site.layout.volumes())
}

/// Makes it. What is made is written down before.
///
/// # Errors
/// When a step fails; what was made until then is for [`dismantle`].
pub fn make(ground: &Ground, site: &Site<'_>) -> Result<()> {
    file::make_directory(&site.layout.volumes(), 0o700)?;
    let mut device = ground.base.path().to_owned();
    if let Base::File { path, size } = &ground.base {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("making {}", path.display()))?;
        reserve(&file, *size)
            .with_context(|| format!("reserving {size} for {}", path.display()))?;
        if ground.group.is_some() {
            device = losetup(path)?;
        }
    }
    for call in making(ground, &device, site) {
        call.run()?;
    }
    if ground.group.is_none() {
        fs::set_permissions(
            site.layout.volumes(),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .context("closing the volumes' directory")?;
    }
    Ok(())
}

/// Takes the room now: a file with holes would fail in the middle of somebody's write.
fn reserve(file: &File, size: Size) -> Result<()> {
    let length = i64::try_from(size.bytes()).context("a file cannot be that large")?;
    fallocate(file, FallocateFlags::empty(), 0, length)?;
    file.sync_all()?;
    Ok(())
}

fn losetup(path: &Path) -> Result<PathBuf> {
    let text = Invocation::of(&LOSETUP).args(["--find", "--show"]).arg(path).output()?;
    Ok(PathBuf::from(text.trim()))
}

/// Brings it back after a reboot; answers whether it was away.
///
/// # Errors
/// When its file or device is gone, or cannot be used.
pub fn attach(ground: &Ground, site: &Site<'_>) -> Result<bool> {
    let attach = || -> Result<bool> {
        let Some(group) = &ground.group else {
            if mount::is_mount_point(&site.layout.volumes())? {
                return Ok(false);
            }
            mounting(ground, site).run()?;
            return Ok(true);
        };
        let mut changed = false;
        if let Base::File { path, .. } = &ground.base {
            if loop_of(path)?.is_none() {
                losetup(path)?;
                changed = true;
            }
        }
        if changed || lvm::is_inactive(group)? {
            lvm::changing(&VGCHANGE).args(["--quiet", "--activate", "y", group]).run()?;
            changed = true;
        }
        Ok(changed)
    };
    attach().with_context(|| format!("attaching {}", ground.base.path().display()))
}

/// Refuses if volumes are on it.
///
/// # Errors
/// Then, and when it cannot be looked at.
pub fn check_empty(ground: &Ground, site: &Site<'_>) -> Result<()> {
    match &ground.group {
        None => check_empty_btrfs(site),
        Some(group) => {
            let ours = lvm::node_tag(&ground.node);
            let groups = lvm::groups()?;
            if groups.iter().any(|it| it.name == *group && it.tags.contains(&ours)) {
                check_empty_group(&lvm::names_in(group)?)?;
            }
            Ok(())
        }
    }
}

fn check_empty_btrfs(site: &Site<'_>) -> Result<()> {
    let volumes = site.layout.volumes();
    if !mount::is_mount_point(&volumes)? {
        return Ok(());
    }
    let mut there = file::names_in(&volumes)?;
    if there.iter().any(|name| name == ".sessions")
        && file::names_in(&site.layout.snapshots())?.is_empty()
    {
        there.retain(|name| name != ".sessions");
    }
    refuse_volumes(&there)
}

fn check_empty_group(names: &[String]) -> Result<()> {
    let others: Vec<String> = names.iter().filter(|name| *name != POOL).cloned().collect();
    refuse_volumes(&others)
}

/// Takes it away, whole or half made. Volumes on it are never taken along.
///
/// # Errors
/// When there are volumes on it, or something uses it.
pub fn dismantle(ground: &Ground, site: &Site<'_>) -> Result<()> {
    match &ground.group {
        None => dismantle_btrfs(ground, site)?,
        Some(group) => dismantle_group(ground, group)?,
    }
    match &ground.base {
        Base::Device(_) => Ok(()),
        Base::File { path, .. } => {
            if let Some(device) = loop_of(path)? {
                Invocation::of(&LOSETUP).arg("--detach").arg(device).run()?;
            }
            file::remove_if_there(path)
        }
    }
}

fn dismantle_btrfs(ground: &Ground, site: &Site<'_>) -> Result<()> {
    let volumes = site.layout.volumes();
    if mount::is_mount_point(&volumes)? {
        check_empty_btrfs(site)?;
        mount::unmount(&volumes)?;
    }
    if let Base::Device(device) = &ground.base {
        // It was made here, on a device without any signature.
        if signatures(device)? == ["btrfs"] {
            Invocation::of(&WIPEFS).args(["--all", "--types", "btrfs"]).arg(device).run()?;
        }
    }
    Ok(())
}

fn dismantle_group(ground: &Ground, group: &str) -> Result<()> {
    let ours = lvm::node_tag(&ground.node);
    let mut device = match &ground.base {
        Base::Device(device) => Some(device.clone()),
        Base::File { path, .. } => loop_of(path)?,
    };
    if let Some(known) = lvm::groups()?.into_iter().find(|known| known.name == group) {
        if !known.tags.contains(&ours) {
            // Somebody else's of the same name: ours was never made.
            device = None;
        } else {
            let names = lvm::names_in(group)?;
            check_empty_group(&names)?;
            if !names.is_empty() {
                lvm::changing(&LVREMOVE).args(["--quiet", "--yes"]).arg(pool_of(group)).run()?;
            }
            lvm::changing(&VGREMOVE).args(["--quiet", "--yes", group]).run()?;
        }
    }
    match device {
        Some(device) if device.exists() && signatures(&device)? == ["LVM2_member"] => {
            // It refuses one that is part of a group.
            lvm::changing(&PVREMOVE).args(["--quiet", "--yes"]).arg(device).run()
        }
        _ => Ok(()),
    }
}

fn refuse_volumes(names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    refuse(
        format_args!("there are volumes on it: {}", names.join(", ")),
        "farmctl remove NAME, farmctl remove --environment NAME, or farmctl gc",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from util-linux 2.38.
    #[test]
    fn what_is_on_a_device_is_read() {
        let text = r#"{ "signatures": [ { "device": "ubdb", "offset": "0x10040", "type": "btrfs",
            "uuid": "1d01f177-d7de-4711-8a23-b5666891a5e9", "label": null } ] }"#;
        assert_eq!(parse_wipefs(text).expect("it is what wipefs said"), ["btrfs"]);
        assert!(parse_wipefs("").expect("nothing is said of an empty one").is_empty());
    }

    /// Captured from util-linux 2.38.
    #[test]
    fn the_loop_device_of_a_file_is_read() {
        let text = r#"{ "loopdevices": [ { "name": "/dev/loop0" } ] }"#;
        let found = parse_losetup(text).expect("it is what losetup said");
        assert_eq!(found, Some(PathBuf::from("/dev/loop0")));
        assert_eq!(parse_losetup("").expect("nothing is said when there is none"), None);
    }
}
