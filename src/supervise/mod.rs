//! Who runs the processes: systemd where it is PID 1, Debian's supervisor elsewhere.
//!
//! A supervised process is the server itself: the supervisor enters the session's mount
//! with chroot(8), which execs through to it. `schroot -r` in between would pass on one
//! signal and swallow the next.

mod supervisord;

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::layout::Layout;
use crate::profile;

pub use supervisord::TOOLS;

/// A process as a supervisor is told about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Its name in the profile.
    pub process: String,
    /// Where the session is mounted.
    pub mount: PathBuf,
    /// User id it runs as.
    pub uid: u32,
    /// Group id it runs as; no other groups.
    pub gid: u32,
    /// How it is stopped.
    pub stop: profile::Stop,
    /// Where its output goes.
    pub log: PathBuf,
}

/// What a process is doing, to its supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It runs, and has for a while.
    Running,
    /// It was started a moment ago.
    Starting,
    /// It ended too soon and is about to be started again.
    Backoff,
    /// It is being stopped.
    Stopping,
    /// It does not run, as wanted.
    Stopped,
    /// It does not run, and will not be started again.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// A supervised process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ProcessState {
    /// Its name in the profile.
    pub process: String,
    /// What it is doing.
    pub state: State,
    /// Process id of the server itself.
    pub pid: Option<u32>,
    /// When it was started, seconds since 1970; while it runs.
    pub since: Option<i64>,
    /// Exit status of the last one that ended by itself; negative: the signal.
    pub exit: Option<i32>,
}

impl ProcessState {
    /// Whether it is up, or just coming up.
    #[must_use]
    pub fn runs(&self) -> bool {
        matches!(self.state, State::Running | State::Starting)
    }
}

/// Runs processes, starts them again when they die, and keeps their output.
pub trait Supervise: fmt::Debug {
    /// Whether the machine has what this supervisor needs.
    ///
    /// # Errors
    /// Saying what is missing.
    fn check(&self) -> Result<()>;
    /// Starts an application's processes, and ends what still runs in their sessions
    /// unsupervised. What runs already as wanted is left alone. Answers at once;
    /// whether they stay up is for [`Supervise::states`] to say.
    ///
    /// # Errors
    /// When the supervisor cannot be reached or refuses.
    fn start(&self, app: &str, programs: &[Program]) -> Result<()>;
    /// Stops an application's processes, all at once, and forgets them. When they were
    /// the last ones, nothing of the supervisor runs any more. Nothing there is fine.
    ///
    /// # Errors
    /// When one cannot be stopped.
    fn stop(&self, app: &str) -> Result<()>;
    /// Stops one process and starts it again.
    ///
    /// # Errors
    /// When the supervisor does not know it.
    fn restart(&self, app: &str, process: &str) -> Result<()>;
    /// The application's processes; none if the supervisor does not run.
    ///
    /// # Errors
    /// When it runs and cannot be reached.
    fn states(&self, app: &str) -> Result<Vec<ProcessState>>;
    /// Applications the supervisor has been told about.
    ///
    /// # Errors
    /// When its configuration cannot be read.
    fn apps(&self) -> Result<Vec<String>>;
}

/// The supervisor of this machine.
#[must_use]
pub fn detect(layout: &Layout) -> Box<dyn Supervise> {
    Box::new(supervisord::Supervisord::new(layout))
}
