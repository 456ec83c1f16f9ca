//! The guest's initramfs: the agent as `/init` and, for kernels that need them, modules in load order.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use bellows_lab::cpio::Writer;
use bellows_lab::modules::{Module, ModuleTree};

use crate::cache::{Cache, Key};
use crate::debian::DebianKernel;
use crate::error::{Error, Result};
use crate::{progress, run};

/// What the agent needs of a kernel that has it as modules.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "veth",
    "virtio_mem",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "virtio_rng",
    "virtio_pmem",
    "nd_pmem",
    "erofs",
    "overlay",
    "tcp_diag",
];

/// The initramfs for our own kernel, which has everything built in.
pub fn built_in(cache: &Cache, agent: &Path) -> Result<PathBuf> {
    make(cache, &[("init", agent)], Vec::new())
}

/// The same with another first process, which becomes the agent at `/agent`.
pub fn with_echo(cache: &Cache, agent: &Path, echo: &Path) -> Result<PathBuf> {
    make(cache, &[("init", echo), ("agent", agent)], Vec::new())
}

/// The initramfs for Debian's kernel: `/modules/<name>.ko`, and `/modules/load` with one path per line in load order.
pub fn with_modules(cache: &Cache, agent: &Path, kernel: &DebianKernel) -> Result<PathBuf> {
    make(cache, &[("init", agent)], ModuleTree::open(&kernel.modules)?.load_order(MODULES)?)
}

/// The initramfs for a peer's guest with our own kernel: another program in the agent's place.
pub fn peer(cache: &Cache, init: &Path) -> Result<PathBuf> {
    make(cache, &[("init", init)], Vec::new())
}

/// The initramfs for a guest with our own kernel that makes and takes traffic: `init` sets its interface up with busybox.
pub fn net(cache: &Cache, init: &Path) -> Result<PathBuf> {
    make(cache, &[("init", init), ("busybox", Path::new("/bin/busybox"))], Vec::new())
}

/// Packs `programs`, each with its name in the root.
fn make(cache: &Cache, programs: &[(&str, &Path)], modules: Vec<Module>) -> Result<PathBuf> {
    let mut key = Key::default().with("recipe", "4");
    for (name, program) in programs {
        key = key.with(name, "").with_file(program)?;
    }
    for module in &modules {
        key = key.with(&module.name, &module.object);
    }
    let entry = cache.get("initramfs", &key, |place| {
        progress::step("pack the guest's initramfs", |step| {
            // Symbols are four fifths of it, and the guest keeps all of it in memory.
            for (name, program) in programs {
                run::quiet(step, Command::new("strip").arg("-o").arg(place.join(name)).arg(program))?;
            }
            let path = place.join("initramfs.cpio");
            let names = programs.iter().map(|(name, _)| *name);
            write(&path, place, names, &modules).map_err(Error::at(&path))
        })
    })?;
    Ok(entry.join("initramfs.cpio"))
}

fn write<'a>(
    path: &Path,
    place: &Path,
    programs: impl Iterator<Item = &'a str>,
    modules: &[Module],
) -> std::io::Result<()> {
    let mut archive = Writer::new(BufWriter::new(File::create(path)?));
    for directory in ["/dev", "/proc", "/sys", "/run", "/tmp"] {
        archive.directory(Path::new(directory))?;
    }
    archive.char_device(Path::new("/dev/console"), 0o600, (5, 1))?;
    // A program in Rust begins with three streams. Where the console is no device, it takes this.
    archive.char_device(Path::new("/dev/null"), 0o666, (1, 3))?;
    for name in programs {
        archive.file(&Path::new("/").join(name), 0o755, &fs::read(place.join(name))?)?;
    }
    let mut order = String::new();
    for module in modules {
        let name = format!("/modules/{}.ko", module.name);
        archive.file(Path::new(&name), 0o644, &module.object)?;
        order.push_str(&name);
        order.push('\n');
    }
    if !modules.is_empty() {
        archive.file(Path::new("/modules/load"), 0o644, order.as_bytes())?;
    }
    archive.finish()?;
    Ok(())
}
