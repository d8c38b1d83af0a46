//! Signed tarballs: keys and signatures are minisign's, and what a node with keys refuses.

#![expect(clippy::disallowed_types, reason = "minisign is asked as a user asks it")]

#[path = "common/mod.rs"]
mod common;
#[path = "common/newer.rs"]
mod newer;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/signal.rs"]
mod signal;
#[expect(dead_code, reason = "other tests use more of it")]
#[path = "common/tiny.rs"]
mod tiny;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Farm, Ran, tool};
use farmctl::tarball::Archive;
use signal::{masked, word};
use tiny::Tiny;

const SLEEP: &str = "[[process]]\nname = \"web\"\ncommand = \"sleep 86017\"\n";

fn directory(farm: &Farm, name: &str) -> PathBuf {
    let directory = farm.root().join(name);
    fs::create_dir_all(&directory).expect("there is room");
    directory
}

/// A tarball of `shop` with this version and serial.
fn tarball(farm: &Farm, version: &str, serial: Option<u64>) -> PathBuf {
    let mut tiny = Tiny::new(&tiny::profile("shop", version, SLEEP));
    tiny.serial = serial;
    tiny.pack(&directory(farm, "out"))
}

/// Runs minisign with this on its standard input; it must succeed.
#[track_caller]
fn minisign(input: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("minisign");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("minisign is installed");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("it reads it");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "minisign {arguments:?}: {said}");
    said
}

/// What a minisign and a tar that know nothing of farmctl say to a tarball.
#[track_caller]
fn verified_by_minisign(farm: &Farm, file: &Path, public: &Path) -> String {
    let out = directory(farm, "unpacked");
    let members = [".farmctl/manifest.json", ".farmctl/manifest.json.minisig"];
    tool("tar", &[&["-C", word(&out), "-xJf", word(file)][..], &members].concat());
    minisign("", &["-V", "-p", word(public), "-m", word(&out.join(members[0]))])
}

#[track_caller]
fn says(ran: &Ran, farm: &Farm, error: &str, hint: &str) {
    assert_eq!(masked(ran.error(), farm), error);
    assert_eq!(masked(ran.hint(), farm), hint);
}

/// The number of the key this farm signs with.
fn signing_key(farm: &Farm) -> String {
    let listing = farm.run(&["key", "--json"]).ok().stdout;
    let listing: serde_json::Value = serde_json::from_str(&listing).expect("JSON");
    listing["signing"]["key"].as_str().expect("there is a key").to_owned()
}

#[test]
fn a_tarball_signed_by_farmctl_is_verified_by_minisign() {
    let farm = Farm::new();
    let file = tarball(&farm, "1.0", Some(7));
    let before = Archive::open(&file).expect("it was packed");
    let members = tool("tar", &["-tJf", word(&file)]);
    let made = farm.run(&["key", "generate"]).ok();
    let key = signing_key(&farm);
    assert!(made.stderr.contains("farmctl key trust RW"), "{}", made.stderr);
    let etc = farm.root().join("etc/farmctl");
    let mode =
        |name: &str| etc.join(name).metadata().expect("it was made").permissions().mode() & 0o7777;
    assert_eq!((mode("signing.key"), mode("signing.pub")), (0o600, 0o644));

    let ran = farm.run(&["sign", word(&file)]).ok();
    assert!(ran.stderr.contains(&format!("signed shop 1.0 with {key}")), "{}", ran.stderr);
    let said = verified_by_minisign(&farm, &file, &etc.join("signing.pub"));
    assert!(said.contains("Signature and comment signature verified"), "{said}");
    let identity = before.identity();
    let architecture = &before.manifest().architecture;
    let comment = format!("shop 1.0 {architecture} sha256:{identity} serial:7");
    assert!(said.contains(&format!("Trusted comment: {comment}")), "{said}");

    // The same release, and still what every other program reads.
    let after = Archive::open(&file).expect("it was signed");
    assert_eq!(after.identity(), identity);
    after.verify(2, &|_, _| Ok(())).expect("the payload is the same");
    tool("xz", &["-t", word(&file)]);
    let signed = tool("tar", &["-tJf", word(&file)]);
    let rest: Vec<&str> =
        signed.lines().filter(|name| !name.ends_with("manifest.json.minisig")).collect();
    assert_eq!(rest, members.lines().collect::<Vec<_>>());
    assert_eq!(signed.lines().nth(1), Some(".farmctl/manifest.json.minisig"));

    let ran = farm.run(&["sign", word(&file)]).ok();
    assert!(ran.stderr.contains(&format!("shop 1.0 is signed by {key} already")), "{}", ran.stderr);
    let ran = farm.run(&["show", word(&file)]).ok();
    assert!(ran.stdout.contains(&format!("signed by {key}, which is not trusted here")));
    farm.run(&["key", "trust", word(&etc.join("signing.pub"))]).ok();
    let ran = farm.run(&["verify", word(&file)]).ok();
    assert!(ran.stderr.contains(&format!("is whole and signed by {key} ({key}.pub)")));
    farm.run(&["install", word(&file)]).ok();
    let ran = farm.run(&["show", "shop"]).ok();
    assert!(ran.stdout.contains(&format!("signed by {key} ({key}.pub)")), "{}", ran.stdout);
    farm.assert_clean();
}

