//! Base memory: the limits of all instances together, and of each.
//!
//! A partition holds the memory that an instance's programs allocate. The kernel's objects for them lie in base memory:
//! page tables, inodes, page cache, sockets, pipes. So each instance has a base limit, too, and all limits together leave a
//! reserve:
//!
//! ```text
//! free at boot = memory maps of the partitions + reserve + what instances may use
//! ```
//!
//! Limits are promises: no byte is promised twice, so each instance meets its own limit before all of them together meet
//! theirs.
//!
//! What base memory has grown by since then is promised to nobody: kernel objects cannot lie there. It raises the limit of all
//! instances together, to which the page cache of images counts.

use std::sync::Arc;

use bellows_protocol::values::MIN_BASE_LIMIT;

use crate::error::{AgentError, Result};
use crate::sync::Mutex;

const MIB: u64 = 1 << 20;
/// The memory map takes this fraction of the memory that it describes: 64 bytes for each page of 4 KiB.
const MAP_FRACTION: u64 = 64;

/// The reserve of the agent and the kernel, of `free` bytes: an eighth for memory that grows with the machine (watermarks,
/// tables, uncharged allocations for instances), and 32 MiB for the agent, or another eighth if that is less.
pub fn reserve(free: u64) -> u64 {
    free / 8 + (free / 8).min(32 * MIB)
}

/// The part of `free` bytes for all instances together, with the memory maps of `partition_bytes` still to come.
pub fn for_instances(free: u64, partition_bytes: u64) -> u64 {
    let free = free.saturating_sub(partition_bytes / MAP_FRACTION);
    free - reserve(free)
}

/// The memory for all instances, and the promised part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Account {
    /// Bytes for all instances.
    all: u64,
    /// Sum of the limits of the instances that exist.
    promised: u64,
    /// Number of partitions.
    partitions: u32,
    /// Number of partitions with an instance.
    taken: u32,
    /// Bytes by which base memory is larger than it was at boot.
    grown: u64,
}

impl Account {
    /// Bytes that are not promised.
    fn left(&self) -> u64 {
        self.all.saturating_sub(self.promised)
    }

    /// The limit of an instance that does not name one. With a partition it has an equal share of three quarters, so a single
    /// partition gets most; without one it has half of the bytes that are neither promised nor kept for partitions, so that
    /// another instance always fits.
    fn default_limit(&self, in_partition: bool) -> u64 {
        let share = (self.all - self.all / 4) / u64::from(self.partitions.max(1));
        // With a stock kernel a partition may have several instances.
        if in_partition && self.taken < self.partitions.max(1) {
            return share.min(self.left());
        }
        let kept = share.saturating_mul(self.partitions.saturating_sub(self.taken).into());
        self.left().saturating_sub(kept) / 2
    }

    fn promise(&mut self, wanted: Option<u64>, in_partition: bool) -> Result<u64> {
        let bytes = wanted.unwrap_or_else(|| self.default_limit(in_partition));
        if bytes > self.left() || wanted.is_none() && bytes < MIN_BASE_LIMIT {
            return Err(AgentError::NoBaseMemory {
                wanted: bytes.max(MIN_BASE_LIMIT),
                left: self.left(),
                all: self.all,
            });
        }
        if bytes < MIN_BASE_LIMIT {
            return Err(AgentError::SmallBaseLimit { wanted: bytes, least: MIN_BASE_LIMIT });
        }
        self.promised += bytes;
        self.taken += u32::from(in_partition);
        Ok(bytes)
    }
}

/// Base memory of this guest.
#[derive(Debug)]
pub struct BaseMemory {
    /// Bytes that were free when the agent started.
    free: u64,
    account: Mutex<Account>,
}

impl BaseMemory {
    /// Base memory of which `free` bytes are free, without partitions.
    pub fn new(free: u64) -> Self {
        let account = Account { all: for_instances(free, 0), ..Account::default() };
        Self { free, account: Mutex::new(account) }
    }

    /// Takes the number of partitions, and the sum of their windows; returns the bytes for all instances. Limits of existing
    /// instances stay.
    pub fn divide(&self, partitions: u32, partition_bytes: u64) -> u64 {
        let mut account = self.account.lock();
        account.partitions = partitions;
        account.all = for_instances(self.free, partition_bytes);
        account.all
    }

