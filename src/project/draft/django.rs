//! Django's part of a profile: the settings of a node, jobs, data and static files.

use super::Writer;
use crate::project::django::{Database, Django, SecretKey};
use crate::project::node_settings::{self, MODULE};
use crate::project::server::Serving;
use crate::project::words::quoted;

impl Writer<'_> {
    /// Everything of Django: the settings of a node, the process, jobs, data and static files.
    pub(super) fn django(&mut self, django: &Django, serving: &Serving) {
        let home = self.home.clone();
        self.section(
            "Settings of the node, over the project's own: where files lie, what only the node knows.",
            "[[file]]",
        );
        self.line(format!("path = \"{}/{MODULE}.py\"", serving.directory));
        let settings = node_settings::text(django, &home);
        self.line(format!("content = '''\n{settings}'''"));
        self.assume(format!(
            "{MODULE}.py, a [[file]], takes over {} for the node",
            django.settings
        ));
        if django.debug {
            self.assume("DEBUG is switched off there");
        }
        if django.secret_key == SecretKey::Override {
            self.assume("SECRET_KEY becomes a secret of the node's own");
        }
        self.process(serving);
        if django.secret_key == SecretKey::Override {
            self.secrets(&["SECRET_KEY".to_owned()]);
        }
        let manage = match &django.manage {
            Some(_) => "python manage.py",
            None => "python -m django",
        };
        if django.static_location.is_some() {
            self.section(
                "Static files do not depend on secrets, and there are none at bake.",
                "[[job]]",
            );
            self.line("name = \"collect-static\"\nwhen = \"bake\"");
            self.job(&format!("{manage} collectstatic --noinput --verbosity 0"), serving, true);
        }
        match django.database {
            Database::None => {}
            Database::Sqlite | Database::Server => {
                self.section(
                    "What a newer release asks of an older one's database. It runs while the old release\n\
                     still serves: a migration must leave that one working.",
                    "[[job]]",
                );
                self.line("name = \"migrate\"\nwhen = \"start\"");
                self.job(&format!("{manage} migrate --noinput --verbosity 0"), serving, false);
            }
        }
        match django.database {
            Database::Sqlite => {
                self.section("The database, which outlives releases.", "[[data]]");
                self.line(format!("name = \"database\"\npath = \"{home}/data\""));
                self.assume("SQLite in a [[data]] directory, migrated at every start");
            }
            Database::Server => self.assume("the database is on a server the node must reach"),
            Database::None => {}
        }
        if django.media_location.is_some() {
            self.section("Uploads, which outlive releases.", "[[data]]");
            self.line(format!("name = \"media\"\npath = \"{home}/media\""));
        }
        self.front();
        if let Some(location) = &django.static_location {
            self.static_files(location, &format!("{home}/static"));
        }
        if let Some(location) = &django.media_location {
            self.static_files(location, &format!("{home}/media"));
        }
        self.assume("it answers to localhost and 127.0.0.1: other names go to SITE_HOSTS");
    }

    fn job(&mut self, command: &str, serving: &Serving, at_bake: bool) {
        self.line(format!("command = {}", quoted(command)));
        self.line(format!("directory = {}", quoted(&serving.directory)));
        let mut environment = serving.environment.clone();
        environment.push(("DJANGO_SETTINGS_MODULE".to_owned(), MODULE.to_owned()));
        if at_bake {
            environment.push(("SITE_WITHOUT_SECRETS".to_owned(), "yes".to_owned()));
        }
        self.variables_line(&environment);
    }
}
