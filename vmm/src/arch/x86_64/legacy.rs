//! Devices at fixed ports: how the guest switches itself off, and its serial port.

use std::io::Write;
use std::sync::Arc;

use bellows_devices::bus::{Bus, BusDevice, BusError};
use bellows_devices::legacy::{KeyboardController, PowerPorts, PowerRequest, SerialPort, VacantSerialPort};
use vmm_sys_util::eventfd::EventFd;

use super::layout::{COM1_PORT, POWER_PORT};
use crate::arch::Buses;

/// A device that could not be put in place, by name.
pub(crate) type Misplaced = (&'static str, BusError);

/// Puts the devices in place by which the guest asks to be switched off or reset.
pub(crate) fn add_power(
    buses: &Buses,
    request: impl Fn(PowerRequest) + Clone + Send + Sync + 'static,
) -> Result<(), Misplaced> {
    let power = PowerPorts::new(request.clone());
    add(&buses.ports, "power registers", POWER_PORT.into(), PowerPorts::LEN, power)?;
    let keyboard = KeyboardController::new(move || request(PowerRequest::Reset));
    add(&buses.ports, "keyboard controller", KeyboardController::PORT, KeyboardController::LEN, keyboard)
}

/// Puts a serial port in place that writes to `output` and signals `interrupt`, which is wired to
/// [`SERIAL_LINE`](super::layout::SERIAL_LINE).
pub(crate) fn add_serial(
    buses: &Buses,
    interrupt: EventFd,
    output: impl Write + Send + 'static,
) -> Result<(), Misplaced> {
    let port = SerialPort::new(Box::new(output), interrupt);
    add(&buses.ports, "serial port", COM1_PORT.into(), SerialPort::LEN, port)
}

/// Puts what hears a dying kernel in place of the serial port.
pub(crate) fn add_vacant_serial(buses: &Buses, output: impl Write + Send + 'static) -> Result<(), Misplaced> {
    let port = VacantSerialPort::new(Box::new(output));
    add(&buses.ports, "vacant serial port", COM1_PORT.into(), VacantSerialPort::LEN, port)
}

fn add(
    ports: &Bus,
    name: &'static str,
    base: u64,
    len: u64,
    device: impl BusDevice + 'static,
) -> Result<(), Misplaced> {
    ports.insert(base, len, Arc::new(device)).map_err(|error| (name, error))
}
