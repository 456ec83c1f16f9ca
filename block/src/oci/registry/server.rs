//! One server that has images: requests to it and to where it redirects, and what it wants to be told with them.

use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ureq::http::{HeaderValue, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy, ResponseExt as _};

use super::address::{Origin, resolve};
use super::auth::{Demand, MAX_TOKEN, TokenRequest, bearer};
use super::hosts::{Host, Trust};
use super::options::RegistryOptions;
use super::retry::{Tries, is_broken_connection, is_passing, retry_after};
use crate::cancel::Cancel;
use crate::oci::error::RegistryError;
use crate::oci::words::quoted;

/// Longest time for a connection to come about.
const CONNECT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;

/// What is asked of a repository.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    /// Below the repository: `manifests/latest`.
    pub path: &'a str,
    /// Media types.
    pub accept: &'a str,
    /// First byte wanted.
    pub from: u64,
}

/// A server, and one repository on it.
pub(super) struct Server {
    agents: Agents,
    host: Host,
    /// URL of the repository, with a slash at its end.
    base: String,
    origin: Origin,
    /// Its name in files of credentials: host and port where that is not the usual one, or what the registry is called.
    name: String,
    repository: String,
    /// The registry, where this only mirrors it, and that's not what the mirror is called.
    mirrored: Option<String>,
    options: RegistryOptions,
    cancel: Cancel,
    /// What it wanted to be told with each request.
    authorization: Mutex<Option<HeaderValue>>,
}

/// Connections: to the server itself, whom certificates of its own may vouch for, and to others.
struct Agents {
    own: Agent,
    others: Agent,
}

impl Agents {
    fn new(trust: &Trust, plain: bool, options: &RegistryOptions, cancel: &Cancel) -> Self {
        let agent = |trust: &Trust| {
            let agent = Agent::config_builder()
                .https_only(!plain)
                .http_status_as_error(false)
                // Redirects are followed by hand: which server may see the token depends on where they lead.
                .max_redirects(0)
                .max_redirects_will_error(false)
                .user_agent(concat!("bellows/", env!("CARGO_PKG_VERSION")))
                .timeout_resolve(Some(CONNECT))
                .timeout_connect(Some(CONNECT))
                .timeout_per_read(Some(options.patience))
                .timeout_per_write(Some(options.patience))
                .tls_config(tls(trust))
                // Each request has its own.
                .proxy(None)
                .build()
                .new_agent();
            let shutdown = agent.clone();
            cancel.on_cancel(move || shutdown.shutdown());
            agent
        };
        let others = agent(&Trust::default());
        let own = if trust.is_usual() { others.clone() } else { agent(trust) };
        Self { own, others }
    }
}

