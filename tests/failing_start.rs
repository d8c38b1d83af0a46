//! Failing well: what does not start, and verbs about what is not there. Each gives one
//! clear error with a hint and leaves no process, mount or session.

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/mistake.rs"]
mod mistake;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/picture.rs"]
mod picture;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use common::{FARMCTL, Farm, Ran, called, run, tool};
use picture::Picture;
use signal::{masked, runs, word};

const SLEEP: &str = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n";

/// Installs the application `shop` with this text after its environment.
fn install(farm: &Farm, rest: &str) {
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    let file = tiny::tarball(&tiny::profile("shop", "1.0", rest), &out);
    farm.run(&["install", word(&file)]).ok();
}

/// Starts it, which must fail and leave nothing that runs.
#[track_caller]
fn fails_to_start(mistake: &str, farm: &Farm) -> Ran {
    let ran = farm.run(&["start", "shop"]);
    left_nothing(mistake, farm, ran)
}

/// A start that must have failed and left nothing that runs.
#[track_caller]
fn left_nothing(mistake: &str, farm: &Farm, ran: Ran) -> Ran {
    let ran = mistake::met(mistake, farm, ran, 1, || ());
    let sessions = fs::read_dir("/var/lib/schroot/session").expect("schroot is installed");
    assert!(
        !sessions
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("fs-shop-"))
    );
    assert!(!runs("sleep 86017"), "a process is left");
    assert!(!runs(&format!("--configuration={}", farm.root().display())), "supervisord is left");
    assert_eq!(farm.state_of("shop"), "stopped");
    ran
}

#[track_caller]
fn says(ran: &Ran, farm: &Farm, error: &str, hint: &str) {
    assert_eq!(masked(ran.error(), farm), error);
    assert_eq!(masked(ran.hint(), farm), hint);
}

#[test]
fn a_process_that_never_gets_ready_is_shown_with_its_last_lines() {
    let farm = Farm::new();
    install(
        &farm,
        "[[process]]\nname = \"web\"\nready = { http = \"/\", within = \"2s\" }\n\
         command = \"sh -c 'echo warming up; exec sleep 86017'\"\n",
    );
    let ran = fails_to_start("readiness never", &farm);
    says(
        &ran,
        &farm,
        "starting shop 1.0: process web: it is not ready after 2 s: connecting to \
         ROOT/run/farmctl/apps/shop/fs-shop-ID.web.sock: No such file or directory\n  | warming up",
        "farmctl logs shop shows all of its output",
    );
    // The hint is true.
    assert_eq!(farm.run(&["logs", "shop"]).ok().stdout, "warming up\n");
}

#[test]
fn a_process_is_ready_when_its_command_says_so_and_not_before() {
    let farm = Farm::new();
    install(
        &farm,
        "[[process]]\nname = \"web\"\n\
         command = \"sh -c 'sleep 1; touch /tmp/up; exec sleep 86017'\"\n\
         ready = { command = \"test -e /tmp/up\" }\n\
         [[process]]\nname = \"queue\"\ncommand = \"sleep 86017\"\n\
         ready = { command = \"echo no queue; exit 3\", within = \"2s\" }\n",
    );
    let ran = fails_to_start("readiness command that fails", &farm);
    says(
        &ran,
        &farm,
        "starting shop 1.0: process queue: it is not ready after 2 s: ready.command: exit status 3\n  | no queue",
        "farmctl logs shop shows all of its output",
    );
}

#[test]
fn a_process_that_ends_at_once_is_shown_with_its_last_lines() {
    let farm = Farm::new();
    install(
        &farm,
        "[[process]]\nname = \"web\"\ncommand = \"sh -c 'echo no module named shop; exit 1'\"\n\n\
         [[process]]\nname = \"queue\"\ncommand = \"sleep 86017\"\n",
    );
    let ran = fails_to_start("process that ends at once", &farm);
    says(
        &ran,
        &farm,
        "starting shop 1.0: process web: it ends as soon as it is started\n  | no module named shop",
        "farmctl logs shop shows all of its output",
    );
}

