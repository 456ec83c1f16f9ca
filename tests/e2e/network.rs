//! Network interfaces of a guest at a TAP of the host.

use std::process::Command;
use std::time::{Duration, Instant};

use bellows_vmm::{NetConfig, Tap};

use crate::fixture::{Guest, PATIENCE, Running};

/// A TAP of the host, until this is dropped. Needs root, and `ip` with `tuntap`, or `tunctl`, which the lab has.
struct HostTap(String);

impl HostTap {
    fn new(name: &str) -> Self {
        let name = format!("{name}{}", std::process::id());
        sh(&format!("ip tuntap add {name} mode tap 2>/dev/null || tunctl -t {name}"));
        sh(&format!("ip link set {name} up"));
        Self(name)
    }

    fn delete(&self) {
        sh(&format!("ip link delete {}", self.0));
    }
}

impl Drop for HostTap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.0]).output();
    }
}

fn sh(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The features that the guest's drivers of network devices have accepted, by device: a character for each bit.
fn accepted(guest: &Running, id: &str) -> Vec<String> {
    let features = guest.shell(id, "cat /sys/bus/virtio/drivers/virtio_net/virtio*/features");
    features.lines().map(str::to_owned).collect()
}

/// The guest's driver takes both interfaces, with the offloads of a TAP. One whose TAP is deleted goes down, and nothing else does.
#[test]
fn a_guest_has_interfaces_for_as_long_as_their_taps_are_there() {
    let taps = ["bla", "blb"].map(HostTap::new);
    let config = |id: &str, tap: &HostTap| NetConfig::new(id, Tap::Name(tap.0.clone()));
    let first = NetConfig { mtu: Some(1400), ..config("eth0", &taps[0]) };
    let guest = Guest::ours().network(first).network(config("eth1", &taps[1])).boot();
    // Checksum, MTU, MAC, merged buffers, status: VIRTIO 1.2, section 5.1.3.
    let bits = |features: &String| [0, 3, 5, 15, 16].map(|bit| features.as_bytes()[bit] == b'1');
    let mut found: Vec<_> = accepted(&guest, "before").iter().map(bits).collect();
    found.sort_unstable();
    assert_eq!(found, [[true, false, true, true, true], [true; 5]]);
    assert!(guest.vm.network_interfaces().iter().all(|interface| interface.up));

    taps[0].delete();
    let begun = Instant::now();
    while guest.vm.network_interfaces()[0].up {
        assert!(begun.elapsed() < PATIENCE, "the interface stays up");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(guest.vm.network_interfaces()[1].up);
    assert_eq!(accepted(&guest, "after").len(), 2, "the guest goes on");
    guest.shutdown();
}

/// A TAP that another VM has, or that is not there, is refused by name before anything boots.
#[test]
fn a_tap_belongs_to_one_vm() {
    let tap = HostTap::new("blc");
    let guest = || Guest::ours().network(NetConfig::new("eth0", Tap::Name(tap.0.clone())));
    let first = guest().boot();
    let error = guest().refused();
    assert!(error.contains(&tap.0) && error.contains("that this process may use and no other does"), "{error}");
    first.shutdown();
    guest().boot().shutdown();
    tap.delete();
    let error = guest().refused();
    assert!(error.contains(&format!("no interface is called `{}`", tap.0)), "{error}");
}
