//! What an error carries to the face: a message, at most one hint, and an exit code.
//!
//! Every floor raises errors, so this module lies under all of them and knows none.
//! Contexts are lower-case gerunds that name the object ("unpacking hello_1.0_amd64.tar.xz");
//! [`render`] joins them with colons and puts the hint on its own line.

use std::fmt;

/// How a run of farmctl ended, as its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or already so.
    Done = 0,
    /// Failed, and nothing is left behind.
    Failed = 1,
    /// The command line or the profile cannot be used as written.
    Usage = 2,
    /// Looked, and it is not right (`verify`, `doctor`, `gc --check`).
    NotRight = 3,
    /// Failed, and undoing it failed as well: something is left.
    Left = 4,
    /// SIGINT or SIGTERM; what had been begun was undone.
    Interrupted = 130,
}

/// An error with what the user may type next, or with an exit status of its own.
#[derive(Debug)]
struct Marked {
    source: anyhow::Error,
    hint: Option<String>,
    exit: Option<Exit>,
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl std::error::Error for Marked {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.chain().nth(1)
    }
}

/// Attaches a hint or an exit status to whatever went wrong.
pub trait Mark<T> {
    /// Says what to type next. The innermost hint wins: it knows most.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
    /// Like [`Mark::hint`], worked out only when there is an error.
    fn hint_with(self, hint: impl FnOnce() -> String) -> anyhow::Result<T>;
    /// Ends the run with this status instead of [`Exit::Failed`].
    fn exit(self, exit: Exit) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Mark<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.hint_with(|| hint.into())
    }

    fn hint_with(self, hint: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|error| Marked { source: error.into(), hint: Some(hint()), exit: None }.into())
    }

    fn exit(self, exit: Exit) -> anyhow::Result<T> {
        self.map_err(|error| Marked { source: error.into(), hint: None, exit: Some(exit) }.into())
    }
}

/// Refuses with a message and the next thing to type.
pub fn refuse<T>(message: impl fmt::Display, hint: impl Into<String>) -> anyhow::Result<T> {
    Err(anyhow::anyhow!("{message}")).hint(hint)
}

/// The error of a run that SIGINT or SIGTERM ended.
#[must_use]
pub fn interrupted() -> anyhow::Error {
    let interrupted: anyhow::Result<()> = Err(anyhow::anyhow!("interrupted"));
    match interrupted.exit(Exit::Interrupted) {
        Err(error) => error,
        Ok(()) => unreachable!("the result was built as an error"),
    }
}

fn marks(error: &anyhow::Error) -> impl Iterator<Item = &Marked> {
    error.chain().filter_map(|cause| cause.downcast_ref::<Marked>())
}

/// What to do about a full disk.
pub const NO_SPACE: &str =
    "farmctl gc --stages, farmctl remove NAME --release VERSION, or a larger disk";

/// What to do about a file system that cannot be written.
const READ_ONLY: &str =
    "findmnt --options ro shows what is mounted read-only, dmesg whether the kernel made it so";
/// What to do about anything that has no hint of its own.
const ANYTHING: &str = "-v shows each command; farmctl doctor looks at the machine";

/// Whether one of these is at the bottom of an error: an error of the system, or what a
/// tool says of it, always in English.
fn is_caused_by(
    error: &anyhow::Error,
    kinds: &[std::io::ErrorKind],
    number: nix::errno::Errno,
    words: &[&str],
) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|cause| kinds.contains(&cause.kind()))
            || cause.downcast_ref::<nix::errno::Errno>() == Some(&number)
            || cause
                .downcast_ref::<Marked>()
                .is_some_and(|mark| is_caused_by(&mark.source, kinds, number, words))
            || words.iter().any(|words| cause.to_string().contains(words))
    })
}

/// Whether a full disk (or quota) is at the bottom of an error.
#[must_use]
pub fn is_no_space(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    // The last are apt's words, before it fetches anything.
    let words =
        ["No space left on device", "Disk quota exceeded", "You don't have enough free space in"];
    is_caused_by(error, &[StorageFull, QuotaExceeded], nix::errno::Errno::ENOSPC, &words)
}

fn is_read_only(error: &anyhow::Error) -> bool {
    let kind = std::io::ErrorKind::ReadOnlyFilesystem;
    is_caused_by(error, &[kind], nix::errno::Errno::EROFS, &[": Read-only file system"])
}

/// The innermost hint of an error. A disk that is full or cannot be written has one of its
/// own, whatever was being done.
#[must_use]
pub fn hint_of(error: &anyhow::Error) -> Option<&str> {
    if is_no_space(error) {
        return Some(NO_SPACE);
    }
    if is_read_only(error) {
        return Some(READ_ONLY);
    }
    // A mark's own source may carry marks that `chain` does not reach, because a
    // mark stands in for its source's first link.
    let mut found = None;
    for mark in marks(error) {
        found = hint_of(&mark.source).or(mark.hint.as_deref()).or(found);
    }
    found
}

