//! `farmctl install`: a node tarball becomes a release of this node.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::Context;
use crate::account;
use crate::debian;
use crate::error::{self, Exit, Mark as _, refuse};
use crate::file;
use crate::front;
use crate::layout;
use crate::manifest::Manifest;
use crate::mount;
use crate::node::{self, Node, Object, Transaction};
use crate::plan::Plan;
use crate::release::{App, Release};
use crate::run;
use crate::schroot;
use crate::secret;
use crate::session;
use crate::settings::Settings;
use crate::size::Size;
use crate::storage::{self, Access, Choice, Copies, Storage};
use crate::tarball::Archive;
use crate::trust;
use crate::ui;
use crate::undo;

/// Room an install wants beyond the files themselves, in bytes: directories, the state,
/// and sessions that write a little.
const SPARE: u64 = 64 << 20;
/// Room a volume of its own has beyond that, in bytes: the file system's log and tables.
const VOLUME_SPARE: u64 = 256 << 20;

/// Install a node tarball as a release
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farmctl install hello_1.0.0_amd64.tar.xz")]
pub struct Args {
    /// The node tarball
    file: PathBuf,
    /// Storage backend for the release's volume: auto, lvm-thin, lvm, btrfs, directory
    #[arg(long, value_name = "BACKEND", value_parser = super::parse_backend)]
    storage: Option<String>,
    /// Go back to a release with a lower serial than this node has had
    #[arg(long)]
    allow_downgrade: bool,
    /// Install a release whose time is over
    #[arg(long)]
    allow_expired: bool,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the tarball is damaged or does not fit this node; nothing of it is left then.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let node = if args.dry_run { node } else { node.settled()? };
    let mut tools = schroot::TOOLS.to_vec();
    tools.extend(account::TOOLS);
    run::require(&tools)?;
    let mut archive = super::open_trusted(&args.file, node.layout())?;
    let manifest = archive.manifest().clone();
    let what = format!("{} {}", manifest.name, manifest.version);
    super::check_name(&manifest.name)?;
    let _lock =
        if args.dry_run { None } else { Some(super::lock(&node, &manifest.name, "install")?) };
    let known = node.app(&manifest.name)?;
    if let Some(release) = known.as_ref().and_then(|app| app.release(&manifest.version)) {
        if release.identity == archive.identity() {
            context.ui.already(format!("{what} is installed already"));
            return Ok(Exit::Done);
        }
        return refuse(
            format_args!("{what} is installed already, with other contents"),
            format!(
                "bake it as another version (--set-version), or farmctl remove {} --release {}",
                manifest.name, manifest.version
            ),
        );
    }
    trust::check_expiry(&manifest, node::now(), args.allow_expired)?;
    trust::check_serial(node.layout(), &manifest, archive.identity(), args.allow_downgrade)?;
    let Choice { storage, why } = storage::choose(args.storage.as_deref(), &node.site())?;
    run::require(&storage.tools())?;
    storage.check()?;
    check_fit(&manifest, storage.as_ref())?;
    let size = size(&manifest, node.settings());
    schroot::check_free(&layout::release_chroot(&manifest.name, &manifest.version), node.id())?;
    if args.dry_run {
        context.show_plan(&plan(&manifest, &archive, (storage.as_ref(), &why), size, &node)?);
        return Ok(Exit::Done);
    }
    mount::private_namespace()?;
    undo::attempt(&node, "install", &manifest.name, |transaction| {
        install(&mut archive, known, (storage.as_ref(), size), &node, context, transaction)
    })
    .with_context(|| format!("installing {what}"))?;
    let name = &manifest.name;
    let running = node.app(name)?.and_then(|app| app.session);
    let next = match running {
        None => format!("farmctl start {name}"),
        Some(session) => format!(
            "{} runs on; farmctl stop {name}, then farmctl start {name} --release {}",
            session.version, manifest.version
        ),
    };
    context.ui.done(format!("installed {what}: {next}"));
    Ok(Exit::Done)
}

fn check_fit(manifest: &Manifest, storage: &dyn Storage) -> Result<()> {
    let architecture = debian::architecture()?;
    if manifest.architecture != architecture {
        return refuse(
            format_args!(
                "the tarball is for {}, this machine is {architecture}",
                manifest.architecture
            ),
            "bake it on a machine of this architecture",
        );
    }
    let free = storage.usage()?.free;
    let wanted = manifest.payload.content + manifest.payload.content / 10 + SPARE;
    if free < wanted {
        return refuse(
            format_args!(
                "{} {} needs {}, {} are free",
                manifest.name,
                manifest.version,
                ui::size(wanted),
                ui::size(free)
            ),
            error::NO_SPACE,
        );
    }
    Ok(())
}

/// Size of the release's volume, where volumes have one: what the profile or the node's
/// settings say, and at least what it holds with room for the file system itself.
fn size(manifest: &Manifest, settings: &Settings) -> Size {
    let asked = manifest.profile.storage.volume_size.unwrap_or(settings.volume_size);
    let content = manifest.payload.content;
    asked.max(Size::of_bytes(content + content / 4 + VOLUME_SPARE).whole_mib())
}

