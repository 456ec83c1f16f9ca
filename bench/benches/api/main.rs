//! Asks a VM of Bellows by its API, and one of QEMU by QMP, and prints a JSON object for each sample: see [`bellows_bench::api`].
//! `cargo xtask bench api` runs it where KVM is.

mod http;
mod qmp;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bellows_bench::api::{Call, Sample};
use bellows_bench::cost::{Cost, Meter};
use bellows_bench::print;
use bellows_block::oci::{OciLayout, Platform};
use bellows_block::{ImportOptions, Store};
use bellows_lab::artefact;
use serde_json::{Value, json};

use crate::http::Client;
use crate::qmp::Qmp;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Time limit of every step, even on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often a quick request is sent for one sample.
const BURST: u32 = 100;
/// Functions that run before it is measured: the first ones read their files, and plug a partition for the first time.
const UNCOUNTED: usize = 2;

const IMAGE: &str = "functions/demo:1";
const MEMORY_MIB: u32 = 256;

fn main() -> std::process::ExitCode {
    bellows_bench::end("api", run())
}

fn run() -> Result<()> {
    let rounds = std::env::args().nth(1).ok_or("expected the number of rounds")?;
    let rounds: usize = rounds.parse().map_err(|error| format!("{rounds:?} rounds: {error}"))?;
    let directory = tempfile::tempdir()?;
    let qemu = Qmp::start(directory.path())?;
    let vm = Vm::start(directory.path())?;
    let mut client = Client::connect(&vm.socket)?;
    let mut monitor = qemu.stay()?;
    for round in 0..rounds + UNCOUNTED {
        let count = round >= UNCOUNTED;
        vm.run_function(&mut client, count)?;
        if !count {
            continue;
        }
        let get = |client: &mut Client, path: &str| client.send("GET", path, None, 200).map(drop);
        let resident = json!({ "image": IMAGE, "argv": ["/bin/sleep", "1000"], "memory_mib": 0 });
        client.send("PUT", "/instances/resident", Some(&resident), 200)?;
        burst(Call::Get, || get(&mut client, "/"))?;
        burst(Call::QmpStatus, || monitor.status())?;
        burst(Call::ConnectAndGet, || get(&mut Client::connect(&vm.socket)?, "/"))?;
        burst(Call::QmpConnectAndStatus, || qemu.connect()?.status())?;
        burst(Call::GetConfig, || get(&mut client, "/vm/config"))?;
        burst(Call::GetInstances, || get(&mut client, "/instances"))?;
        burst(Call::GetFigures, || get(&mut client, "/metrics/prometheus"))?;
        client.send("DELETE", "/instances/resident", None, 200)?;
    }
    Ok(())
}

/// Prints the mean of a burst of requests.
fn burst(call: Call, mut send: impl FnMut() -> Result<()>) -> Result<()> {
    let (time, cost, ()) = measure(|| (0..BURST).try_for_each(|_| send()))?;
    let each = |value: u64| value / u64::from(BURST);
    let cost = cost.map(|cost| Cost {
        instructions: each(cost.instructions),
        waited_ns: each(cost.waited_ns),
        exits: each(cost.exits),
    });
    Ok(print(&Sample { call, time: time / BURST, cost, parts_ms: Vec::new() })?)
}

fn measure<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, Option<Cost>, T)> {
    let meter = Meter::start_if_counted()?;
    let begun = Instant::now();
    let done = work()?;
    let time = begun.elapsed();
    Ok((time, meter.map(Meter::stop).transpose()?, done))
}

/// A VM of Bellows, under its API.
struct Vm {
    _process: Ended,
    socket: PathBuf,
}

impl Vm {
    fn start(directory: &Path) -> Result<Self> {
        let source = artefact("BELLOWS_IMAGE")?;
        let store = source.with_file_name("bench-api-store");
        let image = OciLayout::open(source)?.image(&Platform::host(), None)?;
        Store::open(&store)?.import(&image, Some(&IMAGE.parse()?), &ImportOptions::default())?;
        let socket = directory.join("bellows.sock");
        let mut command = Command::new(artefact("BELLOWS_BINARY")?);
        command.arg("api").arg("--store").arg(store).arg("--api-sock").arg(&socket).args(["--level", "Warn"]);
        let process = Ended(command.stdin(Stdio::null()).spawn()?);
        await_socket(&socket)?;
        let mut client = Client::connect(&socket)?;
        let (kernel, initramfs) = (artefact("BELLOWS_KERNEL")?, artefact("BELLOWS_INITRAMFS")?);
        for (path, body) in [
            ("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 512 })),
            ("/boot-source", json!({ "kernel_image_path": kernel, "initrd_path": initramfs })),
            ("/partitions/1", json!({ "window_mib": MEMORY_MIB })),
            ("/actions", json!({ "action_type": "InstanceStart" })),
        ] {
            client.send("PUT", path, Some(&body), 204)?;
        }
        // Waits for the agent.
        client.send("PUT", "/images/demo", Some(&json!({ "name": IMAGE })), 200)?;
        Ok(Self { _process: process, socket })
    }

    /// Runs a function in a partition from the request to its end; prints what it took if that counts.
    fn run_function(&self, client: &mut Client, count: bool) -> Result<()> {
        const PATH: &str = "/instances/function";
        let argv = ["/usr/bin/python3", "-c", "print('{}', flush=True)"];
        let wanted = json!({ "image": "demo", "argv": argv, "memory_mib": MEMORY_MIB });
        let say = |call, (time, cost, answer): (Duration, Option<Cost>, Value)| -> Result<()> {
            if count {
                print(&Sample { call, time, cost, parts_ms: parts(&answer) })?;
            }
            Ok(())
        };
        let started = measure(|| client.send("PUT", PATH, Some(&wanted), 200))?;
        say(Call::Start, started)?;
        client.send("GET", &format!("{PATH}/wait"), None, 200)?;
        say(Call::Remove, measure(|| client.send("DELETE", PATH, None, 200))?)?;
        let first = measure(|| {
            let answer = client.send("PUT", PATH, Some(&wanted), 200)?;
            Client::connect(&self.socket)?.first_byte(&format!("{PATH}/logs?follow=true"))?;
            Ok(answer)
        })?;
        say(Call::FirstByte, first)?;
        client.send("GET", &format!("{PATH}/wait"), None, 200)?;
        client.send("DELETE", PATH, None, 200)?;
        Ok(())
    }
}

/// What an answer tells of its parts.
fn parts(answer: &Value) -> Vec<(String, f64)> {
    let started = &answer["started"];
    [
        ("image", &started["image_ms"]),
        ("plug, until usable", &started["plug"]["usable_ms"]),
        ("all", &started["total_ms"]),
        ("remove", &answer["remove_ms"]),
        ("all", &answer["total_ms"]),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value.as_f64()?)))
    .collect()
}

/// Waits until somebody listens.
fn await_socket(path: &Path) -> Result<()> {
    let begun = Instant::now();
    while std::os::unix::net::UnixStream::connect(path).is_err() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("nobody listens on {} after {PATIENCE:?}", path.display()).into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A process that ends with this program.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
