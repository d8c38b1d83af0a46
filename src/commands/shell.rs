//! `farmctl shell`: enters a session, or an environment's source.

use anyhow::Result;

use super::Context;
use crate::error::{Exit, refuse};
use crate::layout;
use crate::run;
use crate::schroot;

/// Enter an application's session, or with --source an environment
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl shell hello\n  farmctl shell hello --as-root -- ps aux\n  farmctl shell hello --source -- apt list --installed\n\nChanges in a session last until farmctl stop; changes in an environment's source\nlast, and go into every later bake."
)]
pub struct Args {
    /// The application, or with --source the environment
    name: String,
    /// As root instead of the application's user
    #[arg(long)]
    as_root: bool,
    /// Enter the environment bakes are made from, as root
    #[arg(long)]
    source: bool,
    /// A command instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Carries the verb out; exits with the command's status if that is 0, else 1.
///
/// # Errors
/// When there is no such session or environment.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    run::require(&schroot::TOOLS)?;
    let default = ["/bin/bash".to_owned(), "-l".to_owned()];
    let command: Vec<&str> = if args.command.is_empty() { &default[..] } else { &args.command[..] }
        .iter()
        .map(String::as_str)
        .collect();
    let call = if args.source {
        if node.environment(&args.name)?.is_none() {
            return refuse(
                format_args!("there is no environment {}", args.name),
                "farmctl list shows what there is",
            );
        }
        schroot::enter_source(&layout::environment_chroot(&args.name), &command)
    } else {
        let started = super::started(&node, &args.name)?;
        let user = &started.manifest.profile.environment.user;
        if args.as_root {
            schroot::enter(&started.session.name, "root", &command)
        } else {
            schroot::enter_as(&started.session.name, user, &command)
        }
    };
    let status = call.interactive()?;
    Ok(if status == 0 { Exit::Done } else { Exit::Failed })
}
