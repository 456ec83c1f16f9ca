//! Mounts, for the first processes of machines.

use std::io;

use nix::mount::MsFlags;

/// Mounts `source` at the directory `target`, which is made where it is missing.
///
/// # Errors
/// The kernel's, with both names.
pub fn mount(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    nix::mount::mount(Some(source), target, Some(kind), MsFlags::empty(), Some(options)).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("mount {source} at {target}: {error}"))
    })
}
