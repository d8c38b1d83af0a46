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

/// The TOML between the fences after each mark.
fn recipes(text: &str) -> Vec<&str> {
    let after = text.split("<!-- recipe -->\n").skip(1);
    after
        .map(|rest| {
            let (fence, rest) = rest.split_once('\n').expect("a fence follows the mark");
            assert_eq!(fence, "```toml");
            rest.split_once("\n```\n").expect("the fence is closed").0
        })
        .collect()
}

#[test]
fn every_recipe_of_the_readme_is_a_profile() {
    let (_, text) = readme();
    let recipes = recipes(&text);
    assert_eq!(recipes.len(), 8);
    for recipe in recipes {
        let head = "schema = 1\nname = \"shop\"\nversion = \"1.0.0\"\n\n[environment]\n\
                    suite = \"bookworm\"\npackages = [\"python3\"]\n\n";
        let whole = format!("{head}{recipe}\n");
        let profile = match farmctl::profile::parse(&whole) {
            Ok(profile) => profile,
            Err(error) => panic!("{}\n{whole}", farmctl::error::render(&error)),
        };
        // Its commands are such that the start script can run them.
        let script = farmctl::start_script::render(&profile).expect("they are templates");
        let mut dash = Command::new("dash");
        dash.arg("-n").arg("-c").arg(&script);
        assert!(dash.status().expect("it is Debian's sh").success(), "{script}");
        let values = farmctl::template::Values::of(&profile);
        for file in &profile.files {
            let content = file.content.as_deref().expect("it is written there");
            farmctl::template::render(content, &values).expect("it is a template");
        }
    }
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
