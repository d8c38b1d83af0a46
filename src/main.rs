//! Words to functions, and an error to words.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use farmctl::cli::{Cli, Verb};
use farmctl::commands::{self, Context};
use farmctl::error::{self, Exit};
use farmctl::layout::Layout;
use farmctl::run;
use farmctl::ui::{Ui, Verbosity};

fn main() -> ExitCode {
    let cli = Cli::parse_from(words(std::env::args_os()));
    let ui = Ui::new(cli.verbosity());
    let level = match (cli.verbosity(), cli.shows_output()) {
        (Verbosity::Verbose, true) => tracing::Level::DEBUG,
        (Verbosity::Verbose, false) => tracing::Level::INFO,
        _ => tracing::Level::ERROR,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_ansi(ui.color())
        .without_time()
        .with_target(false)
        .with_level(false)
        .init();
    // Caches and other reproducible things may be shared between roots.
    let cache = std::env::var_os("FARMCTL_CACHE").map(Into::into);
    let root = std::path::absolute(&cli.root).unwrap_or_else(|_| cli.root.clone());
    let context = Context { ui, layout: Layout::new(root, cache) };
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    context.ui.tell_panics();
    let work = || run::watch_signals().and_then(|()| dispatch(&cli.verb, &context));
    let exit = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => {
            context.ui.error(&error::render(&error));
            error::exit_of(&error)
        }
        // It has been told.
        Err(_) => Exit::Left,
    };
    ExitCode::from(exit as u8)
}

/// `farmctl help VERB` is `farmctl VERB --help`.
fn words(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    if words.get(1).is_some_and(|word| word == "help") {
        words.remove(1);
        words.push("--help".into());
    }
    words
}

fn dispatch(verb: &Verb, context: &Context) -> anyhow::Result<Exit> {
    match verb {
        Verb::Init(args) => commands::init::run(args, context),
        Verb::Bootstrap(args) => commands::bootstrap::run(args, context),
        Verb::Lock(args) => commands::lock::run(args, context),
        Verb::Bake(args) => commands::bake::run(args, context),
        Verb::Sign(args) => commands::sign::run(args, context),
        Verb::Install(args) => commands::install::run(args, context),
        Verb::Start(args) => commands::start::run(args, context),
        Verb::Stop(args) => commands::stop::run(args, context),
        Verb::Restart(args) => commands::restart::run(args, context),
        Verb::Reload(args) => commands::reload::run(args, context),
        Verb::Dev(args) => commands::dev::run(args, context),
        Verb::Upgrade(args) => commands::upgrade::run(args, context),
        Verb::Rollback(args) => commands::rollback::run(args, context),
        Verb::Confirm(args) => commands::confirm::run(args, context),
        Verb::Status(args) => commands::status::run(args, context),
        Verb::History(args) => commands::history::run(args, context),
        Verb::Logs(args) => commands::logs::run(args, context),
        Verb::Shell(args) => commands::shell::run(args, context),
        Verb::List(args) => commands::list::run(args, context),
        Verb::Show(args) => commands::show::run(args, context),
        Verb::Verify(args) => commands::verify::run(args, context),
        Verb::Diff(args) => commands::diff::run(args, context),
        Verb::Sbom(args) => commands::sbom::run(args, context),
        Verb::Audit(args) => commands::audit::run(args, context),
        Verb::Remove(args) => commands::remove::run(args, context),
        Verb::Gc(args) => commands::gc::run(args, context),
        Verb::Doctor(args) => commands::doctor::run(args, context),
        Verb::Tend(args) => commands::tend::run(args, context),
        Verb::Storage(args) => commands::storage::run(args, context),
        Verb::Key(args) => commands::key::run(args, context),
        Verb::Completions(args) => commands::completions::run(args, Cli::command(), context),
        Verb::Manual(args) => commands::manual::run(args, Cli::command(), context),
    }
}
