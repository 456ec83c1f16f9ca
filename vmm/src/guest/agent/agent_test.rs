use std::io::Read;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use bellows_protocol::agent_ttrpc::Agent;
use fixture::Fixture;
use protobuf::EnumOrUnknown;
use ttrpc::TtrpcContext;
use ttrpc::proto::{MessageHeader, Request, Response, Status};

use super::*;
use crate::config::GuestNetwork;
use crate::end::VmEnd;
use crate::kind::ErrorKind;
use bellows_protocol::stream::{StreamName, StreamRequest};

#[derive(Default)]
struct FakeAgent {
    version: u32,
    signals: Mutex<Vec<u32>>,
}

impl Agent for FakeAgent {
    fn hello(&self, _: &TtrpcContext, request: agent::HelloRequest) -> ttrpc::Result<agent::HelloResponse> {
        Ok(agent::HelloResponse {
            protocol_version: self.version,
            agent_version: "1.2\u{1b}[31m".into(),
            kernel_release: "6.12".repeat(1000),
            base_bytes: u64::from(request.partitions) + request.partition_bytes,
            ..Default::default()
        })
    }

    /// The process has the number of seconds that the call may take.
    fn start_instance(
        &self,
        context: &TtrpcContext,
        request: agent::StartInstanceRequest,
    ) -> ttrpc::Result<agent::StartResponse> {
        let refused = match request.process.user.as_str() {
            "" => None,
            "not-found" => Some(ttrpc::Code::NOT_FOUND),
            "not-executable" => Some(ttrpc::Code::PERMISSION_DENIED),
            _ => Some(ttrpc::Code::INVALID_ARGUMENT),
        };
        if let Some(code) = refused {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                code,
                format!("\"{}\"\nis wrong", request.process.user),
            )));
        }
        let pid = u32::try_from(Duration::from_nanos(context.timeout_nano.unsigned_abs()).as_secs()).unwrap();
        Ok(agent::StartResponse { pid, ..Default::default() })
    }

    fn signal_process(&self, _: &TtrpcContext, request: agent::SignalProcessRequest) -> ttrpc::Result<agent::Empty> {
        self.signals.lock().unwrap().push(request.signal);
        Ok(agent::Empty::new())
    }

    fn configure_network(
        &self,
        _: &TtrpcContext,
        request: agent::ConfigureNetworkRequest,
    ) -> ttrpc::Result<agent::Empty> {
        let names: Vec<_> = request.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        if names == ["eth0"] {
            return Ok(agent::Empty::new());
        }
        let message = format!("network interface {names:?}: cannot set it up\n");
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, message)))
    }

    fn attach_devices(&self, _: &TtrpcContext, request: agent::DevicesRequest) -> ttrpc::Result<agent::Empty> {
        let message = format!("no driver for {:?}\n", request.pci_addresses);
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, message)))
    }

    fn inspect_partition(
        &self,
        _: &TtrpcContext,
        request: agent::InspectPartitionRequest,
    ) -> ttrpc::Result<agent::PartitionMemory> {
        Ok(agent::PartitionMemory { node: request.node + 1, ..Default::default() })
    }

    fn wait_process(&self, _: &TtrpcContext, request: agent::ProcessRequest) -> ttrpc::Result<agent::ExitStatus> {
        let exit_code = request.instance_id.parse().unwrap_or(0);
        Ok(agent::ExitStatus {
            exit_code,
            oom_killed: true,
            oom_limit: agent::OomLimit::BASE.into(),
            ..Default::default()
        })
    }
}

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

fn wait(client: &AgentClient, instance: &str) -> Result<ExitStatus, AgentError> {
    client.wait_process(&id(instance), &ProcessId::init())
}

