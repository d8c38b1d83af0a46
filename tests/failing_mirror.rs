//! Failing well: mirrors that are not there, are slow, break off, or sign wrongly. Each is a
//! real web server on this machine, and what it serves is signed by a key of its own.

#![expect(clippy::disallowed_types, reason = "bare tools are called as people call them")]

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/mistake.rs"]
mod mistake;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{FARMCTL, Farm, Ran, called, run};
use signal::{masked, word};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How a mirror answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Whole,
    /// Half of what it promised, and no more ever.
    Half,
    /// The head of an answer, and then nothing.
    Stalls,
}

/// A web server of files, as long as the test runs.
struct Mirror {
    port: u16,
}

/// The files of a mirror, and which of them are answered otherwise than whole: by how their
/// names end.
struct Files {
    all: BTreeMap<String, Vec<u8>>,
    end: &'static str,
}

impl Mirror {
    fn serve(files: BTreeMap<String, Vec<u8>>, manner: Manner) -> Self {
        Self::serve_some(files, manner, "")
    }

    /// Serves names that end like that in this manner, and others whole.
    fn serve_some(all: BTreeMap<String, Vec<u8>>, manner: Manner, end: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let files = Arc::new(Files { all, end });
        std::thread::spawn(move || {
            for visitor in listener.incoming().flatten() {
                let files = Arc::clone(&files);
                std::thread::spawn(move || answer(visitor, &files, manner));
            }
        });
        Self { port }
    }

    fn uri(&self) -> String {
        format!("http://127.0.0.1:{}/debian", self.port)
    }
}

/// Answers requests until the visitor goes or the manner says so.
fn answer(visitor: TcpStream, files: &Files, manner: Manner) {
    let mut reader = BufReader::new(visitor.try_clone().expect("it is open"));
    let mut visitor = visitor;
    loop {
        let mut path = String::new();
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 0) && line.trim() != "" {
            if let Some(asked) = line.strip_prefix("GET ") {
                path = asked.split(' ').next().unwrap_or_default().to_owned();
            }
            line.clear();
        }
        if path.is_empty() {
            return;
        }
        let manner = if path.ends_with(files.end) { manner } else { Manner::Whole };
        let found = files.all.get(&path);
        let empty = Vec::new();
        let (status, body) = found.map_or(("404 Not Found", &empty), |body| ("200 OK", body));
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        let sent = match manner {
            Manner::Whole => body.len(),
            Manner::Half => body.len() / 2,
            Manner::Stalls => 0,
        };
        let written =
            visitor.write_all(head.as_bytes()).and_then(|()| visitor.write_all(&body[..sent]));
        match manner {
            Manner::Half => return,
            // Until the visitor has had enough.
            Manner::Stalls => drop(reader.read_line(&mut line)),
            Manner::Whole if written.is_err() => return,
            Manner::Whole => {}
        }
    }
}

/// A key to sign indexes with, in a directory of its own.
struct Signer(PathBuf);

impl Signer {
    fn new(farm: &Farm) -> Self {
        let home = farm.root().join("gpg");
        fs::create_dir_all(&home).expect("there is room");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("it is ours");
        let signer = Self(home);
        signer.gpg(&[
            "--faked-system-time",
            "20240101T000000",
            "--passphrase",
            "",
            "--quick-generate-key",
            "mirror@example.org",
            "ed25519",
            "sign",
            "never",
        ]);
        signer.gpg(&["--output", word(&signer.keyring()), "--export"]);
        signer
    }

    fn keyring(&self) -> PathBuf {
        self.0.join("keyring.gpg")
    }

    #[track_caller]
    fn gpg(&self, arguments: &[&str]) {
        let mut command = Command::new("gpg");
        command.args(["--batch", "--quiet", "--yes", "--homedir", word(&self.0)]).args(arguments);
        let ran = run(command);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }

    /// An index, signed inline.
    fn sign(&self, text: &str, options: &[&str]) -> Vec<u8> {
        let (plain, signed) = (self.0.join("Release"), self.0.join("InRelease"));
        fs::write(&plain, text).expect("there is room");
        let more = ["--output", word(&signed), "--clearsign", word(&plain)];
        self.gpg(&[options, &more].concat());
        fs::read(signed).expect("it was signed")
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        let mut command = Command::new("gpgconf");
        command.args(["--homedir", word(&self.0), "--kill", "gpg-agent"]);
        drop(run(command));
    }
}

