//! Virtio devices and their transport.

pub mod balloon;
pub mod blk;
pub mod chain;
#[cfg(test)]
mod contract_test;
mod device;
mod driver;
#[cfg(test)]
mod handover_test;
pub mod limits;
pub mod mem;
pub mod net;
mod pmem;
pub mod queue;
mod rng;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;
pub mod worker;

pub use balloon::{Balloon, BalloonHandle};
pub use blk::Block;
pub use device::{ActivateError, Activation, ActiveQueue, VirtioDevice};
pub use mem::{Mem, MemHandle, PlugError, Plugged, UnplugError};
pub use net::{Net, NetHandle};
pub use pmem::Pmem;
pub use rng::Rng;
pub use transport::{TransportError, VirtioPci};
pub use vsock::Vsock;
