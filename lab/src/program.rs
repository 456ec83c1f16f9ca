//! The files that a program of this machine needs elsewhere: itself and its shared libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;

/// The program and every library the dynamic linker would load, as absolute paths; only the program if it is static.
pub fn with_libraries(program: &Path) -> Result<Vec<PathBuf>, Error> {
    let output = Command::new("ldd").arg(program).output().map_err(Error::at(Path::new("ldd")))?;
    let mut files = vec![program.to_path_buf()];
    // A static program makes ldd fail; a missing library shows in its output.
    files.extend(libraries(&String::from_utf8_lossy(&output.stdout), program)?);
    Ok(files)
}

fn libraries(listing: &str, program: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for line in listing.lines().map(str::trim) {
        if line.ends_with("not found") {
            return Err(Error::Tool { tool: "ldd", message: format!("{}: {line}", program.display()) });
        }
        let path = match line.split_once(" => ") {
            Some((_, target)) => target,
            None => line,
        };
        if let Some(path) = path.split(" (").next().filter(|path| path.starts_with('/')) {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_paths_and_leaves_the_vdso() {
        let listing =
            "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so (0x7f)\n";
        let found = libraries(listing, Path::new("x")).unwrap();
        assert_eq!(found, [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so")]);
        assert!(libraries("\tstatically linked\n", Path::new("x")).unwrap().is_empty());
        assert!(libraries("\tliba.so => not found\n", Path::new("x")).is_err());
    }
}
