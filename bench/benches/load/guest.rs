//! A guest that gets memory in one of the compared ways.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bellows_bench::load::{Arrival, Function, Provision};
use bellows_lab::artefact;
use bellows_vmm::{ByteSize, InstanceSpec, PartitionId, PartitionMode, Vm, VmBuilder};

use crate::common::{self, Image, PATIENCE, Result, partition};
use crate::function;
use crate::pool::{Place, Pool, SIZES_MIB};

/// Holds the kernel, page cache, and the memory map of all partitions.
const BASE: ByteSize = ByteSize::mib(768);

/// The base limit of each of several instances in one partition.
const SHARED_BASE: ByteSize = ByteSize::mib(64);

pub struct Guest {
    pub vm: Vm,
    pub pool: Pool,
    /// Bytes that the host has under it without any instance.
    pub base: u64,
    provision: Provision,
    /// The plugged size, if all share one device. Changes take turns.
    plugged: Mutex<ByteSize>,
}

impl Guest {
    pub fn boot(image: &Image, provision: Provision) -> Result<Self> {
        let all = ByteSize::mib(SIZES_MIB.iter().sum());
        let base = match provision {
            Provision::Static => ByteSize::bytes(BASE.get() + all.get()),
            Provision::Shared | Provision::Stock | Provision::Extension => BASE,
        };
        let builder = VmBuilder::new(artefact("BELLOWS_KERNEL")?, base).partition_mode(match provision {
            Provision::Extension => PartitionMode::Extension,
            Provision::Static | Provision::Shared | Provision::Stock => PartitionMode::Stock,
        });
        let builder = match provision {
            Provision::Static => builder,
            Provision::Shared => builder.partition(all),
            Provision::Stock | Provision::Extension => {
                SIZES_MIB.into_iter().fold(builder, |builder, size| builder.partition(ByteSize::mib(size)))
            }
        };
        let plugged = Mutex::new(ByteSize::bytes(0));
        let vm = image.boot(builder)?;
        image.mount(&vm)?;
        let mut guest = Self { vm, pool: Pool::default(), base: 0, provision, plugged };
        guest.warm_up()?;
        for info in guest.vm.partitions() {
            guest.vm.await_discard(info.memory.id, PATIENCE)?;
        }
        guest.base = guest.resident()?;
        Ok(guest)
    }

    /// Runs each function once, so that their common files are in the guest.
    fn warm_up(&self) -> Result<()> {
        for (number, function) in Function::ALL.into_iter().enumerate() {
            let arrival = Arrival { at: Duration::ZERO, function, memory_mib: 16, rounds: 1 };
            let place = self.pool.take(arrival.memory_mib);
            self.plug(&place)?;
            function::run(self, usize::MAX - number, &arrival, &place)?.0.remove(PATIENCE)?;
            self.unplug(&place)?;
        }
        Ok(())
    }

    /// The partition of an instance in that place; `None` if the guest has all memory from the start.
    fn partition_of(&self, place: &Place<'_>) -> Result<Option<PartitionId>> {
        Ok(match self.provision {
            Provision::Static => None,
            Provision::Shared => Some(partition(1)?),
            Provision::Stock | Provision::Extension => Some(partition(place.index as u16 + 1)?),
        })
    }

    /// An instance in that place. If others share its memory it has a base limit.
    pub fn placed(&self, mut spec: InstanceSpec, place: &Place<'_>) -> Result<InstanceSpec> {
        spec.partition = self.partition_of(place)?;
        spec.base_limit = match self.provision {
            Provision::Static => Some(ByteSize::mib(SIZES_MIB[place.index])),
            Provision::Shared => Some(SHARED_BASE),
            Provision::Stock | Provision::Extension => None,
        };
        Ok(spec)
    }

    /// Provides memory for an instance. Returns the time of that.
    pub fn plug(&self, place: &Place<'_>) -> Result<Duration> {
        let (start, size) = (Instant::now(), SIZES_MIB[place.index]);
        let Some(partition) = self.partition_of(place)? else { return Ok(Duration::ZERO) };
        if self.provision == Provision::Shared {
            let mut plugged = self.plugged.lock().unwrap_or_else(PoisonError::into_inner);
            let more = ByteSize::bytes(plugged.get() + (size << 20));
            self.vm.plug(partition, more, PATIENCE)?;
            *plugged = more;
        } else {
            self.vm.plug(partition, ByteSize::mib(size), PATIENCE)?;
        }
        Ok(start.elapsed())
    }

    /// Takes it back. Returns the time of that.
    pub fn unplug(&self, place: &Place<'_>) -> Result<Duration> {
        let (start, size) = (Instant::now(), SIZES_MIB[place.index]);
        let Some(partition) = self.partition_of(place)? else { return Ok(Duration::ZERO) };
        if self.provision == Provision::Shared {
            let mut plugged = self.plugged.lock().unwrap_or_else(PoisonError::into_inner);
            let less = ByteSize::bytes(plugged.get() - (size << 20));
            self.vm.shrink(partition, less, PATIENCE)?;
            *plugged = less;
        } else {
            self.vm.unplug(partition, PATIENCE)?;
        }
        Ok(start.elapsed())
    }

    /// Bytes that the host has under the guest.
    pub fn resident(&self) -> Result<u64> {
        Ok(self.vm.resident_bytes()?)
    }

    pub fn shutdown(&self) -> Result<()> {
        common::shutdown(&self.vm)
    }
}
