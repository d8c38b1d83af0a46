//! `farmctl sign`: puts a signature into a node tarball.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::{Context, SigningKey};
use crate::error::{Exit, Mark as _};
use crate::file;
use crate::node::Object;
use crate::parallel;
use crate::run;
use crate::signature::{SecretKey, Signature};
use crate::tarball::Archive;
use crate::undo;

/// Sign a node tarball, in place
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl sign hello_1.0.0_amd64.tar.xz
  farmctl sign hello_1.0.0_amd64.tar.xz --key build1.key

An earlier signature is replaced. The release stays the same: its identity is its manifest's, and \
the signature is over that.")]
pub struct Args {
    /// The node tarball
    file: PathBuf,
    #[command(flatten)]
    key: SigningKey,
}

/// Carries the verb out.
///
/// # Errors
/// When there is no key, or the tarball is damaged; it is as it was then.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let key = args.key.load(context)?;
    let archive = super::open_archive(&args.file)?;
    let what = format!("{} {}", archive.manifest().name, archive.manifest().version);
    if is_by(&archive, &key) {
        context.ui.already(format!("{what} is signed by {} already", key.public().id()));
        return Ok(Exit::Done);
    }
    let threads = parallel::processors();
    let meter = context.ui.meter("verifying");
    // A signature says that this is what was baked: not before it was looked at.
    let verified = archive.verify(threads, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    });
    drop(meter);
    verified.hint(super::DAMAGED)?;
    let part = args.file.with_extension("xz.part");
    undo::attempt(&node, "sign", &archive.manifest().name, |transaction| {
        transaction.intend(Object::Path { path: std::path::absolute(&part)? })?;
        super::write_signed(&archive, &key, &part)?;
        // As readable as it was before.
        fs::set_permissions(&part, fs::metadata(&args.file)?.permissions())?;
        fs::rename(&part, &args.file)
            .with_context(|| format!("publishing {}", args.file.display()))?;
        file::sync_directory(&super::directory_of(&args.file))
    })
    .with_context(|| format!("signing {}", args.file.display()))?;
    let signed = super::open_archive(&args.file)?;
    ensure!(signed.identity() == archive.identity(), "the signed tarball is another one");
    context.ui.done(format!("signed {what} with {}", key.public().id()));
    Ok(Exit::Done)
}

fn is_by(archive: &Archive, key: &SecretKey) -> bool {
    let signature = archive.signature().map(Signature::parse);
    let bytes = archive.manifest_bytes();
    matches!(signature, Some(Ok(signature)) if key.public().verifies(bytes, &signature))
}
