//! The vhost: TLS, what the administrator adds, what visitors meet when nobody answers.

mod common;
#[path = "common/server.rs"]
mod server;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod tiny;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use common::{Farm, called, run, tool};
use serde_json::Value;
use signal::word;
use tiny::Tiny;
use web::{ask, get, get_with};

/// What a client that trusts `authority` is answered by HTTPS: the head, and the body.
fn get_by_tls(authority: &Path, name: &str, port: u16, path: &str) -> String {
    let resolve = format!("{name}:{port}:127.0.0.1");
    let url = format!("https://{name}:{port}{path}");
    let trusted = word(authority);
    tool("curl", &["-sSi", "--noproxy", "*", "--cacert", trusted, "--resolve", &resolve, &url])
}

/// Makes a certificate for a name, as an administrator has one made.
fn certificate(name: &str, chain: &Path, key: &Path) {
    let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
    let kind = ["req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", "-subj", &subject];
    let rest = ["-addext", &names, "-keyout", word(key), "-out", word(chain)];
    assert_eq!(run(called("openssl", &[&kind[..], &rest].concat())).code, 0);
}

#[test]
fn tls_begins_with_a_certificate_of_the_nodes_own_and_takes_the_administrators() {
    const PORT: u16 = 18_091;
    const PLAIN: u16 = 18_092;
    let farm = Farm::new();
    let rest = format!(
        "[front]\nlisten = [\"127.0.0.1:{PLAIN}\"]\nserver-names = [\"shop.example\"]\n\
         redirect-from = [\"www.shop.example\"]\n[front.tls]\nlisten = [\"127.0.0.1:{PORT}\"]\n"
    );
    farm.run(&["install", word(&server::pack(&farm, "1.0", &rest))]).ok();
    let started = farm.run(&["start", "shop"]).ok();
    assert_eq!(started.stdout, format!("https://shop.example:{PORT}/\n"));

    let own = farm.state("tls/shop.crt");
    let answer = get_by_tls(&own, "shop.example", PORT, "/head");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nX-Forwarded-Proto: https\r\n"), "{answer}");
    let key = fs::metadata(farm.state("tls/shop.key")).expect("it has one");
    assert_eq!(key.mode() & 0o7777, 0o600);
    // Another name, which its certificate has as well.
    let sent = get_by_tls(&own, "www.shop.example", PORT, "/a?b=c");
    assert!(sent.starts_with("HTTP/1.1 308 "), "{sent}");
    let location = format!("\r\nLocation: https://shop.example:{PORT}/a?b=c\r\n");
    assert!(sent.contains(&location), "{sent}");
    // Who comes without TLS is sent there, and posts there what he posts.
    let sent = ask("POST", PLAIN, "/a?b=c", "Content-Length: 0\r\n");
    assert_eq!(sent.status, 308);
    let location = format!("location: https://127.0.0.1:{PORT}/a?b=c");
    assert!(sent.head.ends_with(&location), "{}", sent.head);

    // The administrator's own is taken up within a minute, without a command.
    let given = farm.root().join("etc/farmctl/tls");
    fs::create_dir_all(&given).expect("there is room");
    let (chain, key) = (given.join("shop.crt"), given.join("shop.key"));
    // Links, as to where certbot keeps what it renews.
    for (link, file) in [(&chain, "chain.pem"), (&key, "key.pem")] {
        symlink(farm.root().join(file), link).expect("there is room");
    }
    certificate("shop.example", &farm.root().join("chain.pem"), &farm.root().join("key.pem"));
    farm.run(&["tend"]).ok();
    let answer = get_by_tls(&chain, "shop.example", PORT, "/");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    let doctor = farm.run(&["doctor"]);
    assert_eq!(doctor.code, 3, "{}", doctor.stdout);
    let ends = format!("the certificate {} ends at 20", chain.display());
    assert!(doctor.stdout.contains(&ends), "{}", doctor.stdout);

    // One that does not belong to its key is refused by name, and the sites stay up.
    let right = fs::read(&key).expect("it is ours");
    certificate("other.example", &given.join("other.crt"), &key);
    let second =
        server::pack(&farm, "1.1", &rest.replace("[front.tls]", "max-body-mib = 1\n[front.tls]"));
    let refused = farm.run(&["upgrade", "shop", word(&second), "--watch", "1s"]).failed(1);
    assert!(refused.error().contains("key values mismatch"), "{}", refused.stderr);
    assert!(refused.hint().starts_with("the certificate and its key"), "{}", refused.stderr);
    fs::write(&key, right).expect("it is ours");
    let answer = get_by_tls(&chain, "shop.example", PORT, "/");
    assert!(answer.ends_with("1.0"), "{answer}");
    farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok();
    let answer = get_by_tls(&chain, "shop.example", PORT, "/");
    assert!(answer.ends_with("1.1"), "{answer}");

    // A half is none.
    fs::remove_file(&key).expect("it is ours");
    farm.run(&["stop", "shop"]).ok();
    let refused = farm.run(&["start", "shop"]).failed(1);
    let missing = format!("there is no {}", key.display());
    assert!(refused.error().ends_with(&missing), "{}", refused.stderr);
    // What farmctl made goes with the data, what the administrator gave does not.
    farm.run(&["remove", "shop", "--data"]).ok();
    assert!(!own.exists() && !farm.state("tls/shop.key").exists());
    assert!(chain.exists());
    farm.assert_clean();
}

