//! `bellows doctor` on a host that runs VMs.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::fixture::artefact;

/// It finds the guest's files by the variables that the tests have, too.
#[test]
fn the_self_test_goes_well_and_its_report_can_be_attached() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    let output = command.args(["doctor", "--selftest", "--report"]).arg(&report).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success() && said.contains("steps of the self-test went well"), "{said}");
    let report: Value = serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap();
    let steps = report["selftest"]["steps"].as_array().unwrap();
    let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    let expected =
        ["unplugged memory", "boot", "first plug", "first unplug", "plug", "unplug", "disk", "pause", "shutdown"];
    assert_eq!(names, expected);
    assert_eq!((&report["can_run_vms"], &report["selftest"]["console"]), (&json!(true), &Value::Null));
    assert!(report["selftest"]["host"]["processor"].is_string(), "{report:#}");
}

/// A guest's files that are no kernel: the step is named, and what needs it is left out.
#[test]
fn a_self_test_that_fails_says_where() {
    let mut command = Command::new(artefact("BELLOWS_BINARY"));
    command.args(["doctor", "--selftest", "--json"]).env("BELLOWS_KERNEL", "/proc/version");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = report["selftest"]["steps"].as_array().unwrap();
    let results: Vec<_> = steps.iter().map(|step| (step["name"].as_str().unwrap(), step["ok"] == true)).collect();
    assert_eq!(results, [("unplugged memory", true), ("boot", false)], "{report:#}");
    assert!(steps[1]["found"].as_str().unwrap().contains("/proc/version"), "{report:#}");
}
