//! `bellows run`: boots one VM, runs one instance in it, gives its memory back.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_block::{Digest, Image, Store, StoreError};
use bellows_memory::{BLOCK, ByteSize};
use bellows_vmm::ExitCounts;
use bellows_vmm::{
    DiscardReport, ExitStatus, Forwarding, GuestInfo, ImageConfig, ImageId, InstanceError, InstanceSpec, LayerConfig,
    OomLimit, PartitionId, PartitionMode, PlugReport, Shape, Stdio, StreamName, Transport, UnplugReport, Vm, VmBuilder,
    VmConfig, VmEnd,
};
use nix::sys::signal::Signal;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::cli::{GuestArgs, ProfileUse, RunArgs};
use crate::environment::environment;
use crate::error::{CLOSED_OUTPUT, CliError, io_error};
use crate::interrupt::Interrupts;
use crate::output::{Lenient, Watched, print, say};
use crate::store;
use crate::terminal::{self, Raw, Resizes};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct RunReport {
    exit_code: u8,
    /// The kernel killed the command, or a process of it, for lack of memory.
    oom_killed: bool,
    /// Which limit it had met then.
    oom_limit: Option<OomLimit>,
    guest_kernel: String,
    partition_mode: PartitionMode,
    /// How the layers of the image were put together.
    shape: Shape,
    /// How they reached the guest.
    transport: Transport,
    /// Bytes of the image's files that the host was told to read ahead.
    prefetched_bytes: u64,
    /// Bytes of them that the guest read, where that was recorded for the image's profile.
    recorded_bytes: Option<u64>,
    boot_ms: f64,
    run_ms: f64,
    partition: Option<PartitionReport>,
}

/// What `--json` prints, without an image, as soon as the guest can be called.
#[derive(Debug, Serialize)]
struct ReadyReport {
    guest_kernel: String,
    /// How partitions are kept apart: what this guest can do.
    partition_mode: PartitionMode,
    boot_ms: f64,
    /// By the guest's clock: when its kernel was done, and when its agent was.
    init_ms: f64,
    ready_ms: f64,
    /// Exits that reached the monitor.
    exits: ExitCounts,
}

impl ReadyReport {
    fn new(guest: GuestInfo, boot: Duration, vm: &Vm) -> Self {
        let times = vm.boot_times().unwrap_or_default();
        Self {
            guest_kernel: guest.kernel_release,
            partition_mode: guest.partition_mode,
            boot_ms: milliseconds(boot),
            init_ms: milliseconds(times.init),
            ready_ms: milliseconds(times.ready),
            exits: vm.exits().into_iter().sum(),
        }
    }
}

/// What became of a partition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartitionReport {
    pub(crate) bytes: u64,
    /// How the guest kept it apart.
    pub(crate) mode: PartitionMode,
    pub(crate) plug_ms: f64,
    pub(crate) unplug_ms: f64,
    /// Of that, what the guest's driver worked by its own account; `null` where it does not say.
    pub(crate) guest_ms: Option<f64>,
    /// Of that, changing memory slots.
    pub(crate) slot_ms: f64,
    pub(crate) discard_ms: f64,
    pub(crate) migrated_pages: Option<u64>,
    pub(crate) zeroed_pages: Option<u64>,
    pub(crate) discarded_bytes: u64,
    pub(crate) left_bytes: u64,
}

impl PartitionReport {
    pub(crate) fn new(plug: &PlugReport, unplug: &UnplugReport, discard: &DiscardReport) -> Self {
        Self {
            bytes: plug.bytes.get(),
            mode: plug.mode,
            plug_ms: milliseconds(plug.usable),
            unplug_ms: milliseconds(unplug.unplug),
            guest_ms: unplug.driver.map(|driver| milliseconds(driver.last_unplug.guest())),
            slot_ms: milliseconds(unplug.slots),
            discard_ms: milliseconds(discard.discard),
            migrated_pages: unplug.migrated_pages,
            zeroed_pages: unplug.zeroed_pages,
            discarded_bytes: discard.discarded.get(),
            left_bytes: unplug.left.get(),
        }
    }
}

/// Milliseconds, to the microsecond.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// Runs the command; returns the instance's exit code.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &RunArgs) -> Result<u8, CliError> {
    let resizes = args.tty.then(Resizes::install).transpose()?;
    let interrupts = Interrupts::install().map_err(io_error("wait for", "signals"))?;
    let result = prepare_and_run(args, &interrupts, resizes);
    match (result, interrupts.received()) {
        // What failed then failed because it was stopped.
        (Err(_), Some(signal)) => Err(CliError::Interrupted(signal)),
        (result, _) => result,
    }
}

