//! Describes a lab and makes its files: the initramfs and the disk.

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cpio::Writer;
use super::machine::{Clock, Hardware, Samples};
use super::modules::ModuleTree;
use super::{COUNTED, DISK, Error, KVM_GROUP, Lab, USER, USER_HOME, USER_ID, program};

/// Modules of the lab's kernel: for KVM, the disk, layers, containers, swap, disks with bad sectors, networks, and other
/// VMMs as peers.
const MODULES: &[&str] = &[
    "kvm_amd",
    "virtio_blk",
    "virtio_rng",
    "loop",
    "erofs",
    "overlay",
    "zram",
    "dm_mod",
    "vhost_vsock",
    "vhost_net",
    "tun",
    "dummy",
    "bridge",
    "veth",
    "sch_ingress",
    "cls_u32",
    "act_mirred",
];

/// Start of the name of a lab's directory; the number of its process and a random part follow.
const SCRATCH_PREFIX: &str = "bellows-lab-";

/// The files every lab is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Debian's 6.12 cloud kernel (`bzImage`).
    pub kernel: PathBuf,
    /// Its modules, `lib/modules/<release>`.
    pub modules: PathBuf,
    /// The program `bellows-lab-init` of this crate.
    pub init: PathBuf,
    /// What QEMU loads: `libbellows_lab_plugin.so`.
    pub plugin: PathBuf,
}

/// A lab to boot.
#[derive(Debug)]
pub struct LabBuilder {
    parts: Parts,
    clock: Clock,
    samples: Option<Samples>,
    memory_mib: u64,
    scratch: PathBuf,
    files: Vec<(PathBuf, PathBuf)>,
    programs: Vec<(PathBuf, PathBuf)>,
    disk: Vec<(PathBuf, String)>,
    disk_mib: u64,
}

impl LabBuilder {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            clock: Clock::default(),
            samples: None,
            memory_mib: 8192,
            scratch: std::env::temp_dir(),
            files: Vec::new(),
            programs: Vec::new(),
            disk: Vec::new(),
            disk_mib: 8192,
        }
    }

    /// How time passes; as it does outside by default.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Samples where the processor is.
    pub fn samples(mut self, samples: Samples) -> Self {
        self.samples = Some(samples);
        self
    }

    /// RAM of the emulated host, in MiB; 8192 by default. Only touched pages cost memory here.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The directory for the lab's files while it runs; by default the directory for temporary files.
    pub fn scratch(mut self, directory: impl Into<PathBuf>) -> Self {
        self.scratch = directory.into();
        self
    }

    /// Puts a file, or a directory with all below it, in the lab's root, which is in memory.
    pub fn file(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.files.push((source.into(), target.into()));
        self
    }

    /// Puts a program at `target` and its shared libraries where the dynamic linker looks for them.
    pub fn program(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.programs.push((source.into(), target.into()));
        self
    }

    /// Puts a file or a directory on the lab's disk, as [`DISK`](super::DISK)`/name`. With counted time that is in memory.
    pub fn on_disk(mut self, source: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        self.disk.push((source.into(), name.into()));
        self
    }

    /// Size of the disk in MiB; 8192 by default. It is sparse.
    pub fn disk_mib(mut self, mib: u64) -> Self {
        self.disk_mib = mib;
        self
    }

    /// Makes the files, starts the machine and waits until it answers.
    pub fn boot(self) -> Result<Lab, Error> {
        std::fs::create_dir_all(&self.scratch).map_err(Error::at(&self.scratch))?;
        remove_leftovers(&self.scratch);
        let scratch = tempfile::Builder::new()
            .prefix(&format!("{SCRATCH_PREFIX}{}-", std::process::id()))
            .tempdir_in(&self.scratch)
            .map_err(Error::at(&self.scratch))?;
        let disk = match self.clock {
            Clock::Wall => Some(self.write_disk(scratch.path())?),
            Clock::Counted => None,
        };
        let hardware = Hardware {
            clock: self.clock,
            plugin: self.parts.plugin.clone(),
            samples: self.samples.clone(),
            kernel: self.parts.kernel.clone(),
            initramfs: self.write_initramfs(&scratch.path().join("initramfs.cpio"))?,
            disk,
            memory_mib: self.memory_mib,
            console: scratch.path().join("console.log"),
            command_line: self.command_line(),
        };
        Lab::boot(&hardware, scratch)
    }

    fn command_line(&self) -> String {
        // Speculation leaks nothing here: the emulated processor has none.
        let common = "console=ttyS0 panic=-1 quiet tsc=reliable mitigations=off";
        match self.clock {
            Clock::Wall => common.to_owned(),
            Clock::Counted => format!("{common} {COUNTED}=1"),
        }
    }

    fn write_initramfs(&self, path: &Path) -> Result<PathBuf, Error> {
        let out = BufWriter::new(File::create(path).map_err(Error::at(path))?);
        let mut root = Root { archive: Writer::new(out), path };
        root.archive.char_device(Path::new("/dev/console"), 0o600, (5, 1)).map_err(Error::at(path))?;
        root.program(&self.parts.init, Path::new("/init"))?;
        root.busybox()?;
        let mut order = String::new();
        for module in ModuleTree::open(&self.parts.modules)?.load_order(MODULES)? {
            let name = format!("/modules/{}.ko", module.name);
            order.push_str(&format!("{name}\n"));
            root.bytes(Path::new(&name), 0o644, &module.object)?;
        }
        root.bytes(Path::new("/modules/load"), 0o644, order.as_bytes())?;
        let users = format!("root:x:0:0:root:/root:/bin/sh\n{USER}:x:{USER_ID}:{USER_ID}::{USER_HOME}:/bin/sh\n");
        root.bytes(Path::new("/etc/passwd"), 0o644, users.as_bytes())?;
        let groups = format!("root:x:0:\nkvm:x:{KVM_GROUP}:{USER}\n{USER}:x:{USER_ID}:\n");
        root.bytes(Path::new("/etc/group"), 0o644, groups.as_bytes())?;
        root.bytes(Path::new("/etc/hosts"), 0o644, b"127.0.0.1 localhost\n")?;
        root.bytes(Path::new("/etc/resolv.conf"), 0o644, b"")?;
        root.archive.directory(Path::new("/root")).map_err(Error::at(path))?;
        for (source, target) in &self.programs {
            root.program(source, target)?;
        }
        for (source, target) in &self.files {
            root.tree(source, target)?;
        }
        if self.clock == Clock::Counted {
            root.archive.directory(Path::new(DISK)).map_err(Error::at(path))?;
            for (source, name) in &self.disk {
                root.tree(source, &Path::new(DISK).join(name))?;
            }
        }
        root.archive.finish().map_err(Error::at(path))?;
        Ok(path.to_path_buf())
    }

    fn write_disk(&self, scratch: &Path) -> Result<PathBuf, Error> {
        let content = scratch.join("disk");
        std::fs::create_dir(&content).map_err(Error::at(&content))?;
        for (source, name) in &self.disk {
            let target = content.join(name);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).map_err(Error::at(parent))?;
            }
            tool("cp", Command::new("cp").args(["-aLT", "--reflink=auto"]).arg(source).arg(&target))?;
        }
        let image = scratch.join("disk.ext4");
        let size = format!("{}M", self.disk_mib);
        tool(
            "mkfs.ext4",
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,root_owner=0:0", "-d"])
                .arg(&content)
                .arg(&image)
                .arg(size),
        )?;
        std::fs::remove_dir_all(&content).map_err(Error::at(&content))?;
        Ok(image)
    }
}

