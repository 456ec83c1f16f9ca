//! Code at the reset vector. Where ACPI is hardware-reduced, a kernel with EFI support resets through EFI; without EFI it jumps
//! to the BIOS, which is this code.

use bellows_devices::legacy::PowerPorts;

use super::layout::POWER_PORT;

/// Real-mode code that writes to the reset register; at most 16 bytes.
pub(crate) const CODE: [u8; 9] = {
    let [low, high] = (POWER_PORT + PowerPorts::RESET as u16).to_le_bytes();
    [
        // mov dx, port
        0xba,
        low,
        high,
        // mov al, value
        0xb0,
        PowerPorts::RESET_VALUE,
        // out dx, al
        0xee,
        // again: hlt; jmp again
        0xf4,
        0xeb,
        0xfd,
    ]
};
