//! The report of the demonstration, for machines and for people.

use std::fmt::{self, Write};
use std::time::Duration;

use bellows_vmm::{PartitionMode, PartitionReport, Shape, Transport, milliseconds};
use serde::Serialize;

use crate::cli::Host;
use crate::report::shown;

/// The whole report. Every number was measured in this run; `null` means that this host or guest cannot tell.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) host: Host,
    pub(super) guest_kernel: String,
    /// How the guests keep partitions apart.
    pub(super) partition_mode: PartitionMode,
    pub(super) vms: Vec<VmReport>,
    pub(super) layers: Vec<LayerReport>,
    pub(super) disk: Option<DiskReport>,
    /// A function that has answered the host over HTTP; `null` without a network.
    pub(super) http: Option<HttpReport>,
    /// Resident memory of the process that ran both VMs, while the partitions of finished instances were back with the host.
    pub(super) process_rss_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct VmReport {
    /// How the image's layers are put together.
    pub(super) shape: Shape,
    /// How they reach the guest.
    pub(super) transport: Transport,
    /// From the first step of making the VM until the guest's agent answered.
    #[serde(rename = "boot_ms", with = "milliseconds")]
    pub(super) boot: Duration,
    /// Host memory under this VM's guest memory while one instance had ended and the other held its memory.
    pub(super) rss_bytes: u64,
    /// The same after the first instance's partition was discarded.
    pub(super) rss_after_discard_bytes: u64,
    pub(super) instances: Vec<InstanceReport>,
    pub(super) partitions: Vec<PartitionReport>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct InstanceReport {
    pub(super) id: String,
    pub(super) exit_code: u8,
    /// It printed the result that was computed on the host.
    pub(super) output_ok: bool,
    #[serde(rename = "run_ms", with = "milliseconds")]
    pub(super) run: Duration,
}

#[derive(Debug, Serialize)]
pub(super) struct HttpReport {
    /// What the host has asked.
    pub(super) url: String,
    /// From the request for the partition, which is parked, and the instance until it listens.
    #[serde(rename = "listening_ms", with = "milliseconds")]
    pub(super) listening: Duration,
    /// The same until the host has the answer.
    #[serde(rename = "answered_ms", with = "milliseconds")]
    pub(super) answered: Duration,
    /// `output_ok` is about the answer.
    pub(super) function: InstanceReport,
    pub(super) partition: PartitionReport,
}

#[derive(Debug, Serialize)]
pub(super) struct LayerReport {
    pub(super) digest: String,
    pub(super) bytes: u64,
    /// The file was dropped from the page cache before the first VM booted: further pages there were read from the disk
    /// since, once. Pages that were dropped again meanwhile are missing here, but not in `disk`.
    pub(super) disk_bytes_read: Option<u64>,
    pub(super) resident_bytes: u64,
}

/// The disk under the layers, by its own counter: all reads of the host.
#[derive(Debug, Serialize)]
pub(super) struct DiskReport {
    pub(super) name: String,
    pub(super) bytes_read: u64,
    /// Of that, until each VM was ready and had its image mounted.
    pub(super) bytes_read_by_boot: Vec<u64>,
}

impl Report {
    /// Whether all results are right.
    pub(super) fn is_good(&self) -> bool {
        let http = self.http.as_ref();
        let mut instances = self.vms.iter().flat_map(|vm| &vm.instances).chain(http.map(|http| &http.function));
        let mut partitions = self.vms.iter().flat_map(|vm| &vm.partitions).chain(http.map(|http| &http.partition));
        instances.all(|instance| instance.exit_code == 0 && instance.output_ok)
            && partitions.all(|partition| partition.left.get() == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.host {
            Host::Kvm => "on this machine's KVM",
            Host::Lab => "in the lab (an emulated host: ratios and counts mean something, times do not)",
        };
        writeln!(f, "{} VMs {place}, guest kernel {}", self.vms.len(), self.guest_kernel)?;
        writeln!(f, "partitions are kept apart by {}\n", keeper(self.partition_mode))?;
        for (number, vm) in (1..).zip(&self.vms) {
            writeln!(f, "VM {number}  ready after {}, image as {} over {}", time(vm.boot), vm.shape, vm.transport)?;
            for (instance, partition) in vm.instances.iter().zip(&vm.partitions) {
                let verdict = if instance.output_ok { "the right result" } else { "A WRONG RESULT" };
                let (id, code, run) = (&instance.id, instance.exit_code, time(instance.run));
                writeln!(f, "  {id}: exit code {code}, {verdict}, after {run}")?;
                writeln!(f, "      {}", partition_line(partition))?;
            }
            let (before, after) = (shown(vm.rss_bytes), shown(vm.rss_after_discard_bytes));
            writeln!(f, "  host memory: {before} when the first had ended, {after} with its partition back\n")?;
        }
        if let Some(http) = &self.http {
            let verdict = if http.function.output_ok { "answered the host" } else { "GAVE A WRONG ANSWER" };
            writeln!(f, "A function in VM 1 {verdict} at {}", http.url)?;
            let (listening, answered) = (time(http.listening), time(http.answered));
            writeln!(
                f,
                "  from the request for its partition until it listened {listening}, until the answer {answered}"
            )?;
            writeln!(f, "      {}\n", partition_line(&http.partition))?;
        }
        writeln!(f, "Layers, each one file that all VMs read")?;
        for layer in &self.layers {
            let read = layer.disk_bytes_read.map_or_else(|| "?".into(), shown);
            let (bytes, resident) = (shown(layer.bytes), shown(layer.resident_bytes));
            let digest = layer.digest.get(..19).unwrap_or(&layer.digest);
            writeln!(f, "  {digest}  {bytes:>10}, read from disk {read:>10}, in page cache {resident:>10}")?;
        }
        match &self.disk {
            Some(disk) => {
                let boots: Vec<_> = disk.bytes_read_by_boot.iter().copied().map(shown).collect();
                let (name, all) = (&disk.name, shown(disk.bytes_read));
                writeln!(f, "  disk {name}: {all} read, whatever else lies on it included (guest kernel, initramfs)")?;
                writeln!(f, "  of that until each VM was ready, in order: {}", boots.join(", "))
            }
            None => writeln!(f, "  the layers do not lie on a disk with counters"),
        }
    }
}

fn keeper(mode: PartitionMode) -> &'static str {
    match mode {
        PartitionMode::Stock => "cpusets and memory policies (stock)",
        PartitionMode::Extension => "the guest memory extension (extension)",
    }
}

fn partition_line(partition: &PartitionReport) -> String {
    let mut line = format!(
        "partition of {}: plugged in {}, unplugged in {}{}, {} discarded in {}",
        shown(partition.bytes.get()),
        time(partition.plug),
        time(partition.unplug),
        partition.guest.map_or_else(String::new, |guest| format!(" ({} of it the guest's)", time(guest))),
        shown(partition.discarded.get()),
        time(partition.discard),
    );
    let migrated = match partition.migrated_pages {
        Some(pages) => format!(", {pages} pages migrated"),
        None => String::new(),
    };
    line.push_str(&migrated);
    if partition.left.get() != 0 {
        // Writing to a string cannot fail.
        let _ = write!(line, ", {} NOT GIVEN BACK", shown(partition.left.get()));
    }
    line
}

fn time(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    match milliseconds {
        0.0..10.0 => format!("{milliseconds:.2} ms"),
        10.0..10_000.0 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use bellows_vmm::ByteSize;

    use super::*;

    fn report() -> Report {
        let partition = PartitionReport {
            bytes: ByteSize::gib(1),
            mode: PartitionMode::Extension,
            plug: Duration::from_millis(12),
            unplug: Duration::from_micros(1250),
            guest: Some(Duration::from_micros(500)),
            slots: Duration::from_micros(250),
            discard: Duration::from_secs(20),
            migrated_pages: Some(0),
            zeroed_pages: Some(0),
            discarded: ByteSize::mib(400),
            left: ByteSize::bytes(0),
        };
        let instance =
            |id: &str| InstanceReport { id: id.into(), exit_code: 0, output_ok: true, run: Duration::from_millis(900) };
        let http = HttpReport {
            url: "http://127.0.0.1:4711/".into(),
            listening: Duration::from_millis(300),
            answered: Duration::from_millis(320),
            function: instance("http"),
            partition,
        };
        let vm = || VmReport {
            shape: Shape::Flat,
            transport: Transport::Blk,
            boot: Duration::from_millis(100),
            rss_bytes: 900 << 20,
            rss_after_discard_bytes: 500 << 20,
            instances: vec![instance("first"), instance("second")],
            partitions: vec![partition; 2],
        };
        Report {
            host: Host::Lab,
            guest_kernel: "6.12.1".into(),
            partition_mode: PartitionMode::Extension,
            vms: vec![vm(), vm()],
            layers: vec![LayerReport {
                digest: "sha256:0123456789abcdef".into(),
                bytes: 60 << 20,
                disk_bytes_read: Some(20 << 20),
                resident_bytes: 20 << 20,
            }],
            disk: Some(DiskReport { name: "vda".into(), bytes_read: 21 << 20, bytes_read_by_boot: vec![20 << 20, 0] }),
            http: Some(http),
            process_rss_bytes: 1 << 30,
        }
    }

    #[test]
    fn a_machine_finds_every_field() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["host"], "lab");
        assert_eq!(json["vms"][1]["instances"][0]["output_ok"], true);
        assert_eq!(json["vms"][0]["partitions"][1]["unplug_ms"], 1.25);
        assert_eq!(json["vms"][0]["partitions"][1]["migrated_pages"], 0);
        assert_eq!(json["vms"][0]["partitions"][1]["guest_ms"], 0.5);
        assert_eq!(
            (&json["partition_mode"], &json["vms"][0]["partitions"][0]["mode"]),
            (&"extension".into(), &"extension".into())
        );
        assert_eq!(json["layers"][0]["disk_bytes_read"], 20 << 20);
    }

    #[test]
    fn a_person_reads_what_went_wrong() {
        let mut report = report();
        assert!(report.is_good());
        let text = report.to_string();
        assert!(
            text.contains("answered the host at http://127.0.0.1:4711/") && text.contains("until the answer 320 ms"),
            "{text}"
        );
        assert!(text.contains("in the lab") && text.contains("400.0 MiB discarded in 20.0 s"), "{text}");
        assert!(!text.contains("NOT") && !text.contains("WRONG"), "{text}");
        report.vms[0].instances[1].output_ok = false;
        assert!(!report.is_good() && report.to_string().contains("A WRONG RESULT"));
        report.vms[0].instances[1].output_ok = true;
        report.http.as_mut().unwrap().function.output_ok = false;
        assert!(!report.is_good() && report.to_string().contains("A WRONG ANSWER"));
        report.http.as_mut().unwrap().function.output_ok = true;
        report.vms[1].partitions[0].left = ByteSize::mib(2);
        assert!(!report.is_good() && report.to_string().contains("2.0 MiB NOT GIVEN BACK"));
    }
}
