//! `bellows api`: one VM, which programs control through HTTP on a Unix socket, in Firecracker's dialect.
//!
//! A request goes from `server` (HTTP, bounds) through `request` (parsing) to `control` (the VM), which asks `rules` and
//! `configuration` first.

mod bodies;
mod config_file;
mod configuration;
mod control;
mod fault;
pub(crate) mod frames;
mod log;
mod metrics;
mod openapi;
mod options;
mod own;
mod request;
mod rules;
mod server;
mod socket;
mod spans;
mod strict;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bellows_vmm::{Metadata, VmBuilder, VmConfig, VmEnd};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::setsid;
use tempfile::TempDir;

use self::bodies::{Logger, Metrics};
use self::configuration::Configuration;
use self::control::Control;
use self::fault::Fault;
use self::log::Log;
use self::metrics::{Counters, Startup};
pub use self::options::ApiArgs;

pub(crate) use self::options::{Firecracker, WRONG_ARGUMENTS, is_firecracker};
pub(crate) use self::own::Feed;
use self::request::Change;
use self::server::{Limits, Server};
pub(crate) use self::socket::Socket;
use crate::configuration::read_configuration;
use crate::error::{CliError, io_error};
use crate::interrupt::Interrupts;
use crate::landlock::{self, Allowed};
use crate::seccomp::confine;
use crate::store;
#[cfg(feature = "otlp")]
use crate::traces::Traces;

/// Runs a VM under the control of the API until it ends.
///
/// # Errors
/// See [`CliError`].
pub(crate) fn run(args: &ApiArgs, log: Log) -> Result<u8, CliError> {
    if let Some(option) = args.unsupported() {
        return Err(CliError::Conflict(format!("{option} is not supported yet: expected a command line without it")));
    }
    if args.listener_is_stdin {
        // It outlives the terminal of the command that has started it, and its Ctrl-C is for others. Only the leader of a group cannot.
        let _ = setsid();
    }
    let interrupts = Interrupts::install().map_err(io_error("wait for", "signals"))?;
    let first = first_changes(args)?;
    // Before all other threads: see there.
    let bound = if args.no_api {
        None
    } else if args.listener_is_stdin {
        Some(Socket::of_stdin(&args.api_sock).map_err(io_error("listen on", &args.api_sock))?)
    } else {
        Some(Socket::bind(&args.api_sock).map_err(io_error("listen on", &args.api_sock))?)
    };
    let boot = {
        let (interrupts, folder) = (interrupts.clone(), args.scratch_dir.clone());
        Box::new(move |builder: VmBuilder| {
            interrupts.boot(match &folder {
                Some(folder) => builder.scratch_folder(folder),
                None => builder,
            })
        })
    };
    let vm = args.vm.as_deref().map(read_configuration).transpose()?;
    let sockets = if args.landlock { Some(restrict(args, &first, vm.as_ref(), &interrupts)?) } else { None };
    if !args.no_seccomp {
        confine(&[], args.reach())?;
    }
    #[cfg(feature = "otlp")]
    log.traces().map_or(Ok(()), Traces::start)?;
    let counters = Counters::new(startup(args));
    let metadata = Metadata::new(args.mmds_size_limit.unwrap_or(args.http_api_max_payload_size) as usize);
    let mut control = Control::new(args.id.clone(), boot, args.boot_timer, metadata, log.clone(), counters);
    if let Some(folder) = &sockets {
        control.make_sockets_in(folder.path());
    }
    let control = Arc::new(control);
    let _serving = interrupts.serve({
        let control = control.clone();
        move || control.close()
    });
    if let Some(path) = &args.metadata {
        let text = fs::read_to_string(path).map_err(io_error("read", path))?;
        let refused = |fault| CliError::Conflict(format!("the metadata of `{}` is refused: {fault}", path.display()));
        let document = serde_json::from_str(&text).map_err(|error| refused(Fault::of(&error)))?;
        control.change(Change::PutMetadata(document)).map_err(refused)?;
    }
    for change in first {
        control.change(change).map_err(|fault| refused(args, fault))?;
    }
    if let Some((path, config)) = args.vm.as_ref().zip(vm) {
        control.boot_as(config).map_err(|fault| of_file(path, &fault))?;
    }
    let limits = Limits::new(args.http_api_max_payload_size as usize);
    let server = bound.map(|bound| Server::start(bound, control.clone(), args.store.clone(), limits)).transpose();
    let server = server.map_err(io_error("listen on", &args.api_sock))?;
    let end = control.await_boot().map(|vm| vm.wait());
    if let Err(error) = control.flush() {
        tracing::warn!(%error, "the last metrics are lost");
    }
    drop(server);
    control.join();
    match (end, interrupts.received()) {
        (_, Some(signal)) => Err(CliError::Interrupted(signal)),
        // Firecracker's guests end by a reset, too.
        (None | Some(VmEnd::PoweredOff | VmEnd::Reset), None) => Ok(0),
        // And so they do where a kernel is told to end by a panic.
        (Some(VmEnd::Panicked(panic)), None) => {
            tracing::error!("{panic}");
            Ok(0)
        }
        (Some(end), None) => Err(CliError::End(end)),
    }
}

