//! Errors of requests, and the status of each for the monitor.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bellows_protocol::stream::StreamLineError;
use bellows_protocol::values::{Node, ValueError};
use thiserror::Error;
use ttrpc::Code;

use crate::accounts::AccountError;

/// Result of a request.
pub type Result<T> = std::result::Result<T, AgentError>;

/// Why a request failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The request holds an invalid value.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The image has no such user.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A file of the image is unusable.
    #[error("{path} of the image {problem}")]
    Image {
        /// Its name.
        path: &'static str,
        /// The cause.
        problem: String,
    },
    /// A volume that is not one file system.
    #[error("image {image:?} has {layers} layers: expected one, for a volume")]
    Volume {
        /// The image.
        image: String,
        /// How many it has.
        layers: usize,
    },
    /// A connection does not begin with a valid line.
    #[error(transparent)]
    StreamLine(#[from] StreamLineError),
    /// An operation on a path failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Path {
        /// The action.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{call} failed: {source}")]
    System {
        /// Which one.
        call: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A network interface could not be set up.
    #[error("network interface {name:?}: cannot {action}: {source}")]
    Interface {
        /// Its name, or its hardware address.
        name: String,
        /// The step.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What an instance sends and receives cannot be filtered.
    #[error("cannot hold the instance to what it may send and receive: expected a kernel with CONFIG_CGROUP_BPF: {0}")]
    Filter(io::Error),
    /// The name is unknown.
    #[error("no {kind} {name:?}")]
    Unknown {
        /// The kind of object.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object to remove is gone: an earlier request, whose answer came too late, may have removed it.
    #[error("no {kind} {name:?} to remove")]
    Gone {
        /// Kind of thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("{kind} {name:?} exists already")]
    Exists {
        /// Kind of thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It is still in use.
    #[error("{what} is in use by {by}")]
    InUse {
        /// The object.
        what: String,
        /// Its user.
        by: String,
    },
    /// An instance cannot be a zygote.
    #[error("{0}")]
    ZygoteUnfit(String),
    /// A zygote ended, or does not speak its protocol.
    #[error("{0}")]
    ZygoteFailed(String),
    /// No instance can be forked from it.
    #[error("instance {0:?} is not a zygote")]
    NotZygote(String),
    /// A fork of another image.
    #[error("zygote {zygote:?} runs image {found}: a fork of it cannot run {wanted}")]
    ZygoteImage {
        /// The zygote.
        zygote: String,
        /// Its image.
        found: String,
        /// The fork's image.
        wanted: String,
    },
    /// A fork that runs as another user.
    #[error(
        "zygote {zygote:?} runs as user {} and group {}: a fork of it cannot run as {} and {}",
        found.0, found.1, wanted.0, wanted.1
    )]
    ZygoteUser {
        /// The zygote.
        zygote: String,
        /// Its user and group.
        found: (u32, u32),
        /// The fork's.
        wanted: (u32, u32),
    },
    /// The kernel did not make a process a fork of its zygote.
    #[error("the zygote cannot be forked: {0}")]
    NotAdopted(#[source] io::Error),
    /// The instance's first process has ended, and every other with it.
    #[error("instance {0:?} has ended")]
    Ended(String),
    /// The instance's processes do not run until it is thawed.
    #[error("instance {0:?} is frozen: thaw it first")]
    Frozen(String),
    /// The awaited event did not come in time.
    #[error("no {what} after {} ms", after.as_millis())]
    TimedOut {
        /// The awaited event.
        what: String,
        /// The time waited.
        after: Duration,
    },
    /// Memory of a partition is not on its node.
    #[error(
        "memory at {address:#x} is on node {found}: expected node {wanted}; does the SRAT cover all base memory and CPUs?"
    )]
    WrongNode {
        /// First address of the memory block.
        address: u64,
        /// The expected node.
        wanted: Node,
        /// The node it is on.
        found: u32,
    },
    /// Memory of a partition can hold pages that cannot move.
    #[error("memory block {block} of node {node} is in zone {zone:?}: expected Movable")]
    WrongZone {
        /// Number of the memory block.
        block: u64,
        /// The partition's node.
        node: Node,
        /// The zone it is in.
        zone: String,
    },
    /// Less base memory is left than the instance needs.
    #[error(
        "no room in base memory for an instance with {wanted} bytes of it: of {all} bytes for all instances {left} bytes are left"
    )]
    NoBaseMemory {
        /// Bytes for the instance.
        wanted: u64,
        /// Bytes not promised to others.
        left: u64,
        /// Bytes for all instances.
        all: u64,
    },
    /// No program runs with so little base memory.
    #[error("a limit of {wanted} bytes on base memory: expected at least {least} bytes")]
    SmallBaseLimit {
        /// The limit.
        wanted: u64,
        /// The least valid limit.
        least: u64,
    },
    /// A limit of the instance below the node's size, which must be the limit.
    #[error(
        "a limit of {wanted} bytes on memory in partition {node}: expected at least its size of {total} bytes; plug less instead"
    )]
    LimitInPartition {
        /// The limit.
        wanted: u64,
        /// The partition's node.
        node: Node,
        /// Its size.
        total: u64,
    },
    /// A node has no memory.
    #[error("node {0} has no memory: its partition is not plugged")]
    NoMemory(Node),
    /// A partition's driver has given up.
    #[error("the driver of {0} is broken")]
    Broken(String),
    /// The kernel did not take a cgroup's nodes.
    #[error("cgroup {cgroup:?} may use nodes {effective:?}: expected node {node}")]
    NotAllowed {
        /// Name of the cgroup.
        cgroup: String,
        /// The nodes in `cpuset.mems.effective`.
        effective: String,
        /// The expected node.
        node: Node,
    },
    /// The instance's command is not in its root file system.
    #[error("{0}")]
    CommandNotFound(String),
    /// The instance's command cannot be executed.
    #[error("{0}")]
    CommandNotExecutable(String),
    /// The container could not be created.
    #[error("cannot create the container: {0}")]
    Container(String),
    /// The kernel lacks a feature.
    #[error("this kernel has no {0}")]
    Unsupported(&'static str),
    /// A text of the kernel is not understood.
    #[error("{what} holds {text:?}")]
    Malformed {
        /// Its source.
        what: String,
        /// The text.
        text: String,
    },
}

