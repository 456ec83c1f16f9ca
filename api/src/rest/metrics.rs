//! Metrics: what has been asked of the API, and what the VM has done, a JSON object on a line at each flush.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bellows_vmm::Vm;
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::log::output;

/// The first parts of paths, and Firecracker's names for requests there.
const NAMES: [(&str, &str); 16] = [
    ("", "instance_info"),
    ("actions", "actions"),
    ("balloon", "balloon"),
    ("boot-source", "boot_source"),
    ("cpu-config", "cpu_cfg"),
    ("drives", "drive"),
    ("hotplug", "hotplug_memory"),
    ("logger", "logger"),
    ("machine-config", "machine_cfg"),
    ("metrics", "metrics"),
    ("mmds", "mmds"),
    ("network-interfaces", "network"),
    ("pmem", "pmem"),
    ("serial", "serial"),
    ("version", "vmm_version"),
    ("vsock", "vsock"),
];

/// Counters since the last flush, and where they go.
#[derive(Default)]
pub(crate) struct Counters {
    state: Mutex<State>,
    /// Microseconds from the start of the process, as its parent says it, until it was ready: by the clock, and of CPU time.
    pub(crate) startup: Startup,
}

/// How long it took until the API was there.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Startup {
    #[serde(rename = "process_startup_time_us")]
    pub(crate) wall: u64,
    #[serde(rename = "process_startup_time_cpu_us")]
    pub(crate) cpu: u64,
}

#[derive(Default)]
struct State {
    target: Option<File>,
    requests: BTreeMap<(&'static str, &'static str), Requests>,
}

#[derive(Clone, Copy, Default)]
struct Requests {
    count: u64,
    fails: u64,
}

impl Counters {
    pub(crate) fn new(startup: Startup) -> Self {
        Self { state: Mutex::default(), startup }
    }

    /// Has metrics go to the end of a file, or to a pipe.
    ///
    /// # Errors
    /// It cannot be opened, or they have a place already.
    pub(crate) fn send_to(&self, path: &Path) -> Result<(), Fault> {
        let file = output("metrics_path", path)?;
        let mut state = self.state();
        if state.target.is_some() {
            let value = format!("`{}`", path.display());
            return Err(Fault::value("metrics_path", value, "only one in the life of a process"));
        }
        state.target = Some(file);
        Ok(())
    }

    /// Counts a request.
    pub(crate) fn count(&self, method: &str, path: &str, failed: bool) {
        let group = match method {
            "GET" => "get_api_requests",
            "PUT" => "put_api_requests",
            "PATCH" => "patch_api_requests",
            "DELETE" => "delete_api_requests",
            _ => return,
        };
        let first = path.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default();
        if let Some((_, name)) = NAMES.iter().find(|(part, _)| *part == first) {
            let mut state = self.state();
            let requests = state.requests.entry((group, name)).or_default();
            requests.count += 1;
            requests.fails += u64::from(failed);
        }
    }

    /// Writes a line, and begins to count anew. Does nothing where metrics have no place.
    ///
    /// # Errors
    /// The line cannot be written. The counters go on then.
    pub(crate) fn flush(&self, vm: Option<&Vm>) -> Result<(), Fault> {
        let vm = vm.map(of_vm);
        let mut state = self.state();
        let line = self.line(&state.requests, vm);
        let Some(target) = &mut state.target else { return Ok(()) };
        target.write_all(line.as_bytes()).map_err(|error| Fault::new(format!("cannot write the metrics: {error}")))?;
        state.requests.clear();
        Ok(())
    }

    fn line(&self, requests: &BTreeMap<(&'static str, &'static str), Requests>, vm: Option<Value>) -> String {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = Map::new();
        line.insert("utc_timestamp_ms".into(), json!(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)));
        line.insert("api_server".into(), json!(self.startup));
        for group in ["get_api_requests", "put_api_requests", "patch_api_requests", "delete_api_requests"] {
            let of_group = requests.iter().filter(|((of, _), _)| *of == group);
            let counts = of_group.flat_map(|((_, name), Requests { count, fails })| {
                [(format!("{name}_count"), json!(count)), (format!("{name}_fails"), json!(fails))]
            });
            line.insert(group.into(), Value::Object(counts.collect()));
        }
        if let Some(vm) = vm {
            line.insert("bellows".into(), vm);
        }
        format!("{}\n", Value::Object(line))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Firecracker has no names for.
fn of_vm(vm: &Vm) -> Value {
    json!({
        "exits": vm.exits(),
        "resident_bytes": vm.resident_bytes().ok(),
        "balloon": vm.balloon().map(bellows_vmm::Balloon::report),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_line_has_what_was_asked_since_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics");
        let counters = Counters::new(Startup { wall: 5, cpu: 6 });
        counters.count("GET", "/", false);
        counters.flush(None).unwrap();
        counters.send_to(&path).unwrap();
        assert!(counters.send_to(&path).unwrap_err().message.contains("`metrics_path`"));
        counters.count("PUT", "/drives/a", true);
        counters.count("PUT", "/drives/b", false);
        counters.count("PATCH", "/nothing", true);
        counters.flush(None).unwrap();
        counters.flush(None).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["get_api_requests"]["instance_info_count"], 1);
        assert_eq!(lines[0]["put_api_requests"], json!({ "drive_count": 2, "drive_fails": 1 }));
        assert_eq!(lines[0]["api_server"]["process_startup_time_us"], 5);
        assert_eq!(lines[1]["put_api_requests"], json!({}));
    }
}
