//! Layouts and numbers of VIRTIO 1.2 section 5.1.

use bellows_memory::wire;
use vm_memory::Le16;

wire! {
    /// `struct virtio_net_config`, section 5.1.4, up to the last field that this device has.
    pub struct VirtioNetConfig {
        /// The hardware address, with `VIRTIO_NET_F_MAC`.
        mac: [u8; 6],
        /// [`S_LINK_UP`] or 0, with `VIRTIO_NET_F_STATUS`.
        status: Le16,
        /// Pairs of queues that the device has, with `VIRTIO_NET_F_MQ`.
        max_virtqueue_pairs: Le16,
        /// Largest packet without its link header, with `VIRTIO_NET_F_MTU`.
        mtu: Le16,
    }

    /// `struct virtio_net_hdr`, section 5.1.6: it stands before every packet.
    pub struct VirtioNetHdr {
        /// `VIRTIO_NET_HDR_F_*`.
        flags: u8,
        /// `VIRTIO_NET_HDR_GSO_*`.
        gso_type: u8,
        /// Bytes of the headers of a packet that is to be segmented: a hint.
        hdr_len: Le16,
        /// Bytes of data in each segment.
        gso_size: Le16,
        /// Where the checksum begins to cover the packet.
        csum_start: Le16,
        /// Where the checksum goes, from `csum_start` on.
        csum_offset: Le16,
        /// Buffers that a received packet takes.
        num_buffers: Le16,
    }

    /// The beginning of `struct virtio_net_ctrl`, section 5.1.6.5: of every command on the control queue.
    pub struct VirtioNetCtrl {
        /// `VIRTIO_NET_CTRL_*`: what it is about.
        class: u8,
        /// Which command of its class it is.
        command: u8,
    }

    /// `struct virtio_net_ctrl_mq`, section 5.1.6.5.6.
    pub struct VirtioNetCtrlMq {
        /// Pairs of queues that are to be used: the first so many.
        virtqueue_pairs: Le16,
    }
}

/// Bytes of a [`VirtioNetHdr`].
pub const HEADER_BYTES: usize = size_of::<VirtioNetHdr>();

/// Fewest bytes of a packet: an Ethernet header.
pub const MIN_FRAME: usize = 14;
/// Bytes before the network's packet, with two VLAN tags.
pub const MAX_LINK_HEADER: usize = 14 + 2 * 4;
/// Most bytes of a packet: one of the Internet protocol's largest size behind its link header.
pub const MAX_FRAME: usize = MAX_LINK_HEADER + 65535;

/// The link is up (`VIRTIO_NET_S_LINK_UP`).
pub const S_LINK_UP: u16 = 1;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is not there yet.
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum was found right.
pub const HDR_F_DATA_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_NONE`: one packet.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
pub const GSO_TCPV6: u8 = 4;

/// `VIRTIO_NET_CTRL_MQ`: commands about pairs of queues.
pub const CTRL_MQ: u8 = 4;
/// `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`, with a [`VirtioNetCtrlMq`] behind it.
pub const CTRL_MQ_VQ_PAIRS_SET: u8 = 0;

/// `VIRTIO_NET_OK`: a command was carried out.
pub const OK: u8 = 0;
/// `VIRTIO_NET_ERR`: it was not.
pub const ERR: u8 = 1;

/// Feature bits (section 5.1.3).
pub mod feature {
    /// The device completes checksums.
    pub const CSUM: u64 = 1 << 0;
    /// The driver completes checksums.
    pub const GUEST_CSUM: u64 = 1 << 1;
    /// The device tells the largest packet.
    pub const MTU: u64 = 1 << 3;
    /// The device has a hardware address.
    pub const MAC: u64 = 1 << 5;
    /// The driver takes segments of TCP over IPv4 put together.
    pub const GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes segments of TCP over IPv6 put together.
    pub const GUEST_TSO6: u64 = 1 << 8;
    /// The device cuts TCP over IPv4 into segments.
    pub const HOST_TSO4: u64 = 1 << 11;
    /// The device cuts TCP over IPv6 into segments.
    pub const HOST_TSO6: u64 = 1 << 12;
    /// A received packet may take several buffers.
    pub const MRG_RXBUF: u64 = 1 << 15;
    /// The device tells whether the link is up.
    pub const STATUS: u64 = 1 << 16;
    /// The device has a control queue.
    pub const CTRL_VQ: u64 = 1 << 17;
    /// The device has several pairs of queues.
    pub const MQ: u64 = 1 << 22;

    /// Features that leave packets unfinished for the other side.
    pub const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;

    /// The features of `accepted` that count: those that need another (section 5.1.3.1) only with that.
    #[must_use]
    pub const fn effective(accepted: u64) -> u64 {
        let mut features = accepted;
        if features & CSUM == 0 {
            features &= !(HOST_TSO4 | HOST_TSO6);
        }
        if features & GUEST_CSUM == 0 {
            features &= !(GUEST_TSO4 | GUEST_TSO6);
        }
        if features & CTRL_VQ == 0 {
            features &= !MQ;
        }
        features
    }
}
