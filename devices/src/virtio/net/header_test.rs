use proptest::prelude::*;

use super::*;

const ALL: u64 = u64::MAX;

fn tcp() -> VirtioNetHdr {
    VirtioNetHdr {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54.into(),
        gso_size: 1460.into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        num_buffers: 0.into(),
    }
}

#[test]
fn what_was_agreed_upon_passes_and_nothing_else() {
    let tcp6 = VirtioNetHdr { gso_type: GSO_TCPV6, ..tcp() };
    let sum = VirtioNetHdr { gso_type: GSO_NONE, gso_size: 0.into(), hdr_len: 0.into(), ..tcp() };
    let plain = VirtioNetHdr::default();
    for (header, to_host_needs, to_guest_needs) in [
        (plain, 0, 0),
        (sum, feature::CSUM, feature::GUEST_CSUM),
        (tcp(), feature::CSUM | feature::HOST_TSO4, feature::GUEST_CSUM | feature::GUEST_TSO4),
        (tcp6, feature::CSUM | feature::HOST_TSO6, feature::GUEST_CSUM | feature::GUEST_TSO6),
    ] {
        assert_eq!(to_host(&header, 4000, to_host_needs), Ok(header));
        let received = VirtioNetHdr { num_buffers: 3.into(), ..header };
        assert_eq!(to_guest(&header, 4000, to_guest_needs, 3), Ok(received));
        for bit in (0..64).map(|bit| 1_u64 << bit) {
            if to_host_needs & bit != 0 {
                to_host(&header, 4000, ALL & !bit).unwrap_err();
            }
            if to_guest_needs & bit != 0 {
                to_guest(&header, 4000, ALL & !bit, 1).unwrap_err();
            }
        }
    }
}

#[test]
fn places_outside_the_packet_are_refused() {
    let at = |start: u16, offset: u16| VirtioNetHdr {
        flags: HDR_F_NEEDS_CSUM,
        csum_start: start.into(),
        csum_offset: offset.into(),
        ..VirtioNetHdr::default()
    };
    assert!(to_host(&at(34, 16), 52, ALL).is_ok());
    for (start, offset, bytes) in [(34, 16, 51), (13, 16, 100), (65535, 65535, 65535), (99, 0, 100)] {
        let error = to_host(&at(start, offset), bytes, ALL).unwrap_err();
        assert_eq!(error, Rejection::ChecksumPlace { start, offset, bytes });
    }
    // They mean nothing without the flag, and do not reach the host.
    let unused = VirtioNetHdr { flags: 0, ..at(65535, 65535) };
    assert_eq!(to_host(&unused, 60, ALL), Ok(VirtioNetHdr::default()));
}

#[test]
fn impossible_segments_are_refused() {
    for header in [VirtioNetHdr { gso_size: 0.into(), ..tcp() }, VirtioNetHdr { flags: 0, ..tcp() }] {
        assert!(matches!(to_host(&header, 4000, ALL), Err(Rejection::Segments { .. })));
    }
    // UDP, UDP segments, and the bit of congestion notices: none is offered.
    for gso_type in [2, 3, 5, 0x80 | GSO_TCPV4, 0xff] {
        let header = VirtioNetHdr { gso_type, ..tcp() };
        assert_eq!(to_host(&header, 4000, ALL), Err(Rejection::Segmentation(gso_type)));
    }
    let long = VirtioNetHdr { hdr_len: 65535.into(), ..tcp() };
    assert_eq!(to_host(&long, 100, ALL).unwrap().hdr_len.to_native(), 100);
}

#[test]
fn flags_of_the_other_direction_are_ignored() {
    let header = VirtioNetHdr { flags: HDR_F_DATA_VALID | 0xfc, ..VirtioNetHdr::default() };
    assert_eq!(to_host(&header, 60, ALL).unwrap().flags, 0);
    assert_eq!(to_guest(&header, 60, ALL, 1).unwrap().flags, HDR_F_DATA_VALID);
    assert_eq!(to_guest(&header, 60, 0, 1).unwrap().flags, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What the host gets never refers to anything outside the packet, or to what was not agreed upon.
    #[test]
    fn what_reaches_the_host_is_sound(bytes: [u8; 12], frame in 14_u64..66_000, features: u64) {
        use vm_memory::ByteValued as _;
        let mut header = VirtioNetHdr::default();
        header.as_mut_slice().copy_from_slice(&bytes);
        if let Ok(header) = to_host(&header, frame, features) {
            let end = u64::from(header.csum_start.to_native()) + u64::from(header.csum_offset.to_native()) + 2;
            prop_assert!(header.flags & HDR_F_NEEDS_CSUM == 0 || end <= frame && features & feature::CSUM != 0);
            prop_assert!(header.gso_type == GSO_NONE || header.gso_size.to_native() > 0);
            prop_assert!(u64::from(header.hdr_len.to_native()) <= frame);
            prop_assert_eq!(to_host(&header, frame, features), Ok(header));
        }
    }
}
