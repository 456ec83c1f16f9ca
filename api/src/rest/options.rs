//! The options of `bellows api`, which are Firecracker's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser};

use super::bodies::Level;
use super::control::FIRECRACKER;
use super::log::Form;
use crate::landlock::PathRule;
use crate::seccomp::Reach;
#[cfg(feature = "otlp")]
use crate::traces::Endpoint;
use crate::vm_id;

/// The name under which the program takes Firecracker's command line.
const NAME: &str = "firecracker";
/// Firecracker's exit code for a command line that is wrong.
pub(crate) const WRONG_ARGUMENTS: u8 = 153;

/// `bellows api`.
#[derive(Args, Debug)]
pub struct ApiArgs {
    /// Unix socket of the API; nothing may be there yet
    #[arg(long, value_name = "PATH", default_value = "/run/firecracker.socket")]
    pub(crate) api_sock: PathBuf,
    /// Name of the VM: letters, digits and `-`
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", value_parser = vm_id::parse)]
    pub(crate) id: String,
    /// Configuration of the VM in JSON, with Firecracker's names; it boots at once
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// Have no API: the VM is what --config-file says
    #[arg(long, requires = "config_file")]
    pub(crate) no_api: bool,
    /// Most bytes of a request's body
    #[arg(long, value_name = "N", default_value_t = 51200, value_parser = clap::value_parser!(u32).range(1..=(64 << 20)))]
    pub(crate) http_api_max_payload_size: u32,
    /// File or pipe for the log [default: standard error]
    #[arg(long, value_name = "PATH")]
    pub(crate) log_path: Option<PathBuf>,
    /// How much is logged: Off, Error, Warn, Info, Debug or Trace [default: Info]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) level: Option<Level>,
    /// Log only what comes from this module, such as bellows_vmm
    #[arg(long, value_name = "MODULE")]
    pub(crate) module: Option<String>,
    /// Begin each line of the log with its level
    #[arg(long)]
    pub(crate) show_level: bool,
    /// Begin each line of the log with its place in the source
    #[arg(long)]
    pub(crate) show_log_origin: bool,
    /// Form of the log's lines
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    pub(crate) log_format: Form,
    /// Collector that gets spans of requests and what they do, by OpenTelemetry's protocol (OTLP) over HTTP
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "URL")]
    pub(crate) otlp_endpoint: Option<Endpoint>,
    /// File or pipe for metrics
    #[arg(long, value_name = "PATH")]
    pub(crate) metrics_path: Option<PathBuf>,
    /// Configuration of the VM in JSON, with Bellows' names, as for `bellows run --config`; it boots at once
    #[arg(long, value_name = "FILE", conflicts_with = "config_file")]
    pub(crate) vm: Option<PathBuf>,
    /// What listens at --api-sock is standard input
    #[arg(long, hide = true)]
    pub(crate) listener_is_stdin: bool,
    /// Layer store that images of instances come from [default: $XDG_DATA_HOME/bellows/store]
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Folder in whose file system the scratch disks of instances lie [default: /var/tmp, or /tmp where that is missing]
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch_dir: Option<PathBuf>,
    /// Log how long the guest's agent took to be ready
    #[arg(long)]
    pub(crate) boot_timer: bool,
    /// When the process began, in microseconds of the monotonic clock, for metrics
    #[arg(long, value_name = "US")]
    pub(crate) start_time_us: Option<u64>,
    /// CPU time of the process when it began, in microseconds, for metrics
    #[arg(long, value_name = "US")]
    pub(crate) start_time_cpu_us: Option<u64>,
    /// CPU time of the parent process, in microseconds, for metrics
    #[arg(long, value_name = "US")]
    pub(crate) parent_cpu_time_us: Option<u64>,
    /// Taken, and without a meaning: all devices are on a PCI bus
    #[arg(long)]
    _enable_pci: bool,
    /// Do not filter the system calls of the process
    #[arg(long)]
    pub(crate) no_seccomp: bool,
    /// Leave the process the files that options and the configuration file name, and those of --landlock-rules
    #[arg(long)]
    pub(crate) landlock: bool,
    /// File or folder that requests may name: path=PATH,access=r, or w or rw; several times
    #[arg(long, value_name = "RULE", requires = "landlock", num_args = 1..)]
    pub(crate) landlock_rules: Vec<PathRule>,
    /// Not supported yet
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) seccomp_filter: Option<PathBuf>,
    /// Metadata that the VM has at first, in JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata: Option<PathBuf>,
    /// Most bytes of the metadata as JSON [default: that of --http-api-max-payload-size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=(64 << 20)))]
    pub(crate) mmds_size_limit: Option<u32>,
    /// Not supported yet
    #[arg(long, hide = true)]
    pub(crate) snapshot_version: bool,
    /// Not supported yet
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) describe_snapshot: Option<PathBuf>,
}

