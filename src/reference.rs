//! Every key of a profile: what it is, and what it means when it is left out.
//!
//! One table says it. Parsing checks keys and types against it, the reference in the
//! README is rendered from it, and a test holds it against the structs.

use std::fmt::Write as _;

/// One key of a profile.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where it stands: `""` for the top of the file, else the dotted name of its table.
    pub section: &'static str,
    /// The key.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is when left out.
    pub default: Absent,
    /// What it does, in Markdown.
    pub meaning: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Number,
    /// `true` or `false`.
    Switch,
    /// A string.
    Text,
    /// A list of strings.
    Texts,
    /// A table of strings.
    TextTable,
    /// A string such as `"30s"`, or a number of seconds.
    Duration,
    /// A table, a section of its own.
    Table,
    /// A list of tables, each a section of its own.
    Tables,
}

/// What a key is when it is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It must not be left out.
    Required,
    /// Nothing: whatever it stands for is not there.
    Nothing,
    /// This value, as TOML.
    Value(&'static str),
    /// Something worked out; in words.
    Words(&'static str),
}

impl Kind {
    /// The kind in words: `must be {}`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Number => "a number",
            Self::Switch => "true or false",
            Self::Text => "a string",
            Self::Texts => "a list of strings",
            Self::TextTable => "a table of strings",
            Self::Duration => "a duration",
            Self::Table => "a table",
            Self::Tables => "a list of tables",
        }
    }

    const fn column(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Switch => "true, false",
            Self::Text => "string",
            Self::Texts => "strings",
            Self::TextTable => "table of strings",
            Self::Duration => "duration",
            Self::Table => "table",
            Self::Tables => "tables",
        }
    }
}

impl Absent {
    fn column(self) -> String {
        match self {
            Self::Required => "**required**".to_owned(),
            Self::Nothing => "—".to_owned(),
            Self::Value(value) => format!("`{value}`"),
            Self::Words(words) => words.to_owned(),
        }
    }
}

/// A table of a profile.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Dotted name; `""` for the top of the file.
    pub name: &'static str,
    /// As it is written in a profile.
    pub written: &'static str,
    /// What it is for, in Markdown.
    pub purpose: &'static str,
}

/// All tables of a profile, in the order of the reference.
pub const SECTIONS: &[Section] = &[
    Section { name: "", written: "the top of the file", purpose: "The application." },
    Section {
        name: "environment",
        written: "[environment]",
        purpose: "The Debian environment `farmctl bootstrap` makes. Profiles whose environments are written alike share one bootstrap.",
    },
    Section {
        name: "storage",
        written: "[storage]",
        purpose: "How large volumes and snapshots are, on storage where those have a size. Sizes are written as in LVM: `\"4G\"`, `\"1536M\"`.",
    },
    Section {
        name: "schroot",
        written: "[schroot]",
        purpose: "Users of the host who may use the chroots. Each of them can become root of the host this way: left out, only root may.",
    },
    Section {
        name: "build",
        written: "[build]",
        purpose: "What a bake needs and the tarball must not contain.",
    },
    Section {
        name: "python",
        written: "[python]",
        purpose: "The virtualenv and what goes into it.",
    },
    Section {
        name: "copy",
        written: "[[copy]]",
        purpose: "Files and directories copied into the environment as they are, owned by root.",
    },
    Section {
        name: "file",
        written: "[[file]]",
        purpose: "Configuration files rendered from Jinja templates: at bake with defaults, again in every session with its own values. One of `template` and `content` is needed.",
    },
    Section {
        name: "process",
        written: "[[process]]",
        purpose: "Long-running commands, started in this order.",
    },
    Section {
        name: "process.ready",
        written: "ready = { … } of [[process]]",
        purpose: "What shows that a process serves: one of `http`, `command` and `socket`. Without it, that it is still there after a second.",
    },
    Section {
        name: "process.stop",
        written: "stop = { … } of [[process]]",
        purpose: "How a process is stopped.",
    },
    Section {
        name: "job",
        written: "[[job]]",
        purpose: "Commands that run once, in this order. The first that fails stops the bake or the start.",
    },
    Section {
        name: "data",
        written: "[[data]]",
        purpose: "Directories on the node that outlive releases, bind-mounted into every session.",
    },
    Section {
        name: "secret",
        written: "[[secret]]",
        purpose: "Values that never enter a tarball. They come from `/etc/farmctl/apps/NAME.env` on the node; processes read them from `/run/project/secrets/NAME`.",
    },
    Section {
        name: "front",
        written: "[front]",
        purpose: "The nginx vhost that leads to the application.",
    },
    Section {
        name: "front.tls",
        written: "[front.tls]",
        purpose: "HTTPS. The certificate is the node's: `/etc/farmctl/tls/NAME.crt` and `NAME.key`, or one that farmctl makes and signs itself while there is none.",
    },
    Section {
        name: "front.static",
        written: "[[front.static]]",
        purpose: "Locations nginx serves itself.",
    },
];

