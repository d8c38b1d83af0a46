//! What was done to an application: when, by whom, and how it ended.
//!
//! A line of JSON when a change begins and one when it ends, each synced, so that a change
//! that was cut short is seen as well. A line that cannot be read is passed over: the last
//! one may be torn. When the file is larger than 128 KiB it becomes the older one, and
//! the older one before goes.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::unistd::{Uid, User, geteuid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file;
use crate::layout::Layout;
use crate::node::now;
use crate::process;

/// Version of the format of a line.
const SCHEMA: u32 = 1;
/// Largest size of a file, in bytes: with some 400 bytes for a change, a few hundred.
const LIMIT: u64 = 128 << 10;
/// Longest error that is kept, in bytes.
const ERROR_LIMIT: usize = 2 << 10;
/// Who asked for what nobody asked for.
pub const TEND: &str = "tend";

/// How a change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As was asked.
    Done,
    /// It failed; what it had begun was undone.
    Failed,
    /// The new release served and did not prove itself: the one before serves again.
    SwitchedBack,
    /// SIGINT or SIGTERM; what it had begun was undone.
    Interrupted,
    /// farmctl was killed, or the machine went down.
    CutShort,
    /// It has not ended.
    UnderWay,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::SwitchedBack => "switched back",
            Self::Interrupted => "interrupted",
            Self::CutShort => "cut short",
            Self::UnderWay => "under way",
        })
    }
}

/// A change to an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// When it began, seconds since 1970.
    pub began: i64,
    /// When it ended; none if it has not, or nobody knows.
    pub ended: Option<i64>,
    /// The verb.
    pub verb: String,
    /// What of the application, for people: `from 1.0 to 1.1`.
    pub what: String,
    /// Who asked.
    pub by: String,
    /// How it ended.
    pub result: Outcome,
    /// Why, if it was not done.
    pub error: Option<String>,
}

/// Verbs that run a release's jobs on the way to it.
const RUN_JOBS: [&str; 3] = ["upgrade", "upgrade --preview", "dev"];

impl Change {
    /// The first line of why it was not done.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.error.as_deref().and_then(|error| error.lines().next())
    }

    /// The release that was to serve after it, if that was to be another one.
    #[must_use]
    pub fn leads_to(&self) -> Option<&str> {
        self.way().1
    }

    /// The release it led from, and the one it led to.
    fn way(&self) -> (Option<&str>, Option<&str>) {
        let way = self.what.strip_prefix("from ").and_then(|what| what.split_once(" to "));
        match way {
            Some((from, to)) => (Some(from), Some(to)),
            None if self.verb == "start" => (None, Some(&self.what)),
            None => (None, self.what.strip_prefix("to ")),
        }
    }
}

/// The last change that somebody asked for.
#[must_use]
pub fn last_asked(changes: &[Change]) -> Option<&Change> {
    changes.iter().rfind(|change| change.by != TEND)
}

/// The releases whose jobs may have changed the data since this one served: of each upgrade
/// that has begun since, the newest first.
#[must_use]
pub fn upgrades_since<'a>(changes: &'a [Change], version: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for change in changes.iter().rev() {
        let (from, to) = change.way();
        if to == Some(version) {
            break;
        }
        let ran = to.filter(|to| RUN_JOBS.contains(&change.verb.as_str()) && !found.contains(to));
        found.extend(ran);
        if from == Some(version) {
            break;
        }
    }
    found
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Line {
    schema: u32,
    /// The same in the two lines of a change.
    id: String,
    at: i64,
    #[serde(flatten)]
    event: Event,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
enum Event {
    Began { verb: String, what: String, by: String, pid: u32, started: Option<u64> },
    Ended { result: Outcome, error: Option<String> },
}

/// A change that has begun.
#[derive(Debug)]
#[must_use = "a change that does not end was cut short"]
pub struct Record {
    id: String,
}

/// Writes down that a change begins.
///
/// # Errors
/// When it cannot be written.
pub fn begin(layout: &Layout, app: &str, verb: &str, what: &str, by: &str) -> Result<Record> {
    begin_at(layout, app, verb, what, by, now())
}

fn begin_at(
    layout: &Layout,
    app: &str,
    verb: &str,
    what: &str,
    by: &str,
    at: i64,
) -> Result<Record> {
    let path = layout.history(app);
    file::make_directory(path.parent().unwrap_or(Path::new("/")), 0o755)?;
    if fs::metadata(&path).is_ok_and(|meta| meta.len() > LIMIT) {
        let older = layout.older_history(app);
        fs::rename(&path, &older).with_context(|| format!("renaming {}", path.display()))?;
    }
    let pid = std::process::id();
    let started = process::started(pid);
    let id = format!("{pid}.{}.{}", started.unwrap_or_default(), tail_length(&path));
    let event = Event::Began {
        verb: verb.to_owned(),
        what: what.to_owned(),
        by: by.to_owned(),
        pid,
        started,
    };
    append(&path, &Line { schema: SCHEMA, id: id.clone(), at, event })?;
    Ok(Record { id })
}

/// Writes down a change that is over. One that fails again and again, as `tend` makes them,
/// is written down once.
///
/// # Errors
/// When it cannot be written.
pub fn note(layout: &Layout, app: &str, change: &Change) -> Result<()> {
    if change.result != Outcome::Done {
        let told = |known: &Change| {
            let Change { verb, what, by, result, .. } = known;
            (verb, what, by, result) == (&change.verb, &change.what, &change.by, &change.result)
        };
        if read(layout, app)?.last().is_some_and(told) {
            return Ok(());
        }
    }
    let Change { verb, what, by, result, error, .. } = change;
    begin_at(layout, app, verb, what, by, change.began)?.end(layout, app, *result, error.as_deref())
}

/// Tells two changes of one process apart: the file is longer with the second.
fn tail_length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

impl Record {
    /// Writes down that the change has ended.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn end(
        self,
        layout: &Layout,
        app: &str,
        result: Outcome,
        error: Option<&str>,
    ) -> Result<()> {
        let error = error.map(|error| shortened(error).to_owned());
        let event = Event::Ended { result, error };
        append(&layout.history(app), &Line { schema: SCHEMA, id: self.id, at: now(), event })
    }
}

