//! `/mmds`.

use std::net::Ipv4Addr;

use bellows_vmm::{ConfigError, MetadataError, MmdsConfig, MmdsVersion};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Network;
use crate::rest::fault::Fault;

/// Through which interfaces the guest reaches its metadata, and how.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mmds {
    #[serde(default)]
    #[schemars(with = "Version")]
    version: MmdsVersion,
    network_interfaces: Vec<String>,
    ipv4_address: Option<Ipv4Addr>,
    #[serde(default)]
    imds_compat: bool,
}

// For the API's document.
/// How a client has to ask.
#[derive(JsonSchema)]
#[schemars(rename = "MmdsVersion")]
#[expect(dead_code, reason = "the library has the type that is read")]
enum Version {
    V1,
    V2,
}

// For the API's document.
/// The metadata, or what is to change of it: any JSON.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "any JSON is read")]
pub(crate) struct Metadata(serde_json::Value);

impl Mmds {
    /// The service as the library takes it.
    pub(crate) fn config(&self) -> MmdsConfig {
        MmdsConfig {
            interfaces: self.network_interfaces.clone(),
            version: self.version,
            address: self.ipv4_address,
            imds_compat: self.imds_compat,
        }
    }

    /// As Firecracker shows it: with its address, and each interface once, in the order of the VM's.
    pub(crate) fn shown(&self, interfaces: &[Network]) -> Self {
        let names = interfaces.iter().map(|interface| &interface.iface_id);
        Self {
            network_interfaces: names.filter(|id| self.network_interfaces.contains(id)).cloned().collect(),
            ipv4_address: Some(self.config().address()),
            ..self.clone()
        }
    }
}

/// What Firecracker says of a configuration of the service that is wrong, if that is what `error` is of.
pub(crate) fn explain(error: &ConfigError) -> Option<&'static str> {
    let text = match (&*error.field, &*error.value) {
        ("mmds.address", _) => "MMMDS config error: The MMDS IPv4 address is not link local.",
        ("mmds.interfaces", "empty") => {
            "MMMDS config error: The list of network interface IDs that allow forwarding MMDS requests is empty."
        }
        ("mmds.interfaces", _) => {
            "MMMDS config error: The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface."
        }
        _ => return None,
    };
    Some(text)
}

impl From<MetadataError> for Fault {
    /// Firecracker's code and text, and what is wrong.
    fn from(error: MetadataError) -> Self {
        let (status, text) = match error {
            MetadataError::TooLarge { .. } => (413, "MMDS limit exceeded error: The MMDS patch request doesn't fit."),
            MetadataError::Empty => (400, NOT_INITIALIZED),
        };
        Self::with_status(status, format!("{text} ({error})"))
    }
}

/// No interface of a VM that has booted has the service.
pub(crate) fn no_service() -> Fault {
    let cause = "the VM has no metadata service: expected `PUT /mmds/config` before `InstanceStart`";
    Fault::new(format!("{NOT_INITIALIZED} ({cause})"))
}

const NOT_INITIALIZED: &str = "MMDS error: The MMDS data store is not initialized.";
