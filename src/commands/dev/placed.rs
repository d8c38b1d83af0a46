//! The quick way: files are put into the session that serves, and its processes reloaded.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::Dev;
use crate::commands::Started;
use crate::commands::record::Subject;
use crate::edit::{self, Edit, Kind, Placed};
use crate::error::refuse;
use crate::front;
use crate::profile::Process;
use crate::release::Edited;
use crate::revise;
use crate::run;
use crate::schroot;
use crate::session;
use crate::supervise::ProcessState;

fn paths(edits: &[Edit]) -> BTreeSet<PathBuf> {
    edits.iter().map(|edit| edit.path.clone()).collect()
}

impl Dev<'_> {
    /// Puts what changed into the session, and has its processes take that up. Answers what
    /// was done.
    ///
    /// # Errors
    /// When it cannot be put there, or the processes do not take it up.
    pub(super) fn place(&mut self) -> Result<String> {
        let (edits, wanted) = (self.edits(), self.wanted());
        self.record(|dev| {
            let mut released = paths(&edit::edits(&dev.released, &wanted));
            released.extend(dev.put(&edits, wanted, &released)?);
            let renewed = dev.renew();
            // Until then all that was put there is written down: who goes on after an
            // interruption is to have the processes run it.
            run::check_interrupted()?;
            dev.write_down(released)?;
            renewed
        })
    }

    /// Writes the first change into the application's history: of the many that follow there
    /// is no end.
    fn record<T>(&mut self, body: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if std::mem::replace(&mut self.is_recorded, true) {
            return body(self);
        }
        let (context, node, app) = (self.context, self.node, self.name().to_owned());
        let what = self.directory().to_string();
        Subject { context, node, app: &app, verb: "dev" }.record(&what, || body(self))
    }

    /// Puts files into the session; those that will not be as `released` are these. Answers
    /// which were saved again meanwhile, and so are others.
    fn put(
        &mut self,
        edits: &[Edit],
        wanted: Placed,
        released: &BTreeSet<PathBuf>,
    ) -> Result<Vec<PathBuf>> {
        let Started { app, session, manifest } = &self.started;
        let layout = self.node.layout();
        if let Some(flaw) = session::flaw(layout, manifest, session)? {
            return refuse(
                format_args!("session {}: {flaw}", session.name),
                format!("farmctl start {} brings it back", app.name),
            );
        }
        // What is about to be put there first: a killed farmctl leaves nothing state denies.
        let before = session.edited.iter().flat_map(|edited| edited.paths.clone());
        let mut all: BTreeSet<PathBuf> = before.chain(released.iter().cloned()).collect();
        all.extend(paths(edits));
        self.write_down(all)?;
        let Started { session, manifest, .. } = &self.started;
        let mount = schroot::mount_of(&session.name);
        let (project, profile) = (&self.source.directory, &manifest.profile);
        let put =
            revise::place(&mount, project, edits, profile, manifest.epoch).and_then(|others| {
                if edits.iter().any(|edit| front::serves(layout, manifest, &edit.path)) {
                    front::export_session(manifest, &session.name, &mount, layout)?;
                }
                Ok(others)
            });
        let unknown = |path: PathBuf| (path, (PathBuf::new(), Kind::Unknown));
        match put {
            Ok(others) => {
                self.placed = wanted;
                self.placed.extend(others.iter().cloned().map(unknown));
                self.known = Some(self.seen.clone());
                Ok(others)
            }
            Err(error) => {
                self.placed.extend(paths(edits).into_iter().map(unknown));
                Err(error)
            }
        }
    }

    /// Has state say what the session has not as its release.
    fn write_down(&mut self, paths: BTreeSet<PathBuf>) -> Result<()> {
        let project = self.source.directory.clone();
        let paths: Vec<PathBuf> = paths.into_iter().collect();
        let edited = (!paths.is_empty()).then_some(Edited { project, paths });
        if self.started.session.edited == edited {
            return Ok(());
        }
        let app = self.started.app.clone().edited(edited.clone());
        self.node.save_app(&app)?;
        self.started.app = app;
        self.started.session.edited = edited;
        Ok(())
    }

    /// Has the processes run what the session has now.
    fn renew(&self) -> Result<String> {
        let mut words = vec!["put there".to_owned()];
        for process in &self.started.manifest.profile.processes {
            let how = self.renew_one(process)?;
            words.push(format!("{} {how}", process.name));
        }
        Ok(words.join(", "))
    }

    /// Reloads a process, or starts it again if the change before was its end.
    fn renew_one(&self, process: &Process) -> Result<&'static str> {
        let served = self.started.served(self.node, self.supervisor);
        served.check(process)?;
        let before = self.running(process)?;
        if before.is_some() {
            let reloaded = served.take_up(process);
            let Err(error) = reloaded else { return Ok("reloaded") };
            run::check_interrupted()?;
            if self.running(process)? == before {
                return Err(error).with_context(|| format!("reloading {}", process.name));
            }
            // It has ended: its supervisor starts the same again, or has given up.
        }
        served.restart(process).with_context(|| format!("starting {} again", process.name))?;
        Ok("started again")
    }

    /// The number of a process's server, if it runs.
    fn running(&self, process: &Process) -> Result<Option<u32>> {
        let states = self.supervisor.states(&self.started.session.name)?;
        let state = states.into_iter().find(|state| state.process == process.name);
        Ok(state.filter(ProcessState::runs).and_then(|state| state.pid))
    }
}
