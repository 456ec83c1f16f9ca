//! The kernel's tracer, for exits of the processes that this one starts. An instance of its own keeps other users apart.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use bellows_bench::exits::Exit;

use crate::Result;

const INSTANCES: &str = "/sys/kernel/tracing/instances";
/// Per processor. An exit takes about a hundred bytes.
const BUFFER_KIB: &str = "32768";

#[derive(Debug)]
pub struct Tracer {
    instance: PathBuf,
}

impl Tracer {
    /// Sets the tracer up; `None` if it is not available.
    pub fn open() -> Result<Option<Self>> {
        let instance = Path::new(INSTANCES).join(format!("bellows-bench-{}", std::process::id()));
        if fs::create_dir(&instance).is_err() {
            return Ok(None);
        }
        let tracer = Self { instance };
        tracer.set("tracing_on", "0")?;
        tracer.set("buffer_size_kb", BUFFER_KIB)?;
        tracer.set("trace_clock", "mono")?;
        tracer.set("options/event-fork", "1")?;
        tracer.set("set_event_pid", &std::process::id().to_string())?;
        tracer.set("events/kvm/kvm_exit/enable", "1")?;
        Ok(Some(tracer))
    }

    /// Clears the trace and starts again.
    pub fn start(&self) -> Result<()> {
        self.set("trace", "")?;
        self.set("tracing_on", "1")
    }

    pub fn stop(&self) -> Result<()> {
        self.set("tracing_on", "0")
    }

    /// All exits between start and stop, in order.
    pub fn exits(&self) -> Result<Vec<Exit>> {
        let mut exits = Vec::new();
        for line in BufReader::new(File::open(self.instance.join("trace"))?).split(b'\n') {
            exits.extend(Exit::parse(&String::from_utf8_lossy(&line?)));
        }
        Ok(exits)
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = self.instance.join(name);
        fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()).into())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.instance);
    }
}
