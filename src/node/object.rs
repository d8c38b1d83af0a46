//! What recipes make outside their own memory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::layout::{self, Layout};
use crate::release::{App, EnvironmentRecord, Release, Session};
use crate::settings::Ground;

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
    /// Files of the session that serves an application that are those of another release.
    Revision {
        /// Application.
        app: String,
        /// Version of the other release.
        to: String,
    },
    /// A session's programs under the supervisor.
    Programs {
        /// Name of the session.
        session: String,
    },
    /// What leads requests to the session that serves an application.
    Way {
        /// Application.
        app: String,
    },
    /// An application's vhost, links and page.
    Front {
        /// Application.
        app: String,
    },
    /// An application's vhost to look at a preview.
    Preview {
        /// Application.
        app: String,
    },
    /// An application's account on the host.
    Account {
        /// Application.
        app: String,
    },
    /// nginx's log of an application's requests.
    Requests {
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
    /// A session of an application.
    #[must_use]
    pub fn of_session(app: &App, session: &Session) -> Self {
        let storage = app.release(&session.version).map_or_else(directory, |r| r.storage.clone());
        Self::Session { storage, name: session.name.clone() }
    }

    /// All that a release is made of, in the order in which it is made.
    #[must_use]
    pub fn of_release(app: &App, release: &Release, layout: &Layout) -> Vec<Self> {
        let (name, version) = (&app.name, &release.version);
        vec![
            Self::Volume { storage: release.storage.clone(), name: release.volume.clone() },
            Self::Path { path: layout.release(name, version) },
            Self::Path { path: layout.static_export(name, version) },
            Self::Chroot { name: layout::release_chroot(name, version) },
        ]
    }

    /// The volume and the definition of an environment, and the volumes it keeps.
    #[must_use]
    pub fn of_environment(record: &EnvironmentRecord) -> Vec<Self> {
        let chroot = Self::Chroot { name: layout::environment_chroot(&record.name) };
        let volume =
            |name: &String| Self::Volume { storage: record.storage.clone(), name: name.clone() };
        let kept = record.kept.iter().map(|kept| volume(&kept.volume));
        [volume(&record.volume)].into_iter().chain(kept).chain([chroot]).collect()
    }

    /// All that the sessions of a started application are made of, in the order in which
    /// it is made; nothing of one that is stopped.
    #[must_use]
    pub fn serving(app: &App) -> Vec<Self> {
        let sessions: Vec<&Session> = app.sessions().collect();
        if sessions.is_empty() {
            return Vec::new();
        }
        let name = || app.name.clone();
        let mut objects = vec![Self::Sockets { app: name() }];
        objects.extend(sessions.iter().map(|session| Self::of_session(app, session)));
        let programs = |session: &&Session| Self::Programs { session: session.name.clone() };
        objects.extend(sessions.iter().map(programs));
        objects.extend(app.preview.iter().map(|_| Self::Preview { app: name() }));
        objects.push(Self::Front { app: name() });
        objects.push(Self::Way { app: name() });
        objects
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
            Self::Revision { app, to } => write!(f, "files of {to} in the session of {app}"),
            Self::Programs { session } => write!(f, "processes of session {session}"),
            Self::Way { app } => write!(f, "way to {app}"),
            Self::Front { app } => write!(f, "vhost of {app}"),
            Self::Preview { app } => write!(f, "vhost of the preview of {app}"),
            Self::Account { app } => write!(f, "account of {app}"),
            Self::Requests { app } => write!(f, "log of requests to {app}"),
            Self::Path { path } => write!(f, "{}", path.display()),
        }
    }
}
