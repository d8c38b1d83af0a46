//! The btrfs backend on a real btrfs: a loop device, in a mount namespace of its own.

#![expect(clippy::disallowed_types, reason = "bare tools are called as people call them")]

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{in_namespace, run, tool};
use farmctl::layout::Layout;
use farmctl::settings::{Settings, Site};
use farmctl::size::Size;
use farmctl::storage::{self, Access, Copies, Mark, Storage};

const SIZE: Size = Size::of_mib(64);

/// Calls `test` with a root whose volumes are on btrfs; `name` is the calling test's. The
/// loop device goes with the mount, and the mount with the namespace.
#[track_caller]
fn on_btrfs(name: &str, test: impl FnOnce(&Site<'_>)) {
    if !in_namespace(name) {
        return;
    }
    let root = tempfile::tempdir().expect("there is room");
    let image = root.path().join("image");
    fs::File::create(&image).and_then(|file| file.set_len(256 << 20)).expect("there is room");
    let layout = Layout::new(root.path().join("root"), None);
    let volumes = layout.volumes();
    fs::create_dir_all(&volumes).expect("there is room");
    let [image, mount] = [&image, &volumes].map(|path| path.display().to_string());
    tool("mkfs.btrfs", &["--quiet", &image]);
    tool("mount", &["-o", "loop", &image, &mount]);
    let settings = Settings::default();
    test(&Site { layout: &layout, settings: &settings, node: Some("node") });
    tool("umount", &[&mount]);
}

fn mark() -> Mark {
    Mark { node: "node".to_owned(), transaction: "transaction".to_owned() }
}

fn names(storage: &dyn Storage) -> Vec<String> {
    storage.list().expect("it can be read").into_iter().map(|volume| volume.name).collect()
}

fn btrfs(arguments: &[&str], path: &Path) {
    let path = path.display().to_string();
    tool("btrfs", &[arguments, &[path.as_str()]].concat());
}

#[test]
fn auto_takes_btrfs_where_the_volumes_are_on_it() {
    on_btrfs("auto_takes_btrfs_where_the_volumes_are_on_it", |site| {
        let choice = storage::choose(None, site).expect("nothing else is set");
        assert_eq!(choice.storage.name(), "btrfs");
        assert_eq!(choice.why, format!("{} is on btrfs", site.layout.volumes().display()));
    });
}

#[test]
fn a_sealed_volume_cannot_be_written_and_its_fork_can() {
    on_btrfs("a_sealed_volume_cannot_be_written_and_its_fork_can", |site| {
        let storage = storage::named("btrfs", site).expect("it is a backend");
        storage.create("fv-a-1", SIZE, &mark()).expect("the name is free");
        let tree = storage.open("fv-a-1", Access::ReadWrite).expect("it is open");
        let file = tree.path().join("file");
        fs::write(&file, "one").expect("it is open");
        tree.close().expect("nothing uses it");
        storage.seal("fv-a-1", Access::ReadOnly).expect("it is there");
        let error = fs::write(&file, "two").expect_err("btrfs refuses");
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        storage.fork("fv-a-1", "fv-a-2", &mark()).expect("there is room");
        let fork = storage.open("fv-a-2", Access::ReadWrite).expect("a fork is open");
        fs::write(fork.path().join("file"), "two").expect("a fork is open");
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "one");
        assert_eq!(names(storage.as_ref()), ["fv-a-1", "fv-a-2"]);
        storage.rename("fv-a-2", "fv-a-3").expect("the name is free");
        for name in ["fv-a-1", "fv-a-3", "fv-none"] {
            storage.remove(name).expect("nothing uses it");
        }
        assert_eq!(names(storage.as_ref()), [""; 0]);
    });
}

