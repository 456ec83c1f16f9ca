//! What a VM has of networks: interfaces, and the metadata that its guest reads over them.

use std::time::Duration;

use bellows_devices::virtio::net::mmds::Metadata;
use bellows_devices::virtio::net::{NetStatistics, RateLimits};

use crate::config::NetConfig;
use crate::resources::networks::{NetworkError, NetworkInfo};
use crate::vm::Vm;

impl Vm {
    /// Adds a network interface while the VM runs; returns once a driver of the guest runs it, and the agent has set up what
    /// [`NetConfig::guest`] says. It has no metadata service.
    ///
    /// # Errors
    /// See [`NetworkError`]; nothing of it remains, unless the guest does not let go of it: then it is in
    /// [`Vm::network_interfaces`].
    pub fn attach_network(&self, config: &NetConfig, timeout: Duration) -> Result<NetworkInfo, NetworkError> {
        self.networks.attach(&self.session, &self.bus, config, timeout)
    }

    /// Removes a network interface while the VM runs: first the guest lets go of it, then it leaves the bus. Instances with networks of
    /// their own that are on it lose these.
    ///
    /// # Errors
    /// See [`NetworkError`]; but for [`NetworkError::NotSetUp`], it is still there.
    pub fn detach_network(&self, id: &str, timeout: Duration) -> Result<(), NetworkError> {
        self.networks.detach(&self.session, &self.bus, id, timeout)
    }

    /// The network interfaces, in the order in which they came, with their traffic so far.
    #[must_use]
    pub fn network_interfaces(&self) -> Vec<NetworkInfo> {
        self.networks.infos()
    }

    /// The traffic of the network interface `id` so far.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn network_statistics(&self, id: &str) -> Result<NetStatistics, NetworkError> {
        self.networks.statistics(id)
    }

    /// Changes the rate limits of the network interface `id`.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn set_network_limits(&self, id: &str, limits: RateLimits) -> Result<(), NetworkError> {
        self.networks.set_limits(id, limits)
    }

    /// What the VM's metadata service tells, whether or not an interface has it.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
