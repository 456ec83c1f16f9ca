//! Arguments of the commands for VMs in the background.

use std::time::Duration;

use bellows_memory::ByteSize;
use bellows_vmm::{InstanceId, PartitionId};
use clap::{Args, Subcommand};

use super::any_seconds;

/// The options of a run in the background.
#[derive(Args, Debug)]
pub struct DetachedArgs {
    /// Run the VM in the background, and print its name: `bellows ps`, `exec`, `logs`, `stop` and `rm` handle it
    #[arg(short, long)]
    pub detach: bool,
    /// Name of a VM in the background [default: a random one]
    #[arg(long, value_name = "NAME", requires = "detach")]
    pub name: Option<InstanceId>,
    /// End a VM in the background when its command has ended; what it has written is lost then. A VM in the foreground ends in
    /// any case
    #[arg(long)]
    pub rm: bool,
}

/// `bellows ps`.
#[derive(Args, Debug)]
pub struct PsArgs {
    /// Show also those that have ended
    #[arg(short, long)]
    pub all: bool,
    /// Print a line of JSON for each
    #[arg(long)]
    pub json: bool,
}

/// `bellows exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// Pass standard input on to the command, which otherwise reads /dev/null
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long, conflicts_with = "json")]
    pub tty: bool,
    /// Environment variable of the command
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Directory that the command starts in, instead of the instance's
    #[arg(short = 'w', long, value_name = "PATH")]
    pub cwd: Option<String>,
    /// User of the command, instead of the instance's
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Print exit code and output as JSON, when the command has ended; with -i all of standard input is read before
    #[arg(long)]
    pub json: bool,
    /// Name of the instance, or VM/INSTANCE
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The command
    #[arg(value_name = "CMD", trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `bellows logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Go on until the instance has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Name of the instance, or VM/INSTANCE
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `bellows stop`.
#[derive(Args, Debug)]
pub struct StopArgs {
    /// Seconds between SIGTERM and SIGKILL
    #[arg(short, long, value_name = "SECONDS", default_value = "10", value_parser = any_seconds)]
    pub time: Duration,
    /// Names of instances, or VM/INSTANCE
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `bellows rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Kill those that have not ended
    #[arg(short, long)]
    pub force: bool,
    /// Names of instances, or VM/INSTANCE
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// `bellows partition`.
#[derive(Debug, Subcommand)]
pub enum PartitionCommand {
    /// List partitions
    Ls {
        /// Names of VMs; without any, all VMs
        #[arg(value_name = "VM")]
        vms: Vec<String>,
        /// Print a line of JSON for each
        #[arg(long)]
        json: bool,
    },
    /// Set a partition's size, also while an instance uses it: it grows or shrinks to that
    Resize {
        /// Which one.
        #[command(flatten)]
        which: PartitionArgs,
        /// The new size, such as 256M, up to the partition's window
        #[arg(value_name = "SIZE")]
        size: ByteSize,
    },
    /// Give a partition memory, up to SIZE or all of its window; it never shrinks
    Plug {
        /// Which one.
        #[command(flatten)]
        which: PartitionArgs,
        /// The size, such as 256M [default: its window]
        #[arg(value_name = "SIZE")]
        size: Option<ByteSize>,
    },
    /// Take all memory of a partition that no instance has, and wait until the host has it
    Unplug {
        /// Which one.
        #[command(flatten)]
        which: PartitionArgs,
    },
}

/// A partition.
#[derive(Args, Debug)]
pub struct PartitionArgs {
    /// Name of the VM
    #[arg(value_name = "VM")]
    pub vm: String,
    /// Number of the partition [default: the only one, or that of the instance with the VM's name]
    #[arg(short, long, value_name = "N", value_parser = partition_number)]
    pub partition: Option<PartitionId>,
    /// Print the VM's report in JSON
    #[arg(long)]
    pub json: bool,
}

/// `bellows cp`.
#[derive(Args, Debug)]
pub struct CpArgs {
    /// Keep owners, groups and set-id bits: otherwise files belong to root in the instance, and to you here
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what SRC leads to, if it is a link of this host
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// What to copy: NAME:PATH of an instance, a path of this host (which may begin with / or ., if it has a colon), or - for a tar
    /// archive on standard input
    #[arg(value_name = "SRC")]
    pub source: String,
    /// Where to: NAME:PATH, a path of this host, or - for a tar archive on standard output
    #[arg(value_name = "DST", allow_hyphen_values = true)]
    pub destination: String,
}

/// `bellows top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Print one table, as is done where standard output is not a terminal
    #[arg(long)]
    pub once: bool,
    /// Print a line of JSON for each VM
    #[arg(long)]
    pub json: bool,
}

fn partition_number(text: &str) -> Result<PartitionId, String> {
    text.parse().ok().and_then(PartitionId::new).ok_or_else(|| "expected the number of a partition, from 1 on".into())
}
