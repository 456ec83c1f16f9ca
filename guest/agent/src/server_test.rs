use std::os::fd::AsRawFd;

use super::*;

fn process() -> Process {
    Process { arguments: vec!["sh".into()], ..Default::default() }
}

fn request() -> StartInstanceRequest {
    StartInstanceRequest {
        instance_id: "f-1".into(),
        image_id: "python".into(),
        process: Some(process()).into(),
        node: 2,
        ..Default::default()
    }
}

fn with(process: Process) -> StartInstanceRequest {
    StartInstanceRequest { process: Some(process).into(), ..request() }
}

#[test]
fn only_the_host_is_admitted() {
    let (_here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(HostOnly.on_accept(there.as_raw_fd()).is_err());
}

#[test]
fn a_terminal_overrides_other_streams() {
    let stdio = |process| process_spec(process).unwrap().stdio;
    assert_eq!(stdio(process()), StdioSpec::Pipes { stdin: false });
    assert_eq!(stdio(Process { stdin: true, ..process() }), StdioSpec::Pipes { stdin: true });
    let size = |columns| bellows_protocol::agent::TerminalSize { columns, rows: 24, ..Default::default() };
    let terminal = |columns| Process { terminal: Some(size(columns)).into(), stdin: true, ..process() };
    assert_eq!(stdio(terminal(80)), StdioSpec::Terminal(TerminalSize { columns: 80, rows: 24 }));
    let error = process_spec(terminal(70_000)).unwrap_err();
    assert!(error.code() == ttrpc::Code::INVALID_ARGUMENT && error.to_string().contains("70000"), "{error}");
}

#[test]
fn zero_means_no_limit() {
    let parsed = instance_request(request()).unwrap();
    assert_eq!((parsed.memory_max, parsed.base_limit, parsed.pids_max), (None, None, None));
    assert_eq!(parsed.process.working_directory, "/");
    assert_eq!(parsed.network, InstanceNetwork::Unconnected);
    let limited = StartInstanceRequest { memory_max_bytes: 5, base_limit_bytes: 7, pids_max: 6, ..request() };
    let parsed = instance_request(limited).unwrap();
    assert_eq!((parsed.memory_max, parsed.base_limit, parsed.pids_max), (Some(5), Some(7), Some(6)));
}

#[test]
fn a_zygote_has_a_control_socket_and_perhaps_a_launcher() {
    let zygote = |python, modules: &[&str]| StartInstanceRequest {
        zygote: Some(Zygote {
            python,
            modules: modules.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
        .into(),
        ..request()
    };
    let parsed = instance_request(zygote(false, &[])).unwrap();
    assert_eq!(parsed.role, Role::Zygote);
    assert_eq!(
        (parsed.process.arguments, parsed.process.environment),
        (vec!["sh".into()], vec!["BELLOWS_ZYGOTE_FD=3".into()])
    );
    let parsed = instance_request(zygote(true, &["json", "ssl"])).unwrap();
    assert_eq!(parsed.process.arguments[..2], ["sh", "-c"]);
    assert_eq!(parsed.process.arguments[3..], ["json", "ssl"]);
    let fork = instance_request(StartInstanceRequest { fork_of: "z".into(), ..request() }).unwrap();
    assert_eq!(fork.role, Role::ForkOf("z".parse().unwrap()));
    assert!(fork.process.environment.is_empty());
    assert_eq!(instance_request(request()).unwrap().role, Role::Plain);
    for bad in [
        zygote(false, &["json"]),
        StartInstanceRequest { fork_of: "z".into(), ..zygote(true, &[]) },
        StartInstanceRequest { fork_of: "../z".into(), ..request() },
    ] {
        assert_eq!(instance_request(bad).unwrap_err().code(), ttrpc::Code::INVALID_ARGUMENT);
    }
}

#[test]
fn requests_of_the_host_are_checked() {
    let bad = [
        StartInstanceRequest { instance_id: "../x".into(), ..request() },
        StartInstanceRequest { image_id: String::new(), ..request() },
        StartInstanceRequest { process: None.into(), ..request() },
        with(Process::new()),
        with(Process { environment: vec!["x".into()], ..process() }),
        with(Process { working_directory: "tmp".into(), ..process() }),
        with(Process { user: "4294967295".into(), ..process() }),
        StartInstanceRequest { node: u32::MAX, ..request() },
    ];
    for request in bad {
        let error = instance_request(request.clone()).unwrap_err();
        assert_eq!(error.code(), ttrpc::Code::INVALID_ARGUMENT, "{request:?}");
    }
}

#[test]
fn an_image_has_layers_on_disks() {
    let layer = |serial: &str, address: &str| Layer {
        serial: serial.into(),
        pci_address: address.into(),
        ..Default::default()
    };
    let good = layer("0123abcd", "0000:01:04.0");
    assert_eq!(layers(&vec![good.clone(); MAX_LAYERS]).unwrap().len(), MAX_LAYERS);
    for bad in [
        vec![],
        vec![good.clone(); MAX_LAYERS + 1],
        vec![good.clone(), layer("../x", "0000:01:04.0")],
        vec![good, layer("x", "/dev/vda")],
    ] {
        assert!(layers(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn time_limits_are_bounded() {
    assert_eq!(limit(0), DEFAULT_LIMIT);
    assert_eq!(limit(5), Duration::from_millis(5));
    assert_eq!(limit(u32::MAX), MAX_LIMIT);
}
