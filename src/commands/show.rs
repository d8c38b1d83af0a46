//! `farmctl show`: what a node tarball or an installed release is made of.

use std::path::Path;

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::Exit;
use crate::file;
use crate::manifest::Manifest;
use crate::trust::{self, Standing};
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

#[derive(Serialize, JsonSchema)]
pub(super) struct Shown {
    /// SHA-256 of the manifest, hex.
    identity: String,
    /// What the signature says on this node.
    signature: Standing,
    /// The manifest.
    manifest: Manifest,
}

/// Carries the verb out.
///
/// # Errors
/// When there is no such tarball or application, or it is damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let keys = trust::keys(&context.layout)?;
    let shown = if Path::new(&args.what).is_file() || args.what.contains(['/', '_']) {
        let archive = super::open_archive(Path::new(&args.what))?;
        let signature = archive.signature();
        Shown {
            identity: archive.identity().to_owned(),
            signature: trust::standing(&keys, archive.manifest_bytes(), signature)?,
            manifest: archive.manifest().clone(),
        }
    } else {
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
        Shown { identity, signature, manifest }
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
        row("signature", shown.signature.to_string()),
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
