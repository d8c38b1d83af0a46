//! Bills of materials are taken by the validators of those who made the formats.

#[path = "common/mod.rs"]
mod common;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Farm, Ran, called, run, tool};
use farmctl::manifest::{Distribution, Package};
use tiny::Tiny;

const CYCLONEDX: &str = "cyclonedx-python-lib[json-validation]==11.12.0";
const SPDX: &str = "spdx-tools==0.8.5";
/// Validates a document of this format; each complaint is a line.
const VALIDATE: &str = "import sys
format, path = sys.argv[1:]
if format == 'cyclonedx':
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    found = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(path).read())
    found = [found] if found else []
else:
    from spdx_tools.spdx.parser.error import SPDXParsingError
    from spdx_tools.spdx.parser.parse_anything import parse_file
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
    try:
        found = [one.validation_message for one in validate_full_spdx_document(parse_file(path))]
    except SPDXParsingError as error:
        found = error.get_messages()
print('\\n'.join(map(str, found)), end='')
sys.exit(len(found) > 0)
";

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is ours")
}

/// A Python that has the validators, kept like other tools.
fn python() -> PathBuf {
    let tools = common::cache().join("tools");
    let kept = tools.join("sbom-validators-1");
    if !kept.exists() {
        fs::create_dir_all(&tools).expect("there is room");
        let part = tempfile::Builder::new().prefix(".sbom.").tempdir_in(&tools);
        let part = part.expect("there is room").keep();
        tool("/usr/bin/python3", &["-m", "venv", text(&part)]);
        let python = part.join("bin/python");
        tool(text(&python), &["-m", "pip", "install", "--quiet", CYCLONEDX, SPDX]);
        fs::rename(&part, &kept).expect("it is one directory");
    }
    kept.join("bin/python")
}

fn validate(format: &str, document: &Path) -> Ran {
    run(called(text(&python()), &["-c", VALIDATE, format, text(document)]))
}

#[test]
fn both_formats_are_taken_by_their_validators() {
    let farm = Farm::new();
    let mut tiny = Tiny::new(&tiny::profile("shop", "1.0", "")).file(
        "srv/psycopg2_binary/libpq-1.so.5",
        "\x7fELF",
        0o644,
    );
    let package = |name: &str, version: &str| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: "amd64".to_owned(),
    };
    tiny.packages = vec![package("base-files", "1:12.4+deb12u5"), package("g++", "4:12.2.0-3~x1")];
    let name = "psycopg2_binary".to_owned();
    tiny.distributions = vec![Distribution { name, version: "2.9.9".to_owned() }];
    let tarball = tiny.pack(farm.root());
    // Each with something taken away that must be there: validators look at all of it.
    for (format, key) in [("cyclonedx", "bomFormat"), ("spdx", "dataLicense")] {
        let written = farm.run(&["sbom", text(&tarball), "--format", format]).ok().stdout;
        for part in ["1:12.4%2Bdeb12u5", "pkg:pypi/psycopg2-binary@2.9.9", "libpq-1.so.5"] {
            assert!(written.contains(part), "{format} has no {part}:\n{written}");
        }
        let path = farm.root().join(format!("shop.{format}.json"));
        fs::write(&path, &written).expect("there is room");
        let ran = validate(format, &path);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{format}: {}", ran.stderr);
        let mut broken: serde_json::Value = serde_json::from_str(&written).expect("it is JSON");
        broken[key] = "farmctl's own".into();
        fs::write(&path, broken.to_string()).expect("there is room");
        let ran = validate(format, &path);
        assert_eq!(ran.code, 1, "{format}: {}", ran.stderr);
        assert!(!ran.stdout.is_empty(), "{format}: a complaint is a line");
    }
}
