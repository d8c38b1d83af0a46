//! Taking back what a recipe made: when it fails, when its verb is to remove, and when
//! `gc` finds what a killed one left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};

use crate::account;
use crate::error::{Exit, Mark as _, message};
use crate::file;
use crate::front;
use crate::layout::{self, Layout};
use crate::node::{Node, Object, Transaction};
use crate::revise;
use crate::run::Shield;
use crate::schroot;
use crate::session;
use crate::storage::{self, Access};
use crate::supervise;

/// Removes one thing. Nothing there is fine.
///
/// # Errors
/// When it cannot be removed, or something of it remains.
pub fn remove(object: &Object, node: &Node) -> Result<()> {
    let layout = node.layout();
    match object {
        Object::Volume { storage, name } => storage::named(storage, &node.site())?.remove(name),
        Object::Ground { ground } => {
            storage::ground::dismantle(ground, &node.site())?;
            supervise::leave_storage(layout)
        }
        Object::Seal { storage, name } => seal(storage, name, node),
        Object::Chroot { name } => schroot::unregister(name),
        Object::Session { storage, name } => {
            front::remove_way(layout, name)?;
            session::end(storage, name, &node.site())?;
            session::remove_sockets_of(layout, name)
        }
        Object::Sockets { app } => session::remove_sockets(layout, app),
        Object::Revision { app, to } => match node.app(app)? {
            Some(app) => revise::undo(node, &app, to),
            None => Ok(()),
        },
        Object::Programs { session } => supervise::detect(layout).stop(session),
        Object::Way { app } => front::close(layout, app),
        Object::Front { app } => front::withdraw(layout, app),
        Object::Preview { app } => front::withdraw_preview(app),
        Object::Account { app } => account::remove(app),
        Object::Requests { app } => front::forget_requests(app),
        Object::Path { path } => remove_path(path, layout),
    }
}

/// Seals a volume again; one that is gone needs no seal.
fn seal(storage: &str, name: &str, node: &Node) -> Result<()> {
    let storage = storage::named(storage, &node.site())?;
    if storage.list()?.iter().any(|volume| volume.name == name) {
        return storage.seal(name, Access::ReadOnly);
    }
    Ok(())
}

fn remove_path(path: &Path, layout: &Layout) -> Result<()> {
    let refuse = || bail!("{} is not a path farmctl removes", path.display());
    if !path.is_absolute() {
        return refuse();
    }
    match fs::symlink_metadata(path) {
        // A mistake here would be the worst one: no directory of ours has so short a path.
        Ok(meta) if meta.is_dir() && path.components().count() < 4 => return refuse(),
        Ok(meta) if meta.is_dir() => storage::remove_tree(path)?,
        _ => file::remove_if_there(path)?,
    }
    // An application's directory goes with its last release.
    let of_releases = [layout.releases(), layout.static_exports()];
    match path.parent() {
        Some(app) if of_releases.iter().any(|all| app.parent() == Some(all)) => remove_empty(app),
        _ => Ok(()),
    }
}

