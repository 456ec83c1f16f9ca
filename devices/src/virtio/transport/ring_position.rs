//! The position up to which a queue was served.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

/// The position up to which a queue was served; the rest of its state is in the common configuration.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RingPosition {
    /// Number of the next entry of the available ring, modulo 2^16.
    pub next_avail: u16,
    /// Number of the next entry of the used ring, modulo 2^16.
    pub next_used: u16,
}

impl From<QueueState> for RingPosition {
    fn from(state: QueueState) -> Self {
        Self { next_avail: state.next_avail, next_used: state.next_used }
    }
}
