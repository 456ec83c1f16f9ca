//! A guest in which instances come and go.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bellows_bench::reclaim::Mode;
use bellows_lab::artefact;
use bellows_vmm::{ByteSize, Instance, InstanceSpec, PartitionId, PartitionMode, PlugReport, Vm, VmBuilder};

use crate::common::{self, Image, PATIENCE, Result, image_id, partition};

/// Memory that the neighbour has, in MiB.
pub const NEIGHBOUR_MIB: u64 = 1024;

/// Holds the kernel, page cache, and the memory map of all partitions.
pub const BASE: ByteSize = ByteSize::mib(1024);

/// A running guest whose neighbour's memory is plugged.
pub struct Guest {
    pub vm: Vm,
    pub mode: Mode,
    vcpu_threads: Vec<PathBuf>,
    instances: u32,
    unparks: u64,
}

impl Guest {
    /// Boots a guest with up to `largest_mib` of memory for an instance beside the neighbour's.
    pub fn boot(image: &Image, mode: Mode, init_on_alloc: bool, largest_mib: u64) -> Result<Self> {
        let mut builder = VmBuilder::new(artefact("BELLOWS_KERNEL")?, BASE)
            .kernel_parameter(format!("init_on_alloc={}", u8::from(init_on_alloc)))
            .partition_mode(match mode {
                Mode::Extension => PartitionMode::Extension,
                _ => PartitionMode::Stock,
            });
        builder = match mode {
            Mode::Shared => builder.partition(ByteSize::mib(largest_mib + NEIGHBOUR_MIB)),
            _ => builder.partition(ByteSize::mib(largest_mib)).partition(ByteSize::mib(NEIGHBOUR_MIB)),
        };
        let before = vcpu_threads(TASKS, VCPU)?;
        let vm = image.boot(builder)?;
        image.mount(&vm)?;
        let vcpu_threads = vcpu_threads(TASKS, VCPU)?.into_iter().filter(|thread| !before.contains(thread)).collect();
        let guest = Self { vm, mode, vcpu_threads, instances: 0, unparks: 0 };
        guest.vm.plug(guest.neighbours_partition()?, ByteSize::mib(NEIGHBOUR_MIB), PATIENCE)?;
        Ok(guest)
    }

    /// The partition that is plugged and unplugged.
    pub fn partition(&self) -> Result<PartitionId> {
        partition(1)
    }

    pub fn neighbours_partition(&self) -> Result<PartitionId> {
        partition(if self.mode == Mode::Shared { 1 } else { 2 })
    }

    /// The size that stays plugged in that partition.
    pub fn kept(&self) -> ByteSize {
        ByteSize::mib(if self.mode == Mode::Shared { NEIGHBOUR_MIB } else { 0 })
    }

    /// Starts a Python program.
    pub fn start(&mut self, program: &str, partition: PartitionId) -> Result<Instance> {
        self.instances += 1;
        let id = format!("i{}", self.instances).parse()?;
        let spec = InstanceSpec::new(id, image_id()?, ["/usr/bin/python3", "-c", program]);
        Ok(self.vm.start_instance(&spec.in_partition(partition))?)
    }

    /// Whether a plug took memory that the guest had parked.
    pub fn was_parked(&mut self, plug: &PlugReport) -> bool {
        let before = self.unparks;
        self.unparks = plug.driver.map_or(0, |driver| driver.unparks);
        self.unparks > before
    }

    /// Time for which the vCPUs' threads have run.
    pub fn vcpu_time(&self) -> Result<Duration> {
        time_of(&self.vcpu_threads)
    }

    pub fn shutdown(self) -> Result<()> {
        common::shutdown(&self.vm)
    }
}

/// The folder of this process's threads, and the name of the threads that run a vCPU.
const TASKS: &str = "/proc/self/task";
const VCPU: &str = "vcpu";

/// The threads in the directory `tasks` whose names begin with `name`.
pub fn vcpu_threads(tasks: &str, name: &str) -> Result<Vec<PathBuf>> {
    let is_vcpu = |thread: &PathBuf| fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.starts_with(name));
    let threads = fs::read_dir(tasks)?.map(|entry| entry.map(|entry| entry.path()));
    Ok(threads.collect::<std::io::Result<Vec<PathBuf>>>()?.into_iter().filter(is_vcpu).collect())
}

/// The time for which they have run.
pub fn time_of(threads: &[PathBuf]) -> Result<Duration> {
    let mut sum = 0;
    for thread in threads {
        // Nanoseconds on a processor come first (Documentation/scheduler/sched-stats.rst).
        let text = fs::read_to_string(thread.join("schedstat"))?;
        sum += text.split_whitespace().next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}
