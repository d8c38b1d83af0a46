//! Runs of farmctl that get a signal at a certain point, and their words without what
//! is another in every run.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Farm, Ran};

/// A farmctl at work.
pub struct Working {
    child: Option<Child>,
    output: Option<JoinHandle<String>>,
    stderr: BufReader<std::process::ChildStderr>,
    said: String,
}

impl Working {
    /// Starts it and waits until a line with `at` in it is on standard error.
    #[track_caller]
    pub fn until(farm: &Farm, arguments: &[&str], at: &str) -> Self {
        let mut command = farm.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        #[expect(clippy::zombie_processes, reason = "Drop and end wait for it")]
        let mut child = command.spawn().expect("farmctl can be started");
        let mut stdout = child.stdout.take().expect("it is piped");
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).expect("it is text");
            text
        });
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut said = String::new();
        loop {
            let mut line = String::new();
            if stderr.read_line(&mut line).expect("it is text") == 0 {
                drop(child.wait());
                panic!("farmctl {arguments:?} ended before it said {at:?}:\n{said}");
            }
            said.push_str(&line);
            if line.contains(at) {
                return Self { child: Some(child), output: Some(output), stderr, said };
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it has not been waited for").id()
    }

    /// Sends it a signal and waits until it has ended. The code is -1 if the signal
    /// itself ended it.
    pub fn end(mut self, signal: Signal) -> Ran {
        let pid = i32::try_from(self.pid()).expect("a pid fits pid_t");
        kill(Pid::from_raw(pid), signal).expect("it has not been waited for");
        self.stderr.read_to_string(&mut self.said).expect("it is text");
        let mut child = self.child.take().expect("it has not been waited for");
        let status = child.wait().expect("it is our child");
        let stdout = self.output.take().expect("it is there").join().expect("it is text");
        Ran { code: status.code().unwrap_or(-1), stdout, stderr: std::mem::take(&mut self.said) }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A test that failed: farmctl undoes what it began.
            let pid = i32::try_from(child.id()).expect("a pid fits pid_t");
            if kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok() {
                drop(child.wait());
            }
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
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries.into_iter().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let own = entry.file_name() == *std::process::id().to_string();
        !own && String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    })
}

/// The path as farmctl is given it.
pub fn word(path: &Path) -> &str {
    path.to_str().expect("the path is ours")
}
