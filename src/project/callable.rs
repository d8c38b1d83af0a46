//! The callable a server is told of: WSGI (PEP 3333) or ASGI, a variable of a module or
//! what a factory makes.

use std::collections::BTreeMap;

use super::requirement::normalise;
use super::script::{self, Line, call, keyword, lines};
use super::survey::{Survey, directory, is_aside};

/// What a server and an application agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// PEP 3333.
    Wsgi,
    /// <https://asgi.readthedocs.io>
    Asgi,
}

/// An application that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callable {
    /// Module, dotted.
    pub module: String,
    /// Variable or factory in it.
    pub name: String,
    /// Whether it is called to get the application.
    pub factory: bool,
    /// What it speaks.
    pub interface: Interface,
    /// What it was made with, for people.
    pub framework: &'static str,
    /// The file it is in.
    pub file: String,
    /// The directory the module's name begins in.
    pub root: String,
    /// Directory and location of the static files it serves itself.
    pub statics: Option<(String, String)>,
    /// How likely it is the one; more is likelier.
    rank: i32,
}

impl Callable {
    /// As gunicorn takes it: `shop.wsgi:application`, `shop:create_app()`.
    #[must_use]
    pub fn written(&self) -> String {
        let brackets = if self.factory { "()" } else { "" };
        format!("{}:{}{brackets}", self.module, self.name)
    }

    /// Whether the user means this one: by `MODULE:NAME`, module or file.
    #[must_use]
    pub fn is_meant(&self, by: &str) -> bool {
        let plain = by.trim_end_matches("()");
        plain == format!("{}:{}", self.module, self.name) || by == self.module || by == self.file
    }
}

/// Constructors of applications: the module they come from, their name.
const MAKERS: [(&str, &str, Interface, &str); 14] = [
    ("flask", "Flask", Interface::Wsgi, "Flask"),
    ("bottle", "Bottle", Interface::Wsgi, "Bottle"),
    ("bottle", "default_app", Interface::Wsgi, "Bottle"),
    ("falcon", "App", Interface::Wsgi, "Falcon"),
    ("falcon", "API", Interface::Wsgi, "Falcon"),
    ("falcon.asgi", "App", Interface::Asgi, "Falcon"),
    ("django.core.wsgi", "get_wsgi_application", Interface::Wsgi, "Django"),
    ("django.core.asgi", "get_asgi_application", Interface::Asgi, "Django"),
    ("apiflask", "APIFlask", Interface::Wsgi, "Flask"),
    ("fastapi", "FastAPI", Interface::Asgi, "FastAPI"),
    ("starlette.applications", "Starlette", Interface::Asgi, "Starlette"),
    ("quart", "Quart", Interface::Asgi, "Quart"),
    ("litestar", "Litestar", Interface::Asgi, "Litestar"),
    ("connexion", "FlaskApp", Interface::Wsgi, "Flask"),
];

/// Usual names of a variable and of a factory.
const VARIABLES: [&str; 4] = ["application", "app", "wsgi_app", "asgi_app"];
const FACTORIES: [&str; 5] =
    ["create_app", "make_app", "create_application", "get_app", "get_application"];

/// Every application of a project, the likeliest first.
#[must_use]
pub fn find(survey: &Survey) -> Vec<Callable> {
    let mut found: Vec<Callable> =
        survey.scripts().into_iter().flat_map(|(path, text)| in_file(survey, path, text)).collect();
    found.sort_by(|a, b| b.rank.cmp(&a.rank).then_with(|| a.written().cmp(&b.written())));
    found
}

