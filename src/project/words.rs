//! Names, versions and lists as a profile and its reader take them.

/// An application's name out of any other: `[a-z][a-z0-9-]{0,23}`.
pub(super) fn name_of(name: &str) -> String {
    let mut plain = String::new();
    for letter in name.to_lowercase().chars() {
        if letter.is_ascii_alphanumeric() {
            plain.push(letter);
        } else if !plain.ends_with('-') {
            plain.push('-');
        }
    }
    let plain = plain.trim_start_matches(|letter: char| !letter.is_ascii_lowercase());
    let plain: String = plain.chars().take(24).collect();
    match plain.trim_end_matches('-') {
        "" => "site".to_owned(),
        // farmctl's own volumes begin so.
        name if name.starts_with("env-") || name.starts_with("stage-") => name.replacen('-', "", 1),
        name => name.to_owned(),
    }
}

/// An application's version out of any other: `[0-9A-Za-z.]{1,24}`.
pub(super) fn version_of(version: &str) -> String {
    let public = version.split('+').next().unwrap_or(version);
    let letters = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '.';
    let plain: String = public.chars().filter(letters).take(24).collect();
    if plain.is_empty() { "1".to_owned() } else { plain }
}

/// A string of TOML.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// An array of TOML.
pub(super) fn list(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("[{}]", words.join(", "))
}

/// An enumeration of English: "a, b and c".
pub(super) fn and(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

/// The first of many: "a, b, c and 4 more".
pub(super) fn some(words: &[&str]) -> String {
    match words {
        [a, b, c, _, rest @ ..] => format!("{a}, {b}, {c} and {} more", rest.len() + 1),
        few => and(few),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_become_ones_a_profile_takes() {
        for (name, ours) in [
            ("Web.Shop_2", "web-shop-2"),
            ("2nd", "nd"),
            ("env-x", "envx"),
            ("", "site"),
            ("a-very-long-name-of-a-project", "a-very-long-name-of-a-pr"),
        ] {
            assert_eq!(name_of(name), ours, "{name}");
        }
        assert_eq!(version_of("1.0.dev3+g12"), "1.0.dev3");
        assert_eq!(version_of("+"), "1");
    }

    #[test]
    fn of_many_words_three_are_said() {
        assert_eq!(some(&["a", "b", "c"]), "a, b and c");
        assert_eq!(some(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    }
}
