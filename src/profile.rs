//! A profile: the TOML that describes one application's environment.
//!
//! Pure values. Reading the file, resolving paths beside it and looking into the
//! project are the recipes' business.

mod command;
mod name;
mod parse;
mod path;
mod validate;
mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Mark as _;
use crate::size::Size;

pub use parse::parse;

/// The newest profile schema this farmctl reads.
pub const SCHEMA: u32 = 1;

/// One application: its Debian environment, what is built into it, and what runs.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// Version of this file's format; 1.
    pub schema: u32,
    /// Name of the application: `[a-z][a-z0-9-]{0,23}`, not beginning with `env-` or `stage-`.
    pub name: String,
    /// Version of the application: `[0-9A-Za-z.]{1,24}`; `--set-version` overrides it.
    pub version: String,
    /// One line for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The Debian environment `farmctl bootstrap` makes.
    pub environment: Environment,
    /// How large its volumes and snapshots are, where those have a size.
    #[serde(default, skip_serializing_if = "is_default")]
    pub storage: Volumes,
    /// Who else than root may use its chroots.
    #[serde(default, skip_serializing_if = "is_default")]
    pub schroot: Grants,
    /// What a bake needs and the tarball must not contain.
    #[serde(default)]
    pub build: Build,
    /// The virtualenv and what goes into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<Python>,
    /// Files and directories copied into the environment as they are.
    #[serde(default, rename = "copy", skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<Copied>,
    /// Configuration files rendered from templates.
    #[serde(default, rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Rendered>,
    /// Long-running commands.
    #[serde(default, rename = "process", skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
    /// Commands that run once, at bake or at start.
    #[serde(default, rename = "job", skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<Job>,
    /// Directories that outlive releases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataDirectory>,
    /// Values that never enter a tarball.
    #[serde(default, rename = "secret", skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// The nginx vhost that leads to the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<Front>,
}

impl Profile {
    /// Checks what [`parse()`] checks: for a profile that comes out of a manifest.
    ///
    /// # Errors
    ///
    /// With [`crate::error::Exit::Usage`] and the name of the key, when a value cannot be used.
    pub fn validate(&self) -> anyhow::Result<()> {
        validate::check(self).map_err(parse::Problem::into_error)
    }

    /// Gives the application another version, as `--set-version` does.
    ///
    /// # Errors
    ///
    /// When it is not a version.
    pub fn set_version(&mut self, version: &str) -> anyhow::Result<()> {
        check_version(version)
            .hint("at most 24 letters, digits and dots, as in 1.4.2 or 2.0rc1")?;
        let before = std::mem::replace(&mut self.version, version.to_owned());
        self.validate().inspect_err(|_| self.version = before)
    }

    /// Where the virtualenv lives, whether the profile makes one or not.
    #[must_use]
    pub fn virtualenv(&self) -> PathBuf {
        self.python
            .as_ref()
            .and_then(|python| python.virtualenv.clone())
            .unwrap_or_else(|| PathBuf::from(format!("/srv/{}/venv", self.name)))
    }

    /// Home directory of the user the application runs as.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        PathBuf::from(format!("/home/{}", self.environment.user))
    }

    /// The process of that name.
    #[must_use]
    pub fn process(&self, name: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.name == name)
    }

    /// The process requests go to; none without `[front]`.
    #[must_use]
    pub fn front_process(&self) -> Option<&Process> {
        match &self.front.as_ref()?.process {
            Some(name) => self.process(name),
            None => self.processes.first(),
        }
    }

    /// The jobs of a time, in their order.
    pub fn jobs_at(&self, when: When) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(move |job| job.when == when)
    }
}

/// Checks what a user typed as an application's name.
///
/// # Errors
///
/// When it is not one, before it becomes part of a path.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    name::check_name(&parse::Place::default(), name).map_err(parse::Problem::into_error_of_a_word)
}

