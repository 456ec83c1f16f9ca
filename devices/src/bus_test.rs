use std::sync::Mutex;

use super::*;

/// Answers with its number and the offset; remembers writes.
struct Probe {
    number: u8,
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Probe {
    fn new(number: u8) -> Arc<Self> {
        Arc::new(Self { number, writes: Mutex::default() })
    }
}

impl BusDevice for Probe {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(self.number + offset as u8);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.writes.lock().unwrap().push((offset, data.to_vec()));
    }
}

#[test]
fn an_access_reaches_the_device_at_its_address() {
    let bus = Bus::new();
    let (low, high) = (Probe::new(0x10), Probe::new(0x20));
    bus.insert(0x1000, 0x10, low.clone()).unwrap();
    bus.insert(0x1010, 0x10, high.clone()).unwrap();

    let mut data = [0; 2];
    assert!(bus.read(0x100e, &mut data));
    assert_eq!(data, [0x1e; 2]);
    assert!(bus.read(0x1010, &mut data));
    assert_eq!(data, [0x20; 2]);
    assert!(bus.write(0x1011, &[7]));
    assert_eq!(*high.writes.lock().unwrap(), [(1, vec![7])]);
    assert!(low.writes.lock().unwrap().is_empty());
}

#[test]
fn unclaimed_reads_return_ones_and_unclaimed_writes_are_dropped() {
    let bus = Bus::new();
    let device = Probe::new(0);
    bus.insert(0x1000, 0x10, device.clone()).unwrap();
    for address in [0, 0xfff, 0x1010, u64::MAX - 1, u64::MAX] {
        let mut data = [0; 4];
        assert!(!bus.read(address, &mut data), "{address:#x}");
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.write(address, &data), "{address:#x}");
    }
    // Begins inside, ends outside.
    let mut data = [0; 4];
    assert!(!bus.read(0x100e, &mut data));
    assert_eq!(data, [0xff; 4]);
    assert!(!bus.write(0x100e, &data));
    assert!(!bus.write(0x1000, &[]));
    assert!(device.writes.lock().unwrap().is_empty());
}

#[test]
fn an_error_names_the_overlapping_ranges() {
    let bus = Bus::new();
    bus.insert(0x1000, 0x1000, Probe::new(0)).unwrap();
    for (base, len) in [(0x1000, 0x1000), (0xfff, 2), (0x1fff, 1), (0x1800, 0x10), (0, 0x10000)] {
        let error = bus.insert(base, len, Probe::new(1)).unwrap_err();
        assert!(error.to_string().contains("0x1000..=0x1fff"), "{error}");
        assert!(error.to_string().contains(&format!("{base:#x}..=")), "{error}");
    }
    bus.insert(0x2000, 1, Probe::new(1)).unwrap();
    bus.insert(0xfff, 1, Probe::new(1)).unwrap();
    for (base, len) in [(0, 0), (u64::MAX, 2), (2, u64::MAX)] {
        assert_eq!(bus.insert(base, len, Probe::new(1)), Err(BusError::NoRange { base, len }));
    }
    bus.insert(u64::MAX, 1, Probe::new(1)).unwrap();
}

#[test]
fn a_removed_range_is_free_again() {
    let bus = Bus::new();
    bus.insert(0x1000, 0x10, Probe::new(0)).unwrap();
    assert!(bus.remove(0x1001).is_none());
    assert!(bus.remove(0x1000).is_some());
    assert!(!bus.write(0x1000, &[0]));
    bus.insert(0x1008, 0x10, Probe::new(0)).unwrap();
}

#[test]
fn a_device_may_move_itself_from_within_a_write() {
    struct Mover(std::sync::Weak<Bus>);
    impl BusDevice for Mover {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {
            let bus = self.0.upgrade().unwrap();
            let me = bus.remove(0x1000).unwrap();
            bus.insert(0x2000, 0x10, me).unwrap();
        }
    }
    let bus = Arc::new(Bus::new());
    bus.insert(0x1000, 0x10, Arc::new(Mover(Arc::downgrade(&bus)))).unwrap();
    assert!(bus.write(0x1000, &[0]));
    assert!(!bus.write(0x1000, &[0]));
    assert!(bus.read(0x2000, &mut [0]));
}
