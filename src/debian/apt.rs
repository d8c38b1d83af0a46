//! An apt of our own on the host: it reads the archive of an environment, resolves and
//! fetches for it, with nothing of the host's packages, sources or pins in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};

use super::Archive;
use super::archive::{APT_HELPER, release_date};
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::lockfile::{Deb, Phase};
use crate::machine::{self, APT_GET};
use crate::manifest::InRelease;
use crate::parallel;
use crate::run::{Invocation, Tool};

const APT_CACHE: Tool = Tool { name: "apt-cache", package: "apt" };
const APT_CONFIG: Tool = Tool { name: "apt-config", package: "apt" };
/// How many packages one call of apt's downloader is given.
const BATCH: usize = 8;
/// How many of these calls are made at once: each fetches one package after another.
const DOWNLOADS: usize = 4;

/// Is told how many bytes are fetched, of how many; by several threads.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// A directory with apt's state, its indexes read.
#[derive(Clone, Debug)]
pub struct Apt {
    directory: PathBuf,
}

/// A package that can be had, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The package.
    pub deb: Deb,
    /// Its address.
    pub uri: String,
}

/// A locked package that is not offered as it was locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Name.
    pub name: String,
    /// Version in the lock.
    pub locked: String,
    /// Version the archive has instead, if it has one.
    pub offered: Option<String>,
}

impl Apt {
    /// Reads the signed indexes of `sources` (sources.list(5), deb822) with apt into the
    /// empty directory `directory`; `preferences` are pins, apt_preferences(5).
    ///
    /// # Errors
    /// When a mirror does not answer, has no such suite, or a signature is not good.
    pub fn read(
        directory: &Path,
        sources: &[String],
        preferences: &[String],
        architecture: &str,
    ) -> Result<Self> {
        let apt = Self { directory: directory.to_owned() };
        for place in ["lists/partial", "archives/partial", "sources", "none"] {
            file::make_directory(&directory.join(place), 0o755)?;
        }
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("status", "")?;
        write("preferences", &preferences.join("\n\n"))?;
        for (number, text) in sources.iter().enumerate() {
            write(&format!("sources/{number}.sources"), text)?;
        }
        write("apt.conf", &apt.configuration(architecture)?)?;
        apt.get("update").run().hint("are these suites of that mirror, and is it reachable?")?;
        Ok(apt)
    }

