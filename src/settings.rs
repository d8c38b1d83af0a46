//! `/etc/farmctl/node.toml`: how this machine keeps its volumes.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::size::Size;

/// The newest schema this farmctl reads.
pub const SCHEMA: u32 = 1;

/// What the administrator set, all of it optional.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Version of the file's format; 1.
    #[serde(default = "first_schema")]
    pub schema: u32,
    /// Storage backend for new volumes: `auto`, `lvm-thin`, `lvm`, `btrfs` or `directory`.
    #[serde(default = "auto")]
    pub storage: String,
    /// LVM volume group new volumes go to; default: the one `farmctl storage init` made.
    #[serde(default)]
    pub volume_group: Option<String>,
    /// Thin pool in that group; default: the one `farmctl storage init` made.
    #[serde(default)]
    pub thin_pool: Option<String>,
    /// File system made on LVM volumes.
    #[serde(default)]
    pub file_system: FileSystem,
    /// Size of LVM volumes, at least; a release that needs more gets more.
    #[serde(default = "volume_size")]
    pub volume_size: Size,
    /// Room a session's classic snapshot begins with; default: as much as the volume.
    #[serde(default)]
    pub snapshot_size: Option<Size>,
    /// How many of an application's releases `farmctl gc` keeps: the newest.
    #[serde(default = "keep")]
    pub keep: NonZeroUsize,
    /// How much of the compressed segments of tarballs is kept for the next bake.
    #[serde(default = "segment_cache")]
    pub segment_cache: Size,
}

/// A file system LVM volumes are given.
///
/// Not btrfs: a snapshot of a device has its origin's file system id, and btrfs refuses to
/// mount two devices of one id at a time (btrfs(5), "block-level copies"). Its own
/// snapshots are the `btrfs` backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystem {
    /// XFS.
    #[default]
    Xfs,
    /// ext4.
    Ext4,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Xfs, Self::Ext4];

    /// The name, to mount(8) as well.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }

    /// What mount(8) must be told. A snapshot of an XFS has its origin's UUID, which XFS
    /// mounts only once otherwise (xfs(5)).
    #[must_use]
    pub const fn mount_options(self) -> &'static str {
        match self {
            Self::Xfs => "nouuid",
            Self::Ext4 => "",
        }
    }

    /// The smallest volume it can be made on: mkfs.xfs refuses less than 300 MiB.
    #[must_use]
    pub const fn smallest(self) -> Size {
        match self {
            Self::Xfs => Size::of_mib(300),
            Self::Ext4 => Size::of_mib(16),
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What `farmctl storage init` made for volumes to stand on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ground {
    /// Version of this format; 1.
    pub schema: u32,
    /// Backend it is for: `lvm-thin`, `lvm` or `btrfs`.
    pub backend: String,
    /// What it lies on.
    pub base: Base,
    /// Name of the volume group; none for btrfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Id of the node it belongs to.
    pub node: String,
}

/// What a [`Ground`] lies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Base {
    /// A disk or partition, all of it.
    Device(PathBuf),
    /// A file of this size, through a loop device.
    File {
        /// Where.
        path: PathBuf,
        /// How large.
        size: Size,
    },
}

impl Base {
    /// The device or file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Device(path) | Self::File { path, .. } => path,
        }
    }
}

/// What a storage backend must know of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Paths.
    pub layout: &'a Layout,
    /// Settings.
    pub settings: &'a Settings,
    /// Id of the node; none before its first change, and then nothing can be its own.
    pub node: Option<&'a str>,
}

fn first_schema() -> u32 {
    SCHEMA
}
fn auto() -> String {
    "auto".to_owned()
}
fn volume_size() -> Size {
    Size::of_mib(4096)
}
fn segment_cache() -> Size {
    Size::of_mib(4 << 10)
}

fn keep() -> NonZeroUsize {
    NonZeroUsize::MIN.saturating_add(2)
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            schema: first_schema(),
            storage: auto(),
            volume_group: None,
            thin_pool: None,
            file_system: FileSystem::default(),
            volume_size: volume_size(),
            snapshot_size: None,
            keep: keep(),
            segment_cache: segment_cache(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_left_out_have_their_defaults() {
        assert_eq!(toml::from_str::<Settings>(""), Ok(Settings::default()));
        let written = "schema = 1\nstorage = \"lvm\"\nvolume-group = \"vg0\"\n\
                       file-system = \"ext4\"\nvolume-size = \"1G\"\n";
        let settings: Settings = toml::from_str(written).expect("every key is known");
        assert_eq!(settings.volume_group.as_deref(), Some("vg0"));
        assert_eq!(settings.file_system, FileSystem::Ext4);
        assert_eq!(settings.volume_size, Size::of_mib(1024));
        assert_eq!((settings.keep.get(), Settings::default().keep.get()), (3, 3));
        toml::from_str::<Settings>("keep = 0").expect_err("what runs is a release as well");
        let error = toml::from_str::<Settings>("volume-size = \"4\"").expect_err("it has no unit");
        assert!(error.message().contains("\"4\" is not a size"), "{error}");
    }
}
