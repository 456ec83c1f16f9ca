//! The command line.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use bellows_block::oci::Platform;
use bellows_memory::ByteSize;
use bellows_vmm::{PartitionMode, SerialOutput, Shape, Transport};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::doctor::DoctorArgs;
use crate::former::FormerArgs;
use crate::jail::{JailArgs, Jailer};
use crate::landlock;
use crate::network::KeeperArgs;
use crate::network::options::NetworkArgs;
use crate::options::any_seconds;
use crate::options::detached::{
    CpArgs, DetachedArgs, ExecArgs, LogsArgs, PartitionCommand, PsArgs, RmArgs, StopArgs, TopArgs,
};
use crate::options::scratch::ScratchArg;
use crate::options::volume::VolumeArg;
use crate::rest::{ApiArgs, Firecracker};

/// MicroVMs for functions: shared layers, and memory that goes back.
#[derive(Debug, Parser)]
#[command(name = "bellows", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a VM, run one instance of an image in it, and give its memory back
    Run(Box<RunArgs>),
    /// Run a VM that programs control through HTTP on a Unix socket, in Firecracker's dialect
    Api(Box<ApiArgs>),
    /// Run a monitor in a directory of its own, as a user of its own, with nothing else of this host; for the superuser
    #[command(
        override_usage = "bellows jail [OPTION]... --id ID --exec-file FILE --uid UID --gid GID -- [api] [ARG]..."
    )]
    Jail(Box<JailArgs>),
    /// List the instances of VMs that run in the background
    Ps(PsArgs),
    /// Run another command in an instance of a VM in the background
    Exec(ExecArgs),
    /// Copy files and folders between this host and an instance of a VM in the background
    Cp(CpArgs),
    /// Print what an instance has written
    Logs(LogsArgs),
    /// End instances, and VMs that have no other
    Stop(StopArgs),
    /// Remove instances that have ended, and VMs that have no other
    Rm(RmArgs),
    /// Partitions of VMs in the background
    #[command(subcommand)]
    Partition(PartitionCommand),
    /// Watch VMs in the background, their instances, and partitions that grow and shrink
    Top(TopArgs),
    /// Print what this host lacks, and how to get it
    Doctor(DoctorArgs),
    /// Images in the layer store
    #[command(subcommand)]
    Image(ImageCommand),
    /// Keep a VM's place in a network of CNI
    #[command(name = crate::network::KEEPER, hide = true)]
    CniKeeper(KeeperArgs),
    /// Run the demonstration: two VMs from the same layers, two instances each
    #[command(hide = true)]
    Demo(DemoArgs),
}

impl Cli {
    /// Reads the words of a command line, the program's own name first. Under the names `firecracker` and
    /// `jailer` it is that of Firecracker's programs.
    ///
    /// # Errors
    /// clap's answer: help, the version, or an error.
    pub fn read(words: Vec<OsString>) -> Result<Self, clap::Error> {
        if let Some(args) = Firecracker::read(&words) {
            return Ok(Self { command: Command::Api(Box::new(args?)) });
        }
        if let Some(args) = Jailer::read(&words) {
            return Ok(Self { command: Command::Jail(Box::new(args?)) });
        }
        let mut cli = Self::try_parse_from(&words)?;
        if let Command::Run(run) = &mut cli.command {
            // IMAGE and the command are the last words.
            let before = words.len().checked_sub(run.image_and_command.len() + 1);
            run.former.escape = before.and_then(|index| words.get(index)).is_some_and(|word| word == "--");
        }
        Ok(cli)
    }
}

/// The files and options of the guest.
#[derive(Args, Debug)]
pub struct GuestArgs {
    /// Guest kernel: an ELF vmlinux or a bzImage [default: $BELLOWS_KERNEL, else the first vmlinux in
    /// $XDG_DATA_HOME/bellows, /usr/local/lib/bellows and /usr/lib/bellows]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial file system, which holds the agent [default: $BELLOWS_INITRAMFS, else the first initramfs.cpio in the same folders]
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// Number of vCPUs
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u8>,
    /// Base memory of the VM, such as 512M: for its kernel, and for the kernel's objects of instances [default: 256M]
    #[arg(long, value_name = "SIZE")]
    pub base: Option<ByteSize>,
    /// Let base memory grow up to SIZE, such as 1G, while instances wait for memory, and shrink afterwards; at most four times the
    /// base memory [default: it stays as it is]
    #[arg(long, value_name = "SIZE")]
    pub base_max: Option<ByteSize>,
    /// Parameter for the end of the kernel command line
    #[arg(long = "kernel-parameter", value_name = "NAME[=VALUE]")]
    pub kernel_parameters: Vec<String>,
    /// How partitions are kept apart in the guest: extension (if its kernel has the guest memory extension; the default) or
    /// stock
    #[arg(long, value_name = "MODE")]
    pub partition_mode: Option<PartitionMode>,
    /// Have the guest add up to SIZE of each partition in the background, once it is ready, and park it: a first plug that comes
    /// later takes no longer than any other. An instance of this run is never delayed by it, but is hardly faster either, as its
    /// partition is plugged at once. Costs a 64th of SIZE in base memory for each partition [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub prepare: Option<ByteSize>,
    /// How the image's layers are put together: flat (one disk with one file system; the default if the guest's kernel can
    /// mount it, from Linux 6.4 on) or layers (a disk for each, stacked in the guest)
    #[arg(long, value_name = "SHAPE")]
    pub shape: Option<Shape>,
    /// How the image's disks reach the guest: blk (virtio-blk; the default) or pmem (virtio-pmem: the guest uses the host's
    /// page cache in place)
    #[arg(long, value_name = "TRANSPORT")]
    pub transport: Option<Transport>,
    /// Time limit for each step of the guest, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub timeout: Duration,
}

