//! What the values of a profile must look like.
//!
//! Names and paths end up in shell text, in schroot's and nginx's files, in volume and
//! account names: every one is held to a set of letters that needs no quoting in any of
//! them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::command::{of_template, shell, shell_template, simple_command};
use super::name::{
    begins, check_name, check_version, digit, is_listen, is_package, lower, one_line, packages,
    secret_name, short_name, unique, variables,
};
use super::parse::{Place, Problem};
use super::path::{beneath, directory, inside};
use super::{
    Environment, Front, Grants, Job, Process, Profile, Python, Ready, Reload, Rendered, SCHEMA,
};
use crate::template;

pub(super) type Checked = Result<(), Problem>;

/// Rewrites absolute paths without doubled and trailing slashes and without `.`.
pub(super) fn normalise(profile: &mut Profile) {
    let rewrite = |path: &mut PathBuf| {
        if path.is_absolute() {
            *path = path.components().collect();
        }
    };
    if let Some(path) = profile.python.as_mut().and_then(|python| python.virtualenv.as_mut()) {
        rewrite(path);
    }
    profile.copies.iter_mut().for_each(|copy| rewrite(&mut copy.to));
    profile.files.iter_mut().for_each(|file| rewrite(&mut file.path));
    profile.processes.iter_mut().for_each(|process| rewrite(&mut process.directory));
    for job in &mut profile.jobs {
        rewrite(&mut job.directory);
        job.creates.iter_mut().for_each(rewrite);
    }
    profile.data.iter_mut().for_each(|data| rewrite(&mut data.path));
    if let Some(front) = &mut profile.front {
        front.statics.iter_mut().for_each(|files| rewrite(&mut files.path));
        front.error_page.iter_mut().for_each(rewrite);
    }
}

/// Checks every value; the first that cannot be used is the problem.
pub(super) fn check(profile: &Profile) -> Checked {
    let top = Place::default();
    if profile.schema != SCHEMA {
        let message = format!("must be {SCHEMA}, not {}", profile.schema);
        return Err(Problem::at(top.key("schema"), message));
    }
    check_name(&top.key("name"), &profile.name)?;
    check_version(&top.key("version"), &profile.version)?;
    one_line(&top.key("description"), &profile.description)?;
    check_environment(&top.key("environment"), &profile.environment)?;

    check_schroot(&top.key("schroot"), &profile.schroot)?;
    let build = top.key("build");
    packages(&build.key("packages"), &profile.build.packages)?;
    for (index, command) in profile.build.before.iter().enumerate() {
        shell(&build.key("before").index(index), command)?;
    }
    if let Some(python) = &profile.python {
        check_python(&top.key("python"), python)?;
    }
    for (index, copy) in profile.copies.iter().enumerate() {
        let place = top.key("copy").index(index);
        beneath(&place.key("from"), &copy.from)?;
        inside(&place.key("to"), &copy.to)?;
    }

    let names = |key: &str, names: Vec<&str>, check: fn(&Place, &str) -> Checked| {
        unique(&top.key(key), &names, check)
    };
    names("process", profile.processes.iter().map(|p| p.name.as_str()).collect(), short_name)?;
    names("job", profile.jobs.iter().map(|job| job.name.as_str()).collect(), short_name)?;
    names("data", profile.data.iter().map(|data| data.name.as_str()).collect(), short_name)?;
    names("secret", profile.secrets.iter().map(|s| s.name.as_str()).collect(), secret_name)?;

    // Before the templates, which use their paths.
    check_data(&top.key("data"), profile)?;
    for (index, file) in profile.files.iter().enumerate() {
        check_file(&top.key("file").index(index), file, profile)?;
    }
    for (index, process) in profile.processes.iter().enumerate() {
        check_process(&top.key("process").index(index), process, profile)?;
    }
    for (index, job) in profile.jobs.iter().enumerate() {
        check_job(&top.key("job").index(index), job, profile)?;
    }
    match &profile.front {
        Some(front) => check_front(&top.key("front"), front, profile),
        None => Ok(()),
    }
}

