//! What of the OCI distribution specification 1.1 a pull needs, over HTTP.

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Body, ResponseExt as _};

use super::RegistryOptions;
use super::credentials::Credentials;
use super::reference::RegistryReference;
use crate::cancel::Cancel;
use crate::oci::error::{OciError, RegistryError};

/// Longest time for a connection to come about.
const CONNECT: Duration = Duration::from_secs(30);
/// Bytes of a token's document, and of an error's.
const MAX_ANSWER: u64 = 256 << 10;
const MAX_REDIRECTS: u32 = 5;

/// A repository of a registry, over as many connections as there are readers.
pub(super) struct Client {
    agent: Agent,
    /// URL of the repository, with a slash at its end.
    base: String,
    scope: String,
    credentials: Option<Credentials>,
    /// What the registry wanted to be told with each request.
    authorization: Mutex<Option<String>>,
}

/// What a registry gives for a user, or for nobody.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Client {
    /// Nothing is connected yet. All connections end when `cancel` is uttered.
    pub fn new(reference: &RegistryReference, options: &RegistryOptions, cancel: &Cancel) -> Self {
        let loopback = reference.is_loopback();
        let plain = options.plain_http || loopback;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .https_only(!plain)
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS)
            .user_agent(concat!("bellows/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(options.patience))
            .timeout_per_write(Some(options.patience))
            .tls_config(tls);
        // No proxy gets to this host.
        let agent = if loopback { config.proxy(None) } else { config }.build().new_agent();
        let shutdown = agent.clone();
        cancel.on_cancel(move || shutdown.shutdown());
        let scheme = if plain { "http" } else { "https" };
        Self {
            agent,
            base: format!("{scheme}://{}/v2/{}/", reference.host(), reference.repository()),
            scope: format!("repository:{}:pull", reference.repository()),
            credentials: options.credentials.clone(),
            authorization: Mutex::new(None),
        }
    }

    /// What messages call `path`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Asks for `path` of the repository; who is asked for a token or a password gives it.
    pub fn get(&self, path: &str, accept: &str) -> Result<Response<Body>, OciError> {
        let url = self.url(path);
        let error = |source| OciError::Registry { url: url.clone(), source };
        let authorization = || self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        let known = authorization().clone();
        let mut response = self.request(&url, accept, known.as_deref()).map_err(error)?;
        // A token may have run out since the last request.
        if response.status() == StatusCode::UNAUTHORIZED {
            let proof = self.authorize(&response).map_err(error)?;
            *authorization() = Some(proof.clone());
            response = self.request(&url, accept, Some(&proof)).map_err(error)?;
        }
        checked(response).map_err(error)
    }

    fn request(&self, url: &str, accept: &str, authorization: Option<&str>) -> Result<Response<Body>, RegistryError> {
        let request = self.agent.get(url).header(header::ACCEPT, accept);
        // It is not sent on to where a redirect leads.
        let request =
            authorization.iter().fold(request, |request, proof| request.header(header::AUTHORIZATION, *proof));
        request.call().map_err(transport)
    }

    /// Does what a registry demands that said "unauthorized"; what it wants to hear from now on.
    fn authorize(&self, response: &Response<Body>) -> Result<String, RegistryError> {
        let mut seen = Vec::new();
        for value in response.headers().get_all(header::WWW_AUTHENTICATE) {
            let text = value.to_str().unwrap_or_default();
            let challenges = http_auth::parse_challenges(text).map_err(|_| RegistryError::Challenge(quoted(text)))?;
            for challenge in challenges {
                let parameter = |name: &str| {
                    let mut parameters = challenge.params.iter();
                    parameters.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let realm = parameter("realm").ok_or_else(|| RegistryError::Challenge(quoted(text)))?;
                    return self.fetch_token(&realm, parameter("service").as_deref());
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    return self.credentials.as_ref().map(Credentials::basic).ok_or(RegistryError::NoCredentials);
                }
                seen.push(challenge.scheme.to_owned());
            }
        }
        Err(RegistryError::Challenge(quoted(&seen.join(", "))))
    }

    /// Gets a token for reading this repository and nothing else, whatever the registry would like to have.
    fn fetch_token(&self, realm: &str, service: Option<&str>) -> Result<String, RegistryError> {
        let error = |source| RegistryError::Token { realm: quoted(realm), source: Box::new(source) };
        let request = self.agent.get(realm).query("scope", &self.scope);
        let request = service.iter().fold(request, |request, service| request.query("service", service));
        let proof = self.credentials.as_ref().map(Credentials::basic);
        let request = proof.iter().fold(request, |request, proof| request.header(header::AUTHORIZATION, proof));
        let mut response = checked(request.call().map_err(|e| error(transport(e)))?).map_err(error)?;
        let mut data = Vec::new();
        let mut body = response.body_mut().as_reader().take(MAX_ANSWER);
        body.read_to_end(&mut data).map_err(|source| error(RegistryError::Transport(source)))?;
        let token: Token = serde_json::from_slice(&data).map_err(|source| error(RegistryError::Json(source)))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        Ok(format!("Bearer {}", token.ok_or_else(|| error(RegistryError::Challenge("no token".to_owned())))?))
    }
}

/// A response that has what was asked for.
fn checked(mut response: Response<Body>) -> Result<Response<Body>, RegistryError> {
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    let mut data = Vec::new();
    // What it says beside the status is only for people.
    let _ = response.body_mut().as_reader().take(MAX_ANSWER).read_to_end(&mut data);
    let said = serde_json::from_slice(&data).ok().and_then(|Errors { errors }| errors.into_iter().next());
    let message = said.map_or_else(String::new, |entry| format!("{}: {}", entry.code, entry.message));
    let place = response.get_uri().host().unwrap_or_default().to_owned();
    Err(RegistryError::Status { place, status: response.status().as_u16(), message: quoted(&message) })
}

/// A registry's words, fit for a terminal.
fn quoted(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

fn transport(error: ureq::Error) -> RegistryError {
    RegistryError::Transport(error.into_io())
}
