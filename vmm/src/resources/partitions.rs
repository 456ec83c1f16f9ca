//! Partitions of a VM: plugged for an instance, unplugged and discarded after it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bellows_devices::event_loop::EventLoopHandle;
use bellows_devices::pci::PciAddress;
use bellows_devices::virtio::{Mem, MemHandle, PlugError, Plugged, UnplugError};
use bellows_memory::partition::WaitError;
use bellows_memory::sync::Mutex;
use bellows_memory::{ByteSize, PartitionId, PartitionMemory, PartitionSetup, Window};
use bellows_protocol::values::{InstanceId, MIN_BASE_LIMIT};

use super::error::PartitionError;
use super::prepare::{Preparer, Subject};
use super::table::{Change, Hotplug};
use crate::config::{PartitionMode, VmConfig};
use crate::deadline::Deadline;
use crate::descriptors;
use crate::end::EndSignal;
use crate::guest::agent::{AgentClient, ReclaimCost};
use crate::guest::error::NotRunning;
use crate::guest::session::Session;
use crate::memory_map::{self, Added};
use crate::model::{
    DiscardReport, FrozenInstance, GuestDriver, GuestInfo, GuestState, NotPrepared, PartitionInfo, PartitionUse,
    PlugReport, PreparationReport, UnplugAccount, UnplugReport,
};
use crate::virtio_bus::VirtioBus;

/// All partitions of a VM.
pub(crate) struct Partitions {
    parts: PartitionParts,
    windows: Vec<Window>,
    /// The partitions with a device.
    table: Arc<Table>,
    preparer: Preparer,
    removed_after: Option<Duration>,
}

type Table = Hotplug<PartitionId, Entry>;

/// The parts that partitions are made with.
pub(crate) struct PartitionParts {
    pub(crate) memory: PartitionSetup,
    pub(crate) event_loop: EventLoopHandle,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) handle: MemHandle,
    device: PciAddress,
    attached: bool,
    /// Its mode in the guest when it was plugged last.
    mode: Arc<Mutex<Option<PartitionMode>>>,
    added: Added,
    /// The instances there that are frozen, and what was plugged before each was.
    frozen: Arc<Mutex<BTreeMap<InstanceId, ByteSize>>>,
}

/// The partition of an instance. It keeps neither the VM nor its memory.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) id: PartitionId,
    table: Weak<Table>,
}

impl Partitions {
    /// Makes one partition for each of `windows` and puts their devices on the bus, before the guest boots. They are prepared, and
    /// removed, as `config` says.
    pub(crate) fn new(
        parts: PartitionParts,
        windows: &[Window],
        config: &VmConfig,
        bus: &VirtioBus,
        end: &EndSignal,
    ) -> Result<Self, PartitionError> {
        let table = Arc::new(Table::default());
        let weak = Arc::downgrade(&table);
        end.on_end(move || {
            let Some(table) = weak.upgrade() else { return };
            table.map(|entry| entry.handle.memory().end());
        });
        let preparer = Preparer::new(windows, config.prepare, end);
        let removed_after = config.removes_parked_after();
        let partitions = Self { parts, windows: windows.to_vec(), table, preparer, removed_after };
        let change = partitions.table.change();
        for &window in windows {
            partitions.add(&change, window, bus, true)?;
        }
        drop(change);
        Ok(partitions)
    }

    /// What the guest may have to make memory maps for: all windows in whole memory blocks.
    pub(crate) fn span(&self) -> ByteSize {
        ByteSize::bytes(self.windows.iter().map(|window| window.range().bytes()).sum())
    }

    /// The guest-physical address where the first window begins, above all base memory; `None` without any.
    pub(crate) fn first_address(&self) -> Option<u64> {
        self.windows.iter().map(|window| window.range().first()).min()
    }

    /// Begins to prepare partitions in the background; `guest` is ready.
    pub(crate) fn prepare(&self, session: &Session, guest: &GuestInfo) {
        if guest.partition_mode == PartitionMode::Stock {
            return self.preparer.give_up(&NotPrepared::Stock);
        }
        // The agent has set memory maps of all partitions aside, so this says that there is room for them.
        if guest.instances_base.get() < MIN_BASE_LIMIT {
            return self.preparer.give_up(&NotPrepared::BaseMemory(guest.instances_base));
        }
        let Some(agent) = session.met() else { return };
        let table = self.table.clone();
        self.preparer.begin(agent, session.end(), move |id| {
            table.read(&id, |entry| Subject { handle: entry.handle.clone(), added: entry.added.clone() })
        });
    }

