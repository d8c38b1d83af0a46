//! The host accounts applications run as: `farmctl-NAME`, no home, no shell.
//!
//! Their ids are 200000 and more, far above people and daemons: a baked uid of 1000 or
//! 33 would be the host's administrator or nginx.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::Flock;
use nix::unistd::{AccessFlags, Gid, Group, Uid, User};

use crate::error::{Mark as _, refuse};
use crate::file;
use crate::layout;
use crate::node::FIRST_UID;
use crate::place;
use crate::run::{Invocation, Shield, Tool};

const USERADD: Tool = Tool { name: "useradd", package: "passwd" };
const USERDEL: Tool = Tool { name: "userdel", package: "passwd" };
const GROUPADD: Tool = Tool { name: "groupadd", package: "passwd" };
const GROUPDEL: Tool = Tool { name: "groupdel", package: "passwd" };
/// Programs this module needs on the host.
pub const TOOLS: [&Tool; 4] = [&USERADD, &USERDEL, &GROUPADD, &GROUPDEL];

/// What to type when the host's accounts cannot be changed.
const MEND: &str = "pwck -r and grpck -r say whether the host's passwd and group are whole";
/// How long another farmctl, or the tool of one that was killed, may take with an account.
const LOCKED: Duration = Duration::from_secs(20);
/// First id after those we give out: systemd's containers begin there
/// (<https://systemd.io/UIDS-GIDS/>).
const END_UID: u32 = 524_288;

/// An application's account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Id of its own group.
    pub gid: u32,
}

