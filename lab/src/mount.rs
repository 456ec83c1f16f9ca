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

/// Has the first file system of the kernel, which nothing can take the place of, below a mount of itself. Programs that confine
/// themselves exchange the root (`pivot_root`), as they can on other hosts. Nothing else is mounted yet.
///
/// # Errors
/// The kernel's.
pub fn mount_root() -> io::Result<()> {
    const ROOT: &str = "/mounted-root";
    let mount =
        |source: &str, target: &str, flags| nix::mount::mount(Some(source), target, None::<&str>, flags, None::<&str>);
    std::fs::create_dir_all(ROOT)?;
    mount("/", ROOT, MsFlags::MS_BIND)?;
    std::env::set_current_dir(ROOT)?;
    mount(ROOT, "/", MsFlags::MS_MOVE)?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}
