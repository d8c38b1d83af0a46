//! nginx: one vhost per application, its upstream a link.
//!
//! nginx connects to a unix socket, and finds static files, by a path through a link of ours
//! that it follows each time. So moving an application to another session is one rename(2),
//! and nginx is reloaded only when a vhost comes, changes or goes.

mod access;
mod certificate;
mod copy;
mod export;
mod listener;
mod nginx;
mod page;
mod vhost;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::fcntl::Flock;

pub use self::access::{Counted, Traffic, forget_requests};
use self::certificate::Certificate;
pub use self::export::{export_session, export_session_again, export_static, serves};
pub use self::listener::connections;
pub use self::nginx::{check, describe_take_up};
use self::vhost::Site;
pub use self::vhost::address;
use crate::error::refuse;
use crate::file;
use crate::layout::{
    self, Layout, NGINX_AVAILABLE, NGINX_ENABLED, WAY_BACKUP, WAY_FILES, WAY_SOCKET,
};
use crate::manifest::Manifest;
use crate::place;
use crate::run::{Shield, Tool};

/// Programs this module needs on the host.
pub const TOOLS: [&Tool; 1] = [&nginx::NGINX];

/// How long another farmctl may take to publish a vhost.
const LOCKED: Duration = Duration::from_secs(60);

/// Ports previews are looked at on: below those the kernel gives to who asks for any
/// (`net.ipv4.ip_local_port_range`), so that nginx finds its port free after a reboot.
const PREVIEWS: RangeInclusive<u16> = 8900..=8999;

/// What publishing a vhost took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The vhost was not there, or another one.
    pub changed: bool,
    /// nginx was not running and has been started.
    pub started_nginx: bool,
    /// Stopped applications whose vhost had an address of it.
    pub displaced: Vec<String>,
}

fn available(app: &str) -> PathBuf {
    Path::new(NGINX_AVAILABLE).join(layout::vhost(app))
}

fn enabled(app: &str) -> PathBuf {
    Path::new(NGINX_ENABLED).join(layout::vhost(app))
}

/// Files of the certificate the node has made for an application; none if it has not.
#[must_use]
pub fn own_certificate(layout: &Layout, app: &str) -> Vec<PathBuf> {
    Certificate::own(layout, app).files().into_iter().map(Path::to_owned).collect()
}

/// What should be done about the certificate of an application's vhost, if anything.
///
/// # Errors
/// When openssl cannot be asked.
pub fn certificate_trouble(layout: &Layout, manifest: &Manifest) -> Result<Option<String>> {
    let front = manifest.profile.front.as_ref();
    match front.filter(|front| front.tls.is_some()) {
        Some(_) => Certificate::of(layout, &manifest.name).trouble(),
        None => Ok(None),
    }
}

/// Makes the way from nginx to a session: its socket, if a process answers requests, and its
/// release's static files.
///
/// # Errors
/// When a link cannot be made.
pub fn make_way(
    layout: &Layout,
    manifest: &Manifest,
    session: &str,
    socket: Option<&Path>,
) -> Result<()> {
    let way = layout.way(session);
    file::make_directory(&layout.front(), 0o755)?;
    file::make_directory(&layout.ways(), 0o755)?;
    file::make_directory(&way, 0o755)?;
    let exported = vhost::exported(layout, manifest);
    let export = export::newest(layout, manifest, session)?;
    let files = way.join(WAY_FILES);
    if !exported.is_empty() {
        file::make_directory(&files, 0o755)?;
    }
    for (index, location) in exported {
        let link = files.join(layout::location_key(&location.location));
        file::link(&export.join(index.to_string()), &link)?;
    }
    if page::of(manifest).is_some() {
        page::make_way(&export, &way)?;
    }
    match socket {
        Some(socket) => file::link(socket, &way.join(WAY_SOCKET)),
        None => Ok(()),
    }
}

/// Has nginx ask at `socket` what the session refuses or breaks off, while it serves: a
/// request that is sent already only if it may be repeated (RFC 9110, 9.2.2). Without one,
/// such a request fails; nginx looks for the link each time.
///
/// # Errors
/// When the link cannot be made or removed.
pub fn set_backup(layout: &Layout, session: &str, socket: Option<&Path>) -> Result<()> {
    let link = layout.way(session).join(WAY_BACKUP);
    match socket {
        Some(socket) => file::link(socket, &link),
        None => file::remove_if_there(&link),
    }
}

