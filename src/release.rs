//! What a node knows about an application: its releases and what should run.
//!
//! Pure values and transitions; [`crate::node`] reads and writes them. None of these
//! functions touches the disk.

use std::collections::BTreeSet;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kept::Kept;
use crate::manifest::InRelease;

/// The newest state schema this farmctl reads.
pub const SCHEMA: u32 = 1;

/// State of one application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct App {
    /// Version of this format; 1.
    pub schema: u32,
    /// Name.
    pub name: String,
    /// User id of its account on this host.
    pub uid: u32,
    /// Installed releases, oldest first.
    pub releases: Vec<Release>,
    /// Version that runs, or runs next.
    pub current: Option<String>,
    /// Version that ran before.
    pub previous: Option<String>,
    /// The session that serves, while the application is started.
    pub session: Option<Session>,
    /// Sessions that served before and stand by: their processes run, idle, until the
    /// one that serves has proved itself and their last requests are done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standby: Vec<Session>,
    /// Until when somebody must confirm the session that serves, in seconds since 1970;
    /// what stands by serves again then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_by: Option<i64>,
    /// A session to be looked at before requests are led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<Preview>,
}

/// A session that is looked at before requests are led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Preview {
    /// The session.
    pub session: Session,
    /// Port of 127.0.0.1 it is looked at on; none if its release has no front.
    pub port: Option<u16>,
}

/// What a version ends with that `farmctl dev` gives, before a number.
const DEV: &str = ".dev";

/// Whether `farmctl dev` has given a version.
#[must_use]
pub fn is_dev_version(version: &str) -> bool {
    let number = version.rsplit_once(DEV).map(|(_, number)| number);
    number.is_some_and(|it| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit()))
}

/// One installed node tarball.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Release {
    /// Version.
    pub version: String,
    /// SHA-256 of its manifest, hex.
    pub identity: String,
    /// Storage backend that keeps its volume.
    pub storage: String,
    /// Name of the volume.
    pub volume: String,
    /// When it was installed, seconds since 1970.
    pub installed: i64,
    /// How to tell that nobody has changed its tree since it was verified. None where the
    /// storage does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// What a tree was when it was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Verified {
    /// Its last change, as the storage names it.
    pub last_change: String,
    /// SHA-256 of the file index it was compared with, as that is kept, hex.
    pub files: String,
}

/// A schroot session of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Session {
    /// Name to schroot.
    pub name: String,
    /// Version of the release whose files it has.
    pub version: String,
    /// Version of the release it was begun from, if its files were changed since to be
    /// those of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// What of it is as in a project, and not as in the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited: Option<Edited>,
    /// Processes that the balancer before them was told to send no requests.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained: BTreeSet<String>,
    /// When it was begun, seconds since 1970.
    pub begun: i64,
}

/// Files of a session that `farmctl dev` has taken from a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Edited {
    /// Directory of the project.
    pub project: PathBuf,
    /// The paths, as the application sees them: those that are gone as well.
    pub paths: Vec<PathBuf>,
}

impl Session {
    /// The releases it needs: whose files it has, and whose volume it is a copy of.
    pub fn needs(&self) -> impl Iterator<Item = &String> {
        [&self.version].into_iter().chain(&self.origin)
    }

    /// With the files of another release.
    #[must_use]
    fn revised(mut self, version: &str) -> Self {
        let before = std::mem::replace(&mut self.version, version.to_owned());
        self.origin.get_or_insert(before);
        self
    }
}

/// A bootstrapped environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EnvironmentRecord {
    /// Version of this format; 1.
    pub schema: u32,
    /// Name.
    pub name: String,
    /// Hash of what it was made from, hex.
    pub inputs: String,
    /// Storage backend that keeps its volume.
    pub storage: String,
    /// Name of the volume.
    pub volume: String,
    /// Debian suite.
    pub suite: String,
    /// Debian architecture.
    pub architecture: String,
    /// Newest date among the archive's indexes, seconds since 1970.
    pub epoch: i64,
    /// The signed indexes of the archive it was made from.
    pub releases: Vec<InRelease>,
    /// SHA-256 of the `[debian]` of the lock it was made from, hex; empty if it was made
    /// from whatever the mirror offered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub locked: String,
    /// When it was made, seconds since 1970.
    pub made: i64,
    /// Trees made from it that are kept for the next bake, each step once, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Kept>,
}

