//! systemd: a unit for each process of a session, a slice for each application, and a service that
//! brings all of them back after a reboot.
//!
//! The unit files are in /etc/systemd/system, so that systemd knows after a reboot what
//! it was told before. No unit of a process is enabled: its session must be mounted
//! first, and whether it is, schroot does not say reliably. So `farmctl-tend.service`
//! recovers and verifies each session and then starts its processes; its timer has it
//! look again every half minute. It is there with the first application and gone with
//! the last.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::Flock;

use super::journal::Source;
use super::systemctl::{self, SYSTEMCTL, Unit};
use super::unit::{self, Farmctl, Names};
use super::{Position, ProcessState, Program, Seat, Supervise, Take, Until, entry, journal, parts};
use crate::error::refuse;
use crate::file;
use crate::layout::{Layout, SYSTEMD_UNITS, parse_session};
use crate::place;
use crate::run::Tool;

const TOOLS: [&Tool; 3] = [&SYSTEMCTL, &journal::JOURNALCTL, &entry::CHROOT];
/// The oldest systemd that has what is used here: `--timestamp=unix` came last.
const OLDEST: u32 = 247;
/// How long another farmctl may hold the lock: it waits for processes to stop.
const LOCKED: Duration = Duration::from_secs(120);

/// The `systemd` backend.
#[derive(Debug)]
pub(super) struct Systemd {
    root: PathBuf,
    names: Names,
    units: PathBuf,
}

impl Systemd {
    /// The units of the farmctl whose root `layout` has.
    pub(super) fn new(layout: &Layout) -> Self {
        let root = layout.root().to_owned();
        Self { names: Names::of(&root), root, units: PathBuf::from(SYSTEMD_UNITS) }
    }

    fn file(&self, unit: &str) -> PathBuf {
        self.units.join(unit)
    }

    /// Keeps other farmctls from adding units while this one takes the last away.
    fn lock(&self) -> Result<Flock<File>> {
        place::hold(&self.units, LOCKED)
    }

    /// Units of ours that have a file, of this session or of all.
    fn known(&self, session: Option<&str>) -> Result<Vec<String>> {
        let mut names = file::names_in(&self.units)?;
        names.retain(|name| {
            let of = self.names.parse(name);
            of.is_some_and(|(of, ..)| session.is_none_or(|session| session == of))
        });
        Ok(names)
    }

    /// This very program, which units call.
    fn farmctl(&self) -> Result<Farmctl> {
        let program = std::env::current_exe().context("finding the farmctl that runs")?;
        if !program.is_file() {
            return refuse(
                format_args!("{} has been replaced while it runs", program.display()),
                "try again, with the new farmctl",
            );
        }
        Ok(Farmctl { program, root: self.root.clone() })
    }

    /// Sees to it that what tends is there and enabled; answers whether units changed.
    fn install_tend(&self) -> Result<bool> {
        let farmctl = self.farmctl()?;
        let [service, timer] = [self.names.tend_service(), self.names.tend_timer()];
        let text = unit::render_tend_service(&farmctl);
        let mut changed = file::publish_if_new(&self.file(&service), &text, 0o644)?;
        let text = unit::render_tend_timer();
        changed |= file::publish_if_new(&self.file(&timer), &text, 0o644)?;
        if changed || !systemctl::is_enabled(&[&service, &timer])? {
            systemctl::enable(&[service, timer])?;
            changed = true;
        }
        Ok(changed)
    }

    /// Sees to it that what tends is there if there is something to tend.
    pub(super) fn keep_tending(&self) -> Result<()> {
        let _lock = self.lock()?;
        if self.is_idle()? {
            return Ok(());
        }
        if self.install_tend()? {
            systemctl::reload_units()?;
        }
        systemctl::order("start", &[self.names.tend_timer()])
    }

    /// The program what tends is told to call, if that is gone.
    fn missing_program(&self) -> Result<Option<PathBuf>> {
        let unit = file::read_if_there(&self.file(&self.names.tend_service()))?;
        let program = unit.as_deref().and_then(unit::program_of).map(PathBuf::from);
        Ok(program.filter(|program| !program.is_file()))
    }

    /// Sees to it that the storage farmctl made is attached after a reboot.
    pub(super) fn keep_storage(&self) -> Result<()> {
        let unit = self.names.storage_service();
        let text = unit::render_storage_service(&self.names, &self.farmctl()?);
        file::publish_if_new(&self.file(&unit), &text, 0o644)?;
        systemctl::enable(&[unit])?;
        systemctl::reload_units()
    }

