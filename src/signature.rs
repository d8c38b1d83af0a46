//! Signatures over manifests, in minisign's formats.
//!
//! Keys and signatures are the files minisign(1) reads and writes
//! (<https://jedisct1.github.io/minisign/>, "Signature format"). Made by one crate of
//! minisign's author and checked by his other: the checking one has no dependencies and
//! measures what it reads, where the making one (0.10.0) panics at a short signature.

use std::fmt;

use anyhow::{Context as _, Result, anyhow, ensure};
use ct_codecs::Decoder as _;
use minisign::{KeyPair, SecretKeyBox};

use crate::error::refuse;

/// Largest key or signature that is read, in bytes: they have four lines at most.
pub const LIMIT: usize = 4096;
/// How the base64 of a secret key begins that a password protects: `EdSc`, and how one
/// without does: `Ed`, two zeros.
const PROTECTED: &str = "RWRTY";
const UNPROTECTED: &str = "RWQAA";
/// What to do about a key that is none.
const GIVE_PUBLIC: &str =
    "give a public key: the .pub file of minisign or farmctl key generate, or its last line";

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    key: minisign_verify::PublicKey,
    base64: String,
    id: String,
}

impl PublicKey {
    /// Reads a public key's file, or the one line of it that matters.
    ///
    /// # Errors
    /// When it is none; a secret key is told from other things.
    pub fn parse(text: &str) -> Result<Self> {
        let mut lines =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_comment(line));
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return refuse("not a public key of minisign", GIVE_PUBLIC);
        };
        if line.starts_with(PROTECTED) || (line.starts_with(UNPROTECTED) && line.len() > 100) {
            return refuse("a secret key, not a public one", GIVE_PUBLIC);
        }
        let key = minisign_verify::PublicKey::from_base64(line);
        let number = minisign::PublicKey::from_base64(line);
        let (Ok(key), Ok(number)) = (key, number) else {
            return refuse("not a public key of minisign", GIVE_PUBLIC);
        };
        Ok(Self { key, base64: line.to_owned(), id: render_id(number.keynum()) })
    }

    /// Its number, as minisign prints it: 16 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The line that matters.
    #[must_use]
    pub fn base64(&self) -> &str {
        &self.base64
    }

    /// The text of its file.
    #[must_use]
    pub fn render(&self) -> String {
        format!("untrusted comment: minisign public key {}\n{}\n", self.id, self.base64)
    }

    /// Whether the signature is this key's, over these bytes.
    #[must_use]
    pub fn verifies(&self, bytes: &[u8], signature: &Signature) -> bool {
        // Legacy signatures are over the bytes, not their hash: nothing of ours has them.
        self.key.verify(bytes, &signature.signature, false).is_ok()
    }
}

/// A signature.
pub struct Signature {
    signature: minisign_verify::Signature,
    key: String,
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signature").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Signature {
    /// Reads a `.minisig` file.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.len() <= LIMIT, "it is larger than {LIMIT} bytes");
        ensure!(text.lines().count() == 4, "it has {} lines instead of four", text.lines().count());
        let signature = minisign_verify::Signature::decode(text)
            .map_err(|error| anyhow!("{error}"))
            .context("not a signature of minisign")?;
        let number = minisign::SignatureBox::from_string(text)
            .map_err(|error| anyhow!("{error}"))
            .context("not a signature of minisign")?;
        Ok(Self { signature, key: render_id(number.keynum()) })
    }

    /// The number of the key it says it was made with.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What the signer wrote beside it; signed as well.
    #[must_use]
    pub fn comment(&self) -> &str {
        self.signature.trusted_comment()
    }
}

/// A secret key, ready for use.
pub struct SecretKey {
    key: minisign::SecretKey,
    public: PublicKey,
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("id", &self.public.id).finish_non_exhaustive()
    }
}

impl SecretKey {
    /// Reads a secret key's file.
    ///
    /// # Errors
    /// When it is none, or the password is missing or wrong.
    pub fn parse(text: &str, password: Option<&str>) -> Result<Self> {
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !is_comment(line));
        let line = line.unwrap_or_default();
        let key = if line.starts_with(PROTECTED) {
            let Some(password) = password else {
                return refuse(
                    "a password protects the key",
                    "add --password-file FILE; /dev/stdin is one as well",
                );
            };
            let file = SecretKeyBox::from(format!("untrusted comment: \n{line}\n"));
            file.into_secret_key(Some(password.to_owned()))
        } else if line.starts_with(UNPROTECTED) {
            // minisign(1) 0.11 gives such a key no checksum, which the crate insists on: a
            // damaged one is found when its first signature is looked at.
            let bytes = ct_codecs::Base64::decode_to_vec(line, None).unwrap_or_default();
            minisign::SecretKey::from_bytes(&bytes)
        } else {
            return refuse(
                "not a secret key of minisign",
                "give the key's file: what farmctl key generate or minisign -G wrote",
            );
        };
        let key = match key {
            Ok(key) => key,
            Err(error)
                if line.starts_with(PROTECTED)
                    && matches!(error.kind(), minisign::ErrorKind::Verify) =>
            {
                return refuse(
                    "the password is not the key's",
                    "the first line of --password-file counts, without its line end",
                );
            }
            Err(error) => return Err(anyhow!("{error}")).context("reading the secret key"),
        };
        Self::of(key)
    }

    fn of(key: minisign::SecretKey) -> Result<Self> {
        let public = minisign::PublicKey::from_secret_key(&key)
            .map_err(|error| anyhow!("{error}"))
            .context("reading the secret key")?;
        Ok(Self { key, public: PublicKey::parse(&public.to_base64())? })
    }

    /// Makes a new key; answers it and the text of its file, under a password if there
    /// is one.
    ///
    /// # Errors
    /// When the kernel has no random bytes, or no memory for the password's derivation.
    pub fn generate(password: Option<&str>) -> Result<(Self, String)> {
        let pair = match password {
            Some(password) => KeyPair::generate_encrypted_keypair(Some(password.to_owned())),
            None => KeyPair::generate_unencrypted_keypair(),
        };
        let pair = pair.map_err(|error| anyhow!("{error}")).context("making a key")?;
        let public = PublicKey::parse(&pair.pk.to_base64())?;
        let kind = if password.is_some() { "minisign encrypted" } else { "minisign" };
        let comment = format!("{kind} secret key {}", public.id);
        let file = pair.sk.to_box(Some(&comment)).map_err(|error| anyhow!("{error}"))?;
        Ok((Self { key: pair.sk, public }, file.into_string()))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs bytes, with a comment that is signed as well; answers the `.minisig` file.
    ///
    /// Another one each time: the nonce is hedged with random bytes.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub fn sign(&self, bytes: &[u8], comment: &str) -> Result<String> {
        let made = minisign::sign(None, &self.key, bytes, Some(comment), Some("made by farmctl"));
        let made = made.map_err(|error| anyhow!("{error}")).context("signing")?.into_string();
        let signature = Signature::parse(&made)?;
        ensure!(self.public.verifies(bytes, &signature), "the signature just made is not right");
        Ok(made)
    }
}

