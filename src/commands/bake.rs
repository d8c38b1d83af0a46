//! `farmctl bake`: an environment and a project become one node tarball.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{Context, SigningKey};
use crate::debian::{self, Ownership};
use crate::error::{Exit, Mark as _, refuse};
use crate::file;
use crate::layout::START_SCRIPT;
use crate::manifest::{self, Hashed, Inputs, Manifest, Owner, Payload};
use crate::mount;
use crate::node::{Node, Object, Transaction};
use crate::plan::Plan;
use crate::profile::{Profile, When};
use crate::python::{self, Choice};
use crate::release::EnvironmentRecord;
use crate::run;
use crate::signature::{SecretKey, Signature};
use crate::source::{self, Source};
use crate::stage::{self, Stage};
use crate::start_script;
use crate::storage::{self, Storage};
use crate::tarball::{self, Archive};
use crate::template;
use crate::ui;
use crate::undo;

/// Build a project into its environment and pack both as one node tarball
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl bake profiles/hello --output /srv/tarballs\n  farmctl bake profiles/hello --set-version 1.0.1 --serial 17 --sign"
)]
pub struct Args {
    /// The profile: its file, or a directory with a profile.toml
    profile: PathBuf,
    /// Directory the tarball is written to
    #[arg(long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Bake as this version instead of the profile's
    #[arg(long, value_name = "VERSION")]
    set_version: Option<String>,
    /// Number that only rises from release to release: nodes refuse to go back
    #[arg(long, value_name = "N")]
    serial: Option<u64>,
    /// Last day on which it may be installed: 2027-01-31
    #[arg(long, value_name = "DATE", value_parser = parse_expires)]
    expires: Option<String>,
    /// Sign it with this machine's key, or the one of --key
    #[arg(long)]
    sign: bool,
    #[command(flatten)]
    key: SigningKey,
    /// Bake again although a tarball of the same inputs is there
    #[arg(long)]
    fresh: bool,
    /// Show what would be done, with the exact commands, and stop
    #[arg(long)]
    dry_run: bool,
}

