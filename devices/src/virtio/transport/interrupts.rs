//! A device's interrupts over MSI-X: the vectors of its events, which device threads read without a lock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use bellows_memory::limited;
use bellows_memory::sync::Mutex;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::common_config::NO_VECTOR;
use crate::interrupt::{Interrupt, MsiController};
use crate::pci::MsixVectors;
use crate::state::Version;

/// ISR status: the configuration changed.
pub(super) const ISR_CONFIG: u8 = 2;

/// State of a function's interrupts.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InterruptsState {
    /// Version of this type.
    pub version: Version<1>,
    /// ISR status.
    pub isr: u8,
    /// The device failed: `DEVICE_NEEDS_RESET`.
    pub needs_reset: bool,
    /// Vectors whose interrupts came while they were masked.
    pub pending_vectors: Vec<u16>,
}

/// Shared by the transport, which sets it up, and the device's threads.
pub(super) struct Interrupts {
    pub(super) vectors: MsixVectors,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    /// For each queue, the event whose signals are its interrupts.
    calls: Box<[Mutex<Option<Arc<EventFd>>>]>,
    isr: AtomicU8,
    needs_reset: AtomicBool,
}

impl Interrupts {
    /// For `queues` queues, with `vectors` vectors.
    pub(super) fn new(msi: &dyn MsiController, queues: u16, vectors: u16) -> io::Result<Self> {
        Ok(Self {
            vectors: MsixVectors::new(msi, vectors)?,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            calls: (0..queues).map(|_| Mutex::default()).collect(),
            isr: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        })
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(vector, Ordering::Release);
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        let number = usize::from(queue);
        let (Some(slot), Some(call)) = (self.queue_vectors.get(number), self.calls.get(number)) else { return };
        let call = call.lock();
        let before = slot.swap(vector, Ordering::AcqRel);
        if let Some(call) = &*call {
            self.vectors.unwire(before, call);
            if let Err(error) = self.vectors.wire(vector, call) {
                limited!(warn, queue, vector, %error, "interrupts of a queue are lost");
            }
        }
    }

    /// Resets everything that the driver set up.
    pub(super) fn reset(&self) {
        self.set_config_vector(NO_VECTOR);
        (0..self.queue_vectors.len() as u16).for_each(|queue| self.set_queue_vector(queue, NO_VECTOR));
        self.isr.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    pub(super) fn save(&self) -> InterruptsState {
        InterruptsState {
            version: Version,
            isr: self.isr.load(Ordering::Acquire),
            needs_reset: self.is_broken(),
            pending_vectors: self.vectors.pending().collect(),
        }
    }

    /// Sets the registers of `state`; pending interrupts come with [`Interrupts::raise`].
    pub(super) fn restore(&self, state: &InterruptsState) {
        self.isr.store(state.isr, Ordering::Release);
        self.needs_reset.store(state.needs_reset, Ordering::Release);
    }

    /// Raises interrupts of `vectors`.
    pub(super) fn raise(&self, vectors: &[u16]) {
        vectors.iter().for_each(|vector| self.vectors.trigger(*vector));
    }

    /// Raises every interrupt that the driver has set up.
    pub(super) fn raise_all(&self) {
        self.queue_vectors.iter().for_each(|vector| self.trigger(vector));
        self.config();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Reads the ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    fn trigger(&self, vector: &AtomicU16) {
        // No function has a vector of the number NO_VECTOR.
        self.vectors.trigger(vector.load(Ordering::Acquire));
    }
}

impl Interrupt for Interrupts {
    fn queue(&self, queue: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(queue)) {
            self.trigger(vector);
        }
    }

    fn wire(&self, queue: u16, call: Option<&Arc<EventFd>>) -> io::Result<()> {
        let number = usize::from(queue);
        let (Some(vector), Some(wired)) = (self.queue_vectors.get(number), self.calls.get(number)) else {
            return Ok(());
        };
        let mut wired = wired.lock();
        let vector = vector.load(Ordering::Acquire);
        if let Some(before) = wired.take() {
            self.vectors.unwire(vector, &before);
        }
        if let Some(call) = call {
            self.vectors.wire(vector, call)?;
            *wired = Some(call.clone());
        }
        Ok(())
    }

    fn config(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.trigger(&self.config_vector);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.trigger(&self.config_vector);
    }
}
