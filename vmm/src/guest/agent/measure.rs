//! What instances have allocated in the guest.

use std::time::Duration;

use bellows_memory::ByteSize;
use bellows_protocol::agent;
use bellows_protocol::values::InstanceId;
use serde::Serialize;

use super::{AgentClient, AgentError, answer_error, shown};
use crate::config::text;

/// Most instances that an answer may name.
const MAX_INSTANCES: usize = 4096;

/// What an instance has allocated in the guest.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct InstanceMemory {
    /// The instance.
    #[serde(serialize_with = "text::serialize")]
    pub instance: InstanceId,
    /// All, wherever it lies; without the page cache that it has brought in where its node is private.
    pub allocated: ByteSize,
    /// Of that, what counts for its limits: with the guest memory extension, what lies in base memory.
    pub limited: ByteSize,
}

impl AgentClient {
    /// The memory of each instance at this moment.
    pub(crate) fn measure_instances(&self, limit: Duration) -> Result<Vec<InstanceMemory>, AgentError> {
        const CALL: &str = "MeasureInstances";
        InstanceMemory::parse_all(CALL, self.call(CALL, Some(limit), &agent::Empty::new())?)
    }
}

impl InstanceMemory {
    fn parse_all(call: &'static str, answer: agent::InstancesMemory) -> Result<Vec<Self>, AgentError> {
        let count = answer.instances.len();
        if count > MAX_INSTANCES {
            return Err(answer_error(call, "number of instances", count, format!("at most {MAX_INSTANCES}")));
        }
        answer.instances.into_iter().map(|measured| Self::parse(call, measured)).collect()
    }

    fn parse(call: &'static str, measured: agent::InstanceMemory) -> Result<Self, AgentError> {
        let wrong = |_| answer_error(call, "instance", shown(&measured.instance_id), "an instance's name".into());
        if measured.limited_bytes > measured.bytes {
            let expected = format!("at most all its memory, {} bytes", measured.bytes);
            return Err(answer_error(call, "limited memory of an instance", measured.limited_bytes, expected));
        }
        Ok(Self {
            instance: measured.instance_id.parse().map_err(wrong)?,
            allocated: ByteSize::bytes(measured.bytes),
            limited: ByteSize::bytes(measured.limited_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood() {
        let measured =
            agent::InstanceMemory { instance_id: "f-1".into(), bytes: 7, limited_bytes: 3, ..Default::default() };
        let memory = InstanceMemory::parse("X", measured.clone()).unwrap();
        let bytes = ByteSize::bytes;
        let expected = InstanceMemory { instance: "f-1".parse().unwrap(), allocated: bytes(7), limited: bytes(3) };
        assert_eq!(memory, expected);
        let nameless = agent::InstanceMemory { instance_id: "A\nB".into(), ..measured };
        let error = InstanceMemory::parse("X", nameless).unwrap_err();
        assert!(error.to_string().contains(r"instance A\nB: expected an instance's name"), "{error}");
    }

    #[test]
    fn impossible_answers_are_refused() {
        let measured =
            agent::InstanceMemory { instance_id: "f".into(), bytes: 7, limited_bytes: 8, ..Default::default() };
        let error = InstanceMemory::parse("X", measured.clone()).unwrap_err().to_string();
        assert!(error.contains("limited memory of an instance 8: expected at most all its memory, 7 bytes"), "{error}");

        let measured = agent::InstanceMemory { limited_bytes: 7, ..measured };
        let answer = |count| agent::InstancesMemory { instances: vec![measured.clone(); count], ..Default::default() };
        assert_eq!(InstanceMemory::parse_all("X", answer(4096)).unwrap().len(), 4096);
        let error = InstanceMemory::parse_all("X", answer(4097)).unwrap_err().to_string();
        assert!(error.contains("number of instances 4097: expected at most 4096"), "{error}");
    }
}
