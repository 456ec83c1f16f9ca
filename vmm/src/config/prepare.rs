//! What may be prepared of partitions.

use bellows_memory::layout::MEMORY_BLOCK_MIN;
use bellows_memory::{BLOCK, Backing, ByteSize};

use super::{ConfigError, VmConfig, error};
use crate::memory_map;

/// The part of base memory that memory maps of prepared partitions may take. The rest is for the kernel, the agent, and instances.
const MOST: u64 = 2;

/// Checks [`VmConfig::prepare`] against partitions and base memory.
pub(super) fn check(config: &VmConfig) -> Result<(), ConfigError> {
    let prepare = config.prepare;
    if prepare.get() == 0 {
        return Ok(());
    }
    if !prepare.is_multiple_of(BLOCK) {
        return Err(error("prepare", prepare, format!("a multiple of {BLOCK}")));
    }
    if config.backing == Backing::Hugetlbfs {
        let expected = "0 with the `backing` `hugetlbfs`, which reserves pages for all that is plugged";
        return Err(error("prepare", prepare, expected));
    }
    let added = |window: &ByteSize| memory_map::added_for(prepare.min(*window), MEMORY_BLOCK_MIN);
    let added = config.partitions.iter().map(added).fold(ByteSize::bytes(0), ByteSize::plus);
    let (maps, most) = (memory_map::of(added), ByteSize::bytes(config.memory.get() / MOST));
    if maps > most {
        let value = format!("{prepare} of {} partitions, whose memory maps take {maps}", config.partitions.len());
        let expected = format!("memory maps of at most {most}, half of `memory`");
        return Err(error("prepare", value, expected));
    }
    Ok(())
}
