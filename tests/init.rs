//! `farmctl init`: what it writes, says and refuses, and that what it wrote serves unedited.
//!
//! Five projects as they are in the package index, and one with a uWSGI ini, from nothing to an
//! answer, with a table at the end: `scripts/test --test init -- --ignored --nocapture`.

#![expect(clippy::print_stdout, reason = "the table is the test's answer")]

mod common;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "its tree is used here")]
mod tiny;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "its answers are used here")]
mod web;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{FARMCTL, Farm, Ran, called, tool};

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is ours")
}

fn init(directory: &Path, more: &[&str]) -> Ran {
    let mut command = called(FARMCTL, &["init", text(directory)]);
    command.args(more);
    common::run(command)
}

/// A project of these files.
fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("there is room");
    for (name, content) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("there is room");
        fs::write(path, content).expect("there is room");
    }
    root
}

const FLASK: [(&str, &str); 3] = [
    (
        "app.py",
        "from flask import Flask\n\napp = Flask(__name__)\n\n\n@app.route('/')\ndef index():\n    return 'here'\n",
    ),
    ("requirements.txt", "flask\npsycopg2>=2.9\n"),
    ("static/style.css", "body {}\n"),
];

#[test]
fn init_says_what_it_assumed_and_what_comes_next() {
    let project = project(&FLASK);
    let ran = init(project.path(), &["--name", "shop"]).ok();
    let directory = text(project.path());
    let said: Vec<&str> = ran.stderr.lines().filter_map(|line| line.strip_prefix("· ")).collect();
    assert_eq!(
        said,
        [
            "Flask: app:app (app.py)",
            "version 1: nothing says another; farmctl bake --set-version does",
            "bookworm, which has Python 3.11: the project asks for no Python",
            "farmctl-requirements.txt adds gunicorn to requirements.txt",
            "build-essential, libpq-dev and python3-dev to build psycopg2",
            "all of the project is copied to /srv/shop/app",
        ]
    );
    let expected =
        ["bootstrap", "lock", "bake"].map(|verb| format!("farmctl {verb} {directory}\n"));
    assert_eq!(ran.stdout, expected.concat());
    let profile = fs::read_to_string(project.path().join("profile.toml")).expect("it is written");
    let profile = farmctl::profile::parse(&profile).expect("it is one");
    assert_eq!(profile.build.packages, ["build-essential", "libpq-dev", "python3-dev"]);
    assert_eq!(profile.environment.packages, ["python3", "libpq5"]);
    let front = profile.front.expect("it has one");
    assert_eq!(front.statics[0].path, Path::new("/srv/shop/app/static"));
    let requirements = project.path().join("farmctl-requirements.txt");
    let requirements = fs::read_to_string(requirements).expect("it is written");
    assert!(requirements.ends_with("\n-r requirements.txt\ngunicorn>=27\n"), "{requirements}");
}

