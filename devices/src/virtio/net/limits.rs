//! Rate limits of an interface.

use serde::{Deserialize, Serialize};

use crate::state::RestoreError;
use crate::virtio::limits::{Limiter, LimitersState, RateLimit};

/// Rate limits of both directions, as the guest sees them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    /// From the host to the guest.
    pub receive: RateLimit,
    /// From the guest to the host.
    pub transmit: RateLimit,
}

impl LimitersState {
    /// The limits.
    pub(super) fn limits(&self) -> RateLimits {
        RateLimits { receive: self.receive.limit(), transmit: self.transmit.limit() }
    }
}

/// The limiters of both directions.
#[derive(Debug, Default)]
pub(super) struct Limiters {
    pub(super) receive: Limiter,
    pub(super) transmit: Limiter,
}

impl Limiters {
    pub(super) fn new(limits: RateLimits) -> Self {
        Self { receive: Limiter::new(limits.receive), transmit: Limiter::new(limits.transmit) }
    }

    /// What is left under `limits`.
    pub(super) fn save(&self, limits: RateLimits) -> LimitersState {
        LimitersState { receive: self.receive.save(limits.receive), transmit: self.transmit.save(limits.transmit) }
    }

    /// Limiters that go on from `state`.
    ///
    /// # Errors
    /// No limiters can have that state.
    pub(super) fn restore(state: &LimitersState) -> Result<Self, RestoreError> {
        Ok(Self { receive: Limiter::restore(&state.receive)?, transmit: Limiter::restore(&state.transmit)? })
    }
}

/// One direction of a pair of queues, under the limit that it shares with that direction of all pairs.
pub(super) struct Limited<'a, T> {
    pub(super) way: &'a mut T,
    pub(super) limiter: &'a mut Limiter,
}
