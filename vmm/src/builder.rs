//! From a configuration to a running VM.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bellows_devices::bus::Bus;
use bellows_devices::legacy::PowerRequest;
use bellows_devices::virtio::net::mmds::Metadata;
use bellows_devices::virtio::{Rng, Vsock};
use bellows_memory::layout::LayoutSpec;
use bellows_memory::slots::SlotTable;
use bellows_memory::sync::Mutex;
use bellows_memory::{Admission, BaseMemory, ByteSize, DeviceArea, Discarder, Layout, PartitionSetup, SystemMemory};
use tempfile::TempDir;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::{BootSource, Buses, Firmware, layout, legacy, load};
use crate::config::{
    Backing, BalloonConfig, CpuTemplate, DriveConfig, ElasticBaseConfig, ImageConfig, MmdsConfig, NetConfig,
    PartitionMode, SerialOutput, VmConfig, VsockConfig,
};
use crate::console::{Console, standard_output};
use crate::descriptors;
use crate::end::{EndSignal, VmEnd};
use crate::error::BuildError;
use crate::guest::ready::ReadyListener;
use crate::guest::session::Session;
use crate::kvm::{ExitNotice, ExitReason, Host, Machine, VcpuPool, Vcpus};
use crate::last_lines::{Both, LastLines};
use crate::parameters::command_line;
use crate::resources::balloon::Balloon;
use crate::resources::disks::Disks;
use crate::resources::elastic::ElasticBase;
use crate::resources::images::Images;
use crate::resources::instances::Instances;
use crate::resources::networks::Networks;
use crate::resources::partitions::{PartitionParts, Partitions};
use crate::resources::pmem::PmemWindows;
use crate::resources::scratch::ScratchDisks;
use crate::virtio_bus::{DeviceError, VirtioBus};
use crate::vm::Vm;

/// Devices that every VM has: entropy and vsock.
const FIXED_DEVICES: usize = 2;

/// Makes a VM.
///
/// ```no_run
/// use std::time::Duration;
/// use bellows_vmm::{ByteSize, InstanceSpec, StreamName, PartitionId, VmBuilder};
///
/// # fn run(image: bellows_vmm::ImageConfig) -> Result<(), Box<dyn std::error::Error>> {
/// # let partition = PartitionId::new(1).ok_or("a number")?;
/// let limit = Duration::from_secs(30);
/// let vm = VmBuilder::new("vmlinux", ByteSize::mib(512))
///     .initramfs("initramfs.cpio")
///     .image(image.clone())
///     .partition(ByteSize::gib(1))
///     .boot()?;
/// vm.wait_ready(limit)?;
/// vm.mount_image(&image.id, limit)?;
///
/// vm.plug(partition, ByteSize::gib(1), limit)?;
/// let spec = InstanceSpec::new("first".parse()?, image.id, ["/usr/bin/python3", "-c", "print('hello')"]).in_partition(partition);
/// let instance = vm.start_instance(&spec)?;
/// let output = instance.forward(StreamName::Stdout, std::io::stdout())?;
/// let status = instance.wait()?;
/// output.join()?;
/// instance.remove(limit)?;
///
/// let unplugged = vm.unplug(partition, limit)?;
/// let discarded = vm.await_discard(partition, limit)?;
/// println!("exit code {}, {} back after {:?}", status.code, discarded.discarded, unplugged.unplug);
/// vm.shutdown(limit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct VmBuilder {
    config: VmConfig,
    metadata: Metadata,
}

/// Most bytes of a VM's metadata, unless its builder is given other metadata; Firecracker's.
const METADATA_LIMIT: usize = 51200;

impl From<VmConfig> for VmBuilder {
    fn from(config: VmConfig) -> Self {
        Self { config, metadata: Metadata::new(METADATA_LIMIT) }
    }
}

impl VmBuilder {
    /// A VM that boots `kernel` with `memory`.
    #[must_use]
    pub fn new(kernel: impl Into<PathBuf>, memory: ByteSize) -> Self {
        VmConfig::new(kernel, memory).into()
    }

    /// Sets base memory.
    #[must_use]
    pub fn memory(mut self, memory: ByteSize) -> Self {
        self.config.memory = memory;
        self
    }

