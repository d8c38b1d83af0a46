//! Volumes as plain directories, sessions as overlays: needs no volume group.
//!
//! A layer is a directory as well, which has a link `lower` to the tree it lies over, and `upper`
//! and `work` as overlayfs wants them. A bake that copied the tree instead would make twenty
//! thousand files and remove them again, and ext4 looks for a free inode among those that were
//! removed in the last minutes for so long that the next copy takes three times as long
//! (`recently_deleted` in fs/ext4/ialloc.c).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::mount::MsFlags;

use super::shelf::{Shelf, remove_tree};
use super::{Access, Copies, Mark, Stanza, Storage, Tree, Usage, Volume};
use crate::error::refuse;
use crate::file;
use crate::layout::Layout;
use crate::mount::{self, Mount};
use crate::run::{Invocation, Tool, check_interrupted, quote};
use crate::size::Size;

const CP: Tool = Tool { name: "cp", package: "coreutils" };
/// What overlayfs wants of a layer besides what it lies over.
const PARTS: [&str; 2] = ["upper", "work"];
/// The option that keeps hard links: their bytes would be packed several times.
const INDEX: &str = "index=on";

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

    /// What leads from a layer to the tree it lies over; other volumes have none.
    fn lower(&self, layer: &str) -> PathBuf {
        self.shelf.part(layer, "lower")
    }

    fn is_layer(&self, name: &str) -> bool {
        self.lower(name).is_symlink()
    }

    /// How a layer is mounted: renames and hard links are what they are in a file system of its
    /// own. It need not outlive a power cut, and nothing in it waits for the disk.
    fn options(&self, layer: &str) -> String {
        let part = |part: &str| {
            let path = self.shelf.part(layer, part).display().to_string();
            // What separates options, and layers.
            path.replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:")
        };
        let (lower, upper, work) = (part("lower"), part("upper"), part("work"));
        format!(
            "redirect_dir=on,{INDEX},metacopy=off,volatile,lowerdir={lower},upperdir={upper},\
             workdir={work}"
        )
    }

    /// What the link of a layer says.
    fn beneath(from: &str) -> PathBuf {
        Path::new("..").join(from).join(Shelf::TREE)
    }

    /// Makes the parts of a layer and sees whether it can be mounted.
    fn lay(&self, from: &str, to: &str) -> Result<()> {
        symlink(Self::beneath(from), self.lower(to)).context("linking what it lies over")?;
        for part in PARTS {
            file::make_directory(&self.shelf.part(to, part), 0o755)?;
        }
        let tree = self.open(to, Access::ReadWrite)?;
        // Else the kernel does without, and says so in its log alone.
        let keeps_links = mount::has_option(tree.path(), INDEX)?;
        tree.close()?;
        ensure!(keeps_links, "a layer there does not keep hard links");
        Ok(())
    }

    /// Removes what [`Self::lay`] has made.
    fn lift(&self, layer: &str) -> Result<()> {
        file::remove_if_there(&self.lower(layer))?;
        let parts = PARTS.into_iter().chain([Shelf::TREE]);
        parts.into_iter().try_for_each(|part| remove_tree(&self.shelf.part(layer, part)))
    }

    /// Copies a tree into the volume `to`, which has none yet.
    fn copy(&self, from: &str, to: &str) -> Result<()> {
        let tree = self.open(from, Access::ReadOnly)?;
        let copying = copying(tree.path(), &self.shelf.tree(to));
        copying.named(format!("copying volume {from}")).run()?;
        tree.close()
    }
}

