//! Whether a process serves: what its profile says shows it.

use std::path::Path;

use crate::layout::START_SCRIPT;
use crate::probe;
use crate::profile::{Process, Sign};
use crate::schroot;

/// What was seen of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// HTTP status it answered with, if it was asked by HTTP and did.
    pub status: Option<u16>,
    /// Why it is not ready, if it is not.
    pub trouble: Option<String>,
}

/// Looks at a process that listens on `socket` in a session; none if nothing shows whether
/// it serves.
#[must_use]
pub fn look(process: &Process, socket: &Path, session: &str) -> Option<Look> {
    let ready = process.ready.as_ref()?;
    let unasked = |result: anyhow::Result<()>| Look {
        status: None,
        trouble: result.err().map(|error| format!("{error:#}")),
    };
    Some(match ready.sign() {
        Sign::Http { path, body } => match probe::ask(socket, path, body) {
            Ok(answer) => Look { status: Some(answer.status), trouble: answer.trouble(path, body) },
            Err(error) => unasked(Err(error)),
        },
        Sign::Socket => unasked(probe::connect(socket)),
        Sign::Command(_) => {
            let within = ready.within.0.to_string();
            let call = ["timeout", &within, START_SCRIPT, "ready", &process.name];
            unasked(schroot::enter(session, "root", &call).named("ready.command").run())
        }
    })
}
