//! nginx: one vhost per application, its upstream a link.
//!
//! nginx connects to a unix socket by a path that is a link of ours, followed at every
//! connect(2). So moving an application to another session is one rename(2), and nginx
//! is reloaded only when a vhost comes, changes or goes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::fcntl::Flock;

use crate::error::{Mark as _, refuse};
use crate::file;
use crate::inside::{self, Inside};
use crate::layout::{self, Layout, NGINX_AVAILABLE, NGINX_ENABLED};
use crate::manifest::Manifest;
use crate::node::{Object, Transaction};
use crate::place;
use crate::process;
use crate::profile::{Front, StaticFiles};
use crate::run::{Invocation, Outcome, Shield, Tool, poll_until, systemd_is_init};
use crate::template::key;

const NGINX: Tool = Tool { name: "nginx", package: "nginx" };
const SERVICE: Tool = Tool { name: "service", package: "init-system-helpers" };
const SYSTEMCTL: Tool = Tool { name: "systemctl", package: "systemd" };
/// Programs this module needs on the host.
pub const TOOLS: [&Tool; 1] = [&NGINX];

/// Where Debian's nginx.conf has the master write its pid.
const PID_FILE: &str = "/run/nginx.pid";
/// How long nginx may take to take up a configuration.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long another farmctl may take to publish a vhost.
const LOCKED: Duration = Duration::from_secs(60);

/// What publishing a vhost took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The vhost was not there, or another one.
    pub changed: bool,
    /// nginx was not running and has been started.
    pub started_nginx: bool,
}

fn available(app: &str) -> PathBuf {
    Path::new(NGINX_AVAILABLE).join(layout::vhost(app))
}

fn enabled(app: &str) -> PathBuf {
    Path::new(NGINX_ENABLED).join(layout::vhost(app))
}

/// Where the application is reached, for people: its first address, by its first name.
#[must_use]
pub fn address(front: &Front) -> String {
    let listen = front.listen.first().map_or("80", String::as_str);
    let (host, port) = match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => (None, address.port()),
        Ok(address) => (Some(host_of(address.ip())), address.port()),
        Err(_) => (None, listen.parse().unwrap_or(80)),
    };
    // A name with a wildcard is no address.
    let name = front.server_names.iter().find(|name| !name.contains('*'));
    let host = name.cloned().or(host).unwrap_or_else(|| "127.0.0.1".to_owned());
    if port == 80 { format!("http://{host}/") } else { format!("http://{host}:{port}/") }
}

fn host_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Where a location's files lie for nginx.
enum Source {
    /// In the root-owned copy of the release's, by number.
    Export(usize),
    /// In a data directory on the host, and where links may not lead out of.
    Data { path: PathBuf, top: PathBuf },
}

fn source(layout: &Layout, manifest: &Manifest, index: usize, files: &StaticFiles) -> Source {
    for data in &manifest.profile.data {
        if let Ok(below) = files.path.strip_prefix(&data.path) {
            let top = layout.app_data(&manifest.name).join(&data.name);
            // Joining an empty path would add a slash.
            let path = if below.as_os_str().is_empty() { top.clone() } else { top.join(below) };
            return Source::Data { path, top };
        }
    }
    Source::Export(index)
}

