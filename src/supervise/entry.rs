//! How a process gets into its session: what every supervisor runs, and what it must
//! not find there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::resource::{Resource, getrlimit};

use super::Program;
use crate::error::refuse;
use crate::inside::Inside;
use crate::layout::START_SCRIPT;
use crate::place::{self, Place};
use crate::run::Tool;

/// Enters a session's mount and execs.
pub(super) const CHROOT: Tool = Tool { name: "chroot", package: "coreutils" };
/// How long an orphan may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// What runs a process: chroot(8) and env(1), each of which execs the next, so that the
/// pid is the server's in the end. It has no groups but its own, and an environment
/// with nothing of the supervisor's.
pub(super) fn command(program: &Program) -> Result<Vec<String>> {
    let chroot = CHROOT.path().unwrap_or_else(|| PathBuf::from("/usr/sbin/chroot"));
    let mut words = vec![
        chroot.display().to_string(),
        format!("--userspec={}:{}", program.uid, program.gid),
        "--groups=".to_owned(),
        program.mount.display().to_string(),
        "/usr/bin/env".to_owned(),
        "-i".to_owned(),
    ];
    words.extend(environment(&program.mount, program.uid)?);
    words.extend([START_SCRIPT.to_owned(), "run".to_owned(), program.process.clone()]);
    Ok(words)
}

/// What login(1) would set for the user of this id in the session.
fn environment(mount: &Path, uid: u32) -> Result<Vec<String>> {
    let passwd = Inside::open(mount)?.read(Path::new("/etc/passwd"))?.unwrap_or_default();
    let uid = uid.to_string();
    let user = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() == 7 && fields[2] == uid)
        .ok_or_else(|| anyhow!("the session in {} has no user {uid}", mount.display()))?;
    Ok(vec![
        "PATH=/usr/local/bin:/usr/bin:/bin".to_owned(),
        "LANG=C.UTF-8".to_owned(),
        format!("HOME={}", user[5]),
        format!("USER={}", user[0]),
        format!("LOGNAME={}", user[0]),
        "SHELL=/bin/sh".to_owned(),
    ])
}

/// File descriptors a server may open: as many as the host allows, within reason.
/// supervisord raises its own limit to this and refuses to start if it cannot.
pub(super) fn descriptors() -> Result<u64> {
    let (_, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    Ok(hard.min(65_536))
}

/// Ends what runs in a session without a supervisor: a supervisord that is killed
/// leaves its processes behind, and a second copy beside them would share their
/// sockets. Somebody's shell in the session is left alone.
pub(super) fn end_orphans(programs: &[Program]) -> Result<()> {
    let mut mounts: Vec<&Path> = programs.iter().map(|program| program.mount.as_path()).collect();
    mounts.sort_unstable();
    mounts.dedup();
    for mount in mounts {
        let place = Place::mounted(mount);
        let look = || {
            let mut inside = place.rooted()?;
            let pids: Vec<u32> = inside.iter().map(|occupant| occupant.pid).collect();
            inside.retain(|occupant| !entered_by_schroot(occupant.pid, &pids));
            Ok(inside)
        };
        place::end(look, GRACE)?;
        if let Some(left) = look()?.first() {
            return refuse(
                format_args!("process {left} cannot be ended"),
                "it waits in the kernel, for a disk perhaps: look at dmesg",
            );
        }
    }
    Ok(())
}

/// Whether a process came into the session through schroot: its first ancestor outside
/// (`inside` lists who is not) is schroot itself.
fn entered_by_schroot(pid: u32, inside: &[u32]) -> bool {
    let mut at = pid;
    // A chain of parents has an end, but the table may change while we climb.
    for _ in 0..1000 {
        let Some(parent) = place::parent(at) else { return false };
        if !inside.contains(&parent) {
            return place::command_line(parent)
                .first()
                .is_some_and(|program| Path::new(program).file_name() == Some("schroot".as_ref()));
        }
        at = parent;
    }
    false
}
