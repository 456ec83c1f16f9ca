//! The configuration of a VM, from a caller or a JSON file.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kind::ErrorKind;
pub use bellows_memory::Backing;
use bellows_memory::layout::MAX_PARTITIONS;
use bellows_memory::{BLOCK, ByteSize};
use bellows_protocol::values::MIN_BASE_LIMIT;
use serde::{Deserialize, Serialize};

mod balloon;
mod command_line;
mod cpu;
mod drive;
mod elastic;
mod guest_network;
mod image;
mod mmds;
mod network;
mod partition_mode;
mod prepare;
pub(crate) mod text;

pub use balloon::BalloonConfig;
pub use cpu::{BitChange, CpuTemplate, CpuidChange, CpuidRegister, MsrChange};
pub use drive::DriveConfig;
pub use elastic::ElasticBaseConfig;
pub use guest_network::GuestNetwork;
pub use image::{
    FlatConfig, ImageConfig, LayerConfig, MAX_FLAT_LAYERS, ParseShapeError, ParseTransportError, Shape, Transport,
};
pub use mmds::MmdsConfig;
pub use network::{HostEnd, MAX_NETWORK_INTERFACES, NetConfig, StreamSocket, Tap};
pub use partition_mode::{ParsePartitionModeError, PartitionMode};

/// Fewest and most vCPUs of a VM.
pub const VCPUS: std::ops::RangeInclusive<u8> = 1..=32;
/// Smallest base memory.
pub const MIN_MEMORY: ByteSize = ByteSize::mib(32);
/// Largest sum of base memory and all partition windows: it leaves room in 46 bits of guest-physical address.
pub const MAX_MEMORY: ByteSize = ByteSize::gib(32 << 10);
/// Largest base memory, and largest window of a partition: KVM takes somewhat less than 8 TiB as one piece.
pub const MAX_PIECE: ByteSize = ByteSize::gib((8 << 10) - 2);
/// Most disks of a VM when it boots.
pub const MAX_DISKS: usize = 200;
/// Interrupt vectors that one vCPU has for devices. The architecture has 256; Linux keeps 32 for exceptions and some 20 for
/// itself, and a few are for devices that are always there.
pub const VECTORS_PER_VCPU: usize = 190;
/// Interrupt vectors of a disk or partition: one for its queue and one for its configuration. Without interrupt lines,
/// drivers of virtio devices need both.
pub(crate) const VECTORS_PER_FUNCTION: usize = 2;
/// Interrupt vectors of vsock and the entropy source.
const FIXED_VECTORS: usize = 4 + 2;
/// Context identifiers that VIRTIO 1.2 section 5.10.4 leaves to guests, except the last one (`VMADDR_CID_ANY`).
pub const GUEST_CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;
/// Longest path of a Unix socket on Linux, less the suffix `_<port>` of a listening socket beside it.
const MAX_SOCKET_PATH: usize = 107 - "_4294967295".len();

