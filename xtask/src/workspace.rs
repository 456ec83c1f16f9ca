//! The checkout, and the programs that cargo builds from it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::progress;
use crate::run;

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A cargo command that runs at the root of the checkout.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The monitor.
pub fn bellows() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "-p", "bellows", "--bin", "bellows"]);
    build_one("build bellows", command, "bellows")
}

/// The program that writes the monitor's manual.
pub fn manual() -> Result<PathBuf> {
    let mut command = cargo();
    // All examples of the whole workspace have the features of the tests, so no dependency is built again: one example alone has not.
    command.args(["build", "--workspace", "--examples"]);
    build_one("build the manual's writer", command, "manual")
}

/// PID 1 of the guest.
pub fn agent() -> Result<PathBuf> {
    let package = ["-p", "bellows-agent"];
    build_one("build the guest agent", for_guests(&package), "bellows-agent")
}

/// PID 1 of a guest that makes and takes traffic.
pub fn net_init() -> Result<PathBuf> {
    let program = ["-p", "bellows-bench", "--bin", "bellows-net-init"];
    build_one("build the init of guests with traffic", for_guests(&program), "bellows-net-init")
}

/// PID 1 of a peer's guest.
pub fn peer_init() -> Result<PathBuf> {
    let program = ["-p", "bellows-bench", "--bin", "bellows-peer-init"];
    build_one("build the init of peers' guests", for_guests(&program), "bellows-peer-init")
}

/// PID 1 of the guests that third parties' clients start.
pub fn echo_init() -> Result<PathBuf> {
    let program = ["-p", "bellows-tests", "--bin", "bellows-echo-init"];
    build_one("build the init of clients' guests", for_guests(&program), "bellows-echo-init")
}

/// Builds a static program, because an initramfs has no libraries.
fn for_guests(what: &[&str]) -> Command {
    // Other flags in the common target directory would rebuild everything each time.
    let target = target_directory().join("static");
    let mut command = cargo();
    command
        .args(["build", "--profile", "guest", "--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(target)
        .args(what)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    command
}

/// PID 1 of the lab.
pub fn lab_init() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "-p", "bellows-lab", "--bin", "bellows-lab-init"]);
    build_one("build the lab's init", command, "bellows-lab-init")
}

/// What the lab's QEMU loads.
pub fn lab_plugin() -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "-p", "bellows-lab-plugin"]);
    build_one("build the lab's plugin", command, "bellows_lab_plugin")
}

/// A test program for a host with KVM. It is built with the whole workspace, so that it shares the dependencies of all
/// other tests.
pub fn test_program(name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--test", name, "--no-run"]);
    build_one(&format!("build the test program {name}"), command, name)
}

/// The program of a benchmark, optimised like a release: the monitor is part of it.
pub fn benchmark(package: &str, name: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["bench", "-p", package, "--bench", name, "--no-run"]);
    build_one(&format!("build the benchmark {name}"), command, name)
}

/// Cargo's target directory.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn build_one(title: &str, mut command: Command, target: &str) -> Result<PathBuf> {
    command.arg("--message-format=json-render-diagnostics");
    let mut found = None;
    let mut diagnostics = String::new();
    let status = progress::step(title, |step| {
        run::lines(&mut command, |line| match executable(line, target) {
            Some(path) => found = Some(path),
            None if line.starts_with('{') => {}
            None => {
                step.line(line);
                diagnostics.push_str(line);
                diagnostics.push('\n');
            }
        })
    })?;
    match found {
        Some(path) if status.success() => Ok(path),
        _ => Err(Error::other(format!("{title}: cargo failed\n{diagnostics}"))),
    }
}

/// The path in cargo's message that `target` has been built: of a program, or of a library that programs load.
fn executable(line: &str, target: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["target"]["name"] != target {
        return None;
    }
    let library =
        || message["filenames"].as_array()?.iter().filter_map(|name| name.as_str()).find(|name| name.ends_with(".so"));
    message["executable"].as_str().or_else(library).map(PathBuf::from)
}
