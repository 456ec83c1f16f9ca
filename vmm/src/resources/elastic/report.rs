//! What the host sees of elastic base memory.

use bellows_memory::ByteSize;
use serde::Serialize;

/// Where elastic base memory stands.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ElasticBaseReport {
    /// Most that base memory may grow by.
    #[serde(rename = "most_bytes")]
    pub most: ByteSize,
    /// What it is to have grown by.
    #[serde(rename = "target_bytes")]
    pub target: ByteSize,
    /// What it has grown by.
    #[serde(rename = "plugged_bytes")]
    pub plugged: ByteSize,
    /// What has come since boot, all growths together.
    #[serde(rename = "grown_bytes")]
    pub grown: ByteSize,
    /// What the guest has given back since boot.
    #[serde(rename = "returned_bytes")]
    pub returned: ByteSize,
    /// Of that, what had memory of the host, which is free again.
    #[serde(rename = "discarded_bytes")]
    pub discarded: ByteSize,
    /// The last growth, and what has become of it.
    pub cycle: BaseCycle,
    /// Why the last look at the guest, or the last step, has failed.
    pub fault: Option<String>,
}

/// A growth of base memory, and the shrinks after it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct BaseCycle {
    /// What base memory had grown by.
    #[serde(rename = "peak_bytes")]
    pub peak: ByteSize,
    /// What has come back of it.
    #[serde(rename = "returned_bytes")]
    pub returned: ByteSize,
    /// What was to come back by now, and has not.
    #[serde(rename = "kept_bytes")]
    pub kept: ByteSize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_bytes_under_names_that_say_so() {
        let bytes = ByteSize::bytes;
        let report = ElasticBaseReport {
            most: bytes(1),
            target: bytes(2),
            plugged: bytes(3),
            grown: bytes(4),
            returned: bytes(5),
            discarded: bytes(6),
            cycle: BaseCycle { peak: bytes(7), returned: bytes(8), kept: bytes(9) },
            fault: None,
        };
        assert_eq!(
            serde_json::to_value(report).unwrap(),
            serde_json::json!({
                "most_bytes": 1, "target_bytes": 2, "plugged_bytes": 3, "grown_bytes": 4, "returned_bytes": 5,
                "discarded_bytes": 6, "cycle": { "peak_bytes": 7, "returned_bytes": 8, "kept_bytes": 9 }, "fault": null,
            })
        );
    }
}
