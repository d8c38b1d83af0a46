//! farmctl's own instance of supervisord(8), never the distribution's.
//!
//! It is started with the first application and gone with the last. Configuration is
//! generated: one file for the daemon, one for each session. It is spoken to by
//! XML-RPC through the transport of Debian's own `supervisor` package.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::Flock;
use serde::Deserialize;

use super::process_logs::ProcessLogs;
use super::{
    Position, ProcessState, Program, Seat, State, Supervise, Take, Until, configuration, entry,
    parts,
};
use crate::error::refuse;
use crate::file;
use crate::layout::Layout;
use crate::log;
use crate::place::{self, Occupant, Place};
use crate::process;
use crate::run::{Invocation, Tool, poll_until};

const SUPERVISORD: Tool = Tool { name: "supervisord", package: "supervisor" };
const PYTHON: Tool = Tool { name: "python3", package: "python3" };
const TOOLS: [&Tool; 3] = [&SUPERVISORD, &PYTHON, &entry::CHROOT];

/// How long supervisord may take to answer after it was started, and to end.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long one that another farmctl has started may take to answer.
const STARTING: Duration = Duration::from_secs(5);
/// How long another farmctl may hold the lock: it waits for supervisord and for orphans.
const LOCKED: Duration = Duration::from_secs(60);
/// How long one that is being stopped is waited for: supervisord kills it when its time is up.
const ENDING: Duration = Duration::from_secs(24 * 60 * 60);
/// The script that speaks to supervisord.
const RPC: &str = include_str!("rpc.py");

/// Fault of a call for a group or process supervisord does not know (xmlrpc.py, `BAD_NAME`).
const BAD_NAME: i64 = 10;
/// Fault of a call to stop what does not run, or is being stopped (xmlrpc.py).
const NOT_RUNNING: i64 = 70;
/// What rpc.py calls it when there is no connection.
const UNREACHABLE: i64 = 0;

/// The `supervisor` backend.
#[derive(Debug)]
pub struct Supervisord {
    layout: Layout,
}

/// One answer of rpc.py.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Fault { fault: i64, text: String },
    Result { result: serde_json::Value },
}

/// One process in an answer to `getAllProcessInfo`.
#[derive(Debug, Deserialize)]
struct Info {
    name: String,
    group: String,
    statename: String,
    start: i64,
    exitstatus: i32,
    pid: u32,
}

/// Names of groups in an answer to `reloadConfig`: added, changed, removed.
type Changes = [(Vec<String>, Vec<String>, Vec<String>); 1];

impl Supervisord {
    /// The instance whose files lie where `layout` says.
    pub fn new(layout: &Layout) -> Self {
        Self { layout: layout.clone() }
    }

    fn configuration(&self) -> PathBuf {
        self.layout.supervisor().join("supervisord.conf")
    }

    fn groups(&self) -> PathBuf {
        self.layout.supervisor().join("sessions")
    }

    fn group(&self, session: &str) -> PathBuf {
        self.groups().join(format!("{session}.conf"))
    }

    fn script(&self) -> PathBuf {
        self.layout.supervisor().join("rpc.py")
    }

    /// The running daemon, found by its command line: pid file and socket may be gone or
    /// left by one that was killed.
    fn daemon(&self) -> Result<Option<Occupant>> {
        let argument = self.configuration_argument();
        let ours = |pid: u32| place::command_line(pid).contains(&argument);
        Ok(Place::named(Path::new("/")).rooted()?.into_iter().find(|occupant| ours(occupant.pid)))
    }

    /// Whether the daemon runs. One that a killed farmctl has just started is waited for.
    fn runs(&self) -> Result<bool> {
        let answers = || std::os::unix::net::UnixStream::connect(self.layout.supervisor_socket());
        let found = poll_until(STARTING, || {
            if self.daemon()?.is_none() {
                return Ok(Some(false));
            }
            Ok(answers().is_ok().then_some(true))
        })?;
        // One that does not answer runs as well; the first call says what to do about it.
        Ok(found.unwrap_or(true))
    }

    fn configuration_argument(&self) -> String {
        format!("--configuration={}", self.configuration().display())
    }

    /// Keeps other farmctls from starting the daemon while this one ends it, and the
    /// other way round.
    fn lock(&self) -> Result<Flock<File>> {
        file::make_directory(&self.layout.supervisor(), 0o755)?;
        place::hold(&self.layout.supervisor(), LOCKED)
    }

