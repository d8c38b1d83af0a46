//! A process behind a balancer: drained, and admitted again whatever comes between.

use anyhow::Result;

use super::Served;
use crate::error::{Mark as _, message};
use crate::profile::Process;
use crate::run::Shield;

impl Served<'_> {
    /// Has the balancer before a process send it nothing more. If that fails, it is to send
    /// it requests as before.
    pub(super) fn drain(&self, process: &Process) -> Result<()> {
        // First, so that whoever finds the process so knows it.
        self.write_down(process, true)?;
        self.run_beside("drain", process).hint_with(|| {
            // It may have failed because somebody interrupts.
            let _shield = Shield::raise();
            let admitted = match self.admit(process) {
                Ok(()) => "gets requests as before".to_owned(),
                Err(error) => {
                    format!("may get no requests until farmctl tend: {}", message(&error))
                }
            };
            format!("it was not restarted, and {admitted}")
        })
    }

    /// Has the balancer before a process send it requests again.
    pub(super) fn admit(&self, process: &Process) -> Result<()> {
        self.run_beside("admit", process)?;
        self.write_down(process, false)
    }

    /// Admits what a reload that was cut short has left drained, once it serves. Answers
    /// whether there was anything.
    pub(super) fn admit_drained(&self, say: &dyn Fn(&str)) -> Result<bool> {
        let Self { session, manifest, supervisor, .. } = *self;
        let drained = |process: &&Process| session.drained.contains(&process.name);
        let mut found = false;
        for process in manifest.profile.processes.iter().filter(drained) {
            say(&format!("admitting the process {}", process.name));
            found = true;
            let position = supervisor.position(&session.name, &process.name)?;
            self.wait_until_ready(process, &position)?;
            self.admit(process)?;
        }
        Ok(found)
    }

    fn write_down(&self, process: &Process, is_drained: bool) -> Result<()> {
        let Self { app, session, node, .. } = *self;
        // Not as it was when the reload began: another process may have been drained since.
        let app = node.installed(&app.name)?;
        node.save_app(&app.drained(&session.name, &process.name, is_drained))
    }
}
