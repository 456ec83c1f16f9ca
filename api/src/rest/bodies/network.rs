//! `/network-interfaces`.

use bellows_vmm::config::{NetConfig, Tap};
use bellows_vmm::{MacAddress, RateLimits};
use serde::{Deserialize, Serialize};

use super::limiter::{self, Limiter};
use crate::rest::fault::Fault;

/// A network interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    pub(crate) iface_id: String,
    host_dev_name: String,
    guest_mac: Option<MacAddress>,
    mtu: Option<u16>,
    rx_rate_limiter: Option<Limiter>,
    tx_rate_limiter: Option<Limiter>,
}

/// `PATCH /network-interfaces`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkUpdate {
    pub(crate) iface_id: String,
    rx_rate_limiter: Option<Limiter>,
    tx_rate_limiter: Option<Limiter>,
}

impl Network {
    /// The interface as the library takes it.
    ///
    /// # Errors
    /// Its rate limiters ask for what Bellows does not have.
    pub(crate) fn config(&self) -> Result<NetConfig, Fault> {
        let mut config = NetConfig::new(&self.iface_id, Tap::Name(self.host_dev_name.clone()));
        (config.mac, config.mtu) = (self.guest_mac, self.mtu);
        limiter::apply(self.rx_rate_limiter, &mut config.limits.receive)?;
        limiter::apply(self.tx_rate_limiter, &mut config.limits.transmit)?;
        Ok(config)
    }

    /// Takes over what an update has changed.
    pub(crate) fn update(&mut self, update: &NetworkUpdate) {
        self.rx_rate_limiter = Limiter::updated(self.rx_rate_limiter, update.rx_rate_limiter);
        self.tx_rate_limiter = Limiter::updated(self.tx_rate_limiter, update.tx_rate_limiter);
    }
}

impl NetworkUpdate {
    /// `limits` with what is to change.
    ///
    /// # Errors
    /// As for [`Network::config`].
    pub(crate) fn applied_to(&self, mut limits: RateLimits) -> Result<RateLimits, Fault> {
        limiter::apply(self.rx_rate_limiter, &mut limits.receive)?;
        limiter::apply(self.tx_rate_limiter, &mut limits.transmit)?;
        Ok(limits)
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
    fn an_interface_has_firecrackers_names() {
        let rest = r#", "guest_mac": "06:00:AC:10:00:02", "mtu": 1400,
            "tx_rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 10}}"#;
        let config = network(rest).unwrap().config().unwrap();
        assert_eq!((&*config.id, config.host, config.mtu), ("eth0", Tap::Name("tap0".into()).into(), Some(1400)));
        assert_eq!(config.mac.unwrap().bytes(), [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(config.limits.transmit.bandwidth.unwrap().per_second.get(), 100_000);
        assert_eq!((config.limits.receive, config.limits.transmit.packets), (Default::default(), None));
        assert_eq!(network("").unwrap().config().unwrap(), NetConfig::new("eth0", Tap::Name("tap0".into())));
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
        let burst = r#", "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 1, "one_time_burst": 1}}"#;
        assert!(network(burst).unwrap().config().unwrap_err().message.contains("`one_time_burst`"));
    }

    #[test]
    fn an_update_leaves_the_other_direction_as_it_is() {
        let update = r#"{"iface_id": "a", "rx_rate_limiter": {"ops": {"size": 2, "refill_time": 1000}}}"#;
        let update: NetworkUpdate = serde_json::from_str(update).unwrap();
        let mut before = network(r#", "tx_rate_limiter": {"ops": {"size": 5, "refill_time": 1000}}"#).unwrap();
        let limits = update.applied_to(before.config().unwrap().limits).unwrap();
        let packets = |limit: bellows_vmm::RateLimit| limit.packets.unwrap().per_second.get();
        assert_eq!((packets(limits.receive), packets(limits.transmit)), (2, 5));
        before.update(&update);
        assert_eq!(before.config().unwrap().limits, limits, "it is shown as it is");
    }
}
