//! The 8042 keyboard controller, without keyboard: a PC kernel resets the machine by its reset line when ACPI cannot.

use std::convert::Infallible;

use bellows_memory::sync::Mutex;
use vm_superio::{I8042Device, Trigger};

use crate::bus::BusDevice;

/// The command and status port alone, without state; port 0x60 has no data.
pub struct KeyboardController {
    device: Mutex<I8042Device<ResetLine>>,
}

struct ResetLine(Box<dyn Fn() + Send>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)();
        Ok(())
    }
}

impl KeyboardController {
    /// The port.
    pub const PORT: u64 = 0x64;
    /// Number of ports.
    pub const LEN: u64 = 1;

    /// Calls `reset` on the vCPU's thread that pulls the reset line.
    #[must_use]
    pub fn new(reset: impl Fn() + Send + 'static) -> Self {
        Self { device: Mutex::new(I8042Device::new(ResetLine(Box::new(reset)))) }
    }
}

/// Address of the port.
const COMMAND: u8 = 4;

impl BusDevice for KeyboardController {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(status) = data.first_mut() {
            *status = self.device.lock().read(COMMAND);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let &[value] = data {
            let Ok(()) = self.device.lock().write(COMMAND, value);
        }
    }
}
