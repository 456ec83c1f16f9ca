use bellows_vmm::{Backing, ByteSize};

use super::*;
use crate::rest::request::{Request, parse};

/// What a request leaves of a configuration.
fn put(configuration: &Configuration, method: &str, path: &str, body: Value) -> Result<Configuration, String> {
    match parse(method, path, body.to_string().as_bytes()).map_err(|fault| fault.message)? {
        Request::Change(change) => configuration.with(&change).map_err(|fault| fault.message),
        Request::Read(read) => panic!("{read:?}"),
        Request::Document => panic!("the document"),
    }
}

fn drive(id: &str, file: &str, is_root: bool) -> Value {
    json!({ "drive_id": id, "path_on_host": file, "is_root_device": is_root, "is_read_only": true })
}

#[test]
fn requests_add_up_to_a_vm() {
    let mut configuration = Configuration::default();
    assert!(configuration.vm().unwrap_err().message.contains("`PUT /boot-source`"));
    for (path, body) in [
        ("/boot-source", json!({ "kernel_image_path": "/proc/version", "boot_args": "console=ttyS0 pci=off" })),
        ("/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 256 })),
        ("/drives/data", drive("data", "/proc/cmdline", false)),
        ("/drives/root", drive("root", "/proc/stat", true)),
        ("/vsock", json!({ "guest_cid": 5, "uds_path": "/nowhere/v" })),
        ("/balloon", json!({ "amount_mib": 10, "deflate_on_oom": false })),
        ("/serial", json!({ "serial_out_path": "c.log" })),
        ("/entropy", json!({})),
        ("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "other" })),
        ("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "tap0", "mtu": 1400 })),
    ] {
        configuration = put(&configuration, "PUT", path, body).unwrap();
    }
    let vm = configuration.vm().unwrap();
    vm.validate().unwrap();
    assert_eq!(vm.command_line.as_deref(), Some("console=ttyS0"));
    assert_eq!(vm.extra_command_line, ["root=/dev/vda", "ro"]);
    assert_eq!((vm.vcpus, vm.memory, vm.backing), (2, ByteSize::mib(256), Backing::default()));
    let paths: Vec<_> = vm.drives.iter().map(|drive| drive.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["/proc/stat", "/proc/cmdline"], "the root device is the first disk");
    assert_eq!((vm.vsock.cid, vm.balloon.unwrap().amount_mib), (5, 10));
    let [network] = &vm.network_interfaces[..] else { panic!("{vm:?}") };
    assert_eq!((&*network.id, network.mtu), ("eth0", Some(1400)));
    let shown = configuration.json();
    assert_eq!(shown["network-interfaces"][0]["host_dev_name"], "tap0");
    assert_eq!(shown["boot-source"]["boot_args"], "console=ttyS0 pci=off");
    assert_eq!((&shown["drives"][0]["drive_id"], &shown["vsock"]["guest_cid"]), (&json!("root"), &json!(5)));
    assert_eq!((&shown["entropy"], &shown["pmem"]), (&json!({}), &json!([])));
}

#[test]
fn the_metadata_service_needs_an_interface() {
    let config = |interfaces: &[&str], address: Option<&str>| json!({ "network_interfaces": interfaces, "version": "V2", "ipv4_address": address });
    let refused = |configuration: &Configuration, body: Value, expected: &str| {
        let message = put(configuration, "PUT", "/mmds/config", body).unwrap_err();
        assert_eq!(message, format!("MMMDS config error: {expected}"));
    };
    let nobody = "The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface. (`network_interfaces` is \"eth0\": expected the name of a network interface)";
    refused(&Configuration::default(), config(&["eth0"], None), nobody);
    let mut configuration = Configuration::default();
    for id in ["eth0", "eth1", "eth2"] {
        let interface = json!({ "iface_id": id, "host_dev_name": format!("tap-{id}") });
        configuration = put(&configuration, "PUT", &format!("/network-interfaces/{id}"), interface).unwrap();
    }
    let empty = "The list of network interface IDs that allow forwarding MMDS requests is empty. (`network_interfaces` is empty: expected the name of a network interface)";
    refused(&configuration, config(&[], None), empty);
    let far = "The MMDS IPv4 address is not link local. (`ipv4_address` is 10.0.0.1: expected 169.254.1.0 to 169.254.254.255)";
    refused(&configuration, config(&[], Some("10.0.0.1")), far);
    assert_eq!(configuration.json()["mmds-config"], Value::Null);
    let configured = put(&configuration, "PUT", "/mmds/config", config(&["eth2", "eth0", "eth2"], None)).unwrap();
    let expected = json!({
        "version": "V2", "network_interfaces": ["eth0", "eth2"], "ipv4_address": "169.254.169.254", "imds_compat": false,
    });
    assert_eq!(configured.json()["mmds-config"], expected);
    let again = json!({ "network_interfaces": ["eth1"], "ipv4_address": "169.254.170.2", "imds_compat": true });
    let configured = put(&configured, "PUT", "/mmds/config", again).unwrap();
    let mmds = configured.library().mmds.unwrap();
    assert_eq!((&*mmds.interfaces[0], mmds.version, mmds.imds_compat), ("eth1", bellows_vmm::MmdsVersion::V1, true));
    assert_eq!(mmds.address().octets(), [169, 254, 170, 2]);
}

#[test]
fn memory_that_may_come_is_bounded_by_what_the_guest_boots_with() {
    let hotplug = |mib: u64| json!({ "total_size_mib": mib });
    let one = put(&Configuration::default(), "PUT", "/hotplug/memory", hotplug(2048)).unwrap();
    let shown = json!({ "total_size_mib": 2048, "block_size_mib": 2, "slot_size_mib": 128 });
    assert_eq!(one.json()["memory-hotplug"], shown);
    assert_eq!(one.library().elastic_base.unwrap().max, ByteSize::mib(2176));
    let message = put(&one, "PUT", "/hotplug/memory", hotplug(4096)).unwrap_err();
    assert!(message.starts_with("`total_size_mib` is 4096"), "{message}");
    let message = put(&one, "PATCH", "/machine-config", json!({ "mem_size_mib": 64 })).unwrap_err();
    assert!(message.starts_with("`total_size_mib` is 2048") && message.ends_with("1024"), "{message}");
}

#[test]
fn without_arguments_the_kernel_gets_bellows_own() {
    let source = json!({ "kernel_image_path": "/proc/version" });
    let configuration = put(&Configuration::default(), "PUT", "/boot-source", source).unwrap();
    assert_eq!(configuration.vm().unwrap().command_line, None);
}

#[test]
fn a_drive_takes_the_place_of_the_one_with_its_name() {
    let one = put(&Configuration::default(), "PUT", "/drives/a", drive("a", "/proc/stat", true)).unwrap();
    let two = put(&one, "PUT", "/drives/a", drive("a", "/proc/cmdline", false)).unwrap();
    assert_eq!(two.drives.len(), 1);
    assert!(put(&two, "PUT", "/drives/b", drive("b", "/proc/stat", true)).is_ok());
    let message = put(&one, "PUT", "/drives/b", drive("b", "/proc/cmdline", true)).unwrap_err();
    assert!(message.contains("`a` and `b` would both be the root device"), "{message}");
}

#[test]
fn values_that_exclude_each_other_are_refused_under_firecrackers_names() {
    let balloon = json!({ "amount_mib": 129, "deflate_on_oom": false });
    let configuration = Configuration::default();
    let message = put(&configuration, "PUT", "/balloon", balloon).unwrap_err();
    assert!(message.contains("`balloon.amount_mib` is 129: expected at most the 128"), "{message}");
    let balloon = json!({ "amount_mib": 128, "deflate_on_oom": false });
    let configuration = put(&configuration, "PUT", "/balloon", balloon).unwrap();
    let message = put(&configuration, "PATCH", "/machine-config", json!({ "mem_size_mib": 64 })).unwrap_err();
    assert!(message.contains("`balloon.amount_mib`"), "{message}");
    assert_eq!(configuration.machine.mem_size_mib, 128, "a refused change leaves all as it was");
    let network = |id: &str, tap: &str| json!({ "iface_id": id, "host_dev_name": tap, "mtu": 68 });
    let with_tap = put(&configuration, "PUT", "/network-interfaces/a", network("a", "tap0")).unwrap();
    let message = put(&with_tap, "PUT", "/network-interfaces/b", network("b", "tap0")).unwrap_err();
    assert!(message.starts_with("`host_dev_name` is"), "{message}");
    let small = json!({ "iface_id": "a", "host_dev_name": "tap0", "mtu": 67 });
    let message = put(&configuration, "PUT", "/network-interfaces/a", small).unwrap_err();
    assert!(message.starts_with("`mtu` is 67: expected 68"), "{message}");
    let source = json!({ "kernel_image_path": "/proc/version", "boot_args": "a\nb" });
    let message = put(&configuration, "PUT", "/boot-source", source).unwrap_err();
    assert!(message.starts_with("`boot_args` is \"a\\nb\""), "{message}");
    let source = json!({ "kernel_image_path": "/proc/version" });
    let configuration = put(&configuration, "PUT", "/boot-source", source).unwrap();
    let message = put(&configuration, "PUT", "/drives/a", drive("a", "/proc/version", false)).unwrap_err();
    assert!(message.starts_with("`path_on_host` is `/proc/version`: expected another path"), "{message}");
}

#[test]
fn a_drive_that_comes_later_needs_a_new_name_and_is_not_the_root() {
    let drive = |is_root| serde_json::from_value::<Drive>(drive("a", "/proc/stat", is_root)).unwrap();
    let a = drive(false);
    let mut configuration = Configuration::default();
    configuration.check_hotplug(&a).unwrap();
    assert!(configuration.check_hotplug(&drive(true)).unwrap_err().message.contains("`is_root_device` is true"));
    configuration.has_drive(a.clone());
    assert!(configuration.check_hotplug(&a).unwrap_err().message.contains("`drive_id` is `a`"));
    configuration.has_no_drive("a");
    assert!(configuration.drive("a").is_err());
}
