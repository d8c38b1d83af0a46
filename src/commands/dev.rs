//! `farmctl dev`: what is saved in a project is taken to the application that runs of it.
//!
//! Nothing is held while it waits: each change is made as by a verb of its own, under the
//! application's lock, and state says first what the session will not have of its release.

mod baked;
mod placed;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Error, Result};

use super::{Context, Started};
use crate::edit::{self, Placed, Snapshot, Way};
use crate::error::{Exit, exit_of, refuse, render};
use crate::front;
use crate::lockfile;
use crate::manifest::Manifest;
use crate::node::{self, Lock, Node};
use crate::plan::Plan;
use crate::release;
use crate::run;
use crate::session;
use crate::source::Source;
use crate::stage;
use crate::supervise::{self, Supervise};
use crate::switch;
use crate::ui;
use crate::watch::Watch;

/// How long another farmctl may have the application until a change is given up.
const LOCKED: Duration = Duration::from_secs(60);
/// How often a project is read again of which something vanishes meanwhile.
const READINGS: u32 = 20;

/// Take each saved change of a project to the application that runs of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  farmctl dev profiles/hello

The application must run: farmctl bootstrap, bake, install and start make it so. Files that \
[[copy]] names are put into its session as a bake would put them, with their byte code, static \
ones where nginx finds them; then its processes are reloaded. Whatever a bake makes something else \
of is baked, as a release of its own, 1.4.2.dev1, and upgraded to: the profile, farmctl.lock, \
requirements, the project as a distribution, every file if there is build.before, every copied one \
if there is a job at bake. That release takes the place of the last such one. What the application \
does not get is passed over (-v says so). Jobs are run by a bake and an upgrade, not when files \
are put there.

A change that breaks the application is said with its last lines; the next one that is saved mends \
it. If the check of the profile refuses it, what ran before runs on.

Ctrl-C ends it, and so does farmctl stop, or another session that serves. The session goes on with \
what was saved, and farmctl status and farmctl verify --session say so. farmctl stop and start, or \
an upgrade, lead to one that is as its release. In the midst of a change Ctrl-C leaves that half \
done (exit status 130): farmctl dev again completes it.")]
pub struct Args {
    /// The profile: its file, or a directory with a profile.toml
    profile: PathBuf,
    /// Show what would be done first and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out: until the user interrupts, or somebody else ends the session.
///
/// # Errors
/// When the application does not run. What fails later is said, and no error.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    run::require(&crate::chroot::TOOLS)?;
    let source = Source::read(&args.profile)?;
    stage::environment(&node, &source)?;
    let started = started(&source, &node)?;
    let supervisor = supervise::detect(node.layout());
    let watch = Watch::new()?;
    // Who stops the application, or has another release serve, writes its state.
    watch.directory(&node.layout().apps())?;
    let before = snapshot(&args.profile, &watch)?;
    let mut dev = Dev::new(args, before, started, &node, supervisor.as_ref(), context)?;
    if args.dry_run {
        context.show_plan(&dev.plan());
        return Ok(Exit::Done);
    }
    dev.greet();
    dev.follow(&watch)?;
    Ok(Exit::Done)
}

/// The application of the profile, which must run and be confirmed.
fn started(source: &Source, node: &Node) -> Result<Started> {
    let (name, directory) = (&source.profile.name, source.directory.display());
    if node.app(name)?.is_none() {
        return refuse(
            format_args!("no application {name} is installed"),
            format!("farmctl bake {directory}, then farmctl install what it has made"),
        );
    }
    let started = super::started(node, name)?;
    check_confirmed(&started)?;
    Ok(started)
}

fn check_confirmed(started: &Started) -> Result<()> {
    let Started { app, session, .. } = started;
    let name = &app.name;
    match app.confirm_by {
        Some(by) if by > node::now() => refuse(
            format_args!("{name} {} waits to be confirmed", session.version),
            format!("farmctl confirm {name} keeps it, farmctl rollback {name} goes back"),
        ),
        _ => Ok(()),
    }
}

