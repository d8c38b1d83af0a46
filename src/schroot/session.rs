//! Sessions: begun, recovered, entered and ended by schroot, and looked at here.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::MsFlags;

use super::registry::refusal;
use super::{LVM, NODE_KEY, SCHROOT, value};
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::inside;
use crate::layout::{SCHROOT_MOUNTS, SCHROOT_SESSIONS, SCHROOT_UNION};
use crate::mount;
use crate::place::{self, Occupant, Place};
use crate::run::{Invocation, Shield};

/// How long what still runs in a session may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

fn session_file(session: &str) -> PathBuf {
    Path::new(SCHROOT_SESSIONS).join(session)
}

/// Names of all sessions in schroot's books, whoever began them.
///
/// # Errors
/// When its books cannot be read.
pub fn sessions() -> Result<Vec<String>> {
    file::names_in(Path::new(SCHROOT_SESSIONS))
}

/// Whether a session was begun from a chroot this node registered.
///
/// # Errors
/// When schroot's books cannot be read.
pub fn is_of_node(session: &str, node: &str) -> Result<bool> {
    let text = file::read_if_there(&session_file(session))?;
    Ok(text.as_deref().and_then(|text| value(text, NODE_KEY)) == Some(node))
}

/// Bytes a session has written over its release, about: what its layer takes on disk.
/// A layer that cannot be read counts as nothing.
#[must_use]
pub fn written(session: &str) -> u64 {
    size_of(&layers(session)[0].join("upper"))
}

/// Disk space of a directory tree, links not followed.
fn size_of(directory: &Path) -> u64 {
    let mut total = 0;
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        // The application removes directories while we look, and may nest them deeper
        // than a path can be.
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                pending.push(entry.path());
            }
            total += meta.blocks() * 512;
        }
    }
    total
}

/// Where schroot mounts a session.
#[must_use]
pub fn mount_of(session: &str) -> PathBuf {
    Path::new(SCHROOT_MOUNTS).join(session)
}

/// The writable and the mounted half of an overlay session.
fn layers(session: &str) -> [PathBuf; 2] {
    ["overlay", "underlay"].map(|half| Path::new(SCHROOT_UNION).join(half).join(session))
}

/// Whether schroot knows the session and its file system is mounted.
///
/// # Errors
/// When the mount table cannot be read.
pub fn is_live(session: &str) -> Result<bool> {
    Ok(session_file(session).exists() && mount::is_mount_point(&mount_of(session))?)
}

/// Processes whose root directory is in a session's mount.
///
/// # Errors
/// When /proc cannot be read.
pub fn processes_in(mount: &Path) -> Result<Vec<Occupant>> {
    Place::mounted(mount).rooted()
}

/// What there is of a session, for people; empty if nothing.
fn remains(session: &str, place: &Place) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if session_file(session).exists() {
        found.push(session_file(session).display().to_string());
    }
    for directory in layers(session) {
        if directory.exists() {
            found.push(directory.display().to_string());
        }
    }
    for root in [mount_of(session), layers(session)[1].clone()] {
        for point in mount::mounts_beneath(&root)? {
            found.push(format!("the mount {}", point.display()));
        }
    }
    for process in place.rooted()? {
        found.push(format!("process {process}"));
    }
    Ok(found)
}

/// Begins a session and answers where it is mounted, without set-id programs and
/// devices. Success is what can be seen, not what schroot says: on some failures its
/// exit status is 0.
///
/// # Errors
/// When there is anything of that name already, or it cannot be begun; what schroot
/// left of it is removed then.
pub fn begin(session: &str, chroot: &str) -> Result<PathBuf> {
    let mount = mount_of(session);
    let there = remains(session, &Place::named(&mount))?;
    if let Some(first) = there.first() {
        return refuse(
            format_args!("there is something of a session {session} already: {first}"),
            "farmctl gc",
        );
    }
    // schroot syncs nothing: after a power cut its file would be empty, and it would not
    // know the session that state tells of.
    begin_new(session, chroot, &mount)
        .and_then(|()| file::sync(&session_file(session)))
        .inspect_err(|_| {
            let _shield = Shield::raise();
            // Why it could not be begun says more than why it could not be ended;
            // gc finds what is left.
            drop(end(session));
        })
        .with_context(|| format!("beginning session {session}"))?;
    Ok(mount)
}

