//! Django projects: settings, database, static files and uploads.

use super::callable::{Interface, module_of};
use super::metadata::Metadata;
use super::script::{self, Line};
use super::survey::{Survey, directory, is_aside, join};
use super::variable;

/// Settings whose name says they are for a server, the likeliest first.
const PRODUCTION: [&str; 4] = ["production", "prod", "live", "deploy"];

/// Where the secret key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretKey {
    /// An environment variable.
    Variable(String),
    /// It is written in the settings, or not there at all.
    Override,
}

/// A Django project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Django {
    /// The module of its settings.
    pub settings: String,
    /// The file with them.
    pub file: String,
    /// The directory modules' names begin in.
    pub root: String,
    /// manage.py, where it takes other settings than its own.
    pub manage: Option<String>,
    /// The application for a server.
    pub application: String,
    /// What it speaks.
    pub interface: Interface,
    /// Where the secret key comes from.
    pub secret_key: SecretKey,
    /// Environment variables the settings cannot do without, the key's left out.
    pub variables: Vec<String>,
    /// Whether `DEBUG = True` stands in the settings.
    pub debug: bool,
    /// Whether they have `ALLOWED_HOSTS`.
    pub has_hosts: bool,
    /// Whether they have `LOGGING`.
    pub has_logging: bool,
    /// Whether they have `MIDDLEWARE`.
    pub has_middleware: bool,
    /// Whether there is a database, and whether it may be SQLite.
    pub database: Database,
    /// URL prefix of the static files, where they are collected.
    pub static_location: Option<String>,
    /// URL prefix of uploads, where they are kept.
    pub media_location: Option<String>,
    /// A path that answers.
    pub ready: String,
}

/// What the settings say about a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// Nothing.
    None,
    /// SQLite, or what `DATABASE_URL` says.
    Sqlite,
    /// Another one.
    Server,
}

/// A way to the settings.
struct Entry {
    root: String,
    settings: String,
    manage: Option<String>,
}

/// Every Django project, the likeliest first.
#[must_use]
pub fn find(survey: &Survey) -> Vec<Django> {
    let mut entries: Vec<Entry> = Vec::new();
    for (path, text) in survey.ending("manage.py") {
        if (path == "manage.py" || path.ends_with("/manage.py")) && !is_aside(path) {
            if let Some((settings, is_default)) = settings_of(text) {
                let manage = is_default.then(|| path.to_owned());
                let root = root_of(survey, directory(path), &settings).to_owned();
                entries.push(Entry { root, settings, manage });
            }
        }
    }
    for (path, text) in survey.scripts() {
        let name = path.rsplit('/').next().unwrap_or(path);
        if matches!(name, "wsgi.py" | "asgi.py") {
            if let Some((settings, _)) = settings_of(text) {
                let (root, _) = module_of(survey, path);
                if !entries.iter().any(|one| one.root == root || one.settings == settings) {
                    entries.push(Entry { root, settings, manage: None });
                }
            }
        }
    }
    entries.iter().filter_map(|entry| read(survey, entry)).collect()
}

impl Django {
    /// Whether the user means this one: by its settings' module or file, or by manage.py.
    #[must_use]
    pub fn is_meant(&self, by: &str) -> bool {
        by == self.settings || by == self.file || self.manage.as_deref() == Some(by)
    }

    /// Whether its modules are in what an installed distribution brings: in a package, not
    /// beside a manage.py.
    #[must_use]
    pub fn is_installed(&self, metadata: &Metadata) -> bool {
        metadata.installable.is_some() && self.manage.is_none() && self.settings.contains('.')
    }
}

/// The module in `os.environ.setdefault("DJANGO_SETTINGS_MODULE", MODULE)`, and whether
/// another one would be taken.
fn settings_of(text: &str) -> Option<(String, bool)> {
    script::lines(text).iter().find_map(|line| {
        let (before, rest) = line.text.split_once("DJANGO_SETTINGS_MODULE")?;
        let rest = rest.trim_start_matches(['"', '\'', ']', ',', ' ', '=']);
        let end = rest.find(['"', '\'']).unwrap_or(0);
        let module = &rest[..end];
        let letters = |letter: char| letter.is_alphanumeric() || "_.".contains(letter);
        (!module.is_empty() && module.chars().all(letters))
            .then(|| (module.to_owned(), before.contains("setdefault")))
    })
}

