//! schroot, which is not trusted to report.
//!
//! schroot 1.6.13 answers 0 on several failures, cleans nothing up when a session
//! cannot be begun, and destroys a live session that is asked to be recovered. So what
//! it says it did is looked at here: its session file, the mounts, the writable layer,
//! the processes. Nothing of ours uses schroot's own profiles, which copy the host's
//! passwd and shadow into chroots and fail on a host without /etc/services.

mod guard;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::fcntl::Flock;
use nix::mount::MsFlags;

use crate::error::{Mark as _, refuse};
use crate::file;
use crate::inside;
use crate::layout::{
    SCHROOT_CHROOTS, SCHROOT_MOUNTS, SCHROOT_PROFILE, SCHROOT_SESSIONS, SCHROOT_UNION,
};
use crate::mount;
use crate::place::{self, Occupant, Place};
use crate::profile::Grants;
use crate::run::{Invocation, Outcome, Shield, Tool};
use crate::storage::Stanza;

const SCHROOT: Tool = Tool { name: "schroot", package: "schroot" };
/// Programs this module needs on the host.
pub const TOOLS: [&Tool; 1] = [&SCHROOT];

/// How long what still runs in a session may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// How long another farmctl may take to register a chroot.
const LOCKED: Duration = Duration::from_secs(20);
/// What schroot copies into sessions, if the host has it: a missing one is fatal to it.
const COPIED: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// Keys of ours in definitions; schroot keeps them in its session files.
const NODE_KEY: &str = "farmctl.node";
const TRANSACTION_KEY: &str = "farmctl.transaction";
/// schroot's type of chroots on logical volumes.
const LVM: &str = "lvm-snapshot";

/// A chroot as schroot is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Name to schroot.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The keys that depend on the storage.
    pub stanza: Stanza,
    /// What is mounted in it: [`release_fstab`] or [`source_fstab`].
    pub fstab: String,
    /// Who else than root may use it.
    pub grants: Grants,
    /// Whether it has a `source:` chroot that changes the original: environments only.
    pub source_clone: bool,
    /// Id of the node that made it.
    pub node: String,
    /// Id of the transaction that made it.
    pub transaction: String,
}

impl Definition {
    /// The stanza of schroot.conf(5). No `users` unless the profile asks: each of those
    /// can become root of the host.
    #[must_use]
    pub fn render(&self) -> String {
        let Self { name, node, transaction, .. } = self;
        let Grants { users, root_users, source_root_users } = &self.grants;
        let description = self.description.replace(['\n', '#'], " ");
        let mut text = format!(
            "# Written by farmctl; changes are lost.\n[{name}]\ndescription={description}\n"
        );
        for (key, value) in &self.stanza.0 {
            text.push_str(&format!("{key}={value}\n"));
        }
        // schroot knows the last key only where there is a source.
        let source_root_users: &[String] = if self.source_clone { source_root_users } else { &[] };
        for (key, users) in [
            ("users", users.as_slice()),
            ("root-users", root_users.as_slice()),
            ("source-root-users", source_root_users),
        ] {
            if !users.is_empty() {
                text.push_str(&format!("{key}={}\n", users.join(",")));
            }
        }
        // A source is changed for good: nothing of the host may get into it.
        let copyfiles = if self.source_clone { "" } else { "farmctl/copyfiles" };
        let source_clone = self.source_clone;
        text.push_str(&format!(
            "profile=farmctl\n\
             setup.fstab=farmctl/{name}.fstab\n\
             setup.copyfiles={copyfiles}\n\
             setup.nssdatabases=\n\
             source-clone={source_clone}\n\
             {NODE_KEY}={node}\n\
             {TRANSACTION_KEY}={transaction}\n"
        ));
        text
    }
}

/// What every session and source has mounted. /home and /tmp are its own.
const FSTAB: &str = "\
/proc /proc none rw,bind 0 0
/sys /sys none ro,bind 0 0
/dev /dev none rw,bind 0 0
devpts /dev/pts devpts rw,newinstance,ptmxmode=666,mode=620,gid=5 0 0
tmpfs /dev/shm tmpfs rw,nosuid,nodev,mode=1777 0 0
tmpfs /run tmpfs rw,nosuid,nodev,mode=755 0 0
tmpfs /tmp tmpfs rw,nosuid,nodev,mode=1777 0 0
";

/// The fstab(5) of a release's sessions, with directories of the host (first) bound to
/// where the application expects them (second).
#[must_use]
pub fn release_fstab(binds: &[(PathBuf, PathBuf)]) -> String {
    let mut text = FSTAB.to_owned();
    for (host, inside) in binds {
        let (host, inside) = (escape(host), escape(inside));
        text.push_str(&format!("{host} {inside} none rw,bind,nosuid,nodev 0 0\n"));
    }
    text
}

