//! The allowed dependencies between crates: ours point in one direction, and some third-party crates are allowed only
//! in some of ours.

use std::collections::{BTreeMap, BTreeSet};

use crate::dependencies::Metadata;

/// Our crates, from the bottom: each may depend on those before it, and on no other.
const FLOORS: [&str; 9] = [
    "bellows-memory",
    "bellows-disk",
    "bellows-block",
    "bellows-devices",
    "bellows-protocol",
    "bellows-archive",
    "bellows-vmm",
    "bellows-agent",
    "bellows",
];

/// Our crates, each with third-party crates that it must not depend on, even indirectly.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("bellows-memory", &["kvm-bindings", "kvm-ioctls", "virtio-queue", "tokio"]),
    ("bellows-disk", &["kvm-bindings", "kvm-ioctls", "virtio-queue", "tokio"]),
    (
        "bellows-devices",
        &["bellows-block", "kvm-ioctls", "tar", "zstd", "sha2", "tempfile", "xattr", "flate2", "tokio"],
    ),
    ("bellows-block", &["kvm-bindings", "kvm-ioctls", "virtio-queue", "tokio"]),
    ("bellows-vmm", &["clap", "tokio"]),
    ("bellows-agent", &["bellows-memory", "bellows-vmm", "kvm-ioctls", "tokio"]),
];

/// Names forbidden dependencies in the first of `workspaces`.
pub fn check(workspaces: &[Metadata]) -> Vec<String> {
    workspaces.first().map_or_else(Vec::new, |metadata| Graph::new(metadata).wrong())
}

/// By name; two versions of a crate are one here.
struct Graph<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Graph<'a> {
    fn new(metadata: &'a Metadata) -> Self {
        let names: BTreeMap<_, _> = metadata.packages.iter().map(|package| (&*package.id, &*package.name)).collect();
        let mut graph: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for node in &metadata.resolve.nodes {
            if let Some(user) = names.get(&*node.id) {
                graph.entry(*user).or_default().extend(node.linked().filter_map(|id| names.get(id).copied()));
            }
        }
        Self(graph)
    }

    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (floor, &krate) in FLOORS.iter().enumerate() {
            let Some(known) = self.0.get(krate) else {
                wrong.push(format!("no crate {krate}"));
                continue;
            };
            let above = known.iter().filter(|known| FLOORS[floor + 1..].contains(known));
            wrong.extend(above.map(|above| format!("{krate} depends on {above}, which stands above it")));
        }
        for (krate, forbidden) in FORBIDDEN {
            let reached = self.reached(krate);
            let found = forbidden.iter().filter_map(|known| reached.get(known).map(|by| (known, by)));
            wrong.extend(found.map(|(known, by)| format!("{krate} depends on {known} through {by}: it must not")));
        }
        wrong
    }

    /// All dependencies of `krate`, each with a crate that depends on it.
    fn reached(&self, krate: &'a str) -> BTreeMap<&'a str, &'a str> {
        let mut reached = BTreeMap::new();
        let mut left = vec![krate];
        while let Some(user) = left.pop() {
            for &known in self.0.get(user).into_iter().flatten() {
                if reached.insert(known, user).is_none() {
                    left.push(known);
                }
            }
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_dependencies_are_named() {
        let mut graph: BTreeMap<_, BTreeSet<_>> = FLOORS.map(|krate| (krate, BTreeSet::new())).into();
        assert_eq!(Graph(graph.clone()).wrong(), [""; 0]);
        graph.insert("bellows-memory", ["bellows-vmm"].into());
        graph.insert("bellows-devices", ["bellows-disk", "archives"].into());
        graph.insert("archives", ["tar"].into());
        assert_eq!(
            Graph(graph).wrong(),
            [
                "bellows-memory depends on bellows-vmm, which stands above it",
                "bellows-devices depends on tar through archives: it must not",
            ]
        );
    }
}
