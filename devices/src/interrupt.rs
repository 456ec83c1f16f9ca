//! Interrupts, from a device's queue to the guest.

use std::io;
use std::sync::Arc;

/// The message that an MSI-X table entry sends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MsiMessage {
    /// Guest-physical address the message is written to.
    pub address: u64,
    /// Value written.
    pub data: u32,
}

/// The monitor's supply of MSI vectors (KVM: a GSI with an irqfd each).
pub trait MsiController: Send + Sync {
    /// Takes `count` vectors, all unrouted.
    ///
    /// # Errors
    /// No vectors are left.
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>>;
}

/// One MSI vector; given back when dropped.
pub trait MsiVector: Send + Sync {
    /// Routes the vector to `message`, or nowhere with `None` (masked). A route equal to the present one costs nothing.
    ///
    /// # Errors
    /// The hypervisor refused the route.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Sends the message the vector is routed to. Called on hot paths: no lock, no allocation.
    ///
    /// # Errors
    /// The vector's eventfd failed.
    fn trigger(&self) -> io::Result<()>;
}

/// The interrupts of an activated virtio device; the transport makes them, tests have a fake.
///
/// An interrupt that the driver masked stays pending; an interrupt that it did not set up is dropped.
pub trait Interrupt: Send + Sync {
    /// Tells the driver that buffers of queue `queue` were used.
    fn queue(&self, queue: u16);

    /// Tells the driver that the device configuration changed.
    fn config(&self);

    /// Tells the driver that the device is broken and needs a reset (`DEVICE_NEEDS_RESET`).
    fn needs_reset(&self);
}
