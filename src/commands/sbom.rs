//! `farmctl sbom`: what a release is made of, for the programs of others.

use anyhow::Result;
use clap::ValueEnum;

use super::Context;
use crate::error::Exit;
use crate::sbom;

/// Print what a tarball or release is made of, as CycloneDX or SPDX
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl sbom hello_1.0.0_amd64.tar.xz > hello.cdx.json
  farmctl sbom hello --format spdx > hello.spdx.json

Debian packages, Python distributions, and the native libraries those bring along. The same \
tarball gives the same bytes every time.")]
pub struct Args {
    /// A node tarball, an installed application, or one release of it: NAME=VERSION
    what: String,
    /// CycloneDX 1.5 or SPDX 2.3, both JSON
    #[arg(long, value_enum, default_value_t = Format::Cyclonedx)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Cyclonedx,
    Spdx,
}

/// Carries the verb out.
///
/// # Errors
/// When there is no such tarball or release, or it is damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let read = super::read_release(&args.what, context)?;
    let render = match args.format {
        Format::Cyclonedx => sbom::cyclonedx,
        Format::Spdx => sbom::spdx,
    };
    context.ui.json(&render(&read.manifest, &read.files, &read.identity));
    Ok(Exit::Done)
}
