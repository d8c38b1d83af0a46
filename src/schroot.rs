//! schroot, which is not trusted to report.
//!
//! schroot 1.6.13 answers 0 on several failures, cleans nothing up when a session
//! cannot be begun, and destroys a live session that is asked to be recovered. So what
//! it says it did is looked at here: its session file, the mounts, the writable layer,
//! the processes. Nothing of ours uses schroot's own profiles, which copy the host's
//! passwd and shadow into chroots and fail on a host without /etc/services.

mod definition;
mod guard;
mod registry;
mod session;

pub use self::definition::{Definition, release_fstab, source_fstab};
pub use self::registry::{
    Registered, check, check_free, is_guarded, is_registered, mount_points, register, registered,
    restore_guards, unregister,
};
pub use self::session::{
    begin, beginning, dismount, end, end_within, ending, enter, enter_as, enter_source, is_live,
    is_of_node, mount_of, processes_in, recover, sessions, written,
};
use crate::run::Tool;

const SCHROOT: Tool = Tool { name: "schroot", package: "schroot" };
/// Programs this module needs on the host.
pub const TOOLS: [&Tool; 1] = [&SCHROOT];

/// Keys of ours in definitions; schroot keeps them in its session files.
const NODE_KEY: &str = "farmctl.node";
const TRANSACTION_KEY: &str = "farmctl.transaction";
/// schroot's type of chroots on logical volumes.
const LVM: &str = "lvm-snapshot";

/// The value of a key in a file of schroot's; the last one counts.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let of = |line: &'a str| line.strip_prefix(key)?.trim_start().strip_prefix('=');
    text.lines().filter_map(of).map(str::trim).next_back()
}