#[test]
fn a_job_that_fails_at_the_start_is_shown_with_its_last_lines() {
    let farm = Farm::new();
    install(
        &farm,
        "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n\n[[job]]\nname = \"migrate\"\n\
         when = \"start\"\ncommand = \"echo migrating; echo no such table >&2; exit 4\"\n",
    );
    let ran = fails_to_start("job that fails at the start", &farm);
    says(
        &ran,
        &farm,
        "starting shop 1.0: job migrate: exit status 4\n  | migrating\n  | no such table",
        "its command is: echo migrating; echo no such table >&2; exit 4",
    );
}

#[test]
fn an_address_another_program_listens_on_is_named_with_it() {
    let farm = Farm::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound");
    install(&farm, &format!("{SLEEP}\n[front]\nlisten = [\"{address}\"]\n"));
    let ran = fails_to_start("port taken", &farm);
    let own = fs::read_to_string("/proc/self/comm").expect("/proc is mounted");
    says(
        &ran,
        &farm,
        &format!(
            "starting shop 1.0: publishing the vhost farmctl-shop: {} (pid {}) listens on {address} already",
            own.trim(),
            std::process::id()
        ),
        "use another address in [front] listen, or end that program",
    );
    drop(taken);
}

#[test]
fn a_process_whose_port_is_taken_is_shown_with_its_words() {
    let farm = Farm::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it is bound");
    let web = format!("[[process]]\nname = \"web\"\ncommand = \"httpd -f -p {address}\"\n");
    install(&farm, &web);
    let ran = fails_to_start("port of a process taken", &farm);
    let error = ran.error();
    assert!(error.contains("process web: it ends as soon as it is started"), "{error}");
    assert!(error.contains("Address already in use"), "{error}");
}

#[test]
fn a_process_whose_socket_is_taken_is_shown_with_its_words() {
    let farm = Farm::new();
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    let server = |name: &str| {
        format!(
            "[[file]]\npath = \"/etc/{name}.conf\"\ncontent = \"\"\"\npid /tmp/{name}.pid; error_log stderr;\n\
             events {{}}\nhttp {{ access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p;\n\
             fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
             server {{ listen {{{{ listen.web }}}}; }} }}\n\"\"\"\n"
        )
    };
    // The second one begins when the first has its socket, and means to have the same.
    let rest = format!(
        "{}{}[[process]]\nname = \"web\"\ncommand = \"nginx -e stderr -c /etc/web.conf -g 'daemon off;'\"\n\
         [[process]]\nname = \"twin\"\nready = {{ http = \"/\", within = \"4s\" }}\n\
         command = \"sh -c \\\"until [ -S $SOCKETS/*.web.sock ]; do :; done; exec nginx -e stderr -c /etc/twin.conf -g 'daemon off;'\\\"\"\n",
        server("web"),
        server("twin"),
    );
    let rest = rest.replace("$SOCKETS", "/run/farmctl/sockets");
    let tarball =
        tiny::Tiny::new(&tiny::profile("shop", "1.0", &rest)).with("/usr/sbin/nginx").pack(&out);
    farm.run(&["install", word(&tarball)]).ok();
    let ran = fails_to_start("socket taken", &farm);
    let error = masked(ran.error(), &farm);
    // nginx tries for seconds, and supervisord starts it again.
    let start = "starting shop 1.0: process twin: it is not ready after 4 s: ";
    assert!(error.starts_with(start), "{error}");
    let taken = "bind() to unix:/run/farmctl/sockets/fs-shop-ID.web.sock failed (98: ";
    assert!(error.contains(taken), "{error}");
    assert_eq!(ran.hint(), "farmctl logs shop shows all of its output");
}

/// Ends the farm's supervisord and waits until it is gone.
fn end_supervisor(farm: &Farm, signal: Signal) {
    let file = farm.root().join("run/farmctl/supervisord.pid");
    let pid = fs::read_to_string(file).expect("it runs").trim().parse().expect("it is a number");
    kill(Pid::from_raw(pid), signal).expect("it runs");
    let argument = format!("--configuration={}", farm.root().display());
    common::wait_for("supervisord ends", Duration::from_secs(20), || !runs(&argument));
}

