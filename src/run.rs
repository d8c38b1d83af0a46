//! The one place that starts processes.
//!
//! Every external program is a [`Tool`], declared with the Debian package that
//! provides it and looked up in a fixed list of directories, never `$PATH`. It gets a
//! fixed environment (`LC_ALL=C.UTF-8`, nothing inherited), no standard input, and
//! dies with farmctl (`setpriv --pdeathsig`), so that no tool outlives a killed run but
//! those that must not stop halfway ([`Invocation::surviving`], [`Invocation::holding`]).
//! SIGINT and SIGTERM end the running tool and surface as an error that unwinds.

mod interrupt;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

pub use self::interrupt::{Shield, check_interrupted, poll_until, rest, watch_signals};
use crate::error;

/// Directories tools are looked up in: Debian's own, and the administrator's.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
/// Lines of a failed tool's output that its error carries.
const TAIL_LINES: usize = 12;
/// How long a tool may take to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// An external program and the Debian package that provides it.
#[derive(Debug, PartialEq, Eq)]
pub struct Tool {
    /// File name of the program.
    pub name: &'static str,
    /// Debian package.
    pub package: &'static str,
}

impl Tool {
    /// Where the program is, if it is installed.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        DIRECTORIES.iter().map(|dir| Path::new(dir).join(self.name)).find(|path| path.is_file())
    }
}

/// Refuses unless all of these programs are installed, naming every missing one.
///
/// # Errors
/// When one is missing, with the `apt-get` line as hint.
pub fn require(tools: &[&Tool]) -> Result<()> {
    let missing: Vec<&&Tool> = tools.iter().filter(|tool| tool.path().is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|tool| tool.name).collect();
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    error::refuse(
        format_args!("missing programs: {}", names.join(", ")),
        format!("apt-get install {}", packages.join(" ")),
    )
}

const SETPRIV: Tool = Tool { name: "setpriv", package: "util-linux" };
const SH: Tool = Tool { name: "sh", package: "dash" };
const UNSHARE: Tool = Tool { name: "unshare", package: "util-linux" };
/// Runs a tool only if farmctl, whose number is the shell's first word, is still the
/// parent: the kernel sends the signal that `setpriv --pdeathsig` asked for when the
/// parent ends, and never if it ended before that was asked (prctl(2)). PWD is the one
/// variable a shell adds to the environment.
const IF_PARENT_LIVES: &str = r#"test "$PPID" = "$0" || exit; unset PWD; exec "$@""#;

/// What a tool is given on standard input.
#[derive(Clone, Debug, Default)]
enum Input {
    #[default]
    Nothing,
    Text(String),
    Terminal,
    /// A lock, which nobody reads.
    Held(Arc<File>),
}

/// One call of a tool, ready to be shown or made.
#[derive(Clone, Debug)]
pub struct Invocation {
    program: PathBuf,
    name: String,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Input,
    contained: bool,
    survives: bool,
    foreign: bool,
}

/// How a tool ended and what it wrote.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// The last lines of both, as they came; kept for [`Invocation::foreign`].
    last: VecDeque<String>,
}

impl Outcome {
    /// Exit status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.success()
    }
}

impl Invocation {
    /// A call of `tool`. A tool that is not installed fails when the call is made.
    #[must_use]
    pub fn of(tool: &Tool) -> Self {
        let program = tool.path().unwrap_or_else(|| PathBuf::from(tool.name));
        Self::program(program)
    }

    /// A call of the program at `path`.
    #[must_use]
    pub fn program(path: impl Into<PathBuf>) -> Self {
        let program = path.into();
        let name = program.file_name().map_or_else(
            || program.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        );
        Self {
            program,
            name,
            arguments: Vec::new(),
            environment: Vec::new(),
            input: Input::Nothing,
            contained: false,
            survives: false,
            foreign: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = I>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives the tool this text on standard input.
    #[must_use]
    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Input::Text(text.into());
        self
    }

    /// Calls the tool something else in errors: the step's name instead of `unshare`.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Shows the last lines of both outputs if it fails: for what an administrator wrote, which
    /// may say why on either. Tools say it on standard error, and much else on the other.
    #[must_use]
    pub fn foreign(mut self) -> Self {
        self.foreign = true;
        self
    }

    /// Runs the tool in a PID namespace of its own: when it or farmctl ends, every
    /// process it started ends as well.
    #[must_use]
    pub fn contained(mut self) -> Self {
        self.contained = true;
        self
    }

    /// Lets the tool outlive farmctl: for daemons.
    #[must_use]
    pub fn surviving(mut self) -> Self {
        self.survives = true;
        self
    }

    /// Lets the tool outlive farmctl and keep `lock` until its own end: for what changes
    /// files of others in more than one step. Who has the lock next finds all of it done.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn holding(mut self, lock: &File) -> Result<Self> {
        self.input = Input::Held(Arc::new(lock.try_clone().context("sharing a lock")?));
        self.survives = true;
        Ok(self)
    }

