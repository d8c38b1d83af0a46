//! This machine as farmctl knows it: identity, settings, state, locks, transactions.
//!
//! State never names what does not exist: recipes create, then write state; forget in
//! state, then delete. Before the first change a recipe opens a [`Transaction`], whose
//! record lists every [`Object`] it is about to make. The record is locked while the
//! recipe lives, so a record nobody holds is what an interrupted run left.

mod object;
mod transaction;

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::object::Object;
pub use self::transaction::{Transaction, TransactionRecord};
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::layout::Layout;
use crate::manifest::{self, FileIndex, Manifest};
use crate::release::{App, EnvironmentRecord};
use crate::settings::{Ground, Settings, Site};

/// The newest schema of `node.json` and transaction records this farmctl reads.
const SCHEMA: u32 = 1;
/// The first user id given to applications: far above the host's people and daemons.
pub const FIRST_UID: u32 = 200_000;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Identity {
    schema: u32,
    id: String,
}

/// A lock on an application or environment, held until dropped, released by the kernel
/// if farmctl is killed.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct Lock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

/// This machine.
#[derive(Debug)]
pub struct Node {
    layout: Layout,
    settings: Settings,
    id: Option<String>,
}

impl Node {
    /// Reads settings and identity; changes nothing.
    ///
    /// # Errors
    /// When a file of the node is damaged or from a newer farmctl.
    pub fn open(layout: Layout) -> Result<Self> {
        let path = layout.node_settings();
        let settings = match file::read_if_there(&path)? {
            None => Settings::default(),
            Some(text) => toml::from_str(&text)
                .with_context(|| format!("reading {}", path.display()))
                .hint_with(|| format!("correct {}", path.display()))?,
        };
        let id = read::<Identity>(&layout.node_file())?.map(|identity| identity.id);
        if id.is_none() && !file::names_in(&layout.apps())?.is_empty() {
            return refuse(
                format_args!(
                    "{} is missing, but there are applications",
                    layout.node_file().display()
                ),
                "put {\"schema\": 1, \"id\": \"ID\"} there, with the ID that grep -r farmctl.node= \
                 /etc/schroot/chroot.d shows; farmctl does not guess which volumes are its own",
            );
        }
        Ok(Self { layout, settings, id })
    }