/// Killed, it leaves its processes behind; ended, it ends them first.
#[test]
fn a_supervisor_that_has_ended_is_started_again() {
    let farm = Farm::new();
    install(&farm, &SLEEP.replace("\ncommand", "\nreload = \"HUP\"\ncommand"));
    farm.run(&["start", "shop"]).ok();
    let error = "supervisord does not run: nothing looks after the processes of shop";
    let one_runs = || {
        assert_eq!(farm.state_of("shop"), "running");
        let all = common::processes(farm.root());
        assert_eq!(all.iter().filter(|it| it.contains("sleep 86017")).count(), 1, "{all:?}");
    };
    for (signal, mending) in
        [(Signal::SIGKILL, &["tend"][..]), (Signal::SIGTERM, &["start", "shop"])]
    {
        end_supervisor(&farm, signal);
        let status = farm.run(&["status", "shop"]);
        assert_eq!(status.code, 3, "{}", status.stdout);
        assert!(status.stdout.contains("farmctl start shop brings it back"), "{}", status.stdout);
        for verb in ["reload", "restart"] {
            let ran = farm.run(&[verb, "shop"]);
            let ran = mistake::met(&format!("supervisor stopped, {verb}"), &farm, ran, 1, || ());
            let doing = format!("{verb}ing shop: ");
            says(&ran, &farm, &format!("{doing}{error}"), "farmctl start shop");
        }
        let ran = farm.run(mending).ok();
        let words = masked(ran.stderr.trim_end(), &farm);
        mistake::row(&format!("supervisor stopped, {}", mending[0]), "0", "none", &words);
        one_runs();
        farm.assert_clean();
    }
    // What switches to another session has it run there.
    end_supervisor(&farm, Signal::SIGKILL);
    let out = farm.root().join("out");
    let newer = tiny::tarball(&tiny::profile("shop", "1.1", SLEEP), &out);
    farm.run(&["upgrade", "shop", word(&newer), "--watch", "1s"]).ok();
    one_runs();
    farm.assert_clean();
}

#[test]
fn a_disk_that_is_full_keeps_an_application_from_its_start() {
    let farm = Farm::new();
    let state = farm.state("");
    fs::create_dir_all(&state).expect("there is room");
    tool("mount", &["-t", "tmpfs", "-o", "mode=755,size=100m", "tmpfs", word(&state)]);
    install(&farm, SLEEP);
    let filler = farm.state("filler");
    let mut rest = fs::File::create(&filler).expect("it is ours");
    while std::io::Write::write_all(&mut rest, &[0; 4096]).is_ok() {}
    let ran = farm.run(&["start", "shop"]);
    // Its room is free once nobody has it open.
    drop(rest);
    fs::remove_file(&filler).expect("it is ours");
    let ran = left_nothing("disk full during start", &farm, ran);
    assert!(ran.error().ends_with("No space left on device"), "{}", ran.error());
    assert_eq!(
        ran.hint(),
        "farmctl gc --stages, farmctl remove NAME --release VERSION, or a larger disk"
    );
    farm.run(&["remove", "shop", "--data"]).ok();
    tool("umount", &[word(&state)]);
}

#[test]
fn programs_a_start_needs_are_asked_for() {
    let farm = Farm::new();
    install(&farm, &format!("{SLEEP}\n[front]\nlisten = [\"127.0.0.1:18087\"]\n"));
    for (mistake, path, error, hint) in [
        ("nginx missing", "/usr/sbin/nginx", "nginx", "apt-get install nginx"),
        ("schroot missing", "/usr/bin/schroot", "schroot", "apt-get install schroot"),
        ("supervisor missing", "/usr/bin/supervisord", "supervisord", "apt-get install supervisor"),
    ] {
        // A device in a program's place is no program; nobody else sees it.
        let script = format!(
            "mount --bind /dev/null {path}; exec {FARMCTL} --root {} start shop",
            farm.root().display()
        );
        let ran = run(called("unshare", &["--mount", "sh", "-euc", &script]));
        let ran = left_nothing(mistake, &farm, ran);
        says(&ran, &farm, &format!("missing programs: {error}"), hint);
    }
}

