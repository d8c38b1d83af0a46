//! Killed anywhere. A verb is killed before each of the system calls by which it changes
//! something, once at each; then `gc` runs (and `tend`, for what serves), and everything is
//! as before or as after, a second `gc` finds nothing, and the verb typed again succeeds.
//!
//! Two walks. *Own calls*: strace(1) kills farmctl at exactly its Nth call out of [`CALLS`],
//! in all of its threads (`--follow-forks`) and in none of the programs it starts
//! (`--detach-on=execve`): those have states of their own, met in the second walk. Calls that
//! fill one volume are all alike to `gc`, which removes the volume as a whole: of each run of
//! these the first, the last and a few between are taken. *Tools*: farmctl is killed while
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
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{FARMCTL, Farm, Ran, called, run, tool};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use picture::Picture;
use shop::Shop;
use signal::{runs, word};
use tiny::Tiny;

/// Calls that change what outlives a process: names, attributes, sizes, contents and that
/// these are on the disk, mounts, locks, sockets, and processes. A file is made by an open(2),
/// which most often only reads and is left out: what follows it at once is here.
const CALLS: &str = "?rename,?renameat,?renameat2,?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,\
    ?symlink,?symlinkat,?link,?linkat,?mknod,?mknodat,?mount,?umount2,?chmod,?fchmod,?fchmodat,\
    ?chown,?lchown,?fchown,?fchownat,?truncate,?ftruncate,?fallocate,?utimensat,?setxattr,\
    ?lsetxattr,?fsetxattr,?removexattr,?write,?pwrite64,?fsync,?fdatasync,?syncfs,?flock,?ioctl,\
    ?bind,?unshare,?kill,?clone,?clone3,?vfork";
/// The same of its tools, without what says nothing about the machine.
const TOOL_CALLS: &str = "?rename,?renameat,?renameat2,?unlink,?unlinkat,?rmdir,?mkdir,?mkdirat,\
    ?symlink,?symlinkat,?link,?linkat,?mknod,?mknodat,?mount,?umount2,?chmod,?fchmod,?fchmodat,\
    ?chown,?lchown,?fchown,?fchownat,?truncate,?ftruncate,?utimensat,?fsync,?fdatasync";
/// How many calls of a run that fills a volume are taken between its first and its last.
const BETWEEN: usize = 6;
/// How many changes of tools a whole walk is killed at, if there are more.
const TOOL_POINTS: usize = 40;
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
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

