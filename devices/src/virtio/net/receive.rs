//! Packets for the guest: from the link into its buffers (VIRTIO 1.2, section 5.1.6.4).
//!
//! A packet goes straight into the buffers that are there for it, as many as the last packet took, and what they have no room for
//! into memory of the host's behind them. In most cases that is nothing. Else the rest is copied into further buffers, if the driver
//! takes packets in several; until there are enough, all of the packet waits in the host's memory.

use std::io;
use std::sync::Arc;

use bellows_memory::{GuestMemory, limited};
use vm_memory::ByteValued as _;

use super::header;
use super::limits::Limited;
use super::link::{Link, is_gone};
use super::mmds::Mmds;
use super::pieces::{MAX_PIECES, Room};
use super::shared::Shared;
use super::wire::{GSO_NONE, HEADER_BYTES, MAX_FRAME, MAX_LINK_HEADER, MIN_FRAME, VirtioNetHdr, feature};
use crate::virtio::chain::Chain;
use crate::virtio::queue::group::{Filled, Group, GroupHandler};

/// Most bytes of a packet and its header.
const MAX_PACKET: usize = HEADER_BYTES + MAX_FRAME;

/// A packet between link and guest. Its part before `spilled` is in the guest's buffers, behind the header; the rest, and the header,
/// are in the host's memory.
#[derive(Clone, Copy, Debug)]
struct Packet {
    /// With its header.
    bytes: usize,
    spilled: usize,
}

/// The way of packets to the guest.
pub(super) struct Receiver {
    link: Arc<dyn Link>,
    shared: Arc<Shared>,
    pub(super) mmds: Option<Arc<Mmds>>,
    features: u64,
    /// Whether the driver uses the queue.
    pub(super) used: bool,
    /// Whether a packet may wait for the limit, as far as is known.
    pub(super) held: bool,
    /// Most bytes of a packet that is not to be segmented.
    max_frame: usize,
    /// Whether the link may have a packet.
    pub(super) readable: bool,
    /// Whether the link is gone.
    pub(super) gone: bool,
    /// What said that it is.
    pub(super) reason: Option<io::Error>,
    /// Room for one packet, header and all, and a byte more, which shows that one was longer.
    host: Box<[u8]>,
    packet: Option<Packet>,
    /// Bytes of the last packet.
    last: usize,
}

/// A packet that waits for room in the guest's buffers.
pub(super) struct Waiting(Vec<u8>);

impl Receiver {
    pub(super) fn new(link: Arc<dyn Link>, shared: Arc<Shared>, features: u64, mtu: Option<u16>) -> Self {
        // A driver that was not told takes what its buffers hold.
        let mtu = mtu.filter(|_| features & feature::MTU != 0);
        Self {
            gone: !shared.is_up(),
            link,
            shared,
            mmds: None,
            features,
            used: false,
            held: false,
            max_frame: mtu.map_or(MAX_FRAME, |mtu| usize::from(mtu) + MAX_LINK_HEADER),
            readable: true,
            reason: None,
            host: vec![0; MAX_PACKET + 1].into_boxed_slice(),
            packet: None,
            last: 0,
        }
    }

    /// Goes on with a packet that waited for room.
    pub(super) fn wait_again(&mut self, Waiting(packet): Waiting) {
        self.host[..packet.len()].copy_from_slice(&packet);
        self.packet = Some(Packet { bytes: packet.len(), spilled: 0 });
    }

    /// The packet that waits for room, if one does.
    pub(super) fn into_waiting(self) -> Option<Waiting> {
        self.packet.map(|packet| Waiting(self.host[..packet.bytes].to_vec()))
    }

    /// Forgets a packet that waits for room: the driver does not use the queue.
    pub(super) fn drop_waiting(&mut self) {
        if self.packet.take().is_some() {
            self.shared.received.dropped();
        }
    }

    /// Whether a packet of the metadata service waits.
    pub(super) fn is_answered(&self) -> bool {
        self.mmds.as_ref().is_some_and(|mmds| mmds.waits())
    }

    /// The next packet of the metadata service, in the host's memory.
    fn next_answer(&mut self) -> Option<Packet> {
        let frame = self.mmds.as_ref().filter(|mmds| mmds.waits())?.next()?;
        let bytes = HEADER_BYTES + frame.len();
        self.host.get_mut(..HEADER_BYTES)?.fill(0);
        self.host.get_mut(HEADER_BYTES..bytes)?.copy_from_slice(&frame);
        Some(Packet { bytes, spilled: 0 })
    }

    const fn merges(&self) -> bool {
        self.features & feature::MRG_RXBUF != 0
    }

