use super::*;

/// Two memory devices, the second with memory on node 2; and another kind of device.
fn fixture(state: &str) -> (tempfile::TempDir, Option<Device>) {
    let sys = tempfile::tempdir().unwrap();
    let devices = sys.path().join("bus/virtio/devices");
    fs::create_dir_all(devices.join("virtio0")).unwrap();
    for (name, node) in [("virtio1", 1), ("virtio2", 2)] {
        let folder = devices.join(name).join("partition");
        fs::create_dir_all(&folder).unwrap();
        let numbers = [
            ("node", node),
            ("private", 1),
            ("requested_bytes", 4096),
            ("plugged_bytes", 4096),
            ("allocated_pages", 3),
            ("parks", 4),
            ("unparks", 5),
            ("park_misses", 6),
            ("last_plug_ns", 70),
            ("last_plug_host_ns", 7),
            ("last_unplug_ns", 80),
            ("last_unplug_host_ns", 8),
        ];
        for (file, number) in numbers {
            fs::write(folder.join(file), format!("{number}\n")).unwrap();
        }
        fs::write(folder.join("state"), format!("{state}\n")).unwrap();
    }
    let device = Device::find(sys.path(), Node::try_from(2).unwrap());
    (sys, device)
}

#[test]
fn a_device_is_found_by_its_node_and_read() {
    let (sys, device) = fixture("online");
    let device = device.unwrap();
    assert!(device.path.ends_with("virtio2/partition"));
    let driver = device.read().unwrap();
    assert_eq!((driver.state, driver.private, driver.allocated_pages), (State::Online, true, 3));
    assert_eq!((driver.parks, driver.unparks, driver.park_misses), (4, 5, 6));
    assert_eq!(driver.last_plug, Times { total_ns: 70, host_ns: 7 });
    assert_eq!(driver.last_unplug, Times { total_ns: 80, host_ns: 8 });
    assert!(Device::find(sys.path(), Node::try_from(3).unwrap()).is_none());
}

#[test]
fn a_request_that_ends_meanwhile_does_not_take_less_than_its_part() {
    let (_sys, device) = fixture("plugging");
    let device = device.unwrap();
    // In the first one, the part was written before the time was.
    fs::write(device.path.join("last_plug_ns"), "0\n").unwrap();
    assert_eq!(device.read().unwrap().last_plug, Times { total_ns: 0, host_ns: 0 });
}

#[test]
fn a_stock_kernel_has_no_report() {
    let sys = tempfile::tempdir().unwrap();
    assert!(Device::find(sys.path(), Node::try_from(1).unwrap()).is_none());
}

#[test]
fn online_memory_of_the_full_size_is_plugged() {
    let (_sys, device) = fixture("online");
    let device = device.unwrap();
    device.await_plugged(4096, Duration::ZERO).unwrap();
    let error = device.await_plugged(8192, Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "no 8192 bytes plugged after 0 ms");
}

#[test]
fn a_broken_driver_ends_the_wait() {
    let (_sys, device) = fixture("broken");
    let device = device.unwrap();
    let error = device.await_plugged(4096, Duration::from_secs(60)).unwrap_err();
    assert!(matches!(&error, AgentError::Broken(what) if what.contains("virtio2")), "{error}");
    device.await_idle(Duration::from_secs(60)).unwrap();
}

#[test]
fn an_unknown_state_is_an_error() {
    let (_sys, device) = fixture("asleep");
    let error = device.unwrap().read().unwrap_err();
    assert!(error.to_string().contains("asleep"), "{error}");
}

#[test]
fn a_device_that_is_known_is_found_again_until_it_is_gone() {
    let (sys, _) = fixture("online");
    let (devices, node) = (Devices::default(), Node::try_from(1).unwrap());
    let folder = sys.path().join("bus/virtio/devices");
    let found = || devices.find(sys.path(), node).map(|device| device.path);
    assert_eq!(found(), Some(folder.join("virtio1/partition")));
    fs::rename(folder.join("virtio1"), folder.join("virtio9")).unwrap();
    assert_eq!(found(), Some(folder.join("virtio1/partition")), "its folder is still open");
    fs::remove_dir_all(folder.join("virtio9")).unwrap();
    assert_eq!(found(), None);
    fs::rename(folder.join("virtio2"), folder.join("virtio3")).unwrap();
    fs::write(folder.join("virtio3/partition/node"), "1\n").unwrap();
    assert_eq!(found(), Some(folder.join("virtio3/partition")));
    fs::write(folder.join("virtio3/partition/node"), "2\n").unwrap();
    assert_eq!(found(), None, "its node is another one now");
    assert!(devices.0.lock().is_empty());
}

#[test]
fn text_that_is_no_number_is_an_error() {
    let (_sys, device) = fixture("online");
    let device = device.unwrap();
    for text in ["", "-1", "x", &"1".repeat(64), "18446744073709551616"] {
        fs::write(device.path.join("parks"), text).unwrap();
        let error = device.read().unwrap_err().to_string();
        assert!(error.contains("virtio2/partition/parks"), "{text:?}: {error}");
    }
}
