//! A node tarball that is to become a release: what the verbs that install one have in
//! common.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::account;
use crate::debian;
use crate::error::{self, Mark as _, message, refuse};
use crate::file;
use crate::front;
use crate::hash;
use crate::layout;
use crate::manifest::{FileIndex, Manifest};
use crate::node::{self, Node, Object, Transaction};
use crate::parallel;
use crate::plan::Plan;
use crate::release::{App, Release, Verified};
use crate::run;
use crate::schroot;
use crate::secret;
use crate::session;
use crate::settings::Settings;
use crate::size::Size;
use crate::storage::{self, Access, Choice, Copies, Mark, Storage, Tree};
use crate::tarball::{Archive, Copied, Progress};
use crate::trust;
use crate::ui::{self, Ui};
use crate::undo;

/// Room an install wants beyond the files themselves, in bytes: directories, the state,
/// and sessions that write a little.
const SPARE: u64 = 64 << 20;
/// Room a volume of its own has beyond that, in bytes: the file system's log and tables.
const VOLUME_SPARE: u64 = 256 << 20;

/// How the verbs that install a tarball may be told to.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Storage backend for the release's volume: auto, lvm-thin, lvm, btrfs, directory
    #[arg(long, value_name = "BACKEND", value_parser = super::parse_backend)]
    storage: Option<String>,
    /// Go back to a release with a lower serial than this node has had
    #[arg(long)]
    allow_downgrade: bool,
    /// Install a release whose time is over
    #[arg(long)]
    allow_expired: bool,
}

impl Options {
    /// For a tarball this node has just baked, beside a release in this storage.
    pub(super) fn own(storage: &str) -> Self {
        // What is tried out has no number and no last day.
        Self { storage: Some(storage.to_owned()), allow_downgrade: true, allow_expired: true }
    }
}

/// A node tarball that fits this node.
pub(super) struct Incoming {
    archive: Archive,
    known: Option<App>,
    storage: Box<dyn Storage>,
    why: String,
    size: Size,
}

/// What a tarball the user named is to this node.
pub(super) enum Arrival {
    /// It has been installed before.
    Known,
    /// It can be.
    New(Box<Incoming>),
}

/// Opens a tarball the user named, if it is signed as the node wants it.
pub(super) fn open(file: &Path, node: &Node) -> Result<Archive> {
    let mut tools = schroot::TOOLS.to_vec();
    tools.extend(account::TOOLS);
    run::require(&tools)?;
    let archive = super::open_trusted(file, node.layout())?;
    crate::profile::check_name(&archive.manifest().name)?;
    Ok(archive)
}

/// Looks whether a tarball can be installed, or is already.
///
/// # Errors
/// When another one of its name and version is, or it does not fit this node.
pub(super) fn arrive(archive: Archive, options: &Options, node: &Node) -> Result<Arrival> {
    let manifest = archive.manifest().clone();
    let known = node.app(&manifest.name)?;
    if let Some(release) = known.as_ref().and_then(|app| app.release(&manifest.version)) {
        if release.identity == archive.identity() {
            return Ok(Arrival::Known);
        }
        return refuse(
            format_args!(
                "{} {} is installed already, with other contents",
                manifest.name, manifest.version
            ),
            format!(
                "bake it as another version (--set-version), or farmctl remove {} --release {}",
                manifest.name, manifest.version
            ),
        );
    }
    trust::check_expiry(&manifest, node::now(), options.allow_expired)?;
    trust::check_serial(node.layout(), &manifest, archive.identity(), options.allow_downgrade)?;
    let Choice { storage, why } = storage::choose(options.storage.as_deref(), &node.site())?;
    run::require(&storage.tools())?;
    storage.check()?;
    check_fit(&manifest, storage.as_ref())?;
    let size = size(&manifest, node.settings());
    schroot::check_free(&layout::release_chroot(&manifest.name, &manifest.version), node.id())?;
    storage.check_new(&layout::release_volume(&manifest.name, &manifest.version))?;
    Ok(Arrival::New(Box::new(Incoming { archive, known, storage, why, size })))
}

