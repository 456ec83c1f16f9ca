//! What `cargo metadata` says of packages and their dependencies.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::{run, workspace};

const TARGET: &str = "--filter-platform=x86_64-unknown-linux-gnu";

/// All of it that is of use here (cargo-metadata(1)).
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    pub(super) resolve: Resolve,
}

#[derive(Debug, Deserialize)]
pub(super) struct Package {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: Option<String>,
    pub(super) source: Option<String>,
    pub(super) manifest_path: PathBuf,
    pub(super) dependencies: Vec<Declared>,
    /// The manifest's `[package.metadata]`.
    pub(super) metadata: serde_json::Value,
}

/// A dependency in a manifest.
#[derive(Debug, Deserialize)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) rename: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Resolve {
    pub(super) nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Node {
    pub(super) id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `dev` or `build`; `null` for what is linked.
    kind: Option<String>,
}

impl Metadata {
    /// Reads what the workspace of a manifest, relative to the checkout, depends on; without the network.
    pub(super) fn read(manifest: &str) -> Result<Self> {
        let mut metadata = workspace::cargo();
        metadata.args(["metadata", "--format-version=1", "--locked", "--offline", "--all-features", TARGET]);
        let text = run::capture(metadata.args(["--manifest-path", manifest]))?;
        serde_json::from_str(&text)
            .map_err(|error| Error::other(format!("cannot understand `cargo metadata` of {manifest}: {error}")))
    }

    /// The packages that the target needs, in order of name and version.
    pub(super) fn needed(&self) -> Vec<&Package> {
        let nodes: BTreeSet<&str> = self.resolve.nodes.iter().map(|node| &*node.id).collect();
        let mut packages: Vec<_> = self.packages.iter().filter(|package| nodes.contains(&*package.id)).collect();
        packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        packages
    }

    /// The identifiers of `programs` and of all that they are linked with.
    pub(super) fn contained(&self, programs: &[&str]) -> BTreeSet<&str> {
        let roots = self.packages.iter().filter(|package| programs.contains(&&*package.name));
        let mut waiting: Vec<&str> = roots.map(|package| &*package.id).collect();
        let mut contained = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            if !contained.insert(id) {
                continue;
            }
            let dependencies = self.resolve.nodes.iter().filter(|node| node.id == id).flat_map(|node| &node.deps);
            let linked = dependencies.filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            waiting.extend(linked.map(|dependency| &*dependency.pkg));
        }
        contained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_contain_what_they_are_linked_with() {
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
