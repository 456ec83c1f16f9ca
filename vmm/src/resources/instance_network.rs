//! What an instance is connected to.

use bellows_protocol::agent;
use serde::{Deserialize, Serialize};

/// What an instance is connected to.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceNetwork {
    /// Nothing: its only interface is a loopback of its own.
    #[default]
    None,
    /// It shares the VM's interfaces, addresses and ports with all instances that do, and asks the VM's name servers. Without
    /// interfaces these instances share a loopback. It can neither change the network nor read or forge others' packets.
    Vm,
}

impl InstanceNetwork {
    pub(super) fn wire(self) -> agent::InstanceNetwork {
        match self {
            Self::None => agent::InstanceNetwork::UNCONNECTED,
            Self::Vm => agent::InstanceNetwork::SHARED,
        }
    }
}
