//! Node tarballs of next to nothing: busybox, a user and the start script, packed by the
//! library itself. Made in a second, installed in another.
//!
//! busybox's httpd cannot listen on a unix socket: a process of such a tarball that is
//! to be ready has no `ready` and is something like `sleep 86017`.

#![expect(clippy::disallowed_types, reason = "the tree is made from the machine's programs")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use farmctl::manifest::{self, Distribution, Hashed, Inputs, Manifest, Owner, Package, Payload};
use farmctl::profile::{self, Profile};
use farmctl::{start_script, tarball};

/// No file of a tarball is newer.
const EPOCH: i64 = 1_700_000_000;
/// Directories a session mounts something on, and a few more.
const DIRECTORIES: [&str; 13] = [
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "etc",
    "root",
    "home/app",
    "var/log",
    "usr/bin",
    "usr/local/bin",
    "lib64",
    "srv",
];

/// A profile whose environment is that of `profiles/hello`, so that its bootstrap comes
/// from the same cache.
pub fn profile(name: &str, version: &str, rest: &str) -> String {
    format!(
        "schema = 1\nname = \"{name}\"\nversion = \"{version}\"\n\n[environment]\n\
         suite = \"bookworm\"\npackages = [\"python3\"]\nlocale = \"C.UTF-8\"\nuser = \"app\"\n\n{rest}"
    )
}

/// A `[build]` that leaves so little of the environment that packing it takes seconds: no
/// later step of a bake needs more.
pub const LIGHT: &str = r#"[build]
before = ["""rm -rf /usr/share/* /usr/lib/python3*
find /usr -xdev -type f -size +32k ! -name dpkg-query ! -name rm ! -name dash \
  ! -name 'ld-linux-*' ! -name 'libc.so*' ! -name 'libmd.so*' ! -name 'libselinux.so*' \
  ! -name 'libpcre2-8.so*' -delete"""]
"#;

/// Packs a tarball of this profile into the directory `out`.
pub fn tarball(profile: &str, out: &Path) -> PathBuf {
    Tiny::new(profile).pack(out)
}

/// A tarball to be.
pub struct Tiny {
    profile: Profile,
    tree: tempfile::TempDir,
    /// Of this machine, unless it is changed.
    pub architecture: String,
    /// None, unless it is changed.
    pub serial: Option<u64>,
    /// None, unless it is changed.
    pub expires: Option<String>,
    /// None, unless they are changed.
    pub packages: Vec<Package>,
    /// None, unless they are changed; what lies in `srv/NAME` is theirs.
    pub distributions: Vec<Distribution>,
}

impl Tiny {
    /// The tree of a profile.
    pub fn new(profile: &str) -> Self {
        let profile = profile::parse(profile).expect("the profile is right");
        let tree = tempfile::tempdir().expect("there is room");
        let architecture = output("dpkg", &["--print-architecture"]);
        let tiny = Self {
            profile,
            tree,
            architecture,
            serial: None,
            expires: None,
            packages: Vec::new(),
            distributions: Vec::new(),
        };
        for directory in DIRECTORIES {
            fs::create_dir_all(tiny.path(directory)).expect("there is room");
        }
        fs::set_permissions(tiny.tree.path(), fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        chown(tiny.path("home/app"), Some(1000), Some(1000)).expect("tests run as root");
        symlink("usr/bin", tiny.path("bin")).expect("there is room");
        symlink("usr/bin", tiny.path("sbin")).expect("there is room");
        tiny.program("/bin/busybox");
        // The start script gives up root with setpriv, which busybox's own cannot; and
        // busybox's own sh takes its own for any other.
        tiny.program("/usr/bin/dash");
        symlink("dash", tiny.path("usr/bin/sh")).expect("there is room");
        tiny.program("/usr/bin/setpriv");
        for applet in output("busybox", &["--list"]).lines() {
            // All but the one above.
            drop(symlink("busybox", tiny.path("usr/bin").join(applet)));
        }
        let script = start_script::render(&tiny.profile).expect("the commands are templates");
        tiny.file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
            0o644,
        )
        .file("etc/group", "root:x:0:\napp:x:1000:\n", 0o644)
        .file("usr/local/bin/project", script, 0o755)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.tree.path().join(path)
    }

    /// Copies a program of the machine with the libraries it wants.
    fn program(&self, path: &str) {
        // A static program has none, and ldd(1) says so by its status.
        let said = Command::new("ldd").arg(path).output().expect("libc-bin is essential").stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let libraries = said.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([path]) {
            let target = if file == path {
                self.path("usr/bin").join(file.rsplit('/').next().expect("it has a name"))
            } else {
                self.path(file.trim_start_matches('/'))
            };
            fs::create_dir_all(target.parent().expect("it is below the tree"))
                .expect("there is room");
            fs::copy(file, target).expect("there is room");
        }
    }

    /// Adds a file.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Self {
        let target = self.path(path);
        fs::create_dir_all(target.parent().expect("it is below the tree")).expect("there is room");
        fs::write(&target, content).expect("there is room");
        fs::set_permissions(&target, fs::Permissions::from_mode(mode)).expect("it is ours");
        self
    }

    /// Adds a program of the machine.
    pub fn with(self, program: &str) -> Self {
        self.program(program);
        self
    }

    /// Adds a file of so many zeros: quickly packed, slowly written.
    pub fn zeros(self, path: &str, size: u64) -> Self {
        let target = self.path(path);
        fs::File::create(target).and_then(|file| file.set_len(size)).expect("it takes no room");
        self
    }

    /// The tree itself.
    pub fn tree(&self) -> &Path {
        self.tree.path()
    }

    /// Packs it into the directory `out`.
    pub fn pack(self, out: &Path) -> PathBuf {
        let Profile { name, version, .. } = &self.profile;
        let path = out.join(format!("{name}_{version}_{}.tar.xz", self.architecture));
        let quiet = |_, _| Ok(());
        let owner_of = |path: &str| {
            let of = |one: &&Distribution| path.starts_with(&format!("srv/{}/", one.name));
            let distribution = self.distributions.iter().find(of);
            distribution.map_or(Owner::Generated, |one| Owner::Distribution(one.name.clone()))
        };
        let scan = tarball::scan(self.tree.path(), EPOCH, &owner_of, &quiet);
        let draft = Manifest {
            schema: manifest::SCHEMA,
            farmctl: env!("CARGO_PKG_VERSION").to_owned(),
            name: name.clone(),
            version: version.clone(),
            architecture: self.architecture.clone(),
            epoch: EPOCH,
            serial: self.serial,
            expires: self.expires.clone(),
            derived: None,
            profile: self.profile.clone(),
            inputs: Inputs {
                packages: self.packages.clone(),
                distributions: self.distributions.clone(),
                ..Inputs::default()
            },
            files: Hashed { size: 0, sha256: String::new() },
            payload: Payload { size: 0, sha256: String::new(), entries: 0, content: 0 },
            segments: Vec::new(),
            set_id: Vec::new(),
            capabilities: Vec::new(),
        };
        let scan = scan.expect("the tree has nothing strange in it");
        tarball::pack(self.tree.path(), &scan, draft, &path, 2, None, &quiet)
            .expect("there is room");
        path
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is installed");
    assert!(output.status.success(), "{program} {arguments:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
