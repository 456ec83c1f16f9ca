use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::pci::config_space::{ConfigSpace, Identity};
use crate::pci::header::register;
use crate::pci::{BarSize, CONVENTIONAL_BYTES};

/// A function with one BAR of 4 KiB that answers with its number.
struct Plain {
    number: u16,
    space: Mutex<ConfigSpace>,
    mapped: Mutex<Option<u64>>,
    removed: AtomicUsize,
}

impl Plain {
    fn new(number: u16) -> Arc<Self> {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: number,
            revision: 0,
            class: [0xff, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        });
        space.add_memory_bar(2, 0x1000).unwrap();
        Arc::new(Self { number, space: Mutex::new(space), mapped: Mutex::default(), removed: AtomicUsize::new(0) })
    }

    fn mapped(&self) -> Option<u64> {
        *self.mapped.lock().unwrap()
    }
}

impl PciFunction for Plain {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        assert!(usize::from(offset) + data.len() <= 4096);
        self.space.lock().unwrap().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        assert!(usize::from(offset) + data.len() <= 4096);
        self.space.lock().unwrap().write(offset, data);
    }

    fn registers(&self) -> Option<[u8; CONVENTIONAL_BYTES]> {
        Some(self.space.lock().unwrap().registers())
    }

    fn bars(&self) -> Vec<BarSize> {
        vec![BarSize { index: 2, bytes: 0x1000 }]
    }

    fn place_bar(&self, index: u8, address: u64) {
        self.space.lock().unwrap().place_bar(index, address as u32);
    }

    fn bar_address(&self, index: u8) -> Option<u64> {
        self.space.lock().unwrap().bar_address(index).map(u64::from)
    }

    fn bar_mapped(&self, index: u8, address: Option<u64>) {
        assert_eq!(index, 2);
        *self.mapped.lock().unwrap() = address;
    }

    fn read_bar(&self, _index: u8, offset: u64, data: &mut [u8]) {
        assert!(offset + data.len() as u64 <= 0x1000);
        data.fill(self.number as u8);
    }

    fn removed(&self) {
        assert_eq!(self.mapped(), None, "unmapped first");
        self.removed.fetch_add(1, Ordering::Relaxed);
    }
}

const LAYOUT: SegmentLayout = SegmentLayout { buses: 3, window_base: 0xc000_0000, window_per_bus: 0x10_0000 };
const BAR2: u16 = register::BAR0 + 8;

fn segment() -> (Arc<Bus>, Arc<PciSegment>) {
    let mmio = Arc::new(Bus::new());
    let segment = PciSegment::new(LAYOUT, &mmio).unwrap();
    (mmio, segment)
}

fn enable(segment: &PciSegment, address: PciAddress) {
    segment.write_config(address, register::COMMAND, &[2, 0]);
}

fn move_bar(segment: &PciSegment, address: PciAddress, to: u32) {
    segment.write_config(address, BAR2, &to.to_le_bytes());
}

#[test]
fn the_guest_finds_a_bridge_and_what_was_added() {
    let (_mmio, segment) = segment();
    let address = segment.add(Plain::new(7)).unwrap();
    let ecam = segment.ecam();
    let mut found = Vec::new();
    for bus in 0..LAYOUT.buses {
        for device in 0..32 {
            for function in 0..8 {
                let here = PciAddress::new(bus, device, function).unwrap();
                let mut id = [0; 4];
                ecam.read(here.ecam_offset(), &mut id);
                if id != [0xff; 4] {
                    found.push((here.to_string(), u32::from_le_bytes(id)));
                }
            }
        }
    }
    assert_eq!(found, [("0000:00:00.0".into(), 0x0008_1b36), (address.to_string(), 0x0007_1234)]);
    assert_eq!(address.to_string(), "0000:00:01.0");
}

