//! A process that takes its work from a queue: another begins beside it before it ends.

use anyhow::{Context as _, Result};

use super::Served;
use crate::profile::{Process, Reload};
use crate::ready;
use crate::run::{Shield, check_interrupted, poll_until};
use crate::supervise::{Position, ProcessState, Seat, State};

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
            .and_then(|()| self.wait_until_one_is_ready(process, seat, before))
            .inspect_err(|_| {
                let _shield = Shield::raise();
                // Why it is not ready says more than why it cannot be stopped, and that is seen to
                // by tend.
                drop(supervisor.leave_seat(session, name, seat));
            })
            .context("the new one does not serve, and the one that ran goes on")?;
        supervisor.leave_seat(session, name, old.seat)
    }

    /// Waits until the one in a seat, of two of a process, serves.
    fn wait_until_one_is_ready(
        &self,
        process: &Process,
        seat: Seat,
        before: &Position,
    ) -> Result<()> {
        let within = process.ready.as_ref().map_or(super::SETTLING, |it| it.within.duration());
        let (socket, front) = (self.socket(process), self.manifest.profile.front.as_ref());
        let mut answer = String::new();
        let is_ready = poll_until(within, || {
            let Some(pid) = self.pid_in(process, seat)? else { return Ok(Some(false)) };
            let look = ready::look(process, Some(pid), &socket, front, &self.session.name);
            match look.and_then(|look| look.trouble) {
                // The answer may have been the other one's.
                None => Ok(Some(self.pid_in(process, seat)? == Some(pid))),
                Some(trouble) => {
                    answer = trouble;
                    Ok(None)
                }
            }
        })?;
        match is_ready {
            Some(true) => Ok(()),
            Some(false) => self.is_not_ready(process, before, None),
            None => self.is_not_ready(process, before, Some(answer)),
        }
    }

    /// The pid of a process in a seat, if it runs there.
    fn pid_in(&self, process: &Process, seat: Seat) -> Result<Option<u32>> {
        let seats = self.supervisor.seats(&self.session.name)?;
        let found = seats.iter().find(|it| it.process == process.name && it.seat == seat);
        Ok(found.filter(|state| state.runs()).and_then(|state| state.pid))
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

    /// Ends one of two of a process: the one that does not run, or else the older, if the newer
    /// is ready. Nothing to do if there is one.
    pub(super) fn settle(&self, process: &Process) -> Result<()> {
        let Self { session, supervisor, .. } = *self;
        if process.reload != Reload::Replace {
            return Ok(());
        }
        let mut seats = supervisor.seats(&session.name)?;
        seats.retain(|state| is_one_of(state, process));
        seats.sort_by_key(|state| state.since);
        let [older, newer] = seats.as_slice() else { return Ok(()) };
        let before = supervisor.position(&session.name, &process.name)?;
        let is_ready = || self.wait_until_one_is_ready(process, newer.seat, &before).is_ok();
        let ends = match (older.runs(), newer.runs()) {
            (true, true) if is_ready() => older,
            (true, _) => newer,
            (false, _) => older,
        };
        check_interrupted()?;
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

/// Also one that has failed, and is to be forgotten.
fn is_one_of(state: &ProcessState, process: &Process) -> bool {
    state.process == process.name && state.state != State::Stopped
}
