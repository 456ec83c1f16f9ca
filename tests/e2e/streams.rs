//! Input and output of programs, terminals, and several processes in an instance.

use std::fs;
use std::io::{self, Read, Write};
use std::process::Stdio as HostStdio;
use std::time::{Duration, Instant};

use bellows_vmm::{
    Instance, InstanceError, InstanceSpec, Process, ProcessSpec, Stdio, Stream, StreamName, TerminalSize,
};

use crate::command::{bellows_run, image};
use crate::fixture::{Guest, PATIENCE, Running, image_id, partition};

const MIB: u64 = 1 << 20;
const INPUT: Stdio = Stdio::Pipes { stdin: true };
const TERMINAL: Stdio = Stdio::Terminal(TerminalSize { columns: 91, rows: 17 });

/// Bytes that look random and are the same each time.
struct Noise {
    state: u64,
    left: u64,
}

impl Noise {
    fn new(bytes: u64) -> Self {
        Self { state: 1, left: bytes }
    }
}

impl Read for Noise {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        for byte in &mut bytes[..count] {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (self.state >> 56) as u8;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn shell(line: &str, stdio: Stdio) -> ProcessSpec {
    ProcessSpec { stdio, ..ProcessSpec::new(["/bin/sh", "-c", line]) }
}

fn start(guest: &Running, id: &str, process: ProcessSpec) -> Instance {
    let spec = InstanceSpec { process, ..InstanceSpec::new(id.parse().unwrap(), image_id(), ["true"]) };
    let spec = if id == "placed" { spec.in_partition(partition(1)) } else { spec };
    guest.vm.start_instance(&spec).unwrap_or_else(|error| panic!("{error:?}\n{}", guest.console()))
}

fn exec(instance: &Instance, id: &str, process: &ProcessSpec) -> Process {
    instance.exec(id.parse().unwrap(), process).unwrap()
}

fn text(process: &Process, stream: StreamName) -> String {
    let mut text = String::new();
    process.connect(stream).unwrap().read_to_string(&mut text).unwrap();
    text
}

fn text_until(stream: &Stream, end: &str) -> String {
    let (mut stream, mut text) = (stream, String::new());
    while !text.ends_with(end) {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{end:?} does not come: {text:?}");
        text.push(char::from(byte[0]));
    }
    text
}

/// Resident private bytes of this process, the monitor.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn what_goes_in_comes_out_and_who_is_slow_is_waited_for() {
    let guest = Guest::ours().boot();
    let bytes = 64 * MIB;
    let cat = start(&guest, "cat", shell("cat; echo END >&2", INPUT));
    let fed = cat.init().connect(StreamName::Stdin).unwrap().feed(Noise::new(bytes)).unwrap();
    let mut stdout = cat.init().connect(StreamName::Stdout).unwrap();
    // Nothing is read yet: the bytes in transit are bounded, and neither side holds more.
    let before = resident();
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert!(resident() < before + 16 * MIB, "{before} {}", resident());
        std::thread::yield_now();
    }
    assert!(!fed.is_finished());
    let mut expected = Noise::new(bytes);
    let (mut came, mut wanted) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let start_of_reading = Instant::now();
    let mut total = 0;
    loop {
        let count = stdout.read(&mut came).unwrap();
        if count == 0 {
            break;
        }
        expected.read_exact(&mut wanted[..count]).unwrap();
        assert!(came[..count] == wanted[..count], "after {total} bytes");
        total += count as u64;
    }
    println!("64 MiB through a program in {:?}", start_of_reading.elapsed());
    assert_eq!((total, fed.join().unwrap()), (bytes, bytes));
    assert_eq!(text(cat.init(), StreamName::Stderr), "END\n");
    assert_eq!(cat.wait().unwrap().code, 0);
    cat.remove(PATIENCE).unwrap();

    // Output alone, as fast as it goes.
    let source = start(&guest, "source", shell("head -c 268435456 /dev/zero", Stdio::Pipes { stdin: false }));
    let begin = Instant::now();
    assert_eq!(source.forward(StreamName::Stdout, io::sink()).unwrap().join().unwrap(), 256 * MIB);
    println!("256 MiB from a program in {:?}", begin.elapsed());
    source.remove(PATIENCE).unwrap();

    // A stream that breaks off differs from one that ends.
    let endless = start(&guest, "endless", shell("exec yes", Stdio::Pipes { stdin: false }));
    let forwarded = endless.forward(StreamName::Stdout, io::sink()).unwrap();
    guest.vm.stop();
    let error = forwarded.join().unwrap_err();
    assert!(matches!(&error, InstanceError::Stream { stream: StreamName::Stdout, .. }), "{error}");
    assert!(error.to_string().contains("endless"), "{error}");
}