/// Reads the project as it is now; all of its directories are watched then.
fn snapshot(profile: &Path, watch: &Watch) -> Result<(Source, Snapshot)> {
    let mut readings = 0;
    loop {
        match try_snapshot(profile, watch) {
            Err(error) if readings < READINGS && is_not_found(&error) => {
                // Something vanished between two looks: an editor's own file, or a branch.
                run::check_interrupted()?;
                run::rest(Duration::from_millis(20));
                readings += 1;
            }
            read => return read,
        }
    }
}

fn try_snapshot(profile: &Path, watch: &Watch) -> Result<(Source, Snapshot)> {
    let source = Source::read(profile)?;
    let (files, sha256) = source.files(&mut |directory| watch.directory(directory))?;
    let named = source.profile.python.as_ref().and_then(|python| python.requirements.as_ref());
    let requirements = match named {
        // What a step of the build writes is not there yet.
        Some(_) if !source.profile.build.before.is_empty() => String::new(),
        Some(file) => {
            crate::hash::sha256(stage::read_requirements(&source.directory, file)?.as_bytes())
        }
        None => String::new(),
    };
    let lock = source.lock.as_ref().map(|(_, sha256)| sha256.clone()).unwrap_or_default();
    let profile = source.profile.clone();
    Ok((source, Snapshot { profile, lock, requirements, files, sha256 }))
}

fn is_not_found(error: &Error) -> bool {
    let kind = std::io::ErrorKind::NotFound;
    error.chain().any(|it| it.downcast_ref::<std::io::Error>().is_some_and(|it| it.kind() == kind))
}

/// Whether there is more to watch for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Wait,
    End,
}

/// What is taken where, and how far that is.
struct Dev<'a> {
    args: &'a Args,
    node: &'a Node,
    supervisor: &'a dyn Supervise,
    context: &'a Context,
    source: Source,
    /// The project as the application has it; none if that is not known.
    known: Option<Snapshot>,
    /// The project as it was looked at last.
    seen: Snapshot,
    started: Started,
    /// What of the project the session has, and its release.
    placed: Placed,
    released: Placed,
    /// A release that was baked here.
    own: Option<String>,
    /// The last error of reading the project: it is said once.
    unreadable: String,
    /// The project when it could not be taken: only another one is tried again.
    failed: Option<Snapshot>,
    /// Whether a change is in the history.
    is_recorded: bool,
}

impl<'a> Dev<'a> {
    fn new(
        args: &'a Args,
        (source, seen): (Source, Snapshot),
        started: Started,
        node: &'a Node,
        supervisor: &'a dyn Supervise,
        context: &'a Context,
    ) -> Result<Self> {
        // Of an earlier `dev`.
        let version = &started.session.version;
        let own = release::is_dev_version(version).then(|| version.clone());
        let mut dev = Self {
            args,
            node,
            supervisor,
            context,
            source,
            known: None,
            seen,
            started,
            placed: Placed::new(),
            released: Placed::new(),
            own,
            unreadable: String::new(),
            failed: None,
            is_recorded: false,
        };
        dev.find_out()?;
        Ok(dev)
    }

    /// Finds out what of the project the session has.
    fn find_out(&mut self) -> Result<()> {
        let Started { app, session, manifest } = &self.started;
        let (profile, written) = (&manifest.profile, session::written_paths(manifest));
        let is_released = self.is_released(manifest);
        if is_released {
            self.released = edit::placed(profile, &self.seen.files, &written);
        } else {
            let index = super::index_of(self.node, app, &session.version)?;
            self.released = edit::placed_in(profile, &index, &written);
        }
        self.placed = self.released.clone();
        // Of an earlier `dev`: only where is written down.
        for path in session.edited.iter().flat_map(|edited| &edited.paths) {
            self.placed.insert(path.clone(), (PathBuf::new(), edit::Kind::Unknown));
        }
        self.known = (is_released || self.can_be_placed(manifest)).then(|| self.seen.clone());
        Ok(())
    }

    /// Whether the release was baked of the project as it is.
    fn is_released(&self, manifest: &Manifest) -> bool {
        edit::is_same_profile(&manifest.profile, &self.seen.profile)
            && manifest.inputs.lock_sha256 == self.seen.lock
            && manifest.inputs.project_sha256 == self.seen.sha256
    }

