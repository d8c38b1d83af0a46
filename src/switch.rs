//! Moving an application from the session that serves to another one, without losing a
//! request.
//!
//! The new session runs beside the old one before anything leads to it. The switch is the
//! state first, then one rename(2); the switch back is the rename first. Whoever is killed in
//! between leaves a state that names both sessions, and `farmctl tend` finishes. The old
//! session stands by until the new one has proved itself, and is ended when its last request
//! is done.

mod watch;

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};

use self::watch::{Watch, unwell};
use crate::error::{Mark as _, message};
use crate::front;
use crate::manifest::Manifest;
use crate::node::{self, Node, Object};
use crate::process;
use crate::profile::When;
use crate::release::{App, Preview, Session};
use crate::run::{Shield, check_interrupted, poll_until};
use crate::serve::{self, Served};
use crate::supervise::{Position, Supervise};
use crate::undo;

/// Requests a process answers before the switch, for each of its workers: what is imported
/// or compiled with the first one is not paid for by a user.
const WARMING: usize = 2;
/// Most requests to warm one process up.
const WARMED: usize = 32;

/// How long what a process has printed may take to its log.
const WRITING: Duration = Duration::from_millis(500);

/// Why a session is ended, unless it has just been replaced.
const STOOD_BY: &str = ", which stood by";

/// Asks a session's processes as nginx will, so that its first users wait no longer than
/// later ones, and none is led to pages that fail.
fn warm_up(served: &Served<'_>) -> Result<()> {
    let Served { session, manifest, supervisor, .. } = *served;
    let states = supervisor.states(&session.name)?;
    for process in &manifest.profile.processes {
        let is_asked = process.ready.as_ref().is_some_and(|ready| ready.http.is_some());
        let pages = served.pages(process);
        if !is_asked && pages.is_empty() {
            continue;
        }
        let before = supervisor.position(&session.name, &process.name)?;
        let pid = states.iter().find(|state| state.process == process.name);
        let workers = match pid.and_then(|state| state.pid) {
            Some(pid) => process::children(pid)?.len().max(1),
            None => 1,
        };
        for _ in 0..(workers * WARMING).min(WARMED) {
            check_interrupted()?;
            let unwell = if is_asked { unwell(&process.name, served)? } else { None };
            let trouble =
                unwell.or_else(|| pages.iter().find_map(|page| served.fault(process, page)));
            if let Some(reason) = trouble {
                check_interrupted()?;
                return has_failed(served, &process.name, &before, &reason);
            }
        }
    }
    Ok(())
}

/// The error of a process that has just answered as it should not: the lines it prints of that
/// may be on their way to its log.
fn has_failed(served: &Served<'_>, process: &str, before: &Position, reason: &str) -> Result<()> {
    let Served { app, session, supervisor, .. } = *served;
    let printed = poll_until(WRITING, || {
        let lines = supervisor.lines_since(&session.name, process, before)?;
        Ok((!lines.is_empty()).then_some(()))
    });
    printed?;
    served
        .failure(process, before, reason)
        .with_context(|| format!("process {process}"))
        .hint(format!("farmctl logs {} shows all of its output", app.name))
}

/// Why an upgrade that had switched is none: part of its error.
#[derive(Debug)]
pub struct SwitchedBack {
    /// What serves.
    version: String,
}

impl fmt::Display for SwitchedBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} serves again", self.version)
    }
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
    /// How long after that somebody may take to confirm the new session; the old one stands
    /// by until then. None if nobody has to.
    pub confirm: Option<Duration>,
}

impl Course<'_> {
    /// Until when the new session must be confirmed, seconds since 1970, if it is watched
    /// from now on.
    fn confirm_by(&self) -> Option<i64> {
        let within = self.confirm? + self.watch;
        Some(node::now() + i64::try_from(within.as_secs()).unwrap_or(i64::MAX / 2))
    }
}

