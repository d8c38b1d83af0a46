//! `farmctl key`: the key tarballs are signed with, and the keys this node trusts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::{Exit, Mark as _, refuse};
use crate::file;
use crate::layout::Layout;
use crate::node::Object;
use crate::run;
use crate::signature::{PublicKey, SecretKey};
use crate::trust::{self, Trusted};
use crate::ui;
use crate::undo;

/// What a transaction that makes a key is about. No application has such a name.
const KEY: &str = "signing key";

/// Show or change the keys tarballs are signed with and checked against
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  farmctl key generate\n  farmctl key show > build1.pub\n  farmctl key trust build1.pub\n  farmctl key"
)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make the key this machine signs tarballs with
    #[command(
        after_help = "Examples:\n  farmctl key generate\n  farmctl key generate --password-file /dev/stdin\n\nThe files are minisign's: signing.key and signing.pub in /etc/farmctl, or FILE and its .pub."
    )]
    Generate {
        /// Write the secret key to this file
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Protect it with the password on the first line of this file
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Print the public half of the key this machine signs with
    #[command(after_help = "Example:\n  farmctl key show > build1.pub")]
    Show {
        /// Another secret key's file
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Accept tarballs signed with a key; unsigned ones are refused from then on
    #[command(
        after_help = "Examples:\n  farmctl key trust build1.pub\n  farmctl key trust RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
    )]
    Trust {
        /// A public key's file, or its last line
        key: String,
    },
    /// Accept tarballs signed with a key no longer
    #[command(after_help = "Example:\n  farmctl key forget E7620F1842B4E81F")]
    Forget {
        /// The key's number, as farmctl key prints it, or its file's name
        key: String,
    },
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Listing {
    /// The key this machine signs with.
    signing: Option<Line>,
    /// The keys this node trusts.
    trusted: Vec<Line>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct Line {
    /// Number of the key, as minisign shows it.
    key: String,
    /// Where it is kept.
    file: PathBuf,
    /// Its public half, base64.
    public: String,
}

/// Carries the verb out.
///
/// # Errors
/// When a key cannot be read, or would be overwritten.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    run::require_root()?;
    match &args.action {
        None => list(args, context),
        Some(Action::Generate { key, password_file }) => {
            generate(key.as_deref(), password_file.as_deref(), context)
        }
        Some(Action::Show { key }) => show(key.as_deref(), context),
        Some(Action::Trust { key }) => trust(key, context),
        Some(Action::Forget { key }) => forget(key, context),
    }
}

/// The public half lies beside the secret key: `signing.pub` beside `signing.key`.
fn public_file(secret: &Path) -> PathBuf {
    secret.with_extension("pub")
}

/// The public half of a secret key's file, read without its password.
fn public_half(secret: &Path) -> Result<PublicKey> {
    let path = public_file(secret);
    let read = || PublicKey::parse(&fs::read_to_string(&path)?);
    read()
        .with_context(|| format!("reading {}", path.display()))
        .hint("farmctl key generate makes a key and its public half")
}

fn list(args: &Args, context: &Context) -> Result<Exit> {
    let layout = &context.layout;
    let secret = layout.signing_key();
    let line = |key: &PublicKey, file: PathBuf| Line {
        key: key.id().to_owned(),
        file,
        public: key.base64().to_owned(),
    };
    let signing = if secret.exists() { Some(public_half(&secret)?) } else { None };
    let trusted = trust::keys(layout)?;
    let listing = Listing {
        signing: signing.map(|key| line(&key, secret)),
        trusted: trusted
            .iter()
            .map(|trusted| line(&trusted.key, layout.trusted_keys().join(&trusted.file)))
            .collect(),
    };
    if args.json {
        context.ui.json(&listing);
    } else {
        context.ui.answer(render(&listing, context.ui.width()));
    }
    Ok(Exit::Done)
}

fn render(listing: &Listing, width: usize) -> String {
    let mut rows = Vec::new();
    let row = |use_: &str, line: &Line| {
        vec![use_.to_owned(), line.key.clone(), line.file.display().to_string()]
    };
    rows.extend(listing.signing.iter().map(|line| row("signs", line)));
    rows.extend(listing.trusted.iter().map(|line| row("trusted", line)));
    if listing.trusted.is_empty() {
        rows.push(
            ["trusted", "none", "unsigned tarballs are accepted"].map(str::to_owned).to_vec(),
        );
    }
    ui::folded(&rows, width)
}