    /// Whether what the project has besides can be put beside what the release has.
    fn can_be_placed(&self, manifest: &Manifest) -> bool {
        let locked = self.source.lock.as_ref().and_then(|(lock, _)| lock.python.as_ref());
        let is_locked = locked.is_some_and(|it| it.requirements_sha256 == self.seen.requirements);
        edit::is_same_profile(&manifest.profile, &self.seen.profile)
            && manifest.inputs.lock_sha256 == self.seen.lock
            && (self.seen.requirements.is_empty() || is_locked)
            && edit::is_placed_only(&manifest.profile)
    }

    fn name(&self) -> &str {
        &self.started.app.name
    }

    /// How the project as it was seen last is taken to the application.
    fn way(&self) -> Way {
        let Some(known) = &self.known else {
            // In the environment there is, as by `farmctl bake`: it may have been made anew.
            return Way::Bake("the release is of other files".to_owned());
        };
        match edit::way(known, &self.seen) {
            // What an earlier one has left may be something else.
            Way::Nothing if !self.edits().is_empty() => Way::Place,
            way => way,
        }
    }

    /// What the session has to get.
    fn edits(&self) -> Vec<edit::Edit> {
        edit::edits(&self.placed, &self.wanted())
    }

    /// What of the project the session is to have.
    fn wanted(&self) -> Placed {
        let Started { manifest, .. } = &self.started;
        edit::placed(&manifest.profile, &self.seen.files, &session::written_paths(manifest))
    }

    fn plan(&self) -> Plan {
        let Started { session, .. } = &self.started;
        let mut plan = Plan::new(format!("take changes of {} to it", self.directory()));
        match self.way() {
            Way::Nothing => {}
            Way::Place => {
                let count = ui::count(self.edits().len(), "path");
                plan.step(format!("put {count} into session {}", session.name));
                for process in &self.started.manifest.profile.processes {
                    plan.step(format!("reload the process {}", process.name));
                }
            }
            Way::Bake(_) => {
                plan.step(format!("bake {} and upgrade to it", self.next_version()));
            }
            Way::Bootstrap => {
                plan.step("ask for another environment");
            }
        }
        plan.step("wait for a change, and take it there");
        plan
    }