fn text(result: Result<impl Sized, AgentError>) -> String {
    let error = result.err().expect("an error");
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn a_network_that_cannot_be_set_up_is_named() {
    let fixture = Fixture::with_agent(Arc::new(FakeAgent::default()));
    let client = fixture.connect().unwrap();
    let setup = |name: &str| GuestNetwork::default().setup(name, [2, 0, 0, 0, 0, 1]);
    client.configure_network(&[setup("eth0")], SHORT).unwrap();
    let error = text(client.configure_network(&[setup("eth0"), setup("eth1")], SHORT));
    assert!(error.contains("ConfigureNetwork") && error.contains("eth1") && error.contains("set it up\\n"), "{error}");
}

#[test]
fn calls_reach_the_agent_and_its_text_is_made_printable() {
    let fake = Arc::new(FakeAgent { version: PROTOCOL_VERSION, ..Default::default() });
    let fixture = Fixture::with_agent(fake.clone());
    let client = fixture.connect().unwrap();
    let info = client.hello(2, ByteSize::mib(1152), SHORT).unwrap();
    assert_eq!(info.agent_version, "1.2\\u{1b}[31m");
    assert!(info.kernel_release.starts_with("6.126.12") && info.kernel_release.len() < 400);
    assert_eq!(info.instances_base.get(), 2 + (128 << 20) + (1 << 30), "the agent learns of partitions");
    client.signal_process(&id("a"), &ProcessId::init(), 15).unwrap();
    assert_eq!(*fake.signals.lock().unwrap(), [15]);
    assert_eq!(
        wait(&client, "137").unwrap(),
        ExitStatus { code: 137, oom_killed: true, oom_limit: Some(OomLimit::Base) }
    );
    thread::scope(|scope| {
        for code in 0..8_u8 {
            let client = &client;
            scope.spawn(move || assert_eq!(wait(client, &code.to_string()).unwrap().code, code));
        }
    });
}

#[test]
fn nothing_is_asked_of_a_paused_guest() {
    let fake = Arc::new(FakeAgent { version: PROTOCOL_VERSION, ..Default::default() });
    let fixture = Fixture::with_agent(fake.clone());
    let client = fixture.connect().unwrap();
    fixture.end.set_paused(true);
    let stream = StreamRequest { instance: id("a"), process: ProcessId::init(), stream: StreamName::Stdout };
    let refused = [
        client.signal_process(&id("a"), &ProcessId::init(), 15).unwrap_err(),
        client.start_instance(&agent::StartInstanceRequest::new()).unwrap_err(),
        client.remove_instance(&id("a"), SHORT).unwrap_err(),
        client.connect_stream(stream).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, AgentError::Paused { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    assert!(fake.signals.lock().unwrap().is_empty());
    fixture.end.set_paused(false);
    client.signal_process(&id("a"), &ProcessId::init(), 15).unwrap();
    assert_eq!(*fake.signals.lock().unwrap(), [15]);
}

#[test]
fn a_start_may_take_as_long_as_the_agent_gives_it() {
    let fixture = Fixture::with_agent(Arc::new(FakeAgent::default()));
    let limit = fixture.connect().unwrap().start_instance(&agent::StartInstanceRequest::new()).unwrap();
    assert!(limit > 60 + 30, "{limit} s");
}

#[test]
fn an_error_names_what_the_agent_refused_or_got_wrong() {
    const OTHER: u32 = PROTOCOL_VERSION + 1;
    let fixture = Fixture::with_agent(Arc::new(FakeAgent { version: OTHER, ..Default::default() }));
    let client = fixture.connect().unwrap();
    let error = text(client.hello(0, ByteSize::bytes(0), SHORT));
    assert!(error.contains(&format!("protocol version {OTHER}: expected {PROTOCOL_VERSION}")), "{error}");
    let error = text(client.attach(&[PciAddress::new(1, 2, 0).unwrap()], Duration::from_secs(9)));
    assert!(error.contains("AttachDevices") && error.contains("0000:01:02.0") && !error.contains('\n'), "{error}");
    let error = text(client.inspect_partition(4));
    assert!(error.contains("node 5") && error.contains("expected 4"), "{error}");
    let error = text(wait(&client, "300"));
    assert!(error.contains("exit code 300"), "{error}");
    let error = text(client.statistics(SHORT));
    assert!(error.contains("Statistics"), "{error}");
}

#[test]
fn an_error_names_the_device_that_does_not_connect() {
    let closes = Fixture::new(b"", drop);
    let error = text(closes.connect());
    assert!(error.contains(closes.path.to_str().unwrap()) && error.contains("no program listens"), "{error}");
    for answer in [&b"NO\n"[..], b"OK \n", b"OK 12x\n", b"OK 1111111111111111111111111111111111"] {
        let babbles = Fixture::new(answer, drop);
        assert!(text(babbles.connect()).contains("instead of `OK"), "{answer:?}");
    }
    let end = EndSignal::new().unwrap();
    assert!(
        text(AgentClient::connect(Path::new("/nowhere/vsock"), Deadline::after(SHORT), &end))
            .contains("/nowhere/vsock")
    );
}

#[test]
fn calls_end_at_their_limit_or_with_the_peer_or_the_vm() {
    // Stays silent until the stream ends.
    let silent = || Fixture::new(b"OK 1\n", |mut stream| drop(io::copy(&mut stream, &mut io::sink())));
    let fixture = silent();
    let client = fixture.connect().unwrap();
    let error = client.remove_instance(&id("a"), Duration::from_millis(5)).unwrap_err();
    assert!(matches!(error, AgentError::Timeout { call: "RemoveInstance", .. }), "{error}");
    // The agent's limit leaves time for its answer.
    let limit = Duration::from_millis(40);
    let start = Instant::now();
    for (call, result) in [
        ("AttachDevices", client.attach(&[], limit)),
        ("DetachDevices", client.detach(&[], limit)),
        ("AwaitPartition", client.await_partition(1, 0, 0, limit).map(drop)),
        ("AwaitDriver", client.await_driver(1, true, limit).map(drop)),
        ("Hello", client.hello(0, ByteSize::bytes(0), limit).map(drop)),
        ("Statistics", client.statistics(limit).map(drop)),
        ("CountReclaim", client.count_reclaim(limit).map(drop)),
        ("MeasureInstances", client.measure_instances(limit).map(drop)),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, AgentError::Timeout { call: named, .. } if named == call), "{call}: {error}");
    }
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| wait(&client, "a"));
        fixture.end.report(VmEnd::Reset);
        assert!(matches!(waiter.join().unwrap(), Err(AgentError::Lost { .. })));
    });
    assert!(matches!(client.hello(0, ByteSize::bytes(0), SHORT), Err(AgentError::Lost { .. })));
    drop(client);

    // Stops talking, but goes on reading.
    let half = Fixture::new(b"OK 1\n", |mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = io::copy(&mut stream, &mut io::sink());
    });
    let client = half.connect().unwrap();
    let first = text(wait(&client, "a"));
    assert!(first.contains("failed on the way"), "{first}");
    assert_eq!(text(wait(&client, "a")), first, "the reason stays known");
}

