//! The notices of crates that the package's programs contain.

use std::fs;
use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use crate::error::{Error, Result};

/// Names, versions, licences and notices of all crates that the package's programs contain.
pub fn notices() -> Result<String> {
    let metadata = Metadata::read("Cargo.toml")?;
    let contained = metadata.contained(&["bellows", "bellows-agent"]);
    let mut packages: Vec<_> = metadata.packages.iter().filter(|package| contained.contains(&*package.id)).collect();
    packages.retain(|package| package.source.is_some());
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    let mut text = String::from("Crates that bellows and the agent of its guests contain.\n");
    for package in packages {
        let license = package.license.as_deref().unwrap_or("see below");
        text.push_str(&format!("\n{:=<80}\n{} {}: {license}\n", "", package.name, package.version));
        for path in notices_in(package.manifest_path.parent().unwrap_or(Path::new(".")))? {
            let notice = fs::read(&path).map_err(Error::at(&path))?;
            text.push_str(&format!("{:-<80}\n{}\n", "", String::from_utf8_lossy(&notice).trim_end()));
        }
    }
    Ok(text)
}

/// The files with licences and notices in a crate's folder.
fn notices_in(folder: &Path) -> Result<Vec<PathBuf>> {
    const BEGINNINGS: [&str; 4] = ["LICEN", "COPYING", "NOTICE", "COPYRIGHT"];
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let mut paths: Vec<_> = entries.map_err(Error::at(folder))?.iter().map(fs::DirEntry::path).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        path.is_file() && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
    });
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crates_licences_and_notices_are_found() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["LICENSE-MIT", "license.txt", "COPYING", "README.md"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let paths = notices_in(directory.path()).unwrap();
        let names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["COPYING", "LICENSE-MIT", "license.txt"]);
    }
}
