//! What LVM says about itself: `--reportformat json` (lvmreport(7)), sizes in bytes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use crate::run::{Invocation, Tool};
use crate::storage::Access;

pub(super) const LVS: Tool = Tool { name: "lvs", package: "lvm2" };
const VGS: Tool = Tool { name: "vgs", package: "lvm2" };

/// Fields of [`LogicalVolume`], in LVM's words, and those of the [`Group`] it is in.
const VOLUME_FIELDS: &str = "vg_name,lv_name,lv_tags,lv_size,origin,pool_lv,data_percent,\
                             metadata_percent,lv_permissions,lv_active,lv_device_open,\
                             lv_snapshot_invalid,segtype,vg_size,vg_free,vg_extent_size,vg_tags";
/// Fields of [`Group`].
const GROUP_FIELDS: &str = "vg_name,vg_size,vg_free,vg_extent_size,vg_tags";

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct LogicalVolume {
    /// Volume group.
    #[serde(rename = "vg_name")]
    pub group: String,
    /// Name.
    #[serde(rename = "lv_name")]
    pub name: String,
    /// Tags.
    #[serde(rename = "lv_tags", deserialize_with = "list")]
    pub tags: Vec<String>,
    /// Bytes.
    #[serde(rename = "lv_size", deserialize_with = "bytes")]
    pub size: u64,
    /// What it is a snapshot of; empty if it is none.
    pub origin: String,
    /// Thin pool it lies in; empty if it is not thin.
    #[serde(rename = "pool_lv")]
    pub pool: String,
    /// How full a snapshot or pool is; of a thin volume, how much of its size it takes.
    #[serde(deserialize_with = "percent")]
    pub data_percent: Option<f64>,
    /// How full a pool's metadata is.
    #[serde(deserialize_with = "percent")]
    pub metadata_percent: Option<f64>,
    /// Whether it may be written.
    #[serde(rename = "lv_permissions", deserialize_with = "writeable")]
    pub writeable: bool,
    /// Whether there is a device for it.
    #[serde(rename = "lv_active", deserialize_with = "filled")]
    pub active: bool,
    /// Whether something uses the device.
    #[serde(rename = "lv_device_open", deserialize_with = "filled")]
    pub open: bool,
    /// Whether it is a classic snapshot that got full: what was written is lost.
    #[serde(rename = "lv_snapshot_invalid", deserialize_with = "invalid")]
    pub invalid: bool,
    /// `linear`, `thin`, `thin-pool`, …
    #[serde(rename = "segtype")]
    pub kind: String,
}

impl LogicalVolume {
    /// As LVM's commands take it.
    pub fn path(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// The device as schroot must be given it: it makes `dirname(device)/SESSION` of it, which
    /// /dev/mapper does not have.
    pub fn device(&self) -> String {
        format!("/dev/{}/{}", self.group, self.name)
    }

    /// Whether it carries this tag.
    pub fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|known| known == tag)
    }

    /// The value of the tag `KEY=VALUE`.
    pub fn tagged(&self, key: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='))
    }

    /// Bytes of [`Self::data_percent`].
    pub fn used(&self) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "LVM gives two decimals of a percentage: no more is known"
        )]
        let used = (self.size as f64 * self.data_percent.unwrap_or(0.0) / 100.0) as u64;
        used
    }
}

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Group {
    /// Name.
    #[serde(rename = "vg_name")]
    pub name: String,
    /// Bytes.
    #[serde(rename = "vg_size", deserialize_with = "bytes")]
    pub size: u64,
    /// Bytes no volume has.
    #[serde(rename = "vg_free", deserialize_with = "bytes")]
    pub free: u64,
    /// Bytes of an extent: sizes are multiples of it.
    #[serde(rename = "vg_extent_size", deserialize_with = "bytes")]
    pub extent: u64,
    /// Tags.
    #[serde(rename = "vg_tags", deserialize_with = "list")]
    pub tags: Vec<String>,
}

fn list<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    let text = String::deserialize(value)?;
    Ok(text.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect())
}

fn bytes<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    String::deserialize(value)?.parse().map_err(D::Error::custom)
}

fn percent<'de, D: Deserializer<'de>>(value: D) -> Result<Option<f64>, D::Error> {
    let text = String::deserialize(value)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

/// `writeable`, `read-only`, `read-only-override`.
fn writeable<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Ok(String::deserialize(value)? == "writeable")
}

fn filled<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Ok(!String::deserialize(value)?.is_empty())
}

/// `snapshot invalid`, empty, or `unknown` for what is no active snapshot.
fn invalid<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Ok(String::deserialize(value)? == "snapshot invalid")
}

#[derive(Deserialize)]
struct Report<T> {
    report: Vec<T>,
}

