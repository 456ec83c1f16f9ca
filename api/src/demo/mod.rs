//! The demonstration: two VMs from the same layers, two instances in each, every instance in a partition of its own. In
//! each VM one instance ends while the other keeps running, and its memory goes back to the host. At last a function in the first VM answers
//! a request of the host.

mod function;
mod http;
mod measure;
mod report;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bellows_block::Image;
use bellows_memory::sync::Mutex;
use bellows_vmm::{
    GuestInfo, ImageConfig, ImageInfo, Instance, InstanceSpec, NetConfig, PartitionId, PlugReport, SerialOutput,
    StreamName, Vm, VmBuilder, VmConfig, VmEnd, ZygoteRuntime, ZygoteSpec,
};

use self::function::expected_result;
use self::http::Way;
use self::measure::{Cold, process_rss};
use self::report::{InstanceReport, Report, VmReport};
use crate::cli::DemoArgs;
use crate::error::{CliError, io_error};
use crate::guest::{configured, from_guest_args};
use crate::interrupt::Interrupts;
use crate::output::{self, print, say_plainly};
use crate::partition::give_back;
use crate::places::Places;
use crate::report::json;
use crate::store;

const VMS: usize = 2;
/// Least data of the function, in MiB: the part that it samples.
const MIN_MIB: u32 = 8;
/// Partition and name of a VM's zygote, if it has one.
const ZYGOTE: u16 = 3;
const ZYGOTE_ID: &str = "zygote";
/// Most output of an instance that is checked.
const MAX_OUTPUT: usize = 64 << 10;

/// Runs the demonstration; returns the exit code.
///
/// # Errors
/// See [`CliError`].
pub fn run(args: &DemoArgs) -> Result<u8, CliError> {
    let interrupts = Interrupts::install().map_err(io_error("wait for", "signals"))?;
    if args.mib < MIN_MIB {
        return Err(CliError::Conflict(format!("--mib is {}: expected at least {MIN_MIB}", args.mib)));
    }
    let result = demonstrate(args, &interrupts);
    let report = match (result, interrupts.received()) {
        // The failure follows from stopping the VMs.
        (Err(_), Some(signal)) => return Err(CliError::Interrupted(signal)),
        (result, _) => result?,
    };
    let json = json(&report)?;
    if let Some(path) = &args.report {
        write_report(path, &json)?;
    }
    if args.json {
        print(json)?;
    } else {
        print(report.to_string().trim_end())?;
    }
    if report.is_good() { Ok(0) } else { Err(CliError::Unexpected("the report shows a wrong result".into())) }
}

fn write_report(path: &Path, json: &str) -> Result<(), CliError> {
    let mut file = File::create(path).map_err(io_error("create the report", path))?;
    writeln!(file, "{json}").map_err(io_error("write the report", path))
}

