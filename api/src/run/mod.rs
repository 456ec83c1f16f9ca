//! `bellows run`: boots one VM, runs one instance in it, gives its memory back.

mod function;
mod instance;
mod volume;

use std::time::Instant;

use bellows_block::Store;
use bellows_memory::ByteSize;
use bellows_vmm::{ConfigError, ReadyReport, RunReport, VmBuilder, VmConfig, VmEnd, default_scratch_folder};
use tempfile::TempDir;

use self::function::{Function, IN_BASE, prepare};
use self::instance::run_instance;
use crate::cli::{ProfileUse, RunArgs};
use crate::configuration::read_configuration;
use crate::detached::{self, Job};
use crate::error::{CliError, io_error};
use crate::guest::{apply_guest_args, from_guest_args, rounded_up};
use crate::interrupt::Interrupts;
use crate::landlock::{self, Allowed};
use crate::network::{self, Helper};
use crate::output::say;
use crate::partition::give_back;
use crate::places::Places;
use crate::report::print_json_line;
use crate::seccomp::{Reach, confine};
use crate::terminal::Resizes;

/// Memory of an instance without an argument.
const MEMORY: ByteSize = ByteSize::gib(1);

/// Runs the command; returns the instance's exit code.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &RunArgs) -> Result<u8, CliError> {
    let resizes = args.tty.then(Resizes::install).transpose()?;
    let interrupts = Interrupts::install().map_err(io_error("wait for", "signals"))?;
    let result = prepare_and_run(args, &interrupts, resizes);
    match (result, interrupts.received()) {
        // The failure follows from the stop.
        (Err(_), Some(signal)) => Err(CliError::Interrupted(signal)),
        (result, _) => result,
    }
}

fn prepare_and_run(args: &RunArgs, interrupts: &Interrupts, resizes: Option<Resizes>) -> Result<u8, CliError> {
    check(args)?;
    let mut config = configuration(args, &Places::of_user())?;
    let function = prepare(args, &mut config, interrupts)?;
    // It ends after the VM.
    let mut network = network(args, &mut config)?;
    config.validate().map_err(|error| as_given(args, error))?;
    if args.detached.detach {
        return in_background(args, config, function, network);
    }
    // Images are imported, and programs that help have been started.
    let store = function.as_ref().and_then(Function::store);
    let _sockets = restrict(args, &mut config, store, network.is_some(), interrupts)?;
    network.as_mut().map_or(Ok(()), Helper::watch)?;
    if !args.no_seccomp {
        confine(network.as_ref().map(Helper::process_id).as_slice(), Reach::Host)?;
    }
    in_vm(args, config, function, interrupts, resizes)
}

/// Leaves this process the files of the run, where the kernel can. Returns the folder of the VM's socket, if the configuration names none.
fn restrict(
    args: &RunArgs,
    config: &mut VmConfig,
    store: Option<&Store>,
    signals: bool,
    interrupts: &Interrupts,
) -> Result<Option<TempDir>, CliError> {
    if !args.is_restricted() {
        return Ok(None);
    }
    let mut allowed = Allowed::new();
    let sockets = allowed.configuration(config)?;
    store.map_or(Ok(()), |store| allowed.store(store))?;
    if signals {
        allowed.signals();
    }
    interrupts.with_no_thread(|| landlock::restrict_process(&allowed)).map_err(io_error("wait for", "signals"))??;
    Ok(sockets)
}

/// Refuses arguments that exclude each other.
fn check(args: &RunArgs) -> Result<(), CliError> {
    if args.former.is_used() {
        return Err(CliError::Former);
    }
    if args.detached.detach {
        let foreground = [("--interactive", args.interactive), ("--tty", args.tty), ("--json", args.json)];
        if let Some((option, _)) = foreground.iter().find(|(_, given)| *given) {
            return Err(CliError::Conflict(format!("--detach and {option} exclude each other")));
        }
    }
    args.network.check(args.image()).map_err(CliError::Conflict)?;
    if args.image().is_some() {
        return Ok(());
    }
    if !args.volumes.is_empty() {
        return Err(CliError::Missing("the image that finds the folders of -v", "IMAGE"));
    }
    if args.scratch.is_some() {
        return Err(CliError::Missing("the image that has the disk of --scratch", "IMAGE"));
    }
    if let Some(memory) = args.memory {
        let message =
            format!("--memory {memory} is for an instance, and no IMAGE is given: --base is the memory of a VM alone");
        return Err(CliError::Conflict(message));
    }
    match args.config.is_some() || args.guest.kernel.is_some() {
        true if args.layers.is_empty() => Ok(()),
        true => Err(CliError::Missing("the image below --layer", "IMAGE, or `scratch` for an empty one")),
        false => Err(CliError::Missing("what to run", "IMAGE, or --kernel or --config for a VM alone")),
    }
}

