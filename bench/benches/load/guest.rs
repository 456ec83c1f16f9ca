//! A guest that gets memory in one of the compared ways.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bellows_bench::load::{Arrival, Function, Look, Provision};
use bellows_lab::artefact;
use bellows_vmm::{
    ByteSize, ElasticBaseConfig, Instance, InstanceMemory, InstanceSpec, PartitionId, PartitionMode, Vm, VmBuilder,
    ZygoteSpec,
};

use crate::common::{self, Image, PATIENCE, Result, image_id, partition};
use crate::function::{self, MODULES};
use crate::pool::{Place, Pool, SIZES_MIB};

/// Holds the kernel, page cache, and the memory map of all partitions.
const BASE: ByteSize = ByteSize::mib(768);

/// The same at boot where it grows on demand, up to [`BASE`].
const BASE_AT_BOOT: ByteSize = ByteSize::mib(256);

/// A partition for the zygote.
const ZYGOTE: ByteSize = ByteSize::mib(128);

/// The base limit of each of several instances in one partition.
const SHARED_BASE: ByteSize = ByteSize::mib(64);

pub struct Guest {
    pub vm: Vm,
    pub pool: Pool,
    /// Bytes that the host has under it without any instance.
    pub base: u64,
    provision: Provision,
    /// What functions are forks of.
    zygote: Option<Instance>,
    /// The plugged size, if all share one device. Changes take turns.
    plugged: Mutex<ByteSize>,
}

impl Guest {
    pub fn boot(image: &Image, provision: Provision) -> Result<Self> {
        let all = ByteSize::mib(SIZES_MIB.iter().sum());
        let base = match provision {
            Provision::Static => ByteSize::bytes(BASE.get() + all.get()),
            Provision::Shared | Provision::Stock | Provision::Extension => BASE,
            Provision::Elastic => BASE_AT_BOOT,
        };
        let builder = VmBuilder::new(artefact("BELLOWS_KERNEL")?, base).partition_mode(match provision {
            Provision::Extension | Provision::Elastic => PartitionMode::Extension,
            Provision::Static | Provision::Shared | Provision::Stock => PartitionMode::Stock,
        });
        let each = |builder| SIZES_MIB.into_iter().map(ByteSize::mib).fold(builder, VmBuilder::partition);
        let builder = match provision {
            Provision::Static => builder,
            Provision::Shared => builder.partition(all),
            Provision::Stock | Provision::Extension => each(builder),
            Provision::Elastic => each(builder).partition(ZYGOTE).elastic_base(ElasticBaseConfig::new(BASE)),
        };
        let plugged = Mutex::new(ByteSize::bytes(0));
        let vm = image.boot(builder)?;
        image.mount(&vm)?;
        let mut guest = Self { vm, pool: Pool::default(), base: 0, provision, zygote: None, plugged };
        guest.warm_up()?;
        guest.settle()?;
        guest.base = guest.vm.resident_bytes()?;
        if provision == Provision::Elastic {
            guest.zygote = Some(guest.start_zygote()?);
        }
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

    /// Waits until everything that instances have had is back.
    fn settle(&self) -> Result<()> {
        for info in self.vm.partitions() {
            self.vm.await_discard(info.memory.id, PATIENCE)?;
        }
        if let Some(elastic) = self.vm.elastic_base() {
            elastic
                .wait(PATIENCE, |report| report.plugged.get() == 0)
                .map_err(|report| format!("base memory has not shrunk: {report:?}"))?;
        }
        Ok(())
    }

    fn start_zygote(&self) -> Result<Instance> {
        let its_own = partition(SIZES_MIB.len() as u16 + 1)?;
        self.vm.plug(its_own, ZYGOTE, PATIENCE)?;
        let spec = ZygoteSpec::python("zygote".parse()?, image_id()?, MODULES).in_partition(its_own);
        Ok(self.vm.start_zygote(&spec)?)
    }

    /// The partition of an instance in that place; `None` if the guest has all memory from the start.
    fn partition_of(&self, place: &Place<'_>) -> Result<Option<PartitionId>> {
        Ok(match self.provision {
            Provision::Static => None,
            Provision::Shared => Some(partition(1)?),
            Provision::Stock | Provision::Extension | Provision::Elastic => Some(partition(place.index as u16 + 1)?),
        })
    }

    /// An instance in that place, as a fork of the zygote if there is one. If others share its memory it has a base limit.
    pub fn placed(&self, mut spec: InstanceSpec, place: &Place<'_>) -> Result<InstanceSpec> {
        spec.partition = self.partition_of(place)?;
        spec.base_limit = match self.provision {
            Provision::Static => Some(ByteSize::mib(SIZES_MIB[place.index])),
            Provision::Shared => Some(SHARED_BASE),
            Provision::Stock | Provision::Extension | Provision::Elastic => None,
        };
        spec.fork_of = self.zygote.as_ref().map(|zygote| zygote.id().clone());
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

    /// Memory of the guest, `at` this moment.
    pub fn look(&self, at: Duration) -> Result<Look> {
        let instances = self.vm.measure_instances()?;
        // The guest may say what it likes.
        let sum = |bytes: fn(&InstanceMemory) -> ByteSize| {
            instances.iter().map(|memory| bytes(memory).get()).fold(0, u64::saturating_add)
        };
        Ok(Look {
            at,
            held: self.vm.resident_bytes()?,
            partitions: self.vm.resident_partition_bytes()?,
            allocated: sum(|memory| memory.allocated),
            limited: sum(|memory| memory.limited),
        })
    }

    pub fn shutdown(&self) -> Result<()> {
        common::shutdown(&self.vm)
    }
}
