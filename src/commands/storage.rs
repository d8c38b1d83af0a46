//! `farmctl storage`: what volumes stand on, and making it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::{Exit, refuse};
use crate::machine;
use crate::node::{Node, Object};
use crate::plan::Plan;
use crate::run;
use crate::settings::{self, Base, Ground};
use crate::size::Size;
use crate::storage::{self, Access, ground};
use crate::supervise;
use crate::ui;
use crate::undo;

/// Show or make what volumes stand on
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  farmctl storage\n  farmctl storage init --size 20G\n  farmctl storage init --backend lvm --device /dev/vdb"
)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a volume group, with a thin pool or without, or a btrfs
    #[command(after_help = "\
Examples:
  farmctl storage init --size 20G
  farmctl storage init --backend lvm --device /dev/vdb

A device with anything on it is refused. A file is taken in full at once, and attached again after \
a reboot.")]
    Init(InitArgs),
    /// Bring it back after a reboot, if it is in a file
    #[command(after_help = "Example:\n  farmctl storage attach")]
    Attach,
    /// Take away what init made, once no volume is on it
    #[command(after_help = "Example:\n  farmctl storage remove")]
    Remove {
        /// Show what would be done and stop
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    /// What to make
    #[arg(long, value_name = "BACKEND", default_value = "lvm-thin", value_parser = ["lvm-thin", "lvm", "btrfs"])]
    backend: String,
    /// A disk or partition, all of which is taken
    #[arg(long, conflicts_with = "size", required_unless_present = "size")]
    device: Option<PathBuf>,
    /// Size of a file to be made instead: 20G
    #[arg(long)]
    size: Option<Size>,
    /// Name of the volume group
    #[arg(long, value_name = "NAME", default_value = "farmctl")]
    group: String,
    /// Show what would be done, with the exact commands, and stop
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Listing {
    /// Backend new volumes go to.
    storage: &'static str,
    /// Why it is this one.
    why: String,
    /// Size of the storage.
    total_bytes: u64,
    /// Room in it.
    free_bytes: u64,
    /// How full a thin pool's metadata is.
    metadata_percent: Option<f64>,
    /// Volumes of environments and releases.
    volumes: Vec<VolumeLine>,
    /// Copies that sessions write to.
    sessions: Vec<SessionLine>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct VolumeLine {
    /// Name.
    name: String,
    /// Backend that keeps it.
    storage: &'static str,
    /// Its size, where volumes have one.
    size_bytes: Option<u64>,
    /// Whether it is read-only.
    sealed: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct SessionLine {
    /// Name.
    name: String,
    /// Backend that keeps it.
    storage: &'static str,
    /// About what was written; none where nobody counts it.
    written_bytes: Option<u64>,
    /// How much can be written before the session breaks; none where it cannot.
    room_bytes: Option<u64>,
    /// Whether it still has what was written.
    whole: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When something is in the way, or LVM cannot be asked.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    match &args.action {
        None => show(args, &node, context),
        Some(Action::Init(args)) => init(args, node, context),
        Some(Action::Attach) => attach(&node, context),
        Some(Action::Remove { dry_run }) => remove(*dry_run, &node, context),
    }
}

fn show(args: &Args, node: &Node, context: &Context) -> Result<Exit> {
    let chosen = storage::choose(None, &node.site())?;
    let usage = chosen.storage.usage()?;
    let mut listing = Listing {
        storage: chosen.storage.name(),
        why: chosen.why,
        total_bytes: usage.total,
        free_bytes: usage.free,
        metadata_percent: usage.metadata_percent,
        volumes: Vec::new(),
        sessions: Vec::new(),
    };
    for held in storage::holdings(&node.site())? {
        let storage = held.storage;
        listing.volumes.extend(held.volumes.into_iter().map(|volume| VolumeLine {
            name: volume.name,
            storage,
            size_bytes: volume.size,
            sealed: volume.access == Access::ReadOnly,
        }));
        listing.sessions.extend(held.copies.into_iter().map(|copy| SessionLine {
            name: copy.session,
            storage,
            written_bytes: copy.written,
            room_bytes: copy.room,
            whole: copy.whole,
        }));
    }
    if args.json {
        context.ui.json(&listing);
    } else {
        context.ui.answer(render(&listing, context.ui.width()));
    }
    Ok(Exit::Done)
}

fn render(listing: &Listing, width: usize) -> String {
    let size = |bytes: Option<u64>| bytes.map_or("-".to_owned(), ui::size);
    let metadata = super::metadata(listing.metadata_percent);
    let mut text = format!(
        "{} ({}): {} free of {}{metadata}",
        listing.storage,
        listing.why,
        ui::size(listing.free_bytes),
        ui::size(listing.total_bytes)
    );
    if !listing.volumes.is_empty() {
        let mut rows = vec![["VOLUME", "STORAGE", "SIZE", "STATE"].map(str::to_owned).to_vec()];
        rows.extend(listing.volumes.iter().map(|volume| {
            let state = if volume.sealed { "sealed" } else { "open" };
            vec![
                volume.name.clone(),
                volume.storage.to_owned(),
                size(volume.size_bytes),
                state.to_owned(),
            ]
        }));
        text += &format!("\n\n{}", ui::folded(&rows, width));
    }
    if !listing.sessions.is_empty() {
        let mut rows = vec![["SESSION", "STORAGE", "WRITTEN", "OF"].map(str::to_owned).to_vec()];
        rows.extend(listing.sessions.iter().map(|session| {
            let of = if session.whole { size(session.room_bytes) } else { "lost: full".to_owned() };
            vec![session.name.clone(), session.storage.to_owned(), size(session.written_bytes), of]
        }));
        text += &format!("\n\n{}", ui::folded(&rows, width));
    }
    text
}

fn init(args: &InitArgs, node: Node, context: &Context) -> Result<Exit> {
    let node = if args.dry_run { node } else { node.settled()? };
    let base = match (&args.device, args.size) {
        (Some(device), _) => Base::Device(device.clone()),
        (None, size) => Base::File {
            path: node.layout().ground_file(),
            size: size.context("either --device or --size is given")?.whole_mib(),
        },
    };
    let ground = Ground {
        schema: settings::SCHEMA,
        backend: args.backend.clone(),
        base,
        group: (args.backend != "btrfs").then(|| args.group.clone()),
        node: node.id().unwrap_or("…").to_owned(),
    };
    let _lock = if args.dry_run { None } else { Some(node.lock("storage", "storage init")?) };
    if let Some(known) = node.ground()? {
        let same = known == Ground { node: known.node.clone(), ..ground.clone() };
        if same {
            context.ui.already(format!("{} is there already", Object::Ground { ground: known }));
            return Ok(Exit::Done);
        }
        return refuse(
            format_args!("there is {} already", Object::Ground { ground: known }),
            "farmctl storage remove takes it away, once no volume is on it",
        );
    }
    run::require(&ground::tools(&ground))?;
    ground::check(&ground, &node.site())?;
    if args.dry_run {
        let mut plan = Plan::new(format!("make {} storage", ground.backend));
        for (what, commands) in ground::describe(&ground, &node.site()) {
            plan.commands(what, commands);
        }
        if machine::systemd_is_init() {
            plan.step("have systemd attach it after a reboot");
        }
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    undo::attempt(&node, "storage init", "storage", |transaction| {
        transaction.intend(Object::Ground { ground: ground.clone() })?;
        ground::make(&ground, &node.site())?;
        supervise::keep_storage(node.layout())?;
        node.save_ground(&ground)
    })
    .context("making storage")?;
    let chosen = storage::choose(None, &node.site())?;
    context.ui.done(format!("made {}: new volumes go to {chosen}", Object::Ground { ground }));
    Ok(Exit::Done)
}

fn attach(node: &Node, context: &Context) -> Result<Exit> {
    match node.ground()? {
        None => context.ui.already("farmctl storage init has made nothing here"),
        Some(ground) if ground::attach(&ground, &node.site())? => {
            context.ui.done(format!("attached {}", ground.base.path().display()));
        }
        Some(ground) => {
            context.ui.already(format!("{} is attached", ground.base.path().display()));
        }
    }
    Ok(Exit::Done)
}

fn remove(dry_run: bool, node: &Node, context: &Context) -> Result<Exit> {
    let Some(ground) = node.ground()? else {
        context.ui.already("farmctl storage init has made nothing here");
        return Ok(Exit::Done);
    };
    let object = Object::Ground { ground: ground.clone() };
    if dry_run {
        let mut plan = Plan::new("remove what farmctl storage init made");
        plan.step(format!("remove {}, unless volumes are on it", object.named()));
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let _lock = node.lock("storage", "storage remove")?;
    let removed = || format!("removing {object}");
    // Refused before it is forgotten: nothing has changed then.
    ground::check_empty(&ground, &node.site()).with_context(removed)?;
    let mut transaction = node.begin("storage remove", "storage")?;
    transaction.intend(object.clone())?;
    node.forget_ground()?;
    let _shield = run::Shield::raise();
    if let Err(error) = undo::remove(&object, node) {
        // Something has it open: it is there, and must not be gone after the next gc.
        node.save_ground(&ground)?;
        transaction.close()?;
        return Err(error).with_context(removed);
    }
    transaction.close()?;
    context.ui.done(format!("removed {object}"));
    Ok(Exit::Done)
}
