//! What a guest's CPUID instruction answers: what KVM supports, with a topology of our own (one package, one core per
//! vCPU, one thread per core) and the clock's frequency, less the features that a guest cannot use. Pure: a table in, a
//! table out.
//!
//! Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; `Documentation/virt/kvm/x86/cpuid.rst`.

use super::Topology;
use crate::config::{CpuidChange, CpuidRegister};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Properties of the guest's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Frequency of the guest's TSC, where the host's is stable.
    pub tsc_khz: Option<u32>,
    /// The local APIC has a TSC-deadline timer.
    pub deadline_timer: bool,
}

/// Frequency of the local APIC's timer in KVM (`APIC_BUS_CYCLE_NS` is 1).
const APIC_BUS_KHZ: u32 = 1_000_000;

/// First leaf of the hypervisor's range.
const HYPERVISOR: u32 = 0x4000_0000;
/// The hypervisor's leaf that gives frequencies (a convention that VMware began).
const HYPERVISOR_FREQUENCY: u32 = 0x4000_0010;

/// Leaves that are answered with zeros: MONITOR, performance monitoring, SGX, processor trace, leaf 0x1f (0xb says the same),
/// SVM, SEV, AMD's performance monitoring and extended topology.
const DROPPED: [u32; 9] = [0x5, 0xa, 0x12, 0x14, 0x1f, 0x8000_000a, 0x8000_001f, 0x8000_0022, 0x8000_0026];

/// Leaves that spell the CPU's name.
const BRAND: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

/// The host CPU's name as CPUID spells it, which KVM leaves out: 48 bytes, 16 a leaf.
pub(crate) fn host_brand() -> Option<[[u32; 4]; 3]> {
    let leaf = |function: u32| {
        let result = std::arch::x86_64::__cpuid(function);
        [result.eax, result.ebx, result.ecx, result.edx]
    };
    (leaf(0x8000_0000)[0] >= *BRAND.end()).then(|| [leaf(0x8000_0002), leaf(0x8000_0003), leaf(0x8000_0004)])
}

/// The table with the CPU's name in it.
pub(crate) fn with_brand(mut supported: CpuId, brand: Option<[[u32; 4]; 3]>) -> CpuId {
    let leaves = BRAND.zip(brand.into_iter().flatten());
    for (function, values) in leaves {
        for entry in supported.as_mut_slice().iter_mut().filter(|entry| entry.function == function) {
            *entry = leaf(function, values);
        }
    }
    supported
}

/// Changes one answer. `None` if the table does not have it.
pub(crate) fn change(supported: &mut CpuId, change: CpuidChange) -> Option<()> {
    let CpuidChange { leaf, subleaf, register, bits } = change;
    let mut entries = supported.as_mut_slice().iter_mut();
    let entry = entries.find(|entry| (entry.function, entry.index) == (leaf, subleaf))?;
    let value = match register {
        CpuidRegister::Eax => &mut entry.eax,
        CpuidRegister::Ebx => &mut entry.ebx,
        CpuidRegister::Ecx => &mut entry.ecx,
        CpuidRegister::Edx => &mut entry.edx,
    };
    // The configuration has checked that no higher bit changes.
    *value = bits.apply((*value).into()) as u32;
    Some(())
}

/// The table for one vCPU, made from what KVM supports.
pub(crate) fn for_vcpu(supported: &CpuId, topology: Topology, clock: Clock) -> CpuId {
    let entries = filter(supported.as_slice(), topology, clock);
    // Fails for more than 256 entries: we add three to what KVM gives (some 50) and drop more.
    CpuId::from_entries(&entries).unwrap_or_else(|_| supported.clone())
}

/// Width of a guest-physical address, from KVM's table.
pub(crate) fn physical_address_bits(supported: &CpuId) -> u8 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    // CPUs without the leaf have 36 bits.
    leaf.map_or(36, |entry| entry.eax.to_le_bytes()[0])
}

