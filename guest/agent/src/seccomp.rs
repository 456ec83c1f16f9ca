//! The system calls that an instance may not make. Everything else is allowed: an ordinary image has to run unchanged.
//!
//! - Memory placement: a task that could change its policy or move its pages could leave its partition.
//! - Calls that need a capability which instances lack, and that have had bugs anyway.
//! - vsock sockets: they ignore namespaces, and reach the host and every listener in the guest.
//! - Ways around this filter: 32-bit calls end the process, x32 calls and `clone3` (whose flags a filter cannot see) do not
//!   exist, new user namespaces (whose owner has every capability in them) are refused.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

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

/// The filter as a BPF program.
///
/// # Errors
/// The filter does not compile.
pub fn program() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|&call| (call, Vec::new())).collect();
    let new_user_namespace = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(libc::CLONE_NEWUSER as u64),
        libc::CLONE_NEWUSER as u64,
    )
    .map_err(seccompiler::Error::Backend)?;
    let rule = SeccompRule::new(vec![new_user_namespace]).map_err(seccompiler::Error::Backend)?;
    rules.insert(libc::SYS_clone, vec![rule]);
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        let vsock = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_VSOCK as u64)
            .map_err(seccompiler::Error::Backend)?;
        rules.insert(call, vec![SeccompRule::new(vec![vsock]).map_err(seccompiler::Error::Backend)?]);
    }
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(seccompiler::Error::Backend)?;
    let denied =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), architecture)
            .map_err(seccompiler::Error::Backend)?;
    let mut program = absent_calls();
    program.extend(BpfProgram::try_from(denied).map_err(seccompiler::Error::Backend)?);
    Ok(program)
}

/// Answers `ENOSYS` for `clone3` and all x32 calls, so that a caller falls back to the older call. A 32-bit call of the
/// same number gets `ENOSYS` too, or is ended by the next test.
fn absent_calls() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let jump_if = |condition, jt, jf, k| instruction(libc::BPF_JMP | condition | libc::BPF_K, jt, jf, k);
    // The first field of `struct seccomp_data` is the call's number.
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    if cfg!(target_arch = "x86_64") {
        // Over the next test, to the answer.
        program.push(jump_if(libc::BPF_JGE, 1, 0, X32_BIT));
    }
    // To the answer, or over it.
    program.push(jump_if(libc::BPF_JEQ, 0, 1, libc::SYS_clone3 as u32));
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
    program
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