/// A path as a word of nginx's configuration.
fn word(path: &Path) -> Result<String> {
    let text = path.to_string_lossy();
    // `$` begins a variable, and nothing escapes it.
    if text.contains(['$', '"', '\\', '\n']) {
        return refuse(
            format_args!("nginx cannot use the path {text}"),
            "use another --root, or another path",
        );
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~+,@%:".contains(c);
    Ok(if text.chars().all(plain) { text.into_owned() } else { format!("\"{text}\"") })
}

/// The vhost of an application, for nginx's `http` context.
///
/// # Errors
/// When a path has letters nginx cannot be told about.
pub fn render_vhost(layout: &Layout, manifest: &Manifest, front: &Front) -> Result<String> {
    let app = &manifest.name;
    let variable = format!("$farmctl_{}_connection", key(app));
    let mut text = format!(
        "# Written by farmctl for {app}; changes are lost.\n\
         map $http_upgrade {variable} {{\n    default close;\n    websocket upgrade;\n}}\n\
         server {{\n"
    );
    // Without names it is for every name: also for those no other vhost has.
    let names =
        if front.server_names.is_empty() { "_".to_owned() } else { front.server_names.join(" ") };
    let default = if front.server_names.is_empty() { " default_server" } else { "" };
    for listen in &front.listen {
        let _ = writeln!(text, "    listen {listen}{default};");
    }
    let _ = writeln!(text, "    server_name {names};");
    let _ = writeln!(text, "    client_max_body_size {}m;", front.max_body_mib);
    // nginx ends a client's connection after 1000 requests by default. Under load that
    // races with the client's next request: `wrk -c32` counts some 4 read errors in
    // 40,000 requests, without any reload, and none with this.
    let _ = writeln!(text, "    keepalive_requests 1000000;");
    let socket = word(&layout.front_socket(app))?;
    let _ = write!(
        text,
        "\n    location / {{\n        \
             # A link, followed at every connect(2): no keep-alive to the upstream.\n        \
             proxy_pass http://unix:{socket};\n        \
             proxy_http_version 1.1;\n        \
             proxy_redirect off;\n        \
             proxy_set_header Host $http_host;\n        \
             proxy_set_header Upgrade $http_upgrade;\n        \
             proxy_set_header Connection {variable};\n        \
             proxy_set_header X-Real-IP $remote_addr;\n        \
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n        \
             proxy_set_header X-Forwarded-Proto $scheme;\n        \
             proxy_set_header X-Forwarded-Host $http_host;\n    }}\n"
    );
    for (index, files) in front.statics.iter().enumerate() {
        // With a slash at the end of both, or `/static-old` would lead out of the directory.
        let location = format!("{}/", files.location.trim_end_matches('/'));
        let _ = write!(text, "\n    location ^~ {location} {{\n");
        match source(layout, manifest, index, files) {
            Source::Export(number) => {
                let path = layout.front_static(app).join(number.to_string());
                let _ = write!(
                    text,
                    "        alias {}/;\n        \
                         # Another release's file may have the same time and size.\n        \
                         etag off;\n        \
                         if_modified_since off;\n",
                    word(&path)?
                );
            }
            Source::Data { path, top } => {
                let _ = write!(
                    text,
                    "        alias {}/;\n        \
                         # The application makes what is here, links included.\n        \
                         disable_symlinks on from={}/;\n",
                    word(&path)?,
                    word(&top)?
                );
            }
        }
        text.push_str("    }\n");
    }
    text.push_str("}\n");
    Ok(text)
}

/// Copies the directories nginx serves out of a release's tree, root-owned and without
/// links, to where [`switch`] can point it.
///
/// # Errors
/// When the release has no such directory, or it cannot be copied.
pub fn export_static(
    manifest: &Manifest,
    tree: &Path,
    layout: &Layout,
    transaction: &mut Transaction,
) -> Result<()> {
    let exported = exported(layout, manifest);
    if exported.is_empty() {
        return Ok(());
    }
    let target = layout.static_export(&manifest.name, &manifest.version);
    transaction.intend(Object::Path { path: target.clone() })?;
    // What an interrupted removal left of an earlier release of this version.
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| format!("removing {}", target.display()))?;
    }
    file::make_directory(&target, 0o755)?;
    let inside = Inside::open(tree)?;
    for (index, files) in exported {
        let copy = target.join(index.to_string());
        let Some(directory) = inside.directory(&files.path)? else {
            return refuse(
                format_args!("the release has no directory {}", files.path.display()),
                "[[front.static]] names it: correct the profile, or make it with a job at bake",
            );
        };
        file::make_directory(&copy, 0o755)?;
        inside::copy_plain(directory, &copy)
            .with_context(|| format!("exporting {}", files.path.display()))?;
    }
    Ok(())
}

/// Locations served out of the release, with their numbers.
fn exported<'a>(layout: &Layout, manifest: &'a Manifest) -> Vec<(usize, &'a StaticFiles)> {
    let Some(front) = &manifest.profile.front else {
        return Vec::new();
    };
    let of_release = |(index, files): &(usize, &StaticFiles)| {
        matches!(source(layout, manifest, *index, files), Source::Export(_))
    };
    front.statics.iter().enumerate().filter(of_release).collect()
}

/// Points nginx at a session's socket and its release's static files: one rename each,
/// in force for the next request.
///
/// # Errors
/// When a link cannot be made.
pub fn switch(layout: &Layout, manifest: &Manifest, socket: &Path) -> Result<()> {
    let app = &manifest.name;
    file::make_directory(&layout.front(), 0o755)?;
    if exported(layout, manifest).is_empty() {
        file::remove_if_there(&layout.front_static(app))?;
    } else {
        file::link(&layout.static_export(app, &manifest.version), &layout.front_static(app))?;
    }
    file::link(socket, &layout.front_socket(app))
}

