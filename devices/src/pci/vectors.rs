//! The MSI-X vectors of a function. Device threads use them without a lock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bellows_memory::limited;
use bellows_memory::sync::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::msix::Delivery;
use crate::interrupt::{MsiController, MsiVector};

/// Interrupts are dropped.
const OFF: u8 = 1;
/// Interrupts set [`PENDING`].
const MASKED: u8 = 2;
/// An interrupt came while the vector was masked. It is sent when the mask is lifted.
const PENDING: u8 = 4;

/// The vectors of one function. All are off at first.
pub struct MsixVectors {
    vectors: Box<[Vector]>,
}

struct Vector {
    /// A set of the bits above. If it is zero, interrupts are sent.
    state: AtomicU8,
    vector: Arc<dyn MsiVector>,
    /// Events whose signals are interrupts: wired while interrupts are sent.
    calls: Mutex<Vec<Arc<EventFd>>>,
}

impl MsixVectors {
    /// Takes `count` vectors from `msi`.
    ///
    /// # Errors
    /// The controller has too few vectors left.
    pub fn new(msi: &dyn MsiController, count: u16) -> io::Result<Self> {
        let vectors = msi.allocate(count)?;
        if vectors.len() != usize::from(count) {
            return Err(io::Error::other(format!("got {} MSI-X vectors: expected {count}", vectors.len())));
        }
        let vector = |vector| Vector { state: AtomicU8::new(OFF), vector, calls: Mutex::default() };
        Ok(Self { vectors: vectors.into_iter().map(vector).collect() })
    }

    /// Sends the message of vector `number`, or marks it as pending. Does nothing if the vector does not exist.
    pub fn trigger(&self, number: u16) {
        let Some(vector) = self.vectors.get(usize::from(number)) else { return };
        if vector.state.load(Ordering::Acquire) == 0 {
            return vector.send(number);
        }
        let held = vector.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| match state {
            0 => None,
            state if state & OFF != 0 => Some(state),
            state => Some(state | PENDING),
        });
        // The vector was unmasked between the two checks.
        if held.is_err() {
            vector.send(number);
        }
    }

    /// Sets the delivery of vector `number`. Calls for the same vector must not overlap.
    pub fn set_delivery(&self, number: u16, delivery: Delivery) {
        let Some(vector) = self.vectors.get(usize::from(number)) else { return };
        let calls = vector.calls.lock();
        if vector.sends() {
            calls.iter().for_each(|call| vector.unwire(number, call));
        }
        match delivery {
            Delivery::Off => {
                vector.state.store(OFF, Ordering::Release);
                vector.route(number, None);
            }
            Delivery::Masked => {
                // The route stays until a new one replaces it, so that an interrupt that another thread is sending
                // does not get lost.
                let _ = vector
                    .state
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| Some(state & PENDING | MASKED));
            }
            Delivery::To(message) => {
                vector.route(number, Some(message));
                if vector.state.swap(0, Ordering::AcqRel) & PENDING != 0 {
                    vector.send(number);
                }
                for call in &*calls {
                    if let Err(error) = vector.vector.wire(call) {
                        limited!(warn, vector = number, %error, "interrupts of a queue are lost");
                    }
                }
            }
        }
    }

    /// Has signals of `call` be interrupts of vector `number`. They stay in it while the vector is masked or off, or does not exist.
    ///
    /// # Errors
    /// The controller's: it is not wired.
    pub fn wire(&self, number: u16, call: &Arc<EventFd>) -> io::Result<()> {
        let Some(vector) = self.vectors.get(usize::from(number)) else { return Ok(()) };
        let mut calls = vector.calls.lock();
        if vector.sends() {
            vector.vector.wire(call)?;
        }
        calls.push(call.clone());
        Ok(())
    }

    /// Leaves signals of `call` alone, which is wired to vector `number`. What came while that was masked becomes pending.
    pub fn unwire(&self, number: u16, call: &Arc<EventFd>) {
        self.collect();
        let Some(vector) = self.vectors.get(usize::from(number)) else { return };
        let mut calls = vector.calls.lock();
        if vector.sends() {
            vector.unwire(number, call);
        }
        calls.retain(|other| !Arc::ptr_eq(other, call));
    }

    /// Marks vectors as pending whose events were signalled while they were masked.
    fn collect(&self) {
        for vector in &self.vectors {
            let calls = vector.calls.lock();
            let is_masked = vector.state.load(Ordering::Acquire) & MASKED != 0;
            // All are read: the only error of a non-blocking event is that it was not signalled.
            if is_masked && calls.iter().filter(|call| call.read().is_ok()).count() > 0 {
                vector.state.fetch_or(PENDING, Ordering::AcqRel);
            }
        }
    }

    /// The vectors with a pending interrupt.
    pub fn pending(&self) -> impl Iterator<Item = u16> {
        self.collect();
        (0..).zip(&self.vectors).filter(|(_, vector)| vector.is_pending()).map(|(number, _)| number)
    }

    /// Reads the pending bit array at `offset`. Bytes beyond its end read as zeros.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        self.collect();
        for (at, byte) in data.iter_mut().enumerate() {
            let first = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(at).saturating_mul(8);
            let vectors = self.vectors.iter().skip(first).take(8).enumerate();
            *byte = vectors.fold(0, |bits, (bit, vector)| bits | u8::from(vector.is_pending()) << bit);
        }
    }
}

impl Vector {
    fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) & PENDING != 0
    }

    /// Whether interrupts are sent, and events wired.
    fn sends(&self) -> bool {
        self.state.load(Ordering::Acquire) == 0
    }

    fn unwire(&self, number: u16, call: &EventFd) {
        if let Err(error) = self.vector.unwire(call) {
            limited!(warn, vector = number, %error, "an interrupt may come after its mask");
        }
    }

    fn send(&self, number: u16) {
        if let Err(error) = self.vector.trigger() {
            limited!(warn, vector = number, %error, "an interrupt was lost");
        }
    }

    fn route(&self, number: u16, message: Option<crate::interrupt::MsiMessage>) {
        if let Err(error) = self.vector.route(message) {
            limited!(warn, vector = number, ?message, %error, "an interrupt could not be routed");
        }
    }
}

impl Drop for MsixVectors {
    fn drop(&mut self) {
        // Vectors are used again by others.
        for (number, vector) in (0..).zip(&self.vectors) {
            if vector.sends() {
                vector.calls.lock().iter().for_each(|call| vector.unwire(number, call));
            }
        }
    }
}

#[cfg(test)]
#[path = "vectors_test.rs"]
mod tests;