    fn call(&self, calls: &serde_json::Value) -> Result<Vec<Answer>> {
        let script = self.script();
        // Written by another farmctl, or not yet.
        if file::read_if_there(&script)?.as_deref() != Some(RPC) {
            file::make_directory(&self.layout.supervisor(), 0o755)?;
            file::publish(&script, RPC.as_bytes(), 0o644)?;
        }
        // -I: nothing from the user's environment or directories is imported.
        let text = Invocation::of(&PYTHON)
            .arg("-I")
            .args([script, self.layout.supervisor_socket()])
            .arg(calls.to_string())
            .named("supervisord")
            .output()?;
        serde_json::from_str(&text).context("reading the answer of supervisord")
    }

    fn refusal<T>(&self, fault: i64, text: &str) -> Result<T> {
        let hint = match self.daemon()? {
            Some(daemon) if fault == UNREACHABLE => format!(
                "kill {} ends it and what it runs; farmctl tend then starts all that should run",
                daemon.pid
            ),
            _ => format!("look at {}", self.log().display()),
        };
        refuse(format_args!("supervisord refuses: {text}"), hint)
    }

    /// Makes calls that must all succeed.
    fn order(&self, calls: &serde_json::Value) -> Result<Vec<serde_json::Value>> {
        let mut results = Vec::new();
        for answer in self.call(calls)? {
            match answer {
                Answer::Result { result } => results.push(result),
                Answer::Fault { fault, text } => return self.refusal(fault, &text),
            }
        }
        Ok(results)
    }

    fn infos(&self, session: &str) -> Result<Vec<Info>> {
        let results = self.order(&serde_json::json!([["supervisor.getAllProcessInfo"]]))?;
        let result = results.into_iter().next().context("supervisord gave no answer")?;
        let infos: Vec<Info> =
            serde_json::from_value(result).context("reading the answer of supervisord")?;
        Ok(infos.into_iter().filter(|info| info.group == session).collect())
    }

    /// Starts the daemon and waits until it answers.
    fn launch(&self) -> Result<()> {
        for stale in [self.layout.supervisor_socket(), self.layout.supervisor_pid()] {
            file::remove_if_there(&stale)?;
        }
        Invocation::of(&SUPERVISORD).arg(self.configuration_argument()).surviving().run()?;
        let socket = self.layout.supervisor_socket();
        let answers = poll_until(PATIENCE, || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        if answers.is_some() {
            return Ok(());
        }
        let log = self.log();
        refuse(
            format_args!("supervisord does not answer on {}", socket.display()),
            format!("its last words are in {}", log.display()),
        )
    }

    fn process_logs(&self) -> ProcessLogs<'_> {
        ProcessLogs::new(&self.layout)
    }

    fn log(&self) -> PathBuf {
        self.layout.logs().join("supervisord.log")
    }

    fn write_daemon_configuration(&self) -> Result<()> {
        let root = self.layout.root();
        if root.to_string_lossy().contains(char::is_whitespace) {
            return refuse(
                format_args!("supervisord cannot use the path {}", root.display()),
                "use a --root without spaces",
            );
        }
        file::make_directory(&self.layout.supervisor(), 0o755)?;
        file::make_directory(&self.groups(), 0o755)?;
        file::make_directory(&self.layout.logs(), 0o755)?;
        if let Some(runtime) = self.layout.supervisor_socket().parent() {
            file::make_directory(runtime, 0o755)?;
        }
        let text = configuration::render_daemon(&self.layout, entry::descriptors()?);
        file::publish_if_new(&self.configuration(), &text, 0o644)?;
        Ok(())
    }

    /// Stops and forgets the group of a session, if the daemon knows it.
    fn drop_group(&self, session: &str) -> Result<()> {
        for calls in [
            serde_json::json!([["supervisor.stopProcessGroup", session, true]]),
            serde_json::json!([["supervisor.removeProcessGroup", session]]),
        ] {
            for answer in self.call(&calls)? {
                match answer {
                    Answer::Fault { fault: BAD_NAME, .. } => return Ok(()),
                    Answer::Fault { fault, text } => return self.refusal(fault, &text),
                    Answer::Result { .. } => {}
                }
            }
        }
        Ok(())
    }

    /// Stops a process. One that is being stopped is waited for, which supervisord will not do.
    fn end(&self, address: &str) -> Result<()> {
        let stopped = poll_until(ENDING, || {
            match self.call(&serde_json::json!([stop_call(address)]))?.pop() {
                Some(Answer::Fault { fault: NOT_RUNNING, .. }) => {}
                Some(Answer::Fault { fault, text }) => return self.refusal(fault, &text),
                Some(Answer::Result { .. }) | None => return Ok(Some(())),
            }
            let info = self.order(&serde_json::json!([["supervisor.getProcessInfo", address]]))?;
            let info = info.into_iter().next().context("supervisord gave no answer")?;
            let info: Info =
                serde_json::from_value(info).context("reading the answer of supervisord")?;
            Ok((state(&info.statename) != State::Stopping).then_some(()))
        })?;
        stopped.with_context(|| format!("{address} does not end"))
    }