/// Whether nginx runs with the application's vhost and answers on its addresses.
///
/// # Errors
/// When that cannot be found out.
pub fn is_published(layout: &Layout, manifest: &Manifest) -> Result<bool> {
    let Some(front) = &manifest.profile.front else {
        return Ok(true);
    };
    let text = render_vhost(layout, manifest, front)?;
    let linked = fs::symlink_metadata(layout.front_socket(&manifest.name)).is_ok();
    Ok(linked && is_enabled(&manifest.name, &text)? && master()?.is_some() && accepts(front))
}

fn is_enabled(app: &str, text: &str) -> Result<bool> {
    let linked = fs::read_link(enabled(app)).is_ok_and(|target| target == available(app));
    Ok(linked && file::read_if_there(&available(app))?.as_deref() == Some(text))
}

/// Publishes the application's vhost: in force when this returns. nginx is asked
/// before and after whether its configuration is valid, and the old one put back if it
/// is not.
///
/// # Errors
/// When nginx refuses it, an address is taken, or nginx does not answer there.
pub fn publish(layout: &Layout, manifest: &Manifest) -> Result<Published> {
    let (app, Some(front)) = (&manifest.name, &manifest.profile.front) else {
        return Ok(Published { changed: false, started_nginx: false });
    };
    let text = render_vhost(layout, manifest, front)?;
    let publish = || -> Result<Published> {
        let _lock = lock()?;
        check_listeners(app, front)?;
        if is_enabled(app, &text)? {
            let started_nginx = master()?.is_none();
            if started_nginx || !accepts(front) {
                check()?;
                take_up()?;
            }
            wait_for(front)?;
            return Ok(Published { changed: false, started_nginx });
        }
        check_others()?;
        let before = file::read_if_there(&available(app))?;
        let was_enabled = fs::symlink_metadata(enabled(app)).is_ok();
        let put = || -> Result<bool> {
            file::publish(&available(app), text.as_bytes(), 0o644)?;
            file::link(&available(app), &enabled(app))?;
            check_ours(front)?;
            let started = take_up()?;
            wait_for(front)?;
            Ok(started)
        };
        let started_nginx = put().inspect_err(|_| {
            let _shield = Shield::raise();
            // Why it cannot be published says more than why it cannot be put back.
            drop(put_back(app, before.as_deref(), was_enabled));
        })?;
        Ok(Published { changed: true, started_nginx })
    };
    publish().with_context(|| format!("publishing the vhost {}", layout::vhost(app)))
}

/// Keeps other farmctls, also those of other roots, from taking a vhost that is on trial
/// for somebody else's mistake.
fn lock() -> Result<Flock<fs::File>> {
    place::hold(Path::new(NGINX_ENABLED), LOCKED)
}

fn put_back(app: &str, before: Option<&str>, was_enabled: bool) -> Result<()> {
    match before {
        Some(text) => file::publish(&available(app), text.as_bytes(), 0o644)?,
        None => file::remove_if_there(&available(app))?,
    }
    if !was_enabled || before.is_none() {
        file::remove_if_there(&enabled(app))?;
    }
    if master()?.is_some() && test()?.success() {
        reload()?;
    }
    Ok(())
}

/// Takes the application's vhost and links away. Nothing there is fine.
///
/// # Errors
/// When nginx cannot be reloaded: because of a file that is not ours.
pub fn withdraw(layout: &Layout, app: &str) -> Result<()> {
    let withdraw = || -> Result<()> {
        let there = fs::symlink_metadata(enabled(app)).is_ok();
        let _lock = if there { Some(lock()?) } else { None };
        file::remove_if_there(&enabled(app))?;
        file::remove_if_there(&available(app))?;
        if there && master()?.is_some() {
            check()?;
            reload()?;
        }
        file::remove_if_there(&layout.front_socket(app))?;
        file::remove_if_there(&layout.front_static(app))
    };
    withdraw().with_context(|| format!("withdrawing the vhost {}", layout::vhost(app)))
}

fn test() -> Result<Outcome> {
    testing().outcome()
}

/// Asks nginx whether its configuration is valid.
///
/// # Errors
/// With nginx's own words.
pub fn check() -> Result<()> {
    check_as("nginx's configuration is not valid")
}

/// Asks before anything of ours is added, so that nobody takes the fault for ours.
fn check_others() -> Result<()> {
    check_as("nginx's configuration is not valid already without the new vhost")
}

