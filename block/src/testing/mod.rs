//! What the tests build and look at: archives, image layouts, and file trees as a kernel sees them.

// Whatever goes wrong in here is to fail the test that uses it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archive;
#[cfg(test)]
mod independent;
mod layout;
#[cfg(feature = "registry")]
mod registry;
mod snapshot;

pub use archive::{Archive, Entry};
#[cfg(test)]
pub(crate) use independent::read_independently;
pub use layout::{LayoutBuilder, compress};

#[cfg(feature = "registry")]
pub use registry::{Answer, FakeRegistry, RegistryServer, Request, Tunnel};

pub use crate::compression::Compression;
pub use bellows_disk::testing::LoopDevice;
pub use snapshot::{Mount, Node, check_with_fsck, difference, snapshot};