impl Incoming {
    /// What its tarball says of it.
    pub(super) fn manifest(&self) -> &Manifest {
        self.archive.manifest()
    }

    /// The steps of [`Incoming::install`].
    pub(super) fn plan(&self, node: &Node) -> Result<Plan> {
        let Self { archive, storage, why, size, .. } = self;
        let manifest = archive.manifest();
        let (name, version) = (&manifest.name, &manifest.version);
        let volume = layout::release_volume(name, version);
        let mut plan =
            Plan::new(format!("install {name} {version} (sha256 {})", archive.identity()));
        let taken: Vec<u32> = node.apps()?.into_iter().map(|app| app.uid).collect();
        let commands = account::describe_ensure(name, node::FIRST_UID, &taken)?;
        if !commands.is_empty() {
            plan.commands(format!("make the account {}", layout::account(name)), commands);
        }
        let make = format!("make volume {volume}: {}, {why}", storage.name());
        let app = self.known.as_ref();
        let earlier = app.map(|app| earlier(app, archive, storage.as_ref(), *size, node));
        if let Some(earlier) = earlier.transpose()?.flatten() {
            let Release { volume: from, version, .. } = &earlier.release;
            let content = ui::size(manifest.payload.content);
            if storage.forks_quickly() {
                plan.commands(
                    format!("fork volume {from}: {}", storage.name()),
                    storage.describe_fork(from, &volume)?,
                );
                plan.step(format!("unpack what {version} lacks, and verify all of {content}"));
            } else {
                plan.commands(make, storage.describe_create(&volume, *size)?);
                plan.step(format!(
                    "copy what {version} has, unpack what it lacks, and verify all of {content}"
                ));
            }
        } else {
            plan.commands(make, storage.describe_create(&volume, *size)?);
            plan.step(format!(
                "unpack and verify {} in {}",
                ui::size(manifest.payload.content),
                ui::count(manifest.segments.len(), "segment")
            ));
        }
        for data in &manifest.profile.data {
            plan.step(format!(
                "make {} unless it is there",
                node.layout().app_data(name).join(&data.name).display()
            ));
        }
        plan.step(format!("register {} with schroot", layout::release_chroot(name, version)));
        Ok(plan)
    }

    /// Installs it, or leaves nothing of it. The caller has a mount namespace of its own.
    pub(super) fn install(&mut self, node: &Node, context: &Context) -> Result<()> {
        let (name, version) = (self.manifest().name.clone(), self.manifest().version.clone());
        Subject { context, node, app: &name, verb: "install" }.record(&version, || {
            undo::attempt(node, "install", &name, |it| self.unpack(node, context, it))
                .with_context(|| format!("installing {name} {version}"))
        })
    }

