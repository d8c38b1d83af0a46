//! Signals that ask for the end of a run, and waiting that they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::error;

static INTERRUPTED: std::sync::LazyLock<Arc<AtomicBool>> = std::sync::LazyLock::new(Arc::default);
static SHIELDS: AtomicUsize = AtomicUsize::new(0);

/// Makes SIGINT, SIGTERM and SIGHUP set a flag that long work looks at.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn watch_signals() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED))
            .context("installing signal handlers")?;
    }
    Ok(())
}

/// Fails if the user asked the run to end.
///
/// # Errors
/// Exactly then, with [`error::Exit::Interrupted`].
pub fn check_interrupted() -> Result<()> {
    if SHIELDS.load(Ordering::Relaxed) == 0 && INTERRUPTED.load(Ordering::Relaxed) {
        return Err(error::interrupted());
    }
    Ok(())
}

/// Holds interruptions off while it lives: undoing must not be interrupted by the
/// signal that made it necessary.
#[derive(Debug)]
pub struct Shield(());

impl Shield {
    /// Begins to hold interruptions off.
    #[must_use]
    pub fn raise() -> Self {
        SHIELDS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        SHIELDS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks `look` until it answers or `within` has passed (`None`).
///
/// # Errors
/// Whatever `look` fails with, and an interruption.
pub fn poll_until<T>(
    within: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + within;
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        check_interrupted()?;
        let now = Instant::now();
        if now >= deadline {
            return Ok(None);
        }
        rest(pause.min(deadline - now));
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Pauses for `time`, shorter if a signal comes.
#[expect(clippy::disallowed_methods, reason = "the one pause, between two looks at a condition")]
pub fn rest(time: Duration) {
    std::thread::sleep(time);
}