fn is_comment(line: &str) -> bool {
    line.starts_with("untrusted comment:")
}

/// minisign reads the eight bytes as a little-endian number.
fn render_id(number: &[u8]) -> String {
    number.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::hint_of;

    /// From minisign's own documentation.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1556193335\tfile:test\n\
        y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n";

    #[test]
    fn a_signature_of_minisign_is_verified() {
        let key = PublicKey::parse(KEY).expect("a key");
        assert_eq!(key.id(), "E7620F1842B4E81F");
        assert_eq!(PublicKey::parse(&key.render()).expect("as written"), key);
        let signature = Signature::parse(SIGNATURE).expect("a signature");
        assert_eq!(signature.key(), "E7620F1842B4E81F");
        assert_eq!(signature.comment(), "timestamp:1556193335\tfile:test");
        assert!(key.verifies(b"test", &signature));
        assert!(!key.verifies(b"Test", &signature));
    }

    #[test]
    fn the_comment_of_a_signature_is_signed() {
        let key = PublicKey::parse(KEY).expect("a key");
        let other = SIGNATURE.replace("file:test", "file:best");
        assert!(!key.verifies(b"test", &Signature::parse(&other).expect("well formed")));
    }

    #[test]
    fn a_legacy_signature_is_refused() {
        let legacy = "untrusted comment: signature from minisign secret key\n\
            RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n\
            trusted comment: timestamp:1555779966\tfile:test\n\
            QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n";
        let key = PublicKey::parse(KEY).expect("a key");
        assert!(!key.verifies(b"test", &Signature::parse(legacy).expect("well formed")));
    }

    #[test]
    fn a_key_signs_with_and_without_a_password() {
        for password in [None, Some("correct horse")] {
            let (made, file) = SecretKey::generate(password).expect("random bytes");
            let read = SecretKey::parse(&file, password).expect("as written");
            assert_eq!(read.public(), made.public());
            let text = read.sign(b"manifest", "shop 1.0").expect("random bytes");
            let signature = Signature::parse(&text).expect("as made");
            assert!(made.public().verifies(b"manifest", &signature));
            assert_eq!(signature.comment(), "shop 1.0");
            assert_eq!(signature.key(), made.public().id());
            let error = PublicKey::parse(&file).expect_err("it is secret");
            assert_eq!(error.to_string(), "a secret key, not a public one");
        }
    }

    #[test]
    fn a_missing_and_a_wrong_password_are_told_apart() {
        let (_, file) = SecretKey::generate(Some("right")).expect("random bytes");
        let error = SecretKey::parse(&file, None).expect_err("it is protected");
        assert_eq!(error.to_string(), "a password protects the key");
        assert!(hint_of(&error).is_some_and(|hint| hint.contains("--password-file")));
        let error = SecretKey::parse(&file, Some("wrong")).expect_err("it is wrong");
        assert_eq!(error.to_string(), "the password is not the key's");
        for text in ["", "hello", KEY, "RWRTYnonsense", "RWQAAnonsense"] {
            SecretKey::parse(text, Some("")).expect_err(text);
        }
    }

    #[test]
    fn what_is_no_signature_is_refused_and_nothing_panics() {
        for text in ["", "a", "a\nb\nc\nd", "untrusted comment: x\n\ntrusted comment: y\n\n"] {
            Signature::parse(text).expect_err(text);
        }
        // Cut anywhere: a short second signature makes minisign 0.10.0 panic.
        let key = PublicKey::parse(KEY).expect("a key");
        for end in 0..SIGNATURE.len() - 1 {
            if let Ok(signature) = Signature::parse(&SIGNATURE[..end]) {
                assert!(!key.verifies(b"test", &signature), "{end}");
            }
        }
        for text in ["", "x", "RWQf6LRCGA9i53ml", "RWQf\nRWQf", "untrusted comment: only"] {
            let error = PublicKey::parse(text).expect_err(text);
            assert_eq!(error.to_string(), "not a public key of minisign");
        }
    }
}
