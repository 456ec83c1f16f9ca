//! What the VM is made of, before it boots: plain data, which each request changes or leaves as it was.

use bellows_vmm::config::CpuTemplate;
use bellows_vmm::{ConfigError, VmConfig};
use serde_json::{Value, json};

use super::bodies::mmds::explain;
use super::bodies::{
    Balloon, BootSource, Drive, DriveUpdate, Entropy, Logger, Machine, MemoryHotplug, Metrics, Mmds, Network,
    NetworkUpdate, Partition, Pmem, Serial, Vsock,
};
use super::fault::Fault;
use super::request::Change;

/// Names of the library's configuration, and Firecracker's for the same. Those in lists are of drives and network interfaces.
const NAMES: [(&str, &str); 13] = [
    ("command_line", "boot_args"),
    ("extra_command_line", "boot_args"),
    ("kernel", "kernel_image_path"),
    ("initramfs", "initrd_path"),
    ("memory", "mem_size_mib"),
    ("serial", "serial_out_path"),
    ("vcpus", "vcpu_count"),
    ("path", "path_on_host"),
    ("id", "iface_id"),
    ("tap", "host_dev_name"),
    ("mac", "guest_mac"),
    ("mmds.interfaces", "network_interfaces"),
    ("mmds.address", "ipv4_address"),
];

/// What requests have said so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configuration {
    pub(crate) machine: Machine,
    cpu: CpuTemplate,
    pub(crate) balloon: Option<Balloon>,
    pub(crate) memory_hotplug: Option<MemoryHotplug>,
    pub(crate) logger: Option<Logger>,
    pub(crate) metrics: Option<Metrics>,
    boot_source: Option<BootSource>,
    /// The root device comes first.
    drives: Vec<Drive>,
    /// The root device comes first.
    pmems: Vec<Pmem>,
    networks: Vec<Network>,
    /// The first is partition 1.
    partitions: Vec<Partition>,
    vsock: Option<Vsock>,
    mmds: Option<Mmds>,
    entropy: Option<Entropy>,
    serial: Serial,
}

impl Configuration {
    /// With a change that is made before the VM boots. The rest of the changes leaves it as it is.
    ///
    /// # Errors
    /// The change is wrong, by itself or with what was said before.
    pub(crate) fn with(&self, change: &Change) -> Result<Self, Fault> {
        let mut changed = self.clone();
        match change {
            Change::BootSource(source) => {
                source.check()?;
                changed.boot_source = Some(source.clone());
            }
            Change::Machine(machine) => {
                machine.check()?;
                changed.machine = *machine;
            }
            Change::UpdateMachine(update) => {
                changed.machine = self.machine.updated(*update)?;
                changed.machine.check()?;
            }
            Change::Cpu(cpu) => changed.cpu = cpu.template()?,
            Change::Drive(drive) => {
                drive.check()?;
                changed.insert(drive.clone());
            }
            Change::Pmem(pmem) => {
                pmem.check()?;
                changed.pmems.retain(|other| other.id != pmem.id);
                changed.has_pmem(pmem.clone());
                changed.pmems.sort_by_key(|pmem| !pmem.root_device);
            }
            Change::Network(network) => {
                changed.networks.retain(|other| other.iface_id != network.iface_id);
                changed.networks.push(Network::clone(network));
            }
            Change::Partition(number, partition) => changed.has_partition(*number, *partition)?,
            Change::Vsock(vsock) => {
                vsock.check()?;
                changed.vsock = Some(vsock.clone());
            }
            Change::MemoryHotplug(hotplug) => changed.memory_hotplug = Some(*hotplug),
            Change::Mmds(mmds) => changed.mmds = Some(mmds.clone()),
            Change::Entropy(entropy) => {
                entropy.check()?;
                changed.entropy = Some(*entropy);
            }
            Change::Balloon(balloon) => changed.balloon = Some(*balloon),
            Change::Serial(serial) => {
                serial.check()?;
                changed.serial = serial.clone();
            }
            _ => {}
        }
        changed.check_roots()?;
        if let Some(hotplug) = changed.memory_hotplug {
            hotplug.check(changed.machine)?;
        }
        changed.library().validate().map_err(|error| named(&error))?;
        Ok(changed)
    }

