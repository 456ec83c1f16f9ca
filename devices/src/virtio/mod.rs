//! Virtio devices and their transport.

mod blk;
pub mod blk_request;
mod device;
mod mem;
pub mod mem_request;
mod pmem;
mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;
pub mod worker;

pub use blk::Block;
pub use device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
pub use mem::{Mem, MemHandle, PlugError, UnplugError};
pub use pmem::Pmem;
pub use rng::Rng;
pub use transport::{TransportError, VirtioPci};
pub use vsock::Vsock;