/// Puts the directories of a namespace package before the names of modules in it: nothing in
/// them says so but the name of the distribution, `titiler.application` for instance.
pub fn join_namespace(found: &mut [Callable], distribution: &str) {
    for one in found.iter_mut().filter(|one| !one.root.is_empty()) {
        let namespace = one.root.rsplit('/').next().unwrap_or(&one.root).to_owned();
        let package = one.module.split('.').next().unwrap_or(&one.module);
        if normalise(&format!("{namespace}.{package}")) == normalise(distribution) {
            one.module = format!("{namespace}.{}", one.module);
            one.root.truncate(one.root.len() - namespace.len());
            one.root.truncate(one.root.trim_end_matches('/').len());
        }
    }
}

/// The application the user names as `MODULE:CALLABLE` although nothing gives it away.
#[must_use]
pub fn named(survey: &Survey, written: &str) -> Option<Callable> {
    let (module, name) = written.split_once(':')?;
    let (name, factory) = match name.strip_suffix("()") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let path = module.replace('.', "/");
    let ends = [format!("{path}.py"), format!("{path}/__init__.py")];
    let is_it =
        |file: &str| ends.iter().any(|end| file == end || file.ends_with(&format!("/{end}")));
    let (file, text) = survey.ending(".py").into_iter().find(|(file, _)| is_it(file))?;
    let imported =
        lines(text).iter().flat_map(Line::imports).map(|(from, known)| (known, from)).collect();
    let (interface, framework) = by_imports(survey, &imported).unwrap_or((Interface::Wsgi, ""));
    let end = ends.iter().find(|end| file.ends_with(*end)).map_or(0, String::len);
    Some(Callable {
        module: module.to_owned(),
        name: name.to_owned(),
        factory,
        interface,
        framework,
        file: file.to_owned(),
        root: file[..file.len() - end].trim_end_matches('/').to_owned(),
        statics: None,
        rank: 0,
    })
}

/// Where a module's name begins, and the name: the topmost directory of those around the
/// file that are packages.
#[must_use]
pub fn module_of(survey: &Survey, path: &str) -> (String, String) {
    let stem = path.strip_suffix(".py").unwrap_or(path);
    let mut root = directory(path);
    while !root.is_empty() && survey.has(&format!("{root}/__init__.py")) {
        root = directory(root);
    }
    let inside = stem.strip_prefix(root).unwrap_or(stem).trim_start_matches('/');
    let module = inside.strip_suffix("/__init__").unwrap_or(inside).replace('/', ".");
    (root.to_owned(), module)
}

