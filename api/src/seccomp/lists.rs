//! The system calls that threads may make. All others end the process.
//!
//! [`PROCESS`] counts for every thread. Threads that serve a guest get a second list, and may make the calls that both have. Threads that
//! have no list of their own make the changes that callers of the library make: they open what a guest gets.

use std::collections::BTreeMap;

use bellows_vmm::ThreadRole;
use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Reach;
use super::names::{Call, calls};

/// What any thread does: memory, locks, time, its end, the runtime's start of a thread, streams that are open.
#[rustfmt::skip]
const COMMON: &[Call] = calls![
    SYS_brk SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_exit SYS_exit_group SYS_fstat SYS_futex
    SYS_getpid SYS_getrandom SYS_gettid SYS_gettimeofday SYS_lseek SYS_madvise SYS_membarrier SYS_mremap SYS_munmap
    SYS_nanosleep SYS_poll SYS_ppoll SYS_read SYS_readv SYS_restart_syscall SYS_rseq SYS_rt_sigprocmask SYS_rt_sigreturn
    SYS_sched_getaffinity SYS_sched_yield SYS_set_robust_list SYS_sigaltstack SYS_statx SYS_time SYS_write SYS_writev
];

/// Sockets and descriptors that are there, and further ones of the same kind.
#[rustfmt::skip]
const STREAMS: &[Call] = calls![
    SYS_accept4 SYS_connect SYS_dup SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_wait SYS_eventfd2 SYS_getpeername SYS_getsockname
    SYS_getsockopt SYS_pread64 SYS_preadv SYS_preadv2 SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_recvfrom SYS_recvmsg SYS_sendmsg
    SYS_sendto SYS_setsockopt SYS_shutdown SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime
];

/// What a disk and memory need.
#[rustfmt::skip]
const STORAGE: &[Call] = calls![
    SYS_fallocate SYS_fdatasync SYS_fsync SYS_mincore SYS_process_madvise SYS_sched_setscheduler SYS_setpriority SYS_sync_file_range
];

/// What changes to a VM need: files that are opened, sockets that listen, threads, and what the store keeps of a run.
#[rustfmt::skip]
const CHANGES: &[Call] = calls![
    SYS_access SYS_bind SYS_chmod SYS_clone3 SYS_copy_file_range SYS_dup2 SYS_dup3 SYS_epoll_create1 SYS_faccessat
    SYS_faccessat2 SYS_fadvise64 SYS_fchmod SYS_fchmodat SYS_fchown SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fstatfs SYS_ftruncate
    SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getpgrp SYS_getppid SYS_getpriority SYS_getrlimit SYS_getrusage
    SYS_getuid SYS_get_mempolicy SYS_link SYS_linkat SYS_listen SYS_lstat SYS_mbind SYS_memfd_create SYS_mkdir SYS_mkdirat
    SYS_newfstatat SYS_open SYS_openat SYS_openat2 SYS_pipe2 SYS_readahead SYS_readlink SYS_readlinkat SYS_rename SYS_renameat
    SYS_renameat2 SYS_rmdir SYS_rt_sigpending SYS_rt_sigtimedwait SYS_sched_getparam SYS_sched_getscheduler SYS_sched_setaffinity
    SYS_seccomp SYS_signalfd4 SYS_stat SYS_statfs SYS_symlinkat SYS_sysinfo SYS_umask
    SYS_uname SYS_unlink SYS_unlinkat SYS_utimensat SYS_wait4 SYS_waitid
];

