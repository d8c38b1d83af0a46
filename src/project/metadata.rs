//! What a project says about itself: in pyproject.toml, setup.cfg, setup.py, an sdist's
//! PKG-INFO, a Pipfile, requirements and lock files.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::Result;
use toml::{Table, Value};

use super::requirement::{self, Requirement, normalise, of_poetry};
use super::script::{self, call, keyword};
use super::survey::Survey;
use crate::error::{Exit, Mark as _, refuse};

/// Where requirements files usually lie, the likeliest first.
const REQUIREMENTS: [&str; 10] = [
    "requirements.txt",
    "requirements/production.txt",
    "requirements/prod.txt",
    "requirements/requirements.txt",
    "requirements/base.txt",
    "requirements/main.txt",
    "requirements-prod.txt",
    "requirements.lock",
    "app.requirements.txt",
    "requirements.in",
];

/// A value and the file that says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<T> {
    /// The value.
    pub value: T,
    /// The file.
    pub file: &'static str,
}

/// What is asked of the package index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A requirements file.
    File {
        /// Its path.
        path: String,
        /// What is in it.
        all: Vec<Requirement>,
    },
    /// A list in a file that installers do not take as requirements.
    List {
        /// The file.
        from: &'static str,
        /// The file whose versions were taken, if there is one.
        pinned: Option<&'static str>,
        /// What is in it.
        all: Vec<Requirement>,
    },
    /// Nothing that could be read.
    Nothing,
}

impl Wanted {
    /// All that is asked for.
    #[must_use]
    pub fn all(&self) -> &[Requirement] {
        match self {
            Self::File { all, .. } | Self::List { all, .. } => all,
            Self::Nothing => &[],
        }
    }

    /// The requirement of this normalised name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Requirement> {
        self.all().iter().find(|one| one.name == name)
    }
}

/// What a project says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its name.
    pub name: Option<Said<String>>,
    /// Its version.
    pub version: Option<Said<String>>,
    /// One line for people.
    pub description: Option<String>,
    /// Which Pythons it runs on, a specifier.
    pub python: Option<Said<String>>,
    /// What it asks of the package index.
    pub wanted: Wanted,
    /// Which files that ask for something were passed over, and why, a line each.
    pub passed: Vec<String>,
    /// The file that makes it a distribution pip can install.
    pub installable: Option<&'static str>,
    /// Whether its version comes out of version control, which a bake does not see.
    pub needs_version_control: bool,
}

/// One file's words.
#[derive(Default)]
struct Words {
    name: Option<String>,
    version: Option<String>,
    description: Option<String>,
    python: Option<String>,
    requires: Option<Vec<String>>,
}

