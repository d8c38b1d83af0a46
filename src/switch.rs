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

use anyhow::{Context as _, Result, bail};

use self::watch::{Watch, unwell};
use crate::error::Mark as _;
use crate::front;
use crate::manifest::Manifest;
use crate::node::{self, Node, Object};
use crate::process;
use crate::profile::When;
use crate::release::{App, Preview, Session};
use crate::run::{Shield, check_interrupted, poll_until};
use crate::serve;
use crate::supervise::Supervise;
use crate::undo;

/// Requests a process answers before the switch, for each of its workers: what is imported
/// or compiled with the first one is not paid for by a user.
const WARMING: usize = 2;
/// Most requests to warm one process up.
const WARMED: usize = 32;

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
    let switched = undo::attempt(node, verb, &app.name, |transaction| {
        let previewed = app.preview.as_ref().map(|preview| &preview.session);
        let session = match previewed.filter(|it| it.version == manifest.version) {
            Some(session) => {
                say(&format!("taking session {}, the preview", session.name));
                serve::restore_processes(app, session, manifest, node, supervisor, say)?;
                session.clone()
            }
            None => {
                serve::raise(app, manifest, course.moments, node, supervisor, transaction, say)?
            }
        };
        warm_up(&session, manifest, node, supervisor)?;
        let mut watch = Watch::begin(&session, manifest, supervisor)?;
        prepare(app, &session, manifest, before, node)?;
        say(&format!("leading requests to {}", manifest.version));
        let mut switched = app.clone().switched(session.clone());
        // In the state from the first: who is killed here cannot be asked.
        switched.confirm_by = course.confirm_by();
        let proved = switch(switched, &session, manifest, before, node).and_then(|switched| {
            if !course.watch.is_zero() {
                say(&format!("watching it for {} s", course.watch.as_secs()));
            }
            watch.prove(&session, manifest, course)?;
            Ok(switched)
        });
        let hint = format!("farmctl logs {} shows what it has printed", app.name);
        proved.hint(hint).map_err(|error| match switch_back(app, before, node) {
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
        say(&format!("nginx keeps the vhost of the preview: {error:#}"));
    }
    if switched.confirm_by.is_some() {
        // Who looks whether the new one is right is not to be answered by the old one.
        switched
            .session
            .iter()
            .try_for_each(|it| front::set_backup(node.layout(), &it.name, None))?;
        return Ok(switched);
    }
    retire_all(switched, manifest, &|_| Ok(before.clone()), node, course.drain, &|session| {
        say(&format!("ending session {} when its last request is done", session.name));
    })
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
        warm_up(&session, manifest, node, supervisor)?;
        let port = manifest.profile.front.as_ref().map(|_| front::preview_port()).transpose()?;
        transaction.intend(Object::Preview { app: app.name.clone() })?;
        let preview = Preview { session, port };
        let address = show(app, &preview, manifest, node)?;
        let mut app = app.clone();
        app.preview = Some(preview);
        node.save_app(&app)?;
        Ok(address)
    })
}

