//! The rights of a container's processes: user, groups, capabilities.

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::plan::ProcessPlan;
use super::{Report, failed};

/// The default capabilities of other container runtimes, less `MKNOD`: a container without a device controller could
/// reach the guest's disks by device nodes. (The root file system is mounted `nodev`, too.)
const CAPABILITIES: [Capability; 13] = [
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// What a process could do to others in its network namespace if it had this: read and forge their packets.
const IN_OWN_NETWORK: Capability = Capability::CAP_NET_RAW;

/// Gives up every right of this process that a container's does not have, and becomes its user.
///
/// Root keeps the capabilities; another user can only ever get them back by a set-user-ID program, which `no_new_privs` rules out.
pub(super) fn take(process: &ProcessPlan, shares_network: bool) -> Result<(), Report> {
    let mut kept = CapsHashSet::from(CAPABILITIES);
    if shares_network {
        kept.remove(&IN_OWN_NETWORK);
    }
    for capability in caps::all().difference(&kept) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(failed("capabilities"))?;
    }
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(failed("groups"))?;
    let gid = Gid::from_raw(process.gid);
    setresgid(gid, gid, gid).map_err(failed("group"))?;
    let uid = Uid::from_raw(process.uid);
    // Another user than root has none after that.
    setresuid(uid, uid, uid).map_err(failed("user"))?;
    let usable = if uid.is_root() { kept } else { CapsHashSet::new() };
    caps::clear(None, CapSet::Inheritable).map_err(failed("capabilities"))?;
    caps::set(None, CapSet::Effective, &usable).map_err(failed("capabilities"))?;
    caps::set(None, CapSet::Permitted, &usable).map_err(failed("capabilities"))
}
