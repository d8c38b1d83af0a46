//! From the text of a profile to a [`Profile`], with errors that say where.

use std::fmt;
use std::ops::Range;

use anyhow::anyhow;
use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Profile, SCHEMA, validate};
use crate::error::{Exit, Mark as _};
use crate::reference::{self, Absent, Kind};

/// Where in a profile something stands: keys from the top of the file down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl Place {
    pub(super) fn key(&self, key: impl Into<String>) -> Self {
        self.with(Step::Key(key.into()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// Dotted name of the table: indices left out.
    fn section(&self) -> String {
        let keys = self.0.iter().filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        });
        keys.collect::<Vec<_>>().join(".")
    }

    /// The longest part of the path that leads to a section, and the key below it.
    fn split(&self) -> (&'static reference::Section, String) {
        for length in (0..=self.0.len()).rev() {
            let table = Self(self.0[..length].to_vec());
            let Some(section) = reference::section(&table.section()) else { continue };
            let below = self.0[length..].iter().find_map(|step| match step {
                Step::Key(key) => Some(key.clone()),
                Step::Index(_) => None,
            });
            if let Some(key) = below {
                return (section, key);
            }
            if length == 0 {
                break;
            }
            // The path leads to a table itself; it is a key of the table around it.
        }
        (&reference::SECTIONS[0], String::new())
    }
}

/// `"reload" in [[process]]`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.split() {
            (_, key) if key.is_empty() => f.write_str("the profile"),
            (section, key) if section.name.is_empty() => write!(f, "{key:?}"),
            (section, key) => write!(f, "{key:?} in {}", section.written),
        }
    }
}

/// Something wrong with a profile.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) place: Place,
    /// What is wrong, the place not named.
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(super) fn at(place: Place, message: impl Into<String>) -> Self {
        Self { place, message: message.into(), hint: None }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The problem of a value that is in no profile.
    pub(super) fn into_error_of_a_word(self) -> anyhow::Error {
        refusal(&self.message, self.hint)
    }

    /// The problem of a profile that has no text.
    pub(super) fn into_error(self) -> anyhow::Error {
        let Self { place, message, hint } = self;
        refusal(&format!("{place}: {message}"), hint)
    }
}

fn refusal(message: &str, hint: Option<String>) -> anyhow::Error {
    let refused = Err::<(), _>(anyhow!("{message}")).exit(Exit::Usage);
    let refused = match hint {
        Some(hint) => refused.hint(hint),
        None => refused,
    };
    match refused {
        Err(error) => error,
        Ok(()) => unreachable!("the result was built as an error"),
    }
}

/// The text of a profile, for turning byte offsets into lines and columns.
struct Text<'a>(&'a str);

impl Text<'_> {
    /// An error at a byte offset: `line 12, column 3: …`. Both count from 1, columns in characters.
    fn error(&self, offset: usize, message: &str, hint: Option<String>) -> anyhow::Error {
        let mut offset = offset.min(self.0.len());
        while !self.0.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.0[..offset];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&letter| letter != '\n').count() + 1;
        refusal(&format!("line {line}, column {column}: {message}"), hint)
    }
}

/// Reads a profile.
///
/// Absolute paths come out normalised: no doubled and no trailing slashes.
///
/// # Errors
///
/// With [`Exit::Usage`] and the line and column, when the text is not TOML, names a key
/// that does not exist, lacks one that must, or holds a value that cannot be used.
pub fn parse(text: &str) -> anyhow::Result<Profile> {
    let at = Text(text);
    let syntax = |error: &toml::de::Error| {
        let message = error.message().lines().collect::<Vec<_>>().join("; ");
        at.error(error.span().map_or(0, |span| span.start), &message, None)
    };
    let document = DeTable::parse(text).map_err(|error| syntax(&error))?;
    check_schema(&at, document.get_ref())?;
    check_table(&at, &Place::default(), document.get_ref(), document.span())?;

    let deserializer = toml::Deserializer::parse(text).map_err(|error| syntax(&error))?;
    let mut profile = Profile::deserialize(deserializer).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let place = place_of(&Place::default(), document.get_ref(), &span);
        let message = error.message().lines().next().unwrap_or_default();
        at.error(span.start, &format!("{place}: {}", plain(message)), None)
    })?;
    validate::normalise(&mut profile);
    validate::check(&profile).map_err(|problem| {
        let span = locate(document.get_ref(), &problem.place.0).unwrap_or(0..0);
        let Problem { place, message, hint } = problem;
        at.error(span.start, &format!("{place}: {message}"), hint)
    })?;
    Ok(profile)
}

