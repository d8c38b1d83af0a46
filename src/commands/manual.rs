//! `farmctl manual`: the help of every verb as manual pages, and its JSON as a schema.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_mangen::Man;
use roff::{Roff, bold, roman};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::{Context, audit, diff, doctor, gc, init, key, list, show, status, storage, verify};
use crate::error::{Exit, Mark as _, refuse};
use crate::history::Change;
use crate::serve::Reloaded;

/// Where man-pages(7) has commands of the system's administrator.
const SECTION: &str = "8";

/// Files that people meet, and what is in them; [`crate::layout`] has all.
const FILES: [(&str, &str); 10] = [
    ("/etc/farmctl/node.toml", "Settings of this node, every one optional."),
    (
        "/etc/farmctl/apps/NAME.env",
        "Secrets of an application, a line KEY=VALUE each, for root alone.",
    ),
    (
        "/etc/farmctl/tls/NAME.crt, NAME.key",
        "The certificate that its site shows, with the chain, and the key. Without them farmctl \
         makes one itself.",
    ),
    ("/etc/farmctl/nginx/NAME/*.conf", "Lines of yours for its vhost."),
    (
        "/etc/farmctl/keys.d",
        "Public keys. Where there is one, nothing is installed that is not signed by one of them.",
    ),
    ("/etc/farmctl/signing.key", "The key this machine signs tarballs with."),
    (
        "/var/lib/farmctl",
        "State, history, and volumes that are not on LVM. An application's data is in data/NAME.",
    ),
    (
        "/var/log/farmctl",
        "Logs of processes, unless systemd is PID 1: then they are in the journal.",
    ),
    (
        "/var/cache/farmctl",
        "Bootstrapped trees, Debian packages, wheels, compressed segments; elsewhere if the \
         environment variable FARMCTL_CACHE says so.",
    ),
    ("/run/farmctl", "Sockets of applications, locks, and the links nginx follows."),
];

/// What there is to read besides.
const SEE_ALSO: [&str; 2] = [
    "/usr/share/doc/farmctl/README.md of the Debian package explains every key of a profile, has \
     recipes, and tells how a node is looked after. Profiles to begin with are in \
     /usr/share/doc/farmctl/examples/profiles.",
    "schroot(1), nginx(8)",
];

/// Print the manual page of a verb, or write those of all
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl manual upgrade | man -l -
  farmctl manual --output /usr/local/share/man/man8
  farmctl manual status --json

