//! The devices that a PC kernel expects at fixed ports: a serial port, and ways to end the machine.

mod keyboard_controller;
mod power;
mod serial;
mod vacant_serial;

pub use keyboard_controller::KeyboardController;
pub use power::{PowerPorts, PowerRequest};
pub use serial::{SerialPort, SerialPortState};
pub use vacant_serial::{VacantSerialPort, VacantSerialPortState};

#[cfg(test)]
mod legacy_test;
