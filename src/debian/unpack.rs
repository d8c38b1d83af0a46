//! A Debian base system out of its packages: what debootstrap makes, quicker.
//!
//! debootstrap unpacks every package twice, one after another: with tar, for there is no dpkg
//! yet, and with dpkg, for its database. Here they are extracted side by side, once, entered
//! into the database as unpacked (deb(5), dpkg(1) "Package states"), and their preinsts run,
//! which find what they find under debootstrap. Those interested in triggers have more to be
//! entered and are left to the tree's own dpkg, which then configures all. debootstrap stays
//! the reference: tests/environment.rs compares.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use tar::{Entry, EntryType};

use super::deb::{self, Control};
use super::{Archive, write_build_settings};
use crate::chroot::Chroot;
use crate::error::Mark as _;
use crate::file;
use crate::parallel;
use crate::profile::Environment;
use crate::run::check_interrupted;
use crate::storage;

/// Suites whose base systems are known to come out as debootstrap's.
const SUITES: [&str; 2] = ["bookworm", "trixie"];
/// Top-level directories that are links to those of the same name in /usr.
pub(super) const MERGED: [&str; 7] = ["bin", "lib", "lib32", "lib64", "libo32", "libx32", "sbin"];
/// Configured before all others, which take for granted what they make: /etc/passwd, /root,
/// awk. debootstrap does it likewise.
const FIRST: [&str; 3] = ["base-passwd", "mawk", "base-files"];
/// How dpkg is called to unpack files.
const UNPACK: [&str; 2] = ["--force-depends", "--unpack"];
/// How dpkg is called to configure packages.
const CONFIGURE: [&str; 2] = ["--force-depends", "--configure"];
/// How dpkg is called to configure all that are left.
const CONFIGURE_ALL: [&str; 4] =
    ["--force-depends", "--force-configure-any", "--configure", "--pending"];
/// The trigger that may be activated here with nobody listening: configuring libc-bin, which
/// comes after all unpacking, runs ldconfig anyway.
const LDCONFIG: &str = "ldconfig";
/// dpkg's files of packages, beneath a tree.
const INFO: &str = "var/lib/dpkg/info";
/// Where dpkg has those of the package it is unpacking, inside.
const UNPACKING: &str = "/var/lib/dpkg/tmp.ci";
/// The script that runs before a package is unpacked.
const PREINST: &str = "preinst";

/// Whether an environment's base system can be unpacked this way. What it asks of debootstrap
/// itself is left to debootstrap.
#[must_use]
pub fn fits(environment: &Environment) -> bool {
    SUITES.contains(&environment.suite.as_str())
        && environment.include.is_empty()
        && environment.exclude.is_empty()
}

/// What apt is asked for to get the base system debootstrap would make (its minbase variant).
#[must_use]
pub fn wanted(archive: &Archive) -> Vec<String> {
    let mut wanted = vec!["?essential", "?priority(required)", "apt"];
    // Else apt takes usrmerge, which moves files of a running system.
    if archive.suite == "bookworm" {
        wanted.push("usr-is-merged");
    }
    if archive.mirror.starts_with("https:") {
        wanted.push("ca-certificates");
    }
    wanted.into_iter().map(str::to_owned).collect()
}

/// The arguments of dpkg's calls in [`Base::configure`].
#[must_use]
pub fn calls() -> [String; 4] {
    let words = |options: &[&str], what: &[&str]| [options, what].concat().join(" ");
    let unpack = || words(&UNPACK, &["FILE..."]);
    [unpack(), words(&CONFIGURE, &FIRST), unpack(), words(&CONFIGURE_ALL, &[])]
}

/// A base system whose packages are extracted.
#[derive(Debug)]
pub struct Base {
    /// Those dpkg takes for unpacked.
    entered: Vec<Unpacked>,
    /// Those that dpkg itself has to unpack, with their files.
    left: Vec<(PathBuf, Unpacked)>,
}

impl Base {
    /// Extracts packages into the empty directory `tree`.
    ///
    /// # Errors
    /// When one is no package of Debian's, or there is no room.
    pub fn extract(tree: &Path, debs: Vec<PathBuf>) -> Result<Self> {
        explain(Self::of(tree, debs))
    }

