//! What an instance is connected to.

use std::net::IpAddr;

use bellows_devices::virtio::limits::{Rate, RateLimit};
use bellows_devices::virtio::net::{MacAddress, RateLimits};
use bellows_protocol::agent;
use bellows_protocol::egress::{EgressRule, PacketLimit, PacketRate};
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
    /// What it may send to: networks in CIDR notation, with a port and a protocol if only these, as `10.0.0.0/8`, `10.0.0.1:53/udp` or
    /// `[fd00::/64]:443`. Up to 64, and without any nothing: it answers those that have turned to it. The guest's kernel sees to that.
    #[serde(default, with = "crate::config::text::list")]
    pub egress: Vec<EgressRule>,
    /// Limits of what it receives and sends, in packets and in bytes without link headers. What is beyond them is dropped, by the guest's
    /// kernel. There are no one-time bursts.
    #[serde(default)]
    pub limits: RateLimits,
}

impl OwnNetwork {
    /// With these addresses, from which it may send to nobody.
    #[must_use]
    pub fn new(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, mac: None, egress: Vec::new(), limits: RateLimits::default() }
    }

    fn setup(&self) -> Result<OwnNetworkSetup, ValueError> {
        Ok(OwnNetworkSetup {
            addresses: self.addresses.clone(),
            hardware_address: self.mac.map(MacAddress::bytes),
            egress: self.egress.clone(),
            receive: limit(self.limits.receive)?,
            transmit: limit(self.limits.transmit)?,
        })
    }
}

fn limit(limit: RateLimit) -> Result<PacketLimit, ValueError> {
    let rate = |rate: Option<Rate>| match rate {
        Some(Rate { one_time_burst, .. }) if one_time_burst != 0 => Err(ValueError::OneTimeBurst(one_time_burst)),
        Some(Rate { per_second, burst, .. }) => Ok(Some(PacketRate { per_second, burst })),
        None => Ok(None),
    };
    Ok(PacketLimit { bytes: rate(limit.bandwidth)?, packets: rate(limit.operations)? })
}

impl InstanceNetwork {
    /// It in a request.
    pub(super) fn wire(&self) -> Result<(agent::InstanceNetwork, Option<agent::OwnNetwork>), ValueError> {
        Ok(match self {
            Self::None => (agent::InstanceNetwork::UNCONNECTED, None),
            Self::Vm => (agent::InstanceNetwork::SHARED, None),
            Self::Own(own) => {
                let setup = own.setup()?;
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
                r#"{"own":{"addresses":["10.0.0.9","fd00::9"],"mac":null,"egress":["10.0.0.0/8:53/udp"],"limits":{"receive":{"bandwidth":null,"operations":null},"transmit":{"bandwidth":null,"operations":null}}}}"#,
                InstanceNetwork::Own(OwnNetwork {
                    egress: vec!["10.0.0.0/8:53/udp".parse().unwrap()],
                    ..OwnNetwork::new(vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()])
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
            let mac = "02:00:00:00:00:07".parse().ok();
            InstanceNetwork::Own(OwnNetwork { mac, ..OwnNetwork::new(addresses) }).wire()
        };
        let (kind, own) = wire(&["10.0.0.9"]).unwrap();
        assert_eq!((kind, own.unwrap().hardware_address[5]), (agent::InstanceNetwork::OWN, 7));
        assert_eq!(wire(&["fe80::1"]), Err(ValueError::OwnAddress("fe80::1".parse().unwrap())));
        assert_eq!(wire(&[]), Err(ValueError::NoAddress));
    }

    #[test]
    fn what_an_instance_may_send_is_nothing_unless_it_is_said() {
        let text = r#"{"own":{"addresses":["10.0.0.9"]}}"#;
        let network: InstanceNetwork = serde_json::from_str(text).unwrap();
        let own = network.wire().unwrap().1.unwrap();
        assert!(own.egress.is_empty() && own.transmit.bytes_per_second == 0);

        let limited = |limits: &str| {
            let text = format!(r#"{{"own":{{"addresses":["10.0.0.9"],"egress":["::/0"],"limits":{limits}}}}}"#);
            serde_json::from_str::<InstanceNetwork>(&text).unwrap().wire()
        };
        let own = limited(r#"{"transmit":{"bandwidth":{"per_second":1000,"burst":10}}}"#).unwrap().1.unwrap();
        assert_eq!((own.transmit.bytes_per_second, own.transmit.bytes_burst), (1000, 10));
        assert_eq!((own.receive.bytes_per_second, &own.egress[..]), (0, &["::/0".to_owned()][..]));
        let once = r#"{"receive":{"operations":{"per_second":1000,"burst":10,"one_time_burst":5}}}"#;
        assert_eq!(limited(once), Err(ValueError::OneTimeBurst(5)));
        let wrong = r#"{"own":{"addresses":["10.0.0.9"],"egress":["10.0.0.1/8"]}}"#;
        let error = serde_json::from_str::<InstanceNetwork>(wrong).unwrap_err().to_string();
        assert!(error.contains(r#""10.0.0.1/8" is not an egress rule"#), "{error}");
    }
}
