//! Manual pages and completions, as man(1) and bash(1) take them.

#[path = "common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use common::{FARMCTL, Ran};
use farmctl::cli::Cli;
use farmctl::layout::Layout;

fn farmctl(words: &[&str]) -> Ran {
    common::run(common::called(FARMCTL, words))
}

/// Names of the pages of a command and its verbs, as it is declared.
fn declared(command: &clap::Command, name: &str) -> BTreeSet<String> {
    let verbs = command.get_subcommands();
    let of_verbs = verbs.flat_map(|verb| declared(verb, &format!("{name}-{}", verb.get_name())));
    of_verbs.chain([format!("{name}.8")]).collect()
}

/// A page as man(1) shows it in a wide terminal.
fn shown(verb: &str) -> String {
    let script = r#""$0" manual $1 | man --local-file --no-hyphenation --no-justification -"#;
    let mut man = common::called("sh", &["-c", script, FARMCTL, verb]);
    man.env("MANWIDTH", "200");
    common::run(man).ok().stdout
}

/// The words, with one space between them.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
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
        for name in words.filter_map(|word| word.strip_suffix("(8)")).map(str::to_lowercase) {
            let is_there = pages.contains(&format!("{name}.8"));
            assert!(is_there || !name.starts_with("farmctl"), "{name}(8) is referred to");
        }
    }
    assert_eq!(pages, declared(&Cli::command(), "farmctl"));
    assert!(pages.contains("farmctl-key-trust.8"), "{pages:?}");
}

#[test]
fn the_page_of_the_whole_says_where_its_files_and_the_profile_reference_are() {
    let page = shown("");
    let (_, rest) = page.split_once("\nFILES\n").expect("it has the section");
    let (files, see_also) = rest.split_once("\nSEE ALSO\n").expect("it has the section");
    let layout = Layout::new("/", None);
    let beneath = |path: PathBuf| path.parent().map(Path::to_owned).expect("it is in a directory");
    for path in [
        layout.node_settings(),
        layout.secrets("NAME"),
        layout.certificates().join("NAME.crt"),
        layout.snippets("NAME").join("*.conf"),
        layout.trusted_keys(),
        layout.signing_key(),
        beneath(layout.node_file()),
        layout.logs(),
        layout.cache(),
        beneath(layout.front()),
    ] {
        let path = path.to_str().expect("it is text");
        let named = |line: &str| line.trim().split(", ").any(|it| it == path);
        assert!(files.lines().any(named), "{path} is not in {files}");
    }
    // Where the package has what it tells of.
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/package");
    let package = fs::read_to_string(package).expect("it is there");
    for (path, put) in [
        (
            "/usr/share/doc/farmctl/README.md",
            "put 644 usr/share/doc/farmctl/README.md <README.md\n",
        ),
        (
            "/usr/share/doc/farmctl/examples/profiles",
            "cp -r profiles \"$tree/usr/share/doc/farmctl/examples/\"\n",
        ),
    ] {
        assert!(see_also.contains(path), "{see_also}");
        assert!(package.contains(put), "scripts/package has no {put}");
    }
    // And the pages of the verbs lead there.
    assert!(flat(&shown("bake")).contains("SEE ALSO farmctl(8)"));
}

#[test]
fn a_manual_page_says_what_help_says() {
    let page = shown("upgrade");
    assert!(page.contains("FARMCTL-UPGRADE(8)"), "{page}");
    let help = farmctl(&["upgrade", "--help"]).ok().stdout;
    let (_, after) = help.split_once("Examples:\n").expect("it has some");
    let (examples, notes) = after.split_once("\n\n").expect("it has more to say");
    // An example a line, as in the help.
    for line in examples.lines() {
        assert!(page.lines().any(|printed| printed.trim() == line.trim()), "{line} in {page}");
    }
    // The rest is filled, to the width there is.
    let all = flat(&page);
    for paragraph in notes.split("\n\n").map(flat) {
        assert!(all.contains(&paragraph), "{paragraph} in {page}");
    }
    let (_, filled) = page.split_once("\nNOTES\n").expect("it has some");
    assert!(filled.lines().next().is_some_and(|line| line.len() > 150), "{page}");

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
fn help_of_a_verb_is_asked_for_in_either_order() {
    let asked = farmctl(&["help", "upgrade"]).ok().stdout;
    assert_eq!(asked, farmctl(&["upgrade", "--help"]).ok().stdout);
    assert_eq!(farmctl(&["help"]).ok().stdout, farmctl(&["--help"]).ok().stdout);
}

#[test]
fn help_is_broken_into_lines_by_the_terminal_alone() {
    let mut commands = vec![Cli::command()];
    while let Some(command) = commands.pop() {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for paragraph in after.split("\n\n").filter(|it| !it.contains("\n  ")) {
            assert!(!paragraph.contains('\n'), "{}: {paragraph}", command.get_name());
        }
        commands.extend(command.get_subcommands().cloned());
    }
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
