//! The superblock of a file system: where it writes down that it was changed.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::hash;

/// Bytes at the beginning of a device that hold the superblock: that of ext4 has the bytes
/// from 1024 to 2048 (kernel, Documentation/filesystems/ext4/super.rst), that of xfs the first
/// sector, of 4096 bytes at most (kernel, `struct xfs_dsb`).
const LENGTH: usize = 4096;

/// SHA-256 of the superblock on a device, in hex. Of a file system that is not mounted it is
/// another one after anything was changed in it: ext4 counts its mounts, xfs writes the number
/// of the log's last record (`sb_lsn`) when it is unmounted, and both have an id of their own.
/// Snapshots made of the device are no changes.
///
/// # Errors
/// When it cannot be read.
pub(super) fn sha256(device: &Path) -> Result<String> {
    let read = || -> Result<Vec<u8>> {
        let mut file = File::open(device)?;
        // xfs writes past the cache this is read through.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        let mut block = vec![0; LENGTH];
        file.read_exact(&mut block)?;
        Ok(block)
    };
    let block = read().with_context(|| format!("reading {}", device.display()))?;
    Ok(hash::sha256(&block))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Invocation, Tool};

    const SH: Tool = Tool { name: "sh", package: "dash" };

    /// Mounts the file system in an image, runs a script in it, and unmounts it.
    fn inside(image: &Path, script: &str) {
        let place = image.with_extension("mounted");
        std::fs::create_dir_all(&place).expect("a temporary directory");
        let whole = format!("mount -o loop \"$0\" \"$1\"; (cd \"$1\"; {script}); umount \"$1\"");
        let ran = Invocation::of(&SH).args(["-ec", &whole]).arg(image).arg(&place).run();
        ran.unwrap_or_else(|error| panic!("{script}: {error:#}"));
    }

    fn last(image: &Path) -> String {
        sha256(image).expect("the image is there")
    }

    #[test]
    fn every_change_is_in_the_superblock_once_it_is_unmounted() {
        for make in ["mkfs.ext4 -q", "mkfs.xfs -q"] {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let image = directory.path().join("image");
            let script = format!("truncate -s 400M \"$0\"; {make} \"$0\"");
            Invocation::of(&SH).args(["-ec", &script]).arg(&image).run().expect("it is installed");
            inside(&image, "echo one >small; head -c 100000 /dev/urandom >large; mkdir directory");
            let mut before = last(&image);
            for change in [
                "printf x | dd conv=notrunc status=none of=large",
                "truncate -s 90000 large",
                "fallocate --punch-hole --offset 4096 --length 4096 large",
                "cp --reflink=auto large small",
                "echo two >>small",
                "mv small large",
                "ln large other",
                "rm other",
                "chmod 600 large",
                "chown 7:7 large",
                "touch -d 2001-01-01 large",
                "setcap cap_net_raw+ep large",
                "rmdir directory",
            ] {
                inside(&image, change);
                assert_ne!(last(&image), before, "{make}: {change}");
                before = last(&image);
            }
            let script = "mount -o loop,ro \"$0\" /mnt; cat /mnt/large >/dev/null; umount /mnt";
            let script = format!("unshare --mount sh -ec '{script}' \"$0\"");
            Invocation::of(&SH).args(["-ec", &script]).arg(&image).run().expect("it is mounted");
            assert_eq!(last(&image), before, "{make}");
        }
    }
}
