//! What an instance is connected to.

use std::net::IpAddr;

use bellows_devices::virtio::net::MacAddress;
use bellows_protocol::agent;
use bellows_protocol::network::OwnNetworkSetup;
use bellows_protocol::values::ValueError;
use serde::{Deserialize, Serialize};

/// What an instance is connected to.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceNetwork {
    /// Nothing: its only interface is a loopback of its own.
    #[default]
    None,
    /// It shares the VM's interfaces, addresses and ports with all instances that do, and asks the VM's name servers. Without
    /// interfaces these instances share a loopback. It can neither change the network nor read or forge others' packets.
    Vm,
    /// One interface of its own, `eth0`. The VM passes packets on between it and its own interfaces, and answers there for its
    /// addresses.
    Own(OwnNetwork),
}

/// The interface of an instance with a network of its own.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct OwnNetwork {
    /// Its addresses, of either family, which nobody else has: 1 to 16. Hosts reach them directly that have them in the network of
    /// one of the VM's interfaces, and others by a route to the VM.
    pub addresses: Vec<IpAddr>,
    /// Its hardware address, which only the VM sees; left out, the guest's kernel chooses it.
    #[serde(default)]
    pub mac: Option<MacAddress>,
}

impl OwnNetwork {
    fn setup(&self) -> OwnNetworkSetup {
        OwnNetworkSetup { addresses: self.addresses.clone(), hardware_address: self.mac.map(MacAddress::bytes) }
    }
}

impl InstanceNetwork {
    /// It in a request.
    pub(super) fn wire(&self) -> Result<(agent::InstanceNetwork, Option<agent::OwnNetwork>), ValueError> {
        Ok(match self {
            Self::None => (agent::InstanceNetwork::UNCONNECTED, None),
            Self::Vm => (agent::InstanceNetwork::SHARED, None),
            Self::Own(own) => {
                let setup = own.setup();
                setup.check()?;
                (agent::InstanceNetwork::OWN, Some(setup.message()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_as_it_is_written() {
        for (text, network) in [
            (r#""none""#, InstanceNetwork::None),
            (r#""vm""#, InstanceNetwork::Vm),
            (
                r#"{"own":{"addresses":["10.0.0.9","fd00::9"],"mac":null}}"#,
                InstanceNetwork::Own(OwnNetwork {
                    addresses: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
                    mac: None,
                }),
            ),
        ] {
            assert_eq!(serde_json::from_str::<InstanceNetwork>(text).unwrap(), network);
            assert_eq!(serde_json::to_string(&network).unwrap(), text);
        }
    }

    #[test]
    fn an_instances_own_addresses_are_checked() {
        let wire = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            InstanceNetwork::Own(OwnNetwork { addresses, mac: "02:00:00:00:00:07".parse().ok() }).wire()
        };
        let (kind, own) = wire(&["10.0.0.9"]).unwrap();
        assert_eq!((kind, own.unwrap().hardware_address[5]), (agent::InstanceNetwork::OWN, 7));
        assert_eq!(wire(&["fe80::1"]), Err(ValueError::OwnAddress("fe80::1".parse().unwrap())));
        assert_eq!(wire(&[]), Err(ValueError::NoAddress));
    }
}
