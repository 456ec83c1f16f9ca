use bellows_memory::{ByteSize, Layout, LayoutSpec};
use proptest::prelude::*;
use vm_memory::ByteValued as _;

use super::*;

/// The window of partition 2: 256 MiB.
fn window() -> Window {
    let windows = vec![ByteSize::mib(128), ByteSize::mib(256)];
    Layout::new(&LayoutSpec::x86_64(ByteSize::mib(512), windows, 40)).unwrap().windows()[1]
}

fn request(kind: u16, address: u64, blocks: u16) -> VirtioMemReq {
    let mut bytes = [0xee; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    from_bytes(&bytes)
}

fn from_bytes(bytes: &[u8; 24]) -> VirtioMemReq {
    let mut request = VirtioMemReq::default();
    request.as_mut_slice().copy_from_slice(bytes);
    request
}

#[test]
fn requests_are_read_whatever_is_in_the_padding() {
    let start = window().range().start().0;
    let blocks = BlockRange::new(3, 64).unwrap();
    for (kind, expected) in
        [(0, Request::Plug(blocks)), (1, Request::Unplug(blocks)), (2, Request::UnplugAll), (3, Request::State(blocks))]
    {
        assert_eq!(parse(&request(kind, start + (6 << 20), 64), window()), Ok(expected));
    }
    assert_eq!(parse(&request(2, 1, 0), window()), Ok(Request::UnplugAll), "it has no range");
}

#[test]
fn an_error_names_the_fault_of_a_request() {
    let (start, end) = (window().range().start().0, window().range().end().0);
    for (kind, address, blocks, expected) in [
        (4, start, 1, RequestError::Type(4)),
        (u16::MAX, start, 1, RequestError::Type(u16::MAX)),
        (0, start, 0, RequestError::NoBlocks),
        (1, start + 4096, 1, RequestError::Unaligned(start + 4096)),
        (0, start - (2 << 20), 1, RequestError::Outside { address: start - (2 << 20), blocks: 1 }),
        (0, end, 1, RequestError::Outside { address: end, blocks: 1 }),
        (3, end - (2 << 20), 2, RequestError::Outside { address: end - (2 << 20), blocks: 2 }),
        (0, 0, u16::MAX, RequestError::Outside { address: 0, blocks: u16::MAX }),
        (0, !0x1f_ffff, u16::MAX, RequestError::Outside { address: !0x1f_ffff, blocks: u16::MAX }),
    ] {
        assert_eq!(parse(&request(kind, address, blocks), window()), Err(expected));
    }
}

#[test]
fn answers_follow_the_specification() {
    for (answer, kind, state) in [
        (Answer::Done, 0, 0),
        (Answer::Nack, 1, 0),
        (Answer::Busy, 2, 0),
        (Answer::Error, 3, 0),
        (Answer::State(BlockState::Plugged), 0, 0),
        (Answer::State(BlockState::Unplugged), 0, 1),
        (Answer::State(BlockState::Mixed), 0, 2),
    ] {
        assert_eq!(encode(answer).as_slice(), [kind, 0, 0, 0, 0, 0, 0, 0, state, 0], "{answer:?}");
    }
}

proptest! {
    #[test]
    fn a_range_that_is_read_lies_in_the_window(bytes in any::<[u8; 24]>(), offset in -4_i64..140, inside: bool) {
        let mut bytes = bytes;
        if inside {
            bytes[1] = 0;
            bytes[0] %= 4;
            let address = window().range().start().0.wrapping_add_signed(offset << 21);
            bytes[8..16].copy_from_slice(&address.to_le_bytes());
        }
        if let Ok(Request::Plug(range) | Request::Unplug(range) | Request::State(range)) = parse(&from_bytes(&bytes), window()) {
            prop_assert!(range.end() <= 128);
        }
    }
}
