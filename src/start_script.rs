//! The start script: `/usr/local/bin/project` inside an environment.
//!
//! Plain sh (dash) that works with schroot or chroot alone, no farmctl on the node. What
//! does not depend on the profile is in `start_script/project.sh`; this module renders
//! what does.
//!
//! - `run` takes the place of the server: the pid it writes, and the pid a supervisor
//!   sees, are the server's own. It needs no `/dev`, `/proc` or `/sys`.
//! - Where processes listen, and how many workers they have, comes from
//!   `/run/project/env` where farmctl wrote one, as lines of sh: `listen_web='unix:…'`,
//!   `workers=4`.
//! - Nothing the application's user may write is read or run by root.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::layout::PROJECT_RUN;
use crate::profile::{Job, Process, Profile, When};
use crate::template;

const BODY: &str = include_str!("start_script/project.sh");

/// The system's own PATH, as Debian's login.defs has it for root.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Renders the start script of a profile.
///
/// # Errors
///
/// When a command is not a template of values that exist.
pub fn render(profile: &Profile) -> anyhow::Result<String> {
    let head = format!(
        "# Starts and stops the processes of {} {} in their environment.\n\
         # Made by farmctl from the profile; needs schroot or chroot, and no farmctl.",
        profile.name, profile.version
    );
    let settings = settings(profile)?;
    Ok(BODY.replacen("#@ head", &head, 1).replacen("#@ settings\n", &settings, 1))
}

/// Everything the profile says: variables, and functions that choose by name.
fn settings(profile: &Profile) -> anyhow::Result<String> {
    let names = |names: Vec<&str>| quote(&names.join(" "));
    let processes = profile.processes.iter().map(|process| process.name.as_str()).collect();
    let jobs = profile.jobs.iter().map(|job| job.name.as_str()).collect();
    let start_jobs = profile.jobs_at(When::Start).map(|job| job.name.as_str()).collect();

    let mut text = format!(
        "run={PROJECT_RUN}\nuser={}\nprocesses={}\njobs={}\nstart_jobs={}\n\n",
        profile.environment.user,
        names(processes),
        names(jobs),
        names(start_jobs)
    );
    text += &surroundings(profile);
    text += &ways(profile);

    let mut cases = Vec::new();
    for process in &profile.processes {
        cases.push((process.name.as_str(), command_of(process, profile)?));
    }
    text += &choice(
        "exec_process",
        "Takes the place of this shell; more arguments go to the command.",
        Some("chosen=$1\n\tshift\n"),
        &cases,
    );
    let beside: [Beside; 5] = [
        ("reload_by_command", "Has a process take up its code.", "reload-command", |process| {
            process.reload_command.as_ref()
        }),
        ("drain_process", "Has a balancer send a process no more requests.", "drain", |process| {
            process.drain.as_ref()
        }),
        ("admit_process", "Has a balancer send a process requests again.", "admit", |process| {
            process.admit.as_ref()
        }),
        ("check_process", "Looks whether a process could take up its code.", "check", |process| {
            process.check.as_ref()
        }),
        ("ready_process", "Looks whether a process serves.", "ready.command", |process| {
            process.ready.as_ref()?.command.as_ref()
        }),
    ];
    for aside in beside {
        text += &asides(aside, profile)?;
    }
    let mut cases = Vec::new();
    for job in &profile.jobs {
        cases.push((job.name.as_str(), job_of(job, profile)?));
    }
    text += &choice("run_job", "", None, &cases);
    Ok(text)
}

/// What commands find around them. Only the user reads `/run/project/env`: the directory
/// is its own, and root must not run what it wrote there.
fn surroundings(profile: &Profile) -> String {
    let virtualenv = profile.virtualenv();
    let mut text = format!(
        "PATH={SYSTEM_PATH}\nexport PATH\n\n\
         surroundings() {{\n\
         \tPATH={}/bin:$PATH\n\
         \texport LANG={} PYTHONUNBUFFERED=1\n\
         \tunset LC_ALL PYTHONHOME PYTHONPATH\n",
        virtualenv.display(),
        profile.environment.locale,
    );
    for process in &profile.processes {
        let _ = writeln!(text, "\t{}=", listen_variable(process));
    }
    let _ = write!(
        text,
        "\tworkers=\n\
         \tif [ \"$(id -u)\" = 0 ]; then\n\
         \t\texport HOME=/root USER=root LOGNAME=root\n\
         \telse\n\
         \t\texport HOME={home} USER={user} LOGNAME={user}\n\
         \t\tif [ -r \"$run/env\" ]; then\n\
         \t\t\t# shellcheck source=/dev/null\n\
         \t\t\t. \"$run/env\"\n\
         \t\tfi\n\
         \tfi\n\
         \t: \"${{workers:=$((2 * $(nproc) + 1))}}\"\n\
         \tcase $workers in\n\
         \t0* | *[!0-9]*) fail \"workers must be a number, not '$workers'\" ;;\n\
         \tesac\n",
        home = profile.home().display(),
        user = profile.environment.user,
    );
    for (index, process) in profile.processes.iter().enumerate() {
        let default = template::default_listen(index);
        let _ = writeln!(text, "\t: \"${{{}:={default}}}\"", listen_variable(process));
    }
    text.push_str("}\n\n");
    text
}

