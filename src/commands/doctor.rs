//! `farmctl doctor`: is this machine fit, and what to do if not.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Context, gc, incoming, tend};
use crate::error::{self, Exit};
use crate::layout;
use crate::machine;
use crate::node::{self, Node};
use crate::release::{App, EnvironmentRecord, Release};
use crate::run::{self, Tool};
use crate::serve::Served;
use crate::storage::{self, Mark};
use crate::supervise::{self, Supervise};
use crate::undo;
use crate::{account, chroot, debian, front, schroot, ui};

/// Room below which a warning is given, in bytes: a bootstrap and a bake of a small
/// application take about this much.
const ROOM: u64 = 2 << 30;

/// Check whether this machine has what farmctl needs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl doctor
  farmctl doctor --fix

--fix installs Debian packages, reads apt's indexes, takes the administrator's certificates into \
the host's, makes secrets root's alone, writes files of farmctl again, brings back what should \
run, and removes what unfinished work left.

Exits 3 when something is not right; each line says what to do.")]
pub struct Args {
    /// Install and repair what can safely be
    #[arg(long)]
    fix: bool,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What `--fix` does about something, in the order in which it does it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Remedy {
    UpdateIndexes,
    Install(Vec<&'static str>),
    UpdateCertificates,
    Protect(PathBuf),
    Collect,
    Register { app: String, version: String },
    KeepTending,
    Tend,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpdateIndexes => f.write_str("read the indexes of apt's sources"),
            Self::Install(packages) => write!(f, "install {}", packages.join(" ")),
            Self::UpdateCertificates => f.write_str("take the local certificates into the host's"),
            Self::Protect(path) => write!(f, "make {} root's alone", path.display()),
            Self::Collect => f.write_str("remove what unfinished work left"),
            Self::Register { app, version } => {
                write!(f, "register {} with schroot", layout::release_chroot(app, version))
            }
            Self::KeepTending => f.write_str("write and enable the units that tend"),
            Self::Tend => f.write_str("bring back what should run"),
        }
    }
}

impl Serialize for Remedy {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One thing looked at.
#[derive(Serialize, JsonSchema)]
pub(super) struct Finding {
    /// The part of the machine.
    what: String,
    /// Whether nothing need be done.
    good: bool,
    /// What is there; or what is wrong, and what to do.
    detail: String,
    /// What `--fix` does about it, in words.
    #[schemars(with = "Vec<String>")]
    fix: Vec<Remedy>,
}

impl Finding {
    fn good(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), good: true, detail: detail.into(), fix: Vec::new() }
    }

    fn bad(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), good: false, detail: detail.into(), fix: Vec::new() }
    }

    fn of(what: impl Into<String>, looked: Result<String>) -> Self {
        match looked {
            Ok(detail) => Self::good(what, detail),
            Err(error) => Self::bad(what, explained(&error)),
        }
    }

    fn fix(mut self, remedy: Remedy) -> Self {
        if !self.good {
            self.fix.push(remedy);
        }
        self
    }
}

/// What is wrong, and what to do about it, in one line.
fn explained(error: &anyhow::Error) -> String {
    let hint = error::hint_of(error).map_or(String::new(), |hint| format!(": {hint}"));
    format!("{}{hint}", error::message(error))
}

/// Carries the verb out.
///
/// # Errors
/// When not root, or the node's files are damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let mut findings = examine(&context.node()?)?;
    let mut failed = false;
    if args.fix {
        let mut tried = BTreeSet::new();
        // A remedy may bring to light what another one is for, and is tried once.
        while let Some(remedy) = next(&findings, &tried) {
            context.ui.step(remedy.to_string());
            if let Err(error) = apply(&remedy, context) {
                run::check_interrupted()?;
                context.ui.error(&error::render(&error));
                failed = true;
            }
            tried.insert(remedy);
            findings = examine(&context.node()?)?;
        }
    }
    report(args, &findings, context);
    let sound = findings.iter().all(|finding| finding.good);
    Ok(match (failed, sound) {
        (true, _) => Exit::Failed,
        (false, false) => Exit::NotRight,
        (false, true) => Exit::Done,
    })
}

fn next(findings: &[Finding], tried: &BTreeSet<Remedy>) -> Option<Remedy> {
    let remedies = findings.iter().flat_map(|finding| &finding.fix);
    remedies.filter(|remedy| !tried.contains(remedy)).min().cloned()
}

