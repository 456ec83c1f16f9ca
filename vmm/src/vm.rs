//! A running VM.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bellows_block::ReadSet;
use bellows_devices::event_loop::EventLoop;
use bellows_devices::virtio::limits::RateLimit;
use bellows_devices::virtio::net::mmds::Metadata;
use bellows_memory::sync::Mutex;
use bellows_memory::{BaseMemory, ByteSize, Discarder, PartitionId};
use bellows_protocol::ready::BootTimes;
use bellows_protocol::values::{ImageId, InstanceId};
use tempfile::TempDir;
use tracing::instrument;

use crate::arch::Buses;
use crate::config::{DriveConfig, ImageConfig, LayerConfig, VmConfig};
use crate::console::Console;
use crate::end::VmEnd;
use crate::guest::agent::InstanceMemory;
use crate::guest::error::{PowerOffError, ReadyError, StatisticsError};
use crate::guest::session::Session;
use crate::kvm::{ExitCounts, Machine, VcpuPool};
use crate::lifecycle::{self, Lifecycle, LifecycleError, Pausing, VmStopper};
use crate::model::{
    DiscardReport, DiskInfo, GuestInfo, GuestStatistics, ImageInfo, PartitionInfo, PartitionUse, PlugReport,
    PreparationReport, UnplugAccount, UnplugReport,
};
use crate::resident::resident_bytes;
use crate::resources::balloon::Balloon;
use crate::resources::disks::Disks;
use crate::resources::elastic::ElasticBase;
use crate::resources::error::{HotplugError, ImageError, InstanceError, PartitionError};
use crate::resources::images::Images;
use crate::resources::instances::{Instance, InstanceSpec, Instances, ZygoteSpec};
use crate::resources::networks::Networks;
use crate::resources::partitions::Partitions;
use crate::virtio_bus::VirtioBus;

/// A running VM, made by [`VmBuilder`](crate::VmBuilder). All methods may be called from any thread. Dropping it stops
/// the VM and removes its sockets.
///
/// A façade: each method only calls the part that does the work.
pub struct Vm {
    // Dropped from the top: first the running parts, then the parts they depend on.
    pub(crate) vcpus: VcpuPool,
    pub(crate) console: Option<Console>,
    pub(crate) _buses: Buses,
    pub(crate) bus: Arc<VirtioBus>,
    pub(crate) balloon: Option<Balloon>,
    pub(crate) elastic_base: Option<ElasticBase>,
    pub(crate) disks: Arc<Disks>,
    pub(crate) images: Images,
    pub(crate) networks: Networks,
    pub(crate) metadata: Metadata,
    pub(crate) partitions: Partitions,
    pub(crate) instances: Instances,
    pub(crate) _event_loop: EventLoop,
    pub(crate) discarder: Discarder,
    pub(crate) machine: Machine,
    pub(crate) base: BaseMemory,
    pub(crate) session: Session,
    /// Held through a pause or a resume.
    pub(crate) pausing: Mutex<()>,
    pub(crate) _directory: Option<TempDir>,
    pub(crate) config: VmConfig,
}

impl Vm {
    /// Waits until the guest's agent can be called, and has it set the VM's network up. All calls to the guest come after this.
    ///
    /// # Errors
    /// The agent was not ready in time, the VM ended, the agent is of another version, or a network interface cannot be set up. The
    /// call may be repeated.
    pub fn wait_ready(&self, timeout: Duration) -> Result<GuestInfo, ReadyError> {
        let windows = self.elastic_base.iter().map(ElasticBase::span).fold(self.partitions.span(), ByteSize::plus);
        let network = self.networks.setups();
        let guest = self.session.meet(self.config.partitions.len(), windows, &network, timeout)?;
        self.partitions.prepare(&self.session, &guest);
        if let Some(elastic) = &self.elastic_base {
            elastic.begin(&self.session);
        }
        Ok(guest)
    }

    /// Waits until the VM ends by itself.
    #[must_use]
    pub fn wait(&self) -> VmEnd {
        self.session.wait()
    }

