//! Virtio devices and their transport.

mod device;
mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod worker;

pub use device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
pub use rng::Rng;
