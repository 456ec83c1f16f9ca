//! virtio-mem, VIRTIO 1.2 section 5.15: one partition for the guest to plug and unplug.
//!
//! The device is the guest's end of a [`PartitionMemory`], [`MemHandle`] the host's.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bellows_memory::partition::{Answer, Request};
use bellows_memory::partition::{Handled, PartitionMemory, Report, StillInUse, Target, TargetError, WaitError};
use bellows_memory::{ByteSize, EffectError, GuestMemory, GuestView, limited};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::request::{F_ACPI_PXM, F_UNPLUGGED_INACCESSIBLE, REQUEST_SIZE, RESPONSE_SIZE, config, encode, parse};
use super::device::read_bytes;
use super::worker::{Chain, OnLoop, next_chain};
use super::{ActivateError, Activation, ActiveQueue, VirtioDevice};
use crate::interrupt::Interrupt;

pub mod request;

/// The only queue: requests of the guest.
const REQUESTS: u16 = 0;
const QUEUE_SIZES: &[u16] = &[64];

/// Requests that may be served before the other handlers on the loop get their turn,
const BUDGET: u16 = 16;
/// and the time after which they get it earlier: an unplug waits for other devices.
const BUDGET_TIME: Duration = Duration::from_millis(10);
/// Descriptors of a chain at most. Drivers use two; the framing is theirs, but not without a bound.
const MAX_DESCRIPTORS: usize = 8;

/// A memory device for one partition.
pub struct Mem {
    memory: Arc<PartitionMemory>,
    driver: Arc<Driver>,
    /// Signalled when a request that was put off may be tried again.
    resume: Arc<EventFd>,
    on_loop: Option<OnLoop>,
}

/// The host's control of a memory device. Cheap to clone; usable whether or not a driver has bound.
///
/// Its methods wait and are for control threads: neither for vCPU threads nor for an event loop's.
#[derive(Clone)]
pub struct MemHandle {
    memory: Arc<PartitionMemory>,
    driver: Arc<Driver>,
}

