//! The configuration of farmctl's supervisord, as text.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;

use super::{Program, Seat, entry, parts};
use crate::layout::Layout;
use crate::run::quote;

/// A process that lives this long, in seconds, has been started.
const START_SECONDS: u32 = 2;
/// How often one that does not is started again; supervisord waits a second more each time.
const START_RETRIES: u32 = 10;
/// Size at which a log is rotated, and how many older ones are kept.
const LOG_SIZE: &str = "10MB";
pub(super) const LOGS_KEPT: u32 = 5;
/// What tells the second program of a process that is replaced from the first.
const SECOND: &str = ".2";

/// Names of programs are unique in all of supervisord, not only in their group.
/// No process has a dot in its name.
pub(super) fn program_name(session: &str, process: &str, seat: Seat) -> String {
    match seat {
        Seat::First => format!("{session}.{process}"),
        Seat::Second => format!("{session}.{process}{SECOND}"),
    }
}

/// The process and the seat that a program of a session is.
pub(super) fn parse_program<'a>(session: &str, program: &'a str) -> (&'a str, Seat) {
    let name = program.strip_prefix(session).and_then(|name| name.strip_prefix('.'));
    let name = name.unwrap_or(program);
    match name.strip_suffix(SECOND) {
        Some(process) => (process, Seat::Second),
        None => (name, Seat::First),
    }
}

/// A value of supervisord's configuration: `%` begins an expansion, ` ;` a comment.
fn literal(value: &str) -> String {
    value.replace('%', "%%")
}