    /// The call as it could be pasted into a shell.
    #[must_use]
    pub fn display(&self) -> String {
        let mut words: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| {
                format!("{}={}", name.to_string_lossy(), quote(&value.to_string_lossy()))
            })
            .collect();
        if self.contained {
            words.push("unshare --pid --fork --kill-child --".to_owned());
        }
        words.push(quote(&self.program.to_string_lossy()));
        words.extend(self.arguments.iter().map(|argument| quote(&argument.to_string_lossy())));
        words.join(" ")
    }

    /// Runs the tool; its output is shown with `-v -v` only.
    ///
    /// # Errors
    /// When it cannot be started, or ends with anything but 0: with its last lines.
    pub fn run(&self) -> Result<()> {
        self.run_lines(|_| ())
    }

    /// Like [`Self::run`], with every line of output passed to `line` as it comes.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_lines(&self, mut line: impl FnMut(&str)) -> Result<()> {
        let outcome = self.make(Keep::All, &mut |text| {
            line(text);
            ControlFlow::Continue(())
        })?;
        self.expect_success(&outcome)
    }

    /// Runs a tool that goes on and on: passes on each line of its output as it comes,
    /// keeping none, until `line` breaks, the tool ends, or the user interrupts.
    ///
    /// # Errors
    /// As [`Self::run`], and on interruption.
    pub fn stream(&self, line: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<()> {
        let mut broke = false;
        let outcome = self.make(Keep::Nothing, &mut |text| {
            let flow = line(text);
            broke = flow.is_break();
            flow
        })?;
        if broke { Ok(()) } else { self.expect_success(&outcome) }
    }

    /// Runs the tool and answers its standard output.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn output(&self) -> Result<String> {
        let outcome = self.outcome()?;
        self.expect_success(&outcome)?;
        Ok(outcome.stdout)
    }

    /// Runs the tool and answers how it ended, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started, and on interruption.
    pub fn outcome(&self) -> Result<Outcome> {
        self.make(Keep::All, &mut |_| ControlFlow::Continue(()))
    }

    /// Runs the tool on the user's terminal and answers its exit status.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn interactive(&self) -> Result<i32> {
        let mut terminal = self.clone();
        terminal.input = Input::Terminal;
        let mut child = terminal.spawn()?;
        let status = child.wait().with_context(|| format!("waiting for {}", self.name))?;
        Ok(status.code().unwrap_or(128 + status.signal().unwrap_or(0)))
    }

    fn expect_success(&self, outcome: &Outcome) -> Result<()> {
        if outcome.status.success() {
            return Ok(());
        }
        let ended = match (outcome.status.code(), outcome.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(signal) => format!("killed by {signal}"),
                Err(_) => format!("killed by signal {signal}"),
            },
            (None, None) => "ended".to_owned(),
        };
        let last = if self.foreign {
            listed(outcome.last.iter().map(String::as_str))
        } else {
            tail(&outcome.stderr).or_else(|| tail(&outcome.stdout)).unwrap_or_default()
        };
        bail!("{}: {ended}{last}", self.name)
    }

    #[expect(clippy::disallowed_types, reason = "this is the seam")]
    fn spawn(&self) -> Result<Child> {
        check_interrupted()?;
        tracing::info!("+ {}", self.display());
        let mut words: Vec<OsString> = Vec::new();
        let interactive = matches!(self.input, Input::Terminal);
        if !self.survives && !interactive {
            let setpriv = SETPRIV.path().unwrap_or_else(|| PathBuf::from(SETPRIV.name));
            let sh = SH.path().unwrap_or_else(|| PathBuf::from(SH.name));
            words.extend([setpriv.into(), "--pdeathsig".into(), "KILL".into(), "--".into()]);
            words.extend([sh.into(), "-c".into(), IF_PARENT_LIVES.into()]);
            words.push(std::process::id().to_string().into());
        }
        if self.contained {
            let unshare = UNSHARE.path().unwrap_or_else(|| PathBuf::from(UNSHARE.name));
            words.push(unshare.into());
            words.extend(["--pid", "--fork", "--kill-child", "--"].map(OsString::from));
        }
        words.push(self.program.clone().into());
        words.extend(self.arguments.iter().cloned());
        let mut command = std::process::Command::new(&words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/");
        if interactive {
            if let Some(term) = std::env::var_os("TERM") {
                command.env("TERM", term);
            }
        } else {
            let stdin = match &self.input {
                Input::Text(_) => Stdio::piped(),
                Input::Held(lock) => lock.try_clone().context("sharing a lock")?.into(),
                Input::Nothing | Input::Terminal => Stdio::null(),
            };
            command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
            // A group of its own: Ctrl-C reaches farmctl alone, which then ends the group.
            command.process_group(0);
        }
        command.spawn().with_context(|| format!("starting {}", self.program.display()))
    }

    fn make(&self, keep: Keep, line: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<Outcome> {
        let mut child = self.spawn()?;
        let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid fits pid_t"));
        let writer = match (&self.input, child.stdin.take()) {
            (Input::Text(text), Some(mut stdin)) => {
                let text = text.clone();
                Some(std::thread::spawn(move || {
                    // A tool that does not read all of its input says so by its status.
                    drop(std::io::Write::write_all(&mut stdin, text.as_bytes()));
                }))
            }
            _ => None,
        };
        let mut last = VecDeque::new();
        let collected = collect(&mut child, keep, &mut |text| {
            if self.foreign {
                remember(&mut last, text);
            }
            line(text)
        });
        if !matches!(collected, Ok((_, ControlFlow::Continue(())))) {
            end_group(&mut child, group);
        }
        let status = child.wait().with_context(|| format!("waiting for {}", self.name));
        if let Some(writer) = writer {
            drop(writer.join());
        }
        let ([stdout, stderr], _) = collected.with_context(|| format!("running {}", self.name))?;
        for text in [&stdout, &stderr].iter().filter(|text| !text.ends_with('\n')) {
            remember(&mut last, text.lines().next_back().unwrap_or_default());
        }
        Ok(Outcome { status: status?, stdout, stderr, last })
    }
}

/// What is kept of a tool's output after it was passed on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    Nothing,
}

