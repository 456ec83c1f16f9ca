//! Changes to network interfaces over rtnetlink (`rtnetlink(7)`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use bellows_protocol::network::InterfaceAddress;
use nix::sys::socket::SockProtocol;

use crate::netlink::{self, Socket, attribute};

/// Of an IPv6 address: the kernel does not look for another host that has it, so it can be used at once.
const NO_DUPLICATE_DETECTION: u32 = libc::IFA_F_NODAD;
const REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
/// Flag of a route whose gateway is on the link, whatever the addresses there (linux/rtnetlink.h).
const ONLINK: u32 = 4;

/// The interfaces, addresses and routes of the network namespace of the thread that has opened it.
#[derive(Debug)]
pub struct Routing(Socket);

impl Routing {
    /// Opens it.
    ///
    /// # Errors
    /// Those of `socket(2)`.
    pub fn open() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkRoute)?.explaining().map(Self)
    }

    /// Renames the interface with this number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rename(&self, index: u32, name: &str) -> io::Result<()> {
        self.change_link(index, 0, &attribute(libc::IFLA_IFNAME, &terminated(name)))
    }

    /// Sets it up, or down.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        self.change_link(index, if up { libc::IFF_UP as u32 } else { 0 }, &[])
    }

    /// With the flag `IFF_UP` as `flags` says if there are no attributes.
    fn change_link(&self, index: u32, flags: u32, attributes: &[u8]) -> io::Result<()> {
        let mask = if attributes.is_empty() { libc::IFF_UP as u32 } else { 0 };
        self.change(libc::RTM_NEWLINK, 0, &[&link(index, flags, mask), attributes])
    }

    /// Gives it an address, at which it may be already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_address(&self, index: u32, address: InterfaceAddress) -> io::Result<()> {
        let bytes = octets(address.address());
        // struct ifaddrmsg
        let header = [&[family(address.address()), address.prefix(), 0, 0][..], &index.to_ne_bytes()].concat();
        let mut attributes = [attribute(libc::IFA_LOCAL, &bytes), attribute(libc::IFA_ADDRESS, &bytes)].concat();
        match address.address() {
            IpAddr::V4(own) if address.prefix() < 31 => {
                let broadcast = own.to_bits() | u32::MAX >> address.prefix();
                attributes.extend(attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes()));
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(_) => attributes.extend(attribute(libc::IFA_FLAGS, &NO_DUPLICATE_DETECTION.to_ne_bytes())),
        }
        self.change(libc::RTM_NEWADDR, REPLACE, &[&header, &attributes])
    }

    /// Sends packets for all networks that have no route of their own over it to `gateway`. Of the routes of several interfaces that
    /// with the lowest `metric` is taken. With `on_link`, the gateway is reached though it is in no network of its addresses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_default_route(&self, index: u32, gateway: IpAddr, metric: u32, on_link: bool) -> io::Result<()> {
        let flags = if on_link { ONLINK } else { 0 };
        let kind = [libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST];
        // struct rtmsg
        let header = [&[family(gateway), 0, 0, 0][..], &kind, &flags.to_ne_bytes()].concat();
        let attributes = [
            attribute(libc::RTA_GATEWAY, &octets(gateway)),
            attribute(libc::RTA_OIF, &index.to_ne_bytes()),
            attribute(libc::RTA_PRIORITY, &metric.to_ne_bytes()),
        ];
        self.change(libc::RTM_NEWROUTE, REPLACE, &[&header, &attributes.concat()])
    }

    /// Sends packets for `address`, for which there is no route yet, over it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_host_route(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let bytes = octets(address);
        let kind = [libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RT_SCOPE_LINK, libc::RTN_UNICAST];
        // struct rtmsg
        let header = [&[family(address), 8 * bytes.len() as u8, 0, 0][..], &kind, &[0; 4]].concat();
        let attributes = [attribute(libc::RTA_DST, &bytes), attribute(libc::RTA_OIF, &index.to_ne_bytes())].concat();
        self.change(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &[&header, &attributes])
    }

    /// Has the host answer on it for `address`, which is behind another interface, or no longer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn answer_for(&self, index: u32, address: IpAddr, answer: bool) -> io::Result<()> {
        let (kind, flags) = if answer { (libc::RTM_NEWNEIGH, REPLACE) } else { (libc::RTM_DELNEIGH, 0) };
        // struct ndmsg
        let header = [&[family(address), 0, 0, 0][..], &index.to_ne_bytes(), &[0, 0, libc::NTF_PROXY, 0]].concat();
        self.change(kind, flags, &[&header, &attribute(libc::NDA_DST, &octets(address))])
    }

    /// Makes a pair of interfaces: one called `name`, the other in `namespace`, called `peer`, with a hardware address. Both go with the
    /// namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_pair(
        &self,
        name: &str,
        mtu: Option<u32>,
        namespace: BorrowedFd<'_>,
        peer: &str,
        hardware_address: Option<[u8; 6]>,
    ) -> io::Result<()> {
        /// linux/veth.h
        const VETH_INFO_PEER: u16 = 1;
        let mtu = mtu.map(|mtu| attribute(libc::IFLA_MTU, &mtu.to_ne_bytes())).unwrap_or_default();
        let hardware_address =
            hardware_address.map(|address| attribute(libc::IFLA_ADDRESS, &address)).unwrap_or_default();
        let peer = [
            link(0, 0, 0),
            attribute(libc::IFLA_IFNAME, &terminated(peer)),
            attribute(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes()),
            mtu.clone(),
            hardware_address,
        ];
        let info = [
            attribute(libc::IFLA_INFO_KIND, b"veth"),
            attribute(libc::IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer.concat())),
        ];
        let attributes =
            [attribute(libc::IFLA_IFNAME, &terminated(name)), mtu, attribute(libc::IFLA_LINKINFO, &info.concat())];
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        self.change(libc::RTM_NEWLINK, flags, &[&link(0, 0, 0), &attributes.concat()])
    }

    /// Removes it, and its other end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_link(&self, index: u32) -> io::Result<()> {
        self.change(libc::RTM_DELLINK, 0, &[&link(index, 0, 0)])
    }

    fn change(&self, kind: u16, flags: i32, content: &[&[u8]]) -> io::Result<()> {
        self.0.ask(&netlink::request(kind, libc::NLM_F_ACK | flags, content), |_| {})
    }
}

/// A `struct ifinfomsg`.
fn link(index: u32, flags: u32, mask: u32) -> Vec<u8> {
    [&[0; 4][..], &index.to_ne_bytes(), &flags.to_ne_bytes(), &mask.to_ne_bytes()].concat()
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}
