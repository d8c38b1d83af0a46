//! Running commands in a tree that is being built.
//!
//! A [`Chroot`] mounts what Debian's tools expect (a small /dev of its own, /proc,
//! /sys, empty /run and /tmp), runs commands in a PID namespace that ends with them,
//! and leaves nothing: the recipes that use it work in a private mount namespace.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::MsFlags;

use crate::file;
use crate::machine;
use crate::mount::Mount;
use crate::run::{Invocation, Tool};

const CHROOT: Tool = Tool { name: "chroot", package: "coreutils" };
/// Programs [`Chroot`] needs on the host.
pub const TOOLS: [&Tool; 1] = [&CHROOT];

/// Device nodes a build sees, bound from the host.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Where a build finds what it borrows from the host; on the tree's own /run tmpfs, so
/// nothing of it can be packed.
pub const BORROWED: &str = "/run/farmctl-build";
/// The host's certificates there.
const LENT_CERTIFICATES: &str = "ca-certificates.crt";
/// Settings of pip and uv that name indexes, handed to builds: a company's mirror is
/// named in them as often as in files.
const INDEX_VARIABLES: [&str; 12] = [
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_TIMEOUT",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_RETRIES",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_INDEX",
    "UV_HTTP_TIMEOUT",
    "UV_HTTP_RETRIES",
];

/// A tree with what commands need mounted in it.
#[derive(Debug)]
#[must_use = "the mounts end when this is dropped"]
pub struct Chroot {
    tree: PathBuf,
    epoch: i64,
    // Dropped in this order: innermost mounts first.
    mounts: Vec<Mount>,
    policy: Option<PathBuf>,
}

impl Chroot {
    /// Prepares `tree`; commands in it see `epoch` as `SOURCE_DATE_EPOCH`.
    ///
    /// # Errors
    /// When something cannot be mounted.
    pub fn enter(tree: &Path, epoch: i64) -> Result<Self> {
        let mut chroot = Self { tree: tree.to_owned(), epoch, mounts: Vec::new(), policy: None };
        chroot.prepare()?;
        Ok(chroot)
    }

    fn prepare(&mut self) -> Result<()> {
        let tree = self.tree.clone();
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        for (kind, place, flags, options) in [
            ("tmpfs", "dev", MsFlags::MS_NOSUID, "mode=755"),
            ("proc", "proc", quiet | MsFlags::MS_NOEXEC, ""),
            ("sysfs", "sys", quiet | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY, ""),
            ("tmpfs", "run", quiet, "mode=755"),
            ("tmpfs", "tmp", quiet, "mode=1777"),
        ] {
            let target = tree.join(place);
            file::make_directory(&target, 0o755)?;
            self.mounts.insert(0, Mount::new(kind, &target, flags, options)?);
        }
        let dev = tree.join("dev");
        for name in DEVICES {
            let node = dev.join(name);
            fs::write(&node, "").with_context(|| format!("making {}", node.display()))?;
            self.mounts.insert(0, Mount::bind(&Path::new("/dev").join(name), &node, false)?);
        }
        for (name, target) in
            [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
        {
            symlink(target, dev.join(name)).context("making /dev")?;
        }
        for (name, kind, options) in
            [("shm", "tmpfs", "mode=1777"), ("pts", "devpts", "newinstance,ptmxmode=666,mode=620")]
        {
            file::make_directory(&dev.join(name), 0o755)?;
            self.mounts.insert(0, Mount::new(kind, &dev.join(name), quiet, options)?);
        }
        file::make_directory(&tree.join("run/lock"), 0o755)?;
        self.borrow_network()?;
        self.forbid_daemons()
    }

    /// Lends the host's name resolution and certificates.
    fn borrow_network(&mut self) -> Result<()> {
        let etc = self.tree.join("etc");
        for name in ["resolv.conf", "hosts"] {
            let (host, inside) = (Path::new("/etc").join(name), etc.join(name));
            if !host.exists() {
                continue;
            }
            if inside.is_symlink() {
                file::remove_if_there(&inside)?;
            }
            if !inside.exists() {
                fs::write(&inside, "").with_context(|| format!("making {}", inside.display()))?;
            }
            let host =
                host.canonicalize().with_context(|| format!("finding {}", host.display()))?;
            self.lend_at(&host, &inside)?;
        }
        let bundle = Path::new(machine::CERTIFICATES);
        if bundle.exists() {
            self.lend(bundle, LENT_CERTIFICATES)?;
        }
        Ok(())
    }

    fn lend_at(&mut self, host: &Path, inside: &Path) -> Result<()> {
        self.mounts.insert(0, Mount::bind(host, inside, true)?);
        Ok(())
    }

    /// Lends a file or directory of the host, read-only, and answers its path inside.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn lend(&mut self, host: &Path, name: &str) -> Result<String> {
        let inside = self.outside(BORROWED).join(name);
        if host.is_dir() {
            file::make_directory(&inside, 0o755)?;
        } else {
            file::make_directory(&self.outside(BORROWED), 0o755)?;
            fs::write(&inside, "").with_context(|| format!("making {}", inside.display()))?;
        }
        self.lend_at(host, &inside)?;
        Ok(format!("{BORROWED}/{name}"))
    }

