//! Packages and their dependencies, from `cargo metadata`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::{run, workspace};

/// The manifests of the checkout's workspaces, relative to it.
pub const MANIFESTS: [&str; 3] = ["Cargo.toml", "fuzz/libfuzzer/Cargo.toml", "tests/clients/fctools/Cargo.toml"];

const TARGET: &str = "--filter-platform=x86_64-unknown-linux-gnu";

/// The fields used here (cargo-metadata(1)).
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
    pub resolve: Resolve,
}

#[derive(Debug, Deserialize)]
pub struct Package {
    pub id: String,
    pub name: String,
    pub version: String,
    pub license: Option<String>,
    pub source: Option<String>,
    pub manifest_path: PathBuf,
    pub dependencies: Vec<Declared>,
    /// The manifest's `[package.metadata]`.
    pub metadata: serde_json::Value,
}

/// A dependency in a manifest.
#[derive(Debug, Deserialize)]
pub struct Declared {
    pub name: String,
    pub rename: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Resolve {
    pub nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub struct Node {
    pub id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
pub struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `dev` or `build`; `null` for linked crates.
    kind: Option<String>,
}

impl Metadata {
    /// Reads the dependencies of the checkout's workspaces, without the network: the main one first.
    pub fn read_all() -> Result<Vec<Self>> {
        MANIFESTS.into_iter().map(Self::read).collect()
    }

    /// Reads the dependencies of a manifest's workspace, relative to the checkout; without the network.
    pub fn read(manifest: &str) -> Result<Self> {
        let mut metadata = workspace::cargo();
        metadata.args(["metadata", "--format-version=1", "--locked", "--offline", "--all-features", TARGET]);
        let text = run::capture(metadata.args(["--manifest-path", manifest]))?;
        serde_json::from_str(&text)
            .map_err(|error| Error::other(format!("cannot understand `cargo metadata` of {manifest}: {error}")))
    }

    /// The packages that the target needs, in order of name and version.
    pub fn needed(&self) -> Vec<&Package> {
        let nodes: BTreeSet<&str> = self.resolve.nodes.iter().map(|node| &*node.id).collect();
        let mut packages: Vec<_> = self.packages.iter().filter(|package| nodes.contains(&*package.id)).collect();
        packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        packages
    }

    /// The identifiers of `programs` and of all packages linked into them.
    pub fn contained(&self, programs: &[&str]) -> BTreeSet<&str> {
        let roots = self.packages.iter().filter(|package| programs.contains(&&*package.name));
        let mut waiting: Vec<&str> = roots.map(|package| &*package.id).collect();
        let mut contained = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            if !contained.insert(id) {
                continue;
            }
            waiting.extend(self.resolve.nodes.iter().filter(|node| node.id == id).flat_map(Node::linked));
        }
        contained
    }
}

impl Node {
    /// The identifiers of the packages that it is linked with.
    pub fn linked(&self) -> impl Iterator<Item = &str> {
        let linked = self.deps.iter().filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        linked.map(|dependency| &*dependency.pkg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_contain_their_linked_packages() {
        let package = |id: &str| {
            serde_json::json!({ "id": id, "name": id, "version": "1", "license": null, "source": null,
                                "manifest_path": "/Cargo.toml", "dependencies": [], "metadata": null })
        };
        let dependency =
            |id: &str, kind: Option<&str>| serde_json::json!({ "pkg": id, "dep_kinds": [{ "kind": kind }] });
        let packages = ["program", "other", "linked", "below", "tool"].map(package);
        let metadata = serde_json::json!({
            "packages": packages,
            "resolve": { "nodes": [
                { "id": "program", "deps": [dependency("linked", None), dependency("tool", Some("build"))] },
                { "id": "linked", "deps": [dependency("below", None), dependency("tool", Some("dev"))] },
                { "id": "below", "deps": [dependency("linked", None)] },
            ] },
        });
        let metadata: Metadata = serde_json::from_value(metadata).unwrap();
        assert_eq!(metadata.contained(&["program"]), BTreeSet::from(["below", "linked", "program"]));
    }
}
