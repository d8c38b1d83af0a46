//! The part of a bake in which a profile's steps fill the stage.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Baking, Followed, bootstrap, keeping, run_jobs};
use crate::debian::Archive as Mirror;
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::kept::Step;
use crate::layout::START_SCRIPT;
use crate::locked::{self, Network};
use crate::lockfile::Debian;
use crate::node::{Node, Transaction};
use crate::profile;
use crate::python::{self, Choice, Installer};
use crate::release::EnvironmentRecord;
use crate::source;
use crate::stage::{self, Stage};
use crate::start_script;
use crate::template;
use crate::ui::Ui;

/// A stage that is being filled.
pub(super) struct Build<'a> {
    pub baking: &'a Baking,
    pub stage: Stage,
    /// The last step the stage was kept after.
    pub done: Option<Step>,
    pub node: &'a Node,
    pub ui: &'a Ui,
    pub transaction: &'a mut Transaction,
}

impl<'a> Build<'a> {
    /// The steps of the profile.
    pub fn run(&mut self) -> Result<()> {
        let ui = self.ui;
        let profile = &self.baking.source.profile;
        let lock = self.followed()?;
        if self.done < Some(Step::Packages) {
            self.install_build_packages(lock)?;
        }
        self.stage.bring_project(&self.baking.source)?;
        for command in &profile.build.before {
            ui.step(command);
            self.stage.run_step(command)?;
        }
        self.install_python()?;
        self.install_files()?;
        run_jobs(&self.stage.chroot, profile, ui)
    }

