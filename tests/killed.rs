//! Killed anywhere. A verb is killed before each of the system calls by which it changes
//! something, once at each; then `gc` runs (and `tend`, for what serves), and everything is
//! as before or as after, a second `gc` finds nothing, and the verb typed again succeeds.
//!
//! Two walks. *Own calls*: strace(1) kills farmctl before each of its calls out of [`CALLS`]
//! (it counts those of each name on their own), and none of the programs it starts
//! (`--detach-on=execve`): those have states of their own, met in the second walk. After a call
//! that changed nothing all is as before it: such are left out. Calls that fill one volume are
//! all alike to `gc`, which removes the volume as a whole: of each run of these the first, the
//! last and a few between are taken. *Tools*: farmctl is killed while
//! one of the programs it has started (schroot and its scripts, mount, btrfs, useradd, tar)
//! has just made its Nth change, over all of them in the order of time. What farmctl started
//! directly dies with it, by `PR_SET_PDEATHSIG`; what that has started goes on, as it would.
//!
//! `scripts/killwalk [VERB]...` walks whole verbs, on a directory and on btrfs.

#![expect(clippy::disallowed_types, reason = "strace is called as people call it")]
#![expect(clippy::print_stdout, reason = "the figures are what a walk is for")]

#[path = "common/mod.rs"]
mod common;
#[path = "common/picture.rs"]
mod picture;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/shop.rs"]
mod shop;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/web.rs"]
mod web;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{FARMCTL, Farm, Ran, called, run, tool};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use picture::Picture;
use shop::Shop;
use signal::{pids, runs, word};
use tiny::Tiny;

/// Calls that change what outlives a process: names, attributes, sizes, contents, mounts,
/// sockets, and processes. A file is made by an open(2), which most often only reads and is
/// left out: what follows it at once is here.
const CALLS: &str = "?rename,?renameat,?renameat2,?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,\
    ?symlink,?symlinkat,?link,?linkat,?mknod,?mknodat,?mount,?umount2,?chmod,?fchmod,?fchmodat,\
    ?chown,?lchown,?fchown,?fchownat,?truncate,?ftruncate,?fallocate,?utimensat,?setxattr,\
    ?lsetxattr,?fsetxattr,?removexattr,?write,?pwrite64,?ioctl,?bind,?kill,\
    ?clone,?clone3,?vfork";
/// The same of its tools, without what says nothing about the machine.
const TOOL_CALLS: &str = "?rename,?renameat,?renameat2,?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,\
    ?symlink,?symlinkat,?link,?linkat,?mknod,?mknodat,?mount,?umount2,?chmod,?fchmod,?fchmodat,\
    ?chown,?lchown,?fchown,?fchownat,?truncate,?ftruncate,?utimensat,?fsync,?fdatasync";
/// How many calls of a run that fills a volume are taken between its first and its last.
const BETWEEN: usize = 6;
/// How many changes of tools a whole walk is killed at, if there are more.
const TOOL_POINTS: usize = 40;
/// After how many points a walk says how far it is.
const REPORT: usize = 25;
/// How long a farm may keep others waiting.
const TURN: Duration = Duration::from_secs(200);

