//! The systemd units of a farmctl: their names and their text, as pure values.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use super::{Program, Seat, parts};
use crate::layout;
use crate::profile::Reload;

/// Seconds between a process's end and its next start.
const PAUSE: u32 = 2;
/// A process that is started more often within so many seconds is given up: that is one
/// that lives less than two seconds each time, as under supervisord.
const GIVE_UP: (u32, u32) = (10, 40);
/// What tells the second unit of a process that is replaced from the first.
const SECOND: &str = ":2";
/// Seconds between two looks of `farmctl tend`.
const TEND_EVERY: u32 = 30;

/// Names of the units of one root's farmctl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    /// systemd has no other root: farmctls with a root of their own have units told apart
    /// by its hash, with a `_`, which no application's name has.
    pub(super) fn of(root: &Path) -> Self {
        let prefix = if root == Path::new("/") {
            "farmctl".to_owned()
        } else {
            let hash = Sha256::digest(root.as_os_str().as_encoded_bytes());
            format!("farmctl_{:08x}", u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
        };
        Self { prefix }
    }

    /// A dot between the two, because both may have hyphens: `a-b` and `c`, `a` and `b-c`.
    /// The session's id, and which of two it is, come after an `@`, so that a drop-in of the
    /// administrator's for `farmctl-a.web@.service` is in force for all of them (systemd.unit(5)).
    pub(super) fn process(&self, session: &str, process: &str, seat: Seat) -> Result<String> {
        let (app, id) = parts(session)?;
        let seat = match seat {
            Seat::First => "",
            Seat::Second => SECOND,
        };
        Ok(format!("{}-{app}.{process}@{id}{seat}.service", self.prefix))
    }

    /// The session, the process and the seat a unit is of, if it is of one.
    pub(super) fn parse<'a>(&self, unit: &'a str) -> Option<(String, &'a str, Seat)> {
        let name = unit.strip_prefix(&self.prefix)?.strip_prefix('-')?.strip_suffix(".service")?;
        let (name, id) = name.split_once('@')?;
        let (app, process) = name.split_once('.')?;
        let (id, seat) = match id.strip_suffix(SECOND) {
            Some(id) => (id, Seat::Second),
            None => (id, Seat::First),
        };
        let whole = !app.is_empty() && !process.is_empty() && !id.is_empty();
        whole.then(|| (layout::session(app, id), process, seat))
    }

    /// What all units of a session match, in the way of glob(7).
    pub(super) fn processes(&self, session: &str) -> Result<[String; 2]> {
        let all = |seat| self.process(session, "*", seat);
        Ok([all(Seat::First)?, all(Seat::Second)?])
    }

    /// What all our units match, in the way of glob(7).
    pub(super) fn all(&self) -> String {
        format!("{}[.-]*", self.prefix)
    }

    /// The slice of an application. A hyphen in the name of a slice is a step down
    /// (systemd.slice(5)), so those of the application's name are escaped.
    pub(super) fn slice(&self, app: &str) -> String {
        format!("{}-{}.slice", self.prefix, app.replace('-', "\\x2d"))
    }

    /// The slice of all applications.
    pub(super) fn top_slice(&self) -> String {
        format!("{}.slice", self.prefix)
    }

    /// What brings applications back.
    pub(super) fn tend_service(&self) -> String {
        format!("{}-tend.service", self.prefix)
    }

    /// What attaches the storage farmctl made.
    pub(super) fn storage_service(&self) -> String {
        format!("{}-storage.service", self.prefix)
    }

    /// What has it look again and again.
    pub(super) fn tend_timer(&self) -> String {
        format!("{}-tend.timer", self.prefix)
    }
}

/// How farmctl itself is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Farmctl {
    /// The program.
    pub(super) program: PathBuf,
    /// Its `--root`.
    pub(super) root: PathBuf,
}

impl Farmctl {
    fn line(&self, words: &[&str]) -> String {
        let mut all = vec![self.program.display().to_string()];
        if self.root != Path::new("/") {
            all.extend(["--root".to_owned(), self.root.display().to_string()]);
        }
        all.extend(words.iter().map(|word| (*word).to_owned()));
        command_line(&all)
    }
}