fn prepare_and_run(args: &RunArgs, interrupts: &Interrupts, resizes: Option<Resizes>) -> Result<u8, CliError> {
    let mut config = configuration(args)?;
    let function = prepare(args, &mut config, interrupts)?;
    config.validate()?;
    in_vm(args, config, function, interrupts, resizes)
}

/// What to run.
struct Function {
    spec: InstanceSpec,
    /// Where the pages that it reads are kept.
    profile: Option<ProfilePlace>,
}

/// An image of a store, whose profile is being recorded.
struct ProfilePlace {
    store: Store,
    image: Image,
}

impl ProfilePlace {
    /// Keeps what was read by now; how many bytes that are.
    fn keep(&self, vm: &Vm, image: &ImageId) -> Result<u64, CliError> {
        let profile = vm.profile(image)?;
        self.store.keep_read_set(&self.image, &profile)?;
        Ok(profile.bytes())
    }
}

fn in_vm(
    args: &RunArgs,
    config: VmConfig,
    function: Option<Function>,
    interrupts: &Interrupts,
    resizes: Option<Resizes>,
) -> Result<u8, CliError> {
    let limit = args.guest.timeout;
    let window = config.partitions.first().copied();
    let start = Instant::now();
    let vm = interrupts.boot(VmBuilder::from(config))?;
    let guest = vm.wait_ready(limit)?;
    let boot = start.elapsed();
    let Some(Function { mut spec, profile }) = function else {
        if args.json {
            print_json(&ReadyReport::new(guest, boot, &vm))?;
        }
        // Without an image the VM runs until it ends by itself.
        return end(vm.wait());
    };
    if vm.config().base_limit.is_none() {
        // It is alone.
        spec.base_limit = spec.base_limit.or(Some(guest.instances_base));
    }
    let image = vm.mount_image(&spec.image, limit)?;
    let plug = match (spec.partition, window) {
        (Some(partition), Some(window)) => Some((partition, vm.plug(partition, window, limit)?)),
        _ => None,
    };
    let start = Instant::now();
    let status = run_instance(&vm, &spec, args, interrupts, resizes)?;
    let run = start.elapsed();
    let conclude = || -> Result<(), CliError> {
        // A run that failed is no example.
        let recorded_bytes = match profile.filter(|_| status.code == 0).map(|profile| profile.keep(&vm, &spec.image)) {
            // Nobody has asked for it.
            Some(Err(error)) if args.profile == ProfileUse::Auto => {
                tracing::warn!(error = error.chain(), "what the run has read is not kept");
                None
            }
            kept => kept.transpose()?,
        };
        let partition = match plug {
            Some((partition, plug)) => Some(give_back(&vm, partition, &plug, limit)?),
            None => None,
        };
        if args.json {
            let report = RunReport {
                exit_code: status.code,
                oom_killed: status.oom_killed,
                oom_limit: status.oom_limit,
                guest_kernel: guest.kernel_release,
                partition_mode: guest.partition_mode,
                shape: image.shape,
                transport: image.transport,
                prefetched_bytes: image.prefetched,
                recorded_bytes,
                boot_ms: milliseconds(boot),
                run_ms: milliseconds(run),
                partition,
            };
            print_json(&report)?;
        } else if let Some(limit) = status.oom_limit {
            say(format_args!("the guest's kernel killed the command for lack of memory: {limit}"));
        }
        match vm.shutdown(limit) {
            VmEnd::PoweredOff | VmEnd::Reset => Ok(()),
            other => Err(CliError::End(other)),
        }
    };
    match conclude() {
        // Somebody does not want to wait for that.
        Err(_) if interrupts.received().is_some() => Ok(status.code),
        result => result.map(|()| status.code),
    }
}

fn print_json(report: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(report)
        .map_err(|error| CliError::Unexpected(format!("cannot write the report: {error}")))?;
    print(text)
}

fn end(end: VmEnd) -> Result<u8, CliError> {
    match end {
        VmEnd::PoweredOff => Ok(0),
        other => Err(CliError::End(other)),
    }
}