/// Reads all of them; the first file that says something wins.
///
/// # Errors
/// When pyproject.toml or the Pipfile is not TOML: with the line.
pub fn read(survey: &Survey) -> Result<Metadata> {
    let pyproject = table(survey, "pyproject.toml")?;
    let pipfile = table(survey, "Pipfile")?;
    let mut files: Vec<(&'static str, Words)> = Vec::new();
    if let Some(table) = &pyproject {
        files.push(("pyproject.toml", of_pyproject(table)));
    }
    if let Some(text) = survey.text("setup.cfg") {
        files.push(("setup.cfg", of_setup_cfg(text)));
    }
    if let Some(text) = survey.text("setup.py") {
        files.push(("setup.py", of_setup_py(text)));
    }
    if let Some(text) = survey.text("PKG-INFO") {
        files.push(("PKG-INFO", of_pkg_info(text)));
    }
    for (file, prefix) in [(".python-version", ""), ("runtime.txt", "python-")] {
        let python = survey.text(file).and_then(|text| asked_by_pin(text, prefix));
        files.push((file, Words { python, ..Words::default() }));
    }
    let python = pipfile.as_ref().and_then(|table| {
        let requires = table.get("requires")?;
        let version =
            text(requires, "python_full_version").or_else(|| text(requires, "python_version"))?;
        asked_by_pin(&version, "")
    });
    files.push(("Pipfile", Words { python, ..Words::default() }));
    let first = |word: fn(&Words) -> &Option<String>| {
        files.iter().find_map(|(file, words)| word(words).clone().map(|value| Said { value, file }))
    };
    let builds = pyproject.as_ref().is_some_and(|table| table.contains_key("build-system"));
    let has = |file: &'static str| survey.has(file).then_some(file);
    let named_in_cfg = survey.text("setup.cfg").is_some_and(|text| text.contains("[metadata]"));
    let installable = builds
        .then_some("pyproject.toml")
        .or_else(|| has("setup.py"))
        .or_else(|| named_in_cfg.then_some("setup.cfg"));
    let build_needs = pyproject.as_ref().map(|table| format!("{:?}", table.get("build-system")));
    let setup_py = survey.text("setup.py").unwrap_or_default();
    let by_version_control =
        ["setuptools_scm", "setuptools-scm", "hatch-vcs", "use_scm_version"].iter().any(|tool| {
            build_needs.as_deref().is_some_and(|it| it.contains(tool)) || setup_py.contains(tool)
        });
    let (wanted, passed) = wanted(survey, &files, pyproject.as_ref(), installable.is_some());
    Ok(Metadata {
        name: first(|words| &words.name),
        version: first(|words| &words.version),
        description: first(|words| &words.description).map(|said| said.value),
        python: first(|words| &words.python),
        wanted,
        passed,
        installable,
        needs_version_control: by_version_control && !survey.has("PKG-INFO"),
    })
}

/// A file of TOML. What is mistyped in it is not guessed at.
fn table(survey: &Survey, file: &str) -> Result<Option<Table>> {
    let Some(text) = survey.text(file) else { return Ok(None) };
    toml::from_str(text).map(Some).or_else(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        refuse(
            format_args!("{file}, line {line}: {message}"),
            format!("mend {file}, or move it away: it says what the project needs"),
        )
        .exit(Exit::Usage)
    })
}

