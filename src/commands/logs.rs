//! `farmctl logs`: what an application's processes print.

use std::time::Duration;

use anyhow::Result;

use super::Context;
use crate::error::Exit;
use crate::log::{self, Follower};
use crate::run;

/// How long `-f` pauses between two looks at the logs.
const PAUSE: Duration = Duration::from_millis(200);

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
    let many = processes.len() > 1;
    let mut followers = Vec::new();
    for process in processes {
        let path = node.layout().process_log(&args.name, &process.name);
        followers.push((process.name.clone(), Follower::at_end(&path)?));
        for line in log::last_lines(&path, args.lines)? {
            context.ui.answer(if many { format!("{} | {line}", process.name) } else { line });
        }
    }
    if !args.follow {
        return Ok(Exit::Done);
    }
    loop {
        for (name, follower) in &mut followers {
            let bytes = follower.read()?;
            let shown = if many { label(name, &bytes) } else { bytes };
            if context.ui.stream(&shown).is_err() {
                return Ok(Exit::Done);
            }
        }
        run::check_interrupted()?;
        run::rest(PAUSE);
    }
}

fn label(name: &str, bytes: &[u8]) -> Vec<u8> {
    let lines = String::from_utf8_lossy(bytes);
    lines.lines().map(|line| format!("{name} | {line}\n")).collect::<String>().into_bytes()
}
