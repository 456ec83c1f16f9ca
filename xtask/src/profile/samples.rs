//! Tells the emulated host's code from that of its guests.

use std::collections::BTreeMap;
use std::fmt;

use bellows_lab::sample::Sample;

/// Where code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum World {
    HostKernel,
    HostUser,
    GuestKernel,
    GuestUser,
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::HostKernel => "host kernel",
            Self::HostUser => "host user space",
            Self::GuestKernel => "guest kernel",
            Self::GuestUser => "guest user space",
        })
    }
}

/// A block of code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub world: World,
    /// In the address space of the world.
    pub address: u64,
    /// Fingerprint of the page that it is in.
    pub page: u64,
}

/// Instructions of each place in `samples`. While the samples `before` were taken, there was no guest yet.
pub fn places(before: &[Sample], samples: &[Sample]) -> BTreeMap<Place, u64> {
    let host = before.iter().rev().find_map(|sample| is_kernel(sample.address).then_some(kernel_base(sample))?);
    let mut places = BTreeMap::new();
    for sample in samples {
        let is_host = host.is_some_and(|host| sample.gs_bases.contains(&host));
        let world = match (is_host, is_kernel(sample.address)) {
            (true, true) => World::HostKernel,
            (true, false) => World::HostUser,
            (false, true) => World::GuestKernel,
            (false, false) => World::GuestUser,
        };
        *places.entry(Place { world, address: sample.address, page: sample.page }).or_default() += sample.instructions;
    }
    places
}

/// Kernels have the upper half of all addresses.
fn is_kernel(address: u64) -> bool {
    address >> 63 == 1
}

/// Where the kernel has the data of its processor. It is the kernel's own address, and programs have none like it.
fn kernel_base(sample: &Sample) -> Option<u64> {
    sample.gs_bases.into_iter().find(|base| is_kernel(*base))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u64 = 0xffff_9a3d_7dc0_0000;
    const GUEST: u64 = 0xffff_8880_1ba0_0000;
    const KERNEL: u64 = 0xffff_ffff_8100_0000;
    const PROGRAM: u64 = 0x5555_5555_4000;

    fn sample(address: u64, gs_bases: [u64; 2]) -> Sample {
        Sample { instructions: 10, address, gs_bases, page: 0 }
    }

    #[test]
    fn the_address_of_a_processors_data_tells_whose_code_it_is() {
        let before = [sample(KERNEL, [0, 0]), sample(KERNEL, [HOST, 0]), sample(PROGRAM, [0, HOST])];
        let samples = [
            sample(KERNEL, [HOST, 0]),
            sample(PROGRAM, [0, HOST]),
            // The same address in both kernels.
            sample(KERNEL, [GUEST, 0]),
            // A program that uses GS itself.
            sample(PROGRAM, [0x7000, GUEST]),
            // A kernel before it exchanges the bases.
            sample(KERNEL, [0, HOST]),
        ];
        let places = places(&before, &samples);
        let by_world: Vec<(World, u64)> = places.iter().map(|(place, sum)| (place.world, *sum)).collect();
        assert_eq!(
            by_world,
            [(World::HostKernel, 20), (World::HostUser, 10), (World::GuestKernel, 10), (World::GuestUser, 10)]
        );
    }
}