/// Removes files of labs whose process was killed. Its number is in their names.
fn remove_leftovers(scratch: &Path) {
    for entry in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(SCRATCH_PREFIX)?.split_once('-'));
        if owner.is_some_and(|(process, _)| !Path::new("/proc").join(process).exists()) {
            // Another process may be removing it at the same time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn tool(name: &'static str, command: &mut Command) -> Result<(), Error> {
    // mkfs.ext4 lies in /usr/sbin, which is not in an ordinary user's PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    let output = command.env("PATH", format!("{path}:/usr/sbin:/sbin")).output().map_err(Error::at(Path::new(name)))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Tool { tool: name, message: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

/// The lab's root file system while it's written.
struct Root<'a> {
    archive: Writer<BufWriter<File>>,
    path: &'a Path,
}

impl Root<'_> {
    fn bytes(&mut self, target: &Path, mode: u32, data: &[u8]) -> Result<(), Error> {
        self.archive.file(target, mode, data).map_err(Error::at(self.path))
    }

    fn copy(&mut self, source: &Path, target: &Path) -> Result<(), Error> {
        let data = std::fs::read(source).map_err(Error::at(source))?;
        let mode = std::fs::metadata(source).map_err(Error::at(source))?.permissions().mode();
        self.bytes(target, mode, &data)
    }

    /// A file that comes twice, for example a library, just replaces itself when the kernel unpacks the archive.
    fn program(&mut self, source: &Path, target: &Path) -> Result<(), Error> {
        self.copy(source, target)?;
        for library in program::with_libraries(source)?.iter().skip(1) {
            self.copy(library, library)?;
        }
        Ok(())
    }

    fn busybox(&mut self) -> Result<(), Error> {
        let busybox = Path::new("/bin/busybox");
        self.copy(busybox, busybox)?;
        let output = Command::new(busybox).arg("--list").output().map_err(Error::at(busybox))?;
        for applet in String::from_utf8_lossy(&output.stdout).lines().filter(|name| *name != "busybox") {
            self.archive
                .symlink(&Path::new("/bin").join(applet), Path::new("busybox"))
                .map_err(Error::at(self.path))?;
        }
        Ok(())
    }

    fn tree(&mut self, source: &Path, target: &Path) -> Result<(), Error> {
        let kind = std::fs::metadata(source).map_err(Error::at(source))?;
        if !kind.is_dir() {
            return self.copy(source, target);
        }
        self.archive.directory(target).map_err(Error::at(self.path))?;
        for entry in std::fs::read_dir(source).map_err(Error::at(source))? {
            let entry = entry.map_err(Error::at(source))?;
            self.tree(&entry.path(), &target.join(entry.file_name()))?;
        }
        Ok(())
    }
}
