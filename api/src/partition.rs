//! The return of a partition's memory to the host.

use std::time::Duration;

use bellows_vmm::{PartitionId, PartitionReport, PlugReport, Vm};

use crate::error::CliError;
use crate::output::say;

/// Unplugs a partition and waits until its memory is back with the host.
pub(crate) fn give_back(
    vm: &Vm,
    partition: PartitionId,
    plug: &PlugReport,
    limit: Duration,
) -> Result<PartitionReport, CliError> {
    let (unplug, account) = vm.unplug_accounted(partition, limit)?;
    let discard = vm.await_discard(partition, limit)?;
    if unplug.left.get() != 0 {
        say(format_args!("the guest keeps {} of partition {partition}", unplug.left));
    }
    Ok(PartitionReport::new(plug, &unplug, &account, &discard))
}
