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
