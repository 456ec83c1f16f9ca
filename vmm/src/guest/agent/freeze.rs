//! Freezing and thawing instances in the guest.

use std::time::Duration;

use bellows_memory::ByteSize;
use bellows_protocol::agent;
use bellows_protocol::values::InstanceId;

use super::{AgentClient, AgentError, agents_share, answer_error, expect};
use crate::config::PartitionMode;

/// What the guest says of an instance that is frozen now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FrozenInGuest {
    /// How its partition is kept apart, if it has one.
    pub(crate) mode: PartitionMode,
    /// Other instances in the partition.
    pub(crate) neighbours: u32,
    /// What the guest's driver can give back of the partition at once.
    pub(crate) spare: ByteSize,
}

impl AgentClient {
    /// Freezes an instance, whose partition's number is `node`; 0 is none.
    pub(crate) fn freeze_instance(
        &self,
        id: &InstanceId,
        node: u32,
        limit: Duration,
    ) -> Result<FrozenInGuest, AgentError> {
        const CALL: &str = "FreezeInstance";
        let request = agent::FreezeInstanceRequest {
            instance_id: id.to_string(),
            timeout_ms: agents_share(limit),
            ..Default::default()
        };
        let answer: agent::FrozenInstance = self.call(CALL, Some(limit), &request)?;
        FrozenInGuest::parse(CALL, node, &answer)
    }

    /// Has an instance go on.
    pub(crate) fn thaw_instance(&self, id: &InstanceId, limit: Duration) -> Result<(), AgentError> {
        let request = agent::InstanceRequest { instance_id: id.to_string(), ..Default::default() };
        self.call::<agent::Empty>("ThawInstance", Some(limit), &request)?;
        Ok(())
    }
}

impl FrozenInGuest {
    fn parse(call: &'static str, node: u32, answer: &agent::FrozenInstance) -> Result<Self, AgentError> {
        expect(call, "node", answer.node, node)?;
        if answer.private && (node == 0 || answer.neighbours != 0) {
            let expected = format!("none with the private node {node}");
            return Err(answer_error(call, "neighbours", answer.neighbours, expected));
        }
        if !answer.private && answer.spare_bytes != 0 {
            return Err(answer_error(call, "spare bytes", answer.spare_bytes, "0 without a private node".into()));
        }
        Ok(Self {
            mode: if answer.private { PartitionMode::Extension } else { PartitionMode::Stock },
            neighbours: answer.neighbours,
            spare: ByteSize::bytes(answer.spare_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(node: u32, private: bool, neighbours: u32, spare_bytes: u64) -> agent::FrozenInstance {
        agent::FrozenInstance { node, private, neighbours, spare_bytes, ..Default::default() }
    }

    #[test]
    fn an_answer_is_understood() {
        let frozen = FrozenInGuest::parse("X", 2, &answer(2, true, 0, 5)).unwrap();
        assert_eq!((frozen.mode, frozen.spare), (PartitionMode::Extension, ByteSize::bytes(5)));
        let frozen = FrozenInGuest::parse("X", 2, &answer(2, false, 3, 0)).unwrap();
        assert_eq!((frozen.mode, frozen.neighbours), (PartitionMode::Stock, 3));
        FrozenInGuest::parse("X", 0, &answer(0, false, 0, 0)).unwrap();
    }

    #[test]
    fn impossible_answers_are_refused() {
        for (bad, what) in [
            (answer(1, true, 0, 0), "node 1"),
            (answer(2, true, 1, 0), "neighbours 1"),
            (answer(2, false, 0, 9), "spare bytes 9"),
        ] {
            let error = FrozenInGuest::parse("X", 2, &bad).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(FrozenInGuest::parse("X", 0, &answer(0, true, 0, 0)).is_err());
    }
}
