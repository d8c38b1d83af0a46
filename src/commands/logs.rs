//! `farmctl logs`: what an application's processes print.

use std::ops::ControlFlow;

use anyhow::Result;

use super::Context;
use crate::error::Exit;
use crate::supervise::{self, Until};

/// Show what an application's processes print
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farmctl logs hello -f")]
pub struct Args {
    /// The application
    name: String,
    /// Only this process
    process: Option<String>,
    /// Go on showing what is printed, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How many lines of each process
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    lines: usize,
}

/// Carries the verb out.
///
/// # Errors
/// When the application is not installed, or a log cannot be read.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    let app = node.installed(&args.name)?;
    let version =
        app.session.as_ref().map(|session| session.version.clone()).or(app.current.clone());
    let version = version.unwrap_or_default();
    let manifest = super::manifest_of(&node, &app, &version)?;
    let processes = super::chosen_processes(&manifest, args.process.as_deref())?;
    let names: Vec<&str> = processes.iter().map(|process| process.name.as_str()).collect();
    let until = if args.follow { Until::Interrupted } else { Until::Now };
    let mut take = |process: &str, line: &str| {
        let label = if names.len() > 1 { format!("{process} | ") } else { String::new() };
        match context.ui.stream(format!("{label}{line}\n").as_bytes()) {
            Ok(()) => ControlFlow::Continue(()),
            // A reader that went away (`farmctl logs shop | head`) has what it wanted.
            Err(_) => ControlFlow::Break(()),
        }
    };
    supervise::detect(node.layout()).output(&args.name, &names, args.lines, until, &mut take)?;
    Ok(Exit::Done)
}
