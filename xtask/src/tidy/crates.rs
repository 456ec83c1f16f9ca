//! Which crate may reach which: ours in one direction, and those of others only where they belong.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::{run, workspace};

/// Our crates, from the bottom: each may depend on those before it, and on no other.
const FLOORS: [&str; 8] = [
    "bellows-memory",
    "bellows-disk",
    "bellows-block",
    "bellows-devices",
    "bellows-protocol",
    "bellows-vmm",
    "bellows-agent",
    "bellows",
];

/// Our crates, and crates of others that must not be among what they depend on, however far.
const FORBIDDEN: [(&str, &[&str]); 7] = [
    ("bellows-memory", &["kvm-bindings", "kvm-ioctls", "virtio-queue", "tokio"]),
    ("bellows-disk", &["kvm-bindings", "kvm-ioctls", "virtio-queue", "tokio"]),
    (
        "bellows-devices",
        &["bellows-block", "kvm-ioctls", "tar", "zstd", "sha2", "tempfile", "xattr", "flate2", "tokio"],
    ),
    ("bellows-block", &["kvm-bindings", "kvm-ioctls", "virtio-queue", "tokio"]),
    ("bellows-vmm", &["clap", "tokio"]),
    ("bellows-agent", &["bellows-memory", "bellows-vmm", "kvm-ioctls", "tokio"]),
    ("bellows", &["tokio"]),
];

/// Names dependencies that must not be.
pub fn check() -> Result<Vec<String>> {
    // As it is built: without what only tests and build scripts need, and with nothing from the network.
    let arguments = ["metadata", "--format-version=1", "--offline", "--filter-platform=x86_64-unknown-linux-gnu"];
    let text = run::capture(workspace::cargo().args(arguments))?;
    let metadata: Metadata = serde_json::from_str(&text).map_err(|error| Error::other(error.to_string()))?;
    Ok(Graph::new(&metadata).wrong())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// `None` for what is linked; `dev` and `build` are others.
    kind: Option<String>,
}

/// By name; two versions of a crate are one here.
struct Graph<'a>(BTreeMap<&'a str, BTreeSet<&'a str>>);

impl<'a> Graph<'a> {
    fn new(metadata: &'a Metadata) -> Self {
        let names: BTreeMap<_, _> = metadata.packages.iter().map(|package| (&*package.id, &*package.name)).collect();
        let mut graph: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for node in &metadata.resolve.nodes {
            let linked =
                node.deps.iter().filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            let name = |id: &String| names.get(&**id).copied();
            let Some(user) = name(&node.id) else { continue };
            graph.entry(user).or_default().extend(linked.filter_map(|dependency| name(&dependency.pkg)));
        }
        Self(graph)
    }

    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (floor, &krate) in FLOORS.iter().enumerate() {
            let Some(known) = self.0.get(krate) else {
                wrong.push(format!("there is no crate {krate}"));
                continue;
            };
            let above = known.iter().filter(|known| FLOORS[floor + 1..].contains(known));
            wrong.extend(above.map(|above| format!("{krate} depends on {above}, which stands above it")));
        }
        for (krate, forbidden) in FORBIDDEN {
            let reached = self.reached(krate);
            let found = forbidden.iter().filter_map(|known| reached.get(known).map(|by| (known, by)));
            wrong.extend(found.map(|(known, by)| format!("{krate} depends on {known}, by way of {by}: it must not")));
        }
        wrong
    }

    /// All that `krate` depends on, each with one that depends on it.
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
    fn what_reaches_up_or_too_far_is_named() {
        let mut graph: BTreeMap<_, BTreeSet<_>> = FLOORS.map(|krate| (krate, BTreeSet::new())).into();
        assert_eq!(Graph(graph.clone()).wrong(), [""; 0]);
        graph.insert("bellows-memory", ["bellows-vmm"].into());
        graph.insert("bellows-devices", ["bellows-disk", "archives"].into());
        graph.insert("archives", ["tar"].into());
        assert_eq!(
            Graph(graph).wrong(),
            [
                "bellows-memory depends on bellows-vmm, which stands above it",
                "bellows-devices depends on tar, by way of archives: it must not",
            ]
        );
    }
}
