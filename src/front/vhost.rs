//! The vhost of an application: its text, and what can be read in it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::certificate::Certificate;
use super::page;
use crate::error::refuse;
use crate::layout::{self, Layout, NGINX_LOGS, WAY_BACKUP, WAY_FILES, WAY_SOCKET};
use crate::manifest::Manifest;
use crate::profile::{Front, StaticFiles};
use crate::template::key;

/// Where the application is reached, for people: its first address, by its first name.
#[must_use]
pub fn address(front: &Front) -> String {
    let tls = front.tls.as_ref().and_then(|tls| tls.listen.first());
    let (scheme, own_port) = if tls.is_some() { ("https", 443) } else { ("http", 80) };
    let listen = tls.or(front.listen.first()).map_or("80", String::as_str);
    let address = listen.parse::<SocketAddr>().ok().filter(|it| !it.ip().is_unspecified());
    let (host, port) = (address.map(|it| host_of(it.ip())), port_of(listen));
    let host = front.host().map(str::to_owned).or(host).unwrap_or_else(|| "127.0.0.1".to_owned());
    if port == own_port {
        format!("{scheme}://{host}/")
    } else {
        format!("{scheme}://{host}:{port}/")
    }
}

/// The port of `PORT` or `ADDRESS:PORT`.
fn port_of(listen: &str) -> u16 {
    listen.parse().map_or_else(|_| listen.parse().unwrap_or(80), |at: SocketAddr| at.port())
}

fn host_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Where a location's files lie for nginx.
enum Source {
    /// In the root-owned copy of the release's.
    Export,
    /// In a data directory on the host, and where links may not lead out of.
    Data { path: PathBuf, top: PathBuf },
}

fn source(layout: &Layout, manifest: &Manifest, files: &StaticFiles) -> Source {
    for data in &manifest.profile.data {
        if let Ok(below) = files.path.strip_prefix(&data.path) {
            let top = layout.app_data(&manifest.name).join(&data.name);
            // Joining an empty path would add a slash.
            let path = if below.as_os_str().is_empty() { top.clone() } else { top.join(below) };
            return Source::Data { path, top };
        }
    }
    Source::Export
}

