//! Hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The hardware address of one interface: neither a group's nor zero. As text, `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// A text or number that is not the hardware address of one interface.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is not an interface's hardware address: expected `aa:bb:cc:dd:ee:ff`, neither zero nor a group's (odd `aa`)"
)]
pub struct ParseMacError(String);

impl MacAddress {
    /// The address with these bytes, in the order in which they are sent.
    ///
    /// # Errors
    /// It is zero, or a group's.
    pub fn new(bytes: [u8; 6]) -> Result<Self, ParseMacError> {
        if bytes == [0; 6] || bytes[0] & 1 != 0 {
            return Err(ParseMacError(Self(bytes).to_string()));
        }
        Ok(Self(bytes))
    }

    /// A locally administered address that is always the same for these names: that of the network, which keeps those of different
    /// machines apart, and that of the interface.
    ///
    /// Names that differ may get the same address, once in 2^46 pairs.
    #[must_use]
    pub fn derived(network: &str, interface: &str) -> Self {
        // FNV-1a, 64 bits. Neither name contains a zero byte.
        let names = network.bytes().chain([0]).chain(interface.bytes());
        let hash = names
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let [_, _, a, b, c, d, e, f] = (hash ^ hash >> 48).to_be_bytes();
        // Locally administered, and not a group's.
        Self([a & !3 | 2, b, c, d, e, f])
    }

    /// Its bytes, in the order in which they are sent.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let invalid = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or_else(invalid)?, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() {
            return Err(invalid());
        }
        Self::new(bytes).map_err(|_| invalid())
    }
}

impl TryFrom<String> for MacAddress {
    type Error = ParseMacError;

    fn try_from(text: String) -> Result<Self, ParseMacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let address: MacAddress = "02:00:0a:Ff:10:9b".parse().unwrap();
        assert_eq!(address.bytes(), [2, 0, 0x0a, 0xff, 0x10, 0x9b]);
        assert_eq!(address.to_string(), "02:00:0a:ff:10:9b");
        assert_eq!(serde_json::from_str::<MacAddress>("\"02:00:0a:ff:10:9b\"").unwrap(), address);
        for invalid in [
            "",
            "02:00:0a:ff:10",
            "02:00:0a:ff:10:9b:00",
            "2:0:a:ff:10:9b",
            "02-00-0a-ff-10-9b",
            "02:00:0a:ff:10:9g",
            "+2:00:0a:ff:10:9b",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            let error = invalid.parse::<MacAddress>().unwrap_err().to_string();
            assert!(error.contains(invalid) && error.contains("aa:bb:cc:dd:ee:ff"), "{error}");
        }
    }

    #[test]
    fn a_derived_address_is_local_and_stays_the_same() {
        let address = MacAddress::derived("tap0", "eth0");
        // Changing it changes the addresses of machines that exist.
        assert_eq!(address.to_string(), "6e:30:38:8f:ee:e4");
        let mut others: Vec<_> =
            (0..1000).flat_map(|n| [("tap0", format!("eth{n}")), ("tap1", format!("eth{n}"))]).collect();
        others.push(("tap0e", "th0".into()));
        let addresses: std::collections::BTreeSet<_> =
            others.iter().map(|(network, interface)| MacAddress::derived(network, interface)).collect();
        assert_eq!(addresses.len(), others.len());
        assert!(addresses.iter().all(|address| address.bytes()[0] & 3 == 2));
    }
}