/// The directory a module's name begins in: the one of manage.py, or one around it.
fn root_of<'a>(survey: &Survey, directory_of_manage: &'a str, module: &str) -> &'a str {
    let mut root = directory_of_manage;
    loop {
        if file_of(survey, root, module).is_some() {
            return root;
        }
        if root.is_empty() {
            return directory_of_manage;
        }
        root = directory(root);
    }
}

/// The file of a module beneath a directory.
fn file_of(survey: &Survey, root: &str, module: &str) -> Option<String> {
    let path = join(root, &module.replace('.', "/"));
    [format!("{path}.py"), format!("{path}/__init__.py")].into_iter().find(|path| survey.has(path))
}

/// The settings for a server beside these, if there are some.
fn production(survey: &Survey, root: &str, settings: &str) -> String {
    let mut packages = vec![settings];
    packages.extend(settings.rsplit_once('.').map(|(package, _)| package));
    let all = packages
        .iter()
        .flat_map(|package| PRODUCTION.iter().map(move |name| format!("{package}.{name}")));
    // `settings.py` is a module and has nothing below it.
    all.into_iter()
        .find(|module| module.contains("settings") && file_of(survey, root, module).is_some())
        .unwrap_or_else(|| settings.to_owned())
}

fn read(survey: &Survey, entry: &Entry) -> Option<Django> {
    let Entry { root, manage, .. } = entry;
    let settings = production(survey, root, &entry.settings);
    let file = file_of(survey, root, &settings)?;
    let mut lines = Vec::new();
    let mut source = String::new();
    collect(survey, root, &settings, &mut lines, &mut source, 0);
    // The last one counts.
    let value = |name: &str| {
        lines
            .iter()
            .rev()
            .find_map(|line| line.assignment().filter(|(known, _)| *known == name))
            .map(|(_, value)| value)
    };
    let key = value("SECRET_KEY").and_then(variable_in);
    let mut variables = variable::needed(&source);
    variables.retain(|name| key.as_ref() != Some(name));
    let database = match value("DATABASES") {
        None => Database::None,
        Some(text) if text.contains("sqlite") || takes_url(text) => Database::Sqlite,
        Some(_) => Database::Server,
    };
    if database == Database::Sqlite {
        // The settings of a node give it a value.
        variables.retain(|name| name != "DATABASE_URL");
    }
    let static_location = value("STATIC_URL").and_then(location);
    let (application, interface) = application(survey, root, value("WSGI_APPLICATION"), &source);
    let ready = value("ROOT_URLCONF")
        .and_then(script::string)
        .and_then(|module| file_of(survey, root, &module))
        .and_then(|file| survey.text(&file).map(ready_path))
        .unwrap_or_else(|| "/".to_owned());
    Some(Django {
        application,
        interface,
        secret_key: key.map_or(SecretKey::Override, SecretKey::Variable),
        debug: value("DEBUG") == Some("True"),
        has_hosts: value("ALLOWED_HOSTS").is_some(),
        has_logging: value("LOGGING").is_some(),
        has_middleware: value("MIDDLEWARE").is_some(),
        static_location: static_location.filter(|_| source.contains("django.contrib.staticfiles")),
        media_location: value("MEDIA_ROOT")
            .filter(|root| !matches!(*root, "\"\"" | "''"))
            .and_then(|_| location(value("MEDIA_URL")?)),
        root: root.clone(),
        manage: manage.clone(),
        settings,
        file,
        variables,
        database,
        ready,
    })
}

/// All lines of a settings module, those of the modules it takes everything from first.
fn collect(
    survey: &Survey,
    root: &str,
    module: &str,
    found: &mut Vec<Line>,
    source: &mut String,
    depth: usize,
) {
    let Some(file) = file_of(survey, root, module).filter(|_| depth < 8) else { return };
    let text = survey.text(&file).unwrap_or_default();
    let is_package = file.ends_with("/__init__.py");
    for line in script::lines(text) {
        let from = line.text.strip_prefix("from ").and_then(|rest| rest.strip_suffix(" import *"));
        match from {
            Some(from) => {
                let from = absolute(module, from.trim(), is_package);
                collect(survey, root, &from, found, source, depth + 1);
            }
            None => found.push(line),
        }
    }
    source.push_str(text);
    source.push('\n');
}

