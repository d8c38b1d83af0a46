//! Calls of systemctl(1), and what it says of units.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::State;
use crate::error::Mark as _;
use crate::file;
use crate::layout::SYSTEMD_UNITS;
use crate::run::{Invocation, Tool};

pub(super) const SYSTEMCTL: Tool = Tool { name: "systemctl", package: "systemd" };

/// What is asked about a unit.
const PROPERTIES: &str = "Id,LoadState,ActiveState,SubState,MainPID,ExecMainStartTimestamp,\
                          ExecMainCode,ExecMainStatus";
/// `si_code` of waitid(2) for a process that ended by itself.
const EXITED: &str = "1";

/// A unit, as systemd sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    /// Its name.
    pub(super) name: String,
    /// What its process does.
    pub(super) state: State,
    /// Whether it failed to load: not found, or a bad setting.
    pub(super) loaded: bool,
    /// Id of its main process.
    pub(super) pid: Option<u32>,
    /// When that was started, seconds since 1970.
    pub(super) since: Option<i64>,
    /// Exit status of the last one that ended; negative: the signal.
    pub(super) exit: Option<i32>,
}

/// Asks about units; one that is not there is not loaded.
pub(super) fn show(units: &[String]) -> Result<Vec<Unit>> {
    if units.is_empty() {
        return Ok(Vec::new());
    }
    let text = Invocation::of(&SYSTEMCTL)
        .args(["show", "--timestamp=unix", "--property", PROPERTIES, "--"])
        .args(units)
        .output()?;
    parse_show(&text)
}

/// Reads what `systemctl show` prints: blocks of `KEY=VALUE`, an empty line between two.
fn parse_show(text: &str) -> Result<Vec<Unit>> {
    text.split("\n\n").filter(|block| !block.trim().is_empty()).map(parse_unit).collect()
}

fn parse_unit(block: &str) -> Result<Unit> {
    let values: HashMap<&str, &str> =
        block.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |key: &str| values.get(key).copied().unwrap_or_default();
    let number = |key: &str| value(key).parse::<i32>().ok();
    let name = values.get("Id").context("systemctl show names no unit")?;
    // A unit that was never started has neither.
    let pid = value("MainPID").parse().ok().filter(|pid| *pid != 0);
    let since = value("ExecMainStartTimestamp").strip_prefix('@').and_then(|at| at.parse().ok());
    let ended = number("ExecMainCode").is_some_and(|code| code != 0);
    let exit = number("ExecMainStatus").filter(|_| ended);
    Ok(Unit {
        name: (*name).to_owned(),
        state: state(value("ActiveState"), value("SubState")),
        loaded: value("LoadState") == "loaded",
        pid,
        since: since.filter(|_| pid.is_some()),
        exit: exit.map(|exit| if value("ExecMainCode") == EXITED { exit } else { -exit }),
    })
}

/// The states of a service unit (unit-def.c of systemd): active and sub-state.
fn state(active: &str, sub: &str) -> State {
    match (active, sub) {
        // While its ExecReload runs, it is reloading.
        ("active" | "reloading" | "refreshing", _) => State::Running,
        // Between its end and its next start; trixie has a second name for the end of that.
        ("activating", "auto-restart" | "auto-restart-queued") => State::Backoff,
        ("activating", _) => State::Starting,
        ("deactivating", _) => State::Stopping,
        ("failed", _) => State::Failed,
        _ => State::Stopped,
    }
}

/// Names of units systemd has in memory that match one of the patterns.
pub(super) fn list(patterns: &[String], states: &[&str]) -> Result<Vec<String>> {
    let text = Invocation::of(&SYSTEMCTL)
        .args(["list-units", "--all", "--plain", "--no-legend", "--full"])
        .args(states.iter().map(|state| format!("--state={state}")))
        .arg("--")
        .args(patterns)
        .output()?;
    Ok(parse_list(&text))
}

