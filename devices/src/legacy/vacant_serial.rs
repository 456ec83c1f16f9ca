//! The place of a serial port that a VM does not have.

use std::io::Write;

use bellows_memory::sync::Mutex;
use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::state::Version;

type Output = Box<dyn Write + Send>;

/// It reads as ports do where no device is, so a guest's driver finds none. But a kernel may have its console there all the same, and what it
/// prints when it dies goes to a writer, on the vCPU's thread.
pub struct VacantSerialPort {
    state: Mutex<State>,
}

struct State {
    output: Output,
    line_control: u8,
}

/// State of a [`VacantSerialPort`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VacantSerialPortState {
    /// Version of this type.
    pub version: Version<1>,
    /// The last value written to the line control register.
    pub line_control: u8,
}

/// Registers of a 16550 (its data sheet, table 1): data, or half of the divisor; line control.
const DATA: u64 = 0;
const LINE_CONTROL: u64 = 3;
/// `DLAB`: what is written to the data register is a part of the divisor.
const DIVISOR_LATCH: u8 = 1 << 7;

impl VacantSerialPort {
    /// Number of ports.
    pub const LEN: u64 = 8;

    /// One whose guest prints to `output`.
    #[must_use]
    pub fn new(output: Output) -> Self {
        Self { state: Mutex::new(State { output, line_control: 0 }) }
    }

    /// Its state.
    #[must_use]
    pub fn save(&self) -> VacantSerialPortState {
        VacantSerialPortState { version: Version, line_control: self.state.lock().line_control }
    }

    /// One that goes on from `state`.
    #[must_use]
    pub fn restore(output: Output, state: &VacantSerialPortState) -> Self {
        Self { state: Mutex::new(State { output, line_control: state.line_control }) }
    }
}

impl BusDevice for VacantSerialPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        let mut state = self.state.lock();
        match offset {
            LINE_CONTROL => state.line_control = value,
            // Nobody is told of a failure: nobody asked for a port.
            DATA if state.line_control & DIVISOR_LATCH == 0 => drop(state.output.write_all(&[value])),
            _ => {}
        }
    }
}
