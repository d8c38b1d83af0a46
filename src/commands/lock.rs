//! `farmctl lock`: resolves the requirements and writes `farmctl.lock` beside the profile.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::Context;
use crate::error::Exit;
use crate::file;
use crate::lockfile::{self, Debian, LockFile, Locked, Python};
use crate::mount;
use crate::node::{Node, Transaction};
use crate::plan::Plan;
use crate::python::{self, Choice};
use crate::release::EnvironmentRecord;
use crate::run;
use crate::source::Source;
use crate::stage::{self, Stage};
use crate::storage;
use crate::undo;

/// Resolve a profile's requirements and write farmctl.lock beside it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farmctl lock profiles/hello")]
pub struct Args {
    /// The profile: its file, or a directory with a profile.toml
    profile: PathBuf,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the requirements cannot be resolved; an existing lock file is then as it was.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    run::require(&crate::chroot::TOOLS)?;
    let source = Source::read(&args.profile)?;
    let name = &source.profile.name;
    let environment = stage::environment(&node, &source)?;
    let choice = match &source.profile.python {
        Some(python) => Some(python::choose(
            python.installer,
            &node.layout().tools(),
            &environment.architecture,
        )?),
        None => None,
    };
    if args.dry_run {
        let mut plan = Plan::new(format!("lock {name}"));
        let storage = storage::named(&environment.storage, &node.site())?;
        plan.commands(
            format!("fork volume {}", environment.volume),
            storage.describe_fork(&environment.volume, "fv-stage-…")?,
        );
        plan.step("resolve the requirements for its Python");
        plan.step(format!("write {}", source.directory.join(lockfile::FILE).display()));
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let _lock = node.lock(&format!("env-{name}"), "lock")?;
    mount::private_namespace()?;
    let python = undo::attempt(&node, "lock", name, |transaction| {
        resolve(&source, &environment, choice.as_ref(), &node, context, transaction)
    })
    .with_context(|| format!("locking {name}"))?;
    let lock = LockFile {
        schema: lockfile::SCHEMA,
        debian: Debian { epoch: environment.epoch, releases: environment.releases.clone() },
        python,
    };
    let path = source.directory.join(lockfile::FILE);
    let text = lock.render()?;
    if file::read_if_there(&path)?.is_some_and(|known| known == text) {
        context.ui.already(format!("{} is up to date", path.display()));
        return Ok(Exit::Done);
    }
    file::publish(&path, text.as_bytes(), 0o644)?;
    let count = lock.python.map_or(0, |python| python.distributions.len());
    context.ui.done(format!("wrote {}: {count} distributions", path.display()));
    Ok(Exit::Done)
}

fn resolve(
    source: &Source,
    environment: &EnvironmentRecord,
    choice: Option<&Choice>,
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<Option<Python>> {
    let (Some(python), Some(choice)) = (&source.profile.python, choice) else { return Ok(None) };
    let ui = &context.ui;
    let storage = storage::named(&environment.storage, &node.site())?;
    ui.step(format!("forking volume {}", environment.volume));
    let mut stage = Stage::open(storage.as_ref(), environment, source, node.layout(), transaction)?;
    stage.install_build_packages(&stage::build_packages(&source.profile, Some(choice)))?;
    for command in &source.profile.build.before {
        ui.step(command);
        stage.run_step(command)?;
    }
    let virtualenv = source.profile.virtualenv();
    let installer = stage::make_virtualenv(&mut stage, python, &virtualenv, choice, node.layout())?;
    let resolved = match stage.requirements(python)? {
        None => None,
        Some((file, text)) => {
            ui.step(format!("resolving {} with {}", file_name(&file), installer.name()));
            let distributions: Vec<Locked> = if lockfile::all_hashed(&text) {
                lockfile::parse_requirements(&text)?
            } else {
                python::explain(installer.resolve(&stage.chroot, &virtualenv, &file))?
            };
            Some(Python { requirements_sha256: crate::hash::hex(text.as_bytes()), distributions })
        }
    };
    stage.close(storage.as_ref())?;
    Ok(resolved)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
