//! Every path farmctl owns, and the few it writes on other packages' ground.
//!
//! `--root DIR` relocates farmctl's own paths. schroot and nginx have no such switch:
//! their files lie where those programs look for them.

use std::path::{Path, PathBuf};

/// Where farmctl keeps its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
    cache: Option<PathBuf>,
}

impl Layout {
    /// Paths beneath `root` (`/` on a node); the cache elsewhere if `cache` says so.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, cache: Option<PathBuf>) -> Self {
        Self { root: root.into(), cache }
    }

    fn state(&self) -> PathBuf {
        self.root.join("var/lib/farmctl")
    }

    fn runtime(&self) -> PathBuf {
        self.root.join("run/farmctl")
    }

    /// The root all other paths lie beneath.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Settings of the node, written by the administrator.
    #[must_use]
    pub fn node_settings(&self) -> PathBuf {
        self.root.join("etc/farmctl/node.toml")
    }

    /// Secrets of an application: `KEY=VALUE` lines, root only.
    #[must_use]
    pub fn secrets(&self, app: &str) -> PathBuf {
        self.root.join("etc/farmctl/apps").join(format!("{app}.env"))
    }

    /// Directory of the certificates the administrator gives vhosts: `NAME.crt`, `NAME.key`.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.root.join("etc/farmctl/tls")
    }

    /// Directory of those the node has made itself.
    #[must_use]
    pub fn own_certificates(&self) -> PathBuf {
        self.state().join("tls")
    }

    /// Directory of the administrator's own lines for a vhost: `*.conf`.
    #[must_use]
    pub fn snippets(&self, app: &str) -> PathBuf {
        self.root.join("etc/farmctl/nginx").join(app)
    }

    /// The secret key this machine signs tarballs with; its public half beside it.
    #[must_use]
    pub fn signing_key(&self) -> PathBuf {
        self.root.join("etc/farmctl/signing.key")
    }

    /// Directory of the public keys this node trusts.
    #[must_use]
    pub fn trusted_keys(&self) -> PathBuf {
        self.root.join("etc/farmctl/keys.d")
    }

    /// The highest serial installed of an application.
    #[must_use]
    pub fn accepted(&self, app: &str) -> PathBuf {
        self.state().join("trust").join(format!("{app}.json"))
    }

    /// Identity of the node.
    #[must_use]
    pub fn node_file(&self) -> PathBuf {
        self.state().join("node.json")
    }

    /// Directory of the applications' state files.
    #[must_use]
    pub fn apps(&self) -> PathBuf {
        self.state().join("apps")
    }

    /// State of an application.
    #[must_use]
    pub fn app_file(&self, app: &str) -> PathBuf {
        self.apps().join(format!("{app}.json"))
    }

    /// What was done to an application.
    #[must_use]
    pub fn history(&self, app: &str) -> PathBuf {
        self.state().join("history").join(format!("{app}.jsonl"))
    }

    /// What was done to it before that.
    #[must_use]
    pub fn older_history(&self, app: &str) -> PathBuf {
        self.state().join("history").join(format!("{app}.jsonl.1"))
    }

    /// Directory of the environments' records.
    #[must_use]
    pub fn environments(&self) -> PathBuf {
        self.state().join("environments")
    }

    /// Record of a bootstrapped environment.
    #[must_use]
    pub fn environment_file(&self, name: &str) -> PathBuf {
        self.environments().join(format!("{name}.json"))
    }

    /// Directories in which files and links are published, our own and others', and how many
    /// floors beneath each.
    #[must_use]
    pub fn published(&self) -> Vec<(PathBuf, usize)> {
        let trees = [self.root.join("etc/farmctl"), self.apps(), self.environments()];
        let more = [self.state().join("trust"), self.supervisor(), self.front(), self.pages()];
        let others = [SYSTEMD_UNITS, SCHROOT_CHROOTS, SCHROOT_PROFILE, SCHROOT_SETUP];
        let others = others.into_iter().chain([NGINX_AVAILABLE, NGINX_ENABLED]).map(PathBuf::from);
        let trees = trees.into_iter().chain(more).map(|tree| (tree, 3));
        trees.chain(others.chain([self.state()]).map(|directory| (directory, 0))).collect()
    }

    /// Directory of the records of unfinished transactions.
    #[must_use]
    pub fn transactions(&self) -> PathBuf {
        self.state().join("tx")
    }

    /// Record of a transaction.
    #[must_use]
    pub fn transaction_file(&self, id: &str) -> PathBuf {
        self.transactions().join(format!("{id}.json"))
    }

    /// Directory of the applications' installed releases.
    #[must_use]
    pub fn releases(&self) -> PathBuf {
        self.state().join("releases")
    }

    /// Manifest and file index of an installed release.
    #[must_use]
    pub fn release(&self, app: &str, version: &str) -> PathBuf {
        self.releases().join(app).join(version)
    }

    /// Directory of the applications' exported static files.
    #[must_use]
    pub fn static_exports(&self) -> PathBuf {
        self.state().join("static")
    }

    /// Root-owned copy of a release's static files, for nginx.
    #[must_use]
    pub fn static_export(&self, app: &str, version: &str) -> PathBuf {
        self.static_exports().join(app).join(version)
    }

    /// Directory of the pages for visitors whom nobody answers.
    #[must_use]
    pub fn pages(&self) -> PathBuf {
        self.state().join("pages")
    }

    /// An application's own page for them: that of the release that serves, or served last.
    #[must_use]
    pub fn page(&self, app: &str) -> PathBuf {
        self.pages().join(app)
    }

    /// Directory of the volumes of the `directory` and `btrfs` storages.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.state().join("volumes")
    }

    /// Directory of the session copies of the `btrfs` storage, on the volumes' file system.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.volumes().join(".sessions")
    }

    /// Record of what `farmctl storage init` made.
    #[must_use]
    pub fn ground(&self) -> PathBuf {
        self.state().join("storage.json")
    }

    /// The file volumes lie in on a machine with one disk.
    #[must_use]
    pub fn ground_file(&self) -> PathBuf {
        self.state().join("storage.img")
    }

    /// Directory of the places where volumes with a file system of their own are mounted
    /// while farmctl works in them.
    #[must_use]
    pub fn trees(&self) -> PathBuf {
        self.runtime().join("trees")
    }

    /// Directory of an application's data on this node.
    #[must_use]
    pub fn app_data(&self, app: &str) -> PathBuf {
        self.state().join("data").join(app)
    }

    /// Scratch directory of a transaction, on the file system of the state.
    #[must_use]
    pub fn work(&self, transaction: &str) -> PathBuf {
        self.state().join("work").join(transaction)
    }

    /// Directory of scratch directories.
    #[must_use]
    pub fn works(&self) -> PathBuf {
        self.state().join("work")
    }

    /// Directory of farmctl's supervisord configuration.
    #[must_use]
    pub fn supervisor(&self) -> PathBuf {
        self.state().join("supervisor")
    }

    /// Everything that can be made again.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| self.root.join("var/cache/farmctl"))
    }

    /// Bootstrapped trees, by the hash of what they were made from.
    #[must_use]
    pub fn bootstrap_cache(&self) -> PathBuf {
        self.cache().join("bootstrap")
    }

    /// Compressed segments of tarballs, by what they hold.
    #[must_use]
    pub fn segments(&self) -> PathBuf {
        self.cache().join("segments")
    }

    /// Programs fetched for builds (uv).
    #[must_use]
    pub fn tools(&self) -> PathBuf {
        self.cache().join("tools")
    }

    /// Locks, one file per application or environment.
    #[must_use]
    pub fn lock(&self, subject: &str) -> PathBuf {
        self.runtime().join("lock").join(subject)
    }

    /// The directory of an application's sockets, bound into its session at [`SOCKETS_INSIDE`].
    #[must_use]
    pub fn sockets(&self, app: &str) -> PathBuf {
        self.runtime().join("apps").join(app)
    }

    /// A process's socket on the host.
    #[must_use]
    pub fn socket(&self, app: &str, session: &str, process: &str) -> PathBuf {
        self.sockets(app).join(format!("{session}.{process}.sock"))
    }

    /// Directory of the links nginx follows.
    #[must_use]
    pub fn front(&self) -> PathBuf {
        self.runtime().join("front")
    }

    /// The link nginx goes through, to the way to the session that serves.
    #[must_use]
    pub fn front_link(&self, app: &str) -> PathBuf {
        self.front().join(app)
    }

    /// Directory of the ways to all sessions. No application has such a name.
    #[must_use]
    pub fn ways(&self) -> PathBuf {
        self.front().join(".sessions")
    }

    /// The way to a session: what [`Layout::front_link`] leads to while it serves.
    #[must_use]
    pub fn way(&self, session: &str) -> PathBuf {
        self.ways().join(session)
    }

    /// Where nginx connects to: the socket of the session that serves.
    #[must_use]
    pub fn front_socket(&self, app: &str) -> PathBuf {
        self.front_link(app).join(WAY_SOCKET)
    }

    /// Where nginx connects to when what serves refuses a connection or breaks it off: the
    /// socket of the session that stands by. Mostly it is not there.
    #[must_use]
    pub fn front_backup(&self, app: &str) -> PathBuf {
        self.front_link(app).join(WAY_BACKUP)
    }

    /// Control socket of farmctl's supervisord.
    #[must_use]
    pub fn supervisor_socket(&self) -> PathBuf {
        self.runtime().join("supervisor.sock")
    }

    /// Pid file of farmctl's supervisord.
    #[must_use]
    pub fn supervisor_pid(&self) -> PathBuf {
        self.runtime().join("supervisord.pid")
    }

    /// Directory of all logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("var/log/farmctl")
    }

    /// Directory of an application's logs.
    #[must_use]
    pub fn app_logs(&self, app: &str) -> PathBuf {
        self.logs().join(app)
    }

    /// Log of one process of an application in the session of this id.
    #[must_use]
    pub fn process_log(&self, app: &str, process: &str, id: &str) -> PathBuf {
        self.app_logs(app).join(format!("{process}.{id}.log"))
    }
}