/// The call that begins a session.
#[must_use]
pub fn beginning(session: &str, chroot: &str) -> Invocation {
    Invocation::of(&SCHROOT)
        .args(["--begin-session", "--session-name", session])
        .args(["--chroot", &format!("chroot:{chroot}")])
}

fn begin_new(session: &str, chroot: &str, mount: &Path) -> Result<()> {
    let outcome = beginning(session, chroot).outcome()?;
    if !outcome.success() || outcome.stdout.trim() != session {
        return Err(refusal(&outcome, chroot));
    }
    if !is_live(session)? {
        return refuse(
            format_args!("schroot says that it is begun, but {} is not mounted", mount.display()),
            "farmctl doctor shows whether schroot works here",
        );
    }
    protect(session, mount)
}

/// No set-id program and no device of a release works for the host's users, and what the
/// application writes is not theirs to read.
fn protect(session: &str, mount: &Path) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount::restrict(mount, flags)?;
    let [writable, lower] = layers(session);
    if mount::is_mount_point(&lower)? {
        mount::restrict(&lower, flags)?;
    }
    if writable.exists() {
        fs::set_permissions(&writable, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("closing {}", writable.display()))?;
    }
    Ok(())
}

/// Unmounts all of a session that is begun, so that [`recover`] starts with nothing: its
/// writable layer stays. What still runs in it is ended.
///
/// # Errors
/// When something still uses it.
pub fn dismount(session: &str) -> Result<()> {
    let place = Place::mounted(&mount_of(session));
    place::end(|| place.rooted(), GRACE)?;
    for root in [mount_of(session), layers(session)[1].clone()] {
        for point in mount::mounts_beneath(&root)?.iter().rev() {
            mount::unmount(point)
                .hint_with(|| format!("end what works in {}", mount_of(session).display()))?;
        }
    }
    Ok(())
}

/// Mounts a session again that schroot knows but that is not mounted: after a reboot.
/// One that is mounted is left alone, because schroot would end its processes or mount
/// a second layer over it.
///
/// # Errors
/// When it is not there, or not mounted afterwards.
pub fn recover(session: &str) -> Result<PathBuf> {
    let mount = mount_of(session);
    if is_live(session)? {
        return Ok(mount);
    }
    let recover = || -> Result<()> {
        if !session_file(session).exists() {
            return refuse("schroot does not know it", "farmctl stop, then farmctl start");
        }
        let chroot = format!("session:{session}");
        let outcome =
            Invocation::of(&SCHROOT).args(["--recover-session", "--chroot", &chroot]).outcome()?;
        if !outcome.success() {
            return Err(refusal(&outcome, session));
        }
        if !is_live(session)? {
            return refuse(
                format_args!(
                    "schroot says that it is recovered, but {} is not mounted",
                    mount.display()
                ),
                "farmctl stop, then farmctl start: that begins a new one",
            );
        }
        protect(session, &mount)
    };
    recover().with_context(|| format!("recovering session {session}"))?;
    Ok(mount)
}

/// Ends a session, and what schroot leaves of it. Nothing there is fine.
///
/// # Errors
/// When something of it remains; saying what, and who works in it.
pub fn end(session: &str) -> Result<()> {
    end_within(session, GRACE)
}

/// Like [`end`], with another time between SIGTERM and SIGKILL for what still runs
/// inside. All processes are given it at once; schroot alone ends them one by one.
///
/// # Errors
/// As [`end`].
pub fn end_within(session: &str, grace: Duration) -> Result<()> {
    let mount = mount_of(session);
    // Without a mount the directory has no identity of its own.
    let place =
        if mount::is_mount_point(&mount)? { Place::mounted(&mount) } else { Place::named(&mount) };
    let end = || -> Result<()> {
        end_setup(session)?;
        place::end(|| place.rooted(), grace)?;
        let refused = end_by_schroot(session)?;
        let swept = sweep(session, refused.is_none());
        let left = remains(session, &place)?;
        let Some(first) = left.first() else {
            return swept;
        };
        let left = anyhow!("{first} is left");
        let error =
            swept.err().or(refused).map_or(left, |error| error.context(format!("{first} is left")));
        let workers: Vec<String> = place.working()?.iter().map(ToString::to_string).collect();
        if workers.is_empty() {
            return Err(error);
        }
        let hint = format!("process {} works in it: cd / there, or end it", workers.join(", "));
        Err(error).hint(hint)
    };
    end().with_context(|| format!("ending session {session}"))
}