/// Names as useradd(8) takes them: they stand in a list in schroot's file.
fn check_schroot(place: &Place, grants: &Grants) -> Checked {
    for (key, users) in [
        ("users", &grants.users),
        ("root-users", &grants.root_users),
        ("source-root-users", &grants.source_root_users),
    ] {
        for (index, user) in users.iter().enumerate() {
            let letters = |letter| lower(letter) || digit(letter) || "-_".contains(letter);
            let begins = begins(user, |letter| lower(letter) || letter == '_');
            if !(begins && user.len() <= 32 && user.chars().all(letters)) {
                let message = format!("{user:?} is not a user's name");
                return Err(Problem::at(place.key(key).index(index), message));
            }
        }
    }
    Ok(())
}

fn check_environment(place: &Place, environment: &Environment) -> Checked {
    let Environment { suite, components, include, exclude, debs, locale, timezone, user, .. } =
        environment;
    if !(begins(suite, lower)
        && suite.chars().all(|letter| lower(letter) || digit(letter) || letter == '-'))
    {
        let message = format!("{suite:?} is not the code name of a Debian suite");
        return Err(Problem::at(place.key("suite"), message).hint("suite = \"bookworm\""));
    }
    for (key, url) in
        [("mirror", &environment.mirror), ("security-mirror", &environment.security_mirror)]
    {
        let Some(url) = url else { continue };
        let schemes = ["http://", "https://", "file:/"];
        if !schemes.iter().any(|scheme| url.starts_with(scheme))
            || !url.chars().all(|c| c.is_ascii_graphic())
        {
            let message = format!("{url:?} is not a URL beginning with http, https or file");
            return Err(Problem::at(place.key(key), message));
        }
    }
    for (index, component) in components.iter().enumerate() {
        let letters = |letter| lower(letter) || digit(letter) || matches!(letter, '-' | '/');
        if !begins(component, lower) || !component.chars().all(letters) {
            let message = format!("{component:?} is not an archive component");
            return Err(Problem::at(place.key("components").index(index), message));
        }
    }
    if components.is_empty() {
        return Err(Problem::at(place.key("components"), "at least one is needed"));
    }
    for (key, names) in [("include", include), ("exclude", exclude)] {
        for (index, name) in names.iter().enumerate() {
            if !is_package(name) {
                let message = format!("{name:?} is not the name of a Debian package");
                return Err(Problem::at(place.key(key).index(index), message));
            }
        }
    }
    packages(&place.key("packages"), &environment.packages)?;
    for (index, deb) in debs.iter().enumerate() {
        let place = place.key("debs").index(index);
        beneath(&place, deb)?;
        if deb.extension().is_none_or(|extension| extension != "deb") {
            return Err(Problem::at(place, format!("{} is not a .deb file", deb.display())));
        }
    }
    for (key, stanzas) in [
        ("apt-sources", &environment.apt_sources),
        ("apt-preferences", &environment.apt_preferences),
    ] {
        for (index, stanza) in stanzas.iter().enumerate() {
            if !stanza.contains(':') || stanza.contains('\0') {
                let message = "must be a stanza of \"Key: value\" lines";
                return Err(Problem::at(place.key(key).index(index), message));
            }
        }
    }
    let locale_letters =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '@' | '-');
    if !begins(locale, |letter| letter.is_ascii_alphabetic()) || !locale.chars().all(locale_letters)
    {
        return Err(Problem::at(place.key("locale"), format!("{locale:?} is not a locale")));
    }
    let zone_letters =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '+' | '-' | '/');
    if !begins(timezone, |letter| letter.is_ascii_alphabetic())
        || !timezone.chars().all(zone_letters)
    {
        let message = format!("{timezone:?} is not a time zone");
        return Err(Problem::at(place.key("timezone"), message));
    }
    let user_letters = |letter| lower(letter) || digit(letter) || matches!(letter, '_' | '-');
    if user == "root" {
        return Err(Problem::at(place.key("user"), "an application does not run as root"));
    }
    if !begins(user, |letter| lower(letter) || letter == '_')
        || !user.chars().all(user_letters)
        || user.len() > 32
    {
        let message = format!("{user:?} is not a user's name: [a-z_][a-z0-9_-]{{0,31}}");
        return Err(Problem::at(place.key("user"), message));
    }
    Ok(())
}

