use bellows_memory::GuestAddress;
use proptest::prelude::*;

use super::*;

const OFFERED: u64 = 1 << 32 | 1 << 29 | 1 << 3;
const LIVE: Live = Live { generation: 9, needs_reset: false };

fn config() -> CommonConfig {
    CommonConfig::new(OFFERED, &[256, 8], 3)
}

fn read(config: &CommonConfig, offset: u64, len: usize) -> u64 {
    let mut data = [0; 8];
    config.read(offset, &mut data[..len], LIVE);
    u64::from_le_bytes(data)
}

fn write_u16(config: &mut CommonConfig, offset: u64, value: u16) -> Effect {
    config.write(offset, &value.to_le_bytes())
}

fn write_u32(config: &mut CommonConfig, offset: u64, value: u32) {
    assert_eq!(config.write(offset, &value.to_le_bytes()), Effect::None);
}

fn status(config: &mut CommonConfig, value: u8) -> Effect {
    config.write(field::DEVICE_STATUS, &[value])
}

fn accept(config: &mut CommonConfig, features: u64) {
    for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        write_u32(config, field::DRIVER_FEATURE_SELECT, select);
        write_u32(config, field::DRIVER_FEATURE, half);
    }
}

#[test]
fn features_come_in_halves() {
    let mut config = config();
    for (select, expected) in [(0, 1 << 29 | 1 << 3), (1, 1), (2, 0), (u32::MAX, 0)] {
        write_u32(&mut config, field::DEVICE_FEATURE_SELECT, select);
        assert_eq!(read(&config, field::DEVICE_FEATURE, 4), expected);
    }
    write_u32(&mut config, field::DRIVER_FEATURE_SELECT, 2);
    write_u32(&mut config, field::DRIVER_FEATURE, u32::MAX);
    accept(&mut config, 1 << 32 | 1 << 3);
    assert_eq!(config.features(), 1 << 32 | 1 << 3);
}

#[test]
fn status_goes_forward_only() {
    let mut config = config();
    assert_eq!(status(&mut config, 1), Effect::None);
    assert_eq!(status(&mut config, 3), Effect::None);
    assert_eq!(status(&mut config, 15), Effect::None);
    assert_eq!(read(&config, field::DEVICE_STATUS, 1), 3, "no feature was accepted, not even VERSION_1");
    accept(&mut config, 1 << 32 | 1 << 4);
    status(&mut config, 11);
    assert_eq!(read(&config, field::DEVICE_STATUS, 1), 3, "bit 4 was not offered");
    accept(&mut config, 1 << 32);
    status(&mut config, 11);
    assert_eq!(read(&config, field::DEVICE_STATUS, 1), 11);
    accept(&mut config, OFFERED);
    assert_eq!(config.features(), 1 << 32, "agreed features stay");

    assert_eq!(status(&mut config, 1), Effect::None);
    assert_eq!(read(&config, field::DEVICE_STATUS, 1), 11, "bits are not taken back");
    assert_eq!(status(&mut config, 0xff), Effect::Activate);
    assert_eq!(status(&mut config, 15), Effect::None, "activated once");
    assert_eq!(read(&config, field::DEVICE_STATUS, 1), 0xbf, "NEEDS_RESET is the device's, all else is kept");
    let mut data = [0];
    config.read(field::DEVICE_STATUS, &mut data, Live { needs_reset: true, ..LIVE });
    assert_eq!(data, [0xff]);

    assert_eq!(status(&mut config, 0), Effect::Reset);
    config.reset();
    assert_eq!(read(&config, field::DEVICE_STATUS, 1), 0);
    assert_eq!(config.features(), 0);
}

#[test]
fn a_queue_is_set_up_once() {
    let mut config = config();
    assert_eq!(read(&config, field::NUM_QUEUES, 2), 2);
    assert_eq!(read(&config, field::CONFIG_GENERATION, 1), 9);
    write_u16(&mut config, field::QUEUE_SELECT, 1);
    assert_eq!(read(&config, field::QUEUE_SIZE, 2), 8);
    assert_eq!(read(&config, field::QUEUE_NOTIFY_OFF, 2), 1);
    for size in [0, 3, 16, 0x8000, 0xffff] {
        write_u16(&mut config, field::QUEUE_SIZE, size);
        assert_eq!(read(&config, field::QUEUE_SIZE, 2), 8, "{size}");
    }
    write_u16(&mut config, field::QUEUE_SIZE, 4);
    config.write(field::QUEUE_DESC, &0x1_0000_2000u64.to_le_bytes());
    write_u32(&mut config, field::QUEUE_DRIVER, 0x3000);
    write_u32(&mut config, field::QUEUE_DRIVER + 4, 2);
    assert_eq!(read(&config, field::QUEUE_DESC, 8), 0x1_0000_2000);
    assert_eq!(read(&config, field::QUEUE_DRIVER, 8), 0x2_0000_3000);
    write_u16(&mut config, field::QUEUE_ENABLE, 2);
    assert_eq!(read(&config, field::QUEUE_ENABLE, 2), 0);
    write_u16(&mut config, field::QUEUE_ENABLE, 1);

    write_u16(&mut config, field::QUEUE_SIZE, 2);
    write_u16(&mut config, field::QUEUE_ENABLE, 0);
    config.write(field::QUEUE_DESC, &[0xff; 8]);
    write_u32(&mut config, field::QUEUE_DEVICE, 0x5000);
    assert_eq!(read(&config, field::QUEUE_SIZE, 2), 4);
    assert_eq!(read(&config, field::QUEUE_ENABLE, 2), 1);
    assert_eq!(read(&config, field::QUEUE_DESC, 8), 0x1_0000_2000);
    assert_eq!(read(&config, field::QUEUE_DEVICE, 8), 0);

    write_u16(&mut config, field::QUEUE_SELECT, 0);
    assert_eq!(read(&config, field::QUEUE_SIZE, 2), 256, "queue 0 is another");
    write_u16(&mut config, field::QUEUE_SELECT, 2);
    write_u16(&mut config, field::QUEUE_ENABLE, 1);
    assert_eq!(read(&config, field::QUEUE_SIZE, 2), 0, "there is no queue 2");
    assert_eq!(write_u16(&mut config, field::QUEUE_MSIX_VECTOR, 0), Effect::None);
}

