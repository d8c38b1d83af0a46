//! `farmctl shell`: enters a session, or an environment.

use anyhow::{Context as _, Result};

use super::Context;
use crate::error::{Exit, refuse};
use crate::kept::Step;
use crate::layout;
use crate::mount;
use crate::node::{Node, Object, Transaction};
use crate::python;
use crate::release::EnvironmentRecord;
use crate::run;
use crate::schroot;
use crate::stage;
use crate::storage::{self, Access, Copies, Storage};
use crate::undo;

/// Enter an application's session, or with --source an environment
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl shell hello
  farmctl shell hello --as-root -- ps aux
  farmctl shell hello --source -- apt list --installed
  farmctl shell hello --source --write -- apt-get install less
  farmctl shell hello --kept

Changes in a session last until farmctl stop. With --source they are gone with the shell, unless \
--write is given: then they last, and go into every later bake.")]
pub struct Args {
    /// The application, or with --source or --kept the environment
    name: String,
    /// As root instead of the application's user
    #[arg(long)]
    as_root: bool,
    /// Enter a copy of the environment bakes are made from, as root
    #[arg(long)]
    source: bool,
    /// Enter what the last farmctl bake --keep that failed has left, as root
    #[arg(long, conflicts_with = "source")]
    kept: bool,
    /// With --source: the environment itself, unlocked as long as this lasts
    #[arg(long, requires = "source")]
    write: bool,
    /// A command instead of a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Carries the verb out; exits with the command's status if that is 0, else 1.
///
/// # Errors
/// When there is no such session or environment.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    run::require(&schroot::TOOLS)?;
    let default = ["/bin/bash".to_owned(), "-l".to_owned()];
    let command: Vec<&str> = if args.command.is_empty() { &default[..] } else { &args.command[..] }
        .iter()
        .map(String::as_str)
        .collect();
    let status = if args.kept {
        in_kept(&args.name, &command, &node)?
    } else if args.source {
        let Some(environment) = node.environment(&args.name)? else {
            return refuse(
                format_args!("there is no environment {}", args.name),
                "farmctl list shows what there is",
            );
        };
        if args.write {
            in_source(&environment, &command, &node)?
        } else {
            in_copy(&environment, &command, &node)?
        }
    } else {
        let started = super::started(&node, &args.name)?;
        let user = &started.manifest.profile.environment.user;
        let call = if args.as_root {
            schroot::enter(&started.session.name, "root", &command)
        } else {
            schroot::enter_as(&started.session.name, user, &command)
        };
        call.interactive()?
    };
    Ok(if status == 0 { Exit::Done } else { Exit::Failed })
}

/// In a session of the environment, which ends with the command. schroot would not even
/// enter the environment itself: it writes into what it begins, and that is sealed.
fn in_copy(environment: &EnvironmentRecord, command: &[&str], node: &Node) -> Result<i32> {
    let EnvironmentRecord { name, storage, volume, .. } = environment;
    let place = storage::named(storage, &node.site())?;
    let mut transaction = node.begin("shell", &format!("env-{name}"))?;
    let session = layout::session(&format!("env-{name}"), transaction.id());
    if let Err(error) = place.check_copy(&session, volume, Copies::default()) {
        transaction.close()?;
        return Err(error);
    }
    transaction.intend(Object::Session { storage: storage.clone(), name: session.clone() })?;
    let status = schroot::begin(&session, &layout::environment_chroot(name))
        .and_then(|_| schroot::enter(&session, "root", command).interactive());
    undo::remove_all(node, transaction, &|_| ())
        .with_context(|| format!("leaving environment {name}"))?;
    status
}

/// In the tree of a bake that failed and was kept, in the project's files, as the steps of
/// its build are. Its record is held as long, so that `gc` leaves it alone.
fn in_kept(name: &str, command: &[&str], node: &Node) -> Result<i32> {
    let mut bakes = node.abandoned()?;
    bakes.retain(|it| it.verb() == "bake" && it.subject() == name);
    bakes.sort_by_key(Transaction::began);
    let Some((storage, volume)) = last_kept(&bakes, node)? else {
        return refuse(
            format_args!("nothing is kept of a bake of {name}"),
            "farmctl bake PROFILE --keep keeps what fails",
        );
    };
    let Some(environment) = node.environment(name)? else {
        return refuse(
            format_args!("there is no environment {name} any more"),
            "farmctl gc removes what is kept of it",
        );
    };
    mount::private_namespace()?;
    let tree = storage.open(volume, Access::ReadWrite)?;
    let chroot = stage::enter_kept(tree.path(), environment.epoch)?;
    let line = ["cd \"$0\" && exec \"$@\"", python::PROJECT];
    let status = chroot.downloading("/bin/sh").arg("-c").args(line).args(command).interactive();
    chroot.leave()?;
    tree.close()?;
    status
}

/// The stage of the last of these bakes that lasts: of one that was killed there may be a
/// layer, which is of no use without what was beneath it.
fn last_kept<'a>(
    bakes: &'a [Transaction],
    node: &Node,
) -> Result<Option<(Box<dyn Storage>, &'a str)>> {
    for object in bakes.iter().rev().flat_map(Transaction::objects) {
        match object {
            Object::Volume { storage, name } if name.starts_with(layout::STAGE) => {
                let storage = storage::named(storage, &node.site())?;
                if storage.lasts(name) {
                    return Ok(Some((storage, name)));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// In the environment itself, unlocked; locked again whatever happens: when farmctl is
/// killed, by `gc`.
fn in_source(environment: &EnvironmentRecord, command: &[&str], node: &Node) -> Result<i32> {
    let EnvironmentRecord { name, storage, volume, .. } = environment;
    let subject = format!("env-{name}");
    let _lock = node.lock(&subject, "shell")?;
    let mut transaction = node.begin("shell", &subject)?;
    // Trees made of the environment as it was before.
    if let Some(mut record) = node.environment(name)? {
        super::forget_kept(&mut record, Step::Packages, node, &mut transaction)?;
    }
    transaction.intend(Object::Seal { storage: storage.clone(), name: volume.clone() })?;
    let status =
        storage::named(storage, &node.site())?.seal(volume, Access::ReadWrite).and_then(|()| {
            schroot::enter_source(&layout::environment_chroot(name), command).interactive()
        });
    undo::remove_all(node, transaction, &|_| ())
        .with_context(|| format!("locking environment {name}"))?;
    status
}