/// The configuration of one VM. Unknown fields are errors.
///
/// ```
/// let config: bellows_vmm::VmConfig = serde_json::from_str(
///     r#"{ "kernel": "vmlinux", "memory": "512M", "partitions": ["1G", "1G"],
///          "drives": [{ "path": "scratch.img" }, { "path": "data.img", "read_only": true }] }"#,
/// )?;
/// config.validate()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The guest kernel: an ELF `vmlinux` or a `bzImage`. It needs ACPI, and PCI configuration by ECAM (`CONFIG_PCI_MMCONFIG`).
    pub kernel: PathBuf,
    /// The initial file system that holds the agent.
    #[serde(default)]
    pub initramfs: Option<PathBuf>,
    /// The kernel command line in place of the monitor's own, with ` -- ` before arguments for init. Then the monitor adds only what
    /// devices for memory need.
    #[serde(default)]
    pub command_line: Option<String>,
    /// Parameters added at the end of the kernel command line, each `name` or `name=value`.
    #[serde(default)]
    pub extra_command_line: Vec<String>,
    /// Number of vCPUs. Each has [`VECTORS_PER_VCPU`] interrupt vectors, of which a disk or partition needs two, and a network
    /// interface three: with several pairs of queues, two for each and two more.
    #[serde(default = "default_vcpus")]
    pub vcpus: u8,
    /// What the guest sees of the CPU.
    #[serde(default)]
    pub cpu: CpuTemplate,
    /// Base memory.
    pub memory: ByteSize,
    /// Whether, and how far, base memory grows while the VM runs.
    #[serde(default)]
    pub elastic_base: Option<ElasticBaseConfig>,
    /// The base limit of an instance that names none itself. With `None` the guest's agent divides the base memory for
    /// instances equally among the partitions.
    #[serde(default)]
    pub base_limit: Option<ByteSize>,
    /// The backing of guest memory on the host.
    #[serde(default)]
    pub backing: Backing,
    /// A balloon, through which base memory goes back to the host.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// Window sizes of the partitions: the most that each can be plugged with.
    #[serde(default)]
    pub partitions: Vec<ByteSize>,
    /// How much of each partition is prepared once the guest is ready, at most: the guest adds that memory in the background and
    /// parks it, so that no plug up to that size has to wait for it. Needs the guest memory extension. It costs a 64th of that
    /// in base memory, which is set aside for partitions in any case, but is not in use before.
    #[serde(default)]
    pub prepare: ByteSize,
    /// After how many seconds a guest with the extension removes the memory map of a parked partition, and so gets its base memory
    /// back; 0 never. What is prepared stays: with `prepare`, no partition's is removed.
    #[serde(default = "default_remove_parked_after_s")]
    pub remove_parked_after_s: u32,
    /// The most memory that base memory and all partitions together may have at a time: a plug beyond it is refused. `None`
    /// leaves the limit to the windows and the host.
    #[serde(default)]
    pub memory_limit: Option<ByteSize>,
    /// How partitions are kept apart in the guest.
    #[serde(default)]
    pub partition_mode: PartitionMode,
    /// Images; each has a name of its own.
    #[serde(default)]
    pub images: Vec<ImageConfig>,
    /// Whether to keep account of the pages of images that the guest reads, for [`crate::Vm::profile`].
    #[serde(default)]
    pub record_reads: bool,
    /// The folder in whose file system the scratch disks of instances lie. `None` is `/var/tmp`, or `/tmp` where that is missing.
    #[serde(default)]
    pub scratch_folder: Option<PathBuf>,
    /// Raw disks.
    #[serde(default)]
    pub drives: Vec<DriveConfig>,
    /// Network interfaces; each has a name of its own. The guest finds them in this order.
    #[serde(default)]
    pub network_interfaces: Vec<NetConfig>,
    /// Whether, and how, the guest reaches its metadata ([`crate::Vm::metadata`]).
    #[serde(default)]
    pub mmds: Option<MmdsConfig>,
    /// The connection between guest and host.
    #[serde(default)]
    pub vsock: VsockConfig,
    /// Where the guest's serial console goes.
    #[serde(default)]
    pub serial: SerialOutput,
}

/// The vsock device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Context identifier of the guest.
    #[serde(default = "default_cid")]
    pub cid: u32,
    /// Unix socket that takes `CONNECT <port>`; a socket in a private temporary directory when left out. Connections that the
    /// guest opens to port P reach the socket `<uds_path>_<P>`.
    #[serde(default)]
    pub uds_path: Option<PathBuf>,
}

/// Where the guest's serial console goes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SerialOutput {
    /// The VM has no serial port.
    #[default]
    Off,
    /// To this process's standard output.
    Stdout,
    /// To a file, which is emptied first. A regular file takes 64 MiB; later output of the guest is lost.
    File(PathBuf),
}

/// An invalid value in the configuration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{field}` is {value}: expected {expected}")]
pub struct ConfigError {
    /// Where in the configuration, for example `drives[2].path`.
    pub field: String,
    /// The value there.
    pub value: String,
    /// The values that are valid there.
    pub expected: String,
}

impl ConfigError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl VmConfig {
    /// A VM with `kernel` and `memory` and the default of everything else.
    #[must_use]
    pub fn new(kernel: impl Into<PathBuf>, memory: ByteSize) -> Self {
        Self {
            kernel: kernel.into(),
            initramfs: None,
            command_line: None,
            extra_command_line: Vec::new(),
            vcpus: default_vcpus(),
            cpu: CpuTemplate::default(),
            memory,
            elastic_base: None,
            base_limit: None,
            backing: Backing::default(),
            balloon: None,
            partitions: Vec::new(),
            prepare: ByteSize::bytes(0),
            remove_parked_after_s: default_remove_parked_after_s(),
            memory_limit: None,
            partition_mode: PartitionMode::default(),
            images: Vec::new(),
            record_reads: false,
            scratch_folder: None,
            drives: Vec::new(),
            network_interfaces: Vec::new(),
            mmds: None,
            vsock: VsockConfig::default(),
            serial: SerialOutput::default(),
        }
    }

    /// After what time the guest removes the memory map of a parked partition. `None`: never.
    pub(crate) fn removes_parked_after(&self) -> Option<Duration> {
        let removes = self.partition_mode == PartitionMode::Extension && self.prepare.get() == 0;
        let after = Duration::from_secs(self.remove_parked_after_s.into());
        (removes && !after.is_zero()).then_some(after)
    }

