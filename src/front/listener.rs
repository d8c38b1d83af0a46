//! Who listens where: on a front's addresses, and on those it wants.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{available, nginx, vhost};
use crate::error::refuse;
use crate::file;
use crate::layout::NGINX_ENABLED;
use crate::profile::Front;
use crate::run::poll_until;

/// Addresses to reach a front's listeners at, from this host.
fn addresses(front: &Front) -> Vec<SocketAddr> {
    let of = |listen: &String| match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => Some(match address {
            SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, address.port()).into(),
            SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, address.port()).into(),
        }),
        Ok(address) => Some(address),
        Err(_) => listen.parse::<u16>().ok().map(|port| (Ipv4Addr::LOCALHOST, port).into()),
    };
    front.addresses().filter_map(of).collect()
}

pub(super) fn accepts(front: &Front) -> bool {
    addresses(front)
        .iter()
        .all(|address| TcpStream::connect_timeout(address, Duration::from_secs(1)).is_ok())
}

pub(super) fn wait_for(front: &Front) -> Result<()> {
    if poll_until(nginx::PATIENCE, || Ok(accepts(front).then_some(())))?.is_some() {
        return Ok(());
    }
    refuse(
        format_args!(
            "nginx does not answer on {}",
            front.addresses().map(String::as_str).collect::<Vec<_>>().join(", ")
        ),
        "look at /var/log/nginx/error.log",
    )
}

/// Connections to a session's process that are open or wait to be accepted.
///
/// # Errors
/// When the kernel's table of sockets cannot be read.
pub fn connections(session: &str, process: &str) -> Result<usize> {
    let table = fs::read_to_string("/proc/net/unix").context("reading /proc/net/unix")?;
    Ok(count_connections(&table, &format!("/{session}.{process}.sock")))
}

/// Sockets of `/proc/net/unix` (proc(5)) that have the path of a listening one and do not
/// listen themselves: `__SO_ACCEPTCON` is 1 << 16 of the fourth field. One that has not been
/// accepted yet is among them, with the inode 0.
fn count_connections(table: &str, path: &str) -> usize {
    let connected = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let flags = fields.get(3).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        fields.get(7).is_some_and(|name| name.ends_with(path))
            && flags.is_some_and(|flags| flags & (1 << 16) == 0)
    };
    table.lines().skip(1).filter(connected).count()
}

/// Refuses addresses that a program other than nginx listens on: nginx would only
/// complain in its log and keep its old configuration. And those that another
/// application of ours has with the same names.
pub(super) fn check(app: &str, front: &Front) -> Result<()> {
    check_own_vhosts(app, front)?;
    let mut table = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        table.extend(parse_listeners(&file::read_if_there(Path::new(path))?.unwrap_or_default()));
    }
    for listen in front.addresses() {
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

/// Another application of ours with a name on an address of a front's.
pub(super) struct Rival {
    pub(super) app: String,
    listen: String,
    name: String,
}

fn check_own_vhosts(app: &str, front: &Front) -> Result<()> {
    let Some(Rival { app: other, listen, name }) = rivals(app, front)?.pop() else {
        return Ok(());
    };
    let whom = if name == "_" { "all names".to_owned() } else { format!("the name {name}") };
    refuse(
        format_args!("application {other} has {whom} on {listen} already"),
        "use another address or name in [front], or farmctl stop the other",
    )
}

pub(super) fn rivals(app: &str, front: &Front) -> Result<Vec<Rival>> {
    let mut rivals = Vec::new();
    for name in file::names_in(Path::new(NGINX_ENABLED))? {
        let Some(other) = name.strip_prefix("farmctl-").filter(|other| *other != app) else {
            continue;
        };
        let text = file::read_if_there(&available(other))?.unwrap_or_default();
        let (listens, names) = vhost::parse(&text);
        let wanted: BTreeSet<&str> = if front.server_names.is_empty() {
            ["_"].into()
        } else {
            front.names().map(String::as_str).collect()
        };
        let listen = front.addresses().find(|listen| listens.contains(listen.as_str()));
        if let (Some(listen), Some(shared)) = (listen, names.intersection(&wanted).next()) {
            rivals.push(Rival {
                app: other.to_owned(),
                listen: listen.clone(),
                name: (*shared).to_owned(),
            });
        }
    }
    Ok(rivals)
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
}