impl AgentError {
    /// For `map_err`: an operation on a path failed.
    pub fn path<E: Into<io::Error>>(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Path { action, path, source: source.into() }
    }

    /// For `map_err`: a system call failed.
    pub fn system<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { call, source: source.into() }
    }

    /// The status code that the monitor gets.
    ///
    /// `StartInstance` and `StartProcess` answer `NOT_FOUND` only if the command is missing (a shell would give 127) and
    /// `PERMISSION_DENIED` only if it cannot be executed (126). `UnmountImage`, `RemoveInstance` and `RemoveProcess` answer
    /// `NOT_FOUND` if nothing is left to do.
    pub fn code(&self) -> Code {
        match self {
            Self::Value(_)
            | Self::StreamLine(_)
            | Self::Account(_)
            | Self::Image { .. }
            | Self::Volume { .. }
            | Self::ZygoteUnfit(_)
            | Self::ZygoteImage { .. }
            | Self::ZygoteUser { .. }
            | Self::SmallBaseLimit { .. } => Code::INVALID_ARGUMENT,
            Self::NoBaseMemory { .. } => Code::RESOURCE_EXHAUSTED,
            Self::CommandNotFound(_) | Self::Gone { .. } => Code::NOT_FOUND,
            Self::CommandNotExecutable(_) => Code::PERMISSION_DENIED,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::TimedOut { .. } => Code::DEADLINE_EXCEEDED,
            Self::Unknown { .. }
            | Self::InUse { .. }
            | Self::Ended(_)
            | Self::Frozen(_)
            | Self::NotZygote(_)
            | Self::NoMemory(_)
            | Self::LimitInPartition { .. } => Code::FAILED_PRECONDITION,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::ZygoteFailed(_)
            | Self::NotAdopted(_)
            | Self::Path { .. }
            | Self::System { .. }
            | Self::Interface { .. }
            | Self::Filter(_)
            | Self::WrongNode { .. }
            | Self::WrongZone { .. }
            | Self::Broken(_)
            | Self::NotAllowed { .. }
            | Self::Container(_)
            | Self::Malformed { .. } => Code::INTERNAL,
        }
    }
}

impl From<AgentError> for ttrpc::Error {
    fn from(error: AgentError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}