fn check_python(place: &Place, python: &Python) -> Checked {
    if let Some(requirements) = &python.requirements {
        beneath(&place.key("requirements"), requirements)?;
    }
    if let Some(virtualenv) = &python.virtualenv {
        inside(&place.key("virtualenv"), virtualenv)?;
    }
    if let Some(project) = &python.project {
        check_project(&place.key("project"), project)?;
    }
    let letters =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '/' | '-');
    let interpreter = &python.interpreter;
    if interpreter.is_empty() || interpreter.starts_with('-') || !interpreter.chars().all(letters) {
        let message = format!("{interpreter:?} is not a program's name");
        return Err(
            Problem::at(place.key("interpreter"), message).hint("interpreter = \"python3\"")
        );
    }
    Ok(())
}

/// A path relative to the profile, or a Git URL pinned to a commit: a branch or a tag moves.
fn check_project(place: &Place, project: &str) -> Checked {
    let problem = |message: String| Err(Problem::at(place.clone(), message));
    if project.is_empty() || project.chars().any(char::is_control) {
        return problem("must be a path or a URL".to_owned());
    }
    if let Some(url) = project.strip_prefix("git+") {
        let url = url.split_once('#').map_or(url, |(url, _)| url);
        let pin = url.rsplit_once('@').map(|(_, commit)| commit);
        let pinned = pin.is_some_and(|commit| {
            matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if !url.contains("://") || url.contains(char::is_whitespace) {
            return problem(format!("{project:?} is not a URL"));
        }
        if !pinned {
            return Err(Problem::at(
                place.clone(),
                format!("{project:?} is not pinned to a commit"),
            )
            .hint("append @ and the commit's whole hash: git+https://…/project.git@COMMIT"));
        }
        return Ok(());
    }
    if project.contains("://") {
        let message = format!("{project:?} is neither a path nor a URL beginning with git+");
        return problem(message);
    }
    beneath(place, Path::new(project))
}

fn check_file(place: &Place, file: &Rendered, profile: &Profile) -> Checked {
    inside(&place.key("path"), &file.path)?;
    match (&file.template, &file.content) {
        (Some(path), None) => beneath(&place.key("template"), path)?,
        (None, Some(content)) => {
            let values = template::Values::of(profile);
            template::render(content, &values)
                .map_err(|fault| of_template(&place.key("content"), &fault))?;
        }
        (Some(_), Some(_)) => {
            let message = "a file has either a template or a content, not both";
            return Err(Problem::at(place.key("content"), message));
        }
        (None, None) => {
            let message = "a file needs a template or a content";
            return Err(Problem::at(place.key("path"), message).hint("template = \"FILE.j2\""));
        }
    }
    let octal = file.mode.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let bits = u32::from_str_radix(&file.mode, 8).ok();
    if !octal || !(3..=4).contains(&file.mode.len()) || bits.is_none_or(|bits| bits > 0o777) {
        let message = format!("{:?} is not a file's permissions in octal", file.mode);
        return Err(Problem::at(place.key("mode"), message).hint("mode = \"0644\""));
    }
    Ok(())
}

fn check_process(place: &Place, process: &Process, profile: &Profile) -> Checked {
    let command = place.key("command");
    simple_command(&command, &process.command)?;
    shell_template(&command, &process.command, profile)?;
    let beside = [
        ("reload-command", &process.reload_command, Reload::Command, "nginx -s reload"),
        ("drain", &process.drain, Reload::Rolling, "/srv/shop/balance drain web"),
        ("admit", &process.admit, Reload::Rolling, "/srv/shop/balance ready web"),
    ];
    for (key, command, way, example) in beside {
        match command {
            None if process.reload == way => {
                return Err(Problem::at(place.key("reload"), format!("there is no {key}"))
                    .hint(format!("{key} = \"{example}\"")));
            }
            Some(_) if process.reload != way => {
                return Err(Problem::at(place.key(key), "it is never run")
                    .hint(format!("reload = \"{way}\" runs it")));
            }
            Some(command) => {
                shell(&place.key(key), command)?;
                shell_template(&place.key(key), command, profile)?;
            }
            None => {}
        }
    }
    if process.reload == Reload::Replace {
        check_replaced(place, process, profile)?;
    }
    if let Some(check) = &process.check {
        shell(&place.key("check"), check)?;
        shell_template(&place.key("check"), check, profile)?;
    }
    directory(&place.key("directory"), &process.directory)?;
    variables(&place.key("environment"), &process.environment)?;
    match &process.ready {
        Some(ready) => check_ready(&place.key("ready"), ready, profile),
        None => Ok(()),
    }
}

/// While a process is replaced there are two of it.
fn check_replaced(place: &Place, process: &Process, profile: &Profile) -> Checked {
    let ready = process.ready.as_ref();
    let is_asked = ready.is_some_and(|ready| ready.command.is_none());
    if is_asked || profile.front_process() == Some(process) || listens(process, profile) {
        let message = "the new one would listen where the old one does";
        return Err(Problem::at(place.key("reload"), message).hint("reload = \"restart\""));
    }
    if ready.is_none() {
        let message = "nothing shows when the new one may take the old one's place";
        return Err(Problem::at(place.key("reload"), message)
            .hint("ready = { command = \"…\" } asks the process with the number $pid"));
    }
    Ok(())
}

/// Whether a command has the address of its process in it.
fn listens(process: &Process, profile: &Profile) -> bool {
    let variable = format!("listen_{}", template::key(&process.name));
    let command = template::render_shell(&process.command, profile).unwrap_or_default();
    let mut words = command.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.any(|word| word == variable)
}

fn url_path(place: &Place, path: &str, example: &str) -> Checked {
    if path.starts_with('/') && path.chars().all(|letter| letter.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Problem::at(place.clone(), format!("{path:?} is not a path of a URL")).hint(example))
}

fn check_ready(place: &Place, ready: &Ready, profile: &Profile) -> Checked {
    let Ready { http, body, command, socket, .. } = ready;
    let signs = [http.is_some(), command.is_some(), *socket];
    if signs.iter().filter(|said| **said).count() != 1 {
        let message = "one of http, command and socket shows that a process serves";
        return Err(Problem::at(place.clone(), message).hint("ready = { http = \"/\" }"));
    }
    match (http, body) {
        (None, Some(_)) => {
            return Err(Problem::at(place.key("body"), "only an answer to http has one"));
        }
        (Some(_), Some(body)) if body.is_empty() => {
            return Err(Problem::at(place.key("body"), "must not be empty"));
        }
        _ => {}
    }
    if let Some(http) = http {
        url_path(&place.key("http"), http, "ready = { http = \"/\" }")?;
    }
    if let Some(command) = command {
        shell(&place.key("command"), command)?;
        shell_template(&place.key("command"), command, profile)?;
    }
    Ok(())
}

fn check_job(place: &Place, job: &Job, profile: &Profile) -> Checked {
    let command = place.key("command");
    shell(&command, &job.command)?;
    shell_template(&command, &job.command, profile)?;
    directory(&place.key("directory"), &job.directory)?;
    variables(&place.key("environment"), &job.environment)?;
    match &job.creates {
        Some(path) => inside(&place.key("creates"), path),
        None => Ok(()),
    }
}

/// Data directories are mounted over what the release has there.
fn check_data(place: &Place, profile: &Profile) -> Checked {
    /// What farmctl or schroot mounts into a session itself.
    const TAKEN: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];
    for (index, data) in profile.data.iter().enumerate() {
        let path_place = place.index(index).key("path");
        let problem = |message: String| Err(Problem::at(path_place.clone(), message));
        inside(&path_place, &data.path)?;
        let path = data.path.display();
        if let Some(taken) = TAKEN.iter().find(|taken| data.path.starts_with(taken)) {
            return problem(format!("{path} lies in {taken}, which a session has for itself"));
        }
        if profile.virtualenv().starts_with(&data.path) {
            return problem(format!("{path} would hide the virtualenv"));
        }
        let copies = profile.copies.iter().map(|copy| &copy.to);
        let files = profile.files.iter().map(|file| &file.path);
        if let Some(hidden) = copies.chain(files).find(|hidden| hidden.starts_with(&data.path)) {
            return problem(format!("{path} would hide {}", hidden.display()));
        }
        for other in &profile.data[..index] {
            if data.path.starts_with(&other.path) || other.path.starts_with(&data.path) {
                return problem(format!("{path} and {} lie in each other", other.path.display()));
            }
        }
    }
    Ok(())
}

fn check_listen<'a>(place: &Place, listens: &'a [String], seen: &mut BTreeSet<&'a str>) -> Checked {
    if listens.is_empty() {
        return Err(Problem::at(place.clone(), "at least one is needed").hint("listen = [\"80\"]"));
    }
    for (index, listen) in listens.iter().enumerate() {
        let place = place.index(index);
        if !is_listen(listen) {
            let message = format!("{listen:?} is neither PORT nor ADDRESS:PORT");
            return Err(Problem::at(place, message).hint("listen = [\"127.0.0.1:8080\"]"));
        }
        if !seen.insert(listen) {
            return Err(Problem::at(place, format!("{listen:?} stands there twice")));
        }
    }
    Ok(())
}

