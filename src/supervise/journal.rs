//! Output of processes in the journal.
//!
//! An entry is found by the fields its unit gives it (`LogExtraFields=`) and that it came by
//! standard output, on which a program cannot give itself any: `journalctl FARMCTL_APP=shop`
//! finds them for people. Empty lines are not in it: the journal drops them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::parts;
use crate::run::{Invocation, Tool, check_interrupted};

pub(super) const JOURNALCTL: Tool = Tool { name: "journalctl", package: "systemd" };
const TIMEOUT: Tool = Tool { name: "timeout", package: "coreutils" };
/// How long journald may take to read what has been printed, in seconds.
const SETTLING: &str = "5";

/// An entry as `journalctl --output=json` prints it (systemd.journal-fields(7)).
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "__CURSOR")]
    cursor: String,
    #[serde(rename = "FARMCTL_PROCESS", default)]
    process: Value,
    #[serde(rename = "MESSAGE", default)]
    message: Value,
    /// Why the line ended, unless by a newline.
    #[serde(rename = "_LINE_BREAK", default)]
    line_break: Value,
}

impl Entry {
    /// Reads a line of output; what is none (`-- No entries --`) is nothing.
    fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    /// The process that printed it.
    fn process(&self) -> &str {
        self.process.as_str().unwrap_or_default()
    }

    /// The text: a string, or the bytes of what is no UTF-8.
    fn text(&self) -> String {
        match &self.message {
            Value::Array(bytes) => {
                let byte = |value: &Value| value.as_u64().and_then(|byte| u8::try_from(byte).ok());
                let bytes: Vec<u8> = bytes.iter().filter_map(byte).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            value => value.as_str().unwrap_or_default().to_owned(),
        }
    }
}

/// Puts lines together that were too long for an entry (`LineMax=` of journald.conf(5)).
#[derive(Debug, Default)]
struct Joiner {
    begun: BTreeMap<String, String>,
}

impl Joiner {
    /// The line this entry ends, if it does.
    fn join(&mut self, entry: &Entry) -> Option<String> {
        let begun = self.begun.entry(entry.process().to_owned()).or_default();
        begun.push_str(&entry.text());
        (entry.line_break != "line-max").then(|| std::mem::take(begun))
    }
}

/// Whose output is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source(Vec<String>);

impl Source {
    /// Processes of an application, whichever session they ran in.
    pub(super) fn of_app(app: &str, processes: &[&str]) -> Self {
        // Values of one field are alternatives, those of several must all be.
        let mut matches = vec![format!("FARMCTL_APP={app}")];
        matches.extend(processes.iter().map(|process| format!("FARMCTL_PROCESS={process}")));
        Self(matches)
    }

    /// One process of a session.
    pub(super) fn of_session(session: &str, process: &str) -> Result<Self> {
        let mut source = Self::of_app(parts(session)?.0, &[process]);
        source.0.push(format!("FARMCTL_SESSION={session}"));
        Ok(source)
    }
}

fn reading(source: &Source) -> Invocation {
    Invocation::of(&JOURNALCTL)
        .args(["--quiet", "--output=json", "--all"])
        .arg("--output-fields=MESSAGE,FARMCTL_PROCESS,_LINE_BREAK")
        .args(&source.0)
        .arg("_TRANSPORT=stdout")
}

fn entries(call: &Invocation) -> Result<Vec<Entry>> {
    Ok(call.output()?.lines().filter_map(Entry::parse).collect())
}

fn lines(entries: &[Entry]) -> Vec<String> {
    let mut joiner = Joiner::default();
    entries.iter().filter_map(|entry| joiner.join(entry)).collect()
}

/// Waits until what has been printed by now is in the journal, if that is soon.
fn settle() -> Result<()> {
    // Without it the newest lines may be missing; that is no reason to show none. While
    // something prints faster than journald reads, it would not end.
    Invocation::of(&TIMEOUT).args([SETTLING, JOURNALCTL.name, "--sync"]).outcome()?;
    Ok(())
}

/// The newest entry of a source. It must be one of theirs: `--after-cursor` takes the
/// first entry that matches for the one with the cursor, and passes over it.
pub(super) fn position(source: &Source) -> Result<Option<String>> {
    settle()?;
    Ok(entries(&reading(source).arg("--lines=1"))?.pop().map(|entry| entry.cursor))
}

/// What has been printed since.
pub(super) fn lines_since(source: &Source, cursor: Option<&str>) -> Result<Vec<String>> {
    settle()?;
    let call = reading(source).args(cursor.map(|cursor| format!("--after-cursor={cursor}")));
    Ok(lines(&entries(&call)?))
}

/// Lines that have been shown, and what comes after them.
#[derive(Debug)]
pub(super) struct Tail {
    from: Option<String>,
    shown: BTreeSet<String>,
}

impl Tail {
    /// Begins where the output stands now.
    pub(super) fn begin(source: &Source) -> Result<Self> {
        Ok(Self { from: position(source)?, shown: BTreeSet::new() })
    }

