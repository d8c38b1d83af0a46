//! `farmctl audit`: which Debian packages of a release have a security update.

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::debian::apt::Apt;
use crate::debian::{self, Archive};
use crate::error::{Exit, refuse};
use crate::locked;
use crate::manifest::Package;
use crate::run;
use crate::storage;
use crate::ui;
use crate::undo;

/// Name the Debian packages of a release with a newer version in the security suite
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl audit hello_1.0.0_amd64.tar.xz
  farmctl audit hello --json

Exits 3 when there are any. The suite's index is read from the mirror that the profile or this \
machine's apt sources name.")]
pub struct Args {
    /// A node tarball, an installed application, or one release of it: NAME=VERSION
    what: String,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What an audit found.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Printed {
    /// Name.
    name: String,
    /// Version.
    version: String,
    /// The suite that was read.
    suite: String,
    /// Packages with a newer version there.
    packages: Vec<Outdated>,
}

/// A package with a newer version.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct Outdated {
    /// Name.
    name: String,
    /// Version in the tarball or release.
    installed: String,
    /// Version in the security suite.
    offered: String,
}

/// Carries the verb out.
///
/// # Errors
/// When there is no such release, or the suite cannot be read.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    run::require(&debian::TOOLS)?;
    let manifest = super::read_release(&args.what, context)?.manifest;
    let archive = Archive::of(&manifest.profile.environment)?;
    let Some((suite, source)) = archive.security_source() else {
        return refuse(
            format_args!("no mirror of security updates for {} is known", archive.suite),
            "set environment.security-mirror in the profile, or give this machine's apt sources one",
        );
    };
    let packages = undo::attempt(&node, "audit", &manifest.name, |transaction| {
        let work = locked::work(node.layout(), transaction)?;
        let apt = Apt::read(&work.join("apt"), &[source], &[], &manifest.architecture)
            .with_context(|| format!("reading the index of {suite}"))?;
        let names: Vec<&str> =
            manifest.inputs.packages.iter().map(|package| package.name.as_str()).collect();
        let offered = apt.candidates(&names)?;
        storage::remove_tree(&work)?;
        outdated(&manifest.inputs.packages, |name| {
            offered.get(name).map(|known| known.version.as_str())
        })
    })
    .with_context(|| format!("auditing {} {}", manifest.name, manifest.version))?;
    let exit = if packages.is_empty() { Exit::Done } else { Exit::NotRight };
    let title = format!("{} {}", manifest.name, manifest.version);
    if args.json {
        let (name, version) = (manifest.name, manifest.version);
        context.ui.json(&Printed { name, version, suite, packages });
    } else if packages.is_empty() {
        context.ui.done(format!(
            "{title}: no package of {} has a newer version in {suite}",
            manifest.inputs.packages.len()
        ));
    } else {
        let row =
            |one: &Outdated| vec![one.name.clone(), format!("{} → {}", one.installed, one.offered)];
        let rows: Vec<Vec<String>> = packages.iter().map(row).collect();
        context.ui.answer(ui::folded(&rows, context.ui.width()));
        let count = packages.len();
        let has =
            if count == 1 { "package has a newer version" } else { "packages have newer versions" };
        context.ui.warn(format!("{title}: {count} {has} in {suite}"));
    }
    Ok(exit)
}

/// Those of which something newer is offered.
fn outdated<'a>(
    packages: &[Package],
    offered: impl Fn(&str) -> Option<&'a str>,
) -> Result<Vec<Outdated>> {
    let mut found = Vec::new();
    for Package { name, version, .. } in packages {
        run::check_interrupted()?;
        let Some(newer) = offered(name).filter(|offered| offered != version) else { continue };
        // Only the few that are not the same are worth a process.
        if debian::is_older(version, newer)? {
            let (installed, offered) = (version.clone(), newer.to_owned());
            found.push(Outdated { name: name.clone(), installed, offered });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_newer_by_dpkgs_order_is_an_update() {
        let package = |name: &str, version: &str| Package {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "amd64".to_owned(),
        };
        let packages =
            [package("a", "1.9"), package("b", "2"), package("c", "1:1"), package("d", "1~rc1")];
        let offered = |name: &str| match name {
            "a" => Some("1.10"),
            "b" => Some("2"),
            "c" => Some("9"),
            _ => Some("1"),
        };
        let found = outdated(&packages, offered).expect("they are versions");
        let names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["a", "d"]);
        assert_eq!((found[0].installed.as_str(), found[0].offered.as_str()), ("1.9", "1.10"));
    }
}
