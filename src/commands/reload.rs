//! `farmctl reload`: the running servers take up new code without losing a request.

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::error::Exit;
use crate::manifest::Manifest;
use crate::plan::Plan;
use crate::profile::{Process, Reload};
use crate::serve;
use crate::supervise;

/// Let an application's processes take up code changed in the session
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  farmctl reload hello

A reload never changes the release: it makes servers read again what lies in their session. New \
code comes with a new tarball, or with farmctl shell.")]
pub struct Args {
    /// The application
    name: String,
    /// Only this process
    process: Option<String>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the new code does not pass its check (the old keeps running), or does not answer.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let started = super::started(&node, &args.name)?;
    let processes = super::chosen_processes(&started.manifest, args.process.as_deref())?;
    if args.dry_run {
        let mut plan = Plan::new(format!("reload {}", args.name));
        for process in processes {
            if let Some(check) = serve::check_call(process, &started.session.name) {
                let what = format!("check the new code of {}", process.name);
                plan.commands(what, vec![check.display()]);
            }
            let name = &process.name;
            let how = match &process.reload {
                Reload::Restart => format!("restart the process {name}"),
                Reload::Rolling => format!("drain, restart and admit the process {name}"),
                Reload::Replace => format!(
                    "start another process {name}, and stop the one that runs when it is ready"
                ),
                Reload::Command => format!("run the reload-command of the process {name}"),
                Reload::Signal(signal) => {
                    format!("send SIG{} to the process {name}", signal.name())
                }
            };
            let lost =
                if loses(process, &started.manifest) { ": meanwhile nobody answers" } else { "" };
            plan.step(format!("{how}{lost}"));
        }
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let _lock = super::lock(&node, &args.name, "reload")?;
    let started = super::started(&node, &args.name)?;
    let processes = super::chosen_processes(&started.manifest, args.process.as_deref())?;
    let supervisor = supervise::detect(node.layout());
    let names: Vec<&str> = processes.iter().map(|process| process.name.as_str()).collect();
    let subject = Subject { context, node: &node, app: &args.name, verb: "reload" };
    let done = subject.record(&names.join(" "), || {
        let mut done = Vec::new();
        for process in processes {
            context.ui.step(format!("reloading the process {}", process.name));
            let reloaded = started
                .served(&node, supervisor.as_ref())
                .reload(process)
                .with_context(|| format!("reloading {}", args.name))?;
            context.ui.step(format!(
                "{} {}: workers {} → {}",
                reloaded.process,
                match reloaded.by {
                    Reload::Restart => "restarted".to_owned(),
                    Reload::Rolling => "drained, restarted and admitted".to_owned(),
                    Reload::Replace => "was replaced by another".to_owned(),
                    Reload::Command => "reloaded by its command".to_owned(),
                    Reload::Signal(signal) => format!("got SIG{}", signal.name()),
                },
                pids(&reloaded.before),
                pids(&reloaded.after)
            ));
            if loses(process, &started.manifest) {
                context.ui.warn(format!(
                    "until {} was back nobody answered: farmctl upgrade loses no request, and neither \
                     does a reload if its server knows a signal or command for that (reload in \
                     [[process]])",
                    process.name
                ));
            }
            done.push(reloaded);
        }
        Ok(done)
    })?;
    if args.json {
        context.ui.json(&done);
    }
    context.ui.done(format!("reloaded {}", args.name));
    Ok(Exit::Done)
}

/// Whether requests are lost while a process is reloaded.
fn loses(process: &Process, manifest: &Manifest) -> bool {
    process.reload == Reload::Restart && manifest.profile.front_process() == Some(process)
}

fn pids(pids: &[u32]) -> String {
    if pids.is_empty() {
        return "none".to_owned();
    }
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
