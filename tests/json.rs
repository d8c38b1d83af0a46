//! What `--json` prints is what `farmctl manual VERB --json` says it is.

mod common;
#[path = "common/shop.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod shop;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[path = "common/tiny.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod tiny;
#[path = "common/web.rs"]
#[expect(dead_code, reason = "other tests use more of it")]
mod web;

use std::fs;

use common::{Farm, called, run};
use serde_json::Value;
use shop::Shop;
use signal::word;

/// Debian's python3-jsonschema: checks the schema, then each text after it. Nothing may be
/// there that the schema does not name.
const CHECK: &str = r"
import json, sys
import jsonschema

def closed(node):
    if isinstance(node, dict):
        if 'properties' in node and 'additionalProperties' not in node:
            node['unevaluatedProperties'] = False
        for inner in node.values():
            closed(inner)
    elif isinstance(node, list):
        for inner in node:
            closed(inner)

schema = json.load(open(sys.argv[1]))
kind = jsonschema.Draft202012Validator
kind.check_schema(schema)
closed(schema)
for path in sys.argv[2:]:
    kind(schema).validate(json.load(open(path)))
";

/// Whether Python's validator takes this text as what the verb may print.
fn check(farm: &Farm, verb: &str, text: &str) -> bool {
    let [schema, printed] = ["schema.json", "printed.json"].map(|name| farm.root().join(name));
    fs::write(&schema, farm.run(&["manual", verb, "--json"]).ok().stdout).expect("there is room");
    fs::write(&printed, text).expect("there is room");
    let ran = run(called("/usr/bin/python3", &["-c", CHECK, word(&schema), word(&printed)]));
    assert!(ran.code == 0 || ran.stderr.contains("ValidationError"), "{}", ran.stderr);
    ran.code == 0
}

#[test]
fn what_is_printed_is_what_the_manual_says() {
    let farm = Farm::new();
    let first = Shop::new("1.0").pack(&farm);
    let second = Shop::new("1.1").pack(&farm);
    farm.run(&["key", "generate"]).ok();
    farm.run(&["install", word(&first)]).ok();
    farm.run(&["start", "shop"]).ok();
    farm.run(&["install", word(&second)]).ok();
    farm.run(&["upgrade", "shop", "1.1", "--preview"]).ok();
    let mut old = tiny::Tiny::new(&tiny::profile("old", "1.0", ""));
    old.packages = vec![farmctl::manifest::Package {
        name: "libssl3".to_owned(),
        version: "3.0.0-1".to_owned(),
        architecture: old.architecture.clone(),
    }];
    let old = old.pack(farm.root());
    let project = farm.root().join("project");
    fs::create_dir(&project).expect("there is room");
    fs::write(project.join("app.py"), "from flask import Flask\n\napp = Flask(__name__)\n")
        .expect("there is room");
    fs::write(project.join("requirements.txt"), "flask\n").expect("there is room");
    // A path that is gone, one that is new and one that is another, in the session.
    let change = "rm /srv/slow; touch /srv/new; echo >>/etc/group";
    farm.run(&["shell", "shop", "--as-root", "--", "sh", "-c", change]).ok();
    for (words, code) in [
        (&["init", word(&project)][..], 0),
        (&["audit", word(&old)], 3),
        (&["list"], 0),
        (&["status", "shop"], 0),
        (&["history", "shop"], 0),
        (&["reload", "shop"], 0),
        (&["storage"], 0),
        (&["doctor"], 0),
        (&["gc", "--check"], 0),
        (&["key"], 0),
        (&["show", word(&first)], 0),
        (&["show", "shop", "--sizes"], 0),
        (&["diff", word(&first), word(&second)], 3),
        (&["verify", "shop"], 0),
        (&["verify", "shop", "--session"], 3),
        (&["verify", word(&first)], 0),
    ] {
        let ran = farm.run(&[words, &["--json"]].concat());
        assert_eq!(ran.code, code, "{words:?}: {}", ran.stderr);
        assert!(check(&farm, words[0], &ran.stdout), "{words:?}: {}", ran.stdout);
        // The validator looks: with one value less or more it is not what was said.
        let value: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
        let object = value.as_array().map_or(Some(&value), |values| values.first());
        let Some(Value::Object(object)) = object else { continue };
        let mut wrong = object.clone();
        wrong.insert("unheard-of".to_owned(), Value::Null);
        let wrong = Value::Object(wrong);
        let wrong = if value.is_array() { Value::Array(vec![wrong]) } else { wrong };
        assert!(!check(&farm, words[0], &wrong.to_string()), "{words:?}: {wrong}");
    }
    farm.run(&["stop", "shop"]).ok();
    farm.run(&["status", "shop", "--json"]).ok();
}
