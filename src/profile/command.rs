//! Commands: lines of sh with values.

use super::Profile;
use super::parse::{Place, Problem};
use super::validate::Checked;
use crate::template;

/// Text of sh that cannot end the function the start script puts it into.
pub(super) fn shell(place: &Place, command: &str) -> Checked {
    let problem = |message: &str| Err(Problem::at(place.clone(), message));
    if command.trim().is_empty() {
        return problem("must not be empty");
    }
    if command.contains('\0') {
        return problem("must not contain a NUL");
    }
    let mut quote = None;
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (None | Some('"'), '\\') => {
                // Whatever follows is taken as it is.
                let Some(_) = letters.next() else { return problem("ends with a backslash") };
            }
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), close) if open == close => quote = None,
            _ => {}
        }
    }
    match quote {
        Some(open) => problem(&format!("a quote is not closed: {open}")),
        None => Ok(()),
    }
}

/// The start script runs `exec COMMAND`, so that the pid it writes is the server's own.
pub(super) fn simple_command(place: &Place, command: &str) -> Checked {
    shell(place, command)?;
    let first = command.split_whitespace().next().unwrap_or_default();
    if command.trim().contains('\n') {
        return Err(Problem::at(place.clone(), "must be one line")
            .hint("end lines with a backslash, within \"\"\" quotes"));
    }
    if first == "exec" {
        return Err(Problem::at(place.clone(), "the start script puts exec before it already"));
    }
    let assignment = first.split_once('=').is_some_and(|(name, _)| {
        name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    });
    if assignment {
        return Err(Problem::at(place.clone(), "begins with an assignment, not with a program")
            .hint(format!("put {first} into the environment of the process")));
    }
    if command.trim_end().ends_with('&') {
        return Err(Problem::at(
            place.clone(),
            "must stay in the foreground: a trailing & sends it away",
        ));
    }
    Ok(())
}

pub(super) fn shell_template(place: &Place, command: &str, profile: &Profile) -> Checked {
    match template::render_shell(command, profile) {
        Ok(_) => Ok(()),
        Err(fault) => Err(of_template(place, &fault)),
    }
}

pub(super) fn of_template(place: &Place, fault: &template::Fault) -> Problem {
    let problem = Problem::at(place.clone(), fault.to_string());
    match &fault.hint {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}