/// What `--expires` takes.
fn parse_expires(text: &str) -> Result<String, String> {
    manifest::parse_expiry(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

struct Baking {
    /// The key to sign with, if it is to be signed.
    key: Option<SecretKey>,
    serial: Option<u64>,
    expires: Option<String>,
    source: Source,
    environment: EnvironmentRecord,
    storage: Box<dyn Storage>,
    choice: Option<Choice>,
    out: PathBuf,
}

/// Carries the verb out; prints the tarball's path.
///
/// # Errors
/// When a step of the build fails; nothing of it is left then.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    run::require(&crate::chroot::TOOLS)?;
    let baking = prepare(args, &node, context)?;
    let profile = &baking.source.profile;
    let what = format!("{} {}", profile.name, profile.version);
    if !args.fresh && is_baked(&baking)? {
        sign_baked(&baking, &node, context)?;
        context.ui.already(format!("{what} is baked already, from the same inputs"));
        context.ui.answer(baking.out.display().to_string());
        return Ok(Exit::Done);
    }
    if args.dry_run {
        context.show_plan(&plan(&baking)?);
        return Ok(Exit::Done);
    }
    let _lock = node.lock(&format!("env-{}", profile.name), "bake")?;
    mount::private_namespace()?;
    let packed = undo::attempt(&node, "bake", &profile.name, |transaction| {
        bake(&baking, &node, context, transaction)
    })
    .with_context(|| format!("baking {what}"))?;
    context.ui.done(format!(
        "baked {what}: {} of {}, sha256 {}",
        ui::size(packed.size),
        ui::size(packed.manifest.payload.content),
        &packed.identity[..12]
    ));
    context.ui.answer(baking.out.display().to_string());
    Ok(Exit::Done)
}

fn prepare(args: &Args, node: &Node, context: &Context) -> Result<Baking> {
    let mut source = Source::read(&args.profile)?;
    if let Some(version) = &args.set_version {
        source.profile.set_version(version)?;
    }
    let wanted = args.sign || args.key.key.is_some();
    let key = if wanted { Some(args.key.load(context)?) } else { None };
    let environment = stage::environment(node, &source)?;
    let storage = storage::named(&environment.storage, &node.site())?;
    let choice = match &source.profile.python {
        Some(python) => Some(python::choose(
            python.installer,
            &node.layout().tools(),
            &environment.architecture,
        )?),
        None => None,
    };
    let directory = args
        .output
        .canonicalize()
        .with_context(|| format!("finding the output directory {}", args.output.display()))
        .hint_with(|| format!("mkdir -p {}", args.output.display()))?;
    let profile = &source.profile;
    let name = format!("{}_{}_{}.tar.xz", profile.name, profile.version, environment.architecture);
    let (serial, expires) = (args.serial, args.expires.clone());
    Ok(Baking {
        key,
        serial,
        expires,
        source,
        environment,
        storage,
        choice,
        out: directory.join(name),
    })
}

/// Whether the tarball is there and was made from the same inputs. What cannot be read
/// is baked again.
fn is_baked(baking: &Baking) -> Result<bool> {
    let Ok(archive) = Archive::open(&baking.out) else { return Ok(false) };
    let known = archive.manifest();
    let lock = baking.source.lock.as_ref().map_or("", |(_, sha256)| sha256);
    Ok(known.farmctl == env!("CARGO_PKG_VERSION")
        && known.profile == baking.source.profile
        && (known.serial, &known.expires) == (baking.serial, &baking.expires)
        && known.inputs.releases == baking.environment.releases
        && known.inputs.lock_sha256 == lock
        && known.inputs.project_sha256 == baking.source.project_hash()?)
}

/// Signs what is baked already, unless it is by this key.
fn sign_baked(baking: &Baking, node: &Node, context: &Context) -> Result<()> {
    let Some(key) = &baking.key else { return Ok(()) };
    let archive = super::open_archive(&baking.out)?;
    let signature = archive.signature().and_then(|text| Signature::parse(text).ok());
    if signature.is_some_and(|one| key.public().verifies(archive.manifest_bytes(), &one)) {
        return Ok(());
    }
    undo::attempt(node, "bake", &baking.source.profile.name, |transaction| {
        let part = baking.out.with_extension("xz.part");
        transaction.intend(Object::Path { path: part.clone() })?;
        super::write_signed(&archive, key, &part)?;
        publish(&part, &baking.out)
    })?;
    context.ui.step(format!("signed with {}", key.public().id()));
    Ok(())
}

fn publish(part: &Path, out: &Path) -> Result<()> {
    fs::rename(part, out).with_context(|| format!("publishing {}", out.display()))?;
    file::sync_directory(out.parent().unwrap_or(Path::new("/")))
}

fn plan(baking: &Baking) -> Result<Plan> {
    let profile = &baking.source.profile;
    let tree = Path::new("TREE");
    let inside = |program: &str| crate::chroot::invocation(tree, baking.environment.epoch, program);
    let mut plan = Plan::new(format!("bake {} {}", profile.name, profile.version));
    plan.commands(
        format!("fork volume {}", baking.environment.volume),
        baking.storage.describe_fork(&baking.environment.volume, "fv-stage-…")?,
    );
    plan.step(format!("copy the project {} in", baking.source.directory.display()));
    let packages = stage::build_packages(profile, baking.choice.as_ref());
    if !packages.is_empty() {
        let install = inside("apt-get").arg("install").args(&packages).display();
        plan.commands("install the build packages", vec![install]);
    }
    if !profile.build.before.is_empty() {
        plan.commands("run the steps of build.before", profile.build.before.clone());
    }
    if let (Some(python), Some(choice)) = (&profile.python, &baking.choice) {
        let with = match choice {
            Choice::Pip => "pip",
            Choice::Uv(_) | Choice::FetchUv => "uv",
        };
        let venv = inside(&python.interpreter)
            .args(["-m", "venv", "--without-pip"])
            .arg(profile.virtualenv());
        plan.commands("make the virtualenv", vec![venv.display()]);
        if let Some(file) = &python.requirements {
            plan.step(format!("install {} with {with}, by hash", file.display()));
        }
        if let Some(project) = &python.project {
            plan.step(format!("install the project {project} with {with}"));
        }
    }
    for copied in &profile.copies {
        plan.step(format!("copy {} to {}", copied.from.display(), copied.to.display()));
    }
    for rendered in &profile.files {
        plan.step(format!("render {}", rendered.path.display()));
    }
    plan.step(format!("write the start script {START_SCRIPT}"));
    for job in profile.jobs.iter().filter(|job| job.when == When::Bake) {
        plan.commands(format!("run the job {}", job.name), vec![job.command.clone()]);
    }
    plan.step("purge the build packages, clean up");
    plan.step(format!("pack {}", baking.out.display()));
    if let Some(key) = &baking.key {
        plan.step(format!("sign it with {}", key.public().id()));
    }
    Ok(plan)
}

fn bake(
    baking: &Baking,
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<tarball::Packed> {
    let ui = &context.ui;
    let profile = &baking.source.profile;
    ui.step(format!("forking volume {}", baking.environment.volume));
    let storage = baking.storage.as_ref();
    let mut stage =
        Stage::open(storage, &baking.environment, &baking.source, node.layout(), transaction)?;
    let packages = stage::build_packages(profile, baking.choice.as_ref());
    if !packages.is_empty() {
        ui.step(format!("installing build packages: {}", packages.join(", ")));
        stage.install_build_packages(&packages)?;
    }
    for command in &profile.build.before {
        ui.step(command);
        stage.run_step(command)?;
    }
    install_python(baking, &mut stage, node, context, transaction)?;
    install_files(baking, &stage, context)?;
    run_jobs(profile, &stage, context)?;
    ui.step("purging build packages, cleaning up");
    stage.purge_build_packages()?;
    let packages = debian::installed_packages(&stage.chroot)?;
    let Stage { chroot, tree, project_sha256, volume, .. } = stage;
    chroot.leave()?;
    debian::clean(tree.path())?;

    let draft = draft(baking, tree.path(), packages, project_sha256)?;
    let packed = pack(baking, tree.path(), draft, context, transaction)?;
    tree.close()?;
    storage.remove(&volume)?;
    Ok(packed)
}

fn install_python(
    baking: &Baking,
    stage: &mut Stage,
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<()> {
    let profile = &baking.source.profile;
    let (Some(python), Some(choice)) = (&profile.python, &baking.choice) else { return Ok(()) };
    let ui = &context.ui;
    let virtualenv = profile.virtualenv();
    ui.step(format!("making the virtualenv {}", virtualenv.display()));
    let installer = stage::make_virtualenv(stage, python, &virtualenv, choice, node.layout())?;
    if let Some((file, text)) = stage.requirements(python)? {
        let hashed = stage::hashed_requirements(&baking.source, python, &text)?;
        ui.step(format!("installing the requirements with {}", installer.name()));
        if let Some(requirements) = &hashed {
            let path = stage.chroot.outside(&file);
            fs::write(&path, requirements)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        let call =
            installer.install_requirements(&stage.chroot, &virtualenv, &file, hashed.is_some());
        let spinner = ui.spinner(installer.name());
        python::explain(call.run_lines(|line| spinner.show(line)))
            .context("installing the requirements")?;
    }
    if let Some(project) = &python.project {
        ui.step(format!("installing the project {project}"));
        let path = fetch_project(project, baking, stage, node, transaction)?;
        let call = installer.install_project(&stage.chroot, &virtualenv, &path);
        python::explain(call.run()).context("installing the project")?;
    }
    python::normalise(&stage.chroot, &virtualenv)
}

/// The project's path inside: in its copied files, or a pinned commit lent from the host.
fn fetch_project(
    project: &str,
    baking: &Baking,
    stage: &mut Stage,
    node: &Node,
    transaction: &mut Transaction,
) -> Result<String> {
    let Some(url) = project.strip_prefix("git+") else {
        let path = Path::new(python::PROJECT).join(project);
        let outside = stage.chroot.outside(&path);
        let installable = outside.is_file()
            || ["pyproject.toml", "setup.py", "setup.cfg"]
                .iter()
                .any(|name| outside.join(name).is_file());
        if !installable {
            return refuse(
                format_args!(
                    "{project} is neither a wheel, an sdist, nor a directory with a pyproject.toml or setup.py"
                ),
                "use [[copy]] for files that are no Python distribution",
            );
        }
        return Ok(path.to_string_lossy().into_owned());
    };
    let (url, commit) = url.rsplit_once('@').unwrap_or((url, ""));
    let work = node.layout().work(transaction.id());
    transaction.intend(Object::Path { path: work.clone() })?;
    file::make_directory(&work, 0o700)?;
    let checkout = work.join("checkout");
    crate::git::checkout(url, commit, &checkout).with_context(|| format!("fetching {project}"))?;
    let target = stage.chroot.outside(format!("{}/checkout", crate::chroot::BORROWED));
    source::copy_as_is(&checkout, &target, baking.environment.epoch)?;
    storage::remove_tree(&work)?;
    Ok(format!("{}/checkout", crate::chroot::BORROWED))
}

/// Copies, renders, and writes the start script.
fn install_files(baking: &Baking, stage: &Stage, context: &Context) -> Result<()> {
    let profile = &baking.source.profile;
    let epoch = baking.environment.epoch;
    for copied in &profile.copies {
        context.ui.step(format!("copying {} to {}", copied.from.display(), copied.to.display()));
        let from = stage.chroot.outside(Path::new(python::PROJECT).join(&copied.from));
        if !from.exists() {
            return refuse(
                format_args!("there is no {} beside the profile", copied.from.display()),
                "copy.from is relative to the profile; build.before may make it",
            );
        }
        source::copy_as_is(&from, &stage.chroot.outside(&copied.to), epoch)?;
    }
    let values = template::Values::of(profile);
    for rendered in &profile.files {
        let text = template::render(rendered.content.as_deref().unwrap_or_default(), &values)
            .with_context(|| format!("rendering {}", rendered.path.display()))?;
        write_inside(stage, &rendered.path, text.as_bytes(), rendered.permissions())?;
    }
    for data in &profile.data {
        file::make_directory(&stage.chroot.outside(&data.path), 0o755)?;
    }
    write_inside(stage, Path::new(START_SCRIPT), start_script::render(profile)?.as_bytes(), 0o755)?;
    let compiled = stage::compiled_paths(profile);
    if !compiled.is_empty() {
        let interpreter = profile.python.as_ref().map_or("python3", |python| &python.interpreter);
        python::compile(&stage.chroot, interpreter, &compiled)?;
    }
    Ok(())
}

fn write_inside(stage: &Stage, path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let outside = stage.chroot.outside(path);
    if let Some(parent) = outside.parent() {
        file::make_directory(parent, 0o755)?;
    }
    file::publish(&outside, contents, mode)
}

fn run_jobs(profile: &Profile, stage: &Stage, context: &Context) -> Result<()> {
    for job in profile.jobs.iter().filter(|job| job.when == When::Bake) {
        if job.creates.as_ref().is_some_and(|path| stage.chroot.outside(path).exists()) {
            continue;
        }
        context.ui.step(format!("running the job {}", job.name));
        stage
            .chroot
            .call(START_SCRIPT)
            .args(["job", &job.name])
            .named(format!("job {}", job.name))
            .run()
            .hint_with(|| format!("its command is: {}", job.command))?;
    }
    Ok(())
}

/// The manifest as far as it is known before packing.
fn draft(
    baking: &Baking,
    tree: &Path,
    packages: Vec<manifest::Package>,
    project_sha256: String,
) -> Result<Manifest> {
    let profile = &baking.source.profile;
    let distributions = match &profile.python {
        Some(_) => python::distributions(tree, &profile.virtualenv())?.0,
        None => Vec::new(),
    };
    Ok(Manifest {
        schema: manifest::SCHEMA,
        farmctl: env!("CARGO_PKG_VERSION").to_owned(),
        name: profile.name.clone(),
        version: profile.version.clone(),
        architecture: baking.environment.architecture.clone(),
        epoch: baking.environment.epoch,
        serial: baking.serial,
        expires: baking.expires.clone(),
        profile: profile.clone(),
        inputs: Inputs {
            releases: baking.environment.releases.clone(),
            packages,
            distributions,
            project_sha256,
            lock_sha256: baking
                .source
                .lock
                .as_ref()
                .map(|(_, sha256)| sha256.clone())
                .unwrap_or_default(),
        },
        files: Hashed { size: 0, sha256: String::new() },
        payload: Payload { size: 0, sha256: String::new(), entries: 0, content: 0 },
        segments: Vec::new(),
        set_id: Vec::new(),
        capabilities: Vec::new(),
    })
}

fn pack(
    baking: &Baking,
    tree: &Path,
    draft: Manifest,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<tarball::Packed> {
    let ui = &context.ui;
    let profile = &baking.source.profile;
    let packages = Ownership::read(tree)?;
    let mut distributions = HashMap::new();
    if profile.python.is_some() {
        distributions.extend(python::distributions(tree, &profile.virtualenv())?.1);
    }
    let copied: Vec<String> = profile
        .copies
        .iter()
        .map(|copied| copied.to.to_string_lossy().trim_start_matches('/').to_owned())
        .collect();
    let owner_of = |path: &str| -> Owner {
        if let Some(package) = packages.of(path) {
            Owner::Package(package.to_owned())
        } else if let Some(name) = distributions.get(path) {
            Owner::Distribution(name.clone())
        } else if copied.iter().any(|root| Path::new(path).starts_with(root)) {
            Owner::Project
        } else {
            Owner::Generated
        }
    };
    ui.step("hashing the tree");
    let meter = ui.meter("hashing");
    let scan = tarball::scan(tree, baking.environment.epoch, &owner_of, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    })?;
    drop(meter);
    let part = baking.out.with_extension("xz.part");
    transaction.intend(Object::Path { path: part.clone() })?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    ui.step(format!("packing {} with {threads} threads", ui::size(scan.content)));
    let meter = ui.meter("compressing");
    let packed = tarball::pack(tree, &scan, draft, &part, threads, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    })?;
    drop(meter);
    let mut done = part;
    if let Some(key) = &baking.key {
        let signed = baking.out.with_extension("xz.signed.part");
        transaction.intend(Object::Path { path: signed.clone() })?;
        super::write_signed(&Archive::open(&done)?, key, &signed)?;
        fs::remove_file(&done).with_context(|| format!("removing {}", done.display()))?;
        done = signed;
        ui.step(format!("signed with {}", key.public().id()));
    }
    publish(&done, &baking.out)?;
    Ok(packed)
}
