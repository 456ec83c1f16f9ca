//! Packet headers, VIRTIO 1.2 section 5.10.6.

use bellows_memory::wire;
use vm_memory::{Le16, Le32, Le64};

wire! {
    /// `struct virtio_vsock_hdr`. Its `le64` fields are bytes here, so that nothing follows the 44 bytes.
    pub struct VirtioVsockHdr {
        /// Context the packet comes from.
        src_cid: [u8; 8],
        /// Context the packet goes to.
        dst_cid: [u8; 8],
        /// Port the packet comes from.
        src_port: Le32,
        /// Port the packet goes to.
        dst_port: Le32,
        /// Bytes of payload that follow.
        len: Le32,
        /// `VIRTIO_VSOCK_TYPE_*`.
        type_: Le16,
        /// `VIRTIO_VSOCK_OP_*`.
        op: Le16,
        /// Meaning depends on the operation.
        flags: Le32,
        /// Bytes of buffer that the sender has for this connection.
        buf_alloc: Le32,
        /// Bytes that the sender has taken out of that buffer so far, modulo 2^32.
        fwd_cnt: Le32,
    }

    /// `struct virtio_vsock_config`, section 5.10.4.
    pub struct VirtioVsockConfig {
        /// The guest's context identifier.
        guest_cid: Le64,
    }

    /// `struct virtio_vsock_event`, section 5.10.6.7.
    pub struct VirtioVsockEvent {
        /// `VIRTIO_VSOCK_EVENT_*`.
        id: Le32,
    }
}

/// Size of a packet header in bytes.
pub const HEADER_BYTES: usize = size_of::<VirtioVsockHdr>();

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone, and the guest's context may be another.
pub const EVENT_TRANSPORT_RESET: u32 = 0;

/// The host's well-known context identifier.
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type of socket that the device serves.
pub const TYPE_STREAM: u16 = 1;

/// The operation of a packet (`VIRTIO_VSOCK_OP_*`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Accepts a connection.
    Response,
    /// Refuses, aborts or forgets a connection.
    Reset,
    /// Announces that the sender will receive or send no more; see [`Shutdown`].
    Shutdown,
    /// Carries data.
    ReadWrite,
    /// Tells the sender's credit.
    CreditUpdate,
    /// Asks for the receiver's credit.
    CreditRequest,
}

impl Op {
    /// The operation with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    /// The operation's number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// The directions that one side has ended; hints add up and are never taken back.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Shutdown {
    /// The side receives no more (`VIRTIO_VSOCK_SHUTDOWN_RCV`).
    pub receive: bool,
    /// The side sends no more (`VIRTIO_VSOCK_SHUTDOWN_SEND`).
    pub send: bool,
}

impl Shutdown {
    /// Reads the flags of a shutdown packet; unknown bits are ignored.
    #[must_use]
    pub const fn from_flags(flags: u32) -> Self {
        Self { receive: flags & 1 != 0, send: flags & 2 != 0 }
    }

    /// The flags of a shutdown packet.
    #[must_use]
    pub const fn flags(self) -> u32 {
        self.receive as u32 | (self.send as u32) << 1
    }

    /// Both directions have ended.
    #[must_use]
    pub const fn is_both(self) -> bool {
        self.receive && self.send
    }

    /// Adds what `other` ends.
    pub const fn add(&mut self, other: Self) {
        self.receive |= other.receive;
        self.send |= other.send;
    }
}

/// A packet header: [`VirtioVsockHdr`] as numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// Context the packet comes from.
    pub src_cid: u64,
    /// Context the packet goes to.
    pub dst_cid: u64,
    /// Port the packet comes from.
    pub src_port: u32,
    /// Port the packet goes to.
    pub dst_port: u32,
    /// Bytes of payload that follow.
    pub len: u32,
    /// Type of the socket (`VIRTIO_VSOCK_TYPE_*`).
    pub kind: u16,
    /// Operation, as it is on the wire; see [`Op`].
    pub op: u16,
    /// Meaning depends on the operation.
    pub flags: u32,
    /// Bytes of buffer that the sender has for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl From<VirtioVsockHdr> for Header {
    fn from(wire: VirtioVsockHdr) -> Self {
        Self {
            src_cid: u64::from_le_bytes(wire.src_cid),
            dst_cid: u64::from_le_bytes(wire.dst_cid),
            src_port: wire.src_port.into(),
            dst_port: wire.dst_port.into(),
            len: wire.len.into(),
            kind: wire.type_.into(),
            op: wire.op.into(),
            flags: wire.flags.into(),
            buf_alloc: wire.buf_alloc.into(),
            fwd_cnt: wire.fwd_cnt.into(),
        }
    }
}

impl From<Header> for VirtioVsockHdr {
    fn from(header: Header) -> Self {
        Self {
            src_cid: header.src_cid.to_le_bytes(),
            dst_cid: header.dst_cid.to_le_bytes(),
            src_port: header.src_port.into(),
            dst_port: header.dst_port.into(),
            len: header.len.into(),
            type_: header.kind.into(),
            op: header.op.into(),
            flags: header.flags.into(),
            buf_alloc: header.buf_alloc.into(),
            fwd_cnt: header.fwd_cnt.into(),
        }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Header {
    /// Reads a header from its wire form; every pattern of bytes is one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut wire = VirtioVsockHdr::default();
        vm_memory::ByteValued::as_mut_slice(&mut wire).copy_from_slice(bytes);
        wire.into()
    }

    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(vm_memory::ByteValued::as_slice(&VirtioVsockHdr::from(self)));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let bytes: [u8; 44] = std::array::from_fn(|i| i as u8 + 1);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0807_0605_0403_0201);
        assert_eq!(header.dst_cid, 0x100f_0e0d_0c0b_0a09);
        assert_eq!(header.src_port, 0x1413_1211);
        assert_eq!(header.dst_port, 0x1817_1615);
        assert_eq!(header.len, 0x1c1b_1a19);
        assert_eq!(header.kind, 0x1e1d);
        assert_eq!(header.op, 0x201f);
        assert_eq!(header.flags, 0x2423_2221);
        assert_eq!(header.buf_alloc, 0x2827_2625);
        assert_eq!(header.fwd_cnt, 0x2c2b_2a29);
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn operations_and_shutdown_flags_survive_the_wire() {
        for number in 0..=u16::MAX {
            match Op::from_number(number) {
                Some(op) => assert_eq!(op.number(), number),
                None => assert!(!(1..=7).contains(&number)),
            }
        }
        for flags in 0..=3 {
            assert_eq!(Shutdown::from_flags(flags).flags(), flags);
        }
        assert!(Shutdown::from_flags(u32::MAX).is_both());
    }
}
