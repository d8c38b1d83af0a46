//! `farmctl show`: what a node tarball or an installed release is made of.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::Context;
use crate::error::Exit;
use crate::manifest::Manifest;
use crate::ui;

/// Show what a node tarball or an installed release is made of
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl show hello_1.0.0_amd64.tar.xz\n  farmctl show hello --json"
)]
pub struct Args {
    /// A node tarball, or the name of an installed application
    what: String,
    /// The release of the application instead of the current one
    #[arg(long, value_name = "VERSION")]
    release: Option<String>,
    /// Print the manifest and its identity as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    identity: String,
    manifest: Manifest,
}

/// Carries the verb out.
///
/// # Errors
/// When there is no such tarball or application, or it is damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let shown = if Path::new(&args.what).is_file() || args.what.contains(['/', '_']) {
        let archive = super::open_archive(Path::new(&args.what))?;
        Shown { identity: archive.identity().to_owned(), manifest: archive.manifest().clone() }
    } else {
        super::check_name(&args.what)?;
        let node = context.node()?;
        let app = node.installed(&args.what)?;
        let version = super::installed_version(&app, args.release.as_deref())?;
        let manifest = super::manifest_of(&node, &app, &version)?;
        let identity =
            app.release(&version).map(|release| release.identity.clone()).unwrap_or_default();
        Shown { identity, manifest }
    };
    if args.json {
        context.ui.json(&shown);
    } else {
        context.ui.answer(render(&shown));
    }
    Ok(Exit::Done)
}

fn render(shown: &Shown) -> String {
    let manifest = &shown.manifest;
    let row = |label: &str, text: String| vec![label.to_owned(), text];
    let mut rows = vec![
        row(
            &format!("{} {}", manifest.name, manifest.version),
            manifest.profile.description.clone(),
        ),
        row("identity", format!("sha256 {}", shown.identity)),
        row(
            "Debian",
            format!(
                "{} {}, {} packages, as of {}",
                manifest.profile.environment.suite,
                manifest.architecture,
                manifest.inputs.packages.len(),
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
    if manifest.profile.python.is_some() {
        let names: Vec<String> = manifest
            .inputs
            .distributions
            .iter()
            .map(|distribution| format!("{} {}", distribution.name, distribution.version))
            .collect();
        rows.push(row("Python", format!("{} distributions: {}", names.len(), names.join(", "))));
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
    ui::table(&rows)
}