/// A verb that changes something.
struct Verb {
    name: &'static str,
    /// Makes everything as it is before the verb, from nothing.
    before: fn(&Field),
    /// What is typed.
    words: fn(&Field) -> Vec<String>,
    /// From as it is after the verb back to before.
    back: fn(&Field),
    /// Whether `tend` finishes its work.
    serves: bool,
    /// Whether it is refused, or does something else, when it has been done already.
    once: bool,
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

/// Those that change something and are not here: `init --force`, which needs neither root nor a
/// node: what it leaves beside a profile goes when it is run again; `dev` where a change is baked,
/// which is `bake`, `install` and `upgrade`; `upgrade NAME FILE`, which is `install` and then
/// `upgrade`, and what was installed stays when it is killed between them; `upgrade
/// --confirm-within`, which is `upgrade` and `confirm`; `doctor --fix`, which is apt-get(8), `gc`,
/// `tend` and one more file; `stop --preview`, a part of `stop`, and what `remove` does with one
/// release or an environment, a part of what it does with all; `shell` without `--write` and the
/// verbs that only look, which change nothing. LVM and systemd are for machines of their own
/// (`vm/tests`).
static VERBS: [Verb; 27] = [
    Verb {
        name: "init",
        before: |field| {
            let project = field.project();
            fs::create_dir_all(&project).expect("there is room");
            let app = "from flask import Flask\napp = Flask(__name__)\n";
            fs::write(project.join("wsgi.py"), app).expect("there is room");
        },
        words: |field| words(&["init", word(&field.project())]),
        back: |field| {
            for name in ["profile.toml", "farmctl-requirements.txt"] {
                fs::remove_file(field.project().join(name)).expect("it was written");
            }
        },
        serves: false,
        once: true,
    },
    Verb {
        name: "bootstrap",
        before: |_| (),
        words: |field| words(&["bootstrap", word(&field.profile)]),
        back: |field| field.ok(&["remove", "--environment", "tiny"]),
        serves: false,
        once: false,
    },
    Verb {
        name: "bake",
        before: |field| field.ok(&["bootstrap", word(&field.profile)]),
        words: |field| words(&["bake", word(&field.profile), "--output", word(&field.out)]),
        back: |field| fs::remove_file(field.baked()).expect("it was baked"),
        serves: false,
        once: false,
    },
    Verb {
        name: "lock",
        before: |field| field.ok(&["bootstrap", word(&field.profile)]),
        words: |field| words(&["lock", word(&field.profile)]),
        back: |field| fs::remove_file(field.profile.join("farmctl.lock")).expect("it was written"),
        serves: false,
        once: false,
    },
    Verb {
        name: "sign",
        before: |field| {
            field.ok(&["key", "generate"]);
            field.spare();
        },
        words: |field| words(&["sign", word(&field.unsigned())]),
        back: Field::spare,
        serves: false,
        once: false,
    },
    Verb {
        name: "key-generate",
        before: |field| {
            // So that the directory is there.
            field.ok(&["key", "generate"]);
            field.forget_key();
        },
        words: |_| words(&["key", "generate"]),
        back: Field::forget_key,
        serves: false,
        once: true,
    },
    Verb {
        name: "key-trust",
        before: |field| {
            field.ok(&["key", "generate"]);
            field.ok(&["key", "trust", &field.key()]);
            field.distrust();
        },
        words: |field| words(&["key", "trust", &field.key()]),
        back: Field::distrust,
        serves: false,
        once: false,
    },
    Verb {
        name: "key-forget",
        before: |field| {
            field.ok(&["key", "generate"]);
            field.ok(&["key", "trust", &field.key()]);
        },
        words: |field| words(&["key", "forget", &field.key_number()]),
        back: |field| field.ok(&["key", "trust", &field.key()]),
        serves: false,
        once: true,
    },
    Verb {
        name: "install",
        before: |_| (),
        words: |field| words(&["install", word(&field.first)]),
        back: |field| field.ok(&["remove", "shop"]),
        serves: false,
        once: false,
    },
    Verb {
        name: "install-over",
        before: |field| field.ok(&["install", word(&field.first)]),
        words: |field| words(&["install", word(&field.second)]),
        back: |field| field.ok(&["remove", "shop", "--release", "1.1"]),
        serves: false,
        once: false,
    },
    Verb {
        name: "shell-source",
        before: |field| field.ok(&["bootstrap", word(&field.profile)]),
        words: |_| words(&["shell", "tiny", "--source", "--write", "--", "sh", "-c", ":"]),
        back: |_| (),
        serves: false,
        once: false,
    },
    Verb {
        name: "remove",
        before: Field::stop,
        words: |_| words(&["remove", "shop"]),
        back: Field::stop,
        serves: false,
        once: false,
    },
    Verb {
        name: "start",
        before: |field| field.ok(&["install", word(&field.first)]),
        words: |_| words(&["start", "shop"]),
        back: |field| field.ok(&["stop", "shop", "--withdraw"]),
        serves: true,
        once: false,
    },
    Verb {
        name: "reload",
        before: Field::serve,
        words: |_| words(&["reload", "shop"]),
        back: |_| (),
        serves: true,
        once: false,
    },
    Verb {
        name: "restart",
        before: Field::serve,
        words: |_| words(&["restart", "shop"]),
        back: |_| (),
        serves: true,
        once: false,
    },
    Verb {
        name: "upgrade",
        before: Field::serve,
        words: |_| words(&["upgrade", "shop", "1.1", "--watch", "1s"]),
        back: |field| field.ok(&["upgrade", "shop", "1.0", "--watch", "1s"]),
        serves: true,
        once: false,
    },
    Verb {
        name: "rollback",
        before: |field| {
            field.serve();
            field.ok(&["upgrade", "shop", "1.1", "--watch", "1s"]);
        },
        words: |_| words(&["rollback", "shop", "--watch", "1s"]),
        back: |field| field.ok(&["rollback", "shop", "--watch", "1s"]),
        serves: true,
        once: true,
    },
    Verb {
        name: "in-place",
        before: |field| {
            let tarball = field.farm.bake(&field.revised());
            field.ok(&["install", word(&tarball)]);
            field.ok(&["start", "revised"]);
        },
        words: |field| {
            let other = field.revised().join("other");
            words(&["upgrade", "revised", &format!("--in-place={}", word(&other))])
        },
        back: |field| {
            field.ok(&["upgrade", "revised", "1.0", "--watch", "1s"]);
            field.ok(&["remove", "revised", "--release", "1.0.p1"]);
        },
        serves: true,
        once: false,
    },
    Verb {
        name: "confirm",
        before: |field| {
            field.serve();
            field.wait_for_confirmation();
        },
        words: |_| words(&["confirm", "shop"]),
        back: |field| {
            field.ok(&["upgrade", "shop", "1.0", "--watch", "1s"]);
            field.wait_for_confirmation();
        },
        serves: true,
        once: false,
    },
    Verb {
        name: "preview",
        before: Field::serve,
        words: |_| words(&["upgrade", "shop", "1.1", "--preview"]),
        back: |field| field.ok(&["stop", "shop", "--preview"]),
        serves: true,
        once: false,
    },
    Verb {
        name: "stop",
        before: Field::serve,
        words: |_| words(&["stop", "shop"]),
        back: |field| field.ok(&["start", "shop"]),
        serves: true,
        once: false,
    },
    Verb {
        name: "tend",
        before: |field| {
            field.serve();
            field.cut();
        },
        words: |_| words(&["tend"]),
        back: Field::cut,
        serves: true,
        once: false,
    },
    Verb {
        name: "dev",
        before: |field| {
            field.ok(&["install", word(&field.farm.bake(&field.developed()))]);
            field.ok(&["start", "developed"]);
            let module = field.developed().join("app/hello.py");
            let code = fs::read_to_string(&module).expect("it was copied");
            // Also when it is all done again.
            let code = code.replace("# saved\n", "") + "# saved\n";
            fs::write(&module, code).expect("it was copied");
        },
        words: |field| words(&["dev", word(&field.developed())]),
        back: |field| {
            field.ok(&["stop", "developed"]);
            field.ok(&["start", "developed"]);
        },
        serves: true,
        once: false,
    },
    Verb {
        name: "gc",
        before: |field| {
            field.ok(&["install", word(&field.second)]);
            field.leave_rubbish();
        },
        words: |_| words(&["gc"]),
        back: Field::leave_rubbish,
        serves: false,
        once: false,
    },
    Verb {
        name: "storage-init",
        before: |_| (),
        words: |_| words(&["storage", "init", "--backend", "btrfs", "--size", "1G"]),
        back: |field| field.ok(&["storage", "remove"]),
        serves: false,
        once: false,
    },
    Verb {
        name: "storage-attach",
        before: |field| {
            field.ok(&["storage", "init", "--backend", "btrfs", "--size", "1G"]);
            field.detach();
        },
        words: |_| words(&["storage", "attach"]),
        back: Field::detach,
        serves: false,
        once: false,
    },
    Verb {
        name: "storage-remove",
        before: |field| field.ok(&["storage", "init", "--backend", "btrfs", "--size", "1G"]),
        words: |_| words(&["storage", "remove"]),
        back: |field| field.ok(&["storage", "init", "--backend", "btrfs", "--size", "1G"]),
        serves: false,
        once: false,
    },
];

/// What volumes are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Directory,
    Btrfs,
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Btrfs => "btrfs",
        }
    }
}

