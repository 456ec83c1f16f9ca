//! `bellows api` over its socket, on a host without KVM: configuration, refusals, and clients that mean no good.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod client;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use client::{Answer, Api};
use serde_json::json;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bellows"))
}

fn start(options: &[&str]) -> Api {
    Api::start(program(), &[&["api"], options].concat())
}

#[test]
fn a_vm_is_described_and_can_be_read_back() {
    let api = start(&["--id", "vm-1"]);
    let instance = api.get("/");
    assert_eq!(
        (&instance["id"], &instance["state"], &instance["app_name"]),
        (&json!("vm-1"), &json!("Not started"), &json!("Bellows"))
    );
    assert_eq!(api.get("/version"), json!({ "firecracker_version": "1.16.1" }));
    assert_eq!(api.get("/machine-config")["mem_size_mib"], 128);
    let (kernel, disk) = (api.file("kernel", &[0; 512]), api.file("disk", &[0; 512]));
    api.put("/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 256, "cpu_template": "None", "smt": false }));
    api.patch("/machine-config", json!({ "mem_size_mib": 512 }));
    api.put("/boot-source", json!({ "kernel_image_path": kernel, "boot_args": "console=ttyS0 pci=off" }));
    api.put(
        "/drives/rootfs",
        json!({ "drive_id": "rootfs", "path_on_host": disk, "is_root_device": true, "is_read_only": true }),
    );
    api.put("/vsock", json!({ "guest_cid": 7, "uds_path": api.path("vsock") }));
    api.put("/entropy", json!({ "rate_limiter": null }));
    api.put("/balloon", json!({ "amount_mib": 8, "deflate_on_oom": false, "stats_polling_interval_s": 1 }));
    api.put("/serial", json!({ "serial_out_path": api.path("serial") }));
    api.put("/logger", json!({ "log_path": api.path("log"), "level": "Debug", "show_level": true }));
    api.put("/metrics", json!({ "metrics_path": api.path("metrics") }));
    assert_eq!(api.get("/balloon")["amount_mib"], 8);
    let config = api.get("/vm/config");
    assert_eq!(config["machine-config"]["mem_size_mib"], 512);
    assert_eq!((&config["drives"][0]["drive_id"], &config["vsock"]["guest_cid"]), (&json!("rootfs"), &json!(7)));
    assert_eq!(config["boot-source"]["boot_args"], "console=ttyS0 pci=off");
    let log = fs::read_to_string(api.path("log")).unwrap();
    assert!(log.contains(":INFO] ") && log.contains("/metrics"), "{log}");
    // There is no KVM, or this is no kernel: the boot fails, and the VM can still be changed.
    let fault = api.refused("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    assert!(!fault.is_empty());
    assert_eq!(api.get("/")["state"], "Not started");
    assert!(!api.path("vsock").exists(), "a boot that fails leaves nothing");
    api.patch("/machine-config", json!({ "vcpu_count": 1 }));
}

#[test]
fn a_wrong_request_is_refused_with_a_reason() {
    let api = start(&[]);
    for (method, path, body, part) in [
        ("PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 128, "cores": 1}"#, "unknown field `cores`"),
        ("PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 128, "smt": true}"#, "`smt` is true"),
        ("PUT", "/boot-source", r#"{"kernel_image_path": "/nowhere/vmlinux"}"#, "/nowhere/vmlinux"),
        ("PUT", "/drives/a", r#"{"drive_id": "b", "is_root_device": false}"#, "as in the path"),
        ("PUT", "/snapshot/create", "{}", "not supported yet"),
        ("PUT", "/network-interfaces/eth0", "{}", "missing field `iface_id`"),
        ("PUT", "/mmds/config", r#"{"network_interfaces": ["eth0"]}"#, "MMMDS config error: The list of network"),
        ("PATCH", "/mmds", "{}", "MMDS error: The MMDS data store is not initialized."),
        ("PUT", "/cpu-config", r#"{"vcpu_features": [{"index": 0, "bitmap": "0b1"}]}"#, "none: they are for aarch64"),
        ("PATCH", "/vm", r#"{"state": "Paused"}"#, "has not booted"),
        ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#, "nothing to boot"),
        ("PUT", "/actions", "", "has no body"),
        ("GET", "/balloon", "", "no balloon"),
        ("POST", "/", "", "is not a request"),
    ] {
        let fault = api.refused(method, path, body);
        assert!(fault.contains(part), "{method} {path}: {fault}");
    }
    let invalid = api.send_bytes("PUT", "/boot-source", b"{\"kernel_image_path\": \"\xff\xfe\"}");
    assert!(invalid.status == 400 && invalid.fault().contains("cannot understand the body"), "{invalid:?}");
}

#[test]
fn a_request_without_bounds_ends() {
    let api = start(&["--http-api-max-payload-size", "1000"]);
    let large = api.send("PUT", "/boot-source", &"x".repeat(1001));
    assert_eq!(large.status, 413, "{large:?}");
    assert!(large.fault().contains("at most 1000 bytes"), "{large:?}");
    let chunked = api.raw(
        format!(
            "PUT /vsock HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n{}\r\n0\r\n\r\n",
            "x".repeat(0x1000)
        )
        .as_bytes(),
    );
    assert!(chunked.starts_with("HTTP/1.1 413"), "{chunked}");
    let head = api.raw(format!("GET / HTTP/1.1\r\nHost: l\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).as_bytes());
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 431"), "{head}");
    let fields: String = (0..1000).map(|n| format!("X-{n}: y\r\n")).collect();
    let head = api.raw(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes());
    assert!(head.starts_with("HTTP/1.1 431"), "{head}");
    let head = api.raw(b"\x00\xff not HTTP\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    assert_eq!(api.get("/")["state"], "Not started");
}

/// A client that sends a byte now and then is sent away, and so is one that never sends what it has announced.
#[test]
fn a_slow_client_is_sent_away() {
    let api = start(&[]);
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut head = api.connect();
            for byte in "GET / HTTP/1.1\r\nX: ".bytes().cycle() {
                if head.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(200));
                assert!(begun.elapsed() < Duration::from_secs(60), "the head may go on for ever");
            }
        });
        scope.spawn(|| {
            let mut body = api.connect();
            body.write_all(b"PUT /vsock HTTP/1.1\r\nHost: l\r\nContent-Length: 10\r\n\r\n{").unwrap();
            let mut answer = String::new();
            body.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        });
        scope.spawn(|| {
            let mut idle = api.connect();
            assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "an idle connection ends");
        });
        assert_eq!(api.get("/")["state"], "Not started", "others are served meanwhile");
    });
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_client_that_vanishes_leaves_nothing_half_done() {
    let api = start(&[]);
    let body = json!({ "guest_cid": 9, "uds_path": api.path("v") }).to_string();
    let request = format!("PUT /vsock HTTP/1.1\r\nHost: l\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for sent in (0..request.len()).step_by(7) {
        let mut client = api.connect();
        client.write_all(&request.as_bytes()[..sent]).unwrap();
        drop(client);
    }
    assert_eq!(api.get("/vm/config")["vsock"], json!(null), "no part of a request counts");
    let mut client = api.connect();
    client.write_all(request.as_bytes()).unwrap();
    drop(client);
    let limit = Instant::now() + Duration::from_secs(5);
    // All of it was sent: it is carried out, or it never arrived; then the next one is as good as the first.
    while api.get("/vm/config")["vsock"].is_null() && Instant::now() < limit {
        thread::sleep(Duration::from_millis(10));
    }
    api.put("/vsock", json!({ "guest_cid": 10, "uds_path": api.path("v") }));
    assert_eq!(api.get("/vm/config")["vsock"]["guest_cid"], 10);
}

#[test]
fn a_hundred_clients_are_served_at_once_and_each_change_counts() {
    let api = start(&[]);
    let idle: Vec<UnixStream> = (0..30).map(|_| api.connect()).collect();
    thread::scope(|scope| {
        for number in 0..100_u32 {
            let api = &api;
            scope.spawn(move || {
                let cid = json!({ "guest_cid": 100 + number, "uds_path": api.path("v") });
                api.put("/vsock", cid);
                assert!(api.get("/vm/config")["vsock"]["guest_cid"].as_u64().unwrap() >= 100);
            });
        }
    });
    drop(idle);
    assert_eq!(api.get("/")["state"], "Not started");
}

#[test]
fn connections_are_kept_for_further_requests() {
    let api = start(&[]);
    let mut client = api.connect();
    for _ in 0..3 {
        client.write_all(b"GET /version HTTP/1.1\r\nHost: l\r\n\r\n").unwrap();
        let answer = Answer::read(&mut client);
        assert_eq!((answer.status, &answer.body["firecracker_version"]), (200, &json!("1.16.1")));
    }
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_process() {
    let mut api = start(&[]);
    assert_eq!(fs::metadata(api.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    let second = Command::new(program()).arg("api").arg("--api-sock").arg(api.socket()).output().unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.code() == Some(1) && text.contains("cannot listen on"), "{text}");
    assert_eq!(api.get("/")["state"], "Not started", "the first still answers");
    assert_eq!(api.end_by_signal(15), Some(143));
    assert!(!api.socket().exists());
}

#[test]
fn a_configuration_file_is_checked_as_requests_are() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.json");
    let socket = directory.path().join("api.sock");
    let run = |program: &Path, options: &[&str], config: &str| {
        fs::write(&file, config).unwrap();
        let mut command = Command::new(program);
        command.args(options).arg("--api-sock").arg(&socket).arg("--config-file").arg(&file);
        let output = command.output().unwrap();
        assert!(!socket.exists(), "nothing stays");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let bellows = program();
    let (code, text) = run(bellows, &["api"], r#"{"machine-config": {"vcpu_count": 99, "mem_size_mib": 128}}"#);
    assert!(code == Some(2) && text.contains("`vcpu_count` is 99"), "{code:?} {text}");
    let (code, text) = run(bellows, &["api", "--no-api"], r#"{"boot_source": {}}"#);
    assert!(code == Some(2) && text.contains("unknown key `boot_source`"), "{code:?} {text}");
    let firecracker = directory.path().join("firecracker");
    symlink(bellows, &firecracker).unwrap();
    let (code, text) = run(&firecracker, &["--id", "x"], r#"{"boot-source": {"kernel_image_path": "/nowhere/k"}}"#);
    assert!(code == Some(1) && text.contains("/nowhere/k"), "{code:?} {text}");
    let (code, text) = run(&firecracker, &["--nothing"], "{}");
    assert!(code == Some(153) && text.contains("--nothing"), "{code:?} {text}");
    let (code, text) = run(&firecracker, &["--seccomp-filter", "f"], "{}");
    assert!(code == Some(1) && text.contains("--seccomp-filter is not supported yet"), "{code:?} {text}");
    let metadata = directory.path().join("m.json");
    fs::write(&metadata, r#"{"a": "b"}"#).unwrap();
    let metadata = metadata.to_str().unwrap();
    let options = ["--metadata", metadata, "--mmds-size-limit", "8"];
    let (code, text) = run(&firecracker, &options, "{}");
    assert!(code == Some(1) && text.contains("MMDS limit exceeded error") && text.contains("at most 8"), "{text}");
    fs::write(metadata, "{").unwrap();
    let (code, text) = run(&firecracker, &options[..2], "{}");
    assert!(code == Some(1) && text.contains("m.json` is refused: EOF"), "{code:?} {text}");
    let (code, text) = run(&firecracker, &["--metadata", "/nowhere/m.json"], "{}");
    assert!(code == Some(1) && text.contains("cannot read `/nowhere/m.json`"), "{code:?} {text}");
}

#[test]
fn metadata_is_set_and_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("m.json");
    fs::write(&file, r#"{"latest": {"user-data": "x"}}"#).unwrap();
    let api = start(&["--metadata", file.to_str().unwrap(), "--mmds-size-limit", "200"]);
    assert_eq!(api.get("/mmds"), json!({ "latest": { "user-data": "x" } }));
    api.patch("/mmds", json!({ "latest": { "meta-data": { "ami-id": "a" }, "user-data": null } }));
    assert_eq!(api.get("/mmds"), json!({ "latest": { "meta-data": { "ami-id": "a" } } }));
    let large = api.send("PUT", "/mmds", &json!({ "a": "b".repeat(200) }).to_string());
    assert!(large.status == 413 && large.fault().contains("at most 200"), "{large:?}");
    api.put("/mmds", json!(null));
    assert_eq!(api.get("/mmds"), json!({}));
    api.put("/network-interfaces/eth0", json!({ "iface_id": "eth0", "host_dev_name": "tap0" }));
    api.put("/mmds/config", json!({ "network_interfaces": ["eth0"], "version": "V2", "imds_compat": true }));
    let expected = json!({
        "version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.169.254", "imds_compat": true,
    });
    assert_eq!(api.get("/vm/config")["mmds-config"], expected);
}