/// serde's words in ours: backticks become quotes.
fn plain(message: &str) -> String {
    message.replace('`', "\"").replace("unknown variant ", "").replacen(
        ", expected ",
        " is not ",
        usize::from(message.starts_with("unknown variant")),
    )
}

/// A newer schema has keys we do not know: say so before complaining about those.
fn check_schema(at: &Text<'_>, table: &DeTable<'_>) -> anyhow::Result<()> {
    let Some(value) = table.get("schema") else { return Ok(()) };
    let Some(schema) = value.get_ref().as_integer() else { return Ok(()) };
    let schema = i128::from_str_radix(schema.as_str(), schema.radix());
    let start = value.span().start;
    match schema {
        Ok(schema) if schema == i128::from(SCHEMA) => Ok(()),
        Ok(schema) if schema > i128::from(SCHEMA) => Err(at.error(
            start,
            &format!("the profile has schema {schema}, and this farmctl reads schema {SCHEMA}"),
            Some("use the farmctl the profile was written for, or a newer one".to_owned()),
        )),
        _ => Err(at.error(
            start,
            "\"schema\": there is no such schema",
            Some(format!("schema = {SCHEMA}")),
        )),
    }
}

/// Checks keys and types of a table against the reference.
fn check_table(
    at: &Text<'_>,
    place: &Place,
    table: &DeTable<'_>,
    span: Range<usize>,
) -> anyhow::Result<()> {
    let name = place.section();
    let Some(section) = reference::section(&name) else { return Ok(()) };
    for (key, value) in table {
        let written = key.get_ref().as_ref();
        let Some(known) = reference::keys_of(section.name).find(|known| known.name == written)
        else {
            let message = match section.name {
                "" => format!("unknown key {written:?}"),
                _ => format!("unknown key {written:?} in {}", section.written),
            };
            return Err(at.error(key.span().start, &message, Some(nearest(section.name, written))));
        };
        check_kind(at, &place.key(written), known.kind, value)?;
    }
    for known in reference::keys_of(section.name) {
        if known.default == Absent::Required && !table.contains_key(known.name) {
            let message = match section.name {
                "" => format!("missing key {:?}", known.name),
                _ => format!("missing key {:?} in {}", known.name, section.written),
            };
            let hint = match reference::section(&place.key(known.name).section()) {
                Some(section) => format!("add {}", section.written),
                None => format!("add a line {} = …, {}", known.name, known.kind.name()),
            };
            return Err(at.error(span.start, &message, Some(hint)));
        }
    }
    Ok(())
}