    /// Ends the daemon if it has nothing left to run.
    fn leave_if_idle(&self) -> Result<()> {
        if self.daemon()?.is_none() && !self.layout.supervisor_socket().exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        if !self.sessions()?.is_empty() {
            return Ok(());
        }
        let mut told: Vec<Occupant> = Vec::new();
        let gone = poll_until(PATIENCE, || {
            let Some(daemon) = self.daemon()? else { return Ok(Some(())) };
            // The socket may be gone; SIGTERM has it stop its processes and end. One that was
            // just started may be another process by now: it forks to become a daemon.
            if !told.contains(&daemon) {
                process::send(daemon.pid, libc::SIGTERM)?;
                told.push(daemon);
            }
            Ok(None)
        })?;
        if let (None, Some(daemon)) = (gone, told.last()) {
            return refuse(
                format_args!("supervisord ({}) does not end", daemon.pid),
                format!("look at {}", self.log().display()),
            );
        }
        file::remove_if_there(&self.layout.supervisor_socket())?;
        file::remove_if_there(&self.layout.supervisor_pid())
    }
}

impl Supervise for Supervisord {
    fn describe(&self) -> String {
        "supervisord, farmctl's own: systemd is not PID 1".to_owned()
    }

    fn tools(&self) -> &'static [&'static Tool] {
        &TOOLS
    }

    fn check(&self) -> Result<()> {
        let module = Invocation::of(&PYTHON).args(["-I", "-c", "import supervisor.xmlrpc"]);
        if module.outcome()?.success() {
            return Ok(());
        }
        refuse(
            "python3 does not find the modules of Debian's supervisor",
            "apt-get install --reinstall supervisor",
        )
    }

    fn start(&self, session: &str, programs: &[Program]) -> Result<()> {
        if programs.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.write_daemon_configuration()?;
        // One that prints nothing has the oldest log, and needs it.
        let sessions = self.sessions()?;
        for program in programs {
            self.process_logs().make(session, &program.process)?;
            self.process_logs().forget(parts(session)?.0, &program.process, &sessions)?;
        }
        let text = configuration::render_session(&self.layout, session, programs)?;
        file::publish(&self.group(session), text.as_bytes(), 0o644)?;
        if !self.runs()? {
            self.launch()?;
        }
        let results = self.order(&serde_json::json!([["supervisor.reloadConfig"]]))?;
        let changes = results.into_iter().next().context("supervisord gave no answer")?;
        let [(added, changed, _)]: Changes =
            serde_json::from_value(changes).context("reading the answer of supervisord")?;
        let named = |names: &[String]| names.iter().any(|name| name == session);
        if named(&changed) {
            self.drop_group(session)?;
        }
        if named(&changed) || named(&added) {
            self.order(&serde_json::json!([["supervisor.addProcessGroup", session]]))?;
        }
        let states = self.states(session)?;
        if states.iter().all(|state| state.pid.is_none()) {
            entry::end_orphans(programs)?;
        }
        let down = states.iter().filter(|state| !state.is_up());
        let calls = down.map(|it| start_call(&address(session, &it.process, it.seat)));
        self.order(&serde_json::Value::Array(calls.collect()))?;
        Ok(())
    }

    fn halt(&self, session: &str) -> Result<()> {
        if self.runs()? {
            self.drop_group(session)?;
        }
        Ok(())
    }

    fn stop(&self, session: &str) -> Result<()> {
        self.halt(session)?;
        file::remove_if_there(&self.group(session))?;
        self.leave_if_idle()
    }

    fn restart(&self, session: &str, process: &str) -> Result<()> {
        self.check_watched(session)?;
        let states = self.states(session)?;
        let Some(found) = states.iter().find(|state| state.process == process) else {
            return unknown(session, process);
        };
        let name = address(session, process, found.seat);
        let mut calls = Vec::new();
        if found.is_up() {
            calls.push(stop_call(&name));
        }
        calls.push(start_call(&name));
        self.order(&serde_json::Value::Array(calls))?;
        Ok(())
    }

    fn take_seat(&self, session: &str, process: &str, seat: Seat) -> Result<()> {
        self.check_watched(session)?;
        self.order(&serde_json::json!([start_call(&address(session, process, seat))]))?;
        Ok(())
    }

    fn leave_seat(&self, session: &str, process: &str, seat: Seat) -> Result<()> {
        let states = self.seats(session)?;
        let found = states.iter().find(|state| state.process == process && state.seat == seat);
        match found {
            None => unknown(session, process),
            Some(found) if found.is_up() => self.end(&address(session, process, seat)),
            Some(_) => Ok(()),
        }
    }

    fn check_watched(&self, session: &str) -> Result<()> {
        if self.runs()? {
            return Ok(());
        }
        let (app, _) = parts(session)?;
        refuse(
            format_args!("supervisord does not run: nothing looks after the processes of {app}"),
            format!("farmctl start {app}"),
        )
    }

    fn seats(&self, session: &str) -> Result<Vec<ProcessState>> {
        if !self.runs()? {
            return Ok(Vec::new());
        }
        let states: Vec<ProcessState> =
            self.infos(session)?.iter().map(|info| process_state(session, info)).collect();
        let other_is_up = |state: &ProcessState| {
            let is_other =
                |it: &&ProcessState| it.process == state.process && it.seat != state.seat;
            states.iter().filter(is_other).any(ProcessState::is_up)
        };
        // supervisord cannot be told to forget that one has failed.
        let forgotten = |state: &ProcessState| match state.state {
            State::Failed if other_is_up(state) => {
                ProcessState { state: State::Stopped, exit: None, ..state.clone() }
            }
            _ => state.clone(),
        };
        Ok(states.iter().map(forgotten).collect())
    }

    fn sessions(&self) -> Result<Vec<String>> {
        let names = file::names_in(&self.groups())?;
        let name = |file: &String| file.strip_suffix(".conf").map(str::to_owned);
        Ok(names.iter().filter(|name| !name.starts_with('.')).filter_map(name).collect())
    }

    fn position(&self, session: &str, process: &str) -> Result<Position> {
        log::size(&self.process_logs().path(session, process)?).map(Position::Offset)
    }

    fn lines_since(&self, session: &str, process: &str, since: &Position) -> Result<Vec<String>> {
        let Position::Offset(offset) = since else {
            bail!("the position is not one in a log file");
        };
        log::lines_since(&self.process_logs().path(session, process)?, *offset)
    }

    fn output(
        &self,
        app: &str,
        processes: &[&str],
        count: usize,
        until: Until,
        take: &mut Take<'_>,
    ) -> Result<()> {
        self.process_logs().take(app, processes, count, until, take)
    }
}

