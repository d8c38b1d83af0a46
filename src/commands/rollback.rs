//! `farmctl rollback`: the release before serves again.

use anyhow::{Context as _, Result, bail};

use super::record::Subject;
use super::{Context, Started};
use crate::error::{Exit, refuse};
use crate::history::{self, Change, Outcome};
use crate::plan::Plan;
use crate::profile::{Seconds, When};
use crate::supervise;
use crate::switch::{self, Course, Ending};

/// Switch a running application back to the release before
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  farmctl rollback shop

The same switch as that of farmctl upgrade, to a release that is installed: nothing is unpacked. \
Twice leads forward again; what was cut short, the same finishes. Data is not rolled back: what \
jobs of newer releases did to it stays.")]
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
    let (watch, drain) = (args.watch.duration(), args.drain.duration());
    let ending = Ending {
        node: &node,
        supervisor: supervisor.as_ref(),
        manifest_of: &manifest_of,
        drain,
        say: &say,
    };
    let subject = Subject { context, node: &node, app: &args.name, verb: "rollback" };
    let changes = history::read(node.layout(), &args.name)?;
    if let Some(what) = half_done(&changes, &started.session.version, args) {
        return finish(what, &started, &subject, &ending, args);
    }
    // Of an upgrade that was interrupted, the release it came from.
    let previous = started.app.previous.clone();
    let app = started.app.clone();
    let app = if args.dry_run {
        app
    } else {
        let settle = |say: &dyn Fn(&str)| Ending { say, ..ending }.settle(app);
        subject.record_steps(&history::who(), |_| Outcome::Done, settle)?
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
    for between in history::upgrades_since(&changes, &version) {
        // Of one that is gone nobody knows.
        let Some(between) = node.manifest(&args.name, between)? else { continue };
        for job in switch::upgrade_jobs(&between) {
            let what = format!("what the job {job} of {} did to the data stays", between.version);
            context.ui.warn(what);
        }
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
            ending.go_back(app).with_context(|| format!("rolling back {what}"))
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

/// What the last rollback was to do that has led to what serves now and has not come to its
/// end: the same again finishes it, where another one would lead forward.
fn half_done<'a>(changes: &'a [Change], serving: &str, args: &Args) -> Option<&'a str> {
    let last = history::last_asked(changes)?;
    let is_half_done = last.verb == "rollback"
        && last.result != Outcome::Done
        && last.leads_to() == Some(serving)
        && args.release.as_deref().is_none_or(|release| release == serving);
    is_half_done.then_some(last.what.as_str())
}

/// Finishes a rollback that was cut short after its switch.
fn finish(
    what: &str,
    started: &Started,
    subject: &Subject<'_>,
    ending: &Ending<'_>,
    args: &Args,
) -> Result<Exit> {
    let (ui, name, serving) = (&subject.context.ui, &args.name, &started.session.version);
    if args.dry_run {
        let mut plan = Plan::new(format!("finish the rollback of {name} {what}"));
        plan.step(format!("have {serving} serve, and end what stands by"));
        subject.context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    subject.record(what, || {
        let settled = ending.settle(started.app.clone())?;
        match settled.session {
            Some(session) if session.version != *serving => {
                bail!("rolling back {name} {what}: {} serves again", session.version)
            }
            _ => Ok(()),
        }
    })?;
    ui.done(format!("rolled back {name} {what}"));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_is_half_done_while_what_it_led_to_serves() {
        let change = |result, by: &str| Change {
            began: 100,
            ended: None,
            verb: "rollback".to_owned(),
            what: "from 1.1 to 1.0".to_owned(),
            by: by.to_owned(),
            result,
            error: None,
        };
        let args = |release: Option<&str>| Args {
            name: "shop".to_owned(),
            release: release.map(str::to_owned),
            watch: "1s".parse().expect("it is a time"),
            drain: "1m".parse().expect("it is a time"),
            dry_run: false,
        };
        let tended = change(Outcome::Done, history::TEND);
        let cut_short = [change(Outcome::CutShort, "anna"), tended];
        let what = Some("from 1.1 to 1.0");
        assert_eq!(half_done(&cut_short, "1.0", &args(None)), what);
        assert_eq!(half_done(&cut_short, "1.0", &args(Some("1.0"))), what);
        // Before its switch it is a rollback yet to come, and another release another one.
        assert_eq!(half_done(&cut_short, "1.1", &args(None)), None);
        assert_eq!(half_done(&cut_short, "1.0", &args(Some("1.1"))), None);
        assert_eq!(half_done(&[change(Outcome::Done, "anna")], "1.0", &args(None)), None);
    }
}