/// `bellows run`.
#[derive(Args, Debug)]
#[command(override_usage = "bellows run [OPTION]... IMAGE [CMD]...")]
pub struct RunArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// Memory of the instance, such as 512M: a partition that exists only for the run. With 0 it runs in base memory
    /// [default: 1G]
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Name, tag or digest of the image, if a file has several
    #[arg(long, value_name = "NAME")]
    pub reference: Option<String>,
    /// Base limit of the command, such as 64M [default: all base memory for instances]
    #[arg(long, value_name = "SIZE")]
    pub base_limit: Option<ByteSize>,
    /// Use of the image's profile in the store, the pages of its layers that an earlier run read
    #[arg(long, value_name = "WHAT", default_value = "auto")]
    pub profile: ProfileUse,
    /// Layer store [default: $XDG_DATA_HOME/bellows/store]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// EROFS file to stack above the image's layers
    #[arg(long = "layer", value_name = "FILE")]
    pub layers: Vec<PathBuf>,
    /// Environment variable, which overrides the image's; NAME alone takes its value from this host
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Folder of this host that the command finds at PATH, read-only: what it holds now is imported to the store
    #[arg(short, long = "volume", value_name = "DIR:PATH:ro")]
    pub volumes: Vec<VolumeArg>,
    /// Give the command a disk of SIZE to write on, with an empty file system, at PATH [default: /tmp]: it ends with the run, and takes
    /// room on this host only for what is on it
    #[arg(long, value_name = "SIZE[:PATH]")]
    pub scratch: Option<ScratchArg>,
    /// Folder in whose file system the scratch disk lies [default: /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub scratch_dir: Option<PathBuf>,
    /// File of environment variables, one NAME=VALUE or NAME in each line, which override the image's; # starts a comment
    #[arg(long = "env-file", value_name = "FILE")]
    pub env_files: Vec<PathBuf>,
    /// Program to run instead of the image's entrypoint and command; empty to run CMD itself
    #[arg(long, value_name = "CMD")]
    pub entrypoint: Option<String>,
    /// Seconds between SIGINT, SIGTERM, SIGHUP or SIGQUIT and SIGKILL for a command that does not end
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = any_seconds)]
    pub stop_timeout: Duration,
    /// Directory that the command starts in, instead of the image's
    #[arg(long, value_name = "PATH")]
    pub cwd: Option<String>,
    /// Pass standard input on to the command, which otherwise reads /dev/null
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// The network.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// User of the command, `user` or `user:group`, each by name or number, instead of the image's
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// VM configuration in JSON; other arguments override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Do not filter the system calls of the process
    #[arg(long)]
    pub no_seccomp: bool,
    /// Do not run if the kernel has no Landlock, which leaves the process the files of this run alone. By default it is used where the
    /// kernel has it
    #[arg(long, conflicts_with = "no_landlock")]
    pub landlock: bool,
    /// Do not restrict the files that the process can open
    #[arg(long)]
    pub no_landlock: bool,
    /// Print a report in JSON, when the command has ended or, without an image, when the guest is ready; the command's own output
    /// goes to standard error then
    #[arg(long)]
    pub json: bool,
    /// Destination of the guest's console: a file, or - for standard output
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().map(|text| serial(&text)))]
    pub serial: Option<SerialOutput>,
    /// IMAGE is the name of an image in the store or in a registry, which is imported if the store does not have it:
    /// `[REGISTRY/]NAME[:TAG|@DIGEST]` (docker://NAME asks the registry in any case); a path that begins with / or . of an image
    /// layout or an archive; the id of an image of --config; or scratch, the empty image below --layer. Everything after IMAGE
    /// belongs to the command; without one the image's own runs
    #[arg(value_name = "IMAGE [CMD]", trailing_var_arg = true)]
    pub image_and_command: Vec<String>,
    /// In the background.
    #[command(flatten)]
    pub detached: DetachedArgs,
    /// An option of earlier versions.
    #[command(flatten)]
    pub former: FormerArgs,
}

