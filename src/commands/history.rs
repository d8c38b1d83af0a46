//! `farmctl history`: what was done to an application, when, by whom, and how it ended.

use anyhow::Result;

use super::Context;
use crate::error::Exit;
use crate::history::{self, Change};
use crate::ui;

/// Show what was done to an application
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl history hello
  farmctl history hello --json

The newest change is the last line. A history goes back some hundred changes; it outlives releases \
and farmctl remove, and goes with farmctl remove --data.")]
pub struct Args {
    /// The application
    name: String,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When nothing is known of the application, or its history cannot be read.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    let changes = history::read(node.layout(), &args.name)?;
    if changes.is_empty() {
        node.installed(&args.name)?;
    }
    if args.json {
        context.ui.json(&changes);
    } else if changes.is_empty() {
        context.ui.answer(format!("nothing is known of {} yet", args.name));
    } else {
        context.ui.answer(render(&changes, context.ui.width()));
    }
    Ok(Exit::Done)
}

fn render(changes: &[Change], width: usize) -> String {
    let mut rows = vec![["BEGAN (UTC)", "TOOK", "BY", "CHANGE"].map(str::to_owned).to_vec()];
    rows.extend(changes.iter().map(|change| {
        let took = change.ended.map_or("-".to_owned(), |ended| ui::span(ended - change.began));
        vec![
            ui::moment(change.began),
            took,
            ui::one_line(&change.by).into_owned(),
            sentence(change),
        ]
    }));
    ui::folded(&rows, width)
}

/// A change on one line: what was done, how it ended, and the first line of why.
fn sentence(change: &Change) -> String {
    let Change { verb, what, result, .. } = change;
    let why = change.reason().map_or(String::new(), |why| format!(": {why}"));
    ui::one_line(&format!("{verb} {what}: {result}{why}")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Outcome;

    #[test]
    fn a_change_is_a_line() {
        let change = |began: i64, ended, what: &str, result, error: Option<&str>| Change {
            began,
            ended,
            verb: "upgrade".to_owned(),
            what: what.to_owned(),
            by: "anna".to_owned(),
            result,
            error: error.map(str::to_owned),
        };
        let changes = [
            change(1_700_000_000, Some(1_700_000_014), "from 1.0 to 1.1", Outcome::Done, None),
            change(
                1_700_000_300,
                Some(1_700_000_500),
                "from 1.1 to 1.2",
                Outcome::SwitchedBack,
                Some(
                    "upgrading shop from 1.1 to 1.2: 1.1 serves again: process web: it has ended since the switch\n  | bye",
                ),
            ),
            change(1_700_001_000, None, "from 1.1 to 1.2", Outcome::CutShort, None),
        ];
        insta::assert_snapshot!(render(&changes, usize::MAX), @r"
        BEGAN (UTC)          TOOK   BY    CHANGE
        2023-11-14 22:13:20  14 s   anna  upgrade from 1.0 to 1.1: done
        2023-11-14 22:18:20  3 min  anna  upgrade from 1.1 to 1.2: switched back: upgrading shop from 1.1 to 1.2: 1.1 serves again: process web: it has ended since the switch
        2023-11-14 22:30:00  -      anna  upgrade from 1.1 to 1.2: cut short
        ");
    }
}
