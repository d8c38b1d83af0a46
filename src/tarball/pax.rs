//! The records of a pax extended header.
//!
//! POSIX.1-2024, pax, "pax Extended Header"; keys that begin with `SCHILY.xattr.` are
//! star(5)'s way to keep extended attributes, which GNU tar and libarchive share.

use anyhow::{Context as _, Result, bail, ensure};

/// Key of the extended attribute that holds file capabilities.
pub(super) const CAPABILITY: &str = "SCHILY.xattr.security.capability";

/// Appends `LENGTH KEY=VALUE\n`, where the length counts its own digits.
pub(super) fn push_record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + " =\n".len();
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length += 1;
    }
    records.extend(length.to_string().as_bytes());
    records.push(b' ');
    records.extend(key.as_bytes());
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

/// The records of an extended header.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<Vec<u8>>,
    pub capability: Option<Vec<u8>>,
}

/// Reads records by their lengths: values may hold newlines and zeros.
pub(super) fn parse_records(mut bytes: &[u8]) -> Result<Records> {
    let mut records = Records::default();
    while !bytes.is_empty() {
        let space = bytes.iter().take(8).position(|byte| *byte == b' ');
        let space = space.context("a record of the extended header has no length")?;
        let digits = std::str::from_utf8(&bytes[..space])
            .ok()
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let length = digits.and_then(|digits| digits.parse::<usize>().ok());
        let length = length.context("a record of the extended header has no length")?;
        let record = bytes
            .get(space + 1..length)
            .and_then(|record| record.strip_suffix(b"\n"))
            .context("a record of the extended header is longer or shorter than it says")?;
        let equals = record.iter().position(|byte| *byte == b'=');
        let equals = equals.context("a record of the extended header has no key")?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let slot = match key {
            b"path" => &mut records.path,
            b"linkpath" => &mut records.linkpath,
            b"size" => &mut records.size,
            key if key == CAPABILITY.as_bytes() => &mut records.capability,
            key => bail!("unknown key {:?} in the extended header", String::from_utf8_lossy(key)),
        };
        ensure!(
            slot.replace(value.to_vec()).is_none(),
            "the extended header says {:?} twice",
            String::from_utf8_lossy(key)
        );
        bytes = &bytes[length..];
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_digits() {
        for length in 80..110 {
            let mut records = Vec::new();
            push_record(&mut records, "path", &vec![b'x'; length]);
            let digits = records.iter().position(|byte| *byte == b' ').expect("a space");
            let digits = std::str::from_utf8(&records[..digits]).expect("digits");
            assert_eq!(digits, records.len().to_string());
        }
    }

    #[test]
    fn a_newline_in_a_value_is_not_a_second_record() {
        let mut records = Vec::new();
        push_record(&mut records, CAPABILITY, b"a\n22 linkpath=/etc/evil\n");
        let parsed = parse_records(&records).expect("well formed");
        assert_eq!(parsed.linkpath, None);
        assert_eq!(parsed.capability.as_deref(), Some(&b"a\n22 linkpath=/etc/evil\n"[..]));
    }

    #[test]
    fn malformed_records_are_refused() {
        for (records, why) in [
            (&b"6 path=a\n"[..], "longer or shorter"),
            (b"99 path=a\n", "longer or shorter"),
            (b"1 path=a\n", "longer or shorter"),
            (b"+9 path=a\n", "no length"),
            (b"path=a\n", "no length"),
            (b"99999999999999999999 path=a\n", "no length"),
            (b"9 path=a\n9 path=b\n", "twice"),
            (b"11 mtime=1\n", "unknown key"),
            (b"8 pathaa\n", "longer or shorter"),
            (b"9 pathaa\n", "no key"),
        ] {
            let error = parse_records(records).expect_err(&String::from_utf8_lossy(records));
            assert!(error.to_string().contains(why), "{error} is not about {why}");
        }
    }
}