#[test]
fn buses_fill_up_one_after_the_other() {
    let (_mmio, segment) = segment();
    let addresses: Vec<_> = (0..95).map(|number| segment.add(Plain::new(number)).unwrap()).collect();
    assert_eq!(addresses[30].to_string(), "0000:00:1f.0");
    assert_eq!(addresses[31].to_string(), "0000:01:00.0");
    assert_eq!(addresses[94].to_string(), "0000:02:1f.0");
    assert_eq!(segment.add(Plain::new(0)), Err(PciError::Full { buses: 3 }));

    for (number, &address) in addresses.iter().enumerate() {
        enable(&segment, address);
        let mut bar = [0; 4];
        segment.read_config(address, BAR2, &mut bar);
        let bar = u64::from(u32::from_le_bytes(bar));
        let window = LAYOUT.window(address.bus()).unwrap();
        assert!(window.first() <= bar && bar <= window.last(), "{address}: {bar:#x}");
        let mut data = [0xff];
        assert!(_mmio.read(bar, &mut data));
        assert_eq!(usize::from(data[0]), number);
    }
    segment.remove(addresses[40]).unwrap();
    assert_eq!(segment.add(Plain::new(0)), Ok(addresses[40]));
}

#[test]
fn bars_follow_and_can_change_places() {
    let (mmio, segment) = segment();
    let (a, b) = (Plain::new(1), Plain::new(2));
    let (at_a, at_b) = (segment.add(a.clone()).unwrap(), segment.add(b.clone()).unwrap());
    assert_eq!(a.mapped(), None, "decoding is off at first");
    enable(&segment, at_a);
    enable(&segment, at_b);
    let (home_a, home_b) = (a.mapped().unwrap(), b.mapped().unwrap());

    // The two BARs overlap: the first one stays.
    move_bar(&segment, at_a, home_b as u32);
    assert_eq!(a.mapped(), None);
    assert_eq!(b.mapped(), Some(home_b));
    move_bar(&segment, at_b, home_a as u32);
    assert_eq!(b.mapped(), Some(home_a));
    move_bar(&segment, at_a, home_b as u32);
    assert_eq!(a.mapped(), Some(home_b));
    let mut data = [0];
    mmio.read(home_b, &mut data);
    assert_eq!(data, [1]);

    segment.write_config(at_a, register::COMMAND, &[0, 0]);
    assert_eq!(a.mapped(), None);
    assert!(!mmio.read(home_b, &mut data));
}

#[test]
fn a_bar_stays_in_its_window() {
    let (_mmio, segment) = segment();
    let function = Plain::new(1);
    let address = segment.add(function.clone()).unwrap();
    enable(&segment, address);
    for to in [0, 0x1000, 0xbfff_f000, 0xc010_0000, 0xffff_f000] {
        move_bar(&segment, address, to);
        assert_eq!(function.mapped(), None, "{to:#x}");
    }
    move_bar(&segment, address, 0xc00f_f000);
    assert_eq!(function.mapped(), Some(0xc00f_f000));
    // Byte by byte, each step with decoding on.
    for (byte, value) in [(0, 0), (1, 0), (2, 0), (3, 0xff)] {
        segment.write_config(address, BAR2 + byte, &[value]);
    }
    assert_eq!(function.mapped(), None);
}

#[test]
fn removal_is_final() {
    let (mmio, segment) = segment();
    let function = Plain::new(1);
    let address = segment.add(function.clone()).unwrap();
    enable(&segment, address);
    let home = function.mapped().unwrap();
    segment.remove(address).unwrap();
    assert_eq!(function.removed.load(Ordering::Relaxed), 1);
    assert!(!mmio.read(home, &mut [0]));
    assert_eq!(segment.remove(address).err(), Some(PciError::NotFound(address)));
    for address in [(0, 0, 0), (0, 1, 1), (9, 0, 0)] {
        let address = PciAddress::new(address.0, address.1, address.2).unwrap();
        assert_eq!(segment.remove(address).err(), Some(PciError::NotFound(address)));
        enable(&segment, address);
    }
    drop(segment);
    assert_eq!(function.removed.load(Ordering::Relaxed), 1);
}

