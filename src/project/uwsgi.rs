//! A uWSGI ini: what it serves, and how.

use super::callable::{Callable, find, module_of};
use super::survey::{Survey, is_aside};

/// Options that say how to serve, not where files lie or who listens: they are kept.
const KEPT: [&str; 16] = [
    "buffer-size",
    "enable-threads",
    "gevent",
    "harakiri",
    "http-timeout",
    "lazy",
    "lazy-apps",
    "limit-post",
    "max-requests",
    "max-worker-lifetime",
    "offload-threads",
    "post-buffering",
    "reload-on-rss",
    "single-interpreter",
    "threads",
    "thunder-lock",
];

/// Options that farmctl's own take the place of, or that say nothing new.
const REPLACED: [&str; 14] = [
    "callable",
    "die-on-term",
    "http",
    "http-socket",
    "master",
    "module",
    "need-app",
    "processes",
    "socket",
    "uwsgi-socket",
    "vacuum",
    "workers",
    "wsgi",
    "wsgi-file",
];

/// A uWSGI ini.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ini {
    /// Its path.
    pub path: String,
    /// What it serves: `MODULE:CALLABLE`.
    pub application: String,
    /// The file with it.
    pub file: String,
    /// The directory modules' names begin in.
    pub root: String,
    /// Options that are kept.
    pub kept: Vec<(String, String)>,
    /// Names of options that are not.
    pub left: Vec<String>,
}

/// The ini nearest to the top that says what is served.
#[must_use]
pub fn read(survey: &Survey) -> Option<Ini> {
    let all = survey.ending(".ini").into_iter().filter(|(path, _)| !is_aside(path));
    all.filter(|(_, text)| text.lines().any(|line| line.trim() == "[uwsgi]"))
        .find_map(|(path, text)| of_text(survey, path, text))
}

fn of_text(survey: &Survey, path: &str, text: &str) -> Option<Ini> {
    let mut options: Vec<(&str, &str)> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[uwsgi]";
        } else if inside && !line.starts_with(['#', ';']) {
            options.extend(line.split_once('=').map(|(key, value)| (key.trim(), value.trim())));
        }
    }
    let get =
        |keys: &[&str]| options.iter().find(|(key, _)| keys.contains(key)).map(|(_, value)| *value);
    let callable = get(&["callable"]).unwrap_or("application");
    let named = |module: &str| match module.split_once(':') {
        Some((module, name)) => (module.to_owned(), name.to_owned()),
        None => (module.to_owned(), callable.to_owned()),
    };
    let (root, module, name, file) = if let Some(module) = get(&["module", "wsgi"]) {
        let (module, name) = named(module);
        let end = format!("{}.py", module.replace('.', "/"));
        let package = format!("{}/__init__.py", module.replace('.', "/"));
        let file = survey
            .paths()
            .filter(|path| !is_aside(path))
            .find(|path| path.ends_with(&end) || path.ends_with(&package))?;
        (module_of(survey, file).0, module, name, file.to_owned())
    } else {
        let written = get(&["wsgi-file", "file"])?;
        // Often a path of the machine it was written for.
        let file = survey
            .paths()
            .find(|path| written == *path || written.ends_with(&format!("/{path}")))?;
        let (root, module) = module_of(survey, file);
        (root, module, callable.to_owned(), file.to_owned())
    };
    let pairs = |which: &dyn Fn(&str) -> bool| {
        let chosen = options.iter().filter(|(key, _)| which(key));
        chosen.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    // `%(…)`, `$(…)` and `@(…)` are read from elsewhere.
    let plain = |value: &str| !value.contains(['%', '$', '@', '{']);
    let kept = pairs(&|key| KEPT.contains(&key));
    let kept: Vec<_> = kept.into_iter().filter(|(_, value)| plain(value)).collect();
    let mut left: Vec<String> = pairs(&|key| !KEPT.contains(&key) && !REPLACED.contains(&key))
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    left.sort();
    left.dedup();
    let application = format!("{module}:{name}");
    Some(Ini { path: path.to_owned(), application, file, root, kept, left })
}

impl Ini {
    /// The application as it is found in its file, for what else can be said of it.
    #[must_use]
    pub fn callable(&self, survey: &Survey) -> Option<Callable> {
        find(survey).into_iter().find(|one| one.file == self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ini_says_what_is_served_and_how() {
        let survey = Survey::from([
            (
                "deploy/uwsgi.ini",
                "[uwsgi]\nmodule = shop.web:app\n; no\nsocket = /run/shop.sock\nprocesses = 4\n\
                 harakiri = 30\nbuffer-size = %(x)\nchdir = /srv/shop\nvirtualenv=/opt/v\n[other]\nmodule = x\n",
            ),
            ("shop/__init__.py", ""),
            ("shop/web.py", "import flask\napp = flask.Flask(__name__)\n"),
        ]);
        let ini = read(&survey).expect("it is one");
        assert_eq!((ini.application.as_str(), ini.root.as_str()), ("shop.web:app", ""));
        assert_eq!(ini.kept, [("harakiri".to_owned(), "30".to_owned())]);
        assert_eq!(ini.left, ["chdir", "virtualenv"]);
        assert_eq!(ini.callable(&survey).map(|one| one.framework), Some("Flask"));
    }

    #[test]
    fn a_file_may_be_named_by_its_path_on_another_machine() {
        let survey = Survey::from([
            ("app.ini", "[uwsgi]\nwsgi-file = /home/me/shop/wsgi.py\ncallable = app\n"),
            ("wsgi.py", "app = create_app()\n"),
        ]);
        assert_eq!(read(&survey).expect("it is one").application, "wsgi:app");
        assert_eq!(read(&Survey::from([("tox.ini", "[tox]\n")])), None);
    }
}
