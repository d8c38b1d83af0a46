//! Mistakes, and what farmctl says to them: one error, one hint, the right exit status, and
//! nothing left. Each goes into the table that `scripts/mistakes` prints.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use crate::common::{Farm, Ran};
use crate::signal::masked;

/// Columns of the table, 120 in all: the mistake, the exit status, what is left, the words.
const MISTAKE: usize = 36;
const WORDS: usize = 68;

/// Runs a verb that must fail and leave nothing but what was there before.
#[track_caller]
pub fn fails(mistake: &str, farm: &Farm, arguments: &[&str], code: i32) -> Ran {
    let (before, list) = (farm.volumes(), farm.run(&["list", "--json"]).ok().stdout);
    let ran = farm.run(arguments);
    met(mistake, farm, ran, code, || {
        assert_eq!(farm.volumes(), before, "no volume was made");
        assert_eq!(
            farm.run(&["list", "--json"]).ok().stdout,
            list,
            "nothing is there that was not"
        );
    })
}

/// Says that a run failed as it must, and left nothing: `gc --check` and `look` find nothing.
#[track_caller]
pub fn met(mistake: &str, farm: &Farm, ran: Ran, code: i32, look: impl FnOnce()) -> Ran {
    let ran = ran.failed(code);
    farm.assert_clean();
    look();
    note(mistake, farm, &ran);
    ran
}

/// Runs a verb that must fail where `gc --check` cannot say whether anything is left: what
/// `look` sees is the same before and after.
#[track_caller]
pub fn refused<T: PartialEq + Debug>(
    mistake: &str,
    farm: &Farm,
    arguments: &[&str],
    look: impl Fn() -> T,
) -> Ran {
    let before = look();
    let ran = farm.run(arguments).failed(1);
    assert_eq!(look(), before, "{arguments:?} changed something");
    note(mistake, farm, &ran);
    ran
}

/// Says that a run which a signal ended says so and left nothing, not even a volume that was
/// not there `before`. It has no hint.
#[track_caller]
pub fn ended(mistake: &str, farm: &Farm, ran: &Ran, before: &BTreeSet<String>) {
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    farm.assert_clean();
    assert_eq!(farm.volumes(), *before, "no volume was made");
    row(mistake, "130", "none", &format!("error: {}", masked(ran.error(), farm)));
}

/// Writes a row of the table, about what was looked at already.
fn note(mistake: &str, farm: &Farm, ran: &Ran) {
    let text = format!("error: {}\nhint: {}", ran.error(), ran.hint());
    row(mistake, &ran.code.to_string(), "none", &masked(&text, farm));
}

/// Writes a row of the table: the mistake, the exit status, what is left, the words.
pub fn row(mistake: &str, code: &str, left: &str, words: &str) {
    let mut row = String::new();
    let mut first = format!("{mistake:<MISTAKE$} {code:>4}  {left:<6} ");
    for line in wrapped(words) {
        row += format!("{first}{line}").trim_end();
        row.push('\n');
        first = " ".repeat(MISTAKE + 14);
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mistakes");
    fs::create_dir_all(&place).expect("there is room");
    fs::write(place.join(mistake.replace(['/', ' '], "-")), row).expect("there is room");
}

/// Lines of at most [`WORDS`] letters, broken between words; a longer word is cut.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut now = String::new();
        for word in line.split(' ') {
            if !now.is_empty() && now.chars().count() + 1 + word.chars().count() > WORDS {
                lines.push(std::mem::take(&mut now));
                now.push_str("   ");
            }
            if !now.is_empty() {
                now.push(' ');
            }
            for letter in word.chars() {
                if now.chars().count() == WORDS {
                    lines.push(std::mem::take(&mut now));
                    now.push_str("    ");
                }
                now.push(letter);
            }
        }
        lines.push(now);
    }
    lines
}
