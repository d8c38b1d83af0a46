//! Environment variables a source reads and cannot do without.

/// Ways to read one that end badly when it is not set: `os.environ["X"]`, django-environ's
/// `env("X")`, decouple's `config("X")`. A bare `environ` is a request's, more often.
const STRICT: [&str; 6] = ["os.environ[", "env(", "env.str(", "config(", "env.bool(", "env.list("];

/// Names of those variables, in the order they are read.
#[must_use]
pub fn needed(source: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in super::script::lines(source) {
        for way in STRICT {
            let mut rest = line.text.as_str();
            while let Some(at) = rest.find(way) {
                let before = rest[..at].chars().next_back();
                rest = &rest[at + way.len()..];
                // `getenv(`, `my_env(` and `app.config(` are other functions.
                if before.is_some_and(|letter| letter.is_alphanumeric() || "_.".contains(letter)) {
                    continue;
                }
                found.extend(name(rest).filter(|name| !found.contains(name)));
            }
        }
    }
    found
}

/// The name at the beginning, if nothing follows it that would stand in for its value.
fn name(text: &str) -> Option<String> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|letter| matches!(letter, '"' | '\''))?;
    let (name, rest) = text[1..].split_once(quote)?;
    let upper =
        |letter: char| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_';
    let is_name =
        name.starts_with(|letter: char| letter.is_ascii_uppercase()) && name.chars().all(upper);
    // `environ["X"] = …` sets it.
    let rest = rest.trim_start();
    let assigned = rest
        .strip_prefix(']')
        .map(str::trim_start)
        .is_some_and(|rest| rest.starts_with('=') && !rest.starts_with("=="));
    (is_name && rest.starts_with([']', ')']) && !assigned).then(|| name.to_owned())
}

/// Whether a variable of this name holds what nobody is to know.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    ["SECRET", "PASSWORD", "TOKEN", "_KEY", "PASSPHRASE", "CREDENTIAL"]
        .iter()
        .any(|word| name.contains(word))
        || name == "DATABASE_URL"
}

/// Whether any random value will do: a key the application signs with.
#[must_use]
pub fn is_random(name: &str) -> bool {
    name.contains("SECRET_KEY")
        || name.ends_with("_SECRET")
        || name == "SECRET"
        || name.contains("SALT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_default_or_is_set_is_not_needed() {
        let source = "import os\nA = os.environ['SECRET_KEY']\nB = os.environ.get('B')\nC = env('C', 'x')\n\
                      D = env('D_TOKEN')\nos.environ['E'] = '1'\nF = os.getenv('F')\n# os.environ['G']\n\
                      H = my_env('H')\nP = environ['PATH_INFO']\nI = config(\"I\", default=1)\nJ = os.environ[\"A_B2\"] == '1'\n";
        assert_eq!(needed(source), ["SECRET_KEY", "D_TOKEN", "A_B2"]);
    }

    #[test]
    fn secrets_are_known_by_their_names() {
        assert!(is_secret("DB_PASSWORD") && !is_random("DB_PASSWORD"));
        assert!(is_secret("FLASK_SECRET_KEY") && is_random("FLASK_SECRET_KEY"));
        assert!(!is_secret("SITE_NAME"));
    }
}