/// The fstab(5) of an environment.
#[must_use]
pub fn source_fstab() -> String {
    FSTAB.to_owned()
}

/// What schroot mounts in sessions of a chroot, as the application sees it.
///
/// # Errors
/// When its fstab(5) cannot be read.
pub fn mount_points(chroot: &str) -> Result<Vec<PathBuf>> {
    Ok(parse_fstab(&file::read_if_there(&fstab(chroot))?.unwrap_or_default()))
}

/// The mount points of a [`release_fstab`].
fn parse_fstab(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|field| PathBuf::from(mount::unescape(field)))
        .collect()
}

/// A path as a field of fstab(5).
fn escape(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('#', "\\043")
}

/// A chroot definition of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Name to schroot.
    pub name: String,
    /// Id of the node that made it.
    pub node: String,
    /// Id of the transaction that made it.
    pub transaction: String,
}

fn definition(name: &str) -> PathBuf {
    Path::new(SCHROOT_CHROOTS).join(name)
}

fn fstab(name: &str) -> PathBuf {
    Path::new(SCHROOT_PROFILE).join(format!("{name}.fstab"))
}

/// The value of a key in a file of schroot's; the last one counts.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let of = |line: &'a str| line.strip_prefix(key)?.trim_start().strip_prefix('=');
    text.lines().filter_map(of).map(str::trim).next_back()
}

/// Our chroot definitions, by name.
///
/// # Errors
/// When they cannot be read.
pub fn registered() -> Result<Vec<Registered>> {
    let mut found = Vec::new();
    for name in file::names_in(Path::new(SCHROOT_CHROOTS))? {
        if !name.starts_with("farmctl-") {
            continue;
        }
        let text = file::read_if_there(&definition(&name))?.unwrap_or_default();
        if let Some(node) = value(&text, NODE_KEY) {
            let transaction = value(&text, TRANSACTION_KEY).unwrap_or_default().to_owned();
            found.push(Registered { name, node: node.to_owned(), transaction });
        }
    }
    Ok(found)
}

/// Refuses a name whose definition is another node's or somebody else's.
///
/// # Errors
/// Exactly then.
pub fn check_free(name: &str, node: Option<&str>) -> Result<()> {
    let path = definition(name);
    match file::read_if_there(&path)? {
        Some(text) if node.is_none() || value(&text, NODE_KEY) != node => refuse(
            format_args!("{} is there already, and not this node's", path.display()),
            "remove it if it is not in use: farmctl never replaces a file of others",
        ),
        _ => Ok(()),
    }
}

/// Makes a chroot known to schroot, or makes the definition there the given one. The
/// definition is the last file written; if schroot does not take it, all is as before.
///
/// # Errors
/// When another node's or somebody else's definition has the name, or schroot refuses:
/// also because of a file that is not ours, which is named then.
pub fn register(wanted: &Definition) -> Result<()> {
    let name = &wanted.name;
    let path = definition(name);
    let lock = lock()?;
    let before = file::read_if_there(&path)?;
    check_free(name, Some(&wanted.node))?;
    let fstab_before = file::read_if_there(&fstab(name))?;
    write_profile()?;
    if wanted.stanza.0.iter().any(|(key, value)| *key == "type" && value == LVM) {
        guard::post()?;
    }
    file::publish(&fstab(name), wanted.fstab.as_bytes(), 0o644)?;
    file::publish(&path, wanted.render().as_bytes(), 0o644)?;
    let Err(error) = validate(name) else {
        return Ok(());
    };
    let _shield = Shield::raise();
    match before {
        Some(text) => {
            file::publish(&path, text.as_bytes(), 0o644)?;
            file::publish(&fstab(name), fstab_before.unwrap_or_default().as_bytes(), 0o644)?;
        }
        None => forget(name)?,
    }
    drop(lock);
    Err(error).with_context(|| format!("registering {name} with schroot"))
}

