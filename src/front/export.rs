//! What nginx serves out of a release or a session: copies that are root's, in which no link
//! leads anywhere.
//!
//! What is as it was is the same file in the next copy, with the time it had; all else has a
//! time that no copy had before. So a time and a size stand for one content at one address,
//! which is what nginx's `ETag` and `Last-Modified` are made of: browsers keep what an upgrade
//! has not changed, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use super::{copy, is_led_to, make_way, page, vhost};
use crate::error::refuse;
use crate::file;
use crate::inside::Inside;
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::node::{Object, Transaction};

/// Copies the directories nginx serves out of a release's tree to where [`super::switch`] can
/// point it. A file that is as in the release `before` is that one's.
///
/// # Errors
/// When the release has no such directory, or it cannot be copied.
pub fn export_static(
    manifest: &Manifest,
    tree: &Path,
    before: Option<&Manifest>,
    layout: &Layout,
    transaction: &mut Transaction,
) -> Result<()> {
    if !is_exported(layout, manifest) {
        return Ok(());
    }
    let target = layout.static_export(&manifest.name, &manifest.version);
    transaction.intend(Object::Path { path: target.clone() })?;
    // What an interrupted removal left of an earlier release of this version.
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| format!("removing {}", target.display()))?;
    }
    let all = before.map(|it| layout.static_export(&it.name, &it.version));
    export(layout, manifest, tree, &target, before.zip(all.as_deref()))
}

/// Whether nginx serves anything out of a release.
fn is_exported(layout: &Layout, manifest: &Manifest) -> bool {
    !vhost::exported(layout, manifest).is_empty() || page::of(manifest).is_some()
}

/// The same of a session whose files were changed since it began; nginx finds the new ones
/// with the next request. They go with the session.
///
/// # Errors
/// As [`export_static`].
pub fn export_session(
    manifest: &Manifest,
    session: &str,
    tree: &Path,
    layout: &Layout,
) -> Result<()> {
    if !is_exported(layout, manifest) {
        return Ok(());
    }
    let all = layout.static_export(&manifest.name, session);
    let before = generation(&all)?;
    let next = before.map_or(1, |number| number + 1);
    // Not a number before it is whole.
    let part = all.join(".part");
    crate::storage::remove_tree(&part)?;
    let newest = newest(layout, manifest, session)?;
    export(layout, manifest, tree, &part, Some((manifest, &newest)))?;
    let target = all.join(next.to_string());
    fs::rename(&part, &target).with_context(|| format!("publishing {}", target.display()))?;
    make_way(layout, manifest, session, None)?;
    if is_led_to(layout, &manifest.name, session) {
        page::show(layout, &manifest.name, session)?;
    }
    match before {
        Some(number) => crate::storage::remove_tree(&all.join(number.to_string())),
        None => Ok(()),
    }
}

/// The same again, if it was done before: the files were changed once more.
///
/// # Errors
/// As [`export_static`].
pub fn export_session_again(
    manifest: &Manifest,
    session: &str,
    tree: &Path,
    layout: &Layout,
) -> Result<()> {
    match generation(&layout.static_export(&manifest.name, session))? {
        Some(_) => export_session(manifest, session, tree, layout),
        None => Ok(()),
    }
}

/// The newest number of what was exported of a session.
fn generation(all: &Path) -> Result<Option<u64>> {
    Ok(file::names_in(all)?.iter().filter_map(|name| name.parse().ok()).max())
}

/// Whether a path of a release is among what nginx serves out of it.
#[must_use]
pub fn serves(layout: &Layout, manifest: &Manifest, path: &Path) -> bool {
    page::of(manifest) == Some(path)
        || vhost::exported(layout, manifest).iter().any(|(_, files)| path.starts_with(&files.path))
}

/// What nginx serves of a session.
pub(super) fn newest(layout: &Layout, manifest: &Manifest, session: &str) -> Result<PathBuf> {
    let own = layout.static_export(&manifest.name, session);
    Ok(match generation(&own)? {
        Some(number) => own.join(number.to_string()),
        None => layout.static_export(&manifest.name, &manifest.version),
    })
}

/// `before` is another export, and of what.
fn export(
    layout: &Layout,
    manifest: &Manifest,
    tree: &Path,
    target: &Path,
    before: Option<(&Manifest, &Path)>,
) -> Result<()> {
    let time = unused_time(layout, &manifest.name)?;
    file::make_directory(target, 0o755)?;
    let inside = Inside::open(tree)?;
    page::export(manifest, &inside, target)?;
    for (index, files) in vhost::exported(layout, manifest) {
        let copy = target.join(index.to_string());
        let Some(directory) = inside.directory(&files.path)? else {
            return refuse(
                format_args!("the release has no directory {}", files.path.display()),
                "[[front.static]] names it: correct the profile, or make it with a job at bake",
            );
        };
        file::make_directory(&copy, 0o755)?;
        let before = before.and_then(|(manifest, all)| {
            let of_before = vhost::exported(layout, manifest);
            let (index, _) = of_before.into_iter().find(|(_, it)| it.path == files.path)?;
            Some(all.join(index.to_string()))
        });
        copy::copy_plain(directory, &copy, before.as_deref(), time)
            .with_context(|| format!("exporting {}", files.path.display()))?;
    }
    let set = || fs::File::open(target)?.set_modified(time);
    set().with_context(|| format!("setting the time of {}", target.display()))
}

/// A time later than those of all copies there are of an application, which each has itself;
/// now, most often. Servers of HTTP know whole seconds.
fn unused_time(layout: &Layout, app: &str) -> Result<SystemTime> {
    let second =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map(|it| it.as_secs());
    let mut time = second(SystemTime::now()).context("the clock is before 1970")?;
    let all = layout.static_exports().join(app);
    for name in file::names_in(&all)? {
        let of_session = file::names_in(&all.join(&name))?;
        let within = of_session.iter().map(|it| all.join(&name).join(it));
        for copy in within.chain([all.join(&name)]) {
            let modified = fs::metadata(&copy).and_then(|it| it.modified());
            time = time.max(modified.map_or(0, |it| second(it).map_or(0, |it| it + 1)));
        }
    }
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(time))
}