    /// The last lines of a part of the source.
    pub(super) fn last_lines(&mut self, source: &Source, count: usize) -> Result<Vec<String>> {
        // One more, because the first entry may be the end of a line.
        let mut asked = count + 1;
        loop {
            let entries = entries(&reading(source).arg(format!("--lines={asked}")))?;
            let mut lines = lines(&entries);
            // Fewer lines than entries: some were long.
            if entries.len() < asked || lines.len() > count {
                self.shown.extend(entries.into_iter().map(|entry| entry.cursor));
                lines.drain(..lines.len().saturating_sub(count));
                return Ok(lines);
            }
            asked *= 2;
        }
    }

    /// Passes on each line (process, text) of the source it began with that has not been
    /// shown, as it is printed, until the user interrupts or `take` breaks.
    pub(super) fn follow(
        &self,
        source: &Source,
        take: &mut dyn FnMut(&str, &str) -> ControlFlow<()>,
    ) -> Result<()> {
        let call = reading(source)
            .args(["--follow", "--no-tail"])
            .args(self.from.iter().map(|cursor| format!("--after-cursor={cursor}")));
        let mut joiner = Joiner::default();
        let followed = call.stream(&mut |line| {
            let Some(entry) = Entry::parse(line) else { return ControlFlow::Continue(()) };
            if self.shown.contains(&entry.cursor) {
                return ControlFlow::Continue(());
            }
            match joiner.join(&entry) {
                Some(text) => take(entry.process(), &text),
                None => ControlFlow::Continue(()),
            }
        });
        // That the user has seen enough is not a fault of journalctl.
        check_interrupted()?;
        followed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(message: &str, line_break: &str) -> Entry {
        // Captured from systemd 252.39, less the fields that are not asked for.
        let text = format!(
            r#"{{"__CURSOR":"s=cb3d;i=13f;b=85bf;m=3921;t=660c;x=968d","__REALTIME_TIMESTAMP":"1",
            "__MONOTONIC_TIMESTAMP":"59905223","_BOOT_ID":"85bf","FARMCTL_PROCESS":"web",
            "MESSAGE":{message}{line_break}}}"#
        );
        Entry::parse(&text).expect("as captured")
    }

    #[test]
    fn entries_of_the_journal_are_read() {
        let text = entry(r#""[INFO] Booting worker""#, "");
        assert_eq!(text.cursor, "s=cb3d;i=13f;b=85bf;m=3921;t=660c;x=968d");
        assert_eq!((text.process(), text.text()), ("web", "[INFO] Booting worker".to_owned()));
        // What is no UTF-8, or has control characters, comes as bytes.
        assert_eq!(entry("[27,91,51,49,109,255]", "").text(), "\u{1b}[31m\u{fffd}");
        assert_eq!(entry("null", "").text(), "");
        assert!(Entry::parse("-- No entries --").is_none());
    }

    #[test]
    fn long_lines_are_put_together_again() {
        let long = r#","_LINE_BREAK":"line-max""#;
        let entries = [
            entry(r#""one ""#, long),
            entry(r#""line""#, ""),
            entry(r#""the last words""#, r#","_LINE_BREAK":"eof""#),
        ];
        assert_eq!(lines(&entries), ["one line", "the last words"]);
    }
}