    /// Paths.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What storage backends must know of this machine.
    #[must_use]
    pub fn site(&self) -> Site<'_> {
        Site { layout: &self.layout, settings: &self.settings, node: self.id() }
    }

    /// Id of this node; none before the first change.
    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// With an id: for verbs whose volumes are to be told apart from others from the first.
    ///
    /// # Errors
    /// When the state's directories cannot be made.
    pub fn settled(mut self) -> Result<Self> {
        self.id = Some(self.settle()?);
        Ok(self)
    }

    /// Makes the directories of the state and gives the node an id, if it has none.
    fn settle(&self) -> Result<String> {
        for (directory, mode) in [
            (self.layout.apps(), 0o755),
            (self.layout.environments(), 0o755),
            (self.layout.transactions(), 0o755),
            (self.layout.volumes(), 0o700),
        ] {
            file::make_directory(&directory, mode)?;
        }
        if let Some(id) = read::<Identity>(&self.layout.node_file())? {
            return Ok(id.id);
        }
        let identity = Identity { schema: SCHEMA, id: random_id()? };
        write(&self.layout.node_file(), &identity)?;
        Ok(identity.id)
    }

    /// Locks an application (`NAME`) or environment (`env-NAME`) against other farmctls.
    ///
    /// # Errors
    /// When another one holds it: saying which process and verb.
    pub fn lock(&self, subject: &str, verb: &str) -> Result<Lock> {
        let path = self.layout.lock(subject);
        file::make_directory(path.parent().unwrap_or(Path::new("/")), 0o755)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        match Flock::lock(
            file.try_clone().context("opening a lock")?,
            FlockArg::LockExclusiveNonblock,
        ) {
            Ok(mut lock) => {
                lock.set_len(0).context("writing a lock")?;
                write!(lock, "{} {verb}", std::process::id()).context("writing a lock")?;
                Ok(Lock(lock))
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).context("reading a lock")?;
                let (pid, verb) = holder.split_once(' ').unwrap_or(("unknown", "unknown"));
                let what = subject
                    .strip_prefix("env-")
                    .map_or_else(|| subject.to_owned(), |name| format!("environment {name}"));
                refuse(
                    format_args!("{what} is being changed by another farmctl (pid {pid}, {verb})"),
                    "try again when it has ended",
                )
            }
            Err((_, error)) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }

    /// Whether `tend` is at work on it.
    ///
    /// # Errors
    /// When the lock cannot be read.
    pub fn is_tended(&self, subject: &str) -> Result<bool> {
        let holder = file::read_if_there(&self.layout.lock(subject))?.unwrap_or_default();
        Ok(holder.ends_with(" tend"))
    }

    /// State of an application.
    ///
    /// # Errors
    /// When it is damaged or from a newer farmctl.
    pub fn app(&self, name: &str) -> Result<Option<App>> {
        read(&self.layout.app_file(name))
    }

    /// State of an application that must be there.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn installed(&self, name: &str) -> Result<App> {
        match self.app(name)? {
            Some(app) => Ok(app),
            None => {
                let known: Vec<String> = self.apps()?.into_iter().map(|app| app.name).collect();
                let near = known.iter().min_by_key(|known| strsim::levenshtein(known, name));
                match near {
                    Some(near) if strsim::levenshtein(near, name) <= 2 => refuse(
                        format_args!("no application {name} is installed"),
                        format!("did you mean {near}?"),
                    ),
                    _ => refuse(
                        format_args!("no application {name} is installed"),
                        "farmctl list shows what is installed; farmctl install FILE installs",
                    ),
                }
            }
        }
    }

    /// The manifest of an installed release; none if it is not there.
    ///
    /// # Errors
    /// When it is none, or a newer farmctl's.
    pub fn manifest(&self, app: &str, version: &str) -> Result<Option<Manifest>> {
        let path = self.layout.release(app, version).join("manifest.json");
        let text = file::read_if_there(&path)?;
        text.map(|text| manifest::parse(text.as_bytes()))
            .transpose()
            .with_context(|| format!("reading {}", path.display()))
    }

    /// The file index of an installed release; none if it is not there.
    ///
    /// # Errors
    /// When it is none.
    pub fn index(&self, app: &str, version: &str) -> Result<Option<FileIndex>> {
        let path = self.layout.release(app, version).join("files.json");
        let read = |text: String| {
            manifest::parse_index(&text).with_context(|| format!("reading {}", path.display()))
        };
        file::read_if_there(&path)?.map(read).transpose()
    }

    /// All applications, by name.
    ///
    /// # Errors
    /// When one's state is damaged.
    pub fn apps(&self) -> Result<Vec<App>> {
        let mut apps = Vec::new();
        for name in self.app_names()? {
            apps.extend(self.app(&name)?);
        }
        Ok(apps)
    }

    /// Names of all applications, also of those whose state is damaged.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn app_names(&self) -> Result<Vec<String>> {
        let files = file::names_in(&self.layout.apps())?;
        let names = files.iter().filter_map(|file| file.strip_suffix(".json"));
        Ok(names.filter(|name| !name.starts_with('.')).map(str::to_owned).collect())
    }

    /// Publishes an application's state.
    ///
    /// # Errors
    /// When it cannot be written; the old state is then in force.
    pub fn save_app(&self, app: &App) -> Result<()> {
        write(&self.layout.app_file(&app.name), app)
    }

    /// Forgets an application.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn forget_app(&self, name: &str) -> Result<()> {
        file::remove_if_there(&self.layout.app_file(name))
    }

    /// What `farmctl storage init` made, if it did.
    ///
    /// # Errors
    /// When its record is damaged or from a newer farmctl.
    pub fn ground(&self) -> Result<Option<Ground>> {
        read(&self.layout.ground())
    }

    /// Publishes what volumes stand on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_ground(&self, ground: &Ground) -> Result<()> {
        write(&self.layout.ground(), ground)
    }

    /// Forgets what volumes stood on.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn forget_ground(&self) -> Result<()> {
        file::remove_if_there(&self.layout.ground())
    }

    /// Record of an environment.
    ///
    /// # Errors
    /// When it is damaged or from a newer farmctl.
    pub fn environment(&self, name: &str) -> Result<Option<EnvironmentRecord>> {
        read(&self.layout.environment_file(name))
    }

    /// All environments, by name.
    ///
    /// # Errors
    /// When a record is damaged.
    pub fn environments(&self) -> Result<Vec<EnvironmentRecord>> {
        let mut found = Vec::new();
        for name in file::names_in(&self.layout.environments())? {
            if let Some(name) = name.strip_suffix(".json").filter(|name| !name.starts_with('.')) {
                found.extend(self.environment(name)?);
            }
        }
        Ok(found)
    }

    /// Publishes an environment's record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_environment(&self, record: &EnvironmentRecord) -> Result<()> {
        write(&self.layout.environment_file(&record.name), record)
    }

    /// Forgets an environment.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn forget_environment(&self, name: &str) -> Result<()> {
        file::remove_if_there(&self.layout.environment_file(name))
    }
}

/// Reads a JSON file with a `schema` of its own; none if it is not there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let Some(text) = file::read_if_there(path)? else {
        return Ok(None);
    };
    let parse = || -> Result<T> {
        let version: Version = serde_json::from_str(&text)?;
        if version.schema > SCHEMA {
            bail!(
                "it was written by a newer farmctl (schema {}, this one reads {SCHEMA})",
                version.schema
            );
        }
        Ok(serde_json::from_str(&text)?)
    };
    parse()
        .with_context(|| format!("reading {}", path.display()))
        .hint_with(|| {
            format!(
                "put a copy of {} there, or use the farmctl that wrote it; without one: README.md, \
                 \"A damaged file of the state\"",
                path.display()
            )
        })
        .map(Some)
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context("writing state")?;
    text.push(b'\n');
    file::publish(path, &text, 0o644)
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Eight random hexadecimal digits.
fn random_id() -> Result<String> {
    let mut bytes = [0u8; 4];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("reading /dev/urandom")?;
    Ok(crate::hash::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(root: &Path) -> Node {
        Node::open(Layout::new(root, None)).expect("an empty root is a new node")
    }

    #[test]
    fn a_second_farmctl_is_told_who_holds_the_lock() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let node = node(root.path());
        let held = node.lock("shop", "install").expect("nobody holds it");
        let error = node.lock("shop", "start").expect_err("it is held");
        let pid = std::process::id();
        assert_eq!(
            error.to_string(),
            format!("shop is being changed by another farmctl (pid {pid}, install)")
        );
        drop(held);
        drop(node.lock("shop", "start").expect("it was released"));
    }

    #[test]
    fn state_of_a_newer_farmctl_is_refused() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let node = node(root.path());
        drop(node.begin("install", "shop").expect("the root is writable"));
        fs::write(node.layout().app_file("shop"), "{\"schema\": 7}").expect("it is writable");
        let error = node.app("shop").expect_err("schema 7 is from the future");
        assert!(
            format!("{error:#}").contains("newer farmctl (schema 7, this one reads 1)"),
            "{error:#}"
        );
    }
}