    /// Waits until all partitions are prepared as far as they are going to be.
    pub(crate) fn await_prepared(
        &self,
        session: &Session,
        timeout: Duration,
    ) -> Result<PreparationReport, PartitionError> {
        if !session.is_met() {
            return Err(NotRunning::NotReady.into());
        }
        let report = self.preparer.wait(timeout);
        match session.end().ended() {
            Some(end) => Err(NotRunning::Ended(end).into()),
            None => report.map_err(|report| PartitionError::NotPrepared { limit: timeout, report: Box::new(report) }),
        }
    }

    /// Plugs partition `id` until it has `size`, and waits until an instance can use it.
    pub(crate) fn plug(
        &self,
        session: &Session,
        id: PartitionId,
        size: ByteSize,
        timeout: Duration,
    ) -> Result<PlugReport, PartitionError> {
        let agent = session.agent()?;
        let check = |entry: &Entry, left| entry.check(agent, size, left);
        self.plug_for(id, size, timeout, check).map(|((), report)| report)
    }

    /// Plugs partition `id` until it has `size`, which `accept` then has the guest use, or check, within the time that it gets: that
    /// returns what the guest's driver said. Where it fails, the guest is asked to give the added memory back.
    pub(super) fn plug_for<T, E: From<PartitionError>>(
        &self,
        id: PartitionId,
        size: ByteSize,
        timeout: Duration,
        accept: impl FnOnce(&Entry, Duration) -> Result<(T, Option<GuestDriver>), E>,
    ) -> Result<(T, PlugReport), E> {
        let call = self.preparer.call(id);
        let raise = |handle: &MemHandle, size, deadline| call.plug(handle, size, deadline);
        self.entry(id)?.plug_by(raise, size, timeout, accept)
    }

    /// Has the guest give back the memory of partition `id` beyond `size`.
    pub(crate) fn shrink(
        &self,
        session: &Session,
        id: PartitionId,
        size: ByteSize,
        timeout: Duration,
    ) -> Result<UnplugReport, PartitionError> {
        let entry = self.entry(id)?;
        session.agent()?;
        let _call = self.preparer.call(id);
        let report = entry.shrink(size, timeout)?;
        let keeps = *entry.mode.lock() == Some(PartitionMode::Extension);
        entry.added.unplugged(entry.window(), report.left, keeps);
        Ok(report)
    }

    /// The same, and what the guest says that it has done for it.
    pub(crate) fn shrink_accounted(
        &self,
        session: &Session,
        id: PartitionId,
        size: ByteSize,
        timeout: Duration,
    ) -> Result<(UnplugReport, UnplugAccount), PartitionError> {
        let entry = self.entry(id)?;
        let agent = session.agent()?;
        let deadline = Deadline::after(timeout);
        let _call = self.preparer.call(id);
        // Time for the guest's report, even if the guest keeps memory until time is up.
        let reserve = REPORT_LIMIT.min(timeout / 4);
        let before = reclaim_cost(agent, reserve);
        let report = entry.shrink(size, deadline.left().saturating_sub(reserve))?;
        let (driver, after) = after_unplug(agent, id, report.left <= size, deadline.left().min(REPORT_LIMIT));
        let keeps = driver.is_some_and(|it| it.mode == PartitionMode::Extension && it.state != GuestState::Empty);
        entry.added.unplugged(entry.window(), report.left, keeps);
        let counted = before.zip(after);
        let account = UnplugAccount {
            migrated_pages: counted.map(|(before, after)| after.migrated_pages.saturating_sub(before.migrated_pages)),
            zeroed_pages: counted
                .and_then(|(before, after)| Some(after.zeroed_pages?.saturating_sub(before.zeroed_pages?))),
            driver,
        };
        Ok((report, account))
    }

    /// Waits until all memory unplugged from partition `id` has gone back to the host.
    pub(crate) fn await_discard(&self, id: PartitionId, timeout: Duration) -> Result<DiscardReport, PartitionError> {
        let entry = self.entry(id)?;
        let report =
            entry.handle.memory().wait_discarded(timeout).map_err(|source| PartitionError::Discard { id, source })?;
        Ok(DiscardReport { discard: report.phases.discard, discarded: report.phases.discarded })
    }

    /// The guest's use of partition `id`, with the processes that hold its memory.
    pub(crate) fn inspect(&self, session: &Session, id: PartitionId) -> Result<PartitionUse, PartitionError> {
        self.window(id)?;
        session.agent()?.inspect_partition(id.get().into()).map_err(|source| PartitionError::Inspect { id, source })
    }

    /// How much is plugged in partition `id` for instances.
    pub(crate) fn plugged(&self, id: PartitionId) -> Result<ByteSize, PartitionError> {
        let report = self.entry(id)?.handle.memory().report();
        Ok(if report.preparing { ByteSize::bytes(0) } else { report.plugged })
    }

