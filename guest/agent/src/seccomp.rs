//! The system calls that an instance may not make. Everything else is allowed: an ordinary image has to run unchanged.
//!
//! - Memory placement: a task that could change its policy or move its pages could leave its partition.
//! - Calls that need a capability which instances lack, and that have had bugs anyway.
//! - vsock sockets: they ignore namespaces, and reach the host and every listener in the guest.
//! - Ways around this filter: 32-bit calls end the process, x32 calls and `clone3` (whose flags a filter cannot see) do not
//!   exist, new user namespaces (whose owner has every capability in them) are refused.

use nix::libc;
use seccompiler::{BpfProgram, sock_filter};

/// Refused with `EPERM`, whatever the arguments.
const DENIED: &[i64] = &[
    // Memory placement.
    libc::SYS_set_mempolicy,
    libc::SYS_mbind,
    SYS_SET_MEMPOLICY_HOME_NODE,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Long-term pins and kernel threads of its own.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Kernel code, tracing, keys.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at,
    libc::SYS_lookup_dcookie,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

/// Not in the `libc` crate; the number is the same on every architecture.
const SYS_SET_MEMPOLICY_HOME_NODE: i64 = 450;

/// Bit of x32 system call numbers on x86-64.
const X32_BIT: u32 = 0x4000_0000;
/// How the kernel names this architecture in `struct seccomp_data` (linux/audit.h).
const ARCHITECTURE: u32 = if cfg!(target_arch = "aarch64") { 0xc000_00b7 } else { 0xc000_003e };
/// Offsets in `struct seccomp_data`: the call's number, the architecture, the lower half of the first argument.
const NUMBER: u32 = 0;
const OF_ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
/// Calls in a block of the filter: about as many as there are blocks.
const BLOCK: usize = 9;

const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ABSENT: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The filter as a BPF program.
///
/// When a filter is installed, the kernel runs it once for each system call that there is, to remember those that are always allowed.
/// So it takes few steps: the refused calls stand in order in blocks, and blocks before that of a call are skipped.
pub fn program() -> BpfProgram {
    let mut calls: Vec<(u32, BpfProgram)> = DENIED.iter().map(|&call| (call as u32, vec![answer(REFUSED)])).collect();
    // The caller falls back to `clone`, whose flags can be seen.
    calls.push((libc::SYS_clone3 as u32, vec![answer(ABSENT)]));
    calls.push((libc::SYS_clone as u32, refuse_if(libc::BPF_JSET, libc::CLONE_NEWUSER as u32)));
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        calls.push((call as u32, refuse_if(libc::BPF_JEQ, libc::AF_VSOCK as u32)));
    }
    calls.sort_by_key(|(number, _)| *number);

    let mut program = vec![load(OF_ARCHITECTURE)];
    program.extend(unless_equal(ARCHITECTURE, answer(libc::SECCOMP_RET_KILL_PROCESS)));
    program.push(load(NUMBER));
    if cfg!(target_arch = "x86_64") {
        // As if the kernel had none of these.
        program.extend([jump(libc::BPF_JGE, X32_BIT, 0, 1), answer(ABSENT)]);
    }
    for block in calls.chunks(BLOCK) {
        let mut body = BpfProgram::new();
        for (number, verdict) in block {
            body.push(jump(libc::BPF_JEQ, *number, 0, verdict.len() as u8));
            body.extend_from_slice(verdict);
        }
        body.push(answer(libc::SECCOMP_RET_ALLOW));
        if let Some((last, _)) = block.last() {
            program.push(jump(libc::BPF_JGT, *last, body.len() as u8, 0));
            program.append(&mut body);
        }
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

/// A program that allows everything.
///
/// The kernel keeps compiled programs together in large pieces of memory, and makes a piece ready, which takes it millions of
/// instructions, when there is none. A process that has this filter for good keeps one there.
pub fn allow_all() -> BpfProgram {
    vec![answer(libc::SECCOMP_RET_ALLOW)]
}

/// Refuses the call if its first argument meets the condition, and allows it otherwise.
fn refuse_if(condition: u32, value: u32) -> BpfProgram {
    vec![load(FIRST_ARGUMENT), jump(condition, value, 0, 1), answer(REFUSED), answer(libc::SECCOMP_RET_ALLOW)]
}

fn unless_equal(value: u32, otherwise: sock_filter) -> [sock_filter; 2] {
    [jump(libc::BPF_JEQ, value, 1, 0), otherwise]
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Skips `taken` instructions if what was loaded meets the condition, and `otherwise` if not.
fn jump(condition: u32, value: u32, taken: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | condition | libc::BPF_K) as u16, jt: taken, jf: otherwise, k: value }
}

fn answer(verdict: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: verdict }
}

/// Installs the filter `program` for this thread and all its children; sets `no_new_privs` too.
///
/// # Errors
/// The kernel does not take it.
pub fn install(program: &BpfProgram) -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter(program)
}

#[cfg(test)]
#[path = "seccomp_test.rs"]
mod tests;