/// The files all our chroots share. nssdatabases is empty: schroot insists on the file,
/// and what it would list are the host's passwd and shadow.
fn write_profile() -> Result<()> {
    let profile = Path::new(SCHROOT_PROFILE);
    file::make_directory(profile, 0o755)?;
    let copied: String = COPIED
        .iter()
        .filter(|path| Path::new(path).exists())
        .map(|path| format!("{path}\n"))
        .collect();
    for (name, text) in [("copyfiles", copied.as_str()), ("nssdatabases", ""), ("fstab", FSTAB)] {
        let path = profile.join(name);
        if file::read_if_there(&path)?.as_deref() != Some(text) {
            file::publish(&path, text.as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

/// Asks schroot itself whether it knows the chroot: one broken file anywhere makes it
/// refuse all of them.
fn validate(name: &str) -> Result<()> {
    let outcome = Invocation::of(&SCHROOT)
        .args(["--config", "--chroot", &format!("chroot:{name}")])
        .outcome()?;
    if outcome.success() && outcome.stdout.contains(&format!("[{name}]")) {
        return Ok(());
    }
    Err(refusal(&outcome, name))
}

/// Why schroot refused, with the file to mend as hint if it is not ours.
fn refusal(outcome: &Outcome, name: &str) -> anyhow::Error {
    let said = said(outcome);
    let hint = match parse_culprit(&outcome.stderr) {
        Some(path) if path == definition(name) && said.contains("already exists") => {
            Some(match other_file_defining(name) {
                Some(other) => {
                    format!("{} defines {name} as well: remove it there", other.display())
                }
                None => format!("another file in {SCHROOT_CHROOTS} defines {name} as well"),
            })
        }
        Some(path) if path != definition(name) => Some(format!(
            "{} is not farmctl's, and makes schroot refuse every chroot: mend or remove it",
            path.display()
        )),
        _ => None,
    };
    let hint = hint.unwrap_or_else(|| "farmctl doctor shows whether schroot works here".to_owned());
    let marked: Result<()> = refuse(format_args!("schroot: {said}"), hint);
    marked.expect_err("it was built as an error")
}

/// schroot's own words: its error lines, without their letter.
fn said(outcome: &Outcome) -> String {
    let lines: Vec<&str> =
        outcome.stderr.lines().filter_map(|line| line.strip_prefix("E: ")).collect();
    if lines.is_empty() {
        let code = outcome.status.code();
        return code.map_or_else(|| "killed".to_owned(), |code| format!("exit status {code}"));
    }
    lines.join("; ")
}

/// The file a complaint of schroot's is about: `E: /etc/…: line 3 …`.
fn parse_culprit(stderr: &str) -> Option<PathBuf> {
    stderr
        .lines()
        .filter_map(|line| line.strip_prefix("E: /"))
        .filter_map(|line| line.split_once(": "))
        .map(|(path, _)| PathBuf::from(format!("/{path}")))
        .next()
}

fn other_file_defining(name: &str) -> Option<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/schroot/schroot.conf")];
    for other in file::names_in(Path::new(SCHROOT_CHROOTS)).ok()? {
        if other != name {
            files.push(definition(&other));
        }
    }
    let header = format!("[{name}]");
    files.into_iter().find(|path| {
        fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line.trim() == header))
    })
}

/// Makes schroot forget a chroot; the last one takes our profile directory along.
///
/// # Errors
/// When a file cannot be removed.
pub fn unregister(name: &str) -> Result<()> {
    let _lock = lock()?;
    forget(name)
}

/// Keeps other farmctls, also those of other roots, from removing the profile directory
/// while one uses it for the first time.
fn lock() -> Result<Flock<fs::File>> {
    place::hold(Path::new(SCHROOT_CHROOTS), LOCKED)
}

fn forget(name: &str) -> Result<()> {
    file::remove_if_there(&definition(name))?;
    file::remove_if_there(&fstab(name))?;
    let profile = Path::new(SCHROOT_PROFILE);
    let ours = ["copyfiles", "nssdatabases", "fstab"];
    let names = file::names_in(profile)?;
    // A session is recovered with the profile's files: they stay while there is one.
    let begun = sessions()?.iter().any(|session| session.starts_with("fs-"));
    if !begun && !has_volumes()? {
        guard::withdraw()?;
    }
    if registered()?.is_empty() && !begun && names.iter().all(|name| ours.contains(&name.as_str()))
    {
        for name in &names {
            file::remove_if_there(&profile.join(name))?;
        }
        match fs::remove_dir(profile) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", profile.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a chroot of ours is on a logical volume.
fn has_volumes() -> Result<bool> {
    for chroot in registered()? {
        let text = file::read_if_there(&definition(&chroot.name))?.unwrap_or_default();
        if value(&text, "type") == Some(LVM) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether what keeps schroot from removing our logical volumes is in place, if there are
/// any.
///
/// # Errors
/// When that cannot be found out.
pub fn is_guarded() -> Result<bool> {
    Ok(!has_volumes()? || guard::is_posted()?)
}

/// Puts that back in place if somebody took it away.
///
/// # Errors
/// When it cannot be written.
pub fn restore_guards() -> Result<()> {
    if has_volumes()? { guard::post() } else { Ok(()) }
}

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

/// Whether schroot can read its configuration and its books: one broken file makes it
/// refuse every chroot.
///
/// # Errors
/// When it cannot, with the file to mend.
pub fn check() -> Result<()> {
    let outcome = Invocation::of(&SCHROOT).args(["--list", "--all"]).outcome()?;
    // Without any chroot it warns and succeeds.
    if outcome.success() { Ok(()) } else { Err(refusal(&outcome, "")) }
}

/// Bytes a session has written over its release, about: what its layer takes on disk.
///
/// # Errors
/// None yet: a layer that cannot be read counts as nothing.
pub fn written(session: &str) -> Result<u64> {
    Ok(size_of(&layers(session)[0].join("upper")))
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
    begin_new(session, chroot, &mount)
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
    fn mount_points_are_read_as_they_were_written() {
        let bind = (PathBuf::from("/srv/a"), PathBuf::from("/srv/it's # 1\\040 \tb"));
        let points = parse_fstab(&release_fstab(std::slice::from_ref(&bind)));
        assert_eq!((points.len(), points.last()), (8, Some(&bind.1)));
    }

    fn hello() -> Definition {
        Definition {
            name: "farmctl-hello-1.0".to_owned(),
            description: "farmctl release hello 1.0".to_owned(),
            stanza: Stanza(vec![
                ("type", "directory".to_owned()),
                ("directory", "/var/lib/farmctl/volumes/fv-hello-1.0/root".to_owned()),
                ("union-type", "overlay".to_owned()),
            ]),
            fstab: String::new(),
            grants: Grants::default(),
            source_clone: false,
            node: "0badcafe".to_owned(),
            transaction: "12345678".to_owned(),
        }
    }

    #[test]
    fn a_release_gets_resolver_and_hosts_in_its_sessions_and_no_source() {
        insta::assert_snapshot!(hello().render(), @r"
        # Written by farmctl; changes are lost.
        [farmctl-hello-1.0]
        description=farmctl release hello 1.0
        type=directory
        directory=/var/lib/farmctl/volumes/fv-hello-1.0/root
        union-type=overlay
        profile=farmctl
        setup.fstab=farmctl/farmctl-hello-1.0.fstab
        setup.copyfiles=farmctl/copyfiles
        setup.nssdatabases=
        source-clone=false
        farmctl.node=0badcafe
        farmctl.transaction=12345678
        ");
    }

    #[test]
    fn nothing_of_the_host_is_copied_into_an_environment() {
        let environment = Definition { source_clone: true, ..hello() };
        insta::assert_snapshot!(environment.render(), @r"
        # Written by farmctl; changes are lost.
        [farmctl-hello-1.0]
        description=farmctl release hello 1.0
        type=directory
        directory=/var/lib/farmctl/volumes/fv-hello-1.0/root
        union-type=overlay
        profile=farmctl
        setup.fstab=farmctl/farmctl-hello-1.0.fstab
        setup.copyfiles=
        setup.nssdatabases=
        source-clone=true
        farmctl.node=0badcafe
        farmctl.transaction=12345678
        ");
    }

    #[test]
    fn data_directories_are_bound_without_set_id_programs() {
        let binds = [(PathBuf::from("/srv/a b/data"), PathBuf::from("/srv/hello/uploads"))];
        insta::assert_snapshot!(release_fstab(&binds), @r"
        /proc /proc none rw,bind 0 0
        /sys /sys none ro,bind 0 0
        /dev /dev none rw,bind 0 0
        devpts /dev/pts devpts rw,newinstance,ptmxmode=666,mode=620,gid=5 0 0
        tmpfs /dev/shm tmpfs rw,nosuid,nodev,mode=1777 0 0
        tmpfs /run tmpfs rw,nosuid,nodev,mode=755 0 0
        tmpfs /tmp tmpfs rw,nosuid,nodev,mode=1777 0 0
        /srv/a\040b/data /srv/hello/uploads none rw,bind,nosuid,nodev 0 0
        ");
    }

    /// Captured from schroot 1.6.13.
    #[test]
    fn the_file_schroot_complains_about_is_found() {
        let said = "E: /etc/schroot/chroot.d/bad: line 3 [bad] directory: rel: Directory must \
                    have an absolute path\n";
        assert_eq!(parse_culprit(said), Some(PathBuf::from("/etc/schroot/chroot.d/bad")));
        let said = "E: /var/lib/schroot/session/other: line 0: Invalid line: “trash”\n";
        assert_eq!(parse_culprit(said), Some(PathBuf::from("/var/lib/schroot/session/other")));
        let said = "E: /etc/schroot/chroot.d/bad: File has write permissions for others\n";
        assert_eq!(parse_culprit(said), Some(PathBuf::from("/etc/schroot/chroot.d/bad")));
        assert_eq!(parse_culprit("E: session:nope: Chroot not found\n"), None);
    }

    #[test]
    fn a_session_is_entered_as_a_user_of_its_own() {
        let call = enter_as("fs-hello-1", "app", &["/bin/sh", "-l"]);
        let expected = "/usr/bin/schroot --run-session --chroot session:fs-hello-1 --directory / --user root -- /usr/bin/setpriv --reuid app --regid app --clear-groups --reset-env -- /bin/sh -l";
        assert_eq!(call.display(), expected);
    }
}
