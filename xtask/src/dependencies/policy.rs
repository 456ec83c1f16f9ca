//! `deny.toml`: the licences, sources and duplicates that are allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Deserialize;

use super::licence::is_met;
use super::metadata::{Metadata, Package};
use crate::error::{Error, Result};
use crate::workspace;

/// The parts of cargo-deny's configuration that are checked here.
#[derive(Debug, Deserialize)]
pub struct Policy {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
    #[serde(default)]
    clarify: Vec<Clarification>,
}

/// Licences that only one crate may have.
#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

/// The licence of a crate that does not name one.
#[derive(Debug, Deserialize)]
struct Clarification {
    #[serde(rename = "crate")]
    name: String,
    expression: String,
}

#[derive(Debug, Deserialize)]
struct Bans {
    #[serde(default)]
    skip: Vec<Skip>,
}

/// A version that is allowed beside a newer one: `NAME@VERSION`, where the version may be a beginning.
#[derive(Debug, Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

impl Policy {
    /// Reads `deny.toml`.
    pub fn read() -> Result<Self> {
        let path = workspace::root().join("deny.toml");
        let text = fs::read_to_string(&path).map_err(Error::at(&path))?;
        toml::from_str(&text).map_err(|error| Error::other(format!("{}: {error}", path.display())))
    }

    /// Names everything in the workspaces that is not allowed, and unused lines of the policy.
    pub fn check(&self, workspaces: &[Metadata]) -> Vec<String> {
        let mut wrong = BTreeSet::new();
        let mut skipped = BTreeSet::new();
        for packages in workspaces.iter().map(Metadata::needed) {
            wrong.extend(packages.iter().filter_map(|package| self.licence(package)));
            wrong.extend(packages.iter().filter_map(|package| self.source(package)));
            for package in older_versions(&packages) {
                match self.bans.skip.iter().find(|skip| skip.matches(package)) {
                    Some(skip) => {
                        skipped.insert(&*skip.version);
                    }
                    None => {
                        wrong.insert(format!("{} is also present in a newer version", shown(package)));
                    }
                }
            }
        }
        let unused = self.bans.skip.iter().filter(|skip| !skipped.contains(&*skip.version));
        wrong.extend(unused.map(|skip| format!("deny.toml skips {}, which is not a duplicate", skip.version)));
        wrong.into_iter().collect()
    }

    fn licence(&self, package: &Package) -> Option<String> {
        let clarified = self.licenses.clarify.iter().find(|clarification| clarification.name == package.name);
        let stated = clarified.map(|clarification| &clarification.expression).or(package.license.as_ref());
        let Some(expression) = stated else {
            return Some(format!("{} names no licence: expected one, or `clarify` in deny.toml", shown(package)));
        };
        let own = self.licenses.exceptions.iter().filter(|exception| exception.name == package.name);
        let extra: Vec<_> = own.flat_map(|exception| &exception.allow).collect();
        let allowed = |name: &str| self.licenses.allow.iter().chain(extra.iter().copied()).any(|known| known == name);
        match is_met(expression, &allowed) {
            Some(true) => None,
            Some(false) => Some(format!("{} is under {expression}, which deny.toml does not allow", shown(package))),
            None => Some(format!("{} has the licence `{expression}`: expected an SPDX expression", shown(package))),
        }
    }

    fn source(&self, package: &Package) -> Option<String> {
        // Without a source it is in the checkout.
        let source = package.source.as_ref()?;
        let registry = source.strip_prefix("registry+");
        let known = registry.is_some_and(|registry| self.sources.allow_registry.iter().any(|known| known == registry));
        (!known).then(|| format!("{} comes from {source}, which deny.toml does not allow", shown(package)))
    }
}

impl Skip {
    fn matches(&self, package: &Package) -> bool {
        let Some((name, version)) = self.version.split_once('@') else { return false };
        let rest = package.version.strip_prefix(version);
        name == package.name && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// The packages that are also present in a newer version.
fn older_versions<'a>(packages: &[&'a Package]) -> Vec<&'a Package> {
    let mut by_name: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in packages {
        by_name.entry(&package.name).or_default().push(package);
    }
    let mut older = Vec::new();
    for mut versions in by_name.into_values() {
        versions.sort_by_key(|package| numbers(&package.version));
        versions.pop();
        older.extend(versions);
    }
    older
}

/// A version's numbers, to compare it by.
fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

fn shown(package: &Package) -> String {
    format!("{} {}", package.name, package.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
        [licenses]
        allow = ["MIT"]
        exceptions = [{ crate = "own", allow = ["MPL-2.0"] }]
        clarify = [{ crate = "quiet", expression = "MIT" }]
        [bans]
        skip = [{ crate = "old@1", reason = "x" }]
        [sources]
        allow-registry = ["https://index"]
    "#;
    const INDEX: Option<&str> = Some("registry+https://index");

    fn check(packages: &[(&str, &str, Option<&str>, Option<&str>)]) -> Vec<String> {
        let package = |(name, version, license, source): &(&str, &str, Option<&str>, Option<&str>)| {
            serde_json::json!({ "id": format!("{name} {version}"), "name": name, "version": version, "license": license,
                                "source": source, "manifest_path": "/", "dependencies": [], "metadata": null })
        };
        let nodes: Vec<_> = packages.iter().map(|(name, version, ..)| format!("{name} {version}")).collect();
        let nodes: Vec<_> = nodes.iter().map(|id| serde_json::json!({ "id": id, "deps": [] })).collect();
        let packages: Vec<_> = packages.iter().map(package).collect();
        let metadata = serde_json::json!({ "packages": packages, "resolve": { "nodes": nodes } });
        let metadata: Metadata = serde_json::from_value(metadata).unwrap();
        toml::from_str::<Policy>(POLICY).unwrap().check(&[metadata])
    }

    #[test]
    fn allowed_packages_pass() {
        let packages = [
            ("ours", "0.1.0", Some("MIT"), None),
            ("old", "1.9.0", Some("MIT"), INDEX),
            ("old", "10.0.0", Some("MIT"), INDEX),
            ("own", "1.0.0", Some("MPL-2.0"), INDEX),
            ("quiet", "1.0.0", None, INDEX),
        ];
        assert_eq!(check(&packages), Vec::<String>::new());
    }

    #[test]
    fn everything_else_is_named() {
        let packages = [
            ("bad", "1.0.0", Some("GPL-3.0"), INDEX),
            ("silent", "1.0.0", None, INDEX),
            ("elsewhere", "1.0.0", Some("MIT"), Some("git+https://somewhere")),
            ("twice", "1.0.0", Some("MIT"), INDEX),
            ("twice", "2.0.0", Some("MIT"), INDEX),
            ("other", "1.0.0", Some("MPL-2.0"), INDEX),
        ];
        let wrong = check(&packages);
        assert_eq!(wrong.len(), 6, "{wrong:?}");
        let named = ["bad 1.0.0 is under GPL-3.0", "silent 1.0.0 names no licence", "elsewhere 1.0.0 comes from git+"];
        for part in named.into_iter().chain(["twice 1.0.0 is also present", "other 1.0.0 is under", "skips old@1"]) {
            assert!(wrong.iter().any(|line| line.contains(part)), "{part}: {wrong:?}");
        }
    }
}
