//! A release's session with everything bound: sockets, data, user, secrets, files.

mod files;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::MsFlags;
use nix::unistd::Group;

use crate::account::{self, Account};
use crate::error::refuse;
use crate::file;
use crate::inside::{Inside, Owner};
use crate::layout::{self, Layout, PROJECT_RUN, SOCKETS_INSIDE};
use crate::manifest::{FileIndex, Manifest};
use crate::mount::{self, Mount};
use crate::node::{Node, Object, Transaction};
use crate::probe::WEB_USER;
use crate::release::{App, Release, Session};
use crate::schroot;
use crate::settings::Site;
use crate::storage::{self, Copies, Growth, SessionCopy};
use crate::tarball::{self, Difference, Progress};

/// `MS_NOSYMFOLLOW` of mount(2), Linux 5.10: no link in the directory leads anywhere.
/// Neither nix nor libc names it.
const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);
/// Longest path of a socket, in bytes: `sun_path` of unix(7) less its NUL.
const SOCKET_PATH_LIMIT: usize = 107;

/// What is bound into every session of a release: directories of the host (first), and
/// where the application finds them (second).
#[must_use]
pub fn binds(layout: &Layout, manifest: &Manifest) -> Vec<(PathBuf, PathBuf)> {
    let mut binds = vec![(layout.sockets(&manifest.name), PathBuf::from(SOCKETS_INSIDE))];
    for data in &manifest.profile.data {
        binds.push((layout.app_data(&manifest.name).join(&data.name), data.path.clone()));
    }
    binds
}

/// Makes the application's data directories, or makes them its own again: they outlive
/// releases and the account. Those with locations of the front are open to nginx.
///
/// # Errors
/// When one cannot be made.
pub fn make_data_directories(layout: &Layout, app: &App, manifest: &Manifest) -> Result<()> {
    if manifest.profile.data.is_empty() {
        return Ok(());
    }
    let account = account_of(app)?;
    let parent = layout.app_data(&app.name);
    file::make_directory(&parent, 0o711)?;
    for data in &manifest.profile.data {
        let path = parent.join(&data.name);
        let served = manifest
            .profile
            .front
            .iter()
            .flat_map(|front| &front.statics)
            .any(|files| files.path.starts_with(&data.path));
        // Set-group-ID: what the application puts there is readable for nginx as well.
        let (gid, mode) = if served { (web_group()?, 0o2750) } else { (account.gid, 0o750) };
        make_data_directory(&path, account.uid, gid, mode)?;
    }
    Ok(())
}

fn make_data_directory(path: &Path, uid: u32, gid: u32, mode: u32) -> Result<()> {
    file::make_directory(path, 0o700)?;
    let meta =
        fs::symlink_metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    if !meta.is_dir() {
        return refuse(
            format_args!("{} is not a directory", path.display()),
            "move it away: the application's data belongs there",
        );
    }
    // Of an account the application had before: its files go to the new one.
    if meta.uid() != uid && meta.uid() != 0 {
        let before = Owner { uid: meta.uid(), gid: meta.uid() };
        Inside::open(path)?.give(Path::new("/"), before, Owner { uid, gid })?;
    }
    chown(path, Some(uid), Some(gid))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("changing the owner of {}", path.display()))
}

fn web_group() -> Result<u32> {
    match Group::from_name(WEB_USER).with_context(|| format!("looking up group {WEB_USER}"))? {
        Some(group) => Ok(group.gid.as_raw()),
        None => refuse(
            format_args!("the host has no group {WEB_USER}"),
            "apt-get install --reinstall base-passwd",
        ),
    }
}

fn account_of(app: &App) -> Result<Account> {
    let name = layout::account(&app.name);
    match account::account(&app.name)? {
        Some(account) if account.uid == app.uid => Ok(account),
        Some(account) => refuse(
            format_args!("user {name} has uid {}, the application has {}", account.uid, app.uid),
            format!("usermod --uid {} {name}", app.uid),
        ),
        None => refuse(
            format_args!("the host has no user {name}"),
            format!(
                "groupadd --system --gid {uid} {name} && useradd --system --uid {uid} --gid {uid} \
                 --home-dir /nonexistent --shell /usr/sbin/nologin {name}",
                uid = app.uid
            ),
        ),
    }
}

