//! Moving an application from the session that serves to another one, without losing a
//! request.
//!
//! The new session runs beside the old one before anything leads to it. The switch is the
//! state first, then one rename(2); the switch back is the rename first. Whoever is killed in
//! between leaves a state that names both sessions, and `farmctl tend` finishes. The old
//! session stands by until the new one has proved itself, and is ended when its last request
//! is done.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::error::Mark as _;
use crate::front::{self, Counted, Traffic};
use crate::manifest::Manifest;
use crate::node::{Node, Object};
use crate::probe;
use crate::process;
use crate::profile::When;
use crate::release::{App, Session};
use crate::run::{Shield, check_interrupted, poll_until};
use crate::serve;
use crate::supervise::{Position, Supervise};
use crate::undo;

/// Requests a process answers before the switch, for each of its workers: what is imported
/// or compiled with the first one is not paid for by a user.
const WARMING: usize = 2;
/// Most requests to warm one process up.
const WARMED: usize = 32;
/// Pause between two looks at a new session, and between two questions to it.
const LOOK: Duration = Duration::from_millis(250);
/// Failed requests that are no reason to switch back: as many can come by chance.
const TOLERATED: u64 = 5;
/// Share of failed requests that is no reason, in percent; twice what was usual before is
/// none either.
const USUAL: u64 = 5;
/// Share of failed requests that is a reason whatever was usual, in percent.
const WORST: u64 = 90;

/// Asks a session's processes as nginx will, so that its first users wait no longer than
/// later ones.
fn warm_up(
    session: &Session,
    manifest: &Manifest,
    node: &Node,
    supervisor: &dyn Supervise,
) -> Result<()> {
    let states = supervisor.states(&session.name)?;
    for process in &manifest.profile.processes {
        if process.ready.is_none() {
            continue;
        }
        let pid = states.iter().find(|state| state.process == process.name);
        let workers = match pid.and_then(|state| state.pid) {
            Some(pid) => process::children(pid)?.len().max(1),
            None => 1,
        };
        for _ in 0..(workers * WARMING).min(WARMED) {
            check_interrupted()?;
            if let Some(reason) = unwell(&process.name, session, manifest, node)? {
                bail!("process {}: {reason}", process.name);
            }
        }
    }
    Ok(())
}

/// How an application is moved.
#[derive(Debug)]
pub struct Course<'a> {
    /// The node.
    pub node: &'a Node,
    /// Runs the processes.
    pub supervisor: &'a dyn Supervise,
    /// Jobs of these moments are run before the switch.
    pub moments: &'a [When],
    /// How long the new session is watched before the old one is ended.
    pub watch: Duration,
    /// How long the old session's last requests are waited for.
    pub drain: Duration,
}

/// Moves a started application to another release. Whatever fails, and when, the release
/// before serves; after the switch it takes over again, for its processes still run.
///
/// # Errors
/// When the new release does not get ready, or does not prove itself.
pub fn to_release(
    app: &App,
    manifest: &Manifest,
    before: &Manifest,
    course: &Course<'_>,
    verb: &str,
    say: &dyn Fn(&str),
) -> Result<App> {
    let Course { node, supervisor, .. } = *course;
    let switched = undo::attempt(node, verb, &app.name, |transaction| {
        let session =
            serve::raise(app, manifest, course.moments, node, supervisor, transaction, say)?;
        warm_up(&session, manifest, node, supervisor)?;
        let mut watch = Watch::begin(&session, manifest, supervisor)?;
        check_interrupted()?;
        say(&format!("leading requests to {}", manifest.version));
        let proved = switch(app, &session, manifest, node).and_then(|switched| {
            if !course.watch.is_zero() {
                say(&format!("watching it for {} s", course.watch.as_secs()));
            }
            watch.prove(&session, manifest, course)?;
            Ok(switched)
        });
        let hint = format!("farmctl logs {} shows what it has printed", app.name);
        proved.hint(hint).map_err(|error| {
            let back = format!("{} serves again", before.version);
            match switch_back(app, before, node) {
                Ok(()) => error.context(back),
                Err(failed) => error.context(format!("{back} with farmctl tend: {failed:#}")),
            }
        })
    })?;
    let mut app = switched;
    for session in app.standby.clone() {
        say(&format!("ending session {} when its last request is done", session.name));
        app = retire(app, &session, before, node, course.drain)?;
    }
    Ok(app)
}

