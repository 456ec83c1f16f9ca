//! What an instance with a network of its own may send to, and how much it may send and receive: programs at its cgroup that see each
//! packet of its sockets, however these came to be.
//!
//! The kernel checks here what the instance cannot change: it has no right to load programs, to leave its cgroup, or to make packets
//! other than by sockets. Whoever takes over the guest's kernel is not held by it.

mod assembler;
mod kernel;
mod programs;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use bellows_protocol::egress::PacketLimit;
use bellows_protocol::network::OwnNetworkSetup;

use self::assembler::Instruction;
use self::kernel::{Attachment, Map};
use self::programs::{Maps, PEER_BYTES, connect, egress, ingress};
use crate::error::{AgentError, Result};

/// Peers whose datagrams may be answered, at most: the one that has been silent the longest goes first.
const PEERS: u32 = 1024;
/// Bytes of a moment, and of the levels of both buckets of a direction.
const MOMENT_BYTES: u32 = 8;
const LEVELS_BYTES: u32 = 2 * MOMENT_BYTES;

/// Has the kernel hold the processes of `cgroup` to what `setup` allows. With the cgroup, it goes.
///
/// # Errors
/// [`AgentError::Filter`]: the kernel cannot do that. [`AgentError::Path`].
pub fn apply(cgroup: &Path, setup: &OwnNetworkSetup) -> Result<()> {
    let folder = File::open(cgroup).map_err(AgentError::path("open", cgroup))?;
    let programs = load(setup).map_err(AgentError::Filter)?;
    let mut attached = programs.iter().map(|(at, program)| kernel::attach(program.as_fd(), folder.as_fd(), *at));
    attached.try_for_each(|result| result.map_err(AgentError::Filter))
}

/// All programs, with where each goes.
fn load(setup: &OwnNetworkSetup) -> io::Result<[(Attachment, OwnedFd); 4]> {
    let peers = kernel::map(Map::LruHash, PEER_BYTES, MOMENT_BYTES, PEERS)?;
    let levels = |limit: &PacketLimit| {
        (!limit.is_none()).then(|| kernel::map(Map::Array, size_of::<u32>() as u32, LEVELS_BYTES, 1)).transpose()
    };
    let (sent, received) = (levels(&setup.transmit)?, levels(&setup.receive)?);
    let loaded = |at, code: Vec<Instruction>| Ok::<_, io::Error>((at, kernel::program(at, &code)?));
    Ok([
        loaded(Attachment::Egress, egress(setup, maps(&peers, &sent))?)?,
        loaded(Attachment::Ingress, ingress(&setup.receive, maps(&peers, &received))?)?,
        loaded(Attachment::Connect4, connect(setup, false)?)?,
        loaded(Attachment::Connect6, connect(setup, true)?)?,
    ])
}

fn maps<'a>(peers: &'a OwnedFd, levels: &'a Option<OwnedFd>) -> Maps<'a> {
    Maps { peers: peers.as_fd(), levels: levels.as_ref().map(AsFd::as_fd) }
}

#[cfg(test)]
#[path = "filter_test.rs"]
mod tests;
