//! Partitions of a VM: plugged for an instance, unplugged and discarded after it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bellows_devices::event_loop::EventLoopHandle;
use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::{Mem, MemHandle, PlugError, UnplugError};
use bellows_memory::MapError;
use bellows_memory::discard::DiscardQueue;
use bellows_memory::partition::{Report, StillInUse, WaitError};
use bellows_memory::slots::SlotTable;
use bellows_memory::{Admission, Backing, ByteSize, GuestView, PartitionId, PartitionMemory, PartitionSetup, Window};

use crate::config::PartitionMode;
use crate::deadline::Deadline;
use crate::descriptors::{self, TooFewDescriptors};
use crate::end::EndSignal;
use crate::error::BuildError;
use crate::guest::agent::{AgentClient, AgentError, GuestDriver, PartitionUse};
use crate::virtio_bus::{DeviceError, VirtioBus};
use crate::vm::{NotRunning, Vm};

/// How long the agent may take at most for each of its parts in an unplug: to count pages, before the guest is asked for
/// memory and after, and to say how the guest's driver stands. Memory need not wait for it.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

/// What plugging a partition took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PlugReport {
    /// What is plugged.
    pub bytes: ByteSize,
    /// Until the guest had accepted all of it.
    pub accepted: Duration,
    /// Until the agent had found it online, on the partition's node and in the movable zone.
    pub usable: Duration,
    /// How the guest keeps the partition apart.
    pub mode: PartitionMode,
    /// What the guest's driver says; `None` with a stock kernel.
    pub driver: Option<GuestDriver>,
}

/// What unplugging a partition took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UnplugReport {
    /// Until the guest had given back what it does give back.
    pub unplug: Duration,
    /// Of that, changing memory slots.
    pub slots: Duration,
    /// Of that, waiting for device requests in flight.
    pub drain: Duration,
    /// What the guest kept.
    pub left: ByteSize,
    /// Pages that the whole guest migrated meanwhile because memory was unplugged; `None` where its kernel can't tell.
    pub migrated_pages: Option<u64>,
    /// Pages that the guest zeroed meanwhile because memory was unplugged; `None` where its kernel can't tell.
    pub zeroed_pages: Option<u64>,
    /// How the guest's driver stands, and by its own account took part; `None` with a stock kernel. With memory left it says
    /// how many pages are in use.
    pub driver: Option<GuestDriver>,
}

/// What freeing a partition's memory on the host took.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DiscardReport {
    /// Time in which memory was freed, on a thread of its own.
    pub discard: Duration,
    /// Bytes that had pages and went back to the host.
    pub discarded: ByteSize,
}

/// A partition of a VM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PartitionInfo {
    /// Its memory.
    pub memory: Report,
    /// First guest-physical address of its window.
    pub address: u64,
    /// Its device.
    pub device: PciAddress,
    /// Whether a driver has bound, as far as is known.
    pub attached: bool,
    /// How the guest kept it apart when it was plugged last; `None` before it was.
    pub mode: Option<PartitionMode>,
}

