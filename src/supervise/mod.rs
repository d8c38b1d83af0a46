//! Who runs the processes: systemd where it is PID 1, Debian's supervisor elsewhere.
//!
//! A supervised process is the server itself: the supervisor enters the session's mount
//! with chroot(8), which execs through to it. `schroot -r` in between would pass on one
//! signal and swallow the next.

mod configuration;
mod entry;
mod journal;
mod process_logs;
mod supervisord;
mod systemctl;
mod systemd;
mod unit;

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::Serialize;

use crate::layout::{Layout, parse_session};
use crate::machine::systemd_is_init;
use crate::profile;
use crate::run::Tool;

/// A process as a supervisor is told about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Its name in the profile.
    pub process: String,
    /// Version of the release it belongs to.
    pub release: String,
    /// Name of the session it runs in.
    pub session: String,
    /// Where the session is mounted.
    pub mount: PathBuf,
    /// What is mounted in the session.
    pub mounts: Vec<PathBuf>,
    /// User id it runs as.
    pub uid: u32,
    /// Group id it runs as; no other groups.
    pub gid: u32,
    /// How it is stopped.
    pub stop: profile::Stop,
    /// How it takes up new code.
    pub reload: profile::Reload,
}

/// Where one of a process runs: while it is replaced (`reload = "replace"`) there are two, and the
/// next time they change over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// Where it is started.
    First,
    /// Where another is started beside it.
    Second,
}

impl Seat {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

impl Program {
    /// Where it may run.
    fn seats(&self) -> &'static [Seat] {
        match self.reload {
            profile::Reload::Replace => &[Seat::First, Seat::Second],
            _ => &[Seat::First],
        }
    }
}

/// What a process is doing, to its supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
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
    /// Where this one of it runs, or would.
    #[serde(skip)]
    pub seat: Seat,
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
    /// How near it is to running.
    fn nearness(&self) -> u8 {
        match self.state {
            State::Running | State::Starting => 3,
            State::Backoff | State::Stopping => 2,
            State::Failed => 1,
            State::Stopped => 0,
        }
    }

    /// Whether it is to run, or is being stopped.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !matches!(self.state, State::Stopped | State::Failed)
    }

    /// Whether it is up, or just coming up.
    #[must_use]
    pub fn runs(&self) -> bool {
        matches!(self.state, State::Running | State::Starting)
    }
}

/// Where a process's output stood at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// Bytes in its log file.
    Offset(u64),
    /// Its newest entry in the journal; none if it had none.
    Cursor(Option<String>),
}

/// Until when output is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// What has been printed by now.
    Now,
    /// And what is printed from now on, until the user interrupts or the taker breaks.
    Interrupted,
}

/// Takes lines of output, each with the process that printed it.
pub type Take<'a> = dyn FnMut(&str, &str) -> ControlFlow<()> + 'a;

/// Runs processes, starts them again when they die, and keeps their output.
pub trait Supervise: fmt::Debug + Sync {
    /// What it is, and why it is this one, for people.
    fn describe(&self) -> String;
    /// Programs it needs on the host.
    fn tools(&self) -> &'static [&'static Tool];
    /// Whether it can work here, and nothing of ours in it is broken. Its
    /// [`Supervise::tools`] are there.
    ///
    /// # Errors
    /// Saying what is wrong.
    fn check(&self) -> Result<()>;
    /// Starts the processes of a session, and ends what still runs in it unsupervised.
    /// What runs already as wanted is left alone. Answers at once; whether they stay up
    /// is for [`Supervise::states`] to say.
    ///
    /// # Errors
    /// When the supervisor cannot be reached or refuses.
    fn start(&self, session: &str, programs: &[Program]) -> Result<()>;
    /// Stops a session's processes, all at once; [`Supervise::start`] starts them again.
    /// Nothing there is fine.
    ///
    /// # Errors
    /// When one cannot be stopped.
    fn halt(&self, session: &str) -> Result<()>;
    /// Stops a session's processes, all at once, and forgets them. When they were the
    /// last ones, nothing of the supervisor runs any more. Nothing there is fine.
    ///
    /// # Errors
    /// When one cannot be stopped.
    fn stop(&self, session: &str) -> Result<()>;
    /// Stops one process and starts it again.
    ///
    /// # Errors
    /// When the supervisor does not know it.
    fn restart(&self, session: &str, process: &str) -> Result<()>;
    /// Starts one of a process in this seat, whatever runs in the other.
    ///
    /// # Errors
    /// When the supervisor does not know it.
    fn take_seat(&self, session: &str, process: &str, seat: Seat) -> Result<()>;
    /// Stops the one of a process in this seat, and forgets how it ended. Nothing there is fine.
    ///
    /// # Errors
    /// When the supervisor does not know it, or it cannot be stopped.
    fn leave_seat(&self, session: &str, process: &str, seat: Seat) -> Result<()>;
    /// Refuses if what looks after the session's processes has ended: they may go on without
    /// it, and nobody knows them.
    ///
    /// # Errors
    /// Then.
    fn check_watched(&self, session: &str) -> Result<()>;
    /// The session's processes, each in each of its seats; none if the supervisor does not run.
    ///
    /// # Errors
    /// When it runs and cannot be reached.
    fn seats(&self, session: &str) -> Result<Vec<ProcessState>>;
    /// The session's processes; none if the supervisor does not run. Of one that is being
    /// replaced it is the one that runs, or is the nearest to it.
    ///
    /// # Errors
    /// When it runs and cannot be reached.
    fn states(&self, session: &str) -> Result<Vec<ProcessState>> {
        Ok(one_of_each(self.seats(session)?))
    }
    /// Sessions the supervisor has been told about.
    ///
    /// # Errors
    /// When its configuration cannot be read.
    fn sessions(&self) -> Result<Vec<String>>;
    /// Where a process's output stands now.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn position(&self, session: &str, process: &str) -> Result<Position>;
    /// What a process has printed since.
    ///
    /// # Errors
    /// When it cannot be read.
    fn lines_since(&self, session: &str, process: &str, since: &Position) -> Result<Vec<String>>;
    /// Passes on the last `count` lines of each of an application's processes, one process
    /// after the other, whichever session they ran in; then, if asked to, what they print
    /// as they print it.
    ///
    /// # Errors
    /// When it cannot be read, and on interruption.
    fn output(
        &self,
        app: &str,
        processes: &[&str],
        count: usize,
        until: Until,
        take: &mut Take<'_>,
    ) -> Result<()>;
}

