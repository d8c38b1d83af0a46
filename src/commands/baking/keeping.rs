//! Trees a bake keeps for the next one beside the environment, and what it takes of them.
//!
//! One is kept after the build packages and one after the requirements: [`crate::kept`] says
//! what they depend on. They are named in the environment's record, and go with it, when
//! the environment is changed, and by `farmctl gc --stages`.

use anyhow::{Context as _, Result};

use super::Baking;
use crate::commands;
use crate::kept::{self, Inputs, Kept, Step, Virtualenv};
use crate::layout;
use crate::locked;
use crate::lockfile;
use crate::manifest::Package;
use crate::node::{self, Node, Object, Transaction};
use crate::profile::{self, Profile};
use crate::python::Choice;
use crate::stage::{self, Stage};
use crate::storage::Storage;
use crate::ui::Ui;

/// As many bytes as a tree takes stay free beside it, times this: a bake makes a stage and a
/// tarball, and what is baked is installed.
const SPARE: u64 = 3;
/// And so much of the place, of which this is the denominator.
const RESERVE: u64 = 10;

/// What a bake begins with.
#[derive(Debug, Default)]
pub(in crate::commands) struct Found {
    /// The tree that is kept of the last step whose inputs are as they were.
    pub kept: Option<Kept>,
    /// What is taken of the last bake, and why the rest is not: a line each.
    pub said: Vec<String>,
}

/// Looks what of the last bake is as this one would make it.
///
/// # Errors
/// When the storage cannot be looked at.
pub(in crate::commands) fn find(baking: &Baking) -> Result<Found> {
    let mut found = Found::default();
    let all = &baking.environment.kept;
    if !baking.reuse || all.is_empty() {
        return Ok(found);
    }
    if baking.fetch || matches!(baking.choice, Some(Choice::FetchUv)) {
        found.said.push("installing all anew: uv, or what is locked, has to be fetched".to_owned());
        return Ok(found);
    }
    let there = baking.storage.list()?;
    for step in Step::ALL {
        let Some(kept) = all.iter().find(|kept| kept.step == step) else { continue };
        if !is_wanted(baking, step) {
            continue;
        }
        let is_there = there.iter().any(|volume| volume.name == kept.volume);
        let why = match requirements(baking) {
            _ if !is_there => Some("what was kept of them is gone"),
            Err(why) if step == Step::Requirements => Some(why),
            requirements => {
                let requirements = requirements.ok();
                let wanted = inputs(baking, step, requirements.as_deref(), &kept.before)?;
                kept::difference(kept, &wanted, node::now())
            }
        };
        match why {
            None => found.kept = Some(kept.clone()),
            Some(why) => {
                found.said.push(format!("installing the {} anew: {why}", step.what()));
                break;
            }
        }
    }
    if let Some(kept) = &found.kept {
        let taken: Vec<&str> = Step::ALL
            .into_iter()
            .filter(|step| {
                *step <= kept.step && (*step != Step::Packages || !kept.inputs.packages.is_empty())
            })
            .map(Step::what)
            .collect();
        let taken = taken.join(" and the ");
        found.said.insert(0, format!("taking the {taken} as the last bake installed them"));
    }
    Ok(found)
}

/// The packages a kept tree has, whatever fetching takes besides: the next bake fetches nothing.
fn packages(baking: &Baking) -> Vec<String> {
    let pip = baking.choice.as_ref().filter(|choice| **choice == Choice::Pip);
    stage::build_packages(&baking.source.profile, pip)
}

/// Whether there is anything to install in this step.
fn is_wanted(baking: &Baking, step: Step) -> bool {
    let python = baking.source.profile.python.as_ref();
    match step {
        Step::Packages => !packages(baking).is_empty(),
        Step::Requirements => python.is_some_and(|python| python.requirements.is_some()),
    }
}

/// What the steps up to this one take, with these requirements, in an environment of these
/// packages.
fn inputs(
    baking: &Baking,
    step: Step,
    requirements: Option<&str>,
    before: &[Package],
) -> Result<Inputs> {
    let lock = baking.followed(before)?.lock().map(locked::identity).unwrap_or_default();
    let virtualenv = match step {
        Step::Packages => None,
        Step::Requirements => requirements.and_then(|it| virtualenv(baking, it)),
    };
    Ok(Inputs {
        farmctl: env!("CARGO_PKG_VERSION").to_owned(),
        packages: packages(baking),
        lock,
        virtualenv,
    })
}