/// Why something could not be done with a partition.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// There is no such partition.
    #[error("the VM has no partition {id}: it has {count}, numbered from 1")]
    NoPartition {
        /// The number.
        id: PartitionId,
        /// How many there are.
        count: usize,
    },
    /// Its device was removed.
    #[error("partition {0} has no device: it was removed")]
    NoDevice(PartitionId),
    /// Its device is there already.
    #[error("partition {0} has a device already")]
    HasDevice(PartitionId),
    /// There is no agent to ask.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// Memory was not plugged.
    #[error("cannot plug partition {id} with {size}")]
    Plug {
        /// The partition.
        id: PartitionId,
        /// The size it should have had.
        size: ByteSize,
        /// Why.
        #[source]
        source: PlugError,
    },
    /// The memory is not where it should be in the guest, or not online. It was asked back.
    #[error("the guest does not use {size} in partition {id} as it should")]
    NotUsable {
        /// The partition.
        id: PartitionId,
        /// The size it has.
        size: ByteSize,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
    /// Memory was not unplugged.
    #[error("cannot unplug partition {id}")]
    Unplug {
        /// The partition.
        id: PartitionId,
        /// Why.
        #[source]
        source: UnplugError,
    },
    /// Memory has not gone back to the host.
    #[error("partition {id} was not discarded")]
    Discard {
        /// The partition.
        id: PartitionId,
        /// Why.
        #[source]
        source: WaitError,
    },
    /// The agent can't say.
    #[error("cannot look into partition {id}")]
    Inspect {
        /// The partition.
        id: PartitionId,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
    /// The partition holds memory, so its device stays.
    #[error(transparent)]
    StillInUse(#[from] StillInUse),
    /// The guest's driver did not bind, or did not let go. The device stays on the bus.
    #[error("the guest has not {action} the device of partition {id} at {address}")]
    Guest {
        /// "bound" or "released".
        action: &'static str,
        /// The partition.
        id: PartitionId,
        /// Where its device is.
        address: PciAddress,
        /// What the agent says.
        #[source]
        source: AgentError,
    },
    /// The process may not open enough files for its device.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// The device could not be put on the bus or taken off.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host has no room for the window.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// What partitions are made with.
pub(crate) struct PartitionParts {
    pub(crate) backing: Backing,
    pub(crate) view: GuestView,
    pub(crate) slots: Arc<dyn SlotTable>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) discards: DiscardQueue,
    pub(crate) event_loop: EventLoopHandle,
}

/// All partitions of a VM.
pub(crate) struct Partitions {
    parts: PartitionParts,
    windows: Vec<Window>,
    /// Held through a whole change of devices; changes wait for the guest.
    change: Mutex<()>,
    /// Those with a device.
    table: Arc<Table>,
}

type Table = Mutex<BTreeMap<PartitionId, Entry>>;

#[derive(Clone)]
struct Entry {
    handle: MemHandle,
    device: PciAddress,
    attached: bool,
    mode: Option<PartitionMode>,
}

impl Partitions {
    /// Makes one partition for each of `windows` and puts their devices on the bus, before the guest boots.
    pub(crate) fn new(
        parts: PartitionParts,
        windows: &[Window],
        bus: &VirtioBus,
        end: &EndSignal,
    ) -> Result<Self, BuildError> {
        let table = Arc::new(Table::default());
        let partitions = Self { parts, windows: windows.to_vec(), change: Mutex::new(()), table: table.clone() };
        let table = Arc::downgrade(&table);
        end.on_end(move || {
            let Some(table) = table.upgrade() else { return };
            let table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.values().for_each(|entry| entry.handle.memory().end());
        });
        for &window in windows {
            partitions.add(window, bus, true).map_err(|error| match error {
                AddError::Map(error) => BuildError::from(error),
                AddError::Device(error) => BuildError::from(error),
            })?;
        }
        Ok(partitions)
    }

    fn add(&self, window: Window, bus: &VirtioBus, attached: bool) -> Result<Entry, AddError> {
        let memory = PartitionMemory::new(PartitionSetup {
            window,
            backing: self.parts.backing,
            view: self.parts.view.clone(),
            slots: self.parts.slots.clone(),
            admission: self.parts.admission.clone(),
            discards: self.parts.discards.clone(),
        })?;
        let name = format!("partition {}", window.id());
        let device = Mem::new(memory);
        let handle = device.handle();
        let device = bus.add(&name, device, self.parts.event_loop.clone())?;
        let entry = Entry { handle, device, attached, mode: None };
        self.table().insert(window.id(), entry.clone());
        Ok(entry)
    }

    fn window(&self, id: PartitionId) -> Result<Window, PartitionError> {
        let window = self.windows.iter().copied().find(|window| window.id() == id);
        window.ok_or(PartitionError::NoPartition { id, count: self.windows.len() })
    }

    fn entry(&self, id: PartitionId) -> Result<Entry, PartitionError> {
        self.window(id)?;
        self.table().get(&id).cloned().ok_or(PartitionError::NoDevice(id))
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<PartitionId, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`Partitions::add`] can meet.
enum AddError {
    Map(MapError),
    Device(DeviceError),
}

impl From<MapError> for AddError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<DeviceError> for AddError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl From<AddError> for PartitionError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Map(error) => error.into(),
            AddError::Device(error) => error.into(),
        }
    }
}

