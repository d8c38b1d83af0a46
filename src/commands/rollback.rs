//! `farmctl rollback`: the release before serves again.

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::error::{Exit, refuse};
use crate::history::{self, Outcome};
use crate::plan::Plan;
use crate::profile::{Seconds, When};
use crate::supervise;
use crate::switch::{self, Course, Ending};

/// Switch a running application back to the release before
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  farmctl rollback shop\n\nThe same switch as that of farmctl upgrade, to a release that is installed:\nnothing is unpacked. Twice leads forward again. Data is not rolled back: what\njobs of the newer release did to it stays."
)]
pub struct Args {
    /// The application
    name: String,
    /// Version to go back to, instead of the one that served before
    release: Option<String>,
    /// How long the release is watched
    #[arg(long, value_name = "TIME", default_value = "1s")]
    watch: Seconds,
    /// How long the last requests to the other release are waited for
    #[arg(long, value_name = "TIME", default_value = "1m")]
    drain: Seconds,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When there is no release to go back to, or it does not get ready: the one that serves
/// does so still.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    super::started(&node, &args.name)?;
    let _lock = super::take_over_unless(args.dry_run, &node, &args.name, "rollback", context)?;
    let started = super::started(&node, &args.name)?;
    let supervisor = supervise::detect(node.layout());
    let say = |text: &str| context.ui.step(text);
    let manifest_of = |version: &str| super::manifest_of(&node, &started.app, version);
    let subject = Subject { context, node: &node, app: &args.name, verb: "rollback" };
    // Of an upgrade that was interrupted, the release it came from.
    let previous = started.app.previous.clone();
    let (watch, drain) = (args.watch.duration(), args.drain.duration());
    let app = if args.dry_run {
        started.app.clone()
    } else {
        let app = started.app.clone();
        subject.record_steps(
            &history::who(),
            |_| Outcome::Done,
            |say| {
                let (node, supervisor) = (&node, supervisor.as_ref());
                Ending { node, supervisor, manifest_of: &manifest_of, drain, say }.settle(app)
            },
        )?
    };
    let serving = app.session.as_ref().map(|session| session.version.clone()).unwrap_or_default();
    let Some(wanted) = args.release.clone().or(previous) else {
        return refuse(
            format_args!("no other release of {} has served here", args.name),
            format!("farmctl upgrade {} RELEASE switches to another one", args.name),
        );
    };
    let version = super::installed_version(&app, Some(&wanted))?;
    let what = format!("{} from {serving} to {version}", args.name);
    if serving == version {
        context.ui.already(format!("{} {version} serves already", args.name));
        return Ok(Exit::Done);
    }
    // Of an upgrade that waits to be confirmed, the session before still runs.
    let standing = app.confirm_by.and_then(|_| app.standby.last().cloned());
    if let Some(standing) = standing.as_ref().filter(|standing| standing.version != version) {
        return refuse(
            format_args!("{} {serving} waits to be confirmed", args.name),
            format!(
                "farmctl rollback {name} leads back to {}; farmctl confirm {name} keeps {serving}",
                standing.version,
                name = args.name
            ),
        );
    }
    let (new, old) = (manifest_of(&version)?, manifest_of(&serving)?);
    for job in switch::upgrade_jobs(&old) {
        context.ui.warn(format!("what the job {job} of {serving} did to the data stays"));
    }
    if args.dry_run {
        let mut plan = Plan::new(format!("roll back {what}"));
        match &standing {
            Some(session) => plan.step(format!("take session {}, which stands by", session.name)),
            None => {
                plan.step("begin a session of it and start its processes, beside those that serve")
            }
        };
        plan.step("lead requests to it: one rename(2)")
            .step(format!("end the session of {serving} when its last request is done"));
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let course = Course {
        node: &node,
        supervisor: supervisor.as_ref(),
        moments: &[When::Start],
        watch,
        drain,
        confirm: None,
    };
    if standing.is_some() {
        subject.record(&format!("from {serving} to {version}"), || {
            let (node, supervisor) = (&node, supervisor.as_ref());
            Ending { node, supervisor, manifest_of: &manifest_of, drain, say: &say }
                .go_back(app)
                .with_context(|| format!("rolling back {what}"))
        })?;
        context.ui.done(format!("rolled back {what}"));
        return Ok(Exit::Done);
    }
    subject.record(&format!("from {serving} to {version}"), || {
        switch::to_release(&app, &new, &old, &course, "rollback", &say)
            .with_context(|| format!("rolling back {what}"))
    })?;
    context.ui.done(format!("rolled back {what}"));
    Ok(Exit::Done)
}
