//! The calls of the kernel's virtual machine, `bpf(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;

use super::assembler::Instruction;

/// A kind of map of the kernel's virtual machine (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug)]
pub enum Map {
    /// Values by index.
    Array = 2,
    /// Values by key, of which the one that was used the longest ago makes room.
    LruHash = 9,
}

/// Where programs are run for the sockets of a cgroup (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// For each packet that is received.
    Ingress = 0,
    /// For each packet that is sent.
    Egress = 1,
    /// For each IPv4 socket that is connected.
    Connect4 = 10,
    /// For each IPv6 socket that is connected.
    Connect6 = 11,
}

impl Attachment {
    /// The kind of program (`enum bpf_prog_type`): for packets, or for addresses of sockets.
    const fn program_type(self) -> u32 {
        match self {
            Self::Ingress | Self::Egress => 8,
            Self::Connect4 | Self::Connect6 => 18,
        }
    }
}

/// Commands of `bpf(2)`.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;

/// Arguments of `BPF_MAP_CREATE`, up to the last that is used (`union bpf_attr`).
#[derive(Default)]
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// Arguments of `BPF_PROG_LOAD`, up to the last that is used.
#[derive(Default)]
#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Arguments of `BPF_PROG_ATTACH`.
#[repr(C)]
struct ProgramAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Makes a map. Its values are zeros.
///
/// # Errors
/// Those of `bpf(2)`.
pub fn map(kind: Map, key_bytes: u32, value_bytes: u32, entries: u32) -> io::Result<OwnedFd> {
    let arguments =
        MapCreate { map_type: kind as u32, key_size: key_bytes, value_size: value_bytes, max_entries: entries };
    // SAFETY: the arguments hold no pointer.
    unsafe { bpf_descriptor(BPF_MAP_CREATE, &arguments) }
}

/// Loads a program, which the kernel checks.
///
/// # Errors
/// Those of `bpf(2)`: `EINVAL` and `EACCES` mean that the kernel does not take it.
pub fn program(at: Attachment, code: &[Instruction]) -> io::Result<OwnedFd> {
    const LICENSE: &std::ffi::CStr = c"Apache-2.0";
    let arguments = ProgramLoad {
        prog_type: at.program_type(),
        insn_cnt: u32::try_from(code.len()).map_err(io::Error::other)?,
        insns: code.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        prog_name: *b"bellows\0\0\0\0\0\0\0\0\0",
        expected_attach_type: at as u32,
        ..ProgramLoad::default()
    };
    // SAFETY: the pointers are to `insn_cnt` instructions and to a string with a zero at its end, which outlive the call and which
    // the kernel only reads.
    unsafe { bpf_descriptor(BPF_PROG_LOAD, &arguments) }
}

/// Has the sockets of the processes in `cgroup`, and below it, meet `program`. It stays there for as long as the cgroup.
///
/// # Errors
/// Those of `bpf(2)`.
pub fn attach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, at: Attachment) -> io::Result<()> {
    let arguments = ProgramAttach {
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_bpf_fd: program.as_raw_fd().unsigned_abs(),
        attach_type: at as u32,
        // No other is attached below it.
        attach_flags: 0,
    };
    // SAFETY: the arguments hold no pointer.
    unsafe { bpf(BPF_PROG_ATTACH, &arguments) }.map(drop)
}

/// Calls `bpf(2)`.
///
/// # Safety
/// `arguments` begins as those of the command, and pointers among them are valid for what the command does with them.
unsafe fn bpf<T>(command: libc::c_long, arguments: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads no more than the size that it is told; the caller vouches for the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(arguments), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls a command of `bpf(2)` that makes a descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_descriptor<T>(command: libc::c_long, arguments: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for it.
    let descriptor = unsafe { bpf(command, arguments) }?;
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the call has made the descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Runs a program once with a frame on the interface `index`, as a test of it. Returns its result.
#[cfg(test)]
pub fn test_run(program: BorrowedFd<'_>, index: u32, frame: &[u8]) -> io::Result<u32> {
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    /// Arguments, up to the last that is used.
    #[derive(Default)]
    #[repr(C)]
    struct TestRun {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
        flags: u32,
        cpu: u32,
        batch_size: u32,
        zero: u32,
    }
    // `struct __sk_buff`, of which only `ifindex` may say something here.
    let mut context = [0_u32; 11];
    context[10] = index;
    let mut arguments = TestRun {
        ctx_size_in: size_of_val(&context) as u32,
        ctx_in: context.as_ptr() as u64,
        prog_fd: program.as_raw_fd().unsigned_abs(),
        data_size_in: frame.len() as u32,
        data_in: frame.as_ptr() as u64,
        ..TestRun::default()
    };
    let pointer = &raw mut arguments;
    // SAFETY: the kernel reads `data_size_in` bytes at `data_in` and `ctx_size_in` at `ctx_in`, writes the result to the arguments, and all of them outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, pointer, size_of::<TestRun>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(arguments.retval) }
}
