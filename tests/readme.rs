//! The README is held against the code: its profile reference is generated, its
//! commands exist. `FARMCTL_UPDATE_README=1 cargo test --test readme` writes it anew.

#![expect(clippy::disallowed_types, reason = "asks the program as a user does")]

use std::fs;
use std::path::Path;
use std::process::Command;

const BEGIN: &str = "<!-- profile-reference:begin -->\n";
const END: &str = "<!-- profile-reference:end -->";

fn readme() -> (std::path::PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(&path).expect("there is a README");
    (path, text)
}

#[test]
fn the_profile_reference_of_the_readme_is_the_codes() {
    let (path, text) = readme();
    let start = text.find(BEGIN).expect("the reference begins") + BEGIN.len();
    let end = text.find(END).expect("the reference ends");
    let generated = farmctl::reference::markdown();
    if std::env::var_os("FARMCTL_UPDATE_README").is_some() {
        let anew = format!("{}{}\n{}", &text[..start], generated.trim_end(), &text[end..]);
        fs::write(path, anew).expect("it is writable");
        return;
    }
    assert!(
        text[start..end].trim_end() == generated.trim_end(),
        "the reference has changed: FARMCTL_UPDATE_README=1 cargo test --test readme"
    );
}

#[test]
fn every_verb_of_the_readme_exists() {
    let (_, text) = readme();
    let help = Command::new(env!("CARGO_BIN_EXE_farmctl")).arg("--help").output();
    let help = String::from_utf8(help.expect("it runs").stdout).expect("help is text");
    let mut seen = 0;
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("# farmctl ")) {
        let verb = line.split_whitespace().next().unwrap_or_default();
        let is_word = verb.chars().all(|letter| letter.is_ascii_lowercase());
        if is_word && !verb.is_empty() {
            assert!(help.contains(&format!("\n  {verb} ")), "the README names farmctl {verb}");
            seen += 1;
        }
    }
    assert!(seen >= 10, "the tour shows the verbs, {seen} were found");
}
