//! A network of CNI ([specification 1.0](https://www.cni.dev/docs/spec/)): plugins of the host connect a network namespace, and the VM
//! takes the namespace's place.
//!
//! From the inside out: `list` is a network's configuration, and `attachment` what its plugins are asked, both plain data; `answer` is what
//! becomes of their answer in the guest; `namespace` has the network namespace, with the VM's TAP in it; `keeper` is a process
//! that has all of that for as long as the VM lives, so that the plugins clean up however the monitor ends.

mod answer;
mod attachment;
mod error;
mod keeper;
mod list;
mod namespace;
mod tap;

use std::io::{IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bellows_vmm::{NetConfig, Tap};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use self::error::CniError;
use self::keeper::Kept;
pub(crate) use self::keeper::{KeeperArgs, keep};
use super::INTERFACE;
use super::ports::Published;
use crate::error::{CliError, io_error};

/// The hidden command that is the keeper.
pub(crate) const KEEPER: &str = "cni-keeper";
/// Bytes of the longest message of a keeper.
const MAX_MESSAGE: usize = 64 << 10;

/// A VM's place in a network of CNI: at the latest when this is dropped, or the process ends in any way, the plugins are told that
/// it is gone.
pub(crate) struct Cni {
    keeper: Child,
    /// The keeper stays while it is open.
    stream: UnixStream,
    tap: OwnedFd,
}

impl Cni {
    /// Connects a VM to the network `name`, and waits until that is done, for as long as `limit` at most.
    ///
    /// # Errors
    /// There is no such network, one of its plugins refused, or this process may not make network namespaces.
    pub(super) fn start(name: &str, published: &[Published], limit: Duration) -> Result<(Self, NetConfig), CliError> {
        let (ours, theirs) = UnixStream::pair().map_err(io_error("make a socket for", KEEPER))?;
        let own = std::env::current_exe().map_err(io_error("find", "this program"))?;
        let mut command = Command::new(own);
        command.arg(KEEPER).arg(name).args(published.iter().map(ToString::to_string));
        // A process group of its own: Ctrl-C is for the command in the VM, which may still need its network.
        command.process_group(0).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let keeper = command.spawn().map_err(io_error("start", "this program"))?;
        drop(command);
        let (kept, tap) = match receive(&ours, limit) {
            Ok((Kept::Attached(attached), Some(tap))) => (attached, tap),
            Ok((Kept::Refused(message), _)) => return Err(refused(keeper, ours, CniError::Refused(message))),
            Ok((Kept::Attached(_), None)) => return Err(refused(keeper, ours, CniError::NoTap)),
            Err(error) => {
                return Err(refused(keeper, ours, CniError::NoAnswer { name: name.to_owned(), source: error }));
            }
        };
        let mut interface = NetConfig::new(INTERFACE, Tap::Fd(tap.as_raw_fd()));
        interface.mac = Some(kept.mac);
        interface.mtu = Some(kept.mtu);
        interface.guest = Some(kept.guest);
        Ok((Self { keeper, stream: ours, tap }, interface))
    }

    /// The number of the keeper's process.
    pub(crate) fn process_id(&self) -> u32 {
        self.keeper.id()
    }

    /// Has programs that this process starts from here on inherit the TAP, and the keeper's stream.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn bequeath(&self) -> Result<(), CliError> {
        inherit(&self.stream)?;
        inherit(&self.tap)
    }

    /// Leaves it to the programs that have inherited the keeper's stream: it ends with the last of them.
    pub(crate) fn leave(self) {
        // Their copies are the same stream, which must not be shut down.
        std::mem::forget(self);
    }
}

impl Drop for Cni {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        // What its plugins have to say goes to standard error.
        let _ = self.keeper.wait();
    }
}

/// Ends the keeper. What its plugins have done so far they undo.
fn refused(mut keeper: Child, stream: UnixStream, error: CniError) -> CliError {
    drop(stream);
    let _ = keeper.wait();
    error.into()
}

fn inherit(fd: &impl AsFd) -> Result<(), CliError> {
    let set = fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()));
    set.map(drop).map_err(|error| io_error("pass on", "the TAP")(error.into()))
}

/// Receives the keeper's message: a line of JSON, with the TAP if all went well.
fn receive(stream: &UnixStream, limit: Duration) -> std::io::Result<(Kept, Option<OwnedFd>)> {
    stream.set_read_timeout(Some(limit))?;
    let mut text = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut controls = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut controls, RecvFlags::CMSG_CLOEXEC)?;
    let tap = controls.drain().find_map(|control| match control {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    text.truncate(message.bytes);
    while text.last().is_some_and(|last| *last != b'\n') {
        let mut rest = [0; 4096];
        let count = (&*stream).read(&mut rest)?;
        if count == 0 || text.len() + count > MAX_MESSAGE {
            break;
        }
        text.extend(&rest[..count]);
    }
    if text.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok((serde_json::from_slice(&text)?, tap))
}
