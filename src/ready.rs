//! Whether a process serves: what its profile says shows it.

use std::path::Path;

use crate::error::message;
use crate::layout::START_SCRIPT;
use crate::probe::{self, Visitor};
use crate::profile::{Front, Process, Sign};
use crate::schroot;

/// What was seen of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// HTTP status it answered with, if it was asked by HTTP and did.
    pub status: Option<u16>,
    /// Why it is not ready, if it is not.
    pub trouble: Option<String>,
}

/// What is wrong with how a process that listens on `socket` answers a visitor of `front` to
/// `path`, if something is.
#[must_use]
pub fn fault(socket: &Path, front: &Front, path: &str) -> Option<String> {
    match probe::fetch(socket, &Visitor::of(Some(front)), path, front.timeout.duration()) {
        Ok(answer) => answer.fault(path),
        Err(error) => Some(format!("it does not answer to {path}: {}", message(&error))),
    }
}

/// Looks at a process that listens on `socket` in a session, as a visitor who comes by `front`
/// if it is asked by HTTP; none if nothing shows whether it serves. Of two a command looks at
/// the one with this pid.
#[must_use]
pub fn look(
    process: &Process,
    pid: Option<u32>,
    socket: &Path,
    front: Option<&Front>,
    session: &str,
) -> Option<Look> {
    let ready = process.ready.as_ref()?;
    let unasked = |result: anyhow::Result<()>| Look {
        status: None,
        trouble: result.err().map(|error| message(&error)),
    };
    Some(match ready.sign() {
        Sign::Http { path, body } => match probe::ask(socket, &Visitor::of(front), path, body) {
            Ok(answer) => Look { status: Some(answer.status), trouble: answer.trouble(path, body) },
            Err(error) => unasked(Err(error)),
        },
        Sign::Socket => unasked(probe::connect(socket)),
        Sign::Command(_) => {
            let within = ready.within.0.to_string();
            let pid = pid.map(|pid| pid.to_string());
            let mut call = vec!["timeout", &within, START_SCRIPT, "ready", &process.name];
            call.extend(pid.as_deref());
            unasked(schroot::enter(session, "root", &call).named("ready.command").run())
        }
    })
}
