//! The profile of a recognised project, each line with the reason it is there.

mod callable;
mod django;

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::callable::{Callable, Interface, ready_path};
use super::debian::{self, Packages};
use super::django::SecretKey;
use super::metadata::{Metadata, Wanted};
use super::requirement::Requirement;
use super::server::{GUNICORN, Server, Serving};
use super::survey::{Survey, directory, join};
use super::variable;
use super::words::{and, list, name_of, quoted, some, version_of};
use super::{Project, Served, Wish, recognise};
use crate::error::{Exit, Mark as _, refuse};
use crate::{lockfile, profile};

/// The file requirements are written to where the project's own do not suffice.
pub const REQUIREMENTS: &str = "farmctl-requirements.txt";

/// What is farmctl's in a project's directory.
const OURS: [&str; 3] = ["profile.toml", REQUIREMENTS, lockfile::FILE];

/// A profile, what lies beside it, and what was assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Name of the application.
    pub name: String,
    /// The profile.
    pub profile: String,
    /// The text of [`REQUIREMENTS`], if that is needed.
    pub requirements: Option<String>,
    /// What was assumed, a line each.
    pub assumptions: Vec<String>,
}

/// Writes the profile of a project; `directory` is the name of the directory it is in.
///
/// # Errors
/// When nothing is recognised, or no suite has a Python the project runs on.
pub fn draft(survey: &Survey, directory: &str, wish: &Wish) -> Result<Draft> {
    let project = recognise(survey, wish)?;
    let name = match &wish.name {
        Some(name) => name.clone(),
        None => name_of(project.metadata.name.as_ref().map_or(directory, |said| &said.value)),
    };
    let mut writer = Writer {
        survey,
        project: &project,
        wish,
        home: format!("/srv/{name}"),
        name,
        text: String::new(),
        requirements: None,
        assumptions: Vec::new(),
    };
    writer.write()?;
    let Writer { name, text, requirements, assumptions, .. } = writer;
    // What this program cannot read, it must not write.
    profile::parse(&text).with_context(|| format!("reading the profile of {name} again"))?;
    Ok(Draft { name, profile: text, requirements, assumptions })
}

pub(super) struct Writer<'a> {
    pub(super) survey: &'a Survey,
    pub(super) project: &'a Project,
    pub(super) wish: &'a Wish,
    pub(super) name: String,
    /// The directory everything of the application lies in.
    pub(super) home: String,
    pub(super) text: String,
    pub(super) requirements: Option<String>,
    pub(super) assumptions: Vec<String>,
}

