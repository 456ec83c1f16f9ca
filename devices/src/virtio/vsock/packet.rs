//! Packet headers, VIRTIO 1.2 section 5.10.6.

/// Size of a packet header in bytes.
pub const HEADER_BYTES: usize = 44;

/// The host's well-known context identifier.
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type of socket that the device serves.
pub const TYPE_STREAM: u16 = 1;

/// What a packet is for (`VIRTIO_VSOCK_OP_*`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Accepts a connection.
    Response,
    /// Refuses, aborts or forgets a connection.
    Reset,
    /// Announces that the sender won't receive or won't send any more; see [`Shutdown`].
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

/// A packet header, `struct virtio_vsock_hdr`.
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

impl Header {
    /// Reads a header from its wire form; every pattern of bytes is one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// The wire form.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The `N` bytes at `offset`, which lies within the header.
fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], offset: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[offset + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|i| i as u8 + 1);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0807_0605_0403_0201);
        assert_eq!(header.dst_port, 0x1817_1615);
        assert_eq!(header.len, 0x1c1b_1a19);
        assert_eq!((header.kind, header.op), (0x1e1d, 0x201f));
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
