//! A profile on disk, with the files beside it.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::edit::{self, Files, Kind};
use crate::error::{Exit, Mark as _, refuse};
use crate::file;
use crate::hash;
use crate::lockfile::{self, LockFile};
use crate::profile::{self, Profile};
use crate::project::Survey;
use crate::run::check_interrupted;
use crate::template::{self, Values};

/// Names that never belong to a project's files: version control, byte code, other
/// virtualenvs, and what farmctl itself writes there.
const SKIPPED: [&str; 9] = [
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    ".venv",
    ".tox",
    ".mypy_cache",
    ".pytest_cache",
    "node_modules",
];

/// Refuses a template that cannot be rendered, before anything is made.
fn check_template(text: &str, values: &Values) -> Result<()> {
    match template::render(text, values) {
        Ok(_) => Ok(()),
        Err(mut fault) => {
            let hint = fault.hint.take();
            let refused = Err(fault.into());
            match hint {
                Some(hint) => refused.hint(hint),
                None => refused,
            }
        }
    }
}

/// A profile and the directory it lies in.
#[derive(Clone, Debug)]
pub struct Source {
    /// The profile, with its templates' texts in it.
    pub profile: Profile,
    /// Where it lies; relative paths of the profile begin here.
    pub directory: PathBuf,
    /// Its `farmctl.lock`, if there is one, and that file's SHA-256.
    pub lock: Option<(LockFile, String)>,
}

impl Source {
    /// Reads the profile at `path`: the file, or `profile.toml` in the directory.
    ///
    /// # Errors
    /// When it cannot be read or is not a profile: with line and column.
    pub fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join("profile.toml") } else { path.to_owned() };
        let text = fs::read_to_string(&file)
            .with_context(|| format!("reading the profile {}", file.display()))
            .hint("PROFILE is a profile's file, or a directory with a profile.toml")
            .exit(Exit::Usage)?;
        let mut profile = profile::parse(&text)
            .with_context(|| format!("reading the profile {}", file.display()))
            .hint("README.md has every key and what it takes; farmctl(8) says where it is")?;
        let file = file.canonicalize().with_context(|| format!("finding {}", file.display()))?;
        let directory = file.parent().unwrap_or(Path::new("/")).to_owned();
        let values = Values::of(&profile);
        for rendered in &mut profile.files {
            if let Some(template) = rendered.template.take() {
                let path = directory.join(&template);
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("reading the template {}", path.display()))
                    .hint("file.template is relative to the profile")
                    .exit(Exit::Usage)?;
                check_template(&text, &values)
                    .with_context(|| format!("reading the template {}", path.display()))
                    .exit(Exit::Usage)?;
                rendered.content = Some(text);
            }
        }
        let path = directory.join(lockfile::FILE);
        let lock = match file::read_if_there(&path)? {
            None => None,
            Some(text) => {
                let lock = LockFile::parse(&text)
                    .with_context(|| format!("reading {}", path.display()))
                    .hint("farmctl lock writes it anew")?;
                Some((lock, hash::sha256(text.as_bytes())))
            }
        };
        Ok(Self { profile, directory, lock })
    }

    /// Copies the project's files into the empty directory `target`, owned by root,
    /// with modes 0644 or 0755 and the time `epoch`; answers a SHA-256 over all of it.
    ///
    /// # Errors
    /// When a file cannot be read, or is neither file, directory nor link.
    pub fn copy_to(&self, target: &Path, epoch: i64) -> Result<String> {
        let mut hasher = Sha256::new();
        copy_tree(&self.directory, target, Path::new(""), epoch, &mut hasher)?;
        Ok(hash::hex(&hasher.finalize()))
    }

    /// SHA-256 of each of the profile's own packages.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn deb_hashes(&self) -> Result<Vec<String>> {
        let debs = self.profile.environment.debs.iter();
        debs.map(|deb| hash::of_file(&self.directory.join(deb))).collect()
    }

    /// What the project has, but for what editors make for themselves, and the SHA-256
    /// [`Self::copy_to`] would answer. `see` is told of each directory before it is read.
    ///
    /// # Errors
    /// As there, and those of `see`.
    pub fn files(&self, see: &mut dyn FnMut(&Path) -> Result<()>) -> Result<(Files, String)> {
        let (mut files, mut hasher) = (Files::new(), Sha256::new());
        see(&self.directory)?;
        walk(&self.directory, Path::new(""), &mut |path, inside, metadata| {
            if metadata.is_dir() {
                see(path)?;
            }
            let content = content_of(path, metadata)?;
            hasher.update(line_of(&content, inside, metadata));
            let name = inside.file_name().unwrap_or_default().to_string_lossy();
            if !edit::is_editors(&name) {
                files.insert(inside.to_owned(), kind_of(content, metadata));
            }
            Ok(())
        })?;
        Ok((files, hash::hex(&hasher.finalize())))
    }

    /// The SHA-256 [`Self::copy_to`] would answer.
    ///
    /// # Errors
    /// As there.
    pub fn project_hash(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        hash_tree(&self.directory, Path::new(""), &mut hasher)?;
        Ok(hash::hex(&hasher.finalize()))
    }
}