fn check_as(fault: &str) -> Result<()> {
    let outcome = test()?;
    if outcome.success() {
        return Ok(());
    }
    refuse(
        format_args!("{fault}: {}", faults(&outcome.stderr)),
        "correct it and try again: nginx -t",
    )
}

fn check_ours(front: &Front) -> Result<()> {
    let outcome = test()?;
    if !outcome.success() {
        let taken = outcome.stderr.contains("duplicate default server");
        let refused = anyhow!("nginx refuses it: {}", faults(&outcome.stderr));
        return Err(refused).hint(if taken {
            "another vhost takes all names on this address: name the host in [front] \
             server-names, listen elsewhere, or disable that vhost"
        } else {
            "this is a fault of farmctl: please report it with the vhost"
        });
    }
    let names: BTreeSet<&str> = front.server_names.iter().map(String::as_str).collect();
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
fn master() -> Result<Option<u32>> {
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
    if systemd_is_init() {
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
fn take_up() -> Result<bool> {
    if master()?.is_some() {
        reload()?;
        return Ok(false);
    }
    let outcome = starting().surviving().outcome().context("starting nginx")?;
    if !outcome.success() {
        return refuse(
            format_args!("nginx does not start: {}", faults(&outcome.stderr)),
            "look at /var/log/nginx/error.log",
        );
    }
    match poll_until(PATIENCE, master)? {
        Some(_) => Ok(true),
        None => refuse("nginx does not start", "look at /var/log/nginx/error.log"),
    }
}

/// Reloads nginx and waits until the old workers have stopped accepting: nginx -s
/// returns when the signal is sent, and the old ones answer for a while.
fn reload() -> Result<()> {
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
        None => refuse(
            "nginx keeps its old configuration",
            "look at /var/log/nginx/error.log: it says why",
        ),
    }
}

/// Addresses to reach a front's listeners at, from this host.
fn addresses(front: &Front) -> Vec<SocketAddr> {
    let of = |listen: &String| match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => Some(match address {
            SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, address.port()).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::LOCALHOST, address.port()).into(),
        }),
        Ok(address) => Some(address),
        Err(_) => listen.parse::<u16>().ok().map(|port| (Ipv4Addr::LOCALHOST, port).into()),
    };
    front.listen.iter().filter_map(of).collect()
}

fn accepts(front: &Front) -> bool {
    addresses(front)
        .iter()
        .all(|address| TcpStream::connect_timeout(address, Duration::from_secs(1)).is_ok())
}

fn wait_for(front: &Front) -> Result<()> {
    if poll_until(PATIENCE, || Ok(accepts(front).then_some(())))?.is_some() {
        return Ok(());
    }
    refuse(
        format_args!("nginx does not answer on {}", front.listen.join(", ")),
        "look at /var/log/nginx/error.log",
    )
}

/// Refuses addresses that a program other than nginx listens on: nginx would only
/// complain in its log and keep its old configuration. And those that another
/// application of ours has with the same names.
fn check_listeners(app: &str, front: &Front) -> Result<()> {
    check_own_vhosts(app, front)?;
    let mut table = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        table.extend(parse_listeners(&file::read_if_there(Path::new(path))?.unwrap_or_default()));
    }
    for listen in &front.listen {
        let wanted = match listen.parse::<SocketAddr>() {
            Ok(address) => address,
            Err(_) => (Ipv4Addr::UNSPECIFIED, listen.parse().unwrap_or(0)).into(),
        };
        for listener in table.iter().filter(|listener| clash(listener.address, wanted)) {
            let holder = holder_of(listener.inode)?;
            if holder.as_ref().is_some_and(|(_, name)| name == "nginx") {
                continue;
            }
            let who = holder
                .map_or("another program".to_owned(), |(pid, name)| format!("{name} (pid {pid})"));
            return refuse(
                format_args!("{who} listens on {} already", listener.address),
                "use another address in [front] listen, or end that program",
            );
        }
    }
    Ok(())
}

