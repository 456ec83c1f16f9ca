//! The metadata service in a configuration.

use std::net::Ipv4Addr;

use bellows_devices::virtio::net::mmds::{ADDRESS, Version};
use serde::{Deserialize, Serialize};

use super::network::NetConfig;
use super::{ConfigError, error};

/// Through which interfaces a guest reaches its metadata, and how.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// Names of network interfaces, at least one.
    pub interfaces: Vec<String>,
    /// How a client has to ask.
    #[serde(default)]
    pub version: Version,
    /// The service's address, which is link-local; 169.254.169.254 if left out.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Whether values are told as by EC2's service, whatever a client accepts.
    #[serde(default)]
    pub imds_compat: bool,
}

impl MmdsConfig {
    /// The service's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address.unwrap_or(ADDRESS)
    }

    /// Checks it against the interfaces.
    pub(super) fn check(&self, interfaces: &[NetConfig]) -> Result<(), ConfigError> {
        // RFC 3927 reserves the first and the last 256 addresses.
        let address = self.address();
        if !address.is_link_local() || matches!(address.octets()[2], 0 | 255) {
            return Err(error("mmds.address", address, "169.254.1.0 to 169.254.254.255"));
        }
        if self.interfaces.is_empty() {
            return Err(error("mmds.interfaces", "empty", "the name of a network interface"));
        }
        if let Some(id) = self.interfaces.iter().find(|id| interfaces.iter().all(|interface| interface.id != **id)) {
            return Err(error("mmds.interfaces", format!("{id:?}"), "the name of a network interface"));
        }
        if let Some(unseen) =
            interfaces.iter().find(|interface| interface.vhost && self.interfaces.contains(&interface.id))
        {
            return Err(error("mmds.interfaces", format!("{:?}", unseen.id), "a network interface without `vhost`"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bellows_memory::ByteSize;

    use super::*;
    use crate::config::{Tap, VmConfig};

    #[test]
    fn what_is_wrong_is_named() {
        let mut config = VmConfig::new("vmlinux", ByteSize::mib(512));
        config.network_interfaces = vec![NetConfig::new("eth0", Tap::Fd(7))];
        let mut with = |interfaces: &[&str], address: Option<[u8; 4]>| {
            let interfaces = interfaces.iter().map(|id| (*id).to_owned()).collect();
            config.mmds = Some(MmdsConfig { interfaces, address: address.map(Into::into), ..MmdsConfig::default() });
            config.validate().map_err(|error| error.to_string())
        };
        assert_eq!(with(&["eth0"], None), Ok(()));
        for address in [[169, 254, 1, 0], [169, 254, 254, 255]] {
            assert_eq!(with(&["eth0"], Some(address)), Ok(()));
        }
        for (interfaces, address, part) in [
            (&[][..], None, "`mmds.interfaces` is empty"),
            (&["eth0", "eth1"], None, "`mmds.interfaces` is \"eth1\""),
            (&["eth0"], Some([10, 0, 0, 1]), "`mmds.address` is 10.0.0.1: expected 169.254.1.0 to"),
            (&["eth0"], Some([169, 254, 0, 255]), "169.254.0.255"),
            (&["eth0"], Some([169, 254, 255, 1]), "169.254.255.1"),
        ] {
            let message = with(interfaces, address).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