#[test]
fn every_change_of_a_volume_is_another_one_and_nothing_else_is() {
    on_btrfs("every_change_of_a_volume_is_another_one_and_nothing_else_is", |site| {
        let storage = storage::named("btrfs", site).expect("it is a backend");
        storage.create("fv-a-1", SIZE, &mark()).expect("the name is free");
        let volumes = site.layout.volumes();
        let tree = volumes.join("fv-a-1/root");
        let shell = |text: &str| {
            tool("sh", &["-ec", &format!("cd \"$0\"; {text}; sync"), &tree.display().to_string()])
        };
        let last = || storage.last_change("fv-a-1").expect("btrfs knows it");
        shell("echo one >small; head -c 100000 /dev/urandom >large; mkdir directory");
        let mut before = last();
        for change in [
            "printf x | dd conv=notrunc status=none of=large",
            "truncate -s 90000 large",
            "fallocate --punch-hole --offset 4096 --length 4096 large",
            "cp --reflink=always large small",
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
            shell(change);
            assert_ne!(last(), before, "{change}");
            before = last();
        }
        storage.seal("fv-a-1", Access::ReadOnly).expect("it is there");
        storage.fork("fv-a-1", "fv-a-2", &mark()).expect("there is room");
        fs::write(volumes.join("fv-a-2/root/large"), "other").expect("a fork is open");
        fs::read(tree.join("large")).expect("it is there");
        storage.rename("fv-a-1", "fv-a-3").expect("the name is free");
        storage.rename("fv-a-3", "fv-a-1").expect("the name is free");
        btrfs(&["--quiet", "balance", "start", "--full-balance"], &volumes);
        btrfs(&["--quiet", "scrub", "start", "-B"], &volumes);
        btrfs(&["filesystem", "sync"], &volumes);
        assert_eq!(last(), before);
        assert_ne!(storage.last_change("fv-a-2"), Some(before));
        for name in ["fv-a-1", "fv-a-2"] {
            storage.remove(name).expect("nothing uses it");
        }
    });
}

#[test]
fn a_session_schroot_could_not_delete_goes_with_the_subvolumes_in_it() {
    on_btrfs("a_session_schroot_could_not_delete_goes_with_the_subvolumes_in_it", |site| {
        let storage = storage::named("btrfs", site).expect("it is a backend");
        storage.create("fv-a-1", SIZE, &mark()).expect("the name is free");
        storage.seal("fv-a-1", Access::ReadOnly).expect("it is there");
        let stanza = storage.stanza("fv-a-1", Copies::default()).expect("it is there").0;
        let value = |key: &str| {
            let (_, value) = stanza.iter().find(|(known, _)| *known == key).expect("it is a key");
            PathBuf::from(value)
        };
        storage.check_copy("fs-a-1", "fv-a-1", Copies::default()).expect("the name is free");
        // What 05btrfs does, and what systemd in a session would.
        let session = value("btrfs-snapshot-directory").join("fs-a-1");
        let source = value("btrfs-source-subvolume").display().to_string();
        btrfs(&["subvolume", "snapshot", &source], &session);
        let nested = session.join("machines");
        btrfs(&["subvolume", "create"], &nested);
        fs::write(nested.join("file"), "x").expect("it is ours");
        let sealed = session.join("sealed");
        btrfs(&["subvolume", "snapshot", "-r", &nested.display().to_string()], &sealed);
        let mut delete = Command::new("btrfs");
        delete.args(["subvolume", "delete"]).arg(&session);
        assert_ne!(run(delete).code, 0, "the trap is not there any more");

        let taken = storage.check_copy("fs-a-1", "fv-a-1", Copies::default());
        let error = taken.expect_err("the name is taken").to_string();
        assert!(error.ends_with("fs-a-1 is there already"), "{error}");
        let copies = storage.copies().expect("they can be listed");
        assert_eq!(copies.len(), 1);
        storage.remove_copy("fs-a-1").expect("nothing uses it");
        assert!(!session.exists());
        storage.remove_copy("fs-a-1").expect("it is gone already");
        storage.remove("fv-a-1").expect("nothing uses it");
    });
}
