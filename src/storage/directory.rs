//! Volumes as plain directories, sessions as overlays: needs no volume group.
//!
//! A volume is `VOLUMES/NAME/` with `volume.json` (its mark) and `root/` (its tree).
//! The mark is written before the tree, so a half-made volume is found by `gc`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Access, Mark, Stanza, Storage, Tree, Usage, Volume};
use crate::error::refuse;
use crate::layout::Layout;
use crate::mount;
use crate::run::{Invocation, Tool, check_interrupted};

const CP: Tool = Tool { name: "cp", package: "coreutils" };

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Record {
    schema: u32,
    mark: Mark,
    access: Access,
}

/// The `directory` backend.
#[derive(Debug)]
pub struct Directory {
    volumes: PathBuf,
}

impl Directory {
    /// Volumes where `layout` says.
    pub fn new(layout: &Layout) -> Self {
        Self { volumes: layout.volumes() }
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.volumes.join(name)
    }

    fn tree(&self, name: &str) -> PathBuf {
        self.volume(name).join("root")
    }

    fn read(&self, name: &str) -> Result<Record> {
        let path = self.volume(name).join("volume.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("no volume {name}"),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
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

    /// Makes the volume's directory and mark; its tree is still missing.
    fn begin(&self, name: &str, mark: &Mark) -> Result<()> {
        let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(&self.volumes).with_context(|| format!("making {}", self.volumes.display()))?;
        let directory = self.volume(name);
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return refuse(
                    format_args!("there is a volume {name} already"),
                    "farmctl gc --check",
                );
            }
            Err(error) => {
                return Err(error).with_context(|| format!("making {}", directory.display()));
            }
        }
        let record = Record { schema: 1, mark: mark.clone(), access: Access::ReadWrite };
        self.write(name, &record)
    }

    /// `cp -a` keeps hard links, owners, times and capabilities, and shares extents
    /// where the file system can.
    fn copying(&self, from: &str, to: &str) -> Invocation {
        Invocation::of(&CP)
            .args(["-a", "--reflink=auto", "--one-file-system"])
            .args([self.tree(from), self.tree(to)])
            .named(format!("copying volume {from}"))
    }
}

impl Storage for Directory {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn check(&self) -> Result<()> {
        let systems =
            fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
        if systems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay")
            || Path::new("/sys/module/overlay").exists()
        {
            return Ok(());
        }
        // The module may only not have been loaded yet: mount(2) loads it.
        let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
        let module = format!("/lib/modules/{kernel}/kernel/fs/overlayfs");
        if Path::new(&module).exists() {
            return Ok(());
        }
        refuse(
            "the kernel has no overlayfs",
            "use another storage backend, or a kernel with overlayfs",
        )
    }

    fn create(&self, name: &str, mark: &Mark) -> Result<()> {
        self.begin(name, mark)?;
        let tree = self.tree(name);
        // umask 022 may have been tightened; a tree's root is what its users see as `/`.
        fs::create_dir(&tree)
            .and_then(|()| fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("making {}", tree.display()))
    }

    fn fork(&self, from: &str, to: &str, mark: &Mark) -> Result<()> {
        self.read(from)?;
        self.begin(to, mark)?;
        self.copying(from, to).run()
    }

    fn open(&self, name: &str, access: Access) -> Result<Tree> {
        let record = self.read(name)?;
        if access == Access::ReadWrite && record.access == Access::ReadOnly {
            bail!("volume {name} is sealed");
        }
        Ok(Tree { path: self.tree(name) })
    }

    fn seal(&self, name: &str, access: Access) -> Result<()> {
        let mut record = self.read(name)?;
        record.access = access;
        self.write(name, &record)
    }

    fn usage(&self) -> Result<Usage> {
        let existing =
            self.volumes.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let stat = nix::sys::statvfs::statvfs(existing)
            .with_context(|| format!("looking at {}", existing.display()))?;
        let block = stat.fragment_size();
        Ok(Usage { total: stat.blocks() * block, free: stat.blocks_available() * block })
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.read(from)?;
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

    fn remove(&self, name: &str) -> Result<()> {
        let directory = self.volume(name);
        if let Some(point) = mount::mounts_beneath(&directory)?.first() {
            bail!("{} is still mounted", point.display());
        }
        remove_tree(&directory)
    }

    fn list(&self) -> Result<Vec<Volume>> {
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
            if let Ok(record) = self.read(&name) {
                volumes.push(Volume { name, mark: record.mark });
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    fn describe_create(&self, name: &str) -> Vec<String> {
        vec![format!("mkdir {}", self.tree(name).display())]
    }

    fn describe_fork(&self, from: &str, to: &str) -> Vec<String> {
        vec![self.copying(from, to).display()]
    }

    fn stanza(&self, name: &str) -> Stanza {
        Stanza(vec![
            ("type", "directory".to_owned()),
            ("directory", self.tree(name).display().to_string()),
            ("union-type", "overlay".to_owned()),
        ])
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark { node: "n".to_owned(), transaction: "t".to_owned() }
    }

    #[test]
    fn a_fork_keeps_hard_links_and_a_sealed_volume_refuses_writers() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let storage = Directory::new(&Layout::new(root.path(), None));
        storage.create("fv-a-1", &mark()).expect("the volume is new");
        let tree = storage.open("fv-a-1", Access::ReadWrite).expect("it is open");
        fs::write(tree.path().join("one"), "x").expect("the tree is writable");
        fs::hard_link(tree.path().join("one"), tree.path().join("two")).expect("same directory");
        storage.fork("fv-a-1", "fv-a-2", &mark()).expect("there is room");
        let copy = storage.open("fv-a-2", Access::ReadWrite).expect("it is open");
        let links = std::os::unix::fs::MetadataExt::nlink(
            &fs::metadata(copy.path().join("one")).expect("it was copied"),
        );
        assert_eq!(links, 2);
        storage.seal("fv-a-2", Access::ReadOnly).expect("the volume is there");
        let error = storage.open("fv-a-2", Access::ReadWrite).expect_err("it is sealed");
        assert_eq!(error.to_string(), "volume fv-a-2 is sealed");
        storage.remove("fv-a-1").expect("nothing is mounted there");
        let names: Vec<String> =
            storage.list().expect("it can be read").into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, ["fv-a-2"]);
    }

    #[test]
    fn a_second_volume_of_a_name_is_refused() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let storage = Directory::new(&Layout::new(root.path(), None));
        storage.create("fv-a-1", &mark()).expect("the volume is new");
        let error = storage.create("fv-a-1", &mark()).expect_err("the name is taken");
        assert_eq!(error.to_string(), "there is a volume fv-a-1 already");
    }
}