fn is_skipped(name: &str) -> bool {
    let ours =
        name == lockfile::FILE || name.ends_with(".tar.xz") || name.ends_with(".tar.xz.part");
    SKIPPED.contains(&name) || name.ends_with(".pyc") || ours
}

fn hash_tree(from: &Path, inside: &Path, hasher: &mut Sha256) -> Result<()> {
    walk(from, inside, &mut |path, inside, metadata| note(hasher, path, inside, metadata))
}

fn note(hasher: &mut Sha256, path: &Path, inside: &Path, metadata: &fs::Metadata) -> Result<()> {
    hasher.update(line_of(&content_of(path, metadata)?, inside, metadata));
    Ok(())
}

/// Where a link leads, or the SHA-256 of a file; empty for a directory.
fn content_of(path: &Path, metadata: &fs::Metadata) -> Result<String> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        fs::read_link(path)
            .map(|target| target.to_string_lossy().into_owned())
            .with_context(|| format!("reading {}", path.display()))
    } else if kind.is_file() {
        hash::of_file(path)
    } else {
        Ok(String::new())
    }
}

/// What a path adds to the project's hash.
fn line_of(content: &str, inside: &Path, metadata: &fs::Metadata) -> String {
    let kind = metadata.file_type();
    let mark = if kind.is_dir() {
        "d"
    } else if kind.is_symlink() {
        "l"
    } else if is_program(metadata) {
        "x"
    } else {
        "f"
    };
    format!("{mark} {}\0{content}\0", inside.display())
}

fn kind_of(content: String, metadata: &fs::Metadata) -> Kind {
    let kind = metadata.file_type();
    if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Link(content)
    } else {
        Kind::File { sha256: content, program: is_program(metadata) }
    }
}

fn is_program(metadata: &fs::Metadata) -> bool {
    metadata.permissions().mode() & 0o100 != 0
}

/// Visits everything that belongs to the project, sorted by name, directories first
/// themselves and then what they hold.
fn walk(
    from: &Path,
    inside: &Path,
    visit: &mut dyn FnMut(&Path, &Path, &fs::Metadata) -> Result<()>,
) -> Result<()> {
    for name in file::names_in(&from.join(inside))? {
        check_interrupted()?;
        if is_skipped(&name) {
            continue;
        }
        let inside = inside.join(&name);
        let path = from.join(&inside);
        let metadata = fs::symlink_metadata(&path)
            .with_context(|| format!("looking at {}", path.display()))?;
        let kind = metadata.file_type();
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
            return refuse(
                format_args!("{} is neither file, directory nor link", path.display()),
                "move it out of the project's directory",
            );
        }
        // A virtualenv by any name is not part of the project.
        if kind.is_dir() && path.join("pyvenv.cfg").exists() {
            continue;
        }
        visit(&path, &inside, &metadata)?;
        if kind.is_dir() {
            walk(from, &inside, visit)?;
        }
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path, inside: &Path, epoch: i64, hasher: &mut Sha256) -> Result<()> {
    walk(from, inside, &mut |path, inside, metadata| {
        note(hasher, path, inside, metadata)?;
        copy_one(path, &to.join(inside), metadata, epoch)
    })
}

