//! A VM under the control of the API, from its configuration to its end.

#[path = "../../api/tests/client/mod.rs"]
pub mod client;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::client::Api;
use crate::fixture::{PATIENCE, artefact};

/// Asks again until the answer is as wanted.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(200));
    }
}

fn state(api: &Api) -> Value {
    api.get("/")["state"].clone()
}

fn drive_ids(api: &Api) -> Vec<Value> {
    api.get("/vm/config")["drives"].as_array().unwrap().iter().map(|drive| drive["drive_id"].clone()).collect()
}

#[test]
fn a_vm_lives_under_firecrackers_name_and_requests() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("firecracker");
    symlink(artefact("BELLOWS_BINARY"), &program).unwrap();
    let mut api = Api::start(&program, &["--id", "lambda-1", "--level", "Debug", "--boot-timer"]);
    let disk = |name: &str| api.file(name, &vec![0; 8 << 20]);
    let drive = |name: &str| json!({ "drive_id": name, "path_on_host": disk(name), "is_root_device": false });
    api.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 256 }));
    let source = json!({
        "kernel_image_path": artefact("BELLOWS_KERNEL"),
        "initrd_path": artefact("BELLOWS_INITRAMFS"),
        "boot_args": "console=ttyS0 reboot=k panic=1 pci=off",
    });
    api.put("/boot-source", source);
    api.put("/drives/data", drive("data"));
    api.put("/balloon", json!({ "amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1 }));
    api.put("/vsock", json!({ "guest_cid": 3, "uds_path": api.path("vsock") }));
    api.put("/serial", json!({ "serial_out_path": api.path("console") }));
    api.put("/metrics", json!({ "metrics_path": api.path("metrics") }));
    assert_eq!(state(&api), "Not started");

    api.put("/actions", json!({ "action_type": "InstanceStart" }));
    assert_eq!(state(&api), "Running");
    let late = api.refused("PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 256}"#);
    assert!(late.contains("before `InstanceStart`"), "{late}");
    wait_for("statistics of the guest", || api.get("/balloon/statistics")["free_memory"].is_u64());
    let console = fs::read_to_string(api.path("console")).unwrap();
    assert!(console.contains("Command line: console=ttyS0 reboot=k panic=1\r\n"), "{console}");
    let sees_drive = || fs::read_to_string(api.path("console")).unwrap().contains("[vda] 16384 512-byte");
    wait_for("the guest sees the drive", sees_drive);

    api.patch("/vm", json!({ "state": "Paused" }));
    assert_eq!(state(&api), "Paused");
    api.patch("/vm", json!({ "state": "Paused" }));
    let paused = api.refused("PUT", "/drives/more", &drive("more").to_string());
    assert!(paused.contains("the VM is paused"), "{paused}");
    assert_eq!(api.get("/machine-config")["mem_size_mib"], 256);
    api.patch("/vm", json!({ "state": "Resumed" }));
    assert_eq!(state(&api), "Running");

    api.patch("/balloon", json!({ "amount_mib": 32 }));
    wait_for("a balloon of 32 MiB", || api.get("/balloon/statistics")["actual_mib"] == 32);
    assert_eq!(api.get("/balloon")["amount_mib"], 32);
    let impossible = api.refused("PATCH", "/balloon", r#"{"amount_mib": 257}"#);
    assert!(impossible.contains("257 MiB"), "{impossible}");

    // The guest's agent finds a disk that comes while the VM runs.
    let more = drive("more").to_string();
    wait_for("the guest's agent", || api.send("PUT", "/drives/more", &more).status == 204);
    assert_eq!(drive_ids(&api), ["data", "more"]);
    let again = api.refused("PUT", "/drives/more", &more);
    assert!(again.contains("`drive_id` is `more`"), "{again}");
    assert_eq!(api.send("DELETE", "/drives/more", "").status, 204);
    // A drive with a rate limit, which is lifted while the guest has it.
    let mut limited = drive("more");
    limited["rate_limiter"] = json!({ "ops": { "size": 1, "refill_time": 1000, "one_time_burst": 2 } });
    api.put("/drives/more", limited);
    assert_eq!(api.get("/vm/config")["drives"][1]["rate_limiter"]["ops"]["one_time_burst"], 2);
    let lifted = json!({ "ops": { "size": 0, "refill_time": 0 } });
    api.patch("/drives/more", json!({ "drive_id": "more", "rate_limiter": lifted }));
    assert_eq!(api.get("/vm/config")["drives"][1]["rate_limiter"]["ops"]["size"], 0);
    assert_eq!(api.send("DELETE", "/drives/more", "").status, 204);
    // The guest hears of a drive's other file, and of the same file when it has grown.
    let other = api.file("other", &vec![0; 16 << 20]);
    api.patch("/drives/data", json!({ "drive_id": "data", "path_on_host": other }));
    let console = || fs::read_to_string(api.path("console")).unwrap();
    wait_for("the guest sees 16 MiB", || console().contains("capacity change from 16384 to 32768"));
    fs::OpenOptions::new().write(true).open(&other).unwrap().set_len(24 << 20).unwrap();
    api.patch("/drives/data", json!({ "drive_id": "data", "path_on_host": other }));
    wait_for("the guest sees 24 MiB", || console().contains("capacity change from 32768 to 49152"));
    let missing = api.refused("PATCH", "/drives/data", r#"{"drive_id": "data", "path_on_host": "/none"}"#);
    assert!(missing.contains("/none"), "{missing}");
    assert_eq!(api.get("/vm/config")["drives"][0]["path_on_host"], json!(other));
    fs::remove_file(&other).unwrap();
    assert_eq!(drive_ids(&api), ["data"]);
    assert!(api.refused("DELETE", "/drives/more", "").contains("no drive `more`"));

    api.put("/actions", json!({ "action_type": "FlushMetrics" }));
    let metrics = fs::read_to_string(api.path("metrics")).unwrap();
    // A line comes each minute, too, and each counts anew.
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fails = lines.iter().filter_map(|line| line["patch_api_requests"]["balloon_fails"].as_u64());
    assert_eq!(fails.sum::<u64>(), 1, "{metrics}");
    assert!(lines[0]["bellows"]["resident_bytes"].as_u64().unwrap() > 1 << 20, "{metrics}");

    api.put("/actions", json!({ "action_type": "SendCtrlAltDel" }));
    assert_eq!(api.wait(PATIENCE), Some(0), "a guest that switches itself off ends the process in good order");
    assert_eq!(api.files(), ["console", "data", "metrics", "more", "stderr"], "no socket stays");
    let log = fs::read_to_string(api.path("stderr")).unwrap();
    assert!(log.contains("[lambda-1:") && log.contains("Guest-boot-time = "), "{log}");
}

/// Whether this host's kernel restricts processes.
fn has_landlock() -> bool {
    let output = Command::new(artefact("BELLOWS_BINARY")).args(["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .any(|finding| finding["name"] == "Landlock" && finding["state"] == "ok")
}

/// A monitor that keeps its own files alone, whose guest has files as persistent memory, and a CPU of another name.
#[test]
fn a_vm_has_persistent_memory_and_a_cpu_of_its_own() {
    let files = tempfile::tempdir().unwrap();
    let pmem = |name: &str, read_only: bool| {
        let path = files.path().join(name);
        fs::write(&path, vec![0x5a; 3 << 20]).unwrap();
        json!({ "id": name, "path_on_host": path, "read_only": read_only })
    };
    let (first, more) = (pmem("first", true), pmem("more", true));
    let [kernel, initramfs] = ["BELLOWS_KERNEL", "BELLOWS_INITRAMFS"].map(artefact);
    let rules = [(files.path(), "rw"), (&kernel, "r"), (&initramfs, "r")]
        .map(|(path, access)| format!("path={},access={access}", path.display()));
    let has_landlock = has_landlock();
    let landlock = ["--landlock", "--landlock-rules", &rules[0], &rules[1], &rules[2]];
    let options = if has_landlock { &landlock[..] } else { &[] };
    let mut api = Api::start(&artefact("BELLOWS_BINARY"), &[&["api", "--level", "Debug"], options].concat());
    api.put("/machine-config", json!({ "vcpu_count": 2, "mem_size_mib": 256 }));
    let arguments = "console=ttyS0 reboot=k panic=1";
    api.put("/boot-source", json!({ "kernel_image_path": kernel, "initrd_path": initramfs, "boot_args": arguments }));
    let console = files.path().join("console");
    api.put("/serial", json!({ "serial_out_path": console }));
    let bits = |bytes: &[u8; 4]| format!("0b{:032b}", u32::from_le_bytes(*bytes));
    let name = json!({ "leaf": "0x80000002", "subleaf": "0x0", "flags": 0, "modifiers": [
        { "register": "eax", "bitmap": bits(b"Bell") }, { "register": "ebx", "bitmap": bits(b"ows:") },
    ] });
    api.put("/cpu-config", json!({ "kvm_capabilities": ["3", "!56"], "cpuid_modifiers": [name] }));
    api.put("/pmem/first", first);
    api.put("/hotplug/memory", json!({ "total_size_mib": 512 }));
    let writable = api.refused("PUT", "/pmem/more", &pmem("more", false).to_string());
    assert!(writable.contains("`read_only` is false"), "{writable}");
    api.put("/actions", json!({ "action_type": "InstanceStart" }));

    let more = more.to_string();
    wait_for("the guest's agent", || api.send("PUT", "/pmem/more", &more).status == 204);
    let ids = || -> Vec<Value> {
        api.get("/vm/config")["pmem"].as_array().unwrap().iter().map(|pmem| pmem["id"].clone()).collect()
    };
    assert_eq!(ids(), ["first", "more"]);
    let said = fs::read_to_string(&console).unwrap();
    assert!(said.contains(" Bellows:"), "{said}");
    for size in [256, 0] {
        api.patch("/hotplug/memory", json!({ "requested_size_mib": size }));
        wait_for("memory", || api.get("/hotplug/memory")["plugged_size_mib"] == size);
    }
    let again = api.refused("PUT", "/pmem/more", &more);
    assert!(again.contains("`id` is `more`"), "{again}");
    assert_eq!(api.send("DELETE", "/pmem/more", "").status, 204);
    assert_eq!(ids(), ["first"]);
    if has_landlock {
        let elsewhere = api.file("elsewhere", &[0; 512]);
        let body = json!({ "id": "e", "path_on_host": elsewhere, "read_only": true }).to_string();
        let refused = api.refused("PUT", "/pmem/e", &body);
        assert!(refused.contains("ermission denied"), "{refused}");
    }
    api.put("/actions", json!({ "action_type": "SendCtrlAltDel" }));
    assert_eq!(api.wait(PATIENCE), Some(0));
}