    /// apt.conf(5): the host's ways to the network, and nothing else of it.
    fn configuration(&self, architecture: &str) -> Result<String> {
        let host = Invocation::of(&APT_CONFIG).args(["dump", "Acquire"]).output()?;
        let ways = ["http", "https", "ftp", "Force"].map(|way| format!("Acquire::{way}"));
        let mut text: String = host
            .lines()
            .filter(|line| ways.iter().any(|way| line.starts_with(way)))
            .map(|line| format!("{line}\n"))
            .collect();
        let at = self.directory.display();
        for (key, value) in [
            ("Dir::State", format!("{at}")),
            ("Dir::State::lists", format!("{at}/lists")),
            ("Dir::State::status", format!("{at}/status")),
            ("Dir::Cache", format!("{at}")),
            ("Dir::Cache::archives", format!("{at}/archives")),
            ("Dir::Etc::sourcelist", "/dev/null".to_owned()),
            ("Dir::Etc::sourceparts", format!("{at}/sources")),
            ("Dir::Etc::preferences", format!("{at}/preferences")),
            ("Dir::Etc::preferencesparts", format!("{at}/none")),
            ("Dir::Etc::main", "/dev/null".to_owned()),
            ("Dir::Etc::parts", format!("{at}/none")),
            ("APT::Architecture", architecture.to_owned()),
            ("APT::Architectures", architecture.to_owned()),
            ("APT::Install-Recommends", "false".to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
            ("APT::Update::Error-Mode", "any".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::Retries", "2".to_owned()),
            // What --print-uris prints is MD5 otherwise.
            ("Acquire::ForceHash", "SHA256".to_owned()),
        ] {
            text += &format!("{key} \"{value}\";\n");
        }
        Ok(text)
    }

    fn call(&self, program: Invocation) -> Invocation {
        machine::proxied(program.env("APT_CONFIG", self.directory.join("apt.conf")))
    }

    fn get(&self, verb: &str) -> Invocation {
        self.call(Invocation::of(&APT_GET)).args(["-qq", "--yes", verb])
    }

    /// The signed indexes that were read: of the archive's own suites, and then those of
    /// the profile's sources, each called `SUITE@MIRROR`.
    ///
    /// # Errors
    /// When one was not read.
    pub fn releases(&self, archive: &Archive) -> Result<Vec<InRelease>> {
        let mut releases = Vec::new();
        let mut files = BTreeSet::new();
        for (suite, mirror) in archive.suites() {
            let file = release_file(mirror, &suite);
            releases.push(self.release(suite, mirror, &file)?);
            files.insert(file);
        }
        let format = ["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Identifier: Packages"];
        let text = self.call(Invocation::of(&APT_GET)).args(format).output()?;
        for (mirror, suite) in text.lines().filter_map(|line| line.split_once(' ')) {
            let file = release_file(mirror, suite);
            // Each is named once for each of its components; what is copied is our own.
            if !mirror.starts_with("copy:") && files.insert(file.clone()) {
                let name = format!("{suite}@{}", without_password(mirror));
                releases.push(self.release(name, mirror, &file)?);
            }
        }
        Ok(releases)
    }

    fn release(&self, suite: String, mirror: &str, file: &str) -> Result<InRelease> {
        let read = |name: &str| file::read_if_there(&self.directory.join("lists").join(name));
        // A repository may have its signature in a file of its own.
        let text = match read(&format!("{file}InRelease"))? {
            None => read(&format!("{file}Release"))?,
            text => text,
        };
        let text = text.with_context(|| format!("reading the index of {suite} from {mirror}"))?;
        let date = release_date(&text).with_context(|| format!("reading the index of {suite}"))?;
        Ok(InRelease { suite, sha256: crate::hash::sha256(text.as_bytes()), date })
    }

    /// What apt would install for these packages, or files of packages, where nothing is
    /// installed yet. What lies on this machine already is not in it. `key` is where the
    /// profile names them.
    ///
    /// # Errors
    /// When they cannot be installed together: with apt's own words.
    pub fn resolve(&self, packages: &[String], key: &str) -> Result<Vec<Offer>> {
        let call = self.get("install").arg("--print-uris").args(packages);
        parse_uris(&super::resolve(&call, key, &|_| ())?)
    }

    /// Where each of these packages can be had as it was locked, and which cannot be had.
    ///
    /// # Errors
    /// When apt does not answer.
    pub fn find(&self, debs: &[&Deb]) -> Result<(Vec<Offer>, Vec<Moved>)> {
        let names: Vec<&str> = debs.iter().map(|deb| deb.name.as_str()).collect();
        let known = self.show(&names, &["--all-versions"])?;
        let is_offered = |deb: &Deb| {
            known.iter().any(|one| {
                (&one.name, &one.version, &one.sha256) == (&deb.name, &deb.version, &deb.sha256)
            })
        };
        let (there, gone): (Vec<&Deb>, Vec<&Deb>) =
            debs.iter().copied().partition(|deb| is_offered(deb));
        let moved = self.moved(&gone)?;
        if there.is_empty() {
            return Ok((Vec::new(), moved));
        }
        let exact = there.iter().map(|deb| format!("{}={}", deb.name, deb.version));
        let text = self.get("download").arg("--print-uris").args(exact).output()?;
        Ok((parse_uris(&text)?, moved))
    }

    /// Those of these packages of which the archive would install another version today.
    ///
    /// # Errors
    /// When apt does not answer.
    pub fn moved(&self, debs: &[&Deb]) -> Result<Vec<Moved>> {
        let names: Vec<&str> = debs.iter().map(|deb| deb.name.as_str()).collect();
        let candidates = self.candidates(&names)?;
        let moved = debs.iter().filter_map(|deb| {
            let offered = candidates.get(&deb.name);
            let same = offered.is_some_and(|one| one.sha256 == deb.sha256);
            (!same).then(|| Moved {
                name: deb.name.clone(),
                locked: deb.version.clone(),
                offered: offered.map(|one| one.version.clone()),
            })
        });
        Ok(moved.collect())
    }

    /// The version of each of these packages that apt would install today, by name. What
    /// the archive does not have is left out.
    ///
    /// # Errors
    /// When apt does not answer.
    pub fn candidates(&self, names: &[&str]) -> Result<BTreeMap<String, Known>> {
        let known = self.show(names, &["--no-all-versions"])?;
        Ok(known.into_iter().map(|one| (one.name.clone(), one)).collect())
    }

    fn show(&self, names: &[&str], options: &[&str]) -> Result<Vec<Known>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let call = self.call(Invocation::of(&APT_CACHE)).arg("show").args(options).args(names);
        // Its status is 100 if it knows none of them, which is an answer.
        let outcome = call.outcome()?;
        ensure!(
            outcome.status.code().is_some_and(|code| code == 0 || code == 100),
            "apt-cache: {}",
            outcome.stderr.trim()
        );
        Ok(parse_stanzas(&outcome.stdout))
    }

    /// Fetches packages into the existing directory `target`, several at once; `progress` is
    /// told how far it is. apt's downloader checks each hash.
    ///
    /// # Errors
    /// When one cannot be fetched, or is not what the indexes say.
    pub fn fetch(&self, offers: &[Offer], target: &Path, progress: Progress<'_>) -> Result<()> {
        let size = |offers: &[Offer]| offers.iter().map(|offer| offer.deb.size).sum::<u64>();
        let (all, done) = (size(offers), AtomicU64::new(0));
        progress(0, all);
        let batches: Vec<&[Offer]> = offers.chunks(BATCH).collect();
        parallel::each(&batches, DOWNLOADS, |batch| {
            let mut call = self.call(Invocation::program(APT_HELPER)).arg("download-file");
            for offer in *batch {
                call = call.arg(&offer.uri).arg(target.join(&offer.deb.file));
                call = call.arg(format!("SHA256:{}", offer.deb.sha256));
            }
            call.run().context("fetching packages").or_else(explain)?;
            let more = size(batch);
            progress(done.fetch_add(more, Ordering::Relaxed) + more, all);
            Ok(())
        })?;
        Ok(())
    }
}

/// Says how to go on when a package could not be fetched, or is not what was promised.
fn explain(error: anyhow::Error) -> Result<()> {
    let text = format!("{error:#}");
    let rest = text.split_once("Failed to fetch ").map(|(_, rest)| rest);
    let Some(uri) = rest.and_then(|rest| rest.split_whitespace().next()) else {
        return Err(error);
    };
    Err(error).hint(format!("is the mirror reachable, and the file there whole? curl --head {uri}"))
}

/// The sources and pins of an environment, for [`Apt::read`].
#[must_use]
pub fn sources_of(archive: &Archive, environment: &crate::profile::Environment) -> Vec<String> {
    let mut sources = vec![archive.sources()];
    sources.extend(environment.apt_sources.iter().cloned());
    sources
}

/// Refuses because the archive has other packages than were locked, naming each.
///
/// # Errors
/// Always, unless none has moved.
pub fn refuse_moved(moved: &[Moved], hint: &str) -> Result<()> {
    if moved.is_empty() {
        return Ok(());
    }
    let lines: String = moved
        .iter()
        .map(|one| {
            let offered = one.offered.as_deref().unwrap_or("none");
            let same = if offered == one.locked { ", with other contents" } else { "" };
            format!("\n  | {} {} is locked, {offered} is offered{same}", one.name, one.locked)
        })
        .collect();
    let count = match moved.len() {
        1 => "1 package".to_owned(),
        count => format!("{count} packages"),
    };
    refuse(format_args!("the mirror has moved on from farmctl.lock in {count}:{lines}"), hint)
}

/// A package as an index describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// SHA-256, hex.
    pub sha256: String,
}