#[test]
fn keys_and_passwords_of_minisign_and_of_farmctl_are_each_others() {
    let farm = Farm::new();
    let keys = directory(&farm, "keys");
    let at = |name: &str| keys.join(name);
    fs::write(at("password"), "correct horse\n").expect("there is room");
    let twice = "correct horse\ncorrect horse\n";
    let (theirs, plain) = (at("theirs.key"), at("plain.key"));
    let files = |secret: &Path| (word(secret).to_owned(), secret.with_extension("pub"));
    let (secret, public) = files(&theirs);
    minisign(twice, &["-G", "-s", &secret, "-p", word(&public)]);
    let (secret, public) = files(&plain);
    minisign("", &["-G", "-W", "-s", &secret, "-p", word(&public)]);
    let ours = at("ours.key");
    let password = at("password");
    let with_password = ["--password-file", word(&password)];
    farm.run(&[&["key", "generate", "--key", word(&ours)][..], &with_password].concat()).ok();

    // Theirs in farmctl.
    let file = tarball(&farm, "1.0", None);
    let ran = farm.run(&["sign", word(&file), "--key", word(&theirs)]).failed(1);
    let error = "reading ROOT/keys/theirs.key: a password protects the key";
    says(&ran, &farm, error, "add --password-file FILE; /dev/stdin is one as well");
    fs::write(at("wrong"), "battery staple\n").expect("there is room");
    let wrong = ["sign", word(&file), "--key", word(&theirs), "--password-file"];
    let ran = farm.run(&[&wrong[..], &[word(&at("wrong"))]].concat()).failed(1);
    let error = "reading ROOT/keys/theirs.key: the password is not the key's";
    says(&ran, &farm, error, "the first line of --password-file counts, without its line end");
    farm.run(&[&["sign", word(&file), "--key", word(&theirs)][..], &with_password].concat()).ok();
    verified_by_minisign(&farm, &file, &at("theirs.pub"));
    // Signed again by another: replaced.
    farm.run(&["sign", word(&file), "--key", word(&plain)]).ok();
    verified_by_minisign(&farm, &file, &at("plain.pub"));
    let error = "reading ROOT/keys/theirs.pub: not a secret key of minisign";
    let ran = farm.run(&["sign", word(&file), "--key", word(&at("theirs.pub"))]).failed(1);
    assert_eq!(masked(ran.error(), &farm), error);
    let ran = farm.run(&["key", "trust", word(&theirs)]).failed(1);
    let error = "reading ROOT/keys/theirs.key: a secret key, not a public one";
    assert_eq!(masked(ran.error(), &farm), error);

    // Ours in minisign.
    let message = at("message");
    fs::write(&message, "hello").expect("there is room");
    minisign("correct horse\n", &["-S", "-s", word(&ours), "-m", word(&message)]);
    minisign("", &["-V", "-p", word(&at("ours.pub")), "-m", word(&message)]);
    let bare = at("bare.key");
    farm.run(&["key", "generate", "--key", word(&bare)]).ok();
    minisign("", &["-S", "-s", word(&bare), "-m", word(&message)]);
    minisign("", &["-V", "-p", word(&at("bare.pub")), "-m", word(&message)]);
    let shown = farm.run(&["key", "show", "--key", word(&ours)]).ok().stdout;
    assert_eq!(shown, fs::read_to_string(at("ours.pub")).expect("it was made"));

    let ran = farm.run(&["key", "generate", "--key", word(&ours)]).failed(1);
    let hint = "farmctl key shows it; --key FILE makes another one elsewhere";
    says(&ran, &farm, "ROOT/keys/ours.key is there already", hint);
    let ran = farm.run(&["sign", word(&file)]).failed(1);
    let error = "there is no signing key ROOT/etc/farmctl/signing.key";
    says(&ran, &farm, error, "farmctl key generate");
    farm.assert_clean();
}

