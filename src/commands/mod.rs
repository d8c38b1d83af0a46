//! One file per verb; each reads like a recipe.

use std::mem;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::error::{Mark as _, refuse};
use crate::kept::{Kept, Step};
use crate::layout::Layout;
use crate::manifest::{FileIndex, Manifest};
use crate::node::{Lock, Node, Object, Transaction};
use crate::plan::Plan;
use crate::profile::Process;
use crate::release::{App, EnvironmentRecord, Session};
use crate::run;
use crate::serve::Served;
use crate::signature::SecretKey;
use crate::storage::Storage;
use crate::supervise::Supervise;
use crate::tarball::Archive;
use crate::trust;
use crate::ui::Ui;
use crate::undo;

pub mod audit;
pub mod bake;
mod baking;
pub mod bootstrap;
mod comparison;
pub mod completions;
pub mod confirm;
pub mod dev;
pub mod diff;
pub mod doctor;
pub mod gc;
pub mod history;
mod incoming;
pub mod init;
pub mod install;
pub mod key;
pub mod list;
pub mod lock;
pub mod logs;
pub mod manual;
mod record;
pub mod reload;
pub mod remove;
pub mod restart;
pub mod rollback;
pub mod sbom;
pub mod shell;
pub mod show;
pub mod sign;
pub mod start;
pub mod status;
pub mod stop;
pub mod storage;
pub mod tend;
pub mod upgrade;
pub mod verify;

/// How full a thin pool's metadata is when it is worth a warning, in percent: as its data.
const METADATA_WARNED: f64 = 80.0;
/// How long `tend` may take to bring an application back.
const TENDING: Duration = Duration::from_secs(60);

/// What every verb is given.
#[derive(Debug)]
pub struct Context {
    /// Standard output and error.
    pub ui: Ui,
    /// Paths.
    pub layout: Layout,
}

impl Context {
    /// The node, for verbs that change it: as root only.
    ///
    /// # Errors
    /// When not root, or the node's files are damaged.
    pub fn node(&self) -> Result<Node> {
        run::require_root()?;
        Node::open(self.layout.clone())
    }

    /// Prints a plan instead of carrying it out.
    pub fn show_plan(&self, plan: &Plan) {
        self.ui.answer(plan.to_string());
    }
}

/// Locks an application against other farmctls. `tend`, which looks by itself every now
/// and then, is waited for.
fn lock(node: &Node, app: &str, verb: &str) -> Result<Lock> {
    let lock = run::poll_until(TENDING, || match node.lock(app, verb) {
        Err(_) if node.is_tended(app)? => Ok(None),
        lock => lock.map(Some),
    })?;
    lock.map_or_else(|| node.lock(app, verb), Ok)
}

/// Locks an application as [`lock()`] does, and undoes what a farmctl that was killed had
/// begun to make of it: two sessions of one upgrade are not to run side by side.
fn take_over(node: &Node, app: &str, verb: &str, context: &Context) -> Result<Lock> {
    let lock = lock(node, app, verb)?;
    undo::finish_all(node, app, &|text| context.ui.step(text))?;
    Ok(lock)
}

/// The same for a verb that looks at what there is behind the lock; a dry run changes
/// nothing and takes none.
fn take_over_unless(
    dry_run: bool,
    node: &Node,
    app: &str,
    verb: &str,
    context: &Context,
) -> Result<Option<Lock>> {
    if dry_run { Ok(None) } else { take_over(node, app, verb, context).map(Some) }
}

/// Refuses to work with what was known of an environment before its lock was taken, if that is
/// not so any more.
fn check_unchanged(known: &EnvironmentRecord, node: &Node) -> Result<()> {
    if node.environment(&known.name)?.as_ref() == Some(known) {
        return Ok(());
    }
    refuse(
        format_args!("another farmctl has just changed environment {}", known.name),
        "the same command again takes it as it is now",
    )
}