/// A farm with what a verb needs in it.
struct Field {
    farm: Farm,
    verb: &'static Verb,
    /// Bootstrapped trees of next to nothing.
    cache: PathBuf,
    profile: PathBuf,
    out: PathBuf,
    first: PathBuf,
    second: PathBuf,
}

impl Drop for Field {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Field {
    fn new(verb: &'static Verb, backend: Backend) -> Self {
        let farm = match backend {
            Backend::Directory => Farm::new(),
            Backend::Btrfs => Farm::on("mkfs.btrfs"),
        };
        let root = farm.root();
        let profile = root.join("profiles/tiny");
        let out = root.join("baked");
        for directory in [&profile, &out] {
            fs::create_dir_all(directory).expect("there is room");
        }
        let text = tiny::profile("tiny", "1.0", "");
        fs::write(profile.join("profile.toml"), &text).expect("there is room");
        // Another vhost, so that there is more to publish.
        let second = Shop { front: "max-body-mib = 17", ..Shop::new("1.1") };
        let (first, second) = (packed(&Shop::new("1.0"), &farm), packed(&second, &farm));
        let cache = root.join("cache");
        let field = Self { farm, verb, cache, profile, out, first, second };
        if ["bootstrap", "bake", "lock", "shell-source"].contains(&verb.name) {
            field.lend_environment(&text);
        }
        (verb.before)(&field);
        // Directories that are made once and stay are no difference.
        field.run_verb().ok();
        (verb.back)(&field);
        field
    }

