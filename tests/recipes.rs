//! The recipes of the README, baked, installed and started as they stand there, each for a
//! project of a few lines, and asked. All but uWSGI's have one environment, that of
//! `profiles/hello`.

#[path = "common/broker.rs"]
mod broker;
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Farm, in_lane, tool};

/// Where the broker of the Celery recipe listens.
const BROKER: u16 = 18_098;
const REQUIREMENTS: &str =
    "celery==5.5.3\ndjango==4.2.16\nflask==3.1.0\ngunicorn==23.0.0\nredis==5.2.1\n";
const PYPROJECT: &str = "[build-system]\nrequires = [\"setuptools\"]\n\
    build-backend = \"setuptools.build_meta\"\n\n\
    [project]\nname = \"shop\"\nversion = \"1.0.0\"\n\n[tool.setuptools]\npackages = [\"shop\"]\n";
/// A callable, and a function that makes one.
const SHOP: &str = "from flask import Flask\n\n\ndef create_app():\n    app = Flask(__name__)\n    \
    app.add_url_rule('/', view_func=lambda: 'the shop is open')\n    return app\n\n\n\
    app = create_app()\n";
const TASKS: &str = "from pathlib import Path\n\nfrom celery import Celery\n\n\
    app = Celery(broker=Path('/run/project/secrets/BROKER_URL').read_text().strip())\n";
const DJANGO: [(&str, &str); 5] = [
    (
        "manage.py",
        "import sys\nfrom django.core.management import execute_from_command_line\n\
         execute_from_command_line(sys.argv)\n",
    ),
    ("shop/__init__.py", ""),
    (
        "shop/settings.py",
        "SECRET_KEY = 'of developers'\nROOT_URLCONF = 'shop.urls'\nSTATIC_URL = '/static/'\n\
         DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'site.sqlite3'}}\n\
         INSTALLED_APPS = ['django.contrib.' + name for name in\n    \
         ('admin', 'auth', 'contenttypes', 'messages', 'sessions', 'staticfiles')]\n\
         MIDDLEWARE = ['django.contrib.sessions.middleware.SessionMiddleware',\n    \
         'django.contrib.auth.middleware.AuthenticationMiddleware',\n    \
         'django.contrib.messages.middleware.MessageMiddleware']\n\
         TEMPLATES = [{'BACKEND': 'django.template.backends.django.DjangoTemplates',\n    \
         'APP_DIRS': True, 'OPTIONS': {'context_processors': [\n        \
         'django.template.context_processors.request',\n        \
         'django.contrib.auth.context_processors.auth',\n        \
         'django.contrib.messages.context_processors.messages']}}]\n",
    ),
    (
        "shop/urls.py",
        "from django.contrib import admin\nfrom django.urls import path\n\
         urlpatterns = [path('admin/', admin.site.urls)]\n",
    ),
    (
        "shop/wsgi.py",
        "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n",
    ),
];
const PACKAGE: [(&str, &str); 3] =
    [("pyproject.toml", PYPROJECT), ("shop/__init__.py", SHOP), ("shop/tasks.py", TASKS)];

/// What a recipe is tried with.
struct Tried {
    /// The bold words before it.
    title: &'static str,
    files: &'static [(&'static str, &'static str)],
    /// The part of the profile that recipes leave out, after its head.
    rest: &'static str,
    /// Addresses that are asked, and a text of the answer.
    asked: &'static [(&'static str, &'static str)],
}

const INSTALLED: &str = "[python]\nrequirements = \"requirements.txt\"\nrequire-hashes = false\n\
    project = \".\"\n";
const OPEN: &[(&str, &str)] = &[("http://127.0.0.1:8080/", "the shop is open")];

const FLASK: Tried = Tried { title: "**Flask**", files: &PACKAGE, rest: INSTALLED, asked: OPEN };
const OTHERS: [Tried; 5] = [
    Tried {
        title: "**Files alone.**",
        files: &[("public/index.html", "the shop is open\n")],
        rest: "",
        asked: OPEN,
    },
    Tried { title: "**A Celery worker", files: &PACKAGE, rest: INSTALLED, asked: OPEN },
    Tried {
        title: "**HTTPS.**",
        files: &PACKAGE,
        rest: INSTALLED,
        asked: &[
            ("https://shop.example/", "the shop is open"),
            ("http://shop.example/", "308 Permanent Redirect"),
        ],
    },
    Tried {
        title: "**Django.**",
        files: &DJANGO,
        rest: "[python]\nrequirements = \"requirements.txt\"\nrequire-hashes = false\n",
        asked: &[
            ("http://shop.example/admin/login/", "Django"),
            ("http://shop.example/static/admin/css/base.css", "--primary"),
        ],
    },
    Tried {
        title: "**uWSGI**",
        files: &PACKAGE,
        rest: "[build]\npackages = [\"build-essential\", \"python3-dev\"]\n\n[python]\n\
               requirements = \"requirements-uwsgi.txt\"\nrequire-hashes = false\nproject = \".\"\n",
        asked: OPEN,
    },
];

