//! Looking at running processes through /proc, and sending them signals.

use std::fs;

use anyhow::{Context as _, Result};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// The processes `pid` has started, by number.
///
/// # Errors
/// When /proc cannot be read.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found: Vec<u32> =
        all()?.into_iter().filter(|other| parent(*other) == Some(pid)).collect();
    found.sort_unstable();
    Ok(found)
}

/// Whether the process is there and no zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    stat_field(pid, 0).is_some_and(|state| state != "Z" && state != "X")
}

/// Whether the process is there and called farmctl.
#[must_use]
pub fn is_farmctl(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.starts_with("farmctl") && is_alive(pid)
}

/// When the process was started, in clock ticks since boot: with its pid, its identity.
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    stat_field(pid, 19)?.parse().ok()
}

/// Sends a signal; a process that is gone is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn send(pid: u32, number: i32) -> Result<()> {
    let signal = Signal::try_from(number).with_context(|| format!("signal {number}"))?;
    let pid = Pid::from_raw(i32::try_from(pid).context("a pid fits pid_t")?);
    match signal::kill(pid, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("sending {signal} to process {pid}")),
    }
}

/// Resident memory of a process, in bytes.
#[must_use]
pub fn memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

fn all() -> Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("reading /proc")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn parent(pid: u32) -> Option<u32> {
    stat_field(pid, 1)?.parse().ok()
}

/// A field of /proc/PID/stat (proc(5)), counted after the command's name, which may
/// itself hold spaces and parentheses: 0 is the state, 1 the parent, 19 the start time.
fn stat_field(pid: u32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = &stat[stat.rfind(')')? + 1..];
    fields.split_whitespace().nth(index).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_is_its_parents_child() {
        let me = std::process::id();
        assert!(is_alive(me));
        let parent = nix::unistd::getppid().as_raw().unsigned_abs();
        assert!(children(parent).expect("/proc is there").contains(&me));
        assert!(started(me).expect("it is running") > 0);
        assert!(!is_alive(4_194_304));
    }
}