    /// Has a bootstrap take a tree of next to nothing from the cache.
    fn lend_environment(&self, profile: &str) {
        self.farm.run(&["bootstrap", word(&self.profile)]).ok();
        let record = fs::read_to_string(self.farm.state("environments/tiny.json"));
        let record: serde_json::Value =
            serde_json::from_str(&record.expect("it was made")).expect("it is JSON");
        let inputs = record["inputs"].as_str().expect("it has a hash").to_owned();
        self.farm.run(&["remove", "--environment", "tiny"]).ok();
        let trees = self.cache.join("bootstrap");
        fs::create_dir_all(&trees).expect("there is room");
        let name = format!("{inputs}.json");
        fs::copy(common::cache().join("bootstrap").join(&name), trees.join(&name))
            .expect("the bootstrap kept it");
        let mut tar = fs::File::create(trees.join(format!("{inputs}.tar"))).expect("there is room");
        let tree = Tiny::new(profile)
            .with("/usr/bin/dpkg-query")
            .file("var/lib/dpkg/status", "", 0o644)
            .file("var/lib/dpkg/info/format", "1\n", 0o644);
        farmctl::tarball::save_tree(tree.tree(), &mut tar, &|_, _| Ok(())).expect("there is room");
    }

    fn command(&self, program: &str, before: &[&str], words: &[&str]) -> Command {
        let root = ["--root", word(self.farm.root())];
        let mut command = called(program, &[before, &root, words].concat());
        command.env("FARMCTL_CACHE", &self.cache);
        command
    }

    #[must_use = "assert how it ended"]
    fn run(&self, words: &[&str]) -> Ran {
        run(self.command(FARMCTL, &[], words))
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) {
        self.run(words).ok();
    }

    /// What is typed.
    fn typed(&self) -> Vec<String> {
        (self.verb.words)(self)
    }

    /// Runs what is typed.
    fn run_verb(&self) -> Ran {
        let typed = self.typed();
        let words: Vec<&str> = typed.iter().map(String::as_str).collect();
        self.run_to_its_end(self.command(FARMCTL, &[], &words))
    }

    /// Takes away whatever was made.
    fn clear(&self) {
        drop(self.run(&["gc"]));
        for app in ["shop", "revised", "developed"] {
            drop(self.run(&["stop", app]));
            drop(self.run(&["remove", app, "--data"]));
        }
        for environment in ["revised", "developed", "tiny"] {
            drop(self.run(&["remove", "--environment", environment]));
        }
        drop(self.run(&["storage", "remove"]));
        drop(self.run(&["gc", "--orphans"]));
        drop(fs::remove_dir_all(self.farm.root().join("etc")));
    }

    fn serve(&self) {
        self.ok(&["install", word(&self.first)]);
        self.ok(&["install", word(&self.second)]);
        self.ok(&["start", "shop", "--release", "1.0"]);
    }

    /// A profile with a project, and the project with another text beside it.
    fn revised(&self) -> PathBuf {
        let directory = self.farm.root().join("profiles/revised");
        if !directory.exists() {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/revised");
            common::copy(&source, &directory);
            common::copy(&source.join("project"), &directory.join("other"));
            let module = directory.join("other/revised.py");
            let code = fs::read_to_string(&module).expect("it was copied");
            fs::write(&module, code.replace("b\"one\"", "b\"two\"")).expect("it was copied");
        }
        directory
    }

    /// A project without a profile.
    fn project(&self) -> PathBuf {
        self.farm.root().join("project")
    }

    /// A copy of the profile `hello`.
    fn developed(&self) -> PathBuf {
        let directory = self.farm.root().join("profiles/developed");
        if !directory.exists() {
            self.farm.profile("hello", "developed", 18_099);
        }
        directory
    }

    /// Leaves the vhost that says that nobody is there.
    fn stop(&self) {
        self.ok(&["install", word(&self.first)]);
        self.ok(&["start", "shop"]);
        self.ok(&["stop", "shop"]);
    }

