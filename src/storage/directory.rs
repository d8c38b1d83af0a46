//! Volumes as plain directories, sessions as overlays: needs no volume group.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::shelf::Shelf;
use super::{Access, Copies, Mark, Stanza, Storage, Tree, Usage, Volume};
use crate::error::refuse;
use crate::layout::Layout;
use crate::run::{Invocation, Tool};
use crate::size::Size;

const CP: Tool = Tool { name: "cp", package: "coreutils" };

/// The `directory` backend.
#[derive(Debug)]
pub struct Directory {
    shelf: Shelf,
}

impl Directory {
    /// Volumes where `layout` says.
    pub fn new(layout: &Layout) -> Self {
        Self { shelf: Shelf::new(layout.volumes(), "directory") }
    }

    fn copying(&self, from: &str, to: &str) -> Invocation {
        copying(&self.shelf.tree(from), &self.shelf.tree(to))
            .named(format!("copying volume {from}"))
    }
}

/// The call that copies a tree. `cp -a` keeps hard links, owners, times and capabilities,
/// and shares extents where the file system can.
pub fn copying(from: &Path, to: &Path) -> Invocation {
    Invocation::of(&CP).args(["-a", "--reflink=auto", "--one-file-system"]).args([from, to])
}

impl Storage for Directory {
    fn name(&self) -> &'static str {
        "directory"
    }

    fn tools(&self) -> Vec<&'static Tool> {
        vec![&CP]
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

    fn create(&self, name: &str, _size: Size, mark: &Mark) -> Result<()> {
        self.shelf.begin(name, mark)?;
        let tree = self.shelf.tree(name);
        fs::create_dir(&tree).with_context(|| format!("making {}", tree.display()))?;
        self.shelf.settle_root(name)
    }

    fn fork(&self, from: &str, to: &str, mark: &Mark) -> Result<()> {
        self.shelf.require(from)?;
        self.shelf.begin(to, mark)?;
        self.copying(from, to).run()
    }

    fn fork_takes(&self, name: &str) -> Result<u64> {
        self.shelf.size(name)
    }

    fn open(&self, name: &str, access: Access) -> Result<Tree> {
        Ok(Tree::lying(self.shelf.open(name, access)?))
    }

    fn seal(&self, name: &str, access: Access) -> Result<()> {
        self.shelf.seal(name, access)
    }

    fn usage(&self) -> Result<Usage> {
        self.shelf.usage()
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.shelf.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.shelf.remove(name)
    }

    fn list(&self) -> Result<Vec<Volume>> {
        self.shelf.list()
    }

    fn describe_create(&self, name: &str, _size: Size) -> Result<Vec<String>> {
        Ok(vec![format!("mkdir {}", self.shelf.tree(name).display())])
    }

    fn describe_fork(&self, from: &str, to: &str) -> Result<Vec<String>> {
        Ok(vec![self.copying(from, to).display()])
    }

    fn stanza(&self, name: &str, _copies: Copies) -> Result<Stanza> {
        Ok(Stanza(vec![
            ("type", "directory".to_owned()),
            ("directory", self.shelf.tree(name).display().to_string()),
            ("union-type", "overlay".to_owned()),
        ]))
    }

    fn check_copy(&self, _session: &str, volume: &str, _copies: Copies) -> Result<()> {
        // schroot::begin looks for layers of the name itself.
        self.shelf.require(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size::of_mib(1);

    fn mark() -> Mark {
        Mark { node: "n".to_owned(), transaction: "t".to_owned() }
    }

    #[test]
    fn a_fork_keeps_hard_links_and_a_sealed_volume_refuses_writers() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let storage = Directory::new(&Layout::new(root.path(), None));
        storage.create("fv-a-1", SIZE, &mark()).expect("the volume is new");
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
        storage.create("fv-a-1", SIZE, &mark()).expect("the volume is new");
        let error = storage.create("fv-a-1", SIZE, &mark()).expect_err("the name is taken");
        assert_eq!(error.to_string(), "there is a volume fv-a-1 already");
    }
}
