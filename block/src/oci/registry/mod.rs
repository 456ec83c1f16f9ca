//! Registries: finding their servers, speaking to them, and reading documents and blobs. What a registry says counts only after its
//! digest was compared. Descriptors bound the size of blobs, and a limit that of documents.

mod address;
mod auth;
mod auth_file;
mod blob;
mod client;
mod credentials;
mod helper;
mod hosts;
mod options;
mod proxy;
mod reference;
mod repository;
mod retry;
mod server;

pub use auth_file::{AuthFile, CredentialSource};
pub use credentials::Credentials;
pub use options::RegistryOptions;
pub use proxy::{ParseProxyError, Proxies};
pub use reference::{ParseReferenceError, RegistryReference};
pub(super) use repository::Repository;
pub use retry::{Retries, Retry};

#[cfg(test)]
#[path = "registry_test.rs"]
mod tests;