/// Answers the first request with the given header and body.
fn answering(answer: impl FnOnce(u32) -> Vec<u8> + Send + 'static) -> Fixture {
    Fixture::new(b"OK 1\n", move |mut stream| {
        let mut header = [0; 10];
        stream.read_exact(&mut header).unwrap();
        let header = MessageHeader::from(header);
        let mut body = vec![0; header.length as usize];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(Request::parse_from_bytes(&body).unwrap().service, SERVICE);
        let _ = stream.write_all(&answer(header.stream_id));
    })
}

#[test]
fn malformed_answers_end_the_call() {
    let frame = |stream, kind: u8, length: u32, body: &[u8]| {
        let mut frame = Vec::from(MessageHeader { length, stream_id: stream, type_: kind, flags: 0 });
        frame.extend(body);
        frame
    };
    type Answer = Box<dyn FnOnce(u32) -> Vec<u8> + Send>;
    let table: [(Answer, &str); 7] = [
        (Box::new(move |id| frame(id, 2, u32::MAX, b"")), "4294967295 bytes"),
        (Box::new(move |id| frame(id, 1, 0, b"")), "type 1"),
        (Box::new(move |id| frame(id, 2, 100, b"short")), "end of file"),
        (Box::new(move |id| frame(id, 2, 3, b"\xff\xff\xff")), "Hello"),
        (Box::new(move |id| frame(id.wrapping_add(2), 2, 0, b"")), "fill whole buffer"),
        (
            Box::new(move |id| {
                let body = Response { payload: vec![0xff; 9], ..Default::default() }.write_to_bytes().unwrap();
                frame(id, 2, body.len() as u32, &body)
            }),
            "Hello",
        ),
        (
            Box::new(move |id| {
                let status = Status { code: EnumOrUnknown::from_i32(99), ..Default::default() };
                let body = Response { status: Some(status).into(), ..Default::default() }.write_to_bytes().unwrap();
                frame(id, 2, body.len() as u32, &body)
            }),
            "refused",
        ),
    ];
    for (answer, named) in table {
        let fixture = answering(answer);
        let client = fixture.connect().unwrap();
        let error = text(client.hello(0, ByteSize::bytes(0), SHORT));
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn a_start_that_failed_says_whose_fault_it_is() {
    let fixture = Fixture::with_agent(Arc::new(FakeAgent::default()));
    let client = fixture.connect().unwrap();
    for (user, expected) in [
        ("not-found", StartFailure::CommandNotFound),
        ("not-executable", StartFailure::CommandNotExecutable),
        ("nobody", StartFailure::Other(ErrorKind::Invalid)),
    ] {
        let process = agent::Process { user: user.into(), ..Default::default() };
        let request = agent::StartInstanceRequest { process: Some(process).into(), ..Default::default() };
        let error = client.start_instance(&request).unwrap_err();
        assert!(matches!(&error, AgentError::NotStarted { reason, .. } if *reason == expected), "{error:?}");
        assert_eq!(error.to_string(), format!("\"{user}\"\\nis wrong"));
    }
}

#[test]
fn the_agent_takes_less_than_the_call() {
    assert_eq!(agents_share(Duration::from_secs(60)), 55_000);
    assert_eq!(agents_share(Duration::from_secs(2)), 1_500);
    assert_eq!(agents_share(Duration::ZERO), 1);
    assert_eq!(agents_share(Duration::MAX), u32::MAX);
}