fn run_instance(
    vm: &Vm,
    spec: &InstanceSpec,
    args: &RunArgs,
    interrupts: &Interrupts,
    resizes: Option<Resizes>,
) -> Result<ExitStatus, CliError> {
    let instance = Arc::new(vm.start_instance(spec)?);
    let signal = {
        let instance = instance.clone();
        move |signal: Signal| {
            // It may have ended already.
            if let Err(error) = instance.signal(signal as u32) {
                tracing::debug!(%error, %signal, "not passed on");
            }
        }
    };
    let passing = interrupts.pass_on(args.stop_timeout, signal.clone());
    let init = instance.init();
    let output: Box<dyn Write + Send> = match args.json {
        true => Box::new(Lenient(io::stderr())),
        // It would otherwise wait for a reader that is gone.
        false => Box::new(Watched::new(io::stdout(), move || signal(Signal::SIGKILL))),
    };
    let (outputs, fed) = match spec.process.stdio {
        Stdio::Terminal(_) => {
            let terminal = init.connect(StreamName::Terminal)?;
            let outputs = vec![terminal.forward(output)?];
            (outputs, args.interactive.then_some(terminal))
        }
        Stdio::Pipes { stdin } => {
            let stdout = instance.forward(StreamName::Stdout, output)?;
            let stderr = instance.forward(StreamName::Stderr, Lenient(io::stderr()))?;
            (vec![stdout, stderr], stdin.then(|| init.connect(StreamName::Stdin)).transpose()?)
        }
    };
    let raw = (args.tty && args.interactive).then(Raw::enter).transpose()?;
    if let Some(resizes) = resizes {
        resizes.follow(init.clone())?;
    }
    let input = match fed {
        Some(stream) => {
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(io_error("read", "standard input"))?;
            Some(stream.feed(File::from(stdin))?)
        }
        None => None,
    };
    let mut status = instance.wait()?;
    // Its other processes ended with the first one, so nothing holds the output open.
    for output in outputs {
        match output.join() {
            Err(InstanceError::PassOn { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
                status.code = CLOSED_OUTPUT;
            }
            result => drop(result?),
        }
    }
    drop(raw);
    // Otherwise it waits for what nobody will read.
    if let Some(input) = input.filter(Forwarding::is_finished) {
        input.join()?;
    }
    instance.remove(args.guest.timeout)?;
    drop(passing);
    Ok(status)
}

/// Unplugs a partition and waits until its memory is the host's again.
pub(crate) fn give_back(
    vm: &Vm,
    partition: PartitionId,
    plug: &PlugReport,
    limit: Duration,
) -> Result<PartitionReport, CliError> {
    let unplug = vm.unplug(partition, limit)?;
    let discard = vm.await_discard(partition, limit)?;
    if unplug.left.get() != 0 {
        say(format_args!("the guest keeps {} of partition {partition}", unplug.left));
    }
    Ok(PartitionReport::new(plug, &unplug, &discard))
}

/// The VM's configuration: the file's, with the arguments put over it.
fn configuration(args: &RunArgs) -> Result<VmConfig, CliError> {
    let mut config = match &args.config {
        Some(path) => read_configuration(path)?,
        None => from_guest_args(&args.guest)?,
    };
    apply_guest_args(&mut config, &args.guest);
    config.partitions.extend(&args.partitions);
    if let Some(serial) = &args.serial {
        config.serial = serial.clone();
    }
    round_memory(&mut config);
    Ok(config)
}

/// Takes any size, though memory comes in blocks, and says so.
pub(crate) fn round_memory(config: &mut VmConfig) {
    let wanted = config.memory;
    if let Some(bytes) = wanted.get().checked_next_multiple_of(BLOCK.get())
        && bytes != wanted.get()
    {
        config.memory = ByteSize::bytes(bytes);
        say(format_args!("memory of {wanted} is rounded up to {}", config.memory));
    }
}

fn read_configuration(path: &Path) -> Result<VmConfig, CliError> {
    let text = std::fs::read_to_string(path).map_err(io_error("read", path))?;
    serde_json::from_str(&text).map_err(|source| CliError::Json { path: path.to_owned(), source })
}

/// A configuration from arguments alone.
pub(crate) fn from_guest_args(args: &GuestArgs) -> Result<VmConfig, CliError> {
    let kernel = args.kernel.as_deref().ok_or(CliError::Missing("the guest's kernel", "--kernel or --config"))?;
    let memory = args.memory.ok_or(CliError::Missing("the size of base memory", "--memory or --config"))?;
    let mut config = VmConfig::new(kernel, memory);
    apply_guest_args(&mut config, args);
    Ok(config)
}

fn apply_guest_args(config: &mut VmConfig, args: &GuestArgs) {
    if let Some(kernel) = &args.kernel {
        config.kernel.clone_from(kernel);
    }
    if let Some(initramfs) = &args.initramfs {
        config.initramfs = Some(initramfs.clone());
    }
    if let Some(vcpus) = args.vcpus {
        config.vcpus = vcpus;
    }
    if let Some(memory) = args.memory {
        config.memory = memory;
    }
    if let Some(mode) = args.partition_mode {
        config.partition_mode = mode;
    }
    config.images = std::mem::take(&mut config.images).into_iter().map(|image| placed(image, args)).collect();
    if config.extra_command_line.is_empty() {
        config.extra_command_line.clone_from(&args.kernel_parameters);
    }
}

/// Adds the image to the configuration; says what to run, if there is anything to run it in.
fn prepare(args: &RunArgs, config: &mut VmConfig, interrupts: &Interrupts) -> Result<Option<Function>, CliError> {
    let mut defaults = bellows_block::oci::ImageConfig::default();
    let mut image = None;
    let mut profile = None;
    if let Some(path) = &args.image {
        let store = store::open(args.store.as_deref())?;
        let found = store::find_image(&store, path, args.reference.as_deref(), interrupts)?;
        let known = if args.profile.uses() { store.read_set(&found) } else { None };
        let records = args.profile.records(known.is_some());
        config.record_reads |= records;
        image = Some(ImageConfig { profile: known, ..configured(&store, &found, &args.guest)? });
        defaults = found.config.clone();
        profile = records.then_some(ProfilePlace { store, image: found });
    }
    if !args.layers.is_empty() {
        let mut below = match image {
            Some(image) => image,
            None => placed(ImageConfig::new("layers".parse()?, Vec::<LayerConfig>::new()), &args.guest),
        };
        // Their metadata is no part of the image's.
        below.flat = None;
        below.layers.extend(below.fixup.take());
        for path in &args.layers {
            below.layers.push(layer_of_file(path)?);
        }
        image = Some(below);
    }
    let id = match (image, config.images.first()) {
        (Some(image), _) => {
            let id = image.id.clone();
            config.images.push(image);
            id
        }
        (None, Some(image)) => image.id.clone(),
        (None, None) if args.command.is_empty() && args.partitions.is_empty() => return Ok(None),
        (None, None) => return Err(CliError::Missing("what to run", "--image or --layer")),
    };
    if let Some(entrypoint) = &args.entrypoint {
        // What the image has belongs to its own entrypoint.
        defaults.entrypoint = Some(entrypoint.clone()).filter(|program| !program.is_empty()).into_iter().collect();
        defaults.cmd.clear();
    }
    let mut spec = InstanceSpec::new("main".parse()?, id, defaults.argv(&args.command));
    if spec.process.argv.is_empty() {
        return Err(CliError::Missing("the command", "-- CMD: the image has none of its own"));
    }
    spec.process.env = environment(&defaults.env, &args.env_files, &args.env, |name| std::env::var_os(name))?;
    spec.process.cwd = args.cwd.clone().unwrap_or(defaults.working_dir);
    spec.process.user = args.user.as_ref().unwrap_or(&defaults.user).parse()?;
    spec.process.stdio = terminal::stdio(args.interactive, args.tty)?;
    spec.base_limit = args.base_limit;
    if !config.partitions.is_empty() {
        spec.partition = Some(PartitionId::new(1).ok_or(CliError::PartitionNumber(0))?);
    }
    // Before anything boots.
    spec.validate()?;
    Ok(Some(Function { spec, profile }))
}

/// An image of the store as an image of a VM.
pub(crate) fn configured(store: &Store, image: &Image, args: &GuestArgs) -> Result<ImageConfig, CliError> {
    let id: ImageId = image.digest.hex().parse()?;
    let stack = store.stack(image)?;
    // No metadata needs to be made for a stack.
    let flat = if args.shape == Some(Shape::Layers) { None } else { Some(store.flat(image)) };
    let config = match flat {
        None => ImageConfig::stacked(id, &stack),
        Some(Err(StoreError::NotFlat { .. })) if args.shape.is_none() => ImageConfig::stacked(id, &stack),
        Some(flat) => ImageConfig::flat(id, &flat?).fixup(stack.fixup.as_ref()),
    };
    Ok(placed(config, args))
}

/// An image in the shape and over the transport that the arguments want.
fn placed(mut image: ImageConfig, args: &GuestArgs) -> ImageConfig {
    image.shape = args.shape.or(image.shape);
    image.transport = args.transport.unwrap_or(image.transport);
    image
}

/// A layer that is in no store, named by its content.
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

/// What `bytes` are to a person.
pub(crate) fn shown(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => ByteSize::bytes(bytes).to_string(),
        _ => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
