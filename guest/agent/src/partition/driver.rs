//! The report of the guest kernel's virtio-mem driver about a device, in the folder `partition/` that our kernel adds
//! (`guest/kernel/README.md`). Stock kernels have no such folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bellows_protocol::values::Node;
use nix::fcntl::{OFlag, openat};
use nix::libc::{O_DIRECTORY, O_PATH};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use crate::error::{AgentError, Result};
use crate::sync::Mutex;

/// The state of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Plugging memory.
    Plugging,
    /// Plugged up to the target.
    Online,
    /// Unplugging memory.
    Draining,
    /// All memory is unplugged; memory blocks and memory map stay.
    Parked,
    /// All memory is unplugged.
    Empty,
    /// The driver has given up.
    Broken,
}

/// The report about a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Driver {
    /// The state of its driver.
    pub state: State,
    /// Whether its node is private: only attached cgroups and tmpfs get memory there.
    pub private: bool,
    /// The target in bytes.
    pub requested_bytes: u64,
    /// Plugged bytes.
    pub plugged_bytes: u64,
    /// 4 KiB pages in use.
    pub allocated_pages: u64,
    /// How often it was parked.
    pub parks: u64,
    /// How often it was plugged from the parked state.
    pub unparks: u64,
    /// How often a park found pages in use.
    pub park_misses: u64,
    /// The last complete plug.
    pub last_plug: Times,
    /// The last complete unplug.
    pub last_unplug: Times,
}

/// The time of a plug or unplug. While the driver works on the next one, the two numbers may be of different ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// From the driver's start until the host had acknowledged all of it.
    pub total_ns: u64,
    /// Of that, waiting for the host.
    pub host_ns: u64,
}

/// The devices that have been found, by node, to be found again without a search.
#[derive(Debug, Default)]
pub struct Devices(Mutex<BTreeMap<u32, Device>>);

/// The `partition/` folder of a virtio-mem device, which is kept open: a device that is gone has nothing in it.
#[derive(Debug, Clone)]
pub struct Device {
    path: PathBuf,
    folder: Arc<File>,
}

impl Devices {
    /// The device whose memory is on `node`; `None` if the driver does not report it.
    pub fn find(&self, sys: &Path, node: Node) -> Option<Device> {
        let mut known = self.0.lock();
        if let Some(device) = known.get(&node.number()).filter(|device| device.is_of(node)) {
            return Some(device.clone());
        }
        known.remove(&node.number());
        let device = Device::find(sys, node)?;
        known.insert(node.number(), device.clone());
        Some(device)
    }
}

impl Device {
    fn find(sys: &Path, node: Node) -> Option<Self> {
        let devices = fs::read_dir(sys.join("bus/virtio/devices")).ok()?;
        let folders = devices.flatten().map(|entry| entry.path().join("partition"));
        folders.filter_map(|path| Self::open(path).ok()).find(|device| device.is_of(node))
    }

    fn open(path: PathBuf) -> io::Result<Self> {
        let folder = File::options().read(true).custom_flags(O_PATH | O_DIRECTORY).open(&path)?;
        Ok(Self { path, folder: Arc::new(folder) })
    }

    fn is_of(&self, node: Node) -> bool {
        self.number("node").is_ok_and(|number| number == u64::from(node.number()))
    }

    /// Its report.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn read(&self) -> Result<Driver> {
        Ok(Driver {
            state: self.with_text("state", |text| self.parse_state(text))?,
            private: self.number("private")? != 0,
            requested_bytes: self.number("requested_bytes")?,
            plugged_bytes: self.number("plugged_bytes")?,
            allocated_pages: self.number("allocated_pages")?,
            parks: self.number("parks")?,
            unparks: self.number("unparks")?,
            park_misses: self.number("park_misses")?,
            last_plug: self.times("last_plug")?,
            last_unplug: self.times("last_unplug")?,
        })
    }

    /// Whether its node is private.
    ///
    /// # Errors
    /// [`AgentError::Path`], [`AgentError::Malformed`].
    pub fn is_private(&self) -> Result<bool> {
        Ok(self.number("private")? != 0)
    }

    /// Waits until `bytes` are plugged and usable.
    ///
    /// # Errors
    /// [`AgentError::TimedOut`]; [`AgentError::Broken`], at once.
    pub fn await_plugged(&self, bytes: u64, limit: Duration) -> Result<()> {
        let plugged = self.await_state(limit, |state| {
            Ok(match state {
                State::Broken => return Err(AgentError::Broken(self.path.display().to_string())),
                State::Online => self.number("plugged_bytes")? == bytes,
                _ => false,
            })
        })?;
        let after = limit;
        if plugged { Ok(()) } else { Err(AgentError::TimedOut { what: format!("{bytes} bytes plugged"), after }) }
    }

    /// Waits until it is neither plugging nor draining, or until `limit` is over.
    ///
    /// # Errors
    /// As for [`Device::read`].
    pub fn await_idle(&self, limit: Duration) -> Result<()> {
        self.await_state(limit, |state| Ok(!matches!(state, State::Plugging | State::Draining)))?;
        Ok(())
    }

    /// Calls `check` with the report now and after each change until it is true; returns whether that was in time.
    fn await_state(&self, limit: Duration, check: impl Fn(State) -> Result<bool>) -> Result<bool> {
        let path = self.path.join("state");
        let mut file = self.open_file("state").map_err(AgentError::path("open", &path))?;
        let deadline = Instant::now() + limit;
        loop {
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(AgentError::path("read", &path))?;
            if check(self.parse_state(text.trim_end())?)? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // The kernel announces a change since the last read with POLLPRI.
            let timeout = PollTimeout::try_from(left + ROUND_UP).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLPRI)], timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(AgentError::path("poll", &path)(error)),
            }
        }
    }

    fn parse_state(&self, text: &str) -> Result<State> {
        Ok(match text {
            "plugging" => State::Plugging,
            "online" => State::Online,
            "draining" => State::Draining,
            "parked" => State::Parked,
            "empty" => State::Empty,
            "broken" => State::Broken,
            _ => return Err(self.malformed("state", text)),
        })
    }

    fn times(&self, name: &str) -> Result<Times> {
        let total_ns = self.number(&format!("{name}_ns"))?;
        // If a later request ends meanwhile, this is its part; it stays a part.
        let host_ns = self.number(&format!("{name}_host_ns"))?.min(total_ns);
        Ok(Times { total_ns, host_ns })
    }

    fn number(&self, name: &str) -> Result<u64> {
        self.with_text(name, |text| text.parse().map_err(|_| self.malformed(name, text)))
    }

    /// Has `parse` look at a file's text, without white space at its end.
    fn with_text<T>(&self, name: &str, parse: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        // The kernel gives all of it at once. Longer text is malformed.
        let mut text = [0; 64];
        let read = self.open_file(name).and_then(|mut file| file.read(&mut text));
        let length = read.map_err(|error| AgentError::path("read", self.path.join(name))(error))?;
        let text = str::from_utf8(&text[..length]).map_err(|_| self.malformed(name, "?"))?;
        parse(text.trim_end())
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        Ok(openat(&*self.folder, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    fn malformed(&self, name: &str, text: &str) -> AgentError {
        AgentError::Malformed { what: self.path.join(name).display().to_string(), text: text.into() }
    }
}

/// Rounds up, so that the caller does not spin through the last millisecond.
const ROUND_UP: Duration = Duration::from_millis(1);

#[cfg(test)]
#[path = "driver_test.rs"]
mod tests;
