//! What a verb is about to do, for `--dry-run`.

use std::fmt;

/// Steps with the commands they run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    title: String,
    steps: Vec<(String, Vec<String>)>,
}

impl Plan {
    /// A plan of what `title` says ("bake hello 1.0.0").
    #[must_use]
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), steps: Vec::new() }
    }

    /// Adds a step without commands: farmctl does it itself.
    pub fn step(&mut self, what: impl Into<String>) -> &mut Self {
        self.commands(what, Vec::new())
    }

    /// Adds a step with its commands, each as it could be pasted.
    pub fn commands(&mut self, what: impl Into<String>, commands: Vec<String>) -> &mut Self {
        self.steps.push((what.into(), commands));
        self
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "would {}:", self.title)?;
        for (number, (what, commands)) in self.steps.iter().enumerate() {
            write!(f, "\n{:>3}. {what}", number + 1)?;
            for command in commands {
                write!(f, "\n       + {command}")?;
            }
        }
        Ok(())
    }
}