    fn unpack(
        &mut self,
        node: &Node,
        context: &Context,
        transaction: &mut Transaction,
    ) -> Result<()> {
        let Self { archive, known, storage, size, .. } = self;
        let known = known.take();
        let ui = &context.ui;
        let manifest = archive.manifest().clone();
        let (name, version) = (&manifest.name, &manifest.version);
        let app = match known {
            Some(app) => app,
            None => App::new(name, make_account(name, node, transaction)?),
        };
        let volume = layout::release_volume(name, version);
        super::intend_volume(storage.as_ref(), &volume, transaction)?;
        let mark = transaction.mark();
        let tree = match earlier(&app, archive, storage.as_ref(), *size, node)? {
            None => None,
            Some(earlier) => {
                let new = New { name: &volume, size: *size, mark: &mark };
                let tree = earlier.make(archive, storage.as_ref(), &new, node, ui);
                if let Err(error) = &tree {
                    run::check_interrupted()?;
                    let version = earlier.release.version;
                    ui.warn(format!("not taking what {version} has: {}", message(error)));
                    storage.remove(&volume)?;
                }
                tree.ok()
            }
        };
        let tree = match tree {
            Some(tree) => tree,
            None => {
                storage.create(&volume, *size, &mark)?;
                let tree = storage.open(&volume, Access::ReadWrite)?;
                ui.step(format!("unpacking {}", ui::size(manifest.payload.content)));
                let unpacked = with_meter(ui, &|progress| {
                    archive.extract(tree.path(), parallel::processors(), progress)
                });
                unpacked.hint(super::DAMAGED)?;
                tree
            }
        };
        let before = app.current.as_deref().or(app.releases.last().map(|it| it.version.as_str()));
        // Without its papers what browsers have of it counts as old.
        let before = before.and_then(|it| node.manifest(name, it).ok().flatten());
        front::export_static(&manifest, tree.path(), before.as_ref(), node.layout(), transaction)?;
        tree.close()?;
        storage.seal(&volume, Access::ReadOnly)?;
        let files = serde_json::to_vec(archive.files()).context("writing the file index")?;
        let (text, signature) = (archive.manifest_bytes(), archive.signature());
        keep(&manifest, text, signature, &files, node, transaction)?;
        let chroot = layout::release_chroot(name, version);
        transaction.intend(Object::Chroot { name: chroot })?;
        schroot::register(&definition(
            &manifest,
            storage.as_ref(),
            &volume,
            node,
            &transaction.mark(),
        )?)?;
        let release = Release {
            version: version.clone(),
            identity: archive.identity().to_owned(),
            storage: storage.name().to_owned(),
            verified: verified(storage.as_ref(), &volume, &files),
            volume,
            installed: node::now(),
        };
        // Last, because data is never removed again: not even by a failed install.
        // What runs has them as it needs them.
        if app.session.is_none() {
            session::make_data_directories(node.layout(), &app, &manifest)?;
        }
        secret::generate(node.layout(), &manifest)?;
        trust::accept(node.layout(), &manifest, archive.identity())?;
        node.save_app(&app.installed(release))
    }
}

/// A release that is installed, whose tree much of another one's can be taken from.
struct Earlier {
    release: Release,
    manifest: Manifest,
    index: FileIndex,
}

/// The release of an application that the most of a tarball can be taken from, if that is
/// worth it: the one that serves, or else the newest, on the same storage.
fn earlier(
    app: &App,
    archive: &Archive,
    storage: &dyn Storage,
    size: Size,
    node: &Node,
) -> Result<Option<Earlier>> {
    let there = storage.list()?;
    let fits = |release: &&Release| {
        let volume = there.iter().find(|volume| volume.name == release.volume);
        // A fork is as large as what it is made from.
        let sizes = size.bytes()..2 * size.bytes();
        let may = |has: u64| !storage.forks_quickly() || sizes.contains(&has);
        release.storage == storage.name()
            && volume.is_some_and(|volume| volume.size.is_none_or(may))
    };
    let current = app.current.as_deref().and_then(|version| app.release(version));
    let Some(release) = current.filter(fits).or_else(|| app.releases.iter().rev().find(fits))
    else {
        return Ok(None);
    };
    // Without its papers it is not known for what it is: `verify` says so.
    let papers = (
        node.manifest(&app.name, &release.version).ok().flatten(),
        node.index(&app.name, &release.version).ok().flatten(),
    );
    let (Some(manifest), Some(index)) = papers else { return Ok(None) };
    let lacking = if storage.forks_quickly() {
        archive.patch(&index, &manifest.capabilities).size()
    } else {
        archive.reuse(&index).size()
    };
    let is_worth_it = lacking <= archive.manifest().payload.size / 2;
    Ok(is_worth_it.then(|| Earlier { release: release.clone(), manifest, index }))
}

/// A volume to be.
struct New<'a> {
    name: &'a str,
    size: Size,
    mark: &'a Mark,
}

