//! `farmctl upgrade --in-place`: what serves gets other Python distributions where it runs.
//!
//! First a release is derived from the one that serves: its volume is forked, and what is
//! wanted installed there. What that changed is then changed in the session as well, and its
//! processes are reloaded. So the session is as its release again, only as another one, and
//! whatever comes later (a restart, a reboot, a rollback, the next upgrade) knows no
//! difference.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::chroot;
use crate::commands::record::Subject;
use crate::commands::{Context, Started, baking, incoming, index_of, intend_volume};
use crate::debian;
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::front;
use crate::layout;
use crate::manifest::{Derived, FileIndex, Hashed, Inputs, Manifest, Payload};
use crate::mount;
use crate::node::{self, Node, Object, Transaction};
use crate::plan::Plan;
use crate::profile::Python;
use crate::python;
use crate::release::Release;
use crate::revise;
use crate::run;
use crate::schroot;
use crate::session;
use crate::source;
use crate::stage::{self, Stage};
use crate::storage::{self, Access, Storage};
use crate::supervise::Supervise;
use crate::ui;

/// What is to be installed where.
pub(super) struct Revision<'a> {
    pub(super) node: &'a Node,
    pub(super) supervisor: &'a dyn Supervise,
    pub(super) started: &'a Started,
    /// Requirements, and paths of projects, wheels and sdists.
    pub(super) wanted: &'a [String],
    pub(super) context: &'a Context,
}

/// A release that was derived.
struct Made {
    manifest: Manifest,
    index: FileIndex,
    release: Release,
}

