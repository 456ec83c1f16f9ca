//! Packets of the guest: from its buffers to the link (VIRTIO 1.2, section 5.1.6.2).

use std::io;
use std::sync::Arc;

use bellows_memory::{GuestMemory, limited};

use super::header::{self, Rejection};
use super::limits::Limited;
use super::link::{Link, Written, is_gone};
use super::mmds::Mmds;
use super::pieces::Source;
use super::shared::Shared;
use super::wire::{HEADER_BYTES, MAX_FRAME, MIN_FRAME, VirtioNetHdr};
use crate::virtio::chain::{Chain, Defect};
use crate::virtio::queue::{Outcome, QueueHandler, Snapshot};

/// The way of packets from the guest.
pub(super) struct Transmitter {
    link: Arc<dyn Link>,
    shared: Arc<Shared>,
    pub(super) mmds: Option<Arc<Mmds>>,
    features: u64,
    /// Whether the driver uses the queue.
    pub(super) used: bool,
    /// Whether a packet waits for the limit, as far as is known.
    pub(super) held: bool,
    /// Whether the link may take a packet.
    pub(super) writable: bool,
    /// Whether the link is gone.
    pub(super) gone: bool,
    /// What said that it is.
    pub(super) reason: Option<io::Error>,
    /// Room for a packet in more pieces than one call takes, and for what is looked at.
    host: Box<[u8]>,
}

/// Why a chain is not a packet.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Chain(#[from] Defect),
    #[error("{0} of its bytes are for the device to write")]
    Direction(u64),
    #[error("it has {0} bytes behind a header of {HEADER_BYTES}: expected {MIN_FRAME} to {MAX_FRAME}")]
    Size(u64),
    #[error("it is not all in guest memory")]
    OutsideMemory,
    #[error(transparent)]
    Header(#[from] Rejection),
}

impl Transmitter {
    pub(super) fn new(link: Arc<dyn Link>, shared: Arc<Shared>, features: u64) -> Self {
        Self {
            gone: !shared.is_up(),
            link,
            shared,
            mmds: None,
            features,
            used: false,
            held: false,
            writable: true,
            reason: None,
            host: vec![0; MAX_FRAME].into_boxed_slice(),
        }
    }

    /// The header of the packet in `chain`, and the bytes behind it.
    fn parse(&self, chain: &Chain, memory: &GuestMemory) -> Result<(VirtioNetHdr, usize), Malformed> {
        if let Some(defect) = chain.defect() {
            return Err(defect.into());
        }
        if chain.writable.bytes() > 0 {
            return Err(Malformed::Direction(chain.writable.bytes()));
        }
        let frame = chain.readable.bytes().saturating_sub(HEADER_BYTES as u64);
        if !(MIN_FRAME as u64..=MAX_FRAME as u64).contains(&frame) {
            return Err(Malformed::Size(frame));
        }
        if !chain.readable.are_in(memory) {
            return Err(Malformed::OutsideMemory);
        }
        let header = chain.readable.read_obj(memory).ok_or(Malformed::OutsideMemory)?;
        Ok((header::to_host(&header, frame, self.features)?, frame as usize))
    }

    /// Gives the packet to the metadata service if it is for that. Else returns how many bytes of its frame are copied to the host's
    /// room: what was looked at there is what goes to the link, whatever the guest writes to its own memory meanwhile.
    fn divert(&mut self, chain: &Chain, memory: &GuestMemory, frame: usize) -> Option<usize> {
        let Some(mmds) = self.mmds.clone() else { return Some(0) };
        let head = frame.min(Mmds::HEAD);
        self.copy(chain, memory, 0, head);
        if !mmds.is_for(&self.host[..head]) {
            return Some(head);
        }
        self.copy(chain, memory, head, frame);
        mmds.take(&self.host[..frame]);
        None
    }

    /// Copies the bytes from `from` to `to` of a frame to the host's room.
    fn copy(&mut self, chain: &Chain, memory: &GuestMemory, from: usize, to: usize) {
        let mut done = from;
        for slice in chain.readable.slices(memory, (HEADER_BYTES + from) as u64, (to - from) as u64) {
            done += slice.copy_to(&mut self.host[done..to]);
        }
    }

    /// Writes a packet of `frame` bytes, of which the first `copied` are in the host's room.
    fn write(
        &mut self,
        chain: &Chain,
        memory: &GuestMemory,
        header: &VirtioNetHdr,
        (copied, frame): (usize, usize),
    ) -> io::Result<Written> {
        let mut slices = chain.readable.slices(memory, (HEADER_BYTES + copied) as u64, (frame - copied) as u64);
        let mut packet = Source::empty();
        let fits = copied == 0 || packet.push(&self.host[..copied]);
        if fits && slices.all(|slice| packet.push_guest(&slice)) {
            return self.link.write(header, &mut packet);
        }
        self.copy(chain, memory, copied, frame);
        let mut packet = Source::empty();
        let fits = packet.push(&self.host[..frame]);
        debug_assert!(fits);
        self.link.write(header, &mut packet)
    }
}

impl Transmitter {
    /// The link can be written to, or the last packet may not be with it yet: goes on with that.
    pub(super) fn flush(&mut self) {
        match self.link.flush() {
            Ok(()) => self.writable = true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
            Err(error) => {
                self.gone = true;
                self.reason = Some(error);
            }
        }
    }
}

impl QueueHandler for Limited<'_, Transmitter> {
    fn is_ready(&mut self) -> bool {
        let Self { way, limiter } = self;
        // With the link gone, packets are dropped.
        let takes = way.gone || way.used && way.writable;
        way.held = takes && !way.gone && !limiter.is_ready();
        takes && !way.held
    }

    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let Self { way, limiter } = self;
        if way.gone {
            way.shared.transmitted.dropped();
            return Outcome::Used(0);
        }
        let (header, frame) = match way.parse(chain, &memory) {
            Ok(parsed) => parsed,
            Err(malformed) => {
                limited!(debug, head = chain.head(), %malformed, "a packet of the guest was dropped");
                way.shared.transmitted.malformed();
                return Outcome::Used(0);
            }
        };
        // A limit is for what leaves the VM.
        let Some(copied) = way.divert(chain, &memory, frame) else {
            way.shared.transmitted.delivered(frame as u64);
            return Outcome::Used(0);
        };
        match way.write(chain, &memory, &header, (copied, frame)) {
            Ok(written) => {
                way.writable = written == Written::Wholly;
                limiter.passed(frame as u64);
                way.shared.transmitted.delivered(frame as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                way.writable = false;
                return Outcome::NotYet;
            }
            Err(error) => {
                if is_gone(&error) {
                    way.gone = true;
                    way.reason = Some(error);
                } else {
                    limited!(debug, %error, "the host did not take a packet of the guest");
                }
                way.shared.transmitted.dropped();
            }
        }
        Outcome::Used(0)
    }
}
