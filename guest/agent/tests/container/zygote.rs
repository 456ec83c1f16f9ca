//! A zygote's container, and a fork's as far as this machine's kernel goes.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use bellows_agent::container::Running;
use bellows_agent::container::plan::ProcessSpec;
use bellows_agent::error::AgentError;
use bellows_agent::placement::Placement;
use bellows_protocol::stream::read_line;

use super::{Fixture, LIMIT, command, finish, shell, user};

/// Beside the first process, with its rights, and with nothing of it.
pub fn has_its_socket_and_a_number_of_its_own(fixture: &Fixture) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let script = "echo $$; ls /proc/self/fd | grep -c .; cat /proc/1/comm; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp|SigIgn|SigBlk):' \
                  /proc/self/status; echo ready >&3; read answer <&3; echo $answer; exit 9";
    let spec = ProcessSpec { user: user(1000), ..shell(script) };
    let running = Running::Zygote(theirs.as_fd());
    let (process, _network) = fixture.launch_as("zygote", &spec, Placement::Base, running).unwrap();
    drop(theirs);
    assert_eq!(read_line(&ours, 64, LIMIT).unwrap(), b"ready\n");
    (&ours).write_all(b"fork\n").unwrap();
    let (code, stdout, stderr) = finish(&process);
    assert_eq!((code, stderr.as_str()), (9, ""), "{stdout}");
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines[0].parse::<u32>().unwrap() > 1024, "{stdout}");
    // 0, 1, 2, the socket, and that of `ls`.
    assert_eq!(lines[1], "5", "{stdout}");
    let value = |key: &str| lines.iter().find_map(|line| line.strip_prefix(key)).unwrap().trim();
    assert_eq!((value("CapEff:"), value("CapBnd:")), ("0000000000000000", "00000000a00425fb"));
    assert_eq!((value("NoNewPrivs:"), value("Seccomp:")), ("1", "2"));
    assert_eq!(u64::from_str_radix(value("SigIgn:"), 16).unwrap() & 1 << 12, 0, "SIGPIPE is not ignored");
    assert_eq!(value("SigBlk:"), "0000000000000000");
    assert_eq!(lines.last(), Some(&"fork"));
    // Its socket has ended with it.
    assert_eq!(read_line(&ours, 64, LIMIT).unwrap(), b"");
}

/// Or does not begin.
pub fn ends_as_its_process_does(fixture: &Fixture) {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let (process, _network) = fixture
        .launch_as("killed-zygote", &shell("kill -KILL $$"), Placement::Base, Running::Zygote(theirs.as_fd()))
        .unwrap();
    assert_eq!(finish(&process).0, 128 + 9);
    let error = fixture
        .launch_as("lost-zygote", &command(&["lost"]), Placement::Base, Running::Zygote(theirs.as_fd()))
        .unwrap_err();
    assert!(matches!(&error, AgentError::CommandNotFound(text) if text.contains("interpreter")), "{error:?}");
}

/// This machine's cannot.
pub fn cannot_be_forked_by_this_kernel(fixture: &Fixture) {
    let own = bellows_agent::sys::pidfd(nix::unistd::getpid()).unwrap();
    let running = Running::Fork(own.as_fd());
    let error = fixture.launch_as("fork", &command(&["no-such-command"]), Placement::Base, running).unwrap_err();
    let AgentError::NotAdopted(error) = error else { panic!("{error:?}") };
    assert!(matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)), "{error:?}");
}
