//! nginx itself: whether it runs, what it says of its configuration, how it takes one up.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::MsFlags;

use super::vhost::Site;
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::layout::{self, NGINX_ENABLED};
use crate::machine;
use crate::mount::{self, Mount};
use crate::place;
use crate::process;
use crate::run::{Invocation, Outcome, Tool, poll_until};

pub(super) const NGINX: Tool = Tool { name: "nginx", package: "nginx" };
const SERVICE: Tool = Tool { name: "service", package: "init-system-helpers" };
const SYSTEMCTL: Tool = Tool { name: "systemctl", package: "systemd" };

/// Where Debian's nginx.conf has the master write its pid.
const PID_FILE: &str = "/run/nginx.pid";
/// Where Debian's nginx.conf has it write what it complains of.
const ERROR_LOG: &str = "/var/log/nginx/error.log";
/// How long nginx may take to take up a configuration.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn test() -> Result<Outcome> {
    testing().outcome()
}

/// The same as if there was a vhost of this name and text among those that are enabled: in a
/// mount namespace of its own, so that nobody else's nginx sees one that is wrong, and nothing
/// is left of it.
fn test_with(name: &str, text: &str) -> Result<Outcome> {
    let directory = Path::new(NGINX_ENABLED);
    mount::in_private_namespace(|| {
        let mut others = file::names_in(directory)?;
        others.retain(|other| other != name);
        let others: Vec<(PathBuf, Enabled)> = others
            .into_iter()
            .map(|other| Ok((directory.join(&other), Enabled::read(&directory.join(&other))?)))
            .collect::<Result<_>>()?;
        let trial = Mount::new("tmpfs", directory, MsFlags::empty(), "mode=755")?;
        for (path, other) in &others {
            other.write(path)?;
        }
        Enabled::Text(text.into()).write(&directory.join(name))?;
        let outcome = test()?;
        trial.close()?;
        Ok(outcome)
    })
    .context("trying it")
}

/// An entry of the directory of vhosts that are enabled.
enum Enabled {
    Link(PathBuf),
    Text(Vec<u8>),
}

impl Enabled {
    fn read(path: &Path) -> Result<Self> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
        let entry = if is_link {
            fs::read_link(path).map(Self::Link)
        } else {
            fs::read(path).map(Self::Text)
        };
        entry.with_context(|| format!("reading {}", path.display()))
    }

    fn write(&self, path: &Path) -> Result<()> {
        let written = match self {
            Self::Link(target) => symlink(target, path),
            Self::Text(text) => fs::write(path, text),
        };
        written.with_context(|| format!("writing {}", path.display()))
    }
}

/// Asks nginx whether its configuration is valid.
///
/// # Errors
/// With nginx's own words.
pub fn check() -> Result<()> {
    check_as("nginx's configuration is not valid", None)
}

/// Asks without the new text of a vhost, so that nobody takes the fault for ours.
pub(super) fn check_others(site: &Site) -> Result<()> {
    check_as("nginx's configuration is not valid already without the new vhost", Some(site))
}

fn check_as(fault: &str, site: Option<&Site>) -> Result<()> {
    let outcome = test()?;
    if outcome.success() {
        return Ok(());
    }
    refuse(
        format_args!("{fault}: {}", faults(&outcome.stderr)),
        site.and_then(|site| mistake(&outcome.stderr, site))
            .unwrap_or("correct it and try again: nginx -t"),
    )
}

/// What to do where nginx complains of what the administrator has added to a vhost.
fn mistake(stderr: &str, site: &Site) -> Option<&'static str> {
    let says = |path: &Path| stderr.contains(&*path.to_string_lossy());
    if site.certificate.as_ref().is_some_and(|it| says(&it.chain) || says(&it.key)) {
        return Some(
            "the certificate and its key, both in PEM, must belong together: openssl x509 -noout \
             -text -in FILE shows one",
        );
    }
    says(&site.snippets)
        .then_some("that file is yours, and part of the vhost: correct it, or move it away")
}

/// Asks nginx about the text of a vhost that is not published yet. If it takes it up, so it
/// does when it is reloaded or started by anybody else.
pub(super) fn check_ours(site: &Site, text: &str) -> Result<()> {
    let outcome = test_with(&layout::vhost(&site.name), text)?;
    if !outcome.success() {
        let stderr = &outcome.stderr;
        let taken = stderr.contains("duplicate default server");
        let refused = anyhow!("nginx refuses it: {}", faults(stderr));
        return Err(refused).hint(if let Some(mistake) = mistake(stderr, site) {
            mistake
        } else if taken {
            "another vhost takes all names on this address: name the host in [front] \
             server-names, listen elsewhere, or disable that vhost"
        } else {
            "this is a fault of farmctl: please report it with the vhost"
        });
    }
    let names: BTreeSet<&str> = site.front.names().map(String::as_str).collect();
    match parse_conflict(&outcome.stderr) {
        Some((name, address)) if names.contains(name) => refuse(
            format_args!("another vhost of nginx has the name {name} on {address}"),
            "use another name or address in [front], or disable that vhost",
        ),
        _ => Ok(()),
    }
}

/// nginx's complaints, without its name or the time: `nginx: [emerg] …` before it has
/// opened its log, `2026/11/21 08:04:25 [emerg] 14624#14624: …` after that.
fn faults(stderr: &str) -> String {
    let fault = |line| {
        let (_, fault) = str::split_once(line, "[emerg] ")?;
        let is_thread = |word: &str| word.bytes().all(|b| b.is_ascii_digit() || b == b'#');
        match fault.split_once(": ") {
            Some((thread, fault)) if is_thread(thread) => Some(fault),
            _ => Some(fault),
        }
    };
    let lines: Vec<&str> = stderr.lines().filter_map(fault).collect();
    if lines.is_empty() { stderr.trim().replace('\n', "; ") } else { lines.join("; ") }
}

