//! A repository on all servers that have it: mirrors first, in their order, and the registry itself last.

use ureq::Body;
use ureq::http::Response;

use super::hosts::hosts;
use super::options::RegistryOptions;
use super::reference::RegistryReference;
use super::retry::Retries;
use super::server::{Ask, Server};
use crate::cancel::Cancel;
use crate::oci::error::OciError;

/// A repository of a registry, over as many connections as there are readers.
pub(super) struct Client {
    /// The last is the registry.
    servers: Vec<Server>,
    cancel: Cancel,
    retries: Retries,
}

impl Client {
    /// Nothing is connected yet. All connections end when `cancel` is uttered.
    ///
    /// # Errors
    /// The file that says where the registry's images are is not right.
    pub fn new(reference: &RegistryReference, options: &RegistryOptions, cancel: &Cancel) -> Result<Self, OciError> {
        let (registry, repository) = (reference.registry(), reference.repository());
        let scheme = if options.plain_http || reference.is_loopback() { "http" } else { "https" };
        let error = |source| OciError::Registry { url: format!("{registry}/{repository}"), source };
        let hosts =
            hosts(&options.hosts_folders, registry, &format!("{scheme}://{}", reference.host())).map_err(error)?;
        let last = hosts.len().saturating_sub(1);
        let mut servers = Vec::new();
        for (index, host) in hosts.into_iter().enumerate() {
            let mut options = options.clone();
            if index < last {
                // The next server is a better try.
                options.retries.tries = 1;
            }
            servers.push(Server::new(host, registry, repository, &options, cancel).map_err(error)?);
        }
        Ok(Self { servers, cancel: cancel.clone(), retries: options.retries.clone() })
    }

    /// What messages call `path`: the registry's own URL of it.
    pub fn url(&self, path: &str) -> String {
        self.servers.last().map(|server| server.url(path)).unwrap_or_default()
    }

    /// How to try again what breaks off.
    pub fn retries(&self) -> &Retries {
        &self.retries
    }

    /// The wish that ends it all.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Asks for `path` of the repository, from the byte `from` on if that can be had; `is_tag` where the answer says what a name
    /// stands for.
    pub fn get(&self, path: &str, accept: &str, from: u64, is_tag: bool) -> Result<Response<Body>, OciError> {
        let ask = Ask { path, accept, from };
        let able = || self.servers.iter().filter(|server| server.resolves() || !is_tag);
        let mut error = None;
        for server in able() {
            match server.get(&ask) {
                Ok(response) => return Ok(response),
                Err(source) => {
                    let url = server.url(path);
                    tracing::debug!(url, %source, "a server does not have it");
                    error = Some(OciError::Registry { url, source });
                }
            }
            if self.cancel.is_cancelled() {
                break;
            }
        }
        Err(error.unwrap_or_else(|| OciError::Registry {
            url: path.to_owned(),
            source: crate::oci::error::RegistryError::NoServer,
        }))
    }
}
