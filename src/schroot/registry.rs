//! The chroots schroot knows, in files that are farmctl's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::Flock;

use super::definition::{Definition, FSTAB, parse_fstab};
use super::{LVM, NODE_KEY, SCHROOT, TRANSACTION_KEY, guard, sessions, value};
use crate::error::refuse;
use crate::file;
use crate::layout::{SCHROOT_CHROOTS, SCHROOT_PROFILE};
use crate::place;
use crate::run::{Invocation, Outcome, Shield};

/// How long another farmctl may take to register a chroot.
const LOCKED: Duration = Duration::from_secs(20);
/// What schroot copies into sessions, if the host has it: a missing one is fatal to it.
const COPIED: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

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

/// What schroot mounts in sessions of a chroot, as the application sees it.
///
/// # Errors
/// When its fstab(5) cannot be read.
pub fn mount_points(chroot: &str) -> Result<Vec<PathBuf>> {
    Ok(parse_fstab(&file::read_if_there(&fstab(chroot))?.unwrap_or_default()))
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

/// Whether schroot is told about a chroot just so, whichever transaction did it.
///
/// # Errors
/// When its files cannot be read.
pub fn is_registered(wanted: &Definition) -> Result<bool> {
    let text = file::read_if_there(&definition(&wanted.name))?.unwrap_or_default();
    let transaction = value(&text, TRANSACTION_KEY).unwrap_or_default().to_owned();
    let wanted = Definition { transaction, ..wanted.clone() };
    let mut files = vec![(definition(&wanted.name), wanted.render())];
    files.push((fstab(&wanted.name), wanted.fstab));
    files.extend(profile());
    for (path, wanted) in files {
        if file::read_if_there(&path)?.is_none_or(|text| text != wanted) {
            return Ok(false);
        }
    }
    Ok(true)
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
fn profile() -> [(PathBuf, String); 3] {
    let copied: String = COPIED
        .iter()
        .filter(|path| Path::new(path).exists())
        .map(|path| format!("{path}\n"))
        .collect();
    [("copyfiles", copied), ("nssdatabases", String::new()), ("fstab", FSTAB.to_owned())]
        .map(|(name, text)| (Path::new(SCHROOT_PROFILE).join(name), text))
}

fn write_profile() -> Result<()> {
    file::make_directory(Path::new(SCHROOT_PROFILE), 0o755)?;
    for (path, text) in profile() {
        file::publish_if_new(&path, &text, 0o644)?;
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
pub(super) fn refusal(outcome: &Outcome, name: &str) -> anyhow::Error {
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
    file::unpublished(profile, 0)?.iter().try_for_each(|path| file::remove_if_there(path))?;
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
            Err(error) if profile.exists() => {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