/// What is asked of the package index, and what was passed over.
fn wanted(
    survey: &Survey,
    files: &[(&'static str, Words)],
    pyproject: Option<&Table>,
    installable: bool,
) -> (Wanted, Vec<String>) {
    let passed: RefCell<Vec<String>> = RefCell::default();
    let file = |path: &str| {
        // What a bake copies is not what `-e .` means.
        if let Some(line) = requirement::directory_line(survey, path) {
            let why = format!("{path} is passed over: {line:?} in it cannot be locked by hash");
            let mut passed = passed.borrow_mut();
            if !passed.contains(&why) {
                passed.push(why);
            }
            return None;
        }
        let all = requirement::of_file(survey, path);
        survey.has(path).then(|| Wanted::File { path: path.to_owned(), all })
    };
    let requirements = || REQUIREMENTS.iter().find_map(|path| file(path));
    let listed = || {
        files.iter().find_map(|(from, words)| {
            let lines = words.requires.as_ref()?;
            let all = lines.iter().filter_map(|line| Requirement::parse(line)).collect();
            Some(pinned(survey, from, all))
        })
    };
    // setuptools takes a distribution's own from a file, if it is told to.
    let dynamic = || {
        let dynamic = pyproject?.get("tool")?.get("setuptools")?.get("dynamic")?;
        let files = dynamic.get("dependencies")?.get("file")?;
        let path = files.as_str().or_else(|| files.as_array()?.first()?.as_str())?;
        file(path)
    };
    let found = if installable {
        dynamic().or_else(listed).or_else(requirements)
    } else {
        requirements().or_else(listed)
    };
    let found = found.or_else(|| of_pipfile(survey));
    let mut passed = passed.into_inner();
    if found.is_none() {
        let setup = script::lines(survey.text("setup.py").unwrap_or_default());
        if setup.iter().any(|line| line.text.contains("install_requires")) {
            passed.push("setup.py works its install_requires out when it runs".to_owned());
        }
        if survey.has("Pipfile.lock") {
            let why = "Pipfile.lock cannot be read: pipenv lock writes it anew";
            passed.push(why.to_owned());
        } else if survey.has("Pipfile") {
            let why = "the packages of Pipfile are passed over: pipenv lock writes a Pipfile.lock, \
                       which is read";
            passed.push(why.to_owned());
        }
    }
    (found.unwrap_or(Wanted::Nothing), passed)
}

/// Takes the versions of uv's or poetry's lock for what a list names.
fn pinned(survey: &Survey, from: &'static str, all: Vec<Requirement>) -> Wanted {
    for lock in ["uv.lock", "poetry.lock"] {
        let table: Option<Table> = survey.text(lock).and_then(|text| toml::from_str(text).ok());
        let Some(packages) = table.as_ref().and_then(|it| it.get("package")?.as_array()) else {
            continue;
        };
        let mut versions: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for package in packages {
            let word = |key: &str| package.get(key).and_then(Value::as_str);
            if let (Some(name), Some(version)) = (word("name"), word("version")) {
                versions.entry(normalise(name)).or_default().push(version);
            }
        }
        let pin = |one: Requirement| {
            // Of two versions for different Pythons, none is the one.
            let version = versions.get(&one.name).filter(|found| found.len() == 1);
            let (asked, marker) = match one.text.split_once(';') {
                Some((asked, marker)) => (asked, format!(" ;{marker}")),
                None => (one.text.as_str(), String::new()),
            };
            let Some(version) = version.filter(|_| !asked.contains('@')) else { return one };
            let end = asked.find(['<', '>', '=', '!', '~', '(']).unwrap_or(asked.len());
            let text = format!("{}=={}{marker}", asked[..end].trim(), version[0]);
            Requirement { text, ..one }
        };
        let all = all.into_iter().map(pin).collect();
        return Wanted::List { from, pinned: Some(lock), all };
    }
    Wanted::List { from, pinned: None, all }
}

/// Pipfile.lock has versions and hashes of everything.
fn of_pipfile(survey: &Survey) -> Option<Wanted> {
    let lock: serde_json::Value = serde_json::from_str(survey.text("Pipfile.lock")?).ok()?;
    let all = lock.get("default")?.as_object()?.iter().filter_map(|(name, package)| {
        let version = package.get("version")?.as_str()?;
        let marker = package.get("markers").and_then(serde_json::Value::as_str);
        let marker = marker.map_or(String::new(), |marker| format!(" ; {marker}"));
        let hashes = package.get("hashes").and_then(serde_json::Value::as_array);
        let hashes: String = hashes
            .into_iter()
            .flatten()
            .filter_map(serde_json::Value::as_str)
            .map(|hash| format!(" \\\n    --hash={hash}"))
            .collect();
        let text = format!("{name}{version}{marker}{hashes}");
        Some(Requirement { name: normalise(name), text })
    });
    Some(Wanted::List { from: "Pipfile.lock", pinned: None, all: all.collect() })
}

fn text(table: &Value, key: &str) -> Option<String> {
    table.get(key)?.as_str().map(str::to_owned)
}

fn of_pyproject(table: &Table) -> Words {
    let mut words = Words::default();
    if let Some(project) = table.get("project") {
        words.name = text(project, "name");
        words.version = text(project, "version");
        words.description = text(project, "description");
        words.python = text(project, "requires-python");
        let list = project.get("dependencies").and_then(Value::as_array);
        words.requires =
            list.map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect());
    }
    let Some(poetry) = table.get("tool").and_then(|tool| tool.get("poetry")) else { return words };
    words.name = words.name.or_else(|| text(poetry, "name"));
    words.version = words.version.or_else(|| text(poetry, "version"));
    words.description = words.description.or_else(|| text(poetry, "description"));
    let Some(list) = poetry.get("dependencies").and_then(Value::as_table) else { return words };
    let asked = list.iter().filter(|(name, _)| *name != "python");
    let lines = asked.filter_map(|(name, value)| {
        let (version, extras) = match value {
            Value::String(version) => (version.clone(), String::new()),
            // From another directory or repository: not from the index.
            Value::Table(more) => {
                if more.get("optional").and_then(Value::as_bool) == Some(true) {
                    return None;
                }
                let extras = more.get("extras").and_then(Value::as_array).into_iter().flatten();
                let extras: Vec<&str> = extras.filter_map(Value::as_str).collect();
                let extras = if extras.is_empty() {
                    String::new()
                } else {
                    format!("[{}]", extras.join(","))
                };
                (more.get("version")?.as_str()?.to_owned(), extras)
            }
            _ => return None,
        };
        Some(format!("{name}{extras}{}", of_poetry(&version)))
    });
    words.requires = words.requires.or_else(|| Some(lines.collect()));
    let python = list.get("python").and_then(Value::as_str).map(of_poetry);
    words.python = words.python.or(python);
    words
}

/// setup.cfg's sections and keys; the lines of a value indented below its key.
fn of_setup_cfg(text: &str) -> Words {
    let mut values: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let (mut section, mut key) = (String::new(), String::new());
    for line in text.lines() {
        let bare = line.split(" #").next().unwrap_or(line).trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = bare.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            name.trim().clone_into(&mut section);
            key.clear();
        } else if line.starts_with([' ', '\t']) && !key.is_empty() {
            values.entry((section.clone(), key.clone())).or_default().push(bare.to_owned());
        } else if let Some((name, value)) = bare.split_once(['=', ':']) {
            key = name.trim().replace('-', "_");
            let lines = values.entry((section.clone(), key.clone())).or_default();
            lines.extend(Some(value.trim().to_owned()).filter(|value| !value.is_empty()));
        }
    }
    let get = |section: &str, key: &str| values.get(&(section.to_owned(), key.to_owned()));
    let first = |section: &str, key: &str| {
        let value = get(section, key)?.first()?;
        // `attr:` and `file:` lead elsewhere.
        (!value.starts_with("attr:") && !value.starts_with("file:")).then(|| value.clone())
    };
    Words {
        name: first("metadata", "name"),
        version: first("metadata", "version"),
        description: first("metadata", "description"),
        python: first("options", "python_requires"),
        requires: get("options", "install_requires").map(|lines| {
            lines.iter().flat_map(|line| line.split(", ")).map(str::to_owned).collect()
        }),
    }
}

