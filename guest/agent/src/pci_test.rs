use std::os::unix::fs::symlink;

use super::*;

const ADDRESS: &str = "0000:01:04.0";

/// A sysfs with one PCI function and nothing on it.
fn fixture() -> (tempfile::TempDir, Sysfs, PciAddress) {
    let folder = tempfile::tempdir().unwrap();
    let function = folder.path().join("sys/bus/pci/devices").join(ADDRESS);
    fs::create_dir_all(&function).unwrap();
    fs::create_dir_all(folder.path().join("dev")).unwrap();
    fs::write(folder.path().join("sys/bus/pci/rescan"), "").unwrap();
    let sysfs = Sysfs::new(folder.path().join("sys"), folder.path().join("dev"));
    (folder, sysfs, ADDRESS.parse().unwrap())
}

#[test]
fn a_block_function_is_ready_when_its_node_exists() {
    let (folder, sysfs, address) = fixture();
    let function = sysfs.function(&address);
    assert_eq!(sysfs.lack(&"0000:01:05.0".parse().unwrap()), Some("PCI function"));
    assert_eq!(sysfs.lack(&address), Some("virtio device"));

    let virtio = function.join("virtio7");
    fs::create_dir(&virtio).unwrap();
    fs::write(virtio.join("status"), "0x00000003\n").unwrap();
    symlink("../../virtio_blk", virtio.join("driver")).unwrap();
    assert_eq!(sysfs.lack(&address), Some("running driver"));

    fs::write(virtio.join("status"), "0x0000000f\n").unwrap();
    assert_eq!(sysfs.lack(&address), Some("block device"));
    fs::create_dir_all(virtio.join("block/vdb")).unwrap();
    assert_eq!(sysfs.lack(&address), Some("device node"));
    fs::write(folder.path().join("dev/vdb"), "").unwrap();
    assert_eq!(sysfs.lack(&address), None);
    let node = folder.path().join("dev/vdb");
    assert_eq!(sysfs.disk(&address), Some(Disk { node, is_persistent_memory: false }));
}

#[test]
fn persistent_memory_is_ready_when_its_namespace_has_a_node() {
    let (folder, sysfs, address) = fixture();
    let virtio = sysfs.function(&address).join("virtio3");
    let region = virtio.join("ndbus1/region1");
    fs::create_dir_all(&region).unwrap();
    fs::write(virtio.join("status"), "0x0000000f\n").unwrap();
    symlink("../../virtio_pmem", virtio.join("driver")).unwrap();
    // Entries beside the namespace: seeds of other kinds, and an unused namespace.
    for other in ["btt1.0", "dax1.0", "namespace1.1"] {
        fs::create_dir(region.join(other)).unwrap();
    }
    assert_eq!(sysfs.lack(&address), Some("block device"));
    fs::create_dir_all(region.join("namespace1.0/block/pmem1")).unwrap();
    assert_eq!(sysfs.lack(&address), Some("device node"));
    let error = sysfs.await_disk(&Uevents::default(), &address, Duration::from_millis(5)).unwrap_err();
    assert_eq!(error.to_string(), "no device node of 0000:01:04.0 after 5 ms");
    let node = folder.path().join("dev/pmem1");
    fs::write(&node, "").unwrap();
    let disk = sysfs.await_disk(&Uevents::default(), &address, Duration::from_millis(5)).unwrap();
    assert_eq!(disk, Disk { node, is_persistent_memory: true });
}

#[test]
fn another_function_is_ready_when_its_driver_runs() {
    let (_folder, sysfs, address) = fixture();
    let virtio = sysfs.function(&address).join("virtio0");
    fs::create_dir(&virtio).unwrap();
    symlink("../../virtio_mem", virtio.join("driver")).unwrap();
    fs::write(virtio.join("status"), "0x0000000f\n").unwrap();
    assert_eq!(sysfs.lack(&address), None);
    let error = sysfs.await_disk(&Uevents::default(), &address, Duration::from_millis(5)).unwrap_err();
    assert_eq!(error.to_string(), "no disk on PCI function \"0000:01:04.0\"");
}

#[test]
fn a_time_out_names_the_missing_part() {
    let (_folder, sysfs, address) = fixture();
    let error = sysfs.attach(&Uevents::default(), &[address], Duration::from_millis(5)).unwrap_err();
    assert_eq!(error.to_string(), "no virtio device of 0000:01:04.0 after 5 ms");
}

#[test]
fn a_missing_function_counts_as_detached() {
    let (_folder, sysfs, _) = fixture();
    sysfs.detach(&["0000:02:00.0".parse().unwrap()]).unwrap();
}

#[test]
fn a_function_that_stays_is_an_error() {
    let (_folder, sysfs, address) = fixture();
    fs::write(sysfs.function(&address).join("remove"), "").unwrap();
    assert!(matches!(sysfs.detach(&[address]), Err(AgentError::InUse { .. })));
}
