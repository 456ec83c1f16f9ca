use super::*;
use crate::config::BitChange;

const CLOCK: Clock = Clock { tsc_khz: Some(2_500_000), deadline_timer: true };

fn with_index(index: u32, entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { index, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..entry }
}

/// All features on, so that a missing one was masked.
fn host(vendor: &[u8; 4]) -> Vec<kvm_cpuid_entry2> {
    let all = [u32::MAX; 4];
    let mut entries = vec![leaf(0, [0x1f, u32::from_le_bytes(*vendor), 0, 0]), leaf(1, all)];
    // Caches of level 1 (data) and 3 (unified), shared by far more CPUs than the guest has.
    entries.push(with_index(0, leaf(4, [0xfc1f_c021, 0, 0, 0])));
    entries.push(with_index(1, leaf(4, [0xfc1f_c063, 0, 0, 0])));
    entries.push(with_index(0, leaf(0x8000_001d, [0x03ff_c063, 0, 0, 0])));
    for function in [5, 7, 0xa, 0xb, 0x12, 0x14, 0x15, 0x16, 0x1f, HYPERVISOR, 0x4000_0001] {
        entries.push(leaf(function, all));
    }
    let hypervisor = entries.len() - 2;
    entries[hypervisor].eax = 0x4000_0001;
    for function in [0x8000_0001, 0x8000_0008, 0x8000_000a, 0x8000_001e, 0x8000_0022, 0x8000_0026] {
        entries.push(leaf(function, all));
    }
    entries
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    *entries.iter().find(|entry| entry.function == function && entry.index == index).unwrap()
}

fn vcpu(vendor: &[u8; 4], index: u16, count: u16) -> Vec<kvm_cpuid_entry2> {
    filter(&host(vendor), Topology { index, count }, CLOCK)
}

#[test]
fn features_say_what_a_guest_can_use() {
    let entries = vcpu(b"Auth", 0, 1);
    let features = find(&entries, 1, 0);
    for hidden in [3, 5, 6, 15] {
        assert_eq!(features.ecx & 1 << hidden, 0, "ECX bit {hidden}");
    }
    for shown in [21, 24, 31] {
        assert_ne!(features.ecx & 1 << shown, 0, "ECX bit {shown}");
    }
    assert_eq!(find(&entries, 0x8000_0001, 0).ecx & 1 << 2, 0, "SVM");
    assert_eq!(find(&entries, 7, 0).ebx & (1 << 2 | 1 << 25), 0);
    for dropped in DROPPED {
        assert!(entries.iter().all(|entry| entry.function != dropped), "{dropped:#x}");
    }
    let without = Clock { tsc_khz: None, deadline_timer: false };
    let entries = filter(&host(b"Genu"), Topology { index: 0, count: 1 }, without);
    assert_eq!(find(&entries, 1, 0).ecx & 1 << 24, 0);
    assert!(entries.iter().all(|entry| ![0x15, 0x16, HYPERVISOR_FREQUENCY].contains(&entry.function)));
}

#[test]
fn topology_is_one_package_with_a_core_per_vcpu() {
    for (count, width) in [(1u16, 0u32), (2, 1), (3, 2), (4, 2)] {
        for index in 0..count {
            let entries = vcpu(b"Genu", index, count);
            let features = find(&entries, 1, 0);
            assert_eq!(features.ebx >> 24, u32::from(index));
            assert_eq!(features.ebx >> 16 & 0xff, u32::from(count));
            assert_eq!(features.edx & 1 << 28 != 0, count > 1, "HTT with {count}");
            let threads = find(&entries, 0xb, 0);
            assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, u32::from(index)));
            let cores = find(&entries, 0xb, 1);
            assert_eq!(
                (cores.eax, cores.ebx, cores.ecx, cores.edx),
                (width, u32::from(count), 0x201, u32::from(index))
            );
            let end = find(&entries, 0xb, 2);
            assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
            let last_id = (1 << width) - 1;
            let first_level = find(&entries, 4, 0).eax;
            assert_eq!((first_level >> 14 & 0xfff, first_level >> 26), (0, last_id));
            assert_eq!(find(&entries, 4, 1).eax >> 14 & 0xfff, last_id);
        }
    }
}

#[test]
fn amd_leaves_agree_with_the_topology() {
    let entries = vcpu(b"Auth", 3, 4);
    assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 2 << 12 | 3);
    let ids = find(&entries, 0x8000_001e, 0);
    assert_eq!((ids.eax, ids.ebx, ids.ecx, ids.edx), (3, 3, 0, 0));
    assert_eq!(find(&entries, 0x8000_001d, 0).eax >> 14 & 0xfff, 3);
    assert_ne!(find(&entries, 0x8000_0001, 0).ecx & 2, 0, "CmpLegacy");
    assert_eq!(find(&vcpu(b"Auth", 0, 1), 0x8000_0001, 0).ecx & 2, 0, "CmpLegacy with one core");
}

#[test]
fn frequencies_come_out_exactly() {
    let entries = vcpu(b"Genu", 0, 1);
    let tsc = find(&entries, 0x15, 0);
    assert_eq!(u64::from(tsc.ecx) * u64::from(tsc.ebx) / u64::from(tsc.eax), 2_500_000_000);
    assert_eq!(find(&entries, 0x16, 0).eax, 2500);
    let hypervisor = find(&entries, HYPERVISOR_FREQUENCY, 0);
    assert_eq!((hypervisor.eax, hypervisor.ebx), (2_500_000, 1_000_000));
    assert_eq!(find(&entries, HYPERVISOR, 0).eax, HYPERVISOR_FREQUENCY);
    assert_eq!(find(&entries, 0x4000_0001, 0).eax, u32::MAX, "KVM's features are left as they are");
    assert!(vcpu(b"Auth", 0, 1).iter().all(|entry| entry.function != 0x15), "AMD CPUs have no such leaf");
}

#[test]
fn a_leaf_past_the_maximum_is_not_added() {
    let mut host = host(b"Genu");
    host[0].eax = 0xa;
    let entries = filter(&host, Topology { index: 0, count: 2 }, CLOCK);
    assert!(entries.iter().all(|entry| ![0xb, 0x15, 0x16].contains(&entry.function)));
}

#[test]
fn a_change_counts_where_the_monitor_has_nothing_to_say() {
    let mut table = CpuId::from_entries(&host(b"Auth")).unwrap();
    let of =
        |leaf, subleaf, register, set, clear| CpuidChange { leaf, subleaf, register, bits: BitChange { set, clear } };
    change(&mut table, of(7, 0, CpuidRegister::Ebx, 0, 1 << 5)).unwrap();
    change(&mut table, of(4, 1, CpuidRegister::Edx, 0b110, 0)).unwrap();
    // The vCPU's number is the monitor's.
    change(&mut table, of(1, 0, CpuidRegister::Ebx, 0, 0xff00_0000)).unwrap();
    assert_eq!(change(&mut table, of(7, 3, CpuidRegister::Eax, 1, 0)), None);
    let entries = filter(table.as_slice(), Topology { index: 5, count: 8 }, CLOCK);
    let plain = filter(&host(b"Auth"), Topology { index: 5, count: 8 }, CLOCK);
    assert_eq!(find(&entries, 7, 0).ebx, find(&plain, 7, 0).ebx & !(1 << 5));
    assert_eq!(find(&entries, 4, 1).edx, 0b110);
    assert_eq!(find(&entries, 1, 0).ebx >> 24, 5);
    assert_eq!(find(&entries, 1, 0).edx, find(&plain, 1, 0).edx);
}
