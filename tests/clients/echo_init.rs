//! The first process of the guest of a third party's client: has a process echo what comes over vsock, and becomes the agent.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{env, io, thread};

use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, VsockAddr, accept, bind, listen, recv, send, socket,
};
use nix::unistd::close;

/// The port that clients connect to.
const PORT: u32 = 5000;

fn main() -> io::Result<()> {
    if env::args().nth(1).as_deref() == Some("echo") {
        return listen_for_clients().map_err(io::Error::from);
    }
    Command::new("/init").arg("echo").spawn()?;
    Err(Command::new("/agent").exec())
}

fn listen_for_clients() -> nix::Result<()> {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, PORT))?;
    listen(&listener, Backlog::new(8)?)?;
    loop {
        let stream = accept(listener.as_raw_fd())?;
        thread::spawn(move || {
            if let Err(error) = echo(stream) {
                eprintln!("echo: {error}");
            }
            let _ = close(stream);
        });
    }
}

fn echo(stream: RawFd) -> nix::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let received = recv(stream, &mut buffer, MsgFlags::empty())?;
        if received == 0 {
            return Ok(());
        }
        let mut left = &buffer[..received];
        while !left.is_empty() {
            left = &left[send(stream, left, MsgFlags::MSG_NOSIGNAL)?..];
        }
    }
}