fn apply(remedy: &Remedy, context: &Context) -> Result<()> {
    let node = context.node()?;
    match remedy {
        Remedy::UpdateIndexes => machine::update_indexes(),
        Remedy::Install(packages) => machine::install(packages),
        Remedy::UpdateCertificates => machine::update_certificates(),
        Remedy::Protect(path) => protect(path),
        Remedy::Collect => gc::finish_abandoned(&node, context),
        Remedy::Register { app, version } => register(&node, app, version),
        Remedy::KeepTending => supervise::keep_tending(node.layout()),
        // It says itself what it cannot bring back, and the next look says it again.
        Remedy::Tend => tend::bring_all_back(&node, context).map(drop),
    }
}

fn report(args: &Args, findings: &[Finding], context: &Context) {
    if args.json {
        context.ui.json(&findings);
        return;
    }
    let mark = |finding: &Finding| if finding.good { "good" } else { "bad" }.to_owned();
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| vec![mark(finding), finding.what.clone(), finding.detail.clone()])
        .collect();
    context.ui.answer(ui::folded(&rows, context.ui.width()));
    if !args.fix {
        let remedies: BTreeSet<&Remedy> = findings.iter().flat_map(|it| &it.fix).collect();
        for remedy in remedies {
            context.ui.step(format!("farmctl doctor --fix would {remedy}"));
        }
    }
}

/// Looks at everything, and changes nothing.
fn examine(node: &Node) -> Result<Vec<Finding>> {
    let supervisor = supervise::detect(node.layout());
    let mut findings = vec![
        tools("bootstrap and bake", debian::TOOLS.iter().chain(&chroot::TOOLS))?,
        tools("sessions", schroot::TOOLS.iter().chain(&account::TOOLS))?,
        tools("processes", supervisor.tools().iter())?,
        tools("front", front::TOOLS.iter())?,
        keyring(),
        kernel(),
        clock()?,
        mirror(),
        certificates()?,
    ];
    // Missing programs are named already.
    let there = |tools: &[&Tool]| tools.iter().all(|tool| tool.path().is_some());
    if there(supervisor.tools()) {
        let looked = supervisor.check().map(|()| supervisor.describe());
        findings.push(Finding::of("supervisor", looked).fix(Remedy::KeepTending).fix(Remedy::Tend));
    }
    findings.extend(room(node));
    if there(&schroot::TOOLS) {
        let looked = schroot::check().map(|()| "its configuration can be read".to_owned());
        findings.push(Finding::of("schroot", looked));
    }
    findings.push(if schroot::is_guarded()? {
        Finding::good("guards", "in schroot's setup.d, as far as needed")
    } else {
        Finding::bad("guards", "schroot's setup.d lacks them: farmctl tend").fix(Remedy::Tend)
    });
    if there(&front::TOOLS) {
        let looked = front::check().map(|()| "its configuration is valid".to_owned());
        findings.push(Finding::of("nginx", looked));
    }
    findings.push(secrets(node)?);
    findings.push(leftovers(node)?);
    let held = match Held::look(node) {
        Ok(held) => held,
        Err(error) => {
            findings.push(Finding::bad("volumes", explained(&error)));
            return Ok(findings);
        }
    };
    for environment in node.environments()? {
        findings.push(environment_finding(&environment, node, &held)?);
    }
    for app in node.apps()? {
        findings.push(application(&app, node, &held, supervisor.as_ref()));
    }
    Ok(findings)
}

/// Programs of the host, told by their packages and versions.
fn tools<'a>(what: &'static str, tools: impl Iterator<Item = &'a &'a Tool>) -> Result<Finding> {
    let (there, missing): (Vec<&Tool>, Vec<&Tool>) =
        tools.copied().partition(|tool| tool.path().is_some());
    if missing.is_empty() {
        return Ok(Finding::good(what, machine::versions(&packages(&there))?.join(", ")));
    }
    let names: Vec<&str> = missing.iter().map(|tool| tool.name).collect();
    let packages = packages(&missing);
    let install = packages.join(" ");
    Ok(Finding::bad(what, format!("missing {}: apt-get install {install}", names.join(", ")))
        .fix(Remedy::Install(packages)))
}

/// The packages of programs, each once.
fn packages(tools: &[&Tool]) -> Vec<&'static str> {
    let packages: BTreeSet<&str> = tools.iter().map(|tool| tool.package).collect();
    packages.into_iter().collect()
}

fn keyring() -> Finding {
    const PACKAGE: &str = "debian-archive-keyring";
    if Path::new(debian::KEYRING).exists() {
        return Finding::good("keyring", debian::KEYRING);
    }
    Finding::bad("keyring", format!("missing: apt-get install {PACKAGE}"))
        .fix(Remedy::Install(vec![PACKAGE]))
}

