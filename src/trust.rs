//! What this node accepts: whose signatures, and how old a release may be.
//!
//! Every file of `/etc/farmctl/keys.d` is a public key, and a signature by any of them
//! counts: a new key is put beside the old one, then the old one is taken away. Where
//! there is one, unsigned tarballs are refused. Serials only rise: the highest one ever
//! installed of an application is remembered, also when the application is removed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use anyhow::{Context as _, Result, ensure};

use crate::error::{Mark as _, refuse};
use crate::file;
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::signature::{PublicKey, Signature};

/// The newest schema of the record this farmctl reads.
const SCHEMA: u32 = 1;

/// A key this node trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// Name of its file.
    pub file: String,
    /// The key.
    pub key: PublicKey,
}

/// What a tarball's signature says on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case", tag = "standing")]
pub enum Standing {
    /// There is none.
    Unsigned,
    /// It is by a key this node has and trusts.
    Trusted {
        /// The key's number.
        key: String,
        /// File of the key.
        file: String,
        /// What the signer wrote.
        comment: String,
    },
    /// It is by a key this node does not have, so that nothing is known about it.
    Unknown {
        /// The number it says its key has.
        key: String,
    },
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Standing::Unsigned => f.write_str("not signed"),
            Standing::Trusted { key, file, .. } => write!(f, "signed by {key} ({file})"),
            Standing::Unknown { key } => write!(f, "signed by {key}, which is not trusted here"),
        }
    }
}

/// The keys this node trusts, by file name.
///
/// # Errors
/// When a file there is no key: a key that does not count must not go unnoticed.
pub fn keys(layout: &Layout) -> Result<Vec<Trusted>> {
    let directory = layout.trusted_keys();
    let mut keys = Vec::new();
    for name in file::names_in(&directory)?.into_iter().filter(|name| !name.starts_with('.')) {
        let path = directory.join(&name);
        let text = file::read_if_there(&path)?.unwrap_or_default();
        let key = PublicKey::parse(&text)
            .with_context(|| format!("reading {}", path.display()))
            .hint_with(|| format!("every file of {} is a public key", directory.display()))?;
        keys.push(Trusted { file: name, key });
    }
    Ok(keys)
}

/// Looks at a signature over a manifest's bytes.
///
/// # Errors
/// When it is no signature, or is by a trusted key over something else.
pub fn standing(keys: &[Trusted], manifest: &[u8], signature: Option<&str>) -> Result<Standing> {
    let Some(text) = signature else { return Ok(Standing::Unsigned) };
    let signature = Signature::parse(text).context("reading the signature")?;
    let id = signature.key();
    // Numbers are eight bytes anybody may choose: two keys can have the same one.
    let named: Vec<&Trusted> = keys.iter().filter(|trusted| trusted.key.id() == id).collect();
    if named.is_empty() {
        return Ok(Standing::Unknown { key: id.to_owned() });
    }
    match named.into_iter().find(|trusted| trusted.key.verifies(manifest, &signature)) {
        Some(trusted) => Ok(Standing::Trusted {
            key: id.to_owned(),
            file: trusted.file.clone(),
            comment: signature.comment().to_owned(),
        }),
        None => refuse(
            format_args!("the signature of key {id} is not over this manifest"),
            "somebody changed the file: bake it again, or copy it again from where it was signed",
        ),
    }
}

/// Like [`standing`], and refuses what this node must not install: once there is a key,
/// everything that is not signed by one of them.
///
/// # Errors
/// Says what is missing.
pub fn require(keys: &[Trusted], manifest: &[u8], signature: Option<&str>) -> Result<Standing> {
    let standing = standing(keys, manifest, signature)?;
    let known = || {
        let known: Vec<_> = keys.iter().map(|trusted| trusted.key.id()).collect();
        known.join(", ")
    };
    match &standing {
        Standing::Unsigned if !keys.is_empty() => refuse(
            format_args!("it is not signed, and this node trusts {} only", known()),
            "farmctl sign FILE, where the key is",
        ),
        Standing::Unknown { key } if !keys.is_empty() => refuse(
            format_args!("it is signed by {key}, and this node trusts {} only", known()),
            "if that key is yours: farmctl key trust FILE.pub",
        ),
        _ => Ok(standing),
    }
}

/// Refuses a release whose time is over; `now` is in seconds since 1970.
///
/// # Errors
/// When it is, unless it is asked for.
pub fn check_expiry(manifest: &Manifest, now: i64, allowed: bool) -> Result<()> {
    let Some(expiry) = manifest.expiry()? else { return Ok(()) };
    if now < expiry || allowed {
        return Ok(());
    }
    refuse(
        format_args!(
            "{} {} expired on {}",
            manifest.name,
            manifest.version,
            manifest.expires.as_deref().unwrap_or_default()
        ),
        "bake a newer one; or add --allow-expired, if the clock is right and this one is wanted",
    )
}

/// The highest serial ever installed of an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Accepted {
    /// Version of this format; 1.
    schema: u32,
    serial: u64,
    /// SHA-256 of the manifest that had it, hex.
    identity: String,
}

fn accepted(layout: &Layout, app: &str) -> Result<Option<Accepted>> {
    let path = layout.accepted(app);
    let Some(text) = file::read_if_there(&path)? else { return Ok(None) };
    let accepted: Accepted = serde_json::from_str(&text)
        .with_context(|| format!("reading {}", path.display()))
        .hint_with(|| {
            format!(
                "restore {} from a backup, or remove it and with it what it kept",
                path.display()
            )
        })?;
    ensure!(
        accepted.schema <= SCHEMA,
        "{} was written by a newer farmctl (schema {}, this one reads {SCHEMA})",
        path.display(),
        accepted.schema
    );
    Ok(Some(accepted))
}

/// Refuses a release that is older than one this node has had.
///
/// # Errors
/// When it is, unless it is asked for; and when its serial was another release's.
pub fn check_serial(
    layout: &Layout,
    manifest: &Manifest,
    identity: &str,
    allowed: bool,
) -> Result<()> {
    let Some(Accepted { serial: highest, identity: known, .. }) = accepted(layout, &manifest.name)?
    else {
        return Ok(());
    };
    let what = format!("{} {}", manifest.name, manifest.version);
    if allowed {
        return Ok(());
    }
    match manifest.serial {
        Some(serial) if serial > highest || known == identity => Ok(()),
        Some(serial) if serial == highest => refuse(
            format_args!("{what} has serial {serial}, which another release had before"),
            "bake it with a higher --serial",
        ),
        Some(serial) => refuse(
            format_args!("{what} is older: its serial is {serial}, this node has had {highest}"),
            "add --allow-downgrade if you want to go back",
        ),
        None => refuse(
            format_args!("{what} has no serial, and this node has had {highest}"),
            "bake it with --serial, or add --allow-downgrade",
        ),
    }
}

/// Remembers the serial of a release that is being installed, if it is the highest.
///
/// # Errors
/// When the record cannot be read or written.
pub fn accept(layout: &Layout, manifest: &Manifest, identity: &str) -> Result<()> {
    let Some(serial) = manifest.serial else { return Ok(()) };
    if accepted(layout, &manifest.name)?.is_some_and(|known| known.serial >= serial) {
        return Ok(());
    }
    let accepted = Accepted { schema: SCHEMA, serial, identity: identity.to_owned() };
    let text = serde_json::to_string(&accepted).context("writing the serial")?;
    let path = layout.accepted(&manifest.name);
    file::make_directory(path.parent().unwrap_or(&path), 0o755)?;
    file::publish(&path, format!("{text}\n").as_bytes(), 0o644)
}
