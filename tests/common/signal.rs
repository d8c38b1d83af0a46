//! Runs of farmctl that get a signal at a certain point, and their words without what
//! is another in every run.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Farm, Ran};

/// How long a line may take that is waited for without a limit of its own.
const LINE: Duration = Duration::from_secs(600);

/// A farmctl at work, whose standard error is read line by line.
pub struct Working {
    child: Option<Child>,
    output: Option<JoinHandle<String>>,
    lines: Receiver<String>,
    said: String,
}

impl Working {
    /// Starts it.
    pub fn begin(farm: &Farm, arguments: &[&str]) -> Self {
        let mut command = farm.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("farmctl can be started");
        let mut stdout = child.stdout.take().expect("it is piped");
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).expect("it is text");
            text
        });
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        Self { child: Some(child), output: Some(output), lines, said: String::new() }
    }

    /// Starts it and waits until a line with `at` in it is on standard error.
    #[track_caller]
    pub fn until(farm: &Farm, arguments: &[&str], at: &str) -> Self {
        let mut working = Self::begin(farm, arguments);
        working.wait(at, LINE);
        working
    }

    /// Waits for a line with `at` in it; answers what was said since the one waited for before.
    #[track_caller]
    pub fn wait(&mut self, at: &str, within: Duration) -> String {
        let deadline = Instant::now() + within;
        let before = self.said.len();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("farmctl did not say {at:?} within {within:?}:\n{}", self.said)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("farmctl ended before it said {at:?}:\n{}", self.said)
                }
            };
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(at) {
                return self.said[before..].to_owned();
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it has not been waited for").id()
    }

    fn signal(&self, signal: Signal) -> nix::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid()).expect("a pid fits pid_t")), signal)
    }

    /// Sends it a signal and waits until it has ended.
    pub fn end(self, signal: Signal) -> Ran {
        self.signal(signal).expect("it has not been waited for");
        self.ended()
    }

    /// Waits until it has ended. The code is -1 if a signal ended it.
    pub fn ended(mut self) -> Ran {
        let rest: String = self.lines.iter().map(|line| line + "\n").collect();
        let mut child = self.child.take().expect("it has not been waited for");
        let status = child.wait().expect("it is our child");
        let stdout = self.output.take().expect("it is there").join().expect("it is text");
        let stderr = std::mem::take(&mut self.said) + &rest;
        Ran { code: status.code().unwrap_or(-1), stdout, stderr }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // A test that failed: farmctl undoes what it began.
        if self.child.is_some() && self.signal(Signal::SIGTERM).is_ok() {
            drop(self.child.take().map(|mut child| child.wait()));
        }
    }
}

/// Text with the farm's root as `ROOT`, and ids and times without their digits.
pub fn masked(text: &str, farm: &Farm) -> String {
    masked_ids(&text.replace(&farm.root().display().to_string(), "ROOT"))
}

/// Text with every id of eight hexadecimal digits as `ID`, and every time in seconds since
/// 1970 as `TIME`.
pub fn masked_ids(text: &str) -> String {
    let mut masked = String::new();
    let mut word = String::new();
    for letter in text.chars().chain(['\n']) {
        if letter.is_ascii_alphanumeric() {
            word.push(letter);
            continue;
        }
        let id = word.len() == 8
            && word.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
        let time = word.len() == 10 && word.bytes().all(|byte| byte.is_ascii_digit());
        masked.push_str(match (id, time) {
            (true, _) => "ID",
            (_, true) => "TIME",
            _ => &word,
        });
        word.clear();
        masked.push(letter);
    }
    masked.pop();
    masked
}

/// Whether a process has `text` in its command line.
pub fn runs(text: &str) -> bool {
    !pids(|line| line.contains(text)).is_empty()
}

/// The processes with such a command line, but for this one.
pub fn pids(is: impl Fn(&str) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let others = entries.filter(|entry| entry.file_name() != *std::process::id().to_string());
    let processes = others.filter_map(|entry| {
        let pid = entry.file_name().to_string_lossy().parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        is(&String::from_utf8_lossy(&line).replace('\0', " ")).then_some(pid)
    });
    processes.collect()
}

/// The path as farmctl is given it.
pub fn word(path: &Path) -> &str {
    path.to_str().expect("the path is ours")
}