#[test]
fn a_vhost_of_others_that_is_broken_is_named() {
    let farm = Farm::new();
    install(&farm, &format!("{SLEEP}\n[front]\nlisten = [\"127.0.0.1:18087\"]\n"));
    let foreign = "/etc/nginx/sites-enabled/zz-farmctl-test";
    fs::write(foreign, "server { bogus; }\n").expect("tests run as root");
    let ran = farm.run(&["start", "shop"]);
    fs::remove_file(foreign).expect("it was ours");
    let ran = left_nothing("vhost of others broken", &farm, ran);
    says(
        &ran,
        &farm,
        "starting shop 1.0: publishing the vhost farmctl-shop: nginx's configuration is not \
         valid already without the new vhost: unknown directive \"bogus\" in \
         /etc/nginx/sites-enabled/zz-farmctl-test:1",
        "correct it and try again: nginx -t",
    );
}

#[test]
fn verbs_about_what_is_not_installed_or_not_started_say_what_is() {
    let farm = Farm::new();
    install(&farm, SLEEP);
    for verb in ["start", "stop", "restart", "reload", "status", "logs", "shell", "show", "verify"]
    {
        let ran = farm.run(&[verb, "shpo"]).failed(1);
        says(&ran, &farm, "no application shpo is installed", "did you mean shop?");
        let ran = farm.run(&[verb, "weather"]).failed(1);
        says(
            &ran,
            &farm,
            "no application weather is installed",
            "farmctl list shows what is installed; farmctl install FILE installs",
        );
    }
    for verb in ["restart", "reload", "shell"] {
        let ran = farm.run(&[verb, "shop"]).failed(1);
        says(&ran, &farm, "shop is not started", "farmctl start shop");
    }
    let ran = farm.run(&["reload", "../shop"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let ran = farm.run(&["logs", "shop", "queue"]).failed(1);
    says(&ran, &farm, "shop has no process queue", "its processes are: web");
    let ran = farm.run(&["start", "shop", "--release", "2.0"]).failed(1);
    says(&ran, &farm, "shop has no release 2.0", "installed are: 1.0");
    assert_eq!(farm.run(&["logs", "shop"]).ok().stdout, "", "it has printed nothing yet");
    assert!(farm.run(&["stop", "shop"]).ok().stderr.contains("shop is stopped already"));
}

#[test]
fn state_that_cannot_be_read_is_not_guessed_about() {
    let farm = Farm::new();
    install(&farm, SLEEP);
    let volumes = farm.volumes();
    let state = farm.state("apps/shop.json");
    let good = fs::read_to_string(&state).expect("it is installed");
    let verbs: [&[&str]; 6] = [
        &["gc"],
        &["gc", "--orphans"],
        &["list"],
        &["status", "shop"],
        &["start", "shop"],
        &["remove", "shop"],
    ];
    for (mistake, bad, why) in [
        ("state file damaged", good[..good.len() / 2].to_owned(), "EOF while parsing"),
        ("state file emptied", "{}".to_owned(), "missing field `schema`"),
        (
            "state file from the future",
            good.replacen("\"schema\": 1", "\"schema\": 7", 1),
            "it was written by a newer farmctl (schema 7, this one reads 1)",
        ),
    ] {
        assert_ne!(bad, good);
        fs::write(&state, bad).expect("it is ours");
        for verb in verbs {
            let ran = mistake::refused(mistake, &farm, verb, || Picture::of(farm.root()));
            let error = masked(ran.error(), &farm);
            assert!(
                error.contains(&format!("reading ROOT/var/lib/farmctl/apps/shop.json: {why}")),
                "{verb:?}: {error}"
            );
            assert_eq!(
                masked(ran.hint(), &farm),
                "put a copy of ROOT/var/lib/farmctl/apps/shop.json there, or use the farmctl that \
                 wrote it; without one: README.md, \"A damaged file of the state\""
            );
        }
        assert_eq!(farm.volumes(), volumes, "nothing was removed");
    }
    fs::write(&state, &good).expect("it is ours");

    let node = farm.state("node.json");
    let identity = fs::read_to_string(&node).expect("the node has one");
    fs::remove_file(&node).expect("it is ours");
    for verb in verbs {
        let ran = mistake::refused("state file missing", &farm, verb, || Picture::of(farm.root()));
        says(
            &ran,
            &farm,
            "ROOT/var/lib/farmctl/node.json is missing, but there are applications",
            "put {\"schema\": 1, \"id\": \"ID\"} there, with the ID that grep -r farmctl.node= \
             /etc/schroot/chroot.d shows; farmctl does not guess which volumes are its own",
        );
    }
    assert_eq!(farm.volumes(), volumes, "nothing was removed");
    // The hint is true.
    let definition = fs::read_to_string("/etc/schroot/chroot.d/farmctl-shop-1.0");
    let definition = definition.expect("it is registered");
    let id = definition.lines().find_map(|line| line.strip_prefix("farmctl.node="));
    let id = id.expect("it is this node's");
    fs::write(&node, format!("{{\"schema\": 1, \"id\": \"{id}\"}}\n")).expect("it is ours");
    farm.run(&["verify", "shop"]).ok();
    farm.assert_clean();
    let again: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&node).expect("it is ours")).expect("it is JSON");
    assert_eq!(again, serde_json::from_str::<serde_json::Value>(&identity).expect("it is JSON"));
}

