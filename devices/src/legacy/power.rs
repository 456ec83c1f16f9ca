//! Ports by which a guest switches itself off or resets itself: the sleep and reset registers of hardware-reduced ACPI
//! (ACPI 6.5 sections 4.8.3.6 and 4.8.3.7).

use bellows_memory::limited;

use crate::bus::BusDevice;

/// A request of the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PowerRequest {
    /// Switch the machine off.
    Shutdown,
    /// Reset the machine.
    Reset,
}

/// The registers, one byte each. They keep no state.
pub struct PowerPorts {
    requested: Box<dyn Fn(PowerRequest) + Send + Sync>,
}

impl PowerPorts {
    /// Number of ports.
    pub const LEN: u64 = 3;
    /// Offset of `SLEEP_CONTROL_REG`.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Offset of `SLEEP_STATUS_REG`, which reads as zero: the machine is awake.
    pub const SLEEP_STATUS: u64 = 1;
    /// Offset of `RESET_REG`.
    pub const RESET: u64 = 2;
    /// The value of `RESET_REG` that resets.
    pub const RESET_VALUE: u8 = 1;
    /// Sleep type of S5, for the `_S5` package.
    pub const SLEEP_TYPE_OFF: u8 = 5;

    /// Calls `requested` on the vCPU's thread that writes, each time it does.
    #[must_use]
    pub fn new(requested: impl Fn(PowerRequest) + Send + Sync + 'static) -> Self {
        Self { requested: Box::new(requested) }
    }
}

/// `SLP_EN`; `SLP_TYP` is in bits 2 to 4.
const SLEEP_ENABLE: u8 = 1 << 5;

impl BusDevice for PowerPorts {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        match offset {
            Self::SLEEP_CONTROL if value & SLEEP_ENABLE != 0 => match value >> 2 & 7 {
                Self::SLEEP_TYPE_OFF => (self.requested)(PowerRequest::Shutdown),
                other => limited!(debug, sleep_type = other, "the guest asked for an unknown sleep state"),
            },
            Self::RESET if value == Self::RESET_VALUE => (self.requested)(PowerRequest::Reset),
            _ => {}
        }
    }
}