/// The way to the driver, while there is one.
#[derive(Default)]
struct Driver {
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

/// Memory that was plugged.
#[derive(Clone, Copy, Debug)]
pub struct Plugged {
    /// The partition's figures then.
    pub report: Report,
    target: Target,
}

/// Why memory was not plugged.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// It was not admitted; the guest never heard of it.
    #[error(transparent)]
    Refused(#[from] TargetError),
    /// The guest did not plug it, or what was there before is still being discarded. The old target is set again, unless
    /// another one was set since.
    #[error(transparent)]
    Incomplete(#[from] WaitError),
}

/// Why memory was not unplugged.
#[derive(Debug, thiserror::Error)]
pub enum UnplugError {
    /// The partition is out of use.
    #[error(transparent)]
    Refused(#[from] TargetError),
    /// The guest kept some. It is still asked for the rest, and slots follow what it kept.
    #[error(transparent)]
    Incomplete(#[from] WaitError),
    /// The guest kept some, and slots can't follow.
    #[error("the guest kept memory, and its slots can't be made to fit")]
    Slots(#[source] Arc<EffectError>),
}

impl Mem {
    /// A device for `memory`, not active yet, and its control.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(memory: Arc<PartitionMemory>) -> io::Result<(Self, MemHandle)> {
        let driver = Arc::new(Driver::default());
        let handle = MemHandle { memory: memory.clone(), driver: driver.clone() };
        let resume = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok((Self { memory, driver, resume, on_loop: None }, handle))
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_MEM as u16
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_ACPI_PXM | F_UNPLUGGED_INACCESSIBLE
    }

    fn config_generation(&self) -> u8 {
        // Only whether it changes counts.
        self.memory.generation() as u8
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&config(self.memory.window(), &self.memory.report()), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        // Without it a driver may read what is not plugged (section 5.15.6.2), where nothing is; a device need not work then
        // (section 5.15.5.2).
        if activation.features & F_UNPLUGGED_INACCESSIBLE == 0 {
            return Err(ActivateError::MissingFeature("VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE"));
        }
        let queue = activation.queues.get_mut(usize::from(REQUESTS)).and_then(Option::take);
        let ActiveQueue { queue, kick } = queue.ok_or(ActivateError::MissingQueue(REQUESTS))?;
        self.memory.set_waker(Some(self.resume.clone()));
        let requests = Requests {
            memory: self.memory.clone(),
            view: activation.memory,
            queue,
            kick,
            resume: self.resume.clone(),
            interrupt: activation.interrupt.clone(),
            put_off: None,
            broken: false,
        };
        self.on_loop = Some(OnLoop::start(&activation.event_loop, Box::new(requests))?);
        self.driver.set(Some(activation.interrupt));
        Ok(())
    }

    /// What is plugged stays plugged: a driver that binds again asks for all of it to be unplugged first.
    fn reset(&mut self) {
        self.driver.set(None);
        self.on_loop = None;
        self.memory.set_waker(None);
    }
}

impl MemHandle {
    /// The partition.
    #[must_use]
    pub fn memory(&self) -> &Arc<PartitionMemory> {
        &self.memory
    }

    /// Has the guest plug memory until it has `size`, which is more than nothing and no less than it has. Waits first until what
    /// was unplugged before has been discarded: a plug that meets a discard is answered BUSY, and Linux tries again only after
    /// the better part of a minute.
    ///
    /// # Errors
    /// The size can't be had, or it is not plugged after `timeout`; the target before it is set again.
    pub fn plug(&self, size: ByteSize, timeout: Duration) -> Result<Plugged, PlugError> {
        let start = Instant::now();
        self.memory.wait_discarded(timeout)?;
        let target = self.tell(self.memory.raise_target(size))?;
        match self.memory.wait_plugged(target, timeout.saturating_sub(start.elapsed())) {
            Ok(report) => Ok(Plugged { report, target }),
            Err(error) => {
                if let Err(error) = self.tell(self.memory.take_back(target)) {
                    limited!(warn, %error, "a size that was not plugged is not taken back");
                }
                Err(PlugError::Incomplete(error))
            }
        }
    }

    /// Has the guest give back what [`MemHandle::plug`] added.
    ///
    /// # Errors
    /// Another target was set since, which stands; otherwise as for [`MemHandle::unplug`].
    pub fn undo(&self, plugged: &Plugged, timeout: Duration) -> Result<Report, UnplugError> {
        let target = self.tell(self.memory.take_back(plugged.target))?;
        self.await_unplug(target, timeout)
    }

    /// Has the guest give everything back. Discards go on when this returns: [`PartitionMemory::wait_discarded`].
    ///
    /// # Errors
    /// Something is still plugged after `timeout`.
    pub fn unplug(&self, timeout: Duration) -> Result<Report, UnplugError> {
        self.shrink(ByteSize::bytes(0), timeout)
    }

    /// Has the guest give back what is beyond `size`, no more than the target now; which blocks is its choice. See
    /// [`MemHandle::unplug`].
    ///
    /// # Errors
    /// More is still plugged after `timeout`.
    pub fn shrink(&self, size: ByteSize, timeout: Duration) -> Result<Report, UnplugError> {
        let target = self.tell(self.memory.lower_target(size))?;
        self.await_unplug(target, timeout)
    }

    fn await_unplug(&self, target: Target, timeout: Duration) -> Result<Report, UnplugError> {
        self.memory.wait_unplugged(target, timeout).map_err(|error| match error {
            WaitError::Superseded(_) | WaitError::Ended(_) | WaitError::NotDiscarded(..) => {
                UnplugError::Incomplete(error)
            }
            WaitError::Timeout { .. } | WaitError::Failed(..) => match self.memory.trim_slots() {
                Ok(()) => UnplugError::Incomplete(error),
                Err(error) => UnplugError::Slots(error),
            },
        })
    }

    /// Gives the partition up, so that its device may be taken off the bus. A driver can't refuse that, and Linux's has no
    /// way back when memory is plugged: so the host refuses.
    ///
    /// # Errors
    /// Memory is plugged or being discarded; nothing changed.
    pub fn retire(&self) -> Result<(), StillInUse> {
        self.memory.retire()?;
        // A target that was never plugged may have stood until now.
        self.driver.config_changed();
        Ok(())
    }

    /// Tells the guest of the target, if it was set.
    fn tell(&self, target: Result<Target, TargetError>) -> Result<Target, TargetError> {
        target.inspect(|_| self.driver.config_changed())
    }
}

impl Driver {
    fn set(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self.interrupt.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }

    fn config_changed(&self) {
        let interrupt = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // A driver that has yet to bind reads the configuration when it does.
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
    }
}

/// A request taken off the queue. It holds addresses, not memory: a snapshot of guest memory kept while an unplug waits for
/// all snapshots to go would make it wait for itself.
struct Taken {
    head: u16,
    /// `None` if the chain holds no request.
    request: Option<Request>,
    response: Vec<(GuestAddress, u32)>,
}

struct Requests {
    memory: Arc<PartitionMemory>,
    view: GuestView,
    queue: Queue,
    kick: Arc<EventFd>,
    /// Signalled when [`Requests::put_off`] may be tried again.
    resume: Arc<EventFd>,
    interrupt: Arc<dyn Interrupt>,
    put_off: Option<Taken>,
    /// The driver broke the queue's rules; nothing more is served until it resets the device.
    broken: bool,
}

impl Requests {
    /// Serves requests until they have used their budget; `true` if more may be waiting.
    fn serve(&mut self) -> Result<bool, virtio_queue::Error> {
        self.queue.disable_notification(&*self.view.memory())?;
        let mut served = false;
        let mut more = true;
        let start = Instant::now();
        // Looking at the ring counts too: a driver can move its index back and forth.
        for _ in 0..BUDGET {
            if start.elapsed() > BUDGET_TIME {
                break;
            }
            let taken = match self.put_off.take() {
                Some(taken) => taken,
                None => match next_chain(&mut self.queue, &self.view)? {
                    Some(chain) => self.take(chain),
                    None if self.queue.enable_notification(&*self.view.memory())? => continue,
                    None => {
                        more = false;
                        break;
                    }
                },
            };
            let answer = match taken.request.map(|request| self.memory.handle(request)) {
                Some(Handled::Answer(answer)) => answer,
                Some(Handled::Later) => {
                    self.put_off = Some(taken);
                    more = false;
                    break;
                }
                None => Answer::Error,
            };
            let written = respond(&self.view.memory(), &taken.response, answer);
            self.queue.add_used(&*self.view.memory(), taken.head, written)?;
            served = true;
        }
        if served && self.queue.needs_notification(&*self.view.memory())? {
            self.interrupt.queue(REQUESTS);
        }
        Ok(more)
    }

    /// Copies what matters of a chain, and lets its snapshot go.
    fn take(&self, chain: Chain) -> Taken {
        let head = chain.head_index();
        let mut bytes = [0; REQUEST_SIZE];
        let (mut got, mut descriptors, mut well_formed) = (0, 0, true);
        let mut response = Vec::new();
        let mut cut_short = false;
        for descriptor in chain.clone() {
            descriptors += 1;
            cut_short = descriptor.has_next();
            if descriptors > MAX_DESCRIPTORS {
                well_formed = false;
                break;
            }
            if descriptor.is_write_only() {
                response.push((descriptor.addr(), descriptor.len()));
                continue;
            }
            let len = (descriptor.len() as usize).min(REQUEST_SIZE - got);
            let read = chain.memory().read_slice(&mut bytes[got..got + len], descriptor.addr());
            well_formed &= response.is_empty() && read.is_ok();
            got += len;
        }
        // What can't be answered is not done either: the driver would never know.
        well_formed &= !cut_short && got == REQUEST_SIZE && room(&response) >= RESPONSE_SIZE as u64;
        let request = match parse(&bytes, self.memory.window()) {
            _ if !well_formed => {
                limited!(debug, head, descriptors, got, "a chain is no memory request");
                None
            }
            Err(error) => {
                limited!(debug, head, %error, "a memory request makes no sense");
                None
            }
            Ok(request) => Some(request),
        };
        Taken { head, request, response }
    }

    fn listen(&self, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        ops.add(Events::new(&self.kick, EventSet::IN))?;
        ops.add(Events::new(&self.resume, EventSet::IN))
    }
}

impl MutEventSubscriber for Requests {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // The only error of a non-blocking eventfd is that it was not signalled after all.
        let _: [io::Result<u64>; 2] = [self.kick.read(), self.resume.read()];
        if self.broken {
            return;
        }
        match self.serve() {
            Ok(false) => {}
            Ok(true) => {
                // Signalled already if this fails, which is all that's wanted.
                let _ = self.kick.write(1);
            }
            Err(error) => {
                limited!(warn, %error, "the driver broke the memory device's queue; it has to reset the device");
                self.broken = true;
                self.interrupt.needs_reset();
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.listen(ops) {
            limited!(error, %error, "cannot listen to the memory device's queue");
            self.interrupt.needs_reset();
        }
    }
}

/// Bytes that a driver left for the answer.
fn room(response: &[(GuestAddress, u32)]) -> u64 {
    response.iter().map(|(_, len)| u64::from(*len)).sum()
}

/// Writes `answer` where the driver wants it, if there is room for all of it: the number of bytes written.
fn respond(memory: &GuestMemory, response: &[(GuestAddress, u32)], answer: Answer) -> u32 {
    if room(response) < RESPONSE_SIZE as u64 {
        return 0;
    }
    let answer = encode(answer);
    let mut written = 0;
    for &(address, len) in response {
        let len = (len as usize).min(RESPONSE_SIZE - written);
        if memory.write_slice(&answer[written..written + len], address).is_err() {
            limited!(debug, address = address.0, "no memory for an answer");
            break;
        }
        written += len;
    }
    written as u32
}

#[cfg(test)]
#[path = "mem_test.rs"]
mod tests;