    /// What the library is to boot.
    ///
    /// # Errors
    /// Nothing says what to boot.
    pub(crate) fn vm(&self) -> Result<VmConfig, Fault> {
        if self.boot_source.is_none() {
            return Err(Fault::new("there is nothing to boot: expected `PUT /boot-source` before"));
        }
        Ok(self.library())
    }

    /// All that was said; without a kernel, the path of one that is none.
    fn library(&self) -> VmConfig {
        let source = self.boot_source.as_ref();
        let kernel = source.map_or_else(|| "/".into(), |source| source.kernel_image_path.clone());
        let mut config = VmConfig::new(kernel, self.machine.memory());
        config.initramfs = source.and_then(|source| source.initrd_path.clone());
        config.command_line = source.and_then(BootSource::command_line);
        let roots = self.drives.iter().flat_map(Drive::root_parameters);
        config.extra_command_line = roots.chain(self.pmems.iter().flat_map(Pmem::root_parameters)).collect();
        config.vcpus = self.machine.vcpu_count;
        config.cpu = self.cpu.clone();
        config.backing = self.machine.backing();
        config.balloon = self.balloon.map(Balloon::config);
        config.drives = self.drives.iter().map(Drive::config).chain(self.pmems.iter().map(Pmem::config)).collect();
        config.vsock = self.vsock.as_ref().map(Vsock::config).unwrap_or_default();
        config.elastic_base = self.memory_hotplug.map(|hotplug| hotplug.config(self.machine));
        config.mmds = self.mmds.as_ref().map(Mmds::config);
        config.serial = self.serial.config();
        config.network_interfaces = self.networks.iter().map(Network::config).collect();
        config.partitions = self.partitions.iter().map(|partition| partition.window()).collect();
        config
    }

    /// Puts a drive in, or in the place of the one with its name.
    fn insert(&mut self, drive: Drive) {
        match self.drives.iter_mut().find(|other| other.drive_id == drive.drive_id) {
            Some(other) => *other = drive,
            None => self.drives.push(drive),
        }
        self.drives.sort_by_key(|drive| !drive.is_root_device);
    }

    /// Refuses a second root device.
    fn check_roots(&self) -> Result<(), Fault> {
        let drives = self.drives.iter().filter(|drive| drive.is_root_device).map(|drive| &drive.drive_id);
        let roots: Vec<_> =
            drives.chain(self.pmems.iter().filter(|pmem| pmem.root_device).map(|pmem| &pmem.id)).collect();
        match roots[..] {
            [first, second, ..] => {
                Err(Fault::new(format!("`{first}` and `{second}` would both be the root device: expected one")))
            }
            _ => Ok(()),
        }
    }

    /// Puts a partition in, or in the place of the one with its number.
    fn has_partition(&mut self, number: u16, partition: Partition) -> Result<(), Fault> {
        let (index, count) = (usize::from(number) - 1, self.partitions.len());
        match self.partitions.get_mut(index) {
            Some(other) => *other = partition,
            None if index == count => self.partitions.push(partition),
            None => {
                let expected = format!("1 to {}: partitions are numbered without gaps", count + 1);
                return Err(Fault::value("partition", number, expected));
            }
        }
        Ok(())
    }

    /// The drive of that name.
    pub(crate) fn drive(&self, id: &str) -> Result<&Drive, Fault> {
        self.drives
            .iter()
            .find(|drive| drive.drive_id == id)
            .ok_or_else(|| Fault::new(format!("there is no drive `{id}`")))
    }

    /// The pmem device of that name.
    pub(crate) fn pmem(&self, id: &str) -> Result<&Pmem, Fault> {
        let found = self.pmems.iter().find(|pmem| pmem.id == id);
        found.ok_or_else(|| Fault::new(format!("there is no pmem device `{id}`")))
    }

