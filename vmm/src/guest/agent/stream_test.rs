use std::sync::Mutex;
use std::thread;

use bellows_protocol::agent::{self, StartProcessRequest, StartResponse};
use bellows_protocol::agent_ttrpc::Agent;
use ttrpc::TtrpcContext;

use super::super::fixture::Fixture;
use super::*;
use crate::end::VmEnd;
use crate::resources::error::InstanceError;
use crate::resources::instances::Instance;
use crate::resources::processes::{ProcessSpec, Stdio};

#[derive(Default)]
struct FakeAgent(Mutex<Vec<StartProcessRequest>>);

impl Agent for FakeAgent {
    fn start_process(&self, _: &TtrpcContext, request: StartProcessRequest) -> ttrpc::Result<StartResponse> {
        self.0.lock().unwrap().push(request);
        Ok(StartResponse { pid: 7, ..Default::default() })
    }
}

fn with_stream(line: &'static str, serve: impl FnOnce(UnixStream) + Send + 'static) -> (Fixture, Instance) {
    let fixture = Fixture::with_stream(line, serve);
    let agent = Arc::new(fixture.connect().unwrap());
    let instance = Instance::new("f-1".parse().unwrap(), 1, agent);
    (fixture, instance)
}

const STDIN: &str = "f-1 init stdin";
const STDOUT: &str = "f-1 init stdout";
const TERMINAL: &str = "f-1 init terminal";

fn connect(instance: &Instance, stream: StreamName) -> Stream {
    instance.init().connect(stream).unwrap()
}

/// An error with its causes.
fn text(error: &InstanceError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Waits until the monitor has closed its end.
fn await_close(mut stream: UnixStream) {
    let _ = stream.read(&mut [0]);
}

#[test]
fn an_end_differs_from_a_stream_that_broke_off() {
    let serve = |end: fn(UnixStream)| {
        move |mut stream: UnixStream| {
            stream.write_all(b"ok\nhello").unwrap();
            end(stream);
        }
    };
    let read = |end| {
        let (_fixture, instance) = with_stream(STDOUT, serve(end));
        let mut text = Vec::new();
        let result = connect(&instance, StreamName::Stdout).read_to_end(&mut text);
        assert_eq!(text, b"hello");
        result
    };
    let ended = read(|stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        await_close(stream);
    });
    assert_eq!(ended.unwrap(), 5);
    let error = read(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(error.to_string(), "stdout of process init of instance f-1 broke off");
}

#[test]
fn a_stream_ends_with_the_vm() {
    let (fixture, instance) = with_stream(STDOUT, |mut stream| {
        stream.write_all(b"ok\n").unwrap();
        await_close(stream);
    });
    let (mut waits, forwarded) = {
        let stream = connect(&instance, StreamName::Stdout);
        (stream.clone(), stream.forward(io::sink()).unwrap())
    };
    thread::scope(|scope| {
        let reader = scope.spawn(move || waits.read(&mut [0]));
        fixture.end.report(VmEnd::Reset);
        assert_eq!(reader.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    });
    let error = forwarded.join().unwrap_err();
    assert!(matches!(error, InstanceError::Stream { stream: StreamName::Stdout, .. }), "{error}");
    assert!(text(&error).contains("f-1"), "{error}");
}

#[test]
fn an_error_names_what_the_agent_refused_or_got_wrong() {
    let error = |answer: &'static [u8]| {
        let (_fixture, instance) = with_stream(STDOUT, move |mut stream| stream.write_all(answer).unwrap());
        text(&instance.init().connect(StreamName::Stdout).unwrap_err())
    };
    let refused = error(b"refused stream stdout is in use by \x1b[31m\n");
    assert!(refused.contains("f-1") && refused.contains("is in use by \\u{1b}["), "{refused}");
    for answer in [&b""[..], b"ok", b"OK\n", b"\xff\xff\n", &[b'x'; 4096]] {
        let error = error(answer);
        assert!(error.contains("stdout of process init of instance f-1") && error.len() < 1000, "{error}");
    }
}

#[test]
fn input_has_an_end_and_may_stay_unread() {
    let (_fixture, instance) = with_stream(STDIN, |mut stream| {
        stream.write_all(b"ok\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "all of it");
    });
    let fed = connect(&instance, StreamName::Stdin).feed(&b"all of it"[..]).unwrap();
    assert_eq!(fed.join().unwrap(), 9);

    let (_fixture, instance) = with_stream(STDIN, |mut stream| stream.write_all(b"ok\n").unwrap());
    connect(&instance, StreamName::Stdin).feed(io::repeat(7)).unwrap().join().expect("a program may end early");
}

#[test]
fn a_failing_sink_of_output_is_an_error() {
    let (_fixture, instance) = with_stream(STDOUT, |mut stream| {
        stream.write_all(b"ok\nhello").unwrap();
        await_close(stream);
    });
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let error = instance.forward(StreamName::Stdout, full).unwrap().join().unwrap_err();
    assert!(matches!(error, InstanceError::PassOn { .. }) && text(&error).contains("No space"), "{error}");
}

#[test]
fn a_terminal_goes_both_ways() {
    let (_fixture, instance) = with_stream(TERMINAL, |mut stream| {
        stream.write_all(b"ok\n? ").unwrap();
        let mut typed = [0; 4];
        stream.read_exact(&mut typed).unwrap();
        stream.write_all(&typed).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        await_close(stream);
    });
    let mut terminal = connect(&instance, StreamName::Terminal);
    terminal.write_all(b"yes\n").unwrap();
    let mut text = String::new();
    terminal.read_to_string(&mut text).unwrap();
    assert_eq!(text, "? yes\n");
}

#[test]
fn a_start_asks_for_the_specified_process() {
    let fake = Arc::new(FakeAgent::default());
    let fixture = Fixture::with_agent(fake.clone());
    let instance = Instance::new("f-1".parse().unwrap(), 1, Arc::new(fixture.connect().unwrap()));
    let size = bellows_protocol::values::TerminalSize { columns: 80, rows: 24 };
    let mut spec = ProcessSpec::new(["sh"]);
    spec.stdio = Stdio::Terminal(size);
    let process = instance.exec("shell".parse().unwrap(), &spec).unwrap();
    assert_eq!((process.id().as_str(), process.pid()), ("shell", 7));
    spec.stdio = Stdio::Pipes { stdin: true };
    instance.exec("cat".parse().unwrap(), &spec).unwrap();
    let error = instance.exec("none".parse().unwrap(), &ProcessSpec::new([""; 0])).err().unwrap();
    assert!(matches!(error, InstanceError::Spec { .. }), "{error}");

    let asked = fake.0.lock().unwrap();
    let [terminal, pipes] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((terminal.instance_id.as_str(), terminal.process_id.as_str()), ("f-1", "shell"));
    let size = agent::TerminalSize { columns: 80, rows: 24, ..Default::default() };
    assert_eq!(terminal.process.terminal, Some(size).into());
    assert!(pipes.process.terminal.is_none() && pipes.process.stdin);
}
