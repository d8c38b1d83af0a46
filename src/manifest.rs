//! The members a node tarball begins with: its manifest, perhaps a signature over that,
//! and its file index.
//!
//! Pure values. The identity of a release is the SHA-256 of the manifest's bytes as
//! they lie in the tarball.

use std::cmp::Ordering;
use std::fmt;

use anyhow::{Context as _, Result, anyhow, ensure};
use schemars::JsonSchema;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::refuse;
use crate::profile::Profile;

/// The newest manifest schema this farmctl reads.
pub const SCHEMA: u32 = 1;
/// Name of the first member.
pub const MANIFEST_MEMBER: &str = ".farmctl/manifest.json";
/// Name of the member between the two that a signed tarball has: minisign(1) looks for a
/// signature under this name, beside what it is over.
pub const SIGNATURE_MEMBER: &str = ".farmctl/manifest.json.minisig";
/// Name of the second member, or the third of a signed tarball.
pub const FILES_MEMBER: &str = ".farmctl/files.json";
/// Largest signature that is read, in bytes.
pub const SIGNATURE_LIMIT: u64 = 4096;
/// Largest manifest that is read, in bytes.
pub const MANIFEST_LIMIT: u64 = 1 << 20;
/// Largest file index that is read, in bytes.
pub const FILES_LIMIT: u64 = 256 << 20;
/// Most paths a tarball may hold.
pub const ENTRIES_LIMIT: usize = 1_000_000;
/// Largest payload that is read, bytes of tar: sums of sizes below it never overflow.
pub const PAYLOAD_LIMIT: u64 = 1 << 40;
/// Longest name or version of what went in, bytes.
const WORD_LIMIT: usize = 255;

/// The one field every schema has.
#[derive(Deserialize)]
struct Versioned {
    schema: u32,
}

/// Reads a manifest's bytes.
///
/// # Errors
/// When they are none, or a newer farmctl's.
pub fn parse(bytes: &[u8]) -> Result<Manifest> {
    let context = "reading the manifest";
    let Versioned { schema } = serde_json::from_slice(bytes).context(context)?;
    check_schema(schema)?;
    serde_json::from_slice(bytes).context(context)
}

/// Reads a file index that is kept beside a manifest.
///
/// # Errors
/// When it is none, or a newer farmctl's.
pub fn parse_index(text: &str) -> Result<FileIndex> {
    let index: FileIndex = serde_json::from_str(text)?;
    check_schema(index.schema)?;
    Ok(index)
}

fn check_schema(schema: u32) -> Result<()> {
    if schema > SCHEMA {
        return refuse(
            format!("made by a newer farmctl (schema {schema}, this one reads {SCHEMA})"),
            "upgrade farmctl",
        );
    }
    ensure!(schema == SCHEMA, "the manifest has schema {schema}, which never was");
    Ok(())
}

/// `.farmctl/manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format; 1.
    pub schema: u32,
    /// Version of the farmctl that baked it.
    pub farmctl: String,
    /// Name of the application.
    pub name: String,
    /// Version of the application.
    pub version: String,
    /// Debian architecture: `amd64`, `arm64`.
    pub architecture: String,
    /// Seconds since 1970: no file is newer.
    pub epoch: i64,
    /// A number that only rises from release to release, for refusing downgrades.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// Last day on which it may be installed, `2027-01-31`, or the second: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Of a release that was made on its node of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derived: Option<Derived>,
    /// The profile it was baked from, templates included.
    pub profile: Profile,
    /// What went in.
    pub inputs: Inputs,
    /// The file index.
    pub files: Hashed,
    /// The tar stream after the first two members, end marker included.
    pub payload: Payload,
    /// The payload's segments in order, each one block of the .xz stream.
    pub segments: Vec<Segment>,
    /// The only set-user-ID and set-group-ID files of the payload.
    pub set_id: Vec<SetId>,
    /// The only files of the payload with capabilities.
    pub capabilities: Vec<Capability>,
}

/// How a release was made of another one, by `farmctl upgrade --in-place`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Derived {
    /// Version of the other one.
    pub from: String,
    /// SHA-256 of its manifest, hex.
    pub identity: String,
    /// What was installed: requirements, or paths on the node.
    pub by: Vec<String>,
}

/// What went into a bake.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Inputs {
    /// The signed indexes of the archive.
    pub releases: Vec<InRelease>,
    /// Debian packages in the tarball, by name.
    pub packages: Vec<Package>,
    /// SHA-256 of the locked packages the environment was made of, hex; empty if it was
    /// made of what the mirror offered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub packages_sha256: String,
    /// Python distributions in the virtualenv, by name.
    pub distributions: Vec<Distribution>,
    /// SHA-256 over the project's files, hex; empty without a project.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub project_sha256: String,
    /// SHA-256 of `farmctl.lock`, hex; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lock_sha256: String,
}

