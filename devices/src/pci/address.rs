//! The address of a function.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bus, device and function number in segment 0. It is displayed as in Linux, `0000:00:03.0`, and serialised the same way.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct PciAddress {
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// Function `function` (0..=7) of device `device` (0..=31) on bus `bus`; `None` if a number is out of range.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 { Some(Self { bus, device, function }) } else { None }
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device number, below 32.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function number, below 8.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Offset of the function's configuration space in the segment's ECAM window.
    #[must_use]
    pub const fn ecam_offset(self) -> u64 {
        (self.bus as u64) << 20 | (self.device as u64) << 15 | (self.function as u64) << 12
    }

    /// The function that `offset` of the ECAM window belongs to, and the offset in its configuration space; `None` beyond 256
    /// buses.
    #[must_use]
    pub const fn from_ecam_offset(offset: u64) -> Option<(Self, u16)> {
        if offset >> 28 != 0 {
            return None;
        }
        let address =
            Self { bus: (offset >> 20) as u8, device: (offset >> 15 & 31) as u8, function: (offset >> 12 & 7) as u8 };
        Some((address, (offset & 0xfff) as u16))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// A text that is not the address of a function in segment 0.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a PCI address: expected one like `0000:00:03.0`")]
pub struct ParsePciAddressError(String);

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (bus, rest) = text.strip_prefix("0000:")?.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let number = |digits| u8::from_str_radix(digits, 16).ok();
            Self::new(number(bus)?, number(device)?, number(function)?)
        };
        parse().filter(|address| address.to_string() == text).ok_or_else(|| ParsePciAddressError(text.to_owned()))
    }
}

impl TryFrom<String> for PciAddress {
    type Error = ParsePciAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_linux_and_counts_like_ecam() {
        let address = PciAddress::new(1, 0x1f, 7).unwrap();
        assert_eq!(address.to_string(), "0000:01:1f.7");
        assert_eq!(address.ecam_offset(), 0x1f_f000);
        assert_eq!(PciAddress::from_ecam_offset(0x1f_f123), Some((address, 0x123)));
        assert_eq!(PciAddress::from_ecam_offset(1 << 28), None);
        assert_eq!(PciAddress::new(0, 32, 0), None);
        assert_eq!(PciAddress::new(0, 0, 8), None);
    }

    #[test]
    fn is_read_as_it_is_shown() {
        let address = PciAddress::new(1, 0x1f, 7).unwrap();
        assert_eq!("0000:01:1f.7".parse(), Ok(address));
        for text in ["", "0001:01:1f.7", "0000:01:20.0", "0000:01:1f.8", "0000:1:1f.7", "0000:01:+f.7", "0000:01:1f.7 "]
        {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }
}