/// A path as a word of nginx's configuration.
fn word(path: &Path) -> Result<String> {
    let text = path.to_string_lossy();
    // `$` begins a variable, and nothing escapes it.
    if text.contains(['$', '"', '\\', '\n']) {
        return refuse(
            format_args!("nginx cannot use the path {text}"),
            "use another --root, or another path",
        );
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~+,@%:".contains(c);
    Ok(if text.chars().all(plain) { text.into_owned() } else { format!("\"{text}\"") })
}

/// A vhost: what it is called, and the way it leads.
pub(super) struct Site {
    /// The application, or something like it in [`layout::vhost`].
    pub(super) name: String,
    /// Prefix of what nginx has only one of.
    prefix: &'static str,
    /// The directory that leads to a session.
    way: PathBuf,
    pub(super) front: Front,
    /// With TLS only.
    pub(super) certificate: Option<Certificate>,
    /// The administrator's own lines.
    pub(super) snippets: PathBuf,
}

impl Site {
    /// Where an application is reached.
    pub(super) fn of(layout: &Layout, app: &str, front: &Front) -> Self {
        let (prefix, way) = ("farmctl", layout.front_link(app));
        let certificate = front.tls.as_ref().map(|_| Certificate::of(layout, app));
        let (name, front, snippets) = (app.to_owned(), front.clone(), layout.snippets(app));
        Self { name, prefix, way, front, certificate, snippets }
    }

    /// Where a session of it is looked at.
    pub(super) fn preview(
        layout: &Layout,
        session: &str,
        app: &str,
        front: &Front,
        port: u16,
    ) -> Self {
        let listen = vec![format!("127.0.0.1:{port}")];
        let front = Front {
            listen,
            server_names: Vec::new(),
            redirect_from: Vec::new(),
            tls: None,
            ..front.clone()
        };
        // No application has a dot in its name.
        let name = format!("{app}.preview");
        let (prefix, way, snippets) = ("farmctlpreview", layout.way(session), layout.snippets(app));
        Self { name, prefix, way, front, certificate: None, snippets }
    }
}

/// A vhost of an application, for nginx's `http` context.
///
/// # Errors
/// When a path has letters nginx cannot be told about.
pub(super) fn render(layout: &Layout, manifest: &Manifest, site: &Site) -> Result<String> {
    let app = &manifest.name;
    let Site { name, prefix, way, front, .. } = site;
    let upstream = format!("{prefix}_{}", key(app));
    let variable = format!("${upstream}_connection");
    // A site of files alone has none.
    let is_proxied = manifest.profile.front_process().is_some();
    let mut text = format!("# Written by farmctl for {app}; changes are lost.\n");
    if is_proxied {
        let socket = word(&way.join(WAY_SOCKET))?;
        let backup = word(&way.join(WAY_BACKUP))?;
        let _ = write!(
            text,
            "map $http_upgrade {variable} {{\n    default close;\n    websocket upgrade;\n}}\n\
             # nginx's own `combined`, and what each server that was asked has answered.\n\
             log_format {upstream} '$remote_addr - $remote_user [$time_local] \"$request\" '\n    \
                 '$status $body_bytes_sent \"$http_referer\" \"$http_user_agent\" $upstream_status';\n\
             upstream {upstream} {{\n    \
                 # Links, followed at every connect(2): no keep-alive. The second is there only\n    \
                 # while a release that has just begun to serve is watched.\n    \
                 server unix:{socket} max_fails=0;\n    \
                 server unix:{backup} max_fails=0 backup;\n\
             }}\n"
        );
    }
    let ssl = site.certificate.as_ref().map(ssl_lines).transpose()?;
    // Without names it is for every name: also for those no other vhost has.
    let names =
        if front.server_names.is_empty() { "_".to_owned() } else { front.server_names.join(" ") };
    let default = if front.server_names.is_empty() { " default_server" } else { "" };
    let format = if is_proxied { format!(" {upstream}") } else { String::new() };
    let head = |names: &str, plain: &[String], tls: &[String]| {
        let mut head = "server {\n".to_owned();
        for listen in plain {
            let _ = writeln!(head, "    listen {listen}{default};");
        }
        for listen in tls {
            let _ = writeln!(head, "    listen {listen} ssl{default};");
        }
        let _ = writeln!(head, "    server_name {names};");
        let _ = writeln!(head, "    access_log {NGINX_LOGS}/{}{format};", layout::access_log(name));
        if let Some(lines) = ssl.as_ref().filter(|_| !tls.is_empty()) {
            head.push_str(lines);
        }
        head
    };
    let mut plain = front.listen.as_slice();
    let tls = front.tls.as_ref().map_or(&[][..], |tls| &tls.listen);
    if let Some(tls) = front.tls.as_ref().filter(|tls| tls.redirect && !plain.is_empty()) {
        text.push_str(&head(&names, plain, &[]));
        let port = match port_of(tls.listen.first().map_or("443", String::as_str)) {
            443 => String::new(),
            port => format!(":{port}"),
        };
        // 308 keeps the method, unlike 301 (RFC 9110, 15.4.9).
        let _ = writeln!(text, "    return 308 https://$host{port}$request_uri;\n}}");
        plain = &[];
    }
    text.push_str(&head(&names, plain, tls));
    let _ = writeln!(text, "    client_max_body_size {}m;", front.max_body_mib);
    // nginx ends a client's connection after 1000 requests by default. Under load that
    // races with the client's next request: `wrk -c32` counts some 4 read errors in
    // 40,000 requests, without any reload, and none with this.
    let _ = writeln!(text, "    keepalive_requests 1000000;");
    // An administrator's nginx.conf may have one.
    let _ = writeln!(text, "    # What is found through links is looked for anew each time.");
    let _ = writeln!(text, "    open_file_cache off;");
    let closed = format!("if (!-e {}) {{ return 502; }}", word(way)?);
    if is_proxied {
        let _ = write!(
            text,
            "\n    location / {{\n        \
                 {closed}\n        \
                 proxy_pass http://{upstream};\n        \
                 # Not after a time-out: what is slow would be done twice.\n        \
                 proxy_next_upstream error;\n        \
                 proxy_read_timeout {timeout}s;\n        \
                 proxy_send_timeout {timeout}s;\n        \
                 proxy_http_version 1.1;\n        \
                 proxy_redirect off;\n        \
                 proxy_set_header Host $http_host;\n        \
                 proxy_set_header Upgrade $http_upgrade;\n        \
                 proxy_set_header Connection {variable};\n        \
                 proxy_set_header X-Real-IP $remote_addr;\n        \
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n        \
                 proxy_set_header X-Forwarded-Proto $scheme;\n        \
                 proxy_set_header X-Forwarded-Host $http_host;\n    }}\n",
            timeout = front.timeout.0,
        );
    }
    text.push_str(&page::render(app, &word(&layout.pages())?));
    for files in &front.statics {
        // With a slash at the end of both, or `/static-old` would lead out of the directory.
        let location = format!("{}/", files.location.trim_end_matches('/'));
        let _ = write!(text, "\n    location ^~ {location} {{\n");
        match source(layout, manifest, files) {
            Source::Export => {
                let key = layout::location_key(&files.location);
                let path = way.join(WAY_FILES).join(key);
                let _ = write!(
                    text,
                    "        {closed}\n        \
                         alias {}/;\n",
                    word(&path)?
                );
            }
            Source::Data { path, top } => {
                let _ = write!(
                    text,
                    "        {closed}\n        \
                         alias {}/;\n        \
                         # The application makes what is here, links included.\n        \
                         disable_symlinks on from={}/;\n",
                    word(&path)?,
                    word(&top)?
                );
            }
        }
        text.push_str("    }\n");
    }
    let _ = writeln!(text, "\n    include {}/*.conf;\n}}", word(&site.snippets)?);
    // Last: of an address nobody has all names of, the first server is the one for others.
    if !front.redirect_from.is_empty() {
        text.push_str(&head(&front.redirect_from.join(" "), &front.listen, tls));
        let to = address(front);
        let _ = writeln!(text, "    return 308 {}$request_uri;\n}}", to.trim_end_matches('/'));
    }
    Ok(text)
}

/// How a server of TLS shows itself.
fn ssl_lines(Certificate { chain, key, .. }: &Certificate) -> Result<String> {
    // Debian's nginx.conf allows those of RFC 8996, too.
    Ok(format!(
        "    ssl_certificate {};\n    ssl_certificate_key {};\n    ssl_protocols TLSv1.2 TLSv1.3;\n",
        word(chain)?,
        word(key)?
    ))
}

/// Locations served out of the release, with their numbers.
pub(super) fn exported<'a>(
    layout: &Layout,
    manifest: &'a Manifest,
) -> Vec<(usize, &'a StaticFiles)> {
    let Some(front) = &manifest.profile.front else {
        return Vec::new();
    };
    let of_release = |(_, files): &(usize, &StaticFiles)| {
        matches!(source(layout, manifest, files), Source::Export)
    };
    front.statics.iter().enumerate().filter(of_release).collect()
}

