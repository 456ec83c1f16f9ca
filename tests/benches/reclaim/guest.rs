//! A guest in which instances come and go.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bellows_block::oci::{OciLayout, Platform};
use bellows_block::{ImportOptions, Layer, Store};
use bellows_tests::bench::reclaim::Mode;
use bellows_vmm::{
    ByteSize, ImageId, Instance, InstanceSpec, LayerConfig, PartitionId, PartitionMode, PlugReport, Vm, VmBuilder,
    VmEnd, serial_of,
};

use crate::Result;

/// How long anything may take, on an emulated processor as well.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Memory that the neighbour has, in MiB.
pub const NEIGHBOUR_MIB: u64 = 1024;

/// Holds the kernel, page cache, and the memory map of all partitions.
const BASE: ByteSize = ByteSize::mib(1024);

/// The demo's image in a store. The store's lock goes with it.
pub struct Image {
    _store: Store,
    layers: Vec<Layer>,
}

impl Image {
    pub fn import() -> Result<Self> {
        let source = artefact("BELLOWS_IMAGE")?;
        let store = Store::open(source.with_file_name("bench-store"))?;
        let oci = OciLayout::open(source)?.image(&Platform::host(), None)?;
        let image = store.import(&oci, None, &ImportOptions::default())?;
        Ok(Self { layers: store.layers(&image)?, _store: store })
    }
}

fn artefact(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    Ok(path.ok_or_else(|| format!("{variable} is not set: run `cargo xtask bench reclaim`"))?)
}

/// A running guest whose neighbour's memory is plugged.
pub struct Guest {
    pub vm: Vm,
    pub mode: Mode,
    vcpu_threads: BTreeSet<PathBuf>,
    instances: u32,
    unparks: u64,
}

impl Guest {
    /// Boots one that can have up to `largest_mib` of memory for an instance beside what the neighbour has.
    pub fn boot(image: &Image, mode: Mode, init_on_alloc: bool, largest_mib: u64) -> Result<Self> {
        let mut builder = VmBuilder::new(artefact("BELLOWS_KERNEL")?, BASE)
            .initramfs(artefact("BELLOWS_INITRAMFS")?)
            .kernel_parameter(format!("init_on_alloc={}", u8::from(init_on_alloc)))
            .vcpus(vcpus())
            .layers(image.layers.iter().map(LayerConfig::from))
            .partition_mode(match mode {
                Mode::Extension => PartitionMode::Extension,
                Mode::Shared | Mode::Stock => PartitionMode::Stock,
            });
        builder = match mode {
            Mode::Shared => builder.partition(ByteSize::mib(largest_mib + NEIGHBOUR_MIB)),
            Mode::Stock | Mode::Extension => {
                builder.partition(ByteSize::mib(largest_mib)).partition(ByteSize::mib(NEIGHBOUR_MIB))
            }
        };
        let before = threads()?;
        let vm = builder.boot()?;
        vm.wait_ready(PATIENCE)?;
        let is_vcpu =
            |thread: &PathBuf| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with("vcpu"));
        let vcpu_threads = threads()?.difference(&before).filter(|thread| is_vcpu(thread)).cloned().collect();
        vm.mount_image(&image_id()?, image.layers.iter().map(|layer| serial_of(&layer.digest)).collect())?;
        let guest = Self { vm, mode, vcpu_threads, instances: 0, unparks: 0 };
        guest.vm.plug(guest.neighbours_partition()?, ByteSize::mib(NEIGHBOUR_MIB), PATIENCE)?;
        Ok(guest)
    }

    /// Where memory comes and goes.
    pub fn partition(&self) -> Result<PartitionId> {
        partition(1)
    }

    pub fn neighbours_partition(&self) -> Result<PartitionId> {
        partition(if self.mode == Mode::Shared { 1 } else { 2 })
    }

    /// What stays plugged in the partition that memory comes to and goes from.
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

    /// Whether a plug took the memory from where it was parked in the guest.
    pub fn was_parked(&mut self, plug: &PlugReport) -> bool {
        let before = self.unparks;
        self.unparks = plug.driver.map_or(0, |driver| driver.unparks);
        self.unparks > before
    }

    /// Time for which the vCPUs' threads have run.
    pub fn vcpu_time(&self) -> Result<Duration> {
        let mut sum = 0;
        for thread in &self.vcpu_threads {
            // Nanoseconds on a processor come first (Documentation/scheduler/sched-stats.rst).
            let text = fs::read_to_string(thread.join("schedstat"))?;
            sum += text.split_whitespace().next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(Duration::from_nanos(sum))
    }

    pub fn shutdown(self) -> Result<()> {
        match self.vm.shutdown(PATIENCE) {
            VmEnd::PoweredOff | VmEnd::Reset => Ok(()),
            end => Err(format!("the guest ended wrongly: {end}").into()),
        }
    }
}

/// Two, so that a neighbour can run beside a reclaim, but no more than this host has: vCPUs that share a processor spend
/// their time waiting for locks that the other one holds.
fn vcpus() -> u8 {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(2) as u8)
}

fn threads() -> Result<BTreeSet<PathBuf>> {
    Ok(fs::read_dir("/proc/self/task")?.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?)
}

fn partition(number: u16) -> Result<PartitionId> {
    Ok(PartitionId::new(number).ok_or("partitions are numbered from 1")?)
}

fn image_id() -> Result<ImageId> {
    Ok("demo".parse()?)
}