fn plan(
    manifest: &Manifest,
    archive: &Archive,
    (storage, why): (&dyn Storage, &str),
    size: Size,
    node: &Node,
) -> Result<Plan> {
    let (name, version) = (&manifest.name, &manifest.version);
    let volume = layout::release_volume(name, version);
    let mut plan = Plan::new(format!("install {name} {version} (sha256 {})", archive.identity()));
    let taken: Vec<u32> = node.apps()?.into_iter().map(|app| app.uid).collect();
    let commands = account::describe_ensure(name, node::FIRST_UID, &taken)?;
    if !commands.is_empty() {
        plan.commands(format!("make the account {}", layout::account(name)), commands);
    }
    plan.commands(
        format!("make volume {volume}: {}, {why}", storage.name()),
        storage.describe_create(&volume, size)?,
    );
    plan.step(format!(
        "unpack and verify {} in {} segments",
        ui::size(manifest.payload.content),
        manifest.segments.len()
    ));
    for data in &manifest.profile.data {
        plan.step(format!(
            "make {} unless it is there",
            node.layout().app_data(name).join(&data.name).display()
        ));
    }
    plan.step(format!("register {} with schroot", layout::release_chroot(name, version)));
    Ok(plan)
}

fn install(
    archive: &mut Archive,
    known: Option<App>,
    (storage, size): (&dyn Storage, Size),
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<()> {
    let ui = &context.ui;
    let manifest = archive.manifest().clone();
    let (name, version) = (&manifest.name, &manifest.version);
    let app = match known {
        Some(app) => app,
        None => App::new(name, make_account(name, node, transaction)?),
    };
    let volume = layout::release_volume(name, version);
    transaction
        .intend(Object::Volume { storage: storage.name().to_owned(), name: volume.clone() })?;
    storage.create(&volume, size, &transaction.mark())?;
    let tree = storage.open(&volume, Access::ReadWrite)?;
    ui.step(format!("unpacking {}", ui::size(manifest.payload.content)));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let meter = ui.meter("unpacking");
    let unpacked = archive.extract(tree.path(), threads, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    });
    drop(meter);
    unpacked.hint(super::DAMAGED)?;
    front::export_static(&manifest, tree.path(), node.layout(), transaction)?;
    tree.close()?;
    storage.seal(&volume, Access::ReadOnly)?;
    keep_manifest(archive, node, transaction)?;
    let chroot = layout::release_chroot(name, version);
    transaction.intend(Object::Chroot { name: chroot.clone() })?;
    schroot::register(&schroot::Definition {
        name: chroot,
        description: format!("farmctl release {name} {version}"),
        stanza: storage.stanza(&volume, Copies::of(&manifest.profile.storage, node.settings()))?,
        fstab: schroot::release_fstab(&session::binds(node.layout(), &manifest)),
        grants: manifest.profile.schroot.clone(),
        source_clone: false,
        node: transaction.mark().node,
        transaction: transaction.id().to_owned(),
    })?;
    let release = Release {
        version: version.clone(),
        identity: archive.identity().to_owned(),
        storage: storage.name().to_owned(),
        volume,
        installed: node::now(),
    };
    // Last, because data is never removed again: not even by a failed install.
    session::make_data_directories(node.layout(), &app, &manifest)?;
    secret::generate(node.layout(), &manifest)?;
    trust::accept(node.layout(), &manifest, archive.identity())?;
    node.save_app(&app.installed(release))
}

/// Gives the application an account, the same one as ever if it has data here.
fn make_account(name: &str, node: &Node, transaction: &mut Transaction) -> Result<u32> {
    if let Some(uid) = account::find(name)? {
        return Ok(uid);
    }
    transaction.intend(Object::Account { app: name.to_owned() })?;
    let taken: Vec<u32> = node.apps()?.into_iter().map(|app| app.uid).collect();
    account::ensure(name, node::FIRST_UID, &taken)
}

/// Keeps manifest and file index beside the volume, for `verify` and the start.
fn keep_manifest(archive: &Archive, node: &Node, transaction: &mut Transaction) -> Result<()> {
    let manifest = archive.manifest();
    let directory = node.layout().release(&manifest.name, &manifest.version);
    transaction.intend(Object::Path { path: directory.clone() })?;
    // What an interrupted removal left of an earlier release of this version.
    storage::remove_tree(&directory)?;
    file::make_directory(&directory, 0o755)?;
    let files = serde_json::to_vec(archive.files()).context("writing the file index")?;
    file::publish(&directory.join("files.json"), &files, 0o644)?;
    if let Some(signature) = archive.signature() {
        file::publish(&directory.join("manifest.json.minisig"), signature.as_bytes(), 0o644)?;
    }
    file::publish(&directory.join("manifest.json"), archive.manifest_bytes(), 0o644)?;
    file::sync_directory(&directory)
}
