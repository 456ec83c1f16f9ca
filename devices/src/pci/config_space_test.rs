use proptest::prelude::*;

use super::*;
use crate::pci::header::capability;

fn space() -> ConfigSpace {
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: [0x01, 0x80, 0x02],
        subsystem_vendor: 0x1af4,
        subsystem: 0x0042,
    });
    space.add_memory_bar(0, 0x8000).unwrap();
    let mut msix = [0_u8; 12];
    msix[0] = capability::MSIX;
    let mut writable = [0; 12];
    writable[3] = 0xc0;
    space.add_capability(&msix, &writable).unwrap();
    space.add_capability(&[capability::VENDOR, 0, 16, 1, 0], &[0_u8; 5]).unwrap();
    space
}

#[test]
fn the_header_says_what_the_function_is() {
    let space = space();
    assert_eq!(space.u32_at(register::VENDOR), 0x1042_1af4);
    assert_eq!(space.u32_at(register::REVISION), 0x0180_0201);
    assert_eq!(space.u32_at(register::SUBSYSTEM), 0x0042_1af4);
    assert_eq!(space.u16_at(register::STATUS), status::CAPABILITIES);
}

#[test]
fn a_bar_tells_its_size_and_is_answered_while_decoding_is_on() {
    let mut space = space();
    space.write(register::BAR0, &[0xff; 24]);
    assert_eq!(space.u32_at(register::BAR0), 0xffff_8000);
    for bar in 1..6 {
        assert_eq!(space.u32_at(register::BAR0 + 4 * bar), 0, "there is no BAR {bar}");
    }
    space.place_bar(0, 0xc012_ffff);
    assert_eq!(space.u32_at(register::BAR0), 0xc012_8000);
    assert_eq!(space.bar_address(0), None);
    space.write(register::COMMAND, &[0xff, 0xff]);
    assert_eq!(space.u16_at(register::COMMAND), command::MEMORY | command::MASTER | command::INTX_DISABLE);
    assert_eq!(space.bar_address(0), Some(0xc012_8000));
    assert_eq!([space.bar_address(1), space.bar_address(6), space.bar_address(255)], [None; 3]);
}

#[test]
fn capabilities_are_linked_in_order() {
    let space = space();
    let mut at = register::CAPABILITIES;
    let mut found = Vec::new();
    loop {
        let mut next = [0];
        space.read(at, &mut next);
        if next == [0] {
            break;
        }
        let capability = u16::from(next[0]);
        let mut id = [0];
        space.read(capability, &mut id);
        found.push((capability, id[0]));
        at = capability + 1;
    }
    assert_eq!(found, [(0x40, capability::MSIX), (0x4c, capability::VENDOR)]);
}

#[test]
fn only_bits_meant_for_it_can_be_written() {
    let mut space = space();
    let before: Vec<u32> = (0..64).map(|word| space.u32_at(word * 4)).collect();
    for offset in 0..4096 {
        space.write(offset, &[0xff; 8]);
    }
    let mut allowed = vec![0; 64];
    allowed[1] = 0x0406;
    allowed[4] = 0xffff_8000;
    allowed[0x10] = 0xc000_0000;
    for word in 0..64u16 {
        let changed = space.u32_at(word * 4) ^ before[usize::from(word)];
        assert_eq!(changed, allowed[usize::from(word)], "register {:#x}", word * 4);
    }
    assert_eq!(space.u32_at(0x100), 0, "no extended capabilities");
}

#[test]
fn decoding_is_touched_by_command_and_bars_alone() {
    let touching: Vec<u16> = (0..64).filter(|&offset| ConfigSpace::touches_decoding(offset, 1)).collect();
    let expected: Vec<u16> = [4, 5].into_iter().chain(0x10..0x28).collect();
    assert_eq!(touching, expected);
    assert!(ConfigSpace::touches_decoding(3, 2));
    assert!(ConfigSpace::touches_decoding(8, 8 + 1));
    assert!(!ConfigSpace::touches_decoding(4, 0));
    assert!(!ConfigSpace::touches_decoding(0xffff, 8));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut space = space();
    assert!(space.add_memory_bar(6, 0x1000).is_err());
    assert!(space.add_memory_bar(1, 0x1001).is_err());
    assert!(space.add_memory_bar(1, 8).is_err());
    let error = space.add_capability(&[0_u64; 26], &[0; 26]).unwrap_err();
    assert!(error.to_string().contains("208"), "{error}");
    while space.add_capability(&[0_u8; 16], &[0xff; 16]).is_ok() {}
}

proptest! {
    #[test]
    fn no_access_fails(accesses in prop::collection::vec((any::<u16>(), 0usize..=8, any::<u64>(), any::<bool>()), 0..50)) {
        let mut space = space();
        for (offset, len, value, write) in accesses {
            let mut data = value.to_le_bytes();
            if write {
                space.write(offset, &data[..len]);
            } else {
                space.read(offset, &mut data[..len]);
            }
        }
        prop_assert_eq!(space.u32_at(register::VENDOR), 0x1042_1af4);
    }
}
