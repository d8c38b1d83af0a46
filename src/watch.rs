//! Waiting until files are changed, by inotify(7).
//!
//! What was changed is for the caller to see: the kernel's events only say when to look, so
//! that neither a queue that overflows nor a rename in between hides anything.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::error::refuse;
use crate::run::check_interrupted;

/// How long nothing may happen until a change is over: an editor writes a file, renames
/// another one and removes a third within a few milliseconds.
const QUIET: Duration = Duration::from_millis(60);
/// How long a change may go on until it is looked at all the same: something may write
/// without end.
const LONGEST: Duration = Duration::from_secs(2);
/// How long a signal that comes between two looks may wait.
const IDLE: Duration = Duration::from_millis(250);

/// Directories that are watched.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the kernel has no more of them for this user.
    pub fn new() -> Result<Self> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        match Inotify::init(flags) {
            Ok(inotify) => Ok(Self { inotify }),
            Err(Errno::EMFILE) => refuse(
                "the kernel has no more inotify instances",
                "sysctl fs.inotify.max_user_instances=1024, or end another program that watches",
            ),
            Err(error) => Err(error).context("beginning to watch"),
        }
    }

    /// Watches the names and files in a directory, not those further below. One that is
    /// watched, or is gone, is fine.
    ///
    /// # Errors
    /// When the kernel cannot watch more.
    pub fn directory(&self, path: &Path) -> Result<()> {
        let names = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
        let files = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
        let how = AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        match self.inotify.add_watch(path, names | files | how) {
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            // Without its number, which would be taken for a full disk.
            Err(Errno::ENOSPC) => refuse(
                format_args!("the kernel watches no more directories, as {}", path.display()),
                "sysctl fs.inotify.max_user_watches=1048576",
            ),
            Err(error) => Err(error).with_context(|| format!("watching {}", path.display())),
        }
    }

    /// Waits for a change and until it is over; answers when it began.
    ///
    /// # Errors
    /// When the user interrupts.
    pub fn wait(&self) -> Result<Instant> {
        let mut burst: Option<Burst> = None;
        loop {
            check_interrupted()?;
            let now = Instant::now();
            let rest = burst.as_ref().map_or(IDLE, |burst| burst.end().duration_since(now));
            if let Some(burst) = burst.as_ref().filter(|_| rest.is_zero()) {
                return Ok(burst.first);
            }
            if self.happens_within(rest.min(IDLE))? {
                let now = Instant::now();
                burst = Some(burst.map_or(Burst::at(now), |burst| burst.more(now)));
            }
        }
    }

    /// Whether something happens in this time. All of it is known then.
    fn happens_within(&self, time: Duration) -> Result<bool> {
        // Rounded up: a rest of less than a millisecond would be asked for again and again.
        let timeout = u16::try_from(time.as_millis() + 1).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(timeout)) {
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error).context("watching"),
        }
        loop {
            match self.inotify.read_events() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(true),
                Err(error) => return Err(error).context("watching"),
            }
        }
    }
}

/// Events that follow one another closely.
#[derive(Clone, Copy, Debug)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl Burst {
    fn at(now: Instant) -> Self {
        Self { first: now, last: now }
    }

    fn more(self, now: Instant) -> Self {
        Self { last: now, ..self }
    }

    /// When it is over, if nothing more comes.
    fn end(&self) -> Instant {
        (self.last + QUIET).min(self.first + LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_burst_ends_when_it_is_quiet_and_does_not_go_on_for_ever() {
        let start = Instant::now();
        let mut burst = Burst::at(start);
        assert_eq!(burst.end(), start + QUIET);
        for step in 1..100u32 {
            burst = burst.more(start + step * Duration::from_millis(50));
        }
        assert_eq!(burst.first, start);
        assert_eq!(burst.end(), start + LONGEST);
    }

    #[test]
    fn a_file_that_is_saved_by_renames_is_one_change() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("shop.py"), "one").expect("there is room");
        let watch = Watch::new().expect("the kernel has one");
        watch.directory(directory.path()).expect("it is there");
        watch.directory(directory.path()).expect("it is watched already");
        watch.directory(&path("gone")).expect("it may be gone again");
        let began = Instant::now();
        fs::rename(path("shop.py"), path("shop.py~")).expect("it is ours");
        fs::write(path(".shop.py.new"), "two").expect("there is room");
        fs::rename(path(".shop.py.new"), path("shop.py")).expect("it is ours");
        fs::remove_file(path("shop.py~")).expect("it is ours");
        assert!(watch.wait().expect("nobody interrupts") >= began);
        assert!(!watch.happens_within(Duration::ZERO).expect("it can be asked"));
        fs::write(path("shop.py"), "three").expect("there is room");
        assert!(watch.happens_within(LONGEST).expect("it can be asked"));
        assert!(!watch.happens_within(Duration::ZERO).expect("it can be asked"));
    }
}
