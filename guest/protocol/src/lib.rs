//! The versioned protocol between the monitor and the guest agent.
//!
//! - [`agent`] holds the messages and [`agent_ttrpc`] the client and the server trait, both generated from
//!   `proto/agent.proto`. They are spoken with ttrpc over vsock: the agent listens on [`AGENT_PORT`].
//! - [`ready`] is the one line that the agent sends to the host when it can be called.
//! - [`stream`] is how a connection to [`STREAM_PORT`] becomes a stream of a process.
//! - [`network`] is what an interface of the guest gets, [`volume`] what an instance finds beside its image.
//! - [`values`] checks the values that both sides exchange as strings, [`user`] those that name the user of an instance. Each side
//!   checks what it receives.

use std::time::Duration;

#[allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub mod egress;
pub mod network;
pub mod ready;
pub mod stream;
pub mod user;
pub mod values;
pub mod volume;

pub use generated::{agent, agent_ttrpc};

/// Version of the protocol. The two sides compare theirs in `Hello`, in the ready line and in the first
/// line of each stream.
pub const PROTOCOL_VERSION: u32 = 13;

/// vsock port on which the agent listens, in the guest.
pub const AGENT_PORT: u32 = 1024;

/// vsock port on which the agent lets the host connect to the streams of processes, in the guest.
pub const STREAM_PORT: u32 = 1026;

/// How long the agent goes on to read what a process has left in its pipes for others to write to, once it has ended. What it
/// wrote itself is read whole, however long that takes.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How long the agent gives a container to start. The monitor waits for as long, and for what comes after.
pub const START_LIMIT: Duration = Duration::from_secs(60);

/// How long the agent gives a zygote to be ready, once it has started.
pub const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long the agent gives an instance's processes to end once killed.
pub const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How long the agent gives a layer's disk to appear. It mounts layers one by one.
pub const DISK_LIMIT: Duration = Duration::from_secs(10);

/// vsock port on the host (CID 2) that the agent connects to once it listens.
///
/// With the hybrid convention the host's end is the Unix socket `<uds_path>_<READY_PORT>`.
pub const READY_PORT: u32 = 1025;