fn in_file(survey: &Survey, path: &str, text: &str) -> Vec<Callable> {
    // Most files of a project have nothing of it.
    let words =
        ["app", "Flask", "FastAPI", "Starlette", "start_response", "receive", "wsgi", "asgi"];
    if !words.iter().any(|word| text.contains(word)) {
        return Vec::new();
    }
    let lines = lines(text);
    let imported: BTreeMap<String, String> =
        lines.iter().flat_map(Line::imports).map(|(from, known)| (known, from)).collect();
    let mut found: Vec<Callable> = Vec::new();
    let mut add =
        |name: &str, factory: bool, interface: Interface, framework, statics, sure: i32| {
            let (root, module) = module_of(survey, path);
            let rank = sure + rank_of(path, name, factory);
            let file = path.to_owned();
            // A name that is assigned again is the same application, wrapped.
            if found.iter().all(|one| one.name != name) && !module.is_empty() {
                let name = name.to_owned();
                found.push(Callable {
                    module,
                    name,
                    factory,
                    interface,
                    framework,
                    file,
                    root,
                    statics,
                    rank,
                });
            }
        };
    let stem = path.rsplit('/').next().unwrap_or(path);
    for (at, line) in lines.iter().enumerate() {
        if let Some((name, value)) = line.assignment().filter(|_| line.indent == 0) {
            let made = call(value);
            if let Some((interface, framework)) =
                made.as_ref().and_then(|it| maker(it.0, &imported))
            {
                let arguments = made.map(|(_, arguments)| arguments).unwrap_or_default();
                let statics =
                    if framework == "Flask" { statics(survey, path, &arguments) } else { None };
                add(name, false, interface, framework, statics, 100);
            } else if VARIABLES.contains(&name) && matches!(stem, "wsgi.py" | "asgi.py") {
                let interface = if stem == "asgi.py" { Interface::Asgi } else { Interface::Wsgi };
                let guessed = by_imports(survey, &imported);
                let (interface, framework) = guessed.unwrap_or((interface, ""));
                add(name, false, interface, framework, None, 100);
            } else if VARIABLES.contains(&name)
                && made.is_some_and(|(called, _)| {
                    FACTORIES.contains(&called.rsplit('.').next().unwrap_or(called))
                        || called.ends_with(".make_wsgi_app")
                })
            {
                let (interface, framework) =
                    by_imports(survey, &imported).unwrap_or((Interface::Wsgi, ""));
                add(name, false, interface, framework, None, 90);
            }
        }
        let Some((name, parameters, is_async)) = line.function().filter(|_| line.indent == 0)
        else {
            continue;
        };
        let names: Vec<&str> =
            parameters.iter().map(|it| it.split([':', '=']).next().unwrap_or(it).trim()).collect();
        if is_async && names == ["scope", "receive", "send"] {
            add(name, false, Interface::Asgi, "", None, 60);
        } else if !is_async && names.len() == 2 && names[1] == "start_response" {
            add(name, false, Interface::Wsgi, "", None, 60);
        } else if FACTORIES.contains(&name)
            && !is_async
            && parameters.iter().all(|it| is_optional(it))
        {
            // Where the factory itself makes it, which may be further down.
            let made = lines[at + 1..].iter().take_while(|it| it.indent > line.indent);
            let inside =
                made.filter_map(|line| maker(call(line.assignment()?.1)?.0, &imported)).next();
            let guessed =
                inside.map(|it| (it, 50)).or_else(|| Some((by_imports(survey, &imported)?, 40)));
            if let Some(((interface, framework), sure)) = guessed {
                add(name, true, interface, framework, None, sure);
            }
        }
    }
    found
}

/// Whether a factory can be called without this parameter.
fn is_optional(parameter: &str) -> bool {
    parameter.starts_with('*') || parameter == "/" || parameter.contains('=')
}

/// What a called name makes, by where it was imported from.
fn maker(called: &str, imported: &BTreeMap<String, String>) -> Option<(Interface, &'static str)> {
    let (first, rest) = called.split_once('.').map_or((called, ""), |(first, rest)| (first, rest));
    let from = imported.get(first)?;
    let whole = if rest.is_empty() { from.clone() } else { format!("{from}.{rest}") };
    MAKERS
        .iter()
        .find(|(module, name, ..)| whole == format!("{module}.{name}"))
        .map(|(_, _, interface, framework)| (*interface, *framework))
}

/// The framework among what a file imports, or among what those files of the project do.
fn by_imports(
    survey: &Survey,
    imported: &BTreeMap<String, String>,
) -> Option<(Interface, &'static str)> {
    let of = |text: &str| {
        let top = text.split('.').next().unwrap_or(text);
        let by_top = MAKERS.iter().find(|(module, ..)| module.split('.').next() == Some(top));
        by_top.map(|(_, _, interface, framework)| (*interface, *framework))
    };
    imported.values().find_map(|from| of(from)).or_else(|| {
        imported.values().find_map(|from| {
            let (module, _) = from.rsplit_once('.')?;
            let path = module.trim_start_matches('.').replace('.', "/");
            let text = survey.ending(&format!("{path}.py")).first().map(|(_, text)| *text)?;
            script::lines(text).iter().flat_map(Line::imports).find_map(|(from, _)| of(&from))
        })
    })
}