/// Makes `session` the one that serves; the one before stands by.
fn switch(app: &App, session: &Session, manifest: &Manifest, node: &Node) -> Result<App> {
    let switched = app.clone().switched(session.clone());
    // State first: `tend` makes the links what state says.
    node.save_app(&switched)?;
    lead(app, session, manifest, node)?;
    Ok(switched)
}

/// Has nginx lead requests to a session, or no requests to a release without a front.
fn lead(app: &App, session: &Session, manifest: &Manifest, node: &Node) -> Result<()> {
    if manifest.profile.front.is_none() {
        return front::withdraw(node.layout(), &app.name);
    }
    serve::publish_front(app, session, manifest, node).map(drop)
}

/// Makes `before` the state again: the session that served then still runs.
fn switch_back(before: &App, manifest: &Manifest, node: &Node) -> Result<()> {
    let _shield = Shield::raise();
    // Not the state first, as in `switch`: until it is written anew it names both sessions,
    // so that gc takes neither away.
    let led = before.session.as_ref().map_or(Ok(()), |it| lead(before, it, manifest, node));
    node.save_app(before).and(led)
}

/// Jobs that run on the way to a release, and that a rollback does not undo.
pub fn upgrade_jobs(manifest: &Manifest) -> impl Iterator<Item = &str> {
    serve::jobs(manifest, &[When::Upgrade]).map(|job| job.name.as_str())
}

/// Finishes what an interrupted change left: one whole release serves afterwards, the new
/// one if it does, else the one before.
///
/// # Errors
/// When neither can be brought back, or what stands by cannot be ended.
pub fn settle(
    app: App,
    manifest_of: &dyn Fn(&str) -> Result<Manifest>,
    node: &Node,
    supervisor: &dyn Supervise,
    patience: Duration,
    say: &dyn Fn(&str),
) -> Result<App> {
    let (Some(session), Some(before)) = (app.session.clone(), app.standby.last().cloned()) else {
        return Ok(app);
    };
    let manifest = manifest_of(&session.version)?;
    let mut app = app;
    if let Err(error) = serve::restore(&app, &session, &manifest, node, supervisor, say) {
        check_interrupted()?;
        let back = app.clone().retired(&before.name).switched(before.clone());
        // If neither can be brought back, it is not the release's fault: the state stays, and
        // the first error is the one to look into.
        if serve::restore(&back, &before, &manifest_of(&before.version)?, node, supervisor, say)
            .is_err()
        {
            return Err(error);
        }
        say(&format!("{} does not serve, back to {}: {error:#}", session.version, before.version));
        node.save_app(&back)?;
        app = back;
    }
    for session in app.standby.clone() {
        say(&format!("ending session {}, which stood by", session.name));
        let manifest = manifest_of(&session.version)?;
        app = retire(app, &session, &manifest, node, patience)?;
    }
    Ok(app)
}

/// A session that has just begun to serve, and what it is judged by.
#[derive(Debug)]
struct Watch {
    pids: Vec<(String, u32, Position)>,
    traffic: Option<Traffic>,
}

impl Watch {
    /// Begins before the switch.
    fn begin(session: &Session, manifest: &Manifest, supervisor: &dyn Supervise) -> Result<Self> {
        let mut pids = Vec::new();
        for state in supervisor.states(&session.name)? {
            let Some(pid) = state.pid else {
                bail!("process {} is not running", state.process);
            };
            let position = supervisor.position(&session.name, &state.process)?;
            pids.push((state.process, pid, position));
        }
        let front = manifest.profile.front.as_ref();
        let traffic = front.map(|_| Traffic::from_now(&manifest.name)).transpose()?;
        Ok(Self { pids, traffic })
    }

