//! Sizes of volumes, written as LVM writes them.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Units, largest first. Binary, as in lvm(8): `G` is 2^30 bytes.
const UNITS: [(char, u64); 5] =
    [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10), ('B', 1)];

/// A number of bytes, written `"4G"`, `"1536M"`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    #[must_use]
    pub const fn of_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many MiB.
    #[must_use]
    pub const fn of_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The next whole number of MiB: volumes are not cut finer.
    #[must_use]
    pub const fn whole_mib(self) -> Self {
        Self(self.0.div_ceil(1 << 20) << 20)
    }

    /// As an argument of LVM's `--size`.
    #[must_use]
    pub fn argument(self) -> String {
        format!("{}b", self.0)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |unit: &&(char, u64)| self.0 >= unit.1 && self.0 % unit.1 == 0;
        let (letter, unit) = UNITS.iter().find(fits).unwrap_or(&UNITS[4]);
        write!(f, "{}{letter}", self.0 / unit)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size; sizes are written \"4G\", \"1536M\"");
        let letter = text.chars().next_back().ok_or_else(wrong)?.to_ascii_uppercase();
        let (_, unit) = UNITS.iter().find(|(unit, _)| *unit == letter).ok_or_else(wrong)?;
        let digits = &text[..text.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit));
        match number {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_unit_and_written_in_the_largest_that_fits() {
        let read = |text: &str| text.parse::<Size>().map(|size| (size.bytes(), size.to_string()));
        assert_eq!(read("4G"), Ok((4_294_967_296, "4G".to_owned())));
        assert_eq!(read("4g"), Ok((4_294_967_296, "4G".to_owned())));
        assert_eq!(read("1536M"), Ok((1_610_612_736, "1536M".to_owned())));
        assert_eq!(read("2048K"), Ok((2_097_152, "2M".to_owned())));
        assert_eq!(read("1T"), Ok((1_099_511_627_776, "1T".to_owned())));
        assert_eq!(read("1025b"), Ok((1025, "1025B".to_owned())));
        for bad in ["", "G", "4", "0G", "-4G", "1.5G", "4GB", "4 G", "99999999999999T", "4é"] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?} was taken for a size");
        }
    }

    #[test]
    fn sizes_are_rounded_up_to_what_a_volume_can_be() {
        assert_eq!(Size::of_bytes(1).whole_mib(), Size::of_mib(1));
        assert_eq!(Size::of_mib(7).whole_mib(), Size::of_mib(7));
        assert_eq!(Size::of_mib(1).argument(), "1048576b");
    }
}