/// How processes are stopped and reloaded, where they listen, and when jobs run.
fn ways(profile: &Profile) -> String {
    let processes = |case: fn(&Process) -> String| -> Vec<(&str, String)> {
        profile.processes.iter().map(|process| (process.name.as_str(), case(process))).collect()
    };
    let ways = processes(|process| {
        format!(
            "\t\tstop_signal={} stop_within={} ready_within={} reload={}",
            process.stop.signal,
            process.stop.within.0,
            process.ready.as_ref().map_or(0, |ready| ready.within.0),
            process.reload
        )
    });
    let listen =
        processes(|process| format!("\t\tprintf '%s\\n' \"${}\"", listen_variable(process)));
    let jobs = profile.jobs.iter().map(|job| {
        let when = match job.when {
            When::Bake => "bake",
            When::Start => "start",
            When::Upgrade => "upgrade",
        };
        let creates = job.creates.as_deref().unwrap_or(Path::new("")).display().to_string();
        (job.name.as_str(), format!("\t\twhen={when} creates={}", quote(&creates)))
    });
    choice("ways_of", "", None, &ways)
        + &choice("listen_of", "", None, &listen)
        + &choice("job_ways_of", "", None, &jobs.collect::<Vec<_>>())
}

fn listen_variable(process: &Process) -> String {
    format!("listen_{}", template::key(&process.name))
}

/// A function that does one thing for each name. Names without a case do nothing.
fn choice(name: &str, comment: &str, before: Option<&str>, cases: &[(&str, String)]) -> String {
    let mut text = String::new();
    if !comment.is_empty() {
        let _ = writeln!(text, "# {comment}");
    }
    let _ = writeln!(text, "{name}() {{");
    let subject = match before {
        Some(before) => {
            let _ = write!(text, "\t{before}");
            "$chosen"
        }
        None => "$1",
    };
    if cases.is_empty() {
        text.push_str("\t:\n");
    } else {
        let _ = writeln!(text, "\tcase {subject} in");
        for (name, lines) in cases {
            // Not indented: a line of the command may be the inside of a string.
            let _ = writeln!(text, "\t{name})\n{lines}\n\t\t;;");
        }
        text.push_str("\tesac\n");
    }
    text.push_str("}\n\n");
    text
}

fn command_of(process: &Process, profile: &Profile) -> anyhow::Result<String> {
    let command = rendered(&process.command, &format!("command of {}", process.name), profile)?;
    Ok(prepared(&process.directory, &process.environment)
        + &format!("{NUMBERS}\t\texec {} \"$@\"", command.trim()))
}

