//! `/network-interfaces`.

use bellows_vmm::config::{NetConfig, Tap};
use bellows_vmm::{GuestNetwork, MacAddress, RateLimits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limiter::{self, Limiter};

/// A network interface.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    pub(crate) iface_id: String,
    host_dev_name: String,
    #[schemars(with = "Option<String>")]
    guest_mac: Option<MacAddress>,
    mtu: Option<u16>,
    rx_rate_limiter: Option<Limiter>,
    tx_rate_limiter: Option<Limiter>,
    /// Bellows' own: pairs of queues, of a TAP that may have several.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_pairs: Option<u16>,
    /// Bellows' own: what the guest's agent sets up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Guest>")]
    guest: Option<GuestNetwork>,
}

/// The guest's part, for the API's document: addresses with the length of their prefix.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "the library has the type that is read")]
struct Guest {
    addresses: Option<Vec<String>>,
    gateways: Option<Vec<String>>,
    name_servers: Option<Vec<String>>,
    search_domains: Option<Vec<String>>,
}

/// `PATCH /network-interfaces`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkUpdate {
    pub(crate) iface_id: String,
    rx_rate_limiter: Option<Limiter>,
    tx_rate_limiter: Option<Limiter>,
}

impl Network {
    /// The interface as the library takes it.
    pub(crate) fn config(&self) -> NetConfig {
        let mut config = NetConfig::new(&self.iface_id, Tap::Name(self.host_dev_name.clone()));
        (config.mac, config.mtu, config.guest) = (self.guest_mac, self.mtu, self.guest.clone());
        config.queue_pairs = self.queue_pairs;
        limiter::apply(self.rx_rate_limiter, &mut config.limits.receive);
        limiter::apply(self.tx_rate_limiter, &mut config.limits.transmit);
        config
    }

    /// Takes over what an update has changed.
    pub(crate) fn update(&mut self, update: &NetworkUpdate) {
        self.rx_rate_limiter = Limiter::updated(self.rx_rate_limiter, update.rx_rate_limiter);
        self.tx_rate_limiter = Limiter::updated(self.tx_rate_limiter, update.tx_rate_limiter);
    }
}

impl NetworkUpdate {
    /// `limits` with what is to change.
    pub(crate) fn applied_to(&self, mut limits: RateLimits) -> RateLimits {
        limiter::apply(self.rx_rate_limiter, &mut limits.receive);
        limiter::apply(self.tx_rate_limiter, &mut limits.transmit);
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(rest: &str) -> Result<Network, String> {
        let text = format!(r#"{{"iface_id": "eth0", "host_dev_name": "tap0"{rest}}}"#);
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_guests_part_is_checked_with_the_rest() {
        let guest = r#", "guest": {"addresses": ["172.16.0.2/30"], "gateways": ["172.16.0.1"]}"#;
        let config = network(guest).unwrap().config();
        assert_eq!(config.guest.unwrap().gateways, ["172.16.0.1".parse::<std::net::IpAddr>().unwrap()]);
        for wrong in [r#", "guest": {"addresses": ["172.16.0.2"]}"#, r#", "guest": {"mtu": 1}"#] {
            network(wrong).unwrap_err();
        }
    }

    #[test]
    fn an_interface_has_firecrackers_names() {
        let rest = r#", "guest_mac": "06:00:AC:10:00:02", "mtu": 1400,
            "tx_rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 10}}, "queue_pairs": 2"#;
        let config = network(rest).unwrap().config();
        assert_eq!(config.queue_pairs, Some(2));
        assert_eq!((&*config.id, config.host, config.mtu), ("eth0", Tap::Name("tap0".into()).into(), Some(1400)));
        assert_eq!(config.mac.unwrap().bytes(), [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(config.limits.transmit.bandwidth.unwrap().per_second.get(), 100_000);
        assert_eq!((config.limits.receive, config.limits.transmit.operations), (Default::default(), None));
        assert_eq!(network("").unwrap().config(), NetConfig::new("eth0", Tap::Name("tap0".into())));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (rest, part) in [
            (r#", "guest_mac": "06:00""#, "06:00"),
            (r#", "mtu": 70000"#, "70000"),
            (r#", "allow_mmds_requests": true"#, "unknown field `allow_mmds_requests`"),
        ] {
            let message = network(rest).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn an_update_leaves_the_other_direction_as_it_is() {
        let update = r#"{"iface_id": "a", "rx_rate_limiter": {"ops": {"size": 2, "refill_time": 1000}}}"#;
        let update: NetworkUpdate = serde_json::from_str(update).unwrap();
        let mut before = network(r#", "tx_rate_limiter": {"ops": {"size": 5, "refill_time": 1000}}"#).unwrap();
        let limits = update.applied_to(before.config().limits);
        let packets = |limit: bellows_vmm::RateLimit| limit.operations.unwrap().per_second.get();
        assert_eq!((packets(limits.receive), packets(limits.transmit)), (2, 5));
        before.update(&update);
        assert_eq!(before.config().limits, limits, "it is shown as it is");
    }
}