/// A name and address that two vhosts have: nginx only warns, and uses the first one.
fn parse_conflict(stderr: &str) -> Option<(&str, &str)> {
    stderr.lines().find_map(|line| {
        let (_, rest) = line.split_once("conflicting server name \"")?;
        let (name, rest) = rest.split_once("\" on ")?;
        Some((name, rest.strip_suffix(", ignored")?))
    })
}

/// The master process of Debian's nginx, if it runs.
pub(super) fn master() -> Result<Option<u32>> {
    let Some(text) = file::read_if_there(Path::new(PID_FILE))? else {
        return Ok(None);
    };
    let pid: Option<u32> = text.trim().parse().ok();
    let is_nginx = |pid: &u32| {
        place::command_line(*pid).first().is_some_and(|title| title.starts_with("nginx: master"))
    };
    Ok(pid.filter(is_nginx))
}

/// nginx's workers that accept connections. One that is leaving says so in its title.
fn workers(master: u32) -> Result<Vec<u32>> {
    let mut found = process::children(master)?;
    found.retain(|pid| {
        let title = place::command_line(*pid).join(" ");
        title.starts_with("nginx: worker process") && !title.contains("shutting down")
    });
    Ok(found)
}

fn starting() -> Invocation {
    // A child of ours would be in the scope of somebody's login, and end with it.
    if machine::systemd_is_init() {
        Invocation::of(&SYSTEMCTL).args(["start", "nginx"])
    } else {
        Invocation::of(&SERVICE).args(["nginx", "start"])
    }
}

fn testing() -> Invocation {
    Invocation::of(&NGINX).arg("-t")
}

fn reloading() -> Invocation {
    Invocation::of(&NGINX).args(["-s", "reload"])
}

/// What has nginx take up a changed vhost, as commands to paste.
///
/// # Errors
/// When it cannot be found out whether nginx runs.
pub fn describe_take_up() -> Result<Vec<String>> {
    let then = if master()?.is_some() { reloading() } else { starting() };
    Ok(vec![testing().display(), then.display()])
}

/// Starts nginx if it does not run (answering `true`), reloads it if it does.
pub(super) fn take_up() -> Result<bool> {
    if master()?.is_some() {
        reload()?;
        return Ok(false);
    }
    let said = fs::metadata(ERROR_LOG).map_or(0, |log| log.len());
    let outcome = starting().surviving().outcome().context("starting nginx")?;
    if outcome.success() && poll_until(PATIENCE, master)?.is_some() {
        return Ok(true);
    }
    // Neither its init script nor systemctl(1) passes on what nginx says.
    let log = file::read_if_there(Path::new(ERROR_LOG))?.unwrap_or_default();
    let new = usize::try_from(said).ok().and_then(|said| log.get(said..)).unwrap_or_default();
    let why = reason(new).map_or(String::new(), |why| format!(": {why}"));
    refuse(format_args!("nginx does not start{why}"), format!("look at {ERROR_LOG}"))
}

/// The first complaint in what nginx has written to its log.
fn reason(log: &str) -> Option<String> {
    log.lines().find(|line| line.contains("[emerg] ")).map(faults)
}

/// Reloads nginx and waits until the old workers have stopped accepting: nginx -s
/// returns when the signal is sent, and the old ones answer for a while.
pub(super) fn reload() -> Result<()> {
    let Some(pid) = master()? else {
        return Ok(());
    };
    let before = workers(pid)?;
    reloading().run().context("reloading nginx")?;
    let renewed = poll_until(PATIENCE, || {
        let now = workers(pid)?;
        let fresh = !now.is_empty() && now.iter().all(|worker| !before.contains(worker));
        Ok(fresh.then_some(()))
    })?;
    match renewed {
        Some(()) => Ok(()),
        None => {
            refuse("nginx keeps its old configuration", format!("look at {ERROR_LOG}: it says why"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_nginx_does_not_start_is_in_its_log() {
        // Captured from nginx 1.22.1.
        let log = "2026/11/29 16:24:35 [notice] 9#9: signal process started\n\
             2026/11/29 16:24:36 [emerg] 12#12: bind() to 0.0.0.0:80 failed (98: Address already in use)\n\
             2026/11/29 16:24:38 [emerg] 12#12: still could not bind()\n";
        let why = "bind() to 0.0.0.0:80 failed (98: Address already in use)";
        assert_eq!(reason(log).as_deref(), Some(why));
        assert_eq!(reason(""), None);
    }

    #[test]
    fn nginx_complaints_are_read() {
        // Captured from nginx 1.22.1.
        let warning = "nginx: [warn] conflicting server name \"shop.example\" on 0.0.0.0:80, ignored\n\
             nginx: the configuration file /etc/nginx/nginx.conf syntax is ok\n";
        assert_eq!(parse_conflict(warning), Some(("shop.example", "0.0.0.0:80")));
        let error = "nginx: [emerg] unknown directive \"x\" in /etc/nginx/sites-enabled/y:1\n\
             nginx: configuration file /etc/nginx/nginx.conf test failed\n";
        assert_eq!(faults(error), "unknown directive \"x\" in /etc/nginx/sites-enabled/y:1");
        let error = "2026/11/21 08:04:19 [emerg] 14347#14347: a duplicate default server for \
             127.0.0.1:18080 in /etc/nginx/sites-enabled/zz:1\n\
             nginx: configuration file /etc/nginx/nginx.conf test failed\n";
        assert_eq!(
            faults(error),
            "a duplicate default server for 127.0.0.1:18080 in /etc/nginx/sites-enabled/zz:1"
        );
    }
}