/// Leads requests to a session whose way is made: one rename(2), in force for the next
/// request. Whom it does not answer sees its release's page.
///
/// # Errors
/// When the page or the link cannot be made.
pub fn switch(layout: &Layout, app: &str, session: &str) -> Result<()> {
    page::show(layout, app, session)?;
    file::link(&layout.way(session), &layout.front_link(app))
}

/// Leads requests to no session: the vhost answers that nobody is there. Nothing there is fine.
///
/// # Errors
/// When the link cannot be removed.
pub fn close(layout: &Layout, app: &str) -> Result<()> {
    file::remove_if_there(&layout.front_link(app))
}

/// Removes the way to a session, and what was exported of it. Nothing there is fine.
///
/// # Errors
/// When it cannot be removed.
pub fn remove_way(layout: &Layout, session: &str) -> Result<()> {
    crate::storage::remove_tree(&layout.way(session))?;
    match layout::parse_session(session) {
        Some((app, _)) => crate::storage::remove_tree(&layout.static_export(app, session)),
        None => Ok(()),
    }
}

fn is_led_to(layout: &Layout, app: &str, session: &str) -> bool {
    fs::read_link(layout.front_link(app)).is_ok_and(|led| led == layout.way(session))
}

/// Whether requests are led to the session, and it can be reached.
fn leads_to(layout: &Layout, manifest: &Manifest, session: &str) -> bool {
    let way = layout.way(session);
    let end = match manifest.profile.front_process() {
        Some(_) => way.join(WAY_SOCKET),
        None => way.join(WAY_FILES),
    };
    is_led_to(layout, &manifest.name, session) && fs::symlink_metadata(end).is_ok()
}

/// Whether nginx runs with the application's vhost, answers on its addresses, and leads
/// requests to the session.
///
/// # Errors
/// When that cannot be found out.
pub fn is_published(layout: &Layout, manifest: &Manifest, session: &str) -> Result<bool> {
    let Some(front) = &manifest.profile.front else {
        return Ok(true);
    };
    let text = vhost::render(layout, manifest, &Site::of(layout, &manifest.name, front))?;
    Ok(leads_to(layout, manifest, session)
        && is_enabled(&manifest.name, &text)?
        && nginx::master()?.is_some()
        && listener::accepts(front))
}

/// Whether nginx runs.
///
/// # Errors
/// When that cannot be found out.
pub fn runs() -> Result<bool> {
    Ok(nginx::master()?.is_some())
}

fn is_enabled(app: &str, text: &str) -> Result<bool> {
    let linked = fs::read_link(enabled(app)).is_ok_and(|target| target == available(app));
    Ok(linked && file::read_if_there(&available(app))?.as_deref() == Some(text))
}

/// Publishes the application's vhost: in force when this returns. nginx is asked whether
/// its configuration is valid with it before it is where nginx looks for it, and the old one
/// put back if nginx does not take it up.
///
/// # Errors
/// When nginx refuses it, an address is taken, or nginx does not answer there.
pub fn publish(layout: &Layout, manifest: &Manifest) -> Result<Published> {
    match &manifest.profile.front {
        Some(front) => put_up(layout, manifest, &Site::of(layout, &manifest.name, front)),
        None => Ok(Published { changed: false, started_nginx: false, displaced: Vec::new() }),
    }
}

/// Publishes a vhost on a port of 127.0.0.1 to look at a session whose way is made, and
/// answers its address; none for a release without a front.
///
/// # Errors
/// As [`publish`].
pub fn publish_preview(
    layout: &Layout,
    manifest: &Manifest,
    session: &str,
    port: u16,
) -> Result<Option<String>> {
    let Some(front) = &manifest.profile.front else { return Ok(None) };
    let site = Site::preview(layout, session, &manifest.name, front, port);
    put_up(layout, manifest, &site)?;
    Ok(Some(address(&site.front)))
}

/// Takes the vhost of a preview away. Nothing there is fine.
///
/// # Errors
/// As [`withdraw`].
pub fn withdraw_preview(app: &str) -> Result<()> {
    let name = format!("{app}.preview");
    take_down(&name)?;
    forget_requests(&name)
}

/// A port of 127.0.0.1 that nobody listens on, for a preview.
///
/// # Errors
/// When there is none.
pub fn preview_port() -> Result<u16> {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    match PREVIEWS.into_iter().find(free) {
        Some(port) => Ok(port),
        None => refuse(
            format_args!("all ports from {} to {} are taken", PREVIEWS.start(), PREVIEWS.end()),
            "end a preview: farmctl stop NAME --preview",
        ),
    }
}

