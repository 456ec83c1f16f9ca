//! The bodies of Bellows' own requests. Unknown properties are errors.

use std::collections::BTreeMap;

use bellows_vmm::{
    ByteSize, ExitStatus, InstanceNetwork, LayerConfig, ScratchSpec, Shape, TerminalSize, Transport, ValueError,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::options::scratch::PLACE;
use crate::rest::fault::Fault;

/// `PUT /images/{id}`: an image of the store, or layers as files, each with its digest and size.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewImage {
    /// The name of an image in the layer store.
    pub(crate) name: Option<String>,
    /// EROFS files, lowest first.
    #[schemars(with = "Option<Vec<Layer>>")]
    pub(crate) layers: Option<Vec<LayerConfig>>,
    /// How the layers are put together.
    #[schemars(with = "Option<String>")]
    pub(crate) shape: Option<Shape>,
    /// How its disks reach the guest.
    #[schemars(with = "Option<String>")]
    pub(crate) transport: Option<Transport>,
}

/// A layer, for the API's document.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "the library has the type that is read")]
struct Layer {
    /// The EROFS file.
    path: String,
    /// `sha256:` and 64 digits.
    digest: String,
    /// Size of the file.
    bytes: u64,
}

/// What an instance is connected to, for the API's document.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "the library has the type that is read")]
enum Network {
    None,
    Vm,
    Own(OwnNetwork),
}

/// An instance's own interface: its addresses, and its hardware address.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "the library has the type that is read")]
struct OwnNetwork {
    addresses: Vec<String>,
    mac: Option<String>,
    /// What it may send to, each `CIDR[:PORT[/tcp|/udp]]`; without any, it answers and begins nothing.
    #[schemars(default)]
    egress: Vec<String>,
    #[schemars(default)]
    limits: NetworkLimits,
}

/// Limits of what an instance receives and sends.
#[derive(Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "the library has the type that is read")]
struct NetworkLimits {
    #[schemars(default)]
    receive: NetworkLimit,
    #[schemars(default)]
    transmit: NetworkLimit,
}

/// Limits of one direction.
#[derive(Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "the library has the type that is read")]
struct NetworkLimit {
    /// Of bytes, without link headers.
    bandwidth: Option<NetworkRate>,
    /// Of packets.
    operations: Option<NetworkRate>,
}

/// A limit of a rate.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "the library has the type that is read")]
struct NetworkRate {
    per_second: std::num::NonZeroU64,
    burst: std::num::NonZeroU64,
}

/// `PATCH /partitions/{id}`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resize {
    pub(crate) size_mib: u32,
}

/// `PUT /instances/{id}`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewInstance {
    /// An image that the VM has, or the name of one in the layer store.
    pub(crate) image: String,
    /// The command; what is left out, or empty, is the image's own.
    #[serde(default)]
    pub(crate) argv: Vec<String>,
    /// `NAME=value` pairs, put over those of the image.
    #[serde(default)]
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<String>,
    /// Memory of its partition; 0 is none: it runs in base memory.
    pub(crate) memory_mib: u32,
    /// Its partition; without it, a free one that is large enough.
    pub(crate) partition: Option<u16>,
    pub(crate) base_limit_mib: Option<u32>,
    pub(crate) pids_max: Option<u32>,
    /// The zygote that it is a fork of.
    pub(crate) fork_of: Option<String>,
    /// What it is connected to: `none`; `vm`, the VM's network interfaces; or an interface of its own.
    #[serde(default)]
    #[schemars(with = "Network")]
    pub(crate) network: InstanceNetwork,
    /// The VM is switched off when it has ended.
    #[serde(default)]
    pub(crate) shutdown_at_exit: bool,
    /// What it finds beside its image, read-only.
    #[serde(default)]
    pub(crate) volumes: Vec<NewVolume>,
    /// A disk of its own to write on.
    pub(crate) scratch: Option<NewScratch>,
    /// For the caller's own use.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// Makes it a zygote: a Python interpreter that has imported these modules, and waits for forks.
    pub(crate) python_zygote: Option<Vec<String>>,
}

/// A folder that an instance finds beside its image, read-only.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewVolume {
    /// An image of one layer: one that the VM has, or the name of one in the layer store.
    pub(crate) image: String,
    /// Where: an absolute path, made where it is missing.
    pub(crate) path: String,
}

/// A disk that an instance writes to, with an empty file system. It ends with the instance.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewScratch {
    /// Its size; files have a little less.
    #[schemars(range(min = 1, max = 8_388_608))]
    pub(crate) size_mib: u32,
    /// Where: an absolute path, made where it is missing; without it, `/tmp`.
    pub(crate) path: Option<String>,
}

impl NewScratch {
    /// It as the library takes it.
    pub(crate) fn spec(&self) -> Result<ScratchSpec, Fault> {
        let path = self.path.as_deref().unwrap_or(PLACE).parse().map_err(|error: ValueError| Fault::of(&error))?;
        ScratchSpec::new(ByteSize::mib(self.size_mib.into()), path).map_err(|error| Fault::of(&error))
    }
}

impl NewInstance {
    pub(crate) fn memory(&self) -> ByteSize {
        ByteSize::mib(self.memory_mib.into())
    }
}

/// `PATCH /instances/{id}`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct InstanceUpdate {
    pub(crate) state: Wanted,
}

/// The state that an instance is to have.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
pub(crate) enum Wanted {
    Frozen,
    Running,
}

/// `PUT /instances/{id}/signal`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Signal {
    /// Its number.
    pub(crate) signal: u32,
}

/// `POST /instances/{id}/stop`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stop {
    /// Time between SIGTERM and SIGKILL.
    #[serde(default = "ten_seconds")]
    pub(crate) timeout_ms: u32,
}

fn ten_seconds() -> u32 {
    10_000
}

/// `POST /instances/{id}/exec`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exec {
    pub(crate) argv: Vec<String>,
    #[serde(default)]
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<String>,
    /// Its standard input.
    pub(crate) stdin: Option<String>,
    /// Its standard input is what comes over the connection, where that is upgraded.
    #[serde(default)]
    pub(crate) open_stdin: bool,
    /// It has a terminal of this size. Its standard input, output and error are one then.
    pub(crate) tty: Option<Terminal>,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Terminal {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

impl From<Terminal> for TerminalSize {
    fn from(Terminal { columns, rows }: Terminal) -> Self {
        Self { columns, rows }
    }
}

/// How an instance, or a process in one, has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Ended {
    /// The exit code, or 128 and the number of a signal.
    pub(crate) exit_code: u8,
    /// The kernel killed one of its processes for lack of memory.
    pub(crate) oom_killed: bool,
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        Self { exit_code: status.code, oom_killed: status.oom_killed }
    }
}

/// The answer to an exec.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct Executed {
    #[serde(flatten)]
    pub(crate) ended: Ended,
    /// What is not UTF-8 is replaced.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Some of the output is left out.
    pub(crate) truncated: bool,
}

impl NewImage {
    /// The one of two sources that is given.
    pub(crate) fn source(&self) -> Result<Source<'_>, Fault> {
        match (&self.name, &self.layers) {
            (Some(name), None) => Ok(Source::Store(name)),
            (None, Some(layers)) if !layers.is_empty() => Ok(Source::Files(layers)),
            _ => Err(Fault::new("an image has either `name` or `layers`: expected one of them, and not empty")),
        }
    }
}

/// Where an image comes from.
pub(crate) enum Source<'a> {
    Store(&'a str),
    Files(&'a [LayerConfig]),
}