use Absent::{Nothing, Required, Value, Words};
use Kind::{Duration, Number, Switch, Table, Tables, Text, TextTable, Texts};

const fn key(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: Absent,
    meaning: &'static str,
) -> Key {
    Key { section, name, kind, default, meaning }
}

/// All keys of a profile, in the order of the reference.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("", "schema", Number, Required, "Version of this format: `1`."),
    key("", "name", Text, Required, "Name of the application: `[a-z][a-z0-9-]{0,23}`, not beginning with `env-` or `stage-`."),
    key("", "version", Text, Required, "Version of the application: `[0-9A-Za-z.]{1,24}`; `--set-version` overrides it."),
    key("", "description", Text, Nothing, "One line for people."),
    key("", "environment", Table, Required, "See `[environment]`."),
    key("", "storage", Table, Nothing, "See `[storage]`."),
    key("", "schroot", Table, Nothing, "See `[schroot]`."),
    key("", "build", Table, Nothing, "See `[build]`."),
    key("", "python", Table, Nothing, "See `[python]`. Without it no virtualenv is made."),
    key("", "copy", Tables, Nothing, "See `[[copy]]`."),
    key("", "file", Tables, Nothing, "See `[[file]]`."),
    key("", "process", Tables, Nothing, "See `[[process]]`."),
    key("", "job", Tables, Nothing, "See `[[job]]`."),
    key("", "data", Tables, Nothing, "See `[[data]]`."),
    key("", "secret", Tables, Nothing, "See `[[secret]]`."),
    key("", "front", Table, Nothing, "See `[front]`. Without it nginx is left alone."),

    key("environment", "suite", Text, Required, "Debian suite, by code name: `bookworm`, `trixie`."),
    key("environment", "mirror", Text, Words("the host's own, else debootstrap's"), "Debian mirror, a URL."),
    key("environment", "security-mirror", Text, Words("the host's own, else none"), "Mirror of the security suite, a URL."),
    key("environment", "components", Texts, Value("[\"main\"]"), "Archive components."),
    key("environment", "include", Texts, Value("[]"), "Packages debootstrap adds to its `minbase` set."),
    key("environment", "exclude", Texts, Value("[]"), "Packages debootstrap leaves out."),
    key("environment", "packages", Texts, Value("[]"), "Packages apt installs after the upgrade, from any of the sources; `NAME`, `NAME=VERSION` or `NAME/SUITE`."),
    key("environment", "debs", Texts, Value("[]"), "Local `.deb` files beneath the profile's directory, installed with apt."),
    key("environment", "apt-sources", Texts, Value("[]"), "More apt sources, each a deb822 stanza."),
    key("environment", "apt-preferences", Texts, Value("[]"), "Pins, each an apt_preferences(5) stanza."),
    key("environment", "locale", Text, Value("\"C.UTF-8\""), "Locale; for any but `C.UTF-8` the package `locales` is installed."),
    key("environment", "timezone", Text, Value("\"UTC\""), "Time zone, a name of the tz database."),
    key("environment", "user", Text, Value("\"app\""), "The unprivileged user the application runs as, made from `/etc/skel`."),

    key("storage", "volume-size", Text, Words("the node's"), "Size of a volume, at least; a release that needs more gets more."),
    key("storage", "snapshot-size", Text, Words("the node's, else the volume's"), "Room a session's classic LVM snapshot begins with; `farmctl tend` gives it more before it is full. Left out, it cannot run out."),

    key("schroot", "users", Texts, Value("[]"), "Users who may enter sessions and begin them."),
    key("schroot", "root-users", Texts, Value("[]"), "Users who may do so as root, without a password."),
    key("schroot", "source-root-users", Texts, Value("[]"), "Users who may change the environment as root, without a password."),

    key("build", "packages", Texts, Value("[]"), "Debian packages installed for the bake and purged before packing."),
    key("build", "before", Texts, Value("[]"), "Shell commands run as root in the copied project directory before requirements are installed."),

    key("python", "requirements", Text, Nothing, "Requirements file beneath the profile's directory."),
    key("python", "require-hashes", Switch, Value("true"), "Refuse requirements that are not pinned by hash, there or in `farmctl.lock`."),
    key("python", "project", Text, Nothing, "The project itself: a directory, wheel or sdist relative to the profile, or `git+URL@COMMIT`."),
    key("python", "virtualenv", Text, Value("\"/srv/NAME/venv\""), "Where the virtualenv lives."),
    key("python", "interpreter", Text, Value("\"python3\""), "The environment's interpreter the virtualenv is made with."),
    key("python", "installer", Text, Value("\"auto\""), "`auto` (uv where it can be had, else pip), `uv` or `pip`; the result is the same."),

    key("copy", "from", Text, Required, "File or directory beneath the profile's directory."),
    key("copy", "to", Text, Required, "Absolute path in the environment."),

    key("file", "path", Text, Required, "Absolute path in the environment."),
    key("file", "template", Text, Nothing, "Template file beneath the profile's directory."),
    key("file", "content", Text, Nothing, "The template itself."),
    key("file", "mode", Text, Value("\"0644\""), "Permissions, octal."),

    key("process", "name", Text, Required, "Name: `[a-z][a-z0-9-]{0,15}`."),
    key("process", "command", Text, Required, "The command, one simple command of sh with `{{ … }}` values. The virtualenv's `bin` comes first on `PATH`."),
    key("process", "directory", Text, Value("\"/\""), "Working directory."),
    key("process", "environment", TextTable, Value("{}"), "Environment variables of the command, taken literally."),
    key("process", "reload", Text, Value("\"restart\""), "How new code is taken up: a signal sent to the server (`HUP`, `USR1`, `USR2`, …), `restart`, `command`, `rolling`: one after the other behind a balancer, each drained, restarted and admitted again; or `replace`, for what takes its work from a queue: another is started beside it, and it is stopped once that one is ready, which `ready.command` says; no fixed pid file or name must be in its way."),
    key("process", "reload-command", Text, Nothing, "The command of `reload = \"command\"`, a line of sh like `command`: it returns when the server has taken the new code up, or begun to. It may take as long as `stop.within`."),
    key("process", "drain", Text, Nothing, "The command with which `reload = \"rolling\"` begins: it has the balancer send the process no more requests, and returns when the last one is answered. It may take as long as `stop.within`."),
    key("process", "admit", Text, Nothing, "The command with which `reload = \"rolling\"` ends, when the process is ready: it has the balancer send it requests again."),
    key("process", "check", Text, Nothing, "A command like `command` that checks new code before a reload; when it fails, nothing is reloaded."),
    key("process", "ready", Table, Nothing, "What shows that the process serves."),
    key("process", "stop", Table, Value("{ signal = \"TERM\", within = \"30s\" }"), "How the process is stopped."),

    key("process.ready", "http", Text, Nothing, "Path asked for by HTTP, as nginx asks for the first of the front's `server-names` that is one host's, or `localhost`; any status from 200 to 399 is ready."),
    key("process.ready", "body", Text, Nothing, "Text that the answer to `http` must have in it, in its first 64 KiB."),
    key("process.ready", "command", Text, Nothing, "A command that exits with 0 when the process serves, a line of sh like `command`; `$pid` is the number of the process, for one that asks this very one of two."),
    key("process.ready", "socket", Switch, Value("false"), "It serves when nginx may connect to `{{ listen.PROCESS }}`."),
    key("process.ready", "within", Duration, Value("\"30s\""), "How long it may take."),

    key("process.stop", "signal", Text, Value("\"TERM\""), "Signal that asks the process to end."),
    key("process.stop", "within", Duration, Value("\"30s\""), "How long it may take before SIGKILL."),

    key("job", "name", Text, Required, "Name, as of processes."),
    key("job", "command", Text, Required, "The command, a line of sh with `{{ … }}` values."),
    key("job", "when", Text, Required, "`bake`: as root while baking, its results are in the tarball. `start`: as the application's user in the session, before its processes start. `upgrade`: the same, but only on the way to this release by `farmctl upgrade`, while the one before serves."),
    key("job", "creates", Text, Nothing, "Skip the job when this path exists."),
    key("job", "directory", Text, Value("\"/\""), "Working directory."),
    key("job", "environment", TextTable, Value("{}"), "Environment variables of the command, taken literally."),

    key("data", "name", Text, Required, "Name, as of processes: the directory's name on the node."),
    key("data", "path", Text, Required, "Absolute path in the session."),

    key("secret", "name", Text, Required, "Name: `[A-Z][A-Z0-9_]{0,63}`."),
    key("secret", "generate", Switch, Value("false"), "Make a random value at install when the node has none."),

    key("front", "listen", Texts, Words("none, with `[front.tls]`"), "Where nginx listens: `\"PORT\"` or `\"ADDRESS:PORT\"`."),
    key("front", "server-names", Texts, Words("any"), "Host names."),
    key("front", "redirect-from", Texts, Value("[]"), "Other host names: who asks by one is sent to the same path at the first of `server-names` that is one host's, by HTTPS if there is `[front.tls]`."),
    key("front", "process", Text, Words("the first process"), "The process requests go to."),
    key("front", "static", Tables, Nothing, "See `[[front.static]]`."),
    key("front", "max-body-mib", Number, Value("16"), "Largest request body, in MiB."),
    key("front", "timeout", Duration, Value("\"60s\""), "How long the process may be silent before its answer, and in it."),
    key("front", "warm-up", Texts, Value("[]"), "Paths that the process is asked for before an upgrade leads requests to it. An answer of 500 or more, or one that is broken off, ends the upgrade; the release before serves on."),
    key("front", "error-page", Text, Words("farmctl's own"), "Path in the release of the page that nginx shows, with status 503, while the application is stopped or nobody answers, and with 504 after `timeout`. It is exported at install and is all that nginx shows then: what it needs must be in it."),
    key("front", "tls", Table, Nothing, "See `[front.tls]`."),

    key("front.tls", "listen", Texts, Required, "Where nginx speaks TLS: `\"PORT\"` or `\"ADDRESS:PORT\"`."),
    key("front.tls", "redirect", Switch, Value("true"), "Whether who comes by `[front] listen` is sent to the first of these."),

    key("front.static", "location", Text, Required, "URL prefix: `/static/`; `/`, for all of a site without processes."),
    key("front.static", "path", Text, Required, "Directory in the release, exported at install, or in one of the `[[data]]` directories."),
];

