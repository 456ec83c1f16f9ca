use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn layout(base: ByteSize, windows: &[ByteSize]) -> Result<Layout, LayoutError> {
    Layout::new(&LayoutSpec::x86_64(base, windows.to_vec(), 46))
}

#[test]
fn small_base_memory_is_one_range() {
    let layout = layout(ByteSize::mib(512), &[ByteSize::gib(1), ByteSize::mib(130)]).unwrap();
    assert_eq!((layout.low().start().0, layout.low().bytes()), (0, 512 << 20));
    assert_eq!(layout.high(), None);
    let windows: Vec<_> =
        layout.windows().iter().map(|w| (w.id().get(), w.range().start().0, w.range().bytes())).collect();
    let first = 4 * GIB + (128 << 20);
    assert_eq!(windows, [(1, first, GIB), (2, first + GIB, 256 << 20)]);
    assert_eq!(layout.devices().start().0, 6 * GIB);
    assert_eq!(layout.devices().end().0, 1 << 46);
}

#[test]
fn large_base_memory_goes_on_behind_the_hole() {
    let layout = layout(ByteSize::gib(8), &[ByteSize::gib(1)]).unwrap();
    assert_eq!(layout.low().end().0, 3 * GIB);
    assert_eq!(layout.high().map(|high| (high.start().0, high.bytes())), Some((4 * GIB, 5 * GIB)));
    assert_eq!(layout.base().map(AddressRange::bytes).sum::<u64>(), 8 * GIB);
    assert_eq!(layout.windows()[0].range().start().0, 9 * GIB + (128 << 20));
}

#[test]
fn base_memory_grows_into_a_window_before_those_of_partitions() {
    let spec = LayoutSpec::x86_64(ByteSize::mib(512), vec![ByteSize::gib(1)], 46);
    assert_eq!(Layout::new(&spec).unwrap().growth(), None);
    let layout = Layout::new(&LayoutSpec { growth: ByteSize::mib(130), ..spec.clone() }).unwrap();
    let (growth, start) = (layout.growth().unwrap(), 4 * GIB + (128 << 20));
    assert_eq!((growth.id(), growth.size()), (PartitionId::BASE, ByteSize::mib(130)));
    assert_eq!((growth.range().start().0, growth.range().bytes()), (start, 256 << 20));
    assert_eq!(layout.windows()[0].range().start().0, start + (256 << 20));
    assert_eq!((PartitionId::new(0), PartitionId::BASE.to_string()), (None, "0 (base memory)".into()));
    let error = Layout::new(&LayoutSpec { growth: ByteSize::kib(4), ..spec }).unwrap_err().to_string();
    assert_eq!(error, "base memory grows by 4 KiB: expected a multiple of 2 MiB");
}

#[test]
fn memory_blocks_grow_with_the_end_of_base_memory() {
    assert_eq!(layout(ByteSize::gib(62), &[]).unwrap().memory_block(), 128 << 20);
    let large = layout(ByteSize::gib(63), &[ByteSize::mib(512)]).unwrap();
    assert_eq!(large.memory_block(), 2 * GIB);
    assert_eq!((large.windows()[0].range().start().0, large.windows()[0].range().bytes()), (66 * GIB, 2 * GIB));
    assert_eq!(large.windows()[0].size(), ByteSize::mib(512), "what was asked for, whatever its addresses take");
}

#[test]
fn errors_name_the_value() {
    let many = vec![ByteSize::mib(128); 256];
    for (base, windows, expected) in [
        (ByteSize::bytes(0), vec![], "base memory is 0 bytes: expected a multiple of 2 MiB"),
        (ByteSize::mib(3), vec![], "base memory is 3 MiB: expected a multiple of 2 MiB"),
        (ByteSize::bytes(!0x1f_ffff), vec![], "do not fit below 64 TiB"),
        (ByteSize::gib(1 << 20), vec![], "base memory of 1024 TiB, its growth and 0 partition windows"),
        (ByteSize::gib(1), vec![ByteSize::gib(1), ByteSize::bytes(0)], "partition 2 has a window of 0 bytes"),
        (ByteSize::gib(1), vec![ByteSize::kib(4)], "partition 1 has a window of 4 KiB: expected a multiple of 2 MiB"),
        (ByteSize::gib(1), vec![ByteSize::bytes(!0x1f_ffff); 3], "do not fit below"),
        (ByteSize::gib(1), many, "256 partitions: expected at most 255"),
    ] {
        let error = layout(base, &windows).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let spec = LayoutSpec { address_bits: 64, ..LayoutSpec::x86_64(ByteSize::gib(1), vec![], 46) };
    assert_eq!(Layout::new(&spec), Err(LayoutError::AddressBits(64)));
    let spec = LayoutSpec { hole_end: GuestAddress(1 << 21), ..LayoutSpec::x86_64(ByteSize::gib(1), vec![], 46) };
    assert!(matches!(Layout::new(&spec), Err(LayoutError::Hole { .. })));
    assert!(serde_id(0).is_err() && serde_id(256).is_err());
    assert_eq!(serde_id(255).unwrap().get(), 255);
}

fn serde_id(number: u16) -> Result<PartitionId, LayoutError> {
    PartitionId::try_from(number)
}

proptest! {
    #[test]
    fn everything_is_aligned_and_apart(base in 1_u64..(100 << 9), windows in prop::collection::vec(1_u64..4096, 0..20)) {
        let windows: Vec<_> = windows.into_iter().map(|blocks| ByteSize::mib(2 * blocks)).collect();
        let layout = layout(ByteSize::mib(2 * base), &windows).unwrap();
        let mut end = layout.base().last().unwrap().end().0;
        prop_assert_eq!(layout.base().map(AddressRange::bytes).sum::<u64>(), base << 21);
        for (index, (window, asked)) in layout.windows().iter().zip(&windows).enumerate() {
            let gap = if index == 0 { layout.memory_block() } else { 0 };
            prop_assert!(window.range().start().0 >= end + gap);
            prop_assert!(window.range().start().0.is_multiple_of(layout.memory_block()));
            prop_assert!(window.range().bytes().is_multiple_of(layout.memory_block()));
            prop_assert!(window.range().bytes() >= asked.get());
            prop_assert!(window.range().bytes() < asked.get() + layout.memory_block());
            end = window.range().end().0;
        }
        prop_assert!(layout.devices().start().0 >= end);
    }
}
