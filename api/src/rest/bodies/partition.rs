//! `PUT /partitions/{id}`: Bellows' own.

use bellows_vmm::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A partition, before the VM boots.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Partition {
    /// The most that it can ever have.
    pub(crate) window_mib: u32,
}

impl Partition {
    pub(crate) fn window(self) -> ByteSize {
        ByteSize::mib(self.window_mib.into())
    }
}
