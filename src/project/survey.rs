//! The files of a project's directory, as far as recognising it needs them.

use std::collections::BTreeMap;

/// Directories in which nothing is looked for: what they hold is not what is served.
const ASIDE: [&str; 9] = [
    "tests",
    "test",
    "_tests",
    "testing",
    "docs",
    "doc",
    "examples",
    "benchmarks",
    "site-packages",
];

/// Paths relative to the project's directory, with `/` between names and the directories
/// themselves left out, each with its text where that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    files: BTreeMap<String, Option<String>>,
}

impl Survey {
    /// Whether the text of a file of this name is wanted.
    #[must_use]
    pub fn wants(path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        let ends = [".py", ".toml", ".cfg", ".ini", ".txt", ".lock"];
        ends.iter().any(|end| name.ends_with(end))
            || matches!(
                name,
                "PKG-INFO" | "Pipfile" | "Procfile" | ".python-version" | "runtime.txt"
            )
    }

    /// Adds a file.
    pub fn add(&mut self, path: impl Into<String>, text: Option<String>) {
        self.files.insert(path.into(), text);
    }

    /// Whether there is a file of this path.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// Whether there is a directory of this path with a file in it.
    #[must_use]
    pub fn has_directory(&self, path: &str) -> bool {
        let begin = format!("{path}/");
        self.files.range(begin.clone()..).next().is_some_and(|(name, _)| name.starts_with(&begin))
    }

    /// The text of a file.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.as_deref()
    }

    /// Paths of all files.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Files whose names end so, with their texts: those nearer to the top first.
    #[must_use]
    pub fn ending(&self, end: &str) -> Vec<(&str, &str)> {
        let mut found: Vec<(&str, &str)> = self
            .files
            .iter()
            .filter(|(path, _)| path.ends_with(end))
            .filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
            .collect();
        found.sort_by_key(|(path, _)| (path.matches('/').count(), *path));
        found
    }

    /// Python files of what is served, those nearer to the top first.
    #[must_use]
    pub fn scripts(&self) -> Vec<(&str, &str)> {
        let mut found = self.ending(".py");
        found.retain(|(path, _)| !is_aside(path));
        found
    }
}

/// Whether a file is a test, an example or the like.
#[must_use]
pub fn is_aside(path: &str) -> bool {
    let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
    let aside =
        directories.split('/').any(|one| ASIDE.contains(&one) || one.ends_with(".egg-info"));
    aside || name.starts_with("test_") || matches!(name, "conftest.py" | "setup.py" | "tests.py")
}

/// The directory of a path, `""` for the top.
#[must_use]
pub fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// A path below a directory, which may be `""`.
#[must_use]
pub fn join(directory: &str, path: &str) -> String {
    if directory.is_empty() { path.to_owned() } else { format!("{directory}/{path}") }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Survey {
    fn from(files: [(&str, &str); N]) -> Self {
        let mut survey = Self::default();
        for (path, text) in files {
            survey.add(path, Some(text.to_owned()));
        }
        survey
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_known_by_what_is_in_them() {
        let survey = Survey::from([("shop/wsgi.py", ""), ("shop.py", ""), ("tests/app.py", "")]);
        assert!(survey.has_directory("shop"));
        assert!(!survey.has_directory("sho"));
        let scripts: Vec<&str> = survey.scripts().iter().map(|(path, _)| *path).collect();
        assert_eq!(scripts, ["shop.py", "shop/wsgi.py"]);
    }
}