fn index(more: &str) -> String {
    format!(
        "Origin: Debian\nSuite: oldstable\nCodename: bookworm\n\
         Date: Sat, 17 May 2025 09:20:54 UTC\n{more}Architectures: amd64\nComponents: main\n\
         SHA256:\n {} 0 main/binary-amd64/Packages\n",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
}

/// These bytes as the index of every suite.
fn files(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let suites = ["bookworm", "bookworm-updates", "bookworm-security"];
    let path = |suite: &str| format!("/debian/dists/{suite}/InRelease");
    suites.iter().map(|suite| (path(suite), bytes.to_owned())).collect()
}

/// A bootstrap from this mirror, on a machine where `keyring` is Debian's.
#[track_caller]
fn fails(mistake: &str, farm: &Farm, uri: &str, keyring: Option<&Path>) -> Ran {
    let directory = farm.root().join("profiles/tiny");
    fs::create_dir_all(&directory).expect("there is room");
    let suite = "suite = \"bookworm\"\n";
    let mirrors = format!("{suite}mirror = \"{uri}\"\nsecurity-mirror = \"{uri}\"\n");
    let text = tiny::profile("tiny", "1.0", "").replace(suite, &mirrors);
    fs::write(directory.join("profile.toml"), text).expect("there is room");
    // Nobody else sees it.
    let lend = keyring
        .map_or_else(String::new, |path| format!("mount --bind {} {KEYRING}; ", path.display()));
    let script = format!(
        "{lend}exec {FARMCTL} --root {} bootstrap {}",
        farm.root().display(),
        directory.display()
    );
    let ran = run(called("unshare", &["--mount", "sh", "-euc", &script]));
    mistake::met(mistake, farm, ran, 1, || assert!(farm.volumes().is_empty(), "a volume is left"))
}

/// Text without the port of the mirror.
fn says(ran: &Ran, farm: &Farm, port: u16, error: &str, hint: &str) {
    let plain = |text: &str| masked(text, farm).replace(&format!(":{port}"), ":PORT");
    assert!(plain(ran.error()).starts_with(error), "{}", plain(ran.error()));
    assert_eq!(plain(ran.hint()), hint);
}

const FETCHING: &str =
    "bootstrapping tiny: fetching the index of bookworm from http://127.0.0.1:PORT/debian: ";
const CHECKING: &str =
    "bootstrapping tiny: checking the signature of bookworm from http://127.0.0.1:PORT/debian: ";
const REACHABLE: &str =
    "is the mirror reachable? curl --head http://127.0.0.1:PORT/debian/dists/bookworm/InRelease";

#[test]
fn a_mirror_that_is_not_there_or_breaks_off_is_named() {
    let farm = Farm::new();
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.local_addr().expect("it is bound").port()
    };
    let ran = fails("mirror unreachable", &farm, &format!("http://127.0.0.1:{port}/debian"), None);
    says(&ran, &farm, port, FETCHING, REACHABLE);
    let nothing = Mirror::serve(BTreeMap::new(), Manner::Whole);
    let ran = fails("mirror without the suite", &farm, &nothing.uri(), None);
    let hint = "is \"bookworm\" a suite of that mirror? correct [environment] suite or mirror";
    says(&ran, &farm, nothing.port, FETCHING, hint);
    let half = Mirror::serve(files(&vec![b'x'; 100_000]), Manner::Half);
    let ran = fails("mirror that sends half a file", &farm, &half.uri(), None);
    says(&ran, &farm, half.port, FETCHING, REACHABLE);
}

#[test]
#[ignore = "a minute and a half, as long as apt waits: scripts/mistakes"]
fn a_mirror_that_stalls_is_given_up() {
    let farm = Farm::new();
    let slow = Mirror::serve(files(&vec![b'x'; 100_000]), Manner::Stalls);
    let ran = fails("mirror that stalls", &farm, &slow.uri(), None);
    says(&ran, &farm, slow.port, FETCHING, REACHABLE);
}

/// A bootstrap of an environment with one package more, whose mirror sends it like that.
#[track_caller]
fn fails_to_fetch(mistake: &str, manner: Manner) {
    let farm = Farm::new();
    let signer = Signer::new(&farm);
    let deb = vec![b'x'; 100_000];
    let sha256 = |bytes: &[u8]| {
        let file = farm.root().join("hashed");
        fs::write(&file, bytes).expect("there is room");
        common::tool("sha256sum", &[word(&file)])[..64].to_owned()
    };
    let packages = format!(
        "Package: extra\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\n\
         Description: more\nFilename: ./extra_1_all.deb\nSize: {}\nSHA256: {}\n",
        deb.len(),
        sha256(&deb)
    );
    let release = format!(
        "Origin: extra\nDate: Sat, 17 May 2025 09:20:54 UTC\nSHA256:\n {} {} Packages\n",
        sha256(packages.as_bytes()),
        packages.len()
    );
    let files = BTreeMap::from([
        ("/extra/./InRelease".to_owned(), signer.sign(&release, &[])),
        ("/extra/./Packages".to_owned(), packages.into_bytes()),
        ("/extra/./extra_1_all.deb".to_owned(), deb),
    ]);
    let mirror = Mirror::serve_some(files, manner, ".deb");
    let port = mirror.port;
    let directory = farm.root().join("profiles/tiny");
    fs::create_dir_all(&directory).expect("there is room");
    fs::copy(signer.keyring(), directory.join("extra.gpg")).expect("there is room");
    let more = format!(
        "packages = [\"python3\", \"extra\"]\napt-sources = [\"\"\"\nTypes: deb\n\
         URIs: http://127.0.0.1:{port}/extra\nSuites: ./\nSigned-By: {}\n\"\"\"]\n",
        signer.keyring().display()
    );
    let text = tiny::profile("tiny", "1.0", "").replace("packages = [\"python3\"]\n", &more);
    fs::write(directory.join("profile.toml"), text).expect("there is room");
    let ran = farm.run(&["bootstrap", word(&directory)]);
    let none = || assert!(farm.volumes().is_empty(), "a volume is left");
    let ran = mistake::met(mistake, &farm, ran, 1, none);
    assert!(ran.error().starts_with("bootstrapping tiny: "), "{}", ran.error());
    assert!(ran.error().contains("extra_1_all.deb"), "{}", ran.error());
    let hint = format!("curl --head http://127.0.0.1:{port}/extra/./extra_1_all.deb");
    assert!(ran.hint().ends_with(&hint), "{}", ran.hint());
}

