//! The fixture of the tests: `Guest::ours().partition(512).boot()`, then instances that run shell lines.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bellows::seccomp::confine_threads;
use bellows_block::oci::{OciLayout, Platform};
use bellows_block::{Image, ImportOptions, Store};
use bellows_vmm::{
    BalloonConfig, ByteSize, DriveConfig, ElasticBaseConfig, ExitStatus, Forwarding, ImageConfig, ImageId, Instance,
    InstanceSpec, MmdsConfig, NetConfig, PartitionId, PartitionMode, SerialOutput, StreamName, UnplugAccount,
    UnplugReport, Vm, VmBuilder, VmEnd, ZygoteSpec, catch_faults,
};

/// Time limit of every step, even on an emulated CPU.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// An artefact's path, from the environment that the test command sets.
pub fn artefact(variable: &str) -> PathBuf {
    bellows_lab::artefact(variable).unwrap_or_else(|error| panic!("{error}"))
}

/// The demo's image, imported once for all tests.
pub fn demo() -> ImageConfig {
    static IMAGE: OnceLock<ImageConfig> = OnceLock::new();
    let import = || {
        let store = demo_store();
        let layout = OciLayout::open(artefact("BELLOWS_IMAGE")).unwrap();
        let oci = layout.image(&Platform::host(), None).unwrap();
        let image = store.import(&oci, None, &ImportOptions::default()).unwrap();
        config_of(&store, &image)
    };
    IMAGE.get_or_init(import).clone()
}

/// The store with the demo's image.
pub fn demo_store() -> Store {
    Store::open(artefact("BELLOWS_IMAGE").with_file_name("e2e-store")).unwrap()
}

/// An image of a store as the image that instances run.
pub fn config_of(store: &Store, image: &Image) -> ImageConfig {
    ImageConfig::flat(image_id(), &store.flat(image).unwrap()).fixup(store.stack(image).unwrap().fixup.as_ref())
}

/// A VM to boot.
pub struct Guest {
    builder: VmBuilder,
    image: ImageConfig,
    console: PathBuf,
}

/// A VM whose agent is ready, with its image mounted.
pub struct Running {
    pub vm: Vm,
    pub kernel: String,
    /// How its guest keeps partitions apart.
    pub mode: PartitionMode,
    console: PathBuf,
    _directory: tempfile::TempDir,
}

impl Guest {
    /// With the kernel that the project configures.
    pub fn ours() -> Self {
        Self::new("BELLOWS_KERNEL", "BELLOWS_INITRAMFS")
    }

    /// With Debian's cloud kernel.
    pub fn debian() -> Self {
        Self::new("BELLOWS_DEBIAN_KERNEL", "BELLOWS_DEBIAN_INITRAMFS")
    }

    /// With an older cloud kernel of Debian's, which cannot mount flat images.
    pub fn old() -> Self {
        Self::new("BELLOWS_OLD_KERNEL", "BELLOWS_OLD_INITRAMFS")
    }

    fn new(kernel: &str, initramfs: &str) -> Self {
        // As the program does.
        catch_faults().unwrap();
        if std::env::var_os("BELLOWS_TEST_CONFINED").is_some() {
            confine_threads().unwrap();
        }
        let builder = VmBuilder::new(artefact(kernel), ByteSize::mib(512)).initramfs(artefact(initramfs));
        // Zeroing of freed or allocated pages is irrelevant here and costs an emulated CPU most of the time.
        let builder = builder.kernel_parameter("init_on_alloc=0");
        Self { builder, image: demo(), console: PathBuf::new() }
    }

    pub fn vcpus(mut self, count: u8) -> Self {
        self.builder = self.builder.vcpus(count);
        self
    }

    /// Adds a partition with a window of `mib` MiB.
    pub fn partition(mut self, mib: u64) -> Self {
        self.builder = self.builder.partition(ByteSize::mib(mib));
        self
    }

    /// Base memory of `mib` MiB at boot, which may grow.
    pub fn elastic(mut self, mib: u64, elastic: ElasticBaseConfig) -> Self {
        self.builder = self.builder.memory(ByteSize::mib(mib)).elastic_base(elastic);
        self
    }

    pub fn balloon(mut self, config: BalloonConfig) -> Self {
        self.builder = self.builder.balloon(config);
        self
    }

    /// Prepares up to `mib` MiB of each partition.
    pub fn prepare(mut self, mib: u64) -> Self {
        self.builder = self.builder.prepare(ByteSize::mib(mib));
        self
    }

    /// Has the guest remove the memory map of what has been parked for so long.
    pub fn remove_parked_after_s(mut self, seconds: u32) -> Self {
        self.builder = self.builder.remove_parked_after_s(seconds);
        self
    }

