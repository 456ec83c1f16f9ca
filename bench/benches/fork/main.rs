//! Starts idle Python instances in VMs, one after the other, and prints a JSON object for each: see
//! [`bellows_bench::fork`]. `cargo xtask bench fork` runs it.

#[path = "../common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use bellows_bench::cost::Meter;
use bellows_bench::fork::{PARTITION_MIB, Sample, Way};
use bellows_bench::print;
use bellows_lab::artefact;
use bellows_vmm::{ByteSize, Instance, InstanceSpec, StreamName, Vm, VmBuilder, ZygoteSpec};

use crate::common::{Image, PATIENCE, Result, image_id, partition, shutdown};

/// Memory that the guest boots with.
const BASE: ByteSize = ByteSize::gib(1);
const PARTITION: ByteSize = ByteSize::mib(PARTITION_MIB);

/// Modules that functions import: those of [`CODE`].
const MODULES: [&str; 4] = ["json", "logging", "urllib.request", "signal"];
const CODE: &str = "import json, logging, urllib.request, signal\nprint('ready', flush=True)\nsignal.pause()";

/// How long the guest rests before its memory is looked at.
const REST: Duration = Duration::from_secs(1);

const ZYGOTE: &str = "zygote";

fn main() -> ExitCode {
    bellows_bench::end("fork", run())
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| {
        argument
            .parse::<u16>()
            .map_err(|error| format!("{argument:?}: {error}: expected a number of VMs, and of instances"))
    });
    let mut next = || arguments.next().unwrap_or_else(|| Err("expected a number of VMs, and of instances".into()));
    let (vms, instances) = (next()?, next()?);
    let image = Image::import()?;
    for vm in 0..vms {
        for way in Way::ALL {
            in_a_vm(&image, way, vm.into(), instances)?;
        }
    }
    Ok(())
}

/// Starts all instances of a VM. One more, which does not count, comes and goes first: it finds the caches empty.
fn in_a_vm(image: &Image, way: Way, vm_number: usize, count: u16) -> Result<()> {
    let mut builder = VmBuilder::new(artefact("BELLOWS_KERNEL")?, BASE).partition(PARTITION);
    for _ in 0..count {
        builder = builder.partition(PARTITION);
    }
    let vm = image.boot(builder)?;
    image.mount(&vm)?;
    let zygote = match way {
        Way::Container => None,
        Way::Fork => Some(start_zygote(&vm)?),
    };
    // Once plugged, a partition is parked: from then on its memory map is there.
    for number in 2..count + 2 {
        vm.plug(partition(number)?, PARTITION, PATIENCE)?;
        vm.unplug(partition(number)?, PATIENCE)?;
        vm.await_discard(partition(number)?, PATIENCE)?;
    }
    end(start(&vm, way, 2)?)?;
    vm.unplug(partition(2)?, PATIENCE)?;
    vm.await_discard(partition(2)?, PATIENCE)?;

    let mut running = Vec::new();
    for number in 0..count {
        thread::sleep(REST);
        let (meter, begin) = (Meter::start_if_counted()?, Instant::now());
        running.push(start(&vm, way, number + 2)?);
        let time = begin.elapsed();
        let cost = meter.map(Meter::stop).transpose()?;
        thread::sleep(REST);
        let partition_bytes = vm.resident_partition_bytes()?;
        let base_bytes = vm.resident_bytes()? - partition_bytes;
        print(&Sample { way, vm: vm_number, number: number.into(), time, cost, partition_bytes, base_bytes })?;
    }
    running.into_iter().chain(zygote).try_for_each(end)?;
    shutdown(&vm)
}

fn start_zygote(vm: &Vm) -> Result<Instance> {
    vm.plug(partition(1)?, PARTITION, PATIENCE)?;
    let zygote = ZygoteSpec::python(ZYGOTE.parse()?, image_id()?, MODULES).in_partition(partition(1)?);
    Ok(vm.start_zygote(&zygote)?)
}

/// Starts an instance in a partition that is parked, and waits for its first line.
fn start(vm: &Vm, way: Way, number: u16) -> Result<Instance> {
    let command = ["/usr/bin/python3", "-c", CODE];
    let spec =
        InstanceSpec::new(format!("idle-{number}").parse()?, image_id()?, command).in_partition(partition(number)?);
    let spec = match way {
        Way::Container => spec,
        Way::Fork => spec.forked_from(ZYGOTE.parse()?),
    };
    let (instance, _) = vm.plug_and_start(&spec, PARTITION, PATIENCE)?;
    let mut line = String::new();
    BufReader::new(instance.init().connect(StreamName::Stdout)?).read_line(&mut line)?;
    if line == "ready\n" { Ok(instance) } else { Err(format!("a {way} printed {line:?}: expected \"ready\"").into()) }
}

fn end(instance: Instance) -> Result<()> {
    const SIGKILL: u32 = 9;
    instance.signal(SIGKILL)?;
    instance.wait()?;
    Ok(instance.remove(PATIENCE)?)
}
