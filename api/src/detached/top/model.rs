//! What `bellows top` shows, as plain data.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::detached::memory::{Instance, Partition, VmMemory};
use crate::detached::table::{short, short_if_known, table};

/// The heads of columns.
pub(super) const HEAD: [&str; 7] = ["NAME", "STATE", "ASKED", "USED", "PARKED", "RETURNED", "HOST"];

/// All VMs at a moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// By name.
    pub(super) vms: Vec<Seen>,
}

/// A VM.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) vm: String,
    /// Its memory, or why it is not known.
    pub(super) memory: Result<VmMemory, String>,
}

/// A line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Row {
    pub(super) kind: Kind,
    pub(super) cells: [String; 7],
    /// How full a partition is.
    pub(super) fill: Option<Fill>,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Vm,
    /// A VM that does not answer.
    Silent,
    /// An instance, or a partition without one.
    Part,
}

/// A partition as a share of its window, each in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Fill {
    pub(super) used: u64,
    pub(super) plugged: u64,
    pub(super) window: u64,
}

impl Fill {
    /// A bar of `width` letters: what is used, what is plugged beside it, and the rest of the window.
    pub(super) fn bar(self, width: usize) -> String {
        let letters = |bytes: u64| {
            let share = bytes.min(self.window) as u128 * width as u128;
            usize::try_from(share.checked_div(self.window.into()).unwrap_or_default()).unwrap_or(width)
        };
        let plugged = letters(self.plugged);
        let used = letters(self.used).min(plugged);
        format!("{}{}{}", "█".repeat(used), "▒".repeat(plugged - used), "·".repeat(width - plugged))
    }
}

impl Snapshot {
    /// The lines of all VMs.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.vms.iter().flat_map(Seen::rows).collect()
    }

    /// A line about all of them together.
    pub(super) fn summary(&self) -> String {
        let known = || self.vms.iter().filter_map(|seen| seen.memory.as_ref().ok());
        let instances: usize = known().map(|memory| memory.instances.len()).sum();
        let held: u64 = known().filter_map(|memory| memory.resident_bytes).sum();
        // Each file once, with how many VMs have it.
        let mut layers: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
        for layer in known().flat_map(|memory| &memory.layers) {
            let (bytes, users) = layers.entry(&layer.digest).or_default();
            *bytes = layer.cached_bytes.unwrap_or_default();
            *users += 1;
        }
        let cached: u64 = layers.values().map(|(bytes, _)| bytes).sum();
        let shared: u64 = layers.values().filter(|(_, users)| *users > 1).map(|(bytes, _)| bytes).sum();
        format!(
            "VMs {}, instances {instances}, host memory {}, layers in page cache {}, of that shared by VMs {}",
            self.vms.len(),
            short(held),
            short(cached),
            short(shared)
        )
    }

    /// All of it for a printer.
    pub(super) fn text(&self) -> String {
        let rows = self.rows().into_iter().map(|row| row.cells);
        format!("{}\n{}", table(HEAD, rows), self.summary())
    }

    /// A line of JSON for each VM.
    pub(super) fn json_lines(&self) -> Vec<Value> {
        let line = |seen: &Seen| match &seen.memory {
            Ok(memory) => {
                let mut said = json!(memory);
                said["vm"] = json!(seen.vm);
                said
            }
            Err(error) => json!({ "vm": seen.vm, "error": error }),
        };
        self.vms.iter().map(line).collect()
    }
}

impl Seen {
    fn rows(&self) -> Vec<Row> {
        let memory = match &self.memory {
            Ok(memory) => memory,
            Err(error) => {
                let mut cells = <[String; 7]>::default();
                cells[0].clone_from(&self.vm);
                cells[1] = first_line(error);
                return vec![Row { kind: Kind::Silent, cells, fill: None }];
            }
        };
        let mut rows = vec![self.total(memory)];
        rows.extend(memory.instances.iter().map(|instance| {
            let partition = memory.partitions.iter().find(|partition| Some(partition.memory.id) == instance.partition);
            of_instance(instance, partition)
        }));
        let is_used = |partition: &&Partition| {
            memory.instances.iter().any(|instance| instance.partition == Some(partition.memory.id))
        };
        rows.extend(memory.partitions.iter().filter(|partition| !is_used(partition)).map(|partition| {
            let name = format!("  partition {}", partition.memory.id);
            part(name, partition.state().to_owned(), Some(0), partition)
        }));
        rows
    }

    fn total(&self, memory: &VmMemory) -> Row {
        let sum = |figure: fn(&Partition) -> u64| short(memory.partitions.iter().map(figure).sum());
        let used: Option<u64> = memory.instances.iter().map(|instance| instance.allocated_bytes).sum();
        let state = match memory.instances.len() {
            1 => "1 instance".into(),
            count => format!("{count} instances"),
        };
        let cells = [
            self.vm.clone(),
            state,
            sum(Partition::asked),
            short_if_known(used),
            sum(Partition::parked),
            sum(|partition| partition.memory.unplugged),
            short_if_known(memory.resident_bytes),
        ];
        Row { kind: Kind::Vm, cells, fill: None }
    }
}