static VERBS: [Verb; 20] = [
    Verb {
        name: "bootstrap",
        before: |_| (),
        words: |field| words(&["bootstrap", word(&field.profile)]),
        back: |field| field.ok(&["remove", "--environment", "tiny"]),
        serves: false,
    },
    Verb {
        name: "bake",
        before: |field| field.ok(&["bootstrap", word(&field.profile)]),
        words: |field| words(&["bake", word(&field.profile), "--output", word(&field.out)]),
        back: |field| fs::remove_file(field.baked()).expect("it was baked"),
        serves: false,
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
    },
    Verb {
        name: "key-forget",
        before: |field| {
            field.ok(&["key", "generate"]);
            field.ok(&["key", "trust", &field.key()]);
        },
        words: |field| words(&["key", "forget", &field.trusted(), "--take-unsigned"]),
        back: |field| field.ok(&["key", "trust", &field.key()]),
        serves: false,
    },
    Verb {
        name: "install",
        before: |_| (),
        words: |field| words(&["install", word(&field.first)]),
        back: |field| field.ok(&["remove", "shop"]),
        serves: false,
    },
    Verb {
        name: "remove",
        before: |field| field.ok(&["install", word(&field.first)]),
        words: |_| words(&["remove", "shop"]),
        back: |field| field.ok(&["install", word(&field.first)]),
        serves: false,
    },
    Verb {
        name: "start",
        before: |field| field.ok(&["install", word(&field.first)]),
        words: |_| words(&["start", "shop"]),
        back: |field| field.ok(&["stop", "shop"]),
        serves: true,
    },
    Verb {
        name: "reload",
        before: Field::serve,
        words: |_| words(&["reload", "shop"]),
        back: |_| (),
        serves: true,
    },
    Verb {
        name: "restart",
        before: Field::serve,
        words: |_| words(&["restart", "shop"]),
        back: |_| (),
        serves: true,
    },
    Verb {
        name: "upgrade",
        before: Field::serve,
        words: |_| words(&["upgrade", "shop", "1.1", "--watch", "1s"]),
        back: |field| field.ok(&["upgrade", "shop", "1.0", "--watch", "1s"]),
        serves: true,
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
    },
    Verb {
        name: "preview",
        before: Field::serve,
        words: |_| words(&["upgrade", "shop", "1.1", "--preview"]),
        back: |field| field.ok(&["stop", "shop", "--preview"]),
        serves: true,
    },
    Verb {
        name: "stop",
        before: Field::serve,
        words: |_| words(&["stop", "shop"]),
        back: |field| field.ok(&["start", "shop"]),
        serves: true,
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
    },
    Verb {
        name: "storage-init",
        before: |_| (),
        words: |_| words(&["storage", "init", "--backend", "btrfs", "--size", "1G"]),
        back: |field| field.ok(&["storage", "remove"]),
        serves: false,
    },
    Verb {
        name: "storage-remove",
        before: |field| field.ok(&["storage", "init", "--backend", "btrfs", "--size", "1G"]),
        words: |_| words(&["storage", "remove"]),
        back: |field| field.ok(&["storage", "init", "--backend", "btrfs", "--size", "1G"]),
        serves: false,
    },
];

/// What volumes are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Directory,
    Btrfs,
}

/// A btrfs for all volumes, in a file.
struct Disk(PathBuf);

