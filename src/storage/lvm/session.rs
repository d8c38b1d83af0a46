//! Snapshots schroot makes of our volumes: sessions.

use anyhow::Result;

use super::report::LogicalVolume;
use super::{Kind, Lvm, NODE_TAG, SESSION_TAG, changing};
use crate::error::refuse;
use crate::run::{Invocation, Tool};
use crate::size::Size;
use crate::storage::{Copies, Growth, SessionCopy};

const LVEXTEND: Tool = Tool { name: "lvextend", package: "lvm2" };
const DMSETUP: Tool = Tool { name: "dmsetup", package: "dmsetup" };

/// How full a pool may be, in percent, when something is begun in it: when it is full, every
/// session in it fails at once.
const POOL_LIMIT: f64 = 90.0;
/// How full a small snapshot may get before it is given more room, in percent. It is
/// looked at twice a minute; what is left has to last that long.
const GROW_AT: f64 = 50.0;

/// Refuses a pool that is nearly full.
pub fn check_pool(pool: &LogicalVolume) -> Result<()> {
    for (what, percent) in [("data", pool.data_percent), ("metadata", pool.metadata_percent)] {
        let percent = percent.unwrap_or(0.0);
        if percent >= POOL_LIMIT {
            return refuse(
                format_args!("the {what} of thin pool {} is {percent:.0} % full", pool.path()),
                format!(
                    "farmctl gc --stages, farmctl remove NAME --release VERSION, or lvextend {} {}",
                    if what == "data" { "--size +SIZE" } else { "--poolmetadatasize +SIZE" },
                    pool.path()
                ),
            );
        }
    }
    Ok(())
}

/// The call that lets a device go on that was suspended. In device names every `-` of a
/// group's or volume's name is doubled (lvm(8)).
fn resuming(volume: &LogicalVolume) -> Invocation {
    let escape = |name: &str| name.replace('-', "--");
    let name = format!("{}-{}", escape(&volume.group), escape(&volume.name));
    changing(&DMSETUP).args(["resume", &name])
}

/// Room a snapshot needs so that all of its origin can change, in bytes: every chunk (4 KiB)
/// has an entry of 16 bytes (kernel, dm-snap-persistent.c), and sizes are whole extents.
fn whole(origin: u64, extent: u64) -> u64 {
    (origin + origin / 256 + extent).div_ceil(extent) * extent
}

impl Lvm {
    /// What schroot gives lvcreate to make a copy; it splits this at blanks.
    pub(super) fn snapshot_options(&self, copies: Copies) -> String {
        let room = match (self.kind, copies.size) {
            // A thin snapshot is not activated otherwise, and with a size it would be a
            // classic one.
            (Kind::Thin, _) => "--setactivationskip n".to_owned(),
            (Kind::Classic, Some(size)) => format!("--size {}", size.argument()),
            (Kind::Classic, None) => "--extents 100%ORIGIN".to_owned(),
        };
        let node = self.node.as_deref().unwrap_or_default();
        // The origin is sealed; what is written in a session is the session's.
        format!("{room} --permission rw --addtag {NODE_TAG}={node} --addtag {SESSION_TAG}")
    }

    pub(super) fn check_new_copy(&self, session: &str, volume: &str, copies: Copies) -> Result<()> {
        self.said.forget();
        let volume = self.require(volume)?;
        self.check_free(session, &volume.group)?;
        self.activate(&volume)?;
        if self.kind == Kind::Thin {
            let all = self.said.volumes()?;
            let pool =
                all.iter().find(|pool| pool.group == volume.group && pool.name == volume.pool);
            return pool.map_or(Ok(()), check_pool);
        }
        let Some(group) = self.said.group(&volume.group)? else { return Ok(()) };
        let most = whole(volume.size, group.extent);
        let wanted = copies.size.map_or(most, |size| size.bytes().min(most));
        if group.free < wanted {
            return refuse(
                format_args!(
                    "a session of {} needs {} of volume group {}, {} are free",
                    volume.name,
                    Size::of_bytes(wanted).whole_mib(),
                    group.name,
                    Size::of_bytes(group.free)
                ),
                "farmctl gc --stages, farmctl remove NAME --release VERSION, vgextend, or a \
                 snapshot-size in the profile",
            );
        }
        Ok(())
    }

    /// The copy of this session, if it is there and ours.
    pub(super) fn find_copy(&self, session: &str) -> Result<Option<LogicalVolume>> {
        // schroot makes and removes them.
        self.said.forget();
        let found = self.find(session)?;
        Ok(found.filter(|copy| copy.has(SESSION_TAG) && !copy.origin.is_empty()))
    }