/// Volumes of an `lvs` report.
pub fn parse_lvs(text: &str) -> Result<Vec<LogicalVolume>> {
    #[derive(Deserialize)]
    struct Volumes {
        lv: Vec<LogicalVolume>,
    }
    let report: Report<Volumes> = serde_json::from_str(text).context("reading what lvs says")?;
    Ok(report.report.into_iter().flat_map(|part| part.lv).collect())
}

/// Groups of an `lvs` report that has their fields, each once: those that have a volume.
fn parse_groups_of_lvs(text: &str) -> Result<Vec<Group>> {
    #[derive(Deserialize)]
    struct Groups {
        lv: Vec<Group>,
    }
    let report: Report<Groups> = serde_json::from_str(text).context("reading what lvs says")?;
    let mut groups: Vec<Group> = report.report.into_iter().flat_map(|part| part.lv).collect();
    groups.sort_by(|one, other| one.name.cmp(&other.name));
    groups.dedup_by(|one, other| one.name == other.name);
    Ok(groups)
}

/// Groups of a `vgs` report.
pub fn parse_vgs(text: &str) -> Result<Vec<Group>> {
    #[derive(Deserialize)]
    struct Groups {
        vg: Vec<Group>,
    }
    let report: Report<Groups> = serde_json::from_str(text).context("reading what vgs says")?;
    Ok(report.report.into_iter().flat_map(|part| part.vg).collect())
}

fn reporting(tool: &Tool, fields: &str) -> Invocation {
    super::call(tool)
        .args(["--reportformat", "json", "--units", "b", "--nosuffix"])
        .args(["--options", fields])
}

/// What LVM said, until something is changed.
#[derive(Debug, Default)]
pub struct Said {
    volumes: Mutex<Option<Listing>>,
    groups: Mutex<Option<Vec<Group>>>,
}

/// What one call of lvs(8) tells.
#[derive(Clone, Debug)]
struct Listing {
    volumes: Vec<LogicalVolume>,
    /// The groups they are in.
    groups: Vec<Group>,
}

impl Said {
    /// [`volumes`], as they were when LVM was asked last.
    pub fn volumes(&self) -> Result<Vec<LogicalVolume>> {
        remembered(&self.volumes, listing).map(|listing| listing.volumes)
    }

    /// [`groups`], as they were when LVM was asked last.
    pub fn groups(&self) -> Result<Vec<Group>> {
        remembered(&self.groups, groups)
    }

    /// The group of this name. vgs(8) is asked only about one without volumes.
    pub fn group(&self, name: &str) -> Result<Option<Group>> {
        let find = |all: Vec<Group>| all.into_iter().find(|group| group.name == name);
        match find(remembered(&self.volumes, listing)?.groups) {
            Some(group) => Ok(Some(group)),
            None => self.groups().map(find),
        }
    }

    /// Has LVM asked anew.
    pub fn forget(&self) {
        lock(&self.volumes).take();
        lock(&self.groups).take();
    }

    /// Remembers whether a volume may be written now.
    pub fn is_now(&self, volume: &LogicalVolume, access: Access) {
        let mut listing = lock(&self.volumes);
        let mut volumes = listing.iter_mut().flat_map(|listing| &mut listing.volumes);
        if let Some(known) = volumes.find(|known| known.path() == volume.path()) {
            known.writeable = access == Access::ReadWrite;
        }
    }

    /// Remembers a volume that was just made.
    pub fn has_now(&self, volume: LogicalVolume) {
        if let Some(listing) = &mut *lock(&self.volumes) {
            let takes = if volume.pool.is_empty() { volume.size } else { 0 };
            let mut groups = listing.groups.iter_mut();
            if let Some(group) = groups.find(|group| group.name == volume.group) {
                group.free = group.free.saturating_sub(takes);
            }
            listing.volumes.push(volume);
        }
        lock(&self.groups).take();
    }
}

fn remembered<T: Clone>(place: &Mutex<Option<T>>, ask: fn() -> Result<T>) -> Result<T> {
    let mut place = lock(place);
    if let Some(said) = &*place {
        return Ok(said.clone());
    }
    Ok(place.insert(ask()?).clone())
}

/// What is remembered is whole also where somebody panicked.
fn lock<T>(place: &Mutex<T>) -> MutexGuard<'_, T> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listing() -> Result<Listing> {
    let text = reporting(&LVS, VOLUME_FIELDS).output()?;
    Ok(Listing { volumes: parse_lvs(&text)?, groups: parse_groups_of_lvs(&text)? })
}

/// All logical volumes of the machine.
pub fn volumes() -> Result<Vec<LogicalVolume>> {
    listing().map(|listing| listing.volumes)
}