/// Makes the directory of an application's sockets: a small file system of its own in
/// which links lead nowhere, the application's, and open to nginx.
///
/// # Errors
/// When it cannot be mounted.
pub fn make_sockets(layout: &Layout, app: &App) -> Result<()> {
    let account = account_of(app)?;
    let path = layout.sockets(&app.name);
    file::make_directory(&path, 0o755)?;
    if !mount::is_mount_point(&path)? {
        // Set-group-ID: sockets belong to nginx's group, so 0660 is enough for them.
        let options = format!("size=1m,mode=2710,uid={},gid={}", account.uid, web_group()?);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | NOSYMFOLLOW;
        return mount::mount_lasting("tmpfs", &path, flags, &options);
    }
    Ok(())
}

/// Removes the directory of an application's sockets, with the sockets.
///
/// # Errors
/// When it cannot be unmounted.
pub fn remove_sockets(layout: &Layout, app: &str) -> Result<()> {
    let path = layout.sockets(app);
    while mount::is_mount_point(&path)? {
        mount::unmount(&path)?;
    }
    match fs::remove_dir(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes the sockets a session's servers have left. Nothing there is fine.
///
/// # Errors
/// When one cannot be removed.
pub fn remove_sockets_of(layout: &Layout, session: &str) -> Result<()> {
    let Some((app, _)) = layout::parse_session(session) else { return Ok(()) };
    let directory = layout.sockets(app);
    for name in file::names_in(&directory)? {
        if name.strip_prefix(session).is_some_and(|rest| rest.starts_with('.')) {
            file::remove_if_there(&directory.join(name))?;
        }
    }
    Ok(())
}

/// Ends a session and removes its copy, also where schroot says it did and did not.
/// Nothing there is fine.
///
/// # Errors
/// When something of it remains, or is in use.
pub fn end(storage: &str, session: &str, site: &Site<'_>) -> Result<()> {
    schroot::end(session)?;
    storage::named(storage, site)?
        .remove_copy(session)
        .with_context(|| format!("removing the copy of session {session}"))
}

/// Begins a session of a release with everything the application needs, each thing
/// written down in the transaction before it is made.
///
/// # Errors
/// When something is missing on the node, or cannot be made.
pub fn open(
    node: &Node,
    app: &App,
    manifest: &Manifest,
    session: &str,
    transaction: &mut Transaction,
) -> Result<PathBuf> {
    let layout = node.layout();
    check_sockets(layout, manifest, session)?;
    let release = release_of(app, &manifest.version)?;
    let copies = Copies::of(&manifest.profile.storage, node.settings());
    storage::named(&release.storage, &node.site())?.check_copy(session, &release.volume, copies)?;
    let account = account_of(app)?;
    let secrets = files::secrets(layout, manifest)?;
    make_data_directories(layout, app, manifest)?;
    if !mount::is_mount_point(&layout.sockets(&app.name))? {
        transaction.intend(Object::Sockets { app: app.name.clone() })?;
    }
    make_sockets(layout, app)?;
    let storage = release.storage.clone();
    transaction.intend(Object::Session { storage, name: session.to_owned() })?;
    let mount = schroot::begin(session, &layout::release_chroot(&app.name, &manifest.version))?;
    let prepare = || -> Result<()> {
        let inside = Inside::open(&mount)?;
        files::settle_user(&inside, manifest, account)?;
        files::write_runtime(&inside, manifest, session, account, &secrets)?;
        files::write_files(&inside, manifest, session)?;
        // Recovered after a power cut it is not prepared again: what its application has
        // changed since is the application's.
        inside.sync()
    };
    prepare().with_context(|| format!("preparing session {session}"))?;
    Ok(mount)
}

/// Brings a session back that has a [`flaw`], as after a reboot: with its own file system
/// and everything that was on tmpfs. What still runs in it is ended.
///
/// # Errors
/// When it cannot be mounted or something is missing on the node.
pub fn recover(node: &Node, app: &App, manifest: &Manifest, session: &Session) -> Result<PathBuf> {
    let layout = node.layout();
    let account = account_of(app)?;
    let secrets = files::secrets(layout, manifest)?;
    make_data_directories(layout, app, manifest)?;
    make_sockets(layout, app)?;
    schroot::dismount(&session.name)?;
    let release = release_of(app, &session.version)?;
    // schroot mounts what is there and says nothing about what is not.
    storage::named(&release.storage, &node.site())?.activate_copy(&session.name)?;
    let mount = schroot::recover(&session.name)?;
    files::write_runtime(&Inside::open(&mount)?, manifest, &session.name, account, &secrets)
        .with_context(|| format!("preparing session {}", session.name))?;
    Ok(mount)
}

fn release_of<'a>(app: &'a App, version: &str) -> Result<&'a Release> {
    app.release(version).with_context(|| format!("{} has no release {version}", app.name))
}