    /// Partition `id` as an instance's.
    pub(super) fn home(&self, id: PartitionId) -> Home {
        Home { id, table: Arc::downgrade(&self.table) }
    }

    /// An instance is gone: it is frozen no longer.
    pub(super) fn forget_frozen(&self, instance: &InstanceId) {
        self.table.map(|entry| entry.forget_frozen(instance));
    }

    /// The partitions that have a device, in order.
    pub(crate) fn infos(&self) -> Vec<PartitionInfo> {
        self.table.map(Entry::info)
    }

    /// Removes the device of partition `id`.
    pub(crate) fn detach(
        &self,
        session: &Session,
        bus: &VirtioBus,
        id: PartitionId,
        timeout: Duration,
    ) -> Result<(), PartitionError> {
        let agent = session.agent()?;
        let change = self.table.change();
        let entry = self.entry(id)?;
        let _call = self.preparer.call(id);
        let deadline = Deadline::after(timeout);
        entry.handle.end_preparation(timeout).map_err(|source| PartitionError::Unplug { id, source })?;
        entry.handle.retire()?;
        let address = entry.device;
        let kept = |source| PartitionError::NotReleased { id, address, source };
        agent.detach(&[address], deadline.left()).map_err(kept)?;
        bus.remove(&format!("partition {id}"), address)?;
        change.remove(&id);
        Ok(())
    }

    /// Gives partition `id` a device again; returns once a driver has bound.
    pub(crate) fn attach(
        &self,
        session: &Session,
        bus: &VirtioBus,
        id: PartitionId,
        timeout: Duration,
    ) -> Result<(), PartitionError> {
        let window = self.window(id)?;
        let agent = session.agent()?;
        let change = self.table.change();
        if self.table.contains(&id) {
            return Err(PartitionError::HasDevice(id));
        }
        let _call = self.preparer.call(id);
        descriptors::check_attach(descriptors::of_partition())?;
        let address = self.add(&change, window, bus, false)?;
        agent.attach(&[address], timeout).map_err(|source| PartitionError::NotBound { id, address, source })?;
        change.update(&id, |entry| entry.attached = true);
        Ok(())
    }

    fn add(
        &self,
        change: &Change<'_, PartitionId, Entry>,
        window: Window,
        bus: &VirtioBus,
        attached: bool,
    ) -> Result<PciAddress, PartitionError> {
        let memory = PartitionMemory::new(window, self.parts.memory.clone())?;
        let name = format!("partition {}", window.id());
        let device = Mem::new(memory);
        let handle = device.handle();
        let device = bus.add(&name, device, self.parts.event_loop.clone())?;
        let entry = Entry { attached, added: Added::new(self.removed_after), ..Entry::new(handle, device) };
        change.insert(window.id(), entry);
        Ok(device)
    }

    fn window(&self, id: PartitionId) -> Result<Window, PartitionError> {
        let window = self.windows.iter().copied().find(|window| window.id() == id);
        window.ok_or(PartitionError::NoPartition { id, count: self.windows.len() })
    }

    fn entry(&self, id: PartitionId) -> Result<Entry, PartitionError> {
        self.window(id)?;
        self.table.get(&id).ok_or(PartitionError::NoDevice(id))
    }
}

impl Home {
    /// The partition, if the VM still has it.
    pub(super) fn entry(&self) -> Result<Entry, PartitionError> {
        self.table.upgrade().and_then(|table| table.get(&self.id)).ok_or(PartitionError::NoDevice(self.id))
    }
}

impl Entry {
    pub(super) fn new(handle: MemHandle, device: PciAddress) -> Self {
        Self { handle, device, attached: false, mode: Arc::default(), added: Added::default(), frozen: Arc::default() }
    }

    /// Plugs it, which has been plugged before, until it has `size`, and waits until an instance can use it.
    pub(super) fn plug(
        &self,
        agent: &AgentClient,
        size: ByteSize,
        timeout: Duration,
    ) -> Result<PlugReport, PartitionError> {
        let raise = |handle: &MemHandle, size, deadline: Deadline| handle.plug(size, deadline.left());
        let check = |entry: &Self, left| entry.check(agent, size, left);
        self.plug_by(raise, size, timeout, check).map(|((), report)| report)
    }

    /// Waits until the guest has found `size` of its memory usable.
    fn check(
        &self,
        agent: &AgentClient,
        size: ByteSize,
        left: Duration,
    ) -> Result<((), Option<GuestDriver>), PartitionError> {
        let window = self.window();
        let id = window.id();
        let driver = agent.await_partition(id.get().into(), size.get(), window.range().start().0, left);
        Ok(((), driver.map_err(|source| PartitionError::NotUsable { id, size, source })?))
    }

