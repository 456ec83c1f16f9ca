//! Interrupts, from a device's queue to the guest.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

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

    /// Has every signal of `call` send the message that the vector is routed to, which is routed, without this process. A signal that
    /// nobody has taken yet counts. To be taken back before the vector is routed anew.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn wire(&self, call: &EventFd) -> io::Result<()>;

    /// Leaves signals of `call` alone, which is wired. When this returns, those that came before are sent, and later ones stay in `call`.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn unwire(&self, call: &EventFd) -> io::Result<()>;
}

/// The interrupts of an activated virtio device; the transport makes them, tests have a fake.
///
/// An interrupt that the driver masked stays pending; an interrupt that it did not set up is dropped.
pub trait Interrupt: Send + Sync {
    /// Tells the driver that buffers of queue `queue` were used.
    fn queue(&self, queue: u16);

    /// Has signals of `call`, in place of any other, tell the driver that buffers of queue `queue` were used; `None` for nobody's. What is
    /// signalled while the driver takes no interrupt of the queue stays in the event, or becomes pending.
    ///
    /// # Errors
    /// The hypervisor refused: no event is wired.
    fn wire(&self, queue: u16, call: Option<&Arc<EventFd>>) -> io::Result<()>;

    /// Tells the driver that the device configuration changed.
    fn config(&self);

    /// Tells the driver that the device is broken and needs a reset (`DEVICE_NEEDS_RESET`).
    fn needs_reset(&self);
}