    pub fn mode(mut self, mode: PartitionMode) -> Self {
        self.builder = self.builder.partition_mode(mode);
        self
    }

    /// Adds a parameter to the end of the kernel command line.
    pub fn parameter(mut self, parameter: &str) -> Self {
        self.builder = self.builder.kernel_parameter(parameter);
        self
    }

    /// Another image than the demo's.
    pub fn image(mut self, image: ImageConfig) -> Self {
        self.image = image;
        self
    }

    pub fn drive(mut self, drive: DriveConfig) -> Self {
        self.builder = self.builder.drive(drive);
        self
    }

    pub fn network(mut self, interface: NetConfig) -> Self {
        self.builder = self.builder.network_interface(interface);
        self
    }

    pub fn mmds(mut self, mmds: MmdsConfig) -> Self {
        self.builder = self.builder.mmds(mmds);
        self
    }

    /// Has it not boot; returns why, with all causes.
    pub fn refused(self) -> String {
        let error = self.builder.image(self.image).boot().map(drop).expect_err("it does not boot");
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    pub fn scratch_folder(mut self, folder: &Path) -> Self {
        self.builder = self.builder.scratch_folder(folder);
        self
    }

    /// Records the pages of images that the guest reads.
    pub fn record_reads(mut self) -> Self {
        self.builder = self.builder.record_reads();
        self
    }

    pub fn boot(self) -> Running {
        let running = self.boot_unmounted();
        running.mount();
        running
    }

    /// Boots without mounting the image.
    pub fn boot_unmounted(mut self) -> Running {
        let directory = tempfile::tempdir().unwrap();
        self.console = directory.path().join("console");
        let vm = self.builder.image(self.image).serial(SerialOutput::File(self.console.clone())).boot().unwrap();
        let ready = vm.wait_ready(PATIENCE);
        let console = || std::fs::read_to_string(&self.console).unwrap_or_default();
        let guest = ready.unwrap_or_else(|error| panic!("{error:?}\n{}", console()));
        let (kernel, mode) = (guest.kernel_release, guest.partition_mode);
        Running { vm, kernel, mode, console: self.console, _directory: directory }
    }
}

impl Running {
    /// Mounts the image.
    pub fn mount(&self) {
        let mounted = self.vm.mount_image(&image_id(), PATIENCE);
        mounted.unwrap_or_else(|error| panic!("{error:?}\n{}", self.console()));
    }

    /// Plugs all of a partition.
    pub fn plug(&self, number: u16, mib: u64) {
        let plugged = self.vm.plug(partition(number), ByteSize::mib(mib), PATIENCE);
        plugged.unwrap_or_else(|error| panic!("{error:?}\n{}", self.console()));
    }

    /// Unplugs it, waits for the discard and returns the pages migrated for it.
    pub fn unplug(&self, number: u16) -> u64 {
        let (report, account) = self.unplug_report(number);
        assert_eq!(report.left, ByteSize::bytes(0));
        account.migrated_pages.expect("the guest counts migrated pages")
    }

    /// Unplugs it, waits for the discard and returns the unplug's report, and the guest's.
    pub fn unplug_report(&self, number: u16) -> (UnplugReport, UnplugAccount) {
        let report = self.vm.unplug_accounted(partition(number), PATIENCE);
        let report = report.unwrap_or_else(|error| panic!("{error:?}\n{}", self.console()));
        self.vm.await_discard(partition(number), PATIENCE).unwrap();
        report
    }

    /// Starts a shell line.
    pub fn start(&self, id: &str, line: &str, in_partition: Option<u16>) -> Job {
        let spec = InstanceSpec::new(id.parse().unwrap(), image_id(), ["/bin/sh", "-c", line]);
        self.start_spec(&match in_partition {
            Some(number) => spec.in_partition(partition(number)),
            None => spec,
        })
    }

    /// Starts an instance of any specification.
    pub fn start_spec(&self, spec: &InstanceSpec) -> Job {
        let instance = self.vm.start_instance(spec);
        self.job(instance.unwrap_or_else(|error| panic!("{error:?}\n{}", self.console())))
    }

    /// Starts a zygote.
    pub fn start_zygote(&self, spec: &ZygoteSpec) -> Job {
        let instance = self.vm.start_zygote(spec);
        self.job(instance.unwrap_or_else(|error| panic!("{error:?}\n{}", self.console())))
    }

    /// Starts an instance, which must fail; returns the error.
    pub fn refused(&self, spec: &InstanceSpec) -> String {
        format!("{:?}", self.vm.start_instance(spec).err().expect("it is refused"))
    }

    /// Starts a zygote, which must fail; returns the error.
    pub fn refused_zygote(&self, spec: &ZygoteSpec) -> String {
        format!("{:?}", self.vm.start_zygote(spec).err().expect("it is refused"))
    }