/// The requirements with their hashes, if a bake will install these; else why nobody knows.
fn requirements(baking: &Baking) -> Result<String, &'static str> {
    let profile = &baking.source.profile;
    let python = profile.python.as_ref();
    let read = |python: &profile::Python| {
        let text =
            stage::read_requirements(&baking.source.directory, python.requirements.as_ref()?);
        stage::hashed_requirements(&baking.source, python, &text.ok()?).ok()?
    };
    let hashed = python.and_then(read).ok_or("they are not hashed")?;
    check_known(profile, &hashed).map(|()| hashed)
}

/// Says why requirements do not say all that is installed, if they do not.
fn check_known(profile: &Profile, requirements: &str) -> Result<(), &'static str> {
    if !profile.build.before.is_empty() {
        return Err("build.before may change them");
    }
    // What is included from the project stands where it is included.
    let includes = ["-r", "--requirement", "-c", "--constraint"];
    let mut lines = requirements.lines().map(str::trim_start);
    if lines.any(|line| includes.iter().any(|option| line.starts_with(option))) {
        return Err("they include files from elsewhere");
    }
    Ok(())
}

/// What a virtualenv with these requirements takes.
fn virtualenv(baking: &Baking, requirements: &str) -> Option<Virtualenv> {
    let profile = &baking.source.profile;
    let (python, choice) = (profile.python.as_ref()?, baking.choice.as_ref()?);
    let builds = |locked: &lockfile::Python| {
        crate::hash::sha256(lockfile::requirements(&locked.build).as_bytes())
    };
    Some(Virtualenv {
        path: profile.virtualenv(),
        interpreter: python.interpreter.clone(),
        installer: match choice {
            Choice::Pip => "pip".to_owned(),
            Choice::Uv(_) | Choice::FetchUv => "uv".to_owned(),
        },
        requirements: crate::hash::sha256(requirements.as_bytes()),
        builds: locked::python(&baking.source).map(builds).unwrap_or_default(),
    })
}

/// Keeps the tree of a stage as it is after a step, instead of those the last bake kept of it
/// and of later ones. Answers whether it did: what was lent, and the project's files, must be
/// brought to the stage again then. `requirements` are those that were installed, if they are
/// hashed.
///
/// # Errors
/// When it cannot be forked, or the record of the environment not be written.
pub(super) fn keep(
    step: Step,
    requirements: Option<&str>,
    stage: &mut Stage,
    baking: &Baking,
    node: &Node,
    ui: &Ui,
    transaction: &mut Transaction,
) -> Result<bool> {
    let name = &baking.environment.name;
    let Some(mut record) = node.environment(name)? else { return Ok(false) };
    let inputs = inputs(baking, step, requirements, &stage.before)?;
    // One of packages that are not wanted any more goes as well.
    let from = if inputs.packages.is_empty() { Step::Packages } else { step };
    commands::forget_kept(&mut record, from, node, transaction)?;
    let is_known = match step {
        Step::Packages => !inputs.packages.is_empty(),
        Step::Requirements => {
            requirements.is_some_and(|text| check_known(&baking.source.profile, text).is_ok())
        }
    };
    if !is_known {
        return Ok(false);
    }
    let kept = Kept {
        step,
        volume: layout::kept_volume(name, step.word(), transaction.id()),
        inputs,
        before: stage.before.clone(),
        made: node::now(),
    };
    let storage = baking.storage.as_ref();
    if !has_room(storage, &record.volume)? {
        ui.step(format!("not keeping the {} for the next bake: room is scarce", step.what()));
        return Ok(false);
    }
    ui.step(format!("keeping the {} for the next bake", step.what()));
    let volume = Object::Volume { storage: storage.name().to_owned(), name: kept.volume.clone() };
    transaction.intend(volume.clone())?;
    stage
        .fork(storage, &kept.volume, transaction)
        .with_context(|| format!("keeping the {}", step.what()))?;
    record.kept.push(kept);
    node.save_environment(&record)?;
    transaction.release(&volume)?;
    Ok(true)
}

/// Whether a tree that is hardly larger than this volume leaves enough room for everything
/// else. What is mounted in a stage is none of its size.
fn has_room(storage: &dyn Storage, environment: &str) -> Result<bool> {
    let takes = storage.fork_takes(environment)?;
    let usage = storage.usage()?;
    let left = usage.free.saturating_sub(takes);
    let has_metadata =
        usage.metadata_percent.is_none_or(|percent| percent < commands::METADATA_WARNED);
    Ok(has_metadata && left >= takes * SPARE && left >= usage.total / RESERVE)
}
