//! A guest's side of a device, for tests and fuzzing: memory, a driver's queues, and interrupts to wait for.
//!
//! Two ways to drive a device. [`FakeGuest::activate`] hands it its queues as the transport would, without one:
//!
//! ```
//! use bellows_devices::virtio::{Rng, testing::FakeGuest};
//!
//! let guest = FakeGuest::new();
//! let mut device = Rng::new();
//! let mut driver = guest.activate(&mut device);
//! let done = driver.queues[0].request(&[], &[32]);
//! assert_eq!(done.len, 32);
//! ```
//!
//! [`PciMachine`] has a bus for the device, and [`PciDriver`] acts as a guest's kernel through configuration space and BARs.

// An error in here must fail the test that uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod guest;
mod interrupt;
mod pci;
mod queue;

pub use guest::{FakeDriver, FakeGuest};
pub use interrupt::{FakeDoorbells, FakeInterrupt, FakeMsi, FakeMsiVector};
pub use pci::{PciDriver, PciMachine};
pub use queue::{Bell, Completion, DriverQueue, Part, Pending, QueueInterrupts, Used};

/// How long a test waits for an event before it fails.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
