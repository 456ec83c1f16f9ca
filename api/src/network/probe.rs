//! A question to passt, as the guest would ask it: whoever answers is ready.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bellows_vmm::MacAddress;

use super::plan::Addresses;

/// Most bytes of an answer that is believed.
const MAX_ANSWER: u32 = 65557;

/// Asks for the gateway's hardware address, and waits for one packet.
///
/// # Errors
/// The other side has closed the stream, or says nothing for as long as `limit`.
pub(super) fn ask(mut stream: &UnixStream, mac: MacAddress, addresses: &Addresses, limit: Duration) -> io::Result<()> {
    let question = match (addresses.guest, addresses.gateway) {
        (IpAddr::V4(guest), IpAddr::V4(gateway)) => arp(mac, guest, gateway),
        (IpAddr::V6(guest), IpAddr::V6(gateway)) => solicitation(mac, guest, gateway),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    stream.set_read_timeout(Some(limit))?;
    let length = (question.len() as u32).to_be_bytes();
    stream.write_all(&[&length[..], &question].concat())?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > MAX_ANSWER {
        let text = format!("it answers with a packet of {length} bytes: expected at most {MAX_ANSWER}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    stream.read_exact(&mut vec![0; length as usize])
}

/// Who has the address `gateway` (RFC 826)?
fn arp(mac: MacAddress, guest: Ipv4Addr, gateway: Ipv4Addr) -> Vec<u8> {
    let mac = mac.bytes();
    // To all, about Ethernet and IPv4: a request.
    let header = [0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xff; 6][..], &mac, &[8, 6], &header, &mac, &guest.octets(), &[0; 6], &gateway.octets()].concat()
}

/// The same for IPv6 (RFC 4861, section 4.3).
fn solicitation(mac: MacAddress, guest: Ipv6Addr, gateway: Ipv6Addr) -> Vec<u8> {
    let mac = mac.bytes();
    let [.., a, b, c] = gateway.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &gateway.octets(), &[1, 1], &mac].concat();
    let [high, low] = (message.len() as u16).to_be_bytes();
    // With the pseudo-header of RFC 8200, section 8.1.
    let pseudo = [&guest.octets()[..], &group.octets(), &[0, 0, high, low, 0, 0, 0, 58]].concat();
    let sum = checksum(&[&pseudo[..], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let to = [0x33, 0x33, 0xff, a, b, c];
    let ip = [&[0x60, 0, 0, 0, high, low, 58, 255][..], &guest.octets(), &group.octets()].concat();
    [&to[..], &mac, &[0x86, 0xdd], &ip, &message].concat()
}

/// Of an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::host::{NameServers, Routes};
    use super::super::plan::Plan;
    use super::*;

    fn mac() -> MacAddress {
        MacAddress::new([2, 0, 0, 0, 0, 1]).unwrap()
    }

    fn addresses(ipv6: bool) -> Addresses {
        let routes = Routes { ipv4: !ipv6, ipv6 };
        Plan::new(routes, &NameServers::default(), Vec::new(), false).unwrap().addresses[0]
    }

    #[test]
    fn an_answer_is_one_packet() {
        for ipv6 in [false, true] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let host = thread::spawn(move || {
                let mut length = [0; 4];
                theirs.read_exact(&mut length).unwrap();
                let mut question = vec![0; u32::from_be_bytes(length) as usize];
                theirs.read_exact(&mut question).unwrap();
                theirs.write_all(&[0, 0, 0, 3, 1, 2, 3, 9]).unwrap();
                (theirs, question)
            });
            ask(&ours, mac(), &addresses(ipv6), Duration::from_secs(60)).unwrap();
            let (_theirs, question) = host.join().unwrap();
            assert_eq!(question.len(), if ipv6 { 14 + 40 + 32 } else { 14 + 28 });
            assert_eq!(question[6..12], mac().bytes());
            let mut rest = [0; 1];
            (&ours).read_exact(&mut rest).unwrap();
            assert_eq!(rest, [9], "what follows is the VM's");
        }
    }

    #[test]
    fn the_checksum_of_a_solicitation_is_right() {
        let Addresses { guest: IpAddr::V6(guest), gateway: IpAddr::V6(gateway), .. } = addresses(true) else {
            panic!()
        };
        let packet = solicitation(mac(), guest, gateway);
        let pseudo = [&packet[22..54], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        assert_eq!(checksum(&[&pseudo, &packet[54..]].concat()), 0);
    }

    #[test]
    fn no_answer_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let error = ask(&ours, mac(), &addresses(false), Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        (&theirs).write_all(&[0xff; 4]).unwrap();
        let error = ask(&ours, mac(), &addresses(false), Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().contains("4294967295"), "{error}");
        drop(theirs);
        let error = ask(&ours, mac(), &addresses(false), Duration::from_secs(60)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe), "{error}");
    }
}
