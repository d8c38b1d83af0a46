//! A recipe at work, written down before it begins.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{Node, Object, SCHEMA, now, random_id};
use crate::file;
use crate::storage::Mark;

/// What a transaction wrote down before it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TransactionRecord {
    /// Version of this format; 1.
    pub schema: u32,
    /// Id.
    pub id: String,
    /// Verb.
    pub verb: String,
    /// Application or environment.
    pub subject: String,
    /// When it began, seconds since 1970.
    pub began: i64,
    /// What it made or was about to make, oldest first.
    pub objects: Vec<Object>,
    /// Whether it failed and what it made is kept for a look, until `gc`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

/// A recipe at work. Closing it removes the record; dropping it leaves the record to `gc`.
#[derive(Debug)]
#[must_use = "a transaction that is not closed is rubbish to gc"]
pub struct Transaction {
    record: TransactionRecord,
    file: Flock<File>,
    path: PathBuf,
    node: String,
}

impl Transaction {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The verb that opened it.
    #[must_use]
    pub fn verb(&self) -> &str {
        &self.record.verb
    }

    /// The application or environment it is about.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.record.subject
    }

    /// When it began, seconds since 1970.
    #[must_use]
    pub fn began(&self) -> i64 {
        self.record.began
    }

    /// The mark volumes made by it carry.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { node: self.node.clone(), transaction: self.record.id.clone() }
    }

    /// What it made or was about to make, oldest first.
    #[must_use]
    pub fn objects(&self) -> &[Object] {
        &self.record.objects
    }

    /// Whether what it made is kept for a look, until `gc`.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.record.kept
    }

    /// Has what it made kept for a look, until `gc`.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn keep(mut self) -> Result<()> {
        self.record.kept = true;
        self.write()
    }

    /// Writes down that `object` is about to be made; to be called before it is.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn intend(&mut self, object: Object) -> Result<()> {
        self.record.objects.push(object);
        self.write()
    }

    /// Takes `object` off the record: it is published, or was there before.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn release(&mut self, object: &Object) -> Result<()> {
        self.record.objects.retain(|known| known != object);
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.record).context("writing a transaction")?;
        let mut write = |file: &mut File| -> std::io::Result<()> {
            // Killed before it is cut, a longer record that was there would follow: what
            // cannot be read is taken for a transaction that has made nothing.
            let size = text.len();
            let before = usize::try_from(file.metadata()?.len()).unwrap_or(size);
            text.resize(before.max(size), b'\n');
            file.rewind()?;
            file.write_all(&text)?;
            file.set_len(size as u64)?;
            file.sync_data()
        };
        write(&mut self.file).with_context(|| format!("writing {}", self.path.display()))
    }

    /// Ends the transaction: nothing of it is left to undo.
    ///
    /// # Errors
    /// When the record cannot be removed.
    pub fn close(self) -> Result<()> {
        file::remove_if_there(&self.path)?;
        // Else it may be there again after a power cut, and what it made is rubbish to gc.
        file::sync_directory(self.path.parent().unwrap_or(Path::new("/")))
    }
}

impl Node {
    /// Opens a transaction.
    ///
    /// # Errors
    /// When its record cannot be written.
    pub fn begin(&self, verb: &str, subject: &str) -> Result<Transaction> {
        let node = self.settle()?;
        let id = random_id()?;
        let path = self.layout.transaction_file(&id);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("making {}", path.display()))?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .with_context(|| format!("locking {}", path.display()))?;
        let record = TransactionRecord {
            schema: SCHEMA,
            id,
            verb: verb.to_owned(),
            subject: subject.to_owned(),
            began: now(),
            objects: Vec::new(),
            kept: false,
        };
        let mut transaction = Transaction { record, file, path, node };
        if let Err(error) = transaction.write() {
            // A full disk has room for the name of a file: it has made nothing, and says so.
            drop(fs::remove_file(&transaction.path));
            return Err(error);
        }
        Ok(transaction)
    }

    /// Takes over the transactions whose farmctl is gone: their locks are held by the
    /// answer, so that two `gc` do not work on one.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn abandoned(&self) -> Result<Vec<Transaction>> {
        let mut found = Vec::new();
        for name in file::names_in(&self.layout.transactions())? {
            let Some(id) = name.strip_suffix(".json") else { continue };
            let path = self.layout.transaction_file(id);
            let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else {
                continue;
            };
            let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
                continue;
            };
            let mut text = String::new();
            file.read_to_string(&mut text)
                .with_context(|| format!("reading {}", path.display()))?;
            // Killed between making the file and writing it: it had made nothing.
            let record = serde_json::from_str(&text).unwrap_or_else(|_| TransactionRecord {
                schema: SCHEMA,
                id: id.to_owned(),
                verb: "unknown".to_owned(),
                subject: "unknown".to_owned(),
                began: 0,
                objects: Vec::new(),
                kept: false,
            });
            let node = self.id.clone().unwrap_or_default();
            found.push(Transaction { record, file, path, node });
        }
        Ok(found)
    }

    /// Everything that living and abandoned transactions have written down.
    ///
    /// # Errors
    /// When the records cannot be listed.
    pub fn journaled(&self) -> Result<Vec<Object>> {
        let mut objects = Vec::new();
        for name in file::names_in(&self.layout.transactions())? {
            // Gone or half written since: then its transaction has made nothing yet, or nothing more.
            let text =
                fs::read_to_string(self.layout.transactions().join(&name)).unwrap_or_default();
            let Ok(record) = serde_json::from_str::<TransactionRecord>(&text) else { continue };
            objects.push(Object::Path { path: self.layout.work(&record.id) });
            objects.extend(record.objects);
        }
        Ok(objects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn a_transaction_is_abandoned_when_nobody_holds_its_record() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let layout = Layout::new(root.path(), None);
        let node = Node::open(layout).expect("an empty root is a new node");
        let mut transaction = node.begin("install", "shop").expect("the root is writable");
        let object = Object::Chroot { name: "farmctl-shop-1".to_owned() };
        transaction.intend(object.clone()).expect("the record is writable");
        assert!(node.abandoned().expect("it can be read").is_empty());
        drop(transaction);
        let abandoned = node.abandoned().expect("it can be read");
        assert_eq!(abandoned.len(), 1);
        assert_eq!(abandoned[0].objects(), [object]);
    }
}