fn tls(trust: &Trust) -> TlsConfig {
    let roots = if trust.authorities.is_empty() {
        RootCerts::PlatformVerifier
    } else {
        // Certificates of the system that cannot be read are left out, as other programs do.
        let system = rustls_native_certs::load_native_certs().certs;
        let system = system.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
        RootCerts::new_with_certs(&system.chain(trust.authorities.iter().cloned()).collect::<Vec<_>>())
    };
    TlsConfig::builder()
        .root_certs(roots)
        .client_cert(trust.client.clone())
        .disable_verification(trust.anybody)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

impl Server {
    /// The repository `repository` of `registry` at `host`. Nothing is connected yet.
    pub fn new(
        host: Host,
        registry: &str,
        repository: &str,
        options: &RegistryOptions,
        cancel: &Cancel,
    ) -> Result<Self, RegistryError> {
        let base = format!("{}/{repository}/", host.base);
        let url: Uri = base.parse().map_err(|_| RegistryError::Url(quoted(&base)))?;
        let origin = Origin::of(&url).ok_or_else(|| RegistryError::Url(quoted(&base)))?;
        let authority = url.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        let plain = url.scheme_str() == Some("http");
        let agents = Agents::new(&host.trust, plain, options, cancel);
        let name = if host.is_registry { registry.to_owned() } else { authority };
        let mirrored = (!host.is_registry && name != registry).then(|| registry.to_owned());
        Ok(Self {
            agents,
            host,
            base,
            origin,
            name,
            repository: repository.to_owned(),
            mirrored,
            options: options.clone(),
            cancel: cancel.clone(),
            authorization: Mutex::new(None),
        })
    }

    /// What messages call `path`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Whether it may say what a tag stands for.
    pub fn resolves(&self) -> bool {
        self.host.resolves
    }

    /// Sends a request, with a token or a password if the server asks for it, and retries after errors that may pass.
    pub fn get(&self, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let url = self.url(ask.path);
        // A mirror is told whom it mirrors, as containerd does.
        let asked = match &self.mirrored {
            Some(registry) => format!("{url}?ns={registry}"),
            None => url,
        };
        let known = self.authorization().clone();
        let mut response = self.send(&asked, ask, known.as_ref())?;
        // A token may have run out since the last request. What is demanded elsewhere is not for this server's secrets.
        if response.status() == StatusCode::UNAUTHORIZED && self.is_own(&response) {
            let proof = self.authorize(&response)?;
            *self.authorization() = Some(proof.clone());
            response = self.send(&asked, ask, Some(&proof))?;
        }
        checked(response)
    }

    fn authorization(&self) -> std::sync::MutexGuard<'_, Option<HeaderValue>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(
        &self,
        url: &str,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Body>, RegistryError> {
        self.patiently(url, || self.follow(url, ask, authorization))
    }

    /// Does what may fail for a reason that passes until it doesn't, or until there were enough tries.
    fn patiently<B>(
        &self,
        url: &str,
        request: impl Fn() -> Result<Response<B>, RegistryError>,
    ) -> Result<Response<B>, RegistryError> {
        let mut tries = Tries::new(&self.options.retries);
        loop {
            let result = request();
            let (reason, asked) = match &result {
                Ok(response) if is_passing(response.status()) => {
                    (format!("status {}", response.status()), retry_after(response.headers(), SystemTime::now()))
                }
                Err(RegistryError::Transport(error)) if is_broken_connection(error) => (error.to_string(), None),
                _ => return result,
            };
            if !tries.again(url, &reason, asked, &self.cancel) {
                return result;
            }
        }
    }

    /// Sends a request and follows redirects. Credentials go to this server only.
    fn follow(
        &self,
        url: &str,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Body>, RegistryError> {
        self.redirected(url, |hop| {
            let mut request = hop.agent.get(hop.url).header(header::ACCEPT, ask.accept);
            // Digests are those of what is stored, not of what is packed for the way.
            request = request.header(header::ACCEPT_ENCODING, "identity");
            if ask.from > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", ask.from));
            }
            if hop.is_same_server {
                let headers = self.host.headers.iter();
                request = headers.fold(request, |request, (name, value)| request.header(name.as_str(), value.as_str()));
                request =
                    authorization.iter().fold(request, |request, proof| request.header(header::AUTHORIZATION, *proof));
            }
            request.config().proxy(self.proxy(hop.url)).build().call()
        })
    }

    /// Sends `request` to `url` and then to where that redirects.
    fn redirected(
        &self,
        url: &str,
        request: impl Fn(&Hop<'_>) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, RegistryError> {
        let mut url: Uri = url.parse().map_err(|_| RegistryError::Url(quoted(url)))?;
        let mut first = None;
        for number in 0..=MAX_REDIRECTS {
            let origin = Origin::of(&url).ok_or_else(|| RegistryError::Url(quoted(&url)))?;
            let agent = if origin == self.origin { &self.agents.own } else { &self.agents.others };
            let is_same_server = *first.get_or_insert_with(|| origin.clone()) == origin;
            let response = request(&Hop { agent, url: &url, number, is_same_server }).map_err(transport)?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).map(HeaderValue::as_bytes).unwrap_or_default();
            let location = String::from_utf8_lossy(location);
            url = resolve(&url, &location).ok_or_else(|| RegistryError::Location(quoted(&location)))?;
        }
        Err(RegistryError::Redirects(MAX_REDIRECTS))
    }

    fn proxy(&self, url: &Uri) -> Option<Proxy> {
        self.options.proxies.of(url).cloned()
    }

    /// Whether this server gave the answer, and not one that it redirected to.
    fn is_own(&self, response: &Response<Body>) -> bool {
        Origin::of(response.get_uri()).is_some_and(|origin| origin == self.origin)
    }

    /// Does what the server demands; what it wants to hear from now on.
    fn authorize(&self, response: &Response<Body>) -> Result<HeaderValue, RegistryError> {
        let credentials = || self.options.credentials.find(&self.name, &self.repository, !self.host.is_registry);
        let proof = match Demand::of(response.headers())? {
            Demand::Basic => match credentials()? {
                Some(credentials) => credentials.basic().ok_or(RegistryError::NoPassword)?,
                None => return Err(RegistryError::NoCredentials),
            },
            Demand::Bearer { realm, service } => {
                let scope = format!("repository:{}:pull", self.repository);
                let request = TokenRequest::new(service.as_deref(), &scope, credentials()?.as_ref());
                self.fetch_token(&realm, &request)
                    .map_err(|source| RegistryError::Token { realm: quoted(&realm), source: Box::new(source) })?
            }
        };
        let mut proof = HeaderValue::from_str(&proof).map_err(|_| RegistryError::NoPassword)?;
        proof.set_sensitive(true);
        Ok(proof)
    }

    fn fetch_token(&self, realm: &str, request: &TokenRequest) -> Result<String, RegistryError> {
        let response = self.patiently(&quoted(realm), || {
            let response = self.redirected(realm, |hop| match request {
                TokenRequest::Get { query, authorization } => {
                    // What it redirects to has a query of its own.
                    let query = query.iter().filter(|_| hop.number == 0);
                    let request = hop.agent.get(hop.url).query_pairs(query.map(|(name, value)| (*name, value)));
                    let proof = authorization.iter().filter(|_| hop.is_same_server);
                    let request = proof.fold(request, |request, proof| request.header(header::AUTHORIZATION, proof));
                    request.config().proxy(self.proxy(hop.url)).build().call()
                }
                TokenRequest::Post { form } => {
                    let form = form.iter().filter(|_| hop.is_same_server);
                    let request = hop.agent.post(hop.url).config().proxy(self.proxy(hop.url)).build();
                    request.send_form(form.map(|(name, value)| (*name, value.as_str())))
                }
            })?;
            whole(response)
        })?;
        let Whole { place, document } = response.body();
        match response.status() {
            StatusCode::OK => bearer(document.as_slice()),
            _ => Err(refusal(&response, place.clone(), document)),
        }
    }
}

/// A request on its way through redirects.
struct Hop<'a> {
    agent: &'a Agent,
    url: &'a Uri,
    /// Redirects before it.
    number: usize,
    /// This is the server that was asked first.
    is_same_server: bool,
}

