//! Instances under the control of the API: Bellows' own requests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bellows_block::oci::{OciLayout, Platform};
use bellows_block::{ImportOptions, Store};
use serde_json::{Value, json};

use crate::api::client::collector::Collector;
use crate::api::client::{Answer, Api};
use crate::fixture::artefact;

/// The name of the image in the test's store.
pub const IMAGE: &str = "functions/demo:1";

/// A VM that has booted, with partitions of these sizes in MiB.
fn booted(partitions: &[u32]) -> Api {
    booted_with(partitions, &[], |_| {})
}

/// The same with further options, and requests before it boots.
pub fn booted_with(partitions: &[u32], options: &[&str], configure: impl FnOnce(&Api)) -> Api {
    let store: PathBuf = artefact("BELLOWS_IMAGE").with_file_name("e2e-api-store");
    let layout = OciLayout::open(artefact("BELLOWS_IMAGE")).unwrap();
    let image = layout.image(&Platform::host(), None).unwrap();
    let name = IMAGE.parse().unwrap();
    Store::open(&store).unwrap().import(&image, Some(&name), &ImportOptions::default()).unwrap();

    let usual = ["api", "--level", "Debug", "--store", store.to_str().unwrap()];
    let api = Api::start(&artefact("BELLOWS_BINARY"), &[&usual, options].concat());
    api.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 256 }));
    let (kernel, initramfs) = (artefact("BELLOWS_KERNEL"), artefact("BELLOWS_INITRAMFS"));
    api.put("/boot-source", json!({ "kernel_image_path": kernel, "initrd_path": initramfs }));
    for (window_mib, number) in partitions.iter().zip(1..) {
        api.put(&format!("/partitions/{number}"), json!({ "window_mib": window_mib }));
    }
    configure(&api);
    let early = api.refused("PUT", "/instances/a", &shell("true", 0).to_string());
    assert!(early.contains("after `InstanceStart`"), "{early}");
    api.put("/actions", json!({ "action_type": "InstanceStart" }));
    api
}

fn shell(line: &str, memory_mib: u32) -> Value {
    json!({ "image": IMAGE, "argv": ["/bin/sh", "-c", line], "memory_mib": memory_mib })
}

/// The answer's body, which must have this status.
pub fn body(answer: Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    answer.body
}

pub fn send(api: &Api, method: &str, path: &str, request: &Value) -> Answer {
    api.send(method, path, &request.to_string())
}

/// An answer that goes on: its lines, from after the head on.
pub fn stream(api: &Api, path: &str) -> impl Iterator<Item = String> + use<> {
    let mut socket = api.connect();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n").unwrap();
    BufReader::new(socket).lines().map(Result::unwrap).skip_while(|line| !line.is_empty())
}