    fn of(tree: &Path, mut debs: Vec<PathBuf>) -> Result<Self> {
        // What it says of a directory counts, and others are only in it.
        debs.sort_by_cached_key(|deb| (!is_base_files(deb), deb.clone()));
        for directory in ["usr", INFO, "var/lib/dpkg/updates"] {
            file::make_directory(&tree.join(directory), 0o755)?;
        }
        let extracted = parallel::each(&debs, parallel::processors(), |deb| {
            Unpacked::of(tree, deb).with_context(|| format!("unpacking {}", deb.display()))
        })?;
        settle_directories(tree, &extracted)?;
        link_merged(tree, &extracted)?;
        let mut base = Self { entered: Vec::new(), left: Vec::new() };
        for (deb, package) in debs.into_iter().zip(extracted) {
            if package.is_interested() {
                package.withdraw_conffiles(tree)?;
                base.left.push((deb, package));
            } else {
                package.enter(tree).with_context(|| format!("entering {}", deb.display()))?;
                base.entered.push(package);
            }
        }
        base.complete(tree)?;
        Ok(base)
    }

    /// Writes dpkg's status, and what debootstrap makes besides.
    fn complete(&self, tree: &Path) -> Result<()> {
        let status: Result<String> = self.entered.iter().map(Unpacked::stanza).collect();
        for (path, text) in [
            ("var/lib/dpkg/status", status?.as_str()),
            ("var/lib/dpkg/info/format", "1\n"),
            ("var/lib/dpkg/available", ""),
            ("var/lib/dpkg/cmethopt", "apt apt\n"),
            ("etc/fstab", "# UNCONFIGURED FSTAB FOR BASE SYSTEM\n"),
        ] {
            let path = tree.join(path);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let localtime = tree.join("etc/localtime");
        symlink("/usr/share/zoneinfo/UTC", &localtime).context("linking /etc/localtime")
    }

    /// Has the tree's dpkg unpack what is left, files inside by `inside`, and configure all.
    ///
    /// # Errors
    /// When a package cannot be, with the last lines.
    pub fn configure(
        &self,
        chroot: &Chroot,
        inside: impl Fn(&Path) -> String,
        line: impl FnMut(&str),
    ) -> Result<()> {
        write_build_settings(chroot.tree())?;
        let line = RefCell::new(line);
        let dpkg = |options: &[&str], what: &[String]| {
            let call = chroot.call("dpkg").args(options).args(what);
            explain(call.run_lines(|text| line.borrow_mut()(text)))
        };
        let unpack = |which: &dyn Fn(&Unpacked) -> bool| {
            let mut entered = self.entered.iter().filter(|one| which(one));
            explain(entered.try_for_each(|one| one.prepare(chroot)))?;
            let left = self.left.iter().filter(|(_, one)| which(one));
            let files: Vec<String> = left.map(|(deb, _)| inside(deb)).collect();
            if files.is_empty() { Ok(()) } else { dpkg(&UNPACK, &files) }
        };
        unpack(&|one| one.is_first())?;
        dpkg(&CONFIGURE, &FIRST.map(str::to_owned))?;
        unpack(&|one| !one.is_first())?;
        dpkg(&CONFIGURE_ALL, &[])
    }
}

/// What to do when a package cannot be unpacked or configured.
fn explain<T>(outcome: Result<T>) -> Result<T> {
    if outcome.is_err() {
        check_interrupted()?;
    }
    outcome.hint("-vv shows all that was printed; does bootstrap --debootstrap get further?")
}

fn is_base_files(deb: &Path) -> bool {
    deb.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base-files_"))
}

/// A directory as a package has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owned {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// A package whose files are in the tree.
#[derive(Debug, Default)]
struct Unpacked {
    control: Control,
    /// Its paths as dpkg lists them.
    list: String,
    directories: BTreeMap<PathBuf, Owned>,
    /// Those of [`MERGED`] it has something in.
    merged: BTreeSet<&'static str>,
}

impl Unpacked {
    /// A package, whose files are put into a tree.
    fn of(tree: &Path, deb: &Path) -> Result<Self> {
        let mut package = Self { control: deb::control(deb)?, ..Self::default() };
        deb::read(deb, "data", |archive| package.extract(tree, archive))?;
        Ok(package)
    }