    /// Sets the initial file system, which holds the agent.
    #[must_use]
    pub fn initramfs(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.initramfs = Some(path.into());
        self
    }

    /// Sets the kernel command line, in place of the monitor's own ([`VmConfig::command_line`]).
    #[must_use]
    pub fn command_line(mut self, line: impl Into<String>) -> Self {
        self.config.command_line = Some(line.into());
        self
    }

    /// Adds a parameter at the end of the kernel command line.
    #[must_use]
    pub fn kernel_parameter(mut self, parameter: impl Into<String>) -> Self {
        self.config.extra_command_line.push(parameter.into());
        self
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn vcpus(mut self, count: u8) -> Self {
        self.config.vcpus = count;
        self
    }

    /// Sets what the guest sees of the CPU.
    #[must_use]
    pub fn cpu(mut self, template: CpuTemplate) -> Self {
        self.config.cpu = template;
        self
    }

    /// Sets the backing of guest memory on the host.
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> Self {
        self.config.backing = backing;
        self
    }

    /// Adds a balloon, through which base memory goes back to the host while the VM runs.
    #[must_use]
    pub fn balloon(mut self, balloon: BalloonConfig) -> Self {
        self.config.balloon = Some(balloon);
        self
    }

    /// Lets base memory grow while the VM runs, and shrink.
    #[must_use]
    pub fn elastic_base(mut self, elastic: ElasticBaseConfig) -> Self {
        self.config.elastic_base = Some(elastic);
        self
    }

    /// Adds a partition that can be plugged with up to `window`.
    #[must_use]
    pub fn partition(mut self, window: ByteSize) -> Self {
        self.config.partitions.push(window);
        self
    }

    /// Sets how much of each partition is prepared in the background once the guest is ready, at most
    /// ([`VmConfig::prepare`]).
    #[must_use]
    pub fn prepare(mut self, size: ByteSize) -> Self {
        self.config.prepare = size;
        self
    }

    /// Sets after how many seconds the guest removes the memory map of a parked partition
    /// ([`VmConfig::remove_parked_after_s`]).
    #[must_use]
    pub fn remove_parked_after_s(mut self, seconds: u32) -> Self {
        self.config.remove_parked_after_s = seconds;
        self
    }

    /// Sets the most that base memory and all partitions together may have.
    #[must_use]
    pub fn memory_limit(mut self, limit: ByteSize) -> Self {
        self.config.memory_limit = Some(limit);
        self
    }

    /// Sets the base limit of an instance that names none itself.
    #[must_use]
    pub fn base_limit(mut self, limit: ByteSize) -> Self {
        self.config.base_limit = Some(limit);
        self
    }

    /// Sets how partitions are kept apart in the guest.
    #[must_use]
    pub fn partition_mode(mut self, mode: PartitionMode) -> Self {
        self.config.partition_mode = mode;
        self
    }

    /// Adds an image.
    #[must_use]
    pub fn image(mut self, image: ImageConfig) -> Self {
        self.config.images.push(image);
        self
    }

    /// Keeps account of the pages of images that the guest reads, for [`Vm::profile`].
    #[must_use]
    pub fn record_reads(mut self) -> Self {
        self.config.record_reads = true;
        self
    }

    /// Has scratch disks of instances lie in the file system of `folder` ([`VmConfig::scratch_folder`]).
    #[must_use]
    pub fn scratch_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.config.scratch_folder = Some(folder.into());
        self
    }

    /// Adds a raw disk.
    #[must_use]
    pub fn drive(mut self, drive: DriveConfig) -> Self {
        self.config.drives.push(drive);
        self
    }

    /// Adds a network interface.
    #[must_use]
    pub fn network_interface(mut self, interface: NetConfig) -> Self {
        self.config.network_interfaces.push(interface);
        self
    }

    /// Sets how the guest reaches its metadata.
    #[must_use]
    pub fn mmds(mut self, mmds: MmdsConfig) -> Self {
        self.config.mmds = Some(mmds);
        self
    }

