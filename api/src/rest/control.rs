//! The VM behind the API: before it boots a configuration, then a [`Vm`].
//!
//! Reads look at the state under a lock that is never held for long. Changes come one at a time: the server gives each the turn.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bellows_vmm::{
    Balloon, BuildError, ByteSize, DiskInfo, DriveConfig, ElasticBase, HotplugError, Lifecycle, LifecycleError,
    Metadata, Vm, VmBuilder, VmConfig,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::bodies::mmds::no_service;
use super::bodies::{Drive, DriveUpdate, MemoryHotplug};
use super::configuration::Configuration;
use super::fault::Fault;
use super::log::Log;
use super::metrics::Counters;
use super::request::{Change, Read};
use super::rules;

/// The version of Firecracker whose API this is.
pub(crate) const FIRECRACKER: &str = "1.16.1";
/// Time for the guest to find a disk, or to let go of one.
const HOTPLUG_LIMIT: Duration = Duration::from_secs(30);
/// Time for a request on a drive's old file to finish before an exchange is answered.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(5);
/// Time for the guest's agent to answer.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// Time for the guest's agent to begin: a guest without one never does.
const READY_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Boots a VM so that a signal stops it.
pub(crate) type Boot = Box<dyn Fn(VmBuilder) -> Result<Vm, BuildError> + Send + Sync>;

/// The body of an answer; none for a change.
pub(crate) type Answer = Result<Option<Value>, Fault>;

/// The one VM of this process.
pub(crate) struct Control {
    id: String,
    boot: Boot,
    boot_timer: bool,
    /// Whether or not an interface tells it.
    metadata: Metadata,
    pub(crate) log: Log,
    pub(crate) counters: Counters,
    /// Where sockets of VMs are made for which no other place was asked.
    sockets: Option<PathBuf>,
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the guest's agent can be called.
    ready: Arc<watch::Sender<bool>>,
}

#[derive(Default)]
struct State {
    configuration: Configuration,
    vm: Option<Arc<Vm>>,
    /// Waits for the guest's agent.
    follower: Option<JoinHandle<()>>,
    /// No VM will boot any more.
    closed: bool,
}

impl Control {
    pub(crate) fn new(
        id: String,
        boot: Boot,
        boot_timer: bool,
        metadata: Metadata,
        log: Log,
        counters: Counters,
    ) -> Self {
        let (ready, state) = (Arc::new(watch::Sender::new(false)), Mutex::default());
        Self { id, boot, boot_timer, metadata, log, counters, sockets: None, state, changed: Condvar::new(), ready }
    }

    /// Has sockets of VMs for which no other place was asked made in `folder`.
    pub(crate) fn make_sockets_in(&mut self, folder: &Path) {
        self.sockets = Some(folder.to_owned());
    }

