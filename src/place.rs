//! A directory and the processes that live in it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::error::refuse;
use crate::process;
use crate::run::poll_until;

const SIGTERM: i32 = libc::SIGTERM;
const SIGKILL: i32 = libc::SIGKILL;
/// How long processes may take to vanish after SIGKILL: they are in the kernel then.
const DEATH: Duration = Duration::from_secs(10);

/// A process, told apart from a later one with the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// Process id.
    pub pid: u32,
    /// The kernel's name for it: at most 15 bytes of the program's file name.
    pub name: String,
    started: u64,
}

impl Occupant {
    fn of(pid: u32) -> Option<Self> {
        let started = process::started(pid)?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(Self { pid, name: name.trim_end().to_owned(), started })
    }

    /// Sends a signal, unless the process has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn send(&self, number: i32) -> Result<()> {
        if process::started(self.pid) != Some(self.started) {
            return Ok(());
        }
        process::send(self.pid, number)
    }
}

impl std::fmt::Display for Occupant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.pid, self.name)
    }
}

/// A directory as the processes in it know it: by its path, and, once it is unmounted
/// lazily and has no path any more, by device and inode.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Place {
    /// The directory `path` leads to now: for mount points with something mounted.
    #[must_use]
    pub fn mounted(path: &Path) -> Self {
        let identity = fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        Self { path: path.to_owned(), identity }
    }

    /// A path, whatever it leads to.
    #[must_use]
    pub fn named(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: None }
    }

    /// Processes whose root directory is the place or beneath it.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn rooted(&self) -> Result<Vec<Occupant>> {
        self.attached("root")
    }

    /// Processes whose working directory is the place or beneath it.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn working(&self) -> Result<Vec<Occupant>> {
        self.attached("cwd")
    }

    fn attached(&self, by: &str) -> Result<Vec<Occupant>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("reading /proc")? {
            let name = entry.context("reading /proc")?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let link = format!("/proc/{pid}/{by}");
            // Gone meanwhile, or a zombie, which holds nothing.
            let Ok(target) = fs::read_link(&link) else { continue };
            let same = |meta: fs::Metadata| Some((meta.dev(), meta.ino())) == self.identity;
            let inside = target.starts_with(&self.path)
                || (self.identity.is_some() && fs::metadata(&link).is_ok_and(same));
            if inside {
                found.extend(Occupant::of(pid));
            }
        }
        found.sort_by_key(|occupant| occupant.pid);
        Ok(found)
    }
}

/// Processes that were started with this setting in their environment.
///
/// # Errors
/// When /proc cannot be read.
pub fn started_with(setting: &str) -> Result<Vec<Occupant>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let name = entry.context("reading /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|entry| entry == setting.as_bytes()) {
            found.extend(Occupant::of(pid));
        }
    }
    Ok(found)
}

/// Words of a process's command line; none if it is gone.
#[must_use]
pub fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The process that started this one.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Keeps other farmctls, also those of other roots, away from a directory or file that
/// is there, until the answer is dropped.
///
/// # Errors
/// When another one keeps it longer than `within`.
pub fn hold(path: &Path, within: Duration) -> Result<Flock<fs::File>> {
    let held = poll_until(within, || {
        let file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    })?;
    match held {
        Some(lock) => Ok(lock),
        None => refuse(
            format_args!("another farmctl is at work on {}", path.display()),
            "try again when it has ended",
        ),
    }
}

/// Ends whatever `look` finds, all at once: SIGTERM, and SIGKILL after `grace`. Looks
/// again until there is nothing, because processes start others while they are ended.
/// What cannot be ended is what `look` still finds afterwards.
///
/// # Errors
/// When /proc cannot be read, or the kernel refuses a signal.
pub fn end(look: impl Fn() -> Result<Vec<Occupant>>, grace: Duration) -> Result<()> {
    for occupant in look()? {
        occupant.send(SIGTERM)?;
    }
    let empty = || Ok(look()?.is_empty().then_some(()));
    if poll_until(grace, empty)?.is_some() {
        return Ok(());
    }
    poll_until(DEATH, || {
        let left = look()?;
        for occupant in &left {
            occupant.send(SIGKILL)?;
        }
        Ok(left.is_empty().then_some(()))
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_lives_in_the_root_directory() {
        let me = Occupant::of(std::process::id()).expect("it is running");
        assert!(Place::named(Path::new("/")).rooted().expect("/proc is there").contains(&me));
        let elsewhere = tempfile::tempdir().expect("a temporary directory");
        let place = Place::mounted(elsewhere.path());
        assert!(!place.rooted().expect("/proc is there").contains(&me));
    }
}