fn copy_one(from: &Path, to: &Path, metadata: &fs::Metadata, epoch: i64) -> Result<()> {
    let kind = metadata.file_type();
    let copy = || -> std::io::Result<()> {
        if kind.is_dir() {
            fs::DirBuilder::new().mode(0o755).create(to)
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(from)?, to)
        } else {
            fs::copy(from, to)?;
            let mode = if is_program(metadata) { 0o755 } else { 0o644 };
            fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(epoch.unsigned_abs());
            fs::File::options().write(true).open(to)?.set_modified(time)
        }
    };
    copy().with_context(|| format!("copying {}", from.display()))
}

/// Largest file whose text a survey reads, in bytes: a source is smaller.
const READ_LIMIT: u64 = 1 << 20;

/// The files of a project's directory, with the texts that say what it is.
///
/// # Errors
/// When something in it cannot be read.
pub fn survey(directory: &Path) -> Result<Survey> {
    let mut survey = Survey::default();
    walk(directory, Path::new(""), &mut |path, inside, metadata| {
        if metadata.is_dir() {
            return Ok(());
        }
        let name = inside.to_string_lossy();
        let wanted = metadata.is_file() && metadata.len() <= READ_LIMIT && Survey::wants(&name);
        let text = if wanted {
            let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            String::from_utf8(bytes).ok()
        } else {
            None
        };
        survey.add(name, text);
        Ok(())
    })?;
    Ok(survey)
}

/// Copies a file or a directory with everything in it, modes and links kept, owned by root.
///
/// # Errors
/// When something cannot be read or written.
pub fn copy_as_is(from: &Path, to: &Path, epoch: i64) -> Result<()> {
    if let Some(parent) = to.parent() {
        file::make_directory(parent, 0o755)?;
    }
    let metadata =
        fs::symlink_metadata(from).with_context(|| format!("looking at {}", from.display()))?;
    if !metadata.is_dir() {
        return copy_one(from, to, &metadata, epoch);
    }
    file::make_directory(to, 0o755)?;
    walk(from, Path::new(""), &mut |path, inside, metadata| {
        copy_one(path, &to.join(inside), metadata, epoch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_hash_sees_contents_and_modes_but_not_byte_code() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| root.path().join(name);
        fs::write(path("app.py"), "one").expect("it is writable");
        let hash = || {
            let mut hasher = Sha256::new();
            hash_tree(root.path(), Path::new(""), &mut hasher).expect("all can be read");
            hasher.finalize()
        };
        let first = hash();
        fs::create_dir(path("__pycache__")).expect("it is writable");
        fs::write(path("__pycache__/app.pyc"), "code").expect("it is writable");
        assert_eq!(hash(), first);
        fs::set_permissions(path("app.py"), fs::Permissions::from_mode(0o755)).expect("it is ours");
        assert_ne!(hash(), first);
    }

    #[test]
    fn the_files_of_a_project_are_what_its_hash_is_over() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| root.path().join(name);
        let profile = "schema = 1\nname = \"x\"\nversion = \"1\"\n[environment]\n\
                       suite = \"bookworm\"\n[[process]]\nname = \"web\"\ncommand = \"x\"\n";
        fs::write(path("profile.toml"), profile).expect("it is writable");
        fs::create_dir_all(path("app/.git")).expect("it is writable");
        fs::write(path("app/app.py"), "one").expect("it is writable");
        fs::write(path("app/app.py~"), "none").expect("it is writable");
        let source = Source::read(root.path()).expect("it is a profile");
        let mut seen = Vec::new();
        let mut see = |path: &Path| {
            seen.push(path.to_owned());
            Ok(())
        };
        let (files, sha256) = source.files(&mut see).expect("all can be read");
        let names: Vec<&str> = files.keys().filter_map(|path| path.to_str()).collect();
        assert_eq!(names, ["app", "app/app.py", "profile.toml"]);
        assert_eq!(sha256, source.project_hash().expect("all can be read"));
        assert_eq!(seen, [source.directory.clone(), source.directory.join("app")]);
    }
}
