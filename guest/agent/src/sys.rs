//! System calls that no library wraps safely, with their unsafe code. The only other unsafe code is in
//! `container::descriptor`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bellows_protocol::values::TerminalSize;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{SockFlag, accept4};
use nix::unistd::Pid;

/// A descriptor of an existing process; it becomes readable when the process has ended.
///
/// # Errors
/// Those of `pidfd_open(2)`.
pub fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let descriptor = RawFd::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0);
    let descriptor = descriptor.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call has made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A process that [`fork_sibling`] has made.
#[derive(Debug)]
pub struct Sibling {
    /// Its number.
    pub pid: Pid,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
}

/// Forks this process. The new process is a child of this one's *parent*, in `cgroup` if that is given, and in new namespaces as
/// `namespaces` says. Returns `None` in the new process.
///
/// # Errors
/// This process has more than one thread: in the new one, what another thread had locked would stay locked. Those of `clone3(2)`.
pub fn fork_sibling(namespaces: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Sibling>> {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // Changes nothing in a process of one thread, and is refused in another.
    unshare(CloneFlags::CLONE_THREAD | CloneFlags::CLONE_SIGHAND | CloneFlags::CLONE_VM)?;
    let mut pidfd: RawFd = -1;
    let flags = (libc::CLONE_PARENT | libc::CLONE_PIDFD | namespaces.bits()) as u64;
    // SAFETY: all zero bytes are valid arguments: no flag, and no pointer that is used without its flag.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.cgroup = cgroup.map_or(0, |cgroup| cgroup.as_raw_fd().unsigned_abs().into());
    // SAFETY: the arguments outlive the call, and name an `int` that does as well. Without CLONE_VM the new process has a copy of
    // this one's memory and goes on in it as after `fork`, and there is no other thread that could have been in the middle of something.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if pid > 0 => {
            // SAFETY: the call has made the descriptor for us alone.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Sibling { pid: Pid::from_raw(pid), pidfd }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, without what is registered for its end: that is for the process that it was forked from.
pub fn exit(code: i32) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// A mount of its own of what is at `path`, which is not part of any mount namespace yet.
///
/// # Errors
/// Those of `open_tree(2)`.
pub fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a C string that outlives the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let tree = checked(tree as libc::c_int)?;
    // SAFETY: the call has made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(tree) })
}

/// Mounts what [`clone_mount`] gave at `path`.
///
/// # Errors
/// Those of `move_mount(2)`.
pub fn attach_mount(tree: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both paths are C strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    checked(result as libc::c_int).map(drop)
}

/// Has the ext4 file system that `folder` is in forget what it has not written yet: all that follows fails but its unmount, which
/// takes no time then.
///
/// # Errors
/// Those of EXT4_IOC_SHUTDOWN: the caller needs `CAP_SYS_ADMIN`.
pub fn abandon_file_system(folder: &impl AsFd) -> io::Result<()> {
    /// linux/ext4.h
    const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;
    let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
    // SAFETY: the call reads four bytes from `flags`.
    checked(unsafe { libc::ioctl(folder.as_fd().as_raw_fd(), EXT4_IOC_SHUTDOWN as _, &raw const flags) }).map(drop)
}

/// The network namespace that `socket` belongs to.
///
/// # Errors
/// Those of SIOCGSKNS: the caller needs `CAP_NET_ADMIN` there.
pub fn network_of(socket: &impl AsFd) -> io::Result<OwnedFd> {
    /// linux/sockios.h
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: the request takes no argument.
    let network = checked(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS, 0) })?;
    // SAFETY: the call has made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(network) })
}

/// Whether `number` is an open descriptor.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: only asks.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Requests of our kernel's pidfds: `_IO(PIDFS_IOCTL_MAGIC, 32)` and 33 in its `include/uapi/linux/pidfd.h`.
const PIDFD_AWAIT_ADOPTION: libc::Ioctl = 0xff20;
const PIDFD_ADOPT: libc::Ioctl = 0xff21;

/// Makes a process a zygote: from now on its `fork()` waits until another process adopts a copy of its memory.
///
/// # Errors
/// ENOTTY if the kernel cannot do that, ESRCH if the process has ended.
pub fn await_adoption(process: &impl AsFd) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    checked(unsafe { libc::ioctl(process.as_fd().as_raw_fd(), PIDFD_AWAIT_ADOPTION, 0) }).map(drop)
}

/// Goes on as a fork of a zygote. Like `execve`, it returns only if it fails.
pub fn adopt(zygote: &impl AsFd) -> io::Error {
    // SAFETY: the request takes no argument. It either fails and has changed nothing, or this program runs no further.
    let result = checked(unsafe { libc::ioctl(zygote.as_fd().as_raw_fd(), PIDFD_ADOPT, 0) });
    result.err().unwrap_or_else(|| io::Error::other("it returned"))
}

/// Makes `descriptor` the one with `number`, which stays open through `execve`. For a process that is about to call that: what
/// had the number is closed.
///
/// # Errors
/// Those of `dup2(2)` and `fcntl(2)`.
pub fn place(descriptor: &impl AsFd, number: RawFd) -> io::Result<()> {
    let own = descriptor.as_fd().as_raw_fd();
    let result = if own == number {
        // SAFETY: the call takes numbers.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) }
    } else {
        // SAFETY: the call takes numbers. A process that is about to be replaced relies on no descriptor that this closes.
        unsafe { libc::dup2(own, number) }
    };
    checked(result).map(drop)
}

