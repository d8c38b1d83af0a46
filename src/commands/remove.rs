//! `farmctl remove`: a release, an application or an environment goes; data stays.

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::account;
use crate::error::{Exit, refuse};
use crate::file;
use crate::front;
use crate::node::{Node, Object, Transaction};
use crate::plan::Plan;
use crate::release::{App, Release, Session};
use crate::undo;

/// Remove an application, one of its releases, or an environment
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl remove hello --release 1.0.0\n  farmctl remove hello\n  farmctl remove --environment hello\n\nData directories, secrets, logs and the history \
                  stay; --data removes them as well, except what is in the journal."
)]
pub struct Args {
    /// The application, or with --environment the environment
    name: String,
    /// Only this release
    #[arg(long, value_name = "VERSION", conflicts_with = "environment")]
    release: Option<String>,
    /// The bootstrapped environment of this name instead
    #[arg(long)]
    environment: bool,
    /// Also the application's data directories, secrets, logs, history and account
    #[arg(long, conflicts_with_all = ["environment", "release"])]
    data: bool,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the application runs, or something cannot be removed.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    let subject = if args.environment { format!("env-{}", args.name) } else { args.name.clone() };
    let _lock = if args.dry_run { None } else { Some(super::lock(&node, &subject, "remove")?) };
    if args.environment {
        return remove_environment(args, &node, context);
    }
    let Some(app) = node.app(&args.name)? else {
        return remove_rest(args, &node, context);
    };
    let releases: Vec<&Release> = match &args.release {
        None => app.releases.iter().collect(),
        Some(version) => match app.release(version) {
            Some(release) => vec![release],
            None => {
                context.ui.already(format!("{} has no release {version}", app.name));
                return Ok(Exit::Done);
            }
        },
    };
    for session in app.sessions() {
        let needed = session.needs().find(|it| releases.iter().any(|other| other.version == **it));
        if let Some(version) = needed {
            return refuse(
                format_args!("{} {version} is running", app.name),
                ending(&app, session),
            );
        }
    }
    let mut objects: Vec<Object> = releases
        .iter()
        .flat_map(|release| Object::of_release(&app, release, node.layout()))
        .collect();
    let whole = releases.len() == app.releases.len();
    if whole {
        objects.extend(rest_of(args, &app.name, &node)?);
        if front::has_vhost(&app.name) {
            objects.push(Object::Front { app: app.name.clone() });
        }
    }
    let what = match &args.release {
        Some(version) => format!("{} {version}", app.name),
        None => app.name.clone(),
    };
    if args.dry_run {
        return show(&format!("remove {what}"), &objects, context);
    }
    let remove = || {
        let transaction = begin(&node, "remove", &app.name, objects)?;
        // Forget in state, then delete: state never names what does not exist.
        if whole {
            node.forget_app(&app.name)?;
        } else {
            let versions = releases.iter().map(|release| release.version.clone());
            let left = versions.fold(app.clone(), |app, version| app.removed(&version));
            node.save_app(&left)?;
        }
        undo::remove_all(&node, transaction, &|object| {
            context.ui.step(format!("removing {}", object.named()));
        })
        .with_context(|| format!("removing {what}"))
    };
    if args.data {
        // With its history.
        remove()?;
    } else {
        let subject = Subject { context, node: &node, app: &app.name, verb: "remove" };
        let versions: Vec<&str> = releases.iter().map(|it| it.version.as_str()).collect();
        subject.record(&versions.join(" "), remove)?;
    }
    context.ui.done(format!("removed {what}"));
    Ok(Exit::Done)
}

/// What is typed so that a session of the application ends.
fn ending(app: &App, session: &Session) -> String {
    let name = &app.name;
    let is_it = |other: &Session| other.name == session.name;
    if app.preview.as_ref().is_some_and(|preview| is_it(&preview.session)) {
        return format!("farmctl stop {name} --preview ends what is looked at");
    }
    match (app.standby.iter().any(is_it), app.confirm_by) {
        (false, _) => format!("farmctl stop {name}"),
        (true, Some(_)) => format!("it stands by until farmctl confirm {name}"),
        (true, None) => "it stands by until farmctl tend has ended it".to_owned(),
    }
}

fn begin(node: &Node, verb: &str, subject: &str, objects: Vec<Object>) -> Result<Transaction> {
    let mut transaction = node.begin(verb, subject)?;
    // Removed newest first: the volume goes after what needs it.
    for object in objects {
        transaction.intend(object)?;
    }
    Ok(transaction)
}

fn show(title: &str, objects: &[Object], context: &Context) -> Result<Exit> {
    let mut plan = Plan::new(title);
    for object in objects.iter().rev() {
        plan.step(format!("remove {}", object.named()));
    }
    context.show_plan(&plan);
    Ok(Exit::Done)
}

/// What belongs to the application as a whole. The account stays as long as files of
/// its data belong to it.
fn rest_of(args: &Args, app: &str, node: &Node) -> Result<Vec<Object>> {
    let layout = node.layout();
    let has_data = !file::names_in(&layout.app_data(app))?.is_empty();
    let mut objects = Vec::new();
    if args.data || !has_data {
        if account::find(app)?.is_some() {
            objects.push(Object::Account { app: app.to_owned() });
        }
        objects.push(Object::Path { path: layout.app_data(app) });
    }
    if args.data {
        objects.push(Object::Path { path: layout.secrets(app) });
        objects.push(Object::Path { path: layout.app_logs(app) });
        for path in front::own_certificate(layout, app) {
            objects.push(Object::Path { path });
        }
        objects.push(Object::Path { path: layout.history(app) });
        objects.push(Object::Path { path: layout.older_history(app) });
        objects.push(Object::Requests { app: app.to_owned() });
    }
    Ok(objects)
}

/// `--data` for an application that is no longer installed.
fn remove_rest(args: &Args, node: &Node, context: &Context) -> Result<Exit> {
    let objects = if args.data { rest_of(args, &args.name, node)? } else { Vec::new() };
    let there = |object: &Object| match object {
        Object::Path { path } => path.exists(),
        Object::Requests { .. } => false,
        _ => true,
    };
    if !objects.iter().any(there) {
        context.ui.already(format!("{} is not installed", args.name));
        return Ok(Exit::Done);
    }
    if args.dry_run {
        return show(&format!("remove what is left of {}", args.name), &objects, context);
    }
    let transaction = begin(node, "remove", &args.name, objects)?;
    undo::remove_all(node, transaction, &|object| {
        context.ui.step(format!("removing {}", object.named()));
    })?;
    context.ui.done(format!("removed the data of {}", args.name));
    Ok(Exit::Done)
}

fn remove_environment(args: &Args, node: &Node, context: &Context) -> Result<Exit> {
    let Some(record) = node.environment(&args.name)? else {
        context.ui.already(format!("there is no environment {}", args.name));
        return Ok(Exit::Done);
    };
    let objects = Object::of_environment(&record);
    if args.dry_run {
        return show(&format!("remove environment {}", record.name), &objects, context);
    }
    let transaction = begin(node, "remove", &format!("env-{}", record.name), objects)?;
    node.forget_environment(&record.name)?;
    undo::remove_all(node, transaction, &|object| {
        context.ui.step(format!("removing {}", object.named()));
    })
    .with_context(|| format!("removing environment {}", record.name))?;
    context.ui.done(format!("removed environment {}", record.name));
    Ok(Exit::Done)
}
