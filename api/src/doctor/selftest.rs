//! `bellows doctor --selftest`: VMs that show whether this host does what Bellows relies on, step by step, and what a report of a fault
//! should say of the host.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use bellows_vmm::{ByteSize, DriveConfig, HostTrial, PartitionId, SerialOutput, Vm, VmBuilder, VmEnd};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::error::{CliError, io_error, with_causes};
use crate::places::Places;

/// Time for each step of the guest; an emulated host is slow.
const LIMIT: Duration = Duration::from_secs(120);
const BASE: ByteSize = ByteSize::mib(256);
const WINDOW: ByteSize = ByteSize::mib(256);
const PLUGGED: ByteSize = ByteSize::mib(128);
const DISK_BYTES: u64 = 1 << 20;
/// Bytes of the guest's console that a report has.
const CONSOLE: usize = 16 << 10;

/// One step, and what came of it.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    name: &'static str,
    ok: bool,
    /// What was seen, or why it failed.
    found: String,
    ms: f64,
}

/// All steps.
#[derive(Debug, Serialize)]
pub(super) struct SelfTest {
    host: Value,
    steps: Vec<Step>,
    /// The end of what the guest has printed, if a step failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    console: Option<String>,
}

impl SelfTest {
    /// Runs all steps; those after a failure that they need are left out.
    pub(super) fn run(root: &Path) -> Self {
        let mut test = Self { host: host(root), steps: Vec::new(), console: None };
        test.step("unplugged memory", || {
            let trial = HostTrial::run().map_err(|error| with_causes(&error))?;
            match trial.faults() {
                faults if faults.is_empty() => {
                    Ok(((), "reads ones and keeps nothing; a doorbell follows its BAR".into()))
                }
                faults => Err(faults.join("; ")),
            }
        });
        if let Err(error) = test.guest() {
            test.steps.push(Step { name: "guest", ok: false, found: error.chain(), ms: 0.0 });
        }
        test
    }

    /// Whether all steps went well.
    pub(super) fn passed(&self) -> bool {
        self.steps.iter().all(|step| step.ok)
    }

    /// A guest with an agent: partitions and disks that come and go.
    fn guest(&mut self) -> Result<(), CliError> {
        let places = Places::of_user();
        let (kernel, initramfs) = (places.kernel()?, places.initramfs()?);
        let folder = tempfile::tempdir().map_err(io_error("make a folder in", std::env::temp_dir()))?;
        let console = folder.path().join("console");
        let builder = VmBuilder::new(kernel, BASE).initramfs(initramfs).partition(WINDOW);
        let builder = builder.serial(SerialOutput::File(console.clone()));
        let went_well = self.boot(builder, &folder).is_some();
        if !went_well {
            let text = fs::read(&console).unwrap_or_default();
            let end = text.get(text.len().saturating_sub(CONSOLE)..).unwrap_or_default();
            self.console = Some(String::from_utf8_lossy(end).into_owned());
        }
        Ok(())
    }

    /// `None` after a failure.
    fn boot(&mut self, builder: VmBuilder, folder: &TempDir) -> Option<()> {
        let vm = self.step("boot", || {
            let vm = builder.boot().map_err(|error| with_causes(&error))?;
            let guest = vm.wait_ready(LIMIT).map_err(|error| with_causes(&error))?;
            let found = format!("Linux {}, partitions kept apart by {}", guest.kernel_release, guest.partition_mode);
            Ok((vm, found))
        })?;
        let went_well = self.changes(&vm, folder);
        let shutdown = self.step("shutdown", || match vm.shutdown(LIMIT) {
            VmEnd::PoweredOff => Ok(((), "the guest switched itself off".into())),
            end => Err(end.to_string()),
        });
        went_well.and(shutdown)
    }

