//! Ways in which schroot 1.6.13 goes wrong on the directory backend: each is shown with
//! bare schroot, and then that farmctl does not fall into it.
//!
//! Every test runs in a mount namespace of its own, with its own /etc, /var/lib/schroot
//! and /run/schroot: the test binary calls itself again through unshare(1).

#![expect(clippy::disallowed_types, reason = "bare schroot is called as people call it")]

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ran, Running, in_namespace, run, tool, wait_for};
use farmctl::error::render;
use farmctl::profile::Grants;
use farmctl::schroot::{self, Definition};
use farmctl::storage::Stanza;
use farmctl::{mount, process};

/// schroot with nothing in its books.
struct Sandbox {
    tmp: PathBuf,
}

impl Sandbox {
    /// Calls `test` in a namespace of its own; `name` is the calling test's.
    #[track_caller]
    fn with(name: &str, test: impl FnOnce(&Self)) {
        if in_namespace(name) {
            test(&Self::new());
        }
    }

    /// Gives the namespace an /etc that can be changed, empty books, and a small tree.
    fn new() -> Self {
        // Sessions that really run here are not for this namespace to see.
        for place in ["/run/schroot", "/var/lib/schroot"] {
            let mounts = mount::mounts_beneath(Path::new(place)).expect("/proc is there");
            for point in mounts.iter().rev() {
                tool("umount", &["--lazy", &point.display().to_string()]);
            }
        }
        // Any directory that is nobody's and stays empty outside of the namespace.
        let tmp = PathBuf::from("/mnt");
        tool("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/mnt"]);
        for name in ["upper", "work", "lib", "tree"] {
            fs::create_dir(tmp.join(name)).expect("it is ours");
        }
        let layers = "lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work";
        tool("mount", &["-t", "overlay", "-o", layers, "overlay", "/etc"]);
        for name in ["session", "mount", "unpack", "union/overlay", "union/underlay"] {
            fs::create_dir_all(tmp.join("lib").join(name)).expect("it is ours");
        }
        tool("mount", &["--bind", "/mnt/lib", "/var/lib/schroot"]);
        fs::create_dir_all("/run/schroot").expect("tests run as root");
        tool("mount", &["-t", "tmpfs", "tmpfs", "/run/schroot"]);
        for directory in ["/etc/schroot/chroot.d", "/etc/schroot/farmctl"] {
            drop(fs::remove_dir_all(directory));
        }
        fs::create_dir_all("/etc/schroot/chroot.d").expect("it is ours");
        let sandbox = Self { tmp };
        sandbox.fill_tree();
        sandbox
    }

    fn tree(&self) -> PathBuf {
        self.tmp.join("tree")
    }

    fn fill_tree(&self) {
        let tree = self.tree();
        for name in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
            fs::create_dir(tree.join(name)).expect("it is ours");
        }
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
        for name in ["sh", "sleep", "true"] {
            symlink("busybox", tree.join("bin").join(name)).expect("it is ours");
        }
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("it is ours");
    }

    fn definition(&self, name: &str) -> Definition {
        Definition {
            name: name.to_owned(),
            description: "a test".to_owned(),
            stanza: Stanza(vec![
                ("type", "directory".to_owned()),
                ("directory", self.tree().display().to_string()),
                ("union-type", "overlay".to_owned()),
            ]),
            fstab: schroot::source_fstab(),
            grants: Grants::default(),
            source_clone: false,
            node: "node".to_owned(),
            transaction: "transaction".to_owned(),
        }
    }

    fn register(&self) {
        schroot::register(&self.definition("farmctl-t-1")).expect("schroot takes it");
    }

    /// A chroot as people define one by hand.
    #[expect(clippy::unused_self, reason = "only in the namespace")]
    fn define(&self, name: &str, keys: &str) {
        fs::write(format!("/etc/schroot/chroot.d/{name}"), format!("[{name}]\n{keys}"))
            .expect("it is ours");
    }
}

fn bare(arguments: &[&str]) -> Ran {
    let mut command = Command::new("schroot");
    command.args(arguments).current_dir("/").stdin(Stdio::null());
    run(command)
}