/// Moves a started application to another release. Whatever fails, and when, the release
/// before serves; after the switch it takes over again, for its processes still run.
///
/// # Errors
/// When the new release does not get ready, nginx refuses its vhost, or it does not prove
/// itself.
pub fn to_release(
    app: &App,
    manifest: &Manifest,
    before: &Manifest,
    course: &Course<'_>,
    verb: &str,
    say: &dyn Fn(&str),
) -> Result<App> {
    let Course { node, supervisor, .. } = *course;
    let standing = app.session.as_ref();
    let standing =
        standing.map(|session| Served { app, session, manifest: before, node, supervisor });
    let switched = undo::attempt(node, verb, &app.name, |transaction| {
        let previewed = app.preview.as_ref().map(|preview| &preview.session);
        let session = match previewed.filter(|it| it.version == manifest.version) {
            Some(session) => {
                say(&format!("taking session {}, the preview", session.name));
                Served { app, session, manifest, node, supervisor }.restore_processes(say)?;
                session.clone()
            }
            None => {
                serve::raise(app, manifest, course.moments, node, supervisor, transaction, say)?
            }
        };
        let served = Served { app, session: &session, manifest, node, supervisor };
        warm_up(&served)?;
        let mut watch = Watch::begin(&served)?;
        prepare(&served, standing.as_ref())?;
        say(&format!("leading requests to {}", manifest.version));
        let mut switched = app.clone().switched(session.clone());
        // In the state from the first: who is killed here cannot be asked.
        switched.confirm_by = course.confirm_by();
        let proved = switch(switched, &served, before).and_then(|switched| {
            if !course.watch.is_zero() {
                say(&format!("watching it for {} s", course.watch.as_secs()));
            }
            watch.prove(&served, course.watch)?;
            Ok(switched)
        });
        let hint = format!("farmctl logs {} shows what it has printed", app.name);
        proved.hint(hint).map_err(|error| match switch_back(app, standing.as_ref(), node) {
            Ok(()) => error.context(SwitchedBack { version: before.version.clone() }),
            Err(failed) => {
                let version = &before.version;
                error.context(format!("{version} serves again with farmctl tend: {failed:#}"))
            }
        })
    });
    let switched = switched.inspect_err(|_| {
        // What it had to answer in place of the other one is answered.
        drop(
            app.session.iter().try_for_each(|it| front::set_backup(node.layout(), &it.name, None)),
        );
    })?;
    if let Err(error) = withdraw_preview(&switched) {
        say(&format!("nginx keeps the vhost of the preview: {}", message(&error)));
    }
    if switched.confirm_by.is_some() {
        // Who looks whether the new one is right is not to be answered by the old one.
        switched
            .session
            .iter()
            .try_for_each(|it| front::set_backup(node.layout(), &it.name, None))?;
        return Ok(switched);
    }
    let manifest_of =
        |version: &str| Ok(if version == manifest.version { manifest } else { before }.clone());
    Ending { node, supervisor, manifest_of: &manifest_of, drain: course.drain, say }
        .end_standby(switched, " when its last request is done")
}

/// Takes the vhost of a preview away that there is no more.
fn withdraw_preview(app: &App) -> Result<()> {
    if app.preview.is_some() { Ok(()) } else { front::withdraw_preview(&app.name) }
}

/// Begins a session of a release and makes it ready to be looked at: all that
/// [`to_release`] does before it leads requests to it. Answers where it can be looked at.
///
/// # Errors
/// When the new release does not get ready: nothing of it is left then.
pub fn preview(
    app: &App,
    manifest: &Manifest,
    course: &Course<'_>,
    say: &dyn Fn(&str),
) -> Result<Option<String>> {
    let Course { node, supervisor, .. } = *course;
    undo::attempt(node, "preview", &app.name, |transaction| {
        let session =
            serve::raise(app, manifest, course.moments, node, supervisor, transaction, say)?;
        let served = Served { app, session: &session, manifest, node, supervisor };
        warm_up(&served)?;
        let port = manifest.profile.front.as_ref().map(|_| front::preview_port()).transpose()?;
        transaction.intend(Object::Preview { app: app.name.clone() })?;
        let address = show(&served, port)?;
        let mut app = app.clone();
        app.preview = Some(Preview { session, port });
        node.save_app(&app)?;
        Ok(address)
    })
}

