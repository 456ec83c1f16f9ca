//! `/vsock`, `/entropy` and `/balloon`.

use std::path::PathBuf;

use bellows_vmm::config::GUEST_CIDS;
use bellows_vmm::{BalloonConfig, VsockConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limiter::{self, Limiter};
use crate::rest::fault::Fault;

/// The connection between guest and host.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vsock {
    /// Firecracker takes it still, and gives it no meaning.
    #[serde(default, rename = "vsock_id", skip_serializing)]
    _vsock_id: Option<String>,
    guest_cid: u32,
    uds_path: PathBuf,
}

impl Vsock {
    pub(crate) fn check(&self) -> Result<(), Fault> {
        if !GUEST_CIDS.contains(&self.guest_cid) {
            let expected = format!("{} to {}", GUEST_CIDS.start(), GUEST_CIDS.end());
            return Err(Fault::value("guest_cid", self.guest_cid, expected));
        }
        if self.uds_path.symlink_metadata().is_ok() {
            let value = format!("`{}`, which exists", self.uds_path.display());
            return Err(Fault::value("uds_path", value, "a path at which a socket can be made"));
        }
        Ok(())
    }

    pub(crate) fn config(&self) -> VsockConfig {
        VsockConfig { cid: self.guest_cid, uds_path: Some(self.uds_path.clone()) }
    }
}

/// The source of entropy, which every VM has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entropy {
    #[serde(skip_serializing)]
    rate_limiter: Option<Limiter>,
}

impl Entropy {
    pub(crate) fn check(self) -> Result<(), Fault> {
        limiter::check(self.rate_limiter)
    }
}

/// The balloon.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Balloon {
    pub(crate) amount_mib: u32,
    deflate_on_oom: bool,
    #[serde(default)]
    pub(crate) stats_polling_interval_s: u16,
    #[serde(default)]
    free_page_hinting: bool,
    #[serde(default)]
    free_page_reporting: bool,
}

impl Balloon {
    pub(crate) fn config(self) -> BalloonConfig {
        let Self { amount_mib, deflate_on_oom, stats_polling_interval_s, free_page_hinting, free_page_reporting } =
            self;
        BalloonConfig { amount_mib, deflate_on_oom, stats_polling_interval_s, free_page_hinting, free_page_reporting }
    }
}

/// `PATCH /balloon`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonUpdate {
    pub(crate) amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonStatisticsUpdate {
    pub(crate) stats_polling_interval_s: u16,
}

/// `PATCH /balloon/hinting/start`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartHinting {
    #[serde(default = "yes")]
    pub(crate) acknowledge_on_stop: bool,
}

impl Default for StartHinting {
    fn default() -> Self {
        Self { acknowledge_on_stop: yes() }
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_needs_a_size_and_a_word_about_oom() {
        let balloon: Balloon = serde_json::from_str(r#"{"amount_mib": 4, "deflate_on_oom": true}"#).unwrap();
        let expected = BalloonConfig { amount_mib: 4, deflate_on_oom: true, ..BalloonConfig::default() };
        assert_eq!(balloon.config(), expected);
        assert!(serde_json::from_str::<Balloon>(r#"{"amount_mib": 4}"#).is_err());
    }

    #[test]
    fn a_socket_must_have_room() {
        let vsock = |cid: u32, path: &str| {
            let json = serde_json::json!({ "vsock_id": "v", "guest_cid": cid, "uds_path": path });
            serde_json::from_value::<Vsock>(json).unwrap().check().map_err(|fault| fault.message)
        };
        vsock(3, "/nowhere/v").unwrap();
        assert!(vsock(2, "/nowhere/v").unwrap_err().contains("`guest_cid` is 2: expected 3 to"));
        assert!(vsock(3, "/proc").unwrap_err().contains("`uds_path` is `/proc`, which exists"));
    }

    #[test]
    fn hinting_acknowledges_unless_told_otherwise() {
        assert!(StartHinting::default().acknowledge_on_stop);
        assert!(serde_json::from_str::<StartHinting>("{}").unwrap().acknowledge_on_stop);
        let quiet: StartHinting = serde_json::from_str(r#"{"acknowledge_on_stop": false}"#).unwrap();
        assert!(!quiet.acknowledge_on_stop);
    }
}