    /// Sessions' copies among all logical volumes of the machine.
    pub(in crate::storage) fn copies_among(&self, all: &[LogicalVolume]) -> Vec<SessionCopy> {
        let ours = |copy: &LogicalVolume| {
            self.is_ours(copy) && self.is_of_kind(copy) && copy.has(SESSION_TAG)
        };
        let copies = all.iter().filter(|copy| ours(copy)).map(|copy| {
            let origin =
                all.iter().find(|volume| volume.group == copy.group && volume.name == copy.origin);
            let origin_size = origin.map_or(u64::MAX, |origin| origin.size);
            let (written, room) = match self.kind {
                Kind::Classic => (copy.used(), (copy.size < origin_size).then_some(copy.size)),
                // What a thin snapshot has mapped is at first what its origin has.
                Kind::Thin => {
                    (copy.used().saturating_sub(origin.map_or(0, LogicalVolume::used)), None)
                }
            };
            SessionCopy {
                written: Some(written),
                room,
                wanting: room.map_or(0, |room| origin_size.saturating_sub(room)),
                whole: !copy.invalid,
                session: copy.name.clone(),
                origin: copy.origin.clone(),
            }
        });
        copies.collect()
    }

    pub(super) fn grow(&self, session: &str) -> Result<Option<Growth>> {
        let Some(copy) = self.find_copy(session)? else { return Ok(None) };
        if self.kind == Kind::Thin {
            return Ok(None);
        }
        if copy.invalid {
            // lvextend would fail half-way and leave the origin suspended.
            return refuse(
                format_args!("the snapshot of session {session} got full: its writes are lost"),
                "farmctl stop, then farmctl start; a larger snapshot-size, or none, in the profile",
            );
        }
        let all = self.said.volumes()?;
        let origin =
            all.iter().find(|volume| volume.group == copy.group && volume.name == copy.origin);
        let group = self.said.group(&copy.group)?;
        let (Some(origin), Some(group)) = (origin, group) else { return Ok(None) };
        let most = whole(origin.size, group.extent);
        if copy.data_percent.unwrap_or(0.0) < GROW_AT || copy.size >= most {
            return Ok(None);
        }
        let wanted = (copy.size * 2).min(most).min(copy.size + group.free);
        if wanted == copy.size {
            return refuse(
                format_args!(
                    "the snapshot of session {session} is {:.0} % full, and volume group {} has \
                     no room to grow it",
                    copy.data_percent.unwrap_or(0.0),
                    group.name
                ),
                "farmctl gc --stages, farmctl remove NAME --release VERSION, or vgextend",
            );
        }
        let extend = changing(&LVEXTEND)
            .args(["--quiet", "--size", &Size::of_bytes(wanted).argument()])
            .arg(copy.path());
        let extended = self.change(&extend);
        if extended.is_err() {
            // It got full in between: LVM fails then and leaves the origin suspended, which
            // hangs all its sessions.
            for volume in [origin, &copy] {
                resuming(volume).outcome()?;
            }
        }
        extended?;
        Ok(Some(Growth { from: copy.size, to: wanted }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::settings::{Settings, Site};

    fn lvm(kind: Kind) -> Lvm {
        let site = Site {
            layout: &Layout::new("/", None),
            settings: &Settings::default(),
            node: Some("n1"),
        };
        Lvm::new(kind, &site)
    }

    #[test]
    fn schroot_is_told_to_tag_what_it_makes() {
        let whole = Copies::default();
        let small = Copies { size: Some(Size::of_mib(256)) };
        insta::assert_snapshot!(lvm(Kind::Classic).snapshot_options(whole), @"--extents 100%ORIGIN --permission rw --addtag farmctl.node=n1 --addtag farmctl.session");
        insta::assert_snapshot!(lvm(Kind::Classic).snapshot_options(small), @"--size 268435456b --permission rw --addtag farmctl.node=n1 --addtag farmctl.session");
        insta::assert_snapshot!(lvm(Kind::Thin).snapshot_options(small), @"--setactivationskip n --permission rw --addtag farmctl.node=n1 --addtag farmctl.session");
    }

    /// 1032 MiB is what LVM 2.03.16 makes of `100%ORIGIN` for 1 GiB.
    #[test]
    fn a_whole_copy_has_room_for_its_bookkeeping() {
        assert!(whole(1 << 30, 4 << 20) >= 1032 << 20);
        assert_eq!(whole(1 << 30, 4 << 20) % (4 << 20), 0);
    }
}