fn of_instance(instance: &Instance, partition: Option<&Partition>) -> Row {
    let name = format!("  {}", instance.id);
    let Some(partition) = partition else {
        let used = short_if_known(instance.allocated_bytes);
        let cells = [name, instance.state.clone(), "base".into(), used, "-".into(), "-".into(), "-".into()];
        return Row { kind: Kind::Part, cells, fill: None };
    };
    // What moves says more than that it runs.
    let state = match partition.state() {
        moving @ ("Growing" | "Shrinking") => moving.to_owned(),
        _ => instance.state.clone(),
    };
    part(name, state, instance.allocated_bytes, partition)
}

fn part(name: String, state: String, used: Option<u64>, partition: &Partition) -> Row {
    let cells = [
        name,
        state,
        short(partition.asked()),
        short_if_known(used),
        short(partition.parked()),
        short(partition.memory.unplugged),
        short_if_known(partition.resident_bytes),
    ];
    let (plugged, window) = (partition.memory.plugged, partition.memory.window);
    Row { kind: Kind::Part, cells, fill: Some(Fill { used: used.unwrap_or_default(), plugged, window }) }
}

/// The beginning of a text that may be anything.
fn first_line(text: &str) -> String {
    text.chars().take_while(|letter| *letter != '\n').filter(|letter| !letter.is_control()).take(60).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two VMs with a common layer, and one that is silent.
    pub(in super::super) fn snapshot() -> Snapshot {
        let layer = |digest: &str, cached_bytes: u64| json!({ "digest": digest, "cached_bytes": cached_bytes });
        let web = json!({
            "resident_bytes": 300 << 20,
            "partitions": [
                {
                    "memory": { "id": 1, "window": 1 << 30, "target": 512 << 20, "plugged": 512 << 20, "unplugged": 7 << 20 },
                    "added": 1 << 30, "instance": "web", "resident_bytes": 100 << 20,
                },
                { "memory": { "id": 2, "window": 1 << 30 } },
            ],
            "instances": [
                { "id": "web", "state": "Running", "partition": 1, "allocated_bytes": 256 << 20 },
                { "id": "small", "state": "Exited", "allocated_bytes": null },
            ],
            "layers": [layer("a", 40 << 20), layer("b", 2 << 20)],
        });
        let other = json!({ "resident_bytes": 100 << 20, "layers": [layer("a", 40 << 20)] });
        let seen =
            |vm: &str, memory: Value| Seen { vm: vm.into(), memory: Ok(serde_json::from_value(memory).unwrap()) };
        let silent = Seen { vm: "silent".into(), memory: Err("no answer in 2s\nmore".into()) };
        Snapshot { vms: vec![seen("other", other), silent, seen("web", web)] }
    }

    #[test]
    fn instances_and_free_partitions_follow_their_vm() {
        let rows = snapshot().rows();
        let cells: Vec<Vec<&str>> = rows.iter().map(|row| row.cells.iter().map(String::as_str).collect()).collect();
        assert_eq!(
            cells,
            [
                ["other", "0 instances", "0", "0", "0", "0", "100M"],
                ["silent", "no answer in 2s", "", "", "", "", ""],
                ["web", "2 instances", "512M", "?", "512M", "7M", "300M"],
                ["  web", "Running", "512M", "256M", "512M", "7M", "100M"],
                ["  small", "Exited", "base", "?", "-", "-", "-"],
                ["  partition 2", "Empty", "0", "0", "0", "0", "?"],
            ]
        );
        let kinds: Vec<_> = rows.iter().map(|row| row.kind).collect();
        assert_eq!(kinds[..3], [Kind::Vm, Kind::Silent, Kind::Vm]);
    }

    #[test]
    fn a_partition_that_moves_says_so() {
        let mut snapshot = snapshot();
        let memory = snapshot.vms[2].memory.as_mut().unwrap();
        memory.partitions[0].memory.target = 128 << 20;
        assert_eq!(snapshot.rows()[3].cells[1], "Shrinking");
    }

    #[test]
    fn the_page_cache_of_a_common_layer_counts_once() {
        let expected = "VMs 3, instances 2, host memory 400M, layers in page cache 42M, of that shared by VMs 40M";
        assert_eq!(snapshot().summary(), expected);
        assert!(snapshot().text().ends_with(expected));
    }

    #[test]
    fn each_vm_is_a_line_of_json() {
        let lines = snapshot().json_lines();
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[1]["vm"], &lines[1]["error"]), (&json!("silent"), &json!("no answer in 2s\nmore")));
        assert_eq!(lines[2]["partitions"][0]["memory"]["plugged"], 512 << 20);
    }

    #[test]
    fn a_bar_is_as_long_as_its_window() {
        let fill = |used, plugged, window| Fill { used, plugged, window }.bar(8);
        assert_eq!(fill(25, 50, 100), "██▒▒····");
        assert_eq!(fill(99, 50, 100), "████····", "no more than is plugged");
        assert_eq!(fill(u64::MAX, u64::MAX, u64::MAX), "████████");
        assert_eq!(fill(1, 1, 0), "········", "nobody has said what the window is");
    }
}