    fn directory(&self) -> std::path::Display<'_> {
        self.source.directory.display()
    }

    /// A version for what would be baked of the project.
    fn next_version(&self) -> String {
        self.started.app.dev_version(&self.seen.profile.version)
    }

    fn greet(&self) {
        let Started { manifest, .. } = &self.started;
        let ui = &self.context.ui;
        for job in switch::upgrade_jobs(manifest) {
            ui.warn(format!("the job {job} is run when a release is baked, not for each file"));
        }
        if let Some(front) = &manifest.profile.front {
            ui.answer(front::address(front));
        }
    }

    /// Takes changes to the application until somebody ends that.
    fn follow(&mut self, watch: &Watch) -> Result<()> {
        if self.take(Instant::now())? == Next::End {
            return Ok(());
        }
        self.context.ui.step(format!("watching {}: Ctrl-C ends it", self.directory()));
        loop {
            let began = match watch.wait() {
                // How it is ended: nothing is half done.
                Err(error) if exit_of(&error) == Exit::Interrupted => return self.say_goodbye(),
                began => began?,
            };
            if self.look(began, watch)? == Next::End {
                return Ok(());
            }
        }
    }

    /// Looks what happened, and takes it to the application.
    fn look(&mut self, began: Instant, watch: &Watch) -> Result<Next> {
        if self.is_over()? {
            return Ok(Next::End);
        }
        match snapshot(&self.args.profile, watch) {
            Ok((source, seen)) => {
                self.unreadable.clear();
                (self.source, self.seen) = (source, seen);
                self.take(began)
            }
            Err(error) if exit_of(&error) == Exit::Interrupted => Err(error),
            Err(error) => {
                let text = render(&error);
                if text != self.unreadable {
                    self.context.ui.error(&text);
                    self.unreadable = text;
                }
                Ok(Next::Wait)
            }
        }
    }

    /// Whether another farmctl has ended the session, or has requests led to another one.
    fn is_over(&self) -> Result<bool> {
        let (name, ui) = (self.name(), &self.context.ui);
        let app = self.node.app(name)?;
        match app.and_then(|app| app.session) {
            None => ui.already(format!("{name} was stopped: there is nothing more to watch for")),
            Some(session) if session.name != self.started.session.name => {
                let version = session.version;
                ui.already(format!("{name} {version} serves in another session: watching no more"));
            }
            Some(_) => return Ok(false),
        }
        Ok(true)
    }

    /// Takes the project as it was seen last to the application. What fails is said.
    fn take(&mut self, began: Instant) -> Result<Next> {
        let way = self.way();
        let what = self.what(&way);
        if self.failed.as_ref().is_some_and(|failed| failed.is_like(&self.seen)) {
            return Ok(Next::Wait);
        }
        self.failed = None;
        let taken = match &way {
            Way::Nothing => {
                if let Some(what) = what {
                    tracing::info!("{what}: the application gets nothing of it");
                }
                self.known = Some(self.seen.clone());
                return Ok(Next::Wait);
            }
            Way::Place => self.exclusively(Self::place),
            Way::Bake(reason) => {
                let ui = &self.context.ui;
                ui.step(format!("{reason}: baking {}", self.next_version()));
                self.exclusively(Self::bake)
            }
            Way::Bootstrap => {
                self.failed = Some(self.seen.clone());
                refuse(
                    "the profile wants another environment",
                    format!("farmctl bootstrap {0}, then farmctl dev {0}", self.directory()),
                )
            }
        };
        let what = what.unwrap_or_else(|| "what the release lacks".to_owned());
        match taken {
            Ok(None) => return Ok(Next::End),
            Ok(Some(done)) => self.context.ui.took(format!("{what}: {done}"), began.elapsed()),
            Err(error) if exit_of(&error) == Exit::Interrupted => return Err(error),
            Err(error) => self.context.ui.error(&render(&error.context(format!("taking {what}")))),
        }
        Ok(Next::Wait)
    }

    /// What changed of what goes that way: its first file, and how many more. None if that is
    /// not known.
    fn what(&self, way: &Way) -> Option<String> {
        let known = self.known.as_ref()?;
        let mut paths = edit::changed(&known.files, &self.seen.files);
        if *way == Way::Place {
            paths.retain(|path| edit::is_copied(&self.seen.profile, path));
        }
        if known.lock != self.seen.lock {
            paths.push(PathBuf::from(lockfile::FILE));
        }
        let first = paths.first()?.display();
        Some(match paths.len() {
            1 => first.to_string(),
            count => format!("{first} and {} more", count - 1),
        })
    }

    /// Makes a change under the application's lock; none if somebody else has ended the session.
    fn exclusively(
        &mut self,
        body: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<Option<String>> {
        let _lock = self.lock()?;
        if self.is_over()? {
            return Ok(None);
        }
        let edited = self.started.session.edited.clone();
        self.started = super::started(self.node, self.name())?;
        check_confirmed(&self.started)?;
        if self.started.session.edited != edited {
            // By another `dev`.
            self.find_out()?;
        }
        let seen = self.seen.clone();
        let done = body(self);
        self.failed = done.is_err().then_some(seen);
        done.map(Some)
    }

    fn lock(&self) -> Result<Lock> {
        let (name, node) = (self.name(), self.node);
        let free = run::poll_until(LOCKED, || Ok(node.lock(name, "dev").ok()))?;
        let lock = free.map_or_else(|| node.lock(name, "dev"), Ok)?;
        crate::undo::finish_all(node, name, &|text| self.context.ui.step(text))?;
        Ok(lock)
    }

    /// Says what the session is from now on.
    fn say_goodbye(&self) -> Result<()> {
        let name = self.name();
        let Some(app) = self.node.app(name)? else { return Ok(()) };
        let Some(session) = &app.session else { return Ok(()) };
        let back = match (&session.edited, &self.own) {
            (None, None) => String::new(),
            (Some(_), None) => {
                format!(": farmctl stop {name} and start {name} go back to its release")
            }
            (_, Some(_)) => format!(": farmctl rollback {name} goes back"),
        };
        self.context.ui.already(format!("{name} goes on as it is{back}"));
        Ok(())
    }
}