#[test]
fn a_package_that_arrives_half_is_named() {
    fails_to_fetch("package that arrives half", Manner::Half);
}

#[test]
#[ignore = "a minute and a half, as long as apt waits: scripts/mistakes"]
fn a_package_that_stalls_is_given_up() {
    fails_to_fetch("package that stalls", Manner::Stalls);
}

#[test]
fn an_index_is_taken_only_if_its_signature_is_good() {
    let farm = Farm::new();
    let signer = Signer::new(&farm);
    let keyring = signer.keyring();
    let try_it = |mistake: &str, bytes: &[u8], keyring: &Path, error: &str, hint: &str| {
        let mirror = Mirror::serve(files(bytes), Manner::Whole);
        let ran = fails(mistake, &farm, &mirror.uri(), Some(keyring));
        says(&ran, &farm, mirror.port, error, hint);
        ran
    };
    let good = signer.sign(&index(""), &[]);

    let bad = String::from_utf8(good.clone()).expect("it is text").replace("oldstable", "stable");
    let hint = "these are not the bytes that were signed: set [environment] mirror to another one";
    let ran = try_it("bad signature of an index", bad.as_bytes(), &keyring, CHECKING, hint);
    assert!(ran.error().contains("BAD signature"), "{}", ran.error());

    let unknown = "apt-get install --only-upgrade debian-archive-keyring";
    let ran =
        try_it("index signed by an unknown key", &good, Path::new(KEYRING), CHECKING, unknown);
    assert!(ran.error().contains("No public key"), "{}", ran.error());

    let options = ["--faked-system-time", "20240102T000000", "--default-sig-expire", "1d"];
    let expired = signer.sign(&index(""), &options);
    let hint =
        "is the clock of this machine right (date)? else set [environment] mirror to another one";
    let ran = try_it("expired signature of an index", &expired, &keyring, CHECKING, hint);
    assert!(ran.error().contains("Expired signature"), "{}", ran.error());

    let over = signer.sign(&index("Valid-Until: Sat, 24 May 2025 09:20:54 UTC\n"), &[]);
    let error = "bootstrapping tiny: checking the index of bookworm from \
                 http://127.0.0.1:PORT/debian: it was valid until Sat, 24 May 2025 09:20:54 UTC";
    let hint = "is the clock of this machine right (date)? else the mirror is not kept up to \
                date: set [environment] mirror";
    try_it("index whose time is over", &over, &keyring, error, hint);

    // All the indexes are good, and what they promise is not there.
    let mirror = Mirror::serve(files(&good), Manner::Whole);
    let ran = fails("mirror without packages", &farm, &mirror.uri(), Some(&keyring));
    assert!(ran.error().starts_with("bootstrapping tiny: "), "{}", ran.error());
}

#[test]
fn without_debians_keyring_nothing_is_trusted() {
    let farm = Farm::new();
    let directory = farm.root().join("profiles/tiny");
    fs::create_dir_all(&directory).expect("there is room");
    let text = tiny::profile("tiny", "1.0", "");
    fs::write(directory.join("profile.toml"), text).expect("there is room");
    // An empty directory hides it from this farmctl alone.
    let script = format!(
        "mount -t tmpfs tmpfs /usr/share/keyrings; exec {FARMCTL} --root {} bootstrap --fresh {}",
        farm.root().display(),
        directory.display()
    );
    let ran = run(called("unshare", &["--mount", "sh", "-euc", &script]));
    let none = || assert!(farm.volumes().is_empty(), "a volume is left");
    let ran = mistake::met("Debian's keyring missing", &farm, ran, 1, none);
    assert_eq!(ran.error(), format!("bootstrapping tiny: the keyring {KEYRING} is missing"));
    assert_eq!(ran.hint(), "apt-get install debian-archive-keyring");
}
