//! `farmctl list`: what is on this node.

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use crate::error::Exit;
use crate::ui;

/// List applications, their releases, and environments
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farmctl list --json")]
pub struct Args {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Listing {
    /// Installed applications.
    applications: Vec<Application>,
    /// Bootstrapped environments.
    environments: Vec<Environment>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct Application {
    /// Name.
    name: String,
    /// `started` or `stopped`.
    state: &'static str,
    /// Version that runs, or would be started; none if none is installed.
    current: Option<String>,
    /// Versions installed, oldest first.
    releases: Vec<String>,
    /// User id of its account.
    uid: u32,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
struct Environment {
    /// Name.
    name: String,
    /// Debian suite.
    suite: String,
    /// Debian architecture.
    architecture: String,
    /// When it was made, seconds since 1970.
    made: i64,
}

/// Carries the verb out.
///
/// # Errors
/// When the state is damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let applications = node.apps()?.into_iter().map(|app| Application {
        state: if app.session.is_some() { "started" } else { "stopped" },
        current: app.current,
        releases: app.releases.into_iter().map(|release| release.version).collect(),
        uid: app.uid,
        name: app.name,
    });
    let environments = node.environments()?.into_iter().map(|record| Environment {
        name: record.name,
        suite: record.suite,
        architecture: record.architecture,
        made: record.made,
    });
    let listing =
        Listing { applications: applications.collect(), environments: environments.collect() };
    if args.json {
        context.ui.json(&listing);
    } else if listing.applications.is_empty() && listing.environments.is_empty() {
        context.ui.answer("nothing yet: farmctl bootstrap PROFILE makes an environment, farmctl install FILE installs a tarball");
    } else {
        context.ui.answer(render(&listing, context.ui.width()));
    }
    Ok(Exit::Done)
}

fn render(listing: &Listing, width: usize) -> String {
    let mut blocks = Vec::new();
    if !listing.applications.is_empty() {
        let mut rows =
            vec![["APPLICATION", "STATE", "CURRENT", "RELEASES"].map(str::to_owned).to_vec()];
        rows.extend(listing.applications.iter().map(|app| {
            let current = app.current.clone().unwrap_or_else(|| "-".to_owned());
            vec![app.name.clone(), app.state.to_owned(), current, app.releases.join(" ")]
        }));
        blocks.push(ui::folded(&rows, width));
    }
    if !listing.environments.is_empty() {
        let mut rows =
            vec![["ENVIRONMENT", "SUITE", "ARCHITECTURE", "MADE"].map(str::to_owned).to_vec()];
        rows.extend(listing.environments.iter().map(|environment| {
            vec![
                environment.name.clone(),
                environment.suite.clone(),
                environment.architecture.clone(),
                ui::day(environment.made),
            ]
        }));
        blocks.push(ui::folded(&rows, width));
    }
    blocks.join("\n\n")
}