/// Starts a command of the sandbox that outlives what is done to its session.
fn start(program: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().expect("it can be started"))
}

/// Whether it has not ended, and is no zombie.
fn lives(child: &Child) -> bool {
    process::is_alive(child.id())
}

/// Everything there is of sessions.
fn remains() -> Vec<String> {
    let names = |directory: &str| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect()
    };
    let mut found = names("/var/lib/schroot/session");
    found.extend(names("/var/lib/schroot/union/overlay"));
    found.extend(names("/var/lib/schroot/union/underlay"));
    found.extend(names("/run/schroot/mount"));
    for place in ["/run/schroot/mount", "/var/lib/schroot/union"] {
        let mounts = mount::mounts_beneath(Path::new(place)).expect("/proc is there");
        found.extend(mounts.iter().map(|point| point.display().to_string()));
    }
    found
}

fn nothing() -> Vec<String> {
    Vec::new()
}

#[test]
fn a_session_that_is_begun_with_status_0_and_is_not_there() {
    Sandbox::with("a_session_that_is_begun_with_status_0_and_is_not_there", |sandbox| {
        sandbox.define("bare", "type=block-device\ndevice=/dev/no-such-device\nprofile=minimal\n");
        let ran = bare(&["-b", "-n", "s0", "-c", "chroot:bare"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
        fs::remove_file("/etc/schroot/chroot.d/bare").expect("it is ours");

        let mut definition = sandbox.definition("farmctl-t-1");
        definition.stanza = Stanza(vec![
            ("type", "block-device".to_owned()),
            ("device", "/dev/no-such-device".to_owned()),
        ]);
        schroot::register(&definition).expect("schroot takes it");
        let error = schroot::begin("fs-trap-0", "farmctl-t-1").expect_err("there is no device");
        let text = render(&error);
        assert!(text.contains("beginning session fs-trap-0: schroot: "), "{text}");
        assert!(text.contains("no-such-device"), "{text}");
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn a_session_that_cannot_be_begun_is_not_cleaned_up() {
    Sandbox::with("a_session_that_cannot_be_begun_is_not_cleaned_up", |sandbox| {
        fs::write("/etc/schroot/broken.fstab", "/no/such /tmp none bind 0 0\n").expect("ours");
        let tree = sandbox.tree().display().to_string();
        let keys = format!(
            "type=directory\ndirectory={tree}\nunion-type=overlay\nsetup.fstab=broken.fstab\n\
             setup.copyfiles=\nsetup.nssdatabases=\n"
        );
        sandbox.define("bare", &keys);
        assert_ne!(bare(&["-b", "-n", "s1", "-c", "chroot:bare"]).code, 0);
        assert_ne!(remains(), nothing());
        let again = bare(&["-b", "-n", "s1", "-c", "chroot:bare"]);
        assert!(again.stderr.contains("File exists"), "{}", again.stderr);
        assert_eq!(bare(&["-e", "-c", "session:s1"]).code, 0);
        assert_eq!(remains(), nothing());

        let binds = [(PathBuf::from("/no/such"), PathBuf::from("/tmp"))];
        let definition = Definition {
            fstab: schroot::release_fstab(&binds),
            ..sandbox.definition("farmctl-t-1")
        };
        schroot::register(&definition).expect("schroot takes it");
        for _ in 0..2 {
            let error = schroot::begin("fs-trap-1", "farmctl-t-1").expect_err("it has no source");
            assert!(render(&error).contains("/no/such"), "{}", render(&error));
            assert_eq!(remains(), nothing());
        }
    });
}

#[test]
fn a_session_of_a_name_that_is_taken_is_refused_and_left_alone() {
    Sandbox::with("a_session_of_a_name_that_is_taken_is_refused_and_left_alone", |sandbox| {
        sandbox.register();
        let mount = schroot::begin("fs-trap-2", "farmctl-t-1").expect("the tree is whole");
        fs::write(mount.join("root/kept"), "x").expect("it is ours");
        let before = remains();
        let error = schroot::begin("fs-trap-2", "farmctl-t-1").expect_err("it is there");
        assert!(
            render(&error).contains("there is something of a session fs-trap-2 already"),
            "{}",
            render(&error)
        );
        assert_eq!(remains(), before);
        assert!(mount.join("root/kept").exists());
        schroot::end("fs-trap-2").expect("nothing uses it");
        assert_eq!(remains(), nothing());
        schroot::end("fs-trap-2").expect("it is gone already");
    });
}

#[test]
fn a_live_session_that_is_recovered_gets_a_second_layer() {
    Sandbox::with("a_live_session_that_is_recovered_gets_a_second_layer", |sandbox| {
        sandbox.register();
        let mount = schroot::begin("fs-trap-3", "farmctl-t-1").expect("the tree is whole");
        let path = mount.display().to_string();
        let server = start("chroot", &[&path, "/bin/sleep", "1000"]);
        wait_for("the server runs", Duration::from_secs(5), || {
            schroot::processes_in(&mount).is_ok_and(|found| !found.is_empty())
        });

        let before = remains();
        assert_eq!(schroot::recover("fs-trap-3").expect("it is there"), mount);
        assert_eq!(remains(), before);
        assert!(lives(&server.0));

        // Its processes are ended, or its file system is mounted over.
        bare(&["--recover-session", "-c", "session:fs-trap-3"]);
        let over = remains().iter().filter(|point| **point == path).count() > 2;
        assert!(over || !lives(&server.0), "{:?}", remains());

        schroot::end("fs-trap-3").expect("we started all that is in it");
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn a_session_that_is_not_mounted_is_recovered_with_what_was_written() {
    Sandbox::with("a_session_that_is_not_mounted_is_recovered_with_what_was_written", |sandbox| {
        sandbox.register();
        let mount = schroot::begin("fs-trap-4", "farmctl-t-1").expect("the tree is whole");
        fs::write(mount.join("root/kept"), "x").expect("it is ours");
        // As after a reboot: no mounts, and /run is empty.
        tool("umount", &["--recursive", &mount.display().to_string()]);
        tool("umount", &["/var/lib/schroot/union/underlay/fs-trap-4"]);
        fs::remove_dir_all("/run/schroot/mount").expect("nothing is mounted there");
        assert!(!schroot::is_live("fs-trap-4").expect("/proc is there"));
        schroot::recover("fs-trap-4").expect("its layer is there");
        assert!(mount.join("root/kept").exists());
        let table = fs::read_to_string("/proc/self/mounts").expect("/proc is there");
        let path = format!(" {} ", mount.display());
        let line = table.lines().find(|line| line.contains(&path)).expect("it is mounted");
        assert!(line.contains("nosuid,nodev"), "{line}");
        schroot::end("fs-trap-4").expect("nothing uses it");
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn the_default_profile_brings_the_hosts_passwords_into_a_source() {
    Sandbox::with("the_default_profile_brings_the_hosts_passwords_into_a_source", |sandbox| {
        let passwd = sandbox.tree().join("etc/passwd");
        let tree = sandbox.tree().display().to_string();
        let ours = fs::read_to_string(&passwd).expect("it is ours");
        for name in ["services", "protocols", "networks", "hosts"] {
            fs::write(format!("/etc/{name}"), "").expect("it is ours");
        }
        let environment = Definition { source_clone: true, ..sandbox.definition("farmctl-env-t") };
        schroot::register(&environment).expect("schroot takes it");
        let entered = schroot::enter_source("farmctl-env-t", &["/bin/true"]);
        entered.run().expect("the tree is whole");
        assert_eq!(fs::read_to_string(&passwd).expect("it is ours"), ours);
        for name in ["shadow", "group", "hosts", "resolv.conf"] {
            assert!(!sandbox.tree().join("etc").join(name).exists(), "{name} got in");
        }

        let keys = format!(
            "type=directory\ndirectory={tree}\nunion-type=overlay\nprofile=default\nsource-clone=true\n"
        );
        sandbox.define("bare", &keys);
        let ran = bare(&["-c", "source:bare", "-d", "/", "-u", "root", "--", "/bin/true"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_ne!(fs::read_to_string(&passwd).expect("it is ours"), ours);
        assert!(sandbox.tree().join("etc/shadow").exists());
    });
}

#[test]
fn a_host_without_services_and_networks_has_no_sessions_of_the_default_profile() {
    let name = "a_host_without_services_and_networks_has_no_sessions_of_the_default_profile";
    Sandbox::with(name, |sandbox| {
        for name in ["services", "protocols", "networks", "hosts", "resolv.conf"] {
            drop(fs::remove_file(format!("/etc/{name}")));
        }
        let tree = sandbox.tree().display().to_string();
        let keys =
            format!("type=directory\ndirectory={tree}\nunion-type=overlay\nprofile=default\n");
        sandbox.define("bare", &keys);
        let ran = bare(&["-b", "-n", "s5", "-c", "chroot:bare"]);
        assert_ne!(ran.code, 0);
        assert!(ran.stderr.contains("/etc/"), "{}", ran.stderr);
        bare(&["-e", "-c", "session:s5"]);
        fs::remove_file("/etc/schroot/chroot.d/bare").expect("it is ours");

        sandbox.register();
        schroot::begin("fs-trap-5", "farmctl-t-1").expect("it copies only what is there");
        schroot::end("fs-trap-5").expect("nothing uses it");
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn one_broken_file_makes_schroot_refuse_everything() {
    Sandbox::with("one_broken_file_makes_schroot_refuse_everything", |sandbox| {
        sandbox.register();
        sandbox.define("bad", "type=directory\ndirectory=relative\n");
        assert_ne!(bare(&["-b", "-n", "s6", "-c", "chroot:farmctl-t-1"]).code, 0);
        let named = "hint: /etc/schroot/chroot.d/bad is not farmctl's";
        let error = schroot::register(&sandbox.definition("farmctl-t-2")).expect_err("bad is");
        assert!(render(&error).contains(named), "{}", render(&error));
        assert!(!Path::new("/etc/schroot/chroot.d/farmctl-t-2").exists());
        assert!(!Path::new("/etc/schroot/farmctl/farmctl-t-2.fstab").exists());
        let error = schroot::begin("fs-trap-6", "farmctl-t-1").expect_err("bad is");
        assert!(render(&error).contains(named), "{}", render(&error));
        let error = schroot::check().expect_err("bad is");
        assert!(render(&error).contains(named), "{}", render(&error));
        fs::remove_file("/etc/schroot/chroot.d/bad").expect("it is ours");

        // In the books it is no better: no session can be ended any more, but ours.
        schroot::begin("fs-trap-6", "farmctl-t-1").expect("the tree is whole");
        fs::write("/var/lib/schroot/session/other", "rubbish\n").expect("it is ours");
        assert_ne!(bare(&["-e", "-c", "session:fs-trap-6"]).code, 0);
        schroot::end("fs-trap-6").expect("all parts of it are known");
        let error = schroot::check().expect_err("other is");
        let named = "hint: /var/lib/schroot/session/other is not farmctl's";
        assert!(render(&error).contains(named), "{}", render(&error));
        fs::remove_file("/var/lib/schroot/session/other").expect("it is ours");
        schroot::check().expect("all is mended");
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn a_definition_of_somebody_else_is_not_replaced() {
    Sandbox::with("a_definition_of_somebody_else_is_not_replaced", |sandbox| {
        let tree = sandbox.tree().display().to_string();
        sandbox.define("farmctl-t-1", &format!("type=directory\ndirectory={tree}\n"));
        let path = "/etc/schroot/chroot.d/farmctl-t-1";
        let before = fs::read(path).expect("it is there");
        let error = schroot::register(&sandbox.definition("farmctl-t-1")).expect_err("it is his");
        assert_eq!(error.to_string(), format!("{path} is there already, and not this node's"));
        assert_eq!(fs::read(path).expect("it is there"), before);
        fs::remove_file(path).expect("it is ours");

        sandbox.register();
        sandbox.register();
        let names: Vec<String> = schroot::registered()
            .expect("it is readable")
            .into_iter()
            .map(|chroot| chroot.name)
            .collect();
        assert_eq!(names, ["farmctl-t-1"]);
        schroot::unregister("farmctl-t-1").expect("it is ours");
        schroot::unregister("farmctl-t-1").expect("it is gone already");
        assert!(!Path::new("/etc/schroot/farmctl").exists());
    });
}

#[test]
fn a_process_behind_pivot_root_survives_the_end_of_its_session() {
    Sandbox::with("a_process_behind_pivot_root_survives_the_end_of_its_session", |sandbox| {
        sandbox.register();
        // What systemd's RootDirectory= does.
        let pivot = |session: &str| {
            let mount = schroot::begin(session, "farmctl-t-1").expect("the tree is whole");
            let path = mount.display();
            let script = format!(
                "cd {path} && mkdir -p old && pivot_root . old && exec /bin/busybox sh -c \
                 'busybox umount -l /old; exec sleep 1000'"
            );
            let server = start("unshare", &["--mount", "sh", "-c", &script]);
            let name = format!("/proc/{}/comm", server.0.id());
            wait_for("the server runs", Duration::from_secs(5), || {
                fs::read_to_string(&name).is_ok_and(|name| name.starts_with("sleep"))
            });
            server
        };
        let server = pivot("fs-trap-7a");
        let ran = bare(&["-e", "-c", "session:fs-trap-7a"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(lives(&server.0), "nobody has told it");
        drop(server);

        let server = pivot("fs-trap-7b");
        schroot::end("fs-trap-7b").expect("it is found by the root it has");
        assert!(!lives(&server.0));
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn processes_that_do_not_want_to_end_are_ended_all_at_once() {
    Sandbox::with("processes_that_do_not_want_to_end_are_ended_all_at_once", |sandbox| {
        sandbox.register();
        let mount = schroot::begin("fs-trap-8", "farmctl-t-1").expect("the tree is whole");
        let path = mount.display().to_string();
        let deaf = "trap '' TERM; while :; do sleep 1; done";
        let servers: Vec<Running> =
            (0..3).map(|_| start("chroot", &[&path, "/bin/sh", "-c", deaf])).collect();
        wait_for("the servers run", Duration::from_secs(5), || {
            // Each has a sleep(1).
            schroot::processes_in(&mount).is_ok_and(|found| found.len() >= 6)
        });
        let began = Instant::now();
        schroot::end_within("fs-trap-8", Duration::from_secs(1)).expect("SIGKILL is obeyed");
        // schroot would take 5 s for each of them, one after the other.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(servers.iter().all(|server| !lives(&server.0)));
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn somebody_who_works_in_a_session_keeps_it_and_is_named() {
    Sandbox::with("somebody_who_works_in_a_session_keeps_it_and_is_named", |sandbox| {
        sandbox.register();
        let mount = schroot::begin("fs-trap-9", "farmctl-t-1").expect("the tree is whole");
        let script = format!("cd {} && exec sleep 1000", mount.join("root").display());
        let mut shell = start("sh", &["-c", &script]);
        let cwd = format!("/proc/{}/cwd", shell.0.id());
        wait_for("it is there", Duration::from_secs(5), || {
            fs::read_link(&cwd).is_ok_and(|cwd| cwd.starts_with(&mount))
        });
        let error = schroot::end("fs-trap-9").expect_err("it is in use");
        let hint = format!("hint: process {} (", shell.0.id());
        assert!(render(&error).contains(&hint), "{}", render(&error));
        assert!(lives(&shell.0), "it is not ours to end");
        shell.0.kill().expect("it is running");
        shell.0.wait().expect("it was killed");
        schroot::end("fs-trap-9").expect("nothing uses it");
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn what_a_killed_setup_leaves_is_removed() {
    Sandbox::with("what_a_killed_setup_leaves_is_removed", |sandbox| {
        sandbox.register();
        let mount = schroot::begin("fs-trap-10", "farmctl-t-1").expect("the tree is whole");
        tool("umount", &["--recursive", &mount.display().to_string()]);
        // As a setup script does that goes on after its schroot was killed.
        fs::create_dir_all(mount.join("etc")).expect("it is ours");
        fs::write(mount.join("etc/hosts"), "").expect("it is ours");
        let script = start("env", &["SESSION_ID=fs-trap-10", "sleep", "1000"]);
        let ran = bare(&["-e", "-c", "session:fs-trap-10"]);
        assert_ne!(ran.code, 0);
        assert_ne!(remains(), nothing());
        schroot::end("fs-trap-10").expect("it is only rubbish");
        assert_eq!(remains(), nothing());
        assert!(!lives(&script.0));
        let tree = fs::read_dir(sandbox.tree()).expect("it is ours").count();
        assert_eq!(tree, 8, "the release itself is whole");
        let private = fs::metadata(sandbox.tree()).expect("it is ours").permissions().mode();
        assert_eq!(private & 0o777, 0o755);
    });
}

#[test]
fn a_signal_sent_through_schroot_is_the_last_that_gets_through() {
    let name = "a_signal_sent_through_schroot_is_the_last_that_gets_through";
    Sandbox::with(name, |sandbox| {
        sandbox.register();
        let mount = schroot::begin("fs-trap-11", "farmctl-t-1").expect("the tree is whole");
        let got = mount.join("root/got");
        let server = "for name in HUP USR1 TERM; do trap \"echo $name >>/root/got\" $name; done; \
                      echo ready >/root/got; while :; do sleep 0.05; done";
        let comes = |expected: &str| {
            wait_for(expected, Duration::from_secs(5), || {
                fs::read_to_string(&got).is_ok_and(|text| text == expected)
            });
        };
        let signal = |pid: u32, name: &str| tool("kill", &["-s", name, &pid.to_string()]);

        let arguments =
            ["-r", "-c", "session:fs-trap-11", "-d", "/", "--", "/bin/sh", "-c", server];
        let wrapper = start("schroot", &arguments);
        comes("ready\n");
        signal(wrapper.0.id(), "HUP");
        comes("ready\nHUP\n");
        signal(wrapper.0.id(), "TERM");
        // What it does with it is done once nothing is pending for it any more.
        wait_for("schroot takes it", Duration::from_secs(5), || {
            let status = fs::read_to_string(format!("/proc/{}/status", wrapper.0.id()));
            status.is_ok_and(|text| text.contains("ShdPnd:\t0000000000000000"))
        });
        let inside = schroot::processes_in(&mount).expect("/proc is there");
        let shell = inside.iter().find(|occupant| {
            let line = fs::read_to_string(format!("/proc/{}/cmdline", occupant.pid));
            line.is_ok_and(|line| line.contains("got"))
        });
        signal(shell.expect("it has not ended").pid, "USR1");
        comes("ready\nHUP\nUSR1\n");
        let grace = Duration::from_secs(1);
        schroot::end_within("fs-trap-11", grace).expect("SIGKILL is obeyed");
        drop(wrapper);

        // As farmctl's processes are entered.
        let mount = schroot::begin("fs-trap-11", "farmctl-t-1").expect("the tree is whole");
        let server = start("chroot", &[&mount.display().to_string(), "/bin/sh", "-c", server]);
        comes("ready\n");
        signal(server.0.id(), "HUP");
        comes("ready\nHUP\n");
        signal(server.0.id(), "TERM");
        comes("ready\nHUP\nTERM\n");
        schroot::end_within("fs-trap-11", grace).expect("SIGKILL is obeyed");
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn the_source_of_a_chroot_has_no_name_of_its_own() {
    Sandbox::with("the_source_of_a_chroot_has_no_name_of_its_own", |sandbox| {
        let environment = Definition { source_clone: true, ..sandbox.definition("farmctl-env-t") };
        schroot::register(&environment).expect("schroot takes it");
        let ran = bare(&["-c", "farmctl-env-t-source", "-d", "/", "--", "/bin/true"]);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("Chroot not found"), "{}", ran.stderr);
        schroot::enter_source("farmctl-env-t", &["/bin/true"]).run().expect("the tree is whole");
        assert_eq!(remains(), nothing());
    });
}