fn demonstrate(args: &DemoArgs, interrupts: &Interrupts) -> Result<Report, CliError> {
    let store = store::open(args.store.as_deref())?;
    let image = store::import_file(&store, &args.image, None, interrupts)?;
    let layers = store.layers(&image)?;
    let configured = configured(&store, &image, &args.guest)?;
    let cold = Cold::new(&layers)?;

    let mut way = open_way(args)?;
    let mut vms = Vec::with_capacity(VMS);
    let mut read_by_boot = Vec::new();
    let mut read_before = cold.disk_bytes_read()?;
    for number in 1..=VMS {
        say(args, &format!("booting VM {number} of {VMS}"));
        let interface = way.as_mut().and_then(|(_, interface)| interface.take());
        vms.push(Booted::new(args, &configured, number, interface, interrupts)?);
        let read = cold.disk_bytes_read()?;
        read_by_boot.extend(read.zip(read_before).map(|(now, before)| now.saturating_sub(before)));
        read_before = read;
    }
    say(args, "running two instances in each VM");
    let (guest_kernel, partition_mode) = match vms.first() {
        Some(vm) => (vm.guest.kernel_release.clone(), vm.guest.partition_mode),
        None => Default::default(),
    };
    let reports = thread::scope(|scope| {
        let runs: Vec<_> = vms.iter().map(|vm| scope.spawn(|| vm.demonstrate(args, &image))).collect();
        let join = |run: thread::ScopedJoinHandle<'_, Result<VmReport, CliError>>| {
            run.join().unwrap_or_else(|_| Err(CliError::Unexpected("a thread of the demonstration panicked".into())))
        };
        runs.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    let http = match (&way, vms.first()) {
        (Some((way, _)), Some(vm)) => {
            say(args, "asking a function over HTTP");
            Some(vm.answer_http(args, &image, way)?)
        }
        _ => None,
    };
    let process_rss_bytes = process_rss().map_err(io_error("read", "/proc/self/statm"))?;
    let report = Report {
        host: args.host,
        guest_kernel,
        partition_mode,
        vms: reports,
        layers: cold.layers()?,
        disk: cold.disk(read_by_boot)?,
        http,
        process_rss_bytes,
    };
    for vm in vms {
        match vm.vm.shutdown(args.guest.timeout) {
            VmEnd::PoweredOff | VmEnd::Reset => {}
            other => return Err(CliError::End(other)),
        }
    }
    Ok(report)
}

/// A way from the host to the first VM, and that VM's interface at it; none where the host has no passt or no route.
fn open_way(args: &DemoArgs) -> Result<Option<(Way, Option<NetConfig>)>, CliError> {
    match Way::open(args.guest.timeout) {
        Ok((way, interface)) => Ok(Some((way, Some(interface)))),
        Err(error @ (CliError::NoPasst | CliError::NoRoute)) => {
            output::say(format_args!("no function answers over HTTP: {error}"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Prints a line of progress.
fn say(args: &DemoArgs, what: &str) {
    if !args.json {
        say_plainly(format_args!("{what} ..."));
    }
}

/// A VM that is ready, with its image mounted.
struct Booted {
    vm: Vm,
    image: ImageInfo,
    guest: GuestInfo,
    boot: Duration,
}

impl Booted {
    fn new(
        args: &DemoArgs,
        image: &ImageConfig,
        number: usize,
        interface: Option<NetConfig>,
        interrupts: &Interrupts,
    ) -> Result<Self, CliError> {
        let mut config: VmConfig = from_guest_args(&args.guest, &Places::of_user())?;
        config.images = vec![image.clone()];
        config.network_interfaces.extend(interface);
        config.partitions = vec![args.partition; if args.zygote.is_empty() { 2 } else { 3 }];
        if let Some(directory) = &args.serial {
            fs::create_dir_all(directory).map_err(io_error("create", directory))?;
            config.serial = SerialOutput::File(directory.join(format!("vm{number}.log")));
        }
        let start = Instant::now();
        let vm = interrupts.boot(VmBuilder::from(config))?;
        let guest = vm.wait_ready(args.guest.timeout)?;
        let boot = start.elapsed();
        let image = vm.mount_image(&image.id, args.guest.timeout)?;
        Ok(Self { vm, image, guest, boot })
    }

    fn demonstrate(&self, args: &DemoArgs, image: &Image) -> Result<VmReport, CliError> {
        let limit = args.guest.timeout;
        let (first, second) = (partition(1)?, partition(2)?);
        let first_plug = self.vm.plug(first, args.partition, limit)?;
        let second_plug = self.vm.plug(second, args.partition, limit)?;
        let zygote = self.start_zygote(args, image)?;
        let first_run = self.start(args, image, "first", first, 0)?;
        let second_run = self.start(args, image, "second", second, args.hold)?;
        let ended = &AtomicBool::new(false);
        thread::scope(|scope| {
            let second_run = scope.spawn(move || {
                let report = second_run.finish(args, limit);
                ended.store(true, Ordering::SeqCst);
                report
            });
            let mut reports = self.first_ends(args, first_run, first, &first_plug).inspect_err(|_| {
                // The second one has stopped waiting.
                self.vm.stop();
            })?;
            if ended.load(Ordering::SeqCst) {
                let hold = args.hold;
                let message =
                    format!("the second instance ended before the first one's memory was back: --hold is {hold}");
                return Err(CliError::Unexpected(message));
            }
            let second_run = second_run
                .join()
                .unwrap_or_else(|_| Err(CliError::Unexpected("a thread of the demonstration panicked".into())))?;
            reports.instances.push(second_run);
            reports.partitions.push(give_back(&self.vm, second, &second_plug, limit)?);
            if let Some((zygote, plug)) = zygote {
                zygote.remove(limit)?;
                reports.partitions.push(give_back(&self.vm, partition(ZYGOTE)?, &plug, limit)?);
            }
            Ok(reports)
        })
    }

    /// Waits for the first instance, and gives its partition back while the second keeps running.
    fn first_ends(
        &self,
        args: &DemoArgs,
        run: Running,
        partition: PartitionId,
        plug: &PlugReport,
    ) -> Result<VmReport, CliError> {
        let limit = args.guest.timeout;
        let resident = || self.vm.resident_bytes().map_err(io_error("count the pages of", "guest memory"));
        let waited = run.wait()?;
        let rss_bytes = resident()?;
        let instance = waited.remove(args, limit)?;
        let partition = give_back(&self.vm, partition, plug, limit)?;
        Ok(VmReport {
            shape: self.image.shape,
            transport: self.image.transport,
            boot: self.boot,
            rss_bytes,
            rss_after_discard_bytes: resident()?,
            instances: vec![instance],
            partitions: vec![partition],
        })
    }

    /// The zygote, if one is wanted, in a partition that is plugged for it.
    fn start_zygote(&self, args: &DemoArgs, image: &Image) -> Result<Option<(Instance, PlugReport)>, CliError> {
        if args.zygote.is_empty() {
            return Ok(None);
        }
        let plug = self.vm.plug(partition(ZYGOTE)?, args.partition, args.guest.timeout)?;
        let interpreter = image.config.argv(&[]).into_iter().take(1);
        let instance = self.spec(image, ZYGOTE_ID, interpreter)?.in_partition(partition(ZYGOTE)?);
        let runtime = ZygoteRuntime::Python { modules: args.zygote.clone() };
        let zygote = self.vm.start_zygote(&ZygoteSpec { instance, runtime })?;
        zygote.forward(StreamName::Stderr, io::stderr())?;
        Ok(Some((zygote, plug)))
    }

    /// A process of the image, with the image's settings.
    fn spec(&self, image: &Image, id: &str, argv: impl IntoIterator<Item = String>) -> Result<InstanceSpec, CliError> {
        let mut spec = InstanceSpec::new(id.parse()?, self.image.id.clone(), argv);
        spec.process.env.clone_from(&image.config.env);
        spec.process.cwd.clone_from(&image.config.working_dir);
        spec.process.user = image.config.user.parse()?;
        Ok(spec)
    }

    fn start(
        &self,
        args: &DemoArgs,
        image: &Image,
        id: &str,
        partition: PartitionId,
        hold: u32,
    ) -> Result<Running, CliError> {
        let mut argv = image.config.argv(&[]);
        argv.extend([args.mib.to_string(), hold.to_string()]);
        let mut spec = self.spec(image, id, argv)?.in_partition(partition);
        if !args.zygote.is_empty() {
            spec = spec.forked_from(ZYGOTE_ID.parse()?);
        }
        let start = Instant::now();
        let instance = self.vm.start_instance(&spec)?;
        let output = Captured::default();
        let stdout = instance.forward(StreamName::Stdout, output.clone())?;
        let stderr = instance.forward(StreamName::Stderr, io::stderr())?;
        Ok(Running { instance, start, output, forwarding: [stdout, stderr] })
    }
}

fn partition(number: u16) -> Result<PartitionId, CliError> {
    PartitionId::new(number).ok_or(CliError::PartitionNumber(number.into()))
}

/// An instance that runs.
struct Running {
    instance: Instance,
    start: Instant,
    output: Captured,
    forwarding: [bellows_vmm::Forwarding; 2],
}

/// An instance whose process has ended.
struct Ended {
    instance: Instance,
    exit_code: u8,
    run: Duration,
    output: Vec<u8>,
}

impl Running {
    fn wait(self) -> Result<Ended, CliError> {
        let status = self.instance.wait()?;
        let run = self.start.elapsed();
        for forwarding in self.forwarding {
            forwarding.join()?;
        }
        Ok(Ended { instance: self.instance, exit_code: status.code, run, output: self.output.take() })
    }

    fn finish(self, args: &DemoArgs, limit: Duration) -> Result<InstanceReport, CliError> {
        self.wait()?.remove(args, limit)
    }
}

impl Ended {
    fn remove(self, args: &DemoArgs, limit: Duration) -> Result<InstanceReport, CliError> {
        let report = InstanceReport {
            id: self.instance.id().to_string(),
            exit_code: self.exit_code,
            output_ok: is_right(&self.output, args.mib),
            run: self.run,
        };
        if !report.output_ok {
            let printed = String::from_utf8_lossy(&self.output);
            output::say(format_args!("instance {} printed {printed:?}", report.id));
        }
        self.instance.remove(limit)?;
        Ok(report)
    }
}

fn is_right(output: &[u8], mib: u32) -> bool {
    let expected = expected_result(mib);
    String::from_utf8_lossy(output).lines().any(|line| line.starts_with(&expected))
}

/// The beginning of what an instance wrote.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl Write for Captured {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut captured = self.0.lock();
        let room = MAX_OUTPUT - captured.len();
        captured.extend(&data[..data.len().min(room)]);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_result_is_accepted() {
        let good = format!("hello\n{}peak_rss_mib=30\n", expected_result(16));
        assert!(is_right(good.as_bytes(), 16));
        assert!(!is_right(good.as_bytes(), 17));
        assert!(!is_right(good.replace("sha256=", "sha256=0").as_bytes(), 16));
        assert!(!is_right(b"", 16));
    }

    #[test]
    fn output_is_captured_up_to_a_bound() {
        let captured = Captured::default();
        captured.clone().write_all(&vec![7; MAX_OUTPUT - 1]).unwrap();
        captured.clone().write_all(b"ab").unwrap();
        let taken = captured.take();
        assert_eq!((taken.len(), taken.last()), (MAX_OUTPUT, Some(&b'a')));
    }
}