    fn wait_for_confirmation(&self) {
        self.ok(&["upgrade", "shop", "1.1", "--watch", "1s", "--confirm-within", "1h"]);
    }

    /// Takes the link away that leads requests to what serves.
    fn cut(&self) {
        fs::remove_file(self.farm.root().join("run/farmctl/front/shop")).expect("it serves");
    }

    /// Leaves what a killed install leaves.
    fn leave_rubbish(&self) {
        let halfway = Point { call: "fchownat".to_owned(), nth: 30 };
        let ran = self.killed(&words(&["install", word(&self.first)]), &halfway);
        assert_eq!(ran.code, -1, "{}", ran.stderr);
    }

    /// Leaves storage in a file as a reboot does.
    fn detach(&self) {
        tool("umount", &[word(&self.farm.state("volumes"))]);
        let all = tool("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
        let root = self.farm.root().display().to_string();
        for line in all.lines().filter(|line| line.contains(&root)) {
            tool("losetup", &["--detach", line.split(' ').next().expect("it has a name")]);
        }
    }

    fn baked(&self) -> PathBuf {
        let name = self.first.file_name().expect("it has a name").to_string_lossy();
        self.out.join(name.replace("shop", "tiny"))
    }

    fn unsigned(&self) -> PathBuf {
        self.out.join("shop.tar.xz")
    }

    /// Puts a tarball without a signature there.
    fn spare(&self) {
        fs::copy(&self.first, self.unsigned()).expect("there is room");
    }

    fn etc(&self, name: &str) -> PathBuf {
        self.farm.root().join("etc/farmctl").join(name)
    }

    fn forget_key(&self) {
        for name in ["signing.key", "signing.pub"] {
            fs::remove_file(self.etc(name)).expect("it was made");
        }
    }

    fn key(&self) -> String {
        self.run(&["key", "show"]).ok().stdout.lines().last().expect("it has one").to_owned()
    }

    /// The key's number.
    fn key_number(&self) -> String {
        let shown = self.run(&["key", "show"]).ok().stdout;
        let comment = shown.lines().next().and_then(|line| line.rsplit(' ').next());
        comment.expect("it has one").to_owned()
    }

    fn distrust(&self) {
        for name in common::names(&self.etc("keys.d")) {
            fs::remove_file(self.etc("keys.d").join(name)).expect("it was made");
        }
    }

    fn picture(&self) -> Picture {
        Picture::of(self.farm.root())
    }

    /// The same when nothing has changed for a moment: a server that answers may still begin
    /// workers.
    #[expect(clippy::disallowed_methods, reason = "the moment")]
    fn settled(&self) -> Picture {
        let mut seen = self.picture();
        let is_settled = poll(Duration::from_secs(20), || {
            std::thread::sleep(Duration::from_millis(300));
            let now = self.picture();
            std::mem::replace(&mut seen, now) == seen
        });
        assert!(is_settled, "something changes all the time");
        seen
    }

    /// Waits until all is as it was; answers what is not.
    fn differs_from(&self, before: &Picture) -> Option<Vec<String>> {
        let same = poll(Duration::from_secs(5), || self.picture() == *before);
        (!same).then(|| self.picture().changes(before))
    }

    /// Runs the words and kills farmctl before this call.
    fn killed(&self, words: &[String], point: &Point) -> Ran {
        let Point { call, nth } = point;
        let (trace, inject) =
            (format!("trace={call}"), format!("inject={call}:signal=KILL:when={nth}"));
        let strace = ["-f", "-qq", "-b", "execve", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.run_to_its_end(self.command("strace", &[&strace[..], &[FARMCTL]].concat(), &words))
    }

    /// Runs the verb as `command` has it. One that waits for what comes next is ended there.
    fn run_to_its_end(&self, mut command: Command) -> Ran {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be started");
        let said = self.interrupt_when_it_waits(&mut child);
        let status = child.wait().expect("it is our child");
        let stderr = said.join().expect("nothing panics there");
        Ran { code: status.code().unwrap_or(-1), stdout: String::new(), stderr }
    }

    /// Reads what farmctl says, and sends it a Ctrl-C when that is what it waits for. Answers
    /// what it said.
    fn interrupt_when_it_waits(&self, child: &mut Child) -> JoinHandle<String> {
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let own = [FARMCTL, "--root", word(self.farm.root()), self.verb.name].join(" ");
        std::thread::spawn(move || {
            let mut said = String::new();
            for line in lines.map_while(Result::ok) {
                said += &(line + "\n");
                if said.ends_with("Ctrl-C ends it\n") {
                    for pid in pids(|line| line.starts_with(&own)) {
                        // It may have been killed.
                        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
                    }
                }
            }
            said
        })
    }

    /// Runs the verb, and answers before which of its own calls it is to be killed, how many
    /// it made, and how many of them not in its first thread.
    fn own_points(&self) -> (Vec<Point>, usize, usize) {
        let trace = self.farm.root().join("trace");
        let trace_calls = format!("trace={CALLS}");
        let strace =
            ["-f", "-qq", "-y", "-b", "execve", "-o", word(&trace), "-e", &trace_calls, FARMCTL];
        let typed = self.typed();
        let words: Vec<&str> = typed.iter().map(String::as_str).collect();
        self.run_to_its_end(self.command("strace", &strace, &words)).ok();
        let text = fs::read_to_string(&trace).expect("strace wrote it");
        let began = |line: &&str| !line.contains(" resumed>") && line.contains('(');
        let lines: Vec<(&str, &str)> =
            text.lines().filter(began).filter_map(|line| line.split_once(' ')).collect();
        let first = lines.first().expect("a verb changes something").0;
        let own: Vec<&str> =
            lines.iter().filter(|(pid, _)| *pid == first).map(|(_, call)| call.trim()).collect();
        (points(&own), own.len(), lines.len() - own.len())
    }

    /// Runs the verb and kills farmctl when its tools have made so many changes. Answers how
    /// many they made, if it was not killed before it ended.
    fn killed_with_tools(&self, number: usize) -> Option<usize> {
        let trace = self.farm.root().join("trace.pipe");
        drop(fs::remove_file(&trace));
        nix::unistd::mkfifo(&trace, Mode::S_IRWXU).expect("there is room");
        let calls = format!("trace={TOOL_CALLS},execve");
        // With a file and a program strace blocks SIGTERM otherwise.
        let strace = ["-f", "-q", "-I", "waiting", "-o", word(&trace), "-e", &calls, FARMCTL];
        let typed = self.typed();
        let words: Vec<&str> = typed.iter().map(String::as_str).collect();
        let mut command = self.command("strace", &strace, &words);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("strace is installed");
        drop(self.interrupt_when_it_waits(&mut child));
        let pipe = fs::File::open(&trace).expect("strace opens it");
        let (mut first, mut count, mut killed) = (None, 0, false);
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let own = first.get_or_insert_with(|| pid.to_owned()).as_str() == pid;
            if own && call.trim_start().starts_with("+++") {
                break;
            }
            let changes = !own && !call.contains("execve(") && !call.contains(" resumed>");
            count += usize::from(changes && !call.trim_start().starts_with(['+', '-']));
            if count == number && !killed {
                let pid = first.as_deref().unwrap_or_default().parse().expect("a pid");
                killed = kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
            }
        }
        // Lets go of daemons. A vfork(2) at that moment has strace wait without end.
        let pid = i32::try_from(child.id()).expect("a pid fits pid_t");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it has not been waited for");
        if !poll(Duration::from_secs(2), || matches!(child.try_wait(), Ok(Some(_)))) {
            drop(child.kill());
            drop(child.wait());
        }
        // What its tools have started goes on to its end.
        let busy =
            || ["/schroot/setup.d/", "schroot -", "useradd", "userdel"].iter().any(|it| runs(it));
        poll(Duration::from_secs(10), || !busy());
        (!killed).then_some(count)
    }

    /// What is wrong after the verb was killed; an error ends with what has changed.
    fn check(&self, before: &Picture, after: &Picture) -> Result<(), String> {
        let ended = |words: &[&str]| match self.run(words) {
            ran if ran.code == 0 => Ok(ran),
            ran => Err(format!("{words:?} exits with {}: {}{}", ran.code, ran.stdout, ran.stderr)),
        };
        ended(&["gc"])?;
        if self.verb.serves {
            ended(&["tend"])?;
        }
        ended(&["gc", "--check"])?;
        let mut now = self.picture();
        let same = poll(Duration::from_secs(3), || {
            now = self.picture();
            now == *before || now == *after
        });
        if !same && !may_be_between(self.verb) {
            let (one, other) = (now.changes(before), now.changes(after));
            let (than, changes) =
                if one.len() <= other.len() { ("before", one) } else { ("after", other) };
            return Err(format!("it is not as {than}:\n{}", changes.join("\n")));
        }
        if self.verb.once && now == *after {
            return Ok(());
        }
        match self.run_verb() {
            ran if ran.code == 0 => {}
            ran => return Err(format!("again it exits with {}: {}", ran.code, ran.stderr)),
        }
        if !poll(Duration::from_secs(3), || self.picture() == *after) {
            let changes = self.picture().changes(after);
            return Err(format!("the verb again makes another end:\n{}", changes.join("\n")));
        }
        Ok(())
    }

    /// Back to before the verb, however it is now.
    fn mend(&self) {
        self.clear();
        (self.verb.before)(self);
    }
}

/// A tarball of the shop, compressed once for each build of the program.
fn packed(shop: &Shop<'_>, farm: &Farm) -> PathBuf {
    let kept = common::kept().join(format!("killed-{}", shop.version));
    if let Some(name) = common::names(&kept).first() {
        let tarball = farm.root().join(name);
        fs::copy(kept.join(name), &tarball).expect("there is room");
        return tarball;
    }
    let tarball = shop.pack(farm);
    fs::create_dir_all(&kept).expect("there is room");
    let name = tarball.file_name().expect("it has a name");
    fs::copy(&tarball, kept.join(name)).expect("there is room");
    tarball
}

/// Waits until `look` holds; answers whether it did in time.
#[expect(clippy::disallowed_methods, reason = "the pause between two looks")]
fn poll(within: Duration, mut look: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + within;
    while !look() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A call of farmctl's first thread: the nth of its name, from 1.
#[derive(Clone, Debug)]
struct Point {
    call: String,
    nth: usize,
}

/// What a verb is killed at.
#[derive(Clone, Debug)]
enum Kill {
    Own(Point),
    /// The change of its tools of this number, from 1.
    Tools(usize),
}

impl std::fmt::Display for Kill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own(Point { call, nth }) => write!(f, "{call} {nth}"),
            Self::Tools(number) => write!(f, "change {number} of its tools"),
        }
    }
}

