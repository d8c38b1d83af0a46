//! The values templates may use, and rendering them.
//!
//! Two ways: for files, with the values themselves; for commands of the start script,
//! where what is known only when a process starts becomes a shell variable.

use std::collections::BTreeMap;
use std::fmt;

use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde::Serialize;

use crate::profile::Profile;

/// What templates may use: `{{ name }}`, `{{ listen.web }}`, `{{ data.uploads }}` …
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Values {
    /// Name of the application.
    pub name: String,
    /// Version of the application.
    pub version: String,
    /// The user the application runs as.
    pub user: String,
    /// Home directory of that user.
    pub home: String,
    /// The virtualenv.
    pub virtualenv: String,
    /// How many workers a server starts.
    pub workers: u32,
    /// Where each process listens, by [`key`]: `unix:PATH` or `ADDRESS:PORT`.
    pub listen: BTreeMap<String, String>,
    /// Path of each data directory in the session, by [`key`].
    pub data: BTreeMap<String, String>,
}

/// A name as templates and shell variables write it: `web-2` is `web_2`.
#[must_use]
pub fn key(name: &str) -> String {
    name.replace('-', "_")
}

/// Where a process listens when nobody says: the first on port 8000, the next on 8001.
#[must_use]
pub fn default_listen(index: usize) -> String {
    format!("127.0.0.1:{}", 8000 + index)
}

impl Values {
    /// A profile's values, with the defaults a bake uses: one worker, ports from 8000.
    #[must_use]
    pub fn of(profile: &Profile) -> Self {
        let listen = profile.processes.iter().enumerate();
        let data = profile.data.iter();
        Self {
            name: profile.name.clone(),
            version: profile.version.clone(),
            user: profile.environment.user.clone(),
            home: profile.home().display().to_string(),
            virtualenv: profile.virtualenv().display().to_string(),
            workers: 1,
            listen: listen
                .map(|(index, process)| (key(&process.name), default_listen(index)))
                .collect(),
            data: data.map(|data| (key(&data.name), data.path.display().to_string())).collect(),
        }
    }

    /// The same with a process listening elsewhere.
    #[must_use]
    pub fn listening(mut self, process: &str, at: impl Into<String>) -> Self {
        self.listen.insert(key(process), at.into());
        self
    }

    /// The same with another number of workers.
    #[must_use]
    pub fn with_workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }
}

/// The same values as a line of sh sees them.
#[derive(Serialize)]
struct ShellValues {
    #[serde(flatten)]
    known: BTreeMap<&'static str, String>,
    workers: &'static str,
    listen: BTreeMap<String, String>,
    data: BTreeMap<String, String>,
}

/// What is wrong with a template, and where. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line in the template; 0 where it is not known.
    pub line: usize,
    /// Column in the template, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What may have been meant.
    pub hint: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "template line {line}, column {}: {}", self.column, self.message),
        }
    }
}

impl std::error::Error for Fault {}

/// Renders a file's template.
///
/// # Errors
///
/// When it is not a template, or uses a value that does not exist.
pub fn render(source: &str, values: &Values) -> Result<String, Fault> {
    render_with(source, values)
}

/// Renders a command into a line of sh: `{{ workers }}` becomes `$workers`,
/// `{{ listen.web }}` becomes `"$listen_web"`; the rest stands there as it is, because a
/// profile's names and paths need no quoting.
///
/// # Errors
///
/// When it is not a template, or uses a value that does not exist.
pub fn render_shell(source: &str, profile: &Profile) -> Result<String, Fault> {
    let Values { name, version, user, home, virtualenv, listen, data, workers: _ } =
        Values::of(profile);
    let listen = listen.into_keys();
    let values = ShellValues {
        known: [
            ("name", name),
            ("version", version),
            ("user", user),
            ("home", home),
            ("virtualenv", virtualenv),
        ]
        .into(),
        // Unquoted, so that `$(({{ workers }} * 2))` works; the script checks it is a number.
        workers: "$workers",
        listen: listen.map(|process| (process.clone(), format!("\"$listen_{process}\""))).collect(),
        data,
    };
    render_with(source, &values)
}

fn render_with(source: &str, values: &impl Serialize) -> Result<String, Fault> {
    let mut environment = Environment::empty();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_keep_trailing_newline(true);
    environment.set_debug(true);
    add_builtins(&mut environment);
    let context = minijinja::Value::from_serialize(values);
    environment
        .template_from_named_str("template", source)
        .and_then(|template| template.render(&context))
        .map_err(|error| fault(source, &context, &error))
}

/// The filters configuration files need; no functions, no other templates.
fn add_builtins(environment: &mut Environment<'_>) {
    use minijinja::filters;
    environment.add_filter("default", filters::default);
    environment.add_filter("join", filters::join);
    environment.add_filter("length", filters::length);
    environment.add_filter("lower", filters::lower);
    environment.add_filter("replace", filters::replace);
    environment.add_filter("upper", filters::upper);
}