/// All volume groups of the machine.
pub fn groups() -> Result<Vec<Group>> {
    parse_vgs(&reporting(&VGS, GROUP_FIELDS).output()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from LVM 2.03.16: a sealed volume with a session's snapshot, and a thin pool
    /// with both.
    const CAPTURED: &str = r#"
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg", "lv_name":"fs-a", "lv_tags":"farmctl.node=x,farmctl.session", "lv_attr":"swi-aos---", "lv_size":"1082130432", "origin":"fv-a", "pool_lv":"", "data_percent":"0.20", "metadata_percent":"", "lv_device_open":"open", "lv_active":"active", "lv_permissions":"writeable", "lv_snapshot_invalid":"", "segtype":"linear", "lv_health_status":"", "lv_when_full":""},
                  {"vg_name":"vg", "lv_name":"fv-a", "lv_tags":"farmctl.node=x,farmctl.tx=y", "lv_attr":"ori-a-s---", "lv_size":"1073741824", "origin":"", "pool_lv":"", "data_percent":"", "metadata_percent":"", "lv_device_open":"", "lv_active":"active", "lv_permissions":"read-only", "lv_snapshot_invalid":"unknown", "segtype":"linear", "lv_health_status":"", "lv_when_full":""},
                  {"vg_name":"vg", "lv_name":"fs-t", "lv_tags":"farmctl.session", "lv_attr":"Vwi-a-tz--", "lv_size":"4294967296", "origin":"fv-t", "pool_lv":"pool", "data_percent":"1.58", "metadata_percent":"", "lv_device_open":"", "lv_active":"active", "lv_permissions":"writeable", "lv_snapshot_invalid":"unknown", "segtype":"thin", "lv_health_status":"", "lv_when_full":""},
                  {"vg_name":"vg", "lv_name":"pool", "lv_tags":"farmctl.node=x", "lv_attr":"twi-aotz--", "lv_size":"2147483648", "origin":"", "pool_lv":"", "data_percent":"3.37", "metadata_percent":"12.01", "lv_device_open":"open", "lv_active":"active", "lv_permissions":"writeable", "lv_snapshot_invalid":"unknown", "segtype":"thin-pool", "lv_health_status":"", "lv_when_full":"queue"}
              ]
          }
      ]
  }
"#;

    #[test]
    fn volumes_and_snapshots_are_told_apart() {
        let volumes = parse_lvs(CAPTURED).expect("it is what LVM said");
        let [session, volume, thin, pool] = &volumes[..] else { panic!("{volumes:?}") };
        assert_eq!(session.origin, "fv-a");
        assert!(session.open && session.active && session.writeable && !session.invalid);
        assert_eq!(session.used(), 2_164_260);
        assert!(session.has("farmctl.session") && !volume.has("farmctl.session"));
        assert_eq!(volume.tagged("farmctl.tx"), Some("y"));
        assert_eq!(volume.tagged("farmctl"), None);
        assert!(!volume.writeable && !volume.open && !volume.invalid);
        assert_eq!(volume.device(), "/dev/vg/fv-a");
        assert_eq!((thin.pool.as_str(), thin.kind.as_str()), ("pool", "thin"));
        assert_eq!(pool.metadata_percent, Some(12.01));
    }

    #[test]
    fn a_snapshot_that_overflowed_is_known() {
        let text = CAPTURED.replacen(
            r#""lv_snapshot_invalid":"""#,
            r#""lv_snapshot_invalid":"snapshot invalid""#,
            1,
        );
        assert!(parse_lvs(&text).expect("it is a report")[0].invalid);
    }

    /// Captured from LVM 2.03.16.
    #[test]
    fn groups_have_sizes_in_bytes() {
        let text = r#"{ "report": [ { "vg": [ {"vg_name":"vg", "vg_size":"6438256640",
            "vg_free":"4282384384", "vg_extent_size":"4194304", "vg_tags":"a,b"} ] } ] }"#;
        let group = Group {
            name: "vg".to_owned(),
            size: 6_438_256_640,
            free: 4_282_384_384,
            extent: 4_194_304,
            tags: vec!["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(parse_vgs(text).expect("it is a report"), [group]);
        assert_eq!(parse_vgs(r#"{"report":[{"vg":[]}]}"#).expect("it is a report"), []);
    }

    /// Captured from LVM 2.03.16, with another pool of the same group.
    #[test]
    fn a_group_with_volumes_is_known_from_them() {
        let text = r#"{"report":[{"lv":[
            {"vg_name":"vg0","lv_name":"pool0","vg_size":"6438256640","vg_free":"3208642560","vg_extent_size":"4194304","vg_tags":""},
            {"vg_name":"vg0","lv_name":"pool1","vg_size":"6438256640","vg_free":"3208642560","vg_extent_size":"4194304","vg_tags":""}]}]}"#;
        let group = Group {
            name: "vg0".to_owned(),
            size: 6_438_256_640,
            free: 3_208_642_560,
            extent: 4_194_304,
            tags: Vec::new(),
        };
        assert_eq!(parse_groups_of_lvs(text).expect("it is a report"), [group]);
    }
}