/// What is mounted in a session of the release: the session itself, and what the
/// fstab(5) it was begun with names.
///
/// # Errors
/// When that cannot be read.
pub fn mount_points(manifest: &Manifest, session: &str) -> Result<Vec<PathBuf>> {
    let root = schroot::mount_of(session);
    let inside = schroot::mount_points(&layout::release_chroot(&manifest.name, &manifest.version))?;
    let beneath = |path: PathBuf| root.join(path.strip_prefix("/").unwrap_or(&path));
    let mut points: Vec<PathBuf> = inside.into_iter().map(beneath).collect();
    points.insert(0, root);
    Ok(points)
}

/// What is not as [`open`] and [`recover`] leave a session, if something is. Somebody
/// else may have recovered it: at boot schroot's own service does, before there is
/// anything to bind, and run by hand it mounts over what a live session has mounted.
///
/// # Errors
/// When the mount table or the session cannot be read.
pub fn flaw(layout: &Layout, manifest: &Manifest, session: &Session) -> Result<Option<String>> {
    if !schroot::is_live(&session.name)? {
        return Ok(Some("it is not mounted".to_owned()));
    }
    let mounted = mount::mount_points()?;
    let sockets = layout.sockets(&manifest.name);
    let wanted = mount_points(manifest, &session.name)?;
    for point in wanted.iter().chain([&sockets]) {
        match mounted.iter().filter(|other| *other == point).count() {
            1 => {}
            0 => return Ok(Some(format!("nothing is mounted on {}", point.display()))),
            count => return Ok(Some(format!("{} is mounted {count} times", point.display()))),
        }
    }
    let env = Path::new(PROJECT_RUN).join("env");
    let text = Inside::open(&schroot::mount_of(&session.name))?.read(&env)?;
    if text != Some(files::render_env(manifest, &session.name)) {
        return Ok(Some(format!("{} is not as farmctl wrote it", env.display())));
    }
    Ok(None)
}

/// Gives the session's copy more room, if it has a size and is filling up.
///
/// # Errors
/// When it is lost already, or there is no room.
pub fn grow(app: &App, session: &Session, site: &Site<'_>) -> Result<Option<Growth>> {
    let release = release_of(app, &session.version)?;
    storage::named(&release.storage, site)?.grow_copy(&session.name)
}

/// The session's copy, where its storage keeps one.
///
/// # Errors
/// When that cannot be found out.
pub fn copy_of(app: &App, session: &Session, site: &Site<'_>) -> Result<Option<SessionCopy>> {
    let release = release_of(app, &session.version)?;
    let copies = storage::named(&release.storage, site)?.copies()?;
    Ok(copies.into_iter().find(|copy| copy.session == session.name))
}