#[test]
fn the_nodes_own_certificate_is_made_for_names_that_come_later() {
    const PORT: u16 = 18_089;
    let farm = Farm::new();
    let rest = |names: &str| {
        format!(
            "[front]\nserver-names = [{names}]\n[front.tls]\nlisten = [\"[::1]:{PORT}\", \"{PORT}\"]\n"
        )
    };
    farm.run(&["install", word(&server::pack(&farm, "1.0", &rest("\"one.example\"")))]).ok();
    farm.run(&["start", "shop"]).ok();
    let own = farm.state("tls/shop.crt");
    let made = || fs::read_to_string(&own).expect("it is there");
    let (first, key) =
        (made(), fs::read_to_string(farm.state("tls/shop.key")).expect("it is there"));
    let both = rest("\"one.example\", \"two.example\"");
    farm.run(&["upgrade", "shop", word(&server::pack(&farm, "1.1", &both)), "--watch", "1s"]).ok();
    let answer = get_by_tls(&own, "two.example", PORT, "/");
    assert!(answer.ends_with("1.1"), "{answer}");
    assert_ne!(made(), first);
    assert_eq!(fs::read_to_string(farm.state("tls/shop.key")).expect("it is there"), key);
    // nginx is told also if that is all there is to tell: an earlier farmctl has kept the first.
    farm.run(&["stop", "shop"]).ok();
    fs::write(&own, &first).expect("it is ours");
    tool("nginx", &["-s", "reload"]);
    farm.run(&["start", "shop"]).ok();
    let answer = get_by_tls(&own, "two.example", PORT, "/");
    assert!(answer.ends_with("1.1"), "{answer}");
    let second = made();
    assert_ne!(second, first);
    // The names it has do for less.
    farm.run(&["rollback", "shop", "--watch", "1s"]).ok();
    farm.run(&["stop", "shop"]).ok();
    farm.run(&["start", "shop"]).ok();
    assert_eq!(made(), second);
    farm.run(&["stop", "shop"]).ok();
    farm.run(&["remove", "shop", "--data"]).ok();
    farm.assert_clean();
}

#[test]
fn the_administrators_own_lines_are_part_of_the_vhost_and_a_mistake_in_them_is_named() {
    const PORT: u16 = 18_093;
    let farm = Farm::new();
    let front = format!("[front]\nlisten = [\"127.0.0.1:{PORT}\"]\n");
    let snippets = farm.root().join("etc/farmctl/nginx/shop");
    fs::create_dir_all(&snippets).expect("there is room");
    let snippet = snippets.join("headers.conf");
    let wrong = "add_heade X-Farm yes always;\n";
    fs::write(&snippet, wrong).expect("there is room");
    farm.run(&["install", word(&server::pack(&farm, "1.0", &front))]).ok();
    let named = format!("unknown directive \"add_heade\" in {}:1", snippet.display());
    let refused = farm.run(&["start", "shop"]).failed(1);
    assert!(refused.error().contains(&named), "{}", refused.stderr);
    assert!(refused.hint().starts_with("that file is yours"), "{}", refused.stderr);
    fs::write(&snippet, wrong.replace("heade ", "header ")).expect("it is ours");
    farm.run(&["start", "shop"]).ok();
    let answer = get(PORT, "/");
    assert!(answer.head.contains("\r\nx-farm: yes"), "{}", answer.head);

    // Once it is in force the vhost before is broken by it, too.
    fs::write(&snippet, wrong).expect("it is ours");
    let second = server::pack(&farm, "1.1", &(front + "max-body-mib = 1\n"));
    let refused = farm.run(&["upgrade", "shop", word(&second), "--watch", "1s"]).failed(1);
    assert!(refused.error().contains(&named), "{}", refused.stderr);
    assert!(refused.hint().starts_with("that file is yours"), "{}", refused.stderr);
    assert_eq!(get(PORT, "/").body, "1.0");
    fs::remove_file(&snippet).expect("it is ours");
    farm.run(&["upgrade", "shop", "1.1", "--watch", "1s"]).ok();
    assert_eq!(get(PORT, "/").body, "1.1");
    farm.assert_clean();
}

