//! The certificate a vhost shows: the administrator's, or one the node has signed itself.

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::error::refuse;
use crate::file;
use crate::layout::Layout;
use crate::profile::Front;
use crate::run::{Invocation, Tool};

const OPENSSL: Tool = Tool { name: "openssl", package: "openssl" };
/// How long a certificate of the node's own is valid, in days: nobody renews it.
const VALID: u32 = 3650;
/// How long before its end a certificate should have been renewed, in days.
const RENEWED: u32 = 14;

/// A chain of certificates and its key, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    /// Whether the administrator has put it there.
    is_given: bool,
}

impl Certificate {
    /// The one an application's vhost shows: the administrator's as soon as there is one.
    pub(super) fn of(layout: &Layout, app: &str) -> Self {
        let given = Self::given(layout, app);
        if given.files().is_empty() { Self::own(layout, app) } else { given }
    }

    fn given(layout: &Layout, app: &str) -> Self {
        Self { is_given: true, ..Self::in_directory(&layout.certificates(), app) }
    }

    /// One the node has made, or would make.
    pub(super) fn own(layout: &Layout, app: &str) -> Self {
        Self::in_directory(&layout.own_certificates(), app)
    }

    fn in_directory(directory: &Path, app: &str) -> Self {
        let file = |kind| directory.join(format!("{app}.{kind}"));
        Self { chain: file("crt"), key: file("key"), is_given: false }
    }

    /// What there is of it.
    pub(super) fn files(&self) -> Vec<&Path> {
        let both = [self.chain.as_path(), &self.key];
        both.into_iter().filter(|path| fs::symlink_metadata(path).is_ok()).collect()
    }

    /// Makes it if it is the node's own and not there yet, or for other names, with the key it
    /// had; one that is given must be whole. Answers whether it was made.
    pub(super) fn provide(&self, app: &str, front: &Front) -> Result<bool> {
        let Self { chain, key, is_given } = self;
        match [chain, key].into_iter().find(|path| !path.exists()) {
            Some(missing) if *is_given => refuse(
                format_args!("there is no {}", missing.display()),
                "a certificate needs both: its chain in NAME.crt, its key in NAME.key; without either, \
                 farmctl makes one",
            ),
            None if *is_given || self.has(&names(front))? => Ok(false),
            _ => self.make(app, front).map(|()| true),
        }
    }

    /// Whether it is for all of these names.
    fn has(&self, wanted: &[Name]) -> Result<bool> {
        let shown = Invocation::of(&OPENSSL)
            .args(["x509", "-noout", "-ext", "subjectAltName", "-in"])
            .arg(&self.chain)
            .outcome()?;
        let has = parse_names(&shown.stdout);
        Ok(wanted.iter().all(|name| has.contains(name)))
    }

    /// What an administrator should do about it, if anything.
    pub(super) fn trouble(&self) -> Result<Option<String>> {
        let (chain, seconds) = (&self.chain, (RENEWED * 24 * 60 * 60).to_string());
        let outcome = Invocation::of(&OPENSSL)
            .args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-checkend", &seconds])
            .arg("-in")
            .arg(chain)
            .outcome()?;
        if outcome.success() {
            return Ok(None);
        }
        let end = outcome.stdout.lines().find_map(|line| line.strip_prefix("notAfter="));
        let shown = chain.display();
        Ok(Some(match end {
            Some(end) => format!("the certificate {shown} ends at {end}: renew it"),
            None => format!("openssl cannot read the certificate {shown}"),
        }))
    }

    fn make(&self, app: &str, front: &Front) -> Result<()> {
        file::make_directory(self.chain.parent().unwrap_or(Path::new("/")), 0o700)?;
        let names: Vec<String> = names(front).iter().map(Name::to_string).collect();
        let names = format!("subjectAltName={}", names.join(","));
        let call = Invocation::of(&OPENSSL)
            .args(["req", "-x509", "-days", &VALID.to_string(), "-subj", &format!("/CN={app}")])
            .args(["-addext", &names]);
        if self.key.exists() {
            let chain = call.arg("-key").arg(&self.key).output().context("making a certificate")?;
            return file::publish(&self.chain, chain.as_bytes(), 0o644);
        }
        // The key comes last and by rename: without it the other is made anew. What a killed
        // farmctl leaves of it is written over then.
        let part = self.key.with_extension("key.part");
        let chain = call
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout"])
            .arg(&part)
            .output()
            .context("making a certificate")?;
        file::publish(&self.chain, chain.as_bytes(), 0o644)?;
        fs::rename(&part, &self.key).with_context(|| format!("publishing {}", self.key.display()))
    }
}

/// What browsers compare with the address they ask (RFC 6125).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Host(String),
    Address(IpAddr),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => write!(f, "DNS:{name}"),
            Self::Address(ip) => write!(f, "IP:{ip}"),
        }
    }
}

/// What a vhost is asked for by.
fn names(front: &Front) -> Vec<Name> {
    let mut names: Vec<Name> = front.names().map(|name| Name::Host(name.to_owned())).collect();
    let tls = front.tls.iter().flat_map(|tls| &tls.listen);
    for listen in tls {
        let address = listen.parse().map(|address: std::net::SocketAddr| address.ip()).ok();
        names.extend(address.filter(|ip| !ip.is_unspecified()).map(Name::Address));
    }
    if names.is_empty() {
        names.push(Name::Host("localhost".to_owned()));
        names.push(Name::Address(IpAddr::from([127, 0, 0, 1])));
    }
    names.sort();
    names.dedup();
    names
}

/// Names in what `openssl x509 -ext subjectAltName` prints.
fn parse_names(shown: &str) -> Vec<Name> {
    let name = |text: &str| match text.trim().split_once(':')? {
        ("DNS", name) => Some(Name::Host(name.to_owned())),
        ("IP Address", ip) => ip.parse().ok().map(Name::Address),
        _ => None,
    };
    shown.lines().skip(1).flat_map(|line| line.split(',')).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from OpenSSL 3.0.
    #[test]
    fn names_of_a_certificate_are_read() {
        let shown = "X509v3 Subject Alternative Name: \n    DNS:shop.example, IP Address:127.0.0.1, \
                     IP Address:0:0:0:0:0:0:0:1\n";
        let expected = [
            Name::Host("shop.example".to_owned()),
            Name::Address(IpAddr::from([127, 0, 0, 1])),
            Name::Address(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])),
        ];
        assert_eq!(parse_names(shown), expected);
        assert_eq!(parse_names("No extensions in certificate\n"), []);
    }
}
