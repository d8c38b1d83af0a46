//! What the verbs that change an application write into its history.

use std::cell::RefCell;

use anyhow::{Error, Result};

use super::Context;
use crate::error::{self, Exit, exit_of, message};
use crate::history::{self, Outcome};
use crate::node::{self, Node};
use crate::switch::SwitchedBack;

/// Who changes which application, and how.
pub(super) struct Subject<'a> {
    pub(super) context: &'a Context,
    pub(super) node: &'a Node,
    pub(super) app: &'a str,
    pub(super) verb: &'a str,
}

impl Subject<'_> {
    /// Carries a change out, and writes its beginning and its end into the history. A
    /// history that cannot be written is no reason to leave an application as it is.
    pub(super) fn record<T>(&self, what: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let layout = self.node.layout();
        let begun = history::begin(layout, self.app, self.verb, what, &history::who());
        let record = begun.map_err(|error| self.warn(&error)).ok();
        let result = body();
        if let Some(record) = record {
            let (outcome, reason) = ending(&result);
            if let Err(error) = record.end(layout, self.app, outcome, reason.as_deref()) {
                self.warn(&error);
            }
        }
        result
    }

    /// The same for what mostly finds nothing to do: what it says it does is written down
    /// when it is over, if it says anything. `outcome` tells how well it went.
    pub(super) fn record_steps<T>(
        &self,
        by: &str,
        outcome: impl FnOnce(&T) -> Outcome,
        body: impl FnOnce(&dyn Fn(&str)) -> Result<T>,
    ) -> Result<T> {
        let began = node::now();
        let steps = RefCell::new(Vec::new());
        let result = body(&|step| {
            let subject =
                if by == history::TEND { format!("{}: ", self.app) } else { String::new() };
            self.context.ui.step(format!("{subject}{step}"));
            steps.borrow_mut().push(step.to_owned());
        });
        let what = steps.into_inner().join("; ");
        if !what.is_empty() {
            let (failed, reason) = ending(&result);
            let change = history::Change {
                began,
                ended: Some(node::now()),
                verb: self.verb.to_owned(),
                what,
                by: by.to_owned(),
                result: result.as_ref().map_or(failed, outcome),
                error: reason,
            };
            if let Err(error) = history::note(self.node.layout(), self.app, &change) {
                self.warn(&error);
            }
        }
        result
    }

    fn warn(&self, error: &Error) {
        self.context.ui.warn(format!(
            "the history of {} is not whole: {}",
            self.app,
            message(error)
        ));
    }
}

fn ending<T>(result: &Result<T>) -> (Outcome, Option<String>) {
    let Err(error) = result else { return (Outcome::Done, None) };
    let outcome = match exit_of(error) {
        Exit::Interrupted => Outcome::Interrupted,
        _ if error.downcast_ref::<SwitchedBack>().is_some() => Outcome::SwitchedBack,
        _ => Outcome::Failed,
    };
    (outcome, Some(error::message(error)))
}