/// A function's name and comment, where the profile has its command, and that.
type Beside = (&'static str, &'static str, &'static str, fn(&Process) -> Option<&String>);

/// A function that chooses a command beside a process's own, each in the process's
/// surroundings and a shell of its own; `key` is where the profile has it.
fn asides((name, comment, key, of): Beside, profile: &Profile) -> anyhow::Result<String> {
    let mut cases = Vec::new();
    for process in &profile.processes {
        let Some(command) = of(process) else { continue };
        let command = rendered(command, &format!("{key} of {}", process.name), profile)?;
        let lines = format!(
            "\t\t(\n{}{NUMBERS}\t\t{}\n\t\t)",
            prepared(&process.directory, &process.environment),
            command.trim()
        );
        cases.push((process.name.as_str(), lines));
    }
    Ok(choice(name, comment, None, &cases))
}

fn job_of(job: &Job, profile: &Profile) -> anyhow::Result<String> {
    let command = rendered(&job.command, &format!("command of {}", job.name), profile)?;
    Ok(prepared(&job.directory, &job.environment) + &format!("{NUMBERS}\t\t{}", command.trim()))
}

/// `$workers` stands unquoted, so that `$(($workers * 2))` works; it is a number.
const NUMBERS: &str = "\t\t# shellcheck disable=SC2086\n";

fn rendered(command: &str, what: &str, profile: &Profile) -> anyhow::Result<String> {
    template::render_shell(command, profile).with_context(|| format!("rendering the {what}"))
}

fn prepared(directory: &Path, environment: &BTreeMap<String, String>) -> String {
    let mut text = format!("\t\tcd {}\n", directory.display());
    for (name, value) in environment {
        let _ = writeln!(text, "\t\texport {name}={}", quote(value));
    }
    text
}

/// A word of sh, whatever is in it.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
#[expect(clippy::disallowed_types, reason = "the script is run, and that is no part of a plan")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use std::{env, fs};

    use super::*;
    use crate::profile;

    const SMALL: &str = r#"schema = 1
name = "small"
version = "1.0"
[environment]
suite = "bookworm"

[[process]]
name = "web"
command = "server --bind {{ listen.web }} --workers {{ workers }}"
directory = "/srv/small"
environment = { GREETING = "it's" }
reload = "HUP"
check = "server --check"

[[process]]
name = "queue-2"
command = "queue {{ data.spool }}"
stop = { signal = "INT", within = "1m" }

[[job]]
name = "collect"
command = "collect {{ home }}"
when = "bake"

[[job]]
name = "migrate"
command = "migrate"
when = "start"
creates = "/srv/small/spool/db"

[[data]]
name = "spool"
path = "/srv/small/spool"
"#;

    #[test]
    fn the_profiles_part_of_the_script() {
        let small = profile::parse(SMALL).expect("the profile is right");
        insta::assert_snapshot!(settings(&small).expect("the commands are templates"), @r#"
        run=/run/project
        user=app
        processes='web queue-2'
        jobs='collect migrate'
        start_jobs='migrate'

        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        export PATH

        surroundings() {
        	PATH=/srv/small/venv/bin:$PATH
        	export LANG=C.UTF-8 PYTHONUNBUFFERED=1
        	unset LC_ALL PYTHONHOME PYTHONPATH
        	listen_web=
        	listen_queue_2=
        	workers=
        	if [ "$(id -u)" = 0 ]; then
        		export HOME=/root USER=root LOGNAME=root
        	else
        		export HOME=/home/app USER=app LOGNAME=app
        		if [ -r "$run/env" ]; then
        			# shellcheck source=/dev/null
        			. "$run/env"
        		fi
        	fi
        	: "${workers:=$((2 * $(nproc) + 1))}"
        	case $workers in
        	0* | *[!0-9]*) fail "workers must be a number, not '$workers'" ;;
        	esac
        	: "${listen_web:=127.0.0.1:8000}"
        	: "${listen_queue_2:=127.0.0.1:8001}"
        }

        ways_of() {
        	case $1 in
        	web)
        		stop_signal=TERM stop_within=30 ready_within=0 reload=HUP
        		;;
        	queue-2)
        		stop_signal=INT stop_within=60 ready_within=0 reload=restart
        		;;
        	esac
        }

        listen_of() {
        	case $1 in
        	web)
        		printf '%s\n' "$listen_web"
        		;;
        	queue-2)
        		printf '%s\n' "$listen_queue_2"
        		;;
        	esac
        }

        job_ways_of() {
        	case $1 in
        	collect)
        		when=bake creates=''
        		;;
        	migrate)
        		when=start creates='/srv/small/spool/db'
        		;;
        	esac
        }

        # Takes the place of this shell; more arguments go to the command.
        exec_process() {
        	chosen=$1
        	shift
        	case $chosen in
        	web)
        		cd /srv/small
        		export GREETING='it'\''s'
        		# shellcheck disable=SC2086
        		exec server --bind "$listen_web" --workers $workers "$@"
        		;;
        	queue-2)
        		cd /
        		# shellcheck disable=SC2086
        		exec queue /srv/small/spool "$@"
        		;;
        	esac
        }

        # Has a process take up its code.
        reload_by_command() {
        	:
        }

        # Has a balancer send a process no more requests.
        drain_process() {
        	:
        }

        # Has a balancer send a process requests again.
        admit_process() {
        	:
        }

        # Looks whether a process could take up its code.
        check_process() {
        	case $1 in
        	web)
        		(
        		cd /srv/small
        		export GREETING='it'\''s'
        		# shellcheck disable=SC2086
        		server --check
        		)
        		;;
        	esac
        }

        # Looks whether a process serves.
        ready_process() {
        	:
        }

        run_job() {
        	case $1 in
        	collect)
        		cd /
        		# shellcheck disable=SC2086
        		collect /home/app
        		;;
        	migrate)
        		cd /
        		# shellcheck disable=SC2086
        		migrate
        		;;
        	esac
        }
        "#);
    }

    #[test]
    fn the_script_is_clean_sh() {
        let bare =
            "schema = 1\nname = \"bare\"\nversion = \"1\"\n[environment]\nsuite = \"trixie\"\n";
        for text in [SMALL, bare] {
            let place = Place::new(text);
            let check = |program: &str, options: &[&str]| {
                Command::new(program).args(options).arg(place.script()).output()
            };
            let output = check("dash", &["-n"]).expect("dash is Debian's sh");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let Ok(output) = check("shellcheck", &["-s", "dash"]) else {
                assert!(env::var_os("CI").is_none(), "shellcheck is not installed");
                continue;
            };
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }

    /// A start script with its directories elsewhere, run as a user of this machine.
    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new(profile: &str) -> Self {
            let directory = tempfile::tempdir().expect("a directory for the script");
            let place = Self { directory };
            fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o777))
                .expect("the directory is ours");
            let mut profile = profile::parse(&profile.replace("PLACE", &place.path("")))
                .unwrap_or_else(|error| panic!("{}", crate::error::render(&error)));
            let own = Self::output(Command::new("id").arg("-un")).trim().to_owned();
            profile.environment.user = if own == "root" { "nobody".to_owned() } else { own };
            let script = render(&profile).expect("the commands are templates");
            let script = script
                .replace(PROJECT_RUN, &place.path("run"))
                .replace("/var/log/project", &place.path("log"));
            fs::write(place.script(), script).expect("the directory is ours");
            fs::set_permissions(place.script(), fs::Permissions::from_mode(0o755))
                .expect("the script is ours");
            place
        }

        fn path(&self, name: &str) -> String {
            self.directory.path().join(name).display().to_string()
        }

        fn script(&self) -> PathBuf {
            self.directory.path().join("project")
        }

        fn command(&self, words: &[&str]) -> Command {
            let mut command = Command::new("dash");
            command.arg(self.script()).args(words).current_dir("/").stdin(Stdio::null());
            command
        }

        fn output(command: &mut Command) -> String {
            let output = command.output().expect("the program starts");
            String::from_utf8_lossy(&output.stdout).into_owned()
        }

        /// Exit status, and both outputs.
        fn project(&self, words: &[&str]) -> (Option<i32>, String) {
            let output = self.command(words).output().expect("dash starts");
            let text = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8_lossy(&text).into_owned())
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_default()
        }

        fn until(condition: impl Fn() -> bool) {
            for _ in 0..100 {
                if condition() {
                    return;
                }
                Self::output(Command::new("sleep").arg("0.1"));
            }
            panic!("ten seconds were not enough");
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            self.project(&["stop"]);
        }
    }

    /// A server that writes down what reaches it, and one that does not listen to reason.
    const SERVERS: &str = r#"schema = 1
