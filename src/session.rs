//! A release's session with everything bound: sockets, data, user, secrets, files.
//!
//! What is written into a session is written where the application can have put links,
//! so all of it goes through [`Inside`].

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::MsFlags;
use nix::unistd::Group;

use crate::account::{self, Account};
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::inside::{Inside, Owner};
use crate::layout::{self, Layout, PROJECT_RUN, SOCKETS_INSIDE};
use crate::manifest::{FileIndex, Manifest};
use crate::mount::{self, Mount};
use crate::node::{Node, Object, Transaction};
use crate::parallel;
use crate::probe::WEB_USER;
use crate::release::{App, Release, Session};
use crate::run::quote;
use crate::schroot;
use crate::secret;
use crate::settings::Site;
use crate::storage::{self, Copies, Growth, SessionCopy};
use crate::tarball::{self, Difference, Progress};
use crate::template::{self, Values};

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
    let secrets = secrets(layout, manifest)?;
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
        settle_user(&inside, manifest, account)?;
        write_runtime(&inside, manifest, session, account, &secrets)?;
        write_files(&inside, manifest, session)?;
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
    let secrets = secrets(layout, manifest)?;
    make_data_directories(layout, app, manifest)?;
    make_sockets(layout, app)?;
    schroot::dismount(&session.name)?;
    let release = release_of(app, &session.version)?;
    // schroot mounts what is there and says nothing about what is not.
    storage::named(&release.storage, &node.site())?.activate_copy(&session.name)?;
    let mount = schroot::recover(&session.name)?;
    write_runtime(&Inside::open(&mount)?, manifest, &session.name, account, &secrets)
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
    if text != Some(render_env(manifest, &session.name)) {
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

fn listen(session: &str, process: &str) -> String {
    format!("unix:{}", socket_inside(session, process).display())
}

/// The values of the profile's secrets, by name.
fn secrets(layout: &Layout, manifest: &Manifest) -> Result<Vec<(String, String)>> {
    let wanted = &manifest.profile.secrets;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let path = layout.secrets(&manifest.name);
    let mut known = secret::read(&path)?;
    let mut found = Vec::new();
    for secret in wanted {
        match known.remove(&secret.name) {
            Some(value) => found.push((secret.name.clone(), value)),
            None => {
                return refuse(
                    format_args!("{} has no {}", path.display(), secret.name),
                    format!("add a line {}=… to it (root only, mode 600)", secret.name),
                );
            }
        }
    }
    Ok(found)
}

/// Puts the host's account into the session's passwd and group under the name of the
/// profile's user, and gives it its home.
fn settle_user(inside: &Inside, manifest: &Manifest, account: Account) -> Result<()> {
    let user = &manifest.profile.environment.user;
    let passwd = Path::new("/etc/passwd");
    let group = Path::new("/etc/group");
    let Some(text) = inside.read(passwd)? else {
        return refuse("the release has no /etc/passwd", "farmctl verify; then bake it again");
    };
    let (text, baked) = map_passwd(&text, user, account)?;
    inside.publish(passwd, text.as_bytes(), 0o644, Owner::ROOT)?;
    let text = inside.read(group)?.unwrap_or_default();
    let text = map_group(&text, user, account.gid);
    inside.publish(group, text.as_bytes(), 0o644, Owner::ROOT)?;
    let to = Owner { uid: account.uid, gid: account.gid };
    if baked.owner != to && baked.home.starts_with("/home") && baked.home != Path::new("/home") {
        inside.give(&baked.home, baked.owner, to)?;
    }
    Ok(())
}

/// The profile's user as it was baked.
#[derive(Debug, PartialEq, Eq)]
struct Baked {
    owner: Owner,
    home: PathBuf,
}

/// passwd(5) with `user` having the account's ids.
fn map_passwd(text: &str, user: &str, account: Account) -> Result<(String, Baked)> {
    let mut baked = None;
    let mut mapped = String::new();
    for line in text.lines() {
        let mut fields: Vec<&str> = line.split(':').collect();
        let (uid, gid) = (account.uid.to_string(), account.gid.to_string());
        if fields.len() == 7 && fields[0] == user {
            let id = |field: &str| field.parse().with_context(|| format!("reading user {user}"));
            let owner = Owner { uid: id(fields[2])?, gid: id(fields[3])? };
            baked = Some(Baked { owner, home: PathBuf::from(fields[5]) });
            fields[2] = &uid;
            fields[3] = &gid;
            mapped.push_str(&fields.join(":"));
        } else {
            if fields.len() == 7 && fields[2] == uid {
                return refuse(
                    format_args!(
                        "the release's user {} has the application's uid {uid}",
                        fields[0]
                    ),
                    "bake it again without that user",
                );
            }
            mapped.push_str(line);
        }
        mapped.push('\n');
    }
    match baked {
        Some(baked) => Ok((mapped, baked)),
        None => refuse(
            format_args!("the release has no user {user}"),
            "bake it again: bootstrap makes the profile's user",
        ),
    }
}

/// group(5) with a group `user` of this id, made if there was none.
fn map_group(text: &str, user: &str, gid: u32) -> String {
    let mut mapped = String::new();
    let mut found = false;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if fields.len() == 4 && fields[0] == user {
            found = true;
            mapped.push_str(&format!("{user}:{}:{gid}:{}", fields[1], fields[3]));
        } else {
            mapped.push_str(line);
        }
        mapped.push('\n');
    }
    if !found {
        mapped.push_str(&format!("{user}:x:{gid}:\n"));
    }
    mapped
}

