//! `farmctl diff`: what separates two tarballs or releases, by whose it is.

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;

use super::comparison::{render, side};
use super::{Context, Reading};
use crate::diff::{self, Diff};
use crate::error::Exit;

/// Show what separates two tarballs or releases, by whose it is
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl diff hello_1.0.0_amd64.tar.xz hello_1.0.1_amd64.tar.xz\n  farmctl diff hello=1.0.0 hello --files\n\nExits 3 when they differ. Nothing but manifests and file indexes is read."
)]
pub struct Args {
    /// A node tarball, an installed application, or one release of it: NAME=VERSION
    before: String,
    /// The one it is compared with
    after: String,
    /// List every path, also where another version says why it differs
    #[arg(long)]
    files: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Printed {
    /// The first one.
    before: Named,
    /// The second one.
    after: Named,
    #[serde(flatten)]
    diff: Diff,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct Named {
    /// Application.
    name: String,
    /// Version.
    version: String,
    /// SHA-256 of the manifest, hex.
    identity: String,
}

/// Carries the verb out.
///
/// # Errors
/// When one of the two is not there, or damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let before = super::read_release(&args.before, context)?;
    let after = super::read_release(&args.after, context)?;
    let diff = diff::compare(side(&before), side(&after));
    let same = before.identity == after.identity;
    if args.json {
        let named = |read: &Reading| Named {
            name: read.manifest.name.clone(),
            version: read.manifest.version.clone(),
            identity: read.identity.clone(),
        };
        context.ui.json(&Printed { before: named(&before), after: named(&after), diff });
    } else {
        let title = |read: &Reading| format!("{} {}", read.manifest.name, read.manifest.version);
        let heading = format!("{} → {}", title(&before), title(&after));
        if same {
            context.ui.done(format!("{heading}: the same release, sha256 {}", before.identity));
        } else {
            context.ui.answer(heading);
            context.ui.answer(render(&diff, args.files, context.ui.width()).trim_end());
        }
    }
    Ok(if same { Exit::Done } else { Exit::NotRight })
}
