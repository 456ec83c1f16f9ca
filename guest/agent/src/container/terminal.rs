//! A process's terminal: opened within the container, by the process itself and hence owned by its user, and handed to the agent.

use std::io;
use std::os::fd::AsFd;

use bellows_protocol::values::TerminalSize;
use nix::pty::{OpenptyResult, openpty};

use super::descriptor;
use crate::sys;

/// Opens a terminal, sends its master over standard output, a socket, and makes it this process's controlling terminal and all of
/// its standard streams. The process leads a session.
///
/// # Errors
/// The container has no `/dev/ptmx` or no `/dev/pts` that works; those of the system calls.
pub(super) fn open(size: TerminalSize) -> io::Result<()> {
    let OpenptyResult { master, slave } = openpty(None, None)?;
    sys::set_size(&slave, size)?;
    descriptor::send(&io::stdout(), b"d", &[master.as_fd()])?;
    sys::take_terminal(&slave)?;
    nix::unistd::dup2_stdin(&slave)?;
    nix::unistd::dup2_stdout(&slave)?;
    nix::unistd::dup2_stderr(&slave)?;
    Ok(())
}
