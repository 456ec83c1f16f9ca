//! Devices at fixed ports: how the guest switches itself off, and its serial port.

use std::io;
use std::sync::Arc;

use bellows_devices::bus::{Bus, BusDevice};
use bellows_devices::legacy::{KeyboardController, PowerPorts, PowerRequest, SerialPort};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::layout::{COM1_GSI, COM1_PORT, POWER_PORT};
use crate::kvm::{Buses, ExitNotice, ExitReason, Machine};
use crate::virtio_bus::DeviceError;

/// Puts the devices in place by which the guest switches itself off or resets itself.
pub(crate) fn add_power(buses: &Buses, notice: &ExitNotice) -> Result<(), DeviceError> {
    let power = PowerPorts::new({
        let notice = notice.clone();
        move |request| {
            notice.report(match request {
                PowerRequest::Shutdown => ExitReason::Shutdown,
                PowerRequest::Reset => ExitReason::Reset,
            });
        }
    });
    add(&buses.ports, "power registers", POWER_PORT.into(), PowerPorts::LEN, power)?;
    let notice = notice.clone();
    let keyboard = KeyboardController::new(move || notice.report(ExitReason::Reset));
    add(&buses.ports, "keyboard controller", KeyboardController::PORT, KeyboardController::LEN, keyboard)
}

/// Puts a serial port in place that writes to `output`.
pub(crate) fn add_serial(
    buses: &Buses,
    machine: &Machine,
    output: impl io::Write + Send + 'static,
) -> Result<(), DeviceError> {
    let failed = |source| DeviceError::Line { device: "serial port", source };
    let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed)?;
    machine.wire_line(&interrupt, COM1_GSI).map_err(failed)?;
    let port = SerialPort::new(Box::new(output), interrupt);
    add(&buses.ports, "serial port", COM1_PORT.into(), SerialPort::LEN, port)
}

fn add(
    ports: &Bus,
    name: &'static str,
    base: u64,
    len: u64,
    device: impl BusDevice + 'static,
) -> Result<(), DeviceError> {
    ports.insert(base, len, Arc::new(device)).map_err(|source| DeviceError::Bus { device: name, source })
}