/// The arguments of `setup(…)` that are written out, there or at the top of the file.
fn of_setup_py(text: &str) -> Words {
    let lines = script::lines(text);
    let constants: BTreeMap<&str, &str> =
        lines.iter().filter_map(script::Line::assignment).collect();
    let setup = lines.iter().find_map(|line| {
        let (name, arguments) = call(&line.text)?;
        name.rsplit('.').next().filter(|name| *name == "setup").map(|_| arguments)
    });
    let Some(arguments) = setup else { return Words::default() };
    let value = |key: &str| {
        let written = keyword(&arguments, key)?;
        Some(constants.get(written).copied().unwrap_or(written))
    };
    let word = |key: &str| value(key).and_then(script::string);
    Words {
        name: word("name"),
        version: word("version"),
        description: word("description").filter(|text| !text.contains('\n')),
        python: word("python_requires"),
        requires: value("install_requires").and_then(script::strings),
    }
}

/// Core metadata: fields up to the first empty line
/// (<https://packaging.python.org/en/latest/specifications/core-metadata/>).
fn of_pkg_info(text: &str) -> Words {
    let fields: Vec<(&str, &str)> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": "))
        .collect();
    let field = |key: &str| {
        fields.iter().find(|(name, _)| *name == key).map(|(_, value)| value.trim().to_owned())
    };
    let requires = fields.iter().filter(|(name, _)| *name == "Requires-Dist");
    Words {
        name: field("Name"),
        version: field("Version"),
        description: field("Summary").filter(|text| text != "UNKNOWN"),
        python: field("Requires-Python"),
        requires: Some(
            requires
                .map(|(_, value)| (*value).to_owned())
                .filter(|value| !value.contains("extra =="))
                .collect(),
        ),
    }
}

