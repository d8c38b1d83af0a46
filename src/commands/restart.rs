//! `farmctl restart`: processes stop and start in the same session.

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::error::Exit;
use crate::plan::Plan;
use crate::supervise;

/// Restart an application's processes in the same session
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farmctl restart hello web")]
pub struct Args {
    /// The application
    name: String,
    /// Only this process
    process: Option<String>,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When a process does not get ready again: with its last lines.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let started = super::started(&node, &args.name)?;
    let processes = super::chosen_processes(&started.manifest, args.process.as_deref())?;
    if args.dry_run {
        let mut plan = Plan::new(format!("restart {}", args.name));
        for process in processes {
            plan.step(format!(
                "stop the process {} (SIG{}) and start it",
                process.name,
                process.stop.signal.name()
            ));
        }
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let _lock = super::lock(&node, &args.name, "restart")?;
    let started = super::started(&node, &args.name)?;
    let processes = super::chosen_processes(&started.manifest, args.process.as_deref())?;
    let supervisor = supervise::detect(node.layout());
    let names: Vec<&str> = processes.iter().map(|process| process.name.as_str()).collect();
    let subject = Subject { context, node: &node, app: &args.name, verb: "restart" };
    subject.record(&names.join(" "), || {
        processes.into_iter().try_for_each(|process| {
            context.ui.step(format!("restarting the process {}", process.name));
            started
                .served(&node, supervisor.as_ref())
                .restart(process)
                .with_context(|| format!("restarting {}", args.name))
        })
    })?;
    context.ui.done(format!("restarted {}", args.name));
    Ok(Exit::Done)
}
