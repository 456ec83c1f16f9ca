//! The MSI-X vectors of a function. Device threads use them without a lock.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bellows_memory::limited;

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
        let vectors = vectors.into_iter().map(|vector| Vector { state: AtomicU8::new(OFF), vector }).collect();
        Ok(Self { vectors })
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
            }
        }
    }

    /// The vectors with a pending interrupt.
    pub fn pending(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.vectors).filter(|(_, vector)| vector.is_pending()).map(|(number, _)| number)
    }

    /// Reads the pending bit array at `offset`. Bytes beyond its end read as zeros.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
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

#[cfg(test)]
#[path = "vectors_test.rs"]
mod tests;