fn filter(supported: &[kvm_cpuid_entry2], topology: Topology, clock: Clock) -> Vec<kvm_cpuid_entry2> {
    let leaf_0 = supported.iter().find(|entry| entry.function == 0);
    let intel = leaf_0.is_some_and(|entry| entry.ebx == u32::from_le_bytes(*b"Genu"));
    let max_leaf = leaf_0.map_or(0, |entry| entry.eax);

    let ours = [0xb, 0x15, 0x16, HYPERVISOR_FREQUENCY];
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|entry| !DROPPED.contains(&entry.function) && !ours.contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        adjust(entry, topology, clock);
    }
    if max_leaf >= 0xb {
        entries.extend(extended_topology(topology));
    }
    if let Some(tsc_khz) = clock.tsc_khz {
        entries.push(leaf(HYPERVISOR_FREQUENCY, [tsc_khz, APIC_BUS_KHZ, 0, 0]));
        if intel && max_leaf >= 0x15 {
            // TSC = crystal * EBX / EAX. A crystal of the APIC's frequency keeps kernels that set their APIC timer by
            // it right.
            entries.push(leaf(0x15, [APIC_BUS_KHZ, tsc_khz, APIC_BUS_KHZ * 1000, 0]));
        }
        if intel && max_leaf >= 0x16 {
            entries.push(leaf(0x16, [tsc_khz / 1000, tsc_khz / 1000, 100, 0]));
        }
    }
    entries
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn adjust(entry: &mut kvm_cpuid_entry2, topology: Topology, clock: Clock) {
    const MONITOR: u32 = 1 << 3;
    const VMX: u32 = 1 << 5;
    const SMX: u32 = 1 << 6;
    const PDCM: u32 = 1 << 15;
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const IN_HYPERVISOR: u32 = 1 << 31;
    const HTT: u32 = 1 << 28;
    const SGX: u32 = 1 << 2;
    const PROCESSOR_TRACE: u32 = 1 << 25;
    const SGX_LAUNCH_CONTROL: u32 = 1 << 30;
    const CMP_LEGACY: u32 = 1 << 1;
    const SVM: u32 = 1 << 2;
    const AMD_PERFORMANCE_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

    let (index, count) = (u32::from(topology.index), u32::from(topology.count));
    let width = id_width(topology);
    let several = count > 1;
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xffff | count.min(255) << 16 | index << 24;
            entry.ecx = entry.ecx & !(MONITOR | VMX | SMX | PDCM) | X2APIC | IN_HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, clock.deadline_timer);
            set(&mut entry.edx, HTT, several);
        }
        0x4 => shared_cache(entry, width, true),
        0x7 if entry.index == 0 => {
            entry.ebx &= !(SGX | PROCESSOR_TRACE);
            entry.ecx &= !SGX_LAUNCH_CONTROL;
        }
        HYPERVISOR if clock.tsc_khz.is_some() => entry.eax = entry.eax.max(HYPERVISOR_FREQUENCY),
        0x8000_0001 => {
            entry.ecx &= !(SVM | AMD_PERFORMANCE_COUNTERS);
            set(&mut entry.ecx, CMP_LEGACY, several);
        }
        // ECX: width of an APIC id, and number of cores less one.
        0x8000_0008 => entry.ecx = width << 12 | (count - 1).min(255),
        0x8000_001d => shared_cache(entry, width, false),
        // Extended APIC id; core id with one thread; node 0 of one.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (index, index & 0xff, 0, 0),
        _ => {}
    }
}

/// Bits that an APIC id needs.
fn id_width(topology: Topology) -> u32 {
    topology.count.next_power_of_two().trailing_zeros()
}

/// Sets which vCPUs share a cache: all share the third level, the other levels are private. `cores`: bits 31:26 give the package's cores.
fn shared_cache(entry: &mut kvm_cpuid_entry2, width: u32, cores: bool) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let last_id = (1 << width) - 1;
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { last_id } else { 0 };
    entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
    if cores {
        entry.eax = entry.eax & !(0x3f << 26) | last_id.min(0x3f) << 26;
    }
}

/// Leaf 0xb: a level of threads, one per core; a level of cores; the end.
fn extended_topology(topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let id = topology.index.into();
    let level = |index: u32, width: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..leaf(0xb, [width, count, kind << 8 | index, id])
    };
    [level(0, 0, 1, THREADS), level(1, id_width(topology), topology.count.into(), CORES), level(2, 0, 0, 0)]
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod tests;