impl Writer<'_> {
    pub(super) fn assume(&mut self, what: impl Into<String>) {
        self.assumptions.push(what.into());
    }

    pub(super) fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    /// A section after an empty line, with the comment above it.
    pub(super) fn section(&mut self, comment: &str, header: &str) {
        self.text.push('\n');
        for line in comment.lines() {
            self.line(format!("# {line}"));
        }
        self.line(header);
    }

    fn about(&self) -> &Metadata {
        &self.project.metadata
    }

    fn write(&mut self) -> Result<()> {
        self.say_what_is_served();
        self.head();
        if let Served::Files(directory) = &self.project.served {
            self.environment(self.wish.suite.as_deref().unwrap_or(debian::SUITES[0].0), None);
            self.files(directory);
            return Ok(());
        }
        let suite = self.suite()?;
        let serving = self.serving();
        let wanted = self.wanted(&serving);
        let packages = debian::packages(&wanted, &suite);
        self.environment(&suite, Some(&packages));
        self.build(&packages);
        self.python();
        self.copies();
        match &self.project.served {
            Served::Django(django) => self.django(django, &serving),
            _ => self.process(&serving),
        }
        Ok(())
    }

    fn say_what_is_served(&mut self) {
        let project = self.project;
        let what = match &project.served {
            Served::Django(django) => {
                format!("Django: settings {} ({})", django.settings, django.file)
            }
            Served::Callable(callable) => said(callable),
            Served::Uwsgi(ini, _) => {
                format!("uWSGI: {} ({}), as {} says", ini.application, ini.file, ini.path)
            }
            Served::Files(directory) if directory.is_empty() => {
                "files alone: there is an index.html and no Python".to_owned()
            }
            Served::Files(directory) => {
                format!("files alone: there is {directory}/index.html and no Python")
            }
        };
        self.assume(what);
        if let Some(other) = project.others.first() {
            let count = project.others.len() + 1;
            self.assume(format!(
                "it is one of {count} applications: --app '{other}' takes another"
            ));
        }
    }

    fn head(&mut self) {
        let metadata = self.about();
        let (version, from) = match &metadata.version {
            Some(said) => (version_of(&said.value), format!("  # {}", said.file)),
            None => ("1".to_owned(), String::new()),
        };
        let unsaid = metadata.version.is_none();
        let description = metadata.description.clone().unwrap_or_default();
        let description: String =
            description.chars().filter(|letter| !letter.is_control()).take(200).collect();
        let name = quoted(&self.name);
        self.line(format!(
            "# Written by farmctl init, which read the project and ran nothing of it. What each\n\
             # key takes is in README.md, \"The profile\"; farmctl(8) says where that is.\n\
             schema = 1\nname = {name}\nversion = {}{from}",
            quoted(&version)
        ));
        if !description.is_empty() {
            self.line(format!("description = {}", quoted(&description)));
        }
        if unsaid {
            self.assume("version 1: nothing says another; farmctl bake --set-version does");
        }
    }

    /// The suite whose Python the project runs on.
    fn suite(&mut self) -> Result<String> {
        let python = self.about().python.clone();
        let suite = match (&self.wish.suite, &python) {
            (Some(suite), _) => suite.clone(),
            (None, None) => debian::SUITES[0].0.to_owned(),
            (None, Some(said)) => match debian::suite_for(&said.value) {
                Some(suite) => suite.to_owned(),
                None => {
                    let known: Vec<String> = debian::SUITES
                        .iter()
                        .map(|(suite, (major, minor))| format!("{suite} has {major}.{minor}"))
                        .collect();
                    return refuse(
                        format_args!("{} asks for Python {}", said.file, said.value),
                        format!("{}: --suite takes one of them nevertheless", known.join(", ")),
                    )
                    .exit(Exit::Usage);
                }
            },
        };
        let asked = python.map(|said| format!("{} asks for {}", said.file, said.value));
        self.assume(if let Some((major, minor)) = debian::python_of(&suite) {
            let asked = asked.as_deref().unwrap_or("the project asks for no Python");
            format!("{suite}, which has Python {major}.{minor}: {asked}")
        } else {
            let asked = asked.map_or(String::new(), |asked| format!(", and {asked}"));
            format!("which Python {suite} has is not known here{asked}: farmctl bootstrap tells")
        });
        Ok(suite)
    }

    fn environment(&mut self, suite: &str, packages: Option<&Packages>) {
        let mut all: Vec<&str> = Vec::new();
        let mut comment = "The Debian it runs in.".to_owned();
        if let Some(packages) = packages {
            all.push("python3");
            all.extend(&packages.run);
            if !packages.run.is_empty() {
                let _ = write!(
                    comment,
                    " {} {} {} when it runs.",
                    and(&packages.because),
                    if packages.because.len() == 1 { "loads" } else { "load" },
                    and(&packages.run)
                );
            }
        }
        self.section(&comment, "[environment]");
        self.line(format!("suite = {}", quoted(suite)));
        self.line(format!("packages = {}", list(&all)));
    }

    fn build(&mut self, packages: &Packages) {
        let metadata = self.about();
        let version = metadata.version.as_ref().map(|said| said.value.clone());
        let by_hand = metadata.needs_version_control && self.installs();
        let wheels: Vec<String> = packages
            .wheels
            .iter()
            .map(|(name, build)| format!("{name} ({})", build.join(", ")))
            .collect();
        if packages.build.is_empty() && !by_hand {
            if !wheels.is_empty() {
                self.text.push('\n');
                self.wheels(&wheels);
            }
            return;
        }
        let comment = format!(
            "What only the bake needs{}: purged before packing.",
            if packages.because.is_empty() {
                String::new()
            } else {
                format!(", because of {}", and(&packages.because))
            }
        );
        self.section(&comment, "[build]");
        if !packages.build.is_empty() {
            self.line(format!("packages = {}", list(&packages.build)));
            self.assume(format!("{} to build {}", and(&packages.build), and(&packages.because)));
        }
        self.wheels(&wheels);
        if by_hand {
            let version = version.unwrap_or_else(|| "1".to_owned());
            let line = format!(
                "printf 'Metadata-Version: 2.1\\nName: {}\\nVersion: {version}\\n' > PKG-INFO",
                self.name
            );
            self.line("# Its version comes out of version control, of which a bake has nothing.");
            self.line(format!("before = [{}]", quoted(&line)));
            self.assume(format!(
                "version {version} for the distribution: its own is in version control"
            ));
        }
    }

    fn wheels(&mut self, wheels: &[String]) {
        if !wheels.is_empty() {
            self.line(format!(
                "# Wheels on amd64 and arm64; where there is none, build.packages needs a compiler and\n\
                 # what stands in brackets: {}.",
                wheels.join("; ")
            ));
        }
    }

    /// Whether the project is installed as a distribution, and not copied.
    fn installs(&self) -> bool {
        let metadata = self.about();
        let packaged = |file: &str, root: &str| {
            let inside = file.strip_prefix(root).unwrap_or(file).trim_start_matches('/');
            metadata.installable.is_some() && inside.contains('/')
        };
        match &self.project.served {
            Served::Django(django) => django.is_installed(metadata),
            Served::Callable(one) => packaged(&one.file, &one.root),
            Served::Uwsgi(ini, _) => packaged(&ini.file, &ini.root),
            Served::Files(_) => false,
        }
    }

    /// Who serves what.
    fn serving(&mut self) -> Serving {
        let project = self.project;
        let wants = |name: &str| project.metadata.wanted.get(name).is_some();
        let by_interface = |interface: Interface| match interface {
            Interface::Asgi => Server::Uvicorn,
            Interface::Wsgi if (wants("uwsgi") || wants("pyuwsgi")) && !wants("gunicorn") => {
                Server::Uwsgi
            }
            Interface::Wsgi => Server::Gunicorn,
        };
        let (server, application, root, callable) = match &project.served {
            Served::Django(it) => {
                (by_interface(it.interface), it.application.clone(), &it.root, None)
            }
            Served::Callable(it) => (by_interface(it.interface), it.written(), &it.root, Some(it)),
            Served::Uwsgi(ini, callable) => {
                (Server::Uwsgi, ini.application.clone(), &ini.root, callable.as_ref())
            }
            Served::Files(_) => unreachable!("files are served by nginx"),
        };
        let copied = join(&format!("{}/app", self.home), root).trim_end_matches('/').to_owned();
        let is_django = matches!(project.served, Served::Django(_));
        let directory = match (self.installs(), is_django) {
            (false, _) => copied,
            (true, true) => format!("{}/site", self.home),
            (true, false) => "/".to_owned(),
        };
        let ready = match (&project.served, callable) {
            (Served::Django(django), _) => django.ready.clone(),
            (_, Some(callable)) => self.ready(callable),
            _ => "/".to_owned(),
        };
        let (secrets, environment) = self.variables(callable);
        Serving { server, application, directory, ready, environment, secrets }
    }

    fn ready(&mut self, callable: &Callable) -> String {
        match ready_path(self.survey, callable) {
            Some(path) if path == "/" => path,
            Some(path) => {
                self.assume(format!("it is ready when {path} answers"));
                path
            }
            None => {
                self.assume("it is ready when / answers with a status from 200 to 399");
                "/".to_owned()
            }
        }
    }

    /// Environment variables the application cannot do without: secrets, and others with no
    /// value yet.
    fn variables(&mut self, callable: Option<&Callable>) -> (Vec<String>, Vec<(String, String)>) {
        let mut needed: Vec<String> = Vec::new();
        if let Served::Django(django) = &self.project.served {
            needed.clone_from(&django.variables);
            if let SecretKey::Variable(name) = &django.secret_key {
                needed.insert(0, name.clone());
            }
        }
        if let Some(callable) = callable {
            let beside = ["config.py", "settings.py"];
            let files = beside.map(|name| join(directory(&callable.file), name));
            for file in [callable.file.clone()].iter().chain(&files) {
                for name in variable::needed(self.survey.text(file).unwrap_or_default()) {
                    if !needed.contains(&name) {
                        needed.push(name);
                    }
                }
            }
        }
        let (secrets, plain): (Vec<String>, Vec<String>) =
            needed.into_iter().partition(|name| variable::is_secret(name));
        // Read where DATABASES is, and given by the settings of the node.
        for name in &plain {
            self.assume(format!("{name} is empty: give it a value in [[process]] environment"));
        }
        for name in secrets.iter().filter(|name| !variable::is_random(name)) {
            self.assume(format!(
                "{name} is a secret only you know: it belongs in /etc/farmctl/apps/{}.env",
                self.name
            ));
        }
        (secrets, plain.into_iter().map(|name| (name, String::new())).collect())
    }

    /// What goes into the virtualenv; writes the requirements that are missing.
    fn wanted(&mut self, serving: &Serving) -> Vec<Requirement> {
        let Metadata { wanted, passed, .. } = &self.project.metadata;
        let servers: &[&str] = match serving.server {
            Server::Gunicorn => &["gunicorn"],
            Server::Uvicorn => &["gunicorn", "uvicorn", "uvicorn-worker"],
            Server::Uwsgi => &["uwsgi"],
        };
        let is_there = |name: &str| {
            wanted.get(name).is_some() || (name == "uwsgi" && wanted.get("pyuwsgi").is_some())
        };
        let missing: Vec<&str> = servers.iter().copied().filter(|name| !is_there(name)).collect();
        let missing_all = and(&missing);
        let mut all = wanted.all().to_vec();
        all.extend(missing.iter().filter_map(|name| Requirement::parse(name)));
        let mut text = String::new();
        self.assumptions.extend_from_slice(passed);
        match wanted {
            Wanted::File { .. } if missing.is_empty() => {}
            Wanted::File { path, .. } => {
                let _ =
                    writeln!(text, "# What the project asks for, and what serves it.\n-r {path}");
                self.assume(format!("{REQUIREMENTS} adds {missing_all} to {path}"));
            }
            Wanted::List { from, pinned, all } => {
                let versions =
                    pinned.map_or(String::new(), |lock| format!(", in {lock}'s versions"));
                let _ = writeln!(
                    text,
                    "# Copied from {from}{versions}: farmctl locks this file, and installs the project\n\
                     # without looking what it asks for. Keep it as {from} is."
                );
                for one in all {
                    let _ = writeln!(text, "{}", one.text);
                }
                if !missing.is_empty() {
                    let _ = writeln!(text, "# What serves it.");
                }
                let more = if missing.is_empty() {
                    String::new()
                } else {
                    format!(" and adds {missing_all}")
                };
                self.assume(format!("{REQUIREMENTS} copies what {from} asks for{more}"));
            }
            Wanted::Nothing => {
                let _ = writeln!(
                    text,
                    "# What serves it; the project's own requirements belong here, too."
                );
                self.assume(if passed.is_empty() {
                    format!("no requirements are found: {REQUIREMENTS} has {missing_all} alone")
                } else {
                    format!("{REQUIREMENTS} has {missing_all} alone: the project's belong there")
                });
            }
        }
        if !text.is_empty() {
            for name in &missing {
                let least =
                    if *name == "gunicorn" { format!(">={GUNICORN}") } else { String::new() };
                let _ = writeln!(text, "{name}{least}");
            }
            self.requirements = Some(text);
        }
        all
    }

    fn python(&mut self) {
        let metadata = self.about();
        let file = match &metadata.wanted {
            Wanted::File { path, .. } if self.requirements.is_none() => path.clone(),
            _ => REQUIREMENTS.to_owned(),
        };
        let installable = metadata.installable;
        self.section(
            "The virtualenv. farmctl lock resolves the requirements and keeps their hashes.",
            "[python]",
        );
        self.line(format!("requirements = {}", quoted(&file)));
        if let (true, Some(by)) = (self.installs(), installable) {
            self.line(format!(
                "# The project is a distribution ({by}): it is installed, not copied."
            ));
            self.line("project = \".\"");
        }
    }

    fn copies(&mut self) {
        if self.installs() {
            return;
        }
        self.section(
            "All of the project; to leave something out, copy what is needed one by one.",
            "[[copy]]",
        );
        let to = format!("{}/app", self.home);
        self.line("from = \".\"");
        self.line(format!("to = {}", quoted(&to)));
        self.assume(format!("all of the project is copied to {to}"));
        if self.survey.has(".env") {
            self.assume(".env is in the tarball, too: move it away if there are secrets in it");
        }
    }

    fn front(&mut self) {
        self.section(
            "Where nginx listens: PORT or ADDRESS:PORT. Add server-names for host names.",
            "[front]",
        );
        self.line(format!("listen = [{}]", quoted(&self.wish.listen)));
    }

    fn static_files(&mut self, location: &str, path: &str) {
        self.section("nginx serves these itself.", "[[front.static]]");
        self.line(format!("location = {}", quoted(location)));
        self.line(format!("path = {}", quoted(path)));
    }

    /// A site of files alone.
    fn files(&mut self, directory: &str) {
        let survey = self.survey;
        let to = format!("{}/files", self.home);
        if directory.is_empty() {
            self.files_by_name(&to);
        } else {
            self.section("The site.", "[[copy]]");
            self.line(format!("from = {}", quoted(directory)));
            self.line(format!("to = {}", quoted(&to)));
            if survey.has("index.html") {
                self.assume(format!("the index.html beside {directory} is not served"));
            }
        }
        let inside = |path: &str| match directory {
            "" => is_public(top_of(path)) && is_plain(top_of(path)),
            _ => path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/')),
        };
        let hidden: Vec<&str> =
            survey.paths().filter(|path| inside(path) && path.split('/').any(is_hidden)).collect();
        if !hidden.is_empty() {
            self.assume(format!(
                "hidden, and served with the rest: {}: move away what holds secrets",
                some(&hidden)
            ));
        }
        self.front();
        self.static_files("/", &to);
    }

    /// A site at the top of the project: of all of it, the profile and what is hidden would be
    /// public as well.
    fn files_by_name(&mut self, to: &str) {
        let mut names: Vec<&str> = self.survey.paths().map(top_of).collect();
        names.dedup();
        let (public, kept): (Vec<&str>, Vec<&str>) =
            names.into_iter().partition(|name| is_public(name));
        let (public, odd): (Vec<&str>, Vec<&str>) =
            public.into_iter().partition(|name| is_plain(name));
        let mut comment = "The site, one by one: in all of the project there are this profile and hidden files.\n\
             What comes to the top later needs a [[copy]] of its own.";
        for name in public {
            self.section(comment, "[[copy]]");
            self.line(format!("from = {}", quoted(name)));
            self.line(format!("to = {}", quoted(&format!("{to}/{name}"))));
            comment = "";
        }
        self.assume(if kept.is_empty() {
            "what is at the top of the project is served, one by one".to_owned()
        } else {
            format!("what is at the top of the project is served, but not {}", some(&kept))
        });
        if !odd.is_empty() {
            self.assume(format!(
                "not served: {}: [[copy]] takes no name with other letters than [A-Za-z0-9._+@~-]",
                some(&odd)
            ));
        }
    }
}