    /// A pmem device has come.
    pub(crate) fn has_pmem(&mut self, pmem: Pmem) {
        self.pmems.push(pmem);
    }

    /// A pmem device has gone while the VM runs.
    pub(crate) fn has_no_pmem(&mut self, id: &str) {
        self.pmems.retain(|pmem| pmem.id != id);
    }

    /// Refuses a pmem device that cannot come while the VM runs.
    pub(crate) fn check_pmem_hotplug(&self, pmem: &Pmem) -> Result<(), Fault> {
        if self.pmem(&pmem.id).is_ok() {
            let expected = "a name that no pmem device has while the VM runs";
            return Err(Fault::value("id", format!("`{}`", pmem.id), expected));
        }
        if pmem.root_device {
            return Err(Fault::value("root_device", true, "false, for the VM has booted"));
        }
        pmem.check()
    }

    /// A drive has come while the VM runs.
    pub(crate) fn has_drive(&mut self, drive: Drive) {
        self.drives.push(drive);
    }

    /// A drive has gone while the VM runs.
    pub(crate) fn has_no_drive(&mut self, id: &str) {
        self.drives.retain(|drive| drive.drive_id != id);
    }

    /// A drive has changed while the VM runs.
    pub(crate) fn update_drive(&mut self, update: &DriveUpdate) {
        if let Some(drive) = self.drives.iter_mut().find(|drive| drive.drive_id == update.drive_id) {
            drive.update(update);
        }
    }

    /// Whether there is a network interface of that name.
    pub(crate) fn has_network_named(&self, id: &str) -> bool {
        self.networks.iter().any(|network| network.iface_id == id)
    }

    /// A network interface has come while the VM runs.
    pub(crate) fn has_network(&mut self, network: Network) {
        self.networks.push(network);
    }

    /// A network interface has gone while the VM runs.
    pub(crate) fn has_no_network(&mut self, id: &str) {
        self.networks.retain(|network| network.iface_id != id);
    }

    /// A network interface has changed while the VM runs.
    pub(crate) fn update_network(&mut self, update: &NetworkUpdate) {
        if let Some(network) = self.networks.iter_mut().find(|network| network.iface_id == update.iface_id) {
            network.update(update);
        }
    }

    /// Refuses a drive that cannot come while the VM runs.
    pub(crate) fn check_hotplug(&self, drive: &Drive) -> Result<(), Fault> {
        if self.drive(&drive.drive_id).is_ok() {
            let expected = "a name that no drive has while the VM runs";
            return Err(Fault::value("drive_id", format!("`{}`", drive.drive_id), expected));
        }
        if drive.is_root_device {
            return Err(Fault::value("is_root_device", true, "false, for the VM has booted"));
        }
        drive.check()
    }

    /// The body of `GET /vm/config`.
    pub(crate) fn json(&self) -> Value {
        let mut said = json!({
            "balloon": self.balloon,
            "drives": self.drives,
            "boot-source": self.boot_source,
            "cpu-config": null,
            "logger": self.logger,
            "machine-config": self.machine,
            "metrics": self.metrics,
            "mmds-config": self.mmds.as_ref().map(|mmds| mmds.shown(&self.networks)),
            "network-interfaces": self.networks,
            "vsock": self.vsock,
            "entropy": self.entropy,
            "pmem": self.pmems,
            "memory-hotplug": self.memory_hotplug,
        });
        // Strict clients know Firecracker's names only.
        if !self.partitions.is_empty() {
            said["partitions"] = json!(self.partitions);
        }
        said
    }
}

/// The library's error under Firecracker's names.
fn named(error: &ConfigError) -> Fault {
    let field = error.field.split_once("].").map_or(error.field.as_str(), |(_, field)| field);
    let name = NAMES.iter().find(|(ours, _)| *ours == field).map_or(field, |(_, theirs)| theirs);
    let fault = Fault::value(name, &error.value, &error.expected);
    match explain(error) {
        Some(text) => Fault::new(format!("{text} ({fault})")),
        None => fault,
    }
}

#[cfg(test)]
#[path = "configuration_test.rs"]
mod tests;