name = "servers"
version = "1.0"
[environment]
suite = "bookworm"

[[process]]
name = "web"
command = """sh -c 'trap "echo hup >>PLACEhups" HUP; trap "exit 0" TERM; \
  echo "$0 $* $HOME $GREETING $(pwd)" >>PLACEstarted; while :; do sleep 0.1; done' \
  {{ listen.web }} {{ workers }}"""
directory = "/usr"
environment = { GREETING = "it's" }
reload = "HUP"
check = "test ! -e PLACEbroken"

[[process]]
name = "stubborn"
command = """sh -c 'trap "" TERM; while :; do sleep 0.1; done'"""
stop = { within = 1 }

[[job]]
name = "make"
command = """
echo made >>PLACEmade
touch PLACEdone"""
when = "start"
creates = "PLACEdone"

[[job]]
name = "fail"
command = "false; echo on >>PLACEmade"
when = "bake"
"#;

    #[test]
    fn run_takes_the_place_of_the_server() {
        let place = Place::new(SERVERS);
        let mut child =
            place.command(&["run", "web", "--", "more", "words"]).spawn().expect("dash starts");
        Place::until(|| !place.read("started").is_empty());
        assert_eq!(place.read("run/web.pid"), format!("{}\n", child.id()));
        let workers = 2 * std::thread::available_parallelism().map_or(1, usize::from) + 1;
        let user = place
            .read("project")
            .lines()
            .find_map(|line| line.strip_prefix("user=").map(str::to_owned));
        assert_eq!(
            place.read("started"),
            format!(
                "127.0.0.1:8000 {workers} more words /home/{} it's /usr\n",
                user.expect("the script names it")
            )
        );
        let (status, text) = place.project(&["status", "web"]);
        assert_eq!(
            (status, text),
            (Some(0), format!("web: running, pid {}, 127.0.0.1:8000\n", child.id()))
        );
        assert_eq!(place.project(&["run", "web"]).0, Some(1), "a second one would take its socket");
        // No zombie while the test does not wait: status must not call that running.
        assert_eq!(place.project(&["stop", "web"]), (Some(0), "project: web stopped\n".to_owned()));
        assert_eq!(place.project(&["status"]).0, Some(3));
        assert!(child.wait().expect("it is our child").success());
    }

    #[test]
    fn the_node_says_where_processes_listen() {
        let place = Place::new(SERVERS);
        fs::create_dir(place.path("run")).expect("the directory is ours");
        fs::set_permissions(place.path("run"), fs::Permissions::from_mode(0o777))
            .expect("it is ours");
        fs::write(place.path("run/env"), "listen_web='unix:/run/web.sock'\nworkers=2\n")
            .expect("it is ours");
        let mut child = place.command(&["run", "web"]).spawn().expect("dash starts");
        Place::until(|| !place.read("started").is_empty());
        assert!(place.read("started").starts_with("unix:/run/web.sock 2 "));
        place.project(&["stop"]);
        child.wait().expect("it is our child");
        fs::write(place.path("run/env"), "workers='2; touch /x'\n").expect("it is ours");
        let (status, text) = place.project(&["run", "web"]);
        assert_eq!((status, text.contains("workers must be a number")), (Some(1), true));
    }

    #[test]
    fn processes_start_reload_and_stop() {
        let place = Place::new(SERVERS);
        let (status, text) = place.project(&["start"]);
        assert_eq!(status, Some(0), "{text}");
        assert_eq!(place.read("made"), "made\n");
        let (status, text) = place.project(&["start"]);
        assert_eq!((status, text.matches("is already running").count()), (Some(0), 2), "{text}");
        assert_eq!(place.read("made"), "made\n", "jobs run before processes, not beside them");
        let pid = place.read("run/web.pid");

        assert_eq!(place.project(&["reload", "web"]).0, Some(0));
        Place::until(|| place.read("hups") == "hup\n");
        fs::write(place.path("broken"), "").expect("the directory is ours");
        let (status, text) = place.project(&["reload", "web"]);
        assert_eq!((status, text.contains("its check failed")), (Some(1), true), "{text}");
        assert_eq!(place.read("hups"), "hup\n");
        assert_eq!(place.project(&["check", "web"]).0, Some(1));
        assert_eq!(place.read("run/web.pid"), pid);

        let stubborn = place.read("run/stubborn.pid");
        let (status, text) = place.project(&["reload", "stubborn"]);
        assert_eq!((status, text.contains("killing it")), (Some(0), true), "{text}");
        assert_ne!(place.read("run/stubborn.pid"), stubborn);

        let (status, text) = place.project(&["restart", "web"]);
        assert_eq!(status, Some(0), "{text}");
        assert_ne!(place.read("run/web.pid"), pid);
        assert_eq!(place.project(&["status"]).0, Some(0));
        assert_eq!(place.project(&["stop"]).0, Some(0));
        assert_eq!(
            place.project(&["status"]),
            (Some(3), "web: not running\nstubborn: not running\n".to_owned())
        );
        assert_eq!(place.project(&["stop"]).0, Some(0));
        assert_eq!(place.project(&["reload", "web"]).0, Some(1));
    }

    #[test]
    fn what_is_replaced_ends_when_another_is_ready() {
        const QUEUE: &str = r#"
[[process]]
name = "queue"
command = """sh -c 'trap "echo $$ >>PLACEended; exit 0" TERM; left=-1; [ ! -e PLACEshort ] || left=15; \
  while [ $left -ne 0 ]; do left=$((left - 1)); sleep 0.1; done'"""
reload = "replace"
ready = { command = "test ! -e PLACEunready && sleep 1 && kill -s 0 $pid", within = "2s" }
"#;
        let place = Place::new(&format!("{SERVERS}{QUEUE}"));
        assert_eq!(place.project(&["start", "queue"]).0, Some(0));
        let first = place.read("run/queue.pid");
        let (status, text) = place.project(&["start", "queue"]);
        assert_eq!((status, text.contains("is already running")), (Some(0), true), "{text}");

        let (status, text) = place.project(&["reload", "queue"]);
        assert_eq!(status, Some(0), "{text}");
        let second = place.read("run/queue.pid");
        assert_ne!(second, first);
        assert_eq!(place.read("ended"), first);

        fs::write(place.path("unready"), "").expect("the directory is ours");
        let (status, text) = place.project(&["reload", "queue"]);
        assert_eq!((status, text.contains("the new one is not ready")), (Some(1), true), "{text}");
        assert_eq!(place.read("ended").lines().count(), 2, "the third has ended");
        // Nor may one that ends be taken for ready because the other is.
        fs::remove_file(place.path("unready")).expect("the directory is ours");
        fs::write(place.path("short"), "").expect("the directory is ours");
        let (status, text) = place.project(&["reload", "queue"]);
        assert_eq!((status, text.contains("queue was left as it is")), (Some(1), true), "{text}");
        fs::remove_file(place.path("short")).expect("the directory is ours");
        let (status, text) = place.project(&["status", "queue"]);
        let expected = format!("queue: running, pid {}, ", second.trim());
        assert_eq!((status, text.starts_with(&expected)), (Some(0), true), "{text}");
        assert_eq!(place.project(&["ready", "queue"]).0, Some(0));

        // Its supervisor starts another beside it.
        let mut third = place.command(&["run", "queue"]).spawn().expect("dash starts");
        Place::until(|| place.read("run/queue.pid") == format!("{}\n", third.id()));
        let (status, text) = place.project(&["stop", "queue"]);
        assert_eq!((status, text.as_str()), (Some(0), "project: queue stopped\n"));
        assert!(place.read("ended").contains(&second), "both of them");
        assert!(third.wait().expect("it is our child").success());
        assert_ne!(place.project(&["ready", "queue"]).0, Some(0));
    }

    #[test]
    fn pid_files_of_others_are_stale() {
        let place = Place::new(SERVERS);
        fs::create_dir(place.path("run")).expect("the directory is ours");
        // init's, another user's; a number no process has; no number.
        for stale in ["1\n", "4194305\n", "-1\n", "", "web\n"] {
            fs::write(place.path("run/web.pid"), stale).expect("the directory is ours");
            assert_eq!(place.project(&["status", "web"]).0, Some(3), "{stale:?}");
        }
    }

    #[test]
    fn what_does_not_start_is_said_with_its_last_lines() {
        let place = Place::new(&SERVERS.replace("trap \"\" TERM;", "echo no such table; exit 1;"));
        let (status, text) = place.project(&["start", "stubborn"]);
        assert_eq!(status, Some(1));
        assert!(text.contains("no such table\n"), "{text}");
        assert!(text.contains("project: stubborn did not start; see "), "{text}");
    }

    #[test]
    fn jobs_end_at_their_first_failure_and_are_not_done_twice() {
        let place = Place::new(SERVERS);
        assert_eq!(place.project(&["job", "make"]), (Some(0), String::new()));
        let (status, text) = place.project(&["job", "make"]);
        assert_eq!((status, text.contains("make is done already")), (Some(0), true));
        assert_eq!(place.read("made"), "made\n");
        assert_eq!(place.project(&["job", "fail"]).0, Some(1));
        assert_eq!(place.read("made"), "made\n");
    }

    #[test]
    fn misuse_is_2_with_the_usage() {
        let place = Place::new(SERVERS);
        let misuses: [&[&str]; 10] = [
            &[],
            &["begin"],
            &["start", "wob"],
            &["start", "web stubborn"],
            &["start", "web", "stubborn"],
            &["status", "--"],
            &["run"],
            &["run", "web", "more"],
            &["job"],
            &["job", "mak"],
        ];
        for words in misuses {
            let (status, text) = place.project(words);
            assert_eq!(
                (status, text.contains("usage: project")),
                (Some(2), true),
                "{words:?}: {text}"
            );
        }
        let (status, text) = place.project(&["--help"]);
        assert_eq!(status, Some(0));
        assert!(text.contains("processes: web stubborn\njobs: make fail\n"), "{text}");
    }
}