fn generate(key: Option<&Path>, password_file: Option<&Path>, context: &Context) -> Result<Exit> {
    let path = key.map_or_else(|| context.layout.signing_key(), Path::to_owned);
    let public = public_file(&path);
    if public == path {
        return refuse(
            format_args!("{} is the name of a public key", path.display()),
            "give the secret key another name: build1.key",
        );
    }
    let node = context.node()?;
    // Else what a killed one has made of it would be in the way.
    undo::finish_all(&node, KEY, &|text| context.ui.step(text))?;
    for taken in [&path, &public] {
        if taken.exists() {
            return refuse(
                format_args!("{} is there already", taken.display()),
                "farmctl key shows it; --key FILE makes another one elsewhere",
            );
        }
    }
    let password = super::read_password(password_file)?;
    let (made, text) = SecretKey::generate(password.as_deref())?;
    if key.is_none() {
        file::make_directory(path.parent().unwrap_or(Path::new("/")), 0o755)?;
    }
    undo::attempt(&node, "key generate", KEY, |transaction| {
        for half in [&public, &path] {
            let path = std::path::absolute(half)?;
            transaction.intend(Object::Path { path: file::temporary_of(&path) })?;
            transaction.intend(Object::Path { path })?;
        }
        file::publish(&public, made.public().render().as_bytes(), 0o644)?;
        file::publish(&path, text.as_bytes(), 0o600)
    })?;
    context.ui.done(format!(
        "made key {} in {}: on each node, farmctl key trust {}",
        made.public().id(),
        path.display(),
        made.public().base64()
    ));
    Ok(Exit::Done)
}

fn show(key: Option<&Path>, context: &Context) -> Result<Exit> {
    let path = key.map_or_else(|| context.layout.signing_key(), Path::to_owned);
    context.ui.answer(public_half(&path)?.render().trim_end());
    Ok(Exit::Done)
}

fn trust(key: &str, context: &Context) -> Result<Exit> {
    let path = Path::new(key);
    let is_file = path.exists() || key.contains(['.', '/']) && !key.starts_with("RW");
    let key = if is_file {
        let text = fs::read_to_string(path);
        text.map_err(anyhow::Error::from)
            .and_then(|text| PublicKey::parse(&text))
            .with_context(|| format!("reading {key}"))
            .hint("give a public key's file, or its last line")?
    } else {
        PublicKey::parse(key).with_context(|| format!("reading {key:?}"))?
    };
    let known = trust::keys(&context.layout)?;
    if let Some(known) = known.iter().find(|known| known.key.base64() == key.base64()) {
        context.ui.already(format!("key {} is trusted already, as {}", key.id(), known.file));
        return Ok(Exit::Done);
    }
    let path = unused_name(&context.layout, &known, key.id());
    file::make_directory(&context.layout.trusted_keys(), 0o755)?;
    file::publish(&path, key.render().as_bytes(), 0o644)?;
    context.ui.done(format!("key {} is trusted: {}", key.id(), path.display()));
    if known.is_empty() {
        context.ui.step("from now on this node installs signed tarballs only");
    }
    Ok(Exit::Done)
}

/// A key's file is named by its number, which another key may have as well.
fn unused_name(layout: &Layout, known: &[Trusted], id: &str) -> PathBuf {
    let mut names =
        (1_u32..).map(|n| if n == 1 { format!("{id}.pub") } else { format!("{id}-{n}.pub") });
    let free = names.find(|name| known.iter().all(|known| known.file != *name));
    layout.trusted_keys().join(free.expect("numbers do not end before names do"))
}

fn forget(key: &str, context: &Context) -> Result<Exit> {
    let layout = &context.layout;
    let known = trust::keys(layout)?;
    let (gone, left): (Vec<_>, Vec<_>) =
        known.iter().partition(|known| known.key.id() == key || known.file == key);
    if gone.is_empty() {
        let ids: Vec<_> = known.iter().map(|known| known.key.id()).collect();
        let hint = match ids.is_empty() {
            true => "this node trusts no key".to_owned(),
            false => format!("it trusts {}", ids.join(", ")),
        };
        return refuse(format_args!("this node does not trust a key {key}"), hint);
    }
    for gone in gone {
        file::remove_if_there(&layout.trusted_keys().join(&gone.file))?;
        context.ui.done(format!("key {} is trusted no longer", gone.key.id()));
    }
    file::sync_directory(&layout.trusted_keys())?;
    if left.is_empty() {
        context.ui.warn("no key is trusted any more: this node installs unsigned tarballs");
    }
    Ok(Exit::Done)
}
