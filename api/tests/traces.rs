//! Spans of a monitor, as a collector gets them: on a host without KVM, with all filters of system calls.

#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used)]

mod client;

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::Command;

use client::Api;
use client::collector::Collector;
use serde_json::json;

fn start(endpoint: &str) -> Api {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bellows"));
    command.args(["api", "--id", "vm-7", "--otlp-endpoint", endpoint, "--api-sock"]).arg(&socket);
    command.env("OTEL_BSP_SCHEDULE_DELAY", "100");
    Api::start_by(command, directory, socket)
}

#[test]
fn requests_and_what_they_do_are_spans_in_the_clients_trace() {
    let mut collector = Collector::start(1);
    let api = start(&collector.endpoint());
    // The example of W3C Trace Context, section 3.2.
    let request = "GET /machine-config HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
        traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";
    let mut client = api.connect();
    client.write_all(request.as_bytes()).unwrap();
    client.read_to_end(&mut Vec::new()).unwrap();
    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    let parent = 0xb7ad_6b71_6920_3331_u64.to_be_bytes();
    collector.await_all(&[b"GET /machine-config", b"vm-7", b"bellows", &trace, &parent]);

    // A boot that fails is there as well, and a collector that refuses costs nothing but spans.
    let kernel = api.file("kernel", &[0; 512]);
    api.put("/boot-source", json!({ "kernel_image_path": kernel }));
    api.refused("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    collector.await_all(&[b"PUT /actions", b"boot"]);
    while !fs::read_to_string(api.path("stderr")).unwrap().contains("spans are lost") {
        api.get("/");
    }
    assert_eq!(api.get("/")["state"], "Not started");
}

#[test]
fn a_collector_that_is_no_url_or_has_no_address_is_refused() {
    let socket = tempfile::tempdir().unwrap();
    let socket = socket.path().join("api.sock");
    for (endpoint, part) in
        [("https://localhost:1", "http://HOST:PORT"), ("http://nowhere.invalid:1", "nowhere.invalid")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bellows"));
        let ended = command.args(["api", "--otlp-endpoint", endpoint, "--api-sock"]).arg(&socket).output().unwrap();
        let error = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && error.contains(part), "{error}");
        assert!(!socket.exists());
    }
}