    /// The limit of all instances together. It adds a quarter of the reserve for the cgroups themselves, so no instance meets
    /// this limit before its own.
    pub fn limit(&self) -> u64 {
        self.limit_with(self.grown())
    }

    /// The limit if base memory were `grown` bytes larger than at boot.
    pub fn limit_with(&self, grown: u64) -> u64 {
        (self.account.lock().all + reserve(self.free) / 4).saturating_add(grown)
    }

    /// Bytes by which base memory is larger than it was at boot.
    pub fn grown(&self) -> u64 {
        self.account.lock().grown
    }

    /// Base memory is `bytes` larger than it was at boot.
    pub fn set_grown(&self, bytes: u64) {
        self.account.lock().grown = bytes;
    }

    /// Promises an instance `wanted` bytes, or the default limit.
    ///
    /// # Errors
    /// [`AgentError::NoBaseMemory`], [`AgentError::SmallBaseLimit`].
    pub fn claim(self: &Arc<Self>, wanted: Option<u64>, in_partition: bool) -> Result<Claim> {
        let bytes = self.account.lock().promise(wanted, in_partition)?;
        Ok(Claim { bytes, in_partition, from: Arc::clone(self) })
    }
}

/// The promise to an instance, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    bytes: u64,
    in_partition: bool,
    from: Arc<BaseMemory>,
}