    /// Takes back what [`Systemd::keep_storage`] did.
    pub(super) fn leave_storage(&self) -> Result<()> {
        let unit = self.names.storage_service();
        if !self.file(&unit).exists() {
            return Ok(());
        }
        systemctl::order("disable", std::slice::from_ref(&unit))?;
        file::remove_if_there(&self.file(&unit))?;
        systemctl::reload_units()
    }

    /// Removes what tends, if nothing is left to tend; answers whether systemd has to read
    /// that. The service itself may be what is at work here: it is not stopped.
    fn remove_tend_if_idle(&self) -> Result<bool> {
        let units = [self.names.tend_service(), self.names.tend_timer()];
        if !self.is_idle()? || !units.iter().any(|unit| self.file(unit).exists()) {
            return Ok(false);
        }
        systemctl::order("stop", &units[1..])?;
        systemctl::order("disable", &units)?;
        systemctl::forget_failures(&units)?;
        for unit in &units {
            file::remove_if_there(&self.file(unit))?;
        }
        Ok(true)
    }

    fn is_idle(&self) -> Result<bool> {
        Ok(self.known(None)?.is_empty())
    }

    /// Writes a session's units and removes those it has no more; answers whether systemd
    /// has to read them.
    fn write_units(&self, session: &str, programs: &[Program]) -> Result<bool> {
        let (app, _) = parts(session)?;
        let farmctl = self.farmctl()?;
        let descriptors = entry::descriptors()?;
        let mut changed = false;
        let mut wanted = Vec::new();
        for program in programs {
            let command = entry::command(program)?;
            let text =
                unit::render_process(&self.names, &farmctl, app, program, &command, descriptors);
            for seat in program.seats() {
                let name = self.names.process(session, &program.process, *seat)?;
                changed |= file::publish_if_new(&self.file(&name), &text, 0o644)?;
                wanted.push(name);
            }
        }
        let mut gone = self.known(Some(session))?;
        gone.retain(|unit| !wanted.contains(unit));
        self.remove_units(&gone)?;
        Ok(changed || !gone.is_empty())
    }

    fn remove_units(&self, units: &[String]) -> Result<()> {
        systemctl::order("stop", units)?;
        systemctl::forget_failures(units)?;
        for unit in units {
            file::remove_if_there(&self.file(unit))?;
        }
        Ok(())
    }

    fn unit_of(&self, session: &str, process: &str, seat: Seat) -> Result<String> {
        let unit = self.names.process(session, process, seat)?;
        if self.file(&unit).exists() {
            return Ok(unit);
        }
        refuse(
            format_args!("systemd does not know process {process} of session {session}"),
            format!("farmctl start {}", parts(session)?.0),
        )
    }
}

/// A slice that systemd made for a unit stays when the unit goes.
fn leave_slice(slice: String) -> Result<()> {
    if systemctl::list(std::slice::from_ref(&slice), &["active"])?.is_empty() {
        return Ok(());
    }
    systemctl::order("stop", &[slice])
}

fn process_state(process: &str, seat: Seat, unit: &Unit) -> ProcessState {
    ProcessState {
        process: process.to_owned(),
        seat,
        state: unit.state,
        pid: unit.pid,
        since: unit.since,
        exit: unit.exit.filter(|_| unit.pid.is_none()),
    }
}

impl Supervise for Systemd {
    fn describe(&self) -> String {
        let version = systemctl::version().map_or_else(|_| String::new(), |v| format!(" {v}"));
        format!("systemd{version}: it is PID 1")
    }