    /// Says so if there is a lock, and the environment is not of it.
    fn followed(&self) -> Result<Option<&'a Debian>> {
        let Baking { source, network, .. } = self.baking;
        match self.baking.followed(&self.stage.before)? {
            Followed::None => Ok(None),
            Followed::Lock(lock) => Ok(Some(lock)),
            Followed::Differs(difference) => {
                let way = bootstrap(source, *network);
                self.ui.warn(format!("the environment is not as locked: {difference}: {way}"));
                Ok(None)
            }
        }
    }

    fn install_build_packages(&mut self, lock: Option<&Debian>) -> Result<()> {
        let packages = self.baking.build_packages();
        if packages.is_empty() {
            return Ok(());
        }
        if let Some(lock) = lock {
            self.follow(lock)?;
        }
        self.ui.step(format!("installing build packages: {}", packages.join(", ")));
        let spinner = self.ui.spinner("apt-get");
        self.stage.install_build_packages(&packages, &|line| spinner.show(line))?;
        drop(spinner);
        self.keep(Step::Packages, None).map(drop)
    }

    /// Keeps the stage, with these requirements, for the next bake, if that is wanted; whether
    /// it was.
    fn keep(&mut self, step: Step, requirements: Option<&str>) -> Result<bool> {
        let Self { baking, stage, node, ui, transaction, .. } = self;
        if !baking.keeps_trees {
            return Ok(false);
        }
        keeping::keep(step, requirements, stage, baking, node, ui, transaction)
    }

    /// Has a stage take its packages from the pool.
    fn follow(&mut self, lock: &Debian) -> Result<()> {
        let Baking { source, environment, .. } = self.baking;
        let EnvironmentRecord { suite, architecture, .. } = environment;
        let work = locked::work(self.node.layout(), self.transaction)?;
        let pool = locked::pool(self.node.layout(), suite, architecture);
        let apt = || {
            let archive = Mirror::of(&source.profile.environment)?;
            self.ui.step(format!("fetching what the pool lacks from {}", archive.mirror));
            locked::read_archive(source, &archive, architecture, &[], &[], &work)
        };
        let meter = self.ui.meter("fetching");
        let set = |done, all| meter.set(done, all);
        locked::fill(lock, source, &pool, self.baking.network, &apt, self.transaction, &set)?;
        drop(meter);
        let repository = locked::publish(lock, &pool, suite, architecture, &work)?;
        self.stage.follow(&repository, suite)
    }

    fn install_python(&mut self) -> Result<()> {
        let profile = &self.baking.source.profile;
        let (Some(python), Some(choice)) = (&profile.python, &self.baking.choice) else {
            return Ok(());
        };
        let done = self.done >= Some(Step::Requirements);
        let installer = if done { None } else { self.fill_virtualenv(python, choice)? };
        let Some(project) = &python.project else { return Ok(()) };
        self.ui.step(format!("installing the project {project}"));
        let layout = self.node.layout();
        let installer = match installer {
            Some(installer) => installer,
            None => {
                self.follow_wheels()?;
                stage::prepare_installer(&mut self.stage, choice, layout)?
            }
        };
        let epoch = self.baking.environment.epoch;
        let path = self.stage.fetch_project(project, epoch, layout, self.transaction)?;
        let virtualenv = profile.virtualenv();
        let call = installer.install_project(&self.stage.chroot, &virtualenv, &path);
        python::explain(self.without_network(call.run())).context("installing the project")?;
        stage::finish_virtualenv(&self.stage.chroot, python, &virtualenv)
    }

    /// Makes the virtualenv and installs the requirements; answers the installer, unless the
    /// stage was left since to be kept.
    fn fill_virtualenv(
        &mut self,
        python: &profile::Python,
        choice: &Choice,
    ) -> Result<Option<Installer>> {
        let ui = self.ui;
        let virtualenv = self.baking.source.profile.virtualenv();
        ui.step(format!("making the virtualenv {}", virtualenv.display()));
        let layout = self.node.layout();
        let installer =
            stage::make_virtualenv(&mut self.stage, python, &virtualenv, choice, layout)?;
        let as_locked = self.follow_wheels()?;
        let Some((file, text)) = self.stage.requirements(python)? else {
            stage::finish_virtualenv(&self.stage.chroot, python, &virtualenv)?;
            return Ok(Some(installer));
        };
        let hashed = stage::hashed_requirements(&self.baking.source, python, &text)?;
        if hashed.is_none() && self.baking.strict {
            return refuse(
                "the requirements are neither hashed nor locked",
                format!("farmctl lock {}", self.baking.source.directory.display()),
            );
        }
        ui.step(format!("installing the requirements with {}", installer.name()));
        let file = match &hashed {
            Some(locked) if *locked != text => self.stage.lend_requirements(locked)?,
            _ => file,
        };
        let call = installer.install_requirements(
            &self.stage.chroot,
            &virtualenv,
            &file,
            hashed.is_some(),
        );
        let spinner = ui.spinner(installer.name());
        let installed = call.run_lines(|line| spinner.show(line));
        python::explain(self.without_network(installed)).context("installing the requirements")?;
        drop(spinner);
        stage::finish_virtualenv(&self.stage.chroot, python, &virtualenv)?;
        if matches!(installer, Installer::Uv(_))
            && self.baking.source.profile.build.packages.is_empty()
        {
            // What uv was fetched with: the next bake need not purge it again.
            self.stage.purge_build_packages()?;
        }
        if !as_locked || !self.keep(Step::Requirements, hashed.as_deref())? {
            return Ok(Some(installer));
        }
        let before = std::mem::take(&mut self.stage.project_sha256);
        self.stage.bring_project(&self.baking.source)?;
        if self.stage.project_sha256 != before {
            return refuse("the project was changed while it was baked", "bake it again");
        }
        Ok(None)
    }

    /// Has the installer take locked files from the pool alone, without a network and where the
    /// lock has what builds take: of that it builds then. Answers whether what is built takes
    /// what is locked, if anything is.
    fn follow_wheels(&mut self) -> Result<bool> {
        let Some(python) = &self.baking.source.profile.python else { return Ok(true) };
        let locked = locked::python(&self.baking.source);
        let alone = self.baking.builds_locked();
        if !alone && !self.baking.strict {
            return Ok(true);
        }
        let EnvironmentRecord { suite, architecture, .. } = &self.baking.environment;
        let wheels = locked::wheels(self.node.layout(), suite, architecture);
        let distributions = locked.map_or(&[][..], |locked| &locked.distributions);
        let builds = locked.map_or(&[][..], |locked| &locked.build);
        let fetches =
            self.baking.fetch && !locked::missing_wheels(&self.baking.source, &wheels)?.is_empty();
        if fetches {
            self.ui.step("fetching the locked distributions the pool lacks");
            let virtualenv = self.baking.source.profile.virtualenv();
            for all in [distributions, builds].into_iter().filter(|all| !all.is_empty()) {
                let (spinner, chroot) = (self.ui.spinner("pip"), &mut self.stage.chroot);
                let show = |line: &str| spinner.show(line);
                let fetched = python::download(chroot, &virtualenv, all, &wheels, &show);
                python::explain(fetched).context("fetching the locked distributions")?;
            }
        }
        let sdists = python::build::sdists(&wheels, distributions)?;
        let asked = self.stage.build_request(python, &sdists)?;
        if asked != locked.map_or("", |locked| &locked.build_sha256) {
            let message = "what is built has changed since farmctl.lock was written";
            let hint = format!("farmctl lock {}", self.baking.source.directory.display());
            if self.baking.strict {
                return refuse(message, hint);
            }
            self.ui.warn(format!("{message}, and may take what is not locked: {hint}"));
            return Ok(false);
        }
        if alone {
            let target = locked::work(self.node.layout(), self.transaction)?.join("wheels");
            python::build::lend_locked(&mut self.stage.chroot, &wheels, locked, &target)?;
        }
        Ok(true)
    }

    /// Says what an installer may have lacked without a network.
    fn without_network(&self, installed: Result<()>) -> Result<()> {
        match self.baking.network {
            Network::Allowed => installed,
            Network::Denied => installed.hint_with(|| {
                format!(
                    "the pool must have all of it, and what a build takes: farmctl lock {}",
                    self.baking.source.directory.display()
                )
            }),
        }
    }

    /// Copies, renders, and writes the start script.
    fn install_files(&self) -> Result<()> {
        let profile = &self.baking.source.profile;
        let epoch = self.baking.environment.epoch;
        for copied in &profile.copies {
            self.ui.step(format!("copying {} to {}", copied.from.display(), copied.to.display()));
            let from = self.stage.chroot.outside(Path::new(python::PROJECT).join(&copied.from));
            if !from.exists() {
                return refuse(
                    format_args!("there is no {} beside the profile", copied.from.display()),
                    "copy.from is relative to the profile; build.before may make it",
                );
            }
            source::copy_as_is(&from, &self.stage.chroot.outside(&copied.to), epoch)?;
        }
        let values = template::Values::of(profile);
        for rendered in &profile.files {
            let text = template::render(rendered.content.as_deref().unwrap_or_default(), &values)
                .with_context(|| format!("rendering {}", rendered.path.display()))?;
            self.write_inside(&rendered.path, text.as_bytes(), rendered.permissions())?;
        }
        for data in &profile.data {
            file::make_directory(&self.stage.chroot.outside(&data.path), 0o755)?;
        }
        self.write_inside(
            Path::new(START_SCRIPT),
            start_script::render(profile)?.as_bytes(),
            0o755,
        )?;
        stage::compile_copied(&self.stage.chroot, profile)
    }

    fn write_inside(&self, path: &Path, contents: &[u8], mode: u32) -> Result<()> {
        let outside = self.stage.chroot.outside(path);
        if let Some(parent) = outside.parent() {
            file::make_directory(parent, 0o755)?;
        }
        file::put(&outside, contents, mode)
    }
}
