//! The options of `bellows jail`, which are those of Firecracker's jailer.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser};

use crate::vm_id;

/// The name under which the program takes the command line of Firecracker's jailer.
const NAME: &str = "jailer";

/// `bellows jail`.
#[derive(Args, Debug)]
pub struct JailArgs {
    /// Name of the VM: letters, digits and `-`
    #[arg(long, value_name = "ID", value_parser = vm_id::parse)]
    pub(super) id: String,
    /// Program to run in the jail: this one, or any other monitor
    #[arg(long, value_name = "FILE")]
    pub(super) exec_file: PathBuf,
    /// User of the monitor, a number other than 0
    #[arg(long, value_name = "UID")]
    pub(super) uid: u32,
    /// Group of the monitor, a number
    #[arg(long, value_name = "GID")]
    pub(super) gid: u32,
    /// Control group, below the root of all, that gets one for the monitor [default: the name of --exec-file]
    #[arg(long, value_name = "PATH")]
    pub(super) parent_cgroup: Option<String>,
    /// Version of the control groups that --cgroup is about; only 2 is supported
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) cgroup_version: u8,
    /// A value for the monitor's control group, such as memory.max=1G
    #[arg(long, value_name = "FILE=VALUE")]
    pub(super) cgroup: Vec<String>,
    /// Directory for jails; this one will be in NAME/ID/root below it, NAME being the name of --exec-file
    #[arg(long, value_name = "DIR", default_value = "/srv/jailer")]
    pub(super) chroot_base_dir: PathBuf,
    /// Network namespace to join
    #[arg(long, value_name = "PATH")]
    pub(super) netns: Option<PathBuf>,
    /// A limit: fsize, in bytes, or no-file [default: no-file=2048]
    #[arg(long, value_name = "RESOURCE=VALUE")]
    pub(super) resource_limit: Vec<String>,
    /// Have the monitor run in the background, in a session of its own, without input and output
    #[arg(long)]
    pub(super) daemonize: bool,
    /// Give the monitor /dev/vhost-net, for network interfaces that the host's kernel serves
    #[arg(long)]
    pub(super) vhost_net: bool,
    /// Have the monitor be the first process of a process namespace of its own
    #[arg(long)]
    pub(super) new_pid_ns: bool,
    /// Arguments of the monitor
    #[arg(last = true, value_name = "ARG")]
    pub(super) arguments: Vec<OsString>,
}

/// The command line of a program that has the name `jailer`.
#[derive(Debug, Parser)]
#[command(name = NAME, version = VERSION, about = "Bellows, with the command line of Firecracker's jailer")]
pub(crate) struct Jailer {
    #[command(flatten)]
    jail: JailArgs,
}

/// What programs look for, and whose answer it is.
const VERSION: &str = concat!("v1.16.1\n\nThis is Bellows ", env!("CARGO_PKG_VERSION"));

impl Jailer {
    /// The options, if the first of `words` is the name of this program.
    pub(crate) fn read(words: &[OsString]) -> Option<Result<JailArgs, clap::Error>> {
        is_jailer(words).then(|| Self::try_parse_from(words).map(|all| all.jail))
    }
}

/// Whether the first of `words` is the name under which the program takes the jailer's command line.
pub(crate) fn is_jailer(words: &[OsString]) -> bool {
    words.first().and_then(|word| Path::new(word).file_name()).is_some_and(|name| name == NAME)
}