fn check_own_vhosts(app: &str, front: &Front) -> Result<()> {
    for name in file::names_in(Path::new(NGINX_ENABLED))? {
        let Some(other) = name.strip_prefix("farmctl-").filter(|other| *other != app) else {
            continue;
        };
        let text = file::read_if_there(&available(other))?.unwrap_or_default();
        let (listens, names) = parse_vhost(&text);
        let wanted: BTreeSet<&str> = if front.server_names.is_empty() {
            ["_"].into()
        } else {
            front.server_names.iter().map(String::as_str).collect()
        };
        let listen = front.listen.iter().find(|listen| listens.contains(listen.as_str()));
        if let (Some(listen), Some(shared)) = (listen, names.intersection(&wanted).next()) {
            let whom =
                if *shared == "_" { "all names".to_owned() } else { format!("the name {shared}") };
            return refuse(
                format_args!("application {other} has {whom} on {listen} already"),
                "use another address or name in [front], or farmctl stop the other",
            );
        }
    }
    Ok(())
}

/// Addresses and names of a vhost of ours.
fn parse_vhost(text: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let mut listens = BTreeSet::new();
    let mut names = BTreeSet::new();
    for line in text.lines().map(|line| line.trim().trim_end_matches(';')) {
        if let Some(rest) = line.strip_prefix("listen ") {
            listens.extend(rest.split(' ').next());
        } else if let Some(rest) = line.strip_prefix("server_name ") {
            names.extend(rest.split(' '));
        }
    }
    (listens, names)
}

#[derive(Debug, PartialEq, Eq)]
struct Listener {
    address: SocketAddr,
    inode: u64,
}

/// Listening sockets of `/proc/net/tcp` and `/proc/net/tcp6` (proc(5)): state 0A,
/// addresses in words of the machine's byte order.
fn parse_listeners(table: &str) -> Vec<Listener> {
    table.lines().skip(1).filter_map(parse_listener).collect()
}

fn parse_listener(line: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != "0A" {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<u8>> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(&address[word * 8..][..8], 16).ok())
        .map(|word| word.map(u32::to_ne_bytes))
        .collect::<Option<Vec<[u8; 4]>>>()
        .map(|words| words.concat());
    let bytes = words?;
    let ip: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        _ => <[u8; 16]>::try_from(bytes).ok()?.into(),
    };
    Some(Listener { address: (ip, port).into(), inode: fields.get(9)?.parse().ok()? })
}

/// Whether bind(2) to one would fail because of the other. nginx makes its IPv6
/// listeners `ipv6only`; others on `::` take IPv4 as well, mostly.
fn clash(held: SocketAddr, wanted: SocketAddr) -> bool {
    if held.port() != wanted.port() {
        return false;
    }
    let any = |address: SocketAddr| address.ip().is_unspecified();
    match (held, wanted) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_)) => {
            any(held) || any(wanted) || held.ip() == wanted.ip()
        }
        (SocketAddr::V6(_), SocketAddr::V4(_)) => any(held),
        (SocketAddr::V4(_), SocketAddr::V6(_)) => false,
    }
}

