//! Guests of both monitors, with the same kernel, first process and interface.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bellows_bench::net::{COMMANDS, DATAGRAMS, ECHO, GUEST, HOST, PREFIX, SINK, SOURCE, Side};
use bellows_lab::artefact;
use serde_json::json;

use crate::{PATIENCE, Result};

const MAC: &str = "02:00:00:00:00:01";
const NAME: &str = "blbench0";
const MEMORY_MIB: u32 = 512;
/// User and group that passt drops the rights of root for.
const NOBODY: &str = "65534:65534";

/// A TAP of the host's, which one guest after the other uses.
pub struct Tap;

impl Tap {
    pub fn new() -> Result<Self> {
        ip(&format!("tuntap add {NAME} mode tap vnet_hdr"))?;
        let tap = Self;
        ip(&format!("address add {HOST}/{PREFIX} dev {NAME}"))?;
        ip(&format!("link set {NAME} up"))?;
        // passt serves only what the host has a route for. That of a machine with a network of its own wins.
        ip(&format!("route add default via {GUEST} dev {NAME} metric 99999"))?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&format!("link delete {NAME}"));
    }
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// A guest that takes commands, until this is dropped.
pub struct Guest {
    side: Side,
    _processes: Vec<Ended>,
    _directory: tempfile::TempDir,
}

impl Guest {
    pub fn boot(side: Side, _tap: &Tap, initramfs: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut processes = Vec::new();
        match side {
            Side::Bellows => processes.push(bellows(directory.path(), initramfs, &json!({ "tap": { "name": NAME } }))?),
            Side::BellowsVhost => {
                let end = json!({ "tap": { "name": NAME }, "vhost": true });
                processes.push(bellows(directory.path(), initramfs, &end)?);
            }
            Side::BellowsPasst => {
                let socket = directory.path().join("passt");
                processes.push(passt(&socket)?);
                let end = json!({ "stream": { "path": socket }, "mtu": 65520 });
                processes.push(bellows(directory.path(), initramfs, &end)?);
            }
            Side::Qemu => processes.push(qemu(initramfs, false)?),
            Side::QemuVhost => processes.push(qemu(initramfs, true)?),
        }
        let guest = Self { side, _processes: processes, _directory: directory };
        let begun = Instant::now();
        while TcpStream::connect_timeout(&(guest.address(), COMMANDS).into(), Duration::from_secs(1)).is_err() {
            if begun.elapsed() > PATIENCE {
                return Err(format!("the guest of {side} takes no commands").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(guest)
    }

    /// Where its ports are.
    pub fn address(&self) -> std::net::IpAddr {
        let own = GUEST.parse().unwrap_or(Ipv4Addr::LOCALHOST);
        if self.side.has_tap() { own.into() } else { Ipv4Addr::LOCALHOST.into() }
    }
}

fn bellows(directory: &Path, initramfs: &Path, end: &serde_json::Value) -> Result<Ended> {
    let mut interface = json!({ "id": "eth0", "mac": MAC });
    for (name, value) in end.as_object().into_iter().flatten() {
        interface[name] = value.clone();
    }
    let config = json!({
        "kernel": artefact("BELLOWS_KERNEL")?, "initramfs": initramfs, "memory": format!("{MEMORY_MIB}M"),
        "network_interfaces": [interface],
    });
    let path = directory.join("vm.json");
    std::fs::write(&path, config.to_string())?;
    let mut command = Command::new(artefact("BELLOWS_BINARY")?);
    command.arg("api").arg("--api-sock").arg(directory.join("api")).args(["--level", "Warn"]).arg("--vm").arg(path);
    Ended::start(&mut command)
}

fn qemu(initramfs: &Path, vhost: bool) -> Result<Ended> {
    let vhost = if vhost { "on" } else { "off" };
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
        .args(["-machine", "microvm,acpi=on,pcie=on", "-accel", "kvm", "-bios", "qboot.rom"])
        .args(["-cpu", "host", "-m", &format!("{MEMORY_MIB}M"), "-append", "quiet panic=-1"])
        .args(["-netdev", &format!("tap,id=n,ifname={NAME},script=no,downscript=no,vhost={vhost}")])
        .args(["-device", &format!("virtio-net-pci,netdev=n,mac={MAC},romfile=")])
        .arg("-kernel")
        .arg(artefact("BELLOWS_KERNEL")?)
        .arg("-initrd")
        .arg(initramfs);
    Ended::start(&mut command)
}

/// passt with the guest's ports at the host's loopback.
fn passt(socket: &Path) -> Result<Ended> {
    let tcp = [COMMANDS, SINK, SOURCE].map(|port| port.to_string()).join(",");
    let udp = [DATAGRAMS, ECHO].map(|port| port.to_string()).join(",");
    let mut command = Command::new("passt");
    command
        .args(["--foreground", "--quiet", "--ipv4-only", "--mtu", "65520", "--runas", NOBODY])
        .args(["--address", GUEST, "--gateway", HOST, "--netmask", &PREFIX.to_string()])
        .args(["--tcp-ports", &tcp, "--udp-ports", &udp, "--socket"])
        .arg(socket);
    let process = Ended::start(&mut command)?;
    let begun = Instant::now();
    while !socket.exists() {
        if begun.elapsed() > PATIENCE {
            return Err("passt does not listen".into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(process)
}

/// A process that ends with this.
struct Ended(Child);

impl Ended {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(child.map_err(|error| format!("{:?}: {error}", command.get_program()))?))
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
