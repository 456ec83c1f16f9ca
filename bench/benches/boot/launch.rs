//! Starts a monitor and waits until the guest's agent can be called.

use std::fs;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bellows_bench::boot::Monitor;
use bellows_bench::exits::Moments;
use bellows_lab::artefact;
use bellows_protocol::READY_PORT;
use bellows_protocol::ready::{BootTimes, MAX_READY_LINE, parse_ready_line};
use bellows_vmm::ReadyReport;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::Result;

/// The guest's memory, in bytes.
pub const MEMORY: u64 = 512 << 20;

/// The guest kernel's parameters: Bellows sets them itself; QEMU gets them from here.
const COMMAND_LINE: &str = "panic=-1 reboot=acpi swiotlb=noforce memhp_default_state=online_movable tsc=reliable \
     random.trust_cpu=on no_timer_check 8250.nr_uarts=1 quiet";

/// Only devices that the guest needs, as QEMU's documentation recommends for short boot times. ACPI and PCIe stay, since
/// the kernel cannot find devices without them.
const MACHINE: &str =
    "microvm,acpi=on,pcie=on,pit=off,pic=off,rtc=off,isa-serial=off,usb=off,x-option-roms=off,auto-kernel-cmdline=off";

/// Firmware that only starts the kernel.
const FIRMWARE: &str = "qboot.rom";

/// Address of QEMU's guest on the host's vsock.
const GUEST_CID: u32 = 4217;

/// Longest time that a boot may take, on an emulated processor.
const LIMIT: Duration = Duration::from_secs(300);

/// How often to see whether a monitor still runs while the guest is silent.
const LOOK: u16 = 500;

/// The programs, kernel and initramfs of a boot.
#[derive(Debug)]
pub struct Guest {
    bellows: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Guest {
    /// The artefacts that the environment names.
    pub fn from_environment() -> Result<Self> {
        Ok(Self {
            bellows: artefact("BELLOWS_BINARY")?,
            kernel: artefact("BELLOWS_KERNEL")?,
            initramfs: artefact("BELLOWS_INITRAMFS")?,
        })
    }

    fn command(&self, monitor: Monitor) -> Command {
        match monitor {
            Monitor::Bellows => {
                let mut command = Command::new(&self.bellows);
                command.args(["run", "--json", &format!("--base={MEMORY}"), &format!("--timeout={}", LIMIT.as_secs())]);
                command.arg("--kernel").arg(&self.kernel).arg("--initramfs").arg(&self.initramfs);
                command
            }
            Monitor::Qemu => {
                let mut command = Command::new("qemu-system-x86_64");
                command
                    .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
                    .args(["-machine", MACHINE, "-bios", FIRMWARE, "-accel", "kvm", "-cpu", "host", "-smp", "1"])
                    .args(["-m", &format!("{}M", MEMORY >> 20)])
                    .args(["-device", &format!("vhost-vsock-pci,guest-cid={GUEST_CID}"), "-device", "virtio-rng-pci"])
                    .args(["-append", COMMAND_LINE]);
                command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
                command
            }
        }
    }
}

/// Starts monitors.
#[derive(Debug)]
pub struct Launcher {
    guest: Guest,
    /// Listens for agents of guests that reach the host's own vsock.
    ready: OwnedFd,
}

impl Launcher {
    pub fn new(guest: Guest) -> Result<Self> {
        let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, READY_PORT))
            .map_err(|error| format!("vsock port {READY_PORT} of this host: {error}"))?;
        listen(&listener, Backlog::new(1)?)?;
        Ok(Self { guest, ready: listener })
    }

    /// Starts a monitor and returns once its guest can be called.
    pub fn boot(&self, monitor: Monitor) -> Result<Booted> {
        let mut command = self.guest.command(monitor);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = now()?;
        let child =
            command.spawn().map_err(|error| format!("{}: {error}", Path::new(command.get_program()).display()))?;
        let mut child = Ended(child);
        let times = match monitor {
            Monitor::Bellows => bellows_is_ready(&mut child)?,
            Monitor::Qemu => self.qemu_is_ready(&mut child)?,
        };
        let ready = now()?;
        let init = ready.saturating_sub(times.ready.saturating_sub(times.init));
        Ok(Booted { child, moments: Moments { start, init, ready } })
    }

    /// Waits for the line of the agent itself, which comes through the host's kernel.
    fn qemu_is_ready(&self, child: &mut Ended) -> Result<BootTimes> {
        let limit = now()? + LIMIT;
        loop {
            let mut entry = [PollFd::new(self.ready.as_fd(), PollFlags::POLLIN)];
            if poll(&mut entry, PollTimeout::from(LOOK))? > 0 {
                break;
            }
            if child.0.try_wait()?.is_some() {
                return Err(child.failure("qemu").into());
            }
            if now()? > limit {
                return Err(format!("qemu's guest was not ready after {} s", LIMIT.as_secs()).into());
            }
        }
        let stream = accept4(self.ready.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the call above made the descriptor, and nothing else owns it.
        let stream = File::from(unsafe { OwnedFd::from_raw_fd(stream) });
        let mut line = Vec::new();
        stream.take(MAX_READY_LINE as u64).read_to_end(&mut line)?;
        Ok(parse_ready_line(&line)?)
    }
}

/// Waits for the monitor's line, which follows the agent's.
fn bellows_is_ready(child: &mut Ended) -> Result<BootTimes> {
    let output = child.0.stdout.take().ok_or("bellows has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.is_empty() {
        return Err(child.failure("bellows").into());
    }
    let ReadyReport { init, ready, .. } = serde_json::from_str(&line)?;
    Ok(BootTimes { init, ready })
}

/// A monitor whose guest is ready. It is killed when this is dropped.
#[derive(Debug)]
pub struct Booted {
    child: Ended,
    pub moments: Moments,
}

impl Booted {
    /// From the start of the process until its guest was ready.
    pub fn time(&self) -> Duration {
        self.moments.ready.saturating_sub(self.moments.start)
    }

    /// The process's mappings now.
    pub fn smaps(&self) -> Result<String> {
        Ok(fs::read_to_string(format!("/proc/{}/smaps", self.child.0.id()))?)
    }

    /// Ends the monitor and its guest with a signal, as a user would, so that it can clean up.
    pub fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.0.id())?), Signal::SIGTERM)?;
        self.child.0.wait()?;
        Ok(())
    }
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
struct Ended(Child);

impl Ended {
    /// The error of a process that ended too early, with its output.
    fn failure(&mut self, name: &str) -> String {
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            // The rest of the output is lost.
            let _ = stderr.read_to_string(&mut said);
        }
        let status = self.0.wait().map(|status| status.to_string()).unwrap_or_default();
        format!("{name} ended ({status}) before its guest was ready: {}", said.trim())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn now() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?))
}
