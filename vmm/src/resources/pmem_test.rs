use std::fs;
use std::io;
use std::path::Path;

use bellows_block::Digest;
use bellows_memory::Layout;
use bellows_memory::testing::RecordedSlots;

use super::*;
use crate::arch::layout;

const MIB: u64 = 1 << 20;
/// Where the first window of a VM with 512 MiB of base memory lies.
const FIRST: u64 = 5 << 30;

fn windows() -> (Arc<PmemWindows>, Arc<RecordedSlots>) {
    let layout = Layout::new(&layout::spec(ByteSize::mib(512), vec![], 40)).unwrap();
    let slots = Arc::new(RecordedSlots::default());
    (PmemWindows::new(DeviceArea::new(layout.devices()), slots.clone()), slots)
}

fn layer(directory: &Path, name: &str, bytes: u64) -> StoredFile {
    let path = directory.join(name);
    fs::write(&path, vec![1; bytes as usize]).unwrap();
    StoredFile { digest: Digest::of(name.as_bytes()), path, bytes }
}

fn host_memory(guest_address: Option<u64>) -> ExitReason {
    let source = io::Error::from_raw_os_error(libc::EFAULT);
    ExitReason::Error(Box::new(VcpuError::HostMemory { vcpu: 0, pc: 0x1234, guest_address, source }))
}

/// The layer that an end names.
fn lost(reason: ExitReason) -> Option<String> {
    let ExitReason::Error(error) = reason else { panic!("{reason:?}") };
    let lost = error.downcast::<LostLayer>().ok()?;
    assert!(lost.to_string().contains(lost.path.to_str().unwrap()) && lost.to_string().contains("sha256:"), "{lost}");
    assert!(lost.source.to_string().contains("0x1234"));
    Some(lost.path.file_name()?.to_str()?.to_owned())
}

#[test]
fn windows_are_read_only_slots_that_come_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let (windows, slots) = windows();
    let open = |name| windows.open(ImageMapping::layer(&layer(directory.path(), name, 3 * MIB)).unwrap());
    let (first, second) = (open("first").unwrap(), open("second").unwrap());
    assert_eq!((first.start().0, first.bytes(), second.start().0), (FIRST, 4 * MIB, FIRST + 128 * MIB));
    assert_eq!(slots.calls(), ["set 0x140000000+0x400000 read-only", "set 0x148000000+0x400000 read-only"]);
    drop(first);
    assert_eq!(slots.slots(), [(FIRST + 128 * MIB, 4 * MIB)]);
    assert_eq!(open("third").unwrap().start().0, FIRST);

    slots.fail(Some("set"));
    assert!(matches!(open("fourth"), Err(PmemError::Slot(_))));
    slots.fail(None);
    assert_eq!(open("fourth").unwrap().start().0, FIRST, "the failed window left nothing behind");
}

#[test]
fn an_end_names_the_layer_at_the_address() {
    let directory = tempfile::tempdir().unwrap();
    let (windows, _) = windows();
    let open = |name| windows.open(ImageMapping::layer(&layer(directory.path(), name, MIB)).unwrap()).unwrap();
    let _windows = [open("first"), open("second")];
    let at = |address| lost(windows.explain(host_memory(Some(address))));
    assert_eq!(at(FIRST).as_deref(), Some("first"));
    assert_eq!(at(FIRST + MIB - 1).as_deref(), Some("first"));
    assert_eq!(at(FIRST + 128 * MIB + 4096).as_deref(), Some("second"));
    for other in [0, FIRST - 1, FIRST + MIB, FIRST + 129 * MIB, u64::MAX] {
        assert_eq!(at(other), None, "{other:#x}");
    }
}

#[test]
fn without_an_address_it_names_the_truncated_layer() {
    let directory = tempfile::tempdir().unwrap();
    let (windows, _) = windows();
    let layers = ["first", "second"].map(|name| layer(directory.path(), name, MIB));
    let _windows = layers.each_ref().map(|layer| windows.open(ImageMapping::layer(layer).unwrap()).unwrap());
    assert_eq!(lost(windows.explain(host_memory(None))), None);
    fs::File::options().write(true).open(&layers[1].path).unwrap().set_len(4096).unwrap();
    assert_eq!(lost(windows.explain(host_memory(None))).as_deref(), Some("second"));
}

#[test]
fn other_ends_stay_unchanged() {
    let (windows, _) = windows();
    assert!(matches!(windows.explain(ExitReason::Reset), ExitReason::Reset));
    let other = windows.explain(ExitReason::Error("something else".into()));
    assert!(matches!(&other, ExitReason::Error(error) if error.to_string() == "something else"), "{other:?}");
    let panicked = windows.explain(ExitReason::Error(Box::new(VcpuError::Panicked { vcpu: 3 })));
    assert!(matches!(&panicked, ExitReason::Error(error) if error.to_string().contains("vCPU 3")), "{panicked:?}");
}