/// Whether a `[[copy]]` takes the name.
fn is_plain(name: &str) -> bool {
    name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._+@~-".contains(letter))
}

/// What of a path is at the top of the project.
fn top_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

/// Whether a name is hidden from its own user, and not made for strangers (RFC 8615).
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') && name != ".well-known"
}

/// Whether what is at the top of a site of files is for its visitors.
fn is_public(name: &str) -> bool {
    !is_hidden(name) && !OURS.contains(&name)
}

fn said(callable: &Callable) -> String {
    let interface = match callable.interface {
        Interface::Wsgi => "WSGI",
        Interface::Asgi => "ASGI",
    };
    let what = if callable.framework.is_empty() { interface } else { callable.framework };
    format!("{what}: {} ({})", callable.written(), callable.file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafted(files: &[(&str, &str)]) -> Draft {
        let mut survey = Survey::default();
        for (path, text) in files {
            survey.add(*path, Some((*text).to_owned()));
        }
        let wish = Wish { listen: "127.0.0.1:8080".to_owned(), ..Wish::default() };
        draft(&survey, "My Shop", &wish).expect("it is recognised")
    }

    #[test]
    fn a_site_of_files_becomes_a_short_profile() {
        let draft = drafted(&[("public/index.html", "")]);
        insta::assert_snapshot!(draft.profile, @r#"
        # Written by farmctl init, which read the project and ran nothing of it. What each
        # key takes is in README.md, "The profile"; farmctl(8) says where that is.
        schema = 1
        name = "my-shop"
        version = "1"

        # The Debian it runs in.
        [environment]
        suite = "bookworm"
        packages = []

        # The site.
        [[copy]]
        from = "public"
        to = "/srv/my-shop/files"

        # Where nginx listens: PORT or ADDRESS:PORT. Add server-names for host names.
        [front]
        listen = ["127.0.0.1:8080"]

        # nginx serves these itself.
        [[front.static]]
        location = "/"
        path = "/srv/my-shop/files"
        "#);
        assert_eq!(draft.requirements, None);
    }

    /// What is copied of a project, and what was said of it.
    fn copied(files: &[&str]) -> (Vec<(String, String)>, Vec<String>) {
        let files: Vec<(&str, &str)> = files.iter().map(|path| (*path, "")).collect();
        let draft = drafted(&files);
        let profile = profile::parse(&draft.profile).expect("it was read already");
        let said = |path: &std::path::Path| path.display().to_string();
        let copies = profile.copies.iter().map(|one| (said(&one.from), said(&one.to)));
        (copies.collect(), draft.assumptions)
    }

    #[test]
    fn of_a_site_at_the_top_nothing_hidden_and_nothing_of_farmctls_is_served() {
        let (copies, said) = copied(&[
            ".env",
            ".git-things/x",
            ".htpasswd",
            ".well-known/security.txt",
            "css/.env",
            "css/site.css",
            "farmctl-requirements.txt",
            "farmctl.lock",
            "index.html",
            "my page.html",
            "profile.toml",
        ]);
        let expected = [".well-known", "css", "index.html"];
        let expected = expected.map(|name| (name.to_owned(), format!("/srv/my-shop/files/{name}")));
        assert_eq!(copies, expected);
        assert_eq!(
            said[2..],
            [
                "what is at the top of the project is served, but not .env, .git-things, .htpasswd \
                 and 3 more",
                "not served: my page.html: [[copy]] takes no name with other letters than \
                 [A-Za-z0-9._+@~-]",
                "hidden, and served with the rest: css/.env: move away what holds secrets",
            ]
        );
        let (copies, said) = copied(&["index.html"]);
        assert_eq!(copies.len(), 1);
        assert_eq!(said[2..], ["what is at the top of the project is served, one by one"]);
    }

    #[test]
    fn a_sites_own_directory_is_taken_before_the_top() {
        let (copies, said) =
            copied(&[".env", "index.html", "public/.env", "public/index.html", "publicity"]);
        assert_eq!(copies, [("public".to_owned(), "/srv/my-shop/files".to_owned())]);
        assert_eq!(
            said,
            [
                "files alone: there is public/index.html and no Python",
                "version 1: nothing says another; farmctl bake --set-version does",
                "the index.html beside public is not served",
                "hidden, and served with the rest: public/.env: move away what holds secrets",
            ]
        );
    }

    #[test]
    fn a_directory_of_its_own_in_var_lib_outlives_releases() {
        let draft = drafted(&[
            ("pyproject.toml", "[project]\nname = 'Cal'\nversion = '2'\n"),
            (
                "cal/app.py",
                "from flask import Flask\napp = Flask(__name__)\nF = '/var/lib/cal/x'\n",
            ),
        ]);
        let profile = profile::parse(&draft.profile).expect("it was read already");
        let data: Vec<(&str, &str)> = profile
            .data
            .iter()
            .map(|data| (data.name.as_str(), data.path.to_str().unwrap_or_default()))
            .collect();
        assert_eq!(data, [("state", "/var/lib/cal")]);
        let said = "/var/lib/cal, which cal/app.py names, is a [[data]] directory";
        assert!(draft.assumptions.iter().any(|one| one == said), "{:?}", draft.assumptions);
    }

    #[test]
    fn files_passed_over_are_named_before_what_stands_in_for_them() {
        let app = ("app.py", "from flask import Flask\napp = Flask(__name__)\n");
        let draft = drafted(&[app, ("requirements.txt", "flask\n-e .\n"), ("Pipfile", "")]);
        assert_eq!(
            draft.assumptions[4..7],
            [
                "requirements.txt is passed over: \"-e .\" in it cannot be locked by hash",
                "the packages of Pipfile are passed over: pipenv lock writes a Pipfile.lock, which is \
                 read",
                "farmctl-requirements.txt has gunicorn alone: the project's belong there",
            ],
            "{:?}",
            draft.assumptions
        );
    }

    #[test]
    fn secrets_read_from_the_environment_reach_it() {
        let draft = drafted(&[
            (
                "app.py",
                "import os\nfrom flask import Flask\napp = Flask(__name__)\nK = os.environ['SECRET_KEY']\nM = os.environ['MODE']\nP = os.environ['MAIL_PASSWORD']\n",
            ),
            ("requirements.txt", "flask\ngunicorn==23.0\n"),
        ]);
        let profile = profile::parse(&draft.profile).expect("it was read already");
        let secrets: Vec<(&str, bool)> =
            profile.secrets.iter().map(|it| (it.name.as_str(), it.generate)).collect();
        assert_eq!(secrets, [("SECRET_KEY", true), ("MAIL_PASSWORD", false)]);
        assert_eq!(profile.processes[0].environment["MODE"], "");
        let command = &profile.processes[0].command;
        assert!(command.contains("--config /srv/my-shop/gunicorn.conf.py"), "{command}");
        assert!(!command.contains("control-socket"), "an old gunicorn has none: {command}");
        assert!(
            profile.files[0].content.as_deref().is_some_and(|it| it.contains("\"MAIL_PASSWORD\""))
        );
        assert_eq!(profile.python.and_then(|it| it.requirements), Some("requirements.txt".into()));
        assert_eq!(draft.requirements, None);
    }

    #[test]
    fn a_uwsgi_ini_becomes_one_of_the_nodes() {
        let draft = drafted(&[
            ("uwsgi.ini", "[uwsgi]\nmodule = web:app\nharakiri = 20\nchdir = /opt/web\n"),
            ("web.py", "from flask import Flask\napp = Flask(__name__)\n"),
            ("requirements.txt", "flask\n"),
        ]);
        let profile = profile::parse(&draft.profile).expect("it was read already");
        insta::assert_snapshot!(profile.files[0].content.as_deref().unwrap_or_default(), @r"
        [uwsgi]
        module = web
        callable = app
        virtualenv = {{ virtualenv }}
        pythonpath = /srv/my-shop/app
        master = true
        need-app = true
        # nginx may connect; nobody else reaches the directory of the socket.
        chmod-socket = 666
        hook-master-start = unix_signal:15 gracefully_kill_them_all
        harakiri = 20
        ");
        assert_eq!(profile.build.packages, ["build-essential", "python3-dev"]);
        assert_eq!(profile.environment.packages, ["python3", "libpython3.11"]);
        let command = &profile.processes[0].command;
        assert!(
            command.starts_with("uwsgi --http-socket \"${listen_web#unix:}\" --ini"),
            "{command}"
        );
        assert!(draft.assumptions.contains(&"not taken over from uwsgi.ini: chdir".to_owned()));
    }

    #[test]
    fn a_django_project_gets_settings_of_the_node() {
        let draft = drafted(&[
            ("manage.py", "os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'shop.settings')\n"),
            (
                "shop/settings.py",
                "SECRET_KEY = 'x'\nDEBUG = True\nMIDDLEWARE = []\nINSTALLED_APPS = ['django.contrib.staticfiles']\nSTATIC_URL = 'static/'\nMEDIA_URL = '/media/'\nMEDIA_ROOT = BASE / 'media'\nDATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3'}}\n",
            ),
            ("requirements.txt", "django\n"),
        ]);
        let profile = profile::parse(&draft.profile).expect("it was read already");
        let jobs: Vec<&str> = profile.jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(jobs, ["collect-static", "migrate"]);
        let data: Vec<&str> = profile.data.iter().map(|data| data.name.as_str()).collect();
        assert_eq!(data, ["database", "media"]);
        let settings = profile.files[0].content.as_deref().unwrap_or_default();
        for line in [
            "from shop.settings import *",
            "SECRET_KEY = secret(\"SECRET_KEY\")",
            "DEBUG = False",
            "STATIC_ROOT = \"/srv/my-shop/static\"",
            "MIDDLEWARE = [\"node_settings.remote_address\", *MIDDLEWARE]",
        ] {
            assert!(settings.lines().any(|one| one == line), "{line} in {settings}");
        }
        // Rendering it changes nothing of it but the values it has none of.
        let values = crate::template::Values::of(&profile);
        let rendered = crate::template::render(settings, &values).expect("it is a template");
        assert_eq!(rendered.trim_end(), settings.trim_end());
    }
}
