//! The network of a run, by passt.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::command::{bellows_run, image};
use crate::fixture::PATIENCE;

/// An interface with default routes, until this is dropped; needs root. passt serves only what the host has a route for. One at a time:
/// the addresses are always the same.
struct Routed {
    name: String,
    _alone: std::sync::MutexGuard<'static, ()>,
}

/// The host's addresses at it.
const HOST: &str = "10.77.0.1";
const HOST6: &str = "fd77::1";

impl Routed {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let name = format!("blr{}", std::process::id());
        sh(&format!("ip link add name {name} type dummy"));
        let routed = Self { name, _alone: alone };
        let name = &routed.name;
        // No address waits for others to object.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
        sh(&format!(
            "ip address add {HOST}/24 dev {name}; ip link set {name} up; ip -6 address add {HOST6}/64 dev {name}"
        ));
        // Those of a machine that has a network of its own win.
        sh(&format!("ip route add default via 10.77.0.2 dev {name} metric 99999"));
        sh(&format!("ip -6 route add default via fd77::2 dev {name} metric 99999"));
        routed
    }
}

impl Drop for Routed {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.name]).output();
    }
}

fn sh(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `bellows run` with `options`, of a command in the demo's image.
fn run(options: &[&str], command: &[&str]) -> Command {
    let mut run = bellows_run();
    run.arg("--memory=256M").args(options).arg(image()).args(command);
    run
}

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The number of the passt that `monitor` has started.
fn passt_of(monitor: &Child) -> i32 {
    let children = format!("/proc/{0}/task/{0}/children", monitor.id());
    let children = fs::read_to_string(children).unwrap();
    let is_passt =
        |id: &&str| fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.starts_with("passt"));
    children.split_whitespace().find(is_passt).expect("passt is a child").parse().unwrap()
}

#[test]
fn a_network_that_cannot_be_is_refused_before_anything_boots() {
    // A port that is taken.
    let routed = Routed::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("127.0.0.1:{}:80", taken.local_addr().unwrap().port());
    let output = run(&["-p", &port], &["true"]).output().unwrap();
    let text = said(&output);
    assert!(
        output.status.code() == Some(125) && text.contains("`passt` failed") && text.contains("ailed to bind"),
        "{text}"
    );
    // No program.
    let output = run(&["--net"], &["true"]).env("PATH", "/nowhere").output().unwrap();
    let text = said(&output);
    assert!(output.status.code() == Some(125) && text.contains("install the Debian package `passt`"), "{text}");
    // No way out, in a network namespace of its own.
    drop(routed);
    let inside = run(&["--net"], &["true"]);
    let mut alone = Command::new("unshare");
    alone.arg("-n").arg(inside.get_program()).args(inside.get_args());
    let output = alone.output().unwrap();
    let text = said(&output);
    assert!(output.status.code() == Some(125) && text.contains("no default route"), "{text}");
}

/// passt ends, and the VM goes on; passt ends with the VM.
#[test]
fn passt_and_a_vm_end_one_after_the_other() {
    let _routed = Routed::new();
    let mut command = run(&["--net", "-i"], &["/bin/sh", "-c", "echo up; read line; echo $line"]);
    let mut monitor = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(monitor.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let passt = nix::unistd::Pid::from_raw(passt_of(&monitor));
    nix::sys::signal::kill(passt, nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut stderr = BufReader::new(monitor.stderr.take().unwrap());
    let mut heard = String::new();
    while !heard.contains("passt has ended (signal: 9 (SIGKILL)); the VM goes on") {
        assert_ne!(stderr.read_line(&mut heard).unwrap(), 0, "{heard}");
    }
    std::io::Write::write_all(&mut monitor.stdin.take().unwrap(), b"still here\n").unwrap();
    line.clear();
    stdout.read_to_string(&mut line).unwrap();
    assert_eq!(line, "still here\n");
    assert!(monitor.wait().unwrap().success());

    let mut command = run(&["--net"], &["/bin/sh", "-c", "echo up; exec sleep 3600"]);
    let mut monitor = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(monitor.stdout.take().unwrap());
    line.clear();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let program = format!("/proc/{}/exe", passt_of(&monitor));
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    let begun = Instant::now();
    while fs::read_link(&program).is_ok() {
        assert!(begun.elapsed() < PATIENCE, "passt stays");
        std::thread::sleep(Duration::from_millis(50));
    }
}