/// The process that holds a socket, by its number among all processes' descriptors.
fn holder_of(inode: u64) -> Result<Option<(u32, String)>> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = |fd: fs::DirEntry| {
            fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        };
        if descriptors.flatten().any(holds) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Ok(Some((pid, name.trim_end().to_owned())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(toml: &str) -> Manifest {
        let profile = crate::profile::parse(&format!(
            "schema = 1\nname = \"shop\"\nversion = \"1.4.2\"\n[environment]\nsuite = \"bookworm\"\n\
             [[process]]\nname = \"web\"\ncommand = \"gunicorn\"\n{toml}"
        ))
        .expect("the profile is right");
        let nothing = crate::manifest::Hashed { size: 0, sha256: String::new() };
        Manifest {
            schema: 1,
            farmctl: String::new(),
            name: profile.name.clone(),
            version: profile.version.clone(),
            architecture: "amd64".to_owned(),
            epoch: 0,
            serial: None,
            expires: None,
            profile,
            inputs: crate::manifest::Inputs::default(),
            files: nothing,
            payload: crate::manifest::Payload {
                size: 0,
                sha256: String::new(),
                entries: 0,
                content: 0,
            },
            segments: Vec::new(),
            set_id: Vec::new(),
            capabilities: Vec::new(),
        }
    }

    fn rendered(toml: &str) -> String {
        let manifest = manifest(toml);
        let front = manifest.profile.front.as_ref().expect("the profile has a front");
        render_vhost(&Layout::new("/", None), &manifest, front).expect("all paths are plain")
    }

    #[test]
    fn a_vhost_leads_to_the_link_and_takes_every_name() {
        insta::assert_snapshot!(rendered("[front]\nlisten = [\"127.0.0.1:8080\"]\n"), @r#"
        # Written by farmctl for shop; changes are lost.
        map $http_upgrade $farmctl_shop_connection {
            default close;
            websocket upgrade;
        }
        server {
            listen 127.0.0.1:8080 default_server;
            server_name _;
            client_max_body_size 16m;
            keepalive_requests 1000000;

            location / {
                # A link, followed at every connect(2): no keep-alive to the upstream.
                proxy_pass http://unix:/run/farmctl/front/shop.sock;
                proxy_http_version 1.1;
                proxy_redirect off;
                proxy_set_header Host $http_host;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection $farmctl_shop_connection;
                proxy_set_header X-Real-IP $remote_addr;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                proxy_set_header X-Forwarded-Proto $scheme;
                proxy_set_header X-Forwarded-Host $http_host;
            }
        }
        "#);
    }

    #[test]
    fn static_files_come_from_the_export_and_uploads_from_the_data() {
        insta::assert_snapshot!(
            rendered(
                "[[data]]\nname = \"uploads\"\npath = \"/srv/shop/media\"\n\
                 [front]\nlisten = [\"80\", \"[::]:80\"]\nserver-names = [\"shop.example\", \"www.shop.example\"]\n\
                 max-body-mib = 64\n\
                 [[front.static]]\nlocation = \"/static\"\npath = \"/srv/shop/static\"\n\
                 [[front.static]]\nlocation = \"/media/\"\npath = \"/srv/shop/media/public\"\n"
            ),
            @r#"
            # Written by farmctl for shop; changes are lost.
            map $http_upgrade $farmctl_shop_connection {
                default close;
                websocket upgrade;
            }
            server {
                listen 80;
                listen [::]:80;
                server_name shop.example www.shop.example;
                client_max_body_size 64m;
                keepalive_requests 1000000;

                location / {
                    # A link, followed at every connect(2): no keep-alive to the upstream.
                    proxy_pass http://unix:/run/farmctl/front/shop.sock;
                    proxy_http_version 1.1;
                    proxy_redirect off;
                    proxy_set_header Host $http_host;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection $farmctl_shop_connection;
                    proxy_set_header X-Real-IP $remote_addr;
                    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                    proxy_set_header X-Forwarded-Proto $scheme;
                    proxy_set_header X-Forwarded-Host $http_host;
                }

                location ^~ /static/ {
                    alias /run/farmctl/front/shop.static/0/;
                    # Another release's file may have the same time and size.
                    etag off;
                    if_modified_since off;
                }

                location ^~ /media/ {
                    alias /var/lib/farmctl/data/shop/uploads/public/;
                    # The application makes what is here, links included.
                    disable_symlinks on from=/var/lib/farmctl/data/shop/uploads/;
                }
            }
            "#
        );
    }

    #[test]
    fn the_address_is_one_people_can_type() {
        let address = |front: &str| {
            let manifest = manifest(&format!("[front]\n{front}\n"));
            address(manifest.profile.front.as_ref().expect("there is one"))
        };
        assert_eq!(address("listen = [\"8080\"]"), "http://127.0.0.1:8080/");
        assert_eq!(address("listen = [\"[::1]:8080\"]"), "http://[::1]:8080/");
        assert_eq!(address("listen = [\"0.0.0.0:81\"]"), "http://127.0.0.1:81/");
        assert_eq!(
            address("listen = [\"80\"]\nserver-names = [\"*.example\", \"shop.example\"]"),
            "http://shop.example/"
        );
    }

    #[test]
    fn listening_sockets_are_read_and_compared() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
             1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1\n";
        let address: SocketAddr = "127.0.0.1:8080".parse().expect("it is an address");
        assert_eq!(parse_listeners(table), [Listener { address, inode: 4711 }]);
        let table = "header\n 0: 00000000000000000000000000000000:0050 \
             00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 42 1\n";
        let any: SocketAddr = "[::]:80".parse().expect("it is an address");
        assert_eq!(parse_listeners(table), [Listener { address: any, inode: 42 }]);
        let clashes = |held: &str, wanted: &str| {
            clash(held.parse().expect("an address"), wanted.parse().expect("an address"))
        };
        assert!(clashes("0.0.0.0:80", "127.0.0.1:80"));
        assert!(clashes("127.0.0.1:80", "0.0.0.0:80"));
        assert!(clashes("[::]:80", "127.0.0.1:80"));
        assert!(!clashes("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!clashes("127.0.0.1:80", "[::1]:80"));
        assert!(!clashes("127.0.0.1:80", "127.0.0.1:81"));
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
