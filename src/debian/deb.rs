//! The file of a Debian package, deb(5), read without dpkg: a hundred of them take as long as
//! a few calls of dpkg-deb.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{BufReader, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use tar::EntryType;
use xz2::read::XzDecoder;

/// What a package's control archive has, by name.
#[derive(Debug, Default)]
pub(super) struct Control(BTreeMap<String, ControlFile>);

#[derive(Debug)]
struct ControlFile {
    mode: u32,
    /// Seconds since 1970.
    modified: u64,
    contents: Vec<u8>,
}

/// Reads a package's control archive.
///
/// # Errors
/// When the file is not a package as Debian's suites have them.
pub(super) fn control(deb: &Path) -> Result<Control> {
    let mut control = Control::default();
    read(deb, "control", |archive| {
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            if entry.header().entry_type() == EntryType::Regular {
                let path = entry.path()?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let (mode, modified) = (entry.header().mode()?, entry.header().mtime()?);
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents)?;
                control.0.insert(name, ControlFile { mode, modified, contents });
            }
        }
        Ok(())
    })?;
    Ok(control)
}

/// Reads one of a package's two tar archives: `control`, `data`.
///
/// # Errors
/// When it has no such archive compressed with xz, as all of Debian's are (deb(5) knows more
/// ways), and `body`'s own.
pub(super) fn read(
    deb: &Path,
    archive: &str,
    body: impl FnOnce(&mut dyn Read) -> Result<()>,
) -> Result<()> {
    let file = File::open(deb).with_context(|| format!("opening {}", deb.display()))?;
    let mut members = ar::Archive::new(BufReader::new(file));
    let wanted = format!("{archive}.tar.xz");
    while let Some(member) = members.next_entry() {
        let member = member.context("reading it")?;
        if member.header().identifier() == wanted.as_bytes() {
            return body(&mut XzDecoder::new(member));
        }
    }
    bail!("it has no {wanted}")
}

impl Control {
    /// Writes its files into a directory, each by the name that `called` gives it, if any.
    pub fn write(&self, directory: &Path, called: impl Fn(&str) -> Option<String>) -> Result<()> {
        for (name, file) in &self.0 {
            let Some(called) = called(name) else { continue };
            let path = directory.join(called);
            let write = || -> std::io::Result<()> {
                let mut out = File::create(&path)?;
                out.write_all(&file.contents)?;
                out.set_permissions(Permissions::from_mode(file.mode))?;
                out.set_modified(UNIX_EPOCH + Duration::from_secs(file.modified))
            };
            write().with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// Whether it has a file.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A file of it, empty if it has none.
    pub fn text(&self, name: &str) -> Result<&str> {
        let contents = self.0.get(name).map_or(&[][..], |file| &file.contents);
        std::str::from_utf8(contents).with_context(|| format!("reading its {name}"))
    }

    /// A field of its file `control`.
    pub fn field(&self, name: &str) -> Result<Option<&str>> {
        let lines = self.text("control")?.lines();
        let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(values.next().map(str::trim))
    }
}

#[cfg(test)]
pub(super) mod fixture {
    use super::*;
    use xz2::write::XzEncoder;

    /// A tar archive in the making.
    pub type Tar = tar::Builder<XzEncoder<Vec<u8>>>;

    /// Adds a member of root's to an archive; what is not a file has a target for contents,
    /// or none.
    pub fn add(tar: &mut Tar, kind: EntryType, path: &str, mode: u32, contents: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.set_link_name_literal(contents).expect("it is short");
        }
        let contents = if is_link { "" } else { contents };
        header.set_size(contents.len() as u64);
        // Also what `append_data` refuses.
        header.as_gnu_mut().expect("it is").name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, contents.as_bytes()).expect("it is in memory");
    }

    /// Writes a package with these control files and what `fill` adds.
    pub fn write(path: &Path, control: &[(&str, &str)], fill: impl FnOnce(&mut Tar)) {
        let archive = |fill: &dyn Fn(&mut Tar)| {
            let mut tar = Tar::new(XzEncoder::new(Vec::new(), 0));
            fill(&mut tar);
            tar.into_inner().and_then(XzEncoder::finish).expect("it is in memory")
        };
        let fill = std::cell::Cell::new(Some(fill));
        let members = [
            ("debian-binary", b"2.0\n".to_vec()),
            (
                "control.tar.xz",
                archive(&|tar| {
                    for (name, text) in control {
                        add(tar, EntryType::Regular, &format!("./{name}"), 0o644, text);
                    }
                }),
            ),
            ("data.tar.xz", archive(&|tar| fill.take().expect("it is filled once")(tar))),
        ];
        let mut deb = ar::Builder::new(File::create(path).expect("there is room"));
        for (name, bytes) in members {
            let header = ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64);
            deb.append(&header, &bytes[..]).expect("there is room");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_package_says_of_itself_is_read() {
        let place = tempfile::tempdir().expect("there is room");
        let deb = place.path().join("a.deb");
        let text = "Package: a\nPackage-Type: deb\nDescription: b\n Package: c\n";
        fixture::write(&deb, &[("control", text), ("postinst", "#!/bin/sh\n")], |_| ());
        let control = control(&deb).expect("it is a package");
        assert_eq!(control.field("Package").expect("it is text"), Some("a"));
        assert_eq!(control.field("Pack").expect("it is text"), None);
        assert!(control.has("postinst") && !control.has("preinst"));
        assert_eq!(control.text("triggers").expect("there is none"), "");
        let called = |name: &str| (name != "control").then(|| format!("a.{name}"));
        control.write(place.path(), called).expect("there is room");
        let written = std::fs::metadata(place.path().join("a.postinst")).expect("it is there");
        let modified = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert_eq!(written.modified().expect("it has one"), modified);
        assert!(!place.path().join("a.control").exists());
    }

    #[test]
    fn what_is_no_package_is_told() {
        let place = tempfile::tempdir().expect("there is room");
        let path = place.path().join("a.deb");
        let says = || format!("{:#}", control(&path).expect_err("it is none"));
        std::fs::write(&path, "no archive").expect("there is room");
        assert!(says().starts_with("reading it: "), "{}", says());
        std::fs::write(&path, "!<arch>\n").expect("there is room");
        assert_eq!(says(), "it has no control.tar.xz");
        fixture::write(&path, &[], |_| ());
        let whole = std::fs::read(&path).expect("it is there");
        std::fs::write(&path, &whole[..whole.len() - 20]).expect("there is room");
        let copied =
            read(&path, "data", |archive| Ok(std::io::copy(archive, &mut Vec::new()).map(drop)?));
        let error = copied.expect_err("it was cut short").to_string();
        assert_eq!(error, "premature eof");
    }
}