/// The keys of a section; none when there is no such section.
pub fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section)
}

/// The section of that dotted name.
#[must_use]
pub fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

/// The profile reference: a table for each section.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::new();
    for section in SECTIONS {
        let heading = match section.name {
            "" => "The top of the file".to_owned(),
            "process.ready" | "process.stop" => {
                let (table, of) =
                    section.written.split_once(" of ").unwrap_or((section.written, ""));
                format!("`{table}` of `{of}`")
            }
            _ => format!("`{}`", section.written),
        };
        let purpose = section.purpose;
        let _ = write!(page, "#### {heading}\n\n{purpose}\n\n");
        page.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for key in keys_of(section.name) {
            let Key { name, kind, default, meaning, .. } = key;
            let meaning = meaning.replace('|', "\\|");
            let _ = writeln!(
                page,
                "| `{name}` | {} | {} | {meaning} |",
                kind.column(),
                default.column()
            );
        }
        page.push('\n');
    }
    page.push_str(VALUES);
    page
}

/// What templates may use; [`crate::template::Values`] provides it.
const VALUES: &str = "\
#### Values in `{{ … }}`

Commands and files may use `name`, `version`, `user`, `home`, `virtualenv`, `workers` (2 × cores + 1, \
worked out when the process starts), `listen.PROCESS` (where a process listens: `unix:PATH` or \
`ADDRESS:PORT`) and `data.NAME` (the path of a `[[data]]` directory). A `-` in a name is written `_`: \
`{{ listen.web_2 }}`. Anything else is an error. In commands `workers` and `listen.PROCESS` become shell \
variables: do not put them into single quotes.
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value as Json;

    use super::*;
    use crate::profile::{
        Build, Copied, DataDirectory, Environment, Front, Grants, Installer, Job, Process, Profile,
        Python, Ready, Reload, Rendered, Seconds, Secret, Signal, StaticFiles, Stop, Tls, Volumes,
        When,
    };
    use crate::size::Size;

    /// Every field has a value, and every field is written out: a new one does not
    /// compile until it stands here.
    fn populated() -> Profile {
        let text = || "x".to_owned();
        let texts = || vec![text()];
        let table = || [(text(), text())].into();
        Profile {
            schema: 1,
            name: text(),
            version: text(),
            description: text(),
            environment: Environment {
                suite: text(),
                mirror: Some(text()),
                security_mirror: Some(text()),
                components: texts(),
                include: texts(),
                exclude: texts(),
                packages: texts(),
                debs: vec!["x".into()],
                apt_sources: texts(),
                apt_preferences: texts(),
                locale: text(),
                timezone: text(),
                user: text(),
            },
            storage: Volumes {
                volume_size: Some(Size::of_mib(1)),
                snapshot_size: Some(Size::of_mib(1)),
            },
            schroot: Grants { users: texts(), root_users: texts(), source_root_users: texts() },
            build: Build { packages: texts(), before: texts() },
            python: Some(Python {
                requirements: Some("x".into()),
                require_hashes: true,
                project: Some(text()),
                virtualenv: Some("x".into()),
                interpreter: text(),
                installer: Installer::Uv,
            }),
            copies: vec![Copied { from: "x".into(), to: "x".into() }],
            files: vec![Rendered {
                path: "x".into(),
                template: Some("x".into()),
                content: Some(text()),
                mode: text(),
            }],
            processes: vec![Process {
                name: text(),
                command: text(),
                directory: "x".into(),
                environment: table(),
                reload: Reload::Signal(Signal::Hup),
                reload_command: Some(text()),
                drain: Some(text()),
                admit: Some(text()),
                check: Some(text()),
                ready: Some(Ready {
                    http: Some(text()),
                    body: Some(text()),
                    command: Some(text()),
                    socket: true,
                    within: Seconds(1),
                }),
                stop: Stop { signal: Signal::Term, within: Seconds(1) },
            }],
            jobs: vec![Job {
                name: text(),
                command: text(),
                when: When::Bake,
                creates: Some("x".into()),
                directory: "x".into(),
                environment: table(),
            }],
            data: vec![DataDirectory { name: text(), path: "x".into() }],
            secrets: vec![Secret { name: text(), generate: true }],
            front: Some(Front {
                listen: texts(),
                server_names: texts(),
                redirect_from: texts(),
                process: Some(text()),
                statics: vec![StaticFiles { location: text(), path: "x".into() }],
                max_body_mib: 1,
                timeout: Seconds(1),
                warm_up: texts(),
                error_page: Some("x".into()),
                tls: Some(Tls { listen: texts(), redirect: true }),
            }),
        }
    }

    fn kind_of(value: &Json, section: &str) -> Kind {
        match value {
            Json::Number(_) => Number,
            Json::Bool(_) => Switch,
            Json::String(text) if text == "1s" => Duration,
            Json::String(_) => Text,
            Json::Array(items) if items.iter().all(Json::is_object) => Tables,
            Json::Array(_) => Texts,
            Json::Object(_) if super::section(section).is_none() => TextTable,
            Json::Object(_) => Table,
            Json::Null => unreachable!("every field has a value"),
        }
    }

    fn collect(section: &str, value: &Json, found: &mut BTreeSet<(String, String, &'static str)>) {
        match value {
            Json::Object(table) => {
                for (key, value) in table {
                    let below =
                        if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
                    let kind = kind_of(value, &below);
                    found.insert((section.to_owned(), key.clone(), kind.name()));
                    if kind == Table || kind == Tables {
                        collect(&below, value, found);
                    }
                }
            }
            Json::Array(items) => items.iter().for_each(|item| collect(section, item, found)),
            _ => {}
        }
    }

    #[test]
    fn the_table_and_the_structs_have_the_same_keys() {
        let mut structs = BTreeSet::new();
        let json = serde_json::to_value(populated()).expect("profiles serialise");
        collect("", &json, &mut structs);
        let table: BTreeSet<_> = KEYS
            .iter()
            .map(|key| (key.section.to_owned(), key.name.to_owned(), key.kind.name()))
            .collect();
        assert_eq!(table, structs);
        assert_eq!(table.len(), KEYS.len(), "a key stands twice in the table");
    }

    #[test]
    fn every_section_is_reached_by_a_key() {
        for section in SECTIONS {
            let (parent, name) = section.name.rsplit_once('.').unwrap_or(("", section.name));
            assert!(
                name.is_empty() || keys_of(parent).any(|key| key.name == name),
                "no key leads to {}",
                section.written
            );
            assert!(keys_of(section.name).next().is_some(), "{} has no keys", section.written);
        }
    }

    #[test]
    fn defaults_in_the_table_are_those_of_the_code() {
        // A value left out and the table's value written out must mean the same.
        let required = |section: &str| -> String {
            keys_of(section)
                .filter(|key| key.default == Required)
                .map(|key| match (key.section, key.name) {
                    (_, "schema") => "schema = 1\n".to_owned(),
                    (_, "environment") => String::new(),
                    (_, "when") => "when = \"bake\"\n".to_owned(),
                    (_, "location" | "http") => format!("{} = \"/x\"\n", key.name),
                    (_, "to" | "path") => format!("{} = \"/srv/{section}\"\n", key.name),
                    (_, "listen") => "listen = [\"80\"]\n".to_owned(),
                    ("secret", "name") => "name = \"X\"\n".to_owned(),
                    _ => format!("{} = \"x\"\n", key.name),
                })
                .collect()
        };
        let profile = |written: &dyn Fn(&str) -> String| -> Profile {
            let mut text = format!("{}{}", required(""), written(""));
            for (section, header) in SECTIONS.iter().skip(1).map(|s| (s.name, s.written)) {
                let header = match section {
                    "process.ready" => "[process.ready]",
                    "process.stop" => "[process.stop]",
                    _ => header,
                };
                let extra = match section {
                    "file" => "content = \"\"\n",
                    "process.ready" => "http = \"/\"\n",
                    _ => "",
                };
                text += &format!("{header}\n{}{extra}{}", required(section), written(section));
            }
            crate::profile::parse(&text).unwrap_or_else(|error| {
                panic!("{}\n{text}", crate::error::render(&error));
            })
        };
        let bare = profile(&|_| String::new());
        let full = profile(&|section| {
            keys_of(section)
                .filter_map(|key| match (key.default, key.kind) {
                    (Value(_), Table) => None,
                    (Value(value), _) => {
                        Some(format!("{} = {}\n", key.name, value.replace("NAME", "x")))
                    }
                    _ => None,
                })
                .collect()
        });
        assert_eq!(bare.virtualenv(), full.virtualenv());
        let mut full = full;
        if let Some(python) = &mut full.python {
            python.virtualenv = None;
        }
        assert_eq!(bare, full);
    }

    #[test]
    fn the_reference_is_markdown_tables() {
        let page = markdown();
        assert!(page.contains("#### `[[front.static]]`\n"));
        assert!(page.contains("#### `stop = { … }` of `[[process]]`\n"));
        assert!(page.contains(
            "| `within` | duration | `\"30s\"` | How long it may take before SIGKILL. |\n"
        ));
        let columns = |row: &str| row.replace("\\|", "").matches('|').count();
        assert!(page.lines().filter(|line| line.starts_with('|')).all(|row| columns(row) == 5));
    }
}
