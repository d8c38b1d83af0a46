//! What surrounds the switch of an application from release to release: what nginx is told
//! and when, and what stands by.

#![expect(clippy::disallowed_types, reason = "tests start the program as a user does")]

#[path = "common/mod.rs"]
mod common;
#[path = "common/shop.rs"]
mod shop;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/web.rs"]
mod web;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::{Farm, tool, wait_for};
use nix::sys::signal::Signal;
use shop::{PORT, Shop, assert_alone, assert_serves, url};
use signal::{Working, word};
use web::{Load, ask, get};

/// Where a site that is not farmctl's listens.
const FOREIGN: u16 = 18_086;
/// How long nginx may take to take up a configuration.
const SOON: Duration = Duration::from_secs(20);

/// A site of somebody else's in nginx, gone with the test.
struct Foreign(PathBuf);

impl Foreign {
    fn new(text: &str) -> Self {
        let path = PathBuf::from("/etc/nginx/sites-enabled/zz-farmctl-test");
        fs::write(&path, text).expect("tests run as root");
        Self(path)
    }

    /// One that serves.
    #[track_caller]
    fn serving() -> Self {
        let text = "listen 127.0.0.1:18086 default_server; location / { return 200 foreign; }";
        let site = Self::new(&format!("server {{ {text} }}\n"));
        tool("nginx", &["-s", "reload"]);
        wait_for("the foreign site", SOON, || {
            std::net::TcpStream::connect(("127.0.0.1", FOREIGN)).is_ok()
        });
        site
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
        drop(std::process::Command::new("nginx").args(["-s", "reload"]).status());
    }
}

fn vhost() -> String {
    fs::read_to_string("/etc/nginx/sites-enabled/farmctl-shop").expect("it is published")
}

#[test]
fn while_a_release_is_watched_the_one_before_answers_what_it_breaks_off() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    // 444 has nginx close the connection without a word.
    let broken = Shop { locations: "location = /gone { return 444; }", ..Shop::new("1.1") };
    let file = broken.pack(&farm);
    let watched =
        Working::until(&farm, &["upgrade", "shop", word(&file), "--watch", "600s"], "watching");
    assert_serves("1.1");
    let answer = get(PORT, "/gone");
    assert_eq!((answer.status, answer.body.as_str()), (200, "1.0"));
    // What may not be done twice is not asked twice, once it is sent.
    assert_eq!(ask("POST", PORT, "/gone", "Content-Length: 0\r\n").status, 502);
    assert_eq!(watched.end(Signal::SIGINT).code, 130);
    assert_serves("1.0");
    assert_alone(&farm);
    // Not watched any more, it is asked alone, once.
    farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok();
    assert_eq!(get(PORT, "/gone").status, 502);
    assert_serves("1.1");
    assert_alone(&farm);
}

#[test]
fn a_vhost_nginx_refuses_costs_nothing() {
    let farm = Farm::new();
    Shop::new("1.0").start(&farm);
    let before = vhost();
    let foreign = Foreign::serving();
    let larger = Shop { front: "max-body-mib = 17", ..Shop::new("1.1") }.pack(&farm);
    let taken = Shop { listen: ", \"127.0.0.1:18086\"", ..Shop::new("1.2") }.pack(&farm);
    let load = Load::start(&url());
    let refused = farm.run(&["upgrade", "shop", word(&taken)]).failed(1);
    assert_eq!(
        refused.error(),
        "upgrading shop from 1.0 to 1.2: publishing the vhost farmctl-shop: nginx refuses it: a \
         duplicate default server for 127.0.0.1:18086 in /etc/nginx/sites-enabled/zz-farmctl-test:1"
    );
    assert!(refused.hint().starts_with("another vhost takes all names"), "{}", refused.hint());
    assert_eq!(get(FOREIGN, "/").body, "foreign");
    // Somebody saves a fault into the other site: nginx has not been told yet.
    fs::write(&foreign.0, "server { bogus; }\n").expect("it is ours");
    let refused = farm.run(&["upgrade", "shop", word(&larger)]).failed(1);
    assert_eq!(
        refused.error(),
        "upgrading shop from 1.0 to 1.1: publishing the vhost farmctl-shop: nginx's configuration \
         is not valid already without the new vhost: unknown directive \"bogus\" in \
         /etc/nginx/sites-enabled/zz-farmctl-test:1"
    );
    assert_eq!(refused.hint(), "correct it and try again: nginx -t");
    assert_eq!(vhost(), before);
    assert_serves("1.0");
    // A release with the same vhost needs no word of nginx.
    let same = Shop::new("1.3").pack(&farm);
    farm.run(&["upgrade", "shop", word(&same), "--watch", "1s"]).ok();
    assert_serves("1.3");
    let report = load.end(Duration::from_secs(1));
    assert_eq!((report.socket_errors, report.bad_answers), (0, 0), "{report:?}");
    assert_eq!(get(FOREIGN, "/").body, "foreign");
    assert_alone(&farm);
}

#[test]
fn a_changed_vhost_is_in_force_before_the_first_page_of_its_release() {
    let statics = |locations: &[&str]| -> String {
        let one =
            |it: &&str| format!("[[front.static]]\nlocation = \"{it}\"\npath = \"/srv/static\"\n");
        locations.iter().map(one).collect()
    };
    let farm = Farm::new();
    let first = statics(&["/static/"]);
    Shop { front: &first, ..Shop::new("1.0") }.start(&farm);
    // The location has another place among them: its files are the same place's.
    let both = statics(&["/assets/", "/static/"]);
    let second = Shop { front: &both, ..Shop::new("1.1") }.pack(&farm);
    let page = format!("{}static/page.css", url());
    let load = Load::start(&page);
    farm.run(&["upgrade", "shop", word(&second), "--watch", "1s"]).ok();
    assert_eq!(get(PORT, "/assets/page.css").body, "1.1");
    assert_eq!(get(PORT, "/static/page.css").body, "1.1");
    farm.run(&["rollback", "shop"]).ok();
    assert_eq!(get(PORT, "/static/page.css").body, "1.0");
    assert_eq!(get(PORT, "/assets/page.css").body, "1.0", "the application's own answer");
    // One that does not prove itself takes its vhost with it.
    let before = vhost();
    let bad = Shop { front: &both, page: 500, ..Shop::new("1.2") }.pack(&farm);
    let more = Load::start(&url());
    farm.run(&["upgrade", "shop", word(&bad), "--watch", "60s"]).failed(1);
    drop(more);
    assert_eq!(vhost(), before);
    assert_eq!(get(PORT, "/static/page.css").body, "1.0");
    // nginx before 1.27.4 resets idle connections at a reload: no promise about those.
    let report = load.end(Duration::from_secs(1));
    assert_eq!(report.bad_answers, 0, "{report:?}");
    assert_alone(&farm);
}