    /// Checks every value, by itself and against the others; touches no file.
    ///
    /// # Errors
    /// The first invalid value, with what was expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_path("kernel", &self.kernel)?;
        if let Some(path) = &self.initramfs {
            check_path("initramfs", path)?;
        }
        command_line::check(self)?;
        if !VCPUS.contains(&self.vcpus) {
            return Err(error("vcpus", self.vcpus, format!("{} to {}", VCPUS.start(), VCPUS.end())));
        }
        self.cpu.check()?;
        check_size("memory", self.memory, MIN_MEMORY)?;
        if let Some(elastic) = &self.elastic_base {
            elastic.check(self.memory)?;
        }
        let base_limits = MIN_BASE_LIMIT..=self.memory.get();
        if let Some(limit) = self.base_limit.filter(|limit| !base_limits.contains(&limit.get())) {
            let expected = format!("{} to `memory`, {}", ByteSize::bytes(MIN_BASE_LIMIT), self.memory);
            return Err(error("base_limit", limit, expected));
        }
        if let Some(balloon) = &self.balloon {
            balloon.check(self.memory, self.backing)?;
        }
        if self.partitions.len() > MAX_PARTITIONS {
            return Err(error("partitions", count(self.partitions.len()), format!("at most {MAX_PARTITIONS}")));
        }
        for (index, window) in self.partitions.iter().enumerate() {
            check_size(&format!("partitions[{index}]"), *window, BLOCK)?;
        }
        let base = self.memory.plus(self.growth());
        let total = self.partitions.iter().map(|window| window.get()).sum::<u64>() + base.get();
        if total > MAX_MEMORY.get() {
            let expected = format!("at most {MAX_MEMORY} with base memory counted in");
            return Err(error("partitions", format!("{} together", ByteSize::bytes(total)), expected));
        }
        prepare::check(self)?;
        if self.remove_parked_after_s > MAX_PARKED_S {
            return Err(error(
                "remove_parked_after_s",
                self.remove_parked_after_s,
                format!("at most {MAX_PARKED_S}, which is 30 days"),
            ));
        }
        if let Some(limit) = self.memory_limit.filter(|limit| *limit < self.memory) {
            let expected = format!("at least the {} of `memory`, which it counts", self.memory);
            return Err(error("memory_limit", limit, expected));
        }
        self.scratch_folder.iter().try_for_each(|folder| check_path("scratch_folder", folder))?;
        self.check_disks()?;
        network::check(&self.network_interfaces, self.vcpus)?;
        if let Some(mmds) = &self.mmds {
            mmds.check(&self.network_interfaces)?;
        }
        self.check_vectors()?;
        self.vsock.check()?;
        if let SerialOutput::File(path) = &self.serial {
            check_path("serial", path)?;
        }
        self.check_written_files()
    }

    fn check_disks(&self) -> Result<(), ConfigError> {
        let mut names = HashMap::new();
        for (index, image) in self.images.iter().enumerate() {
            image.check(&format!("images[{index}]"))?;
            if let Some(other) = names.insert(&image.id, index) {
                let expected = format!("another name than that of `images[{other}]`");
                return Err(error(format!("images[{index}].id"), format!("`{}`", image.id), expected));
            }
        }
        let disks = self.disks();
        if disks > MAX_DISKS {
            let value = format!("{disks} disks with `drives` counted in");
            return Err(error("images", value, format!("at most {MAX_DISKS}")));
        }
        for (index, drive) in self.drives.iter().enumerate() {
            drive.check(&format!("drives[{index}]"))?;
        }
        Ok(())
    }

    /// The most memory that all partitions together may have, if there is a limit.
    pub(crate) fn partition_limit(&self) -> Option<ByteSize> {
        self.memory_limit.map(|limit| ByteSize::bytes(limit.get().saturating_sub(self.memory.get())))
    }

    /// Each device needs interrupt vectors, and the number of vCPUs limits these.
    fn check_vectors(&self) -> Result<(), ConfigError> {
        let images: HashSet<_> = self.images.iter().flat_map(ImageConfig::contents).collect();
        let (disks, partitions) = (images.len() + self.drives.len(), self.partitions.len());
        let balloon = self.balloon.as_ref().map_or(0, BalloonConfig::vectors);
        let networks: usize = self.network_interfaces.iter().map(NetConfig::vectors).sum();
        let needed = FIXED_VECTORS + balloon + networks + VECTORS_PER_FUNCTION * (disks + self.memory_devices());
        if needed <= self.max_vectors() {
            return Ok(());
        }
        let value = format!("{} with {disks} disks and {partitions} partitions", self.vcpus);
        let expected = format!(
            "at least {} for {needed} interrupt vectors, {VECTORS_PER_VCPU} on each",
            needed.div_ceil(VECTORS_PER_VCPU)
        );
        Err(error("vcpus", value, expected))
    }

    /// The number of memory devices: one for each partition, and one for base memory that grows.
    pub(crate) fn memory_devices(&self) -> usize {
        self.partitions.len() + usize::from(self.elastic_base.is_some())
    }

    /// Interrupt vectors for devices in the guest.
    pub(crate) fn max_vectors(&self) -> usize {
        usize::from(self.vcpus) * VECTORS_PER_VCPU
    }

    /// The number of disks when the VM boots: those of images, and drives.
    pub(crate) fn disks(&self) -> usize {
        self.images.iter().map(ImageConfig::disks).sum::<usize>() + self.drives.len()
    }

    /// Several readers may share a path (one layer in two images), but a file that is written has one use.
    fn check_written_files(&self) -> Result<(), ConfigError> {
        let mut uses: Vec<(String, &Path, bool)> = vec![("kernel".into(), &self.kernel, false)];
        uses.extend(self.initramfs.iter().map(|path| ("initramfs".into(), path.as_path(), false)));
        for (index, image) in self.images.iter().enumerate() {
            let layers = image.layers.iter().enumerate();
            uses.extend(layers.map(|(i, l)| (format!("images[{index}].layers[{i}].path"), l.path.as_path(), false)));
            uses.extend(
                image.flat.iter().map(|flat| (format!("images[{index}].flat.path"), flat.path.as_path(), false)),
            );
        }
        let drives = self.drives.iter().enumerate();
        uses.extend(drives.map(|(i, d)| (format!("drives[{i}].path"), d.path.as_path(), !d.read_only)));
        if let SerialOutput::File(path) = &self.serial {
            uses.push(("serial".into(), path, true));
        }
        uses.extend(self.vsock.uds_path.iter().map(|path| ("vsock.uds_path".into(), path.as_path(), true)));

        let mut seen: HashMap<&Path, (&str, bool)> = HashMap::new();
        for (field, path, written) in &uses {
            // A drive twice in one VM is a mistake too, even though nothing would break.
            let once = *written || field.starts_with("drives");
            if let Some((other, other_once)) = seen.insert(path, (field, once))
                && (once || other_once)
            {
                return Err(error(field.as_str(), quoted(path), format!("another path than that of `{other}`")));
            }
        }
        Ok(())
    }
}

