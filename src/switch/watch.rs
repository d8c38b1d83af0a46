//! Whether a session that has just begun to serve does so as it should.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::front::{Counted, Traffic};
use crate::process;
use crate::run::{check_interrupted, poll_until};
use crate::serve::Served;
use crate::supervise::Position;

/// Least pause between two looks at a new session.
const LOOK: Duration = Duration::from_millis(250);
/// How many times as long as a look a pause is, at least.
const PAUSES: u32 = 4;
/// Failed requests that are no reason to switch back: as many can come by chance.
const TOLERATED: u64 = 5;
/// Share of failed requests that is no reason, in percent; twice what was usual before is
/// none either.
const USUAL: u64 = 5;
/// Share of failed requests that is a reason whatever was usual, in percent.
const WORST: u64 = 90;

/// A session that has just begun to serve, and what it is judged by.
#[derive(Debug)]
pub(super) struct Watch {
    pids: Vec<(String, u32, Position)>,
    traffic: Option<Traffic>,
}

impl Watch {
    /// Begins before the switch.
    pub(super) fn begin(served: &Served<'_>) -> Result<Self> {
        let Served { session, manifest, supervisor, .. } = *served;
        let mut pids = Vec::new();
        for state in supervisor.states(&session.name)? {
            let Some(pid) = state.pid else {
                bail!("process {} is not running", state.process);
            };
            let position = supervisor.position(&session.name, &state.process)?;
            pids.push((state.process, pid, position));
        }
        let front = manifest.profile.front.as_ref();
        let traffic = front.map(|_| Traffic::from_now(&manifest.name)).transpose()?;
        Ok(Self { pids, traffic })
    }

    /// Looks at the session for as long as it is to be watched. Fails as soon as a process
    /// has ended or does not answer, or more requests fail than before.
    pub(super) fn prove(&mut self, served: &Served<'_>, within: Duration) -> Result<()> {
        let (mut last, mut pause) = (Instant::now(), LOOK);
        let looked = poll_until(within, || {
            if last.elapsed() >= pause {
                let began = Instant::now();
                self.look(served)?;
                last = Instant::now();
                // A command that shows readiness may cost as much as the process itself.
                pause = LOOK.max((last - began) * PAUSES);
            }
            Ok(None::<()>)
        });
        looked?;
        if within.is_zero() { Ok(()) } else { self.look(served) }
    }

    fn look(&mut self, served: &Served<'_>) -> Result<()> {
        let states = served.supervisor.states(&served.session.name)?;
        for (name, pid, position) in &self.pids {
            // supervisord may take a second to notice that one has ended.
            let same = process::is_alive(*pid)
                && states.iter().any(|state| state.process == *name && state.pid == Some(*pid));
            let reason = if same {
                unwell(name, served)?
            } else {
                Some("it has ended since the switch".to_owned())
            };
            if let Some(reason) = reason {
                return served
                    .failure(name, position, &reason)
                    .with_context(|| format!("process {name}"));
            }
        }
        let Some(traffic) = &mut self.traffic else { return Ok(()) };
        let since = traffic.since()?;
        if is_trouble(since, traffic.before) {
            let Counted { requests, errors } = since;
            let reason = format!("{errors} of {requests} requests failed since the switch");
            let asked = served.manifest.profile.front_process();
            let asked = asked.and_then(|it| self.pids.iter().find(|(name, ..)| *name == it.name));
            return match asked {
                Some((name, _, position)) => served.failure(name, position, &reason),
                None => bail!(reason),
            };
        }
        Ok(())
    }
}

/// What is wrong with how a process answers, if it is to answer and something is.
pub(super) fn unwell(name: &str, served: &Served<'_>) -> Result<Option<String>> {
    let look = served.manifest.profile.process(name).and_then(|process| served.look(process));
    let trouble = look.and_then(|look| look.trouble);
    if trouble.is_some() {
        check_interrupted()?;
    }
    Ok(trouble)
}

/// Whether so many more requests fail than before that it is the new release's doing.
fn is_trouble(since: Counted, before: Counted) -> bool {
    let usual = before.errors * 100 / before.requests.max(1);
    let share = USUAL.max(2 * usual).min(WORST);
    since.errors > TOLERATED && since.errors * 100 > since.requests * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_failed_requests_than_before_are_trouble() {
        let counted = |requests, errors| Counted { requests, errors };
        assert!(!is_trouble(counted(10, 5), counted(100, 0)));
        assert!(is_trouble(counted(10, 6), counted(100, 0)));
        assert!(!is_trouble(counted(200, 10), counted(0, 0)));
        assert!(is_trouble(counted(200, 11), counted(0, 0)));
        // A tenth of all requests failed before: twice that is a reason.
        assert!(!is_trouble(counted(200, 40), counted(100, 10)));
        assert!(is_trouble(counted(200, 41), counted(100, 10)));
    }
}