    fn changes(&mut self, vm: &Vm, folder: &TempDir) -> Option<()> {
        let partition = PartitionId::new(1)?;
        // The first one adds memory to the guest, the second one finds it there.
        for (plug, unplug) in [("first plug", "first unplug"), ("plug", "unplug")] {
            self.step(plug, || {
                let report = vm.plug(partition, PLUGGED, LIMIT).map_err(|error| with_causes(&error))?;
                Ok(((), format!("{} accepted by the guest in {:.1?}", report.bytes, report.accepted)))
            })?;
            self.step(unplug, || {
                let report = vm.unplug(partition, LIMIT).map_err(|error| with_causes(&error))?;
                let discard = vm.await_discard(partition, LIMIT).map_err(|error| with_causes(&error))?;
                match report.left.get() {
                    0 => {
                        let (bytes, time) = (discard.discarded, discard.discard);
                        Ok((
                            (),
                            format!("slots changed in {:.1?}; {bytes} back with the host in {time:.1?}", report.slots),
                        ))
                    }
                    _ => Err(format!("the guest keeps {}", report.left)),
                }
            })?;
        }
        self.step("disk", || {
            let path = folder.path().join("disk");
            let made = fs::File::create(&path).and_then(|file| file.set_len(DISK_BYTES));
            made.map_err(|error: io::Error| error.to_string())?;
            let disk = vm.attach_drive(&DriveConfig::new(&path, false), LIMIT).map_err(|error| with_causes(&error))?;
            vm.detach_disk(&disk.serial, LIMIT).map_err(|error| with_causes(&error))?;
            Ok(((), "came and went".into()))
        })?;
        self.step("pause", || {
            vm.pause().and_then(|()| vm.resume()).map_err(|error| with_causes(&error))?;
            vm.statistics().map_err(|error| with_causes(&error))?;
            Ok(((), "the guest goes on".into()))
        })
    }

    /// Does a step, and notes what came of it.
    fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<(T, String), String>) -> Option<T> {
        let begun = Instant::now();
        let result = work();
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        let (result, ok, found) = match result {
            Ok((result, found)) => (Some(result), true, found),
            Err(error) => (None, false, error),
        };
        self.steps.push(Step { name, ok, found, ms });
        result
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = if self.ok { "ok" } else { "FAILED" };
        write!(f, "{state:<6} {:<17} {:>9.1} ms  {}", self.name, self.ms, self.found)
    }
}

impl Display for SelfTest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        let failed = self.steps.iter().filter(|step| !step.ok).count();
        match failed {
            0 => write!(f, "All {} steps of the self-test went well.", self.steps.len()),
            _ => write!(f, "{failed} of {} steps of the self-test failed.", self.steps.len()),
        }
    }
}

/// What kind of host this is.
fn host(root: &Path) -> Value {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok().map(|text| text.trim().to_owned());
    let processor = read("proc/cpuinfo").unwrap_or_default();
    let of_processor = |name: &str| {
        let mut lines = processor.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    let parameters = ["kvm", "kvm_amd", "kvm_intel"].into_iter().filter_map(|module| {
        let folder = root.join(format!("sys/module/{module}/parameters"));
        let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
        let values = entries.filter_map(|entry| {
            let value = fs::read_to_string(entry.path()).ok()?.trim().to_owned();
            Some((entry.file_name().to_string_lossy().into_owned(), Value::from(value)))
        });
        Some((module.to_owned(), Value::Object(values.collect())))
    });
    json!({
        "bellows": env!("CARGO_PKG_VERSION"),
        "kernel": read("proc/version"),
        "processor": of_processor("model name"),
        "microcode": of_processor("microcode"),
        "modules": Value::Object(parameters.collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_failed_and_on_which_host() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/version", "Linux 6.12\n"),
            ("proc/cpuinfo", "processor\t: 0\nmodel name\t: A CPU\nmicrocode\t: 0x1\n"),
            ("sys/module/kvm_amd/parameters/npt", "Y\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut test = SelfTest { host: host(root.path()), steps: Vec::new(), console: None };
        assert_eq!(test.step("one", || Ok((1, "fine".into()))), Some(1));
        assert!(test.passed());
        assert_eq!(test.step::<()>("two", || Err("broken".into())), None);
        assert!(!test.passed());
        let text = test.to_string();
        assert!(text.contains("FAILED two") && text.ends_with("1 of 2 steps of the self-test failed."), "{text}");
        let json = serde_json::to_value(&test).unwrap();
        assert_eq!(json["host"]["modules"], json!({ "kvm_amd": { "npt": "Y" } }));
        assert_eq!((&json["host"]["processor"], &json["host"]["microcode"]), (&json!("A CPU"), &json!("0x1")));
        assert_eq!(json["steps"][1]["found"], "broken");
        assert!(json.get("console").is_none());
    }
}
