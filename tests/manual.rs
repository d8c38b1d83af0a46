//! Manual pages and completions, as man(1) and bash(1) take them.

#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::fs;

use common::{FARMCTL, Ran};

fn farmctl(words: &[&str]) -> Ran {
    common::run(common::called(FARMCTL, words))
}

#[test]
fn every_verb_has_a_manual_page_that_groff_has_nothing_to_say_of() {
    let directory = tempfile::tempdir().expect("there is room");
    let path = directory.path().to_str().expect("it is text");
    farmctl(&["manual", "--output", path]).ok();
    let pages: BTreeSet<String> = fs::read_dir(directory.path())
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    for page in &pages {
        let mut groff = common::called("groff", &["-man", "-ww", "-Tutf8", "-P-cbou"]);
        groff.arg(directory.path().join(page));
        let ran = common::run(groff).ok();
        assert_eq!(ran.stderr, "", "{page}");
        // What the whole refers to is there.
        let words = ran.stdout.split(|letter: char| letter.is_whitespace() || letter == ',');
        for name in words.filter_map(|word| word.strip_suffix("(8)")) {
            let page = format!("{}.8", name.to_lowercase());
            assert!(pages.contains(&page), "{page} is referred to");
        }
    }
    let help = farmctl(&["--help"]).ok().stdout;
    for verb in ["install", "key", "upgrade"] {
        assert!(help.contains(&format!("\n  {verb} ")), "{help}");
        assert!(pages.contains(&format!("farmctl-{verb}.8")), "{pages:?}");
    }
    assert!(pages.contains("farmctl-key-trust.8"), "{pages:?}");
}

#[test]
fn a_manual_page_says_what_help_says() {
    let script = r#""$0" manual upgrade | man --local-file -"#;
    let mut man = common::called("sh", &["-c", script, FARMCTL]);
    man.env("MANWIDTH", "200");
    let page = common::run(man).ok().stdout;
    assert!(page.contains("FARMCTL-UPGRADE(8)"), "{page}");
    // An example a line, as in the help.
    let help = farmctl(&["upgrade", "--help"]).ok().stdout;
    let (_, examples) = help.split_once("Examples:\n").expect("it has some");
    for line in examples.lines().filter(|line| !line.is_empty()) {
        assert!(page.lines().any(|printed| printed.trim() == line.trim()), "{line} in {page}");
    }

    for (words, hint) in [
        (vec!["manual", "upgade"], "farmctl --help"),
        (vec!["manual", "key", "trusted"], "farmctl key --help"),
    ] {
        let ran = farmctl(&words).failed(2);
        assert_eq!(ran.hint(), hint);
    }
    let ran = farmctl(&["manual", "--output", "/nonexistent/man8"]).failed(1);
    assert_eq!(ran.hint(), "mkdir -p /nonexistent/man8");
}

#[test]
fn bash_completes_verbs_and_options() {
    let completed = |words: &str| {
        let script = format!(
            "source <(\"$0\" completions bash); complete -p farmctl >&2
             COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
             _farmctl farmctl \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"
             echo \"${{COMPREPLY[@]}}\""
        );
        let bash = common::called("bash", &["--norc", "-c", &script, FARMCTL]);
        common::run(bash).ok().stdout.trim().to_owned()
    };
    assert_eq!(completed("farmctl upg"), "upgrade");
    assert_eq!(completed("farmctl upgrade --dr"), "--drain --dry-run");
    assert_eq!(completed("farmctl key tr"), "trust");
    for shell in ["zsh", "fish"] {
        assert!(farmctl(&["completions", shell]).ok().stdout.contains("upgrade"), "{shell}");
    }
}
