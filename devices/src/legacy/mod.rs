//! What a PC kernel expects at fixed ports: a serial port, and ways to end the machine.

mod keyboard_controller;
mod power;
mod serial;

pub use keyboard_controller::KeyboardController;
pub use power::{PowerPorts, PowerRequest};
pub use serial::{SerialPort, SerialPortState};

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Registers are valid in any combination, whoever panicked.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod legacy_test;