/// Refuses what cannot be a version.
///
/// # Errors
/// When it is not one.
pub fn check_version(version: &str) -> anyhow::Result<()> {
    name::check_version(&parse::Place::default(), version)
        .map_err(parse::Problem::into_error_of_a_word)
}

impl Rendered {
    /// Permission bits.
    #[must_use]
    pub fn permissions(&self) -> u32 {
        u32::from_str_radix(&self.mode, 8).unwrap_or(0o644) & 0o777
    }
}

/// `[environment]`: what `farmctl bootstrap` makes.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Environment {
    /// Debian suite, by code name: `bookworm`, `trixie`.
    pub suite: String,
    /// Debian mirror; default: the one the host's apt sources name, else debootstrap's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Mirror of the security suite; default: the one the host's apt sources name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_mirror: Option<String>,
    /// Archive components.
    #[serde(default = "main_component")]
    pub components: Vec<String>,
    /// Packages debootstrap adds to `minbase`.
    #[serde(default)]
    pub include: Vec<String>,
    /// Packages debootstrap leaves out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Packages apt installs after the upgrade, from any of the sources.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Local `.deb` files, relative to the profile, installed with apt.
    #[serde(default)]
    pub debs: Vec<PathBuf>,
    /// More apt sources, each a deb822 stanza.
    #[serde(default)]
    pub apt_sources: Vec<String>,
    /// Pins, each an apt_preferences(5) stanza.
    #[serde(default)]
    pub apt_preferences: Vec<String>,
    /// Locale of the environment.
    #[serde(default = "c_utf8")]
    pub locale: String,
    /// Time zone, a name of the tz database.
    #[serde(default = "utc")]
    pub timezone: String,
    /// The unprivileged user the application runs as, made from /etc/skel.
    #[serde(default = "app_user")]
    pub user: String,
}

/// `[storage]`: how large volumes and snapshots are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Volumes {
    /// Size of a volume, at least; default: the node's `volume-size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_size: Option<Size>,
    /// Room a session's classic LVM snapshot begins with; default: as much as the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_size: Option<Size>,
}

/// `[schroot]`: users of the host, who each can become root of it this way (schroot(1),
/// "Security").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Grants {
    /// Users who may enter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Users who may enter as root without a password.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub root_users: Vec<String>,
    /// Users who may change an environment as root without a password.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_root_users: Vec<String>,
}

/// Written out only when it says something, so that manifests stay what they were.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `[build]`: what a bake needs and the tarball must not contain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Build {
    /// Debian packages installed for the bake and purged before packing.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Shell commands run as root in the copied project directory, before requirements are installed.
    #[serde(default)]
    pub before: Vec<String>,
}

/// `[python]`: the virtualenv and what goes into it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Python {
    /// Requirements file, relative to the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requirements: Option<PathBuf>,
    /// Refuse requirements that are not pinned by hash, there or in `farmctl.lock`.
    #[serde(default = "yes")]
    pub require_hashes: bool,
    /// The project itself: a directory, wheel or sdist relative to the profile, or `git+URL@COMMIT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Where the virtualenv lives; default `/srv/NAME/venv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtualenv: Option<PathBuf>,
    /// The interpreter of the environment the virtualenv is made with.
    #[serde(default = "python3")]
    pub interpreter: String,
    /// Which installer: `auto` (uv where it can be had, else pip), `uv` or `pip`.
    #[serde(default)]
    pub installer: Installer,
}

/// Which program installs distributions into the virtualenv. The result is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Installer {
    /// uv where the host has it or can get it, pip otherwise.
    #[default]
    Auto,
    /// uv, or fail.
    Uv,
    /// pip.
    Pip,
}

/// `[[copy]]`: a file or directory copied as it is, owned by root.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Copied {
    /// Source, relative to the profile and beneath its directory.
    pub from: PathBuf,
    /// Absolute path in the environment.
    pub to: PathBuf,
}