/// The call that copies a tree. `cp -a` keeps hard links, owners, times and capabilities,
/// and shares extents where the file system can, if it is not out of a layer.
fn copying(from: &Path, to: &Path) -> Invocation {
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
        self.copy(from, to)
    }

    fn layer(&self, from: &str, to: &str, mark: &Mark) -> Result<()> {
        self.shelf.require(from)?;
        let is_sealed = self.shelf.is_sealed(from)?;
        self.shelf.begin(to, mark)?;
        // Beneath a layer nothing may change.
        if is_sealed {
            let Err(error) = self.lay(from, to) else { return Ok(()) };
            // Not every file system takes an upper layer: overlayfs itself, for one.
            check_interrupted()?;
            tracing::info!("copying {from}, which cannot be layered over: {error:#}");
            self.lift(to)?;
        }
        self.copy(from, to)
    }

    fn lasts(&self, name: &str) -> bool {
        !self.is_layer(name)
    }

    fn fork_takes(&self, name: &str) -> Result<u64> {
        self.shelf.size(name)
    }

    fn open(&self, name: &str, access: Access) -> Result<Tree> {
        let tree = self.shelf.open(name, access)?;
        if !self.is_layer(name) {
            return Ok(Tree::lying(tree));
        }
        file::make_directory(&tree, 0o755)?;
        // Where a volatile overlay was mounted, the kernel mounts none again until this is gone:
        // https://docs.kernel.org/filesystems/overlayfs.html#volatile-mount
        remove_tree(&self.shelf.part(name, "work/work/incompat"))?;
        let flags = match access {
            Access::ReadOnly => MsFlags::MS_RDONLY,
            Access::ReadWrite => MsFlags::empty(),
        };
        let mount = Mount::new("overlay", &tree, flags, &self.options(name))?;
        Ok(Tree::mounted(tree, mount))
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

    fn check_new(&self, name: &str) -> Result<()> {
        self.shelf.check_new(name)
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
        Ok(vec![copying(&self.shelf.tree(from), &self.shelf.tree(to)).display()])
    }

    fn describe_layer(&self, from: &str, to: &str) -> Result<Vec<String>> {
        let shown = |path: PathBuf| quote(&path.display().to_string());
        let (lower, tree) = (shown(self.lower(to)), shown(self.shelf.tree(to)));
        let parts = PARTS.map(|part| shown(self.shelf.part(to, part))).join(" ");
        Ok(vec![
            format!("ln -s {} {lower}", shown(Self::beneath(from))),
            format!("mkdir {parts} {tree}"),
            format!("mount -t overlay -o {} overlay {tree}", quote(&self.options(to))),
        ])
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
    fn a_layer_is_what_it_lies_over_until_it_is_changed() {
        let root = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
        let storage = Directory::new(&Layout::new(root.path().join("a:b,c"), None));
        storage.create("fv-a-1", SIZE, &mark()).expect("the volume is new");
        let below = storage.open("fv-a-1", Access::ReadWrite).expect("it is open");
        let write = |tree: &Tree, name: &str, text: &str| {
            fs::write(tree.path().join(name), text).expect("the tree is writable");
        };
        fs::create_dir(below.path().join("directory")).expect("the tree is writable");
        write(&below, "directory/one", "x");
        fs::hard_link(below.path().join("directory/one"), below.path().join("two"))
            .expect("same file system");
        storage.seal("fv-a-1", Access::ReadOnly).expect("the volume is there");
        mount::in_private_namespace(|| {
            storage.layer("fv-a-1", "fv-stage-1", &mark())?;
            assert!(storage.lower("fv-stage-1").is_symlink(), "it was copied");
            let tree = storage.open("fv-stage-1", Access::ReadWrite)?;
            write(&tree, "two", "y");
            fs::rename(tree.path().join("directory"), tree.path().join("renamed"))?;
            tree.close()?;
            storage.fork("fv-stage-1", "fv-a-2", &mark())
        })
        .expect("there is room");
        let read = |path: &str| {
            let tree = storage.open("fv-a-2", Access::ReadOnly).expect("it is open");
            fs::read_to_string(tree.path().join(path)).expect("it was copied")
        };
        assert_eq!((read("renamed/one"), read("two")), ("y".to_owned(), "y".to_owned()));
        assert_eq!(fs::read_to_string(below.path().join("two")).expect("it is there"), "x");
        storage.remove("fv-stage-1").expect("nothing is mounted there");
        assert!(below.path().join("directory/one").exists());
    }

    #[test]
    fn what_cannot_be_layered_over_is_copied() {
        let root = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
        let place = |name: &str| root.path().join(name);
        for name in ["lower", "upper", "work", "farm"] {
            fs::create_dir(place(name)).expect("there is room");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            place("lower").display(),
            place("upper").display(),
            place("work").display()
        );
        mount::in_private_namespace(|| {
            // overlayfs is no place for a layer.
            let _farm = Mount::new("overlay", &place("farm"), MsFlags::empty(), &options)?;
            let storage = Directory::new(&Layout::new(place("farm"), None));
            let begin = |from: &str| -> Result<()> {
                storage.create(from, SIZE, &mark())?;
                let tree = storage.open(from, Access::ReadWrite)?;
                Ok(fs::write(tree.path().join("one"), "x")?)
            };
            let copied = |to: &str| -> Result<String> {
                assert!(storage.lasts(to), "{to} is a layer");
                let tree = storage.open(to, Access::ReadWrite)?;
                Ok(fs::read_to_string(tree.path().join("one"))?)
            };
            begin("fv-a-1")?;
            storage.seal("fv-a-1", Access::ReadOnly)?;
            storage.layer("fv-a-1", "fv-stage-1", &mark())?;
            assert_eq!(copied("fv-stage-1")?, "x");
            assert_eq!(file::names_in(&storage.shelf.part("fv-stage-1", "."))?.len(), 2);
            Ok(())
        })
        .expect("it can be copied");
        // What may still be changed is copied everywhere.
        let storage = Directory::new(&Layout::new(place("plain"), None));
        storage.create("fv-a-1", SIZE, &mark()).expect("the volume is new");
        storage.layer("fv-a-1", "fv-stage-1", &mark()).expect("there is room");
        assert!(storage.lasts("fv-stage-1"));
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
