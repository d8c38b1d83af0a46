//! The part of a profile that is a WSGI or ASGI application's: where it is reached, and where
//! its data lie.

use super::Writer;
use crate::project::words::quoted;
use crate::project::{Served, state};

impl Writer<'_> {
    pub(in crate::project) fn front_of_callable(&mut self) {
        self.front();
        let statics = match &self.project.served {
            Served::Callable(one) | Served::Uwsgi(_, Some(one)) => one.statics.clone(),
            _ => None,
        };
        // Where an installed one has its own depends on the Python, and it serves them itself.
        if let Some((directory, location)) = statics.filter(|_| !self.installs()) {
            let path = format!("{}/app/{directory}", self.home);
            self.static_files(&location, &path);
        }
        self.state();
        self.say_where_data_goes();
    }

    /// The directory in /var/lib that is the project's own.
    fn state(&mut self) {
        let module = match &self.project.served {
            Served::Callable(one) | Served::Uwsgi(_, Some(one)) => one.module.split('.').next(),
            _ => None,
        };
        let distribution = self.about().name.as_ref().map(|said| said.value.as_str());
        let names: Vec<&str> = distribution.into_iter().chain(module).collect();
        if let Some((path, directory)) = state::directory(self.survey, &names) {
            self.section(&format!("{path} names it; it outlives releases."), "[[data]]");
            self.line("name = \"state\"");
            self.line(format!("path = {}", quoted(&directory)));
            self.assume(format!("{directory}, which {path} names, is a [[data]] directory"));
        }
    }

    /// Says where the project keeps a database of its own, as far as a text gives it away.
    fn say_where_data_goes(&mut self) {
        let found = self.survey.scripts().into_iter().find_map(|(path, text)| {
            let at = text.find("sqlite://")?;
            let end = text[at..].find(['"', '\'', '\n']).unwrap_or(0);
            Some((path.to_owned(), text[at..at + end].to_owned()))
        });
        if let Some((path, url)) = found {
            self.assume(format!(
                "{path} names {url}: what is written there is gone with the session, unless it lies \
                 in a [[data]] directory"
            ));
        }
    }
}
