//! Who else uses a volume.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::OFlag;

use super::report::{self, LogicalVolume};
use crate::error::refuse;
use crate::run::poll_until;

/// How long udev may look into a volume.
const SETTLING: Duration = Duration::from_secs(3);

/// Refuses a volume that something uses. udev looks into one for a moment when its last
/// writer is gone, also when that was killed: this is waited for.
pub(super) fn require_unused(volume: &LogicalVolume) -> Result<()> {
    if !volume.open {
        return Ok(());
    }
    let unused = poll_until(SETTLING, || {
        let all = report::volumes()?;
        let open = all.iter().any(|known| known.path() == volume.path() && known.open);
        Ok((!open).then_some(()))
    })?;
    unused.map_or_else(|| refuse_used(volume), Ok)
}

/// Refuses a volume that is mounted, or part of another device. Who looks into it, as udev
/// does for a moment, is no obstacle to sealing it.
pub(super) fn require_unclaimed(volume: &LogicalVolume) -> Result<()> {
    // open(2): O_EXCL of a block device fails while somebody has claimed it.
    let flags = OFlag::O_EXCL.bits();
    match File::options().read(true).custom_flags(flags).open(volume.device()) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => refuse_used(volume),
        // Without a device it is not claimed.
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("opening {}", volume.device()))
        }
        _ => Ok(()),
    }
}

fn refuse_used(volume: &LogicalVolume) -> Result<()> {
    refuse(
        format_args!("{} is in use", volume.path()),
        format!("findmnt {} and lsof show by what", volume.device()),
    )
}