With --json: the JSON Schema (2020-12, https://json-schema.org) of what the verb prints with its \
--json.")]
pub struct Args {
    /// The verb, and one of its own: `key trust`; none for farmctl itself
    #[arg(conflicts_with = "output")]
    verb: Vec<String>,
    /// Write the pages of all verbs to this directory
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print what the verb's own --json prints, as a JSON Schema
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

/// Carries the verb out; `command` is the command line the pages are of.
///
/// # Errors
/// When there is no such verb, or the pages cannot be written.
pub fn run(args: &Args, mut command: Command, context: &Context) -> Result<Exit> {
    command.build();
    if let Some(directory) = &args.output {
        let written = write(&command, directory)?;
        context.ui.done(format!("wrote {written} pages to {}", directory.display()));
        return Ok(Exit::Done);
    }
    let mut page_of = &command;
    for word in &args.verb {
        let Some(verb) = page_of.find_subcommand(word) else {
            let what = page_of.get_display_name().unwrap_or(page_of.get_name()).replace('-', " ");
            return refuse(format_args!("{what} has no verb {word}"), format!("{what} --help"))
                .exit(Exit::Usage);
        };
        page_of = verb;
    }
    if args.json {
        let Some(schema) = schema(page_of.get_name()) else {
            return refuse(
                format_args!("{} prints no JSON", name(page_of).replace('-', " ")),
                "farmctl manual status --json, for instance",
            )
            .exit(Exit::Usage);
        };
        context.ui.json(&schema);
        return Ok(Exit::Done);
    }
    context.ui.stream(&page(page_of)?).context("printing the page")?;
    Ok(Exit::Done)
}

/// Writes the page of a command and those of its verbs; answers how many.
fn write(command: &Command, directory: &std::path::Path) -> Result<usize> {
    let path = directory.join(format!("{}.{SECTION}", name(command)));
    let text = page(command)?;
    fs::write(&path, text)
        .with_context(|| format!("writing {}", path.display()))
        .hint_with(|| format!("mkdir -p {}", directory.display()))?;
    let mut written = 1;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        written += write(verb, directory)?;
    }
    Ok(written)
}

/// `farmctl-key-trust`.
fn name(command: &Command) -> String {
    command.get_display_name().unwrap_or(command.get_name()).to_owned()
}

/// A command's manual page, for man(7).
fn page(command: &Command) -> Result<Vec<u8>> {
    let name = name(command);
    let version = format!("farmctl {}", env!("CARGO_PKG_VERSION"));
    // The text after the help has a form of its own, which the generator would not keep.
    let plain = command.clone().after_help("");
    let man =
        Man::new(plain).title(name.to_uppercase()).section(SECTION).source(version).manual("");
    let mut text = Vec::new();
    let mut render = || -> std::io::Result<()> {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if command.get_subcommands().next().is_some() {
            man.render_subcommands_section(&mut text)?;
        }
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut more = Roff::new();
        for (heading, paragraphs) in sections(&after) {
            more.control("SH", [heading]);
            put(&mut more, &paragraphs);
        }
        if name == "farmctl" {
            more.control("SH", ["FILES"]);
            for (path, what) in FILES {
                more.control("TP", []).text([bold(path)]).text([roman(what)]);
            }
            more.control("SH", ["SEE ALSO"]);
            put(&mut more, &SEE_ALSO.join("\n\n"));
        } else {
            more.control("SH", ["SEE ALSO"]).text([roman("farmctl(8)")]);
        }
        more.to_writer(&mut text)
    };
    render().with_context(|| format!("rendering {name}({SECTION})"))?;
    Ok(text)
}

/// Puts paragraphs into a page: filled, but for indented lines, which are examples.
fn put(page: &mut Roff, text: &str) {
    for (number, paragraph) in text.split("\n\n").enumerate() {
        if number > 0 {
            page.control("PP", []);
        }
        let mut is_filled = true;
        for line in paragraph.lines() {
            if is_filled == line.starts_with(' ') {
                is_filled = !is_filled;
                page.control(if is_filled { "fi" } else { "nf" }, []);
            }
            page.text([roman(line)]);
        }
        if !is_filled {
            page.control("fi", []);
        }
    }
}

/// What a verb prints with `--json`.
fn schema(verb: &str) -> Option<Schema> {
    fn of<T: JsonSchema>() -> Schema {
        let settings = SchemaSettings::draft2020_12().for_serialize();
        settings.into_generator().into_root_schema_for::<T>()
    }
    Some(match verb {
        "audit" => of::<audit::Printed>(),
        "diff" => of::<diff::Printed>(),
        "doctor" => of::<Vec<doctor::Finding>>(),
        "gc" => of::<gc::Found>(),
        "history" => of::<Vec<Change>>(),
        "init" => of::<init::Written>(),
        "key" => of::<key::Listing>(),
        "list" => of::<list::Listing>(),
        "reload" => of::<Vec<Reloaded>>(),
        "show" => of::<show::Shown>(),
        "status" => of::<status::Status>(),
        "storage" => of::<storage::Listing>(),
        "verify" => of::<verify::Printed>(),
        _ => return None,
    })
}

/// The sections of a manual page that the text after a command's help is.
fn sections(after: &str) -> Vec<(&'static str, String)> {
    let mut sections: Vec<(&str, String)> = Vec::new();
    for paragraph in after.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
        let (heading, text) = match first {
            "Example:" | "Examples:" => ("EXAMPLES", rest),
            _ if first.starts_with("Exit status:") => ("EXIT STATUS", paragraph),
            _ if rest.starts_with(' ') => ("EXAMPLES", paragraph),
            _ => ("NOTES", paragraph),
        };
        match sections.last_mut() {
            Some((last, before)) if *last == heading => {
                before.push_str("\n\n");
                before.push_str(text);
            }
            _ => sections.push((heading, text.to_owned())),
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_that_prints_json_has_a_schema_and_no_other_has() {
        let command = <crate::cli::Cli as clap::CommandFactory>::command();
        for verb in command.get_subcommands().filter(|verb| verb.get_name() != "manual") {
            let prints = verb.get_arguments().any(|argument| argument.get_id() == "json");
            assert_eq!(prints, schema(verb.get_name()).is_some(), "{}", verb.get_name());
        }
    }

    /// Every property of every object, however deep, says what it is.
    fn assert_explained(value: &serde_json::Value, verb: &str) {
        if let Some(properties) = value.get("properties").and_then(|it| it.as_object()) {
            // A variant of an enum, which is explained as a whole.
            let variant = value["description"].is_string() && properties.len() == 1;
            for (name, property) in properties {
                // A tag has nothing but the variant's name.
                let explained =
                    variant || ["description", "const"].iter().any(|it| property[it].is_string());
                assert!(explained, "{verb}: {name}: {property}");
            }
        }
        let inner: Vec<&serde_json::Value> = match value {
            serde_json::Value::Object(map) => map.values().collect(),
            serde_json::Value::Array(values) => values.iter().collect(),
            _ => Vec::new(),
        };
        inner.into_iter().for_each(|inner| assert_explained(inner, verb));
    }

    #[test]
    fn all_that_json_has_is_explained() {
        let command = <crate::cli::Cli as clap::CommandFactory>::command();
        for verb in command.get_subcommands().map(Command::get_name) {
            if let Some(schema) = schema(verb) {
                assert_explained(schema.as_value(), verb);
            }
        }
    }

    #[test]
    fn examples_notes_and_exit_status_are_sections() {
        let after =
            "Examples:\n  a\n  b\n\nOne.\n\nTwo,\nlonger.\n\nExit status: 0 done.\n\nAll:\n  c";
        assert_eq!(
            sections(after),
            [
                ("EXAMPLES", "  a\n  b".to_owned()),
                ("NOTES", "One.\n\nTwo,\nlonger.".to_owned()),
                ("EXIT STATUS", "Exit status: 0 done.".to_owned()),
                ("EXAMPLES", "All:\n  c".to_owned()),
            ]
        );
        assert!(sections("").is_empty());
    }

    #[test]
    fn paragraphs_are_filled_and_examples_keep_their_lines() {
        let mut page = Roff::new();
        put(&mut page, "One,\nlonger.\n\nAll:\n  a\n  b\n\nTwo.");
        insta::assert_snapshot!(page.to_roff(), @r"
        One,
        longer.
        .PP
        All:
        .nf
          a
          b
        .fi
        .PP
        Two.
        ");
    }
}
