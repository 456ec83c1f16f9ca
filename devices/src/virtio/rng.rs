//! virtio-rng, VIRTIO 1.2 section 5.4: the host's random numbers.
//!
//! Also the model for every other device: its identity (the trait's first methods), a worker for each queue that is started
//! in `activate` and stopped in `suspend`, and a handler that knows only requests. It has no state of its own.

use std::io;

use bellows_memory::limited;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::QueueState;

use super::chain::Chain;
use super::queue::{Outcome, QueueHandler, Snapshot};
use super::worker::QueueWorker;
use super::{ActivateError, Activation, VirtioDevice};

/// The only queue: buffers to be filled.
const REQUESTS: u16 = 0;
const QUEUE_SIZES: &[u16] = &[64];

/// An entropy device.
#[derive(Default)]
pub struct Rng {
    worker: Option<QueueWorker<Requests>>,
}

impl Rng {
    /// A device that is not active yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_RNG as u16
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.worker = Some(QueueWorker::start(&mut activation, REQUESTS, Requests)?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        vec![self.worker.take().and_then(QueueWorker::stop)]
    }
}

/// Most bytes for one request, whatever its size: a bound on the work that a kick can cause.
const MAX_BYTES_PER_REQUEST: u64 = 64 << 10;

struct Requests;

impl QueueHandler for Requests {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let mut chunk = [0; 4096];
        let wanted = chain.writable.bytes().min(MAX_BYTES_PER_REQUEST);
        let mut written = 0;
        while written < wanted {
            let bytes = &mut chunk[..(wanted - written).min(4096) as usize];
            if let Err(error) = fill_random(bytes) {
                limited!(warn, %error, "the kernel gives no random bytes");
                break;
            }
            let count = chain.writable.write(&memory, written, bytes);
            written += count as u64;
            if count < bytes.len() {
                limited!(debug, written, "a request for random bytes names memory that does not exist");
                break;
            }
        }
        // No more than MAX_BYTES_PER_REQUEST.
        Outcome::Used(written as u32)
    }
}

/// Fills `bytes` from the kernel's generator.
pub(super) fn fill_random(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are of one exclusively borrowed slice, of which the kernel writes at most
        // that many bytes.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => bytes = &mut bytes[got..],
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