/// How the name of a volume begins that something is being made on, or that is kept for it.
pub const STAGE: &str = "fv-stage-";

/// Names in the way to a session: its socket, the one beside it that stands by, and its
/// release's static files by location.
pub const WAY_SOCKET: &str = "socket";
/// See [`WAY_SOCKET`].
pub const WAY_BACKUP: &str = "backup";
/// See [`WAY_SOCKET`].
pub const WAY_FILES: &str = "files";
/// See [`WAY_SOCKET`].
pub const WAY_PAGE: &str = "page";

/// Name of a location's link in [`WAY_FILES`]: the same in every release that has the
/// location, so that a vhost is right for the release before as well. No location has a `+`.
#[must_use]
pub fn location_key(location: &str) -> String {
    let location = location.trim_end_matches('/');
    format!("+{}", location.strip_prefix('/').unwrap_or(location).replace('/', "+"))
}
/// Where an application's sockets appear inside its session: short, and the same on every node.
pub const SOCKETS_INSIDE: &str = "/run/farmctl/sockets";
/// Runtime directory of the start script inside a session.
pub const PROJECT_RUN: &str = "/run/project";
/// The start script inside an environment.
pub const START_SCRIPT: &str = "/usr/local/bin/project";

/// There while systemd is PID 1: `sd_booted(3)`.
pub const SYSTEMD_BOOTED: &str = "/run/systemd/system";
/// Units of the administrator, and ours: they outlive a reboot.
pub const SYSTEMD_UNITS: &str = "/etc/systemd/system";
/// schroot's directory of chroot definitions.
pub const SCHROOT_CHROOTS: &str = "/etc/schroot/chroot.d";
/// farmctl's schroot profile directory.
pub const SCHROOT_PROFILE: &str = "/etc/schroot/farmctl";
/// schroot's setup scripts, run for every session of the host.
pub const SCHROOT_SETUP: &str = "/etc/schroot/setup.d";
/// schroot's session files.
pub const SCHROOT_SESSIONS: &str = "/var/lib/schroot/session";
/// Where schroot mounts sessions.
pub const SCHROOT_MOUNTS: &str = "/run/schroot/mount";
/// Where schroot keeps the writable layers of overlay sessions.
pub const SCHROOT_UNION: &str = "/var/lib/schroot/union";
/// nginx's logs, which Debian has logrotate(8) rotate.
pub const NGINX_LOGS: &str = "/var/log/nginx";
/// nginx's vhosts.
pub const NGINX_AVAILABLE: &str = "/etc/nginx/sites-available";
/// nginx's enabled vhosts.
pub const NGINX_ENABLED: &str = "/etc/nginx/sites-enabled";