    /// Looks at the session for as long as it is to be watched. Fails as soon as a process
    /// has ended or does not answer, or more requests fail than before.
    fn prove(&mut self, session: &Session, manifest: &Manifest, course: &Course<'_>) -> Result<()> {
        let mut last = Instant::now();
        let looked = poll_until(course.watch, || {
            if last.elapsed() >= LOOK {
                last = Instant::now();
                self.look(session, manifest, course)?;
            }
            Ok(None::<()>)
        });
        looked?;
        if course.watch.is_zero() { Ok(()) } else { self.look(session, manifest, course) }
    }

    fn look(&mut self, session: &Session, manifest: &Manifest, course: &Course<'_>) -> Result<()> {
        let Course { node, supervisor, .. } = *course;
        let states = supervisor.states(&session.name)?;
        for (name, pid, position) in &self.pids {
            let same = states.iter().any(|state| state.process == *name && state.pid == Some(*pid));
            let reason = if same {
                unwell(name, session, manifest, node)?
            } else {
                Some("it has ended since the switch".to_owned())
            };
            if let Some(reason) = reason {
                return serve::failure(session, name, position, &reason, supervisor)
                    .with_context(|| format!("process {name}"));
            }
        }
        let Some(traffic) = &mut self.traffic else { return Ok(()) };
        let since = traffic.since()?;
        if is_trouble(since, traffic.before) {
            bail!("{} of {} requests failed since the switch", since.errors, since.requests);
        }
        Ok(())
    }
}

/// What is wrong with how a process answers, if it is to answer and something is.
fn unwell(
    name: &str,
    session: &Session,
    manifest: &Manifest,
    node: &Node,
) -> Result<Option<String>> {
    let process = manifest.profile.processes.iter().find(|process| process.name == name);
    let Some(ready) = process.and_then(|process| process.ready.as_ref()) else { return Ok(None) };
    let socket = node.layout().socket(&manifest.name, &session.name, name);
    match probe::ready(&socket, &ready.http) {
        Ok(answer) if answer.is_good() => Ok(None),
        Ok(answer) => Ok(Some(format!("it answers {} to {}", answer.status, ready.http))),
        Err(error) => {
            check_interrupted()?;
            Ok(Some(format!("{error:#}")))
        }
    }
}

/// Whether so many more requests fail than before that it is the new release's doing.
fn is_trouble(since: Counted, before: Counted) -> bool {
    let usual = before.errors * 100 / before.requests.max(1);
    let share = USUAL.max(2 * usual).min(WORST);
    since.errors > TOLERATED && since.errors * 100 > since.requests * share
}

/// Ends a session that stands by: when its last request is done, at the latest after
/// `patience`. Its processes then still have their own time to stop. Answers the
/// application without it.
fn retire(
    app: App,
    session: &Session,
    manifest: &Manifest,
    node: &Node,
    patience: Duration,
) -> Result<App> {
    let drained = poll_until(patience, || {
        check_interrupted()?;
        let mut open = 0;
        for process in &manifest.profile.processes {
            open += front::connections(&session.name, &process.name)?;
        }
        Ok((open == 0).then_some(()))
    });
    drained?;
    let mut transaction = node.begin("retire", &app.name)?;
    transaction.intend(Object::of_session(&app, session))?;
    transaction.intend(Object::Programs { session: session.name.clone() })?;
    let app = app.retired(&session.name);
    node.save_app(&app)?;
    undo::remove_all(node, transaction, &|_| ())
        .with_context(|| format!("ending session {}", session.name))?;
    Ok(app)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_failed_requests_than_before_are_trouble() {
        let counted = |requests, errors| Counted { requests, errors };
        assert!(!is_trouble(counted(10, 5), counted(100, 0)));
        assert!(is_trouble(counted(10, 6), counted(100, 0)));
        assert!(!is_trouble(counted(200, 10), counted(0, 0)));
        assert!(is_trouble(counted(200, 11), counted(0, 0)));
        // A tenth of all requests failed before: twice that is a reason.
        assert!(!is_trouble(counted(200, 40), counted(100, 10)));
        assert!(is_trouble(counted(200, 41), counted(100, 10)));
    }
}