/// Ends setup scripts of a schroot that was killed: they go on without it, and would
/// mount and copy where their session has just been taken away. schroot gives them
/// `SESSION_ID`; commands in sessions have another variable.
fn end_setup(session: &str) -> Result<()> {
    let setting = format!("SESSION_ID={session}");
    place::end(|| place::started_with(&setting), GRACE)
}

/// The call that ends a session.
#[must_use]
pub fn ending(session: &str) -> Invocation {
    Invocation::of(&SCHROOT).args(["--end-session", "--chroot", &format!("session:{session}")])
}

/// Lets schroot end a session that is in its books; answers why it refused.
fn end_by_schroot(session: &str) -> Result<Option<anyhow::Error>> {
    if !session_file(session).exists() {
        return Ok(None);
    }
    let outcome = ending(session).outcome()?;
    Ok((!outcome.success()).then(|| refusal(&outcome, session)))
}

/// Removes what schroot left behind, as far as that is safe: only what nothing is
/// mounted on, and its session file only of sessions all of whose parts are known, so that
/// no snapshot is forgotten.
fn sweep(session: &str, schroot_agreed: bool) -> Result<()> {
    let text = file::read_if_there(&session_file(session))?;
    // The copies of the last two are removed by who asked for the end of the session.
    let known = ["directory", LVM, "btrfs-snapshot"];
    let known_parts = text
        .as_deref()
        .is_none_or(|text| value(text, "type").is_none_or(|kind| known.contains(&kind)));
    if !schroot_agreed && !known_parts {
        return Ok(());
    }
    let [writable, lower] = layers(session);
    let mount = mount_of(session);
    for root in [&mount, &lower] {
        for point in mount::mounts_beneath(root)?.iter().rev() {
            mount::unmount(point)?;
        }
        // Not always empty: what a setup script wrote there after it was unmounted.
        inside::remove_unmounted(root)?;
    }
    inside::remove_unmounted(&writable)?;
    file::remove_if_there(&session_file(session))
}

/// A command in a session as a user the host knows, the way schroot runs it: as a child
/// in between, so not for servers that signals must reach.
#[must_use]
pub fn enter(session: &str, user: &str, command: &[&str]) -> Invocation {
    Invocation::of(&SCHROOT)
        .args(["--run-session", "--chroot", &format!("session:{session}")])
        .args(["--directory", "/", "--user", user, "--"])
        .args(command)
}

/// A command in a session as a user of its own passwd, whom schroot does not know.
#[must_use]
pub fn enter_as(session: &str, user: &str, command: &[&str]) -> Invocation {
    let mut words = vec!["/usr/bin/setpriv", "--reuid", user, "--regid", user];
    words.extend(["--clear-groups", "--reset-env", "--"]);
    words.extend(command);
    enter(session, "root", &words)
}

/// A command in an environment itself, not in a copy of it.
#[must_use]
pub fn enter_source(chroot: &str, command: &[&str]) -> Invocation {
    Invocation::of(&SCHROOT)
        .args(["--chroot", &format!("source:{chroot}")])
        .args(["--directory", "/", "--user", "root", "--"])
        .args(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_entered_as_a_user_of_its_own() {
        let call = enter_as("fs-hello-1", "app", &["/bin/sh", "-l"]);
        let expected = "/usr/bin/schroot --run-session --chroot session:fs-hello-1 --directory / --user root -- /usr/bin/setpriv --reuid app --regid app --clear-groups --reset-env -- /bin/sh -l";
        assert_eq!(call.display(), expected);
    }
}