/// The account of an application, if the host has one of its name.
///
/// # Errors
/// When the host's users cannot be read.
pub fn account(app: &str) -> Result<Option<Account>> {
    let name = layout::account(app);
    let user = User::from_name(&name).with_context(|| format!("looking up user {name}"))?;
    Ok(user.map(|user| Account { uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
}

/// The user id of an application's account, if it is there.
///
/// # Errors
/// When the host has an account of that name that cannot be an application's.
pub fn find(app: &str) -> Result<Option<u32>> {
    let Some(account) = account(app)? else {
        return Ok(None);
    };
    if account.uid < FIRST_UID || account.gid < FIRST_UID {
        let name = layout::account(app);
        return refuse(
            format_args!(
                "the host has a user {name} with uid {} and gid {}: applications have {FIRST_UID} and more",
                account.uid, account.gid
            ),
            format!("userdel {name}, if it is not in use"),
        );
    }
    Ok(Some(account.uid))
}

/// The group id of an application's account.
///
/// # Errors
/// When there is none.
pub fn gid(app: &str) -> Result<u32> {
    match account(app)? {
        Some(account) => Ok(account.gid),
        None => refuse(
            format_args!("the host has no user {}", layout::account(app)),
            "farmctl doctor; installing the release again makes it",
        ),
    }
}

/// Gives an application an account, unless it has one, and answers its user id: the
/// first from `first` on that is neither `taken` nor known to the host.
///
/// # Errors
/// When the account there cannot be an application's or is another one's, or none can
/// be made.
pub fn ensure(app: &str, first: u32, taken: &[u32]) -> Result<u32> {
    let name = layout::account(app);
    let lock = hold()?;
    if let Some(uid) = find(app)? {
        if taken.contains(&uid) {
            return refuse(
                format_args!("user {name} has uid {uid}, which is another application's"),
                format!("userdel {name}"),
            );
        }
        return Ok(uid);
    }
    let uid = free_id(first.max(FIRST_UID), taken)?;
    check_writable()?;
    let _shield = Shield::raise();
    // A group of that name without the user is what a killed farmctl leaves.
    remove_group(&name, &lock)?;
    groupadd(&name, uid).holding(&lock)?.run().hint(MEND)?;
    useradd(app, &name, uid).holding(&lock)?.run().hint(MEND).inspect_err(|_| {
        // The error of useradd says more than that of the tidying up.
        drop(remove_group(&name, &lock));
    })?;
    Ok(uid)
}

/// Keeps other farmctls from the host's accounts: useradd locks the files, but the number is
/// chosen before, and another root's farmctl may be choosing the same. The tools keep the
/// lock, too, and go on to their end when farmctl is killed: they change one file after the
/// other, and a user of passwd that shadow does not know, or the other way round, is more
/// than farmctl could find and mend.
fn hold() -> Result<Flock<File>> {
    place::hold(Path::new("/etc"), LOCKED)
}

/// What [`ensure`] would run, as commands to paste; nothing for an account that is there.
///
/// # Errors
/// As [`ensure`].
pub fn describe_ensure(app: &str, first: u32, taken: &[u32]) -> Result<Vec<String>> {
    if find(app)?.is_some() {
        return Ok(Vec::new());
    }
    let (name, id) = (layout::account(app), free_id(first.max(FIRST_UID), taken)?);
    Ok(vec![groupadd(&name, id).display(), useradd(app, &name, id).display()])
}

fn groupadd(name: &str, gid: u32) -> Invocation {
    Invocation::of(&GROUPADD).args(["--system", "--gid", &gid.to_string(), name])
}

/// `--system`: no subordinate ids, no ageing; `--no-log-init`: else lastlog would become
/// a sparse file of uid × 292 bytes.
fn useradd(app: &str, name: &str, uid: u32) -> Invocation {
    let uid = uid.to_string();
    Invocation::of(&USERADD)
        .args(["--system", "--uid", &uid, "--gid", &uid, "--no-create-home", "--no-log-init"])
        .args(["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"])
        .args(["--comment", &format!("farmctl application {app}"), name])
}

fn remove_group(name: &str, lock: &File) -> Result<()> {
    if Group::from_name(name).with_context(|| format!("looking up group {name}"))?.is_some() {
        Invocation::of(&GROUPDEL).arg(name).holding(lock)?.run().hint(MEND)?;
    }
    Ok(())
}

/// Removes an application's account if it is there.
///
/// # Errors
/// When it cannot be an application's, or processes still run as it.
pub fn remove(app: &str) -> Result<()> {
    let name = layout::account(app);
    let lock = hold()?;
    let _shield = Shield::raise();
    if find(app)?.is_some() {
        check_writable()?;
        Invocation::of(&USERDEL)
            .arg(&name)
            .holding(&lock)?
            .run()
            .hint(format!("ps -u {name}: end what still runs as it"))?;
    }
    // userdel(8) removes the group as well, unless login.defs says otherwise.
    remove_group(&name, &lock)
}

/// useradd and userdel say that they cannot lock, and not why.
fn check_writable() -> Result<()> {
    nix::unistd::access("/etc", AccessFlags::W_OK).context("writing /etc")
}

fn free_id(first: u32, taken: &[u32]) -> Result<u32> {
    let mut ranges = Vec::new();
    for path in ["/etc/subuid", "/etc/subgid"] {
        ranges.extend(parse_subids(&file::read_if_there(Path::new(path))?.unwrap_or_default()));
    }
    let mut id = first;
    while id < END_UID {
        if let Some((_, end)) = ranges.iter().find(|(start, end)| (*start..*end).contains(&id)) {
            id = *end;
            continue;
        }
        let known = taken.contains(&id)
            || User::from_uid(Uid::from_raw(id)).context("looking up a user")?.is_some()
            || Group::from_gid(Gid::from_raw(id)).context("looking up a group")?.is_some();
        if !known {
            return Ok(id);
        }
        id += 1;
    }
    refuse(
        format_args!("no user id between {first} and {END_UID} is free"),
        "look at /etc/subuid and /etc/subgid: their ranges are left alone",
    )
}

/// Ranges of subuid(5), as start and end: the users of other people's containers.
fn parse_subids(text: &str) -> Vec<(u32, u32)> {
    let parse = |line: &str| -> Option<(u32, u32)> {
        let mut fields = line.split(':').skip(1);
        let start: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        Some((start, start.saturating_add(count)))
    };
    text.lines().filter_map(parse).filter(|(start, end)| start < end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_other_peoples_containers_are_read() {
        let text = "# none\nann:100000:65536\nbob:165536:65536\nnobody:5:0\n";
        assert_eq!(parse_subids(text), [(100_000, 165_536), (165_536, 231_072)]);
    }

    #[test]
    fn an_account_is_made_with_ids_of_its_own_and_nothing_else() {
        insta::assert_snapshot!(
            [groupadd("farmctl-shop", 200_001), useradd("shop", "farmctl-shop", 200_001)]
                .map(|call| call.display())
                .join("\n"),
            @r"
        /usr/sbin/groupadd --system --gid 200001 farmctl-shop
        /usr/sbin/useradd --system --uid 200001 --gid 200001 --no-create-home --no-log-init --home-dir /nonexistent --shell /usr/sbin/nologin --comment 'farmctl application shop' farmctl-shop
        "
        );
    }
}