    /// Whether it waits for a trigger, or activates one that others wait for.
    fn is_interested(&self) -> bool {
        let triggers = self.control.text("triggers").unwrap_or("interest unknown");
        let mut directives = triggers.lines().filter(|line| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with('#')
        });
        directives.any(|line| {
            let mut words = line.split_whitespace();
            !words.next().is_some_and(|word| word.starts_with("activate"))
                || words.next() != Some(LDCONFIG)
        })
    }

    fn extract(&mut self, tree: &Path, archive: &mut dyn Read) -> Result<()> {
        let mut archive = tar::Archive::new(archive);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_overwrite(false);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            self.add(tree, &mut entry).with_context(|| format!("extracting {}", path.display()))?;
        }
        Ok(())
    }

    fn add(&mut self, tree: &Path, entry: &mut Entry<'_, &mut dyn Read>) -> Result<()> {
        let named = entry.path()?.into_owned();
        let named = named.to_str().context("it is not UTF-8")?;
        let named = named.strip_prefix("./").unwrap_or(named).trim_end_matches('/');
        if matches!(named, "" | ".") {
            self.list += "/.\n";
            return Ok(());
        }
        self.list += &format!("/{named}\n");
        let path = self.place(named)?;
        let target = tree.join(&path);
        let header = entry.header();
        match header.entry_type() {
            EntryType::Directory => {
                let owned = Owned {
                    mode: header.mode()?,
                    uid: u32::try_from(header.uid()?)?,
                    gid: u32::try_from(header.gid()?)?,
                };
                // Several packages have it, and at once.
                match fs::create_dir(&target) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                        let known = fs::symlink_metadata(&target)?;
                        ensure!(known.is_dir(), "another package has it, as no directory");
                    }
                    made => made?,
                }
                self.directories.insert(path, owned);
            }
            // Links of a merged /usr are where they say, not where they lead.
            EntryType::Symlink if MERGED.contains(&named) => {
                entry.unpack(tree.join(named))?;
            }
            EntryType::Regular | EntryType::Symlink => {
                entry.unpack(&target)?;
            }
            EntryType::Link => {
                let source = entry.link_name()?.context("it is a link to nothing")?;
                let source = source.to_str().context("it is a link to what is not UTF-8")?;
                let source = self.place(source.strip_prefix("./").unwrap_or(source))?;
                fs::hard_link(tree.join(source), &target)?;
            }
            _ => bail!("it is no file, directory or link"),
        }
        Ok(())
    }

    /// Where a path of the package's is, with a merged /usr. What is above it is a directory
    /// of the same package: nothing is written through a link.
    fn place(&mut self, named: &str) -> Result<PathBuf> {
        ensure!(
            named.split('/').all(|part| !matches!(part, "" | "." | "..")),
            "it is no plain path"
        );
        let first = named.split('/').next().unwrap_or_default();
        let path = match MERGED.into_iter().find(|merged| *merged == first) {
            Some(merged) => {
                self.merged.insert(merged);
                Path::new("usr").join(named)
            }
            None => PathBuf::from(named),
        };
        let above = path.parent().unwrap_or(Path::new(""));
        let is_known = [Path::new(""), Path::new("usr")].contains(&above)
            || self.directories.contains_key(above);
        ensure!(is_known, "the package does not have the directory it is in");
        Ok(path)
    }

    /// Its configuration files, without a slash in front.
    fn conffiles(&self) -> Result<Vec<&str>> {
        // A flag may stand before a path: of a file that is to go.
        let lines = self.control.text("conffiles")?.lines();
        Ok(lines.filter_map(|line| line.trim().strip_prefix('/')).collect())
    }

    /// Enters it into dpkg's database, and has its configuration files where dpkg looks for new
    /// ones when it configures, too.
    fn enter(&self, tree: &Path) -> Result<()> {
        let info = tree.join(INFO);
        let name = self.info_name()?;
        self.control.write(&info, |kind| (kind != "control").then(|| format!("{name}.{kind}")))?;
        fs::write(info.join(format!("{name}.list")), &self.list)?;
        for path in self.conffiles()? {
            let path = tree.join(path);
            let mut new = path.clone().into_os_string();
            new.push(".dpkg-new");
            // What is configured earlier finds them, as it does under debootstrap.
            fs::copy(&path, new).with_context(|| format!("copying {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes its configuration files: dpkg would take them for the administrator's.
    fn withdraw_conffiles(&self, tree: &Path) -> Result<()> {
        self.conffiles()?.into_iter().try_for_each(|path| file::remove_if_there(&tree.join(path)))
    }

    fn name(&self) -> Result<&str> {
        self.control.field("Package")?.context("it has no name")
    }

    fn is_first(&self) -> bool {
        self.name().is_ok_and(|name| FIRST.contains(&name))
    }

    fn architecture(&self) -> Result<&str> {
        self.control.field("Architecture")?.context("it has no architecture")
    }

    /// What its files in dpkg's database are called.
    fn info_name(&self) -> Result<String> {
        if self.control.field("Multi-Arch")? != Some("same") {
            return Ok(self.name()?.to_owned());
        }
        Ok(format!("{}:{}", self.name()?, self.architecture()?))
    }

    /// Runs its preinst, as dpkg does (deb-preinst(5), dpkg(1) "ENVIRONMENT").
    fn prepare(&self, chroot: &Chroot) -> Result<()> {
        if !self.control.has(PREINST) {
            return Ok(());
        }
        // debconf takes the package's name from there (Debconf::Frontend).
        let place = chroot.outside(UNPACKING);
        file::make_directory(&place, 0o755)?;
        self.control.write(&place, |name| Some(name.to_owned()))?;
        chroot
            .call(&format!("{UNPACKING}/{PREINST}"))
            .arg("install")
            .env("DPKG_ADMINDIR", "/var/lib/dpkg")
            .env("DPKG_MAINTSCRIPT_ARCH", self.architecture()?)
            .env("DPKG_MAINTSCRIPT_NAME", PREINST)
            .env("DPKG_MAINTSCRIPT_PACKAGE", self.name()?)
            .env("DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT", "1")
            .env("DPKG_ROOT", "")
            .named(format!("{} of {}", PREINST, self.name()?))
            .run()?;
        storage::remove_tree(&place)
    }

    /// Its entry in dpkg's status file.
    fn stanza(&self) -> Result<String> {
        let mut text = "Status: install ok unpacked\n".to_owned();
        text += self.control.text("control")?.trim_end();
        text.push('\n');
        let conffiles = self.conffiles()?;
        if !conffiles.is_empty() {
            text += "Conffiles:\n";
            for path in conffiles {
                text += &format!(" /{path} newconffile\n");
            }
        }
        text.push('\n');
        Ok(text)
    }
}

/// Makes the links of a merged /usr.
fn link_merged(tree: &Path, packages: &[Unpacked]) -> Result<()> {
    let merged: BTreeSet<&str> =
        packages.iter().flat_map(|one| one.merged.iter().copied()).collect();
    for name in merged {
        let link = tree.join(name);
        // A newer base-files has it of its own.
        if !link.is_symlink() {
            symlink(format!("usr/{name}"), &link)
                .with_context(|| format!("linking {}", link.display()))?;
        }
    }
    Ok(())
}

/// Gives directories owner and mode: what the first package says that has it, as with dpkg.
fn settle_directories(tree: &Path, packages: &[Unpacked]) -> Result<()> {
    let mut settled = BTreeMap::new();
    for package in packages {
        for (path, owned) in &package.directories {
            settled.entry(path).or_insert(*owned);
        }
    }
    for (path, owned) in settled {
        let path = tree.join(path);
        chown(&path, Some(owned.uid), Some(owned.gid))
            .and_then(|()| {
                fs::set_permissions(&path, fs::Permissions::from_mode(owned.mode & 0o7777))
            })
            .with_context(|| format!("settling {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::deb::fixture::{Tar, add, write};
    use tempfile::TempDir;

    /// Packages, and the tree they are extracted into.
    struct Packages {
        place: TempDir,
        debs: Vec<PathBuf>,
    }

    impl Packages {
        fn new() -> Self {
            let place = tempfile::tempdir().expect("there is room");
            fs::create_dir(place.path().join("tree")).expect("there is room");
            Self { place, debs: Vec::new() }
        }

        /// One more, with these control files besides `control`.
        fn with(mut self, name: &str, more: &[(&str, &str)], fill: fn(&mut Tar)) -> Self {
            let deb = self.place.path().join(format!("{name}_1_all.deb"));
            let text = format!("Package: {name}\nVersion: 1\nArchitecture: all\n");
            let control = [&[("control", text.as_str())], more].concat();
            write(&deb, &control, fill);
            self.debs.push(deb);
            self
        }

        fn tree(&self) -> PathBuf {
            self.place.path().join("tree")
        }

        fn extract(&self) -> Result<Base> {
            Base::extract(&self.tree(), self.debs.clone())
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.tree().join(path)).expect("it is there")
        }

        fn refused(&self) -> String {
            format!("{:#}", self.extract().expect_err("it is refused"))
        }
    }

    fn directories(tar: &mut Tar, paths: &[&str]) {
        paths.iter().for_each(|path| add(tar, EntryType::Directory, path, 0o755, ""));
    }

    fn file(tar: &mut Tar, path: &str, contents: &str) {
        add(tar, EntryType::Regular, path, 0o644, contents);
    }

    fn link(tar: &mut Tar, path: &str, target: &str) {
        add(tar, EntryType::Symlink, path, 0o777, target);
    }

    #[test]
    fn packages_are_in_the_tree_and_in_the_database() {
        let packages = Packages::new()
            .with(
                "a",
                &[("conffiles", "/etc/a\n"), ("triggers", "activate-noawait ldconfig\n")],
                |tar| {
                    directories(tar, &["./", "./bin/", "./etc/", "./var/"]);
                    file(tar, "./bin/a", "a\n");
                    add(tar, EntryType::Link, "./bin/b", 0o644, "./bin/a");
                    file(tar, "./etc/a", "set\n");
                },
            )
            .with("base-files", &[], |tar| {
                directories(tar, &["./"]);
                add(tar, EntryType::Directory, "./var/", 0o775, "");
            });
        let base = packages.extract().expect("they are packages");
        assert_eq!(base.entered.len(), 2);
        assert_eq!(packages.read("usr/bin/b"), "a\n");
        let link = fs::read_link(packages.tree().join("bin")).expect("/usr is merged");
        assert_eq!(link, Path::new("usr/bin"));
        let var = fs::metadata(packages.tree().join("var")).expect("it is there");
        assert_eq!(var.permissions().mode() & 0o7777, 0o775, "of base-files");
        let list = packages.read("var/lib/dpkg/info/a.list");
        assert_eq!(list, "/.\n/bin\n/etc\n/var\n/bin/a\n/bin/b\n/etc/a\n");
        assert_eq!(packages.read("etc/a.dpkg-new"), "set\n");
        insta::assert_snapshot!(packages.read("var/lib/dpkg/status"), @r"
        Status: install ok unpacked
        Package: base-files
        Version: 1
        Architecture: all

        Status: install ok unpacked
        Package: a
        Version: 1
        Architecture: all
        Conffiles:
         /etc/a newconffile
        ");
    }

    #[test]
    fn who_waits_for_triggers_is_left_to_dpkg() {
        let packages = Packages::new().with(
            "a",
            &[("conffiles", "/etc/a\n"), ("triggers", "# of files\ninterest-noawait /usr/lib\n")],
            |tar| {
                directories(tar, &["./etc/"]);
                file(tar, "./etc/a", "set\n");
            },
        );
        let base = packages.extract().expect("it is a package");
        assert_eq!((base.entered.len(), base.left.len()), (0, 1));
        assert_eq!(packages.read("var/lib/dpkg/status"), "");
        // dpkg would take it for the administrator's.
        assert!(!packages.tree().join("etc/a").exists());
    }

    #[test]
    fn nothing_is_written_outside_of_the_tree() {
        let lost = Packages::new().with("a", &[], |tar| file(tar, "./etc/a", "set\n"));
        assert_eq!(
            lost.refused(),
            format!(
                "unpacking {}: extracting ./etc/a: the package does not have the directory it is in",
                lost.debs[0].display()
            )
        );
        let above = Packages::new().with("a", &[], |tar| file(tar, "./../a", "set\n"));
        assert!(above.refused().ends_with("it is no plain path"), "{}", above.refused());
        assert!(!above.place.path().join("a").exists());
        // Whichever comes first.
        let through = Packages::new()
            .with("a", &[], |tar| {
                directories(tar, &["./etc/"]);
                link(tar, "./etc/x", "../..");
            })
            .with("b", &[], |tar| {
                directories(tar, &["./etc/", "./etc/x/"]);
                file(tar, "./etc/x/a", "set\n");
            });
        assert!(through.refused().contains("/etc/x"), "{}", through.refused());
        assert!(!through.place.path().join("a").exists());
    }
}
