//! The function of a run: an image's command with the user's changes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bellows_block::{Digest, Image, Store, oci};
use bellows_memory::ByteSize;
use bellows_vmm::{ImageConfig, ImageId, InstanceNetwork, InstanceSpec, LayerConfig, PartitionId, Vm, VmConfig};
use sha2::{Digest as _, Sha256};

use super::volume;
use crate::cli::RunArgs;
use crate::environment::environment;
use crate::error::{CliError, io_error};
use crate::guest::{configured, placed, whole_blocks};
use crate::interrupt::Interrupts;
use crate::network::options::NetMode;
use crate::options::scratch::ScratchArg;
use crate::store;
use crate::terminal;

/// The image without layers, as Docker calls it.
const SCRATCH: &str = "scratch";

/// The size that asks for no partition: the instance runs in base memory.
pub(super) const IN_BASE: ByteSize = ByteSize::bytes(0);

/// The function, and its memory.
pub(super) struct Function {
    pub(super) spec: InstanceSpec,
    /// The size to plug its partition with.
    pub(super) memory: ByteSize,
    /// The record of the pages that it reads.
    pub(super) profile: Option<ProfilePlace>,
}

/// An image of a store, whose profile is being recorded.
pub(super) struct ProfilePlace {
    store: Store,
    image: Image,
}

impl Function {
    /// The store that the end of the run writes to, if it does.
    pub(super) fn store(&self) -> Option<&Store> {
        self.profile.as_ref().map(|profile| &profile.store)
    }
}

impl ProfilePlace {
    /// Saves the pages read by now; returns their bytes.
    pub(super) fn keep(&self, vm: &Vm, image: &ImageId) -> Result<u64, CliError> {
        let profile = vm.profile(image)?;
        self.store.keep_read_set(&self.image, &profile)?;
        Ok(profile.bytes())
    }
}

/// Adds the image to the configuration, whose first partition is the instance's; without an image there is no function.
pub(super) fn prepare(
    args: &RunArgs,
    config: &mut VmConfig,
    interrupts: &Interrupts,
) -> Result<Option<Function>, CliError> {
    let Some(name) = args.image() else { return Ok(None) };
    let Found { mut image, mut defaults, profile } = find(name, args, config, interrupts)?;
    if !args.layers.is_empty() {
        // The added layers are not in the image's own metadata.
        image.flat = None;
        image.layers.extend(image.fixup.take());
        for path in &args.layers {
            image.layers.push(layer_of_file(path)?);
        }
    }
    if let Some(entrypoint) = &args.entrypoint {
        // The image's arguments belong to its own entrypoint.
        defaults.entrypoint = Some(entrypoint.clone()).filter(|program| !program.is_empty()).into_iter().collect();
        defaults.cmd.clear();
    }
    let mut spec = InstanceSpec::new("main".parse()?, image.id.clone(), defaults.argv(args.command()));
    config.images.push(image);
    if spec.process.argv.is_empty() {
        return Err(CliError::Missing("the command", "IMAGE CMD: the image has no command of its own"));
    }
    spec.process.env = environment(&defaults.env, &args.env_files, &args.env, |name| std::env::var_os(name))?;
    spec.process.cwd = args.cwd.clone().unwrap_or(defaults.working_dir);
    spec.process.user = args.user.as_ref().unwrap_or(&defaults.user).parse()?;
    spec.process.stdio = terminal::stdio(args.interactive, args.tty)?;
    spec.base_limit = args.base_limit;
    spec.network = network(args.network.mode(), config)?;
    if !args.volumes.is_empty() {
        let store = store::open(args.store.as_deref())?;
        for volume in &args.volumes {
            spec.volumes.push(volume::add(volume, &store, &mut config.images, interrupts)?);
        }
    }
    spec.scratch = args.scratch.clone().map(|ScratchArg(scratch)| scratch);
    let memory = memory(args.memory, config)?;
    if memory != IN_BASE {
        spec.partition = Some(PartitionId::new(1).ok_or(CliError::PartitionNumber(0))?);
    }
    // Before anything boots.
    spec.validate()?;
    Ok(Some(Function { spec, memory, profile }))
}

/// An image, and its settings for a run.
struct Found {
    image: ImageConfig,
    defaults: oci::ImageConfig,
    profile: Option<ProfilePlace>,
}

/// Finds IMAGE: in the configuration, which it is taken out of, or where [`store::find_image`] does.
fn find(name: &str, args: &RunArgs, config: &mut VmConfig, interrupts: &Interrupts) -> Result<Found, CliError> {
    let alone = |image| Found { image, defaults: oci::ImageConfig::default(), profile: None };
    if let Some(index) = config.images.iter().position(|image| image.id.as_str() == name) {
        return Ok(alone(config.images.remove(index)));
    }
    if name == SCRATCH {
        if args.layers.is_empty() {
            return Err(CliError::Missing("a layer of the empty image `scratch`", "--layer"));
        }
        return Ok(alone(placed(ImageConfig::new(SCRATCH.parse()?, Vec::<LayerConfig>::new()), &args.guest)));
    }
    let store = store::open(args.store.as_deref())?;
    let found = store::find_image(&store, name, args.reference.as_deref(), interrupts)?;
    let known = if args.profile.uses() { store.read_set(&found) } else { None };
    let records = args.profile.records(known.is_some());
    config.record_reads |= records;
    let image = ImageConfig { profile: known, ..configured(&store, &found, &args.guest)? };
    let defaults = found.config.clone();
    Ok(Found { image, defaults, profile: records.then_some(ProfilePlace { store, image: found }) })
}

/// What the instance is connected to.
fn network(mode: NetMode, config: &VmConfig) -> Result<InstanceNetwork, CliError> {
    match mode {
        NetMode::None => Ok(InstanceNetwork::None),
        // The interface comes once nothing else can fail.
        NetMode::Passt | NetMode::Cni(_) => Ok(InstanceNetwork::Vm),
        NetMode::Vm if config.network_interfaces.is_empty() => Err(CliError::Missing(
            "a network interface of the VM for --network vm",
            "--config with `network_interfaces`",
        )),
        NetMode::Vm => Ok(InstanceNetwork::Vm),
    }
}

/// The part of the first partition's window that the instance gets.
fn memory(wanted: Option<ByteSize>, config: &VmConfig) -> Result<ByteSize, CliError> {
    let window = config.partitions.first().copied().unwrap_or(IN_BASE);
    match wanted.map(|wanted| whole_blocks("memory", wanted)) {
        Some(memory) if memory > window => Err(CliError::Conflict(format!(
            "--memory is {memory}: expected at most {window}, the window of the configuration's first partition"
        ))),
        memory => Ok(memory.unwrap_or(window)),
    }
}

/// A layer outside the store, named by its content.
fn layer_of_file(path: &Path) -> Result<LayerConfig, CliError> {
    let mut file = File::open(path).map_err(io_error("open the layer", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer).map_err(io_error("read the layer", path))? {
            0 => break,
            count => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
        }
    }
    Ok(LayerConfig { path: path.to_owned(), digest: Digest::finish(hasher), bytes })
}