/// Addresses and names of a vhost of ours.
pub(super) fn parse(text: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let mut listens = BTreeSet::new();
    let mut names = BTreeSet::new();
    for line in text.lines().map(|line| line.trim().trim_end_matches(';')) {
        if let Some(rest) = line.strip_prefix("listen ") {
            listens.extend(rest.split(' ').next());
        } else if let Some(rest) = line.strip_prefix("server_name ") {
            names.extend(rest.split(' '));
        }
    }
    (listens, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(toml: &str) -> Manifest {
        let profile = crate::profile::parse(&format!(
            "schema = 1\nname = \"shop\"\nversion = \"1.4.2\"\n[environment]\nsuite = \"bookworm\"\n\
             [[process]]\nname = \"web\"\ncommand = \"gunicorn\"\n{toml}"
        ))
        .expect("the profile is right");
        let nothing = crate::manifest::Hashed { size: 0, sha256: String::new() };
        Manifest {
            schema: 1,
            farmctl: String::new(),
            name: profile.name.clone(),
            version: profile.version.clone(),
            architecture: "amd64".to_owned(),
            epoch: 0,
            serial: None,
            expires: None,
            derived: None,
            profile,
            inputs: crate::manifest::Inputs::default(),
            files: nothing,
            payload: crate::manifest::Payload {
                size: 0,
                sha256: String::new(),
                entries: 0,
                content: 0,
            },
            segments: Vec::new(),
            set_id: Vec::new(),
            capabilities: Vec::new(),
        }
    }

    fn rendered(toml: &str) -> String {
        let manifest = manifest(toml);
        let front = manifest.profile.front.as_ref().expect("the profile has a front");
        let layout = Layout::new("/", None);
        let site = Site::of(&layout, &manifest.name, front);
        render(&layout, &manifest, &site).expect("all paths are plain")
    }

    #[test]
    fn a_vhost_leads_to_the_link_and_takes_every_name() {
        insta::assert_snapshot!(rendered("[front]\nlisten = [\"127.0.0.1:8080\"]\n"), @r#"
        # Written by farmctl for shop; changes are lost.
        map $http_upgrade $farmctl_shop_connection {
            default close;
            websocket upgrade;
        }
        # nginx's own `combined`, and what each server that was asked has answered.
        log_format farmctl_shop '$remote_addr - $remote_user [$time_local] "$request" '
            '$status $body_bytes_sent "$http_referer" "$http_user_agent" $upstream_status';
        upstream farmctl_shop {
            # Links, followed at every connect(2): no keep-alive. The second is there only
            # while a release that has just begun to serve is watched.
            server unix:/run/farmctl/front/shop/socket max_fails=0;
            server unix:/run/farmctl/front/shop/backup max_fails=0 backup;
        }
        server {
            listen 127.0.0.1:8080 default_server;
            server_name _;
            access_log /var/log/nginx/farmctl-shop.access.log farmctl_shop;
            client_max_body_size 16m;
            keepalive_requests 1000000;
            # What is found through links is looked for anew each time.
            open_file_cache off;

            location / {
                if (!-e /run/farmctl/front/shop) { return 502; }
                proxy_pass http://farmctl_shop;
                # Not after a time-out: what is slow would be done twice.
                proxy_next_upstream error;
                proxy_read_timeout 60s;
                proxy_send_timeout 60s;
                proxy_http_version 1.1;
                proxy_redirect off;
                proxy_set_header Host $http_host;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection $farmctl_shop_connection;
                proxy_set_header X-Real-IP $remote_addr;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                proxy_set_header X-Forwarded-Proto $scheme;
                proxy_set_header X-Forwarded-Host $http_host;
            }

            # Nobody answers. What the application itself answers goes out as it is.
            error_page 502 =503 /+unavailable;
            error_page 504 /+unavailable;
            # Not a named location: to that a POST would be one still.
            location = /+unavailable {
                internal;
                root /var/lib/farmctl/pages;
                types {}
                default_type text/html;
                etag off;
                add_header Retry-After 10 always;
                try_files /shop @unavailable;
            }
            location @unavailable {
                default_type text/html;
                add_header Retry-After 10 always;
                return 503 '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Not available</title><body style="font-family: sans-serif; margin: 20vh auto; max-width: 30em; padding: 0 1em"><h1>Not available at the moment</h1><p>Please try again later.</p>';
            }

            include /etc/farmctl/nginx/shop/*.conf;
        }
        "#);
    }

    #[test]
    fn static_files_come_from_the_export_and_uploads_from_the_data() {
        insta::assert_snapshot!(
            rendered(
                "[[data]]\nname = \"uploads\"\npath = \"/srv/shop/media\"\n\
                 [front]\nlisten = [\"80\", \"[::]:80\"]\nserver-names = [\"shop.example\", \"www.shop.example\"]\n\
                 max-body-mib = 64\n\
                 [[front.static]]\nlocation = \"/static\"\npath = \"/srv/shop/static\"\n\
                 [[front.static]]\nlocation = \"/media/\"\npath = \"/srv/shop/media/public\"\n"
            ),
            @r#"
            # Written by farmctl for shop; changes are lost.
            map $http_upgrade $farmctl_shop_connection {
                default close;
                websocket upgrade;
            }
            # nginx's own `combined`, and what each server that was asked has answered.
            log_format farmctl_shop '$remote_addr - $remote_user [$time_local] "$request" '
                '$status $body_bytes_sent "$http_referer" "$http_user_agent" $upstream_status';
            upstream farmctl_shop {
                # Links, followed at every connect(2): no keep-alive. The second is there only
                # while a release that has just begun to serve is watched.
                server unix:/run/farmctl/front/shop/socket max_fails=0;
                server unix:/run/farmctl/front/shop/backup max_fails=0 backup;
            }
            server {
                listen 80;
                listen [::]:80;
                server_name shop.example www.shop.example;
                access_log /var/log/nginx/farmctl-shop.access.log farmctl_shop;
                client_max_body_size 64m;
                keepalive_requests 1000000;
                # What is found through links is looked for anew each time.
                open_file_cache off;

                location / {
                    if (!-e /run/farmctl/front/shop) { return 502; }
                    proxy_pass http://farmctl_shop;
                    # Not after a time-out: what is slow would be done twice.
                    proxy_next_upstream error;
                    proxy_read_timeout 60s;
                    proxy_send_timeout 60s;
                    proxy_http_version 1.1;
                    proxy_redirect off;
                    proxy_set_header Host $http_host;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection $farmctl_shop_connection;
                    proxy_set_header X-Real-IP $remote_addr;
                    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                    proxy_set_header X-Forwarded-Proto $scheme;
                    proxy_set_header X-Forwarded-Host $http_host;
                }

                # Nobody answers. What the application itself answers goes out as it is.
                error_page 502 =503 /+unavailable;
                error_page 504 /+unavailable;
                # Not a named location: to that a POST would be one still.
                location = /+unavailable {
                    internal;
                    root /var/lib/farmctl/pages;
                    types {}
                    default_type text/html;
                    etag off;
                    add_header Retry-After 10 always;
                    try_files /shop @unavailable;
                }
                location @unavailable {
                    default_type text/html;
                    add_header Retry-After 10 always;
                    return 503 '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Not available</title><body style="font-family: sans-serif; margin: 20vh auto; max-width: 30em; padding: 0 1em"><h1>Not available at the moment</h1><p>Please try again later.</p>';
                }

                location ^~ /static/ {
                    if (!-e /run/farmctl/front/shop) { return 502; }
                    alias /run/farmctl/front/shop/files/+static/;
                }

                location ^~ /media/ {
                    if (!-e /run/farmctl/front/shop) { return 502; }
                    alias /var/lib/farmctl/data/shop/uploads/public/;
                    # The application makes what is here, links included.
                    disable_symlinks on from=/var/lib/farmctl/data/shop/uploads/;
                }

                include /etc/farmctl/nginx/shop/*.conf;
            }
            "#
        );
    }

    #[test]
    fn a_site_of_files_alone_asks_nobody() {
        let mut manifest = manifest(
            "[front]\nlisten = [\"127.0.0.1:8080\"]\n[[front.static]]\nlocation = \"/static/\"\n\
             path = \"/srv/shop/files\"\n",
        );
        manifest.profile.processes.clear();
        let front = manifest.profile.front.as_mut().expect("it has one");
        front.statics[0].location = "/".to_owned();
        let layout = Layout::new("/", None);
        let front = manifest.profile.front.clone().expect("it has one");
        let site = Site::of(&layout, &manifest.name, &front);
        let text = render(&layout, &manifest, &site).expect("the paths are plain");
        let (_, locations) = text.split_once("keepalive_requests").expect("it is there");
        assert_eq!(locations.matches("location ^~").count(), 1, "{text}");
        assert!(text.contains("\n        alias /run/farmctl/front/shop/"), "{text}");
        assert!(!text.contains("upstream") && !text.contains("proxy"), "{text}");
    }

    #[test]
    fn tls_is_spoken_with_the_nodes_certificate_and_who_comes_without_is_sent_there() {
        let text = rendered(
            "[front]\nlisten = [\"80\"]\nserver-names = [\"shop.example\"]\n\
             [front.tls]\nlisten = [\"8443\", \"[::]:443\"]\n",
        );
        let (_, servers) = text.split_once("\nserver {\n").expect("there are two");
        let (sending, serving) = servers.split_once("\nserver {\n").expect("there are two");
        assert!(sending.contains("listen 80;\n"), "{sending}");
        assert!(sending.contains("return 308 https://$host:8443$request_uri;\n"), "{sending}");
        for line in [
            "listen 8443 ssl;",
            "listen [::]:443 ssl;",
            "ssl_certificate /var/lib/farmctl/tls/shop.crt;",
            "ssl_certificate_key /var/lib/farmctl/tls/shop.key;",
        ] {
            assert!(serving.lines().any(|one| one.trim() == line), "{line} in {serving}");
        }
        let both = rendered(
            "[front]\nlisten = [\"80\"]\n[front.tls]\nlisten = [\"443\"]\nredirect = false\n",
        );
        assert!(!both.contains("return 308"), "{both}");
        assert!(
            both.contains("    listen 80 default_server;\n    listen 443 ssl default_server;\n")
        );
    }

    #[test]
    fn who_asks_by_another_name_is_sent_to_the_first() {
        let text = rendered(
            "[front]\nlisten = [\"80\"]\nserver-names = [\"shop.example\"]\n\
             redirect-from = [\"www.shop.example\", \"*.shop.test\"]\n\
             [front.tls]\nlisten = [\"8443\"]\n",
        );
        let (_, sending) = text.rsplit_once("\nserver {\n").expect("there are three");
        for line in [
            "listen 80;",
            "listen 8443 ssl;",
            "server_name www.shop.example *.shop.test;",
            "ssl_certificate /var/lib/farmctl/tls/shop.crt;",
            "return 308 https://shop.example:8443$request_uri;",
        ] {
            assert!(sending.lines().any(|one| one.trim() == line), "{line} in {sending}");
        }
        assert!(parse(&text).1.contains("www.shop.example"));
    }

    #[test]
    fn the_address_is_one_people_can_type() {
        let address = |front: &str| {
            let manifest = manifest(&format!("[front]\n{front}\n"));
            address(manifest.profile.front.as_ref().expect("there is one"))
        };
        assert_eq!(address("listen = [\"8080\"]"), "http://127.0.0.1:8080/");
        assert_eq!(address("listen = [\"[::1]:8080\"]"), "http://[::1]:8080/");
        assert_eq!(address("listen = [\"0.0.0.0:81\"]"), "http://127.0.0.1:81/");
        assert_eq!(
            address("listen = [\"80\"]\nserver-names = [\"*.example\", \"shop.example\"]"),
            "http://shop.example/"
        );
        assert_eq!(address("[front.tls]\nlisten = [\"443\"]"), "https://127.0.0.1/");
        assert_eq!(
            address("listen = [\"80\"]\n[front.tls]\nlisten = [\"8443\"]"),
            "https://127.0.0.1:8443/"
        );
    }
}
