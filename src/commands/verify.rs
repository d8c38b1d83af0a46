//! `farmctl verify`: is a tarball whole, is an installed release what was installed?

use std::path::Path;

use anyhow::{Context as _, Result};

use super::Context;
use crate::error::{Exit, Mark as _};
use crate::file;
use crate::manifest::{FileIndex, Owner};
use crate::mount;
use crate::run;
use crate::storage::{self, Access};
use crate::tarball::{self, Archive, Difference};
use crate::trust::{self, Standing};

/// How many differences are printed before the rest is counted.
const SHOWN: usize = 50;

/// Check a node tarball, or an installed release against its file index
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl verify hello_1.0.0_amd64.tar.xz\n  farmctl verify hello\n\nExits 3 when it is not right."
)]
pub struct Args {
    /// A node tarball, or the name of an installed application
    what: String,
    /// The release of the application instead of the current one
    #[arg(long, value_name = "VERSION")]
    release: Option<String>,
    /// Print the differences as JSON
    #[arg(long)]
    json: bool,
}

/// Carries the verb out.
///
/// # Errors
/// With [`Exit::NotRight`] when the tarball is damaged; when there is nothing to look at.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let path = Path::new(&args.what);
    if path.is_file() || args.what.contains(['/', '_']) {
        return verify_file(path, context);
    }
    verify_release(args, context)
}

fn verify_file(path: &Path, context: &Context) -> Result<Exit> {
    if !path.exists() {
        return super::open_archive(path).map(|_| Exit::Done);
    }
    let check = || -> Result<(String, Standing)> {
        let keys = trust::keys(&context.layout)?;
        let archive = Archive::open(path)?;
        let standing = trust::require(&keys, archive.manifest_bytes(), archive.signature())
            .with_context(|| format!("verifying {}", path.display()))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let meter = context.ui.meter("verifying");
        archive.verify(threads, &|done, all| {
            meter.set(done, all);
            run::check_interrupted()
        })?;
        Ok((archive.identity().to_owned(), standing))
    };
    let checked = check();
    run::check_interrupted()?;
    let (identity, standing) = checked.hint(super::DAMAGED).exit(Exit::NotRight)?;
    let signed = match standing {
        Standing::Unsigned => String::new(),
        standing => format!(" and {standing}"),
    };
    context.ui.done(format!("{} is whole{signed}: sha256 {identity}", path.display()));
    Ok(Exit::Done)
}

fn verify_release(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.what)?;
    let node = context.node()?;
    let app = node.installed(&args.what)?;
    let version = super::installed_version(&app, args.release.as_deref())?;
    let release = app.release(&version).context("looking for the release")?;
    let manifest = super::manifest_of(&node, &app, &version)?;
    let path = node.layout().release(&app.name, &version).join("files.json");
    let text =
        file::read_if_there(&path)?.with_context(|| format!("{} is missing", path.display()))?;
    let index: FileIndex =
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    mount::private_namespace()?;
    let tree =
        storage::named(&release.storage, &node.site())?.open(&release.volume, Access::ReadOnly)?;
    let meter = context.ui.meter("comparing");
    let differences =
        tarball::compare(tree.path(), &index, &manifest.capabilities, &|done, all| {
            meter.set(done, all);
            run::check_interrupted()
        })?;
    drop(meter);
    tree.close()?;
    if args.json {
        context.ui.json(&differences);
    } else {
        for difference in differences.iter().take(SHOWN) {
            context.ui.answer(describe(difference));
        }
        if differences.len() > SHOWN {
            context.ui.answer(format!("… and {} more", differences.len() - SHOWN));
        }
    }
    if differences.is_empty() {
        context.ui.done(format!(
            "{} {version} is as installed: {} paths",
            app.name,
            index.files.len()
        ));
        return Ok(Exit::Done);
    }
    context.ui.warn(format!(
        "{} {version} differs from what was installed in {} paths",
        app.name,
        differences.len()
    ));
    Ok(Exit::NotRight)
}

fn describe(difference: &Difference) -> String {
    let of = |owner: &Owner| match owner {
        Owner::Package(name) => format!(" (package {name})"),
        Owner::Distribution(name) => format!(" (distribution {name})"),
        Owner::Project => " (project)".to_owned(),
        Owner::Generated => String::new(),
    };
    let line = crate::ui::one_line;
    match difference {
        Difference::Missing { path, owner } => format!("missing     /{}{}", line(path), of(owner)),
        Difference::Unexpected { path } => format!("unexpected  /{}", line(path)),
        Difference::Changed { path, what, owner } => {
            format!("changed     /{}: {what}{}", line(path), of(owner))
        }
    }
}