/// What makes one of several applications the likelier: its file's name, its own, and how
/// near to the top it is.
fn rank_of(path: &str, name: &str, factory: bool) -> i32 {
    let stem = path.rsplit('/').next().unwrap_or(path);
    let by_file = match stem {
        "wsgi.py" | "asgi.py" => 30,
        "app.py" | "main.py" | "application.py" | "server.py" | "__init__.py" | "core.py" => 10,
        // Where it is made for a task queue or a command line.
        _ if ["celery", "worker", "tasks", "manage", "cli"].iter().any(|it| stem.contains(it)) => {
            -70
        }
        _ => 0,
    };
    let by_name = match VARIABLES.iter().position(|one| *one == name) {
        Some(0 | 1) => 10,
        Some(_) => 5,
        None => 0,
    };
    let depth = i32::try_from(path.matches('/').count()).unwrap_or(i32::MAX / 2);
    by_file + by_name
        - 4 * depth
        - if factory { 5 } else { 0 }
        - if is_aside(path) { 200 } else { 0 }
}

/// The static files Flask serves: `static` beside the module, unless it is told otherwise.
fn statics(survey: &Survey, path: &str, arguments: &[&str]) -> Option<(String, String)> {
    if ["static_folder", "static_url_path", "static_host"]
        .iter()
        .any(|key| keyword(arguments, key).is_some())
    {
        return None;
    }
    // Only `__name__` says that the files lie beside this one.
    if arguments.first() != Some(&"__name__") {
        return None;
    }
    let directory = super::survey::join(directory(path), "static");
    survey.has_directory(&directory).then(|| (directory, "/static/".to_owned()))
}

/// A path that answers without parameters: where readiness is asked for.
#[must_use]
pub fn ready_path(survey: &Survey, callable: &Callable) -> Option<String> {
    let below = directory(&callable.file);
    let files = survey.scripts().into_iter().filter(|(path, _)| path.starts_with(below));
    let mut routes: Vec<String> = Vec::new();
    for (_, text) in files {
        for line in lines(text) {
            routes.extend(routes_of(&line.text));
        }
    }
    let plain = |path: &&String| !path.contains(['<', '{', '*', '(']);
    let health = ["/health", "/healthz", "/health/", "/_health", "/ping", "/api/health", "/up"];
    let known = health.into_iter().find(|path| routes.iter().any(|route| route == path));
    known
        .map(str::to_owned)
        .or_else(|| routes.iter().find(|route| *route == "/").cloned())
        .or_else(|| (callable.framework == "FastAPI").then(|| "/openapi.json".to_owned()))
        .or_else(|| routes.iter().filter(|path| !path.contains("login")).find(plain).cloned())
}