fn check_hosts(place: &Place, names: &[String]) -> Checked {
    let letters =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_' | '*');
    match names.iter().position(|name| name.is_empty() || !name.chars().all(letters)) {
        None => Ok(()),
        Some(index) => {
            let message = format!("{:?} is not a host name", names[index]);
            Err(Problem::at(place.index(index), message))
        }
    }
}

fn check_front(place: &Place, front: &Front, profile: &Profile) -> Checked {
    let mut seen = BTreeSet::new();
    if front.tls.is_none() || !front.listen.is_empty() {
        check_listen(&place.key("listen"), &front.listen, &mut seen)?;
    }
    if let Some(tls) = &front.tls {
        check_listen(&place.key("tls").key("listen"), &tls.listen, &mut seen)?;
    }
    if front.timeout.0 == 0 {
        return Err(Problem::at(place.key("timeout"), "must be 1s or more"));
    }
    check_hosts(&place.key("server-names"), &front.server_names)?;
    let others = place.key("redirect-from");
    check_hosts(&others, &front.redirect_from)?;
    if !front.redirect_from.is_empty() && front.host().is_none() {
        return Err(Problem::at(others, "there is no name to send visitors to")
            .hint("server-names = [\"shop.example\"]"));
    }
    if let Some(index) = front.redirect_from.iter().position(|it| front.server_names.contains(it)) {
        return Err(Problem::at(others.index(index), "it is one of server-names already"));
    }
    for (index, path) in front.warm_up.iter().enumerate() {
        let place = place.key("warm-up").index(index);
        url_path(&place, path, "warm-up = [\"/\"]")?;
        if profile.processes.is_empty() {
            return Err(Problem::at(place, "there is no process that could be asked")
                .hint("leave it out: files need no warming up"));
        }
    }
    let everywhere = front.statics.iter().position(|files| files.location == "/");
    match (everywhere, profile.processes.is_empty()) {
        (None, true) => {
            return Err(Problem::at(place.clone(), "there is no process requests could go to")
                .hint("a site of files alone has a [[front.static]] with location = \"/\""));
        }
        (Some(index), false) => {
            let place = place.key("static").index(index).key("location");
            return Err(Problem::at(place, "\"/\" leaves no request to a process")
                .hint("it is for sites without processes"));
        }
        _ => {}
    }
    if let Some(name) = &front.process {
        if profile.process(name).is_none() {
            let names: Vec<_> =
                profile.processes.iter().map(|process| process.name.as_str()).collect();
            let message = format!("there is no process {name:?}");
            return Err(Problem::at(place.key("process"), message)
                .hint(format!("the processes are {}", names.join(", "))));
        }
    }
    let mut locations = BTreeSet::new();
    for (index, files) in front.statics.iter().enumerate() {
        let place = place.key("static").index(index);
        let location = &files.location;
        let letters = |letter: char| {
            letter.is_ascii_alphanumeric() || matches!(letter, '/' | '.' | '_' | '~' | '-')
        };
        if !location.starts_with('/') || !location.chars().all(letters) || location.contains("/../")
        {
            let message = format!("{location:?} is not a prefix of URLs");
            return Err(Problem::at(place.key("location"), message).hint("location = \"/static/\""));
        }
        if !locations.insert(location.trim_end_matches('/')) {
            return Err(Problem::at(
                place.key("location"),
                format!("{location:?} stands there twice"),
            ));
        }
        inside(&place.key("path"), &files.path)?;
    }
    if let Some(page) = &front.error_page {
        let place = place.key("error-page");
        inside(&place, page)?;
        if profile.data.iter().any(|data| page.starts_with(&data.path)) {
            return Err(Problem::at(place, "lies in one of the [[data]] directories")
                .hint("the release has it: put it there with [[copy]] or [[file]]"));
        }
    }
    if front.max_body_mib == 0 {
        return Err(Problem::at(place.key("max-body-mib"), "must be 1 or more"));
    }
    Ok(())
}