#[test]
fn init_writes_over_nothing_unless_told_and_a_dry_run_writes_nothing() {
    let project = project(&FLASK);
    let dry = init(project.path(), &["--dry-run"]).ok();
    assert!(dry.stdout.contains("\n[[process]]\nname = \"web\"\n"), "{}", dry.stdout);
    assert!(dry.stdout.contains("\n-r requirements.txt\n"), "{}", dry.stdout);
    let printed = init(project.path(), &["--dry-run", "--json"]).ok();
    let printed: serde_json::Value = serde_json::from_str(&printed.stdout).expect("it is JSON");
    for (at, line) in ["\nname = \"web\"\n", "\n-r requirements.txt\n"].iter().enumerate() {
        let text = printed["texts"][at].as_str().expect("it has one");
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(printed["files"].as_array().map(Vec::len), Some(2));
    assert!(!project.path().join("profile.toml").exists());

    let written = init(project.path(), &["--json"]).ok();
    let written: serde_json::Value = serde_json::from_str(&written.stdout).expect("it is JSON");
    assert_eq!(written["files"].as_array().map(Vec::len), Some(2));
    assert_eq!(written.get("texts"), None);
    assert_eq!(written["next"].as_array().map(Vec::len), Some(3));
    assert_eq!(written["assumptions"][0], "Flask: app:app (app.py)");

    fs::write(project.path().join("profile.toml"), "mine").expect("it is ours");
    let ran = init(project.path(), &[]).failed(1);
    let path = project.path().join("profile.toml");
    assert_eq!(ran.error(), format!("there is a {} already", path.display()));
    assert_eq!(ran.hint(), format!("farmctl init {} --force writes over it", text(project.path())));
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "mine");
    init(project.path(), &["--force"]).ok();
    assert_ne!(fs::read_to_string(&path).expect("it is there"), "mine");

    // What one that was killed wrote first.
    fs::remove_file(&path).expect("it is there");
    init(project.path(), &[]).ok();
    fs::remove_file(&path).expect("it is there");
    let requirements = project.path().join("farmctl-requirements.txt");
    fs::write(&requirements, "mine").expect("it is ours");
    let ran = init(project.path(), &[]).failed(1);
    assert_eq!(ran.error(), format!("there is a {} already", requirements.display()));
    assert!(!path.exists());
}

#[test]
fn what_is_not_recognised_or_does_not_fit_is_refused_with_a_way_on() {
    let library = project(&[("lib.py", "def helper():\n    return 1\n")]);
    let ran = init(library.path(), &[]).failed(2);
    assert!(ran.error().ends_with(": no web application is recognised here"), "{}", ran.error());
    assert_eq!(
        ran.hint(),
        "name its WSGI or ASGI callable: farmctl init --app PACKAGE.MODULE:CALLABLE"
    );
    // As the hint says.
    let ran = init(library.path(), &["--app", "lib:helper", "--dry-run"]).ok();
    assert!(ran.stdout.contains("--no-control-socket lib:helper\"\"\"\n"), "{}", ran.stdout);
    let ran = init(library.path(), &["--app", "nothing:app"]).failed(2);
    assert_eq!(ran.hint(), "--app takes PACKAGE.MODULE:CALLABLE, of a module in the project");

    let new = project(&[
        ("app.py", FLASK[0].1),
        ("pyproject.toml", "[project]\nname = 'new'\nrequires-python = '>=3.14'\n"),
    ]);
    let ran = init(new.path(), &[]).failed(2);
    assert!(ran.error().ends_with(": pyproject.toml asks for Python >=3.14"), "{}", ran.error());
    assert_eq!(
        ran.hint(),
        "bookworm has 3.11, trixie has 3.13: --suite takes one of them nevertheless"
    );
    init(new.path(), &["--suite", "trixie", "--dry-run"]).ok();

    let ran = init(Path::new("/nonexistent/project"), &[]).failed(2);
    assert_eq!(ran.hint(), "DIR is the directory of a project");
    let file = new.path().join("app.py");
    let ran = init(&file, &[]).failed(2);
    assert_eq!(ran.error(), format!("{} is not a directory", file.display()));
    assert_eq!(ran.hint(), "DIR is the directory of a project");

    let broken = project(&[FLASK[0], ("pyproject.toml", "[project]\nname = shop\n")]);
    let ran = init(broken.path(), &[]).failed(2);
    assert!(ran.error().contains(": pyproject.toml, line 2: "), "{}", ran.error());
}