/// Makes `number`, which is not its own, a copy of `descriptor` that is closed by `execve`, in a process that uses no descriptor of
/// that number.
///
/// # Errors
/// Those of `dup3(2)`.
pub fn occupy(descriptor: &impl AsFd, number: RawFd) -> io::Result<()> {
    // SAFETY: the call takes numbers. The caller relies on no descriptor that this closes.
    checked(unsafe { libc::dup3(descriptor.as_fd().as_raw_fd(), number, libc::O_CLOEXEC) }).map(drop)
}

/// Closes all descriptors from number `first` on, in a process that uses none of them any more.
pub fn close_from(first: libc::c_uint) {
    // SAFETY: the call takes numbers, and its caller uses no descriptor that this closes. It cannot fail with these.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// Duplicates a descriptor to a number of at least `least`.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn duplicate_above(descriptor: &impl AsFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers.
    let copy = checked(unsafe { libc::fcntl(descriptor.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) })?;
    // SAFETY: the call has made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Duplicates the descriptor `number`, which its owner keeps open meanwhile.
///
/// # Errors
/// Those of `fcntl(2)`: for example when no descriptor is left.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers.
    let descriptor = checked(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: the call has made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits for a connection.
///
/// # Errors
/// Those of `accept4(2)`.
pub fn accept(listener: &impl AsFd) -> nix::Result<OwnedFd> {
    let connection = accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the call has made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(connection) })
}

/// A request to `adjtimex(2)` without changes.
pub fn no_adjustment() -> libc::timex {
    // SAFETY: all zero bytes are a valid `timex`.
    unsafe { std::mem::zeroed() }
}

/// Adjusts the clock.
///
/// # Errors
/// Those of `adjtimex(2)`.
pub fn adjust_clock(mut request: libc::timex) -> io::Result<()> {
    // SAFETY: the pointer is to a `timex` that outlives the call.
    checked(unsafe { libc::adjtimex(&raw mut request) }).map(drop)
}

/// Sets an option of a socket that is an `int`.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn set_option(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `length` bytes at the address of `value`, which lives, and keeps no reference.
    checked(unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), length) }).map(drop)
}

/// Brings up the network interface `name`, which is shorter than 16 bytes, through `socket`.
///
/// # Errors
/// Those of `netdevice(7)`.
pub fn bring_up(socket: &impl AsFd, name: &str) -> io::Result<()> {
    // SAFETY: all zero bytes are a valid `ifreq`: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which `request` is, and keeps no reference to it.
    checked(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }).map(drop)
}

/// Gives SIGPIPE its default action again, which ends the process.
///
/// # Errors
/// Those of `sigaction(2)`.
pub fn reset_sigpipe() -> nix::Result<()> {
    // SAFETY: the default action is no handler that could run code here.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
}

/// Gives signals that this process ignores their default actions again: what is ignored stays so in every program that it becomes.
/// SIGPIPE stays as it is, which [`reset_sigpipe`] is for, and so do those that the Rust runtime handles, which end with the program.
///
/// # Errors
/// Those of `sigaction(2)`.
pub fn reset_signals() -> nix::Result<()> {
    const KEPT: [i32; 5] = [libc::SIGKILL, libc::SIGSTOP, libc::SIGPIPE, libc::SIGSEGV, libc::SIGBUS];
    const SIGNALS: i32 = 64;
    // The kernel's `struct sigaction` with the default action, which is 0. The C library's call refuses signals that it uses itself.
    let default = [0_u64; 4];
    for number in (1..=SIGNALS).filter(|number| !KEPT.contains(number)) {
        // SAFETY: the kernel reads the structure, and the default action is no handler that could run code here.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                &raw const default,
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
        if result != 0 {
            return Err(nix::errno::Errno::last());
        }
    }
    Ok(())
}

/// Sets this thread's memory policy to `mode` with the nodes in `mask`, as `set_mempolicy(2)` does.
///
/// # Errors
/// Those of that call.
pub fn set_memory_policy(mode: libc::c_int, mask: &[libc::c_ulong]) -> io::Result<()> {
    let bits = mask.len() * libc::c_ulong::BITS as usize + 1;
    // SAFETY: the kernel reads one bit less than it is told, which is all of the mask.
    match unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask.as_ptr(), bits) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `terminal` the controlling terminal of this process, which leads a session without one.
///
/// # Errors
/// Those of TIOCSCTTY.
pub fn take_terminal(terminal: &impl AsFd) -> io::Result<()> {
    // SAFETY: the request takes a number.
    checked(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets the size of a terminal.
///
/// # Errors
/// Those of TIOCSWINSZ.
pub fn set_size(terminal: &impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads a `winsize`, which outlives the call.
    checked(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Bytes that can be read from a pipe or terminal now.
///
/// # Errors
/// Those of FIONREAD.
pub fn bytes_waiting(end: &impl AsFd) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: the request writes an `int`, which outlives the call.
    checked(unsafe { libc::ioctl(end.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Waits until one of `entries` has an event, or for `timeout` milliseconds; without limit if it is negative.
///
/// # Errors
/// Those of `poll(2)`.
pub fn poll(entries: &mut [libc::pollfd], timeout: libc::c_int) -> io::Result<()> {
    // SAFETY: the array has as many entries as the call is told. A closed descriptor only gives an event.
    checked(unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout) }).map(drop)
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_several_threads_is_not_forked() {
        let error = std::thread::scope(|scope| scope.spawn(|| fork_sibling(CloneFlags::empty(), None)).join());
        assert_eq!(error.unwrap().unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