/// Reads both outputs to their ends, or until `line` breaks, passing on whole lines.
fn collect(
    child: &mut Child,
    keep: Keep,
    line: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<([String; 2], ControlFlow<()>)> {
    let mut out = child.stdout.take().context("taking the standard output")?;
    let mut err = child.stderr.take().context("taking the standard error")?;
    let mut buffers = [Vec::new(), Vec::new()];
    let mut passed = [0usize; 2];
    let mut open = [true, true];
    let mut chunk = vec![0u8; 64 << 10];
    let mut flow = ControlFlow::Continue(());
    while flow.is_continue() && (open[0] || open[1]) {
        check_interrupted()?;
        let ready = {
            let interest = |open: bool| if open { PollFlags::POLLIN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(out.as_fd(), interest(open[0])),
                PollFd::new(err.as_fd(), interest(open[1])),
            ];
            match poll(&mut fds, PollTimeout::from(200u8)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for output"),
            }
            fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
        };
        for stream in 0..2 {
            if !(open[stream] && ready[stream]) {
                continue;
            }
            let read = if stream == 0 { out.read(&mut chunk) } else { err.read(&mut chunk) };
            let count = match read {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("reading output"),
            };
            open[stream] = count > 0;
            buffers[stream].extend_from_slice(&chunk[..count]);
            let buffer = &buffers[stream];
            while let Some(end) = buffer[passed[stream]..].iter().position(|byte| *byte == b'\n') {
                let text = String::from_utf8_lossy(&buffer[passed[stream]..passed[stream] + end]);
                tracing::debug!("| {text}");
                flow = line(&text);
                passed[stream] += end + 1;
                if flow.is_break() {
                    break;
                }
            }
            if keep == Keep::Nothing {
                buffers[stream].drain(..passed[stream]);
                passed[stream] = 0;
            }
        }
    }
    Ok((buffers.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()), flow))
}

/// Ends a tool and what it started in its group: SIGTERM, then SIGKILL.
fn end_group(child: &mut Child, group: Pid) {
    let _ = killpg(group, Signal::SIGTERM);
    let shield = Shield::raise();
    let ended = poll_until(GRACE, || Ok(child.try_wait()?.map(|_| ())));
    drop(shield);
    if !matches!(ended, Ok(Some(()))) {
        tracing::info!("it does not end on SIGTERM");
    }
    // Also when the tool itself has ended: what it started may go on without it.
    let _ = killpg(group, Signal::SIGKILL);
}