#[test]
fn an_option_that_no_profile_takes_is_refused_by_its_name() {
    let project = project(&FLASK);
    for (option, value, error, hint) in [
        (
            "--listen",
            "foo",
            "--listen \"foo\" is neither PORT nor ADDRESS:PORT",
            "--listen 127.0.0.1:8080, for instance",
        ),
        (
            "--suite",
            "Book worm",
            "--suite \"Book worm\" is not the code name of a Debian suite",
            "--suite bookworm, for instance",
        ),
        (
            "--name",
            "BAD_NAME",
            "\"BAD_NAME\" is not an application's name: [a-z][a-z0-9-]{0,23}",
            "--name shop, for instance: up to 24 of a-z, 0-9 and -, beginning with a letter",
        ),
    ] {
        let ran = init(project.path(), &[option, value]).failed(2);
        assert_eq!((ran.error(), ran.hint()), (error, hint));
    }
    for listen in ["80", "[::1]:8080"] {
        init(project.path(), &["--listen", listen, "--dry-run"]).ok();
    }
    let ran = init(project.path(), &["--suite", "forky", "--dry-run"]).ok();
    let said = "· which Python forky has is not known here: farmctl bootstrap tells\n";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}

#[test]
fn a_directory_with_a_blank_in_its_name_is_quoted_where_it_is_to_be_typed() {
    let root = project(&[("my shop/app.py", FLASK[0].1)]);
    let directory = root.path().join("my shop");
    let ran = init(&directory, &[]).ok();
    let bootstrap = format!("farmctl bootstrap '{}'", directory.display());
    assert_eq!(ran.stdout.lines().next(), Some(bootstrap.as_str()));
    let ran = init(&directory, &[]).failed(1);
    let hint = format!("farmctl init '{}' --force writes over it", directory.display());
    assert_eq!(ran.hint(), hint);
}

#[test]
fn a_site_at_the_top_of_its_directory_serves_nothing_that_is_hidden() {
    let site = project(&[
        ("index.html", "<p>here</p>\n"),
        ("css/site.css", "body {}\n"),
        (".env", "PASSWORD=x\n"),
        (".htpasswd", "x\n"),
    ]);
    let ran = init(site.path(), &[]).ok();
    let said = "· what is at the top of the project is served, but not .env and .htpasswd\n";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    // With the first profile there as well, it is the same one.
    let profile = site.path().join("profile.toml");
    let first = fs::read_to_string(&profile).expect("it is written");
    init(site.path(), &["--force"]).ok();
    assert_eq!(fs::read_to_string(&profile).expect("it is written"), first);
    let profile = farmctl::profile::parse(&first).expect("it is one");
    let from: Vec<&Path> = profile.copies.iter().map(|copy| copy.from.as_path()).collect();
    assert_eq!(from, [Path::new("css"), Path::new("index.html")]);
}

#[test]
fn of_two_applications_one_is_taken_and_the_other_can_be() {
    let both = project(&[
        ("app.py", FLASK[0].1),
        ("api/__init__.py", ""),
        ("api/main.py", "from fastapi import FastAPI\napi = FastAPI()\n"),
    ]);
    let ran = init(both.path(), &["--dry-run"]).ok();
    let choice = "· it is one of 2 applications: --app 'api.main:api' takes another";
    assert!(ran.stderr.contains(choice), "{}", ran.stderr);
    let ran = init(both.path(), &["--dry-run", "--app", "api.main:api"]).ok();
    assert!(ran.stdout.contains("--worker-class uvicorn_worker.UvicornWorker"), "{}", ran.stdout);
    assert!(ran.stdout.contains("ready = { http = \"/openapi.json\""), "{}", ran.stdout);
}

