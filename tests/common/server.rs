//! Tarballs with `long_server.py`, a server that does what it is asked for.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Farm, tool};
use crate::signal::word;
use crate::tiny::{self, Tiny};

/// Packs release `version` of the application `shop`, whose process `web` it is; `rest` is
/// the rest of the profile.
pub fn pack(farm: &Farm, version: &str, rest: &str) -> PathBuf {
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/guest/long/long_server.py");
    let process = format!(
        "[[process]]\nname = \"web\"\nready = {{ http = \"/ready\" }}\n\
         command = \"python3 -ISB /srv/server.py {{{{ listen.web }}}} {version}\"\n\n"
    );
    let profile = tiny::profile("shop", version, &(process + rest));
    let out = farm.root().join("out");
    fs::create_dir_all(&out).expect("there is room");
    let script = fs::read(&server).expect("it is part of the source");
    let tiny = Tiny::new(&profile).with("/usr/bin/python3").file("srv/server.py", script, 0o644);
    let modules = tool("/usr/bin/python3", &["-ISB", word(&server), "--modules"]);
    let page = format!("<h1>{version} is back soon</h1>\n");
    let tiny = tiny.file("srv/page.html", page, 0o644);
    let add = |tiny: Tiny, path: &str| {
        let content = fs::read(path).expect("it was imported");
        tiny.file(path.trim_start_matches('/'), content, 0o644)
    };
    modules.lines().fold(tiny, add).pack(&out)
}