/// supervisord.conf(5). `umask` is that of the processes as well.
pub(super) fn render_daemon(layout: &Layout, descriptors: u64) -> String {
    let path = |path: PathBuf| literal(&path.to_string_lossy());
    format!(
        "; Written by farmctl; changes are lost.\n\
         [unix_http_server]\n\
         file={socket}\n\
         chmod=0700\n\
         \n\
         [supervisord]\n\
         identifier=farmctl\n\
         logfile={log}\n\
         logfile_maxbytes={LOG_SIZE}\n\
         logfile_backups={LOGS_KEPT}\n\
         pidfile={pid}\n\
         directory=/\n\
         umask=022\n\
         minfds={descriptors}\n\
         nocleanup=true\n\
         \n\
         [rpcinterface:supervisor]\n\
         supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
         \n\
         [include]\n\
         files={sessions}/*.conf\n",
        socket = path(layout.supervisor_socket()),
        log = path(layout.logs().join("supervisord.log")),
        pid = path(layout.supervisor_pid()),
        sessions = path(layout.supervisor().join("sessions")),
    )
}

/// The group and the programs of a session. They are started by order, not with the
/// daemon: whether the session is there is not its business. Two seats of a process have one
/// log; where that is rotated while both are taken, lines may come into an older one.
pub(super) fn render_session(
    layout: &Layout,
    session: &str,
    programs: &[Program],
) -> Result<String> {
    let (app, id) = parts(session)?;
    let seats = programs.iter().flat_map(|program| {
        let name = |seat: &Seat| program_name(session, &program.process, *seat);
        program.seats().iter().map(name).map(move |name| (program, name))
    });
    let (programs, names): (Vec<&Program>, Vec<String>) = seats.unzip();
    let mut text = format!(
        "; Written by farmctl; changes are lost.\n[group:{session}]\nprograms={}\n",
        names.join(",")
    );
    for (program, name) in programs.into_iter().zip(&names) {
        let command: Vec<String> =
            entry::command(program)?.iter().map(|word| quote(word)).collect();
        let _ = write!(
            text,
            "\n\
             [program:{name}]\n\
             command={command}\n\
             directory=/\n\
             autostart=false\n\
             autorestart=true\n\
             startsecs={START_SECONDS}\n\
             startretries={START_RETRIES}\n\
             stopsignal={signal}\n\
             stopwaitsecs={within}\n\
             stopasgroup=false\n\
             killasgroup=true\n\
             redirect_stderr=true\n\
             stdout_logfile={log}\n\
             stdout_logfile_maxbytes={LOG_SIZE}\n\
             stdout_logfile_backups={LOGS_KEPT}\n",
            command = literal(&command.join(" ")),
            signal = program.stop.signal,
            within = program.stop.within.0,
            log = literal(&layout.process_log(app, &program.process, id).to_string_lossy()),
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::profile::{Reload, Stop};

    #[test]
    fn the_daemon_has_a_socket_and_files_of_its_own() {
        insta::assert_snapshot!(render_daemon(&Layout::new("/", None), 65_536), @r"
        ; Written by farmctl; changes are lost.
        [unix_http_server]
        file=/run/farmctl/supervisor.sock
        chmod=0700

        [supervisord]
        identifier=farmctl
        logfile=/var/log/farmctl/supervisord.log
        logfile_maxbytes=10MB
        logfile_backups=5
        pidfile=/run/farmctl/supervisord.pid
        directory=/
        umask=022
        minfds=65536
        nocleanup=true

        [rpcinterface:supervisor]
        supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

        [include]
        files=/var/lib/farmctl/supervisor/sessions/*.conf
        ");
    }

    #[test]
    fn a_process_is_entered_with_chroot_and_restarted_when_it_dies() {
        let session = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(session.path().join("etc")).expect("it is writable");
        fs::write(session.path().join("etc/passwd"), "app:x:200000:200000::/home/app:/bin/bash\n")
            .expect("it is writable");
        let program = |process: &str| Program {
            process: process.to_owned(),
            release: "1.4.2".to_owned(),
            session: "fs-shop-1".to_owned(),
            mount: session.path().to_owned(),
            mounts: Vec::new(),
            uid: 200_000,
            gid: 200_000,
            stop: Stop::default(),
            reload: if process == "web" { Reload::Restart } else { Reload::Replace },
        };
        let text = render_session(
            &Layout::new("/", None),
            "fs-shop-1",
            &[program("web"), program("worker-2")],
        )
        .expect("the session has the user")
        .replace(&session.path().display().to_string(), "/run/schroot/mount/fs-shop-1");
        let (text, second) =
            text.split_once("\n[program:fs-shop-1.worker-2.2]").expect("it has one");
        let (_, first) = text.split_once("\n[program:fs-shop-1.worker-2]").expect("it has one");
        assert_eq!(second, first, "both seats of a process are the same");
        insta::assert_snapshot!(text, @r"
        ; Written by farmctl; changes are lost.
        [group:fs-shop-1]
        programs=fs-shop-1.web,fs-shop-1.worker-2,fs-shop-1.worker-2.2

        [program:fs-shop-1.web]
        command=/usr/sbin/chroot --userspec=200000:200000 --groups= /run/schroot/mount/fs-shop-1 /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 HOME=/home/app USER=app LOGNAME=app SHELL=/bin/sh /usr/local/bin/project run web
        directory=/
        autostart=false
        autorestart=true
        startsecs=2
        startretries=10
        stopsignal=TERM
        stopwaitsecs=30
        stopasgroup=false
        killasgroup=true
        redirect_stderr=true
        stdout_logfile=/var/log/farmctl/shop/web.1.log
        stdout_logfile_maxbytes=10MB
        stdout_logfile_backups=5

        [program:fs-shop-1.worker-2]
        command=/usr/sbin/chroot --userspec=200000:200000 --groups= /run/schroot/mount/fs-shop-1 /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 HOME=/home/app USER=app LOGNAME=app SHELL=/bin/sh /usr/local/bin/project run worker-2
        directory=/
        autostart=false
        autorestart=true
        startsecs=2
        startretries=10
        stopsignal=TERM
        stopwaitsecs=30
        stopasgroup=false
        killasgroup=true
        redirect_stderr=true
        stdout_logfile=/var/log/farmctl/shop/worker-2.1.log
        stdout_logfile_maxbytes=10MB
        stdout_logfile_backups=5
        ");
    }
}