#[test]
fn a_site_of_files_alone_is_served_without_a_process() {
    let farm = Farm::new();
    let site = project(&[
        ("public/index.html", "<p>first page</p>\n"),
        ("public/more/index.html", "<p>second page</p>\n"),
        ("package.json", "{}"),
    ]);
    let ran =
        init(site.path(), &["--name", "init-files", "--listen", "127.0.0.1:8791", "--dry-run"])
            .ok();
    let (_, profile) = ran.stdout.split_once('\n').expect("it has a head");
    let pack = |version: &str, page: &str| {
        let profile = profile.replace("version = \"1\"", &format!("version = \"{version}\""));
        let tree = tiny::Tiny::new(&profile);
        let tree = tree.file("srv/init-files/files/index.html", page, 0o644);
        tree.file("srv/init-files/files/more/index.html", "second", 0o644).pack(farm.root())
    };
    farm.run(&["install", text(&pack("1", "first"))]).ok();
    let started = farm.run(&["start", "init-files"]).ok();
    assert_eq!(started.stdout, "http://127.0.0.1:8791/\n");
    assert_eq!(farm.state_of("init-files"), "running");
    let page = |path: &str| {
        let answer = web::get(8791, path);
        (answer.status, answer.body)
    };
    assert_eq!(page("/"), (200, "first".to_owned()));
    assert_eq!(page("/more/"), (200, "second".to_owned()));
    assert_eq!(page("/none").0, 404);
    let upgraded = pack("2", "newer");
    farm.run(&["upgrade", "init-files", text(&upgraded), "--watch", "1s"]).ok();
    assert_eq!(page("/"), (200, "newer".to_owned()));
    farm.run(&["rollback", "init-files", "--watch", "1s"]).ok();
    assert_eq!(page("/"), (200, "first".to_owned()));
    farm.run(&["tend"]).ok();
    farm.assert_clean();
}

/// A project as it lies in the package index.
struct Published {
    /// Name and version of the sdist, and its SHA-256.
    sdist: &'static str,
    sha256: &'static str,
    /// The application's name here.
    name: &'static str,
    port: u16,
    /// What is asked for, and a text of the answer.
    path: &'static str,
    says: &'static str,
}

const HTTPBIN: Published = Published {
    sdist: "httpbin==0.10.4",
    sha256: "6023a5a2e8fb8e91abdd6d34d1f1f455092f97d567c25600e1b48ee1178aa738",
    name: "init-httpbin",
    port: 8792,
    path: "/get?farm=1",
    says: "\"farm\": \"1\"",
};

const PUBLISHED: [Published; 5] = [
    HTTPBIN,
    Published {
        sdist: "nsupdate==0.13.0",
        sha256: "99b927e42dd1f11e7591312b09543edddbe65d489359286b3d808edbf2864422",
        name: "init-nsupdate",
        port: 8793,
        path: "/",
        says: "<title>",
    },
    Published {
        sdist: "proxpi==1.3.1",
        sha256: "1a67a48976012c965c97bee233c660eb154a9a60461cac6ca38df57cf309ea76",
        name: "init-proxpi",
        port: 8794,
        path: "/health",
        says: "",
    },
    Published {
        sdist: "titiler.application==2.4.0",
        sha256: "ede1a2c3eb6d6a12e8837e93c189aa27542eb568a071f6d8bb2c8b427ea486b6",
        name: "init-titiler",
        port: 8795,
        path: "/healthz",
        says: "\"rasterio\"",
    },
    Published {
        sdist: "Radicale==3.9.0",
        sha256: "25fe89613d77a5bed182860407235efa3a77adead4ddc6022784801521992741",
        name: "init-radicale",
        port: 8796,
        path: "/.web/",
        says: "<title>",
    },
];