impl ApiArgs {
    /// What threads that carry out requests may connect with.
    pub(crate) fn reach(&self) -> Reach {
        #[cfg(feature = "otlp")]
        if self.otlp_endpoint.is_some() {
            return Reach::Internet;
        }
        Reach::Host
    }

    /// The option that asks for what Bellows does not have yet, if one does.
    pub(crate) fn unsupported(&self) -> Option<&'static str> {
        [
            ("--seccomp-filter", self.seccomp_filter.is_some()),
            ("--snapshot-version", self.snapshot_version),
            ("--describe-snapshot", self.describe_snapshot.is_some()),
        ]
        .into_iter()
        .find_map(|(name, is_given)| is_given.then_some(name))
    }
}

/// The command line of a program that has the name `firecracker`.
#[derive(Debug, Parser)]
#[command(name = NAME, version = VERSION, about = "Bellows, with Firecracker's command line and API")]
pub(crate) struct Firecracker {
    #[command(flatten)]
    pub(crate) api: ApiArgs,
}

/// What programs look for, and whose answer it is.
const VERSION: &str = concat!("v1.16.1\n\nThis is Bellows ", env!("CARGO_PKG_VERSION"));

impl Firecracker {
    /// The options, if the first of `words` is the name of this program.
    pub(crate) fn read(words: &[OsString]) -> Option<Result<ApiArgs, clap::Error>> {
        debug_assert!(VERSION.contains(FIRECRACKER), "one version of the API");
        is_firecracker(words).then(|| Self::try_parse_from(words).map(|all| all.api))
    }
}

/// Whether the first of `words` is the name under which the program takes Firecracker's command line.
pub(crate) fn is_firecracker(words: &[OsString]) -> bool {
    words.first().and_then(|word| Path::new(word).file_name()).is_some_and(|name| name == NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<Result<ApiArgs, String>> {
        let words: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        Some(Firecracker::read(&words)?.map_err(|error| error.to_string()))
    }

    #[test]
    fn under_firecrackers_name_its_options_come_first() {
        let line = "/usr/bin/firecracker --api-sock a.sock --id vm-1 --start-time-us 5 --no-seccomp --enable-pci --level Warning";
        let args = read(line).unwrap().unwrap();
        assert_eq!((&*args.id, args.start_time_us, args.level), ("vm-1", Some(5), Some(Level::Warn)));
        assert_eq!((args.http_api_max_payload_size, args.unsupported()), (51200, None));
        assert!(read("bellows api").is_none());
        assert!(read("firecracker --version").unwrap().unwrap_err().starts_with("firecracker v1.16.1\n"));
    }

    #[test]
    fn wrong_options_are_refused() {
        let rules =
            "--landlock --landlock-rules path=/a,access=rw path=/b,access=r --landlock-rules path=/c,access=r --id x";
        assert_eq!(read(&format!("firecracker {rules}")).unwrap().unwrap().landlock_rules.len(), 3);
        for line in [
            "--landlock-rules path=/a,access=r",
            "--landlock --landlock-rules /a",
            "--no-api",
            "--id a_b",
            "--id= ",
            "--level loud",
            "--http-api-max-payload-size 0",
            "--nothing",
        ] {
            assert!(read(&format!("firecracker {line}")).unwrap().is_err(), "{line}");
        }
        let args = read("firecracker --metadata m.json --mmds-size-limit 0 --seccomp-filter f").unwrap().unwrap();
        assert_eq!(args.unsupported(), Some("--seccomp-filter"));
    }
}
