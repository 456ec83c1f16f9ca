//! How to speak to a registry.

use std::path::PathBuf;
use std::time::Duration;

use super::auth_file::CredentialSource;
use super::proxy::Proxies;
use super::retry::Retries;

/// How to speak to a registry.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// HTTP instead of HTTPS; always so with a registry on this host.
    pub plain_http: bool,
    /// Credentials for it.
    pub credentials: CredentialSource,
    /// Folders with a folder for each registry, which names its mirrors and its certificate authorities: containerd's
    /// `hosts.toml`, or certificates as Docker names them. The first that knows a registry counts.
    pub hosts_folders: Vec<PathBuf>,
    /// Proxies for requests.
    pub proxies: Proxies,
    /// Longest time that the registry may let pass without sending or taking anything.
    pub patience: Duration,
    /// How often to retry after errors that may pass.
    pub retries: Retries,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            credentials: CredentialSource::Nobody,
            hosts_folders: Vec::new(),
            proxies: Proxies::default(),
            patience: Duration::from_secs(60),
            retries: Retries::default(),
        }
    }
}
