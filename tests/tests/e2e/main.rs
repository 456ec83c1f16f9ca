//! End-to-end tests: each boots real microVMs. They run where KVM is, on this machine or in the lab.

mod boot;
mod command;
mod disks;
mod fixture;
mod partitions;

use bellows_tests::lab::Host;

#[test]
fn the_host_has_hardware_backed_kvm() {
    assert_eq!(Host::detect(), Host::Kvm);
}