impl Claim {
    /// The promised bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut account = self.from.account.lock();
        account.promised -= self.bytes;
        account.taken -= u32::from(self.in_partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_reserve_grows_with_base_memory_and_is_never_all_of_it() {
        assert_eq!(reserve(0), 0);
        assert_eq!(reserve(64 * MIB), 16 * MIB);
        assert_eq!(reserve(256 * MIB), 64 * MIB);
        assert_eq!(reserve(8 * GIB), GIB + 32 * MIB);
        for free in [0, 1, 4095, MIB, 40 * MIB, 433 * MIB, 3 * GIB, u64::MAX] {
            for partitions in [0, MIB, GIB, 100 * GIB, u64::MAX] {
                let all = for_instances(free, partitions);
                assert!(all <= free - reserve(free) && all <= free - free / 8, "{free} {partitions}");
            }
        }
    }

    #[test]
    fn memory_maps_of_partitions_are_kept_free() {
        let free = 400 * MIB;
        assert_eq!(for_instances(free, 0), 400 * MIB - 82 * MIB);
        assert_eq!(for_instances(free, 5 * GIB), 320 * MIB - 72 * MIB);
        assert_eq!(for_instances(free, 25 * GIB), 0);
    }

    /// Whether they are in use from the beginning on, as those of prepared partitions, or come with the first plugs.
    #[test]
    fn memory_maps_and_all_promises_fit_into_base_memory_together() {
        for free in [0, MIB, 40 * MIB, 433 * MIB, 3 * GIB, u64::MAX] {
            for partitions in [0, 128 * MIB, GIB, 20 * GIB, 100 * GIB, u64::MAX] {
                let (all, maps) = (for_instances(free, partitions), partitions / MAP_FRACTION);
                assert!(all == 0 || all <= free - maps - reserve(free - maps), "{free} {partitions}");
            }
        }
    }

    #[test]
    fn a_single_instance_has_most_of_it() {
        let base = Arc::new(BaseMemory::new(400 * MIB));
        let all = base.divide(1, GIB);
        assert_eq!(base.claim(None, true).unwrap().bytes(), all - all / 4);
    }

    #[test]
    fn several_can_share_a_partition() {
        let base = Arc::new(BaseMemory::new(400 * MIB));
        base.divide(1, GIB);
        let claims: Vec<_> = (0..4).map(|_| base.claim(None, true).unwrap()).collect();
        assert!(claims.windows(2).all(|pair| pair[1].bytes() < pair[0].bytes()), "{claims:?}");
    }

    #[test]
    fn the_limit_of_all_leaves_most_of_the_reserve() {
        let base = BaseMemory::new(400 * MIB);
        let all = base.divide(2, GIB);
        assert!(base.limit() > all && 400 * MIB - 16 * MIB - base.limit() > reserve(400 * MIB) / 2);
    }

    #[test]
    fn growth_raises_the_limit_of_all_and_no_promise() {
        let base = Arc::new(BaseMemory::new(400 * MIB));
        let all = base.divide(1, GIB);
        let limit = base.limit();
        base.set_grown(GIB);
        assert_eq!((base.limit(), base.grown(), base.limit_with(0)), (limit + GIB, GIB, limit));
        assert_eq!(base.divide(1, GIB), all);
        assert!(base.claim(Some(all + MIB), true).is_err());
        assert_eq!(base.limit_with(u64::MAX), u64::MAX);
    }

    #[test]
    fn instances_in_partitions_have_equal_shares_in_any_order() {
        let base = Arc::new(BaseMemory::new(400 * MIB));
        let all = base.divide(4, GIB);
        let others: Vec<_> = (0..3).map(|_| base.claim(None, false).unwrap()).collect();
        assert_eq!(others[0].bytes(), (all - 4 * ((all - all / 4) / 4)) / 2);
        assert!(others.windows(2).all(|pair| pair[1].bytes() <= pair[0].bytes()), "{others:?}");
        let shares: Vec<_> = (0..4).map(|_| base.claim(None, true).unwrap()).collect();
        assert!(shares.iter().all(|share| share.bytes() == (all - all / 4) / 4), "{shares:?}");
        assert!(base.account.lock().promised <= all);
    }

    /// In any order of starts and ends, promises stay within what exists, and what is given back can be promised again.
    #[test]
    fn promises_never_exceed_base_memory() {
        let base = Arc::new(BaseMemory::new(400 * MIB));
        let all = base.divide(3, 3 * GIB);
        let (mut claims, mut state) = (Vec::new(), 1_u64);
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (number, in_partition) = (state >> 33, state >> 63 == 1);
            let wanted = (number % 3 == 0).then_some(number % (all / 2));
            match base.claim(wanted, in_partition) {
                Ok(claim) => {
                    assert!(claim.bytes() >= MIN_BASE_LIMIT && wanted.is_none_or(|wanted| wanted == claim.bytes()));
                    claims.push(claim);
                }
                Err(_) => drop(claims.pop()),
            }
            assert_eq!(base.account.lock().promised, claims.iter().map(Claim::bytes).sum::<u64>());
            assert!(base.account.lock().promised <= all);
        }
        claims.clear();
        let account = *base.account.lock();
        assert_eq!((account.promised, account.taken), (0, 0));
    }

    #[test]
    fn a_refusal_gives_the_figures() {
        let base = Arc::new(BaseMemory::new(400 * MIB));
        let all = base.divide(0, 0);
        let _first = base.claim(Some(all - 5 * MIB), false).unwrap();
        let error = base.claim(Some(6 * MIB), false).unwrap_err();
        assert_eq!(error.code(), ttrpc::Code::RESOURCE_EXHAUSTED);
        for figure in [6 * MIB, 5 * MIB, all] {
            assert!(error.to_string().contains(&format!("{figure} bytes")), "{error}");
        }
        let error = base.claim(None, false).unwrap_err();
        assert!(error.to_string().contains(&format!("{MIN_BASE_LIMIT} bytes")), "{error}");
        let error = base.claim(Some(MIN_BASE_LIMIT - 1), false).unwrap_err();
        assert_eq!(error.code(), ttrpc::Code::INVALID_ARGUMENT, "{error}");
        assert_eq!(base.claim(Some(5 * MIB), false).unwrap().bytes(), 5 * MIB);
    }

    #[test]
    fn promises_above_the_total_leave_zero_bytes() {
        let base = Arc::new(BaseMemory::new(400 * MIB));
        let claim = base.claim(Some(200 * MIB), true).unwrap();
        assert_eq!(base.divide(2, 100 * GIB), 0);
        assert!(base.claim(None, true).is_err());
        drop(claim);
        base.divide(2, GIB);
        base.claim(None, true).unwrap();
    }
}