/// What storage is possible; whether the one that is taken is, the storage says itself.
fn kernel() -> Finding {
    let said = machine::kernel().map(|kernel| {
        let lacks = match kernel.lacks.as_slice() {
            [] => String::new(),
            lacks => format!("; without {}", lacks.join(", ")),
        };
        format!("{} with {}{lacks}", kernel.release, kernel.has.join(", "))
    });
    Finding::of("kernel", said)
}

/// A clock that is slow has signatures and certificates refused as not valid yet.
fn clock() -> Result<Finding> {
    let now = node::now();
    let Some(newest) = debian::newest_index()?.filter(|newest| *newest > now) else {
        return Ok(Finding::good("clock", ui::moment(now)));
    };
    let (now, newest) = (ui::moment(now), ui::moment(newest));
    Ok(Finding::bad(
        "clock",
        format!("{now}, but an index of apt was made {newest}: set it, see timedatectl(1)"),
    ))
}

/// Where bootstrap goes if the profile does not say.
fn mirror() -> Finding {
    let hint = "apt-get update, or set environment.mirror in profiles";
    match debian::host_mirror() {
        Ok(Some(mirror)) => Finding::good("mirror", mirror),
        Ok(None) => Finding::bad("mirror", format!("apt has no index of this release: {hint}"))
            .fix(Remedy::UpdateIndexes),
        Err(error) => Finding::bad("mirror", explained(&error)),
    }
}

/// What a bake borrows to get at package indexes.
fn certificates() -> Result<Finding> {
    const PACKAGE: &str = "ca-certificates";
    let Some(found) = machine::certificates()? else {
        let detail = format!("{} is missing: apt-get install {PACKAGE}", machine::CERTIFICATES);
        return Ok(Finding::bad("certificates", detail).fix(Remedy::Install(vec![PACKAGE])));
    };
    if let Some(first) = found.forgotten.first() {
        let detail = format!("{} is not in the host's: update-ca-certificates", first.display());
        return Ok(Finding::bad("certificates", detail).fix(Remedy::UpdateCertificates));
    }
    let proxies: Vec<&str> = machine::proxies().map(|(name, _)| name).collect();
    let proxies = match proxies.as_slice() {
        [] => "no proxy is set".to_owned(),
        names => names.join(", "),
    };
    Ok(Finding::good("certificates", format!("{} trusted; {proxies}", found.count)))
}

fn room(node: &Node) -> Vec<Finding> {
    let choice = match storage::choose(None, &node.site()) {
        Ok(choice) => choice,
        Err(error) => return vec![Finding::bad("storage", explained(&error))],
    };
    let storage = &choice.storage;
    let mut findings = vec![Finding::of("storage", storage.check().map(|()| choice.to_string()))];
    findings.push(match storage.usage() {
        Ok(usage) => {
            let room = format!("{} free of {}", ui::size(usage.free), ui::size(usage.total));
            if usage.free < ROOM {
                Finding::bad("space", format!("only {room}: farmctl gc --stages, or a larger disk"))
            } else {
                Finding::good("space", room)
            }
        }
        Err(error) => Finding::bad("space", explained(&error)),
    });
    findings
}

/// Files that must be root's alone: secrets, and the key this machine signs with.
fn secrets(node: &Node) -> Result<Finding> {
    let mut paths = vec![node.layout().signing_key()];
    paths.extend(node.apps()?.iter().map(|app| node.layout().secrets(&app.name)));
    let mut finding = Finding::good("secrets", "root's alone");
    for path in paths {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.uid() != 0 || metadata.mode() & 0o077 != 0 {
            let detail = format!("{} can be read by others: chmod 600", path.display());
            finding.fix.push(Remedy::Protect(path));
            finding = Finding { good: false, detail, ..finding };
        }
    }
    Ok(finding)
}

fn protect(path: &Path) -> Result<()> {
    let protect = || -> Result<()> {
        std::os::unix::fs::chown(path, Some(0), Some(0))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    };
    protect().with_context(|| format!("changing the mode of {}", path.display()))
}

fn leftovers(node: &Node) -> Result<Finding> {
    let abandoned = node.abandoned()?;
    let kept = abandoned.iter().filter(|transaction| transaction.is_kept()).count();
    let detail = match (abandoned.len() - kept, undo::unpublished(node)?.len()) {
        (0, 0) if kept > 0 => {
            let detail = format!("{} for a look: farmctl gc removes it", ui::count(kept, "bake"));
            return Ok(Finding::good("leftovers", detail));
        }
        (0, 0) => return Ok(Finding::good("leftovers", "none")),
        (0, files) => ui::count(files, "unpublished file"),
        (abandoned, _) => ui::count(abandoned, "unfinished transaction"),
    };
    Ok(Finding::bad("leftovers", format!("{detail}: farmctl gc")).fix(Remedy::Collect))
}