#[test]
fn a_segment_that_goes_away_stops_its_functions_and_is_not_kept_by_its_own_window() {
    let (mmio, segment) = segment();
    let function = Plain::new(1);
    let address = segment.add(function.clone()).unwrap();
    enable(&segment, address);
    mmio.insert(0xe000_0000, LAYOUT.ecam_bytes(), segment.ecam()).unwrap();
    drop(segment);
    assert_eq!(function.removed.load(Ordering::Relaxed), 0);
    drop(mmio);
    assert_eq!(function.removed.load(Ordering::Relaxed), 1);
}

#[test]
fn accesses_across_the_end_of_a_function_are_cut_off() {
    let (_mmio, segment) = segment();
    let address = segment.add(Plain::new(1)).unwrap();
    let ecam = segment.ecam();
    let mut data = [0; 8];
    ecam.read(address.ecam_offset() + 0xffc, &mut data);
    assert_eq!(data, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    ecam.write(address.ecam_offset() + 0xfff, &[0xff; 8]);
    for offset in [LAYOUT.ecam_bytes() - 1, LAYOUT.ecam_bytes(), u64::MAX] {
        ecam.read(offset, &mut data);
        assert_eq!(data, [0xff; 8]);
        ecam.write(offset, &data);
    }
}

/// What a guest has as a copy.
#[derive(Default)]
struct Copy {
    shown: Mutex<BTreeMap<PciAddress, [u8; CONVENTIONAL_BYTES]>>,
    ended: AtomicUsize,
}

impl Copy {
    fn addresses(&self) -> Vec<PciAddress> {
        self.shown.lock().unwrap().keys().copied().collect()
    }

    fn assert_true(&self, segment: &PciSegment) {
        for (&address, shown) in &*self.shown.lock().unwrap() {
            let mut read = [0; CONVENTIONAL_BYTES];
            segment.read_config(address, 0, &mut read);
            assert_eq!(read, *shown, "{address}");
        }
    }
}

impl ConfigMirror for Copy {
    fn show(&self, address: PciAddress, registers: &[u8; CONVENTIONAL_BYTES]) {
        self.shown.lock().unwrap().insert(address, *registers);
    }

    fn hide(&self, address: PciAddress) {
        self.shown.lock().unwrap().remove(&address);
    }

    fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_mirror_shows_what_reads_give() {
    let (_mmio, segment) = segment();
    let first = segment.add(Plain::new(1)).unwrap();
    let copy = Arc::new(Copy::default());
    segment.show_in(copy.clone());
    let second = segment.add(Plain::new(2)).unwrap();
    let bridge = PciAddress::new(0, 0, 0).unwrap();
    assert_eq!(copy.addresses(), [bridge, first, second]);
    copy.assert_true(&segment);
    enable(&segment, second);
    move_bar(&segment, first, 0xffff_ffff);
    copy.assert_true(&segment);
    let bar = copy.shown.lock().unwrap()[&first][usize::from(BAR2)..][..4].to_vec();
    assert_eq!(bar, 0xffff_f000_u32.to_le_bytes(), "as a driver learns the size");

    let slot = segment.slot(first).unwrap();
    segment.remove(first).unwrap();
    assert_eq!(copy.addresses(), [bridge, second]);
    slot.show(segment.mirror());
    assert_eq!(copy.addresses(), [bridge, second], "a write that was under way shows nothing any more");
    assert_eq!(segment.add(Plain::new(3)), Ok(first));
    copy.assert_true(&segment);
    assert_eq!(copy.addresses().len(), 3);
    assert_eq!(copy.ended.load(Ordering::Relaxed), 0);
}

#[test]
fn a_restored_segment_shows_what_was_restored() {
    let (_mmio, segment) = segment();
    let function = Plain::new(1);
    let address = segment.add(function.clone()).unwrap();
    enable(&segment, address);
    let (_mmio, restored) = self::segment();
    let copy = Arc::new(Copy::default());
    restored.show_in(copy.clone());
    let twin = Plain::new(1);
    *twin.space.lock().unwrap() = function.space.lock().unwrap().clone();
    restored.restore(&segment.save(), &[twin]).unwrap();
    assert!(copy.addresses().contains(&address));
    copy.assert_true(&restored);
}

/// A function whose reads do more than read.
struct Moody;

impl PciFunction for Moody {
    fn read_config(&self, _offset: u16, data: &mut [u8]) {
        data.fill(7);
    }

    fn write_config(&self, _offset: u16, _data: &[u8]) {}
}

#[test]
fn a_function_that_is_not_plain_ends_the_mirror() {
    let (_mmio, segment) = segment();
    let copy = Arc::new(Copy::default());
    segment.show_in(copy.clone());
    let address = segment.add(Arc::new(Moody)).unwrap();
    assert_eq!(copy.ended.load(Ordering::Relaxed), 1);
    assert!(!copy.addresses().contains(&address));
}

#[test]
fn what_two_cpus_write_is_shown_as_it_stands() {
    let (_mmio, segment) = segment();
    let copy = Arc::new(Copy::default());
    segment.show_in(copy.clone());
    let address = segment.add(Plain::new(1)).unwrap();
    // Only the last write of each counts, so there are many rounds.
    for round in 0..1000 {
        std::thread::scope(|scope| {
            for cpu in 0..2u32 {
                let segment = &segment;
                scope.spawn(move || move_bar(segment, address, 0xc000_0000 + (round * 2 + cpu) % 200 * 0x1000));
            }
        });
        copy.assert_true(&segment);
    }
}

#[test]
fn impossible_layouts_are_refused() {
    let mmio = Arc::new(Bus::new());
    for layout in [
        SegmentLayout { buses: 0, ..LAYOUT },
        SegmentLayout { window_per_bus: 0, ..LAYOUT },
        SegmentLayout { window_per_bus: 1 << 30, ..LAYOUT },
        SegmentLayout { window_base: u64::MAX, ..LAYOUT },
        SegmentLayout { window_per_bus: u64::MAX, ..LAYOUT },
    ] {
        assert_eq!(PciSegment::new(layout, &mmio).err(), Some(PciError::Layout(layout)));
    }
}

#[test]
fn two_cpus_moving_one_bar_leave_it_where_the_register_says() {
    let (mmio, segment) = segment();
    let function = Plain::new(1);
    let address = segment.add(function.clone()).unwrap();
    enable(&segment, address);
    std::thread::scope(|scope| {
        for cpu in 0..2u32 {
            let segment = &segment;
            scope.spawn(move || {
                for step in 0..2000 {
                    move_bar(segment, address, 0xc000_0000 + (step * 2 + cpu) % 200 * 0x1000);
                }
            });
        }
    });
    assert_eq!(function.mapped(), function.bar_address(2));
    assert!(mmio.read(function.mapped().unwrap(), &mut [0]));
    assert_eq!(format!("{mmio:?}").matches("..=").count(), 1);
}

#[test]
fn a_restored_segment_has_its_functions_where_they_were() {
    let (_mmio, segment) = segment();
    let functions: Vec<_> = (0..40).map(Plain::new).collect();
    let addresses: Vec<_> = functions.iter().map(|function| segment.add(function.clone()).unwrap()).collect();
    addresses.iter().for_each(|&address| enable(&segment, address));
    // A slot that is free, and a BAR that the guest has moved.
    segment.remove(addresses[5]).unwrap();
    let moved = functions[5].space.lock().unwrap().u32_at(BAR2);
    move_bar(&segment, addresses[7], moved);
    let state: SegmentState = serde_json::from_str(&serde_json::to_string(&segment.save()).unwrap()).unwrap();
    assert_eq!(state, segment.save());

    let (mmio, restored) = self::segment();
    let kept: Vec<_> = functions.iter().enumerate().filter(|(n, _)| *n != 5).map(|(_, f)| f.clone()).collect();
    let anew = || -> Vec<Arc<dyn PciFunction>> {
        let anew = |function: &Arc<Plain>| {
            let twin = Plain::new(function.number);
            *twin.space.lock().unwrap() = function.space.lock().unwrap().clone();
            twin as Arc<dyn PciFunction>
        };
        kept.iter().map(anew).collect()
    };
    restored.restore(&state, &anew()).unwrap();
    assert_eq!(restored.save(), state);
    for function in &kept {
        let mut data = [0xff];
        assert!(mmio.read(function.mapped().unwrap(), &mut data));
        assert_eq!(u16::from(data[0]), function.number);
    }
    assert_eq!(restored.add(Plain::new(99)), Ok(addresses[5]), "what was free is free");

    let refused = |change: fn(&mut SegmentState)| {
        let mut state = state.clone();
        change(&mut state);
        self::segment().1.restore(&state, &anew()).unwrap_err().to_string()
    };
    let error = refused(|state| drop(state.slots.pop()));
    assert_eq!(error, "number of PCI functions is 38: expected 39");
    let error = refused(|state| state.slots[1].address = state.slots[0].address);
    assert!(error.starts_with("address of a PCI function is"), "{error}");
    let error = refused(|state| state.slots[0].address = PciAddress::new(0, 0, 0).unwrap());
    assert!(error.contains("expected a free slot"), "the host bridge is there: {error}");
    let error = refused(|state| state.slots[0].address = PciAddress::new(9, 0, 0).unwrap());
    assert_eq!(error, "bus of a PCI function is 9: expected one of 3");
    for home in [|_| 0, |home| home + 16, |home: u64| home + 0x1000, |_| u64::MAX] {
        let mut state = state.clone();
        state.slots[0].bar_homes[0] = home(state.slots[0].bar_homes[0]);
        let error = self::segment().1.restore(&state, &anew()).unwrap_err().to_string();
        assert!(error.contains("BAR 2") && error.contains("0x1000 free bytes"), "{error}");
    }
    let error = refused(|state| state.slots[0].bar_homes.clear());
    assert!(error.contains("number of BARs of 0000:00:01.0 is 0: expected 1"), "{error}");
}

#[test]
fn a_state_that_is_refused_leaves_nothing_on_the_buses() {
    let (_mmio, segment) = segment();
    let functions: Vec<_> = (0..40).map(Plain::new).collect();
    functions.iter().for_each(|function| enable(&segment, segment.add(function.clone()).unwrap()));
    let state = segment.save();
    let functions: Vec<_> = functions
        .iter()
        .map(|function| {
            let twin = Plain::new(function.number);
            *twin.space.lock().unwrap() = function.space.lock().unwrap().clone();
            twin
        })
        .collect();
    let given: Vec<_> = functions.iter().map(|function| function.clone() as Arc<dyn PciFunction>).collect();

    let (mmio, segment) = self::segment();
    let (before, nothing_mapped) = (segment.save(), format!("{mmio:?}"));
    let refuse = |change: fn(&mut SlotState)| {
        let mut state = state.clone();
        // The last one, on the second bus.
        change(state.slots.last_mut().unwrap());
        segment.restore(&state, &given).unwrap_err();
        assert_eq!(segment.save(), before);
        assert_eq!(format!("{mmio:?}"), nothing_mapped);
        for function in &functions {
            assert_eq!((function.mapped(), function.removed.load(Ordering::Relaxed)), (None, 0));
        }
    };
    refuse(|slot| slot.address = PciAddress::new(9, 0, 0).unwrap());
    refuse(|slot| slot.address = PciAddress::new(1, 0, 0).unwrap());
    refuse(|slot| slot.bar_homes.clear());
    refuse(|slot| slot.bar_homes[0] = 0);
    segment.restore(&state, &given).unwrap();
    assert_eq!(segment.save(), state, "what was refused takes no slot and no address from the right state");
}
