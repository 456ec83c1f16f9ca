//! The lab: a whole host, emulated, whose processor has AMD-V, for machines without usable KVM.
//!
//! QEMU without acceleration boots Debian's 6.12 cloud kernel with the real `kvm_amd`; programs of this machine run in
//! it unchanged. It's slow but it is a real KVM, and nothing needs privileges outside. See `docs/lab.md`.
//!
//! ```no_run
//! use bellows_lab::{Job, Lab, Parts};
//! # fn main() -> Result<(), bellows_lab::Error> {
//! let parts = Parts { kernel: "vmlinuz".into(), modules: "lib/modules/6.12".into(), init: "bellows-lab-init".into(), plugin: "libbellows_lab_plugin.so".into() };
//! let lab = Lab::builder(parts).memory_mib(4096).boot()?;
//! let output = lab.start(&Job::shell("ls -l /dev/kvm"))?.output()?;
//! assert_eq!(output.code, 0);
//! lab.shutdown()
//! # }
//! ```

mod artefact;
mod builder;
pub mod cpio;
mod host;
mod job;
mod machine;
pub mod modules;
pub mod mount;
pub mod program;
pub mod sample;
pub mod wire;

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::job::Port;
use self::machine::Machine;
use self::wire::{Frame, Kind};

pub use self::artefact::artefact;
pub use self::builder::{LabBuilder, Parts};
pub use self::host::Host;
pub use self::job::{Event, Output, Running, Stdin};
pub use self::machine::{Clock, Samples};
pub use self::wire::Job;

/// Where the lab's disk is mounted in the lab.
pub const DISK: &str = "/work";

/// An ordinary user of the lab, in the group `kvm`.
pub const USER: &str = "user";
/// Its number, and that of its group.
pub const USER_ID: u32 = 1000;
/// Where its programs have what lasts as long as its session.
pub const USER_RUNTIME: &str = "/run/user/1000";
/// Its home.
pub const USER_HOME: &str = "/home/user";
/// The group whose members may use KVM. The user is one.
pub const KVM_GROUP: u32 = 106;

/// Variable of the lab's first process if time is counted. The kernel passes on parameters that it does not know.
pub const COUNTED: &str = "lab_counts_time";

/// Time limit for a lab to start; it takes a few seconds on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// Why a call to the lab failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or program of this machine.
    #[error("{}", path.display())]
    File {
        /// Its name.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A helper program failed.
    #[error("{tool}: {message}")]
    Tool {
        /// Its name.
        tool: &'static str,
        /// Its output.
        message: String,
    },
    /// The way into the lab.
    #[error("channel to the lab")]
    Channel(#[source] io::Error),
    /// The emulated host ended, or never came up.
    #[error("the lab stopped; its console ends with\n{console}")]
    Stopped {
        /// The last lines of the console.
        console: String,
    },
    /// The lab did not come up in time.
    #[error("the lab was not up after {} s; its console ends with\n{console}", limit.as_secs())]
    TimedOut {
        /// The time limit.
        limit: Duration,
        /// The last lines of the console.
        console: String,
    },
    /// A job sent nothing for too long.
    #[error("nothing was heard from the lab for {} s; its console ends with\n{console}", limit.as_secs())]
    Silent {
        /// How long it had.
        limit: Duration,
        /// The last lines of the console.
        console: String,
    },
    /// A file of the lab could not be read or written.
    #[error("{path} in the lab: {message}")]
    Remote {
        /// Its name.
        path: String,
        /// The lab's message.
        message: String,
    },
}

impl Error {
    /// For `map_err`: an I/O error of `path`.
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { path, source }
    }
}

type Jobs = Arc<Mutex<HashMap<u32, Sender<Event>>>>;

/// A running lab. Several threads may run jobs in it at the same time. Dropping it ends it at once.
#[derive(Debug)]
pub struct Lab {
    machine: Machine,
    port: Port,
    jobs: Jobs,
    next_job: AtomicU32,
    boot_time: Duration,
    /// Holds initramfs, disk and console; dropped last.
    _scratch: tempfile::TempDir,
}

impl Lab {
    /// Begins the description of a lab made of `parts`.
    pub fn builder(parts: Parts) -> LabBuilder {
        LabBuilder::new(parts)
    }