/// The module a relative name means.
fn absolute(module: &str, name: &str, is_package: bool) -> String {
    let bare = name.trim_start_matches('.');
    let dots = name.len() - bare.len();
    if dots == 0 {
        return name.to_owned();
    }
    let mut parts: Vec<&str> = module.split('.').collect();
    let up = if is_package { dots - 1 } else { dots };
    parts.truncate(parts.len().saturating_sub(up));
    parts.extend(Some(bare).filter(|bare| !bare.is_empty()));
    parts.join(".")
}

/// The variable a value is read from: `os.environ["X"]`, `env("X", …)`, `os.getenv("X")`.
fn variable_in(value: &str) -> Option<String> {
    let reads = ["environ", "getenv", "env", "config"].iter().any(|word| value.contains(word));
    let quote = value.find(['"', '\''])?;
    let (name, _) = value[quote + 1..].split_once(['"', '\''])?;
    let is_name = name.starts_with(|letter: char| letter.is_ascii_uppercase())
        && name.chars().all(|it| it.is_ascii_uppercase() || it.is_ascii_digit() || it == '_');
    (reads && is_name).then(|| name.to_owned())
}

fn takes_url(value: &str) -> bool {
    ["dj_database_url", "env.db", "DATABASE_URL"].iter().any(|word| value.contains(word))
}

/// A URL prefix on this site.
fn location(value: &str) -> Option<String> {
    let url = script::string(value)?;
    let inner = url.trim_matches('/');
    let letters = |letter: char| letter.is_ascii_alphanumeric() || "/._~-".contains(letter);
    (!inner.is_empty() && inner.chars().all(letters)).then(|| format!("/{inner}/"))
}

/// What a server is told, and what it speaks.
fn application(
    survey: &Survey,
    root: &str,
    named: Option<&str>,
    settings: &str,
) -> (String, Interface) {
    let usable = |module: &str| {
        let text = file_of(survey, root, module).and_then(|file| survey.text(&file));
        // One that insists on its settings would not take those of a node.
        text.is_some_and(|text| settings_of(text).is_none_or(|(_, is_default)| is_default))
    };
    let named = named.and_then(script::string);
    let module = named.as_deref().and_then(|named| named.rsplit_once('.'));
    if let Some((package, _)) = module.and_then(|(module, _)| module.rsplit_once('.')) {
        let asgi = format!("{package}.asgi");
        if usable(&asgi) && settings.contains("\"channels\"") {
            return (format!("{asgi}:application"), Interface::Asgi);
        }
    }
    match module.filter(|(module, _)| usable(module)) {
        Some((module, name)) => (format!("{module}:{name}"), Interface::Wsgi),
        None => ("django.core.wsgi:get_wsgi_application()".to_owned(), Interface::Wsgi),
    }
}

