//! What `start`, `restart`, `reload` and `tend` have in common: jobs, processes and
//! their readiness, and the way from nginx to them.

mod replacing;
mod rolling;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::error::Mark as _;
use crate::front::{self, Published};
use crate::layout::{self, START_SCRIPT};
use crate::manifest::Manifest;
use crate::node::{self, Node, Object, Transaction};
use crate::process;
use crate::profile::{Job, Process, Reload, Signal, When};
use crate::ready::{self, Look};
use crate::release::{App, Session};
use crate::run::{Invocation, check_interrupted, poll_until};
use crate::schroot;
use crate::session;
use crate::supervise::{Position, Program, State, Supervise};

/// How long a process without a readiness check must stay up to count as started.
const SETTLING: Duration = Duration::from_secs(1);
/// How many of a process's last lines an error shows.
const LAST_LINES: usize = 12;

/// Jobs of these moments, in the profile's order.
pub fn jobs<'a>(manifest: &'a Manifest, moments: &'a [When]) -> impl Iterator<Item = &'a Job> {
    manifest.profile.jobs.iter().filter(move |job| moments.contains(&job.when))
}

/// The call that runs a job in a session.
#[must_use]
pub fn job_call(job: &Job, session: &str) -> Invocation {
    schroot::enter(session, "root", &[START_SCRIPT, "job", &job.name])
        .named(format!("job {}", job.name))
        .foreign()
}

/// The call that looks whether a process could take up its code, if it can be looked at.
#[must_use]
pub fn check_call(process: &Process, session: &str) -> Option<Invocation> {
    process.check.as_ref().map(|_| {
        schroot::enter(session, "root", &[START_SCRIPT, "check", &process.name])
            .named(format!("checking process {}", process.name))
            .foreign()
    })
}

/// Runs a job in the session, unless what it creates is there.
///
/// # Errors
/// With the job's last lines.
pub fn run_job(job: &Job, session: &Session, mount: &Path) -> Result<()> {
    if let Some(path) = &job.creates {
        if session::exists(mount, path)? {
            return Ok(());
        }
    }
    job_call(job, &session.name).run().hint_with(|| format!("its command is: {}", job.command))
}

/// Begins a session of a release and starts everything in it, each thing written down in
/// the transaction before it is made. Nothing leads to it yet.
///
/// # Errors
/// When a job fails or a process does not get ready: with its last lines.
pub fn raise(
    app: &App,
    manifest: &Manifest,
    moments: &[When],
    node: &Node,
    supervisor: &dyn Supervise,
    transaction: &mut Transaction,
    say: &dyn Fn(&str),
) -> Result<Session> {
    let name = layout::session(&app.name, transaction.id());
    say(&format!("beginning session {name}"));
    let mount = session::open(node, app, manifest, &name, transaction)?;
    let session = Session {
        name,
        version: manifest.version.clone(),
        origin: None,
        edited: None,
        drained: BTreeSet::new(),
        begun: node::now(),
    };
    let served = Served { app, session: &session, manifest, node, supervisor };
    for job in jobs(manifest, moments) {
        say(&format!("running the job {}", job.name));
        run_job(job, &session, &mount)?;
    }
    transaction.intend(Object::Programs { session: session.name.clone() })?;
    for process in &manifest.profile.processes {
        say(&format!("starting the process {}", process.name));
    }
    served.start_processes(&mount)?;
    Ok(session)
}

/// A session of an application, and what is needed to look after it.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The application.
    pub app: &'a App,
    /// The session.
    pub session: &'a Session,
    /// Manifest of its release.
    pub manifest: &'a Manifest,
    /// The node.
    pub node: &'a Node,
    /// Runs the processes.
    pub supervisor: &'a dyn Supervise,
}