fn fault(source: &str, context: &minijinja::Value, error: &minijinja::Error) -> Fault {
    let range = error.range().filter(|range| source.get(range.clone()).is_some());
    let (line, column) = match &range {
        Some(range) => {
            let before = &source[..range.start];
            let column = before.chars().rev().take_while(|&letter| letter != '\n').count() + 1;
            (before.matches('\n').count() + 1, column)
        }
        None => (error.line().unwrap_or(0), 1),
    };
    if error.kind() == ErrorKind::UndefinedError {
        let written = range.map_or("", |range| source[range].trim());
        let known = known(context);
        let near = known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, written));
        let hint = match near {
            Some(near) if strsim::damerau_levenshtein(near, written) * 2 <= written.len() => {
                format!("did you mean {near:?}?")
            }
            _ => format!("templates may use {}", known.join(", ")),
        };
        let message = match written {
            "" => "a value that does not exist".to_owned(),
            written => format!("there is no value {written:?}"),
        };
        return Fault { line, column, message, hint: Some(hint) };
    }
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    Fault { line, column, message, hint: None }
}

/// All values by their written names.
fn known(context: &minijinja::Value) -> Vec<String> {
    let mut names = Vec::new();
    for key in context.try_iter().into_iter().flatten() {
        let Ok(value) = context.get_item(&key) else { continue };
        match value.kind() {
            minijinja::value::ValueKind::Map => {
                let below = value.try_iter().into_iter().flatten();
                names.extend(below.map(|below| format!("{key}.{below}")));
            }
            _ => names.push(key.to_string()),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile;

    fn shop() -> Profile {
        profile::parse(
            "schema = 1\nname = \"shop\"\nversion = \"1.4.2\"\n\
             [environment]\nsuite = \"bookworm\"\n\
             [[process]]\nname = \"web\"\ncommand = \"gunicorn\"\n\
             [[process]]\nname = \"web-2\"\ncommand = \"gunicorn\"\n\
             [[data]]\nname = \"uploads\"\npath = \"/srv/shop/uploads\"\n",
        )
        .expect("the profile is right")
    }

    #[test]
    fn files_get_the_values_themselves() {
        let values = Values::of(&shop()).listening("web", "unix:/run/web.sock").with_workers(5);
        let source = "bind {{ listen.web }} {{ listen.web_2 }}\nworkers {{ workers * 2 }}\n\
                      {{ name }} {{ version }} {{ user }} {{ home }} {{ virtualenv }} {{ data.uploads }}\n";
        assert_eq!(
            render(source, &values).expect("the template is right"),
            "bind unix:/run/web.sock 127.0.0.1:8001\nworkers 10\n\
             shop 1.4.2 app /home/app /srv/shop/venv /srv/shop/uploads\n"
        );
    }

    #[test]
    fn commands_get_shell_variables_for_what_is_not_known_yet() {
        let line = "gunicorn --bind {{ listen.web_2 }} --workers {{ workers }} --chdir {{ home }} {{ name }}";
        assert_eq!(
            render_shell(line, &shop()).expect("the template is right"),
            "gunicorn --bind \"$listen_web_2\" --workers $workers --chdir /home/app shop"
        );
    }

    #[test]
    fn nothing_is_escaped_and_newlines_stay() {
        let values = Values::of(&shop());
        assert_eq!(render("<a href='x'>&\n", &values).as_deref(), Ok("<a href='x'>&\n"));
        assert_eq!(
            render("{% for name in listen %}{{ name }}={{ listen[name] }};{% endfor %}", &values)
                .as_deref(),
            Ok("web=127.0.0.1:8000;web_2=127.0.0.1:8001;")
        );
    }

    #[test]
    fn a_value_that_does_not_exist_is_named_with_its_place() {
        let fault =
            render("a\nbc {{ listen.wbe }}", &Values::of(&shop())).expect_err("no such value");
        assert_eq!(
            fault.to_string(),
            "template line 2, column 7: there is no value \"listen.wbe\""
        );
        assert_eq!(fault.hint.as_deref(), Some("did you mean \"listen.web\"?"));
        let fault = render_shell("run {{ something }}", &shop()).expect_err("no such value");
        assert_eq!(
            fault.hint.as_deref(),
            Some(
                "templates may use data.uploads, home, listen.web, listen.web_2, name, user, \
                  version, virtualenv, workers"
            )
        );
    }

    #[test]
    fn broken_templates_are_faults_with_a_place() {
        for source in
            ["{{ name", "{% if %}", "{{ name | nosuch }}", "{{ name * {} }}", "{% endfor %}"]
        {
            let fault = render(source, &Values::of(&shop())).expect_err(source);
            assert_eq!(fault.line, 1, "{source}: {fault}");
        }
    }
}
