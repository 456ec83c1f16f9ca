use proptest::prelude::*;

use super::*;

const MESSAGE: MsiMessage = MsiMessage { address: 0x1_fee0_1000, data: 0x4021 };

fn table() -> MsixTable {
    let mut table = MsixTable::new(3);
    assert_eq!(table.write(16, &0xfee0_1003u32.to_le_bytes()), Some(1));
    assert_eq!(table.write(20, &1u32.to_le_bytes()), Some(1));
    assert_eq!(table.write(24, &0x4021u64.to_le_bytes()), Some(1));
    table
}

#[test]
fn a_vector_delivers_when_nothing_masks_it() {
    let mut table = table();
    assert_eq!(table.delivery(1), Delivery::Off);
    table.set_control(CONTROL_ENABLE | CONTROL_MASK_ALL);
    assert_eq!(table.delivery(1), Delivery::Masked);
    table.set_control(CONTROL_ENABLE);
    assert_eq!(table.delivery(1), Delivery::To(MESSAGE));
    assert_eq!(table.delivery(0), Delivery::Masked, "as after reset");
    table.write(28, &1u32.to_le_bytes());
    assert_eq!(table.delivery(1), Delivery::Masked);
    assert_eq!(table.delivery(3), Delivery::Off, "there is no vector 3");
}

#[test]
fn the_table_reads_back_what_can_be_written() {
    let mut table = MsixTable::new(2);
    for offset in (0..32).step_by(8) {
        table.write(offset, &[0xff; 8]);
    }
    let mut words = [0; 8];
    table.read(0, &mut words);
    assert_eq!(words, [0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    table.read(8, &mut words);
    assert_eq!(words, [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
}

#[test]
fn odd_accesses_are_dropped() {
    let mut table = table();
    for (offset, len) in [(16, 1), (16, 2), (17, 4), (20, 8), (48, 4), (u64::MAX, 4), (u64::MAX - 7, 8), (0, 0)] {
        assert_eq!(table.write(offset, &vec![0; len]), None, "{offset:#x}, {len}");
        let mut data = vec![0xaa; len];
        table.read(offset, &mut data);
        assert_eq!(data, vec![0; len]);
    }
    table.set_control(CONTROL_ENABLE);
    assert_eq!(table.delivery(1), Delivery::To(MESSAGE));
}

proptest! {
    #[test]
    fn no_access_fails(accesses in prop::collection::vec((0u64..4096, 0usize..=8, any::<u64>(), any::<u16>()), 0..50)) {
        let mut table = MsixTable::new(17);
        for (offset, len, value, control) in accesses {
            let mut data = value.to_le_bytes();
            if let Some(vector) = table.write(offset, &data[..len]) {
                prop_assert!(vector < 17);
            }
            table.read(offset, &mut data[..len]);
            table.set_control(control);
            for vector in 0..18 {
                let _ = table.delivery(vector);
            }
        }
    }
}