    /// Sets the metadata of the VM, in place of none yet and at most 51,200 bytes.
    #[must_use]
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Sets the vsock device.
    #[must_use]
    pub fn vsock(mut self, vsock: VsockConfig) -> Self {
        self.config.vsock = vsock;
        self
    }

    /// Sets where the serial console goes.
    #[must_use]
    pub fn serial(mut self, serial: SerialOutput) -> Self {
        self.config.serial = serial;
        self
    }

    /// Makes the VM and starts it.
    ///
    /// # Errors
    /// The configuration is invalid, a file is missing, or the host refused a step: the error names it. Nothing of the VM
    /// remains.
    #[tracing::instrument(level = "debug", skip_all)]
    pub fn boot(self) -> Result<Vm, BuildError> {
        let started = Instant::now();
        let Self { config, metadata } = self;
        config.validate()?;
        descriptors::check(descriptors::of_vm(&config))?;
        let mut host = Host::open()?;
        host.change_cpu(&config.cpu)?;
        let machine = Machine::new(&host)?;
        let spec = layout::spec(config.memory, config.partitions.clone(), host.physical_address_bits());
        let layout = Layout::new(&LayoutSpec { growth: config.growth(), ..spec })?;
        let windows = PmemWindows::new(DeviceArea::new(layout.devices()), machine.slots());
        let end = EndSignal::new().map_err(system("end signal"))?;
        let notice = ExitNotice::new(machine.gate(), {
            // Weak, because the windows hold the slots, and those the notice.
            let (end, windows) = (end.clone(), Arc::downgrade(&windows));
            move |reason| {
                let reason = match windows.upgrade() {
                    Some(windows) => windows.explain(reason),
                    None => reason,
                };
                end.report(VmEnd::from(reason));
            }
        });

        machine.slots().end_with(notice.clone());

        let base = BaseMemory::map(&layout, config.backing)?;
        for &slot in base.slots() {
            machine.slots().set(slot)?;
        }
        let discarder = Discarder::spawn().map_err(system("discard thread"))?;

        let buses = Buses { mmio: Arc::new(Bus::new()), ports: Arc::new(Bus::new()) };
        let last_lines = LastLines::default();
        legacy::add_power(&buses, power(notice.clone(), last_lines.clone())).map_err(DeviceError::from)?;
        let console = add_serial(&buses, &machine, &config.serial, last_lines)?;
        let functions = FIXED_DEVICES
            + usize::from(config.balloon.is_some())
            + config.disks()
            + config.network_interfaces.len()
            + config.memory_devices();
        let vectors = config.max_vectors();
        let view = base.view().clone();
        let bus = Arc::new(VirtioBus::new(&machine, view, notice.clone(), functions, vectors, &buses)?);
        let event_loop = bus.event_loop("devices")?;
        // First, so that the agent has a place on the bus however many devices follow.
        let (uds_path, directory) = socket_path(config.vsock.uds_path.as_deref())?;
        let vsock = Vsock::new(config.vsock.cid, &uds_path)?;
        let ready = ReadyListener::bind(&uds_path)?;
        bus.add("vsock", vsock, event_loop.handle())?;
        bus.add("entropy source", Rng::new(), event_loop.handle())?;
        let balloon = match &config.balloon {
            Some(balloon) => Some(Balloon::add(&bus, base.discard()?, balloon, &end)?),
            None => None,
        };
        // Images before drives: a guest that depends on the order of discovery finds them in this order.
        let disks = Arc::new(Disks::new(windows, event_loop.handle(), config.record_reads));
        let images = Images::default();
        images.add_all(&bus, &disks, &config.images)?;
        for drive in &config.drives {
            disks.add_drive(&bus, drive)?;
        }
        if let Some(mmds) = &config.mmds {
            metadata.configure(mmds.version, mmds.imds_compat);
        }
        let pieces = layout.base().count() + config.memory_devices();
        let networks = Networks::new(config.vcpus, pieces);
        for interface in &config.network_interfaces {
            let service = config.mmds.as_ref().filter(|mmds| mmds.interfaces.contains(&interface.id));
            networks.add(&bus, interface, service.map(|mmds| (&metadata, mmds.address())))?;
        }
        let memory = PartitionSetup {
            backing: config.backing,
            view: base.view().clone(),
            slots: machine.slots(),
            admission: Admission::new(config.partition_limit(), SystemMemory::open().map_err(system("memory limits"))?),
            discards: discarder.queue(),
        };
        let elastic_base = match (layout.growth(), config.elastic_base) {
            (Some(window), Some(elastic)) => {
                Some(ElasticBase::add(&bus, window, memory.clone(), event_loop.handle(), elastic, &end)?)
            }
            _ => None,
        };
        let parts = PartitionParts { memory, event_loop: event_loop.handle() };
        let partitions = Partitions::new(parts, layout.windows(), &config, &bus, &end)?;

        let firmware = Firmware {
            vcpus: config.vcpus.into(),
            layout: &layout,
            buses: &bus.root_buses(),
            serial: config.serial != SerialOutput::Off,
        };
        let source = BootSource {
            kernel: &config.kernel,
            initramfs: config.initramfs.as_deref(),
            command_line: &command_line(&config)?,
        };
        let entry = load(&base.view().memory(), firmware, source)?;
        let vcpus = Vcpus { count: config.vcpus.into(), entry, buses: buses.clone(), notice };
        let scratch = ScratchDisks::new(config.scratch_folder.clone(), &disks, &bus);
        let instances = Instances { base_limit: config.base_limit, memory: config.memory, scratch };
        let vm = Vm {
            vcpus: VcpuPool::new(&host, &machine, vcpus)?,
            console,
            _buses: buses,
            bus,
            balloon,
            elastic_base,
            disks,
            images,
            networks,
            metadata,
            partitions,
            instances,
            _event_loop: event_loop,
            discarder,
            machine,
            base,
            session: Session::new(ready, uds_path, end, started),
            pausing: Mutex::default(),
            _directory: directory,
            config,
        };
        vm.vcpus.start()?;
        tracing::info!(after = ?started.elapsed(), vcpus = vm.config.vcpus, "the VM runs");
        Ok(vm)
    }
}

