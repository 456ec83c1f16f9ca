//! Virtio devices and their transport.

mod device;

pub use device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
