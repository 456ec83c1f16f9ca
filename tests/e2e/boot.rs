//! Both kernels, several vCPUs, several VMs.

use std::fs;

use crate::fixture::Guest;

#[test]
fn our_kernel_boots_with_1_2_and_4_vcpus() {
    for count in [1, 2, 4] {
        let guest = Guest::ours().vcpus(count).boot();
        assert_eq!(guest.shell("count", "nproc").trim(), count.to_string());
        guest.shutdown();
    }
}

#[test]
fn debians_kernel_runs_an_instance_in_a_partition_and_gives_it_back() {
    let guest = Guest::debian().vcpus(2).partition(256).boot();
    assert!(guest.kernel.contains("cloud-amd64"), "{}", guest.kernel);
    guest.plug(1, 256);
    let job = guest.start("a", "python3 -c 'b = bytearray(100 << 20); print(len(b))'", Some(1));
    let (status, output) = job.finish();
    assert_eq!((status.code, output.trim()), (0, "104857600"));
    guest.unplug(1);
    guest.shutdown();
}

#[test]
fn two_vms_in_one_process_share_the_layers() {
    let guests = [Guest::ours().boot(), Guest::ours().boot()];
    let sums: Vec<_> = guests.iter().map(|guest| guest.shell("sum", "cat /usr/bin/python3* | md5sum")).collect();
    assert_eq!(sums[0], sums[1]);
    for guest in guests {
        guest.shutdown();
    }
}

#[test]
fn a_vm_that_has_ended_leaves_nothing_in_kvm() {
    let open = || {
        let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().contains("kvm-v")).count()
    };
    let guest = Guest::ours().partition(256).boot_unmounted();
    assert!(open() >= 2, "a VM and a vCPU");
    guest.shutdown();
    assert_eq!(open(), 0);
}
