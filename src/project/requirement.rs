//! What a project asks of the package index, read from wherever it says so.

use super::survey::{Survey, directory, join};
use crate::lockfile::{Included, included, logical_lines};

/// One requirement (PEP 508), as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Name, normalised (PEP 503).
    pub name: String,
    /// All of it.
    pub text: String,
}

/// A distribution's name as the index compares it (PEP 503).
#[must_use]
pub fn normalise(name: &str) -> String {
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

impl Requirement {
    /// Reads one; none for options, paths and URLs without a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let end = text
            .find(|letter: char| !(letter.is_ascii_alphanumeric() || "-_.".contains(letter)))
            .unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let rest = rest.trim_start();
        let begins = name.starts_with(|letter: char| letter.is_ascii_alphanumeric());
        let goes_on = rest.is_empty()
            || rest.starts_with(['[', '<', '>', '=', '!', '~', ';', '@', '(', ' '])
            || rest.starts_with("--hash");
        (begins && goes_on).then(|| Self { name: normalise(name), text: text.to_owned() })
    }

    /// Whether a version below this one is asked for: `==24.1`, `<25`, `~=24.0`.
    #[must_use]
    pub fn is_below(&self, major: u32) -> bool {
        let specifiers = self.text.split(';').next().unwrap_or_default();
        ["==", "~=", "<=", "<"].iter().any(|sign| {
            let Some((_, version)) = specifiers.split_once(sign) else { return false };
            let digits: String = version.trim().chars().take_while(char::is_ascii_digit).collect();
            let asked = digits.parse::<u32>().unwrap_or(major);
            asked < major || (*sign == "<" && asked == major)
        })
    }
}

/// A requirements file: its own requirements and those of the files it includes.
#[must_use]
pub fn of_file(survey: &Survey, path: &str) -> Vec<Requirement> {
    let mut found = Vec::new();
    let mut pending = vec![path.to_owned()];
    let mut read = Vec::new();
    while let Some(path) = pending.pop() {
        if read.contains(&path) {
            continue;
        }
        for line in logical_lines(survey.text(&path).unwrap_or_default()) {
            match included(&line) {
                Some(Included::Requirements(file)) => pending.push(join(directory(&path), file)),
                Some(Included::Constraints(_)) => {}
                None => found.extend(Requirement::parse(&line)),
            }
        }
        read.push(path);
    }
    found
}

/// The line of a file that names a directory, the project's own for instance: `-e .`
#[must_use]
pub fn directory_line(survey: &Survey, path: &str) -> Option<String> {
    logical_lines(survey.text(path).unwrap_or_default()).into_iter().find(|line| {
        line.starts_with("-e") || line.starts_with("--editable") || line.starts_with('.')
    })
}

/// A version as poetry writes it, as PEP 440 does: `^1.2` is `>=1.2,<2`
/// (<https://python-poetry.org/docs/dependency-specification/>).
#[must_use]
pub fn of_poetry(version: &str) -> String {
    // PEP 440 has no "or": from where the first alternative begins to where the last ends.
    if let (Some((first, _)), Some((_, last))) =
        (version.split_once("||"), version.rsplit_once("||"))
    {
        let (first, last) = (of_poetry(first), of_poetry(last));
        let lower = first.split(',').filter(|part| part.starts_with('>'));
        let upper = last.split(',').filter(|part| part.starts_with('<'));
        return lower.chain(upper).collect::<Vec<_>>().join(",");
    }
    let parts = version.split(',').map(|part| {
        let part = part.trim();
        if part == "*" || part.is_empty() {
            String::new()
        } else if let Some(from) = part.strip_prefix('^') {
            let numbers: Vec<u64> = from.split('.').map_while(|one| one.parse().ok()).collect();
            // The first number that is not 0 stays, or the last one there is.
            let kept = numbers.iter().position(|one| *one != 0).unwrap_or(numbers.len().max(1) - 1);
            let next =
                numbers.iter().take(kept + 1).enumerate().map(|(at, one)| {
                    if at == kept { (one + 1).to_string() } else { one.to_string() }
                });
            format!(">={from},<{}", next.collect::<Vec<_>>().join("."))
        } else if let Some(from) = part.strip_prefix('~').filter(|it| !it.starts_with('=')) {
            let numbers: Vec<u64> = from.split('.').map_while(|one| one.parse().ok()).collect();
            let major = numbers.first().copied().unwrap_or(0);
            match numbers.get(1) {
                Some(minor) => format!(">={from},<{major}.{}", minor + 1),
                None => format!(">={from},<{}", major + 1),
            }
        } else if part.starts_with(|letter: char| letter.is_ascii_digit()) {
            format!("=={part}")
        } else {
            part.to_owned()
        }
    });
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_read_through_included_files() {
        let survey = Survey::from([
            (
                "requirements/prod.txt",
                "-r base.txt\ngunicorn==23.0 \\\n  --hash=sha256:00\n-e .\n# no\n-c pins.txt\n",
            ),
            ("requirements/base.txt", "Django>=5 # yes\n-r prod.txt\nzope.interface[x] ; a\n"),
        ]);
        let names: Vec<String> =
            of_file(&survey, "requirements/prod.txt").into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["gunicorn", "django", "zope-interface"]);
        assert_eq!(directory_line(&survey, "requirements/prod.txt").as_deref(), Some("-e ."));
        assert_eq!(directory_line(&survey, "requirements/base.txt"), None);
    }

    #[test]
    fn what_is_no_requirement_is_none() {
        for line in ["./here", "https://example.org/a.whl", "-e .", "", "a/b.whl"] {
            assert_eq!(Requirement::parse(line), None, "{line}");
        }
        let text = "psycopg[binary] @ https://example.org/p.whl";
        assert_eq!(Requirement::parse(text).map(|one| one.name).as_deref(), Some("psycopg"));
    }

    #[test]
    fn an_old_version_is_told_from_a_new_one() {
        let below = |text: &str| Requirement::parse(text).expect("it is one").is_below(27);
        for text in ["gunicorn==23.0.0", "gunicorn~=20.1", "gunicorn<27", "gunicorn>=20,<24; x<'3'"]
        {
            assert!(below(text), "{text}");
        }
        for text in ["gunicorn", "gunicorn>=20", "gunicorn==27.0.1", "gunicorn<28"] {
            assert!(!below(text), "{text}");
        }
    }

    #[test]
    fn poetrys_versions_become_everybodys() {
        for (poetry, ours) in [
            ("^1.2.3", ">=1.2.3,<2"),
            ("^0.2", ">=0.2,<0.3"),
            ("~1.2", ">=1.2,<1.3"),
            ("~1", ">=1,<2"),
            ("*", ""),
            ("1.2", "==1.2"),
            (">=1,<3", ">=1,<3"),
            ("^0.18.1 || ^0.19 || ^0.21.0", ">=0.18.1,<0.22"),
        ] {
            assert_eq!(of_poetry(poetry), ours, "{poetry}");
        }
    }
}