/// Makes the way to a preview, and its vhost.
fn show(served: &Served<'_>, port: Option<u16>) -> Result<Option<String>> {
    let Some(port) = port else { return Ok(None) };
    let Served { session, manifest, node, .. } = *served;
    served.make_way()?;
    front::publish_preview(node.layout(), manifest, &session.name, port)
}

/// Brings a preview back, as after a reboot; answers where it can be looked at.
///
/// # Errors
/// When it cannot be.
pub fn restore_preview(
    app: &App,
    manifest: &Manifest,
    node: &Node,
    supervisor: &dyn Supervise,
    say: &dyn Fn(&str),
) -> Result<Option<String>> {
    let Some(preview) = &app.preview else { return Ok(None) };
    let served = Served { app, session: &preview.session, manifest, node, supervisor };
    served.restore_processes(say)?;
    show(&served, preview.port)
}

/// Ends a preview. Answers the application without it.
///
/// # Errors
/// When something of it cannot be ended.
pub fn end_preview(app: App, node: &Node) -> Result<App> {
    let Some(preview) = app.preview.clone() else { return Ok(app) };
    let mut transaction = node.begin("stop", &app.name)?;
    transaction.intend(Object::of_session(&app, &preview.session))?;
    transaction.intend(Object::Programs { session: preview.session.name.clone() })?;
    transaction.intend(Object::Preview { app: app.name.clone() })?;
    let mut app = app;
    app.preview = None;
    node.save_app(&app)?;
    undo::remove_all(node, transaction, &|_| ())?;
    Ok(app)
}

/// Makes everything that the switch to a session needs, so that it is one rename(2). What
/// nginx refuses is known before anything has happened, and locations that only the new
/// release has are there before the first page that asks for them.
fn prepare(served: &Served<'_>, standing: Option<&Served<'_>>) -> Result<()> {
    let Served { session, manifest, node, .. } = *served;
    check_interrupted()?;
    if manifest.profile.front.is_none() {
        return Ok(());
    }
    served.make_way()?;
    let backup = standing.and_then(Served::front_socket);
    front::set_backup(node.layout(), &session.name, backup.as_deref())?;
    let Some(standing) = standing.filter(|it| it.manifest.profile.front.is_some()) else {
        return Ok(());
    };
    if !front::is_published(node.layout(), standing.manifest, &standing.session.name)? {
        // A killed farmctl may have written another vhost, and not have told nginx. If this
        // one is refused as well, the next one says so.
        drop(standing.publish_front());
    }
    front::publish(node.layout(), manifest).map(drop)
}

/// Makes `session` the one that serves; the one before stands by.
fn switch(switched: App, served: &Served<'_>, before: &Manifest) -> Result<App> {
    let Served { session, manifest, node, .. } = *served;
    let name = &switched.name;
    // State first: `tend` makes the links what state says.
    node.save_app(&switched)?;
    if manifest.profile.front.is_none() {
        front::withdraw(node.layout(), name)?;
        return Ok(switched);
    }
    front::switch(node.layout(), name, &session.name)?;
    if before.profile.front.is_none() {
        front::publish(node.layout(), manifest)?;
    }
    Ok(switched)
}

/// Makes `before` the state again: the session that served then still runs.
fn switch_back(before: &App, standing: Option<&Served<'_>>, node: &Node) -> Result<()> {
    let _shield = Shield::raise();
    // Not the state first, as in `switch`: until it is written anew it names both sessions,
    // so that gc takes neither away.
    let led = standing.map_or(Ok(()), |standing| {
        if standing.manifest.profile.front.is_none() {
            return front::withdraw(node.layout(), &before.name);
        }
        standing.make_way()?;
        // Before requests are led back: those that the other session breaks off when it is
        // ended are asked here.
        back_itself(standing)?;
        standing.publish_front().map(drop)
    });
    node.save_app(before).and(led)
}

/// Makes the session that serves its own backup, for requests that another one, which is
/// about to be ended, breaks off.
fn back_itself(served: &Served<'_>) -> Result<()> {
    match served.front_socket() {
        Some(socket) => {
            front::set_backup(served.node.layout(), &served.session.name, Some(&socket))
        }
        None => Ok(()),
    }
}

