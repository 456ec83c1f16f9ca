//! Peers: QEMU with virtio-mem or virtio-balloon, and the same kernel. Their guests have no agent; a program fills memory in
//! the places of instances (`bellows-peer-init`).

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bellows_bench::cost::Meter;
use bellows_bench::reclaim::{Group, Mode, Sample};
use bellows_lab::artefact;
use serde_json::{Value, json};

use crate::common::{PATIENCE, Result, vcpus};
use crate::cycle::filled;
use crate::guest::{BASE, NEIGHBOUR_MIB, time_of, vcpu_threads};

/// Time between two queries of a device: QEMU delays its own events by a second.
const LOOK: Duration = Duration::from_millis(1);

/// A running QEMU whose guest has the neighbour's memory.
pub struct Peer {
    mode: Mode,
    child: Child,
    console: (ChildStdin, BufReader<ChildStdout>),
    qmp: Qmp,
    threads: Vec<PathBuf>,
    _directory: tempfile::TempDir,
}

impl Peer {
    pub fn boot(mode: Mode, initramfs: &Path, init_on_alloc: bool, largest_mib: u64) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("qmp");
        let base = BASE.get() >> 20;
        let hot = largest_mib + NEIGHBOUR_MIB;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-name", "peer,debug-threads=on"])
            .args(["-machine", "q35,accel=kvm", "-cpu", "host", "-smp", &vcpus().to_string()])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        match mode {
            Mode::QemuBalloon => {
                command.args(["-m", &format!("{}M", base + hot), "-device", "virtio-balloon-pci,id=balloon"]);
            }
            _ => {
                command
                    .args(["-m", &format!("{base}M,slots=1,maxmem={}M", base + 2 * hot)])
                    .args(["-object", &format!("memory-backend-ram,id=hot,size={hot}M,prealloc=off,reserve=off")])
                    .args(["-device", &format!("virtio-mem-pci,id=mem,memdev=hot,requested-size={NEIGHBOUR_MIB}M")]);
            }
        }
        let parameters = format!(
            "console=ttyS0 quiet loglevel=0 panic=-1 swiotlb=noforce memhp_default_state=online_movable tsc=reliable \
             no_timer_check init_on_alloc={}",
            u8::from(init_on_alloc)
        );
        command.arg("-kernel").arg(artefact("BELLOWS_KERNEL")?).arg("-initrd").arg(initramfs);
        command.args(["-append", &parameters]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("qemu-system-x86_64: {error}"))?;
        let console =
            child.stdin.take().zip(child.stdout.take().map(BufReader::new)).ok_or("QEMU without a console")?;
        let qmp = Qmp::connect(&socket)?;
        let threads = vcpu_threads(&format!("/proc/{}/task", child.id()), "CPU ")?;
        let mut peer = Self { mode, child, console, qmp, threads, _directory: directory };
        peer.wait_for("up")?;
        peer.resize(0)?;
        Ok(peer)
    }

    /// One sample, as [`crate::cycle::run`] takes it.
    pub fn sample(&mut self, group: Group) -> Result<Sample> {
        let Group { size_mib, .. } = group;
        let meter = Meter::start_if_counted()?;
        let start = Instant::now();
        self.resize(size_mib)?;
        let plug = start.elapsed();
        let plug_cost = meter.map(Meter::stop).transpose()?;
        self.say(&format!("fill {} {}", filled(size_mib), filled(NEIGHBOUR_MIB)), "full")?;
        self.say("end", "ended")?;

        let (before, resident, vcpus) = (self.count()?, self.resident()?, time_of(&self.threads)?);
        let meter = Meter::start_if_counted()?;
        let start = Instant::now();
        self.resize(0)?;
        let unplug = start.elapsed();
        let unplug_cost = meter.map(Meter::stop).transpose()?;
        let vcpus = time_of(&self.threads)? - vcpus;
        let (after, left) = (self.count()?, self.resident()?);
        self.say("clear", "cleared")?;
        let migrated = after.migrated.into_iter().map(|(reason, pages)| {
            let earlier = before.migrated.get(&reason).copied().unwrap_or(0);
            (reason, pages - earlier)
        });
        Ok(Sample {
            group,
            mode: self.mode,
            parked: false,
            plug,
            plug_cost,
            usable: plug,
            remove: Duration::ZERO,
            unplug,
            unplug_cost,
            guest: Duration::ZERO,
            slots: Duration::ZERO,
            discard: Duration::ZERO,
            vcpus,
            migrated: migrated.filter(|(_, pages)| *pages > 0).collect(),
            zeroed: after.zeroed - before.zeroed,
            discarded: resident.saturating_sub(left),
            left: 0,
            neighbour: None,
        })
    }

    /// Gives the guest `mib` MiB beside the neighbour's memory, and waits until it has them.
    fn resize(&mut self, mib: u64) -> Result<()> {
        let hot = (mib + NEIGHBOUR_MIB) << 20;
        let (ask, wanted) = match self.mode {
            Mode::QemuBalloon => {
                let bytes = BASE.get() + hot;
                (json!({ "execute": "balloon", "arguments": { "value": bytes } }), bytes)
            }
            _ => {
                let arguments = json!({ "path": DEVICE, "property": "requested-size", "value": hot });
                (json!({ "execute": "qom-set", "arguments": arguments }), hot)
            }
        };
        self.qmp.call(&ask)?;
        let limit = Instant::now() + PATIENCE;
        loop {
            let has = match self.mode {
                Mode::QemuBalloon => self.qmp.call(&json!({ "execute": "query-balloon" }))?["actual"].as_u64(),
                _ => {
                    let arguments = json!({ "path": DEVICE, "property": "size" });
                    self.qmp.call(&json!({ "execute": "qom-get", "arguments": arguments }))?.as_u64()
                }
            };
            if has == Some(wanted) {
                return Ok(());
            }
            if Instant::now() > limit {
                return Err(format!("{}: the guest has {has:?} bytes: expected {wanted}", self.mode).into());
            }
            thread::sleep(LOOK);
        }
    }

    /// Bytes that the host has under the guest, and QEMU for itself.
    fn resident(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = fs::read_to_string(&path)?;
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("Anonymous:")?.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.ok_or_else(|| format!("{path} has no count of anonymous memory"))? << 10)
    }

    fn count(&mut self) -> Result<Count> {
        let text = self.say("count", "{")?;
        Ok(serde_json::from_str(&text)?)
    }

    fn say(&mut self, line: &str, answer: &str) -> Result<String> {
        writeln!(self.console.0, "{line}")?;
        self.wait_for(answer)
    }

    /// Waits for an answer that begins with this.
    fn wait_for(&mut self, answer: &str) -> Result<String> {
        let (mut said, mut line) = (String::new(), Vec::new());
        while self.console.1.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            if let Some((_, found)) = text.split_once("= ") {
                return if found.starts_with(answer) { Ok(found.to_owned()) } else { Err(found.into()) };
            }
            said.push_str(&text);
            line.clear();
        }
        Err(format!("{}: the guest ended: {said}", self.mode).into())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // If this fails it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const DEVICE: &str = "/machine/peripheral/mem";

#[derive(serde::Deserialize)]
struct Count {
    migrated: BTreeMap<String, u64>,
    zeroed: u64,
}

/// QEMU's control socket: a JSON object a line (QEMU, `docs/interop/qmp-spec.rst`).
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(path: &Path) -> Result<Self> {
        let limit = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > limit => return Err(format!("{}: {error}", path.display()).into()),
                Err(_) => thread::sleep(LOOK),
            }
        };
        let mut qmp = Self(BufReader::new(stream));
        let mut greeting = String::new();
        qmp.0.read_line(&mut greeting)?;
        qmp.call(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(qmp)
    }

    fn call(&mut self, request: &Value) -> Result<Value> {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        while self.0.read_line(&mut line)? > 0 {
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(format!("QEMU refuses {request}: {error}").into());
            }
            // An event.
            line.clear();
        }
        Err(format!("QEMU ended before it answered {request}").into())
    }
}