/// Removes a directory with nothing in it; any other stays.
fn remove_empty(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs the body of a recipe in a transaction. If it fails, what it wrote down is
/// removed, newest first, and no signal interrupts that.
///
/// # Errors
/// The body's own. If something could not be removed, naming that, with [`Exit::Left`];
/// the record stays for `gc`.
pub fn attempt<T>(
    node: &Node,
    verb: &str,
    subject: &str,
    body: impl FnOnce(&mut Transaction) -> Result<T>,
) -> Result<T> {
    attempt_unless(node, verb, subject, &|_| false, body)
}

/// Like [`attempt`]; if it fails and `keeps` says so, all stays as it is, for a look. The
/// record stays for `gc`.
///
/// # Errors
/// As [`attempt`], with [`Exit::Left`] if it is kept.
pub fn attempt_unless<T>(
    node: &Node,
    verb: &str,
    subject: &str,
    keeps: &dyn Fn(&Error) -> bool,
    body: impl FnOnce(&mut Transaction) -> Result<T>,
) -> Result<T> {
    let mut transaction = node.begin(verb, subject)?;
    let error = match body(&mut transaction) {
        Ok(value) => {
            transaction.close()?;
            return Ok(value);
        }
        Err(error) if keeps(&error) => {
            // Why it failed says more. Without the mark the next verb about it tidies up.
            drop(transaction.keep());
            return Err(error).exit(Exit::Left);
        }
        Err(error) => error,
    };
    let _shield = Shield::raise();
    match remove_each(node, transaction.objects(), &|_| ()) {
        Ok(()) => {
            transaction.close()?;
            Err(error)
        }
        Err(left) => {
            let failure = format!(
                "{}; and not all of it could be undone: {}",
                message(&error),
                message(&left)
            );
            Err(anyhow!(failure)).exit(Exit::Left).hint("farmctl gc")
        }
    }
}

/// Removes everything a transaction wrote down, newest first, and closes it: the verbs
/// that end or remove. `say` hears of each thing before it is removed.
///
/// # Errors
/// Naming what could not be removed, with [`Exit::Left`]; the rest is, and the record
/// stays for `gc`.
pub fn remove_all(node: &Node, transaction: Transaction, say: &dyn Fn(&Object)) -> Result<()> {
    // Half removed is worse than late: the signal counts when all is done.
    let _shield = Shield::raise();
    remove_each(node, transaction.objects(), say)
        .exit(Exit::Left)
        .hint("end what still uses it, then farmctl gc")?;
    transaction.close()
}

/// Removes each of them, the last first, and goes on when one fails.
fn remove_each(node: &Node, objects: &[Object], say: &dyn Fn(&Object)) -> Result<()> {
    let mut failures = Vec::new();
    let mut cause = None;
    for object in objects.iter().rev() {
        say(object);
        if let Err(error) = remove(object, node) {
            failures.push(object.to_string());
            cause = cause.or(Some(error));
        }
    }
    match cause {
        None => Ok(()),
        Some(error) => Err(error.context(format!("removing {}", failures.join(", ")))),
    }
}

/// What `gc` would remove of a transaction whose farmctl is gone: everything it wrote
/// down that state does not name.
///
/// # Errors
/// When the state cannot be read.
pub fn rubbish(node: &Node, transaction: &Transaction) -> Result<Vec<Object>> {
    let kept = Kept::read(node)?;
    let keeps = |object: &&Object| !kept.keeps(node, transaction, object);
    let mut objects: Vec<Object> = transaction.objects().iter().filter(keeps).cloned().collect();
    // A scratch directory is never published, and not always written down.
    let work = layout_work(node, transaction);
    if objects.iter().all(|object| object != &work) && exists(&work) {
        objects.push(work);
    }
    Ok(objects)
}

/// Files and links that killed farmctls were about to publish where this node's are.
///
/// # Errors
/// When a directory cannot be read.
pub fn unpublished(node: &Node) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for (directory, floors) in node.layout().published() {
        found.extend(file::unpublished(&directory, floors)?);
    }
    Ok(found)
}

/// Removes [`unpublished`] files and links; `say` hears of each.
///
/// # Errors
/// When one cannot be removed.
pub fn remove_unpublished(node: &Node, say: &dyn Fn(&str)) -> Result<()> {
    unpublished(node)?.iter().try_for_each(|path| {
        file::remove_if_there(path)?;
        say(&format!("removed {}", path.display()));
        Ok(())
    })
}

fn layout_work(node: &Node, transaction: &Transaction) -> Object {
    Object::Path { path: node.layout().work(transaction.id()) }
}

fn exists(object: &Object) -> bool {
    matches!(object, Object::Path { path } if fs::symlink_metadata(path).is_ok())
}

/// Finishes a transaction whose farmctl is gone, and answers what was removed.
///
/// # Errors
/// As [`remove_all`].
pub fn finish(node: &Node, transaction: Transaction) -> Result<Vec<Object>> {
    let objects = rubbish(node, &transaction)?;
    let _shield = Shield::raise();
    remove_each(node, &objects, &|_| ())
        .exit(Exit::Left)
        .hint("end what still uses it, then farmctl gc")?;
    transaction.close()?;
    Ok(objects)
}

/// Finishes the transactions about an application whose farmctl is gone, but for what is kept
/// for a look, and removes what killed ones were about to publish. The caller has its lock; `say`
/// hears of what was removed.
///
/// # Errors
/// As [`remove_all`].
pub fn finish_all(node: &Node, subject: &str, say: &dyn Fn(&str)) -> Result<()> {
    for transaction in node.abandoned()? {
        if transaction.subject() != subject || transaction.is_kept() {
            continue;
        }
        let title = format!("{} that was cut short", transaction.verb());
        let finished = finish(node, transaction).with_context(|| format!("undoing the {title}"));
        for object in finished? {
            say(&format!("removed the {object} of the {title}"));
        }
    }
    remove_unpublished(node, say)
}

/// What the state names.
struct Kept {
    objects: Vec<Object>,
}

impl Kept {
    fn read(node: &Node) -> Result<Self> {
        let layout = node.layout();
        let mut objects = Vec::new();
        for app in node.apps()? {
            let name = &app.name;
            for release in &app.releases {
                let version = &release.version;
                objects.push(Object::Volume {
                    storage: release.storage.clone(),
                    name: release.volume.clone(),
                });
                objects.push(Object::Chroot { name: layout::release_chroot(name, version) });
                objects.push(Object::Path { path: layout.release(name, version) });
                objects.push(Object::Path { path: layout.static_export(name, version) });
            }
            objects.extend(Object::serving(&app));
            objects.extend(app.session.as_ref().map(|session| Object::Revision {
                app: name.clone(),
                to: session.version.clone(),
            }));
            objects.push(Object::Account { app: name.clone() });
            objects.push(Object::Path { path: layout.app_file(name) });
        }
        objects.extend(node.ground()?.map(|ground| Object::Ground { ground }));
        for record in node.environments()? {
            objects.extend(Object::of_environment(&record));
            objects.push(Object::Path { path: layout.environment_file(&record.name) });
        }
        Ok(Self { objects })
    }

