//! What btrfs knows of a subvolume: `BTRFS_IOC_GET_SUBVOL_INFO` of ioctl(2).
//!
//! No program tells its `ctransid`: `btrfs subvolume show` has the generation, which is
//! another one after every snapshot made of the subvolume.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::hash::hex;

/// `struct btrfs_ioctl_get_subvol_info_args` of `linux/btrfs.h`.
#[repr(C)]
#[derive(Default)]
struct Info {
    tree: u64,
    name: [[u8; 32]; 8],
    parent: u64,
    directory: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    ctransid: u64,
    otransid: u64,
    stransid: u64,
    rtransid: u64,
    times: [[u64; 2]; 4],
    reserved: [u64; 8],
}

// The size of the structure is part of the request: a kernel that means another one
// refuses it.
nix::ioctl_read!(get_subvol_info, 0x94, 60, Info);

/// Names the last change in a subvolume: its UUID and the number of the transaction that
/// changed a file, a name or an attribute (`ctransid`). Snapshots made of it, the read-only
/// property, `btrfs balance` and `btrfs scrub` are no changes. Nor is what the log of fsync(2)
/// alone brings back after a power cut; a sealed volume has no such log.
///
/// # Errors
/// When it is not on btrfs, or the kernel is older than 4.18.
pub(super) fn last_change(path: &Path) -> Result<String> {
    let mut info = Info::default();
    let context = || format!("asking btrfs about {}", path.display());
    let directory = File::open(path).with_context(context)?;
    #[expect(unsafe_code, reason = "nix has this call in no safe form")]
    // SAFETY: the descriptor is open, and `info` is as large as the request says.
    unsafe { get_subvol_info(directory.as_raw_fd(), &raw mut info) }.with_context(context)?;
    Ok(format!("{} {}", hex(&info.uuid), info.ctransid))
}
