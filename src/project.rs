//! A project's directory, recognised: what it serves and with what, read from its files
//! and never run, and the profile that follows from it.

mod callable;
mod debian;
mod django;
mod draft;
mod metadata;
mod node_settings;
mod requirement;
mod script;
mod server;
mod state;
mod survey;
mod uwsgi;
mod variable;
mod words;

use anyhow::Result;

use crate::error::{Exit, Mark as _, refuse};
use crate::profile;

pub use draft::{Draft, REQUIREMENTS, draft};
pub use survey::Survey;

use callable::Callable;
use django::Django;
use metadata::Metadata;
use uwsgi::Ini;

/// What the user says himself; the rest is recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The application, where there are several.
    pub app: Option<String>,
    /// The suite.
    pub suite: Option<String>,
    /// The name.
    pub name: Option<String>,
    /// Where nginx listens.
    pub listen: String,
}

impl Wish {
    /// Refuses what no profile takes, by the name of its option.
    ///
    /// # Errors
    /// When there is such a thing.
    pub fn check(&self) -> Result<()> {
        if let Some(name) = &self.name {
            profile::check_name(name).hint(
                "--name shop, for instance: up to 24 of a-z, 0-9 and -, beginning with a letter",
            )?;
        }
        let known = debian::SUITES[0].0;
        if let Some(suite) = self.suite.as_ref().filter(|suite| !is_taken(suite, "80")) {
            return refuse(
                format_args!("--suite {suite:?} is not the code name of a Debian suite"),
                format!("--suite {known}, for instance"),
            )
            .exit(Exit::Usage);
        }
        if !is_taken(known, &self.listen) {
            return refuse(
                format_args!("--listen {:?} is neither PORT nor ADDRESS:PORT", self.listen),
                "--listen 127.0.0.1:8080, for instance",
            )
            .exit(Exit::Usage);
        }
        Ok(())
    }
}

/// Whether a profile takes a suite and an address.
fn is_taken(suite: &str, listen: &str) -> bool {
    let (suite, listen) = (words::quoted(suite), words::quoted(listen));
    let text = format!(
        "schema = 1\nname = \"site\"\nversion = \"1\"\n[environment]\nsuite = {suite}\n\
         [front]\nlisten = [{listen}]\n[[front.static]]\nlocation = \"/\"\npath = \"/srv/site\"\n"
    );
    profile::parse(&text).is_ok()
}

/// What a project serves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Served {
    Django(Django),
    Callable(Callable),
    /// A uWSGI ini, and the application it names if that is known.
    Uwsgi(Ini, Option<Callable>),
    /// A directory of files, relative to the project's.
    Files(String),
}

/// A project as it was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Project {
    metadata: Metadata,
    served: Served,
    /// What could be served as well, as `--app` takes it.
    others: Vec<String>,
}

/// Directories a site generator writes to, the likeliest first.
const SITES: [&str; 10] =
    ["public", "dist", "build", "_site", "site", "html", "www", "htdocs", "out", "output"];

/// Recognises what a project serves.
fn recognise(survey: &Survey, wish: &Wish) -> Result<Project> {
    let metadata = metadata::read(survey)?;
    let projects = django::find(survey);
    // What a Django project has beside its settings is part of it.
    let mut callables = callable::find(survey);
    callables.retain(|one| one.framework != "Django");
    if let Some(name) = &metadata.name {
        callable::join_namespace(&mut callables, &name.value);
    }
    let ini = uwsgi::read(survey);
    let mut others: Vec<String> = projects.iter().map(|one| one.settings.clone()).collect();
    others.extend(callables.iter().map(Callable::written));
    let served = match &wish.app {
        Some(app) => meant(survey, app, &projects, &callables, &others)?,
        None => first(survey, projects, ini, callables),
    };
    let Some(served) = served else {
        return refuse(
            "no web application is recognised here",
            "name its WSGI or ASGI callable: farmctl init --app PACKAGE.MODULE:CALLABLE",
        )
        .exit(Exit::Usage);
    };
    let taken = match &served {
        Served::Django(django) => django.settings.clone(),
        Served::Callable(callable) => callable.written(),
        Served::Uwsgi(ini, _) => ini.application.clone(),
        Served::Files(_) => String::new(),
    };
    others.retain(|one| *one != taken);
    Ok(Project { metadata, served, others })
}

/// What is served when nobody says: Django, what a uWSGI ini names, the likeliest
/// application, files.
fn first(
    survey: &Survey,
    projects: Vec<Django>,
    ini: Option<Ini>,
    callables: Vec<Callable>,
) -> Option<Served> {
    if let Some(django) = projects.into_iter().next() {
        return Some(Served::Django(django));
    }
    if let Some(ini) = ini {
        let callable = ini.callable(survey);
        return Some(Served::Uwsgi(ini, callable));
    }
    if let Some(callable) = callables.into_iter().next() {
        return Some(Served::Callable(callable));
    }
    let page = |directory: &&str| survey.has(&survey::join(directory, "index.html"));
    // What lies beside a site's directory is seldom for its visitors.
    let directory = SITES.iter().chain(&[""]).copied().find(page);
    // A package with a page in it is not a site.
    directory.filter(|_| survey.scripts().is_empty()).map(|it| Served::Files(it.to_owned()))
}

/// What the user means by `--app`.
fn meant(
    survey: &Survey,
    app: &str,
    projects: &[Django],
    callables: &[Callable],
    others: &[String],
) -> Result<Option<Served>> {
    if let Some(django) = projects.iter().find(|one| one.is_meant(app)) {
        return Ok(Some(Served::Django(django.clone())));
    }
    let found = callables.iter().find(|one| one.is_meant(app)).cloned();
    if let Some(callable) = found.or_else(|| callable::named(survey, app)) {
        return Ok(Some(Served::Callable(callable)));
    }
    let hint = match others {
        [] => "--app takes PACKAGE.MODULE:CALLABLE, of a module in the project".to_owned(),
        others => format!("there are: {}", others.join(", ")),
    };
    refuse(format_args!("the project has no application {app}"), hint).exit(Exit::Usage)
}
