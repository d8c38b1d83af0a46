//! `farmctl init`: a commented profile for the project in a directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::{Exit, Mark as _, refuse};
use crate::file;
use crate::project::{self, Draft, REQUIREMENTS, Wish};
use crate::run::quote;
use crate::source;

/// The profile's file, which the other verbs look for in a directory.
const PROFILE: &str = "profile.toml";

/// What is said of a DIR that is none.
const DIRECTORY: &str = "DIR is the directory of a project";

/// Write a commented profile for the project in a directory
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl init\n  farmctl init /srv/src/shop --dry-run\n  farmctl init shop --app shop.web:create_app --suite trixie\n\nIt reads the project's files and runs none of them."
)]
pub struct Args {
    /// The project's directory
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// The application: MODULE:CALLABLE, Django's settings module, or the file
    #[arg(long)]
    app: Option<String>,
    /// Name of the application, instead of the project's
    #[arg(long)]
    name: Option<String>,
    /// Debian suite, instead of the first whose Python the project runs on
    #[arg(long)]
    suite: Option<String>,
    /// Where nginx listens: PORT or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Write over a profile that is there
    #[arg(long)]
    force: bool,
    /// Print what was assumed and what comes next as JSON
    #[arg(long)]
    json: bool,
    /// Print the profile instead of writing it
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Written {
    /// Name of the application.
    name: String,
    /// The files, the profile first.
    files: Vec<PathBuf>,
    /// Their texts, with `--dry-run`, which writes none of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    texts: Option<Vec<String>>,
    /// What was assumed about the project, a line each.
    assumptions: Vec<String>,
    /// The commands to type next, when the files are there.
    next: Vec<String>,
}

/// Carries the verb out; prints the commands to type next.
///
/// # Errors
/// When nothing is recognised in the directory, it has a profile already, or an option has no
/// place in one.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let wish = Wish {
        app: args.app.clone(),
        suite: args.suite.clone(),
        name: args.name.clone(),
        listen: args.listen.clone(),
    };
    wish.check()?;
    let directory = &args.directory;
    let whole = directory
        .canonicalize()
        .with_context(|| format!("finding the directory {}", directory.display()))
        .hint(DIRECTORY)
        .exit(Exit::Usage)?;
    if !whole.is_dir() {
        let message = format!("{} is not a directory", directory.display());
        return refuse(message, DIRECTORY).exit(Exit::Usage);
    }
    let survey = source::survey(&whole)?;
    let name = whole.file_name().map(|name| name.to_string_lossy().into_owned());
    let draft = project::draft(&survey, &name.unwrap_or_default(), &wish)
        .with_context(|| format!("looking at {}", directory.display()))?;
    let files = files(&draft, directory);
    for assumption in &draft.assumptions {
        context.ui.step(assumption);
    }
    let shown = quote(&directory.to_string_lossy());
    let texts = args.dry_run.then(|| files.iter().map(|(_, text)| text.clone()).collect());
    let Draft { name, assumptions, .. } = draft;
    let written = Written {
        name,
        files: files.iter().map(|(path, _)| path.clone()).collect(),
        texts,
        assumptions,
        next: ["bootstrap", "lock", "bake"].map(|verb| format!("farmctl {verb} {shown}")).to_vec(),
    };
    if args.dry_run {
        if args.json {
            context.ui.json(&written);
            return Ok(Exit::Done);
        }
        let texts: Vec<String> = files
            .iter()
            .map(|(path, text)| format!("# {}\n{}", path.display(), text.trim_end()))
            .collect();
        context.ui.answer(texts.join("\n\n"));
        return Ok(Exit::Done);
    }
    // All of them, before the first is written.
    for (path, text) in &files {
        if !args.force && is_anothers(path, text) {
            return refuse(
                format_args!("there is a {} already", path.display()),
                format!("farmctl init {shown} --force writes over it"),
            );
        }
    }
    // The profile last: with it there, all is there.
    for (path, text) in files.iter().rev() {
        if args.force {
            file::publish(path, text.as_bytes(), 0o644)?;
        } else if path.symlink_metadata().is_err() {
            file::create(path, text.as_bytes(), 0o644)?;
        }
    }
    let names: Vec<String> = files.iter().map(|(path, _)| path.display().to_string()).collect();
    context.ui.done(format!("wrote {}", names.join(" and ")));
    if args.json {
        context.ui.json(&written);
    } else {
        context.ui.answer(written.next.join("\n"));
    }
    Ok(Exit::Done)
}

/// Whether something is there that is not what a killed `init` wrote before the profile.
fn is_anothers(path: &Path, text: &str) -> bool {
    let is_same = || fs::read(path).is_ok_and(|there| there == text.as_bytes());
    path.symlink_metadata().is_ok() && (path.ends_with(PROFILE) || !is_same())
}

/// Paths and texts of what is written, the profile first.
fn files(draft: &Draft, directory: &Path) -> Vec<(PathBuf, String)> {
    let mut files = vec![(directory.join(PROFILE), draft.profile.clone())];
    files.extend(draft.requirements.clone().map(|text| (directory.join(REQUIREMENTS), text)));
    files
}
