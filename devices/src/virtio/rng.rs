//! virtio-rng, VIRTIO 1.2 section 5.4: the host's random numbers.
//!
//! Also the model for every other device: what it is (the trait's first methods), starting a worker for each queue in
//! `activate`, dropping them in `reset`, and a handler that knows only requests.

use std::io;

use bellows_memory::limited;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::Bytes;

use super::worker::{Chain, QueueHandler, QueueWorker};
use super::{ActivateError, Activation, VirtioDevice};

/// The only queue: buffers to be filled.
const REQUESTS: u16 = 0;
const QUEUE_SIZES: &[u16] = &[64];

/// Bytes given for one request, whatever its size: a bound on the work that a kick can cause.
const MAX_BYTES_PER_REQUEST: u32 = 64 << 10;

/// An entropy device.
#[derive(Default)]
pub struct Rng {
    worker: Option<QueueWorker>,
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

    fn reset(&mut self) {
        self.worker = None;
    }
}

struct Requests;

impl QueueHandler for Requests {
    fn handle(&mut self, chain: Chain) -> u32 {
        let mut chunk = [0; 4096];
        let mut written = 0;
        for descriptor in chain.clone().writable() {
            let mut address = descriptor.addr();
            let mut left = descriptor.len().min(MAX_BYTES_PER_REQUEST - written);
            while left > 0 {
                let bytes = &mut chunk[..left.min(4096) as usize];
                let filled = fill_random(bytes)
                    .and_then(|()| chain.memory().write_slice(bytes, address).map_err(io::Error::other));
                if let Err(error) = filled {
                    limited!(debug, %error, address = address.0, "a request for random bytes was cut short");
                    return written;
                }
                // Both fit: no more than MAX_BYTES_PER_REQUEST in all, and the write above proved the addresses.
                let len = bytes.len() as u32;
                written += len;
                left -= len;
                address.0 = address.0.wrapping_add(u64::from(len));
            }
            if written == MAX_BYTES_PER_REQUEST {
                break;
            }
        }
        written
    }
}

/// Fills `bytes` from the kernel's generator.
fn fill_random(mut bytes: &mut [u8]) -> io::Result<()> {
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