#[test]
fn who_asks_too_much_or_too_long_or_when_nobody_answers_is_told() {
    const PORT: u16 = 18_094;
    let farm = Farm::new();
    let front =
        format!("[front]\nlisten = [\"127.0.0.1:{PORT}\"]\nmax-body-mib = 1\ntimeout = \"1s\"\n");
    farm.run(&["install", word(&server::pack(&farm, "1.0", &front))]).ok();
    farm.run(&["start", "shop"]).ok();
    assert_eq!(ask("POST", PORT, "/", "Content-Length: 1048577\r\n").status, 413);
    assert_eq!(get(PORT, "/silent").status, 504);
    // What the application is told of who asks.
    let head = get_with(PORT, "/head", "X-Forwarded-For: 192.0.2.1\r\n").body;
    for line in [
        "X-Real-IP: 127.0.0.1",
        "X-Forwarded-For: 192.0.2.1, 127.0.0.1",
        "X-Forwarded-Proto: http",
        &format!("X-Forwarded-Host: 127.0.0.1:{PORT}"),
    ] {
        assert!(head.lines().any(|one| one == line), "{line} in {head}");
    }

    let status = farm.run(&["status", "shop", "--json"]).ok().stdout;
    let status: Value = serde_json::from_str(&status).expect("it is JSON");
    let pid = status["processes"][0]["pid"].to_string();
    // One that is there and does not answer.
    tool("kill", &["-s", "STOP", &pid]);
    let answer = get(PORT, "/");
    assert_eq!(answer.status, 504);
    assert!(answer.body.contains("<h1>Not available at the moment</h1>"), "{}", answer.body);
    tool("kill", &["-s", "CONT", &pid]);
    let way = farm.root().join("run/farmctl/front/shop/socket");
    fs::remove_file(&way).expect("nginx goes by it");
    let answer = get(PORT, "/");
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("\r\nretry-after: 10"), "{}", answer.head);
    assert!(answer.body.contains("<h1>Not available at the moment</h1>"), "{}", answer.body);
    farm.run(&["tend"]).ok();
    assert_eq!(get(PORT, "/").body, "1.0");
    // A reload that is a restart, where requests go to, says what that costs.
    let plan = farm.run(&["reload", "shop", "--dry-run"]).ok().stdout;
    assert!(plan.contains("restart the process web: meanwhile nobody answers"), "{plan}");
    let reloaded = farm.run(&["reload", "shop"]).ok().stderr;
    assert!(reloaded.contains("until web was back nobody answered: farmctl upgrade"), "{reloaded}");
    farm.assert_clean();
}

/// nginx's workers: others after a reload.
fn nginx_workers() -> BTreeSet<String> {
    let master = fs::read_to_string("/run/nginx.pid").expect("it runs");
    let text = tool("pgrep", &["--parent", master.trim()]);
    text.lines().map(str::to_owned).collect()
}

