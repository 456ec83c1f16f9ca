//! The metadata service: HTTP that a guest reaches through its interface, and that never leaves the monitor.
//!
//! From the inside out: `store` and `tokens` are what it tells and to whom, `http` turns a request into an answer, `connection` has
//! one client, `ethernet` tells which frames are for the service, and `stack` is its TCP. [`Metadata`] is the host's handle.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

use bellows_memory::sync::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::http::Service;
use self::stack::Stack;
use self::store::Store;
pub use self::store::StoreError;
use self::tokens::{BYTES, Tokens};
use crate::virtio::rng::fill_random;

mod connection;
mod ethernet;
mod http;
mod stack;
mod store;
mod tokens;

/// The service's usual address, as on EC2.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How a client has to ask.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Version {
    /// Without a token, or with one.
    #[default]
    V1,
    /// With a token of a session.
    V2,
}

/// The metadata of a VM. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Metadata {
    service: Arc<Mutex<Service>>,
}

impl Metadata {
    /// None yet; at most `limit` bytes as JSON.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let service = Service {
            store: Store::new(limit),
            tokens: Tokens::default(),
            version: Version::default(),
            imds_compat: false,
            random,
        };
        Self { service: Arc::new(Mutex::new(service)) }
    }

    /// Sets how clients have to ask, and whether they are told values as by EC2's service whatever they accept.
    pub fn configure(&self, version: Version, imds_compat: bool) {
        let mut service = self.service.lock();
        (service.version, service.imds_compat) = (version, imds_compat);
    }

    /// Sets all of it.
    ///
    /// # Errors
    /// It is too large; nothing has changed.
    pub fn put(&self, document: Value) -> Result<(), StoreError> {
        self.service.lock().store.put(document)
    }

    /// Changes it by a merge patch (RFC 7396).
    ///
    /// # Errors
    /// There is none, or it would be too large; nothing has changed.
    pub fn patch(&self, patch: Value) -> Result<(), StoreError> {
        self.service.lock().store.patch(patch)
    }

    /// All of it; `null` if there is none.
    #[must_use]
    pub fn get(&self) -> Value {
        self.service.lock().store.get().clone()
    }
}

/// Without what it tells, which may be secret.
impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata").finish_non_exhaustive()
    }
}

fn random() -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    fill_random(&mut bytes).ok().map(|()| bytes)
}

/// The service on one interface.
pub(super) struct Mmds {
    address: Ipv4Addr,
    service: Arc<Mutex<Service>>,
    /// No other thread wants it.
    stack: Mutex<Stack>,
    /// Whether a frame waits for the guest.
    waits: AtomicBool,
}

impl Mmds {
    /// Bytes from the start of a frame that tell whether it is for the service.
    pub(super) const HEAD: usize = ethernet::HEAD;

    /// The service of `metadata` at `address`, with packets of at most `mtu` bytes.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(super) fn new(metadata: &Metadata, address: Ipv4Addr, mtu: Option<u16>) -> io::Result<Self> {
        let mut seed = [0; 8];
        fill_random(&mut seed)?;
        let stack = Mutex::new(Stack::new(address, mtu, u64::from_ne_bytes(seed), Instant::now()));
        Ok(Self { address, service: metadata.service.clone(), stack, waits: AtomicBool::new(false) })
    }

    pub(super) const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Whether a frame of the guest's that begins with `head` is for the service.
    pub(super) fn is_for(&self, head: &[u8]) -> bool {
        ethernet::is_for(head, self.address)
    }

    /// Takes a frame of the guest's.
    pub(super) fn take(&self, frame: &[u8]) {
        self.with(|stack, service, now| stack.take(frame, service, now));
    }

    /// Does what is due by now: it sends again what the guest has not confirmed.
    pub(super) fn expire(&self) {
        self.with(Stack::turn);
    }

    /// How long until there is something to [`Mmds::expire`].
    pub(super) fn wait(&self) -> Option<Duration> {
        self.stack.lock().wait(Instant::now())
    }

    /// Whether a frame waits for the guest.
    pub(super) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// The next frame for the guest.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        self.with(Stack::next)
    }

    /// Ends all connections: the guest has forgotten them.
    pub(super) fn reset(&self) {
        self.with(|stack, _, _| stack.reset());
    }

    fn with<T>(&self, act: impl FnOnce(&mut Stack, &mut Service, Instant) -> T) -> T {
        let mut stack = self.stack.lock();
        let done = act(&mut stack, &mut self.service.lock(), Instant::now());
        self.waits.store(stack.waiting() > 0, Ordering::Relaxed);
        done
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