/// Forgets the trees that are kept of an environment after this step and later ones, then
/// removes them.
fn forget_kept(
    record: &mut EnvironmentRecord,
    from: Step,
    node: &Node,
    transaction: &mut Transaction,
) -> Result<()> {
    let (go, stay): (Vec<Kept>, Vec<Kept>) =
        mem::take(&mut record.kept).into_iter().partition(|kept| kept.step >= from);
    record.kept = stay;
    if go.is_empty() {
        return Ok(());
    }
    let volume = |kept: Kept| Object::Volume { storage: record.storage.clone(), name: kept.volume };
    let volumes: Vec<Object> = go.into_iter().map(volume).collect();
    volumes.iter().try_for_each(|volume| transaction.intend(volume.clone()))?;
    node.save_environment(record)?;
    volumes.iter().try_for_each(|volume| {
        undo::remove(volume, node)?;
        transaction.release(volume)
    })
}

/// Writes down that a volume of a release or an environment is about to be made.
fn intend_volume(storage: &dyn Storage, name: &str, transaction: &mut Transaction) -> Result<()> {
    storage.check_new(name)?;
    let storage = storage.name().to_owned();
    transaction.intend(Object::Volume { storage, name: name.to_owned() })
}

/// Refuses a name that cannot be one before it becomes part of a path.
fn check_name(name: &str) -> Result<()> {
    crate::profile::check_name(name).hint("farmctl list shows what there is")
}

/// What `--storage` takes.
fn parse_backend(name: &str) -> Result<String, String> {
    if name == "auto" || crate::storage::NAMES.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!("it is auto or one of {}", crate::storage::NAMES.join(", ")))
}

/// What to do about a tarball that is not whole.
const DAMAGED: &str = "the file is damaged: copy it again, or bake it again";

/// Opens a node tarball the user named.
fn open_archive(path: &Path) -> Result<Archive> {
    Archive::open(path).hint(hint_for(path))
}

/// What to do about a tarball that cannot be opened.
fn hint_for(path: &Path) -> &'static str {
    if path.exists() { DAMAGED } else { "FILE is a node tarball: what farmctl bake writes" }
}

/// Opens a node tarball this node is to install: the signature is looked at before
/// anything it is over is read.
fn open_trusted(path: &Path, layout: &Layout) -> Result<Archive> {
    let keys = trust::keys(layout)?;
    let check = |manifest: &[u8], signature: Option<&str>| {
        trust::require(&keys, manifest, signature).map(drop)
    };
    Archive::open_if(path, &check).hint(hint_for(path))
}

/// With which key a manifest is signed.
#[derive(Debug, clap::Args)]
struct SigningKey {
    /// Secret key to sign with, instead of this machine's
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The first line of this file is the key's password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl SigningKey {
    fn load(&self, context: &Context) -> Result<SecretKey> {
        let path = self.key.clone().unwrap_or_else(|| context.layout.signing_key());
        let text = crate::file::read_if_there(&path)?;
        let Some(text) = text else {
            return refuse(
                format_args!("there is no signing key {}", path.display()),
                "farmctl key generate",
            );
        };
        let password = read_password(self.password_file.as_deref())?;
        SecretKey::parse(&text, password.as_deref())
            .with_context(|| format!("reading {}", path.display()))
    }
}

/// The password on the first line of a file.
fn read_password(path: Option<&Path>) -> Result<Option<String>> {
    let Some(path) = path else { return Ok(None) };
    let context = || format!("reading the password in {}", path.display());
    let text = std::fs::read_to_string(path).with_context(context)?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(Some(password.to_owned())),
        _ => refuse(
            format_args!("{} has no password in its first line", path.display()),
            "leave --password-file out for a key without one",
        ),
    }
}

/// Writes a tarball anew with a signature by this key.
fn write_signed(archive: &Archive, key: &SecretKey, out: &Path) -> Result<()> {
    let Manifest { name, version, architecture, serial, .. } = archive.manifest();
    let serial = serial.map_or(String::new(), |serial| format!(" serial:{serial}"));
    let identity = archive.identity();
    let comment = format!("{name} {version} {architecture} sha256:{identity}{serial}");
    archive.write_signed(&key.sign(archive.manifest_bytes(), &comment)?, out)
}

/// The directory a file lies in.
fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Reads the manifest of an installed release.
fn manifest_of(node: &Node, app: &App, version: &str) -> Result<Manifest> {
    let manifest = node.manifest(&app.name, version).hint_with(|| reinstall(app, version))?;
    kept(manifest, "manifest.json", node, app, version)
}

