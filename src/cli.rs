//! The command line: words in, a verb with its arguments out.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};

use crate::commands;
use crate::ui::Verbosity;

/// Builds, installs and runs web applications in schroot environments on Debian machines
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 80,
    disable_help_subcommand = true,
    after_help = "\
From nothing to a served application:
  farmctl bootstrap profiles/hello
  farmctl bake profiles/hello
  farmctl install hello_1.0.0_amd64.tar.xz
  farmctl start hello

Exit status: 0 done or already so, 1 failed and nothing left behind, 2 usage, 3 looked and it is \
not right, 4 failed and something is left, 130 interrupted."
)]
pub struct Cli {
    /// Keep all of farmctl's own files beneath this directory
    #[arg(long, global = true, value_name = "DIR", default_value = "/", display_order = 900)]
    pub root: PathBuf,
    /// Show every external command; twice: and what it prints
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 901)]
    verbose: u8,
    /// Show errors only
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 902)]
    quiet: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

impl Cli {
    /// How much is said.
    #[must_use]
    pub fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, _) => Verbosity::Verbose,
        }
    }

    /// Whether what external commands print is shown as well.
    #[must_use]
    pub fn shows_output(&self) -> bool {
        self.verbose > 1
    }
}

/// The verbs.
#[expect(missing_docs, reason = "each is documented by its arguments")]
#[derive(Debug, Subcommand)]
pub enum Verb {
    Init(commands::init::Args),
    Bootstrap(commands::bootstrap::Args),
    Lock(commands::lock::Args),
    Bake(commands::bake::Args),
    Sign(commands::sign::Args),
    Install(commands::install::Args),
    Start(commands::start::Args),
    Stop(commands::stop::Args),
    Restart(commands::restart::Args),
    Reload(commands::reload::Args),
    Dev(commands::dev::Args),
    Upgrade(commands::upgrade::Args),
    Rollback(commands::rollback::Args),
    Confirm(commands::confirm::Args),
    Status(commands::status::Args),
    History(commands::history::Args),
    Logs(commands::logs::Args),
    Shell(commands::shell::Args),
    List(commands::list::Args),
    Show(commands::show::Args),
    Verify(commands::verify::Args),
    Diff(commands::diff::Args),
    Sbom(commands::sbom::Args),
    Audit(commands::audit::Args),
    Remove(commands::remove::Args),
    Gc(commands::gc::Args),
    Doctor(commands::doctor::Args),
    Tend(commands::tend::Args),
    Storage(commands::storage::Args),
    Key(commands::key::Args),
    Completions(commands::completions::Args),
    Manual(commands::manual::Args),
}