impl Disk {
    fn new(farm: &Farm) -> Self {
        let (image, volumes) = (farm.root().join("image"), farm.state("volumes"));
        fs::File::create(&image).and_then(|file| file.set_len(1 << 30)).expect("there is room");
        fs::create_dir_all(&volumes).expect("there is room");
        tool("mkfs.btrfs", &["--quiet", word(&image)]);
        tool("mount", &["-o", "loop", word(&image), word(&volumes)]);
        Self(volumes)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(run(called("umount", &[word(&self.0)])));
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
    disk: Option<Disk>,
}

impl Drop for Field {
    fn drop(&mut self) {
        self.clear();
        drop(self.disk.take());
    }
}

impl Field {
    fn new(verb: &'static Verb, backend: Backend) -> Self {
        let farm = Farm::new();
        let root = farm.root();
        let disk = (backend == Backend::Btrfs).then(|| Disk::new(&farm));
        let profile = root.join("profiles/tiny");
        let out = root.join("baked");
        for directory in [&profile, &out] {
            fs::create_dir_all(directory).expect("there is room");
        }
        let text = tiny::profile("tiny", "1.0", "");
        fs::write(profile.join("profile.toml"), &text).expect("there is room");
        // Another vhost, so that there is more to publish.
        let second = Shop { front: "max-body-mib = 17", ..Shop::new("1.1") };
        let (first, second) = (Shop::new("1.0").pack(&farm), second.pack(&farm));
        let cache = root.join("cache");
        let field = Self { farm, verb, cache, profile, out, first, second, disk };
        if ["bootstrap", "bake"].contains(&verb.name) {
            field.lend_environment(&text);
        }
        (verb.before)(&field);
        // Directories that are made once and stay are no difference.
        field.ok(&field.typed().iter().map(String::as_str).collect::<Vec<_>>());
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

    /// Takes away whatever was made.
    fn clear(&self) {
        let verbs: [&[&str]; 6] = [
            &["gc"],
            &["stop", "shop"],
            &["remove", "shop", "--data"],
            &["remove", "--environment", "tiny"],
            &["storage", "remove"],
            &["gc", "--orphans"],
        ];
        for words in verbs {
            drop(self.run(words));
        }
        drop(fs::remove_dir_all(self.farm.root().join("etc")));
    }

    fn serve(&self) {
        self.ok(&["install", word(&self.first)]);
        self.ok(&["install", word(&self.second)]);
        self.ok(&["start", "shop", "--release", "1.0"]);
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
        let ran = self.killed(&words(&["install", word(&self.first)]), 60);
        assert_eq!(ran.code, -1, "{}", ran.stderr);
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

    /// The id of the key that is trusted.
    fn trusted(&self) -> String {
        let names = common::names(&self.etc("keys.d"));
        let name = names.first().expect("one is trusted");
        name.split('.').next().expect("it has a name").to_owned()
    }

    fn distrust(&self) {
        for name in common::names(&self.etc("keys.d")) {
            fs::remove_file(self.etc("keys.d").join(name)).expect("it was made");
        }
    }

    fn picture(&self) -> Picture {
        Picture::of(self.farm.root())
    }

    /// Runs the words and kills farmctl before its call of this number.
    fn killed(&self, words: &[String], number: usize) -> Ran {
        let inject = format!("inject={CALLS}:signal=KILL:when={number}");
        let strace = ["-f", "-qq", "-b", "execve", "-o", "/dev/null", "-e", &inject, FARMCTL];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        run(self.command("strace", &strace, &words))
    }

    /// Runs the verb, and answers at which of its own calls it is to be killed, how many it
    /// made, and how many of them not in its first thread.
    fn own_points(&self) -> (Vec<usize>, usize, usize) {
        let trace = self.farm.root().join("trace");
        let trace_calls = format!("trace={CALLS}");
        let strace =
            ["-f", "-qq", "-y", "-b", "execve", "-o", word(&trace), "-e", &trace_calls, FARMCTL];
        let typed = self.typed();
        let words: Vec<&str> = typed.iter().map(String::as_str).collect();
        run(self.command("strace", &strace, &words)).ok();
        let text = fs::read_to_string(&trace).expect("strace wrote it");
        let began = |line: &&str| !line.contains(" resumed>") && line.contains('(');
        let lines: Vec<(&str, &str)> =
            text.lines().filter(began).filter_map(|line| line.split_once(' ')).collect();
        let first = lines.first().expect("a verb changes something").0;
        let own: Vec<&str> =
            lines.iter().filter(|(pid, _)| *pid == first).map(|(_, call)| *call).collect();
        (sampled(&own), own.len(), lines.len() - own.len())
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
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("strace is installed");
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
        // Lets go of daemons.
        let pid = i32::try_from(child.id()).expect("a pid fits pid_t");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it has not been waited for");
        drop(child.wait());
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
        if !same {
            let (one, other) = (now.changes(before), now.changes(after));
            let (than, changes) =
                if one.len() <= other.len() { ("before", one) } else { ("after", other) };
            return Err(format!("it is not as {than}:\n{}", changes.join("\n")));
        }
        let typed = self.typed();
        ended(&typed.iter().map(String::as_str).collect::<Vec<_>>())?;
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

/// The numbers of the calls a verb is killed at, from 1: all of them, but only a few of
/// those that fill a volume.
fn sampled(calls: &[&str]) -> Vec<usize> {
    let fills = |call: &&str| call.contains("/volumes/fv-");
    let mut points = Vec::new();
    let mut at = 0;
    for run in calls.chunk_by(|one, other| fills(one) == fills(other)) {
        let step = (run.len() / BETWEEN).max(1);
        let taken =
            |within: &usize| !fills(&run[0]) || within % step == 0 || within + 1 == run.len();
        points.extend((0..run.len()).filter(taken).map(|within| at + within + 1));
        at += run.len();
    }
    points
}

/// So many of them, evenly.
fn thinned(points: &[usize], most: usize) -> Vec<usize> {
    let chosen: BTreeSet<usize> =
        (0..most).filter_map(|one| points.get(one * points.len() / most).copied()).collect();
    chosen.into_iter().collect()
}

/// How a walk went.
#[derive(Default)]
struct Walked {
    own: usize,
    own_calls: usize,
    threads: usize,
    tools: usize,
    tool_calls: usize,
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
    let mut walked = Walked::default();
    let mut pending: Option<Vec<(bool, usize)>> = None;
    while pending.as_ref().is_none_or(|points| !points.is_empty()) {
        let field = Field::new(verb, backend);
        let turn = Instant::now();
        let before = field.picture();
        let (own, calls, threads) = field.own_points();
        let after = field.picture();
        (verb.back)(&field);
        let again = field.picture();
        assert!(again == before, "{}: {:#?}", verb.name, again.changes(&before));
        let points = pending.get_or_insert_with(|| {
            (walked.own_calls, walked.threads) = (calls, threads);
            let own = thinned(&own, measure.own.min(own.len()));
            walked.tool_calls = field.killed_with_tools(usize::MAX).expect("it is not killed");
            (verb.back)(&field);
            let all: Vec<usize> = (1..=walked.tool_calls).collect();
            let tools = thinned(&all, measure.tools.min(all.len()));
            let own = own.into_iter().map(|point| (false, point));
            own.chain(tools.into_iter().map(|point| (true, point))).rev().collect()
        });
        while let Some((tools, number)) = points.pop() {
            let over = if tools {
                walked.tools += 1;
                field.killed_with_tools(number).is_some()
            } else {
                walked.own += 1;
                let ran = field.killed(&field.typed(), number);
                // The last calls are not always as many.
                ran.code == 0
            };
            if over {
                (verb.back)(&field);
                continue;
            }
            let who = if tools { "change of its tools" } else { "call" };
            if let Err(wrong) = field.check(&before, &after) {
                let wrong = format!("{} on {backend:?}, {who} {number}: {wrong}", verb.name);
                println!("FAILURE {wrong}\n");
                walked.failures.push(wrong);
                field.mend();
            } else {
                (verb.back)(&field);
            }
            let now = field.picture();
            if now != before {
                println!("not as before: {:#?}", now.changes(&before));
                break;
            }
            if turn.elapsed() > TURN {
                break;
            }
        }
    }
    println!(
        "{:<14} {:<9} own {:>4} of {:>5} calls ({} in other threads), tools {:>3} of {:>5} changes: {} failures",
        verb.name,
        format!("{backend:?}").to_lowercase(),
        walked.own,
        walked.own_calls,
        walked.threads,
        walked.tools,
        walked.tool_calls,
        walked.failures.len()
    );
    walked
}

/// Whether a verb does the same on every backend.
fn is_apart(verb: &Verb) -> bool {
    ["sign", "key", "storage"].iter().any(|name| verb.name.starts_with(name))
}

#[test]
#[ignore = "hours: scripts/killwalk"]
fn killed_at_every_call_of_every_verb_all_is_as_before_or_as_after() {
    let asked = env::var("FARMCTL_KILLWALK").unwrap_or_default();
    let asked: Vec<&str> = asked.split_whitespace().collect();
    for name in &asked {
        assert!(VERBS.iter().any(|verb| verb.name == *name), "there is no verb {name}");
    }
    let mut failures = Vec::new();
    for verb in VERBS.iter().filter(|verb| asked.is_empty() || asked.contains(&verb.name)) {
        for backend in [Backend::Directory, Backend::Btrfs] {
            if backend == Backend::Directory || !is_apart(verb) {
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
    for (name, backend) in [("install", Backend::Btrfs), ("start", Backend::Directory)] {
        let verb = VERBS.iter().find(|verb| verb.name == name).expect("it is a verb");
        failures.extend(walk(verb, backend, few).failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
