//! What is written into a session: where the application can have put links, so all of it goes
//! through [`Inside`].

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::socket_inside;
use crate::account::Account;
use crate::error::{Mark as _, refuse};
use crate::inside::{Inside, Owner};
use crate::layout::{Layout, PROJECT_RUN};
use crate::manifest::Manifest;
use crate::parallel;
use crate::run::quote;
use crate::secret;
use crate::template::{self, Values};

fn listen(session: &str, process: &str) -> String {
    format!("unix:{}", socket_inside(session, process).display())
}

/// The values of the profile's secrets, by name.
pub(super) fn secrets(layout: &Layout, manifest: &Manifest) -> Result<Vec<(String, String)>> {
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
pub(super) fn settle_user(inside: &Inside, manifest: &Manifest, account: Account) -> Result<()> {
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
pub(super) fn write_runtime(
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
pub(super) fn render_env(manifest: &Manifest, session: &str) -> String {
    let line = |process: &crate::profile::Process| {
        let value = quote(&listen(session, &process.name));
        format!("listen_{}={value}\n", template::key(&process.name))
    };
    manifest.profile.processes.iter().map(line).collect()
}

/// Renders the profile's files again, with the session's values.
pub(super) fn write_files(inside: &Inside, manifest: &Manifest, session: &str) -> Result<()> {
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
    fn the_users_group_is_mapped_or_made() {
        assert_eq!(
            map_group("users:x:100:app\napp:x:1000:ann\n", "app", 200_001),
            "users:x:100:app\napp:x:200001:ann\n"
        );
        assert_eq!(map_group("users:x:100:\n", "app", 7), "users:x:100:\napp:x:7:\n");
    }
}
