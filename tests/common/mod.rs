//! A farm: the real farmctl on a root of its own, on this machine's real schroot, nginx
//! and supervisor. When it goes, the machine must be as it was.

#![expect(dead_code, reason = "each test binary uses a part of this")]
#![expect(clippy::disallowed_types, reason = "tests start the program as a user does")]

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};

/// The program under test.
pub const FARMCTL: &str = env!("CARGO_BIN_EXE_farmctl");

/// Where farms lie, and how their names begin.
const FARMS: &str = "/var/tmp";
const PREFIX: &str = "ft.";
/// Where schroot mounts sessions.
const SESSIONS: &str = "/run/schroot/mount";

/// What a run of farmctl printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The run must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "farmctl failed:\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The run must have failed with this status, with exactly one error and one hint.
    #[track_caller]
    pub fn failed(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        let lines =
            |start: &str| self.stderr.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(lines("error: "), 1, "one error is printed:\n{}", self.stderr);
        assert_eq!(lines("hint: "), 1, "one hint is printed:\n{}", self.stderr);
        self
    }

    /// The error line without the word, and what follows it up to the hint.
    pub fn error(&self) -> &str {
        let start = self.stderr.find("error: ").expect("an error was printed") + "error: ".len();
        let text = &self.stderr[start..];
        text[..text.find("\nhint: ").unwrap_or(text.len())].trim_end()
    }

    /// The hint.
    pub fn hint(&self) -> &str {
        self.stderr
            .lines()
            .find_map(|line| line.strip_prefix("hint: "))
            .expect("a hint was printed")
    }
}

/// What a test may not change for good: a line for each mount, loop device, session, ...
#[derive(Debug)]
struct Machine(BTreeSet<String>);

impl Machine {
    fn look(root: &Path) -> Self {
        let mut all = BTreeSet::new();
        let mut add = |kind: &str, lines: Vec<String>| {
            all.extend(lines.into_iter().map(|line| format!("{kind} {line}")));
        };
        add("mount", mounts(root));
        let accounts = fs::read_to_string("/etc/passwd").expect("it is readable");
        let accounts = accounts.lines().filter(|line| line.starts_with("farmctl-"));
        add("account", accounts.map(str::to_owned).collect());
        let files = names(Path::new("/sys/block")).into_iter().filter_map(|name| {
            fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file")).ok()
        });
        add("loop", files.filter(|file| is_near(root, Path::new(file))).collect());
        for (kind, directory) in [
            ("session", "/var/lib/schroot/session"),
            ("chroot", "/etc/schroot/chroot.d"),
            ("vhost", "/etc/nginx/sites-enabled"),
            ("unit", "/etc/systemd/system"),
        ] {
            add(kind, names(Path::new(directory)).into_iter().collect());
        }
        add("process", processes(root));
        Self(all)
    }

    /// What came and what went since then, a line each.
    fn changes(&self, before: &Self) -> Vec<String> {
        let new = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        new.chain(before.0.difference(&self.0).map(|line| format!("- {line}"))).collect()
    }
}

/// Others may mount things meanwhile: what lies in the farm or in schroot's places counts.
fn is_near(root: &Path, path: &Path) -> bool {
    let places = ["/run/schroot", "/var/lib/schroot", "/run/farmctl"].map(Path::new);
    path.starts_with(root) || places.iter().any(|place| path.starts_with(place))
}

/// Mount points in the farm and in schroot's places, in the order of mounting.
pub fn mounts(root: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| is_near(root, Path::new(point))).map(str::to_owned).collect()
}