    /// Collects what an instance prints.
    pub fn job(&self, instance: Instance) -> Job {
        let output = Transcript::default();
        let forward = |stream| instance.forward(stream, output.clone()).unwrap();
        let forwarding = [StreamName::Stdout, StreamName::Stderr].map(forward).into();
        Job { instance: Arc::new(instance), output, forwarding, console: self.console.clone() }
    }

    /// Runs a shell line in base memory to its end and returns its output.
    pub fn shell(&self, id: &str, line: &str) -> String {
        self.end_well(line, self.start(id, line, None))
    }

    /// Runs a shell line in another image, as [`Running::shell`].
    pub fn shell_in(&self, id: &str, image: &str, line: &str) -> String {
        self.run_in(id, image, &["/bin/sh", "-c", line])
    }

    /// Runs a command in another image, as [`Running::shell`].
    pub fn run_in(&self, id: &str, image: &str, command: &[&str]) -> String {
        let spec = InstanceSpec::new(id.parse().unwrap(), image.parse().unwrap(), command.iter().copied());
        self.end_well(&command.join(" "), self.start_spec(&spec))
    }

    fn end_well(&self, line: &str, job: Job) -> String {
        let (status, output) = job.finish();
        assert_eq!(status.code, 0, "{line}: {output}\n{}", self.console());
        output
    }

    pub fn console(&self) -> String {
        text_of(&self.console)
    }

    /// Has the guest switch itself off.
    pub fn shutdown(self) {
        let end = self.vm.shutdown(PATIENCE);
        assert!(matches!(end, VmEnd::PoweredOff | VmEnd::Reset), "{end}\n{}", self.console());
    }
}

fn text_of(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// A running instance and its output so far.
pub struct Job {
    pub instance: Arc<Instance>,
    output: Transcript,
    forwarding: Vec<Forwarding>,
    console: PathBuf,
}

impl Job {
    /// Waits until it has printed `text`.
    pub fn wait_for(&self, text: &str) {
        let printed = self.output.wait_while(|printed| !printed.contains(text)).text();
        assert!(printed.contains(text), "waited for {text:?}, got {printed:?}");
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        self.output.wait_while(|_| false).text()
    }

    /// Sends a signal to its first process.
    pub fn signal(&self, number: u32) {
        let sent = self.instance.signal(number);
        sent.unwrap_or_else(|error| panic!("{error:?}\n{}", text_of(&self.console)));
    }

    /// Waits until it has printed `text`, or has ended; returns whether it still runs.
    pub fn says_or_ends(&self, text: &str) -> bool {
        let (instance, output) = (self.instance.clone(), self.output.clone());
        std::thread::spawn(move || {
            let _ = instance.wait();
            output.change(|printed| printed.ended = true);
        });
        let printed = self.output.wait_while(|printed| !printed.contains(text) && !printed.ended);
        let (said, ended, output) = (printed.contains(text), printed.ended, printed.text());
        drop(printed);
        assert!(said || ended, "waited for {text:?}, got {output:?}");
        !ended
    }

    /// Whether its output has ended. Does not ask the agent.
    pub fn is_silent(&self) -> bool {
        self.forwarding.iter().all(Forwarding::is_finished)
    }

    /// Waits for its end, removes it and returns its status and output.
    pub fn finish(self) -> (ExitStatus, String) {
        let status = self.instance.wait();
        let status = status.unwrap_or_else(|error| panic!("{error:?}\n{}", text_of(&self.console)));
        for stream in self.forwarding {
            stream.join().unwrap();
        }
        self.instance.remove(PATIENCE).unwrap();
        (status, self.output.wait_while(|_| false).text())
    }
}

/// The output of an instance so far, on either stream; threads wait for more.
#[derive(Clone, Default)]
struct Transcript(Arc<(Mutex<Printed>, Condvar)>);

#[derive(Default)]
struct Printed {
    bytes: Vec<u8>,
    /// The instance has ended.
    ended: bool,
}

impl Printed {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn contains(&self, text: &str) -> bool {
        self.text().contains(text)
    }
}

impl Transcript {
    fn change(&self, change: impl FnOnce(&mut Printed)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn wait_while(&self, mut unwanted: impl FnMut(&mut Printed) -> bool) -> MutexGuard<'_, Printed> {
        let (printed, changed) = &*self.0;
        changed.wait_timeout_while(printed.lock().unwrap(), PATIENCE, |printed| unwanted(printed)).unwrap().0
    }
}

impl Write for Transcript {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.change(|printed| printed.bytes.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn partition(number: u16) -> PartitionId {
    PartitionId::new(number).unwrap()
}

pub fn image_id() -> ImageId {
    "demo".parse().unwrap()
}
