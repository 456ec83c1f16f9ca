//! Takes a VM through its whole life with fctools, as it is published.
//!
//! The environment says with what: KERNEL, INITRD, DISK, OTHER_DISK and TAP, and DIRECTORY for sockets and logs. The program
//! `firecracker` is found in PATH. Ends with exit code 0 if everything went as it has to.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{
    BalloonDevice, BootSource, Drive, DriveCacheType, LoggerSystem, MachineConfiguration, MetricsSystem, NetworkInterface,
    RateLimiter, TokenBucket, UpdateBalloonDevice, UpdateBalloonStatistics, UpdateDrive, UpdateNetworkInterface,
    VsockDevice,
};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::id::VmmId;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, Resource, ResourceType};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

type Machine = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;
type Outcome = Result<(), Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(120);
const ECHO_PORT: u32 = 5000;
const DRIVE: &str = "data";
const INTERFACE: &str = "eth0";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    timeout(PATIENCE * 2, life()).await??;
    println!("the VM has lived");
    Ok(())
}

async fn life() -> Outcome {
    let directory = variable("DIRECTORY")?;
    let [metrics_path, vsock_path] = ["metrics", "vsock"].map(|name| directory.join(name));
    // Files are where they are to be: with this executor, none of the ways to move one does anything.
    let in_place = ResourceType::Moved(MovedResourceType::Renamed);
    let output = ResourceType::Created(CreatedResourceType::File);
    let mut resources = ResourceSystem::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared);
    let other_disk = resources.create_resource(variable("OTHER_DISK")?, in_place)?;
    let data = VmConfigurationData {
        boot_source: BootSource {
            kernel_image: resources.create_resource(variable("KERNEL")?, in_place)?,
            boot_args: Some("console=ttyS0 reboot=k panic=1 pci=off".into()),
            initrd: Some(resources.create_resource(variable("INITRD")?, in_place)?),
        },
        drives: vec![Drive {
            drive_id: DRIVE.into(),
            is_root_device: false,
            cache_type: Some(DriveCacheType::Unsafe),
            partuuid: None,
            is_read_only: Some(false),
            block: Some(resources.create_resource(variable("DISK")?, in_place)?),
            rate_limiter: Some(limiter(1 << 20, 100)),
            io_engine: None,
            socket: None,
        }],
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 256,
            smt: Some(false),
            track_dirty_pages: None,
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: vec![NetworkInterface {
            iface_id: INTERFACE.into(),
            host_dev_name: env::var("TAP")?,
            guest_mac: Some("06:00:AC:10:00:02".into()),
            rx_rate_limiter: Some(limiter(1 << 20, 100)),
            tx_rate_limiter: Some(limiter(1 << 20, 100)),
        }],
        balloon_device: Some(BalloonDevice { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: Some(1) }),
        // Firecracker leaves this socket behind, and fctools removes what is `Produced`, or fails if it is not there. Bellows removes it.
        vsock_device: Some(VsockDevice { guest_cid: 3, uds: resources.create_resource(&vsock_path, in_place)? }),
        logger_system: Some(LoggerSystem {
            logs: Some(resources.create_resource(directory.join("log"), output)?),
            ..LoggerSystem::default()
        }),
        metrics_system: Some(MetricsSystem { metrics: resources.create_resource(&metrics_path, output)? }),
        mmds_configuration: None,
        entropy_device: None,
    };
    let socket = VmmApiSocket::Enabled(directory.join("api.sock"));
    let executor = UnrestrictedVmmExecutor::new(VmmArguments::new(socket)).id(VmmId::new("fctools")?);
    let program = in_path("firecracker")?;
    let installation = VmmInstallation::new(&program, &program, &program);
    let configuration = VmConfiguration::New { init_method: InitMethod::ViaApiCalls, data };
    let mut vm = Machine::prepare(executor, resources, installation, configuration).await?;
    let lived = live(&mut vm, other_disk, &vsock_path, &metrics_path).await;
    if lived.is_err() && vm.get_state() == VmState::Running {
        vm.shutdown([VmShutdownAction { method: VmShutdownMethod::Kill, timeout: None, graceful: false }]).await?;
    }
    lived?;
    vm.cleanup().await?;
    Ok(())
}

