//! This machine as farmctl knows it: identity, settings, state, locks, transactions.
//!
//! State never names what does not exist: recipes create, then write state; forget in
//! state, then delete. Before the first change a recipe opens a [`Transaction`], whose
//! record lists every [`Object`] it is about to make. The record is locked while the
//! recipe lives, so a record nobody holds is what an interrupted run left.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Mark as _, refuse};
use crate::file;
use crate::layout::Layout;
use crate::release::{App, EnvironmentRecord};
use crate::settings::{Ground, Settings, Site};
use crate::storage::Mark;

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

/// Something a recipe makes outside its own memory, and knows how to find again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Object {
    /// A volume.
    Volume {
        /// Backend.
        storage: String,
        /// Name.
        name: String,
    },
    /// The seal of a volume that was broken for a while.
    Seal {
        /// Backend.
        storage: String,
        /// Name of the volume.
        name: String,
    },
    /// What volumes stand on.
    Ground {
        /// What it is.
        ground: Ground,
    },
    /// A chroot definition and its fstab.
    Chroot {
        /// Name to schroot.
        name: String,
    },
    /// A schroot session, with the copy its storage keeps of it.
    Session {
        /// Backend of the release it was begun from.
        #[serde(default = "directory")]
        storage: String,
        /// Name to schroot.
        name: String,
    },
    /// An application's socket directory.
    Sockets {
        /// Application.
        app: String,
    },
    /// An application's programs under the supervisor.
    Programs {
        /// Application.
        app: String,
    },
    /// An application's vhost and links.
    Front {
        /// Application.
        app: String,
    },
    /// An application's account on the host.
    Account {
        /// Application.
        app: String,
    },
    /// A file or directory of ours.
    Path {
        /// Where.
        path: PathBuf,
    },
}

/// The backend of sessions in records that were written when there was only one.
fn directory() -> String {
    "directory".to_owned()
}

impl Object {
    /// The session that serves an application, if it is started.
    #[must_use]
    pub fn session_of(app: &App) -> Option<Self> {
        let session = app.session.as_ref()?;
        let storage = app.release(&session.version).map_or_else(directory, |r| r.storage.clone());
        Some(Self::Session { storage, name: session.name.clone() })
    }

    /// Within a sentence: "the volume fv-hello-1.0"; a path is its own name.
    #[must_use]
    pub fn named(&self) -> String {
        match self {
            Self::Path { path } => path.display().to_string(),
            _ => format!("the {self}"),
        }
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Volume { name, .. } => write!(f, "volume {name}"),
            Self::Seal { name, .. } => write!(f, "broken seal of volume {name}"),
            Self::Ground { ground } => {
                write!(f, "{} storage on {}", ground.backend, ground.base.path().display())
            }
            Self::Chroot { name } => write!(f, "chroot {name}"),
            Self::Session { name, .. } => write!(f, "session {name}"),
            Self::Sockets { app } => write!(f, "sockets of {app}"),
            Self::Programs { app } => write!(f, "processes of {app}"),
            Self::Front { app } => write!(f, "vhost of {app}"),
            Self::Account { app } => write!(f, "account of {app}"),
            Self::Path { path } => write!(f, "{}", path.display()),
        }
    }
}

/// What a transaction wrote down before it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TransactionRecord {
    /// Version of this format; 1.
    pub schema: u32,
    /// Id.
    pub id: String,
    /// Verb.
    pub verb: String,
    /// Application or environment.
    pub subject: String,
    /// When it began, seconds since 1970.
    pub began: i64,
    /// What it made or was about to make, oldest first.
    pub objects: Vec<Object>,
}

/// A recipe at work. Closing it removes the record; dropping it leaves the record to `gc`.
#[derive(Debug)]
#[must_use = "a transaction that is not closed is rubbish to gc"]
pub struct Transaction {
    record: TransactionRecord,
    file: Flock<File>,
    path: PathBuf,
    node: String,
}

impl Transaction {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The verb that opened it.
    #[must_use]
    pub fn verb(&self) -> &str {
        &self.record.verb
    }