#[test]
fn an_instance_lives_under_requests_and_gives_its_partition_back() {
    let mut collector = Collector::start(usize::MAX);
    let api = booted_with(&[512, 256, 512], &["--otlp-endpoint", &collector.endpoint()], |_| {});
    let mut events = stream(&api, "/events");
    let mut heard = |what: &str| assert!(events.any(|line| line.contains(what)), "{what}");
    heard(": events");

    let mut wanted = shell("echo ready; cat /proc/self/cgroup >&2; exec sleep 1000", 200);
    wanted["scratch"] = json!({ "size_mib": 16 });
    let a = body(send(&api, "PUT", "/instances/a", &wanted), 200);
    assert_eq!((&a["state"], &a["partition"]), (&json!("Running"), &json!(2)), "the smallest that will do: {a}");
    assert_eq!(a["started"]["plug"]["bytes"], 200 << 20, "{a}");
    heard(r#""id":"a","state":"Running""#);
    assert_eq!(body(send(&api, "PUT", "/instances/a", &wanted), 200)["pid"], a["pid"], "the same request is one");
    let other = body(send(&api, "PUT", "/instances/a", &shell("true", 200)), 409);
    assert!(other["fault_message"].as_str().unwrap().contains("`a`"), "{other}");
    let images = api.get("/images");
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert_eq!(api.get("/partitions/2")["instance"], "a");
    let busy = body(api.send("DELETE", "/partitions/2", ""), 409);
    assert!(busy["fault_message"].as_str().unwrap().contains("`a`"), "{busy}");

    // Output as it comes; and of one stream.
    let mut lines = stream(&api, "/instances/a/logs?follow=true&stream=stdout");
    assert!(lines.any(|line| line == "ready"));
    let mut lines = stream(&api, "/instances/a/logs?stream=stderr&follow=true");
    assert!(lines.any(|line| line.contains("0::/")));

    let exec = json!({ "argv": ["/bin/sh", "-c", "cat; echo $NAME; exit 3"], "env": ["NAME=b"], "stdin": "in\n" });
    let executed = body(send(&api, "POST", "/instances/a/exec", &exec), 200);
    let expected =
        json!({ "exit_code": 3, "oom_killed": false, "stdout": "in\nb\n", "stderr": "", "truncated": false });
    assert_eq!(executed, expected);
    let mounts = json!({ "argv": ["grep", "-c", " /tmp ext4 ", "/proc/mounts"] });
    assert_eq!(body(send(&api, "POST", "/instances/a/exec", &mounts), 200)["stdout"], "1\n");
    let terminal = json!({ "argv": ["stty", "size"], "tty": { "columns": 91, "rows": 17 } });
    assert_eq!(body(send(&api, "POST", "/instances/a/exec", &terminal), 200)["stdout"], "17 91\r\n");
    let nowhere = body(send(&api, "POST", "/instances/a/exec", &json!({ "argv": ["/nowhere"] })), 400);
    assert!(nowhere["fault_message"].as_str().unwrap().contains("/nowhere"), "{nowhere}");

    let frozen = body(send(&api, "PATCH", "/instances/a", &json!({ "state": "Frozen" })), 200);
    assert!(frozen["unplugged_bytes"].as_u64().unwrap() > 100 << 20, "{frozen}");
    assert_eq!(api.get("/instances/a")["state"], "Frozen");
    body(send(&api, "PATCH", "/instances/a", &json!({ "state": "Running" })), 200);

    let figures: String = stream(&api, "/metrics/prometheus").skip(1).map(|line| line + "\n").collect();
    for line in [
        format!("bellows_partition_plugged_bytes{{partition=\"2\"}} {}", 200 << 20),
        "bellows_partition_used{partition=\"1\"} 0".into(),
        "bellows_instance_start_seconds_count 1".into(),
        "bellows_exec_seconds_count 3".into(),
    ] {
        assert!(figures.lines().any(|found| found == line), "{line}: {figures}");
    }
    check(&figures);
    assert!(figures.contains("bellows_instance_allocated_bytes{instance=\"a\"} "), "{figures}");

    // From the call to the first byte, each step is a span.
    let steps =
        ["PUT /actions", "boot", "guest boot", "PUT /instances", "attach_image", "plug_and_start", "first byte"];
    collector.await_all(&steps.map(str::as_bytes));

    // A request to wait ends with the instance, and the exit code outlives it until it is removed.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| api.get("/instances/a/wait"));
        assert_eq!(send(&api, "PUT", "/instances/a/signal", &json!({ "signal": 9 })).status, 204);
        assert_eq!(waiting.join().unwrap()["ended"]["exit_code"], 137);
    });
    assert_eq!(api.get("/instances/a")["state"], "Exited");
    heard(r#""exit_code":137"#);
    let report = body(api.send("DELETE", "/instances/a", ""), 200);
    let partition = &report["partition"];
    assert_eq!((&partition["bytes"], &partition["left_bytes"]), (&json!(200 << 20), &json!(0)), "{report}");
    assert!(partition["discarded_bytes"].as_u64().unwrap() > 0, "{report}");
    heard(r#""id":"a","state":"Removed""#);
    assert_eq!(api.send("GET", "/instances/a", "").status, 404);
    assert_eq!(api.send("DELETE", "/instances/a", "").status, 404);

    // What does not start leaves nothing.
    let image = images[0]["id"].as_str().unwrap();
    assert_eq!(api.send("DELETE", &format!("/images/{image}"), "").status, 204);
    let wrong = json!({ "image": IMAGE, "argv": ["/nowhere"], "memory_mib": 64 });
    assert_eq!(send(&api, "PUT", "/instances/b", &wrong).status, 400);
    let missing = json!({ "image": "no/image:1", "argv": ["true"], "memory_mib": 64 });
    let missing = body(send(&api, "PUT", "/instances/b", &missing), 404);
    assert!(missing["fault_message"].as_str().unwrap().contains("no/image"), "{missing}");
    assert_eq!((api.get("/images"), api.get("/instances")), (json!([]), json!([])));
    assert!(api.get("/partitions").as_array().unwrap().iter().all(|partition| partition["memory"]["plugged"] == 0));
    end(api);
}

/// Instances that come and go at once, more than there are partitions: none is lost, and nothing stays.
#[test]
fn instances_that_come_and_go_at_once_leave_nothing() {
    const EACH: usize = 10;
    let api = booted(&[256, 256, 256]);
    let (started, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..4 {
            let (api, started, refused) = (&api, &started, &refused);
            scope.spawn(move || {
                for round in 0..EACH {
                    let path = format!("/instances/i{}", (client + round) % 5);
                    let memory_mib = if round % 3 == 0 { 0 } else { 128 };
                    let mut wanted = shell("exit 7", memory_mib);
                    wanted["base_limit_mib"] = json!(8);
                    let answer = send(api, "PUT", &path, &wanted);
                    match answer.status {
                        200 => drop(started.fetch_add(1, Ordering::SeqCst)),
                        // Another client has the name or the partition.
                        409 => drop(refused.fetch_add(1, Ordering::SeqCst)),
                        _ => panic!("{answer:?}"),
                    }
                    let answer = api.send("DELETE", &path, "");
                    assert!(matches!(answer.status, 200 | 404), "{answer:?}");
                }
            });
        }
    });
    assert_eq!(started.into_inner() + refused.into_inner(), 4 * EACH);
    for instance in api.get("/instances").as_array().unwrap() {
        let path = format!("/instances/{}", instance["id"].as_str().unwrap());
        body(api.send("DELETE", &path, ""), 200);
    }
    let partitions = api.get("/partitions");
    let held = |partition: &Value| partition["memory"]["plugged"] != 0 || !partition["instance"].is_null();
    assert!(!partitions.as_array().unwrap().iter().any(held), "{partitions}");
    assert_eq!(api.get("/images").as_array().unwrap().len(), 1);
    // The guest has no more of it than before: another one gets the first partition.
    let last = body(send(&api, "PUT", "/instances/last", &shell("exit 0", 256)), 200);
    assert_eq!(last["partition"], 1);
    end(api);
}

/// Has Prometheus' own tool check figures.
fn check(figures: &str) {
    let on_disk = Path::new("/work/promtool");
    let program = if on_disk.exists() { on_disk } else { Path::new("promtool") };
    let mut tool = Command::new(program);
    let tool = tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = tool.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    tool.stdin.take().unwrap().write_all(figures.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}{figures}");
}

pub fn end(mut api: Api) {
    assert_eq!(api.end_by_signal(15), Some(143));
    assert_eq!(api.files(), ["stderr"], "no socket stays");
}