/// Adds a line to the last ones, unless it is empty.
fn remember(last: &mut VecDeque<String>, line: &str) {
    let line = line.trim_end();
    if line.is_empty() {
        return;
    }
    if last.len() == TAIL_LINES {
        last.pop_front();
    }
    last.push_back(line.to_owned());
}

/// The last lines of a tool's output, each on a line of its own.
fn tail(text: &str) -> Option<String> {
    let mut last = VecDeque::new();
    text.lines().for_each(|line| remember(&mut last, line));
    (!last.is_empty()).then(|| listed(last.iter().map(String::as_str)))
}

fn listed<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(|line| format!("\n  | {line}")).collect()
}

/// Quotes a word for sh if it needs to be.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Refuses unless farmctl runs as root.
///
/// # Errors
/// When it does not.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    error::refuse("farmctl must run as root", "sudo farmctl …")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_so_that_they_can_be_pasted() {
        assert_eq!(quote("--variant=minbase"), "--variant=minbase");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn a_failing_tool_is_named_with_its_status_and_last_lines() {
        let error = Invocation::of(&SH)
            .args(["-c", "echo one; echo two >&2; exit 3"])
            .run()
            .expect_err("the script exits 3");
        assert_eq!(error.to_string(), "sh: exit status 3\n  | two");
        // The pause is for the order of two pipes.
        let error = Invocation::of(&SH)
            .args(["-c", "echo why; echo; sleep 0.1; echo two >&2; sleep 0.1; printf end; exit 3"])
            .foreign()
            .run()
            .expect_err("the script exits 3");
        assert_eq!(error.to_string(), "sh: exit status 3\n  | why\n  | two\n  | end");
    }

    #[test]
    fn a_stream_ends_when_its_reader_has_enough() {
        let mut seen = Vec::new();
        let endless = Invocation::of(&SH).args(["-c", "while :; do echo more; done"]);
        let ended = endless.stream(&mut |line| {
            seen.push(line.to_owned());
            if seen.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        ended.expect("who has enough has no error");
        assert_eq!(seen, ["more"; 3]);
    }

    #[test]
    fn tools_inherit_nothing_and_read_nothing() {
        let env = Tool { name: "env", package: "coreutils" };
        let text = Invocation::of(&env).output().expect("env succeeds");
        let mut names: Vec<_> = text.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["HOME", "LC_ALL", "PATH"]);
        let text = Invocation::of(&SH).args(["-c", "cat; pwd"]).output();
        assert_eq!(text.expect("cat and pwd succeed"), "/\n");
    }

    #[test]
    fn a_tool_whose_farmctl_is_gone_does_not_begin() {
        let of = |parent: u32| {
            let parent = parent.to_string();
            Invocation::of(&SH).args(["-c", IF_PARENT_LIVES, &parent, "echo", "began"]).outcome()
        };
        let own = of(std::process::id()).expect("sh can be started");
        assert_eq!(own.stdout, "began\n");
        let anothers = of(1).expect("sh can be started");
        assert_eq!((anothers.stdout.as_str(), anothers.status.code()), ("", Some(1)));
    }

    #[test]
    fn a_lock_is_held_until_the_tool_that_has_it_ends() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("there is room");
        let hold = || crate::place::hold(directory.path(), Duration::ZERO);
        let lock = File::open(directory.path()).expect("it is there");
        let called = |tool: &Tool, words: &[&str]| {
            Invocation::of(tool).args(words).holding(&lock).expect("a descriptor is left")
        };
        let flock = Tool { name: "flock", package: "util-linux" };
        called(&flock, &["--nonblock", "0"]).run().expect("nobody has it");
        let script = format!("read line < {}", quote(&pipe.display().to_string()));
        let mut tool = called(&SH, &["-c", &script]).spawn().expect("sh can be started");
        // As the kernel closes it when farmctl is killed.
        drop(lock);
        assert!(hold().is_err());
        std::fs::write(&pipe, "\n").expect("it is read");
        assert!(tool.wait().expect("it is our child").success());
        drop(hold().expect("nobody has it any more"));
    }

    #[test]
    fn all_missing_programs_are_named_at_once() {
        let error = require(&[
            &Tool { name: "no-such-program", package: "nothing" },
            &SH,
            &Tool { name: "no-other-program", package: "nothing" },
        ])
        .expect_err("two are missing");
        assert_eq!(
            error::render(&error),
            "error: missing programs: no-such-program, no-other-program\n\
             hint: apt-get install nothing"
        );
    }
}