/// `[[file]]`: a configuration file rendered from a template.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rendered {
    /// Absolute path in the environment.
    pub path: PathBuf,
    /// Template file (Jinja syntax), relative to the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
    /// The template itself; a bake puts the file's text here, for the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Permissions, octal.
    #[serde(default = "mode_644")]
    pub mode: String,
}

/// `[[process]]`: one long-running command.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Process {
    /// Name: `[a-z][a-z0-9-]{0,15}`.
    pub name: String,
    /// The command, one simple command of sh with `{{ … }}` values (the start script puts `exec`
    /// before it); the virtualenv's `bin` comes first on PATH.
    pub command: String,
    /// Working directory, absolute; default `/`.
    #[serde(default = "root_directory")]
    pub directory: PathBuf,
    /// Environment variables of the command.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// How new code and configuration are taken up.
    #[serde(default)]
    pub reload: Reload,
    /// The command that `reload = "command"` runs, a line of sh like `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_command: Option<String>,
    /// What `reload = "rolling"` runs before it stops the process, a line of sh like `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<String>,
    /// What `reload = "rolling"` runs when the process serves again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admit: Option<String>,
    /// A command that checks the new code before a reload, a line of sh like `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// What shows that the process serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// How the process is stopped.
    #[serde(default)]
    pub stop: Stop,
}

/// How a process takes up new code: `"HUP"`, another signal's name, `"command"`, `"rolling"`,
/// `"replace"` or `"restart"`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Reload {
    /// Stop and start.
    #[default]
    Restart,
    /// Send this signal (without `SIG`) to the server.
    Signal(Signal),
    /// Run the process's `reload-command`.
    Command,
    /// Have the balancer before it send it nothing, by `drain`; restart it; and have it sent
    /// requests again, by `admit`, once it serves.
    Rolling,
    /// Start another beside it, and stop it once that one serves. For what takes its work from a
    /// queue: two at once would share a socket.
    Replace,
}

/// A signal by its name without `SIG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Hang-up.
    Hup,
    /// Interrupt.
    Int,
    /// Quit.
    Quit,
    /// Terminate.
    Term,
    /// User-defined 1.
    Usr1,
    /// User-defined 2.
    Usr2,
    /// Window size change (Apache's graceful stop).
    Winch,
}

/// `ready = { http = "/", within = "30s" }`; one of `http`, `command` and `socket`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ready {
    /// Path asked for by HTTP; any status from 200 to 399 is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Text that the answer to `http` must have in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// A command that exits with 0 when the process serves, a line of sh like `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Whether it serves when nginx may connect to its socket.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub socket: bool,
    /// How long it may take.
    #[serde(default = "half_a_minute")]
    pub within: Seconds,
}

/// What shows that a process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign<'a> {
    /// It answers for this path, with this text in the answer.
    Http {
        /// Path of the URL.
        path: &'a str,
        /// Any if there is none.
        body: Option<&'a str>,
    },
    /// nginx may connect to its socket.
    Socket,
    /// The start script's `ready` succeeds.
    Command(&'a str),
}

/// `stop = { signal = "TERM", within = "30s" }`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Stop {
    /// Signal that asks the process to end.
    #[serde(default = "term")]
    pub signal: Signal,
    /// How long it may take before SIGKILL.
    #[serde(default = "half_a_minute")]
    pub within: Seconds,
}

/// `[[job]]`: a command that runs once.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Job {
    /// Name, as processes.
    pub name: String,
    /// The command, a line of sh with `{{ … }}` values.
    pub command: String,
    /// When it runs.
    pub when: When,
    /// Skip the job when this path exists in the environment or session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creates: Option<PathBuf>,
    /// Working directory, absolute; default `/`.
    #[serde(default = "root_directory")]
    pub directory: PathBuf,
    /// Environment variables of the command.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// When a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// As root while baking; its results are in the tarball.
    Bake,
    /// As the application's user in the session, before its processes start.
    Start,
    /// The same, but only in the session that an upgrade begins, while the release before
    /// still serves: what brings data into the form the new release needs. A rollback does
    /// not undo it.
    Upgrade,
}