/// The recipe that follows these words in the README.
fn recipe(title: &str) -> String {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(readme).expect("there is a README");
    let (_, rest) = text.split_once(&format!("\n{title}")).expect("the README has it");
    let (_, rest) = rest.split_once("<!-- recipe -->\n```toml\n").expect("a recipe follows");
    rest.split_once("\n```\n").expect("its fence is closed").0.to_owned()
}

fn word(path: &Path) -> &str {
    path.to_str().expect("the path is ours")
}

/// The project with its profile, in a directory of its own.
fn project(farm: &Farm, tried: &Tried) -> PathBuf {
    let name: String = tried.title.chars().filter(char::is_ascii_alphabetic).collect();
    let directory = farm.root().join("profiles").join(name);
    let head = "schema = 1\nname = \"shop\"\nversion = \"1.0.0\"\n\n[environment]\n\
                suite = \"bookworm\"\npackages = [\"python3\"]\nlocale = \"C.UTF-8\"\nuser = \"app\"\n\n";
    let head = match tried.title {
        "**uWSGI**" => head.replace("\"python3\"]", "\"python3\", \"libpython3.11\"]"),
        _ => head.to_owned(),
    };
    let profile = format!("{head}{}\n{}\n", tried.rest, recipe(tried.title));
    let uwsgi = format!("{REQUIREMENTS}uwsgi==2.0.28\n");
    let more = [
        ("requirements.txt", REQUIREMENTS),
        ("requirements-uwsgi.txt", &uwsgi),
        ("profile.toml", &profile),
    ];
    for (path, content) in tried.files.iter().chain(&more) {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("there is room");
        fs::write(path, content).expect("there is room");
    }
    directory
}

/// Takes a recipe from its text to an answer.
fn serve(farm: &Farm, tried: &Tried) {
    let directory = project(farm, tried);
    farm.run(&["bootstrap", word(&directory)]).ok();
    let baked = farm.run(&["bake", word(&directory), "--output", word(farm.root())]).ok();
    farm.run(&["install", baked.stdout.trim()]).ok();
    let secrets = farm.root().join("etc/farmctl/apps");
    fs::create_dir_all(&secrets).expect("there is room");
    let secrets = secrets.join("shop.env");
    if recipe(tried.title).contains("BROKER_URL") {
        fs::write(&secrets, format!("BROKER_URL=redis://127.0.0.1:{BROKER}/0\n"))
            .expect("there is room");
        tool("chmod", &["600", word(&secrets)]);
    }
    farm.run(&["start", "shop"]).ok();
    for (address, says) in tried.asked {
        let here =
            ["--resolve", "shop.example:80:127.0.0.1", "--resolve", "shop.example:443:127.0.0.1"];
        let answer = tool(
            "curl",
            &[&["--silent", "--show-error", "--insecure"][..], &here, &[address]].concat(),
        );
        assert!(answer.contains(says), "{}: {address}: {answer}", tried.title);
    }
    farm.run(&["reload", "shop"]).ok();
    assert_eq!(farm.state_of("shop"), "running", "{}", tried.title);
    farm.run(&["stop", "shop"]).ok();
    farm.run(&["remove", "shop", "--data"]).ok();
    fs::remove_file(baked.stdout.trim()).expect("it was baked");
}

#[test]
fn the_flask_recipe_serves_as_it_is_written() {
    if in_lane("the_flask_recipe_serves_as_it_is_written") {
        serve(&Farm::new(), &FLASK);
    }
}

#[test]
#[ignore = "minutes: a bake each, uWSGI compiled"]
fn the_other_recipes_serve_as_they_are_written() {
    // They listen on 80, 443 and 8080.
    if !in_lane("the_other_recipes_serve_as_they_are_written") {
        return;
    }
    let farm = Farm::new();
    let _broker = broker::start(&farm, BROKER);
    for tried in &OTHERS {
        serve(&farm, tried);
    }
}
