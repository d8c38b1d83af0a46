//! `farmctl completions`: what a shell needs to complete farmctl's words.

use anyhow::{Context as _, Result};
use clap_complete::Shell;

use super::Context;
use crate::error::Exit;

/// Print the script with which a shell completes farmctl's verbs and options
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl completions bash > /etc/bash_completion.d/farmctl\n  farmctl completions zsh > /usr/local/share/zsh/site-functions/_farmctl\n  farmctl completions fish > /etc/fish/completions/farmctl.fish"
)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Carries the verb out; `command` is the command line that is completed.
///
/// # Errors
/// When standard output cannot be written to.
pub fn run(args: &Args, mut command: clap::Command, context: &Context) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "farmctl", &mut script);
    context.ui.stream(&script).context("printing the script")?;
    Ok(Exit::Done)
}