#[test]
fn terminals_and_more_processes() {
    let guest = Guest::ours().partition(512).boot();
    guest.plug(1, 512);
    let line = "test -t 0 && test -t 1 && test -t 2 && tty && stty size; trap 'stty size; exit 3' WINCH; echo ready; sleep 1000 & wait";
    let resized = start(&guest, "resized", shell(line, TERMINAL));
    let terminal = resized.init().connect(StreamName::Terminal).unwrap();
    assert_eq!(text_until(&terminal, "ready\r\n"), "/dev/pts/0\r\n17 91\r\nready\r\n");
    resized.init().resize(TerminalSize { columns: 100, rows: 50 }).unwrap();
    assert_eq!(text_until(&terminal, "50 100\r\n"), "50 100\r\n");
    assert_eq!(resized.wait().unwrap().code, 3);
    resized.remove(PATIENCE).unwrap();

    let instance = start(&guest, "placed", shell("sleep 1000", Stdio::Pipes { stdin: false }));
    let plain = exec(&instance, "plain", &shell("echo out; echo err >&2; exit 9", Stdio::Pipes { stdin: false }));
    assert_eq!(plain.wait().unwrap().code, 9);
    let (out, err) = (text(&plain, StreamName::Stdout), text(&plain, StreamName::Stderr));
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    let taken = instance.exec("plain".parse().unwrap(), &shell(":", INPUT)).err().unwrap();
    assert!(matches!(taken, InstanceError::Agent { .. }), "{taken}");
    plain.remove(PATIENCE).unwrap();

    let input = exec(&instance, "plain", &shell("read line; echo got $line", INPUT));
    input.connect(StreamName::Stdin).unwrap().write_all(b"it\n").unwrap();
    assert_eq!(text(&input, StreamName::Stdout), "got it\n");

    let typed = exec(&instance, "terminal", &shell("tty; stty size; read line; exit 4", TERMINAL));
    let terminal = typed.connect(StreamName::Terminal).unwrap();
    text_until(&terminal, "17 91\r\n");
    (&terminal).write_all(b"x\n").unwrap();
    assert_eq!(typed.wait().unwrap().code, 4);

    // Its memory is the partition's, and it has no access to vsock.
    let program = "import socket, time\n\
                   for make in (lambda: socket.socket(socket.AF_VSOCK), lambda: socket.socketpair(socket.AF_VSOCK)):\n\
                   \x20   try: make(); print('open')\n\
                   \x20   except OSError as error: print(error.errno)\n\
                   data = bytearray(100 << 20)\n\
                   data[::4096] = b'x' * (len(data) // 4096)\n\
                   print('full', flush=True); time.sleep(1000)";
    let large = exec(&instance, "large", &ProcessSpec::new(["/usr/bin/python3", "-c", program]));
    let stdout = large.connect(StreamName::Stdout).unwrap();
    assert_eq!(text_until(&stdout, "full\n"), "1\n1\nfull\n", "EPERM");
    let usage = guest.vm.inspect(partition(1)).unwrap();
    assert!(usage.anonymous_bytes >= 100 * MIB, "{usage:?}");
    large.signal(15).unwrap();
    assert_eq!(large.wait().unwrap().code, 128 + 15);

    // A child that it leaves behind does not hold its output open, and ends with the instance.
    let parent = exec(&instance, "parent", &shell("sleep 1000 & echo done", Stdio::Pipes { stdin: false }));
    assert_eq!(text(&parent, StreamName::Stdout), "done\n");
    instance.signal(9).unwrap();
    assert_eq!(instance.wait().unwrap().code, 128 + 9);
    let late = instance.exec("late".parse().unwrap(), &shell(":", INPUT)).err().unwrap();
    assert!(matches!(late, InstanceError::Agent { .. }), "{late}");
    instance.remove(PATIENCE).unwrap();
    guest.unplug(1);
    guest.shutdown();
}

#[test]
fn the_command_passes_input_on() {
    let run = |options: &[&str], line: &str| {
        let mut command = bellows_run();
        command.arg("--memory=256M").args(options).arg(image()).args(["/bin/sh", "-c", line]);
        let mut child = command.stdin(HostStdio::piped()).stdout(HostStdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"hi\n").unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&["-i"], "cat; exit 5"), (Some(5), "hi\n".into()));
    assert_eq!(run(&["-t"], "cat </dev/null; test -t 1 && echo terminal"), (Some(0), "terminal\r\n".into()));
    assert_eq!(run(&[], "cat; echo none"), (Some(0), "none\n".into()));
}
