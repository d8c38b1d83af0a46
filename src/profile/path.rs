//! Paths: in the environment, and beside the profile.

use std::path::{Component, Path, PathBuf};

use super::parse::{Place, Problem};
use super::validate::Checked;

/// An absolute path in the environment, normalised, below `/`.
pub(super) fn inside(place: &Place, path: &Path) -> Checked {
    directory(place, path)?;
    if path == Path::new("/") {
        return Err(Problem::at(place.clone(), "must not be / itself"));
    }
    Ok(())
}

/// An absolute path in the environment, normalised.
pub(super) fn directory(place: &Place, path: &Path) -> Checked {
    let problem = |message: String| Err(Problem::at(place.clone(), message));
    let shown = path.display();
    if !path.is_absolute() {
        return problem(format!("must be an absolute path, not \"{shown}\""));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return problem(format!("{shown} must not contain \"..\""));
    }
    let letters = |letter: char| letter.is_ascii_alphanumeric() || "/._+@~-".contains(letter);
    if !path.to_str().is_some_and(|path| path.chars().all(letters)) {
        return problem(format!("{path:?} has other letters than [A-Za-z0-9/._+@~-]"));
    }
    let normal: PathBuf = path.components().collect();
    if normal.as_os_str() != path.as_os_str() {
        return problem(format!("must be written {}", normal.display()));
    }
    Ok(())
}

/// A path beside the profile that does not climb above the profile's directory.
pub(super) fn beneath(place: &Place, path: &Path) -> Checked {
    let problem = |message: String| Err(Problem::at(place.clone(), message));
    let shown = path.display();
    if path.as_os_str().is_empty()
        || path.to_str().is_none_or(|path| path.chars().any(char::is_control))
    {
        return problem("must be a path".to_owned());
    }
    if path.is_absolute() {
        return problem(format!("must be relative to the profile's directory, not {shown}"));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return problem(format!("{shown} must not climb out of the profile's directory"));
    }
    Ok(())
}
