//! End-to-end tests: each boots real microVMs. They run on a host with KVM: this machine or the lab.

// An error in a fixture must fail the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api;
mod api_instances;
mod archives;
mod bad_disk;
mod balloon;
mod base_memory;
mod boot;
mod clients;
mod clock;
mod cni;
mod command;
mod console;
mod contract;
mod detached;
mod disks;
mod doctor;
mod elastic;
mod extension;
mod files;
mod fixture;
mod freeze;
mod instances;
mod jail;
mod layers;
mod metadata;
mod network;
mod network_hotplug;
mod network_load;
mod network_own;
mod network_vhost;
mod partitions;
mod passt;
mod pause;
mod prepared;
mod programs;
mod scratch;
mod sealed;
mod streams;
mod stress;
mod swap;
mod warm;
mod zygotes;

use bellows_lab::Host;

#[test]
fn the_host_has_hardware_backed_kvm() {
    assert_eq!(Host::detect(), Host::Kvm);
}
