//! What devices see of guest memory.

use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// One immutable snapshot of the guest memory that devices may touch: base memory and the partitions plugged right now.
pub type GuestMemory = GuestMemoryMmap<()>;

/// The current snapshot, replaced as a whole when a partition comes or goes.
///
/// A device takes a snapshot (`view.memory()`) for each batch of requests and drops it before it waits again; so once a
/// replaced snapshot has no holder left, no request in flight can reach what was revoked. Taking one allocates nothing
/// and takes no lock.
pub type GuestView = GuestMemoryAtomic<GuestMemory>;
