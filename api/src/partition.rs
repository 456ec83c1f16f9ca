//! The return of a partition's memory to the host.

use std::time::Duration;

use bellows_vmm::{PartitionError, PartitionId, PartitionReport, PlugReport, Vm};

use crate::error::CliError;
use crate::output::say;

/// Unplugs a partition, waits until its memory is back with the host, and says what the guest keeps.
pub(crate) fn give_back(
    vm: &Vm,
    partition: PartitionId,
    plug: &PlugReport,
    limit: Duration,
) -> Result<PartitionReport, CliError> {
    let report = take_back(vm, partition, plug, limit)?;
    if report.left.get() != 0 {
        say(format_args!("the guest keeps {} of partition {partition}", report.left));
    }
    Ok(report)
}

/// The same without a word.
pub(crate) fn take_back(
    vm: &Vm,
    partition: PartitionId,
    plug: &PlugReport,
    limit: Duration,
) -> Result<PartitionReport, PartitionError> {
    let (unplug, account) = vm.unplug_accounted(partition, limit)?;
    let discard = vm.await_discard(partition, limit)?;
    Ok(PartitionReport::new(plug, &unplug, &account, &discard))
}