/// What supervisord calls one of a process.
fn address(session: &str, process: &str, seat: Seat) -> String {
    format!("{session}:{}", configuration::program_name(session, process, seat))
}

fn start_call(address: &str) -> serde_json::Value {
    serde_json::json!(["supervisor.startProcess", address, false])
}

fn stop_call(address: &str) -> serde_json::Value {
    serde_json::json!(["supervisor.stopProcess", address, true])
}

fn unknown<T>(session: &str, process: &str) -> Result<T> {
    refuse(
        format_args!("supervisord does not know process {process} of session {session}"),
        format!("farmctl start {}", parts(session)?.0),
    )
}

fn state(name: &str) -> State {
    match name {
        "RUNNING" => State::Running,
        "STARTING" => State::Starting,
        "BACKOFF" => State::Backoff,
        "STOPPING" => State::Stopping,
        "STOPPED" => State::Stopped,
        // FATAL, UNKNOWN, and EXITED, which `autorestart=true` makes short.
        _ => State::Failed,
    }
}

fn process_state(session: &str, info: &Info) -> ProcessState {
    let state = state(&info.statename);
    let (process, seat) = configuration::parse_program(session, &info.name);
    ProcessState {
        process: process.to_owned(),
        seat,
        state,
        pid: (info.pid != 0).then_some(info.pid),
        since: (info.pid != 0).then_some(info.start),
        exit: matches!(state, State::Failed | State::Backoff).then_some(info.exitstatus),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from supervisor 4.2.5.
    #[test]
    fn answers_of_supervisord_are_read() {
        let text = r#"[{"result": [{"name": "fs-shop-1.web", "group": "fs-shop-1", "start": 1763710000,
            "stop": 0, "now": 1763710060, "state": 20, "statename": "RUNNING", "spawnerr": "",
            "exitstatus": 0, "logfile": "/l", "stdout_logfile": "/l", "stderr_logfile": "",
            "pid": 4711, "description": "pid 4711, uptime 0:01:00"}]},
            {"fault": 10, "text": "BAD_NAME: fs-shop-1"}]"#;
        let mut answers: Vec<Answer> = serde_json::from_str(text).expect("as captured");
        assert!(matches!(answers.pop(), Some(Answer::Fault { fault: BAD_NAME, .. })));
        let Some(Answer::Result { result }) = answers.pop() else {
            panic!("the first is a result")
        };
        let [info]: [Info; 1] = serde_json::from_value(result).expect("as captured");
        let expected = ProcessState {
            process: "web".to_owned(),
            seat: Seat::First,
            state: State::Running,
            pid: Some(4711),
            since: Some(1_763_710_000),
            exit: None,
        };
        assert_eq!(process_state("fs-shop-1", &info), expected);
    }
}