/// Leaves this process the files that options and configuration files name. Returns a folder for the sockets of VMs.
fn restrict(
    args: &ApiArgs,
    first: &[Change],
    vm: Option<&VmConfig>,
    interrupts: &Interrupts,
) -> Result<TempDir, CliError> {
    let mut allowed = Allowed::new();
    let mut said = Configuration::default();
    for change in first {
        said = said.with(change).map_err(|fault| refused(args, fault))?;
        let output = match change {
            Change::Logger(logger) => logger.log_path.as_deref(),
            Change::Metrics(metrics) => Some(&*metrics.metrics_path),
            _ => None,
        };
        output.map_or(Ok(()), |path| allowed.output(path))?;
    }
    // Without a kernel there is none to boot: see there.
    for config in said.vm().ok().iter().chain(vm) {
        allowed.vm(config)?;
    }
    // Interfaces come by their names.
    allowed.taps();
    args.scratch_dir.iter().for_each(|folder| allowed.scratch(folder));
    if !args.no_api {
        allowed.socket(&args.api_sock);
    }
    args.metadata.iter().for_each(|path| allowed.read(path));
    // Whoever has no store has no instances.
    if let Some(path) = store::path(args.store.as_deref()).ok().filter(|path| path.is_dir()) {
        allowed.store(&store::open(Some(&path))?)?;
    }
    args.landlock_rules.iter().for_each(|rule| allowed.rule(rule));
    let sockets = allowed.private_folder()?;
    interrupts.with_no_thread(|| landlock::restrict_process(&allowed)).map_err(io_error("wait for", "signals"))??;
    Ok(sockets)
}

/// Takes over the log, as the options say.
///
/// # Errors
/// The file for it cannot be opened.
pub(crate) fn install_log(args: &ApiArgs) -> Result<Log, CliError> {
    #[cfg(feature = "otlp")]
    let log = {
        let traces = args.otlp_endpoint.as_ref().map(|endpoint| Traces::new(endpoint, &args.id));
        Log::install(&args.id, args.log_format, traces.transpose()?)
    };
    #[cfg(not(feature = "otlp"))]
    let log = Log::install(&args.id, args.log_format);
    let logger = Logger {
        log_path: args.log_path.clone(),
        level: args.level,
        show_level: args.show_level.then_some(true),
        show_log_origin: args.show_log_origin.then_some(true),
        module: args.module.clone(),
    };
    log.change(&logger).map_err(|fault| CliError::Conflict(fault.message))?;
    Ok(log)
}

/// What is to be done before any request: what options and the configuration file say.
fn first_changes(args: &ApiArgs) -> Result<Vec<Change>, CliError> {
    let metrics = args.metrics_path.clone().map(|metrics_path| Change::Metrics(Metrics { metrics_path }));
    let mut changes: Vec<_> = metrics.into_iter().collect();
    if let Some(path) = &args.config_file {
        let text = fs::read_to_string(path).map_err(io_error("read", path))?;
        changes.extend(config_file::changes(&text).map_err(|fault| of_file(path, &fault))?);
        changes.push(Change::Start);
    }
    Ok(changes)
}

fn refused(args: &ApiArgs, fault: Fault) -> CliError {
    match &args.config_file {
        Some(path) => of_file(path, &fault),
        None => CliError::Conflict(fault.message),
    }
}

fn of_file(path: &Path, fault: &Fault) -> CliError {
    CliError::Conflict(format!("the VM of `{}` is refused: {fault}", path.display()))
}

/// How long this process took until here, if its parent has said when it began.
fn startup(args: &ApiArgs) -> Startup {
    let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let now = |clock| clock_gettime(clock).map(|time| micros(time.into())).unwrap_or_default();
    let (wall, cpu) = (now(ClockId::CLOCK_MONOTONIC), now(ClockId::CLOCK_PROCESS_CPUTIME_ID));
    let parent = args.parent_cpu_time_us.unwrap_or(0);
    Startup {
        wall: args.start_time_us.map_or(0, |start| wall.saturating_sub(start)),
        cpu: args.start_time_cpu_us.map_or(0, |start| cpu.saturating_sub(start).saturating_add(parent)),
    }
}