/// A document that has come to its end, and the host that sent it.
struct Whole {
    place: String,
    document: Vec<u8>,
}

/// Reads an answer of at most the size of a token's.
fn whole(response: Response<Body>) -> Result<Response<Whole>, RegistryError> {
    let place = place(&response);
    let (head, body) = response.into_parts();
    let mut document = Vec::new();
    body.into_reader().take(MAX_TOKEN).read_to_end(&mut document).map_err(RegistryError::Transport)?;
    Ok(Response::from_parts(head, Whole { place, document }))
}

fn place(response: &Response<Body>) -> String {
    response.get_uri().host().unwrap_or_default().to_owned()
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A response that has what was asked for, whole or from where it was wanted.
fn checked(mut response: Response<Body>) -> Result<Response<Body>, RegistryError> {
    if [StatusCode::OK, StatusCode::PARTIAL_CONTENT].contains(&response.status()) {
        return Ok(response);
    }
    let mut said = Vec::new();
    // What it says beside the status is only for people.
    let _ = response.body_mut().as_reader().take(MAX_TOKEN).read_to_end(&mut said);
    Err(refusal(&response, place(&response), &said))
}

/// What an answer means that does not have what was asked for; `said` is its content.
fn refusal<B>(response: &Response<B>, place: String, said: &[u8]) -> RegistryError {
    let message = super::auth::first_error(said);
    let status = response.status().as_u16();
    let wait = retry_after(response.headers(), SystemTime::now()).map(|wait| wait.as_secs());
    let message = match wait.filter(|_| is_passing(response.status())) {
        Some(seconds) => format!("{message}; it asks for {seconds} s of patience").trim_start_matches("; ").to_owned(),
        None => message,
    };
    RegistryError::Status { place, status, message }
}

fn transport(error: ureq::Error) -> RegistryError {
    RegistryError::Transport(error.into_io())
}