/// The first column of what `systemctl list-units --plain` prints.
fn parse_list(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Has systemd do something with units; what enables or disables them is in force after
/// [`reload_units`].
pub(super) fn order(verb: &str, units: &[String]) -> Result<()> {
    if units.is_empty() {
        return Ok(());
    }
    Invocation::of(&SYSTEMCTL)
        .args(["--quiet", "--no-ask-password", "--no-reload", verb, "--"])
        .args(units)
        .run()
        .hint_with(|| format!("systemctl status {}", units.join(" ")))
}

/// Enables units, in force after [`reload_units`] and after a power cut: systemctl does not
/// sync the links it makes.
pub(super) fn enable(units: &[String]) -> Result<()> {
    order("enable", units)?;
    for target in ["multi-user.target.wants", "timers.target.wants"] {
        let wants = Path::new(SYSTEMD_UNITS).join(target);
        if wants.is_dir() {
            file::sync_directory(&wants)?;
        }
    }
    file::sync_directory(Path::new(SYSTEMD_UNITS))
}

/// Has systemd read unit files again.
pub(super) fn reload_units() -> Result<()> {
    Invocation::of(&SYSTEMCTL).arg("daemon-reload").run()
}

/// Forgets how units ended; one that is not loaded has nothing to forget.
pub(super) fn forget_failures(units: &[String]) -> Result<()> {
    for unit in units {
        Invocation::of(&SYSTEMCTL).args(["--quiet", "reset-failed", "--", unit]).outcome()?;
    }
    Ok(())
}

/// Whether all of these units are enabled.
pub(super) fn is_enabled(units: &[&str]) -> Result<bool> {
    // It succeeds if one of them is.
    for unit in units {
        if !Invocation::of(&SYSTEMCTL)
            .args(["--quiet", "is-enabled", "--", unit])
            .outcome()?
            .success()
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The version of the systemd that is PID 1: the number alone.
pub(super) fn version() -> Result<u32> {
    let text =
        Invocation::of(&SYSTEMCTL).args(["show", "--property=Version", "--value"]).output()?;
    parse_version(&text).with_context(|| format!("reading the version {}", text.trim()))
}

/// Debian writes `252.39-1~deb12u1`, others `257` or `257-rc1`.
fn parse_version(text: &str) -> Option<u32> {
    let digits = text.trim().trim_start_matches('v');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from systemd 252.39: running, killed a moment ago, not there.
    const SHOWN: &str = "\
MainPID=1686
ExecMainStartTimestamp=@1795257952
ExecMainCode=0
ExecMainStatus=0
Id=farmctl-hello.web.service
LoadState=loaded
ActiveState=active
SubState=running

MainPID=0
ExecMainStartTimestamp=@1795257952
ExecMainCode=2
ExecMainStatus=9
Id=farmctl-hello.worker.service
LoadState=loaded
ActiveState=activating
SubState=auto-restart

MainPID=0
ExecMainStartTimestamp=
ExecMainCode=0
ExecMainStatus=0
Id=farmctl-nosuch.web.service
LoadState=not-found
ActiveState=inactive
SubState=dead
";

    #[test]
    fn what_systemctl_shows_is_read() {
        let units = parse_show(SHOWN).expect("as captured");
        let unit = |name: &str, state, loaded, pid, since, exit| Unit {
            name: format!("farmctl-{name}.service"),
            state,
            loaded,
            pid,
            since,
            exit,
        };
        let expected = [
            unit("hello.web", State::Running, true, Some(1686), Some(1_795_257_952), None),
            unit("hello.worker", State::Backoff, true, None, None, Some(-9)),
            unit("nosuch.web", State::Stopped, false, None, None, None),
        ];
        assert_eq!(units, expected);
    }

    #[test]
    fn a_process_that_exited_has_its_status() {
        let text = "Id=a\nActiveState=failed\nSubState=failed\nExecMainCode=1\nExecMainStatus=3\n";
        let units = parse_show(text).expect("it names the unit");
        assert_eq!((units[0].state, units[0].exit), (State::Failed, Some(3)));
    }

    /// Captured from systemd 252.39.
    #[test]
    fn listed_units_are_their_first_column() {
        let text = "  farmctl-tend.service loaded activating start   start farmctl: bring back\n  \
                    farmctl-a\\x2db.slice  loaded active     active        Slice /farmctl/a-b\n";
        assert_eq!(parse_list(text), ["farmctl-tend.service", "farmctl-a\\x2db.slice"]);
        assert_eq!(parse_list(""), Vec::<String>::new());
    }

    #[test]
    fn versions_of_debian_and_of_others_are_read() {
        assert_eq!(parse_version("252.39-1~deb12u2\n"), Some(252));
        assert_eq!(parse_version("257.13-1~deb13u1"), Some(257));
        assert_eq!(parse_version("v258-rc2"), Some(258));
        assert_eq!(parse_version(""), None);
    }
}