/// How full a thin pool's metadata is, as the end of a line; nothing for other storage.
fn metadata(percent: Option<f64>) -> String {
    percent.map_or(String::new(), |percent| format!(", metadata {percent:.0} % full"))
}

/// Reads the file index of an installed release.
fn index_of(node: &Node, app: &App, version: &str) -> Result<FileIndex> {
    let index = node.index(&app.name, version).hint_with(|| reinstall(app, version))?;
    kept(index, "files.json", node, app, version)
}

/// What is kept of an installed release; it must be there.
fn kept<T>(there: Option<T>, name: &str, node: &Node, app: &App, version: &str) -> Result<T> {
    match there {
        Some(there) => Ok(there),
        None => {
            let path = node.layout().release(&app.name, version).join(name);
            refuse(format_args!("{} is missing", path.display()), reinstall(app, version))
        }
    }
}

fn reinstall(app: &App, version: &str) -> String {
    format!("farmctl remove {} --release {version}, then install it again", app.name)
}

/// What a tarball or an installed release says about itself.
struct Reading {
    identity: String,
    manifest: Manifest,
    files: FileIndex,
}

/// Reads a tarball, an installed application's current release, or NAME=VERSION.
fn read_release(what: &str, context: &Context) -> Result<Reading> {
    if Path::new(what).is_file() || what.contains(['/', '_']) {
        let opening = open_archive(Path::new(what))?.into_opening();
        let identity = opening.identity().to_owned();
        let (manifest, files) = opening.into_parts();
        return Ok(Reading { identity, manifest, files });
    }
    let (name, version) = match what.split_once('=') {
        Some((name, version)) => (name, Some(version)),
        None => (what, None),
    };
    check_name(name)?;
    let node = context.node()?;
    let app = node.installed(name)?;
    let version = installed_version(&app, version)?;
    Ok(Reading {
        identity: app.release(&version).map(|one| one.identity.clone()).unwrap_or_default(),
        manifest: manifest_of(&node, &app, &version)?,
        files: index_of(&node, &app, &version)?,
    })
}

/// An application that is started, with what was read of it.
struct Started {
    app: App,
    session: Session,
    manifest: Manifest,
}

impl Started {
    fn served<'a>(&'a self, node: &'a Node, supervisor: &'a dyn Supervise) -> Served<'a> {
        let Self { app, session, manifest } = self;
        Served { app, session, manifest, node, supervisor }
    }
}

/// The application of this name, which must be started.
fn started(node: &Node, name: &str) -> Result<Started> {
    check_name(name)?;
    let app = node.installed(name)?;
    let Some(session) = app.session.clone() else {
        return refuse(format_args!("{name} is not started"), format!("farmctl start {name}"));
    };
    let manifest = manifest_of(node, &app, &session.version)?;
    Ok(Started { app, session, manifest })
}

/// The process of this name, or all of them.
fn chosen_processes<'a>(manifest: &'a Manifest, name: Option<&str>) -> Result<Vec<&'a Process>> {
    let all = &manifest.profile.processes;
    let Some(name) = name else { return Ok(all.iter().collect()) };
    match all.iter().find(|process| process.name == name) {
        Some(process) => Ok(vec![process]),
        None => {
            let known: Vec<&str> = all.iter().map(|process| process.name.as_str()).collect();
            refuse(
                format_args!("{} has no process {name}", manifest.name),
                format!("its processes are: {}", known.join(", ")),
            )
        }
    }
}

/// The version asked for, else the current one; either must be installed.
fn installed_version(app: &App, asked: Option<&str>) -> Result<String> {
    let version = asked.or(app.current.as_deref());
    match version.and_then(|version| app.release(version)) {
        Some(release) => Ok(release.version.clone()),
        None => {
            let known: Vec<&str> =
                app.releases.iter().map(|release| release.version.as_str()).collect();
            refuse(
                format_args!("{} has no release {}", app.name, version.unwrap_or_default()),
                format!("installed are: {}", known.join(", ")),
            )
        }
    }
}