/// As much of an error as is kept.
fn shortened(error: &str) -> &str {
    let mut ends = (0..=error.len().min(ERROR_LIMIT)).rev();
    &error[..ends.find(|end| error.is_char_boundary(*end)).unwrap_or(0)]
}

fn append(path: &Path, line: &Line) -> Result<()> {
    let mut text = serde_json::to_string(line).context("writing a change")?;
    text.push('\n');
    let mut write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let length = file.metadata()?.len();
        if length == 0 {
            fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        } else {
            // One that was torn is not to take this one with it.
            let mut last = [0];
            file.seek(SeekFrom::Start(length - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                text.insert(0, '\n');
            }
        }
        file.write_all(text.as_bytes())?;
        file.sync_data()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// The changes to an application that are known, oldest first.
///
/// # Errors
/// When the files cannot be read.
pub fn read(layout: &Layout, app: &str) -> Result<Vec<Change>> {
    let alive = |pid: u32, ticks: Option<u64>| ticks.is_some() && process::started(pid) == ticks;
    let mut text = String::new();
    for path in [layout.older_history(app), layout.history(app)] {
        match fs::read(&path) {
            // A torn line need not be text.
            Ok(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        }
        text.push('\n');
    }
    Ok(parse(&text, &alive))
}

fn parse(text: &str, alive: &dyn Fn(u32, Option<u64>) -> bool) -> Vec<Change> {
    let mut changes: Vec<(String, Change)> = Vec::new();
    for line in text.lines() {
        let Ok(Line { schema: 1, id, at, event }) = serde_json::from_str::<Line>(line) else {
            continue;
        };
        match event {
            Event::Began { verb, what, by, pid, started } => {
                let result =
                    if alive(pid, started) { Outcome::UnderWay } else { Outcome::CutShort };
                let change = Change { began: at, ended: None, verb, what, by, result, error: None };
                changes.push((id, change));
            }
            Event::Ended { result, error } => {
                // The newest of this id; its beginning may have gone with the older file.
                let change = changes.iter_mut().rev().find(|(began, _)| *began == id);
                if let Some((_, change)) = change {
                    change.ended = Some(at);
                    change.result = result;
                    change.error = error;
                }
            }
        }
    }
    changes.into_iter().map(|(_, change)| change).collect()
}

/// Who runs this farmctl: the user sudo(8) was called by, else who logged in
/// (`/proc/self/loginuid`, proc(5)), else the user it runs as.
#[must_use]
pub fn who() -> String {
    let name = |uid| User::from_uid(uid).ok().flatten().map(|user| user.name);
    let login = || -> Option<String> {
        let uid: u32 = fs::read_to_string("/proc/self/loginuid").ok()?.trim().parse().ok()?;
        // 4294967295 is for processes of no login.
        (uid != u32::MAX).then(|| name(Uid::from_raw(uid))).flatten()
    };
    std::env::var("SUDO_USER")
        .ok()
        .filter(|user| !user.is_empty())
        .or_else(login)
        .or_else(|| name(geteuid()))
        .unwrap_or_else(|| geteuid().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verbs(layout: &Layout) -> Vec<String> {
        let changes = read(layout, "shop").expect("it can be read");
        changes.iter().map(|it| format!("{} {} {}", it.verb, it.what, it.result)).collect()
    }

    #[test]
    fn a_torn_line_costs_no_other() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(root.path(), None);
        let record = begin(&layout, "shop", "start", "1.0", "anna").expect("the root is writable");
        record.end(&layout, "shop", Outcome::Done, None).expect("the root is writable");
        let path = layout.history("shop");
        let mut text = fs::read(&path).expect("it was written");
        text.extend_from_slice(b"{\"schema\":1,\"id\":\"1.2.3\",\"at\":17\xc3");
        fs::write(&path, &text).expect("it is writable");
        assert_eq!(verbs(&layout), ["start 1.0 done"]);
        let record = begin(&layout, "shop", "stop", "1.0", "anna").expect("the root is writable");
        assert_eq!(verbs(&layout), ["start 1.0 done", "stop 1.0 under way"]);
        record.end(&layout, "shop", Outcome::Failed, Some("busy")).expect("the root is writable");
        let changes = read(&layout, "shop").expect("it can be read");
        assert_eq!(changes[1].error.as_deref(), Some("busy"));
        assert_eq!((changes[1].by.as_str(), changes[1].result), ("anna", Outcome::Failed));
    }

    #[test]
    fn what_tend_fails_at_again_and_again_is_told_once() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(root.path(), None);
        let failing = |error: &str| Change {
            began: 100,
            ended: Some(101),
            verb: "tend".to_owned(),
            what: "starting the processes".to_owned(),
            by: TEND.to_owned(),
            result: Outcome::Failed,
            error: Some(error.repeat(ERROR_LIMIT)),
        };
        for error in ["é", "a", "é"] {
            note(&layout, "shop", &failing(error)).expect("it is writable");
        }
        assert_eq!(verbs(&layout), ["tend starting the processes failed"]);
        let done = Change { result: Outcome::Done, error: None, ..failing("") };
        for change in [&done, &done, &failing("é")] {
            note(&layout, "shop", change).expect("it is writable");
        }
        assert_eq!(verbs(&layout).len(), 4);
    }

    #[test]
    fn what_jobs_have_done_since_a_release_served_is_known() {
        let change = |words: &str| {
            let (verb, what) = words.split_once(": ").expect("it has both");
            Change {
                began: 100,
                ended: Some(101),
                verb: verb.to_owned(),
                what: what.to_owned(),
                by: "anna".to_owned(),
                result: Outcome::Done,
                error: None,
            }
        };
        let mut changes = [
            "start: 1.0",
            "upgrade: from 1.0 to 1.1",
            "upgrade --in-place: from 1.1 to 1.1.p1: django==5.2.8",
            "upgrade: from 1.1.p1 to 1.2",
            "reload: web",
        ]
        .map(change)
        .to_vec();
        assert_eq!(upgrades_since(&changes, "1.0"), ["1.2", "1.1"]);
        assert_eq!(upgrades_since(&changes, "1.1"), ["1.2"]);
        assert_eq!(upgrades_since(&changes, "1.1.p1"), ["1.2"]);
        // Forward again nothing is left that was not done on the way to it.
        changes.push(change("rollback: from 1.2 to 1.0"));
        assert_eq!(upgrades_since(&changes, "1.2"), [""; 0]);
        changes.extend(["upgrade --preview: to 1.3", "upgrade: from 1.0 to 1.3"].map(change));
        assert_eq!(upgrades_since(&changes, "1.0"), ["1.3"]);
        assert_eq!(upgrades_since(&changes, "1.2"), ["1.3"]);
        // What is started first has run no job of an upgrade.
        changes.extend(["stop: 1.3", "start: 1.4"].map(change));
        assert_eq!(upgrades_since(&changes, "1.3"), [""; 0]);
        assert_eq!(upgrades_since(&changes, "0.9"), ["1.3", "1.2", "1.1"]);
    }

    #[test]
    fn a_change_whose_process_is_gone_was_cut_short() {
        let text = "{\"schema\":1,\"id\":\"7\",\"at\":100,\"event\":\"began\",\"verb\":\"upgrade\",\
                    \"what\":\"from 1.0 to 1.1\",\"by\":\"root\",\"pid\":7,\"started\":70}\n";
        assert_eq!(parse(text, &|_, _| false)[0].result, Outcome::CutShort);
        assert_eq!(
            parse(text, &|pid, started| (pid, started) == (7, Some(70)))[0].result,
            Outcome::UnderWay
        );
        // What a newer farmctl writes is its own.
        assert!(parse(&text.replace("\"schema\":1", "\"schema\":2"), &|_, _| false).is_empty());
    }

    #[test]
    fn history_does_not_grow_without_end_and_keeps_the_newest() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(root.path(), None);
        let error = "x".repeat(2 * ERROR_LIMIT);
        for number in 0..300 {
            let what = number.to_string();
            let record = begin(&layout, "shop", "reload", &what, "root").expect("it is writable");
            record.end(&layout, "shop", Outcome::Failed, Some(&error)).expect("it is writable");
        }
        let size = |path: std::path::PathBuf| fs::metadata(path).expect("it was written").len();
        let whole = size(layout.history("shop")) + size(layout.older_history("shop"));
        assert!(whole < 2 * LIMIT + 8192, "{whole}");
        let changes = read(&layout, "shop").expect("it can be read");
        assert!(changes.len() > 60, "{}", changes.len());
        assert_eq!(changes.last().map(|change| change.what.as_str()), Some("299"));
        assert!(changes.iter().all(|change| change.result == Outcome::Failed));
    }
}