/// Stanzas of apt-cache's `show`, deb822.
fn parse_stanzas(text: &str) -> Vec<Known> {
    let stanza = |text: &str| {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.unwrap_or_default().to_owned()
        };
        Known { name: field("Package"), version: field("Version"), sha256: field("SHA256") }
    };
    text.split("\n\n").map(stanza).filter(|known| !known.name.is_empty()).collect()
}

/// Lines of `apt-get --print-uris`: `'URI' FILE SIZE SHA256:HEX`. What is local needs no
/// fetching.
fn parse_uris(text: &str) -> Result<Vec<Offer>> {
    let mut offers = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('\'')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        // What is local has no hash.
        let [uri, file, size, ref hash @ ..] = words[..] else { bail!("apt printed {line:?}") };
        let uri = uri.trim_matches('\'');
        let Some((name, version, architecture)) = Deb::parse_file_name(file) else {
            bail!("{file:?} is not the name of a package's file")
        };
        // The profile's own packages, which lie on this machine.
        if uri.starts_with("file:") {
            continue;
        }
        let sha256 = hash
            .first()
            .and_then(|hash| hash.strip_prefix("SHA256:"))
            .with_context(|| format!("{file} has no SHA-256 in its index"))?;
        let deb = Deb {
            name,
            version,
            architecture,
            phase: Phase::Environment,
            file: file.to_owned(),
            size: size.parse().with_context(|| format!("reading the size of {file}"))?,
            sha256: sha256.to_owned(),
        };
        offers.push(Offer { deb, uri: uri.to_owned() });
    }
    Ok(offers)
}

