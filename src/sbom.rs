//! What a release is made of, in the formats of others: CycloneDX and SPDX.
//!
//! Pure values out of a manifest and a file index, the same ones every time: the times in
//! them are the release's epoch, the numbers its identity.
//!
//! CycloneDX 1.5 (<https://cyclonedx.org/docs/1.5/json/>), SPDX 2.3
//! (<https://spdx.github.io/spdx-spec/v2.3/>), purl (<https://github.com/package-url/purl-spec>).

use serde_json::{Value, json};

use crate::manifest::{FileIndex, FileKind, Manifest, Owner};

/// Something a release is made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    /// Name to both formats, of everything in the release another one.
    reference: String,
    name: String,
    version: String,
    /// Its package URL; a library that came in a distribution has none of its own.
    purl: Option<String>,
    /// Path and SHA-256, hex, of a library that came in a distribution.
    file: Option<(String, String)>,
}

/// The bill of materials as CycloneDX 1.5, for a release of this identity.
#[must_use]
pub fn cyclonedx(manifest: &Manifest, files: &FileIndex, identity: &str) -> Value {
    let parts = parts(manifest, files);
    let component = |part: &Part| {
        let mut component = json!({
            "type": "library",
            "bom-ref": part.reference,
            "name": part.name,
            "version": part.version,
        });
        if let Some(purl) = &part.purl {
            component["purl"] = json!(purl);
        }
        if let Some((path, sha256)) = &part.file {
            component["type"] = json!("file");
            component["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
            component["properties"] = json!([{ "name": "farmctl:path", "value": path }]);
        }
        component
    };
    let references: Vec<&str> = parts.iter().map(|part| part.reference.as_str()).collect();
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": format!("urn:uuid:{}", uuid(identity)),
        "version": 1,
        "metadata": {
            "timestamp": time(manifest.epoch),
            "tools": { "components": [
                { "type": "application", "name": "farmctl", "version": manifest.farmctl },
            ] },
            "component": {
                "type": "application",
                "bom-ref": "release",
                "name": manifest.name,
                "version": manifest.version,
                "properties": [
                    { "name": "farmctl:manifest-sha256", "value": identity },
                    { "name": "farmctl:architecture", "value": manifest.architecture },
                ],
            },
        },
        "components": parts.iter().map(component).collect::<Vec<_>>(),
        "dependencies": [{ "ref": "release", "dependsOn": references }],
    })
}

/// The bill of materials as SPDX 2.3, for a release of this identity.
#[must_use]
pub fn spdx(manifest: &Manifest, files: &FileIndex, identity: &str) -> Value {
    let parts = parts(manifest, files);
    let package = |id: &str, name: &str, version: &str| {
        json!({
            "SPDXID": id,
            "name": name,
            "versionInfo": version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": false,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION",
        })
    };
    let release = "SPDXRef-release";
    let relation = |from: &str, kind: &str, to: &str| json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to });
    let mut packages = vec![package(release, &manifest.name, &manifest.version)];
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", release)];
    for (number, part) in parts.iter().enumerate() {
        let id = format!("SPDXRef-{}-{}", number + 1, plain(&part.name));
        let mut entry = package(&id, &part.name, &part.version);
        if let Some(purl) = &part.purl {
            entry["externalRefs"] = json!([{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": purl,
            }]);
        }
        if let Some((path, sha256)) = &part.file {
            entry["packageFileName"] = json!(path);
            entry["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]);
        }
        packages.push(entry);
        relations.push(relation(release, "CONTAINS", &id));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{}-{}", manifest.name, manifest.version),
        "documentNamespace": format!("urn:uuid:{}", uuid(identity)),
        "creationInfo": {
            "created": time(manifest.epoch),
            "creators": [format!("Tool: farmctl-{}", manifest.farmctl)],
        },
        "packages": packages,
        "relationships": relations,
    })
}

/// Debian packages, Python distributions, and native libraries that came in the latter.
fn parts(manifest: &Manifest, files: &FileIndex) -> Vec<Part> {
    let suite = &manifest.profile.environment.suite;
    let mut parts: Vec<Part> = Vec::new();
    for package in &manifest.inputs.packages {
        let purl = format!(
            "pkg:deb/debian/{}@{}?arch={}&distro={}",
            encode(&package.name),
            encode(&package.version),
            encode(&package.architecture),
            encode(suite)
        );
        parts.push(Part {
            reference: purl.clone(),
            name: package.name.clone(),
            version: package.version.clone(),
            purl: Some(purl),
            file: None,
        });
    }
    for distribution in &manifest.inputs.distributions {
        // PEP 503 names, as the package index has them.
        let mut name = distribution.name.to_ascii_lowercase().replace(['_', '.'], "-");
        while name.contains("--") {
            name = name.replace("--", "-");
        }
        let purl = format!("pkg:pypi/{}@{}", encode(&name), encode(&distribution.version));
        parts.push(Part {
            reference: purl.clone(),
            name: distribution.name.clone(),
            version: distribution.version.clone(),
            purl: Some(purl),
            file: None,
        });
    }
    for entry in &files.files {
        let (Owner::Distribution(owner), FileKind::File { sha256, .. }) =
            (&entry.owner, &entry.kind)
        else {
            continue;
        };
        let name = entry.path.rsplit('/').next().unwrap_or(&entry.path);
        // Libraries a wheel brings along, not the modules it is made of.
        if !name.starts_with("lib") || !(name.ends_with(".so") || name.contains(".so.")) {
            continue;
        }
        let version = manifest.inputs.distributions.iter().find(|one| one.name == *owner);
        parts.push(Part {
            reference: format!("file:/{}", encode(&entry.path)),
            name: name.to_owned(),
            version: version.map_or(String::new(), |one| format!("in {owner} {}", one.version)),
            purl: None,
            file: Some((format!("/{}", entry.path), sha256.clone())),
        });
    }
    parts.sort();
    parts.dedup_by(|one, other| one.reference == other.reference);
    parts
}

