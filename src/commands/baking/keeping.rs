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
        let why = "what installs them, or they themselves, must be fetched";
        found.said.push(format!("installing the requirements anew: {why}"));
        return Ok(found);
    }
    let there = baking.storage.list()?;
    for step in Step::ALL {
        let Some(kept) = all.iter().find(|kept| kept.step == step) else { continue };
        let what = step.what();
        let why = if there.iter().any(|volume| volume.name == kept.volume) {
            let wanted = inputs(baking, step, &kept.before)?;
            kept::difference(kept, &wanted, node::now())
        } else {
            Some("what was kept of them is gone")
        };
        match why {
            None => found.kept = Some(kept.clone()),
            Some(why) => {
                found.said.push(format!("installing the {what} anew: {why}"));
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

/// What the steps up to this one take, in an environment of these packages.
fn inputs(baking: &Baking, step: Step, before: &[Package]) -> Result<Inputs> {
    let lock = baking.followed(before)?.lock().map(locked::identity).unwrap_or_default();
    let virtualenv = match step {
        Step::Packages => None,
        Step::Requirements => virtualenv(baking),
    };
    // Not what only fetching takes: the next bake has it then.
    let pip = baking.choice.as_ref().filter(|choice| **choice == Choice::Pip);
    Ok(Inputs {
        farmctl: env!("CARGO_PKG_VERSION").to_owned(),
        packages: stage::build_packages(&baking.source.profile, pip),
        lock,
        virtualenv,
    })
}

/// What a virtualenv with the requirements takes, if that is known before there is one: the
/// steps of `build.before` may change all, and what is not hashed is whatever the index has.
fn virtualenv(baking: &Baking) -> Option<Virtualenv> {
    let profile = &baking.source.profile;
    let (python, choice) = (profile.python.as_ref()?, baking.choice.as_ref()?);
    if !profile.build.before.is_empty() {
        return None;
    }
    let file = python.requirements.as_ref()?;
    let text = stage::read_requirements(&baking.source.directory, file).ok()?;
    let hashed = stage::hashed_requirements(&baking.source, python, &text).ok()??;
    let locked = locked::python(&baking.source);
    let builds =
        || crate::hash::hex(lockfile::requirements(locked.map_or(&[], |it| &it.build)).as_bytes());
    Some(Virtualenv {
        path: profile.virtualenv(),
        interpreter: python.interpreter.clone(),
        installer: match choice {
            Choice::Pip => "pip".to_owned(),
            Choice::Uv(_) | Choice::FetchUv => "uv".to_owned(),
        },
        requirements: crate::hash::hex(hashed.as_bytes()),
        builds: if baking.builds_locked() || baking.strict { builds() } else { String::new() },
    })
}

/// Keeps the tree of a stage as it is after a step, instead of those the last bake kept of it
/// and of later ones. Answers whether it did: what was lent, and the project's files, must be
/// brought to the stage again then.
///
/// # Errors
/// When it cannot be forked, or the record of the environment not be written.
pub(super) fn keep(
    step: Step,
    stage: &mut Stage,
    baking: &Baking,
    node: &Node,
    ui: &Ui,
    transaction: &mut Transaction,
) -> Result<bool> {
    let name = &baking.environment.name;
    let Some(mut record) = node.environment(name)? else { return Ok(false) };
    commands::forget_kept(&mut record, step, node, transaction)?;
    let inputs = inputs(baking, step, &stage.before)?;
    let is_worth_it = match step {
        Step::Packages => !inputs.packages.is_empty(),
        Step::Requirements => inputs.virtualenv.is_some(),
    };
    if !is_worth_it {
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
    if !has_room(storage, &stage.volume)? {
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

/// Whether a fork of the volume leaves enough room for everything else.
fn has_room(storage: &dyn Storage, volume: &str) -> Result<bool> {
    let takes = storage.fork_takes(volume)?;
    let usage = storage.usage()?;
    let left = usage.free.saturating_sub(takes);
    Ok(left >= takes * SPARE && left >= usage.total / RESERVE)
}