/// Of the seats of each process, the one that is the nearest to running.
fn one_of_each(seats: Vec<ProcessState>) -> Vec<ProcessState> {
    let mut states: Vec<ProcessState> = Vec::new();
    for state in seats {
        match states.iter_mut().find(|other| other.process == state.process) {
            Some(other) if state.nearness() > other.nearness() => *other = state,
            Some(_) => {}
            None => states.push(state),
        }
    }
    states
}

/// Has the storage that farmctl made attached after a reboot, before what needs it. Nothing
/// to do without systemd, where `farmctl tend` sees to it.
///
/// # Errors
/// When the unit cannot be written or enabled.
pub fn keep_storage(layout: &Layout) -> Result<()> {
    if !systemd_is_init() {
        return Ok(());
    }
    systemd::Systemd::new(layout).keep_storage()
}

/// Takes back what [`keep_storage`] did. Nothing there is fine.
///
/// # Errors
/// When the unit cannot be removed.
pub fn leave_storage(layout: &Layout) -> Result<()> {
    if !systemd_is_init() {
        return Ok(());
    }
    systemd::Systemd::new(layout).leave_storage()
}

/// Has systemd look after the applications again, now and after a reboot, if somebody took
/// that away or this farmctl is elsewhere than the one before. Nothing to do without systemd
/// or applications.
///
/// # Errors
/// When the units cannot be written or enabled.
pub fn keep_tending(layout: &Layout) -> Result<()> {
    if !systemd_is_init() {
        return Ok(());
    }
    systemd::Systemd::new(layout).keep_tending()
}

/// The application a session is of, and its id.
fn parts(session: &str) -> Result<(&str, &str)> {
    parse_session(session).with_context(|| format!("{session} is not the name of a session"))
}

/// The supervisor of this machine.
#[must_use]
pub fn detect(layout: &Layout) -> Box<dyn Supervise> {
    if systemd_is_init() {
        Box::new(systemd::Systemd::new(layout))
    } else {
        Box::new(supervisord::Supervisord::new(layout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_where_it_is_the_nearest_to_running() {
        let seat = |process: &str, seat, state| ProcessState {
            process: process.to_owned(),
            seat,
            state,
            pid: None,
            since: None,
            exit: None,
        };
        for (first, second, expected) in [
            (State::Running, State::Backoff, Seat::First),
            (State::Running, State::Running, Seat::First),
            (State::Stopped, State::Starting, Seat::Second),
            // Its worker has crashed, or has tasks to finish: none is to be started beside it.
            (State::Stopped, State::Backoff, Seat::Second),
            (State::Stopped, State::Stopping, Seat::Second),
            (State::Stopped, State::Failed, Seat::Second),
            (State::Stopped, State::Stopped, Seat::First),
        ] {
            let states = one_of_each(vec![
                seat("web", Seat::First, State::Running),
                seat("queue", Seat::First, first),
                seat("queue", Seat::Second, second),
            ]);
            let found: Vec<(&str, Seat)> =
                states.iter().map(|state| (state.process.as_str(), state.seat)).collect();
            assert_eq!(found, [("web", Seat::First), ("queue", expected)], "{first} {second}");
        }
    }
}