    /// Lends a directory of the host, writable: a cache.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub fn lend_writable(&mut self, host: &Path, inside: &str) -> Result<()> {
        file::make_directory(host, 0o755)?;
        let target = self.outside(inside);
        file::make_directory(&target, 0o755)?;
        self.mounts.insert(0, Mount::bind(host, &target, false)?);
        Ok(())
    }

    /// Maintainer scripts start no daemons during a build (invoke-rc.d(8), policy-rc.d).
    fn forbid_daemons(&mut self) -> Result<()> {
        let policy = self.outside("/usr/sbin/policy-rc.d");
        if policy.parent().is_some_and(Path::is_dir) {
            file::put(&policy, b"#!/bin/sh\nexit 101\n", 0o755)?;
            self.policy = Some(policy);
        }
        Ok(())
    }

    /// Root of the tree.
    #[must_use]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// What commands see as `SOURCE_DATE_EPOCH`, seconds since 1970.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// A path inside as the host sees it.
    #[must_use]
    pub fn outside(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        self.tree.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// A call of `program` inside, with the fixed environment of builds.
    #[must_use]
    pub fn call(&self, program: &str) -> Invocation {
        invocation(&self.tree, self.epoch, program)
    }

    /// Like [`Self::call`], with what downloading needs: proxies, indexes, certificates.
    #[must_use]
    pub fn downloading(&self, program: &str) -> Invocation {
        let mut call = machine::proxied(self.call(program));
        for name in INDEX_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                call = call.env(name, value);
            }
        }
        let bundle = format!("{BORROWED}/{LENT_CERTIFICATES}");
        if self.outside(&bundle).exists() {
            for name in ["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"] {
                call = call.env(name, &bundle);
            }
        }
        call
    }

    /// Takes everything away again.
    ///
    /// # Errors
    /// When something inside still runs or is mounted.
    pub fn leave(mut self) -> Result<()> {
        self.clear()
    }

    /// Takes everything away as long as `body` runs. What was lent, and what lies where it is
    /// lent, is gone afterwards; so is everything if `body` fails.
    ///
    /// # Errors
    /// As [`Self::leave`], [`Self::enter`], and `body`'s own.
    pub fn suspended(&mut self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        self.clear()?;
        body()?;
        self.prepare()
    }

    fn clear(&mut self) -> Result<()> {
        if let Some(policy) = self.policy.take() {
            file::remove_if_there(&policy)?;
        }
        std::mem::take(&mut self.mounts).into_iter().try_for_each(Mount::close)
    }
}

/// A call of `program` in `tree`, for showing before the tree is there.
#[must_use]
pub fn invocation(tree: &Path, epoch: i64, program: &str) -> Invocation {
    Invocation::of(&CHROOT)
        .arg(tree)
        .arg(program)
        .named(program)
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .env("PYTHONHASHSEED", "0")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("DEBCONF_NONINTERACTIVE_SEEN", "true")
        .env("TZ", "UTC")
        .contained()
}