/// Name of an environment to schroot.
#[must_use]
pub fn environment_chroot(name: &str) -> String {
    format!("farmctl-env-{name}")
}

/// Name of a release to schroot.
#[must_use]
pub fn release_chroot(app: &str, version: &str) -> String {
    format!("farmctl-{app}-{version}")
}

/// Volume of an environment.
#[must_use]
pub fn environment_volume(name: &str) -> String {
    format!("fv-env-{name}")
}

/// Volume of a release.
#[must_use]
pub fn release_volume(app: &str, version: &str) -> String {
    format!("fv-{app}-{version}")
}

/// Volume a bake works in.
#[must_use]
pub fn stage_volume(transaction: &str) -> String {
    format!("{STAGE}{transaction}")
}

/// Volume of a tree a bake keeps: after which step it is kept, and which transaction's.
#[must_use]
pub fn kept_volume(environment: &str, step: &str, transaction: &str) -> String {
    format!("{STAGE}{environment}-{step}-{transaction}")
}

/// Name of a session.
#[must_use]
pub fn session(app: &str, id: &str) -> String {
    format!("fs-{app}-{id}")
}

/// The application a session is of, and what tells it from the others of it.
#[must_use]
pub fn parse_session(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("fs-")?.rsplit_once('-').filter(|(app, id)| !app.is_empty() && !id.is_empty())
}

/// Host account of an application.
#[must_use]
pub fn account(app: &str) -> String {
    format!("farmctl-{app}")
}

/// File name of the log of an application's requests.
#[must_use]
pub fn access_log(app: &str) -> String {
    format!("farmctl-{app}.access.log")
}

/// File name of an nginx vhost.
#[must_use]
pub fn vhost(app: &str) -> String {
    format!("farmctl-{app}")
}