/// Paths of a release that beginning a session of it writes: the account's user, the
/// profile's files, what schroot copies from the host, and the name it leaves for shells'
/// prompts.
#[must_use]
pub fn written_paths(manifest: &Manifest) -> Vec<PathBuf> {
    let fixed =
        ["/etc/passwd", "/etc/group", "/etc/hosts", "/etc/resolv.conf", "/etc/debian_chroot"];
    let rendered = manifest.profile.files.iter().map(|file| file.path.clone());
    fixed.into_iter().map(PathBuf::from).chain(rendered).collect()
}

/// How a session's own file system, and nothing mounted in it, differs from its release, but
/// for what beginning a session wrote. The caller has a mount namespace of its own.
///
/// # Errors
/// When it cannot be read.
pub fn compare(
    layout: &Layout,
    session: &Session,
    manifest: &Manifest,
    index: &FileIndex,
    progress: Progress<'_>,
) -> Result<Vec<Difference>> {
    // Bound without what is mounted in it: data, sockets, /proc.
    let place = layout.trees();
    file::make_directory(&place, 0o700)?;
    let bound = Mount::bind(&schroot::mount_of(&session.name), &place, true)?;
    let mut differences = tarball::compare(&place, index, &manifest.capabilities, progress)?;
    bound.close()?;
    let written = written_paths(manifest);
    let home = manifest.profile.home();
    differences.retain(|difference| {
        let path = Path::new("/").join(difference.path());
        let given = |what: &str| path.starts_with(&home) && what.starts_with("owner ");
        let begun = matches!(difference, Difference::Changed { what, .. } if given(what));
        !begun && !written.contains(&path)
    });
    Ok(differences)
}

/// Whether a path exists in a session, as the application sees it.
///
/// # Errors
/// When it cannot be looked at.
pub fn exists(mount: &Path, path: &Path) -> Result<bool> {
    Inside::open(mount)?.exists(path)
}

/// Refuses socket paths that are too long for connect(2), before anything is made.
fn check_sockets(layout: &Layout, manifest: &Manifest, session: &str) -> Result<()> {
    let sockets = manifest.profile.processes.iter().flat_map(|process| {
        [
            layout.socket(&manifest.name, session, &process.name),
            socket_inside(session, &process.name),
        ]
    });
    let front = [layout.front_socket(&manifest.name), layout.front_backup(&manifest.name)];
    for path in sockets.chain(front) {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_LIMIT {
            return refuse(
                format_args!(
                    "the socket path {} has {length} bytes, {SOCKET_PATH_LIMIT} are possible",
                    path.display()
                ),
                "use a shorter --root, or a shorter name for the process",
            );
        }
    }
    Ok(())
}

/// A process's socket as the application sees it.
fn socket_inside(session: &str, process: &str) -> PathBuf {
    Path::new(SOCKETS_INSIDE).join(format!("{session}.{process}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_an_earlier_account_goes_to_the_new_one() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().expect("a temporary directory");
        let data = place.path().join("uploads");
        make_data_directory(&data, 200_000, 200_000, 0o750).expect("root may");
        fs::create_dir(data.join("a")).expect("root may");
        for path in ["a", "a/photo"] {
            let path = data.join(path);
            if !path.exists() {
                fs::write(&path, "x").expect("root may");
            }
            chown(&path, Some(200_000), Some(200_000)).expect("root may");
        }
        std::os::unix::fs::symlink("/etc/passwd", data.join("link")).expect("root may");
        make_data_directory(&data, 200_007, 33, 0o2750).expect("root may");
        let owner = |path: &Path| {
            let meta = fs::metadata(path).expect("it is there");
            (meta.uid(), meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!(owner(&data), (200_007, 33, 0o2750));
        assert_eq!(owner(&data.join("a/photo")), (200_007, 33, 0o644));
        assert_eq!(owner(Path::new("/etc/passwd")).0, 0);
    }
}
