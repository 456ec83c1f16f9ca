//! A queue's eventfd and the doorbell that rings it.

use std::io;
use std::sync::Arc;

use bellows_memory::limited;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::Doorbells;

/// Wakes a queue's handler. While it is wired, guest writes signal it directly; otherwise they arrive as writes to the BAR.
///
/// Made with the device and kept through resets, so that starting a device needs no new descriptor.
pub(super) struct Notifier {
    fd: Arc<EventFd>,
    wired: Option<u64>,
}

impl Notifier {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { fd: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?), wired: None })
    }

    /// The handler's end, cleared of earlier signals.
    pub(super) fn kick(&self) -> Arc<EventFd> {
        // The only error of a non-blocking eventfd is that it was not signalled.
        let _ = self.fd.read();
        self.fd.clone()
    }

    pub(super) fn notify(&self) {
        // A full counter is already signalled.
        let _ = self.fd.write(1);
    }

    /// Lets guest writes to `address` ring, and no others; `None` unwires it.
    pub(super) fn wire(&mut self, doorbells: &dyn Doorbells, address: Option<u64>) {
        if self.wired == address {
            return;
        }
        if let Some(old) = self.wired.take()
            && let Err(error) = doorbells.unwire(old, &self.fd)
        {
            limited!(warn, address = old, %error, "cannot unwire a doorbell");
        }
        if let Some(address) = address {
            match doorbells.wire(address, &self.fd) {
                Ok(()) => self.wired = Some(address),
                // Slower, but every write to the BAR still arrives.
                Err(error) => limited!(warn, address, %error, "cannot wire a doorbell"),
            }
        }
    }
}