/// One InRelease file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct InRelease {
    /// Suite as the mirror names it: `bookworm-security`.
    pub suite: String,
    /// SHA-256 of the file, hex.
    pub sha256: String,
    /// Its `Date:`, seconds since 1970.
    pub date: i64,
}

/// A Debian package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Package {
    /// Binary package name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// Architecture of the package.
    pub architecture: String,
}

/// A Python distribution.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Distribution {
    /// Name as its metadata writes it.
    pub name: String,
    /// Version.
    pub version: String,
}

/// Size and hash of a piece of the tarball.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Hashed {
    /// Bytes.
    pub size: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// The payload as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Payload {
    /// Bytes of tar.
    pub size: u64,
    /// SHA-256 of those, hex.
    pub sha256: String,
    /// Members.
    pub entries: u64,
    /// Bytes of file contents: what an installed release takes on disk, about.
    pub content: u64,
}

/// One block of the .xz stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Segment {
    /// Bytes of tar in it.
    pub size: u64,
    /// Bytes of the block in the file, padding included.
    pub xz_size: u64,
    /// SHA-256 of those bytes of the file, hex.
    pub sha256: String,
}

/// A set-user-ID or set-group-ID file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SetId {
    /// Path, no leading slash.
    pub path: String,
    /// Permission bits, 12 of them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A file with capabilities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Capability {
    /// Path, no leading slash.
    pub path: String,
    /// Value of `security.capability`, hex.
    pub value: String,
}

/// `.farmctl/files.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileIndex {
    /// Version of this format; 1.
    pub schema: u32,
    /// Every path, ascending by bytes; at most [`ENTRIES_LIMIT`].
    #[serde(deserialize_with = "bounded")]
    pub files: Vec<FileEntry>,
}

impl FileIndex {
    /// Every path of this index and of another one, ascending, as each has it.
    #[must_use]
    pub fn paired<'a>(
        &'a self,
        other: &'a Self,
    ) -> Vec<(Option<&'a FileEntry>, Option<&'a FileEntry>)> {
        let mut left = self.files.iter().peekable();
        let mut right = other.files.iter().peekable();
        let mut pairs = Vec::with_capacity(self.files.len().max(other.files.len()));
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => return pairs,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) => one.path.as_bytes().cmp(other.path.as_bytes()),
            };
            let one = if order.is_le() { left.next() } else { None };
            pairs.push((one, if order.is_ge() { right.next() } else { None }));
        }
    }
}

/// One path of the payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileEntry {
    /// Path, no leading slash; bytes that are not UTF-8 do not occur in a tarball farmctl bakes.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, 12 of them; 0o777 for symbolic links.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Whose it is.
    pub owner: Owner,
}

impl FileEntry {
    /// SHA-256 of its content, hex; none if it is no file.
    #[must_use]
    pub fn sha256(&self) -> Option<&str> {
        match &self.kind {
            FileKind::File { sha256, .. } => Some(sha256),
            _ => None,
        }
    }
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// SHA-256 of the contents, hex.
        sha256: String,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to, as stored.
        target: String,
    },
    /// Another name of an earlier file.
    HardLink {
        /// Path of that file.
        target: String,
    },
}

/// Whose a path is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// A Debian package.
    Package(String),
    /// A Python distribution.
    Distribution(String),
    /// The project.
    Project,
    /// Made by maintainer scripts or by farmctl.
    Generated,
}

impl Manifest {
    /// Checks every value that becomes part of a name, a path, a configuration file or a
    /// line on a terminal: a manifest is what a stranger wrote until this has passed.
    ///
    /// # Errors
    /// Names the key and what is wrong with it.
    pub fn validate(&self) -> Result<()> {
        // Its error is about a profile the user wrote; here it is one of several reasons.
        self.profile.validate().map_err(|error| anyhow!("its profile: {error:#}"))?;
        for (key, own, profile) in [
            ("name", &self.name, &self.profile.name),
            ("version", &self.version, &self.profile.version),
        ] {
            ensure!(own == profile, "its {key} is {own:?}, its profile's {profile:?}");
        }
        let letters = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        ensure!(
            !self.architecture.is_empty()
                && self.architecture.bytes().all(|letter| letters(letter) || letter == b'-'),
            "{:?} is not a Debian architecture",
            self.architecture
        );
        ensure!(
            self.payload.size <= PAYLOAD_LIMIT && self.payload.content <= PAYLOAD_LIMIT,
            "its payload is larger than {PAYLOAD_LIMIT} bytes"
        );
        self.expiry()?;
        check_word("farmctl", &self.farmctl)?;
        for release in &self.inputs.releases {
            check_word("inputs.releases", &release.suite)?;
            check_word("inputs.releases", &release.sha256)?;
        }
        for Package { name, version, architecture } in &self.inputs.packages {
            for word in [name, version, architecture] {
                check_word("inputs.packages", word)?;
            }
        }
        for Distribution { name, version } in &self.inputs.distributions {
            check_word("inputs.distributions", name)?;
            check_word("inputs.distributions", version)?;
        }
        Ok(())
    }
}