/// `[[data]]`: a directory on the node, bind-mounted into every session.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DataDirectory {
    /// Name, as processes: the directory's name on the node.
    pub name: String,
    /// Absolute path in the session.
    pub path: PathBuf,
}

/// `[[secret]]`: a value from `/etc/farmctl/apps/NAME.env`, a file for the processes.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Secret {
    /// Name: `[A-Z][A-Z0-9_]{0,63}`; the value is in `/run/project/secrets/NAME`.
    pub name: String,
    /// Make a random value at install when the node has none.
    #[serde(default)]
    pub generate: bool,
}

/// `[front]`: the nginx vhost.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Front {
    /// Where nginx listens: `PORT` or `ADDRESS:PORT`.
    #[serde(default)]
    pub listen: Vec<String>,
    /// Host names; default: any.
    #[serde(default)]
    pub server_names: Vec<String>,
    /// Other names, whose visitors are sent to the first of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirect_from: Vec<String>,
    /// The process requests go to; default: the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Locations nginx serves itself, from the release.
    #[serde(default, rename = "static", skip_serializing_if = "Vec::is_empty")]
    pub statics: Vec<StaticFiles>,
    /// Largest request body, in MiB.
    #[serde(default = "body_limit")]
    pub max_body_mib: u32,
    /// How long the process may be silent before its answer, and in it.
    #[serde(default = "a_minute")]
    pub timeout: Seconds,
    /// Paths the process must answer before an upgrade leads requests to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm_up: Vec<String>,
    /// A page of the release that nginx shows while nobody answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_page: Option<PathBuf>,
    /// Where nginx speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

impl Front {
    /// All addresses nginx listens on.
    pub fn addresses(&self) -> impl Iterator<Item = &String> {
        self.listen.iter().chain(self.tls.iter().flat_map(|tls| &tls.listen))
    }

    /// All names nginx has a vhost for; none, if it is for any.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.server_names.iter().chain(&self.redirect_from)
    }

    /// The first of its names that is one host's: what stands for many, or for all, is not.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        let is_one = |name: &&String| {
            name.starts_with(|letter: char| letter.is_ascii_alphanumeric()) && !name.contains('*')
        };
        self.server_names.iter().find(is_one).map(String::as_str)
    }
}

/// `[front.tls]`: HTTPS.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tls {
    /// Where nginx speaks TLS: `PORT` or `ADDRESS:PORT`.
    pub listen: Vec<String>,
    /// Whether who comes by `[front] listen` is sent there.
    #[serde(default = "yes")]
    pub redirect: bool,
}

/// `[[front.static]]`: a location nginx serves itself.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StaticFiles {
    /// URL prefix, `/static/`.
    pub location: String,
    /// Directory in the release (exported at install) or in one of the `[[data]]` directories.
    pub path: PathBuf,
}

/// A duration written `30s`, `5m`, `1h` or as a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u64);

fn main_component() -> Vec<String> {
    vec!["main".to_owned()]
}
fn c_utf8() -> String {
    "C.UTF-8".to_owned()
}
fn utc() -> String {
    "UTC".to_owned()
}
fn app_user() -> String {
    "app".to_owned()
}
fn yes() -> bool {
    true
}
fn python3() -> String {
    "python3".to_owned()
}
fn mode_644() -> String {
    "0644".to_owned()
}
fn root_directory() -> PathBuf {
    PathBuf::from("/")
}
fn term() -> Signal {
    Signal::Term
}
fn a_minute() -> Seconds {
    Seconds(60)
}
fn half_a_minute() -> Seconds {
    Seconds(30)
}
fn body_limit() -> u32 {
    16
}