#[test]
fn vectors_can_change_at_any_time() {
    let mut config = config();
    assert_eq!(write_u16(&mut config, field::CONFIG_MSIX_VECTOR, 2), Effect::ConfigVector(2));
    assert_eq!(write_u16(&mut config, field::CONFIG_MSIX_VECTOR, 3), Effect::ConfigVector(NO_VECTOR));
    assert_eq!(read(&config, field::CONFIG_MSIX_VECTOR, 2), 0xffff);
    write_u16(&mut config, field::QUEUE_ENABLE, 1);
    let effect = write_u16(&mut config, field::QUEUE_MSIX_VECTOR, 1);
    assert_eq!(effect, Effect::QueueVector { queue: 0, vector: 1 });
    assert_eq!(read(&config, field::QUEUE_MSIX_VECTOR, 2), 1);
}

#[test]
fn accesses_of_the_wrong_width_are_dropped() {
    let mut config = config();
    for offset in 0..BYTES + 8 {
        for len in [1, 2, 4, 8] {
            let natural = match offset {
                field::DEVICE_STATUS => len == 1,
                0x10 | 0x16..=0x1f => len == 2 && offset % 2 == 0,
                0x00 | 0x08 | 0x0c => len == 4,
                0x20..0x38 => len >= 4 && offset % len == 0,
                _ => false,
            };
            if !natural {
                let before = format!("{config:?}");
                assert_eq!(config.write(offset, &vec![1; len as usize]), Effect::None);
                assert_eq!(format!("{config:?}"), before, "{offset:#x}, {len}");
            }
        }
    }
    assert_eq!(read(&config, BYTES - 1, 2), 0);
    assert_eq!(read(&config, u64::MAX, 8), 0);
}

#[test]
fn queues_must_lie_in_memory() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0x1000), 0x1_0000)]).unwrap();
    let build = |descriptors: u64, available: u64, used: u64| {
        let mut config = config();
        config.write(field::QUEUE_DESC, &descriptors.to_le_bytes());
        config.write(field::QUEUE_DRIVER, &available.to_le_bytes());
        config.write(field::QUEUE_DEVICE, &used.to_le_bytes());
        write_u16(&mut config, field::QUEUE_ENABLE, 1);
        config.build_queues(&memory)
    };
    let [Some(_), None] = &build(0x1000, 0x2000, 0x3000).unwrap()[..] else { panic!("queue 0 alone") };
    for (d, a, u) in [
        (0, 0x2000, 0x3000),
        (0x1000, 0, 0x3000),
        (0x1000, 0x2000, 0),
        (0x1_0010, 0x2000, 0x3000),
        (!0xf, 0x2000, 0x3000),
        (0x1000, 0x2000, 0x1_0ffc),
        (0x1000, u64::MAX - 1, 0x3000),
    ] {
        let error = build(d, a, u).unwrap_err();
        assert!(matches!(error, QueueError::NotInMemory { queue: 0, .. }), "{error}");
    }
    for (d, a, u) in [(0x1008, 0x2000, 0x3000), (0x1000, 0x2001, 0x3000), (0x1000, 0x2000, 0x3002)] {
        let error = build(d, a, u).unwrap_err();
        assert!(matches!(error, QueueError::Setup { queue: 0, .. }), "{error}");
    }
}

proptest! {
    #[test]
    fn no_sequence_breaks_the_rules(writes in prop::collection::vec((0u64..0x48, 0usize..=8, any::<u64>()), 0..100)) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut config = config();
        let mut active = false;
        for (offset, len, value) in writes {
            match config.write(offset, &value.to_le_bytes()[..len]) {
                Effect::Activate => {
                    prop_assert!(!active);
                    prop_assert_eq!(config.features() & !OFFERED, 0);
                    prop_assert_ne!(config.features() & 1 << 32, 0);
                    active = true;
                }
                Effect::Reset => {
                    config.reset();
                    active = false;
                }
                Effect::ConfigVector(vector) => prop_assert!(vector < 3 || vector == NO_VECTOR),
                Effect::QueueVector { queue, vector } => {
                    prop_assert!(queue < 2 && (vector < 3 || vector == NO_VECTOR));
                }
                Effect::None => {}
            }
            prop_assert_eq!(config.driver_ok(), active);
            let _ = config.build_queues(&memory);
        }
    }
}