fn check_kind(
    at: &Text<'_>,
    place: &Place,
    kind: Kind,
    value: &Spanned<DeValue<'_>>,
) -> anyhow::Result<()> {
    let wrong = |value: &Spanned<DeValue<'_>>, must: &str| {
        let is = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        at.error(value.span().start, &format!("{place}: must be {must}, not {is}"), None)
    };
    match (kind, value.get_ref()) {
        (Kind::Number, DeValue::Integer(_))
        | (Kind::Switch, DeValue::Boolean(_))
        | (Kind::Text, DeValue::String(_))
        | (Kind::Duration, DeValue::String(_) | DeValue::Integer(_)) => Ok(()),
        (Kind::Texts, DeValue::Array(items)) => {
            match items.iter().find(|item| !item.get_ref().is_str()) {
                Some(item) => Err(wrong(item, "a list of strings")),
                None => Ok(()),
            }
        }
        (Kind::TextTable, DeValue::Table(table)) => {
            match table.iter().find(|(_, value)| !value.get_ref().is_str()) {
                Some((_, value)) => Err(wrong(value, "a table of strings")),
                None => Ok(()),
            }
        }
        (Kind::Table, DeValue::Table(table)) => check_table(at, place, table, value.span()),
        (Kind::Tables, DeValue::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                let DeValue::Table(table) = item.get_ref() else {
                    return Err(wrong(item, "a list of tables"));
                };
                check_table(at, &place.index(index), table, item.span())?;
            }
            Ok(())
        }
        (Kind::Tables, DeValue::Table(_)) => {
            let written =
                reference::section(&place.section()).map_or("", |section| section.written);
            Err(at.error(
                value.span().start,
                &format!("{place}: must be a list of tables, not a table"),
                Some(format!("write it with two brackets: {written}")),
            ))
        }
        _ => Err(wrong(value, kind.name())),
    }
}

/// The known key that looks most like this one.
fn nearest(section: &str, written: &str) -> String {
    // Half a word may be wrong, not more: an unrelated suggestion is worse than the list.
    let near = |known: &str| strsim::damerau_levenshtein(known, written);
    let keys: Vec<_> = reference::keys_of(section).map(|key| key.name).collect();
    let best = keys.iter().min_by_key(|known| near(known));
    match best {
        Some(best) if near(best) * 2 <= best.len().max(written.len()) => {
            format!("did you mean {best:?}?")
        }
        _ => format!("the keys there are {}", keys.join(", ")),
    }
}

/// The deepest key whose value covers a span.
fn place_of(place: &Place, table: &DeTable<'_>, span: &Range<usize>) -> Place {
    let covers = |value: &Spanned<DeValue<'_>>| {
        value.span().start <= span.start && span.end <= value.span().end
    };
    for (key, value) in table {
        let below = place.key(key.get_ref().as_ref());
        match value.get_ref() {
            // A table's span is its header's or its braces'; its values may lie outside.
            DeValue::Table(table) => {
                let deeper = place_of(&below, table, span);
                if deeper != below || covers(value) {
                    return deeper;
                }
            }
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let below = below.index(index);
                    if let DeValue::Table(table) = item.get_ref() {
                        let deeper = place_of(&below, table, span);
                        if deeper != below || covers(item) {
                            return deeper;
                        }
                    } else if covers(item) {
                        return below;
                    }
                }
                if covers(value) {
                    return below;
                }
            }
            _ if covers(value) => return below,
            _ => {}
        }
    }
    place.clone()
}