/// Paths a line gives to GET requests: `@app.route("/")`, `Route("/", page)`.
fn routes_of(line: &str) -> Vec<String> {
    let decorated = line.strip_prefix('@').and_then(|line| {
        let (name, arguments) = call(line)?;
        let methods = keyword(&arguments, "methods");
        let gets = name.ends_with(".get")
            || (name.ends_with("route") && methods.is_none_or(|all| all.contains("GET")));
        gets.then(|| script::string(arguments.first()?)).flatten()
    });
    let mut found: Vec<String> = decorated.into_iter().collect();
    found.extend(script::first_strings(line, "Route"));
    found.retain(|path| path.starts_with('/'));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(survey: &Survey) -> Callable {
        find(survey).into_iter().next().expect("there is an application")
    }

    #[test]
    fn a_flask_variable_is_found_where_it_is_made() {
        let survey = Survey::from([
            ("httpbin/__init__.py", "from .core import *\n"),
            (
                "httpbin/core.py",
                "from flask import Flask, request\napp = Flask(__name__, template_folder=x)\napp.debug = 1\n@app.route('/')\ndef index():\n    pass\n",
            ),
            ("httpbin/static/style.css", ""),
            ("tests/test_app.py", "import flask\napp = flask.Flask(__name__)\n"),
        ]);
        let all = find(&survey);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].written(), "httpbin.core:app");
        assert_eq!((all[0].framework, all[0].interface), ("Flask", Interface::Wsgi));
        assert_eq!(all[0].statics, Some(("httpbin/static".to_owned(), "/static/".to_owned())));
        assert_eq!(ready_path(&survey, &all[0]).as_deref(), Some("/"));
    }

    #[test]
    fn a_wsgi_module_is_likelier_than_the_factory_it_calls() {
        let survey = Survey::from([
            ("money/__init__.py", ""),
            (
                "money/run.py",
                "from flask import Flask\ndef create_app(configuration=None, *, a=1):\n    app = Flask(__name__)\n    return app\n",
            ),
            ("money/wsgi.py", "from money.run import create_app\n\napplication = create_app()\n"),
        ]);
        assert_eq!(first(&survey).written(), "money.wsgi:application");
        assert_eq!(first(&survey).framework, "Flask");
        let factory = &find(&survey)[1];
        assert_eq!(
            (factory.written().as_str(), factory.framework),
            ("money.run:create_app()", "Flask")
        );
        assert!(factory.is_meant("money.run:create_app"));
        assert!(factory.is_meant("money/run.py"));
    }

    #[test]
    fn asgi_applications_are_told_from_wsgi_ones() {
        let survey = Survey::from([
            (
                "src/pages/app.py",
                "from starlette.applications import Starlette\nfrom starlette.routing import Route\n\
             routes = [Route('/p/{name}', page), Route('/', home)]\napp = Starlette(\n  routes=routes,\n)\n",
            ),
            ("src/pages/__init__.py", ""),
        ]);
        let app = first(&survey);
        assert_eq!((app.written().as_str(), app.root.as_str()), ("pages.app:app", "src"));
        assert_eq!(app.interface, Interface::Asgi);
        assert_eq!(ready_path(&survey, &app).as_deref(), Some("/"));

        let survey = Survey::from([(
            "main.py",
            "import fastapi as f\napi = f.FastAPI()\n@api.get('/items/{id}')\ndef item(id): ...\n",
        )]);
        let app = first(&survey);
        assert_eq!((app.written().as_str(), app.framework), ("main:api", "FastAPI"));
        assert_eq!(ready_path(&survey, &app).as_deref(), Some("/openapi.json"));

        let survey =
            Survey::from([("bare.py", "async def serve(scope, receive, send):\n    pass\n")]);
        assert_eq!(first(&survey).interface, Interface::Asgi);
    }

    #[test]
    fn a_namespace_is_known_by_the_distributions_name() {
        let survey = Survey::from([
            ("src/titiler/application/__init__.py", ""),
            ("src/titiler/application/main.py", "from fastapi import FastAPI\napp = FastAPI()\n"),
        ]);
        let mut found = find(&survey);
        join_namespace(&mut found, "other");
        assert_eq!(found[0].written(), "application.main:app");
        join_namespace(&mut found, "titiler-application");
        assert_eq!(
            (found[0].written().as_str(), found[0].root.as_str()),
            ("titiler.application.main:app", "src")
        );
    }

    #[test]
    fn a_plain_callable_is_known_by_its_parameters() {
        let survey = Survey::from([(
            "radicale/__init__.py",
            "def application(environ: Environ,\n    start_response: Start) -> Iterable[bytes]:\n    return []\n",
        )]);
        let app = first(&survey);
        assert_eq!(
            (app.written().as_str(), app.interface),
            ("radicale:application", Interface::Wsgi)
        );
        assert_eq!(ready_path(&survey, &app), None);
    }

    #[test]
    fn a_factory_that_wants_something_and_a_library_are_no_applications() {
        let survey = Survey::from([
            ("a.py", "from flask import Flask\ndef create_app(config):\n    return Flask('a')\n"),
            ("b.py", "from flask import Blueprint\napp = Blueprint('b', __name__)\n"),
            ("c.py", "def helper():\n    app = Flask(__name__)\n"),
        ]);
        assert_eq!(find(&survey), []);
    }
}