    fn boot(hardware: &machine::Hardware, scratch: tempfile::TempDir) -> Result<Self, Error> {
        let started = Instant::now();
        let (machine, stream) = Machine::start(hardware)?;
        let reader = stream.try_clone().map_err(Error::Channel)?;
        let port = Port { stream: Arc::new(Mutex::new(stream)), console: hardware.console.clone() };

        reader.set_read_timeout(Some(BOOT_LIMIT)).map_err(Error::Channel)?;
        match Frame::read(&reader) {
            Ok(Some(frame)) if frame.kind == Kind::Ready => {}
            Ok(Some(frame)) => return Err(Error::Channel(io::Error::other(format!("{:?} before Ready", frame.kind)))),
            Ok(None) => return Err(port.stopped()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(Error::TimedOut { limit: BOOT_LIMIT, console: console_tail(&hardware.console) });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(port.stopped()),
            Err(error) => return Err(Error::Channel(error)),
        }
        reader.set_read_timeout(None).map_err(Error::Channel)?;

        let jobs = Jobs::default();
        let sinks = Arc::clone(&jobs);
        std::thread::Builder::new()
            .name("lab-reader".into())
            .spawn(move || read_events(&reader, &sinks))
            .map_err(Error::Channel)?;
        Ok(Self { machine, port, jobs, next_job: AtomicU32::new(1), boot_time: started.elapsed(), _scratch: scratch })
    }

    /// Time from the start of QEMU until the lab answered.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Starts a program in the lab.
    pub fn start(&self, job: &Job) -> Result<Running, Error> {
        let id = self.next_job.fetch_add(1, Ordering::Relaxed);
        let (sink, events) = mpsc::channel();
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sink);
        let description = serde_json::to_vec(job).map_err(|error| Error::Channel(error.into()))?;
        self.port.send(&Frame::new(id, Kind::Start, description))?;
        Ok(Running { id, port: self.port.clone(), events })
    }

    /// Runs a program without input to its end, handing output on as it comes. Returns the exit code.
    pub fn exec(&self, job: &Job, on_output: impl FnMut(Event)) -> Result<i32, Error> {
        let running = self.start(job)?;
        running.stdin().close()?;
        running.wait(on_output)
    }

    /// Runs a program without input to its end and returns all it printed.
    pub fn output(&self, job: &Job) -> Result<Output, Error> {
        let running = self.start(job)?;
        running.stdin().close()?;
        running.output()
    }

    /// Reads a file of the lab.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, Error> {
        let output = self.output(&Job::new(["cat", path]))?;
        remote_result(path, &output)?;
        Ok(output.stdout)
    }

    /// Writes a file in the lab.
    pub fn write_file(&self, path: &str, data: &[u8]) -> Result<(), Error> {
        let running = self.start(&Job::shell("cat > \"$FILE\"").env("FILE", path))?;
        running.stdin().write(data)?;
        running.stdin().close()?;
        remote_result(path, &running.output()?)
    }

    /// The end of the console: kernel messages of the lab.
    pub fn console(&self) -> String {
        console_tail(&self.port.console)
    }

    /// Powers the lab off and waits until QEMU has ended.
    pub fn shutdown(self) -> Result<(), Error> {
        self.port.send(&Frame::new(0, Kind::PowerOff, []))?;
        // The drop that follows ends a lab that does not power off in time.
        self.machine.wait(Duration::from_secs(20));
        Ok(())
    }
}

fn remote_result(path: &str, output: &Output) -> Result<(), Error> {
    if output.code == 0 {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Remote { path: path.to_owned(), message })
}

fn read_events(stream: &UnixStream, jobs: &Jobs) {
    while let Ok(Some(frame)) = Frame::read(stream) {
        let event = match frame.kind {
            Kind::Stdout => Event::Stdout(frame.payload),
            Kind::Stderr => Event::Stderr(frame.payload),
            Kind::Exit => match frame.number() {
                Ok(code) => Event::Exit(code),
                Err(_) => break,
            },
            _ => continue,
        };
        let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sink =
            if matches!(event, Event::Exit(_)) { jobs.remove(&frame.job) } else { jobs.get(&frame.job).cloned() };
        if let Some(sink) = sink {
            // If the job was dropped, so is its output.
            let _ = sink.send(event);
        }
    }
    // The closed channel tells waiters that the lab is gone.
    jobs.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn console_tail(path: &Path) -> String {
    const LINES: usize = 40;
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Threads share a lab.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Lab>();
};