/// Names in a directory; none if it is not there.
pub fn names(directory: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Processes that name a farm's root or live in it, or in a session: with their pids.
/// Any others are none of farmctl's; the machine may be busy, also with tests in
/// namespaces of their own (`scripts/lane`), where the host has another name.
pub fn processes(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for pid in names(Path::new("/proc")).into_iter().filter(|name| name.parse::<u32>().is_ok()) {
        let process = Path::new("/proc").join(&pid);
        let host = |process: &Path| fs::read_link(process.join("ns/uts")).ok();
        if host(&process) != host(Path::new("/proc/self")) {
            continue;
        }
        let Ok(line) = fs::read(process.join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let lives =
            ["root", "cwd"].iter().filter_map(|link| fs::read_link(process.join(link)).ok());
        let inside = |path: PathBuf| path.starts_with(root) || path.starts_with(SESSIONS);
        if line.contains(root.to_str().expect("the path is ours")) || lives.into_iter().any(inside)
        {
            found.push(format!("{pid} {line}"));
        }
    }
    found
}

/// A root of its own for farmctl.
#[derive(Debug)]
pub struct Farm {
    root: tempfile::TempDir,
    before: Machine,
    /// Whether its volumes are on a file system of their own.
    is_mounted: bool,
    // One farm at a time on a machine: schroot, nginx and ports are shared.
    _turn: Flock<fs::File>,
}

impl Farm {
    /// A new farm; waits for its turn.
    pub fn new() -> Self {
        let file = fs::File::create("/run/lock/farmctl-tests").expect("tests run as root");
        let turn = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error);
        let turn = turn.expect("the lock can be waited for");
        clear_dead_farms();
        // Short, because a socket's path has at most 108 bytes (unix(7)).
        let root = tempfile::Builder::new().prefix(PREFIX).tempdir_in(FARMS);
        let root = root.expect("there is room");
        Self { before: Machine::look(root.path()), root, is_mounted: false, _turn: turn }
    }

    /// A new farm whose volumes are on a file system of their own, made by `mkfs`, a program
    /// and its options, in the file `image`.
    pub fn on(mkfs: &str) -> Self {
        let mut farm = Self::new();
        let (image, volumes) = (farm.root().join("image"), farm.state("volumes"));
        let [file, directory] = [&image, &volumes].map(|path| path.display().to_string());
        fs::File::create(&image).and_then(|file| file.set_len(2 << 30)).expect("there is room");
        fs::create_dir_all(&volumes).expect("there is room");
        let words: Vec<&str> = mkfs.split(' ').collect();
        tool(words[0], &[&words[1..], &["-q", &file]].concat());
        tool("mount", &["-o", "loop", &file, &directory]);
        farm.is_mounted = true;
        farm
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A path of the farm's state.
    pub fn state(&self, path: &str) -> PathBuf {
        self.root().join("var/lib/farmctl").join(path)
    }

    /// A call of farmctl on this farm, for tests that need its process.
    pub fn command(&self, arguments: &[&str]) -> Command {
        farmctl(self.root(), arguments)
    }

    /// Runs farmctl on this farm.
    #[must_use = "assert how it ended"]
    pub fn run(&self, arguments: &[&str]) -> Ran {
        run(self.command(arguments))
    }

    /// How an application is, in the words of `status --json`.
    #[track_caller]
    pub fn state_of(&self, app: &str) -> String {
        let status = self.run(&["status", app, "--json"]).stdout;
        let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
        status["state"].as_str().unwrap_or_default().to_owned()
    }

    /// A copy of a shipped profile under another name and port, so that an application
    /// that really runs here is not disturbed; answers its directory.
    pub fn profile(&self, shipped: &str, name: &str, port: u16) -> PathBuf {
        let target = self.root().join("profiles").join(name);
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles").join(shipped), &target);
        let file = target.join("profile.toml");
        let text = fs::read_to_string(&file).expect("every profile has one");
        let text = text.replace(&format!("name = \"{shipped}\""), &format!("name = \"{name}\""));
        let listen = text
            .lines()
            .find(|line| line.starts_with("listen = "))
            .expect("it has a front")
            .to_owned();
        let text = text.replace(&listen, &format!("listen = [\"127.0.0.1:{port}\"]"));
        fs::write(&file, text).expect("it is our copy");
        target
    }

    /// Bootstraps and bakes a profile; answers the tarball. Baked once for each build of
    /// the program: later calls find it done already.
    pub fn bake(&self, profile: &Path) -> PathBuf {
        let profile = profile.to_str().expect("the path is ours");
        let out = kept();
        self.run(&["bootstrap", profile]).ok();
        let baked =
            self.run(&["bake", profile, "--output", out.to_str().expect("the path is ours")]).ok();
        PathBuf::from(baked.stdout.trim())
    }

    /// Bakes, installs and starts a copy of a shipped profile; answers its address.
    pub fn serve(&self, shipped: &str, name: &str, port: u16) -> String {
        let tarball = self.bake(&self.profile(shipped, name, port));
        self.run(&["install", tarball.to_str().expect("the path is ours")]).ok();
        self.run(&["start", name]).ok().stdout.trim().to_owned()
    }

    /// Says that a failed run left nothing, as far as farmctl knows.
    #[track_caller]
    pub fn assert_clean(&self) {
        let ran = self.run(&["gc", "--check"]);
        assert_eq!(ran.code, 0, "gc --check found:\n{}\n{}", ran.stdout, ran.stderr);
    }

    /// Names of the farm's volumes.
    pub fn volumes(&self) -> BTreeSet<String> {
        let mut names = names(&self.state("volumes"));
        // Where btrfs has the sessions, and what is no volume.
        for other in [".sessions", "lost+found"] {
            names.remove(other);
        }
        names
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        if env::var_os("FARMCTL_TEST_KEEP").is_some() {
            self.root.disable_cleanup(true);
            return;
        }
        if std::thread::panicking() {
            // In the middle of what it tested, perhaps.
            drop(self.run(&["gc"]));
        }
        let check = clear(self.root());
        let left = self.volumes();
        if self.is_mounted {
            drop(run(called("umount", &[&self.state("volumes").display().to_string()])));
        }
        let after = Machine::look(self.root());
        if std::thread::panicking() {
            return;
        }
        assert_eq!(check.code, 0, "gc --check found:\n{}\n{}", check.stdout, check.stderr);
        let changes = after.changes(&self.before);
        assert!(changes.is_empty(), "the machine is not as it was:\n{}", changes.join("\n"));
        assert_eq!(left, BTreeSet::new(), "no volume is left");
    }
}

/// Removes all that is installed and bootstrapped beneath a root; answers what `gc --check`
/// then says.
pub fn clear(root: &Path) -> Ran {
    let state = root.join("var/lib/farmctl");
    let farmctl = |arguments: &[&str]| run(farmctl(root, arguments));
    for file in names(&state.join("apps")) {
        let name = file.trim_end_matches(".json");
        drop(farmctl(&["stop", name]));
        drop(farmctl(&["remove", name, "--data"]));
    }
    for file in names(&state.join("environments")) {
        drop(farmctl(&["remove", "--environment", file.trim_end_matches(".json")]));
    }
    farmctl(&["gc", "--check"])
}

/// A killed test run leaves its farm, and with it names in schroot and nginx that the next
/// run wants. Who has the turn knows that nobody else lives there.
fn clear_dead_farms() {
    for name in names(Path::new(FARMS)).into_iter().filter(|name| name.starts_with(PREFIX)) {
        let root = Path::new(FARMS).join(name);
        drop(run(farmctl(&root, &["gc"])));
        drop(clear(&root));
        // A disk of its own.
        for point in mounts(&root).iter().rev().filter(|point| Path::new(point).starts_with(&root))
        {
            drop(run(called("umount", &[point])));
        }
        drop(fs::remove_dir_all(&root));
    }
}

/// A call of farmctl on a root.
fn farmctl(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(FARMCTL);
    command.arg("--root").arg(root).args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1");
    command.env("FARMCTL_CACHE", cache());
    command
}

/// Where the tests of this file keep what this build of the program baked: others may run
/// beside them, and bake another profile of the same name, or this one at the same time.
pub fn kept() -> PathBuf {
    let built =
        fs::metadata(FARMCTL).and_then(|metadata| metadata.modified()).expect("it was built");
    let built = built.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tarballs-{built}"));
    let kept = kept.join(env!("CARGO_CRATE_NAME"));
    fs::create_dir_all(&kept).expect("there is room");
    kept
}

/// The cache tests share with a real farmctl: bootstrapped trees are expensive.
pub fn cache() -> PathBuf {
    env::var_os("FARMCTL_CACHE").map_or_else(|| PathBuf::from("/var/cache/farmctl"), PathBuf::from)
}

/// Runs a command to its end.
#[must_use = "assert how it ended"]
pub fn run(mut command: Command) -> Ran {
    let output = command.output().expect("the program can be started");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A call of a program, with the cache farmctl is to use.
pub fn called(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1");
    command.env("FARMCTL_CACHE", cache());
    command
}

/// Runs a program of the machine; it must succeed. Answers its standard output.
#[track_caller]
pub fn tool(name: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null());
    let ran = run(command);
    assert_eq!(ran.code, 0, "{name} {arguments:?} failed:\n{}\n{}", ran.stdout, ran.stderr);
    ran.stdout
}

/// Set in the process that has the namespace.
const INNER: &str = "FARMCTL_TEST_NAMESPACE";

/// Runs the test of this name again in a mount namespace of its own. Answers whether this
/// is that run: the test is to be carried out there alone.
#[track_caller]
#[must_use]
pub fn in_namespace(name: &str) -> bool {
    if env::var_os(INNER).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "--"])
        .arg(env::current_exe().expect("it is running"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INNER, "1");
    let ran = run(command);
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("1 passed"), "no test is called {name}");
    false
}

/// Runs the test of this name again in a lane (`scripts/lane`), where nginx, /etc and ports are
/// its own. Answers whether this is that run: the test is to be carried out there alone.
#[track_caller]
#[must_use]
pub fn in_lane(name: &str) -> bool {
    if Path::new("/run/lane").is_dir() {
        return true;
    }
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/lane"));
    command
        .arg(env::current_exe().expect("it is running"))
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .stdin(Stdio::null());
    let ran = run(command);
    assert_eq!(ran.code, 0, "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("1 passed"), "no test is called {name}");
    false
}

/// Waits until `look` holds; fails after `within`.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the pause between two looks")]
pub fn wait_for(what: &str, within: Duration, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !look() {
        assert!(Instant::now() < deadline, "{what}: not after {within:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends a started farmctl if the test leaves early.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("there is room");
    for entry in fs::read_dir(from).expect("it is there").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("there is room");
        }
    }
}