/// Requests of KVM: the type of their numbers (linux/kvm.h).
const KVM: u32 = 0xae;
/// Requests to vhost-net, likewise (linux/vhost.h): which memory and which queues of the guest's the host's kernel serves.
const VHOST: u32 = 0xaf;
/// Requests about page maps and files' attributes, to block devices, and to clone ranges of files (linux/fs.h).
const FILES: [u32; 3] = [b'f' as u32, 0x12, 0x94];
/// Requests to TAPs: they share their type with those to terminals, so each is named (linux/if_tun.h). The last finds an interface by its
/// name (linux/sockios.h).
const TAP: [u32; 11] = [
    0x4004_54ca, // TUNSETIFF
    0x4004_54cb, // TUNSETPERSIST
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d9, // TUNSETQUEUE
    0x4004_54d8, // TUNSETVNETHDRSZ
    0x4004_54dc, // TUNSETVNETLE
    0x8004_54cf, // TUNGETFEATURES
    0x8004_54d2, // TUNGETIFF
    0x8004_54d7, // TUNGETVNETHDRSZ
    0x8004_54dd, // TUNGETVNETLE
    0x8933,      // SIOCGIFINDEX
];
/// Requests to the terminal of `bellows run`; none that puts characters into it.
const TERMINAL: [u32; 10] = [
    libc::TCGETS as u32,
    libc::TCSETS as u32,
    libc::TCSETSW as u32,
    libc::TCSETSF as u32,
    libc::TIOCGWINSZ as u32,
    libc::TIOCGPGRP as u32,
    libc::FIONREAD as u32,
    libc::FIONBIO as u32,
    libc::FIOCLEX as u32,
    0x802c_542a, // TCGETS2
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What the whole process may do, and what becomes of anything else. It may send signals to `children`.
///
/// # Errors
/// A rule that cannot be said in BPF.
pub(super) fn process(
    otherwise: SeccompAction,
    process: u32,
    children: &[u32],
    reach: Reach,
) -> Result<BpfProgram, BackendError> {
    let mut rules = common(process)?;
    allow(&mut rules, &[STREAMS, STORAGE, CHANGES]);
    let families: &[i32] = match reach {
        Reach::Host => &[libc::AF_UNIX],
        Reach::Internet => &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6],
    };
    let families = families.iter().map(|family| rule([equal(0, *family as u32)?])).collect::<Result<_, _>>()?;
    add(&mut rules, libc::SYS_socket, families);
    add(&mut rules, libc::SYS_socketpair, vec![rule([unix()?])?]);
    add(&mut rules, libc::SYS_fcntl, fcntl()?);
    let mut requests = vec![kvm()?, request_type(VHOST)?];
    requests.extend(FILES.into_iter().map(request_type).collect::<Result<Vec<_>, _>>()?);
    requests.extend(TAP.into_iter().chain(TERMINAL).map(request).collect::<Result<Vec<_>, _>>()?);
    add(&mut rules, libc::SYS_ioctl, requests);
    // Threads of this process, and nothing in a namespace of its own.
    add(&mut rules, libc::SYS_clone, vec![rule([masked(0, THREAD | NAMESPACES, THREAD)?])?]);
    // A list without rules would allow the call.
    if !children.is_empty() {
        let to_children = children.iter().map(|child| rule([equal(0, *child)?])).collect::<Result<_, _>>()?;
        add(&mut rules, libc::SYS_kill, to_children);
    }
    // Of this process alone; 0 stands for it.
    add(&mut rules, libc::SYS_prlimit64, vec![rule([equal(0, 0)?])?, rule([equal(0, process)?])?]);
    compile(rules, otherwise)
}

/// What threads of `role` may do beside; `None` if all that the process may.
///
/// # Errors
/// A rule that cannot be said in BPF.
pub(super) fn of_role(
    role: ThreadRole,
    otherwise: SeccompAction,
    process: u32,
) -> Result<Option<BpfProgram>, BackendError> {
    let mut rules = common(process)?;
    match role {
        ThreadRole::Control => return Ok(None),
        ThreadRole::Console => allow(&mut rules, &[calls![SYS_fdatasync]]),
        ThreadRole::Agent => {
            allow(&mut rules, &[STREAMS]);
            add(&mut rules, libc::SYS_fcntl, fcntl()?);
        }
        ThreadRole::Discard => {
            allow(&mut rules, &[STORAGE, calls![SYS_pread64]]);
            add(&mut rules, libc::SYS_ioctl, vec![kvm()?, request_type(FILES[0])?]);
        }
        ThreadRole::Vcpu => {
            // A reset ends connections. The guest's configuration space is a file in memory. Devices that begin have timers for limits.
            allow(&mut rules, &[calls![SYS_dup SYS_eventfd2 SYS_pread64 SYS_pwrite64 SYS_shutdown SYS_timerfd_create]]);
            add(&mut rules, libc::SYS_fcntl, fcntl()?);
            add(&mut rules, libc::SYS_ioctl, vec![kvm()?, request_type(VHOST)?, request(TAP[2])?, request(TAP[3])?]);
        }
        ThreadRole::Device => {
            allow(&mut rules, &[STREAMS, STORAGE, calls![SYS_copy_file_range]]);
            // Before a guest gets memory, it asks how much the host has. Nothing is opened to be written, and nothing is made.
            let more_than_reading = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_PATH) as u32;
            add(&mut rules, libc::SYS_openat, vec![rule([masked(2, more_than_reading, 0)?])?]);
            add(&mut rules, libc::SYS_socket, vec![rule([unix()?])?]);
            add(&mut rules, libc::SYS_fcntl, fcntl()?);
            add(
                &mut rules,
                libc::SYS_ioctl,
                vec![
                    kvm()?,
                    // Before the guest gives memory up, it leaves what vhost-net has.
                    request_type(VHOST)?,
                    request_type(FILES[0])?,
                    request(TAP[2])?,
                    request(TAP[3])?,
                    request(libc::FIONREAD as u32)?,
                    request(libc::FIONBIO as u32)?,
                ],
            );
        }
    }
    compile(rules, otherwise).map(Some)
}

