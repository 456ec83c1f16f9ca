//! What `bellows run --json` prints.

use std::time::Duration;

use bellows_vmm::ExitCounts;
use bellows_vmm::{GuestInfo, OomLimit, PartitionMode, Shape, Transport, Vm};
use serde::Serialize;

use crate::partition::PartitionReport;
use crate::report::milliseconds;

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct RunReport {
    pub(super) exit_code: u8,
    /// The kernel killed the command, or a process of it, for lack of memory.
    pub(super) oom_killed: bool,
    /// Which limit it had met then.
    pub(super) oom_limit: Option<OomLimit>,
    pub(super) guest_kernel: String,
    pub(super) partition_mode: PartitionMode,
    /// How the layers of the image were put together.
    pub(super) shape: Shape,
    /// How they reached the guest.
    pub(super) transport: Transport,
    /// Bytes of the image's files that the host was told to read ahead.
    pub(super) prefetched_bytes: u64,
    /// Bytes of them that the guest read, where that was recorded for the image's profile.
    pub(super) recorded_bytes: Option<u64>,
    pub(super) boot_ms: f64,
    pub(super) run_ms: f64,
    pub(super) partition: Option<PartitionReport>,
}

/// What `--json` prints, without an image, as soon as the guest can be called.
#[derive(Debug, Serialize)]
pub(super) struct ReadyReport {
    pub(super) guest_kernel: String,
    /// How partitions are kept apart: what this guest can do.
    pub(super) partition_mode: PartitionMode,
    pub(super) boot_ms: f64,
    /// By the guest's clock: when its kernel was done, and when its agent was.
    pub(super) init_ms: f64,
    pub(super) ready_ms: f64,
    /// Exits that reached the monitor.
    pub(super) exits: ExitCounts,
}

impl ReadyReport {
    pub(super) fn new(guest: GuestInfo, boot: Duration, vm: &Vm) -> Self {
        let times = vm.boot_times().unwrap_or_default();
        Self {
            guest_kernel: guest.kernel_release,
            partition_mode: guest.partition_mode,
            boot_ms: milliseconds(boot),
            init_ms: milliseconds(times.init),
            ready_ms: milliseconds(times.ready),
            exits: vm.exits().into_iter().sum(),
        }
    }
}