impl App {
    /// An application without releases.
    #[must_use]
    pub fn new(name: &str, uid: u32) -> Self {
        Self {
            schema: SCHEMA,
            name: name.to_owned(),
            uid,
            releases: Vec::new(),
            current: None,
            previous: None,
            session: None,
            standby: Vec::new(),
            confirm_by: None,
            preview: None,
        }
    }

    /// Its sessions: the one that serves, then those that stand by, then a preview.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        let preview = self.preview.iter().map(|preview| &preview.session);
        self.session.iter().chain(&self.standby).chain(preview)
    }

    /// The release of this version.
    #[must_use]
    pub fn release(&self, version: &str) -> Option<&Release> {
        self.releases.iter().find(|release| release.version == version)
    }

    /// Releases that are not among the newest `keep` and are not needed: nothing of them runs
    /// or stands by, and neither a start nor a rollback would lead to them.
    #[must_use]
    pub fn old_releases(&self, keep: usize) -> Vec<&Release> {
        let sessions = self.sessions().flat_map(Session::needs);
        let needed: Vec<&String> = sessions.chain(&self.current).chain(&self.previous).collect();
        let older = &self.releases[..self.releases.len().saturating_sub(keep)];
        older.iter().filter(|release| !needed.contains(&&release.version)).collect()
    }

    /// The current release.
    #[must_use]
    pub fn current_release(&self) -> Option<&Release> {
        self.current.as_deref().and_then(|version| self.release(version))
    }

    /// With `release` added; it becomes current if nothing was, or nothing runs.
    #[must_use]
    pub fn installed(mut self, release: Release) -> Self {
        let version = release.version.clone();
        self.releases.retain(|known| known.version != version);
        self.releases.push(release);
        if self.session.is_none() {
            self = self.made_current(&version);
        }
        self
    }

    /// With `version` as the release that runs next.
    #[must_use]
    pub fn made_current(mut self, version: &str) -> Self {
        if self.current.as_deref() != Some(version) {
            self.previous = self.current.replace(version.to_owned());
        }
        self
    }

    /// With `session` serving.
    #[must_use]
    pub fn started(self, session: Session) -> Self {
        let mut app = self.made_current(&session.version);
        app.session = Some(session);
        app
    }

    /// With `release` installed, and the session that serves having its files.
    #[must_use]
    pub fn revised(self, release: Release) -> Self {
        let version = release.version.clone();
        let mut app = self.installed(release).made_current(&version);
        app.session = app.session.map(|session| session.revised(&version));
        app
    }

    /// With this of the session that serves not as in its release.
    #[must_use]
    pub fn edited(mut self, edited: Option<Edited>) -> Self {
        if let Some(session) = &mut self.session {
            session.edited = edited;
        }
        self
    }

    /// With a process of one of its sessions drained, or not any more.
    #[must_use]
    pub fn drained(mut self, session: &str, process: &str, is_drained: bool) -> Self {
        let preview = self.preview.iter_mut().map(|preview| &mut preview.session);
        let mut all = self.session.iter_mut().chain(&mut self.standby).chain(preview);
        if let Some(session) = all.find(|it| it.name == session) {
            if is_drained {
                session.drained.insert(process.to_owned());
            } else {
                session.drained.remove(process);
            }
        }
        self
    }

    /// Without the release of this version, which another one has taken the place of: the
    /// one that served before both is the previous one.
    #[must_use]
    pub fn replaced(self, version: &str, previous: Option<String>) -> Self {
        let mut app = self.removed(version);
        let is_other = |it: &String| app.release(it).is_some() && app.current.as_ref() != Some(it);
        let previous = previous.filter(is_other);
        app.previous = app.previous.or(previous);
        app
    }

    /// A version for a release that `farmctl dev` bakes of the project of this one:
    /// `1.4.2.dev1`, `1.4.2.dev2`.
    #[must_use]
    pub fn dev_version(&self, of: &str) -> String {
        let number = |version: &str| version.strip_prefix(of)?.strip_prefix(DEV)?.parse().ok();
        let known = self.releases.iter().filter_map(|release| number(&release.version));
        format!("{of}{DEV}{}", known.max().unwrap_or(0u32) + 1)
    }

    /// A version for a release that is derived from this one: `1.4.2.p1`, `1.4.2.p2`.
    #[must_use]
    pub fn next_version(&self, from: &str) -> String {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        let root = match from.rsplit_once(".p") {
            Some((root, number)) if digits(number) => root,
            _ => from,
        };
        let mut versions = (1..).map(|number: u32| format!("{root}.p{number}"));
        versions.find(|version| self.release(version).is_none()).expect("there is no end of them")
    }

    /// With `session` serving, and the one that served standing by.
    #[must_use]
    pub fn switched(self, session: Session) -> Self {
        let before = self.session.clone();
        let mut app = self.started(session);
        app.preview = app.preview.filter(|it| Some(&it.session) != app.session.as_ref());
        app.standby.retain(|standing| Some(standing) != app.session.as_ref());
        app.standby.extend(before);
        app
    }

    /// With the session that stood by last serving again, and the one that served standing
    /// by; as it is if none stands by.
    #[must_use]
    pub fn returned(self) -> Self {
        match self.standby.last().cloned() {
            Some(before) => self.switched(before).confirmed(),
            None => self,
        }
    }

    /// With nothing to be confirmed.
    #[must_use]
    pub fn confirmed(mut self) -> Self {
        self.confirm_by = None;
        self
    }

    /// Without a session that stood by.
    #[must_use]
    pub fn retired(mut self, session: &str) -> Self {
        self.standby.retain(|standing| standing.name != session);
        if self.standby.is_empty() { self.confirmed() } else { self }
    }

    /// With nothing serving, and nothing standing by.
    #[must_use]
    pub fn stopped(mut self) -> Self {
        self.session = None;
        self.preview = None;
        self.standby.clear();
        self.confirmed()
    }

    /// Without the release of this version.
    #[must_use]
    pub fn removed(mut self, version: &str) -> Self {
        self.releases.retain(|release| release.version != version);
        if self.previous.as_deref() == Some(version) {
            self.previous = None;
        }
        if self.current.as_deref() == Some(version) {
            let older = self.releases.last().map(|release| release.version.clone());
            self.current = self.previous.take().or(older);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn release(version: &str) -> Release {
        Release {
            version: version.to_owned(),
            identity: "00".to_owned(),
            storage: "directory".to_owned(),
            volume: format!("fv-shop-{version}"),
            installed: 1,
            verified: None,
        }
    }

    fn session(version: &str) -> Session {
        Session {
            name: "fs-shop-1".to_owned(),
            version: version.to_owned(),
            origin: None,
            edited: None,
            drained: BTreeSet::new(),
            begun: 2,
        }
    }

    #[test]
    fn a_release_installed_beside_a_running_one_does_not_become_current() {
        let app = App::new("shop", 200_000)
            .installed(release("1"))
            .started(session("1"))
            .installed(release("2"));
        assert_eq!(app.current.as_deref(), Some("1"));
        assert_eq!(app.stopped().started(session("2")).previous.as_deref(), Some("1"));
    }

    #[test]
    fn removing_the_current_release_returns_to_the_previous_one() {
        let app = App::new("shop", 200_000).installed(release("1")).installed(release("2"));
        assert_eq!(app.current.as_deref(), Some("2"));
        assert_eq!(app.removed("2").current.as_deref(), Some("1"));
    }

    #[test]
    fn what_stood_by_serves_again_and_nothing_waits_to_be_confirmed() {
        let named = |version: &str| Session {
            name: format!("fs-shop-{version}"),
            version: version.to_owned(),
            origin: None,
            edited: None,
            drained: BTreeSet::new(),
            begun: 2,
        };
        let mut app = App::new("shop", 200_000)
            .installed(release("1"))
            .installed(release("2"))
            .started(named("1"))
            .switched(named("2"));
        app.confirm_by = Some(3);
        let back = app.clone().returned();
        assert_eq!(
            (back.session.as_ref(), &back.standby[..]),
            (Some(&named("1")), &[named("2")][..])
        );
        assert_eq!((back.current.as_deref(), back.confirm_by), (Some("1"), None));
        assert_eq!(app.clone().retired("fs-shop-1").confirm_by, None);
        assert_eq!(back.clone().retired("fs-shop-2").returned().session, Some(named("1")));
        assert_eq!(app.stopped().confirm_by, None);
    }

    #[test]
    fn only_what_is_old_and_not_needed_may_go() {
        let app = ["1", "2", "3", "4", "5", "6"]
            .into_iter()
            .fold(App::new("shop", 200_000), |app, version| app.installed(release(version)));
        let old = |app: &App, keep| {
            let old = app.old_releases(keep);
            old.into_iter().map(|release| release.version.clone()).collect::<Vec<_>>().join(" ")
        };
        // Installed last is current, the one before previous.
        assert_eq!(old(&app, 3), "1 2 3");
        assert_eq!(old(&app, 1), "1 2 3 4");
        assert_eq!(old(&app, 9), "");
        let app = app.started(session("2")).switched(session("1"));
        assert_eq!(old(&app, 3), "3");
    }

    #[test]
    fn a_session_with_other_files_needs_the_release_it_was_begun_from() {
        let app = App::new("shop", 200_000).installed(release("1")).started(session("1"));
        assert_eq!(app.next_version("1"), "1.p1");
        let app = app.revised(release("1.p1")).revised(release("1.p2"));
        assert_eq!(app.next_version("1.p2"), "1.p3");
        assert_eq!(app.next_version("1.p"), "1.p.p1");
        let serving = app.session.as_ref().expect("it serves");
        assert_eq!((serving.version.as_str(), serving.origin.as_deref()), ("1.p2", Some("1")));
        assert_eq!((app.current.as_deref(), app.previous.as_deref()), (Some("1.p2"), Some("1.p1")));
        let app = ["2", "3"].into_iter().fold(app, |app, version| app.installed(release(version)));
        assert!(app.old_releases(1).into_iter().map(|it| &it.version).eq(["2"]));
    }

    #[test]
    fn a_release_of_a_saved_change_takes_the_place_of_the_one_before() {
        let app = App::new("shop", 200_000).installed(release("1")).started(session("1"));
        assert_eq!(app.dev_version("1"), "1.dev1");
        assert!(is_dev_version("1.dev12") && !is_dev_version("1.dev") && !is_dev_version("1"));
        let app = app.installed(release("1.dev1")).switched(session("1.dev1"));
        assert_eq!(
            (app.dev_version("1"), app.dev_version("2")),
            ("1.dev2".into(), "2.dev1".into())
        );
        let previous = app.previous.clone();
        let app = app.installed(release("1.dev2")).switched(session("1.dev2"));
        assert_eq!(app.previous.as_deref(), Some("1.dev1"));
        let app = app.replaced("1.dev1", previous);
        assert_eq!(app.dev_version("1"), "1.dev3");
        assert_eq!((app.current.as_deref(), app.previous.as_deref()), (Some("1.dev2"), Some("1")));
    }

    proptest! {
        /// Whatever is done in whatever order, state names only releases it has.
        #[test]
        fn current_and_previous_are_always_installed(steps in prop::collection::vec((0u8..4, 0u8..4), 0..40)) {
            let mut app = App::new("shop", 200_000);
            for (step, number) in steps {
                let version = number.to_string();
                app = match step {
                    0 => app.installed(release(&version)),
                    1 if app.release(&version).is_some() => app.started(session(&version)),
                    2 => app.stopped(),
                    3 if app.session.as_ref().is_none_or(|s| s.version != version) => app.removed(&version),
                    _ => app,
                };
                for named in [&app.current, &app.previous].into_iter().flatten() {
                    prop_assert!(app.release(named).is_some());
                }
                prop_assert_eq!(app.current.is_some(), !app.releases.is_empty());
            }
        }
    }
}
