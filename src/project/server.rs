//! The part of a profile that serves: the server's process and its settings, and the
//! secrets it reads.

use std::fmt::Write as _;

use super::Served;
use super::draft::Writer;
use super::node_settings::MODULE;
use super::variable;
use super::words::quoted;

/// The first major version of gunicorn with a control socket that stays off by an option
/// of its own (<https://docs.gunicorn.org/en/stable/news.html>).
pub(super) const GUNICORN: u32 = 27;

/// Which program serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Gunicorn,
    /// gunicorn with uvicorn's workers.
    Uvicorn,
    Uwsgi,
}

/// A server, what it serves and from where.
pub(super) struct Serving {
    pub(super) server: Server,
    pub(super) application: String,
    /// Working directory.
    pub(super) directory: String,
    pub(super) ready: String,
    /// Environment variables with their values.
    pub(super) environment: Vec<(String, String)>,
    /// Secrets the application reads from its environment.
    pub(super) secrets: Vec<String>,
}

impl Writer<'_> {
    /// The server's command, for an application as a word of sh.
    pub(super) fn command(&self, serving: &Serving) -> (String, Option<String>) {
        let application = if serving.application.contains('(') {
            format!("'{}'", serving.application)
        } else {
            serving.application.clone()
        };
        let mut options = String::new();
        if self.has_configuration(serving) {
            let _ = write!(options, " --config {}/gunicorn.conf.py", self.home);
        }
        let gunicorn = self.project.metadata.wanted.get("gunicorn");
        if gunicorn.is_none_or(|asked| !asked.is_below(GUNICORN)) {
            options.push_str(" --no-control-socket");
        }
        if serving.server == Server::Uvicorn {
            options.push_str(" --worker-class uvicorn_worker.UvicornWorker");
        }
        match serving.server {
            Server::Gunicorn | Server::Uvicorn => (
                format!(
                    "gunicorn --bind {{{{ listen.web }}}} --workers {{{{ workers }}}} \\\n {options} {application}"
                ),
                Some(format!("gunicorn --check-config{options} {application}")),
            ),
            Server::Uwsgi => (
                format!(
                    "uwsgi --http-socket \"${{listen_web#unix:}}\" \\\n  --ini {}/uwsgi.ini --processes {{{{ workers }}}}",
                    self.home
                ),
                Some(format!(
                    "python -c 'import {}'",
                    application.split(':').next().unwrap_or_default().trim_matches('\'')
                )),
            ),
        }
    }

    /// Whether gunicorn needs a configuration: for secrets in the environment.
    pub(super) fn has_configuration(&self, serving: &Serving) -> bool {
        let is_django = matches!(self.project.served, Served::Django(_));
        !serving.secrets.is_empty() && !is_django && serving.server != Server::Uwsgi
    }

    pub(super) fn process(&mut self, serving: &Serving) {
        let (command, check) = self.command(serving);
        let comment = match serving.server {
            Server::Gunicorn => {
                "gunicorn: SIGHUP makes new workers, and the old ones finish what they do."
            }
            Server::Uvicorn => {
                "gunicorn with uvicorn's workers: SIGHUP makes new ones, and the old ones finish\n\
                 what they do."
            }
            Server::Uwsgi => "uWSGI: SIGHUP loads the application anew, the socket stays open.",
        };
        self.section(comment, "[[process]]");
        self.line("name = \"web\"");
        self.line(format!("command = \"\"\"{command}\"\"\""));
        if serving.directory != "/" {
            self.line(format!("directory = {}", quoted(&serving.directory)));
        }
        let mut environment = serving.environment.clone();
        if let Served::Django(_) = &self.project.served {
            self.line(
                "# SITE_HOSTS: the names the site answers to, with blanks between; \"*\" is any.",
            );
            environment.push(("DJANGO_SETTINGS_MODULE".to_owned(), MODULE.to_owned()));
            environment.push(("SITE_HOSTS".to_owned(), "localhost 127.0.0.1".to_owned()));
        }
        self.variables_line(&environment);
        self.line("reload = \"HUP\"");
        if let Some(check) = check {
            self.line("# Whether the new code can be loaded, asked before a reload.");
            self.line(format!("check = {}", quoted(&check)));
        }
        self.line("# Any status from 200 to 399 is ready.");
        self.line(format!("ready = {{ http = {}, within = \"60s\" }}", quoted(&serving.ready)));
        self.line("stop = { signal = \"TERM\", within = \"30s\" }");
        if serving.server == Server::Uwsgi {
            self.uwsgi(serving);
        } else if self.has_configuration(serving) {
            self.configuration(serving);
        }
        self.secrets(&serving.secrets);
        if !matches!(self.project.served, Served::Django(_)) {
            self.front_of_callable();
        }
    }

    pub(super) fn variables_line(&mut self, environment: &[(String, String)]) {
        if !environment.is_empty() {
            let all: Vec<String> = environment
                .iter()
                .map(|(name, value)| format!("{name} = {}", quoted(value)))
                .collect();
            self.line(format!("environment = {{ {} }}", all.join(", ")));
        }
    }

    /// gunicorn's configuration: secrets become variables of its environment.
    pub(super) fn configuration(&mut self, serving: &Serving) {
        self.section(
            "The application reads secrets from its environment, and farmctl gives them as files.",
            "[[file]]",
        );
        let names: Vec<String> = serving.secrets.iter().map(|name| quoted(name)).collect();
        self.line(format!("path = \"{}/gunicorn.conf.py\"", self.home));
        self.line(format!(
            "content = '''\nimport os\nfrom pathlib import Path\n\n\
             for name in [{}]:\n    \
             os.environ[name] = Path(\"/run/project/secrets\", name).read_text(encoding=\"utf-8\").strip()\n'''",
            names.join(", ")
        ));
    }

    pub(super) fn uwsgi(&mut self, serving: &Serving) {
        let kept = match &self.project.served {
            Served::Uwsgi(ini, _) => {
                if !ini.left.is_empty() {
                    self.assumptions.push(format!(
                        "not taken over from {}: {}",
                        ini.path,
                        ini.left.join(", ")
                    ));
                }
                ini.kept.clone()
            }
            _ => Vec::new(),
        };
        self.section(
            "uWSGI's settings. SIGTERM lets requests end, where uWSGI's own way is to reload.",
            "[[file]]",
        );
        self.line(format!("path = \"{}/uwsgi.ini\"", self.home));
        let (module, name) =
            serving.application.split_once(':').unwrap_or((&serving.application, "application"));
        let mut text =
            format!("[uwsgi]\nmodule = {module}\ncallable = {}\n", name.trim_end_matches("()"));
        if name.ends_with("()") {
            text = format!("[uwsgi]\nmodule = {module}:{name}\n");
        }
        text.push_str("virtualenv = {{ virtualenv }}\n");
        if serving.directory != "/" {
            let _ = writeln!(text, "pythonpath = {}", serving.directory);
        }
        text.push_str(
            "master = true\nneed-app = true\n# nginx may connect; nobody else reaches the directory of the socket.\n\
             chmod-socket = 666\nhook-master-start = unix_signal:15 gracefully_kill_them_all\n",
        );
        for name in &serving.secrets {
            let _ = writeln!(text, "env = {name}=@(/run/project/secrets/{name})");
        }
        for (key, value) in kept {
            let _ = writeln!(text, "{key} = {value}");
        }
        self.line(format!("content = '''\n{text}'''"));
    }

    pub(super) fn secrets(&mut self, names: &[String]) {
        for name in names {
            let random = variable::is_random(name);
            let comment = if random {
                "Made at install, kept on the node, never in a tarball."
            } else {
                "Never in a tarball: a line NAME=VALUE in the node's /etc/farmctl/apps."
            };
            self.section(comment, "[[secret]]");
            self.line(format!("name = {}", quoted(name)));
            if random {
                self.line("generate = true");
            }
        }
    }
}