#[test]
fn what_no_state_names_is_removed_when_that_is_asked_for_and_not_before() {
    let farm = Farm::new();
    install(&farm, SLEEP);
    farm.run(&["start", "shop"]).ok();
    let (state, away) = (farm.state("apps/shop.json"), farm.root().join("away"));
    fs::rename(&state, &away).expect("it is installed");
    let as_it_is = || Picture::of(farm.root());
    let file = farm.root().join("out");
    let file = file.join(common::names(&file).first().expect("it was packed"));
    let ran = mistake::refused("state file gone", &farm, &["install", word(&file)], as_it_is);
    says(
        &ran,
        &farm,
        "there is a volume fv-shop-1.0 already",
        "farmctl gc --check says of whom it is; farmctl gc, or gc --orphans, removes it",
    );
    let check = farm.run(&["gc", "--check"]);
    assert_eq!(check.code, 3, "{}", check.stderr);
    assert!(check.stdout.contains("fv-shop-1.0"), "{}", check.stdout);
    farm.run(&["gc"]).ok();
    assert!(runs("sleep 86017"), "it runs on");
    fs::rename(&away, &state).expect("it was moved");
    farm.run(&["verify", "shop"]).ok();
    assert_eq!(farm.state_of("shop"), "running");

    // As README says of a file that is damaged and of which there is no copy.
    fs::remove_file(&state).expect("it is there");
    farm.run(&["gc", "--orphans"]).ok();
    assert!(!runs("sleep 86017"), "it has ended");
    farm.assert_clean();
    farm.run(&["install", word(&file)]).ok();
    farm.run(&["start", "shop"]).ok();
}

#[test]
fn an_application_whose_state_is_damaged_keeps_no_other_from_being_tended() {
    let farm = Farm::new();
    install(&farm, SLEEP);
    farm.run(&["start", "shop"]).ok();
    end_supervisor(&farm, Signal::SIGKILL);
    let damaged = farm.state("apps/other.json");
    fs::write(&damaged, "{").expect("there is room");
    let look = farm.run(&["tend", "--dry-run"]);
    assert_eq!(look.code, 3, "{}", look.stderr);
    for trouble in ["other: reading ", "shop: "] {
        assert!(look.stdout.lines().any(|line| line.starts_with(trouble)), "{}", look.stdout);
    }
    let ran = farm.run(&["tend"]).failed(1);
    assert!(ran.error().starts_with("tending other: reading "), "{}", ran.error());
    fs::remove_file(&damaged).expect("it is ours");
    assert_eq!(farm.state_of("shop"), "running");
}
