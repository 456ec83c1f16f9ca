//! The VM's figures for Prometheus. Names are part of the interface: docs/api.md lists them.

use std::fmt::Display;
use std::sync::atomic::Ordering;

use bellows_vmm::{Lifecycle, PartitionId, Vm};

use super::figures::{Figures, Page};
use super::table::Table;

/// All figures of a VM. Asks the guest what its instances have, and goes on without where that fails.
pub(crate) fn page(id: &str, vm: &Vm, table: &Table, figures: &Figures) -> String {
    let mut page = Page::default();
    of_vm(&mut page, id, vm);
    of_partitions(&mut page, vm, table);
    of_instances(&mut page, vm, table);
    of_networks(&mut page, vm);
    for (name, help, histogram) in [
        ("plug_seconds", "From the request until an instance could use the memory.", &figures.plug),
        ("unplug_seconds", "From the request until the guest could not reach the memory.", &figures.unplug),
        ("discard_seconds", "From the unplug until the host had the memory.", &figures.discard),
        ("instance_start_seconds", "Starts of instances, with images and plugs.", &figures.start),
        ("exec_seconds", "Further processes in instances, until they had ended.", &figures.exec),
    ] {
        page.histogram(name, help, histogram);
    }
    page.text()
}

fn of_vm(page: &mut Page, id: &str, vm: &Vm) {
    let version = env!("CARGO_PKG_VERSION");
    page.group("vm_info", "The VM of this process.").add(&[("id", &id), ("version", &version)], 1);
    let is_running = u8::from(vm.lifecycle() == Lifecycle::Running);
    page.group("vm_running", "Whether the VM runs: 0 while it boots, is paused or has ended.").add(&[], is_running);
    if let Ok(bytes) = vm.resident_bytes() {
        page.group("vm_resident_bytes", "Host memory under guest memory.").add(&[], bytes);
    }
    if let Ok(bytes) = vm.resident_partition_bytes() {
        let help = "Host memory under partitions, a part of bellows_vm_resident_bytes.";
        page.group("vm_resident_partition_bytes", help).add(&[], bytes);
    }
    let mut exits = page.group("vcpu_exits_total", "Exits of vCPUs to the monitor, by reason.");
    for (vcpu, counts) in vm.exits().into_iter().enumerate() {
        for (reason, count) in [
            ("port_read", counts.port_reads),
            ("port_write", counts.port_writes),
            ("mmio_read", counts.mmio_reads),
            ("mmio_write", counts.mmio_writes),
            ("interrupted", counts.interrupted),
        ] {
            exits.add(&[("vcpu", &vcpu), ("reason", &reason)], count);
        }
    }
    if let Some(times) = vm.boot_times() {
        page.group("boot_seconds", "The guest's clock when a phase of its boot had ended.")
            .add(&[("phase", &"kernel")], times.init.as_secs_f64())
            .add(&[("phase", &"agent")], times.ready.as_secs_f64());
    }
}

fn of_partitions(page: &mut Page, vm: &Vm, table: &Table) {
    let partitions = vm.partitions();
    let mut group = |name: &'static str, help: &str, figure: &dyn Fn(&bellows_vmm::PartitionInfo) -> u64| {
        let mut group = page.group(name, help);
        for partition in &partitions {
            group.add(&[("partition", &partition.memory.id.get())], figure(partition));
        }
    };
    group("partition_window_bytes", "The most that a partition can have.", &|info| info.memory.window.get());
    group("partition_target_bytes", "What was asked for last.", &|info| info.memory.target.get());
    group("partition_plugged_bytes", "What the guest has.", &|info| info.memory.plugged.get());
    group("partition_discarding_bytes", "What the guest has given back and the host has not freed.", &|info| {
        info.memory.discarding.get()
    });
    group("partition_prepared_bytes", "What the guest keeps prepared for the next plug.", &|info| info.added.get());
    group("partition_memory_map_bytes", "Base memory for the memory map of that.", &|info| info.memory_map.get());
    group("partition_unplugged_bytes_total", "What the guest has given back.", &|info| info.memory.unplugged.get());
    let help = "Of that, what had pages, which went back to the host.";
    group("partition_discarded_bytes_total", help, &|info| info.memory.discarded.get());
    let mut used = page.group("partition_used", "Whether an instance has the partition.");
    for partition in &partitions {
        let id: PartitionId = partition.memory.id;
        used.add(&[("partition", &id.get())], u8::from(table.holder(id).is_some()));
    }
}

fn of_instances(page: &mut Page, vm: &Vm, table: &Table) {
    let entries = table.all();
    let mut group = page.group("instance_info", "The instances.");
    for entry in &entries {
        let partition = entry.partition.map(PartitionId::get).unwrap_or_default();
        let state = entry.status.borrow().name();
        let labels: [(&str, &dyn Display); 4] =
            [("instance", &entry.id), ("image", &entry.wanted.image), ("partition", &partition), ("state", &state)];
        group.add(&labels, 1);
    }
    match vm.measure_instances() {
        Ok(instances) => {
            let mut group = page.group("instance_allocated_bytes", "What an instance has, wherever it lies.");
            for memory in &instances {
                group.add(&[("instance", &memory.instance)], memory.allocated.get());
            }
            let mut group = page.group("instance_limited_bytes", "Of that, what counts for its limit.");
            for memory in &instances {
                group.add(&[("instance", &memory.instance)], memory.limited.get());
            }
        }
        Err(error) => tracing::debug!(%error, "figures lack the memory of instances"),
    }
    let mut group = page.group("instances_started_total", "Instances that have started.");
    group.add(&[], table.started.load(Ordering::Relaxed));
    let mut group =
        page.group("instances_oom_total", "Instances of which the guest's kernel killed a process for lack of memory.");
    group.add(&[], table.oom_killed.load(Ordering::Relaxed));
}

fn of_networks(page: &mut Page, vm: &Vm) {
    let interfaces = vm.network_interfaces();
    let mut group = |name: &'static str, help: &str, figure: &dyn Fn(&bellows_vmm::Traffic) -> u64| {
        let mut group = page.group(name, help);
        for interface in &interfaces {
            let traffic = interface.statistics;
            for (direction, traffic) in [("receive", traffic.received), ("transmit", traffic.transmitted)] {
                group.add(&[("interface", &interface.id), ("direction", &direction)], figure(&traffic));
            }
        }
    };
    group("network_bytes_total", "Bytes delivered, as the guest sees the direction.", &|traffic| traffic.bytes);
    group("network_packets_total", "Packets delivered.", &|traffic| traffic.packets);
    group("network_dropped_packets_total", "Packets that the other side did not take.", &|traffic| traffic.dropped);
    group("network_malformed_packets_total", "Packets that were wrong.", &|traffic| traffic.malformed);
}