/// `3.12.1` of a version manager's file: at least that minor version.
fn asked_by_pin(text: &str, prefix: &str) -> Option<String> {
    let version = text.lines().next()?.trim().strip_prefix(prefix)?;
    let mut numbers = version.split('.');
    let (major, minor) = (numbers.next()?, numbers.next()?);
    let is_number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(major) && is_number(minor)).then(|| format!(">={major}.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(survey: &Survey) -> Metadata {
        super::read(survey).expect("what is TOML in it can be read")
    }

    fn texts(wanted: &Wanted) -> Vec<&str> {
        wanted.all().iter().map(|one| one.text.as_str()).collect()
    }

    #[test]
    fn pyproject_says_it_all_and_a_lock_pins_it() {
        let survey = Survey::from([
            (
                "pyproject.toml",
                "[build-system]\nrequires = ['hatchling', 'hatch-vcs']\n[project]\nname = 'Web.Shop'\n\
                 version = '1.2'\ndescription = 'A shop'\nrequires-python = '>=3.12'\n\
                 dependencies = ['Flask>=2 ; python_version>\"3\"', 'redis[hiredis]']\n",
            ),
            (
                "uv.lock",
                "[[package]]\nname = 'flask'\nversion = '3.1.0'\n[[package]]\nname = 'redis'\nversion = '5.0'\n",
            ),
            ("requirements.txt", "black\n"),
        ]);
        let found = read(&survey);
        assert_eq!(found.name.map(|said| said.value).as_deref(), Some("Web.Shop"));
        assert_eq!(found.python.map(|said| said.value).as_deref(), Some(">=3.12"));
        assert_eq!(
            texts(&found.wanted),
            ["Flask==3.1.0 ; python_version>\"3\"", "redis[hiredis]==5.0"]
        );
        assert_eq!(found.installable, Some("pyproject.toml"));
        assert!(found.needs_version_control);
    }

    #[test]
    fn poetry_setup_cfg_and_setup_py_say_the_same_in_their_ways() {
        let poetry = Survey::from([(
            "pyproject.toml",
            "[tool.poetry]\nname = 'shop'\nversion = '1'\n[tool.poetry.dependencies]\npython = '^3.11'\n\
             flask = '^2.3'\nredis = { version = '*', extras = ['hiredis'] }\nx = { path = '../x' }\n",
        )]);
        let found = read(&poetry);
        assert_eq!(texts(&found.wanted), ["flask>=2.3,<3", "redis[hiredis]"]);
        assert_eq!(found.python.map(|said| said.value).as_deref(), Some(">=3.11,<4"));
        assert_eq!(found.installable, None);

        let cfg = Survey::from([
            (
                "setup.cfg",
                "[metadata]\nname = shop\nversion = attr: shop.VERSION\n[options]\n\
                 python_requires = >=3.6\ninstall_requires =\n    flask>=2\n    # no\n    redis\n",
            ),
            ("PKG-INFO", "Name: shop\nVersion: 2.0\nRequires-Dist: celery\n\nVersion: 3\n"),
        ]);
        let found = read(&cfg);
        assert_eq!(texts(&found.wanted), ["flask>=2", "redis"]);
        assert_eq!(
            found.version.map(|said| (said.value, said.file)),
            Some(("2.0".to_owned(), "PKG-INFO"))
        );

        let py = Survey::from([(
            "setup.py",
            "from setuptools import setup\nNEEDS = ['flask>=2',\n  'redis']\nsetup(\n  name='shop',\n\
               version=read('VERSION'),\n  install_requires=NEEDS,  # all\n)\n",
        )]);
        let found = read(&py);
        assert_eq!(texts(&found.wanted), ["flask>=2", "redis"]);
        assert_eq!((found.version, found.installable), (None, Some("setup.py")));
    }

    #[test]
    fn without_a_distribution_the_requirements_file_counts() {
        let survey = Survey::from([
            ("requirements.txt", "flask\n"),
            ("Pipfile.lock", "{}"),
            (".python-version", "3.12.4\n"),
        ]);
        let found = read(&survey);
        assert!(matches!(&found.wanted, Wanted::File { path, .. } if path == "requirements.txt"));
        assert_eq!(
            found.python,
            Some(Said { value: ">=3.12".to_owned(), file: ".python-version" })
        );
    }

    #[test]
    fn a_pipfile_lock_has_versions_and_hashes() {
        let survey = Survey::from([(
            "Pipfile.lock",
            r#"{"default": {"flask": {"version": "==3.0", "hashes": ["sha256:aa"], "markers": "a>'1'"}}}"#,
        )]);
        assert_eq!(texts(&read(&survey).wanted), ["flask==3.0 ; a>'1' \\\n    --hash=sha256:aa"]);
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let survey = Survey::from([("setup.cfg", "[metadata"), ("setup.py", "setup(*args")]);
        let found = read(&survey);
        assert_eq!((found.name, found.wanted), (None, Wanted::Nothing));
    }

    #[test]
    fn toml_with_a_mistake_in_it_is_refused_by_its_line() {
        for file in ["pyproject.toml", "Pipfile"] {
            let text = "[project]\nname = 'shop'\nrequires-python = >=3.12\n";
            let error = super::read(&Survey::from([(file, text)]));
            let error = crate::error::render(&error.expect_err("it is no TOML"));
            assert!(error.starts_with(&format!("error: {file}, line 3: ")), "{error}");
            let hint =
                format!("hint: mend {file}, or move it away: it says what the project needs");
            assert_eq!(error.lines().last(), Some(hint.as_str()));
        }
    }

    #[test]
    fn what_asks_for_something_and_cannot_be_taken_is_named() {
        let found = read(&Survey::from([
            ("requirements.txt", "redis\n-e .\n"),
            ("setup.py", "# install_requires\nsetup(install_requires=needs('x.txt'))\n"),
        ]));
        assert_eq!(found.wanted, Wanted::Nothing);
        assert_eq!(
            found.passed,
            [
                "requirements.txt is passed over: \"-e .\" in it cannot be locked by hash",
                "setup.py works its install_requires out when it runs",
            ]
        );
        // What is there otherwise says it.
        let found = read(&Survey::from([
            ("requirements.txt", "redis\n-e .\n"),
            ("setup.py", "setup(install_requires=['flask'])\n"),
        ]));
        assert_eq!((texts(&found.wanted), found.passed), (vec!["flask"], Vec::new()));
    }

    #[test]
    fn a_pipfile_says_its_python_and_that_it_lacks_a_lock() {
        let pipfile = "[packages]\nflask = '*'\n[requires]\npython_version = '3.12'\n";
        let found = read(&Survey::from([("Pipfile", pipfile)]));
        assert_eq!(found.python, Some(Said { value: ">=3.12".to_owned(), file: "Pipfile" }));
        assert_eq!(found.wanted, Wanted::Nothing);
        let said = "the packages of Pipfile are passed over: pipenv lock writes a Pipfile.lock, \
                    which is read";
        assert_eq!(found.passed, [said]);

        let lock = "{\"default\": {\"flask\": {\"version\": \"==3.0\"}}}";
        let found = read(&Survey::from([("Pipfile", pipfile), ("Pipfile.lock", lock)]));
        assert_eq!((texts(&found.wanted), found.passed), (vec!["flask==3.0"], Vec::new()));
        let found = read(&Survey::from([("Pipfile", pipfile), ("Pipfile.lock", "<<<<<<<")]));
        assert_eq!(found.passed, ["Pipfile.lock cannot be read: pipenv lock writes it anew"]);
    }
}