/// The end of the VM that a power request of the guest leads to.
fn power(notice: ExitNotice, last_lines: LastLines) -> impl Fn(PowerRequest) + Clone + Send + Sync {
    move |request| {
        notice.report(match request {
            PowerRequest::Shutdown => ExitReason::Shutdown,
            PowerRequest::Reset => last_lines.panic().map_or(ExitReason::Reset, ExitReason::Panic),
        });
    }
}

/// The serial port, and the thread that writes what the guest prints. The last of it is kept in any case.
fn add_serial(
    buses: &Buses,
    machine: &Machine,
    output: &SerialOutput,
    last_lines: LastLines,
) -> Result<Option<Console>, BuildError> {
    let output = match output {
        SerialOutput::Off => {
            legacy::add_vacant_serial(buses, last_lines).map_err(DeviceError::from)?;
            return Ok(None);
        }
        SerialOutput::Stdout => standard_output().map_err(system("copy of standard output"))?,
        SerialOutput::File(path) => {
            let failed = |source| BuildError::SerialFile { path: path.clone(), source };
            File::create(path).map_err(failed)?
        }
    };
    let (console, input) = Console::start(output).map_err(system("console's thread"))?;
    let failed = |source| DeviceError::Line { device: "serial port", source };
    let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed)?;
    machine.wire_line(&interrupt, layout::SERIAL_LINE).map_err(failed)?;
    legacy::add_serial(buses, interrupt, Both(last_lines, input)).map_err(DeviceError::from)?;
    Ok(Some(console))
}

/// The vsock device's socket: the caller's, or one in a private directory that is removed with the VM.
fn socket_path(wanted: Option<&Path>) -> Result<(PathBuf, Option<TempDir>), BuildError> {
    if let Some(path) = wanted {
        return Ok((path.to_owned(), None));
    }
    let directory = tempfile::Builder::new().prefix("bellows-").tempdir().map_err(system("socket directory"))?;
    Ok((directory.path().join("vsock"), Some(directory)))
}

fn system(what: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::System { what, source }
}

#[cfg(test)]
#[path = "builder_test.rs"]
mod tests;
