//! `farmctl status`: one screen about one application.

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::Exit;
use crate::front;
use crate::history::{self, Change, Outcome};
use crate::manifest::Derived;
use crate::node;
use crate::process;
use crate::ready::{self, Look};
use crate::release::Edited;
use crate::schroot;
use crate::session;
use crate::storage;
use crate::supervise;
use crate::ui;

/// Show how an application is doing
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  farmctl status hello --json\n\nExits 3 when something that should run does not."
)]
pub struct Args {
    /// The application
    name: String,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Status {
    /// Application.
    name: String,
    /// `running`, `stopped`, or `broken`: started, and not all of it is as it should be.
    state: &'static str,
    /// Version that runs or would be started.
    release: Option<String>,
    /// SHA-256 of the release's manifest, hex.
    identity: Option<String>,
    /// What the release was derived from on this node, and how.
    derived: Option<Derived>,
    /// Versions installed, oldest first.
    releases: Vec<String>,
    /// The session that serves; none while it is stopped.
    session: Option<SessionStatus>,
    /// Sessions that served before and stand by.
    standby: Vec<Standby>,
    /// Until when the release must be confirmed, if it must.
    confirm_by: Option<i64>,
    /// The release that is looked at beside it.
    preview: Option<PreviewStatus>,
    /// Its processes, in the order of the profile.
    processes: Vec<ProcessStatus>,
    /// What leads to it; none for a profile without one.
    front: Option<FrontStatus>,
    /// Backend that keeps the release's volume.
    storage: String,
    /// Room in that storage.
    free_bytes: u64,
    /// How full a thin pool's metadata is.
    metadata_percent: Option<f64>,
    /// The last change that somebody asked for.
    last_change: Option<Change>,
    /// Whether something is left to finish of one that was cut short.
    unfinished: bool,
    /// What farmctl tend has changed since, last.
    tended: Option<Change>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct SessionStatus {
    /// Name to schroot.
    name: String,
    /// Whether schroot knows it and it is mounted.
    live: bool,
    /// What is wrong with it.
    flaw: Option<String>,
    /// When it was begun, seconds since 1970.
    begun: i64,
    /// About; none where nobody counts it.
    written_bytes: Option<u64>,
    /// How much can be written before the session breaks; none where it cannot.
    room_bytes: Option<u64>,
    /// Whether it still has what was written.
    whole: bool,
    /// What farmctl dev has changed in it; none if that is nothing.
    edited: Option<Edited>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct Standby {
    /// Name of the session.
    name: String,
    /// Version.
    release: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct PreviewStatus {
    /// Name of the session.
    name: String,
    /// Version.
    release: String,
    /// Where it can be looked at.
    address: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct ProcessStatus {
    /// Name in the profile.
    name: String,
    /// `running`, `starting`, `backoff`, `stopping`, `stopped` or `failed`.
    state: String,
    /// Process id of the server itself.
    pid: Option<u32>,
    /// How many children it has.
    workers: usize,
    /// Memory of it and its children.
    memory_bytes: u64,
    /// When it was started, seconds since 1970.
    since: Option<i64>,
    /// HTTP status it answers to its readiness check, or `no answer`; none without one.
    ready: Option<String>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct FrontStatus {
    /// First address, a URL.
    address: String,
    /// Whether nginx leads requests to it.
    published: bool,
    /// Whether nginx answers them with 503, because it is stopped.
    unavailable: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the application is not installed or its state is damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    let app = node.installed(&args.name)?;
    let version =
        app.session.as_ref().map(|session| session.version.clone()).or(app.current.clone());
    let release = version.as_deref().and_then(|version| app.release(version));
    let manifest = match &version {
        Some(version) => Some(super::manifest_of(&node, &app, version)?),
        None => None,
    };
    let mut processes = Vec::new();
    let mut sound = true;
    let mut session_status = None;
    if let (Some(session), Some(manifest)) = (&app.session, &manifest) {
        let live = schroot::is_live(&session.name)?;
        let flaw = session::flaw(node.layout(), manifest, session)?;
        sound &= flaw.is_none();
        let copy = session::copy_of(&app, session, &node.site())?;
        let whole = copy.as_ref().is_none_or(|copy| copy.whole);
        sound &= whole;
        session_status = Some(SessionStatus {
            name: session.name.clone(),
            live,
            flaw,
            begun: session.begun,
            written_bytes: match &copy {
                Some(copy) => copy.written,
                None => Some(schroot::written(&session.name)),
            },
            room_bytes: copy.and_then(|copy| copy.room),
            whole,
            edited: session.edited.clone(),
        });
        let states = supervise::detect(node.layout()).states(&session.name)?;
        for process in &manifest.profile.processes {
            let state = states.iter().find(|state| state.process == process.name);
            let pid = state.and_then(|state| state.pid);
            let workers = pid.map(process::children).transpose()?.unwrap_or_default();
            let socket = node.layout().socket(&app.name, &session.name, &process.name);
            let front = manifest.profile.front.as_ref();
            let look = ready::look(process, None, &socket, front, &session.name);
            let ready = look.map(|look| match look {
                Look { status: Some(status), .. } => status.to_string(),
                Look { trouble: None, .. } => "yes".to_owned(),
                Look { trouble: Some(_), .. } => "no answer".to_owned(),
            });
            sound &= pid.is_some() && ready.as_deref() != Some("no answer");
            processes.push(ProcessStatus {
                name: process.name.clone(),
                state: state.map_or("stopped".to_owned(), |state| state.state.to_string()),
                pid,
                workers: workers.len(),
                memory_bytes: pid.into_iter().chain(workers).filter_map(process::memory).sum(),
                since: state.and_then(|state| state.since),
                ready,
            });
        }
    }
    let front = match manifest
        .as_ref()
        .and_then(|manifest| manifest.profile.front.as_ref().map(|front| (manifest, front)))
    {
        Some((manifest, front)) => {
            let published = match &app.session {
                Some(session) => front::is_published(node.layout(), manifest, &session.name)?,
                None => false,
            };
            sound &= published || app.session.is_none();
            let unavailable = app.session.is_none() && front::has_vhost(&app.name);
            Some(FrontStatus { address: front::address(front), published, unavailable })
        }
        None => None,
    };
    let backend = release.map_or("directory", |release| release.storage.as_str());
    let usage = storage::named(backend, &node.site())?.usage()?;
    let changes = history::read(node.layout(), &app.name)?;
    let last_change = history::last_asked(&changes).cloned();
    let tended = changes.last().filter(|change| change.by == history::TEND).cloned();
    let is_cut_short = |change: &Change| change.result == Outcome::CutShort;
    let stands_by = !app.standby.is_empty() && app.confirm_by.is_none();
    let unfinished = last_change.as_ref().is_some_and(is_cut_short)
        && (stands_by
            || node.abandoned()?.iter().any(|it| it.subject() == app.name && !it.is_kept()));
    let status = Status {
        state: match (&app.session, sound) {
            (None, _) => "stopped",
            (Some(_), true) => "running",
            (Some(_), false) => "broken",
        },
        identity: release.map(|release| release.identity.clone()),
        derived: manifest.as_ref().and_then(|manifest| manifest.derived.clone()),
        release: version,
        releases: app.releases.iter().map(|release| release.version.clone()).collect(),
        session: session_status,
        standby: app
            .standby
            .iter()
            .map(|session| Standby { name: session.name.clone(), release: session.version.clone() })
            .collect(),
        confirm_by: app.confirm_by,
        preview: app.preview.as_ref().map(|it| PreviewStatus {
            name: it.session.name.clone(),
            release: it.session.version.clone(),
            address: it.port.map(|port| format!("http://127.0.0.1:{port}/")),
        }),
        processes,
        front,
        storage: backend.to_owned(),
        free_bytes: usage.free,
        metadata_percent: usage.metadata_percent,
        unfinished,
        last_change,
        tended,
        name: app.name,
    };
    if args.json {
        context.ui.json(&status);
    } else {
        context.ui.answer(render(&status, node::now(), context.ui.width()));
    }
    Ok(if sound { Exit::Done } else { Exit::NotRight })
}

/// What of a change was done, how it ended, when, and the first line of why.
fn told(what: &str, change: &Change, now: i64) -> String {
    let ago = ui::span(now - change.ended.unwrap_or(change.began));
    let why = change.reason().map_or(String::new(), |why| format!(": {why}"));
    ui::one_line(&format!("{what}, {} {ago} ago{why}", change.result)).into_owned()
}

fn render(status: &Status, now: i64, width: usize) -> String {
    let row = |label: &str, text: String| vec![label.to_owned(), text];
    let mut rows = vec![row(&status.name, status.state.to_owned())];
    if let Some(release) = &status.release {
        let identity = status.identity.as_deref().unwrap_or_default();
        let others: Vec<&str> = status
            .releases
            .iter()
            .map(String::as_str)
            .filter(|version| version != release)
            .collect();
        let others = if others.is_empty() {
            String::new()
        } else {
            format!("; also installed: {}", others.join(", "))
        };
        rows.push(row(
            "release",
            format!("{release} (sha256 {}){others}", identity.get(..12).unwrap_or(identity)),
        ));
    }
    if let Some(Derived { from, by, .. }) = &status.derived {
        rows.push(row("derived", format!("from {from}, by installing {}", by.join(", "))));
    }
    if let Some(session) = &status.session {
        let mut text = format!("{}, begun {} ago", session.name, ui::span(now - session.begun));
        if let Some(written) = session.written_bytes {
            text += &format!(", {} written", ui::size(written));
        }
        if let Some(room) = session.room_bytes {
            text += &format!(" of {}", ui::size(room));
        }
        if !session.whole {
            text += ", its snapshot got full: what it wrote is lost";
        }
        if let Some(flaw) = &session.flaw {
            text += &format!("; {flaw}");
        }
        rows.push(row("session", text));
        rows.extend(session.edited.as_ref().map(|edited| {
            let release = status.release.as_deref().unwrap_or_default();
            let count = ui::count(edited.paths.len(), "path");
            let project = edited.project.display();
            row("edited", format!("not as {release}: {count} as saved in {project}"))
        }));
    }
    let is_watched = |change: &Change| change.result == Outcome::UnderWay;
    let is_watched = status.last_change.as_ref().is_some_and(is_watched);
    for session in &status.standby {
        let release = status.release.as_deref().unwrap_or_default();
        let until = match status.confirm_by {
            None if is_watched => format!("until {release} has proved itself"),
            None => {
                format!("which farmctl tend ends, or leads back to if {release} does not serve")
            }
            Some(by) => {
                let left = ui::span(by - now);
                format!("serves again in {left}, unless: farmctl confirm {}", status.name)
            }
        };
        let text = format!("{} of {}, {until}", session.name, session.release);
        rows.push(row("standby", text));
    }
    if let Some(PreviewStatus { name, release, address }) = &status.preview {
        let address = address.as_ref().map_or(String::new(), |it| format!(", {it}"));
        rows.push(row("preview", format!("{name} of {release}{address}")));
    }
    for process in &status.processes {
        let pid = process.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
        let workers = if process.workers == 0 {
            String::new()
        } else {
            format!(", {}", ui::count(process.workers, "worker"))
        };
        let since =
            process.since.map_or(String::new(), |since| format!(", up {}", ui::span(now - since)));
        let memory = if process.memory_bytes == 0 {
            String::new()
        } else {
            format!(", {}", ui::size(process.memory_bytes))
        };
        let ready = process.ready.as_ref().map_or(String::new(), |ready| match ready.as_str() {
            "yes" => ", ready".to_owned(),
            "no answer" => ", not ready".to_owned(),
            status => format!(", answers {status}"),
        });
        rows.push(row(
            &format!("process {}", process.name),
            format!("{}{pid}{workers}{memory}{since}{ready}", process.state),
        ));
    }
    if let Some(front) = &status.front {
        let state = match (front.published, front.unavailable) {
            (true, _) => "",
            (false, true) => " (answers 503)",
            (false, false) => " (not published)",
        };
        rows.push(row("front", format!("{}{state}", front.address)));
    }
    let metadata = super::metadata(status.metadata_percent);
    let free = ui::size(status.free_bytes);
    rows.push(row("storage", format!("{}, {free} free{metadata}", status.storage)));
    if let Some(change) = &status.last_change {
        let Change { verb, what, by, .. } = change;
        rows.push(row("last change", told(&format!("{verb} {what} by {by}"), change, now)));
    }
    if let Some(change) = &status.tended {
        rows.push(row("tended", told(&change.what, change, now)));
    }
    let name = &status.name;
    match &status.last_change {
        Some(Change { verb, .. }) if status.unfinished => {
            let tidy = if status.session.is_some() { "tend" } else { "gc" };
            rows.push(row(
                "hint",
                format!("farmctl {tidy} clears up after it; the same farmctl {verb} finishes it"),
            ));
        }
        _ if status.state == "broken" => {
            rows.push(row("hint", format!("farmctl start {name} brings it back")));
        }
        _ => {}
    }
    ui::folded(&rows, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            name: "shop".to_owned(),
            state: "running",
            release: Some("1.4.2".to_owned()),
            identity: Some("0123456789abcdef".to_owned()),
            derived: None,
            releases: vec!["1.4.1".to_owned(), "1.4.2".to_owned()],
            session: Some(SessionStatus {
                name: "fs-shop-1".to_owned(),
                live: true,
                flaw: None,
                begun: 100,
                written_bytes: Some(2048),
                room_bytes: None,
                whole: true,
                edited: Some(Edited {
                    project: "/root/shop".into(),
                    paths: vec!["/srv/shop/shop.py".into()],
                }),
            }),
            standby: vec![Standby { name: "fs-shop-0".to_owned(), release: "1.4.1".to_owned() }],
            confirm_by: None,
            preview: Some(PreviewStatus {
                name: "fs-shop-2".to_owned(),
                release: "1.5.0".to_owned(),
                address: Some("http://127.0.0.1:8900/".to_owned()),
            }),
            processes: vec![ProcessStatus {
                name: "web".to_owned(),
                state: "running".to_owned(),
                pid: Some(42),
                workers: 5,
                memory_bytes: 10 << 20,
                since: Some(100),
                ready: Some("200".to_owned()),
            }],
            front: Some(FrontStatus {
                address: "http://127.0.0.1:8080/".to_owned(),
                published: true,
                unavailable: false,
            }),
            storage: "directory".to_owned(),
            free_bytes: 5 << 30,
            metadata_percent: None,
            last_change: Some(Change {
                began: 100,
                ended: Some(104),
                verb: "upgrade".to_owned(),
                what: "from 1.4.1 to 1.4.2".to_owned(),
                by: "anna".to_owned(),
                result: Outcome::Done,
                error: None,
            }),
            unfinished: false,
            tended: None,
        }
    }

    #[test]
    fn the_status_of_a_running_application_fits_one_screen() {
        insta::assert_snapshot!(render(&status(), 400, usize::MAX), @r"
        shop         running
        release      1.4.2 (sha256 0123456789ab); also installed: 1.4.1
        session      fs-shop-1, begun 5 min ago, 2.00 KiB written
        edited       not as 1.4.2: 1 path as saved in /root/shop
        standby      fs-shop-0 of 1.4.1, which farmctl tend ends, or leads back to if 1.4.2 does not serve
        preview      fs-shop-2 of 1.5.0, http://127.0.0.1:8900/
        process web  running, pid 42, 5 workers, 10.00 MiB, up 5 min, answers 200
        front        http://127.0.0.1:8080/
        storage      directory, 5.00 GiB free
        last change  upgrade from 1.4.1 to 1.4.2 by anna, done 4 min ago
        ");
        let waiting = render(&Status { confirm_by: Some(700), ..status() }, 400, usize::MAX);
        assert!(
            waiting.contains(
                "fs-shop-0 of 1.4.1, serves again in 5 min, unless: farmctl confirm shop"
            ),
            "{waiting}"
        );
    }
    #[test]
    fn what_was_cut_short_is_told_until_it_is_finished_with_what_tend_has_done_since() {
        let mut status = Status { preview: None, processes: Vec::new(), ..status() };
        let change = status.last_change.as_mut().expect("there is one");
        (change.result, change.ended) = (Outcome::UnderWay, None);
        let watched = render(&status, 400, usize::MAX);
        assert!(watched.contains(" of 1.4.1, until 1.4.2 has proved itself\n"), "{watched}");
        let change = status.last_change.as_mut().expect("there is one");
        change.result = Outcome::CutShort;
        status.unfinished = true;
        insta::assert_snapshot!(render(&status, 400, usize::MAX), @r"
        shop         running
        release      1.4.2 (sha256 0123456789ab); also installed: 1.4.1
        session      fs-shop-1, begun 5 min ago, 2.00 KiB written
        edited       not as 1.4.2: 1 path as saved in /root/shop
        standby      fs-shop-0 of 1.4.1, which farmctl tend ends, or leads back to if 1.4.2 does not serve
        front        http://127.0.0.1:8080/
        storage      directory, 5.00 GiB free
        last change  upgrade from 1.4.1 to 1.4.2 by anna, cut short 5 min ago
        hint         farmctl tend clears up after it; the same farmctl upgrade finishes it
        ");
        let change = status.last_change.clone().expect("there is one");
        status.tended = Some(Change {
            ended: Some(390),
            verb: "tend".to_owned(),
            what: "recovering the session".to_owned(),
            by: history::TEND.to_owned(),
            result: Outcome::Done,
            ..change.clone()
        });
        let error = "upgrading shop: 1.4.1 serves again: process web: it has ended\n  | bye";
        status.last_change = Some(Change {
            ended: Some(200),
            result: Outcome::SwitchedBack,
            error: Some(error.to_owned()),
            ..change
        });
        status = Status { unfinished: false, standby: Vec::new(), ..status };
        insta::assert_snapshot!(render(&status, 400, usize::MAX), @r"
        shop         running
        release      1.4.2 (sha256 0123456789ab); also installed: 1.4.1
        session      fs-shop-1, begun 5 min ago, 2.00 KiB written
        edited       not as 1.4.2: 1 path as saved in /root/shop
        front        http://127.0.0.1:8080/
        storage      directory, 5.00 GiB free
        last change  upgrade from 1.4.1 to 1.4.2 by anna, switched back 3 min ago: upgrading shop: 1.4.1 serves again: process web: it has ended
        tended       recovering the session, done 10 s ago
        ");
    }
}
