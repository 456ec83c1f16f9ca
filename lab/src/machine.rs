//! The QEMU process that emulates the lab's hardware.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Error, wire};

/// How time passes in the lab.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// As outside the lab.
    #[default]
    Wall,
    /// A nanosecond for each instruction. While every processor waits, the clock jumps to the next timer.
    ///
    /// Times are then the same in every run, however busy this machine is. But anything outside the lab answers at an
    /// arbitrary point of this clock, so such a lab has no disk: its files are in memory.
    Counted,
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wall => "wall clock",
            Self::Counted => "counted",
        })
    }
}

impl Clock {
    /// QEMU's options for it.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Wall => &["-accel", "tcg,thread=multi"],
            Self::Counted => &["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off,align=off"],
        }
    }
}

/// Where samples of the processor go.
#[derive(Debug, Clone)]
pub struct Samples {
    /// The file that gets a [`Sample`](super::sample::Sample) after each period, from the first instruction of the lab.
    pub path: PathBuf,
    /// Length of a period, in instructions.
    pub period: u64,
}

/// The parts of the emulated host.
#[derive(Debug)]
pub(super) struct Hardware {
    pub clock: Clock,
    pub plugin: PathBuf,
    pub samples: Option<Samples>,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub disk: Option<PathBuf>,
    pub memory_mib: u64,
    pub console: PathBuf,
    pub command_line: String,
}

/// A running QEMU; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Machine {
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Machine {
    /// Starts QEMU and returns it with the stream that leads to the lab's virtio-serial port.
    pub fn start(hardware: &Hardware) -> Result<(Self, UnixStream), Error> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::Channel)?;
        let mut command = qemu(hardware, theirs.as_raw_fd())?;
        let (started, start_result) = mpsc::channel();
        let (stop, stop_request) = mpsc::channel();
        // The kernel sends the death signal when the *thread* that forked ends, so QEMU's thread lives as long as QEMU.
        let keeper = std::thread::Builder::new()
            .name("lab-machine".into())
            .spawn(move || {
                let spawned = command.spawn();
                drop(theirs);
                match spawned {
                    Ok(child) => {
                        let _ = started.send(Ok(()));
                        keep(child, &stop_request);
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            })
            .map_err(Error::Channel)?;
        match start_result.recv() {
            Ok(Ok(())) => Ok((Self { stop: Some(stop), keeper: Some(keeper) }, ours)),
            Ok(Err(error)) => Err(Error::at(Path::new(QEMU))(error)),
            Err(_) => Err(Error::Channel(io::Error::other("the thread that starts QEMU ended"))),
        }
    }

    /// Waits for QEMU to end by itself, for at most `limit`.
    pub fn wait(&self, limit: Duration) {
        let started = Instant::now();
        while self.keeper.as_ref().is_some_and(|keeper| !keeper.is_finished()) && started.elapsed() < limit {
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// How often to look whether QEMU still runs.
const POLL: Duration = Duration::from_millis(50);

const QEMU: &str = "qemu-system-x86_64";

/// With AMD-V and nested paging. XSETBV does not exit from the nested guest in this emulation, so guests would see an
/// inconsistent XSAVE state: they get no XSAVE. Fast string instructions (ERMS and its kin) are slow here: they are emulated byte by
/// byte, and without them kernels copy and clear memory by words.
const CPU: &str = "max,+svm,+npt,-xsave,-erms,-fsrm,-fzrm,-fsrs,-fsrc";

/// QEMU's threads share one processor (see [`stay_on_one_processor`]), so more threads would only contend.
const CPUS: &str = "1";

fn qemu(hardware: &Hardware, port: RawFd) -> Result<Command, Error> {
    let console = File::create(&hardware.console).map_err(Error::at(&hardware.console))?;
    let log = console.try_clone().map_err(Error::at(&hardware.console))?;
    let mut command = Command::new(QEMU);
    command
        .args(hardware.clock.options())
        .args(["-cpu", CPU])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .args(["-smp", CPUS, "-m", &format!("{}M", hardware.memory_mib)])
        .args(["-serial", "stdio"])
        .args(["-chardev", &format!("socket,id=lab,fd={port}")])
        .args(["-device", "virtio-serial-pci"])
        .args(["-device", &format!("virtserialport,chardev=lab,name={}", wire::PORT)])
        .args(["-device", "virtio-rng-pci"])
        .arg("-kernel")
        .arg(&hardware.kernel)
        .arg("-initrd")
        .arg(&hardware.initramfs)
        .args(["-append", &hardware.command_line]);
    command.arg("-plugin").arg(plugin(&hardware.plugin, hardware.samples.as_ref()));
    if let Some(disk) = &hardware.disk {
        command
            .args(["-object", "iothread,id=disk"])
            .args(["-drive", &format!("if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file={}", disk.display())])
            .args(["-device", "virtio-blk-pci,drive=disk,iothread=disk,serial=lab"]);
    }
    command.stdin(Stdio::null()).stdout(console).stderr(log);
    // Labs of one process are on one processor after the other.
    static LABS: AtomicUsize = AtomicUsize::new(0);
    let turn = (std::process::id() as usize).wrapping_add(LABS.fetch_add(1, Ordering::Relaxed));
    // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, fcntl, getpid, sched_*affinity.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 || libc::fcntl(port, libc::F_SETFD, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            stay_on_one_processor(turn)
        });
    }
    Ok(command)
}

/// QEMU's option for our plugin. A comma in a name is written twice.
fn plugin(plugin: &Path, samples: Option<&Samples>) -> String {
    let name = |path: &Path| path.display().to_string().replace(',', ",,");
    match samples {
        Some(samples) => format!("{},samples={},period={}", name(plugin), name(&samples.path), samples.period),
        None => name(plugin),
    }
}

/// Keeps this process on one of its processors, chosen by `turn`.
///
/// QEMU 10.0 clears a virtual interrupt at an exit with an instruction that is not atomic between processors, while other
/// threads add to the same set of pending interrupts. If they run in parallel, now and then an interrupt of the emulated host
/// is lost, or a guest gets a spurious one: the host hangs, or a guest dies.
fn stay_on_one_processor(turn: usize) -> io::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let processors = || (0..CpuSet::count()).filter(|processor| allowed.is_set(*processor) == Ok(true));
    let mut only = CpuSet::new();
    if let Some(mine) = processors().nth(turn % processors().count().max(1)) {
        only.set(mine)?;
        sched_setaffinity(this, &only)?;
    }
    Ok(())
}

/// Returns when QEMU has ended, by itself or because it was told to.
fn keep(mut child: Child, stop: &Receiver<()>) {
    // An error of `try_wait` means that no process is left to wait for.
    while matches!(stop.recv_timeout(POLL), Err(RecvTimeoutError::Timeout)) {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}