impl Served<'_> {
    /// Starts all processes and waits until they serve.
    ///
    /// # Errors
    /// When one does not: with its last lines.
    fn start_processes(&self, mount: &Path) -> Result<()> {
        let Self { app, session, manifest, supervisor, .. } = *self;
        let mut before = Vec::new();
        let mut programs = Vec::new();
        for process in &manifest.profile.processes {
            before.push(supervisor.position(&session.name, &process.name)?);
            programs.push(Program {
                process: process.name.clone(),
                release: manifest.version.clone(),
                session: session.name.clone(),
                mount: mount.to_owned(),
                mounts: session::mount_points(manifest, &session.name)?,
                uid: app.uid,
                gid: crate::account::gid(&app.name)?,
                stop: process.stop.clone(),
                reload: process.reload.clone(),
            });
        }
        supervisor.start(&session.name, &programs)?;
        for (process, before) in manifest.profile.processes.iter().zip(before) {
            self.wait_until_ready(process, &before)?;
        }
        Ok(())
    }

    /// Waits until a process serves; `before` is where its output stood before it was started.
    ///
    /// # Errors
    /// When it ends, is not ready in time, or the user interrupts.
    pub fn wait_until_ready(&self, process: &Process, before: &Position) -> Result<()> {
        let Self { session, supervisor, .. } = *self;
        let state = || -> Result<State> {
            let states = supervisor.states(&session.name)?;
            let found = states.into_iter().find(|state| state.process == process.name);
            Ok(found.map_or(State::Stopped, |state| state.state))
        };
        let failed =
            |state: &State| matches!(state, State::Failed | State::Backoff | State::Stopped);
        let within =
            process.ready.as_ref().map_or(SETTLING, |ready| Duration::from_secs(ready.within.0));
        let mut last_answer = String::new();
        let mut looks = 0u32;
        let found = poll_until(within, || {
            if let Some(look) = self.look(process) {
                match look.trouble {
                    None => return Ok(Some(Ok(()))),
                    Some(trouble) => last_answer = trouble,
                }
            }
            looks += 1;
            // Asking the supervisor costs more than asking the process.
            if looks % 5 == 0 {
                let state = state()?;
                if failed(&state) {
                    return Ok(Some(Err(state)));
                }
            }
            check_interrupted()?;
            Ok(None)
        })?;
        let answer = match found {
            Some(Ok(())) => return Ok(()),
            Some(Err(_)) => None,
            None if process.ready.is_none() && !failed(&state()?) => return Ok(()),
            None => Some(last_answer),
        };
        self.is_not_ready(process, before, answer)
    }

    /// The error of a process that has ended, or has not got ready in its time: what it said
    /// last.
    fn is_not_ready(
        &self,
        process: &Process,
        before: &Position,
        answer: Option<String>,
    ) -> Result<()> {
        let within = process.ready.as_ref().map_or(SETTLING.as_secs(), |ready| ready.within.0);
        let reason = match answer {
            None => "it ends as soon as it is started".to_owned(),
            Some(answer) => format!("it is not ready after {within} s: {answer}"),
        };
        self.failure(&process.name, before, &reason)
            .with_context(|| format!("process {}", process.name))
            .hint(format!("farmctl logs {} shows all of its output", self.app.name))
    }

    /// Stops a process and starts it again.
    ///
    /// # Errors
    /// When it does not serve then.
    pub fn restart(&self, process: &Process) -> Result<()> {
        let Self { session, supervisor, .. } = *self;
        self.settle(process)?;
        let position = supervisor.position(&session.name, &process.name)?;
        supervisor.restart(&session.name, &process.name)?;
        self.wait_until_ready(process, &position)
    }

    /// Looks whether a process serves; none if nothing shows it.
    #[must_use]
    pub fn look(&self, process: &Process) -> Option<Look> {
        let front = self.manifest.profile.front.as_ref();
        ready::look(process, None, &self.socket(process), front, &self.session.name)
    }

    /// Paths that a process is asked for before an upgrade leads requests to it.
    #[must_use]
    pub fn pages(&self, process: &Process) -> &[String] {
        let profile = &self.manifest.profile;
        let front = profile.front.as_ref().filter(|_| profile.front_process() == Some(process));
        front.map_or(&[], |front| &front.warm_up)
    }

    /// What is wrong with how a process answers to one of its [`Self::pages`], if something is.
    #[must_use]
    pub fn fault(&self, process: &Process, page: &str) -> Option<String> {
        let front = self.manifest.profile.front.as_ref()?;
        ready::fault(&self.socket(process), front, page)
    }

    /// The error of a process that does not do what it should, with the last lines it has
    /// printed since `before`.
    ///
    /// # Errors
    /// Always.
    pub fn failure(&self, process: &str, before: &Position, reason: &str) -> Result<()> {
        let Self { session, supervisor, .. } = *self;
        let mut lines = supervisor.lines_since(&session.name, process, before)?;
        lines.drain(..lines.len().saturating_sub(LAST_LINES));
        let last: String = lines.iter().map(|line| format!("\n  | {line}")).collect();
        bail!("{reason}{last}")
    }

    /// Publishes the vhost and points it at the session.
    ///
    /// # Errors
    /// When nginx refuses the vhost; the one before is then in force again.
    pub fn publish_front(&self) -> Result<Published> {
        let Self { app, session, manifest, node, .. } = *self;
        self.make_way()?;
        front::switch(node.layout(), &app.name, &session.name)?;
        let is_stopped =
            |other: &str| Ok(node.app(other)?.is_some_and(|app| app.sessions().next().is_none()));
        let displaced = front::make_room(node.layout(), manifest, &is_stopped)?;
        Ok(Published { displaced, ..front::publish(node.layout(), manifest)? })
    }

    /// Makes the way from nginx to the session. Nothing is led there yet.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub fn make_way(&self) -> Result<()> {
        let Self { session, manifest, node, .. } = *self;
        let socket = self.front_socket();
        front::make_way(node.layout(), manifest, &session.name, socket.as_deref())
    }

    /// The socket requests to a session go to; none if nothing leads to its release, or to its
    /// files alone.
    #[must_use]
    pub fn front_socket(&self) -> Option<PathBuf> {
        self.manifest.profile.front_process().map(|process| self.socket(process))
    }

    /// Where a process listens.
    fn socket(&self, process: &Process) -> PathBuf {
        let Self { app, session, node, .. } = *self;
        node.layout().socket(&app.name, &session.name, &process.name)
    }

    /// What is not as state says it should be.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn troubles(&self) -> Result<Vec<String>> {
        let Self { session, manifest, node, supervisor, .. } = *self;
        let mut troubles = Vec::new();
        if let Some(flaw) = session::flaw(node.layout(), manifest, session)? {
            troubles.push(format!("session {}: {flaw}", session.name));
        }
        let states = supervisor.states(&session.name)?;
        for process in &manifest.profile.processes {
            if !states.iter().any(|state| state.process == process.name && state.runs()) {
                troubles.push(format!("process {} is not running", process.name));
            }
        }
        for process in self.doubled()? {
            troubles.push(format!("process {} was being replaced: there are two", process.name));
        }
        troubles.extend(
            session
                .drained
                .iter()
                .map(|name| format!("process {name} was drained and not admitted")),
        );
        if manifest.profile.front.is_some()
            && !front::is_published(node.layout(), manifest, &session.name)?
        {
            let fault =
                if front::runs()? { "the vhost is not published" } else { "nginx does not run" };
            troubles.push(fault.to_owned());
        }
        Ok(troubles)
    }

    /// Brings back what state says runs: the session after a reboot, processes that are
    /// gone, the vhost. Answers whether anything had to be done.
    ///
    /// # Errors
    /// When the session cannot be recovered or a process does not get ready.
    pub fn restore(&self, say: &dyn Fn(&str)) -> Result<bool> {
        let Self { app, session, manifest, node, .. } = *self;
        let (mount, mut repaired) = self.recover(say)?;
        let mut started = self.start_missing(&mount, say).map(|missing| repaired |= missing);
        if manifest.profile.front.is_none() {
            // Of the release before, if it had one.
            front::withdraw(node.layout(), &app.name)?;
        }
        // Also when a process does not start: it need not be the one requests go to.
        if manifest.profile.front.is_some()
            && !front::is_published(node.layout(), manifest, &session.name)?
        {
            say("publishing the vhost");
            repaired = true;
            let published = self.publish_front();
            started = started.and(published.map(|_| ()));
        }
        started?;
        repaired |= self.settle_replaced(say)?;
        repaired |= self.admit_drained(say)?;
        Ok(repaired)
    }

    /// Brings back a session and its processes, and leads nothing to it. Answers whether
    /// anything had to be done.
    ///
    /// # Errors
    /// As [`Self::restore`].
    pub fn restore_processes(&self, say: &dyn Fn(&str)) -> Result<bool> {
        let (mount, recovered) = self.recover(say)?;
        let missing = self.start_missing(&mount, say)?;
        Ok(recovered || missing)
    }

    /// Recovers a session that has a flaw; answers where it is mounted, and whether it had.
    fn recover(&self, say: &dyn Fn(&str)) -> Result<(PathBuf, bool)> {
        let Self { app, session, manifest, node, supervisor } = *self;
        let Some(flaw) = session::flaw(node.layout(), manifest, session)? else {
            return Ok((schroot::mount_of(&session.name), false));
        };
        say(&format!("recovering the session: {flaw}"));
        supervisor.halt(&session.name)?;
        Ok((session::recover(node, app, manifest, session)?, true))
    }

    /// Starts a session's processes if one does not run; answers whether.
    fn start_missing(&self, mount: &Path, say: &dyn Fn(&str)) -> Result<bool> {
        let Self { session, manifest, supervisor, .. } = *self;
        let states = supervisor.states(&session.name)?;
        let runs = |process: &Process| {
            states.iter().any(|state| state.process == process.name && state.runs())
        };
        if manifest.profile.processes.iter().all(runs) {
            return Ok(false);
        }
        say("starting the processes");
        self.start_processes(mount)?;
        Ok(true)
    }

    /// Lets a process take up new code.
    ///
    /// # Errors
    /// When the check refuses the new code (nothing was signalled then), or the new workers
    /// do not answer.
    pub fn reload(&self, process: &Process) -> Result<Reloaded> {
        self.check(process)?;
        self.take_up(process)
    }

    /// Looks whether a process could take up its new code, if the profile says how.
    ///
    /// # Errors
    /// When it could not: with the check's last lines.
    pub fn check(&self, process: &Process) -> Result<()> {
        // A signal onto broken code takes the whole server down: gunicorn ends when its
        // new workers do not boot (benoitc/gunicorn#2443).
        match check_call(process, &self.session.name) {
            Some(check) => check
                .run()
                .hint("the running code was left alone: correct the new one and reload again"),
            None => Ok(()),
        }
    }

    /// Lets a process take up new code that has passed its check.
    ///
    /// # Errors
    /// When the new workers do not answer: with its last lines.
    pub fn take_up(&self, process: &Process) -> Result<Reloaded> {
        let Self { app, session, supervisor, .. } = *self;
        let running = |supervisor: &dyn Supervise| -> Result<u32> {
            supervisor.check_watched(&session.name)?;
            let states = supervisor.states(&session.name)?;
            let pid = states
                .iter()
                .find(|state| state.process == process.name)
                .and_then(|state| state.pid);
            pid.with_context(|| format!("process {} is not running", process.name))
                .hint(format!("farmctl start {}", app.name))
        };
        self.settle(process)?;
        let position = supervisor.position(&session.name, &process.name)?;
        let pid = running(supervisor)?;
        let before = process::children(pid)?;
        match &process.reload {
            Reload::Command => self.run_beside("reload-command", process)?,
            Reload::Restart => supervisor.restart(&session.name, &process.name)?,
            Reload::Replace => self.replace(process, &position)?,
            Reload::Rolling => {
                self.drain(process)?;
                supervisor.restart(&session.name, &process.name)?;
            }
            Reload::Signal(signal) => {
                process::send(pid, signal.number())?;
                let renewed = wait_for_new_workers(pid, &before, process, signal);
                renewed.or_else(|error| {
                    check_interrupted()?;
                    self.failure(&process.name, &position, &error.to_string())
                })?;
            }
        }
        self.wait_until_ready(process, &position)?;
        if process.reload == Reload::Rolling {
            self.admit(process)?;
        }
        let pid = running(supervisor)?;
        Ok(Reloaded {
            process: process.name.clone(),
            by: process.reload.clone(),
            pid,
            before,
            after: process::children(pid)?,
        })
    }

    /// Has processes run what is in the session after it was changed back: those that can
    /// take it up do, others are started again.
    ///
    /// # Errors
    /// When one does not serve then.
    pub fn take_back(&self) -> Result<()> {
        let Self { session, manifest, supervisor, .. } = *self;
        let states = supervisor.states(&session.name)?;
        for process in &manifest.profile.processes {
            let known = states.iter().any(|state| state.process == process.name);
            if known && self.reload(process).is_err() {
                self.restart(process)?;
            }
        }
        Ok(())
    }

    /// Runs a command that the profile has beside a process's own. It may take as long as
    /// the process to stop.
    fn run_beside(&self, key: &str, process: &Process) -> Result<()> {
        let within = process.stop.within.0.to_string();
        schroot::enter(
            &self.session.name,
            "root",
            &["timeout", &within, START_SCRIPT, key, &process.name],
        )
        .named(format!("{key} of {}", process.name))
        .foreign()
        .run()
    }
}

/// What a reload did to one process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    /// Process.
    pub process: String,
    /// How, as the profile says it: a signal's name, `restart`, `command`, `rolling` or `replace`.
    pub by: Reload,
    /// Pid of the server.
    pub pid: u32,
    /// Its workers before.
    pub before: Vec<u32>,
    /// Its workers after.
    pub after: Vec<u32>,
}

/// Waits until none of the old workers is left and new ones are there. A server without
/// workers is only waited for by its readiness.
fn wait_for_new_workers(
    pid: u32,
    before: &[u32],
    process: &Process,
    signal: &Signal,
) -> Result<()> {
    if before.is_empty() {
        return Ok(());
    }
    let within = Duration::from_secs(process.stop.within.0) + Duration::from_secs(5);
    let renewed = poll_until(within, || {
        if !process::is_alive(pid) {
            bail!("process {} ended on SIG{}", process.name, signal.name());
        }
        let now = process::children(pid)?;
        let fresh = !now.is_empty() && now.iter().all(|worker| !before.contains(worker));
        Ok(fresh.then_some(()))
    })?;
    match renewed {
        Some(()) => Ok(()),
        None => bail!(
            "old workers of process {} are still there after {} s",
            process.name,
            within.as_secs()
        ),
    }
}