fn put_up(layout: &Layout, manifest: &Manifest, site: &Site) -> Result<Published> {
    let Site { name: app, front, .. } = site;
    let text = vhost::render(layout, manifest, site)?;
    let publish = || -> Result<Published> {
        let _lock = lock()?;
        listener::check(app, front)?;
        let is_made = match &site.certificate {
            Some(certificate) => certificate.provide(app, front)?,
            None => false,
        };
        if is_enabled(app, &text)? {
            let started_nginx = nginx::master()?.is_none();
            if started_nginx || is_made || !listener::accepts(front) {
                check()?;
                nginx::take_up()?;
            }
            listener::wait_for(front)?;
            return Ok(Published { changed: false, started_nginx, displaced: Vec::new() });
        }
        if let Err(error) = nginx::check_ours(site, &text) {
            // What is wrong without ours is not ours.
            nginx::check_others(site)?;
            return Err(error);
        }
        let before = file::read_if_there(&available(app))?;
        let was_enabled = fs::symlink_metadata(enabled(app)).is_ok();
        let mut told = false;
        let mut put = || -> Result<bool> {
            file::publish(&available(app), text.as_bytes(), 0o644)?;
            file::link(&available(app), &enabled(app))?;
            told = true;
            let started = nginx::take_up()?;
            listener::wait_for(front)?;
            Ok(started)
        };
        let put = put();
        let started_nginx = put.inspect_err(|_| {
            let _shield = Shield::raise();
            // Why it cannot be published says more than why it cannot be put back.
            drop(put_back(app, before.as_deref(), was_enabled, told));
        })?;
        Ok(Published { changed: true, started_nginx, displaced: Vec::new() })
    };
    publish().with_context(|| format!("publishing the vhost {}", layout::vhost(app)))
}

/// Has other farmctls, also those of other roots, wait until a vhost is in force or gone.
fn lock() -> Result<Flock<fs::File>> {
    place::hold(Path::new(NGINX_ENABLED), LOCKED)
}

/// nginx is only `told` if it was told of the other one: a reload ends idle connections.
fn put_back(app: &str, before: Option<&str>, was_enabled: bool, told: bool) -> Result<()> {
    match before {
        Some(text) => file::publish(&available(app), text.as_bytes(), 0o644)?,
        None => file::remove_if_there(&available(app))?,
    }
    if !was_enabled || before.is_none() {
        file::remove_if_there(&enabled(app))?;
    }
    if told && nginx::master()?.is_some() && nginx::test()?.success() {
        nginx::reload()?;
    }
    Ok(())
}

/// Whether nginx has a vhost of the application, which may be stopped.
#[must_use]
pub fn has_vhost(app: &str) -> bool {
    fs::symlink_metadata(enabled(app)).is_ok()
}

/// Takes the vhosts of stopped applications away that have what this one's wants to have.
/// Answers whose they were.
///
/// # Errors
/// As [`withdraw`].
pub fn make_room(
    layout: &Layout,
    manifest: &Manifest,
    is_stopped: &dyn Fn(&str) -> Result<bool>,
) -> Result<Vec<String>> {
    let Some(front) = &manifest.profile.front else { return Ok(Vec::new()) };
    let mut gone = Vec::new();
    for rival in listener::rivals(&manifest.name, front)? {
        // One that is being started is led to before its vhost is published.
        let is_led = fs::symlink_metadata(layout.front_link(&rival.app)).is_ok();
        if !is_led && is_stopped(&rival.app)? {
            withdraw(layout, &rival.app)?;
            gone.push(rival.app);
        }
    }
    Ok(gone)
}

/// Takes the application's vhost, links and page away. Nothing there is fine.
///
/// # Errors
/// When nginx cannot be reloaded: because of a file that is not ours.
pub fn withdraw(layout: &Layout, app: &str) -> Result<()> {
    take_down(app)?;
    close(layout, app)?;
    file::remove_if_there(&layout.page(app))
}

fn take_down(app: &str) -> Result<()> {
    let withdraw = || -> Result<()> {
        let there = fs::symlink_metadata(enabled(app)).is_ok();
        let _lock = if there { Some(lock()?) } else { None };
        file::remove_if_there(&enabled(app))?;
        file::remove_if_there(&available(app))?;
        if there && nginx::master()?.is_some() {
            check()?;
            nginx::reload()?;
        }
        Ok(())
    };
    withdraw().with_context(|| format!("withdrawing the vhost {}", layout::vhost(app)))
}