impl RunArgs {
    /// The image to run; without one the VM runs alone.
    #[must_use]
    pub fn image(&self) -> Option<&str> {
        self.image_and_command.first().map(String::as_str)
    }

    /// Whether the monitor restricts itself by Landlock: as it is told, or else where the kernel can.
    pub(crate) fn is_restricted(&self) -> bool {
        self.landlock || !self.no_landlock && landlock::is_available()
    }

    /// The command; empty for the image's own.
    #[must_use]
    pub fn command(&self) -> &[String] {
        self.image_and_command.get(1..).unwrap_or_default()
    }
}

/// The use of an image's profile in a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum ProfileUse {
    /// Use it; record one if it is missing
    Auto,
    /// Record what this run reads, if it ends with exit code 0
    Record,
    /// Have the host read those pages ahead while the guest boots
    Use,
    /// Neither use nor record it
    Off,
}

impl ProfileUse {
    pub(crate) fn uses(self) -> bool {
        matches!(self, Self::Auto | Self::Use)
    }

    /// Whether to record, given whether one exists.
    pub(crate) fn records(self, found: bool) -> bool {
        self == Self::Record || self == Self::Auto && !found
    }
}

/// `bellows image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Import an image to the store
    Import {
        /// `docker://[REGISTRY/]NAME[:TAG|@DIGEST]`, an OCI image layout (a directory or an archive), an archive of docker save, or
        /// a root file system (a directory or an archive); archives may be compressed with gzip or zstd
        #[arg(value_name = "SRC")]
        source: PathBuf,
        /// Name, tag or digest of the image, if a file has several.
        #[arg(long, value_name = "NAME")]
        reference: Option<String>,
        /// Platform of the image, such as linux/arm64, instead of the host's.
        #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
        platform: Option<Platform>,
        /// Speak HTTP to the registry, not HTTPS. A registry on this host always gets HTTP.
        #[arg(long)]
        plain_http: bool,
        /// A folder with a folder for each registry, which has containerd's `hosts.toml` or certificates as Docker names them,
        /// instead of those in `/etc`.
        #[arg(long, value_name = "DIR")]
        hosts_dir: Option<PathBuf>,
        /// Name for the image in the store, beside its digest.
        #[arg(long)]
        name: Option<String>,
        /// The store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// List the images in the store
    Ls {
        /// The store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Print all that the store knows about images
    Inspect(ImagesArgs),
    /// Print how much of images' layers is in the host's page cache, which processes use them, and the memory of mounts
    /// on this host
    Stat(ImagesArgs),
    /// Mount an image on this host, read-only, with nothing unpacked
    Mount {
        /// Name or digest.
        image: String,
        /// The directory.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Unmount an image from this host
    Umount {
        /// Where.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Remove names of images; an image goes with its last name, or with its digest
    Rm {
        /// Names or digests.
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
        /// The store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Remove the layers that no image has and no VM uses
    Gc {
        /// The store.
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Read all layers of images and compare them with their records
    Verify(ImagesArgs),
}

/// The images.
#[derive(Args, Debug)]
pub struct ImagesArgs {
    /// Names or digests; without any, all images
    #[arg(value_name = "IMAGE")]
    pub images: Vec<String>,
    /// The store.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// The store, and the format of the output.
#[derive(Args, Debug)]
pub struct StoreArgs {
    /// Layer store [default: $XDG_DATA_HOME/bellows/store]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `bellows demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// The guest.
    #[command(flatten)]
    pub guest: GuestArgs,
    /// OCI image layout of the demonstration's image
    #[arg(long, value_name = "OCI_LAYOUT")]
    pub image: PathBuf,
    /// Layer store [default: $XDG_DATA_HOME/bellows/store]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Size of each instance's partition
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub partition: ByteSize,
    /// MiB of data that each function builds
    #[arg(long, value_name = "MIB", default_value = "320")]
    pub mib: u32,
    /// Seconds that the second function of each VM keeps its memory after its work
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    pub hold: u32,
    /// Fork the functions from a zygote of Python that has imported these modules
    #[arg(long, value_name = "MODULE,...", value_delimiter = ',')]
    pub zygote: Vec<String>,
    /// The kind of this host, for the report
    #[arg(long, default_value = "kvm")]
    pub host: Host,
    /// Directory for the guests' consoles [default: no consoles]
    #[arg(long, value_name = "DIR")]
    pub serial: Option<PathBuf>,
    /// File for the report in JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Print the report in JSON
    #[arg(long)]
    pub json: bool,
}

/// The kind of host in a report.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Host {
    /// A machine with hardware-backed KVM.
    Kvm,
    /// The emulated host.
    Lab,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.into())),
        _ => Err("expected a whole number of seconds, at least 1".into()),
    }
}

fn serial(text: &OsStr) -> SerialOutput {
    if text == "-" { SerialOutput::Stdout } else { SerialOutput::File(text.into()) }
}

#[cfg(test)]
#[path = "cli_test.rs"]
mod tests;
