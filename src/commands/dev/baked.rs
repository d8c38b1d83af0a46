//! The long way: a release is baked of the project, and upgraded to.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Dev;
use crate::commands::baking::{self, Baking};
use crate::commands::incoming::{self, Arrival, Options};
use crate::commands::record::Subject;
use crate::commands::{SigningKey, Started, manifest_of, started};
use crate::edit;
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::history::{self, Outcome};
use crate::locked::Network;
use crate::mount;
use crate::node::{Object, Transaction};
use crate::profile::When;
use crate::run::Shield;
use crate::session;
use crate::signature::SecretKey;
use crate::storage;
use crate::switch::{self, Course, Ending};
use crate::trust;
use crate::undo;

/// How long the last requests to the release before are waited for.
const DRAIN: Duration = Duration::from_secs(10);

impl Dev<'_> {
    /// Bakes a release of the project, and has it serve. Answers what was done.
    ///
    /// # Errors
    /// When it cannot be baked, or does not get ready: what served does so still.
    pub(super) fn bake(&mut self) -> Result<String> {
        let version = self.next_version();
        crate::profile::check_version(&version)
            .hint("a shorter version in the profile leaves room for one of dev's own")?;
        let name = self.name().to_owned();
        undo::attempt(self.node, "dev", &name, |transaction| {
            let out = self.node.layout().works().join(format!("{}.dev", transaction.id()));
            transaction.intend(Object::Path { path: out.clone() })?;
            file::make_directory(&out, 0o700)?;
            // The session to come is for the host; what a bake mounts is not.
            mount::in_private_namespace(|| self.install(&version, &out, transaction))?;
            storage::remove_tree(&out)
        })
        .with_context(|| format!("baking {version}"))?;
        if let Err(error) = self.upgrade(&version) {
            let _shield = Shield::raise();
            self.discard(&version)?;
            return Err(error);
        }
        self.settle_on(&version)?;
        Ok(format!("{version} baked and upgraded to"))
    }

    fn install(&self, version: &str, out: &Path, transaction: &mut Transaction) -> Result<()> {
        let (node, context) = (self.node, self.context);
        let _lock = node.lock(&format!("env-{}", self.name()), "dev")?;
        let mut source = self.source.clone();
        source.profile.set_version(version)?;
        let mut baking = Baking::of(source, out, false, Network::Allowed, node)?;
        baking.keeps_trees = true;
        baking.key = self.key()?;
        baking::bake(&baking, node, context, transaction)?;
        // Without editors' own files, which come and go.
        let (files, _) = self.source.files(&mut |_| Ok(()))?;
        if files != self.seen.files {
            return refuse(
                "the project was changed while it was baked",
                "the change after is next",
            );
        }
        let Started { app, session, .. } = &self.started;
        let storage = app.release(&session.version).map_or("auto", |it| it.storage.as_str());
        let archive = incoming::open(&baking.out, node)?;
        match incoming::arrive(archive, &Options::own(storage), node)? {
            Arrival::New(mut incoming) => incoming.install(node, context),
            Arrival::Known => Ok(()),
        }
    }

    /// What a release is signed with on a node that takes no other.
    fn key(&self) -> Result<Option<SecretKey>> {
        if trust::keys(self.node.layout())?.is_empty() {
            return Ok(None);
        }
        SigningKey { key: None, password_file: None }.load(self.context).map(Some)
    }

    /// Leads requests to the release, without a watch: who develops looks himself.
    fn upgrade(&mut self, version: &str) -> Result<()> {
        let (node, context, supervisor) = (self.node, self.context, self.supervisor);
        let name = self.name().to_owned();
        let app = node.installed(&name)?;
        let of = |version: &str| manifest_of(node, &app, version);
        let subject = Subject { context, node, app: &name, verb: "dev" };
        let settled = subject.record_steps(
            &history::who(),
            |_| Outcome::Done,
            |say| {
                let (manifest_of, drain) = (&of, DRAIN);
                Ending { node, supervisor, manifest_of, drain, say }.settle(app.clone())
            },
        )?;
        let serving = settled.session.as_ref().map(|it| it.version.clone()).unwrap_or_default();
        let moments = &[When::Upgrade, When::Start];
        let course = Course {
            node,
            supervisor,
            moments,
            watch: Duration::ZERO,
            drain: DRAIN,
            confirm: None,
        };
        let (new, old) = (of(version)?, of(&serving)?);
        let say = |text: &str| context.ui.step(text);
        subject.record(&format!("from {serving} to {version}"), || {
            switch::to_release(&settled, &new, &old, &course, "dev", &say)
                .with_context(|| format!("upgrading {name} from {serving} to {version}"))
        })?;
        Ok(())
    }

    /// Takes the release that serves now for what was changed last; one that was baked here
    /// before goes.
    fn settle_on(&mut self, version: &str) -> Result<()> {
        let (node, name) = (self.node, self.name().to_owned());
        let previous = self.started.app.previous.clone();
        self.started = started(node, &name)?;
        let manifest = &self.started.manifest;
        let written = session::written_paths(manifest);
        self.released = edit::placed(&manifest.profile, &self.seen.files, &written);
        self.placed = self.released.clone();
        self.known = Some(self.seen.clone());
        if let Some(before) = self.own.replace(version.to_owned()) {
            self.remove(&before, previous)?;
        }
        Ok(())
    }

    /// Removes a release that was baked here and does not get to serve, unless something
    /// speaks of it still.
    fn discard(&mut self, version: &str) -> Result<()> {
        self.started = started(self.node, self.name())?;
        let app = &self.started.app;
        let named = [&app.current, &app.previous].into_iter().flatten();
        let sessions = app.session.iter().chain(&app.standby).map(|session| &session.version);
        if named.chain(sessions).any(|known| known == version) {
            return Ok(());
        }
        self.remove(version, None)
    }

    /// Removes a release that was baked here and is none any more that somebody goes back to.
    fn remove(&mut self, version: &str, previous: Option<String>) -> Result<()> {
        let (node, app) = (self.node, &self.started.app);
        let Some(release) = app.release(version) else { return Ok(()) };
        let mut transaction = node.begin("dev", &app.name)?;
        for object in Object::of_release(app, release, node.layout()) {
            transaction.intend(object)?;
        }
        let left = app.clone().replaced(version, previous);
        node.save_app(&left)?;
        self.started.app = left;
        undo::remove_all(node, transaction, &|_| ()).with_context(|| format!("removing {version}"))
    }
}
