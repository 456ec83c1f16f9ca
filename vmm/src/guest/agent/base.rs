//! The guest's base memory as it grows and shrinks.

use std::time::Duration;

use bellows_memory::ByteSize;
use bellows_protocol::agent;

use super::{AgentClient, AgentError, agents_share, answer_error};

/// What the guest says of its base memory. Nothing but the policy depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct BaseUse {
    /// How much larger than at boot it is, as far as the guest's limits follow.
    pub(crate) grown: ByteSize,
    /// Instances have waited for memory.
    pub(crate) pressure: bool,
    /// What instances may have on top of what they have, if there is a limit.
    pub(crate) left: Option<ByteSize>,
    /// What is free.
    pub(crate) free: ByteSize,
}

impl AgentClient {
    /// Has the guest's limits follow base memory that becomes `grown` larger than at boot. If that is less than before, the guest
    /// first frees some, and says how little will do: up to `before`.
    pub(crate) fn resize_base(
        &self,
        before: ByteSize,
        grown: ByteSize,
        limit: Duration,
    ) -> Result<BaseUse, AgentError> {
        const CALL: &str = "ResizeBase";
        let request = agent::ResizeBaseRequest {
            grown_bytes: grown.get(),
            timeout_ms: agents_share(limit),
            ..Default::default()
        };
        let found = BaseUse::parse(CALL, &self.call(CALL, Some(limit), &request)?)?;
        if found.grown < grown || found.grown > before.max(grown) {
            let expected = format!("{} to {}", grown.get(), before.max(grown).get());
            return Err(answer_error(CALL, "grown bytes", found.grown.get(), expected));
        }
        Ok(found)
    }

    /// Waits until instances wait for memory, for most of `limit`.
    pub(crate) fn await_base_pressure(&self, limit: Duration) -> Result<BaseUse, AgentError> {
        const CALL: &str = "AwaitBasePressure";
        let request = agent::AwaitBasePressureRequest { timeout_ms: agents_share(limit), ..Default::default() };
        BaseUse::parse(CALL, &self.call(CALL, Some(limit), &request)?)
    }
}

impl BaseUse {
    fn parse(call: &'static str, answer: &agent::BaseMemoryUse) -> Result<Self, AgentError> {
        if answer.free_bytes > answer.total_bytes {
            return Err(answer_error(call, "free bytes", answer.free_bytes, format!("at most {}", answer.total_bytes)));
        }
        Ok(Self {
            grown: ByteSize::bytes(answer.grown_bytes),
            pressure: answer.pressure,
            left: answer.limit_bytes.map(|limit| ByteSize::bytes(limit.saturating_sub(answer.used_bytes))),
            free: ByteSize::bytes(answer.free_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood() {
        let answer = agent::BaseMemoryUse {
            grown_bytes: 5,
            pressure: true,
            used_bytes: 7,
            limit_bytes: Some(10),
            total_bytes: 9,
            free_bytes: 8,
            ..Default::default()
        };
        let found = BaseUse::parse("X", &answer).unwrap();
        let bytes = ByteSize::bytes;
        assert_eq!(found, BaseUse { grown: bytes(5), pressure: true, left: Some(bytes(3)), free: bytes(8) });
        let above = BaseUse::parse("X", &agent::BaseMemoryUse { used_bytes: 11, ..answer.clone() }).unwrap();
        assert_eq!(above.left, Some(bytes(0)));
        let unlimited = BaseUse::parse("X", &agent::BaseMemoryUse { limit_bytes: None, ..answer.clone() }).unwrap();
        assert_eq!(unlimited.left, None);
        let error = BaseUse::parse("X", &agent::BaseMemoryUse { free_bytes: 10, ..answer }).unwrap_err();
        assert!(error.to_string().contains("free bytes 10: expected at most 9"), "{error}");
    }
}