/// The calls a verb is killed before: the first, and each that follows a change, but only a
/// few of those that fill a volume.
fn points(calls: &[&str]) -> Vec<Point> {
    let name = |call: &str| call.split('(').next().unwrap_or_default().to_owned();
    let changes = |call: &str| {
        let says = ["write(1<", "write(2<"].iter().any(|start| call.starts_with(start));
        !says && !call.contains(") = -1 ") && !call.contains(")  = -1 ")
    };
    let fills = |call: &str| call.contains("/volumes/fv-");
    let mut numbers = std::collections::HashMap::new();
    let mut changed = true;
    let mut all = Vec::new();
    for call in calls {
        let nth = numbers.entry(name(call)).and_modify(|nth| *nth += 1).or_insert(1);
        if changed {
            all.push((fills(call), Point { call: name(call), nth: *nth }));
        }
        changed = changes(call);
    }
    let mut points = Vec::new();
    for run in all.chunk_by(|one, other| one.0 == other.0) {
        let step = (run.len() / BETWEEN).max(1);
        let taken = |at: usize| !run[0].0 || at % step == 0 || at + 1 == run.len();
        points.extend((0..run.len()).filter(|at| taken(*at)).map(|at| run[at].1.clone()));
    }
    points
}

/// So many of them, evenly.
fn thinned<T: Clone>(points: &[T], most: usize) -> Vec<T> {
    let chosen: BTreeSet<usize> = (0..most).map(|one| one * points.len() / most).collect();
    chosen.into_iter().filter_map(|one| points.get(one).cloned()).collect()
}

