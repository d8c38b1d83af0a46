//! Names: of applications, processes, packages, variables, addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::parse::{Place, Problem};
use super::validate::Checked;

pub(super) const fn lower(letter: char) -> bool {
    letter.is_ascii_lowercase()
}

pub(super) const fn digit(letter: char) -> bool {
    letter.is_ascii_digit()
}

pub(super) fn begins(text: &str, with: impl Fn(char) -> bool) -> bool {
    text.chars().next().is_some_and(with)
}

pub(super) fn is_name(text: &str, longest: usize) -> bool {
    begins(text, lower)
        && text.len() <= longest
        && text.chars().all(|letter| lower(letter) || digit(letter) || letter == '-')
}

pub(super) fn check_name(place: &Place, name: &str) -> Checked {
    if !is_name(name, 24) {
        let message = format!("{name:?} is not an application's name: [a-z][a-z0-9-]{{0,23}}");
        return Err(Problem::at(place.clone(), message));
    }
    match ["env-", "stage-"].iter().find(|prefix| name.starts_with(**prefix)) {
        Some(prefix) => {
            let message =
                format!("{name:?} begins with {prefix:?}, as only farmctl's own volumes do");
            Err(Problem::at(place.clone(), message))
        }
        None => Ok(()),
    }
}

pub(super) fn check_version(place: &Place, version: &str) -> Checked {
    let letters = |letter: char| letter.is_ascii_alphanumeric() || letter == '.';
    if (1..=24).contains(&version.len()) && version.chars().all(letters) {
        return Ok(());
    }
    let message = format!("{version:?} is not a version: [0-9A-Za-z.]{{1,24}}");
    Err(Problem::at(place.clone(), message))
}

pub(super) fn short_name(place: &Place, name: &str) -> Checked {
    if is_name(name, 16) {
        return Ok(());
    }
    Err(Problem::at(place.clone(), format!("{name:?} is not a name: [a-z][a-z0-9-]{{0,15}}")))
}

pub(super) fn secret_name(place: &Place, name: &str) -> Checked {
    let upper = |letter: char| letter.is_ascii_uppercase();
    let letters = |letter| upper(letter) || digit(letter) || letter == '_';
    if begins(name, upper) && name.len() <= 64 && name.chars().all(letters) {
        return Ok(());
    }
    let message = format!("{name:?} is not a secret's name: [A-Z][A-Z0-9_]{{0,63}}");
    Err(Problem::at(place.clone(), message))
}

pub(super) fn unique(place: &Place, names: &[&str], check: fn(&Place, &str) -> Checked) -> Checked {
    let mut seen = BTreeSet::new();
    for (index, name) in names.iter().enumerate() {
        let place = place.index(index).key("name");
        check(&place, name)?;
        if !seen.insert(name) {
            return Err(Problem::at(place, format!("{name:?} is the name of an earlier one")));
        }
    }
    Ok(())
}

/// Debian Policy, section 5.6.1. A trailing `-` would tell apt to remove the package.
pub(super) fn is_package(name: &str) -> bool {
    let letters = |letter| lower(letter) || digit(letter) || matches!(letter, '+' | '-' | '.');
    name.len() >= 2
        && begins(name, |letter| lower(letter) || digit(letter))
        && name.chars().all(letters)
        && !name.ends_with('-')
}

pub(super) fn packages(place: &Place, names: &[String]) -> Checked {
    for (index, written) in names.iter().enumerate() {
        let end = written.find(['=', '/', ':']).unwrap_or(written.len());
        let (name, choice) = written.split_at(end);
        let letters = |letter: char| letter.is_ascii_alphanumeric() || "=/:.+~-".contains(letter);
        if !is_package(name) || choice.len() == 1 || !choice.chars().all(letters) {
            let message = format!("{written:?} is not a Debian package");
            return Err(Problem::at(place.index(index), message));
        }
    }
    Ok(())
}

pub(super) fn is_listen(listen: &str) -> bool {
    let port = |port: u16| port != 0;
    if listen.bytes().all(|byte| byte.is_ascii_digit()) {
        return listen.parse().is_ok_and(port);
    }
    // `[::1]:80` and `127.0.0.1:80`; a host's name would be resolved when nginx starts.
    listen.parse::<SocketAddr>().is_ok_and(|address| port(address.port()) && !listen.contains('%'))
}

pub(super) fn variables(place: &Place, variables: &BTreeMap<String, String>) -> Checked {
    for (name, value) in variables {
        let place = place.key(name);
        let first = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
        if !begins(name, first) || !name.chars().all(|letter| first(letter) || digit(letter)) {
            let message = format!("{name:?} is not the name of an environment variable");
            return Err(Problem::at(place, message));
        }
        if value.contains('\0') {
            return Err(Problem::at(place, "must not contain a NUL"));
        }
    }
    Ok(())
}

pub(super) fn one_line(place: &Place, text: &str) -> Checked {
    if text.chars().any(char::is_control) {
        return Err(Problem::at(place.clone(), "must be one line without control characters"));
    }
    Ok(())
}