/// The beginning of the names apt gives to the signed index of a suite, which is a path if
/// it ends with a slash (sources.list(5)).
fn release_file(mirror: &str, suite: &str) -> String {
    let mirror = mirror.trim_end_matches('/');
    if let Some(path) = suite.strip_suffix('/') {
        return format!("{}_", file_name(&format!("{mirror}/{path}")));
    }
    format!("{}_", file_name(&format!("{mirror}/dists/{suite}")))
}

/// A mirror's address without scheme, name and password.
fn without_password(mirror: &str) -> String {
    let rest = mirror.split_once(':').map_or(mirror, |(_, rest)| rest);
    let rest = rest.strip_prefix("//").unwrap_or(rest).trim_end_matches('/');
    match rest.split_once('/') {
        Some((host, path)) => {
            format!("{}/{path}", host.rsplit('@').next().unwrap_or(host))
        }
        None => rest.to_owned(),
    }
}

/// The beginning of the names apt gives to the indexes of a mirror (`URItoFileName` in
/// apt-pkg/contrib/strutl.cc).
fn file_name(mirror: &str) -> String {
    let rest = without_password(mirror);
    let mut name = String::new();
    for letter in rest.chars() {
        match letter {
            '/' => name.push('_'),
            letter if "\\|{}[]<>\"^~_=!@#$%^&*".contains(letter) => {
                name += &format!("%{:02x}", u32::from(letter));
            }
            letter => name.push(letter),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_addresses_become_packages() {
        let text = "Reading package lists...\n\
            'http://mirror.example/debian/pool/main/b/b/b_1%253a2-1%2bb1_amd64.deb' b_1%3a2-1+b1_amd64.deb 37596 SHA256:ab\n\
            'file:/srv/local_1_all.deb' local_1_all.deb 5 \n";
        let offers = parse_uris(text).expect("apt printed it");
        assert_eq!(offers.len(), 1);
        let deb = &offers[0].deb;
        assert_eq!((deb.name.as_str(), deb.version.as_str()), ("b", "1:2-1+b1"));
        assert_eq!((deb.architecture.as_str(), deb.size), ("amd64", 37596));
        assert_eq!(deb.sha256, "ab");
        let weak = "'http://mirror.example/a_1_all.deb' a_1_all.deb 1 MD5Sum:ab\n";
        let error = parse_uris(weak).expect_err("MD5 is no hash to trust");
        assert_eq!(error.to_string(), "a_1_all.deb has no SHA-256 in its index");
    }

    #[test]
    fn what_is_fetched_is_counted_up_to_all_of_it() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let target = place.path().join("target");
        fs::create_dir(&target).expect("there is room");
        fs::write(place.path().join("apt.conf"), "").expect("there is room");
        let offer = |number: usize| {
            let file = format!("p{number}_1_all.deb");
            let content = "x".repeat(number);
            fs::write(place.path().join(&file), &content).expect("there is room");
            let uri = format!("copy:{}/{file}", place.path().display());
            let sha256 = crate::hash::sha256(content.as_bytes());
            let text = format!("'{uri}' {file} {number} SHA256:{sha256}\n");
            parse_uris(&text).expect("it is as apt prints it").remove(0)
        };
        let offers: Vec<Offer> = (1..=20).map(offer).collect();
        let told = std::sync::Mutex::new(Vec::new());
        let apt = Apt { directory: place.path().to_owned() };
        apt.fetch(&offers, &target, &|done, all| {
            told.lock().expect("nobody panics with it").push((done, all));
        })
        .expect("they are all there");
        assert_eq!(fs::read_to_string(target.join("p3_1_all.deb")).expect("it is there"), "xxx");
        let mut told = told.into_inner().expect("nobody panics with it");
        assert_eq!(told[0], (0, 210));
        told.sort_unstable();
        assert_eq!((told.len(), told[3]), (4, (210, 210)));
    }

    #[test]
    fn stanzas_are_read_by_their_fields() {
        let text = "Package: a\nVersion: 1\nDescription: x\n Package: no\nSHA256: aa\n\n\
                    Package: a\nVersion: 2\nSHA256: bb\n";
        let known = parse_stanzas(text);
        assert_eq!(known.len(), 2);
        assert_eq!((known[1].version.as_str(), known[1].sha256.as_str()), ("2", "bb"));
    }

    #[test]
    fn every_package_that_moved_is_named() {
        let moved = |name: &str, offered: Option<&str>| Moved {
            name: name.to_owned(),
            locked: "1".to_owned(),
            offered: offered.map(str::to_owned),
        };
        refuse_moved(&[], "").expect("none has moved");
        let error = refuse_moved(
            &[moved("a", Some("2")), moved("b", None), moved("c", Some("1"))],
            "farmctl lock --update",
        );
        assert_eq!(
            crate::error::render(&error.expect_err("three have")),
            "error: the mirror has moved on from farmctl.lock in 3 packages:\n  \
             | a 1 is locked, 2 is offered\n  | b 1 is locked, none is offered\n  \
             | c 1 is locked, 1 is offered, with other contents\nhint: farmctl lock --update"
        );
    }

    #[test]
    fn a_mirrors_indexes_are_found_by_apts_names() {
        for (mirror, name) in [
            ("http://mirror.example/debian-security", "mirror.example_debian-security"),
            ("http://me:secret@mirror.example:3142/debian/", "mirror.example:3142_debian"),
            ("https://mirror.example/~me/a_b", "mirror.example_%7eme_a%5fb"),
            ("file:/srv/mirror", "_srv_mirror"),
        ] {
            assert_eq!(file_name(mirror), name);
        }
        for (suite, name) in [
            ("bookworm", "mirror.example_debian_dists_bookworm_"),
            ("stable/updates", "mirror.example_debian_dists_stable_updates_"),
            ("deb/", "mirror.example_debian_deb_"),
            ("./", "mirror.example_debian_._"),
        ] {
            assert_eq!(release_file("http://me:secret@mirror.example/debian/", suite), name);
        }
        let named = without_password("https://me:secret@mirror.example/debian/");
        assert_eq!(named, "mirror.example/debian");
    }
}