    /// The application or environment it is about.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.record.subject
    }

    /// The mark volumes made by it carry.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { node: self.node.clone(), transaction: self.record.id.clone() }
    }

    /// What it made or was about to make, oldest first.
    #[must_use]
    pub fn objects(&self) -> &[Object] {
        &self.record.objects
    }

    /// Writes down that `object` is about to be made; to be called before it is.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn intend(&mut self, object: Object) -> Result<()> {
        self.record.objects.push(object);
        self.write()
    }

    /// Takes `object` off the record: it is published, or was there before.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn release(&mut self, object: &Object) -> Result<()> {
        self.record.objects.retain(|known| known != object);
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.record).context("writing a transaction")?;
        let write = |file: &mut File| -> std::io::Result<()> {
            file.rewind()?;
            file.write_all(&text)?;
            file.set_len(text.len() as u64)?;
            file.sync_data()
        };
        write(&mut self.file).with_context(|| format!("writing {}", self.path.display()))
    }

    /// Ends the transaction: nothing of it is left to undo.
    ///
    /// # Errors
    /// When the record cannot be removed.
    pub fn close(self) -> Result<()> {
        file::remove_if_there(&self.path)
    }
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
                "restore the file from a backup; farmctl does not guess which volumes are its own",
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

    /// Opens a transaction.
    ///
    /// # Errors
    /// When its record cannot be written.
    pub fn begin(&self, verb: &str, subject: &str) -> Result<Transaction> {
        let node = self.settle()?;
        let id = random_id()?;
        let path = self.layout.transaction_file(&id);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("making {}", path.display()))?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .with_context(|| format!("locking {}", path.display()))?;
        let record = TransactionRecord {
            schema: SCHEMA,
            id,
            verb: verb.to_owned(),
            subject: subject.to_owned(),
            began: now(),
            objects: Vec::new(),
        };
        let mut transaction = Transaction { record, file, path, node };
        transaction.write()?;
        Ok(transaction)
    }

    /// Takes over the transactions whose farmctl is gone: their locks are held by the
    /// answer, so that two `gc` do not work on one.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn abandoned(&self) -> Result<Vec<Transaction>> {
        let mut found = Vec::new();
        for name in file::names_in(&self.layout.transactions())? {
            let Some(id) = name.strip_suffix(".json") else { continue };
            let path = self.layout.transaction_file(id);
            let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
                continue;
            };
            let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
                continue;
            };
            let mut text = String::new();
            file.read_to_string(&mut text)
                .with_context(|| format!("reading {}", path.display()))?;
            // Killed between making the file and writing it: it had made nothing.
            let record = serde_json::from_str(&text).unwrap_or_else(|_| TransactionRecord {
                schema: SCHEMA,
                id: id.to_owned(),
                verb: "unknown".to_owned(),
                subject: "unknown".to_owned(),
                began: 0,
                objects: Vec::new(),
            });
            let node = self.id.clone().unwrap_or_default();
            found.push(Transaction { record, file, path, node });
        }
        Ok(found)
    }

    /// Everything that living and abandoned transactions have written down.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub fn journaled(&self) -> Result<Vec<Object>> {
        let mut objects = Vec::new();
        for name in file::names_in(&self.layout.transactions())? {
            // Gone or half written since: then its transaction has made nothing yet, or nothing more.
            let text =
                fs::read_to_string(self.layout.transactions().join(&name)).unwrap_or_default();
            let Ok(record) = serde_json::from_str::<TransactionRecord>(&text) else { continue };
            objects.push(Object::Path { path: self.layout.work(&record.id) });
            objects.extend(record.objects);
        }
        Ok(objects)
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

    /// All applications, by name.
    ///
    /// # Errors
    /// When one's state is damaged.
    pub fn apps(&self) -> Result<Vec<App>> {
        let mut apps = Vec::new();
        for name in file::names_in(&self.layout.apps())? {
            if let Some(name) = name.strip_suffix(".json").filter(|name| !name.starts_with('.')) {
                apps.extend(self.app(name)?);
            }
        }
        Ok(apps)
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
            format!("restore {} from a backup, or use the farmctl that wrote it", path.display())
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
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
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
    fn a_transaction_is_abandoned_when_nobody_holds_its_record() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let node = node(root.path());
        let mut transaction = node.begin("install", "shop").expect("the root is writable");
        let object = Object::Chroot { name: "farmctl-shop-1".to_owned() };
        transaction.intend(object.clone()).expect("the record is writable");
        assert!(node.abandoned().expect("it can be read").is_empty());
        drop(transaction);
        let abandoned = node.abandoned().expect("it can be read");
        assert_eq!(abandoned.len(), 1);
        assert_eq!(abandoned[0].objects(), [object]);
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