    /// Reads a packet that the guest may have. `Err` says what to do instead.
    fn read(&mut self, group: &Group, memory: &GuestMemory) -> Result<Packet, Filled> {
        let (head, rest) = self.host.split_at_mut(HEADER_BYTES);
        let mut room = Room::empty();
        let mut spilled = HEADER_BYTES;
        // One place is for the rest.
        let slices = group.segments().slices(memory, HEADER_BYTES as u64, MAX_FRAME as u64);
        for slice in slices.take(MAX_PIECES - 1) {
            spilled += slice.len();
            let fits = room.push_guest(&slice);
            debug_assert!(fits);
        }
        let fits = room.push(&mut rest[spilled - HEADER_BYTES..]);
        debug_assert!(fits);
        let mut header = VirtioNetHdr::default();
        match self.link.read(&mut header, &mut room) {
            Ok(bytes) => {
                head.copy_from_slice(header.as_slice());
                self.check(Packet { bytes, spilled: spilled.min(bytes) })
            }
            Err(error) => {
                self.readable = false;
                if is_gone(&error) {
                    self.gone = true;
                    self.reason = Some(error);
                } else if error.kind() != io::ErrorKind::WouldBlock {
                    limited!(warn, %error, "cannot read a packet for the guest");
                    self.shared.received.dropped();
                }
                Err(Filled::NotYet)
            }
        }
    }

    fn check(&self, packet: Packet) -> Result<Packet, Filled> {
        let Packet { bytes, .. } = packet;
        let counters = &self.shared.received;
        if !(HEADER_BYTES + MIN_FRAME..=MAX_PACKET).contains(&bytes) {
            limited!(debug, bytes, "a packet for the guest has an impossible size");
            counters.malformed();
            return Err(Filled::Nothing);
        }
        let frame = bytes - HEADER_BYTES;
        let header = self.header();
        if header.gso_type == GSO_NONE && frame > self.max_frame {
            limited!(debug, frame, max_frame = self.max_frame, "a packet is larger than the guest was told");
            counters.dropped();
            return Err(Filled::Nothing);
        }
        if let Err(rejection) = header::to_guest(&header, frame as u64, self.features, 1) {
            limited!(debug, %rejection, "a packet is not for this guest");
            counters.malformed();
            return Err(Filled::Nothing);
        }
        Ok(packet)
    }

    /// The header as the link gave it.
    fn header(&self) -> VirtioNetHdr {
        let mut header = VirtioNetHdr::default();
        header.as_mut_slice().copy_from_slice(&self.host[..HEADER_BYTES]);
        header
    }
}

impl GroupHandler for Limited<'_, Receiver> {
    fn is_ready(&mut self) -> bool {
        let Self { way, limiter } = self;
        let has = way.used && !way.gone && (way.packet.is_some() || way.readable || way.is_answered());
        way.held = has && !limiter.is_ready();
        has && !way.held
    }

    fn accepts(&mut self, chain: &Chain, memory: &GuestMemory) -> bool {
        let sound = chain.defect().is_none()
            && chain.readable.bytes() == 0
            && chain.writable.bytes() >= HEADER_BYTES as u64
            && chain.writable.are_in(memory);
        if !sound {
            limited!(debug, head = chain.head(), defect = ?chain.defect(), "a receive buffer cannot be used");
            self.way.shared.received.malformed();
        }
        sound
    }

    fn wanted(&self) -> u64 {
        match self.way.packet {
            _ if !self.way.merges() => 0,
            Some(packet) => packet.bytes as u64,
            None => self.way.last as u64,
        }
    }

    fn fill(&mut self, group: &Group, memory: &GuestMemory) -> Filled {
        let Self { way, limiter } = self;
        let packet = match way.packet.take().or_else(|| way.next_answer()) {
            Some(packet) => packet,
            None => match way.read(group, memory) {
                Ok(packet) => packet,
                Err(instead) => return instead,
            },
        };
        let Packet { bytes, spilled } = packet;
        let frame = (bytes - HEADER_BYTES) as u64;
        if group.segments().bytes() < bytes as u64 {
            if way.merges() {
                way.packet = Some(packet);
                return Filled::More;
            }
            limited!(debug, frame, room = group.segments().bytes(), "a packet is larger than the guest's buffer");
            way.shared.received.dropped();
            return Filled::Nothing;
        }
        way.last = bytes;
        let buffers = u16::try_from(group.chains_for(bytes as u64)).unwrap_or(u16::MAX);
        let buffers = if way.merges() { buffers } else { 1 };
        // It was checked when it was read.
        let header = header::to_guest(&way.header(), frame, way.features, buffers).unwrap_or_default();
        group.segments().write(memory, 0, header.as_slice());
        let spilled = spilled.max(HEADER_BYTES);
        group.segments().write(memory, spilled as u64, &way.host[spilled..bytes]);
        limiter.passed(frame);
        way.shared.received.delivered(frame);
        Filled::Used(bytes as u64)
    }

    fn keep(&mut self, group: &Group, memory: &GuestMemory) {
        let Some(packet) = &mut self.way.packet else { return };
        // Zero if all of it is here already.
        let spilled = std::mem::take(&mut packet.spilled);
        let mut done = HEADER_BYTES;
        for slice in group.segments().slices(memory, HEADER_BYTES as u64, spilled.saturating_sub(HEADER_BYTES) as u64) {
            done += slice.copy_to(&mut self.way.host[done..spilled]);
        }
    }

    fn discard(&mut self) {
        self.way.packet = None;
        limited!(debug, "a packet is larger than all of the guest's buffers together");
        self.way.shared.received.dropped();
    }
}