    /// Waits until the VM runs; `None` if it never will.
    pub(crate) fn await_boot(&self) -> Option<Arc<Vm>> {
        let waiting = |state: &mut State| state.vm.is_none() && !state.closed;
        self.changed.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner).vm.clone()
    }

    /// The name of the VM.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The VM, which need not be ready.
    ///
    /// # Errors
    /// It has not booted.
    pub(crate) fn booted(&self) -> Result<Arc<Vm>, Fault> {
        let (_, vm) = self.now();
        booted(vm)
    }

    /// The VM, once its agent can be called.
    ///
    /// # Errors
    /// It has not booted, has ended, or its agent is not ready after `limit`.
    pub(crate) async fn ready(&self, limit: Duration) -> Result<Arc<Vm>, Fault> {
        let vm = self.booted()?;
        let mut ready = self.ready.subscribe();
        let is_ready = timeout(limit, ready.wait_for(|is_ready| *is_ready)).await;
        let late = |_| Fault::with_status(502, format!("the guest's agent is not ready after {limit:?}"));
        // The sender is this one's.
        drop(is_ready.map_err(late)?);
        match vm.lifecycle() {
            Lifecycle::Ended => Err(Fault::conflict("the VM has ended")),
            Lifecycle::Booting | Lifecycle::Running | Lifecycle::Paused => Ok(vm),
        }
    }

    /// Has no VM boot from now on.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Waits for the thread that follows the guest. Call it when the VM has ended.
    pub(crate) fn join(&self) {
        let follower = self.state().follower.take();
        if follower.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that waits for the guest's agent panicked");
        }
    }

    /// Flushes metrics, if the VM runs.
    ///
    /// # Errors
    /// They cannot be written.
    pub(crate) fn flush(&self) -> Result<(), Fault> {
        let (_, vm) = self.now();
        vm.map_or(Ok(()), |vm| self.counters.flush(Some(&vm)))
    }

    /// Answers a question.
    pub(crate) fn read(&self, read: Read) -> Answer {
        let (configuration, vm) = self.now();
        let answer = match read {
            Read::Instance => json!({
                "app_name": "Bellows",
                "id": self.id,
                "state": state_name(vm.as_deref()),
                "vmm_version": env!("CARGO_PKG_VERSION"),
            }),
            Read::Version => json!({ "firecracker_version": FIRECRACKER }),
            Read::Machine => json!(configuration.machine),
            Read::VmConfig => configuration.json(),
            Read::Balloon => json!(configuration.balloon.ok_or_else(no_balloon)?),
            Read::BalloonStatistics => {
                let statistics = balloon(booted(vm.as_deref())?)?.statistics().map_err(|error| Fault::of(&error))?;
                let mut statistics = json!(statistics);
                // Strict clients know Firecracker's names only.
                statistics.as_object_mut().map(|fields| fields.remove("age_ms"));
                statistics
            }
            Read::MemoryHotplug => {
                let (hotplug, elastic) = hotplug_of(&configuration, booted(vm.as_deref())?)?;
                hotplug.status(&elastic.report())
            }
            Read::Metadata => match self.metadata_of(vm.as_deref())?.get() {
                Value::Null => json!({}),
                metadata => metadata,
            },
            Read::Hinting => json!(balloon(booted(vm.as_deref())?)?.hinting().map_err(|error| Fault::of(&error))?),
        };
        Ok(Some(answer))
    }

    /// Carries a change out, and may wait for the guest. The caller has the turn.
    pub(crate) fn change(&self, change: Change) -> Answer {
        let (configuration, vm) = self.now();
        rules::check(&change, vm.is_some())?;
        match vm {
            _ if matches!(change, Change::PutMetadata(_) | Change::PatchMetadata(_)) => {
                self.change_metadata(vm.as_deref(), change)?;
            }
            None => self.change_before(&configuration, change)?,
            Some(vm) if vm.lifecycle() == Lifecycle::Ended => return Err(Fault::new("the VM has ended")),
            Some(vm) => self.change_after(&configuration, &vm, change)?,
        }
        Ok(None)
    }

    fn change_before(&self, configuration: &Configuration, change: Change) -> Result<(), Fault> {
        let mut changed = configuration.with(&change)?;
        match change {
            Change::Start => return self.start(configuration),
            Change::Logger(logger) => {
                self.log.change(&logger)?;
                changed.logger = Some(logger);
            }
            Change::Metrics(metrics) => {
                self.counters.send_to(&metrics.metrics_path)?;
                changed.metrics = Some(metrics);
            }
            _ => {}
        }
        self.state().configuration = changed;
        Ok(())
    }

    fn change_metadata(&self, vm: Option<&Vm>, change: Change) -> Result<(), Fault> {
        let metadata = self.metadata_of(vm)?;
        match change {
            Change::PutMetadata(document) => metadata.put(document)?,
            Change::PatchMetadata(patch) => metadata.patch(patch)?,
            _ => {}
        }
        Ok(())
    }

    /// The metadata, if it can be set for later, or the VM tells it.
    fn metadata_of(&self, vm: Option<&Vm>) -> Result<&Metadata, Fault> {
        match vm {
            Some(vm) if vm.config().mmds.is_none() => Err(no_service()),
            _ => Ok(&self.metadata),
        }
    }

    fn start(&self, configuration: &Configuration) -> Result<(), Fault> {
        self.boot_as(configuration.vm()?)
    }

    /// Boots a VM of the library's configuration. Before there are requests, or in their turn.
    pub(crate) fn boot_as(&self, mut config: VmConfig) -> Result<(), Fault> {
        let begun = Instant::now();
        if let (None, Some(folder)) = (&config.vsock.uds_path, &self.sockets) {
            config.vsock.uds_path = Some(folder.join("vsock"));
        }
        let builder = VmBuilder::from(config).metadata(self.metadata.clone());
        let vm = (self.boot)(builder).map_err(|error| Fault::of(&error))?;
        let vm = Arc::new(vm);
        let mut state = self.state();
        state.follower = self.follow(vm.clone(), begun);
        state.vm = Some(vm);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for the guest's agent, if there is one: then disks may come and go, and the guest can be asked to switch itself off.
    fn follow(&self, vm: Arc<Vm>, begun: Instant) -> Option<JoinHandle<()>> {
        let (boot_timer, ready) = (self.boot_timer, self.ready.clone());
        let span = tracing::debug_span!("guest boot");
        let wait = move || match vm.wait_ready(READY_LIMIT) {
            Ok(guest) => {
                tracing::info!(kernel = guest.kernel_release, "the guest's agent is ready");
                ready.send_replace(true);
                if boot_timer {
                    tracing::info!("Guest-boot-time = {} us", begun.elapsed().as_micros());
                }
            }
            Err(error) => tracing::debug!(%error, "the guest has no agent that can be called"),
        };
        let thread = thread::Builder::new().name("agent".into()).spawn(move || span.in_scope(wait));
        thread.inspect_err(|error| tracing::warn!(%error, "cannot wait for the guest's agent")).ok()
    }

    fn change_after(&self, configuration: &Configuration, vm: &Vm, change: Change) -> Result<(), Fault> {
        match change {
            Change::Drive(drive) => self.attach(configuration, vm, drive),
            Change::RemoveDrive(id) => self.detach(configuration, vm, &id),
            Change::Pmem(pmem) => {
                configuration.check_pmem_hotplug(&pmem)?;
                attach_disk(vm, &pmem.config(), || self.state().configuration.has_pmem(pmem.clone()))
            }
            Change::RemovePmem(id) => {
                let pmem = configuration.pmem(&id)?;
                if pmem.root_device {
                    return Err(Fault::new(format!("`{id}` is the root device: expected another pmem device")));
                }
                detach_disk(vm, &pmem.config(), &id)?;
                self.state().configuration.has_no_pmem(&id);
                Ok(())
            }
            Change::UpdateDrive(update) => self.update_drive(configuration, vm, &update),
            Change::Network(network) => {
                let attached = vm.attach_network(&network.config(), HOTPLUG_LIMIT);
                // After an error it stays only if the guest does not let go of it.
                let is_there = vm.network_interfaces().iter().any(|interface| interface.id == network.iface_id);
                let mut state = self.state();
                if is_there && !state.configuration.has_network_named(&network.iface_id) {
                    state.configuration.has_network(*network);
                }
                attached.map(drop).map_err(|error| Fault::of(&error))
            }
            Change::RemoveNetwork(id) => {
                vm.detach_network(&id, HOTPLUG_LIMIT).map_err(|error| Fault::of(&error))?;
                self.state().configuration.has_no_network(&id);
                Ok(())
            }
            Change::UpdateNetwork(update) => {
                let interface = vm.network_interfaces().into_iter().find(|interface| interface.id == update.iface_id);
                let missing = || Fault::new(format!("there is no network interface `{}`", update.iface_id));
                let limits = update.applied_to(interface.ok_or_else(missing)?.limits);
                vm.set_network_limits(&update.iface_id, limits).map_err(|error| Fault::of(&error))?;
                self.state().configuration.update_network(&update);
                Ok(())
            }
            Change::ResizeBalloon(amount_mib) => {
                let target = ByteSize::mib(amount_mib.into());
                balloon(vm)?.set_target(target).map_err(|error| Fault::of(&error))?;
                self.update_balloon(|balloon| balloon.amount_mib = amount_mib);
                Ok(())
            }
            Change::ResizeMemory(update) => {
                let (hotplug, elastic) = hotplug_of(configuration, vm)?;
                elastic.request(update.size(hotplug)?).map_err(|error| Fault::of(&error))
            }
            Change::BalloonInterval(seconds) => {
                balloon(vm)?.set_polling_interval(seconds).map_err(|error| Fault::of(&error))?;
                self.update_balloon(|balloon| balloon.stats_polling_interval_s = seconds);
                Ok(())
            }
            Change::StartHinting(acknowledge) => {
                balloon(vm)?.start_hinting(acknowledge).map_err(|error| Fault::of(&error))
            }
            Change::StopHinting => balloon(vm)?.stop_hinting().map_err(|error| Fault::of(&error)),
            Change::FlushMetrics => self.counters.flush(Some(vm)),
            Change::SendCtrlAltDel => vm.power_off(AGENT_LIMIT).map_err(|error| {
                let cause = Fault::of(&error).message;
                Fault::new(format!("the VM has no keyboard, and its agent cannot be asked to switch it off: {cause}"))
            }),
            // Firecracker, too, has nothing against a second pause.
            Change::Pause => settled(vm.pause()),
            Change::Resume => settled(vm.resume()),
            _ => Ok(()),
        }
    }

    fn attach(&self, configuration: &Configuration, vm: &Vm, drive: Drive) -> Result<(), Fault> {
        configuration.check_hotplug(&drive)?;
        attach_disk(vm, &drive.config(), || self.state().configuration.has_drive(drive.clone()))
    }

    fn detach(&self, configuration: &Configuration, vm: &Vm, id: &str) -> Result<(), Fault> {
        let drive = configuration.drive(id)?;
        if drive.is_root_device {
            return Err(Fault::new(format!("`{id}` is the root device: expected another drive")));
        }
        detach_disk(vm, &drive.config(), id)?;
        self.state().configuration.has_no_drive(id);
        Ok(())
    }

    /// The file first, for that can fail.
    fn update_drive(&self, configuration: &Configuration, vm: &Vm, update: &DriveUpdate) -> Result<(), Fault> {
        let mut disk = disk_of(vm, &configuration.drive(&update.drive_id)?.config(), &update.drive_id)?;
        if let Some(path) = &update.path_on_host {
            disk = vm.replace_disk(&disk.serial, path, EXCHANGE_LIMIT).map_err(|error| Fault::of(&error))?;
        }
        if let Some(limits) = update.applied_to(disk.limits) {
            vm.set_disk_limits(&disk.serial, limits).map_err(|error| Fault::of(&error))?;
        }
        self.state().configuration.update_drive(update);
        Ok(())
    }

    fn update_balloon(&self, update: impl FnOnce(&mut super::bodies::Balloon)) {
        self.state().configuration.balloon.as_mut().map(update);
    }

    /// The state at this moment.
    fn now(&self) -> (Configuration, Option<Arc<Vm>>) {
        let state = self.state();
        (state.configuration.clone(), state.vm.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn state_name(vm: Option<&Vm>) -> &'static str {
    match vm.map(Vm::lifecycle) {
        None => "Not started",
        Some(Lifecycle::Paused) => "Paused",
        // A VM that has ended takes this process with it.
        Some(Lifecycle::Booting | Lifecycle::Running | Lifecycle::Ended) => "Running",
    }
}

/// Adds a disk while the VM runs. Calls `has` if the VM has it afterwards, which it may have in spite of an error.
fn attach_disk(vm: &Vm, config: &DriveConfig, has: impl FnOnce()) -> Result<(), Fault> {
    let Err(error) = vm.attach_drive(config, HOTPLUG_LIMIT) else {
        has();
        return Ok(());
    };
    let mut fault = Fault::of(&error);
    // Nothing is to stay of a request that failed.
    if let HotplugError::NotBound { serial, .. } = &error
        && let Err(error) = vm.detach_disk(serial, HOTPLUG_LIMIT)
    {
        has();
        fault.message = format!("{}; it cannot be taken away again: {error}", fault.message);
    }
    Err(fault)
}

fn detach_disk(vm: &Vm, config: &DriveConfig, id: &str) -> Result<(), Fault> {
    let disk = disk_of(vm, config, id)?;
    vm.detach_disk(&disk.serial, HOTPLUG_LIMIT).map_err(|error| Fault::of(&error))
}

/// The VM's disk for a drive or a pmem device.
fn disk_of(vm: &Vm, config: &DriveConfig, id: &str) -> Result<DiskInfo, Fault> {
    let disk = vm.disks().into_iter().find(|disk| disk.path == config.path);
    disk.ok_or_else(|| Fault::new(format!("the VM has no disk for `{id}` any more")))
}

fn booted<T>(vm: Option<T>) -> Result<T, Fault> {
    vm.ok_or_else(|| Fault::new("the VM has not booted: expected this request after `InstanceStart`"))
}

fn balloon(vm: &Vm) -> Result<&Balloon, Fault> {
    vm.balloon().ok_or_else(no_balloon)
}

/// The memory that may come, as it was asked for, and where it stands.
fn hotplug_of<'a>(configuration: &Configuration, vm: &'a Vm) -> Result<(MemoryHotplug, &'a ElasticBase), Fault> {
    configuration.memory_hotplug.zip(vm.elastic_base()).ok_or_else(|| {
        Fault::new("the VM has no memory that may come: expected `PUT /hotplug/memory` before `InstanceStart`")
    })
}

fn no_balloon() -> Fault {
    Fault::new("the VM has no balloon: expected `PUT /balloon` before `InstanceStart`")
}

fn settled(result: Result<(), LifecycleError>) -> Result<(), Fault> {
    match result {
        Ok(()) | Err(LifecycleError::Paused | LifecycleError::NotPaused) => Ok(()),
        Err(error) => Err(Fault::of(&error)),
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