#[test]
fn a_node_with_keys_takes_nothing_that_is_not_signed_with_one_of_them() {
    let farm = Farm::new();
    let keys = directory(&farm, "keys");
    let (old, new) = (keys.join("old.key"), keys.join("new.key"));
    for key in [&old, &new] {
        farm.run(&["key", "generate", "--key", word(key)]).ok();
    }
    let id = |key: &Path| {
        let text = fs::read_to_string(key.with_extension("pub")).expect("it was made");
        text.lines().next().and_then(|line| line.rsplit(' ').next()).expect("an id").to_owned()
    };
    let (first, second) = (id(&old), id(&new));
    let file = tarball(&farm, "1.0", None);
    let trust = |key: &Path| farm.run(&["key", "trust", word(&key.with_extension("pub"))]).ok();
    let ran = trust(&old);
    assert!(ran.stderr.contains("from now on this node installs signed tarballs only"));
    assert!(trust(&old).stderr.contains(&format!("key {first} is trusted already")));

    let ran = farm.run(&["install", word(&file)]).failed(1);
    let at = "reading ROOT/out/shop_1.0_amd64.tar.xz: ";
    let error = format!("{at}it is not signed, and this node trusts {first} only");
    says(&ran, &farm, &error, "farmctl sign FILE, where the key is");
    let ran = farm.run(&["verify", word(&file)]).failed(3);
    let verifying = error.replace("reading", "verifying");
    says(&ran, &farm, &verifying, "farmctl sign FILE, where the key is");
    farm.run(&["sign", word(&file), "--key", word(&new)]).ok();
    let ran = farm.run(&["install", word(&file)]).failed(1);
    let error = format!("{at}it is signed by {second}, and this node trusts {first} only");
    says(&ran, &farm, &error, "if that key is yours: farmctl key trust FILE.pub");

    // The new key beside the old one: both count; then the old one goes.
    trust(&new);
    farm.run(&["install", word(&file)]).ok();
    farm.run(&["key", "forget", &first]).ok();
    let ran = farm.run(&["key"]).ok();
    assert!(ran.stdout.contains(&second) && !ran.stdout.contains(&first), "{}", ran.stdout);
    let other = tarball(&farm, "1.1", None);
    farm.run(&["sign", word(&other), "--key", word(&old)]).ok();
    let ran = farm.run(&["install", word(&other)]).failed(1);
    let hint = "if that key is yours: farmctl key trust FILE.pub";
    let at = at.replace("1.0", "1.1");
    let error = format!("{at}it is signed by {first}, and this node trusts {second} only");
    says(&ran, &farm, &error, hint);

    // A manifest changed after it was signed, sizes and checksums of the .xz right.
    farm.run(&["sign", word(&other), "--key", word(&new)]).ok();
    newer::with_manifest(&other, |text| text.replacen("sleep 86017", "sleep 86018", 1));
    let ran = farm.run(&["install", word(&other)]).failed(1);
    let error = format!("{at}the signature of key {second} is not over this manifest");
    let hint =
        "somebody changed the file: bake it again, or copy it again from where it was signed";
    says(&ran, &farm, &error, hint);
    assert_eq!(farm.run(&["verify", word(&other)]).failed(3).hint(), hint);

    // A file that is no key stops everything rather than count for nothing.
    fs::write(farm.root().join("etc/farmctl/keys.d/README"), "keys").expect("there is room");
    let ran = farm.run(&["install", word(&file)]).failed(1);
    let error = "reading ROOT/etc/farmctl/keys.d/README: not a public key of minisign";
    assert_eq!(masked(ran.error(), &farm), error);
    fs::remove_file(farm.root().join("etc/farmctl/keys.d/README")).expect("it is there");
    let ran = farm.run(&["key", "forget", "0123"]).failed(1);
    let hint = format!("it trusts {second}");
    says(&ran, &farm, "this node does not trust a key 0123", &hint);
    let ran = farm.run(&["key", "forget", &second]).ok();
    assert!(ran.stderr.contains("this node installs unsigned tarballs"), "{}", ran.stderr);
    farm.assert_clean();
}