/// Starts the network, and gives the VM an interface at it.
fn network(args: &RunArgs, config: &mut VmConfig) -> Result<Option<Helper>, CliError> {
    let Some((helper, interface)) = network::start(&args.network, args.guest.timeout)? else { return Ok(None) };
    config.network_interfaces.push(interface);
    Ok(Some(helper))
}

/// The VM's configuration: the file's, with the arguments put over it and a partition for the instance.
fn configuration(args: &RunArgs, places: &Places) -> Result<VmConfig, CliError> {
    let mut config = match &args.config {
        Some(path) => {
            let mut config = read_configuration(path)?;
            apply_guest_args(&mut config, &args.guest);
            config
        }
        None => from_guest_args(&args.guest, places)?,
    };
    let memory = args.memory.unwrap_or(MEMORY);
    if args.image().is_some() && config.partitions.is_empty() && memory != IN_BASE {
        config.partitions.push(rounded_up(memory));
    }
    if args.scratch.is_some() {
        let folder = args.scratch_dir.clone().or(config.scratch_folder);
        config.scratch_folder = Some(folder.unwrap_or_else(|| default_scratch_folder().to_owned()));
    }
    if let Some(serial) = &args.serial {
        config.serial = serial.clone();
    }
    Ok(config)
}

/// The error with the option that set the value, if one did.
fn as_given(args: &RunArgs, mut error: ConfigError) -> ConfigError {
    match error.field.as_str() {
        "memory" if args.guest.base.is_some() => error.field = "--base".into(),
        "partitions[0]" if args.memory.is_some() => error.field = "--memory".into(),
        "prepare" if args.guest.prepare.is_some() => error.field = "--prepare".into(),
        _ => {}
    }
    error
}

/// Hands the run over to a process of its own.
fn in_background(
    args: &RunArgs,
    mut config: VmConfig,
    function: Option<Function>,
    network: Option<Helper>,
) -> Result<u8, CliError> {
    let Function { spec, memory, .. } = function.ok_or(CliError::Missing("what to run", "IMAGE"))?;
    // Nobody collects it.
    config.record_reads = false;
    if let Some(helper) = &network {
        helper.bequeath()?;
    }
    let code = detached::start(args, &Job { config, spec, memory })?;
    // It ends with that process.
    if let Some(helper) = network {
        helper.leave();
    }
    Ok(code)
}

fn in_vm(
    args: &RunArgs,
    config: VmConfig,
    function: Option<Function>,
    interrupts: &Interrupts,
    resizes: Option<Resizes>,
) -> Result<u8, CliError> {
    let limit = args.guest.timeout;
    let start = Instant::now();
    let vm = interrupts.boot(VmBuilder::from(config))?;
    let guest = vm.wait_ready(limit)?;
    let boot = start.elapsed();
    let Some(Function { mut spec, memory, profile }) = function else {
        if args.json {
            let times = vm.boot_times().unwrap_or_default();
            print_json_line(&ReadyReport::new(guest, boot, times, vm.exits().into_iter().sum()))?;
        }
        // Without an image the VM runs until it ends by itself.
        return end(vm.wait());
    };
    if vm.config().base_limit.is_none() {
        // No other run uses it.
        spec.base_limit = spec.base_limit.or(Some(guest.instances_base));
    }
    let image = vm.mount_image(&spec.image, limit)?;
    for volume in &spec.volumes {
        vm.mount_image(&volume.image, limit)?;
    }
    let plug = match spec.partition {
        Some(partition) => Some((partition, vm.plug(partition, memory, limit)?)),
        None => None,
    };
    let start = Instant::now();
    let status = run_instance(&vm, &spec, args, interrupts, resizes)?;
    let run = start.elapsed();
    let conclude = || -> Result<(), CliError> {
        // The reads of a failed run are not representative.
        let recorded_bytes = match profile.filter(|_| status.code == 0).map(|profile| profile.keep(&vm, &spec.image)) {
            // The user did not ask for it.
            Some(Err(error)) if args.profile == ProfileUse::Auto => {
                tracing::warn!(error = error.chain(), "cannot save the record of the run's reads");
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
                status,
                guest_kernel: guest.kernel_release,
                partition_mode: guest.partition_mode,
                shape: image.shape,
                transport: image.transport,
                prefetched_bytes: image.prefetched,
                recorded_bytes,
                boot,
                run,
                partition,
            };
            print_json_line(&report)?;
        } else if let Some(limit) = status.oom_limit {
            say(format_args!("the guest's kernel killed the command for lack of memory: {limit}"));
        }
        match vm.shutdown(limit) {
            VmEnd::PoweredOff | VmEnd::Reset => Ok(()),
            other => Err(CliError::End(other)),
        }
    };
    match conclude() {
        // A signal ended the wait.
        Err(_) if interrupts.received().is_some() => Ok(status.code),
        result => result.map(|()| status.code),
    }
}

fn end(end: VmEnd) -> Result<u8, CliError> {
    match end {
        VmEnd::PoweredOff => Ok(0),
        other => Err(CliError::End(other)),
    }
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