/// A path the root URLconf answers.
fn ready_path(urls: &str) -> String {
    let routes: Vec<String> = script::lines(urls)
        .iter()
        .flat_map(|line| {
            let of = |name| script::first_strings(&line.text, name);
            [of("path"), of("url")].concat()
        })
        .collect();
    if routes.iter().any(|route| matches!(route.as_str(), "" | "^$" | "^" | "^/?$")) {
        "/".to_owned()
    } else if routes.iter().any(|route| matches!(route.as_str(), "admin/" | "^admin/")) {
        // Without a login, the page that asks for one.
        "/admin/login/".to_owned()
    } else {
        let plain = |route: &&String| !route.is_empty() && !route.contains(['<', '(', '^', '[']);
        routes.iter().find(plain).map_or("/".to_owned(), |route| format!("/{route}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANAGE: &str = "import os\ndef main():\n    os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')\n";
    const SETTINGS: &str = "from pathlib import Path\nBASE_DIR = Path(__file__)\nSECRET_KEY = 'django-insecure-x'\n\
        DEBUG = True\nALLOWED_HOSTS = []\nMIDDLEWARE = []\nINSTALLED_APPS = [\n 'django.contrib.staticfiles',\n]\n\
        ROOT_URLCONF = 'shop.urls'\nWSGI_APPLICATION = 'shop.wsgi.application'\n\
        DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': BASE_DIR / 'db.sqlite3'}}\n\
        STATIC_URL = 'static/'\n";
    const WSGI: &str = "import os\nfrom django.core.wsgi import get_wsgi_application\n\
        os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')\napplication = get_wsgi_application()\n";

    #[test]
    fn what_startproject_makes_is_read_whole() {
        let survey = Survey::from([
            ("manage.py", MANAGE),
            ("shop/__init__.py", ""),
            ("shop/settings.py", SETTINGS),
            ("shop/urls.py", "urlpatterns = [\n    path('admin/', admin.site.urls),\n]\n"),
            ("shop/wsgi.py", WSGI),
        ]);
        let found = find(&survey);
        assert_eq!(found.len(), 1);
        let expected = Django {
            settings: "shop.settings".to_owned(),
            file: "shop/settings.py".to_owned(),
            root: String::new(),
            manage: Some("manage.py".to_owned()),
            application: "shop.wsgi:application".to_owned(),
            interface: Interface::Wsgi,
            secret_key: SecretKey::Override,
            variables: Vec::new(),
            debug: true,
            has_hosts: true,
            has_logging: false,
            has_middleware: true,
            database: Database::Sqlite,
            static_location: Some("/static/".to_owned()),
            media_location: None,
            ready: "/admin/login/".to_owned(),
        };
        assert_eq!(found[0], expected);
        assert!(found[0].is_meant("manage.py"));
    }

    #[test]
    fn the_settings_for_a_server_are_preferred_and_read_through() {
        let survey = Survey::from([
            ("src/ns/__init__.py", ""),
            ("src/ns/wsgi.py", &WSGI.replace("shop.settings", "ns.settings.dev")),
            ("src/ns/settings/__init__.py", ""),
            ("src/ns/settings/dev.py", "from .base import *\nDEBUG = True\n"),
            (
                "src/ns/settings/prod.py",
                "from .base import *\nALLOWED_HOSTS = [X]\nTOKEN = os.environ['API_TOKEN']\nURL = os.environ['DATABASE_URL']\n",
            ),
            (
                "src/ns/settings/base.py",
                "try:\n    SECRET_KEY = os.environ['SECRET_KEY']\nexcept KeyError:\n    pass\n\
                 DATABASES = {'default': dj_database_url.config()}\nWSGI_APPLICATION = 'ns.wsgi.application'\n\
                 MEDIA_ROOT = ''\nMEDIA_URL = ''\nLOGGING = {}\nROOT_URLCONF = 'ns.urls'\n",
            ),
            (
                "src/ns/urls.py",
                "urlpatterns = [re_path(r'^', include('ns.main.urls')), path('x/', x)]\n",
            ),
        ]);
        let found = find(&survey).into_iter().next().expect("it is one");
        assert_eq!(found.settings, "ns.settings.prod");
        assert_eq!(found.root, "src");
        assert_eq!(found.secret_key, SecretKey::Variable("SECRET_KEY".to_owned()));
        assert_eq!(found.variables, ["API_TOKEN"]);
        assert_eq!((found.debug, found.has_logging), (false, true));
        assert_eq!(found.database, Database::Sqlite);
        assert_eq!((found.static_location, found.media_location), (None, None));
        assert_eq!(found.application, "ns.wsgi:application");
        assert_eq!(found.ready, "/");
    }

    #[test]
    fn a_test_project_of_a_library_and_a_flask_manage_py_are_none() {
        let survey = Survey::from([
            ("tests/manage.py", MANAGE),
            ("manage.py", "from shop import create_app\n"),
            ("shop/wsgi.py", "application = create_app()\n"),
        ]);
        assert_eq!(find(&survey), []);
    }

    #[test]
    fn a_wsgi_module_that_insists_on_its_settings_is_passed_by() {
        let survey = Survey::from([
            ("manage.py", MANAGE),
            ("shop/settings.py", SETTINGS),
            ("shop/wsgi.py", "os.environ['DJANGO_SETTINGS_MODULE'] = 'shop.settings'\n"),
        ]);
        assert_eq!(find(&survey)[0].application, "django.core.wsgi:get_wsgi_application()");
    }
}
