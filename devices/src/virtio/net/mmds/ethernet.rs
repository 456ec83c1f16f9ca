//! What frames say around the service's packets: which are for it, who sent them, and who has its address.

use std::net::Ipv4Addr;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IPV4_HEADER_LEN, Ipv4Packet,
};

/// The service's hardware address, which is Firecracker's.
pub(super) const MAC: EthernetAddress = EthernetAddress([0x06, 0x01, 0x23, 0x45, 0x67, 0x01]);
/// Bytes of a frame before its packet.
pub(super) const ETHERNET_BYTES: usize = 14;
/// Bytes of ARP for IPv4.
const ARP_BYTES: usize = 28;
/// Bytes from the start of a frame that tell whether it is for the service.
pub(super) const HEAD: usize = ETHERNET_BYTES + ARP_BYTES;

/// What a frame for the service wants.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Wanted<'a> {
    /// The service's hardware address: this is the frame that tells it.
    Answer(Vec<u8>),
    /// An IPv4 packet, and the hardware address that it comes from.
    Packet(&'a [u8], EthernetAddress),
    /// Nothing that has an answer.
    Nothing,
}

/// Whether a frame that begins with `head` is for the service at `address`: ARP that asks for it or answers it, and IPv4 to it.
pub(super) fn is_for(head: &[u8], address: Ipv4Addr) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(head) else { return false };
    match frame.ethertype() {
        EthernetProtocol::Ipv4 if frame.payload().len() >= IPV4_HEADER_LEN => {
            Ipv4Packet::new_unchecked(frame.payload()).dst_addr() == address
        }
        EthernetProtocol::Arp => ArpPacket::new_checked(frame.payload())
            .is_ok_and(|packet| packet.protocol_len() == 4 && packet.target_protocol_addr() == address.octets()),
        _ => false,
    }
}

/// Reads a frame that is for the service at `address`.
pub(super) fn read(frame: &[u8], address: Ipv4Addr) -> Wanted<'_> {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return Wanted::Nothing };
    let from = frame.src_addr();
    match frame.ethertype() {
        EthernetProtocol::Ipv4 if from.is_unicast() => Wanted::Packet(frame.payload(), from),
        EthernetProtocol::Arp => answer(frame.payload(), address).map_or(Wanted::Nothing, Wanted::Answer),
        _ => Wanted::Nothing,
    }
}

/// The frame that answers ARP for `address`, if `packet` asks for it.
fn answer(packet: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let asked = ArpRepr::parse(&ArpPacket::new_checked(packet).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = asked
    else {
        return None;
    };
    if !source_hardware_addr.is_unicast() || target_protocol_addr != address {
        return None;
    }
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: MAC,
        source_protocol_addr: address,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut frame = vec![0; HEAD];
    envelope(&mut frame, source_hardware_addr, EthernetProtocol::Arp);
    answer.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_BYTES..]));
    Some(frame)
}

/// Writes the first [`ETHERNET_BYTES`] bytes of a frame of the service's.
pub(super) fn envelope(frame: &mut [u8], to: EthernetAddress, kind: EthernetProtocol) {
    let mut frame = EthernetFrame::new_unchecked(frame);
    frame.set_src_addr(MAC);
    frame.set_dst_addr(to);
    frame.set_ethertype(kind);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// ARP of the guest's for `address`.
    fn who_has(address: Ipv4Addr) -> Vec<u8> {
        let mut frame = [[0xff; 6], GUEST].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(GUEST);
        frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        frame.extend(address.octets());
        frame
    }

    #[test]
    fn only_frames_for_its_address_are_the_services() {
        let mut ip = vec![0; 60];
        ip[12..14].copy_from_slice(&[8, 0]);
        ip[30..34].copy_from_slice(&ADDRESS.octets());
        assert!(is_for(&ip, ADDRESS));
        assert!(
            !is_for(&ip, Ipv4Addr::new(169, 254, 169, 253)) && !is_for(&ip[..33], ADDRESS) && !is_for(&[], ADDRESS)
        );
        let arp = who_has(ADDRESS);
        assert!(is_for(&arp, ADDRESS) && !is_for(&arp[..HEAD - 1], ADDRESS));
        let mut other = arp.clone();
        other[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert!(!is_for(&other, ADDRESS));
    }

    #[test]
    fn arp_is_answered_and_nothing_else_of_it() {
        let asked = who_has(ADDRESS);
        let Wanted::Answer(answer) = read(&asked, ADDRESS) else { panic!("no answer") };
        assert_eq!((&answer[..6], &answer[6..12]), (&GUEST[..], MAC.as_bytes()));
        assert_eq!(answer[20..28], [&[0, 2], MAC.as_bytes()].concat());
        assert_eq!(answer[28..], [&ADDRESS.octets()[..], &GUEST, &[10, 0, 0, 2]].concat());
        // An answer of the guest's, and a group as the one that asks.
        for (byte, value) in [(21, 2), (22, 3)] {
            let mut wrong = asked.clone();
            wrong[byte] = value;
            assert_eq!(read(&wrong, ADDRESS), Wanted::Nothing, "{byte}");
        }
        assert_eq!(read(&who_has(Ipv4Addr::new(10, 0, 0, 1)), ADDRESS), Wanted::Nothing);
    }
}
