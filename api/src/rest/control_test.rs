use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bellows_vmm::VmConfig;

use super::*;
use crate::rest::request::{Request, parse};

/// A control whose VMs do not boot: `boot` says what happens instead.
fn control(boot: impl Fn() + Send + Sync + 'static) -> Control {
    let fails = move |_| {
        boot();
        // The cheapest failure: nothing is opened.
        VmBuilder::from(VmConfig::new("", ByteSize::mib(128))).boot()
    };
    Control::new("test".into(), Box::new(fails), false, Metadata::new(100), Log::default(), Counters::default())
}

fn send(control: &Control, method: &str, path: &str, body: &str) -> Answer {
    match parse(method, path, body.as_bytes())? {
        Request::Read(read) => control.read(read),
        Request::Change(change) => control.change(change),
        Request::Document => unreachable!("the server has it"),
    }
}

const SOURCE: &str = r#"{"kernel_image_path": "/proc/version"}"#;
const START: &str = r#"{"action_type": "InstanceStart"}"#;

#[test]
fn a_boot_that_fails_leaves_the_configuration_for_another_try() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let control = control(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    assert!(send(&control, "PUT", "/actions", START).unwrap_err().message.contains("nothing to boot"));
    assert_eq!(tries.load(Ordering::SeqCst), 0);
    send(&control, "PUT", "/boot-source", SOURCE).unwrap();
    for _ in 0..2 {
        assert!(send(&control, "PUT", "/actions", START).unwrap_err().message.contains("`kernel` is empty"));
    }
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    let instance = send(&control, "GET", "/", "").unwrap().unwrap();
    assert_eq!(
        instance,
        json!({ "app_name": "Bellows", "id": "test", "state": "Not started", "vmm_version": env!("CARGO_PKG_VERSION") })
    );
    assert_eq!(
        send(&control, "GET", "/vm/config", "").unwrap().unwrap()["boot-source"]["kernel_image_path"],
        "/proc/version"
    );
}

#[test]
fn a_question_does_not_wait_for_a_boot() {
    let (booting, is_booting) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let may_go_on = Mutex::new(may_go_on);
    let control = control(move || {
        booting.send(()).unwrap();
        may_go_on.lock().unwrap().recv().unwrap();
    });
    send(&control, "PUT", "/boot-source", SOURCE).unwrap();
    thread::scope(|scope| {
        let start = scope.spawn(|| send(&control, "PUT", "/actions", START));
        is_booting.recv().unwrap();
        assert_eq!(send(&control, "GET", "/", "").unwrap().unwrap()["state"], "Not started");
        go_on.send(()).unwrap();
        start.join().unwrap().unwrap_err();
    });
}

#[test]
fn what_needs_a_vm_is_refused_before_there_is_one() {
    let control = control(|| {});
    for (method, path, body) in [
        ("GET", "/balloon", ""),
        ("GET", "/balloon/statistics", ""),
        ("GET", "/hotplug/memory", ""),
        ("PATCH", "/hotplug/memory", r#"{"requested_size_mib": 0}"#),
        ("GET", "/balloon/hinting/status", ""),
        ("PATCH", "/balloon", r#"{"amount_mib": 1}"#),
        ("PATCH", "/vm", r#"{"state": "Paused"}"#),
        ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
    ] {
        assert!(send(&control, method, path, body).is_err(), "{method} {path}");
    }
}

#[test]
fn metadata_comes_and_changes_before_there_is_a_vm() {
    let control = control(|| {});
    let send = |method, body: &str| send(&control, method, "/mmds", body);
    assert_eq!(send("GET", ""), Ok(Some(json!({}))));
    let fault = send("PATCH", "{}").unwrap_err();
    assert!(fault.status == 400 && fault.message.starts_with(NOT_INITIALIZED), "{fault}");
    send("PUT", r#"{"a": {"b": 1}}"#).unwrap();
    send("PATCH", r#"{"a": {"c": 2}}"#).unwrap();
    let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(100));
    for method in ["PUT", "PATCH"] {
        let fault = send(method, &large).unwrap_err();
        assert_eq!(fault.status, 413);
        let expected = "MMDS limit exceeded error: The MMDS patch request doesn't fit. (the metadata would have 108 bytes as JSON: expected at most 100)";
        assert_eq!(fault.message, expected);
    }
    assert_eq!(send("GET", ""), Ok(Some(json!({ "a": { "b": 1, "c": 2 } }))));
}

const NOT_INITIALIZED: &str = "MMDS error: The MMDS data store is not initialized. ";

#[test]
fn whoever_waits_for_a_boot_hears_that_none_will_come() {
    let control = control(|| {});
    thread::scope(|scope| {
        let waiter = scope.spawn(|| control.await_boot().is_none());
        control.close();
        assert!(waiter.join().unwrap());
    });
}
