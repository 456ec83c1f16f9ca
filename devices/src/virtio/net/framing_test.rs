use proptest::prelude::*;

use super::*;

/// Packets on a stream.
pub(in crate::virtio::net) fn framed(packets: &[Vec<u8>]) -> Vec<u8> {
    packets.iter().flat_map(|packet| [&(packet.len() as u32).to_be_bytes()[..], packet].concat()).collect()
}

/// Packets of `sizes`, no two alike.
pub(in crate::virtio::net) fn packets(sizes: &[usize]) -> Vec<Vec<u8>> {
    let packet = |(number, size): (usize, &usize)| (0..*size).map(|n| (n * 7 + n / 256 + number) as u8).collect();
    sizes.iter().enumerate().map(packet).collect()
}

/// Sizes of packets: mostly small, some of the largest.
pub(in crate::virtio::net) fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![4 => 14_usize..1600, 1 => Just(MAX_FRAME), 1 => 14_usize..=MAX_FRAME];
    proptest::collection::vec(size, 0..12)
}

/// Reads `stream` in steps, over and over those of `steps`: the packets.
fn take(incoming: &mut Incoming, mut stream: &[u8], steps: &[usize]) -> Result<Vec<Vec<u8>>, Oversized> {
    let mut taken = Vec::new();
    let mut steps = steps.iter().cycle();
    loop {
        while let Some(packet) = incoming.take()? {
            taken.push(packet.to_vec());
        }
        if stream.is_empty() {
            return Ok(taken);
        }
        let room = incoming.room();
        assert!(!room.is_empty());
        let bytes = steps.next().copied().unwrap_or(usize::MAX).min(room.len()).min(stream.len());
        room[..bytes].copy_from_slice(&stream[..bytes]);
        incoming.came(bytes);
        stream = &stream[bytes..];
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_come_whole_however_the_stream_is_cut(
        sizes in sizes(),
        steps in proptest::collection::vec(prop_oneof![1_usize..9, 1_usize..200_000], 1..20),
    ) {
        // Any size up to the largest is the device's to judge.
        let sizes: Vec<_> = sizes.into_iter().chain([0, 1]).collect();
        let mut incoming = Incoming::default();
        prop_assert!(take(&mut incoming, &framed(&packets(&sizes)), &steps).unwrap() == packets(&sizes));
        prop_assert_eq!(incoming.left(), 0);
    }

    #[test]
    fn a_length_that_is_too_large_is_refused_before_its_packet_comes(
        sizes in sizes(),
        length in prop_oneof![MAX_FRAME as u32 + 1..=u32::MAX, Just(MAX_FRAME as u32 + 1), Just(u32::MAX)],
        steps in proptest::collection::vec(1_usize..5000, 1..20),
    ) {
        let mut incoming = Incoming::default();
        let stream = [framed(&packets(&sizes)), length.to_be_bytes().to_vec()].concat();
        prop_assert_eq!(take(&mut incoming, &stream, &steps), Err(Oversized(length)));
        // Nor is anything else found afterwards.
        prop_assert_eq!(incoming.take(), Err(Oversized(length)));
    }

    #[test]
    fn a_rest_is_what_was_kept_until_it_is_sent(bytes in 0_usize..=MAX_RECORD, steps in proptest::collection::vec(1_usize..9000, 1..9)) {
        let mut outgoing = Outgoing::default();
        let [packet] = &packets(&[bytes])[..] else { unreachable!() };
        outgoing.keep(|buffer| {
            buffer[..bytes].copy_from_slice(packet);
            bytes
        });
        let (mut sent, mut steps) = (Vec::new(), steps.iter().cycle());
        while !outgoing.rest().is_empty() {
            let step = (*steps.next().unwrap()).min(outgoing.rest().len());
            sent.extend_from_slice(&outgoing.rest()[..step]);
            outgoing.sent(step);
        }
        prop_assert!(&sent == packet);
    }
}

#[test]
fn an_error_says_what_was_announced() {
    assert_eq!(
        Oversized(65558).to_string(),
        "the other side of the stream announced a packet of 65558 bytes: expected at most 65557"
    );
}
