//! A process that takes its work from a queue: another begins beside it before it ends.

use anyhow::{Context as _, Result};

use super::Served;
use crate::profile::{Process, Reload};
use crate::run::Shield;
use crate::supervise::{Position, ProcessState};

impl Served<'_> {
    /// Starts another of a process, whose output stands at `before`, and stops the one that ran
    /// once the other is ready. If it does not get ready, it is as if nothing had been.
    pub(super) fn replace(&self, process: &Process, before: &Position) -> Result<()> {
        let Self { session, supervisor, .. } = *self;
        let (session, name) = (&session.name, &process.name);
        let states = supervisor.states(session)?;
        let Some(old) = states.iter().find(|state| state.process == *name) else {
            return supervisor.restart(session, name);
        };
        let seat = old.seat.other();
        supervisor
            .take_seat(session, name, seat)
            .and_then(|()| self.wait_until_one_is_ready(process, Some(seat), before))
            .inspect_err(|_| {
                let _shield = Shield::raise();
                // Why it is not ready says more than why it cannot be stopped, and that is seen to
                // by tend.
                drop(supervisor.leave_seat(session, name, seat));
            })
            .context("the new one does not serve, and the one that ran goes on")?;
        supervisor.leave_seat(session, name, old.seat)
    }

    /// Processes of which there are two, because a replacement was cut short.
    pub(super) fn doubled(&self) -> Result<Vec<&Process>> {
        let processes = &self.manifest.profile.processes;
        if !processes.iter().any(|process| process.reload == Reload::Replace) {
            return Ok(Vec::new());
        }
        let seats = self.supervisor.seats(&self.session.name)?;
        let taken =
            |process: &Process| seats.iter().filter(|state| is_one_of(state, process)).count();
        Ok(processes.iter().filter(|process| taken(process) > 1).collect())
    }

    /// Stops one of two of a process: the older, if the newer is ready. Nothing to do if there is
    /// one.
    pub(super) fn settle(&self, process: &Process) -> Result<()> {
        let Self { session, supervisor, .. } = *self;
        if process.reload != Reload::Replace {
            return Ok(());
        }
        let mut seats = supervisor.seats(&session.name)?;
        seats.retain(|state| is_one_of(state, process));
        // What does not run has no time, and comes first.
        seats.sort_by_key(|state| state.since);
        let [older, newer] = seats.as_slice() else { return Ok(()) };
        let before = supervisor.position(&session.name, &process.name)?;
        let is_ready = || self.wait_until_one_is_ready(process, Some(newer.seat), &before);
        let ends = if older.runs() && is_ready().is_err() { newer } else { older };
        supervisor.leave_seat(&session.name, &process.name, ends.seat)
    }

    /// [`Self::settle`] for each process. Answers whether there was anything.
    pub(super) fn settle_replaced(&self, say: &dyn Fn(&str)) -> Result<bool> {
        let doubled = self.doubled()?;
        for process in &doubled {
            say(&format!("ending one of two of the process {}", process.name));
            self.settle(process)?;
        }
        Ok(!doubled.is_empty())
    }
}

fn is_one_of(state: &ProcessState, process: &Process) -> bool {
    state.process == process.name && state.is_up()
}
