//! Log files of an application's processes, one for each session, which supervisord writes.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::Group;

use super::{Take, Until, configuration, parts};
use crate::file;
use crate::layout::Layout;
use crate::log::{self, Follower};
use crate::run::{self, check_interrupted};

/// How long following a log pauses between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Of so many sessions that have ended the logs are kept.
const SESSIONS_REMEMBERED: usize = 5;

/// The logs beneath a farm's root.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProcessLogs<'a> {
    layout: &'a Layout,
}

impl<'a> ProcessLogs<'a> {
    pub(super) fn new(layout: &'a Layout) -> Self {
        Self { layout }
    }

    /// The log of a process in a session.
    pub(super) fn path(self, session: &str, process: &str) -> Result<PathBuf> {
        let (app, id) = parts(session)?;
        Ok(self.layout.process_log(app, process, id))
    }

    /// Makes it, for administrators' eyes: applications print what they like.
    pub(super) fn make(self, session: &str, process: &str) -> Result<()> {
        let path = self.path(session, process)?;
        let group = Group::from_name("adm").context("looking up group adm")?;
        let gid = group.map(|group| group.gid.as_raw());
        let directory = path.parent().unwrap_or(Path::new("/"));
        file::make_directory(directory, 0o750)?;
        let make = || -> std::io::Result<()> {
            chown(directory, Some(0), gid)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o750))?;
            OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?;
            chown(&path, Some(0), gid)
        };
        make().with_context(|| format!("making {}", path.display()))
    }

    /// Those of a process, one for each of its sessions that is remembered, the newest last.
    fn all(self, app: &str, process: &str) -> Result<Vec<PathBuf>> {
        let directory = self.layout.app_logs(app);
        let mut logs = Vec::new();
        for name in file::names_in(&directory)? {
            let id = name.strip_prefix(process).and_then(|rest| rest.strip_prefix('.'));
            let id = id.and_then(|rest| rest.strip_suffix(".log"));
            if id.is_some_and(|id| !id.contains('.')) {
                let path = directory.join(&name);
                // Gone since: it was forgotten by a farmctl that begins a session.
                let Ok(written) = fs::metadata(&path).and_then(|meta| meta.modified()) else {
                    continue;
                };
                logs.push((written, path));
            }
        }
        logs.sort();
        Ok(logs.into_iter().map(|(_, path)| path).collect())
    }

    /// Removes the oldest logs of a process, with what was rotated of them, but for those of
    /// `sessions`.
    pub(super) fn forget(self, app: &str, process: &str, sessions: &[String]) -> Result<()> {
        let mut logs = self.all(app, process)?;
        for session in sessions {
            let log = self.path(session, process)?;
            logs.retain(|path| *path != log);
        }
        for path in &logs[..logs.len().saturating_sub(SESSIONS_REMEMBERED)] {
            let rotated = (1..=configuration::LOGS_KEPT)
                .map(|number| PathBuf::from(format!("{}.{number}", path.display())));
            for path in rotated.chain([path.clone()]) {
                file::remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// Gives the last `count` lines of each process to `take`, and those that follow, as
    /// [`super::Supervise::output`] does.
    pub(super) fn take(
        self,
        app: &str,
        processes: &[&str],
        count: usize,
        until: Until,
        take: &mut Take<'_>,
    ) -> Result<()> {
        let mut followers = BTreeMap::new();
        for process in processes {
            let logs = self.all(app, process)?;
            let lines = log::last_lines(&logs, count)?;
            for path in logs {
                let follower = Follower::at_end(&path)?;
                followers.insert(path, follower);
            }
            for line in lines {
                if take(process, &line).is_break() {
                    return Ok(());
                }
            }
        }
        if until == Until::Now {
            return Ok(());
        }
        loop {
            for process in processes {
                for path in self.all(app, process)? {
                    // Of a session that has been begun since.
                    let new = || Follower::at_start(&path);
                    let follower = followers.entry(path.clone()).or_insert_with(new);
                    for line in follower.lines()? {
                        if take(process, &line).is_break() {
                            return Ok(());
                        }
                    }
                }
            }
            check_interrupted()?;
            run::rest(PAUSE);
        }
    }
}
