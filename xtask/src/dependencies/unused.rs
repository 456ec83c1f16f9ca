//! Dependencies that no source of their crate names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::metadata::{Metadata, Package};
use crate::error::{Error, Result};

/// Names the dependencies of the checkout's own crates that nothing uses. A dependency that only generated code names is
/// listed in the manifest's `[package.metadata.unused] ignored`.
pub fn find(workspaces: &[Metadata]) -> Result<Vec<String>> {
    let mut unused = Vec::new();
    for package in workspaces.iter().flat_map(|metadata| &metadata.packages).filter(|package| package.source.is_none())
    {
        let words = words(package)?;
        let missing = package.dependencies.iter().filter(|dependency| {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
            // A package may depend on itself, to enable features in its tests.
            *name != package.name && !words.contains(&name.replace('-', "_")) && !package.ignores(name)
        });
        unused.extend(missing.map(|dependency| format!("{} does not use {}", package.name, dependency.name)));
    }
    Ok(unused)
}

impl Package {
    fn ignores(&self, dependency: &str) -> bool {
        let ignored = self.metadata["unused"]["ignored"].as_array();
        ignored.is_some_and(|names| names.iter().any(|name| name == dependency))
    }
}

/// All words in a package's Rust sources.
fn words(package: &Package) -> Result<BTreeSet<String>> {
    let folder = package.manifest_path.parent().unwrap_or(Path::new("."));
    let mut words = BTreeSet::new();
    for path in sources(folder)? {
        let text = fs::read_to_string(&path).map_err(Error::at(&path))?;
        words.extend(text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned));
    }
    Ok(words)
}

/// The Rust sources below a package's folder, without those of packages in it.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let mut sources = Vec::new();
    for path in entries.map_err(Error::at(folder))?.iter().map(fs::DirEntry::path) {
        if path.is_dir() && !path.join("Cargo.toml").exists() && !path.ends_with("target") {
            sources.extend(self::sources(&path)?);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            sources.push(path);
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_used_where_a_source_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        fs::create_dir_all(place("src/inner")).unwrap();
        fs::create_dir_all(place("other/src")).unwrap();
        fs::write(place("src/inner/a.rs"), "use used_here::A; use renamed::B;").unwrap();
        fs::write(place("other/Cargo.toml"), "").unwrap();
        fs::write(place("other/src/lib.rs"), "use used_there::A;").unwrap();
        let dependency = |name: &str| serde_json::json!({ "name": name, "rename": null });
        let metadata = serde_json::json!({
            "packages": [{
                "id": "p", "name": "p", "version": "1", "license": null, "source": null, "manifest_path": place("Cargo.toml"),
                "dependencies": [dependency("used-here"), dependency("used-there"), dependency("generated"),
                                 { "name": "long-name", "rename": "renamed" }],
                "metadata": { "unused": { "ignored": ["generated"] } },
            }],
            "resolve": { "nodes": [] },
        });
        let metadata: Metadata = serde_json::from_value(metadata).unwrap();
        assert_eq!(find(&[metadata]).unwrap(), ["p does not use used-there"]);
    }
}