async fn live(vm: &mut Machine, other_disk: Resource, vsock_path: &Path, metrics_path: &Path) -> Outcome {
    vm.start(PATIENCE).await?;
    let info = vm.get_info().await?;
    expect("the VM", (&*info.id, info.is_paused), ("fctools", false))?;
    expect("the version", &*vm.get_firecracker_version().await?, "1.16.1")?;
    expect("memory", vm.get_machine_configuration().await?.mem_size_mib, 256)?;
    step("echo", echo(vsock_path).await)?;
    step("limits", limits(vm).await)?;
    let exchange = UpdateDrive { drive_id: DRIVE.into(), block: Some(other_disk), rate_limiter: None };
    step("exchange of a drive", vm.update_drive(exchange).await.map_err(Into::into))?;
    step("pause and resume", pause(vm).await)?;
    step("balloon", inflate(vm).await)?;
    step("echo after the pause", echo(vsock_path).await)?;
    vm.flush_metrics().await?;
    let written = fs::read_to_string(metrics_path)?;
    expect("metrics of changes", written.contains(r#""patch_api_requests""#), true)?;
    println!("metrics");

    let switch_off =
        VmShutdownAction { method: VmShutdownMethod::CtrlAltDel, timeout: Some(PATIENCE), graceful: true };
    vm.shutdown([switch_off]).await?;
    expect("the state", vm.get_state(), VmState::Exited)
}

fn limiter(bytes: u64, operations: u64) -> RateLimiter {
    let bucket = |size| TokenBucket { size, one_time_burst: Some(size), refill_time: 100 };
    RateLimiter { bandwidth: bucket(bytes), ops: bucket(operations) }
}

/// Sends more than the buffers on the way hold, and expects it back.
async fn echo(path: &Path) -> Outcome {
    let (mut from, mut to) = tokio::io::split(connect(path).await?);
    let sent = b"there and back ".repeat(1 << 15);
    let mut back = vec![0; sent.len()];
    let (written, read) = tokio::join!(to.write_all(&sent), from.read_exact(&mut back));
    written?;
    read?;
    expect("what came back", back == sent, true)
}

/// Connects to the guest's echo, once that listens.
async fn connect(path: &Path) -> Result<BufReader<UnixStream>, Box<dyn Error>> {
    loop {
        let mut stream = BufReader::new(UnixStream::connect(path).await?);
        stream.write_all(format!("CONNECT {ECHO_PORT}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        if answer.starts_with("OK ") {
            return Ok(stream);
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn limits(vm: &mut Machine) -> Outcome {
    let limiters = (Some(limiter(2 << 20, 200)), Some(limiter(2 << 20, 200)));
    let network = UpdateNetworkInterface {
        iface_id: INTERFACE.into(),
        rx_rate_limiter: limiters.0,
        tx_rate_limiter: limiters.1,
    };
    vm.update_network_interface(network).await?;
    let drive = UpdateDrive { drive_id: DRIVE.into(), block: None, rate_limiter: Some(limiter(4 << 20, 400)) };
    Ok(vm.update_drive(drive).await?)
}

async fn pause(vm: &mut Machine) -> Outcome {
    vm.pause().await?;
    expect("a paused VM", vm.get_info().await?.is_paused, true)?;
    vm.resume().await?;
    expect("a VM that goes on", vm.get_info().await?.is_paused, false)
}

async fn inflate(vm: &mut Machine) -> Outcome {
    vm.update_balloon_device(UpdateBalloonDevice { amount_mib: 16 }).await?;
    vm.update_balloon_statistics(UpdateBalloonStatistics { stats_polling_interval_s: 2 }).await?;
    let balloon = vm.get_balloon_device().await?;
    expect("the balloon", (balloon.amount_mib, balloon.stats_polling_interval_s), (16, Some(2)))?;
    loop {
        let statistics = vm.get_balloon_statistics().await?;
        if statistics.actual_mib == 16 && statistics.free_memory.is_some_and(|bytes| bytes > 0) {
            return Ok(());
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn step(name: &str, outcome: Outcome) -> Outcome {
    outcome.map_err(|error| format!("{name}: {error}"))?;
    println!("{name}");
    Ok(())
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}, expected {expected:?}").into()) }
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("${name} is not set"))
}

fn in_path(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let path = env::var_os("PATH").ok_or("$PATH is not set")?;
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.exists());
    found.ok_or_else(|| format!("`{name}` is not in $PATH").into())
}
