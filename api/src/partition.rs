//! A partition's way back to the host, and what the command reports of it.

use std::time::Duration;

use bellows_vmm::{DiscardReport, PartitionId, PartitionMode, PlugReport, UnplugReport, Vm};
use serde::Serialize;

use crate::error::CliError;
use crate::output::say;
use crate::report::milliseconds;

/// Unplugs a partition and waits until its memory is the host's again.
pub(crate) fn give_back(
    vm: &Vm,
    partition: PartitionId,
    plug: &PlugReport,
    limit: Duration,
) -> Result<PartitionReport, CliError> {
    let unplug = vm.unplug(partition, limit)?;
    let discard = vm.await_discard(partition, limit)?;
    if unplug.left.get() != 0 {
        say(format_args!("the guest keeps {} of partition {partition}", unplug.left));
    }
    Ok(PartitionReport::new(plug, &unplug, &discard))
}

/// What became of a partition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartitionReport {
    pub(crate) bytes: u64,
    /// How the guest kept it apart.
    pub(crate) mode: PartitionMode,
    pub(crate) plug_ms: f64,
    pub(crate) unplug_ms: f64,
    /// Of that, what the guest's driver worked by its own account; `null` where it does not say.
    pub(crate) guest_ms: Option<f64>,
    /// Of that, changing memory slots.
    pub(crate) slot_ms: f64,
    pub(crate) discard_ms: f64,
    pub(crate) migrated_pages: Option<u64>,
    pub(crate) zeroed_pages: Option<u64>,
    pub(crate) discarded_bytes: u64,
    pub(crate) left_bytes: u64,
}

impl PartitionReport {
    pub(crate) fn new(plug: &PlugReport, unplug: &UnplugReport, discard: &DiscardReport) -> Self {
        Self {
            bytes: plug.bytes.get(),
            mode: plug.mode,
            plug_ms: milliseconds(plug.usable),
            unplug_ms: milliseconds(unplug.unplug),
            guest_ms: unplug.driver.map(|driver| milliseconds(driver.last_unplug.guest())),
            slot_ms: milliseconds(unplug.slots),
            discard_ms: milliseconds(discard.discard),
            migrated_pages: unplug.migrated_pages,
            zeroed_pages: unplug.zeroed_pages,
            discarded_bytes: discard.discarded.get(),
            left_bytes: unplug.left.get(),
        }
    }
}