    fn tools(&self) -> &'static [&'static Tool] {
        &TOOLS
    }

    fn check(&self) -> Result<()> {
        let version = systemctl::version()?;
        if version < OLDEST {
            return refuse(
                format_args!("systemd {version} is too old, {OLDEST} is needed"),
                "upgrade to Debian 12 or newer",
            );
        }
        let failed = systemctl::list(&[self.names.all()], &["failed"])?;
        if !failed.is_empty() {
            let failed = failed.join(" ");
            return refuse(format_args!("failed: {failed}"), format!("systemctl status {failed}"));
        }
        let tend = [self.names.tend_service(), self.names.tend_timer()];
        if !self.known(None)?.is_empty() && !systemctl::is_enabled(&[&tend[0], &tend[1]])? {
            return refuse(
                format_args!("nothing starts after a reboot: {} is not enabled", tend.join(" or ")),
                "farmctl doctor --fix",
            );
        }
        if let Some(program) = self.missing_program()? {
            return refuse(
                format_args!("{} is to call {}, which is gone", tend[0], program.display()),
                "farmctl doctor --fix",
            );
        }
        Ok(())
    }

    fn start(&self, session: &str, programs: &[Program]) -> Result<()> {
        if programs.is_empty() {
            return Ok(());
        }
        let lock = self.lock()?;
        let changed = self.write_units(session, programs)?;
        if self.install_tend()? || changed {
            systemctl::reload_units()?;
        }
        systemctl::order("start", &[self.names.tend_timer()])?;
        drop(lock);
        let states = self.states(session)?;
        if states.iter().all(|state| state.pid.is_none()) {
            entry::end_orphans(programs)?;
        }
        let down = states.iter().filter(|state| state.pid.is_none());
        let down = down.map(|state| self.unit_of(session, &state.process, state.seat));
        let down = down.collect::<Result<Vec<String>>>()?;
        systemctl::forget_failures(&down)?;
        systemctl::order("start", &down)
    }

    fn halt(&self, session: &str) -> Result<()> {
        systemctl::order("stop", &self.known(Some(session))?)
    }

    fn stop(&self, session: &str) -> Result<()> {
        let _lock = self.lock()?;
        // Also one whose file is gone.
        let mut units = systemctl::list(&self.names.processes(session)?, &[])?;
        units.extend(self.known(Some(session))?);
        units.sort_unstable();
        units.dedup();
        self.remove_units(&units)?;
        // Once for both: it takes seconds on a busy machine.
        if self.remove_tend_if_idle()? || !units.is_empty() {
            systemctl::reload_units()?;
        }
        let (app, _) = parts(session)?;
        let of_app = |other: &String| parse_session(other).is_some_and(|(of, _)| of == app);
        if !self.sessions()?.iter().any(of_app) {
            leave_slice(self.names.slice(app))?;
        }
        if self.is_idle()? { leave_slice(self.names.top_slice()) } else { Ok(()) }
    }

    fn restart(&self, session: &str, process: &str) -> Result<()> {
        let states = self.states(session)?;
        let state = states.iter().find(|state| state.process == process);
        let seat = state.map_or(Seat::First, |state| state.seat);
        let units = [self.unit_of(session, process, seat)?];
        systemctl::forget_failures(&units)?;
        systemctl::order("restart", &units)
    }

    fn take_seat(&self, session: &str, process: &str, seat: Seat) -> Result<()> {
        let units = [self.unit_of(session, process, seat)?];
        // Else it may have been started too often of late.
        systemctl::forget_failures(&units)?;
        systemctl::order("start", &units)
    }

    fn leave_seat(&self, session: &str, process: &str, seat: Seat) -> Result<()> {
        let units = [self.unit_of(session, process, seat)?];
        systemctl::order("stop", &units)?;
        systemctl::forget_failures(&units)
    }

    fn check_watched(&self, _session: &str) -> Result<()> {
        // systemd is process 1: without it there is no machine.
        Ok(())
    }

    fn seats(&self, session: &str) -> Result<Vec<ProcessState>> {
        let units = systemctl::show(&self.known(Some(session))?)?;
        let state = |unit: &Unit| {
            let (_, process, seat) = self.names.parse(&unit.name)?;
            Some(process_state(process, seat, unit))
        };
        Ok(units.iter().filter_map(state).collect())
    }

    fn sessions(&self) -> Result<Vec<String>> {
        let units = self.known(None)?;
        let mut sessions: Vec<String> =
            units.iter().filter_map(|unit| Some(self.names.parse(unit)?.0)).collect();
        sessions.sort_unstable();
        sessions.dedup();
        Ok(sessions)
    }

    fn position(&self, session: &str, process: &str) -> Result<Position> {
        journal::position(&Source::of_session(session, process)?).map(Position::Cursor)
    }

    fn lines_since(&self, session: &str, process: &str, since: &Position) -> Result<Vec<String>> {
        let Position::Cursor(cursor) = since else {
            bail!("the position is not one in the journal");
        };
        journal::lines_since(&Source::of_session(session, process)?, cursor.as_deref())
    }

    fn output(
        &self,
        app: &str,
        processes: &[&str],
        count: usize,
        until: Until,
        take: &mut Take<'_>,
    ) -> Result<()> {
        let source = Source::of_app(app, processes);
        let mut tail = journal::Tail::begin(&source)?;
        for process in processes {
            for line in tail.last_lines(&Source::of_app(app, &[process]), count)? {
                if take(process, &line).is_break() {
                    return Ok(());
                }
            }
        }
        if until == Until::Now {
            return Ok(());
        }
        tail.follow(&source, take)
    }
}