impl Vm {
    /// Plugs partition `id` until it has `size`, no less than it has, and waits until an instance can use it. What was
    /// unplugged before and is still being discarded is waited for.
    ///
    /// # Errors
    /// It was not admitted, the guest did not take all of it in time, the agent found it in the wrong node or zone, or another
    /// call wants another size of the partition meanwhile. What was added is asked back.
    pub fn plug(&self, id: PartitionId, size: ByteSize, timeout: Duration) -> Result<PlugReport, PartitionError> {
        let entry = self.partitions.entry(id)?;
        let agent = self.agent()?;
        let (start, deadline) = (Instant::now(), Deadline::after(timeout));
        let plugged = entry.handle.plug(size, timeout).map_err(|source| PartitionError::Plug { id, size, source })?;
        let accepted = start.elapsed();
        let address = entry.handle.memory().window().range().start().0;
        // What is kept back is for taking back what the guest can't use.
        let left = deadline.left() / 4 * 3;
        let usage = match agent.await_partition(id.get().into(), size.get(), address, left) {
            Ok(usage) => usage,
            Err(source) => {
                if let Err(error) = entry.handle.undo(&plugged, deadline.left()) {
                    tracing::warn!(partition = %id, %error, "memory that the guest can't use stays plugged");
                }
                return Err(PartitionError::NotUsable { id, size, source });
            }
        };
        let usable = start.elapsed();
        let mode = usage.driver.map_or(PartitionMode::Stock, |driver| driver.mode);
        tracing::debug!(partition = %id, %size, ?usable, %mode, "plugged");
        if let Some(entry) = self.partitions.table().get_mut(&id) {
            entry.mode = Some(mode);
        }
        Ok(PlugReport { bytes: plugged.report.plugged, accepted, usable, mode, driver: usage.driver })
    }

    /// Has the guest give back all of partition `id`. It does not wait until the host has freed the memory
    /// ([`Vm::await_discard`]). What the guest keeps after `timeout` is in the report, and stays asked for.
    ///
    /// # Errors
    /// The partition is out of use, the host could not do its part, or another call wants another size of it meanwhile.
    pub fn unplug(&self, id: PartitionId, timeout: Duration) -> Result<UnplugReport, PartitionError> {
        self.shrink(id, ByteSize::bytes(0), timeout)
    }

    /// Has the guest give back what partition `id` has beyond `size`, block by block, for partitions that several instances
    /// share. Otherwise like [`Vm::unplug`]; what is left is at most `size` unless the time ran out.
    ///
    /// # Errors
    /// As for [`Vm::unplug`], or the partition can't have that size, or should have less already.
    pub fn shrink(&self, id: PartitionId, size: ByteSize, timeout: Duration) -> Result<UnplugReport, PartitionError> {
        let entry = self.partitions.entry(id)?;
        let agent = self.agent()?;
        let deadline = Deadline::after(timeout);
        // For a report of the guest, also where it keeps memory until time is up.
        let reserve = REPORT_LIMIT.min(timeout / 4);
        let before = Counters::read(agent, reserve);
        let start = Instant::now();
        let result = entry.handle.shrink(size, deadline.left().saturating_sub(reserve));
        let unplug = start.elapsed();
        let report = match result {
            Ok(report) => report,
            Err(UnplugError::Incomplete(WaitError::Timeout { report, .. })) => *report,
            Err(source) => return Err(PartitionError::Unplug { id, source }),
        };
        let complete = report.plugged <= size;
        let driver = driver_after_unplug(agent, id, complete, deadline.left().min(REPORT_LIMIT));
        // Who did not answer is not asked again.
        let counted =
            before.and_then(|before| Some((before, Counters::read(agent, deadline.left().min(REPORT_LIMIT))?)));
        tracing::debug!(partition = %id, left = %report.plugged, ?unplug, ?driver, "unplugged");
        Ok(UnplugReport {
            unplug,
            slots: report.phases.slots,
            drain: report.phases.drain,
            left: report.plugged,
            migrated_pages: counted.map(|(before, after)| after.migrated.saturating_sub(before.migrated)),
            zeroed_pages: counted.and_then(|(before, after)| Some(after.zeroed?.saturating_sub(before.zeroed?))),
            driver,
        })
    }