    fn plug_by<T, E: From<PartitionError>>(
        &self,
        raise: impl FnOnce(&MemHandle, ByteSize, Deadline) -> Result<Plugged, PlugError>,
        size: ByteSize,
        timeout: Duration,
        accept: impl FnOnce(&Self, Duration) -> Result<(T, Option<GuestDriver>), E>,
    ) -> Result<(T, PlugReport), E> {
        let (start, deadline) = (Instant::now(), Deadline::after(timeout));
        let window = self.handle.memory().window();
        let id = window.id();
        let plugged = raise(&self.handle, size, deadline);
        self.added.plugged(window, self.handle.memory().report().plugged);
        let plugged = plugged.map_err(|source| PartitionError::Plug { id, size, source })?;
        let accepted = plugged.report.phases.reached;
        // The reserved time is for taking back memory that the guest cannot use.
        let left = deadline.left() / 4 * 3;
        let (accepted_by, driver) = accept(self, left).inspect_err(|_| {
            if let Err(error) = self.handle.undo(&plugged, deadline.left()) {
                tracing::warn!(partition = %id, %error, "memory that the guest does not use stays plugged");
            }
        })?;
        let usable = start.elapsed();
        let mode = driver.map_or(PartitionMode::Stock, |driver| driver.mode);
        tracing::debug!(partition = %id, %size, ?usable, %mode, "plugged");
        *self.mode.lock() = Some(mode);
        Ok((accepted_by, PlugReport { bytes: plugged.report.plugged, accepted, usable, mode, driver }))
    }

    /// Has the guest give back the memory beyond `size`.
    fn shrink(&self, size: ByteSize, timeout: Duration) -> Result<UnplugReport, PartitionError> {
        let id = self.window().id();
        let start = Instant::now();
        let report = match self.handle.shrink(size, timeout) {
            Ok(report) => report,
            Err(UnplugError::Incomplete(WaitError::Timeout { report, .. })) => *report,
            Err(source) => return Err(PartitionError::Unplug { id, source }),
        };
        // A thaw must not plug more than is wanted from now on.
        self.frozen.lock().values_mut().for_each(|before| *before = size.min(*before));
        let unplug = if report.plugged <= size { report.phases.reached } else { start.elapsed() };
        tracing::debug!(partition = %id, left = %report.plugged, ?unplug, "unplugged");
        let (slots, drain) = (report.phases.slots, report.phases.drain);
        Ok(UnplugReport { unplug, slots, drain, left: report.plugged })
    }

    /// Notes that an instance is frozen, and what is plugged; returns whether that is new.
    pub(super) fn note_frozen(&self, instance: &InstanceId) -> bool {
        let plugged = self.handle.memory().report().plugged;
        let mut frozen = self.frozen.lock();
        let is_new = !frozen.contains_key(instance);
        frozen.entry(instance.clone()).or_insert(plugged);
        is_new
    }

    /// What was plugged before an instance was frozen.
    pub(super) fn before_freeze(&self, instance: &InstanceId) -> Option<ByteSize> {
        self.frozen.lock().get(instance).copied()
    }

    pub(super) fn forget_frozen(&self, instance: &InstanceId) {
        self.frozen.lock().remove(instance);
    }

    pub(super) fn info(&self) -> PartitionInfo {
        let added = self.added.get();
        let frozen = self.frozen.lock().clone().into_iter();
        PartitionInfo {
            memory: self.handle.memory().report(),
            address: self.window().range().start().0,
            device: self.device,
            attached: self.attached,
            mode: *self.mode.lock(),
            added,
            memory_map: memory_map::of(added),
            frozen: frozen.map(|(instance, size)| FrozenInstance { instance, size }).collect(),
        }
    }

    pub(super) fn window(&self) -> Window {
        self.handle.memory().window()
    }
}

/// Time limit for each of the agent's parts in an unplug: counting pages before it, and reporting the driver's state and counting
/// pages after it. Memory does not wait for the latter.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

/// What the guest has done to give memory back, since boot.
fn reclaim_cost(agent: &AgentClient, limit: Duration) -> Option<ReclaimCost> {
    let counted = agent.count_reclaim(limit);
    counted.inspect_err(|error| tracing::debug!(%error, "the guest does not count migrated pages")).ok()
}

/// The driver's report, and what the guest has done so far: with `wait`, once the driver is done or `limit` is nearly up. A failure is only
/// logged, since the host knows by itself how much is unplugged.
fn after_unplug(
    agent: &AgentClient,
    id: PartitionId,
    wait: bool,
    limit: Duration,
) -> (Option<GuestDriver>, Option<ReclaimCost>) {
    let report = agent.await_driver(id.get().into(), wait, limit);
    report.unwrap_or_else(|error| {
        tracing::warn!(partition = %id, %error, "the guest does not report its part");
        (None, None)
    })
}