/// Fetches a project's sdist by its hash and unpacks it; answers its directory.
fn fetch(published: &Published, into: &Path) -> PathBuf {
    let place = into.join(published.name);
    fs::create_dir_all(&place).expect("there is room");
    let wanted = place.join("wanted.txt");
    let line = format!("{} --hash=sha256:{}\n", published.sdist, published.sha256);
    fs::write(&wanted, line).expect("there is room");
    let (place, wanted) = (text(&place), text(&wanted));
    // Of this one alone: pip asks it for its metadata, and builds with wheels.
    let (project, _) = published.sdist.split_once("==").expect("it has a version");
    tool(
        "/usr/bin/python3",
        &[
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            project,
            "--require-hashes",
            "--dest",
            place,
            "-r",
            wanted,
        ],
    );
    let sdist = fs::read_dir(place)
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").path())
        .find(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .expect("pip fetched it");
    let project = Path::new(place).join("project");
    fs::create_dir(&project).expect("there is room");
    tool("tar", &["-xzf", text(&sdist), "--strip-components=1", "-C", text(&project)]);
    project
}

/// From the package index to an answer; a row of the table.
fn serve(farm: &Farm, published: &Published) -> Vec<String> {
    let Published { sdist, name, port, path, says, .. } = published;
    let project = fetch(published, farm.root());
    let mut row = vec![(*sdist).to_owned()];
    row.extend(serve_project(farm, text(&project), name, *port, (path, says)));
    row
}

/// From a project's directory to an answer, as `init` writes it and says: what it recognised,
/// the seconds of each step, and the answer.
fn serve_project(
    farm: &Farm,
    directory: &str,
    name: &str,
    port: u16,
    (path, says): (&str, &str),
) -> Vec<String> {
    let listen = format!("127.0.0.1:{port}");
    let mut row = Vec::new();
    let timed = |arguments: &[&str]| {
        let began = Instant::now();
        let ran = farm.run(arguments).ok();
        // Whoever follows the order that is printed is warned of nothing.
        assert!(!ran.stderr.contains("warning: "), "{name}: {}", ran.stderr);
        (ran, format!("{:.0}", began.elapsed().as_secs_f64()))
    };
    let (ran, _) = timed(&["init", directory, "--name", name, "--listen", &listen]);
    let recognised = ran.stderr.lines().find_map(|line| line.strip_prefix("· "));
    row.push(recognised.expect("it says what it is").to_owned());
    row.push(timed(&["bootstrap", directory]).1);
    row.push(timed(&["lock", directory]).1);
    let (ran, took) = timed(&["bake", directory, "--output", text(farm.root())]);
    row.push(took);
    let tarball = ran.stdout.trim().to_owned();
    row.push(timed(&["install", &tarball]).1);
    row.push(timed(&["start", name]).1);
    let answer = web::get(port, path);
    assert!(answer.body.contains(says), "{name}: {} {}", answer.status, answer.body);
    row.push(format!("{path} {}", answer.status));
    assert_eq!(answer.status, 200, "{name}");
    assert_eq!(farm.state_of(name), "running");
    farm.run(&["reload", name]).ok();
    assert_eq!(web::get(port, path).status, 200, "{name} after a reload");
    farm.run(&["stop", name]).ok();
    row
}

const UWSGI_APP: &str = "def app(environ, start_response):\n    import uwsgi\n    \
    start_response('200 OK', [('Content-Type', 'text/plain')])\n    \
    return [b'served by uWSGI ' + uwsgi.version]\n";

#[test]
fn a_published_project_serves_unedited() {
    let farm = Farm::new();
    serve(&farm, &HTTPBIN);
}

#[test]
#[ignore = "ten minutes"]
fn five_published_projects_and_a_uwsgi_ini_serve_unedited() {
    let farm = Farm::new();
    let head = ["project", "recognised", "bootstrap", "lock", "bake", "install", "start", "answer"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(PUBLISHED.iter().map(|published| serve(&farm, published)));
    let ini = project(&[
        ("shop/__init__.py", ""),
        ("shop/web.py", UWSGI_APP),
        ("requirements.txt", "uwsgi==2.0.28\n"),
        (
            "uwsgi.ini",
            "[uwsgi]\nmodule = shop.web:app\nmaster = true\nprocesses = 2\nthreads = 2\n",
        ),
    ]);
    rows.push(vec!["(a uWSGI ini)".to_owned()]);
    let asked = ("/", "served by uWSGI");
    let last = serve_project(&farm, text(ini.path()), "init-uwsgi", 8797, asked);
    rows.last_mut().expect("it was pushed").extend(last);
    println!("{}\nseconds each", farmctl::ui::table(&rows));
}