/// Writes what the start script reads: where to listen, and the secrets. All on the
/// session's tmpfs. The application may put its pid files beside them, but not replace
/// them (the directory is sticky): root reads them, too.
fn write_runtime(
    inside: &Inside,
    manifest: &Manifest,
    session: &str,
    account: Account,
    secrets: &[(String, String)],
) -> Result<()> {
    let shared = Owner { uid: 0, gid: account.gid };
    let place = Path::new(PROJECT_RUN);
    inside.make_directory(place, 0o1775, shared)?;
    let secret_place = place.join("secrets");
    inside.make_directory(&secret_place, 0o550, shared)?;
    let owner = Owner { uid: account.uid, gid: account.gid };
    for (name, value) in secrets {
        inside.publish(&secret_place.join(name), value.as_bytes(), 0o400, owner)?;
    }
    // The last of all: where it is right, the rest is.
    let text = render_env(manifest, session);
    inside.publish(&place.join("env"), text.as_bytes(), 0o644, Owner::ROOT)?;
    Ok(())
}

/// Where each process listens, as assignments of sh.
fn render_env(manifest: &Manifest, session: &str) -> String {
    let line = |process: &crate::profile::Process| {
        let value = quote(&listen(session, &process.name));
        format!("listen_{}={value}\n", template::key(&process.name))
    };
    manifest.profile.processes.iter().map(line).collect()
}

/// Renders the profile's files again, with the session's values.
fn write_files(inside: &Inside, manifest: &Manifest, session: &str) -> Result<()> {
    let profile = &manifest.profile;
    let cores = parallel::processors();
    let workers = u32::try_from(2 * cores + 1).unwrap_or(u32::MAX);
    let mut values = Values::of(profile).with_workers(workers);
    for process in &profile.processes {
        values = values.listening(&process.name, listen(session, &process.name));
    }
    for rendered in &profile.files {
        let Some(source) = &rendered.content else { continue };
        let text = template::render(source, &values)
            .with_context(|| format!("rendering {}", rendered.path.display()))
            .hint("bake the release again: its template does not fit this farmctl")?;
        inside.publish(&rendered.path, text.as_bytes(), rendered.permissions(), Owner::ROOT)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: Account = Account { uid: 200_000, gid: 200_001 };

    #[test]
    fn the_user_keeps_name_home_and_shell() {
        let text = "root:x:0:0:root:/root:/bin/bash\napp:x:1000:1001::/home/app:/bin/bash\n";
        let (text, baked) = map_passwd(text, "app", ACCOUNT).expect("there is a user app");
        assert_eq!(
            text,
            "root:x:0:0:root:/root:/bin/bash\napp:x:200000:200001::/home/app:/bin/bash\n"
        );
        let owner = Owner { uid: 1000, gid: 1001 };
        assert_eq!(baked, Baked { owner, home: PathBuf::from("/home/app") });
    }

    #[test]
    fn a_release_without_the_user_or_with_its_uid_taken_is_refused() {
        let text = "root:x:0:0:root:/root:/bin/bash\n";
        let error = map_passwd(text, "app", ACCOUNT).expect_err("there is none");
        assert_eq!(error.to_string(), "the release has no user app");
        let text = "eve:x:200000:5::/:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
        let error = map_passwd(text, "app", ACCOUNT).expect_err("eve has its uid");
        assert_eq!(error.to_string(), "the release's user eve has the application's uid 200000");
    }

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

    #[test]
    fn the_users_group_is_mapped_or_made() {
        assert_eq!(
            map_group("users:x:100:app\napp:x:1000:ann\n", "app", 200_001),
            "users:x:100:app\napp:x:200001:ann\n"
        );
        assert_eq!(map_group("users:x:100:\n", "app", 7), "users:x:100:\napp:x:7:\n");
    }
}
