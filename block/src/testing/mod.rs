//! What the tests build and look at: archives, image layouts, and file trees as a kernel sees them.

// Whatever goes wrong in here is to fail the test that uses it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archive;
mod independent;
mod layout;
mod snapshot;

pub use archive::{Archive, Entry};
pub use independent::read_independently;
pub use layout::{LayoutBuilder, compress};
pub use snapshot::{LoopDevice, Mount, Node, check_with_fsck, difference, snapshot};
