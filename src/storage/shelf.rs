//! The directory the `directory` and `btrfs` backends keep volumes in.
//!
//! A volume is `VOLUMES/NAME/` with `volume.json` (its mark), `root/` (its tree) and what its
//! backend has besides. The mark is written before the tree, so a half-made volume is found by
//! `gc`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Access, Mark, UNNAMED, Usage, Volume};
use crate::error::{Mark as _, refuse};
use crate::mount;
use crate::run::check_interrupted;

/// Bytes of a block as stat(2) counts them.
const BLOCK: u64 = 512;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Record {
    schema: u32,
    mark: Mark,
    access: Access,
    /// Backend that made it; records written before there was a choice have none.
    #[serde(default = "directory")]
    storage: String,
}

fn directory() -> String {
    "directory".to_owned()
}

/// The volumes of one backend beneath a directory.
#[derive(Debug)]
pub struct Shelf {
    volumes: PathBuf,
    storage: &'static str,
}

impl Shelf {
    /// The volumes of the backend `storage` beneath `volumes`.
    pub fn new(volumes: PathBuf, storage: &'static str) -> Self {
        Self { volumes, storage }
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.volumes.join(name)
    }

    /// What a volume's tree is called in its directory.
    pub const TREE: &'static str = "root";

    /// Root of a volume's tree.
    pub fn tree(&self, name: &str) -> PathBuf {
        self.part(name, Self::TREE)
    }

    /// What the backend has in a volume's directory besides.
    pub fn part(&self, name: &str, part: &str) -> PathBuf {
        self.volume(name).join(part)
    }

    fn read(&self, name: &str) -> Result<Record> {
        let path = self.volume(name).join("volume.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return super::no_volume(name),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        serde_json::from_str(&text)
            .with_context(|| format!("reading {}", path.display()))
            .hint(super::OF_VOLUMES)
    }

    fn write(&self, name: &str, record: &Record) -> Result<()> {
        let directory = self.volume(name);
        let text = serde_json::to_string_pretty(record).context("writing a volume's mark")?;
        let temporary = directory.join(".volume.json");
        let path = directory.join("volume.json");
        fs::write(&temporary, text)
            .and_then(|()| fs::File::open(&temporary)?.sync_all())
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Refuses a name that is there.
    pub fn check_new(&self, name: &str) -> Result<()> {
        let directory = self.volume(name);
        if self.read(name).is_ok() {
            return refuse(format_args!("there is a volume {name} already"), UNNAMED);
        }
        if directory.symlink_metadata().is_ok() {
            return refuse(
                format_args!(
                    "{} is there already, and no volume of farmctl's",
                    directory.display()
                ),
                "move it away",
            );
        }
        Ok(())
    }

    /// Makes the volume's directory and mark; its tree is still missing.
    pub fn begin(&self, name: &str, mark: &Mark) -> Result<()> {
        let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(&self.volumes).with_context(|| format!("making {}", self.volumes.display()))?;
        let directory = self.volume(name);
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return refuse(format_args!("there is a volume {name} already"), UNNAMED);
            }
            Err(error) => {
                return Err(error).with_context(|| format!("making {}", directory.display()));
            }
        }
        let record = Record {
            schema: 1,
            mark: mark.clone(),
            access: Access::ReadWrite,
            storage: self.storage.to_owned(),
        };
        self.write(name, &record)
    }

    /// Gives a new tree the permissions of a root directory: umask 022 may have been
    /// tightened, and a tree's root is what its users see as `/`.
    pub fn settle_root(&self, name: &str) -> Result<()> {
        let tree = self.tree(name);
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {}", tree.display()))
    }

    /// The tree, if it may be used like that.
    pub fn open(&self, name: &str, access: Access) -> Result<PathBuf> {
        let record = self.read(name)?;
        if access == Access::ReadWrite && record.access == Access::ReadOnly {
            bail!("volume {name} is sealed");
        }
        Ok(self.tree(name))
    }

    /// Writes down whether the volume may be changed; one that may not outlives a power cut.
    pub fn seal(&self, name: &str, access: Access) -> Result<()> {
        let mut record = self.read(name)?;
        if access == Access::ReadOnly {
            let tree = self.tree(name);
            let sync = || -> Result<()> { Ok(nix::unistd::syncfs(fs::File::open(&tree)?)?) };
            sync().with_context(|| format!("writing {} to the disk", tree.display()))?;
        }
        record.access = access;
        self.write(name, &record)
    }

    /// Whether the volume may not be changed.
    pub fn is_sealed(&self, name: &str) -> Result<bool> {
        Ok(self.read(name)?.access == Access::ReadOnly)
    }

    /// Refuses when there is no volume of this name.
    pub fn require(&self, name: &str) -> Result<()> {
        self.read(name).map(|_| ())
    }

    /// Bytes of disk a volume's tree takes; what is linked several times counts so often, what
    /// is mounted there not at all.
    pub fn size(&self, name: &str) -> Result<u64> {
        self.require(name)?;
        let tree = self.tree(name);
        let device = fs::metadata(&tree).with_context(|| format!("reading {}", tree.display()))?;
        let mut pending = vec![tree];
        let mut size = 0;
        while let Some(directory) = pending.pop() {
            let context = || format!("reading {}", directory.display());
            for entry in fs::read_dir(&directory).with_context(context)? {
                let entry = entry.with_context(context)?;
                let metadata = entry.metadata().with_context(context)?;
                if metadata.dev() != device.dev() {
                    continue;
                }
                size += metadata.blocks() * BLOCK;
                if metadata.is_dir() {
                    pending.push(entry.path());
                }
            }
        }
        Ok(size)
    }

    /// How full the file system is.
    pub fn usage(&self) -> Result<Usage> {
        let existing =
            self.volumes.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let stat = nix::sys::statvfs::statvfs(existing)
            .with_context(|| format!("looking at {}", existing.display()))?;
        let block = stat.fragment_size();
        Ok(Usage {
            total: stat.blocks() * block,
            free: stat.blocks_available() * block,
            metadata_percent: None,
        })
    }

    /// Gives a volume another name.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.require(from)?;
        // RENAME_NOREPLACE: rename(2) alone would replace an empty directory.
        nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            &self.volume(from),
            nix::fcntl::AT_FDCWD,
            &self.volume(to),
            nix::fcntl::RenameFlags::RENAME_NOREPLACE,
        )
        .with_context(|| format!("renaming volume {from} to {to}"))
    }

    /// Removes a volume's directory, with a tree still in it.
    pub fn remove(&self, name: &str) -> Result<()> {
        remove_tree(&self.volume(name))
    }

    /// The backend's volumes.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let entries = match fs::read_dir(&self.volumes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("reading {}", self.volumes.display()));
            }
        };
        let mut volumes = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // Without a readable mark it is not provably ours: left alone, and reported by doctor.
            let Ok(Record { mark, access, storage, .. }) = self.read(&name) else { continue };
            if storage == self.storage {
                volumes.push(Volume { name, mark, size: None, access });
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }
}

/// Removes a directory and what is in it, without leaving its file system and without
/// following links. Nothing there is fine.
///
/// # Errors
/// When something cannot be removed, or another file system is mounted inside.
pub fn remove_tree(path: &Path) -> Result<()> {
    check_interrupted()?;
    if !path.exists() {
        return Ok(());
    }
    if let Some(point) = mount::mounts_beneath(path)?.first() {
        bail!("{} is still mounted", point.display());
    }
    // std's remove_dir_all works with directory file descriptors and follows no links.
    fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))
}