    fn keeps(&self, node: &Node, transaction: &Transaction, object: &Object) -> bool {
        if self.objects.contains(object) {
            return true;
        }
        // Data, secrets and logs are nobody's rubbish, unless their removal was asked for.
        let lasting = |path: &Path| {
            let layout = node.layout();
            let subject = transaction.subject();
            path.starts_with(layout.app_data(subject))
                || path == layout.secrets(subject)
                || path.starts_with(layout.app_logs(subject))
        };
        match object {
            Object::Path { path } => transaction.verb() != "remove" && lasting(path),
            // One that is stopped keeps its vhost until it is removed.
            Object::Front { app } => {
                transaction.verb() == "remove" && node.app(app).is_ok_and(|app| app.is_some())
            }
            // Another one may have been started meanwhile by hand, or be another node's.
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{exit_of, hint_of, refuse};
    use crate::release::{App, Release};

    fn node(root: &Path) -> Node {
        Node::open(Layout::new(root, None)).expect("an empty root is a new node")
    }

    fn path(node: &Node, name: &str) -> Object {
        Object::Path { path: node.layout().root().join("a/b/c").join(name) }
    }

    #[test]
    fn what_a_failing_recipe_wrote_down_is_removed_and_its_error_stays() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let node = node(root.path());
        let made = path(&node, "made");
        let error = attempt(&node, "install", "shop", |transaction| {
            transaction.intend(made.clone())?;
            file::make_directory(&root.path().join("a/b/c/made/below"), 0o755)?;
            refuse::<()>("it is broken", "mend it")
        })
        .expect_err("the body fails");
        assert_eq!(error.to_string(), "it is broken");
        assert_eq!(hint_of(&error), Some("mend it"));
        assert_eq!(exit_of(&error), Exit::Failed);
        assert!(!exists(&made));
        assert!(node.abandoned().expect("it can be read").is_empty());
    }

    #[test]
    fn what_is_kept_for_a_look_is_not_what_was_cut_short() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let node = node(root.path());
        let made = path(&node, "made");
        let Object::Path { path } = &made else { unreachable!("it is one") };
        let error = attempt_unless(&node, "bake", "shop", &|_| true, |transaction| {
            transaction.intend(made.clone())?;
            file::make_directory(path, 0o755)?;
            refuse::<()>("it is broken", "mend it")
        })
        .expect_err("the body fails");
        assert_eq!(exit_of(&error), Exit::Left);
        // As tend and other verbs about an application of that name do.
        finish_all(&node, "shop", &|_| ()).expect("nothing is in the way");
        assert!(exists(&made));
        for transaction in node.abandoned().expect("it can be read") {
            assert!(transaction.is_kept());
            assert_eq!(
                finish(&node, transaction).expect("it can be removed"),
                std::slice::from_ref(&made)
            );
        }
        assert!(!exists(&made));
    }

    #[test]
    fn what_cannot_be_removed_is_named_and_left_to_gc() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let node = node(root.path());
        let short = Object::Path { path: "/etc".into() };
        let error = attempt(&node, "install", "shop", |transaction| {
            transaction.intend(short.clone())?;
            refuse::<()>("it is broken", "mend it")
        })
        .expect_err("the body fails");
        assert_eq!(exit_of(&error), Exit::Left);
        let text = format!("{error:#}");
        assert!(text.contains("removing /etc: /etc is not a path farmctl removes"), "{text}");
        assert!(text.contains("it is broken"), "{text}");
        assert_eq!(node.abandoned().expect("it can be read").len(), 1);
    }

    /// A tarball that is being baked can be anywhere.
    #[test]
    fn a_file_with_a_short_path_is_removed() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let part = tempfile::Builder::new().tempfile_in("/tmp").expect("it is writable");
        let object = Object::Path { path: part.path().to_owned() };
        remove(&object, &node(root.path())).expect("it is a file");
        assert!(!exists(&object));
    }

    #[test]
    fn gc_keeps_what_state_names_and_data() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let node = node(root.path());
        let mut transaction = node.begin("install", "shop").expect("the root is writable");
        let volume =
            |name: &str| Object::Volume { storage: "directory".to_owned(), name: name.to_owned() };
        let data = Object::Path { path: node.layout().app_data("shop").join("uploads") };
        for object in [volume("fv-shop-1"), volume("fv-shop-2"), data] {
            transaction.intend(object).expect("the record is writable");
        }
        let release = Release {
            version: "1".to_owned(),
            identity: "00".to_owned(),
            storage: "directory".to_owned(),
            volume: "fv-shop-1".to_owned(),
            installed: 1,
            verified: None,
        };
        node.save_app(&App::new("shop", 200_000).installed(release)).expect("it is writable");
        assert_eq!(rubbish(&node, &transaction).expect("it can be read"), [volume("fv-shop-2")]);
        transaction.close().expect("its record can be removed");
    }
}