impl Revision<'_> {
    /// Refuses what cannot be installed, before anything is made.
    ///
    /// # Errors
    /// Exactly then.
    pub(super) fn check(&self) -> Result<()> {
        let Started { app, manifest, .. } = self.started;
        run::require(&chroot::TOOLS)?;
        self.python()?;
        for wanted in self.wanted {
            if wanted.starts_with('-') {
                return refuse(
                    format_args!("{wanted} is neither a requirement nor a path"),
                    format!("farmctl upgrade {} --in-place 'NAME==VERSION'", app.name),
                );
            }
            let path = Path::new(wanted);
            if !wanted.contains('/') && !path.exists() {
                continue;
            }
            python::build::require_installable(path, wanted)
                .hint("name a requirement, NAME==VERSION, or the path of a Python project")?;
        }
        let version = app.next_version(&manifest.version);
        crate::profile::check_version(&version)
            .hint("bake a release: one more derived one has no room for its version")
    }

    /// The steps of [`Self::carry_out`].
    pub(super) fn plan(&self) -> Result<Plan> {
        let Started { app, session, manifest } = self.started;
        let (name, from) = (&app.name, &manifest.version);
        let version = app.next_version(from);
        let (storage, release) = self.origin()?;
        let mut plan = Plan::new(format!("upgrade {name} in place from {from} to {version}"));
        let volume = layout::release_volume(name, &version);
        plan.commands(
            format!("fork volume {}", release.volume),
            storage.describe_fork(&release.volume, &volume)?,
        )
        .step(format!("install {} there", self.wanted.join(", ")))
        .step(format!("change the same files in session {}", session.name));
        for process in &manifest.profile.processes {
            plan.step(format!("reload the process {}", process.name));
        }
        Ok(plan)
    }

    /// Derives the release and has the session be one of it. Answers its version and what
    /// is another distribution in it; none if nothing is.
    ///
    /// # Errors
    /// When it cannot be installed, or the processes do not take it up: all is as before then.
    pub(super) fn carry_out(&self) -> Result<Option<(String, String)>> {
        let Started { app, manifest, .. } = self.started;
        let (name, from) = (&app.name, &manifest.version);
        let version = app.next_version(from);
        let subject = Subject {
            context: self.context,
            node: self.node,
            app: name,
            verb: "upgrade --in-place",
        };
        subject.record(&format!("from {from} to {version}: {}", self.wanted.join(" ")), || {
            crate::undo::attempt(self.node, "upgrade --in-place", name, |transaction| {
                let Some(made) = self.derive(&version, transaction)? else { return Ok(None) };
                self.revise(&made, transaction)?;
                let what = differences(&manifest.inputs, &made.manifest.inputs);
                self.node.save_app(&app.clone().revised(made.release))?;
                Ok(Some((version.clone(), what)))
            })
            .with_context(|| format!("upgrading {name} {from} in place"))
        })
    }

    fn python(&self) -> Result<&Python> {
        let Started { app, manifest, .. } = self.started;
        match &manifest.profile.python {
            Some(python) => Ok(python),
            None => refuse(
                format_args!("{} {} has no virtualenv", app.name, manifest.version),
                "--in-place installs Python distributions: bake a release of anything else",
            ),
        }
    }

    /// The release that serves, and where it is kept.
    fn origin(&self) -> Result<(Box<dyn Storage>, &Release)> {
        let Started { app, manifest, .. } = self.started;
        let release = app.release(&manifest.version).context("looking for the release")?;
        Ok((storage::named(&release.storage, &self.node.site())?, release))
    }

    /// Makes the release, but not known to the state; none if it would be as the other one.
    fn derive(&self, version: &str, transaction: &mut Transaction) -> Result<Option<Made>> {
        let Started { app, manifest, .. } = self.started;
        let (storage, origin) = self.origin()?;
        let volume = layout::release_volume(&app.name, version);
        let storage_name = storage.name().to_owned();
        self.context.ui.step(format!("forking volume {}", origin.volume));
        intend_volume(storage.as_ref(), &volume, transaction)?;
        storage.fork(&origin.volume, &volume, &transaction.mark())?;
        let made = mount::in_private_namespace(|| {
            let tree = storage.open(&volume, Access::ReadWrite)?;
            let stage = Stage::of_release(tree, volume.clone(), manifest, self.node.layout())?;
            self.install(stage, version, &origin.identity, transaction)
        })?;
        let Some((mut manifest, index)) = made else {
            storage.remove(&volume)?;
            return Ok(None);
        };
        storage.seal(&volume, Access::ReadOnly)?;
        let files = serde_json::to_vec(&index).context("writing the file index")?;
        manifest.files = Hashed { size: files.len() as u64, sha256: crate::hash::sha256(&files) };
        let text = serde_json::to_vec(&manifest).context("writing the manifest")?;
        incoming::keep(&manifest, &text, None, &files, self.node, transaction)?;
        transaction.intend(Object::Chroot { name: layout::release_chroot(&app.name, version) })?;
        let (node, mark) = (self.node, transaction.mark());
        schroot::register(&incoming::definition(
            &manifest,
            storage.as_ref(),
            &volume,
            node,
            &mark,
        )?)?;
        let release = Release {
            version: version.to_owned(),
            identity: crate::hash::sha256(&text),
            storage: storage_name,
            verified: incoming::verified(storage.as_ref(), &volume, &files),
            volume,
            installed: node::now(),
        };
        Ok(Some(Made { manifest, index, release }))
    }

    /// Installs what is wanted in a fork of the release; none if that changed nothing.
    fn install(
        &self,
        mut stage: Stage,
        version: &str,
        identity: &str,
        transaction: &mut Transaction,
    ) -> Result<Option<(Manifest, FileIndex)>> {
        let Started { app, manifest, .. } = self.started;
        let (ui, layout) = (&self.context.ui, self.node.layout());
        let (profile, python) = (&manifest.profile, self.python()?);
        let virtualenv = profile.virtualenv();
        let choice =
            python::choose(python.installer, &layout.tools(), &manifest.architecture, false)?;
        let packages = stage::build_packages(profile, Some(&choice));
        if !packages.is_empty() {
            ui.step(format!("installing build packages: {}", packages.join(", ")));
            let spinner = ui.spinner("apt-get");
            stage.install_build_packages(&packages, &|line| spinner.show(line))?;
        }
        let installer = stage::prepare_installer(&mut stage, &choice, layout)?;
        ui.step(format!("installing {} with {}", self.wanted.join(", "), installer.name()));
        let (wanted, paths) = self.lend(&stage, manifest.epoch)?;
        let chroot = &stage.chroot;
        let installed = installer.install(chroot, &virtualenv, &wanted).run().and_then(|()| {
            let again = |path| installer.install_again(chroot, &virtualenv, path).run();
            paths.iter().try_for_each(|path| again(path))
        });
        python::explain(installed).context("installing")?;
        stage::finish_virtualenv(chroot, python, &virtualenv)?;
        baking::run_jobs(chroot, profile, ui)?;
        stage.purge_build_packages()?;
        let packages = debian::installed_packages(&stage.chroot)?;
        let Stage { chroot, tree, .. } = stage;
        chroot.leave()?;
        debian::clean(tree.path())?;

        let scan = baking::scan(tree.path(), profile, manifest.epoch, ui)?;
        let before = index_of(self.node, app, &manifest.version)?;
        let changes = revise::changes(&before, &scan.index, &[]);
        if changes.is_empty() {
            tree.close()?;
            return Ok(None);
        }
        revise::set_times(tree.path(), &scan.index)?;
        let made = Manifest {
            farmctl: env!("CARGO_PKG_VERSION").to_owned(),
            version: version.to_owned(),
            derived: Some(Derived {
                from: manifest.version.clone(),
                identity: identity.to_owned(),
                by: self.named(),
            }),
            inputs: Inputs {
                packages,
                distributions: python::distributions(tree.path(), &virtualenv)?.0,
                ..manifest.inputs.clone()
            },
            // There is no tarball of it.
            payload: Payload {
                size: 0,
                sha256: String::new(),
                entries: scan.index.files.len() as u64,
                content: scan.content,
            },
            segments: Vec::new(),
            set_id: scan.set_id,
            capabilities: scan.capabilities,
            ..manifest.clone()
        };
        front::export_static(&made, tree.path(), Some(manifest), layout, transaction)?;
        tree.close()?;
        Ok(Some((made, scan.index)))
    }

    /// Copies what is wanted by its path to where the installer finds it. Answers what the
    /// installer is to be given, and what of that are paths.
    fn lend(&self, stage: &Stage, epoch: i64) -> Result<(Vec<String>, Vec<String>)> {
        let (mut wanted, mut paths) = (Vec::new(), Vec::new());
        for (number, one) in self.wanted.iter().enumerate() {
            let path = Path::new(one);
            if !path.exists() {
                wanted.push(one.clone());
                continue;
            }
            let mut inside = Path::new(python::PROJECT).join(number.to_string());
            if path.is_file() {
                // Its name says what it is.
                inside.push(path.file_name().unwrap_or_default());
            }
            let outside = stage.chroot.outside(&inside);
            file::make_directory(outside.parent().unwrap_or(Path::new("/")), 0o755)?;
            source::copy_as_is(path, &outside, epoch)
                .with_context(|| format!("copying {}", path.display()))?;
            let inside = inside.to_string_lossy().into_owned();
            wanted.push(inside.clone());
            paths.push(inside);
        }
        Ok((wanted, paths))
    }

    /// What is wanted, paths as they are known from everywhere.
    fn named(&self) -> Vec<String> {
        let name = |wanted: &String| match Path::new(wanted).canonicalize() {
            Ok(path) => path.to_string_lossy().into_owned(),
            Err(_) => wanted.clone(),
        };
        self.wanted.iter().map(name).collect()
    }

    /// Changes the session, and has its processes take that up.
    fn revise(&self, made: &Made, transaction: &mut Transaction) -> Result<()> {
        let Started { app, session, manifest } = self.started;
        let ui = &self.context.ui;
        let before = index_of(self.node, app, &manifest.version)?;
        let changes = revise::changes(&before, &made.index, &session::written_paths(manifest));
        let (storage, _) = self.origin()?;
        let mount = schroot::mount_of(&session.name);
        mount::in_private_namespace(|| {
            let layout = self.node.layout();
            let interruptible = |_, _| run::check_interrupted();
            let differences = session::compare(layout, session, manifest, &before, &interruptible)?;
            revise::check(&app.name, &differences, &changes)?;
            let paths = ui::count(changes.len(), "path");
            ui.step(format!("changing {paths} in session {}", session.name));
            transaction.intend(Object::Revision {
                app: app.name.clone(),
                to: made.manifest.version.clone(),
            })?;
            let tree = storage.open(&made.release.volume, Access::ReadOnly)?;
            revise::apply(&mount, tree.path(), &changes)?;
            tree.close()
        })?;
        let mut served = self.started.served(self.node, self.supervisor);
        served.manifest = &made.manifest;
        front::export_session_again(&made.manifest, &session.name, &mount, self.node.layout())?;
        served.make_way()?;
        for process in &manifest.profile.processes {
            ui.step(format!("reloading the process {}", process.name));
            served.reload(process)?;
        }
        Ok(())
    }
}

/// What is another distribution: `shop 1.4.2 → 1.4.3, click 8.1.8 new`.
fn differences(before: &Inputs, after: &Inputs) -> String {
    let versions = |inputs: &Inputs| -> BTreeMap<String, String> {
        let all = inputs.distributions.iter();
        all.map(|one| (one.name.clone(), one.version.clone())).collect()
    };
    let (old, new) = (versions(before), versions(after));
    let mut words = Vec::new();
    for (name, version) in &new {
        match old.get(name) {
            None => words.push(format!("{name} {version} new")),
            Some(before) if before != version => words.push(format!("{name} {before} → {version}")),
            Some(_) => {}
        }
    }
    let gone = old.iter().filter(|(name, _)| !new.contains_key(*name));
    words.extend(gone.map(|(name, version)| format!("{name} {version} gone")));
    if words.is_empty() { "the same versions".to_owned() } else { words.join(", ") }
}