impl Earlier {
    /// Makes the volume of what this release has and the tarball has besides.
    fn make(
        &self,
        archive: &Archive,
        storage: &dyn Storage,
        new: &New<'_>,
        node: &Node,
        ui: &Ui,
    ) -> Result<Tree> {
        let Release { version, volume: from, .. } = &self.release;
        let content = archive.manifest().payload.content;
        let say = |lacking: u64| {
            let (lacking, content) = (ui::size(lacking.min(content)), ui::size(content));
            ui.step(format!("taking what {version} has, unpacking {lacking} of {content}"));
        };
        let threads = parallel::processors();
        if !storage.forks_quickly() {
            let reuse = archive.reuse(&self.index);
            say(reuse.size());
            let source = storage.open(from, Access::ReadOnly)?;
            storage.create(new.name, new.size, new.mark)?;
            let tree = storage.open(new.name, Access::ReadWrite)?;
            with_meter(ui, &|progress| {
                reuse.extract(source.path(), tree.path(), threads, progress)
            })?;
            source.close()?;
            return Ok(tree);
        }
        let patch = archive.patch(&self.index, &self.manifest.capabilities);
        say(patch.size());
        storage.fork(from, new.name, new.mark)?;
        // Asked after the fork, so that it holds for what was forked.
        let papers = node.layout().release(&archive.manifest().name, version);
        let is_verified = self.is_as_verified(storage, &papers);
        let copied = if is_verified { Copied::Verified } else { Copied::Unknown };
        let tree = storage.open(new.name, Access::ReadWrite)?;
        with_meter(ui, &|progress| patch.apply(tree.path(), copied, threads, progress))?;
        Ok(tree)
    }

    /// Whether nobody has changed the release since it was verified: neither its volume nor
    /// the papers that are kept of it.
    fn is_as_verified(&self, storage: &dyn Storage, papers: &Path) -> bool {
        let Release { volume, identity, verified: Some(verified), .. } = &self.release else {
            return false;
        };
        let is = |name: &str, wanted: &str| {
            hash::of_file(&papers.join(name)).is_ok_and(|found| found == wanted)
        };
        storage.last_change(volume).is_some_and(|last| last == verified.last_change)
            && is("files.json", &verified.files)
            && is("manifest.json", identity)
    }
}

/// What will tell that nobody has changed a volume since it was verified, and sealed, with
/// this file index.
pub(super) fn verified(storage: &dyn Storage, volume: &str, files: &[u8]) -> Option<Verified> {
    let last_change = storage.last_change(volume)?;
    Some(Verified { last_change, files: hash::sha256(files) })
}

/// Shows how far the work is, and has a signal end it.
fn with_meter(ui: &Ui, work: &dyn Fn(Progress<'_>) -> Result<()>) -> Result<()> {
    let meter = ui.meter("unpacking");
    work(&|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    })
}

/// A release's chroot as schroot is to know it.
pub(super) fn definition(
    manifest: &Manifest,
    storage: &dyn Storage,
    volume: &str,
    node: &Node,
    mark: &Mark,
) -> Result<schroot::Definition> {
    let Manifest { name, version, profile, .. } = manifest;
    Ok(schroot::Definition {
        name: layout::release_chroot(name, version),
        description: format!("farmctl release {name} {version}"),
        stanza: storage.stanza(volume, Copies::of(&profile.storage, node.settings()))?,
        fstab: schroot::release_fstab(&session::binds(node.layout(), manifest)),
        grants: profile.schroot.clone(),
        source_clone: false,
        node: mark.node.clone(),
        transaction: mark.transaction.clone(),
    })
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
pub(super) fn keep(
    manifest: &Manifest,
    text: &[u8],
    signature: Option<&str>,
    files: &[u8],
    node: &Node,
    transaction: &mut Transaction,
) -> Result<()> {
    let directory = node.layout().release(&manifest.name, &manifest.version);
    transaction.intend(Object::Path { path: directory.clone() })?;
    // What an interrupted removal left of an earlier release of this version.
    storage::remove_tree(&directory)?;
    file::make_directory(&directory, 0o755)?;
    file::publish(&directory.join("files.json"), files, 0o644)?;
    if let Some(signature) = signature {
        file::publish(&directory.join("manifest.json.minisig"), signature.as_bytes(), 0o644)?;
    }
    file::publish(&directory.join("manifest.json"), text, 0o644)?;
    file::sync_directory(&directory)
}