/// Percent-encoded for a package URL; a colon stays, as in Debian's epochs.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b".-_~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Letters an SPDX identifier may have.
fn plain(text: &str) -> String {
    let letter = |letter: char| {
        if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' }
    };
    text.chars().map(letter).collect()
}

/// A UUID of version 8 (RFC 9562) out of the first bytes of an identity, in hex.
fn uuid(identity: &str) -> String {
    let hex: String = identity.chars().chain(std::iter::repeat('0')).take(32).collect();
    let variant = match hex.as_bytes()[16] {
        digit @ (b'8' | b'9' | b'a' | b'b') => char::from(digit),
        digit => char::from(b"89ab"[usize::from(digit % 4)]),
    };
    format!(
        "{}-{}-8{}-{variant}{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[13..16],
        &hex[17..20],
        &hex[20..32]
    )
}

/// A time in seconds since 1970, as RFC 3339 in UTC.
fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| String::new(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls_are_encoded_as_their_specification_says() {
        assert_eq!(encode("1:2.3.4+dfsg-1~deb12u1"), "1:2.3.4%2Bdfsg-1~deb12u1");
        assert_eq!(plain("libstdc++6"), "libstdc--6");
    }

    #[test]
    fn a_number_of_a_document_is_a_uuid_of_the_releases_identity() {
        let identity = "e2c93b69de2400112233445566778899aabbccddeeff00112233445566778899";
        assert_eq!(uuid(identity), "e2c93b69-de24-8011-a233-445566778899");
    }

    fn sample() -> (Manifest, FileIndex) {
        let manifest = json!({
            "schema": 1, "farmctl": "0.1.0", "name": "shop", "version": "1.0",
            "architecture": "amd64", "epoch": 1_700_000_000,
            "profile": {
                "schema": 1, "name": "shop", "version": "1.0",
                "environment": { "suite": "bookworm" },
            },
            "inputs": {
                "releases": [],
                "packages": [
                    { "name": "libstdc++6", "version": "12.2.0-14", "architecture": "amd64" },
                ],
                "distributions": [{ "name": "Psycopg2_Binary", "version": "2.9" }],
            },
            "files": { "size": 0, "sha256": "" },
            "payload": { "size": 0, "sha256": "", "entries": 0, "content": 0 },
            "segments": [], "set-id": [], "capabilities": [],
        });
        let file = |path: &str| {
            json!({
                "path": path, "kind": { "file": { "size": 1, "sha256": "ab" } }, "mode": 0o644,
                "uid": 0, "gid": 0, "mtime": 0, "owner": { "distribution": "Psycopg2_Binary" },
            })
        };
        let files = ["venv/psycopg2/_psycopg.so", "venv/psycopg2.libs/libpq-1.so.5"].map(file);
        let index = json!({ "schema": 1, "files": files });
        let manifest = serde_json::from_value(manifest).expect("every key is there");
        (manifest, serde_json::from_value(index).expect("every key is there"))
    }

    #[test]
    fn packages_distributions_and_the_libraries_of_wheels_are_listed() {
        let (manifest, files) = sample();
        let lines = parts(&manifest, &files)
            .into_iter()
            .map(|part| format!("{} | {} | {}", part.reference, part.name, part.version));
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r"
        file:/venv%2Fpsycopg2.libs%2Flibpq-1.so.5 | libpq-1.so.5 | in Psycopg2_Binary 2.9
        pkg:deb/debian/libstdc%2B%2B6@12.2.0-14?arch=amd64&distro=bookworm | libstdc++6 | 12.2.0-14
        pkg:pypi/psycopg2-binary@2.9 | Psycopg2_Binary | 2.9
        ");
    }

    #[test]
    fn documents_are_the_same_every_time_and_name_everything_once() {
        let (manifest, files) = sample();
        for render in [cyclonedx, spdx] {
            let document = render(&manifest, &files, "00");
            assert_eq!(document, render(&manifest, &files, "00"));
            assert!(document.to_string().contains("2023-11-14T22:13:20Z"), "{document}");
        }
        let document = spdx(&manifest, &files, "00");
        let packages = document["packages"].as_array().expect("a list");
        let ids: std::collections::BTreeSet<_> =
            packages.iter().map(|package| package["SPDXID"].to_string()).collect();
        assert_eq!((packages.len(), ids.len()), (4, 4));
    }
}