/// Where the value at a place stands, or what is written nearest above it.
fn locate(table: &DeTable<'_>, steps: &[Step]) -> Option<Range<usize>> {
    let Some((Step::Key(key), mut steps)) = steps.split_first() else { return None };
    let mut value = table.get(key.as_str())?;
    loop {
        match (steps.split_first(), value.get_ref()) {
            (Some((Step::Key(_), _)), DeValue::Table(table)) => {
                return locate(table, steps).or_else(|| Some(value.span()));
            }
            (Some((Step::Index(index), rest)), DeValue::Array(items)) => {
                let Some(item) = items.get(*index) else { return Some(value.span()) };
                value = item;
                steps = rest;
            }
            _ => return Some(value.span()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{exit_of, hint_of, render};
    use crate::profile::{Reload, Seconds, Signal, When};

    const SHOP: &str = r#"schema = 1
name = "shop"
version = "1.4.2"

[environment]
suite = "bookworm"

[python]
requirements = "requirements.txt"

[[copy]]
from = "app"
to = "/srv//shop/app/"

[[process]]
name = "web"
command = "gunicorn --bind {{ listen.web }} shop"
reload = "HUP"
ready = { http = "/", within = "1m" }
stop = { within = 5 }

[[process]]
name = "queue"
command = "queue {{ data.uploads }}"

[[job]]
name = "migrate"
command = "manage migrate"
when = "start"

[[data]]
name = "uploads"
path = "/srv/shop/uploads"

[[secret]]
name = "SECRET_KEY"
generate = true

[front]
listen = ["127.0.0.1:8080", "80", "[::1]:8080"]

[[front.static]]
location = "/static/"
path = "/srv/shop/static"
"#;

    /// The message for SHOP with one line written differently.
    fn with(line: &str, instead: &str) -> String {
        assert!(SHOP.contains(line), "{line}");
        let error = parse(&SHOP.replacen(line, instead, 1)).expect_err(instead);
        assert_eq!(exit_of(&error), Exit::Usage);
        said(&error)
    }

    /// The error, and the hint if it has one of its own.
    fn said(error: &anyhow::Error) -> String {
        let text = render(error);
        match (hint_of(error), text.rsplit_once("\nhint: ")) {
            (None, Some((error, _))) => error.to_owned(),
            _ => text,
        }
    }

    #[test]
    fn a_profile_is_read() {
        let shop = parse(SHOP).expect("the profile is right");
        assert_eq!(shop.copies[0].to.as_os_str(), "/srv/shop/app");
        let web = &shop.processes[0];
        assert_eq!(web.reload, Reload::Signal(Signal::Hup));
        assert_eq!(web.ready.as_ref().map(|ready| ready.within), Some(Seconds(60)));
        assert_eq!((web.stop.signal, web.stop.within), (Signal::Term, Seconds(5)));
        assert_eq!(shop.processes[1].reload, Reload::Restart);
        assert_eq!(shop.front_process().map(|process| process.name.as_str()), Some("web"));
        assert_eq!(shop.virtualenv().as_os_str(), "/srv/shop/venv");
        assert_eq!(shop.home().as_os_str(), "/home/app");
        assert_eq!(shop.jobs_at(When::Start).count(), 1);
        assert_eq!(shop.jobs_at(When::Bake).count(), 0);
    }

    #[test]
    fn a_profile_survives_json() {
        let shop = parse(SHOP).expect("the profile is right");
        let json = serde_json::to_string(&shop).expect("profiles serialise");
        let back: Profile = serde_json::from_str(&json).expect("what was written is read");
        assert_eq!(back, shop);
        back.validate().expect("it was checked before");
    }

    #[test]
    fn a_profile_out_of_a_manifest_is_checked_without_lines() {
        let mut shop = parse(SHOP).expect("the profile is right");
        assert!(shop.set_version("2.0-1").is_err());
        assert_eq!(shop.version, "1.4.2");
        shop.set_version("2.0").expect("that is a version");
        shop.data[0].path = "/etc/../run".into();
        let error = shop.validate().expect_err("the path climbs");
        assert_eq!(
            said(&error),
            "error: \"path\" in [[data]]: /etc/../run must not contain \"..\""
        );
    }

    #[test]
    fn unknown_keys_are_named_with_the_nearest() {
        insta::assert_snapshot!(with("requirements =", "requirments ="), @r#"
        error: line 9, column 1: unknown key "requirments" in [python]
        hint: did you mean "requirements"?
        "#);
        insta::assert_snapshot!(with("[[process]]", "[[proces]]"), @r#"
        error: line 15, column 3: unknown key "proces"
        hint: did you mean "process"?
        "#);
        insta::assert_snapshot!(with("within = 5", "wthin = 5"), @r#"
        error: line 20, column 10: unknown key "wthin" in stop = { … } of [[process]]
        hint: did you mean "within"?
        "#);
        insta::assert_snapshot!(with("[environment]", "colour = \"red\"\n[environment]"), @r#"
        error: line 5, column 1: unknown key "colour"
        hint: the keys there are schema, name, version, description, environment, storage, schroot, build, python, copy, file, process, job, data, secret, front
        "#);
        insta::assert_snapshot!(with("location", "locaton"), @r#"
        error: line 43, column 1: unknown key "locaton" in [[front.static]]
        hint: did you mean "location"?
        "#);
    }

    #[test]
    fn missing_keys_are_named() {
        insta::assert_snapshot!(with("name = \"shop\"\n", ""), @r#"
        error: line 1, column 1: missing key "name"
        hint: add a line name = …, a string
        "#);
        insta::assert_snapshot!(with("command = \"queue {{ data.uploads }}\"\n", ""), @r#"
        error: line 22, column 1: missing key "command" in [[process]]
        hint: add a line command = …, a string
        "#);
        insta::assert_snapshot!(with("suite = \"bookworm\"\n", ""), @r#"
        error: line 5, column 1: missing key "suite" in [environment]
        hint: add a line suite = …, a string
        "#);
        insta::assert_snapshot!(with("http = \"/\", ", ""), @r#"
        error: line 19, column 9: "ready" in [[process]]: one of http, command and socket shows that a process serves
        hint: ready = { http = "/" }
        "#);
    }

    #[test]
    fn wrong_types_are_named() {
        insta::assert_snapshot!(with("\"shop\"", "5"), @r#"error: line 2, column 8: "name": must be a string, not a number"#);
        insta::assert_snapshot!(with("\"80\"", "80"), @r#"error: line 40, column 29: "listen" in [front]: must be a list of strings, not a number"#);
        insta::assert_snapshot!(with("generate = true", "generate = \"yes\""), @r#"error: line 37, column 12: "generate" in [[secret]]: must be true or false, not a string"#);
        insta::assert_snapshot!(with("[[job]]", "[job]"), @r#"
        error: line 26, column 1: "job": must be a list of tables, not a table
        hint: write it with two brackets: [[job]]
        "#);
        insta::assert_snapshot!(with("[environment]", "[[environment]]"), @r#"error: line 5, column 1: "environment": must be a table, not a list"#);
        insta::assert_snapshot!(with("{ within = 5 }", "\"TERM\""), @r#"error: line 20, column 8: "stop" in [[process]]: must be a table, not a string"#);
    }

    #[test]
    fn bad_values_are_named() {
        insta::assert_snapshot!(with("\"shop\"", "\"Shop\""), @r#"error: line 2, column 8: "name": "Shop" is not an application's name: [a-z][a-z0-9-]{0,23}"#);
        insta::assert_snapshot!(with("\"shop\"", "\"env-shop\""), @r#"error: line 2, column 8: "name": "env-shop" begins with "env-", as only farmctl's own volumes do"#);
        insta::assert_snapshot!(with("1.4.2", "1.4-2"), @r#"error: line 3, column 11: "version": "1.4-2" is not a version: [0-9A-Za-z.]{1,24}"#);
        insta::assert_snapshot!(with("\"HUP\"", "\"SIGHUP\""), @r#"error: line 18, column 10: "reload" in [[process]]: "SIGHUP" is not a way to reload; it is "restart", "command", "rolling", "replace" or one of the signals HUP, INT, QUIT, TERM, USR1, USR2, WINCH"#);
        insta::assert_snapshot!(with("\"start\"", "\"boot\""), @r#"error: line 29, column 8: "when" in [[job]]: "boot" is not one of "bake", "start", "upgrade""#);
        insta::assert_snapshot!(with("\"1m\"", "\"a while\""), @r#"error: line 19, column 32: "within" in ready = { … } of [[process]]: "a while" is not a duration; durations are written "30s", "5m", "1h" or 30"#);
        insta::assert_snapshot!(with("\"queue\"", "\"web\""), @r#"error: line 23, column 8: "name" in [[process]]: "web" is the name of an earlier one"#);
        insta::assert_snapshot!(with("\"app\"", "\"../app\""), @r#"error: line 12, column 8: "from" in [[copy]]: ../app must not climb out of the profile's directory"#);
        insta::assert_snapshot!(with("\"/srv//shop/app/\"", "\"srv\""), @r#"error: line 13, column 6: "to" in [[copy]]: must be an absolute path, not "srv""#);
        insta::assert_snapshot!(with("\"/srv/shop/uploads\"", "\"/srv\""), @r#"error: line 33, column 8: "path" in [[data]]: /srv would hide the virtualenv"#);
        insta::assert_snapshot!(with("\"[::1]:8080\"", "\"localhost:80\""), @r#"
        error: line 40, column 35: "listen" in [front]: "localhost:80" is neither PORT nor ADDRESS:PORT
        hint: listen = ["127.0.0.1:8080"]
        "#);
        insta::assert_snapshot!(with("[front]", "[front]\nprocess = \"wob\""), @r#"
        error: line 40, column 11: "process" in [front]: there is no process "wob"
        hint: the processes are web, queue
        "#);
        insta::assert_snapshot!(with("[front]", "[front]\nredirect-from = [\"www.shop.example\"]"), @r#"
        error: line 40, column 17: "redirect-from" in [front]: there is no name to send visitors to
        hint: server-names = ["shop.example"]
        "#);
        insta::assert_snapshot!(with("[front]", "[front]\nserver-names = [\"a\"]\nredirect-from = [\"b\", \"a\"]"), @r#"error: line 41, column 23: "redirect-from" in [front]: it is one of server-names already"#);
        insta::assert_snapshot!(with("[front]", "[front]\nerror-page = \"/srv/shop/uploads/a.html\""), @r#"
        error: line 40, column 14: "error-page" in [front]: lies in one of the [[data]] directories
        hint: the release has it: put it there with [[copy]] or [[file]]
        "#);
        insta::assert_snapshot!(with("\"SECRET_KEY\"", "\"secret-key\""), @r#"error: line 36, column 8: "name" in [[secret]]: "secret-key" is not a secret's name: [A-Z][A-Z0-9_]{0,63}"#);
        insta::assert_snapshot!(with("name = \"migrate\"", "environment = { A-B = \"\" }\nname = \"migrate\""), @r#"error: line 27, column 23: "environment" in [[job]]: "A-B" is not the name of an environment variable"#);
    }

    #[test]
    fn commands_are_checked() {
        insta::assert_snapshot!(with("data.uploads", "data.upload"), @r#"
        error: line 24, column 11: "command" in [[process]]: template line 1, column 10: there is no value "data.upload"
        hint: did you mean "data.uploads"?
        "#);
        insta::assert_snapshot!(with("queue {{ data.uploads }}", "A=1 queue"), @r#"
        error: line 24, column 11: "command" in [[process]]: begins with an assignment, not with a program
        hint: put A=1 into the environment of the process
        "#);
        insta::assert_snapshot!(with("queue {{ data.uploads }}", "queue 'it"), @r#"error: line 24, column 11: "command" in [[process]]: a quote is not closed: '"#);
        insta::assert_snapshot!(with("queue {{ data.uploads }}", "queue &"), @r#"error: line 24, column 11: "command" in [[process]]: must stay in the foreground: a trailing & sends it away"#);
        insta::assert_snapshot!(with("queue {{ data.uploads }}", "queue {{ data"), @r#"error: line 24, column 11: "command" in [[process]]: template line 1, column 10: syntax error: unexpected end of input, expected end of variable block"#);
    }

    #[test]
    fn what_is_beside_a_process_goes_together() {
        let reload = |with_what: &str| with("\"HUP\"", with_what);
        insta::assert_snapshot!(reload("\"command\""), @r#"
        error: line 18, column 10: "reload" in [[process]]: there is no reload-command
        hint: reload-command = "nginx -s reload"
        "#);
        insta::assert_snapshot!(reload("\"rolling\"\ndrain = \"x\""), @r#"
        error: line 18, column 10: "reload" in [[process]]: there is no admit
        hint: admit = "/srv/shop/balance ready web"
        "#);
        insta::assert_snapshot!(reload("\"HUP\"\nadmit = \"x\""), @r#"
        error: line 19, column 9: "admit" in [[process]]: it is never run
        hint: reload = "rolling" runs it
        "#);
        insta::assert_snapshot!(reload("\"replace\""), @r#"
        error: line 18, column 10: "reload" in [[process]]: the new one would listen where the old one does
        hint: reload = "restart"
        "#);
        let listening = "queue {{ listen.queue }}\"\nreload = \"replace\"";
        insta::assert_snapshot!(with("queue {{ data.uploads }}\"", listening), @r#"
        error: line 25, column 10: "reload" in [[process]]: the new one would listen where the old one does
        hint: reload = "restart"
        "#);
        let raw = "queue ${listen_queue#unix:}\"\nreload = \"replace\"";
        assert_eq!(
            with("queue {{ data.uploads }}\"", raw),
            with("queue {{ data.uploads }}\"", listening)
        );
        let other = "queue {{ listen.web }}\"\nreload = \"replace\"";
        insta::assert_snapshot!(with("queue {{ data.uploads }}\"", other), @r#"
        error: line 25, column 10: "reload" in [[process]]: nothing shows when the new one may take the old one's place
        hint: ready = { command = "…" } asks the process with the number $pid
        "#);
        let ready = |instead: &str| with("http = \"/\"", instead);
        insta::assert_snapshot!(ready("http = \"/\", socket = true"), @r#"
        error: line 19, column 9: "ready" in [[process]]: one of http, command and socket shows that a process serves
        hint: ready = { http = "/" }
        "#);
        insta::assert_snapshot!(ready("socket = true, body = \"x\""), @r#"error: line 19, column 33: "body" in ready = { … } of [[process]]: only an answer to http has one"#);
    }

    #[test]
    fn files_have_one_source() {
        insta::assert_snapshot!(with("[[data]]", "[[file]]\npath = \"/etc/x\"\n[[data]]"), @r#"
        error: line 32, column 8: "path" in [[file]]: a file needs a template or a content
        hint: template = "FILE.j2"
        "#);
        insta::assert_snapshot!(with("[[data]]", "[[file]]\npath = \"/etc/x\"\ntemplate = \"x\"\ncontent = \"\"\n[[data]]"), @r#"error: line 34, column 11: "content" in [[file]]: a file has either a template or a content, not both"#);
        insta::assert_snapshot!(with("[[data]]", "[[file]]\npath = \"/etc/x\"\nmode = \"4755\"\ncontent = \"\"\n[[data]]"), @r#"
        error: line 33, column 8: "mode" in [[file]]: "4755" is not a file's permissions in octal
        hint: mode = "0644"
        "#);
    }

    #[test]
    fn projects_are_pinned() {
        let project = |project: &str| with("[python]", &format!("[python]\nproject = {project:?}"));
        insta::assert_snapshot!(project("git+https://example.org/shop.git@main"), @r#"
        error: line 9, column 11: "project" in [python]: "git+https://example.org/shop.git@main" is not pinned to a commit
        hint: append @ and the commit's whole hash: git+https://…/project.git@COMMIT
        "#);
        insta::assert_snapshot!(project("https://example.org/shop.tar.gz"), @r#"error: line 9, column 11: "project" in [python]: "https://example.org/shop.tar.gz" is neither a path nor a URL beginning with git+"#);
        let pinned = "[python]\nproject = \"git+https://git@example.org/shop.git@0123456789012345678901234567890123456789#subdirectory=x\"";
        parse(&SHOP.replace("[python]", pinned)).expect("it is pinned");
    }

    #[test]
    fn a_newer_schema_is_refused_before_its_keys() {
        insta::assert_snapshot!(with("schema = 1", "schema = 2\nnovelty = true"), @r#"
        error: line 1, column 10: the profile has schema 2, and this farmctl reads schema 1
        hint: use the farmctl the profile was written for, or a newer one
        "#);
        insta::assert_snapshot!(with("schema = 1", "schema = 0"), @r#"
        error: line 1, column 10: "schema": there is no such schema
        hint: schema = 1
        "#);
    }

    #[test]
    fn what_is_not_toml_is_refused_with_its_place() {
        insta::assert_snapshot!(with("version =", "version"), @"error: line 3, column 9: key with no value, expected `=`");
        insta::assert_snapshot!(with("name = \"queue\"", "name = \"a\"\nname = \"b\""), @"error: line 24, column 1: duplicate key");
        insta::assert_snapshot!(with("\"1.4.2\"", "\"1.4.2"), @r#"error: line 3, column 17: invalid basic string, expected `"`"#);
    }

    #[test]
    fn shipped_profiles_are_right_and_share_a_bootstrap() {
        let hello = parse(include_str!("../../profiles/hello/profile.toml"));
        let mezzanine = parse(include_str!("../../profiles/mezzanine/profile.toml"));
        let hello = hello.unwrap_or_else(|error| panic!("hello: {}", render(&error)));
        let mezzanine = mezzanine.unwrap_or_else(|error| panic!("mezzanine: {}", render(&error)));
        assert_eq!(hello.environment, mezzanine.environment);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\n]{0,200}", at in 0..SHOP.len()) {
            drop(parse(&text));
            let (before, after) = SHOP.split_at(at);
            drop(parse(&format!("{before}{text}{after}")));
        }

        #[test]
        fn cut_profiles_do_not_panic(from in 0..SHOP.len(), length in 0..40usize) {
            let to = (from + length).min(SHOP.len());
            drop(parse(&format!("{}{}", &SHOP[..from], &SHOP[to..])));
        }
    }

    #[test]
    fn a_front_leads_to_a_process_or_to_files_alone() {
        let parse = |process: &str, location: &str| {
            super::parse(&format!(
                "schema = 1\nname = \"shop\"\nversion = \"1\"\n[environment]\nsuite = \"trixie\"\n\
                 {process}[front]\nlisten = [\"80\"]\n[[front.static]]\n\
                 location = \"{location}\"\npath = \"/srv/shop/files\"\n"
            ))
            .map_err(|error| crate::error::render(&error))
        };
        let process = "[[process]]\nname = \"web\"\ncommand = \"server\"\n";
        parse("", "/").expect("it is a site of files");
        parse(process, "/static/").expect("it has both");
        insta::assert_snapshot!(parse("", "/static/").expect_err("nothing answers"), @r#"
        error: line 6, column 1: "front": there is no process requests could go to
        hint: a site of files alone has a [[front.static]] with location = "/"
        "#);
        insta::assert_snapshot!(parse(process, "/").expect_err("the process gets none"), @r#"
        error: line 12, column 12: "location" in [[front.static]]: "/" leaves no request to a process
        hint: it is for sites without processes
        "#);
    }

    #[test]
    fn pages_to_warm_up_are_paths_of_a_process() {
        let parse = |process: &str, page: &str| {
            super::parse(&format!(
                "schema = 1\nname = \"shop\"\nversion = \"1\"\n[environment]\nsuite = \"trixie\"\n\
                 {process}[front]\nlisten = [\"80\"]\nwarm-up = [\"/\", \"{page}\"]\n\
                 [[front.static]]\nlocation = \"/{}\"\npath = \"/srv/shop/files\"\n",
                if process.is_empty() { "" } else { "static/" }
            ))
            .map_err(|error| crate::error::render(&error))
        };
        let process = "[[process]]\nname = \"web\"\ncommand = \"server\"\n";
        let profile = parse(process, "/search?q=a").expect("both are paths");
        assert_eq!(profile.front.expect("it has one").warm_up, ["/", "/search?q=a"]);
        insta::assert_snapshot!(parse(process, "search").expect_err("it is no path"), @r#"
        error: line 11, column 17: "warm-up" in [front]: "search" is not a path of a URL
        hint: warm-up = ["/"]
        "#);
        insta::assert_snapshot!(parse("", "/").expect_err("nobody answers"), @r#"
        error: line 8, column 12: "warm-up" in [front]: there is no process that could be asked
        hint: leave it out: files need no warming up
        "#);
    }
}
