//! `farmctl show`: what a node tarball or an installed release is made of.

mod sizes;

use std::path::Path;

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::{Exit, Mark as _, exit_of, refuse};
use crate::manifest::{FileIndex, Manifest};
use crate::sizes::{Sizes, measure};
use crate::tarball::{self, Opening};
use crate::trust::{self, Standing};
use crate::{file, input, ui};

/// How a tarball comes to standard input.
const PIPE: &str = "curl -fsSL URL | farmctl show -, where URL is a node tarball's";

/// Show what a node tarball or an installed release is made of
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl show hello_1.0.0_amd64.tar.xz
  farmctl show hello --json
  curl -fsSL https://example.org/hello_1.0.0_amd64.tar.xz | farmctl show -
  farmctl show hello --sizes
  farmctl show hello_1.0.0_amd64.tar.xz --sizes --html > sizes.html

Of a tarball its first members are read, the manifest and the file index, and of a file whether \
all else is there. Standard input is read no byte further: curl ends with status 23, and whether \
the rest is whole is not known.

With --sizes: what the bytes are spent on. Compressed sizes of parts are estimates: a segment is \
compressed as a whole, and shared out among its files by their bytes; in a bar, they are the dark \
part. With --html: a page for a browser that fetches nothing.")]
pub struct Args {
    /// A node tarball, - for one on standard input, or the name of an installed application
    what: String,
    /// The release of the application instead of the current one
    #[arg(long, value_name = "VERSION")]
    release: Option<String>,
    /// Show what the bytes are spent on: packages, distributions, directories
    #[arg(long)]
    sizes: bool,
    /// Print that as a page for a browser
    #[arg(long, requires = "sizes", conflicts_with = "json")]
    html: bool,
    /// Print the manifest and its identity as JSON, and with --sizes those
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Shown {
    /// SHA-256 of the manifest, hex.
    identity: String,
    /// What the signature says on this node.
    signature: Standing,
    /// The manifest.
    manifest: Manifest,
    /// What the bytes are spent on, with `--sizes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    sizes: Option<Sizes>,
}

/// Carries the verb out.
///
/// # Errors
/// When there is no such tarball or application, or it is damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let shown = if args.what == "-" {
        let opening = read_input()?;
        let size = ui::size(opening.size());
        context.ui.step(format!(
            "read {size}, the manifest and the file index, and no further: whether the rest is \
             whole is not known"
        ));
        show_opening(opening, args, context)?
    } else if Path::new(&args.what).is_file() || args.what.contains(['/', '_']) {
        let archive = super::open_archive(Path::new(&args.what))?;
        show_opening(archive.into_opening(), args, context)?
    } else {
        show_installed(args, context)?
    };
    match &shown.sizes {
        _ if args.json => context.ui.json(&shown),
        None => context.ui.answer(render(&shown, context.ui.width())),
        Some(sizes) if args.html => {
            context.ui.answer(sizes::page(&shown.manifest, &shown.identity, sizes).trim_end());
        }
        Some(sizes) => {
            context.ui.picture(&sizes::picture(&shown.manifest, sizes, context.ui.columns()));
        }
    }
    Ok(Exit::Done)
}

/// Reads what a tarball on standard input begins with.
fn read_input() -> Result<Opening> {
    if input::is_terminal() {
        return refuse("standard input is a terminal", PIPE).exit(Exit::Usage);
    }
    match Opening::read(&mut input::read).context("reading standard input") {
        // Who ended it himself needs no advice.
        Err(error) if exit_of(&error) == Exit::Interrupted => Err(error),
        read => read.hint(PIPE),
    }
}

fn show_opening(opening: Opening, args: &Args, context: &Context) -> Result<Shown> {
    let keys = trust::keys(&context.layout)?;
    let signature = trust::standing(&keys, opening.manifest_bytes(), opening.signature())?;
    let identity = opening.identity().to_owned();
    let (manifest, files) = opening.into_parts();
    let sizes = args.sizes.then(|| add_up(&manifest, &files));
    Ok(Shown { identity, signature, manifest, sizes })
}

fn add_up(manifest: &Manifest, files: &FileIndex) -> Sizes {
    measure(manifest, files, &tarball::contents(manifest, files))
}

fn show_installed(args: &Args, context: &Context) -> Result<Shown> {
    let keys = trust::keys(&context.layout)?;
    super::check_name(&args.what)?;
    let node = context.node()?;
    let app = node.installed(&args.what)?;
    let version = super::installed_version(&app, args.release.as_deref())?;
    let manifest = super::manifest_of(&node, &app, &version)?;
    let identity =
        app.release(&version).map(|release| release.identity.clone()).unwrap_or_default();
    let directory = node.layout().release(&app.name, &version);
    let bytes = file::read_if_there(&directory.join("manifest.json"))?.unwrap_or_default();
    let signature = file::read_if_there(&directory.join("manifest.json.minisig"))?;
    let signature = trust::standing(&keys, bytes.as_bytes(), signature.as_deref())?;
    let sizes = match args.sizes {
        true => Some(add_up(&manifest, &super::index_of(&node, &app, &version)?)),
        false => None,
    };
    Ok(Shown { identity, signature, manifest, sizes })
}

fn render(shown: &Shown, width: usize) -> String {
    let manifest = &shown.manifest;
    let row = |label: &str, text: String| vec![label.to_owned(), text];
    let mut rows = vec![
        row(
            &format!("{} {}", manifest.name, manifest.version),
            manifest.profile.description.clone(),
        ),
        row("identity", format!("sha256 {}", shown.identity)),
        row("signature", shown.signature.to_string()),
        row(
            "Debian",
            format!(
                "{} {}, {}, as of {}",
                manifest.profile.environment.suite,
                manifest.architecture,
                ui::count(manifest.inputs.packages.len(), "package"),
                ui::day(manifest.epoch)
            ),
        ),
        row(
            "files",
            format!("{}, {}", manifest.payload.entries, ui::size(manifest.payload.content)),
        ),
        row(
            "segments",
            format!(
                "{}, {} compressed",
                manifest.segments.len(),
                ui::size(manifest.segments.iter().map(|segment| segment.xz_size).sum())
            ),
        ),
    ];
    if let Some(serial) = manifest.serial {
        rows.push(row("serial", serial.to_string()));
    }
    if let Some(expires) = &manifest.expires {
        rows.push(row("expires", expires.clone()));
    }
    if manifest.profile.python.is_some() {
        let names: Vec<String> = manifest
            .inputs
            .distributions
            .iter()
            .map(|distribution| format!("{} {}", distribution.name, distribution.version))
            .collect();
        rows.push(row(
            "Python",
            format!("{}: {}", ui::count(names.len(), "distribution"), names.join(", ")),
        ));
    }
    for process in &manifest.profile.processes {
        rows.push(row("process", format!("{}: {}", process.name, process.command)));
    }
    for job in &manifest.profile.jobs {
        rows.push(row("job", format!("{}: {}", job.name, job.command)));
    }
    for data in &manifest.profile.data {
        rows.push(row("data", format!("{}: {}", data.name, data.path.display())));
    }
    if let Some(front) = &manifest.profile.front {
        rows.push(row("front", crate::front::address(front)));
    }
    ui::folded(&rows, width)
}