#[test]
fn who_asks_for_a_stopped_application_sees_the_page_of_the_release_that_ran() {
    const PORT: u16 = 18_099;
    let farm = Farm::new();
    let statics = "[[front.static]]\nlocation = \"/files/\"\npath = \"/srv\"\n";
    let front = |page: &str| format!("[front]\nlisten = [\"127.0.0.1:{PORT}\"]\n{page}{statics}");
    let own = front("error-page = \"/srv/page.html\"\n");
    let first = server::pack(&farm, "1.0", &own);
    let second = server::pack(&farm, "1.1", &own);
    let without = server::pack(&farm, "1.2", &front(""));
    let missing = server::pack(&farm, "1.3", &own.replace("page.html", "pge.html"));
    let failing = "[[process]]\nname = \"other\"\ncommand = \"/bin/false\"\n";
    let failing = server::pack(&farm, "1.4", &format!("{failing}{own}"));
    let refused = farm.run(&["install", word(&missing)]).failed(1);
    assert!(
        refused.error().ends_with("the release has no file /srv/pge.html"),
        "{}",
        refused.stderr
    );
    farm.run(&["install", word(&first)]).ok();
    farm.run(&["start", "shop"]).ok();
    let workers = nginx_workers();
    let shown = |version: &str| {
        for (method, path) in [("GET", "/"), ("POST", "/a?b=c"), ("GET", "/files/page.html")] {
            let answer = ask(method, PORT, path, "");
            assert_eq!(answer.status, 503, "{method} {path}: {answer:?}");
            assert!(answer.head.contains("\r\nretry-after: 10"), "{}", answer.head);
            assert!(answer.head.contains("\r\ncontent-type: text/html"), "{}", answer.head);
            assert_eq!(
                answer.body,
                format!("<h1>{version} is back soon</h1>\n"),
                "{method} {path}"
            );
        }
    };
    // A process that has been lost, and with it what was on its way.
    let socket = farm.root().join("run/farmctl/front/shop/socket");
    fs::remove_file(&socket).expect("nginx goes by it");
    assert_eq!(get(PORT, "/").body, "<h1>1.0 is back soon</h1>\n");
    assert_eq!(get(PORT, "/files/page.html").status, 200);
    farm.run(&["tend"]).ok();
    assert_eq!(get(PORT, "/").body, "1.0");
    assert_eq!(get(PORT, "/+unavailable").status, 404);

    farm.run(&["stop", "shop"]).ok();
    shown("1.0");
    let status = farm.run(&["status", "shop"]).stdout;
    assert!(status.contains(" (answers 503)\n"), "{status}");
    farm.run(&["install", word(&failing)]).ok();
    farm.run(&["start", "shop", "--release", "1.4"]).failed(1);
    shown("1.0");
    farm.run(&["start", "shop", "--release", "1.0"]).ok();
    farm.run(&["upgrade", "shop", word(&second), "--watch", "1s"]).ok();
    farm.run(&["stop", "shop"]).ok();
    shown("1.1");
    // All of that without a word to nginx, and a page of its own is none of the vhost's.
    farm.run(&["start", "shop"]).ok();
    farm.run(&["upgrade", "shop", word(&without), "--watch", "1s"]).ok();
    assert_eq!(nginx_workers(), workers);
    farm.run(&["stop", "shop"]).ok();
    let answer = get(PORT, "/");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("<h1>Not available at the moment</h1>"), "{}", answer.body);
    farm.assert_clean();

    // It keeps its address until it is wanted.
    let other = format!(
        "[front]\nlisten = [\"127.0.0.1:{PORT}\"]\n[[front.static]]\nlocation = \"/\"\n\
         path = \"/srv/site\"\n"
    );
    let other = Tiny::new(&tiny::profile("files", "1.0", &other))
        .file("srv/site/index.html", "files\n", 0o644)
        .pack(&farm.root().join("out"));
    farm.run(&["install", word(&other)]).ok();
    let displaced = farm.run(&["start", "files"]).ok();
    assert!(displaced.stderr.contains("shop, which is stopped, had its address"), "{displaced:?}");
    assert_eq!(get(PORT, "/").body, "files\n");
    let refused = farm.run(&["start", "shop"]).failed(1);
    assert!(refused.error().contains("application files has all names"), "{}", refused.stderr);
    farm.run(&["stop", "files"]).ok();
    assert_eq!(get(PORT, "/").status, 503);
    farm.run(&["stop", "files", "--withdraw"]).ok();
    assert!(TcpStream::connect(("127.0.0.1", PORT)).is_err());
    let again = farm.run(&["stop", "files", "--withdraw"]).ok();
    assert!(again.stderr.contains("files is stopped already"), "{}", again.stderr);
    farm.run(&["start", "shop"]).ok();
    farm.run(&["stop", "shop", "--withdraw"]).ok();
    assert!(TcpStream::connect(("127.0.0.1", PORT)).is_err());
    farm.assert_clean();
}