/// Has `clone3` look as if the kernel did not have it: what it does stands in memory, where a filter sees nothing. The C library takes
/// `clone` then.
///
/// # Errors
/// A rule that cannot be said in BPF.
pub(super) fn no_clone3() -> Result<BpfProgram, BackendError> {
    let rules = Rules::from([(libc::SYS_clone3, vec![])]);
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, absent, ARCHITECTURE)?.try_into()
}

const ARCHITECTURE: TargetArch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };
const THREAD: u32 = libc::CLONE_THREAD as u32;
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

fn compile(rules: Rules, otherwise: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, ARCHITECTURE)?.try_into()
}

fn common(process: u32) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    allow(&mut rules, &[COMMON]);
    // No code comes to be while a guest runs.
    let executable = libc::PROT_EXEC as u32;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        add(&mut rules, call, vec![rule([masked(2, executable, 0)?])?]);
    }
    // A thread's name, and names of memory, which the C library gives. The last comes before each filter.
    let names = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS];
    add(
        &mut rules,
        libc::SYS_prctl,
        names.into_iter().map(|name| rule([equal(0, name as u32)?])).collect::<Result<_, _>>()?,
    );
    // The standard library looks at a descriptor before it closes it, in programs for tests.
    add(&mut rules, libc::SYS_fcntl, vec![rule([equal(1, libc::F_GETFD as u32)?])?]);
    // Signals to threads of this process: vCPUs are kicked by them, and a panic aborts by one.
    add(&mut rules, libc::SYS_tgkill, vec![rule([equal(0, process)?])?]);
    // The handler that reports a violation stays.
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::SIGSYS as u64)?;
    add(&mut rules, libc::SYS_rt_sigaction, vec![SeccompRule::new(vec![other])?]);
    Ok(rules)
}

fn allow(rules: &mut Rules, lists: &[&[Call]]) {
    for call in lists.iter().copied().flatten() {
        rules.insert(call.number, vec![]);
    }
}

fn add(rules: &mut Rules, call: i64, any_of: Vec<SeccompRule>) {
    rules.insert(call, any_of);
}

fn rule<const N: usize>(all_of: [SeccompCondition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(all_of.into())
}

fn equal(argument: u8, value: u32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
}

fn masked(argument: u8, mask: u32, value: u32) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask.into()), value.into())
}

fn unix() -> Result<SeccompCondition, BackendError> {
    equal(0, libc::AF_UNIX as u32)
}

fn kvm() -> Result<SeccompRule, BackendError> {
    request_type(KVM)
}

/// An `ioctl` whose number has this type.
fn request_type(kind: u32) -> Result<SeccompRule, BackendError> {
    rule([masked(1, 0xff00, kind << 8)?])
}

fn request(number: u32) -> Result<SeccompRule, BackendError> {
    rule([equal(1, number)?])
}

/// Duplicates, flags and locks of descriptors; not the owner of a signal.
fn fcntl() -> Result<Vec<SeccompRule>, BackendError> {
    [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_OFD_SETLK,
        libc::F_OFD_SETLKW,
        libc::F_OFD_GETLK,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
        libc::F_SETPIPE_SZ,
        libc::F_GETPIPE_SZ,
    ]
    .into_iter()
    .map(|command| rule([equal(1, command as u32)?]))
    .collect()
}
