//! An application with many releases, made in a second each.

use std::fs;
use std::path::PathBuf;

use crate::common::Farm;
use crate::signal::word;
use crate::tiny::{self, Tiny};
use crate::web::get;

pub const PORT: u16 = 18_085;

/// A release of the application `shop`: a real nginx that listens on its socket.
pub struct Shop<'a> {
    pub version: &'a str,
    /// What its server is started with.
    pub before: &'a str,
    /// What it answers to the question whether it is ready, and to all others.
    pub ready: u16,
    pub page: u16,
    /// More of what its server answers to.
    pub locations: &'a str,
    /// More of its profile.
    pub rest: &'a str,
    /// More addresses it listens on, each with a comma before it.
    pub listen: &'a str,
    /// More of its `[front]`.
    pub front: &'a str,
}

impl<'a> Shop<'a> {
    pub fn new(version: &'a str) -> Self {
        let (ready, page) = (200, 200);
        let nothing = "";
        Self {
            version,
            before: nothing,
            ready,
            page,
            locations: nothing,
            rest: nothing,
            listen: nothing,
            front: nothing,
        }
    }

    /// Packs its tarball.
    pub fn pack(&self, farm: &Farm) -> PathBuf {
        let Self { version, before, ready, page, locations, rest, listen, front } = self;
        let server = format!(
            "worker_processes 2; pid /tmp/nginx.pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p;\n\
             fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
             server {{ listen {{{{ listen.web }}}};\n\
             location = /ready {{ return {ready} ready; }}\n\
             location = /slow {{ root /srv; limit_rate 10k; }}\n\
             {locations}\n\
             location / {{ return {page} {version}; }} }} }}\n"
        );
        let profile = tiny::profile(
            "shop",
            version,
            &format!(
                "[[file]]\npath = \"/etc/shop.conf\"\ncontent = \"\"\"\n{server}\"\"\"\n\n\
                 [[process]]\nname = \"web\"\nreload = \"HUP\"\nstop = {{ signal = \"QUIT\" }}\n\
                 ready = {{ http = \"/ready\", within = \"5s\" }}\n\
                 command = \"{before}nginx -e stderr -c /etc/shop.conf -g 'daemon off;'\"\n\n\
                 {rest}\n[front]\nlisten = [\"127.0.0.1:{PORT}\"{listen}]\n{front}\n"
            ),
        );
        let out = farm.root().join("out");
        fs::create_dir_all(&out).expect("there is room");
        let slow = vec![b'x'; 100 << 10];
        Tiny::new(&profile)
            .with("/usr/sbin/nginx")
            .file("srv/slow", slow, 0o644)
            .file("srv/static/page.css", *version, 0o644)
            .file("srv/static/logo.txt", "the shop", 0o644)
            .pack(&out)
    }

    /// Installs it and starts it.
    pub fn start(&self, farm: &Farm) {
        farm.run(&["install", word(&self.pack(farm))]).ok();
        farm.run(&["start", "shop"]).ok();
    }
}

pub fn url() -> String {
    format!("http://127.0.0.1:{PORT}/")
}

#[track_caller]
pub fn assert_serves(version: &str) {
    let answer = get(PORT, "/");
    assert_eq!((answer.status, answer.body.as_str()), (200, version));
}

/// One session, one server, and nothing of another.
#[track_caller]
pub fn assert_alone(farm: &Farm) {
    farm.assert_clean();
    let sessions = fs::read_dir("/var/lib/schroot/session").expect("schroot is installed");
    let ours = sessions.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("fs-shop-")
    });
    assert_eq!(ours.count(), 1);
    for place in ["front/.sessions", "apps/shop"] {
        let entries = fs::read_dir(farm.root().join("run/farmctl").join(place));
        assert_eq!(entries.expect("one is served").count(), 1, "{place}");
    }
}