/// The exit status of an error: the most serious one marked, else [`Exit::Failed`].
#[must_use]
pub fn exit_of(error: &anyhow::Error) -> Exit {
    fn worst(error: &anyhow::Error) -> Option<Exit> {
        marks(error).flat_map(|mark| [mark.exit, worst(&mark.source)]).flatten().max_by_key(
            |exit| match exit {
                Exit::Left => 2,
                Exit::Interrupted => 1,
                _ => 0,
            },
        )
    }
    worst(error).unwrap_or(Exit::Failed)
}

/// A message without std's " (os error 2)": the words say the same.
fn without_number(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut words = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        words.push_str(part.split_once(')').map_or(part, |(_, rest)| rest));
    }
    words
}

/// What went wrong, on one line of contexts; lines of tools may follow.
#[must_use]
pub fn message(error: &anyhow::Error) -> String {
    let mut line = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let text = match cause.downcast_ref::<nix::errno::Errno>() {
            Some(number) => number.desc().to_owned(),
            None => without_number(&cause.to_string()),
        };
        // `Marked` repeats nothing, but crates that print their source do.
        if text == last || (!last.is_empty() && last.ends_with(&text)) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(text.trim_end());
        last = text;
    }
    line
}

/// The error as a user reads it: one line of contexts, then the hint.
#[must_use]
pub fn render(error: &anyhow::Error) -> String {
    let line = message(error);
    // Who ended it himself needs no advice.
    let own = || (exit_of(error) != Exit::Interrupted).then_some(ANYTHING);
    match hint_of(error).or_else(own) {
        Some(hint) => format!("error: {line}\nhint: {hint}"),
        None => format!("error: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn contexts_are_joined_and_the_innermost_hint_is_printed() {
        let disk: anyhow::Result<()> = refuse("no space left on device", "farmctl gc");
        let error = disk
            .context("unpacking shop_1.4.2_amd64.tar.xz")
            .context("installing shop 1.4.2")
            .hint("farmctl doctor")
            .expect_err("it was built as an error");
        assert_eq!(
            render(&error),
            "error: installing shop 1.4.2: unpacking shop_1.4.2_amd64.tar.xz: \
             no space left on device\nhint: farmctl gc"
        );
        assert_eq!(exit_of(&error), Exit::Failed);
    }

    #[test]
    fn an_errors_number_is_left_out_and_its_words_stay() {
        let missing = std::io::Error::from_raw_os_error(2);
        let error =
            Err::<(), _>(missing).context("reading x").expect_err("it was built as an error");
        assert_eq!(
            render(&error),
            "error: reading x: No such file or directory\n\
             hint: -v shows each command; farmctl doctor looks at the machine"
        );
        let error = Err::<(), _>(nix::errno::Errno::ENOSPC).context("writing x (os error 5), y");
        let error = error.expect_err("it was built as an error");
        assert_eq!(message(&error), "writing x, y: No space left on device");
    }

    #[test]
    fn a_file_system_that_cannot_be_written_is_the_thing_to_look_at() {
        let error = Err::<(), _>(nix::errno::Errno::EROFS)
            .hint("bake it again")
            .context("making x")
            .expect_err("it was built as an error");
        assert_eq!(hint_of(&error), Some(READ_ONLY));
    }

    #[test]
    fn a_full_disk_is_told_by_the_words_of_each_tool() {
        for words in [
            "pip install: exit status 1\n  | ERROR: Could not install packages due to an OSError: \
             [Errno 28] No space left on device",
            "apt-get: exit status 100\n  | dpkg: error processing archive x.deb (--unpack):\n  |  \
             cannot copy extracted data for './x' to '/x': failed to write (No space left on device)",
            "apt-get: exit status 100\n  | E: You don't have enough free space in \
             /var/cache/apt/archives/.",
        ] {
            let error = Err::<(), _>(anyhow::anyhow!(words))
                .hint("is the mirror reachable?")
                .context("installing the build packages")
                .expect_err("it was built as an error");
            assert_eq!(hint_of(&error), Some(NO_SPACE));
        }
    }

    #[test]
    fn leftovers_outrank_an_interruption() {
        let error = Err::<(), _>(interrupted())
            .context("baking hello")
            .exit(Exit::Left)
            .expect_err("it was built as an error");
        assert_eq!(exit_of(&error), Exit::Left);
        assert!(render(&error).starts_with("error: baking hello: interrupted\nhint: "));
    }
}