/// How a walk went.
#[derive(Default)]
struct Walked {
    own: usize,
    own_points: usize,
    own_calls: usize,
    threads: usize,
    tools: usize,
    tool_calls: usize,
    /// Points that a run did not come to.
    over: usize,
    failures: Vec<String>,
}

/// How far a walk goes.
#[derive(Clone, Copy)]
struct Measure {
    own: usize,
    tools: usize,
}

impl Measure {
    /// All of it, or so many points of each kind as `FARMCTL_KILLWALK_POINTS` says.
    fn asked() -> Self {
        let most = env::var("FARMCTL_KILLWALK_POINTS").ok();
        match most.map(|most| most.parse().expect("it is a number")) {
            Some(most) => Self { own: most, tools: most },
            None => Self { own: usize::MAX, tools: TOOL_POINTS },
        }
    }
}

/// Walks one verb on one backend, in turns: others want the machine, too.
fn walk(verb: &'static Verb, backend: Backend, measure: Measure) -> Walked {
    let began = Instant::now();
    let mut walked = Walked::default();
    let mut pending: Option<Vec<Kill>> = None;
    while pending.as_ref().is_none_or(|points| !points.is_empty()) {
        let field = Field::new(verb, backend);
        let turn = Instant::now();
        let before = field.settled();
        let (own, calls, threads) = field.own_points();
        let after = field.settled();
        (verb.back)(&field);
        let changed = field.differs_from(&before);
        assert!(changed.is_none(), "{}: {changed:#?}", verb.name);
        let points = pending.get_or_insert_with(|| {
            (walked.own_calls, walked.threads) = (calls, threads);
            walked.own_points = own.len();
            let own = thinned(&own, measure.own.min(own.len()));
            walked.tool_calls = field.killed_with_tools(usize::MAX).expect("it is not killed");
            (verb.back)(&field);
            let all: Vec<usize> = (1..=walked.tool_calls).collect();
            let tools = thinned(&all, measure.tools.min(all.len()));
            let own = own.into_iter().map(Kill::Own);
            own.chain(tools.into_iter().map(Kill::Tools)).rev().collect()
        });
        while let Some(point) = points.pop() {
            // The last calls are not always as many.
            let over = match &point {
                Kill::Own(point) => field.killed(&field.typed(), point).code == 0,
                Kill::Tools(number) => field.killed_with_tools(*number).is_some(),
            };
            if over {
                walked.over += 1;
                (verb.back)(&field);
                continue;
            }
            match point {
                Kill::Own(_) => walked.own += 1,
                Kill::Tools(_) => walked.tools += 1,
            }
            if (walked.own + walked.tools) % REPORT == 0 {
                let (name, left) = (verb.name, points.len());
                println!("{name} on {}: {left} points to go", backend.name());
            }
            if let Err(wrong) = field.check(&before, &after) {
                let wrong = format!("{} on {}, {point}: {wrong}", verb.name, backend.name());
                println!("FAILURE {wrong}\n");
                walked.failures.push(wrong);
                field.mend();
            } else {
                (verb.back)(&field);
            }
            if let Some(changes) = field.differs_from(&before) {
                println!("not as before: {changes:#?}");
                break;
            }
            if turn.elapsed() > TURN {
                break;
            }
        }
    }
    println!(
        "{:<14} {:<9} own {:>4} of {:>4} points, {:>5} calls ({} in other threads), tools {:>3} of {:>4} changes, {} not met: {} failures, {} s",
        verb.name,
        backend.name(),
        walked.own,
        walked.own_points,
        walked.own_calls,
        walked.threads,
        walked.tools,
        walked.tool_calls,
        walked.over,
        walked.failures.len(),
        began.elapsed().as_secs()
    );
    walked
}