/// Jobs that run on the way to a release, and that a rollback does not undo.
pub fn upgrade_jobs(manifest: &Manifest) -> impl Iterator<Item = &str> {
    serve::jobs(manifest, &[When::Upgrade]).map(|job| job.name.as_str())
}

/// How a change comes to its end that was interrupted, taken back or confirmed.
pub struct Ending<'a> {
    /// The node.
    pub node: &'a Node,
    /// Runs the processes.
    pub supervisor: &'a dyn Supervise,
    /// The manifest of a release, by its version.
    pub manifest_of: &'a dyn Fn(&str) -> Result<Manifest>,
    /// How long the last requests of sessions that stand by are waited for.
    pub drain: Duration,
    /// Is told each step.
    pub say: &'a dyn Fn(&str),
}

impl Ending<'_> {
    /// Finishes what an interrupted change left: one whole release serves afterwards, the new
    /// one if it does, else the one before. What waits to be confirmed in time goes on to
    /// wait, and what was not is taken back.
    ///
    /// # Errors
    /// When neither can be brought back, or what stands by cannot be ended.
    pub fn settle(&self, app: App) -> Result<App> {
        let (Some(session), Some(before)) = (app.session.clone(), app.standby.last().cloned())
        else {
            return Ok(app);
        };
        withdraw_preview(&app)?;
        let mut app = app;
        if app.confirm_by.is_some_and(|by| by <= node::now()) {
            let (new, old) = (&session.version, &before.version);
            (self.say)(&format!("nobody has confirmed {new}, back to {old}"));
            return self.go_back(app);
        }
        if let Err(error) = self.restore(&app) {
            check_interrupted()?;
            // If neither can be brought back, it is not the release's fault: the state stays,
            // and the first error is the one to look into.
            let Ok(back) = self.return_to_standby(app) else {
                return Err(error);
            };
            let (new, old) = (&session.version, &before.version);
            (self.say)(&format!("{new} does not serve, back to {old}: {}", message(&error)));
            app = back;
        }
        if app.confirm_by.is_some() {
            // As at the end of [`to_release`].
            front::set_backup(self.node.layout(), &session.name, None)?;
            return Ok(app);
        }
        self.end_standby(app, STOOD_BY)
    }

    /// Has the session that stands by serve again, at once, and ends the other one.
    ///
    /// # Errors
    /// When it cannot be brought back: nothing is changed then.
    pub fn go_back(&self, app: App) -> Result<App> {
        let back = self.return_to_standby(app)?;
        self.end_standby(back, STOOD_BY)
    }

    /// Takes the session that serves for good, and ends those that stand by.
    ///
    /// # Errors
    /// When one cannot be ended.
    pub fn confirm(&self, app: App) -> Result<App> {
        let app = app.confirmed();
        self.node.save_app(&app)?;
        self.end_standby(app, STOOD_BY)
    }

    /// Has the session that serves do so, whatever has happened.
    fn restore(&self, app: &App) -> Result<()> {
        let Some(session) = &app.session else { return Ok(()) };
        let manifest = &(self.manifest_of)(&session.version)?;
        let Self { node, supervisor, say, .. } = *self;
        Served { app, session, manifest, node, supervisor }.restore(say).map(drop)
    }

    /// Has the session that stood by last serve again.
    fn return_to_standby(&self, app: App) -> Result<App> {
        let back = app.returned();
        self.restore(&back)?;
        self.node.save_app(&back)?;
        Ok(back)
    }

    /// Ends all sessions that stand by, and says so in lines that end with `how`. Answers
    /// the application without them.
    fn end_standby(&self, app: App, how: &str) -> Result<App> {
        let Self { node, supervisor, manifest_of, drain, say } = *self;
        let Some(session) = &app.session.clone() else { return Ok(app) };
        let manifest = &manifest_of(&session.version)?;
        // Requests that are broken off at last, and may be, are asked again where it serves.
        back_itself(&Served { app: &app, session, manifest, node, supervisor })?;
        let mut app = app;
        for standing in app.standby.clone() {
            say(&format!("ending session {}{how}", standing.name));
            app = retire(app, &standing, &manifest_of(&standing.version)?, node, drain)?;
        }
        front::set_backup(node.layout(), &session.name, None)?;
        Ok(app)
    }
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