    /// Waits until all that was unplugged of partition `id` has gone back to the host. Figures are of the last unplug.
    ///
    /// # Errors
    /// It has not after `timeout`.
    pub fn await_discard(&self, id: PartitionId, timeout: Duration) -> Result<DiscardReport, PartitionError> {
        let entry = self.partitions.entry(id)?;
        let report =
            entry.handle.memory().wait_discarded(timeout).map_err(|source| PartitionError::Discard { id, source })?;
        Ok(DiscardReport { discard: report.phases.discard, discarded: report.phases.discarded })
    }

    /// What partition `id` is used for in the guest, and by which processes.
    ///
    /// # Errors
    /// The agent can't say: for example because nothing is plugged, so that the guest has no such node.
    pub fn inspect(&self, id: PartitionId) -> Result<PartitionUse, PartitionError> {
        self.partitions.window(id)?;
        self.agent()?.inspect_partition(id.get().into()).map_err(|source| PartitionError::Inspect { id, source })
    }

    /// How much is plugged in partition `id`.
    pub(crate) fn plugged(&self, id: PartitionId) -> Result<ByteSize, PartitionError> {
        Ok(self.partitions.entry(id)?.handle.memory().report().plugged)
    }

    /// The partitions that have a device, in order.
    #[must_use]
    pub fn partitions(&self) -> Vec<PartitionInfo> {
        let info = |entry: &Entry| PartitionInfo {
            memory: entry.handle.memory().report(),
            address: entry.handle.memory().window().range().start().0,
            device: entry.device,
            attached: entry.attached,
            mode: entry.mode,
        };
        self.partitions.table().values().map(info).collect()
    }

    /// Removes the device of partition `id`. The guest's driver could not refuse, so the host does while anything is
    /// plugged or not yet discarded.
    ///
    /// # Errors
    /// The partition is in use, and goes on as before; or the guest did not let go in time: then it can't be plugged any
    /// more, and this can be called again.
    pub fn detach_partition(&self, id: PartitionId, timeout: Duration) -> Result<(), PartitionError> {
        let agent = self.agent()?;
        let _change = self.partitions.change();
        let entry = self.partitions.entry(id)?;
        entry.handle.retire()?;
        agent.detach(&[entry.device], timeout).map_err(|source| PartitionError::Guest {
            action: "released",
            id,
            address: entry.device,
            source,
        })?;
        self.bus.remove(&format!("partition {id}"), entry.device)?;
        self.partitions.table().remove(&id);
        Ok(())
    }

    /// Gives partition `id` a device again after [`Vm::detach_partition`]; returns once a driver has bound.
    ///
    /// # Errors
    /// It has a device, or the guest's driver did not bind in time: the device stays on the bus then.
    pub fn attach_partition(&self, id: PartitionId, timeout: Duration) -> Result<(), PartitionError> {
        let window = self.partitions.window(id)?;
        let agent = self.agent()?;
        let _change = self.partitions.change();
        if self.partitions.table().contains_key(&id) {
            return Err(PartitionError::HasDevice(id));
        }
        descriptors::check_attach(descriptors::of_partition())?;
        let entry = self.partitions.add(window, &self.bus, false)?;
        let address = entry.device;
        agent.attach(&[address], timeout).map_err(|source| PartitionError::Guest {
            action: "bound",
            id,
            address,
            source,
        })?;
        if let Some(entry) = self.partitions.table().get_mut(&id) {
            entry.attached = true;
        }
        Ok(())
    }
}

/// What the guest had to do to give memory back, since boot.
#[derive(Clone, Copy)]
struct Counters {
    migrated: u64,
    zeroed: Option<u64>,
}

impl Counters {
    fn read(agent: &AgentClient, limit: Duration) -> Option<Self> {
        match agent.statistics(limit) {
            Ok(statistics) => Some(Self { migrated: statistics.migrated_pages, zeroed: statistics.zeroed_pages }),
            Err(error) => {
                tracing::debug!(%error, "the guest does not count migrated pages");
                None
            }
        }
    }
}

/// What the guest's driver says: once it is done, if `wait`, or when `limit` is nearly up. The host has seen for itself what is
/// unplugged, so it does not matter much.
fn driver_after_unplug(agent: &AgentClient, id: PartitionId, wait: bool, limit: Duration) -> Option<GuestDriver> {
    match agent.await_driver(id.get().into(), wait, limit) {
        Ok(usage) => usage.driver,
        Err(error) => {
            tracing::warn!(partition = %id, %error, "the guest does not say how it took part");
            None
        }
    }
}
