//! What a VM's API says of its memory (`GET /memory`), as far as commands show it.

use serde::{Deserialize, Serialize};

/// The memory of a VM.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct VmMemory {
    pub(super) base_bytes: u64,
    /// Host memory under guest memory.
    pub(super) resident_bytes: Option<u64>,
    pub(super) resident_partition_bytes: Option<u64>,
    pub(super) partitions: Vec<Partition>,
    pub(super) instances: Vec<Instance>,
    pub(super) layers: Vec<Layer>,
}

/// A partition.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Partition {
    pub(super) memory: Sizes,
    /// What the guest keeps added, plugged or not.
    pub(super) added: u64,
    pub(super) instance: Option<String>,
    pub(super) frozen: Vec<serde_json::Value>,
    /// What its instance has.
    pub(super) used_bytes: Option<u64>,
    /// What the host holds for it.
    pub(super) resident_bytes: Option<u64>,
}

/// Sizes of a partition.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Sizes {
    pub(super) id: u16,
    pub(super) window: u64,
    pub(super) target: u64,
    pub(super) plugged: u64,
    pub(super) preparing: bool,
    pub(super) discarding: u64,
    /// What it has ever given back.
    pub(super) unplugged: u64,
}

/// An instance.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) image: String,
    pub(super) state: String,
    pub(super) partition: Option<u16>,
    pub(super) allocated_bytes: Option<u64>,
}

/// A layer's file, which VMs share.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Layer {
    pub(super) digest: String,
    pub(super) path: String,
    pub(super) bytes: u64,
    /// What of it is in the page cache; the VM does not say that.
    pub(super) cached_bytes: Option<u64>,
}

impl Partition {
    /// What was asked for: nothing, as long as it is only being prepared.
    pub(super) fn asked(&self) -> u64 {
        if self.memory.preparing { 0 } else { self.memory.target }
    }

    /// What the guest keeps of it for the next plug, without memory under it.
    pub(super) fn parked(&self) -> u64 {
        self.added.saturating_sub(self.memory.plugged)
    }

    /// One word for how it stands.
    pub(super) fn state(&self) -> &'static str {
        let Sizes { target, plugged, preparing, discarding, .. } = self.memory;
        match () {
            () if preparing => "Preparing",
            () if plugged < target => "Growing",
            () if plugged > target => "Shrinking",
            () if !self.frozen.is_empty() => "Frozen",
            () if plugged != 0 => "Plugged",
            () if discarding != 0 => "Returning",
            () if self.parked() != 0 => "Parked",
            () => "Empty",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn partition(said: serde_json::Value) -> Partition {
        serde_json::from_value(said).unwrap()
    }

    #[test]
    fn a_partition_is_in_one_state() {
        for (said, state) in [
            (json!({}), "Empty"),
            (json!({ "added": 1 }), "Parked"),
            (json!({ "added": 1, "memory": { "discarding": 1 } }), "Returning"),
            (json!({ "added": 2, "memory": { "target": 2, "plugged": 1 } }), "Growing"),
            (json!({ "added": 2, "memory": { "target": 1, "plugged": 2 } }), "Shrinking"),
            (json!({ "added": 2, "memory": { "target": 2, "plugged": 2 } }), "Plugged"),
            (json!({ "memory": { "target": 2, "plugged": 2 }, "frozen": [{}] }), "Frozen"),
            (json!({ "memory": { "target": 2, "plugged": 1, "preparing": true } }), "Preparing"),
        ] {
            assert_eq!(partition(said.clone()).state(), state, "{said}");
        }
        let preparing = partition(json!({ "added": 3, "memory": { "target": 2, "plugged": 1, "preparing": true } }));
        assert_eq!((preparing.asked(), preparing.parked()), (0, 2), "an instance has not asked for it");
    }

    /// A VM of another version says more, or less.
    #[test]
    fn what_is_not_known_is_left_out() {
        let memory: VmMemory = serde_json::from_value(json!({ "partitions": [{ "new": 1 }], "more": {} })).unwrap();
        assert_eq!((memory.partitions.len(), memory.resident_bytes), (1, None));
        let silent = partition(json!({ "used_bytes": null, "resident_bytes": null }));
        assert_eq!((silent.used_bytes, silent.resident_bytes), (None, None));
    }
}