impl VsockConfig {
    fn check(&self) -> Result<(), ConfigError> {
        if !GUEST_CIDS.contains(&self.cid) {
            return Err(error("vsock.cid", self.cid, format!("{} to {}", GUEST_CIDS.start(), GUEST_CIDS.end())));
        }
        let Some(path) = &self.uds_path else { return Ok(()) };
        check_path("vsock.uds_path", path)?;
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            let value = format!("{} ({length} bytes)", quoted(path));
            return Err(error("vsock.uds_path", value, format!("at most {MAX_SOCKET_PATH} bytes")));
        }
        Ok(())
    }
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self { cid: default_cid(), uds_path: None }
    }
}

fn default_vcpus() -> u8 {
    1
}

/// The guest's driver counts ticks in 32 bits.
const MAX_PARKED_S: u32 = 30 * 24 * 3600;

fn default_remove_parked_after_s() -> u32 {
    600
}

fn default_cid() -> u32 {
    *GUEST_CIDS.start()
}

fn check_path(field: &str, path: &Path) -> Result<(), ConfigError> {
    if path.as_os_str().is_empty() {
        return Err(error(field, "empty", "a path"));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(error(field, quoted(path), "a path without a zero byte"));
    }
    Ok(())
}

fn check_size(field: &str, size: ByteSize, min: ByteSize) -> Result<(), ConfigError> {
    if size < min || size > MAX_PIECE || !size.is_multiple_of(BLOCK) {
        return Err(error(field, size, format!("a multiple of {BLOCK}, at least {min} and at most {MAX_PIECE}")));
    }
    Ok(())
}

fn count(n: usize) -> String {
    format!("{n} entries")
}

fn quoted(path: &Path) -> String {
    format!("`{}`", path.display())
}

fn error(field: impl Into<String>, value: impl fmt::Display, expected: impl Into<String>) -> ConfigError {
    ConfigError { field: field.into(), value: value.to_string(), expected: expected.into() }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