#[test]
fn serials_only_rise_unless_it_is_asked_for() {
    let farm = Farm::new();
    let install =
        |file: &Path, more: &[&str]| farm.run(&[&["install", word(file)][..], more].concat());
    install(&tarball(&farm, "1.0", None), &[]).ok();
    let seventh = tarball(&farm, "1.1", Some(7));
    install(&seventh, &[]).ok();
    let sixth = tarball(&farm, "1.2", Some(6));
    let ran = install(&sixth, &[]).failed(1);
    let error = "shop 1.2 is older: its serial is 6, this node has had 7";
    says(&ran, &farm, error, "add --allow-downgrade if you want to go back");
    install(&sixth, &["--allow-downgrade"]).ok();
    let ran = install(&tarball(&farm, "1.3", Some(7)), &[]).failed(1);
    let error = "shop 1.3 has serial 7, which another release had before";
    says(&ran, &farm, error, "bake it with a higher --serial");
    let ran = install(&tarball(&farm, "1.4", None), &[]).failed(1);
    let error = "shop 1.4 has no serial, and this node has had 7";
    says(&ran, &farm, error, "bake it with --serial, or add --allow-downgrade");

    // What was removed is not forgotten; the same release comes back.
    farm.run(&["remove", "shop", "--data"]).ok();
    install(&sixth, &[]).failed(1);
    install(&seventh, &[]).ok();
    install(&tarball(&farm, "2.0", Some(8)), &[]).ok();
    install(&tarball(&farm, "2.1", Some(7)), &[]).failed(1);
    farm.assert_clean();
}

#[test]
fn a_release_whose_time_is_over_is_refused_unless_it_is_asked_for() {
    let farm = Farm::new();
    let pack = |version: &str, expires: &str| {
        let mut tiny = Tiny::new(&tiny::profile("shop", version, SLEEP));
        tiny.expires = Some(expires.to_owned());
        tiny.pack(&directory(&farm, "out"))
    };
    farm.run(&["install", word(&pack("1.0", "2999-12-31"))]).ok();
    let old = pack("1.1", "2024-02-29");
    let ran = farm.run(&["install", word(&old)]).failed(1);
    let hint =
        "bake a newer one; or add --allow-expired, if the clock is right and this one is wanted";
    says(&ran, &farm, "shop 1.1 expired on 2024-02-29", hint);
    farm.run(&["install", word(&old), "--allow-expired"]).ok();
    let shown = farm.run(&["show", word(&old)]).ok().stdout;
    assert!(shown.contains("expires") && shown.contains("2024-02-29"), "{shown}");
    farm.assert_clean();
}

#[test]
fn a_bake_signs_and_a_baked_tarball_is_signed_without_baking_it_again() {
    let farm = Farm::new();
    let profile = directory(&farm, "profiles/tiny");
    let text = tiny::profile("tiny", "1.0", tiny::LIGHT);
    fs::write(profile.join("profile.toml"), text).expect("there is room");
    let out = directory(&farm, "out");
    let bake = |more: &[&str]| {
        let words = ["bake", word(&profile), "--output", word(&out), "--serial", "3"];
        farm.run(&[&words[..], more].concat())
    };
    let ran = bake(&["--sign"]).failed(1);
    assert_eq!(ran.hint(), "farmctl key generate");
    farm.run(&["key", "generate"]).ok();
    let key = signing_key(&farm);
    farm.run(&["bootstrap", word(&profile)]).ok();
    let file = PathBuf::from(bake(&[]).ok().stdout.trim());
    let plain = Archive::open(&file).expect("it was baked");
    assert_eq!((plain.signature(), plain.manifest().serial), (None, Some(3)));
    let ran = bake(&["--sign"]).ok();
    assert!(ran.stderr.contains("is baked already"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("signed with {key}")), "{}", ran.stderr);
    let public = farm.root().join("etc/farmctl/signing.pub");
    verified_by_minisign(&farm, &file, &public);
    let signed = Archive::open(&file).expect("it was signed");
    assert_eq!(signed.identity(), plain.identity());
    let again = bake(&["--sign"]).ok();
    assert!(!again.stderr.contains("signed with"), "{}", again.stderr);
    let fresh = bake(&["--sign", "--fresh"]).ok();
    assert!(fresh.stderr.contains(&format!("signed with {key}")), "{}", fresh.stderr);
    verified_by_minisign(&farm, &file, &public);
    let fresh = Archive::open(&file).expect("it was baked");
    assert_eq!(fresh.identity(), plain.identity(), "a signature changes nothing it is over");
    assert_eq!(fs::read_dir(&out).expect("it is there").count(), 1, "no part is left");
    let ran = bake(&["--expires", "soon"]);
    assert_eq!(ran.code, 2);
    let said =
        "'soon' for '--expires <DATE>': it is neither a date, 2027-01-31, nor an RFC 3339 time";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    farm.assert_clean();
}