/// Whether a verb may be cut short in the midst, to be completed when it is typed again: `dev`,
/// and state says of it what the session may have that its release has not; and `init`, which
/// writes the profile after the other file.
fn may_be_between(verb: &Verb) -> bool {
    ["dev", "init"].contains(&verb.name)
}

/// Whether a verb does the same on every backend.
fn is_apart(verb: &Verb) -> bool {
    ["init", "sign", "key", "storage"].iter().any(|name| verb.name.starts_with(name))
}

#[test]
#[ignore = "hours: scripts/killwalk"]
fn killed_at_every_call_of_every_verb_all_is_as_before_or_as_after() {
    let asked = env::var("FARMCTL_KILLWALK").unwrap_or_default();
    let asked: Vec<&str> = asked.split_whitespace().collect();
    for name in &asked {
        assert!(VERBS.iter().any(|verb| verb.name == *name), "there is no verb {name}");
    }
    let on = env::var("FARMCTL_KILLWALK_ON").unwrap_or_default();
    let mut failures = Vec::new();
    for verb in VERBS.iter().filter(|verb| asked.is_empty() || asked.contains(&verb.name)) {
        for backend in [Backend::Directory, Backend::Btrfs] {
            let here = on.is_empty() || on == backend.name();
            if here && (backend == Backend::Directory || !is_apart(verb)) {
                failures.extend(walk(verb, backend, Measure::asked()).failures);
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn killed_here_and_there_all_is_as_before_or_as_after() {
    let few = Measure { own: 4, tools: 0 };
    let mut failures = Vec::new();
    for (name, backend) in [
        ("init", Backend::Directory),
        ("install", Backend::Btrfs),
        ("start", Backend::Directory),
        ("upgrade", Backend::Btrfs),
    ] {
        let verb = VERBS.iter().find(|verb| verb.name == name).expect("it is a verb");
        failures.extend(walk(verb, backend, few).failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
