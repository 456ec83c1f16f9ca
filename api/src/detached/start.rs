//! `bellows run --detach`: a VM in a process of its own, controlled through its API.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bellows_memory::ByteSize;
use bellows_vmm::{InstanceId, InstanceSpec, ScratchSpec, VmConfig, Volume};
use serde_json::{Value, json};

use super::place::{Place, Seat};
use crate::cli::RunArgs;
use crate::error::{CliError, io_error};
use crate::output::print;
use crate::rest::Socket;

/// Bytes of a log that an error quotes.
const QUOTED: u64 = 2000;

/// What a detached VM is to do.
pub(crate) struct Job {
    pub(crate) config: VmConfig,
    pub(crate) spec: InstanceSpec,
    /// Memory of the instance's partition.
    pub(crate) memory: ByteSize,
}

/// Starts a VM that outlives this process, and an instance in it; prints its name.
pub(crate) fn start(args: &RunArgs, job: &Job) -> Result<u8, CliError> {
    let name = args.detached.name.clone().map_or_else(random_name, Ok)?;
    let seat = Place::of_user()?.take(&name)?;
    let result = serve(args, &seat, &job.config).and_then(|process| begin(args, &seat, job, process));
    if result.is_err() {
        seat.clear();
    }
    result?;
    print(&name)?;
    Ok(0)
}

/// Starts the process of the VM.
fn serve(args: &RunArgs, seat: &Seat, config: &VmConfig) -> Result<Child, CliError> {
    let path = seat.configuration();
    let text = serde_json::to_vec(config).map_err(|error| io_error("write", &path)(error.into()))?;
    fs::write(&path, text).map_err(io_error("write", &path))?;
    let log = seat.log();
    let output =
        OpenOptions::new().append(true).create_new(true).mode(0o600).open(&log).map_err(io_error("make", &log))?;
    let errors = output.try_clone().map_err(io_error("write", &log))?;
    let socket = seat.socket();
    // Requests wait in it until the VM has booted.
    let (bound, listener) = Socket::bind(&socket).map_err(io_error("listen on", &socket))?;
    bound.leave();
    let own = std::env::current_exe().map_err(io_error("find", "this program"))?;
    let mut command = Command::new(own);
    command.arg("api").arg("--listener-is-stdin").arg("--api-sock").arg(&socket).args(["--id", &seat.name]);
    command.arg("--vm").arg(&path).args(["--level", "Warn"]);
    if args.no_seccomp {
        command.arg("--no-seccomp");
    }
    if args.is_restricted() {
        command.arg("--landlock");
    }
    if let Some(store) = &args.store {
        command.arg("--store").arg(store);
    }
    command.stdin(Stdio::from(OwnedFd::from(listener))).stdout(output).stderr(errors);
    command.spawn().map_err(io_error("start", "this program"))
}

/// Starts the instance, or ends the process.
fn begin(args: &RunArgs, seat: &Seat, job: &Job, mut process: Child) -> Result<(), CliError> {
    let path = format!("/instances/{}", seat.name);
    let started = seat.client().call("PUT", &path, Some(&request(args, job)));
    let Err(error) = started else { return Ok(()) };
    let _ = process.kill();
    let _ = process.wait();
    // Unless it has answered, the process says more.
    Err(match (&error, quoted(&seat.log())) {
        (CliError::Refused { .. }, _) | (_, None) => error,
        (_, Some(said)) => CliError::Conflict(format!("the VM has not started: {said}")),
    })
}

fn request(args: &RunArgs, job: &Job) -> Value {
    let Job { spec, memory, .. } = job;
    json!({
        "image": spec.image.as_str(),
        "argv": spec.process.argv,
        "env": spec.process.env,
        "cwd": spec.process.cwd,
        "user": spec.process.user.to_string(),
        "memory_mib": memory.get() >> 20,
        "base_limit_mib": spec.base_limit.map(|limit| limit.get() >> 20),
        "network": spec.network,
        "volumes": spec.volumes.iter().map(volume).collect::<Vec<_>>(),
        "scratch": spec.scratch.as_ref().map(scratch),
        "shutdown_at_exit": args.detached.rm,
        "labels": { "image": args.image() },
    })
}

fn volume(volume: &Volume) -> Value {
    json!({ "image": volume.image.as_str(), "path": volume.path.as_str() })
}

fn scratch(scratch: &ScratchSpec) -> Value {
    json!({ "size_mib": scratch.size().get().div_ceil(1 << 20), "path": scratch.path.as_str() })
}

/// The end of a log.
fn quoted(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(QUOTED))).ok()?;
    let mut bytes = Vec::new();
    file.take(QUOTED).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// A name that hardly any other VM has.
fn random_name() -> Result<InstanceId, CliError> {
    let mut bytes = [0; 6];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(io_error("read", "/dev/urandom"))?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("vm-{digits}").parse()?)
}
