//! What people see on a terminal: colours, bars, and tables within its width.

mod common;
#[path = "common/shop.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod shop;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod tiny;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use common::{FARMCTL, Farm, called, run};
use shop::Shop;
use signal::word;

/// Begins what sets a colour or takes it back: Select Graphic Rendition, console_codes(4).
const ESCAPE: &str = "\x1b[";

/// Runs farmctl on a terminal of so many columns, by script(1); answers all it has shown.
#[track_caller]
fn shown(farm: &Farm, columns: u16, terminal: &[(&str, &str)], arguments: &[&str]) -> String {
    let line = format!(
        "stty cols {columns} rows 24; exec {FARMCTL} --root {} {}",
        farm.root().display(),
        arguments.join(" ")
    );
    let mut command = called("script", &["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.env_remove("NO_COLOR").env("TERM", "xterm").envs(terminal.iter().copied());
    let ran = run(command);
    assert!([0, 3].contains(&ran.code), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    ran.stdout.replace("\r\n", "\n")
}

/// Whether a text has colours in it.
fn is_coloured(text: &str) -> bool {
    text.split(ESCAPE).skip(1).any(|rest| {
        let end = rest.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ';');
        end.starts_with('m')
    })
}

#[test]
fn colours_and_bars_are_for_terminals_that_show_them() {
    let farm = Farm::new();
    let tarball = Shop::new("1.0").pack(&farm);
    let verify = ["verify", word(&tarball)];
    let usual = shown(&farm, 80, &[], &verify);
    assert!(usual.contains("\x1b[32m✓\x1b[0m "), "{usual:?}");
    assert!(usual.contains("  verifying "), "{usual:?}");
    // Without colours a bar is a bar still.
    let plain = shown(&farm, 80, &[("NO_COLOR", "1")], &verify);
    assert!(!is_coloured(&plain), "{plain:?}");
    assert!(plain.contains("✓ ") && plain.contains("  verifying "), "{plain:?}");
    for dumb in [shown(&farm, 80, &[("TERM", "dumb")], &verify), {
        let mut piped = farm.command(&verify);
        piped.env_remove("NO_COLOR").env("TERM", "xterm");
        let ran = run(piped).ok();
        ran.stdout + &ran.stderr
    }] {
        assert!(!dumb.contains('\x1b') && !dumb.contains("verifying "), "{dumb:?}");
        assert!(dumb.contains("✓ "), "{dumb:?}");
    }
}

#[test]
fn tables_keep_to_a_narrow_terminal() {
    let farm = Farm::new();
    for version in ["2026.11.29.1", "2026.11.29.2", "2026.11.29.3"] {
        farm.run(&["install", word(&Shop::new(version).pack(&farm))]).ok();
    }
    let narrow = |arguments: &[&str]| {
        let text = shown(&farm, 40, &[], arguments);
        let wide = farm.run(arguments).stdout;
        assert!(wide.lines().any(|line| line.chars().count() > 40), "{arguments:?}: {wide}");
        for line in text.lines().filter(|line| line.contains("  ")) {
            // One word alone may be longer.
            let words = line.split_whitespace().count();
            assert!(line.chars().count() <= 40 || words == 1, "{arguments:?}: {line}");
        }
        text
    };
    assert_eq!(
        narrow(&["list"]),
        "APPLICATION  STATE    CURRENT\n    RELEASES\n\
         shop         stopped  2026.11.29.3\n    \
         2026.11.29.1 2026.11.29.2\n    2026.11.29.3\n"
    );
    let history = narrow(&["history", "shop"]);
    assert!(history.contains("  root\n    install 2026.11.29.3: done\n"), "{history}");
    let status = narrow(&["status", "shop"]);
    assert!(status.contains("\n             installed: 2026.11.29.1,\n"), "{status}");
    narrow(&["doctor"]);
    narrow(&["storage"]);
    narrow(&["key"]);
}

#[test]
fn a_panic_is_told_as_a_bug_with_what_to_do() {
    let farm = Farm::new();
    let tarball = Shop::new("1.0").pack(&farm);
    // Rust's threads panic where there is none to be had.
    let inject = ["-f", "-qq", "-o", "/dev/null", "-e", "inject=clone3:error=EAGAIN"];
    let farmctl = [FARMCTL, "--root", word(farm.root()), "verify", word(&tarball)];
    let mut command = called("strace", &[&inject[..], &farmctl].concat());
    command.env_remove("RUST_BACKTRACE");
    let ran = run(command).failed(4);
    assert!(ran.error().starts_with("a bug in farmctl: "), "{}", ran.stderr);
    assert!(ran.error().contains(": failed to spawn thread: "), "{}", ran.stderr);
    assert!(ran.hint().starts_with("farmctl gc clears up after it; "), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 2, "{}", ran.stderr);
}