/// Makes the way to a preview, and its vhost.
fn show(app: &App, preview: &Preview, manifest: &Manifest, node: &Node) -> Result<Option<String>> {
    let Preview { session, port } = preview;
    let Some(port) = port else { return Ok(None) };
    serve::make_way(app, session, manifest, node)?;
    front::publish_preview(node.layout(), manifest, &session.name, *port)
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
    serve::restore_processes(app, &preview.session, manifest, node, supervisor, say)?;
    show(app, preview, manifest, node)
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
fn prepare(
    app: &App,
    session: &Session,
    manifest: &Manifest,
    before: &Manifest,
    node: &Node,
) -> Result<()> {
    check_interrupted()?;
    if manifest.profile.front.is_none() {
        return Ok(());
    }
    serve::make_way(app, session, manifest, node)?;
    let backup = app.session.as_ref().and_then(|it| serve::front_socket(app, it, before, node));
    front::set_backup(node.layout(), &session.name, backup.as_deref())?;
    let Some(standing) = app.session.as_ref().filter(|_| before.profile.front.is_some()) else {
        return Ok(());
    };
    if !front::is_published(node.layout(), before, &standing.name)? {
        // A killed farmctl may have written another vhost, and not have told nginx. If this
        // one is refused as well, the next one says so.
        drop(serve::publish_front(app, standing, before, node));
    }
    front::publish(node.layout(), manifest).map(drop)
}

/// Makes `session` the one that serves; the one before stands by.
fn switch(
    switched: App,
    session: &Session,
    manifest: &Manifest,
    before: &Manifest,
    node: &Node,
) -> Result<App> {
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
fn switch_back(before: &App, manifest: &Manifest, node: &Node) -> Result<()> {
    let _shield = Shield::raise();
    // Not the state first, as in `switch`: until it is written anew it names both sessions,
    // so that gc takes neither away.
    let led = before.session.as_ref().map_or(Ok(()), |session| {
        if manifest.profile.front.is_none() {
            return front::withdraw(node.layout(), &before.name);
        }
        serve::make_way(before, session, manifest, node)?;
        // Before requests are led back: those that the other session breaks off when it is
        // ended are asked here.
        back_itself(before, session, manifest, node)?;
        serve::publish_front(before, session, manifest, node).map(drop)
    });
    node.save_app(before).and(led)
}

/// Makes the session that serves its own backup, for requests that another one, which is
/// about to be ended, breaks off.
fn back_itself(app: &App, session: &Session, manifest: &Manifest, node: &Node) -> Result<()> {
    match serve::front_socket(app, session, manifest, node) {
        Some(socket) => front::set_backup(node.layout(), &session.name, Some(&socket)),
        None => Ok(()),
    }
}

/// Jobs that run on the way to a release, and that a rollback does not undo.
pub fn upgrade_jobs(manifest: &Manifest) -> impl Iterator<Item = &str> {
    serve::jobs(manifest, &[When::Upgrade]).map(|job| job.name.as_str())
}

/// Finishes what an interrupted change left: one whole release serves afterwards, the new
/// one if it does, else the one before. What waits to be confirmed in time goes on to wait,
/// and what was not is taken back.
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
    withdraw_preview(&app)?;
    let manifest = manifest_of(&session.version)?;
    let mut app = app;
    if app.confirm_by.is_some_and(|by| by <= node::now()) {
        say(&format!("nobody has confirmed {}, back to {}", session.version, before.version));
        return go_back(app, manifest_of, node, supervisor, patience, say);
    }
    if let Err(error) = serve::restore(&app, &session, &manifest, node, supervisor, say) {
        check_interrupted()?;
        // If neither can be brought back, it is not the release's fault: the state stays, and
        // the first error is the one to look into.
        let Ok(back) = return_to_standby(app, manifest_of, node, supervisor, say) else {
            return Err(error);
        };
        say(&format!("{} does not serve, back to {}: {error:#}", session.version, before.version));
        app = back;
    }
    if app.confirm_by.is_some() {
        return Ok(app);
    }
    end_standby(app, manifest_of, node, patience, say)
}

/// Has the session that stood by last serve again.
fn return_to_standby(
    app: App,
    manifest_of: &dyn Fn(&str) -> Result<Manifest>,
    node: &Node,
    supervisor: &dyn Supervise,
    say: &dyn Fn(&str),
) -> Result<App> {
    let back = app.returned();
    if let Some(session) = &back.session {
        let manifest = manifest_of(&session.version)?;
        serve::restore(&back, session, &manifest, node, supervisor, say)?;
    }
    node.save_app(&back)?;
    Ok(back)
}

/// Has the session that stands by serve again, at once, and ends the other one.
///
/// # Errors
/// When it cannot be brought back: nothing is changed then.
pub fn go_back(
    app: App,
    manifest_of: &dyn Fn(&str) -> Result<Manifest>,
    node: &Node,
    supervisor: &dyn Supervise,
    patience: Duration,
    say: &dyn Fn(&str),
) -> Result<App> {
    let back = return_to_standby(app, manifest_of, node, supervisor, say)?;
    end_standby(back, manifest_of, node, patience, say)
}

/// Takes the session that serves for good, and ends those that stand by.
///
/// # Errors
/// When one cannot be ended.
pub fn confirm(
    app: App,
    manifest_of: &dyn Fn(&str) -> Result<Manifest>,
    node: &Node,
    patience: Duration,
    say: &dyn Fn(&str),
) -> Result<App> {
    let app = app.confirmed();
    node.save_app(&app)?;
    end_standby(app, manifest_of, node, patience, say)
}

fn end_standby(
    app: App,
    manifest_of: &dyn Fn(&str) -> Result<Manifest>,
    node: &Node,
    patience: Duration,
    say: &dyn Fn(&str),
) -> Result<App> {
    let Some(session) = app.session.clone() else { return Ok(app) };
    let manifest = manifest_of(&session.version)?;
    retire_all(app, &manifest, manifest_of, node, patience, &|session| {
        say(&format!("ending session {}, which stood by", session.name));
    })
}

/// Ends all sessions that stand by. Answers the application without them.
fn retire_all(
    app: App,
    manifest: &Manifest,
    manifest_of: &dyn Fn(&str) -> Result<Manifest>,
    node: &Node,
    patience: Duration,
    say: &dyn Fn(&Session),
) -> Result<App> {
    let serving = app.session.clone();
    // Requests that are broken off at last, and may be, are asked again where it serves.
    serving.iter().try_for_each(|session| back_itself(&app, session, manifest, node))?;
    let mut app = app;
    for session in app.standby.clone() {
        say(&session);
        app = retire(app, &session, &manifest_of(&session.version)?, node, patience)?;
    }
    serving.iter().try_for_each(|it| front::set_backup(node.layout(), &it.name, None))?;
    Ok(app)
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