/// A command line of systemd.service(5), in which every word means itself.
fn command_line(words: &[String]) -> String {
    words.iter().map(|word| quoted(&word.replace('$', "$$"))).collect::<Vec<_>>().join(" ")
}

/// A word of a unit file: `%` begins a specifier, `\` an escape.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+$".contains(c);
    let word = word.replace('%', "%%");
    if !word.is_empty() && word.chars().all(|c| plain(c) || c == '%') {
        return word;
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The service of a process. `command` enters the session and becomes the server.
///
/// It is entered by chroot(8), not by `RootDirectory=`: that, like every option for
/// sandboxing, gives the unit a mount namespace of its own. What runs in one is not
/// rooted in the session to anybody outside, so that schroot's 15killprocs passes it
/// over, and its copy of the mount keeps a session's volume busy: `schroot --end-session`
/// then succeeds and leaves the volume behind, as is shown by
/// `vm/tests/entering-by-rootdirectory-would-leak-what-entering-by-chroot-does-not`.
///
/// There is nothing to install: the session must be there first, which after a reboot is
/// the business of `farmctl tend`.
pub(super) fn render_process(
    names: &Names,
    farmctl: &Farmctl,
    app: &str,
    program: &Program,
    command: &[String],
    descriptors: u64,
) -> String {
    let Program { process, release, session, mount, mounts, stop, reload, .. } = program;
    let (starts, seconds) = GIVE_UP;
    // Only for the order: at shutdown the process ends before what it has open is
    // unmounted. Paths systemd would have to be told in a special way are left out.
    let plain = |path: &&PathBuf| quoted(&path.to_string_lossy()) == path.to_string_lossy();
    let mounts: Vec<String> =
        mounts.iter().filter(plain).map(|path| path.display().to_string()).collect();
    let mut text = format!(
        "# Written by farmctl; changes are lost.\n\
         [Unit]\n\
         Description={app} {release}: process {process}\n\
         # At shutdown volumes are taken away after it.\n\
         After=network.target blk-availability.service\n\
         # At shutdown nginx hands on its last requests first.\n\
         Before=nginx.service\n\
         RequiresMountsFor={mounts}\n\
         AssertPathIsMountPoint={mount}\n\
         StartLimitIntervalSec={seconds}\n\
         StartLimitBurst={starts}\n\
         \n\
         [Service]\n\
         Type=exec\n\
         ExecStart={command}\n",
        mounts = mounts.join(" "),
        mount = mount.display().to_string().replace('%', "%%"),
        command = command_line(command),
    );
    // One that is stopped would end the farmctl that stops it.
    if !matches!(reload, Reload::Restart | Reload::Rolling | Reload::Replace) {
        let line = farmctl.line(&["--quiet", "reload", app, process]);
        let _ = writeln!(text, "ExecReload={line}");
    }
    let _ = write!(
        text,
        "Restart=always\n\
         RestartSec={PAUSE}\n\
         KillMode=mixed\n\
         KillSignal=SIG{signal}\n\
         TimeoutStopSec={within}\n\
         # A worker the kernel kills is replaced by its server.\n\
         OOMPolicy=continue\n\
         Slice={slice}\n\
         LimitNOFILE={descriptors}\n\
         UMask=0022\n\
         StandardOutput=journal\n\
         SyslogLevelPrefix=no\n\
         SyslogIdentifier={app}.{process}\n\
         LogExtraFields=FARMCTL_APP={app} FARMCTL_RELEASE={release} \
         FARMCTL_PROCESS={process} FARMCTL_SESSION={session}\n",
        signal = stop.signal,
        within = stop.within.0,
        slice = names.slice(app),
    );
    text
}

/// The service that brings back what ran: after a reboot, and whatever ended since.
/// It comes after schroot's own, which recovers sessions in no order and says nothing
/// when that fails; and reports only what it did.
pub(super) fn render_tend_service(farmctl: &Farmctl) -> String {
    format!(
        "# Written by farmctl; changes are lost.\n\
         [Unit]\n\
         Description=farmctl: bring back what should run\n\
         After=network.target nginx.service schroot.service\n\
         AssertFileIsExecutable={program}\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={line}\n\
         SyslogIdentifier=farmctl-tend\n\
         # Without a line for each time that there was nothing to do.\n\
         SyslogLevel=notice\n\
         LogLevelMax=notice\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        program = farmctl.program.display().to_string().replace('%', "%%"),
        line = farmctl.line(&["tend"]),
    )
}

/// The program a [`render_tend_service`] calls.
pub(super) fn program_of(tend_service: &str) -> Option<String> {
    let program =
        tend_service.lines().find_map(|line| line.strip_prefix("AssertFileIsExecutable="));
    program.map(|program| program.replace("%%", "%"))
}

/// The timer of [`render_tend_service`].
pub(super) fn render_tend_timer() -> String {
    format!(
        "# Written by farmctl; changes are lost.\n\
         [Unit]\n\
         Description=farmctl: look whether all runs that should\n\
         \n\
         [Timer]\n\
         OnActiveSec={TEND_EVERY}\n\
         OnUnitInactiveSec={TEND_EVERY}\n\
         AccuracySec=1\n\
         \n\
         [Install]\n\
         WantedBy=timers.target\n"
    )
}

/// The service that attaches the storage farmctl made, before what begins or recovers
/// sessions.
pub(super) fn render_storage_service(names: &Names, farmctl: &Farmctl) -> String {
    format!(
        "# Written by farmctl storage init, removed by farmctl storage remove.\n\
         [Unit]\n\
         Description=farmctl: attach the storage it made\n\
         After=local-fs.target\n\
         Before=schroot.service {tend}\n\
         AssertFileIsExecutable={program}\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart={line}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        tend = names.tend_service(),
        program = farmctl.program.display().to_string().replace('%', "%%"),
        line = farmctl.line(&["storage", "attach"]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Signal, Stop};

    fn farmctl(root: &str) -> Farmctl {
        Farmctl { program: "/usr/local/sbin/farmctl".into(), root: root.into() }
    }

    #[test]
    fn the_program_of_what_tends_is_read_as_it_was_written() {
        let farmctl = Farmctl { program: "/opt/100%/farmctl".into(), root: "/".into() };
        let program = program_of(&render_tend_service(&farmctl));
        assert_eq!(program.as_deref(), Some("/opt/100%/farmctl"));
    }

    fn program(reload: Reload) -> Program {
        let mount = "/run/schroot/mount/fs-my-shop-1";
        Program {
            process: "web-2".to_owned(),
            release: "1.4.2".to_owned(),
            session: "fs-my-shop-1".to_owned(),
            mount: mount.into(),
            mounts: ["", "/run", "/srv/a b"].map(|path| format!("{mount}{path}").into()).into(),
            uid: 200_000,
            gid: 200_000,
            stop: Stop::default(),
            reload,
        }
    }

    #[test]
    fn names_tell_applications_processes_and_roots_apart() {
        let names = Names::of(Path::new("/"));
        let process = |names: &Names, session: &str, process: &str| {
            names.process(session, process, Seat::First).expect("it is the name of a session")
        };
        assert_eq!(process(&names, "fs-a-b-1", "c"), "farmctl-a-b.c@1.service");
        assert_eq!(process(&names, "fs-a-1", "b-c"), "farmctl-a.b-c@1.service");
        let second =
            names.process("fs-a-b-1", "c", Seat::Second).expect("it is the name of a session");
        assert_eq!(second, "farmctl-a-b.c@1:2.service");
        assert_eq!(names.parse(&second), Some(("fs-a-b-1".to_owned(), "c", Seat::Second)));
        let parsed = names.parse("farmctl-a-b.c@1.service");
        assert_eq!(parsed, Some(("fs-a-b-1".to_owned(), "c", Seat::First)));
        assert_eq!(names.parse("farmctl-tend.service"), None);
        assert_eq!(names.slice("a-b"), "farmctl-a\\x2db.slice");
        let other = Names::of(Path::new("/var/tmp/farm"));
        assert_eq!(process(&other, "fs-a-1", "b"), "farmctl_ab63bcd2-a.b@1.service");
        assert_eq!(names.parse(&process(&other, "fs-a-1", "b")), None);
        assert_eq!(other.parse("farmctl-a.b@1.service"), None);
        assert_eq!(other.all(), "farmctl_ab63bcd2[.-]*");
    }

    #[test]
    fn words_of_a_command_line_mean_themselves() {
        let words = ["plain", "100%", "$HOME", "a b", "say \"hi\"", "back\\slash", ""];
        assert_eq!(
            command_line(&words.map(str::to_owned)),
            r#"plain 100%% $$HOME "a b" "say \"hi\"" "back\\slash" """#
        );
    }

    #[test]
    fn a_process_is_entered_with_chroot_and_restarted_when_it_dies() {
        let command = ["/usr/sbin/chroot", "/run/schroot/mount/fs-my-shop-1", "/usr/bin/env"];
        let text = render_process(
            &Names::of(Path::new("/")),
            &farmctl("/"),
            "my-shop",
            &program(Reload::Signal(Signal::Hup)),
            &command.map(str::to_owned),
            65_536,
        );
        insta::assert_snapshot!(text, @r"
        # Written by farmctl; changes are lost.
        [Unit]
        Description=my-shop 1.4.2: process web-2
        # At shutdown volumes are taken away after it.
        After=network.target blk-availability.service
        # At shutdown nginx hands on its last requests first.
        Before=nginx.service
        RequiresMountsFor=/run/schroot/mount/fs-my-shop-1 /run/schroot/mount/fs-my-shop-1/run
        AssertPathIsMountPoint=/run/schroot/mount/fs-my-shop-1
        StartLimitIntervalSec=40
        StartLimitBurst=10

        [Service]
        Type=exec
        ExecStart=/usr/sbin/chroot /run/schroot/mount/fs-my-shop-1 /usr/bin/env
        ExecReload=/usr/local/sbin/farmctl --quiet reload my-shop web-2
        Restart=always
        RestartSec=2
        KillMode=mixed
        KillSignal=SIGTERM
        TimeoutStopSec=30
        # A worker the kernel kills is replaced by its server.
        OOMPolicy=continue
        Slice=farmctl-my\x2dshop.slice
        LimitNOFILE=65536
        UMask=0022
        StandardOutput=journal
        SyslogLevelPrefix=no
        SyslogIdentifier=my-shop.web-2
        LogExtraFields=FARMCTL_APP=my-shop FARMCTL_RELEASE=1.4.2 FARMCTL_PROCESS=web-2 FARMCTL_SESSION=fs-my-shop-1
        ");
    }

    #[test]
    fn what_is_reloaded_by_a_restart_has_no_reload() {
        let names = Names::of(Path::new("/"));
        let text =
            render_process(&names, &farmctl("/"), "shop", &program(Reload::Restart), &[], 1024);
        assert!(!text.contains("ExecReload"), "{text}");
    }

    #[test]
    fn storage_is_attached_before_sessions_are_recovered() {
        let names = Names::of(Path::new("/srv/my farm"));
        insta::assert_snapshot!(render_storage_service(&names, &farmctl("/srv/my farm")), @r#"
        # Written by farmctl storage init, removed by farmctl storage remove.
        [Unit]
        Description=farmctl: attach the storage it made
        After=local-fs.target
        Before=schroot.service farmctl_80ccd831-tend.service
        AssertFileIsExecutable=/usr/local/sbin/farmctl

        [Service]
        Type=oneshot
        RemainAfterExit=yes
        ExecStart=/usr/local/sbin/farmctl --root "/srv/my farm" storage attach

        [Install]
        WantedBy=multi-user.target
        "#);
    }

    #[test]
    fn tend_is_called_with_the_root_it_was_installed_by() {
        insta::assert_snapshot!(render_tend_service(&farmctl("/srv/my farm")), @r#"
        # Written by farmctl; changes are lost.
        [Unit]
        Description=farmctl: bring back what should run
        After=network.target nginx.service schroot.service
        AssertFileIsExecutable=/usr/local/sbin/farmctl

        [Service]
        Type=oneshot
        ExecStart=/usr/local/sbin/farmctl --root "/srv/my farm" tend
        SyslogIdentifier=farmctl-tend
        # Without a line for each time that there was nothing to do.
        SyslogLevel=notice
        LogLevelMax=notice

        [Install]
        WantedBy=multi-user.target
        "#);
        insta::assert_snapshot!(render_tend_timer(), @r"
        # Written by farmctl; changes are lost.
        [Unit]
        Description=farmctl: look whether all runs that should

        [Timer]
        OnActiveSec=30
        OnUnitInactiveSec=30
        AccuracySec=1

        [Install]
        WantedBy=timers.target
        ");
    }
}
