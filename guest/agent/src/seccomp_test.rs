use super::*;

fn verdict(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    run(program, architecture, number, arguments).0
}

/// How many instructions the filter takes for a system call.
fn steps(program: &[sock_filter], number: u32) -> usize {
    run(program, X86_64, number, [0; 6]).1
}

/// Just enough of classic BPF to run the filter on one system call; returns the verdict and the number of steps.
fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend(0_u64.to_ne_bytes());
    arguments.iter().for_each(|argument| data.extend(argument.to_ne_bytes()));
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    for step in 1.. {
        let instruction = &program[at];
        at += 1;
        let code = u32::from(instruction.code);
        let jump = |taken: bool| usize::from(if taken { instruction.jt } else { instruction.jf });
        match code & 0x07 {
            libc::BPF_LD => {
                let offset = instruction.k as usize;
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            libc::BPF_JMP => {
                at += match code & 0xf0 {
                    libc::BPF_JEQ => jump(accumulator == instruction.k),
                    libc::BPF_JGE => jump(accumulator >= instruction.k),
                    libc::BPF_JGT => jump(accumulator > instruction.k),
                    libc::BPF_JSET => jump(accumulator & instruction.k != 0),
                    other => panic!("jump {other:#x}"),
                }
            }
            libc::BPF_RET => return (instruction.k, step),
            other => panic!("class {other:#x}"),
        }
    }
    unreachable!("it only jumps forward")
}

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

fn of(number: i64, first: u64) -> u32 {
    verdict(&program(), X86_64, number as u32, [first, 0, 0, 0, 0, 0])
}

#[test]
fn memory_placement_is_refused() {
    for call in [libc::SYS_set_mempolicy, libc::SYS_mbind, 450, libc::SYS_migrate_pages, libc::SYS_move_pages] {
        assert_eq!(of(call, 0), REFUSED, "{call}");
    }
}

#[test]
fn ordinary_calls_are_allowed() {
    for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_mmap, libc::SYS_clone, libc::SYS_fork, libc::SYS_ptrace] {
        assert_eq!(of(call, libc::SIGCHLD as u64), libc::SECCOMP_RET_ALLOW, "{call}");
    }
}

/// With a first argument that no condition is about.
#[test]
fn exactly_the_listed_calls_are_refused() {
    for number in 0..1024 {
        let expected = match i64::from(number) {
            libc::SYS_clone3 => ABSENT,
            call if DENIED.contains(&call) => REFUSED,
            _ => libc::SECCOMP_RET_ALLOW,
        };
        assert_eq!(of(number.into(), 0), expected, "{number}");
    }
}

/// The kernel runs it for every call when it is installed.
#[test]
fn few_steps_lead_to_a_verdict() {
    let program = program();
    let longest = (0..1024).map(|number| steps(&program, number)).max().unwrap();
    assert!(longest <= 28, "{longest} of {} instructions", program.len());
}

#[test]
fn user_namespaces_are_refused() {
    assert_eq!(of(libc::SYS_clone, libc::CLONE_NEWUSER as u64 | libc::SIGCHLD as u64), REFUSED);
    assert_eq!(of(libc::SYS_unshare, 0), REFUSED);
}

#[test]
fn vsock_is_refused_and_other_sockets_are_not() {
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        assert_eq!(of(call, libc::AF_VSOCK as u64), REFUSED, "{call}");
        // The kernel looks at the lower half only.
        assert_eq!(of(call, 1 << 32 | libc::AF_VSOCK as u64), REFUSED, "{call}");
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
            assert_eq!(of(call, family as u64), libc::SECCOMP_RET_ALLOW, "{call} {family}");
        }
    }
}

#[test]
fn ways_around_are_closed() {
    assert_eq!(of(libc::SYS_clone3, 0), ABSENT);
    assert_eq!(of(i64::from(X32_BIT) | libc::SYS_mbind, 0), ABSENT);
    assert_eq!(of(i64::from(u32::MAX), 0), ABSENT);
    let other = verdict(&program(), I386, 4, [0; 6]);
    assert_eq!(other, libc::SECCOMP_RET_KILL_PROCESS);
}