/// Volumes that are there, with the names of their backends.
struct Held(BTreeSet<(String, String)>);

impl Held {
    fn look(node: &Node) -> Result<Self> {
        let mut held = BTreeSet::new();
        for all in storage::holdings(&node.site())? {
            let named = all.volumes.into_iter().map(|it| (all.storage.to_owned(), it.name));
            held.extend(named);
        }
        Ok(Self(held))
    }

    /// Says that a volume is gone, if it is.
    fn trouble(&self, storage: &str, volume: &str) -> Option<String> {
        let there = self.0.contains(&(storage.to_owned(), volume.to_owned()));
        (!there).then(|| format!("volume {volume} is not on {storage}"))
    }
}

fn environment_finding(
    environment: &EnvironmentRecord,
    node: &Node,
    held: &Held,
) -> Result<Finding> {
    let what = format!("environment {}", environment.name);
    let chroot = layout::environment_chroot(&environment.name);
    let ours = |it: &schroot::Registered| it.name == chroot && Some(it.node.as_str()) == node.id();
    let volumes =
        [&environment.volume].into_iter().chain(environment.kept.iter().map(|kept| &kept.volume));
    let mut troubles: Vec<String> =
        volumes.filter_map(|volume| held.trouble(&environment.storage, volume)).collect();
    if !schroot::registered()?.iter().any(ours) {
        troubles.push(format!("schroot does not know {chroot}"));
    }
    if troubles.is_empty() {
        return Ok(Finding::good(what, environment.suite.clone()));
    }
    let again = format!("farmctl remove --environment {}, then bootstrap", environment.name);
    Ok(Finding::bad(what, format!("{}: {again}", troubles.join("; "))))
}

/// Whether an application's releases can be begun, and runs what should run.
fn application(app: &App, node: &Node, held: &Held, supervisor: &dyn Supervise) -> Finding {
    let what = format!("application {}", app.name);
    let mut troubles = Vec::new();
    let mut fix = Vec::new();
    for release in &app.releases {
        if let Some(trouble) = held.trouble(&release.storage, &release.volume) {
            let again = super::reinstall(app, &release.version);
            troubles.push(format!("{trouble}: {again}"));
            continue;
        }
        let chroot = layout::release_chroot(&app.name, &release.version);
        match wanted(node, app, release).and_then(|wanted| schroot::is_registered(&wanted)) {
            Ok(true) => {}
            Ok(false) => {
                troubles.push(format!("the files that tell schroot of {chroot} were changed"));
                let (app, version) = (app.name.clone(), release.version.clone());
                fix.push(Remedy::Register { app, version });
            }
            Err(error) => troubles.push(explained(&error)),
        }
    }
    let state = match &app.session {
        None => "stopped".to_owned(),
        Some(session) => {
            let found = super::manifest_of(node, app, &session.version).and_then(|manifest| {
                troubles.extend(front::certificate_trouble(node.layout(), &manifest)?);
                Served { app, session, manifest: &manifest, node, supervisor }.troubles()
            });
            match found {
                Ok(found) if found.is_empty() => {}
                Ok(found) => {
                    troubles.extend(found);
                    fix.push(Remedy::Tend);
                }
                Err(error) => troubles.push(explained(&error)),
            }
            format!("{} is started", session.version)
        }
    };
    if troubles.is_empty() {
        return Finding::good(what, state);
    }
    let hint = if fix.is_empty() { "" } else { ": farmctl doctor --fix" };
    Finding { fix, ..Finding::bad(what, format!("{}{hint}", troubles.join("; "))) }
}

/// A release's chroot as schroot is to know it.
fn wanted(node: &Node, app: &App, release: &Release) -> Result<schroot::Definition> {
    let manifest = super::manifest_of(node, app, &release.version)?;
    let storage = storage::named(&release.storage, &node.site())?;
    let mark = Mark { node: node.id().unwrap_or_default().to_owned(), transaction: String::new() };
    incoming::definition(&manifest, storage.as_ref(), &release.volume, node, &mark)
}

/// Tells schroot again of a release.
fn register(node: &Node, app: &str, version: &str) -> Result<()> {
    let _lock = super::lock(node, app, "doctor")?;
    let app = node.installed(app)?;
    // Retired meanwhile, perhaps.
    let Some(release) = app.release(version) else { return Ok(()) };
    let transaction = node.begin("doctor", &app.name)?;
    let wanted = wanted(node, &app, release)?;
    let registered = schroot::register(&schroot::Definition {
        transaction: transaction.id().to_owned(),
        ..wanted
    });
    transaction.close()?;
    registered
}
