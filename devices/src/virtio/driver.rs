//! The driver of a device, as the host's controls reach it.

use std::sync::Arc;

use bellows_memory::sync::Mutex;

use crate::interrupt::Interrupt;

/// Interrupts to the driver, while there is one.
#[derive(Default)]
pub(super) struct Driver {
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Driver {
    pub(super) fn set(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self.interrupt.lock() = interrupt;
    }

    pub(super) fn config_changed(&self) {
        let interrupt = self.interrupt.lock().clone();
        // A driver that has yet to bind reads the configuration when it does.
        if let Some(interrupt) = interrupt {
            interrupt.config();
        }
    }
}
