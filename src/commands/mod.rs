//! One file per verb; each reads like a recipe.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::error::{Mark as _, refuse};
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::node::{Lock, Node};
use crate::plan::Plan;
use crate::profile::Process;
use crate::release::{App, Session};
use crate::run;
use crate::tarball::Archive;
use crate::ui::Ui;

pub mod bake;
pub mod bootstrap;
pub mod doctor;
pub mod gc;
pub mod install;
pub mod list;
pub mod lock;
pub mod logs;
pub mod reload;
pub mod remove;
pub mod restart;
pub mod shell;
pub mod show;
pub mod start;
pub mod status;
pub mod stop;
pub mod storage;
pub mod tend;
pub mod verify;

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

/// Refuses a name that cannot be one before it becomes part of a path.
fn check_name(name: &str) -> Result<()> {
    crate::profile::check_name(name)
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
    Archive::open(path).hint(if path.exists() {
        DAMAGED
    } else {
        "FILE is a node tarball: what farmctl bake writes"
    })
}

/// Reads the manifest of an installed release.
fn manifest_of(node: &Node, app: &App, version: &str) -> Result<Manifest> {
    let path = node.layout().release(&app.name, version).join("manifest.json");
    let text = crate::file::read_if_there(&path)?;
    match text {
        Some(text) => crate::tarball::parse_manifest(text.as_bytes()),
        None => refuse(
            format_args!("{} is missing", path.display()),
            format!("farmctl remove {} --release {version}, then install it again", app.name),
        ),
    }
}

/// How full a thin pool's metadata is, as the end of a line; nothing for other storage.
fn metadata(percent: Option<f64>) -> String {
    percent.map_or(String::new(), |percent| format!(", metadata {percent:.0} % full"))
}

/// An application that is started, with what was read of it.
struct Started {
    app: App,
    session: Session,
    manifest: Manifest,
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