    /// Waits until the VM ends by itself; `None` if it still runs after `timeout`.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<VmEnd> {
        self.session.end().wait(Some(timeout))
    }

    /// Pauses the VM: when this returns, vCPUs and devices have stopped, guest memory stays as it is, and all unplugged
    /// memory has been freed. [`Vm::resume`] may be called from another thread.
    ///
    /// Calls to the guest, among them all that plug, attach or start something, fail meanwhile with
    /// [`NotRunning::Paused`](crate::NotRunning::Paused) or [`AgentError::Paused`](crate::AgentError::Paused). Calls that have
    /// begun wait, and their time runs on. Streams stand still. Stopping works as usual.
    ///
    /// The guest's clocks go on: for the guest, all of the pause passes between two instructions.
    ///
    /// # Errors
    /// The VM is paused already, or has ended.
    pub fn pause(&self) -> Result<(), LifecycleError> {
        self.pausing().pause()
    }

    /// Lets a paused VM go on. The guest's wall clock is checked at once.
    ///
    /// # Errors
    /// The VM is not paused, or has ended.
    pub fn resume(&self) -> Result<(), LifecycleError> {
        self.pausing().resume()
    }

    /// The state of the VM at this moment.
    #[must_use]
    pub fn lifecycle(&self) -> Lifecycle {
        lifecycle::state(&self.session)
    }

    /// Asks the guest to switch itself off, and stops it after `timeout` if it has not. Returns how it ended: any end other
    /// than [`VmEnd::PoweredOff`] or [`VmEnd::Reset`] means it was not orderly. A paused VM is stopped at once.
    pub fn shutdown(&self, timeout: Duration) -> VmEnd {
        lifecycle::shutdown(&self.session, &self.vcpus, self.console.as_ref(), timeout)
    }

    /// Asks the guest to switch itself off, and does not wait until it has: [`Vm::wait`] does. The agent has `timeout` to answer.
    ///
    /// # Errors
    /// The agent failed, or cannot be asked.
    pub fn power_off(&self, timeout: Duration) -> Result<(), PowerOffError> {
        self.session.power_off(timeout)
    }

    /// Stops the VM at once, without asking the guest. Returns how it ended, possibly before the call. The reader of the
    /// serial console has a second to take the rest.
    pub fn stop(&self) -> VmEnd {
        lifecycle::stop(&self.session, &self.vcpus, self.console.as_ref())
    }

    /// A handle that stops the VM without keeping it alive: for a thread that waits for signals, for example.
    #[must_use]
    pub fn stopper(&self) -> VmStopper {
        VmStopper::new(self.session.end().clone(), self.machine.gate())
    }

    /// The configuration of the VM.
    #[must_use]
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The Unix socket through which the host reaches ports of the guest, and beside which the guest reaches the host's.
    #[must_use]
    pub fn vsock_path(&self) -> &Path {
        self.session.uds_path()
    }

    /// Counters of the guest's kernel.
    ///
    /// # Errors
    /// The agent failed, or cannot be asked.
    pub fn statistics(&self) -> Result<GuestStatistics, StatisticsError> {
        self.session.statistics()
    }

    /// What each instance in the guest has allocated at this moment, with those that are being started or removed. The guest reads
    /// two numbers for each.
    ///
    /// # Errors
    /// The agent failed, or cannot be asked.
    pub fn measure_instances(&self) -> Result<Vec<InstanceMemory>, StatisticsError> {
        self.session.measure_instances()
    }

    /// The exits of each vCPU so far.
    #[must_use]
    pub fn exits(&self) -> Vec<ExitCounts> {
        self.vcpus.counts()
    }

    /// The guest's clock when its kernel and its agent had started; `None` before [`Vm::wait_ready`].
    #[must_use]
    pub fn boot_times(&self) -> Option<BootTimes> {
        self.session.boot_times()
    }

    /// Bytes of host memory under guest memory: base memory and plugged memory. The guest kernel's page structures for
    /// images over virtio-pmem lie in base memory and count; the files of the images are the host's page cache and do not.
    /// An unplug may wait for the part of the call that it meets. Before Linux 6.7 the host's kernel is asked page by page.
    ///
    /// # Errors
    /// The host's kernel refused.
    pub fn resident_bytes(&self) -> std::io::Result<u64> {
        resident_bytes(self.base.view(), 0..u64::MAX)
    }

    /// Of [`Vm::resident_bytes`], what lies under memory of partitions.
    ///
    /// # Errors
    /// The host's kernel refused.
    pub fn resident_partition_bytes(&self) -> std::io::Result<u64> {
        self.partitions.first_address().map_or(Ok(0), |address| resident_bytes(self.base.view(), address..u64::MAX))
    }

    /// The same of one partition.
    ///
    /// # Errors
    /// The host's kernel refused.
    pub fn resident_bytes_of(&self, partition: &PartitionInfo) -> std::io::Result<u64> {
        let window = partition.address..partition.address.saturating_add(partition.memory.window.get());
        resident_bytes(self.base.view(), window)
    }

    /// The balloon, if the configuration has one.
    #[must_use]
    pub fn balloon(&self) -> Option<&Balloon> {
        self.balloon.as_ref()
    }

    /// The elastic part of base memory, if the configuration has one. It follows the guest from [`Vm::wait_ready`] on.
    #[must_use]
    pub fn elastic_base(&self) -> Option<&ElasticBase> {
        self.elastic_base.as_ref()
    }

    /// Adds a raw disk while the VM runs; returns once a driver of the guest has bound.
    ///
    /// # Errors
    /// See [`HotplugError`]. After [`HotplugError::NotBound`] the disk is still on the bus.
    #[instrument(level = "debug", skip_all, fields(drive = ?drive.path))]
    pub fn attach_drive(&self, drive: &DriveConfig, timeout: Duration) -> Result<DiskInfo, HotplugError> {
        self.disks.attach_drive(&self.session, &self.bus, drive, timeout)
    }

    /// Removes a disk while the VM runs: first the guest lets go of it, then it leaves the bus.
    ///
    /// # Errors
    /// See [`HotplugError`]; the disk is still there.
    pub fn detach_disk(&self, serial: &str, timeout: Duration) -> Result<(), HotplugError> {
        self.disks.detach(&self.disks.change(), &self.session, &self.bus, serial, timeout)
    }

    /// Changes the rate limits of a drive, by its serial number. What a limit had saved up stays, as far as the new one allows.
    ///
    /// # Errors
    /// There is no such drive.
    pub fn set_disk_limits(&self, serial: &str, limits: RateLimit) -> Result<(), HotplugError> {
        self.disks.set_limits(serial, limits)
    }

    /// Puts the file at `path` in the place of a drive's, whatever uses the drive in the guest. It may be the same file, with
    /// another size. The guest's driver is told of the size; the serial number becomes the new file's. A request that is in progress
    /// finishes on the old file, which is closed then: this waits for it up to `timeout`, and no longer.
    ///
    /// # Errors
    /// There is no such drive, or the file cannot be one in its place; nothing has changed.
    pub fn replace_disk(&self, serial: &str, path: &Path, timeout: Duration) -> Result<DiskInfo, HotplugError> {
        self.disks.replace(serial, path, timeout)
    }

    /// The disks that the VM has now, by serial number.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskInfo> {
        self.disks.infos()
    }

    /// Makes an image of the configuration ready for instances. It is flat if the guest's kernel can mount that, unless the
    /// configuration says otherwise. `timeout` is for its disks; mounting has a limit of its own, which grows with the number
    /// of layers.
    ///
    /// # Errors
    /// See [`ImageError`].
    #[instrument(level = "debug", skip_all, fields(image = %id))]
    pub fn mount_image(&self, id: &ImageId, timeout: Duration) -> Result<ImageInfo, ImageError> {
        self.images.mount(&self.session, &self.bus, &self.disks, id, timeout)
    }

    /// Adds an image while the VM runs, and makes it ready for instances.
    ///
    /// # Errors
    /// See [`ImageError`]. Disks whose driver did not bind in time stay on the bus ([`HotplugError::NotBound`]). An image that
    /// the agent did not mount ([`ImageError::Agent`]) stays in the VM: mount it again, or detach it.
    #[instrument(level = "debug", skip_all, fields(image = %config.id))]
    pub fn attach_image(&self, config: &ImageConfig, timeout: Duration) -> Result<ImageInfo, ImageError> {
        self.images.attach(&self.session, &self.bus, &self.disks, config, timeout)
    }

    /// Takes an image that no instance uses out of the VM, with the disks that belong to no other image.
    ///
    /// # Errors
    /// See [`ImageError`]; disks that could not be detached stay without the image.
    pub fn detach_image(&self, id: &ImageId, timeout: Duration) -> Result<(), ImageError> {
        self.images.detach(&self.session, &self.bus, &self.disks, id, timeout)
    }

    /// The images that the VM has now, by name.
    #[must_use]
    pub fn images(&self) -> Vec<ImageInfo> {
        self.images.infos()
    }

    /// The files of all images' layers, each once, by digest.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerConfig> {
        self.images.layers()
    }

    /// The pages of an image's files that the guest has read by now, for [`ImageConfig::profile`] of the next VM; over
    /// virtio-pmem, the pages that it has touched and those neighbours of them that were in the page cache. Needs
    /// [`VmConfig::record_reads`].
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::NotRecorded`] or [`ImageError::Touched`].
    pub fn profile(&self, id: &ImageId) -> Result<ReadSet, ImageError> {
        self.images.profile(&self.disks, id)
    }

    /// Grows partition `id` to `size`, at least its current size, and waits until an instance can use it. If memory that was
    /// unplugged before is still being discarded, the plug waits for that.
    ///
    /// # Errors
    /// It was not admitted, the guest did not take all of it in time, the agent found it in the wrong node or zone, or another
    /// call set another target meanwhile. The guest is asked to give the added memory back.
    #[instrument(level = "debug", skip_all, fields(partition = %id, bytes = size.get()))]
    pub fn plug(&self, id: PartitionId, size: ByteSize, timeout: Duration) -> Result<PlugReport, PartitionError> {
        self.partitions.plug(&self.session, id, size, timeout)
    }

    /// Has the guest give back all of partition `id`. It does not wait until the host has freed the memory
    /// ([`Vm::await_discard`]). The report gives the memory that the guest still keeps after `timeout`; the target
    /// stays.
    ///
    /// # Errors
    /// The partition is out of use, the host could not do its part, or another call set another target meanwhile.
    #[instrument(level = "debug", skip_all, fields(partition = %id))]
    pub fn unplug(&self, id: PartitionId, timeout: Duration) -> Result<UnplugReport, PartitionError> {
        self.partitions.shrink(&self.session, id, ByteSize::bytes(0), timeout)
    }

    /// [`Vm::unplug`], with two more calls to the guest: it says what it has done to give the memory back. Other partitions' part of that
    /// counts too.
    ///
    /// # Errors
    /// As for [`Vm::unplug`].
    pub fn unplug_accounted(
        &self,
        id: PartitionId,
        timeout: Duration,
    ) -> Result<(UnplugReport, UnplugAccount), PartitionError> {
        self.partitions.shrink_accounted(&self.session, id, ByteSize::bytes(0), timeout)
    }

    /// Has the guest give back the memory of partition `id` beyond `size`, while instances use it. Otherwise like
    /// [`Vm::unplug`]; the rest is at most `size` unless the time ran out. With the guest memory extension, what is free
    /// goes, and nothing moves; without it, the guest also moves memory out of the way.
    ///
    /// # Errors
    /// As for [`Vm::unplug`], or `size` is invalid, or above the current target.
    #[instrument(level = "debug", skip_all, fields(partition = %id, bytes = size.get()))]
    pub fn shrink(&self, id: PartitionId, size: ByteSize, timeout: Duration) -> Result<UnplugReport, PartitionError> {
        self.partitions.shrink(&self.session, id, size, timeout)
    }

    /// Waits until all partitions are prepared as far as they are going to be ([`VmConfig::prepare`]). Preparing begins with
    /// [`Vm::wait_ready`], goes on in the background, and gives way to all other calls for partitions. The report says what it has
    /// not done, and why.
    ///
    /// # Errors
    /// It is not done after `timeout`: the error has the report so far. The guest is not ready, or the VM has ended.
    pub fn await_prepared(&self, timeout: Duration) -> Result<PreparationReport, PartitionError> {
        self.partitions.await_prepared(&self.session, timeout)
    }

    /// Waits until all memory unplugged from partition `id` has gone back to the host. The figures are those of the
    /// last unplug.
    ///
    /// # Errors
    /// It has not gone back within `timeout`.
    #[instrument(level = "debug", skip_all, fields(partition = %id))]
    pub fn await_discard(&self, id: PartitionId, timeout: Duration) -> Result<DiscardReport, PartitionError> {
        self.partitions.await_discard(id, timeout)
    }

    /// The guest's use of partition `id`, with the processes that hold its memory.
    ///
    /// # Errors
    /// The agent failed: for example because nothing is plugged, so that the guest has no such node.
    pub fn inspect(&self, id: PartitionId) -> Result<PartitionUse, PartitionError> {
        self.partitions.inspect(&self.session, id)
    }

    /// The partitions that have a device, in order.
    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionInfo> {
        self.partitions.infos()
    }

    /// Removes the device of partition `id`. The guest's driver cannot refuse, so the host refuses while memory is
    /// plugged or not yet discarded.
    ///
    /// # Errors
    /// The partition is in use, and stays as it is; or the guest did not let go in time: then it can no longer be
    /// plugged, and this can be called again.
    pub fn detach_partition(&self, id: PartitionId, timeout: Duration) -> Result<(), PartitionError> {
        self.partitions.detach(&self.session, &self.bus, id, timeout)
    }

    /// Gives partition `id` a device again after [`Vm::detach_partition`]; returns once a driver has bound.
    ///
    /// # Errors
    /// It has a device, or the guest's driver did not bind in time: then the device stays on the bus.
    pub fn attach_partition(&self, id: PartitionId, timeout: Duration) -> Result<(), PartitionError> {
        self.partitions.attach(&self.session, &self.bus, id, timeout)
    }

    /// Starts an instance.
    ///
    /// # Errors
    /// Its specification is invalid, its partition is not plugged, base memory is too small or too full, or the agent could not
    /// start it.
    #[instrument(level = "debug", skip_all, fields(instance = %spec.id))]
    pub fn start_instance(&self, spec: &InstanceSpec) -> Result<Instance, InstanceError> {
        self.instances.start(&self.session, &self.partitions, spec)
    }

    /// [`Vm::plug`] of the instance's partition, and [`Vm::start_instance`] there, for the price of one call to the guest. Time for the plug
    /// is `timeout`.
    ///
    /// # Errors
    /// As for both; the guest is asked to give the added memory back.
    #[instrument(level = "debug", skip_all, fields(instance = %spec.id, bytes = size.get()))]
    pub fn plug_and_start(
        &self,
        spec: &InstanceSpec,
        size: ByteSize,
        timeout: Duration,
    ) -> Result<(Instance, PlugReport), InstanceError> {
        self.instances.plug_and_start(&self.session, &self.partitions, spec, size, timeout)
    }

    /// Starts a zygote: an instance whose process gets ready once, and that [forks](InstanceSpec::forked_from) begin as copies of.
    /// Needs the guest memory extension. Returns when it is ready.
    ///
    /// It is an instance like others, which ends and is removed as they do. Memory that its forks still share with it stays in its
    /// partition until the last of them has ended; [`Vm::inspect`] names them.
    ///
    /// # Errors
    /// As for [`Vm::start_instance`]; its process did not get ready, or has something that forks cannot have, such as a second
    /// thread, a shared mapping or an open socket.
    #[instrument(level = "debug", skip_all, fields(instance = %spec.instance.id))]
    pub fn start_zygote(&self, spec: &ZygoteSpec) -> Result<Instance, InstanceError> {
        self.instances.start_zygote(&self.session, &self.partitions, spec)
    }

    /// Removes an instance by its name, as [`Instance::remove`] does: for one without a handle, such as one whose start was not
    /// answered in time.
    ///
    /// # Errors
    /// See [`Instance::remove`].
    #[instrument(level = "debug", skip_all, fields(instance = %id))]
    pub fn remove_instance(&self, id: &InstanceId, timeout: Duration) -> Result<(), InstanceError> {
        self.instances.remove(&self.session, &self.partitions, id, timeout)
    }
}

impl Vm {
    /// Waits for the turn to pause or resume.
    fn pausing(&self) -> Pausing<'_> {
        let turn = self.pausing.lock();
        Pausing { session: &self.session, vcpus: &self.vcpus, bus: &self.bus, discarder: &self.discarder, turn }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}