impl Manifest {
    /// When it is too old to be installed, seconds since 1970; never, if it does not say.
    ///
    /// # Errors
    /// When what it says is no date.
    pub fn expiry(&self) -> Result<Option<i64>> {
        self.expires.as_deref().map(parse_expiry).transpose()
    }
}

/// The second a date is over, or the second a time names; since 1970.
///
/// # Errors
/// When it is neither.
pub fn parse_expiry(text: &str) -> Result<i64> {
    let day = || -> std::result::Result<i64, jiff::Error> {
        let date: jiff::civil::Date = text.parse()?;
        Ok(date.tomorrow()?.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp().as_second())
    };
    // The date first: a date and a time parse as a date, too.
    let parsed = if text.len() == "2027-01-31".len() {
        day()
    } else {
        text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_second)
    };
    parsed.map_err(|_| anyhow!("{text:?} is neither a date, 2027-01-31, nor an RFC 3339 time"))
}

/// A name or version: printable, one line, of a length people can read.
fn check_word(key: &str, word: &str) -> Result<()> {
    ensure!(
        !word.is_empty() && word.len() <= WORD_LIMIT && !word.chars().any(char::is_control),
        "its {key} has {word:?}, which is not a name or version"
    );
    Ok(())
}

impl Owner {
    /// Checks the name in it, as [`Manifest::validate`] does.
    ///
    /// # Errors
    /// When it is none.
    pub fn validate(&self) -> Result<()> {
        match self {
            Owner::Package(name) | Owner::Distribution(name) => check_word("owner", name),
            Owner::Project | Owner::Generated => Ok(()),
        }
    }
}

/// Reads the entries of a file index and stops at [`ENTRIES_LIMIT`], before memory is
/// spent on what would be refused anyway.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<FileEntry>, D::Error> {
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<FileEntry>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {ENTRIES_LIMIT} files")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut files = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if files.len() == ENTRIES_LIMIT {
                    return Err(A::Error::invalid_length(ENTRIES_LIMIT + 1, &self));
                }
                files.push(entry);
            }
            Ok(files)
        }
    }
    deserializer.deserialize_seq(Entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        let entry = FileEntry {
            path: "usr/bin/env".to_owned(),
            kind: FileKind::File { size: 3, sha256: "00".to_owned() },
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: 7,
            owner: Owner::Package("coreutils".to_owned()),
        };
        let text = r#"{"path":"usr/bin/env","kind":{"file":{"size":3,"sha256":"00"}},"mode":493,"uid":0,"gid":0,"mtime":7,"owner":{"package":"coreutils"}}"#;
        assert_eq!(serde_json::to_string(&entry).expect("plain values"), text);
        assert_eq!(serde_json::from_str::<FileEntry>(text).expect("as written"), entry);
        let directory = FileEntry { kind: FileKind::Directory, ..entry };
        let text = serde_json::to_string(&directory).expect("plain values");
        assert!(text.contains(r#""kind":"directory""#), "{text}");
    }

    #[test]
    fn a_release_expires_when_its_day_is_over() {
        assert_eq!(parse_expiry("1970-01-01").expect("a date"), 86_400);
        assert_eq!(parse_expiry("1970-01-01T00:00:07Z").expect("a time"), 7);
        assert_eq!(parse_expiry("1970-01-01T01:00:07+01:00").expect("a time"), 7);
        for text in ["", "soon", "2027-02-30", "2027-1-1", "31.01.2027", "2027-01-31T00:00:00"] {
            parse_expiry(text).expect_err(text);
        }
    }

    #[test]
    fn an_unknown_key_of_an_entry_is_refused() {
        for text in [
            r#"{"path":"a","kind":"directory","mode":0,"uid":0,"gid":0,"mtime":0,"owner":"project","x":1}"#,
            r#"{"path":"a","kind":{"symlink":{"target":"b","x":1}},"mode":0,"uid":0,"gid":0,"mtime":0,"owner":"project"}"#,
        ] {
            let error = serde_json::from_str::<FileEntry>(text).expect_err("it has a key x");
            assert!(error.to_string().contains("unknown field `x`"), "{error}");
        }
    }
}
