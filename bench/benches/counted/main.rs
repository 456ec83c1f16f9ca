//! Counts the cost of a short set of operations and prints a JSON object for each: see [`bellows_bench::counted`].
//! `cargo xtask bench counted` runs it in a lab that counts time.

#[path = "../common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use bellows_bench::cost::{Cost, Meter};
use bellows_bench::counted::{FILLED_MIB, Operation, PARTITION_MIB, Sample, ZYGOTE_MIB};
use bellows_bench::print;
use bellows_block::oci::{OciLayout, Platform};
use bellows_block::{ImportOptions, Store};
use bellows_lab::artefact;
use bellows_vmm::{ByteSize, Instance, InstanceSpec, PartitionId, StreamName, Vm, VmBuilder, ZygoteSpec};

use crate::common::{Image, PATIENCE, Result, image_id, partition, shutdown};

/// Memory that the guest boots with.
const BASE: ByteSize = ByteSize::mib(512);

/// How long the lab rests before an operation that comes after others: the guest's kernel takes what has ended apart a while later,
/// and that would count for whatever comes then.
const REST: Duration = Duration::from_secs(1);

const SIGKILL: u32 = 9;

const ECHO: &[&str] = &["/bin/echo", "hello"];

/// Memory that is plugged and unplugged.
const PARTITION: ByteSize = ByteSize::mib(PARTITION_MIB);

fn main() -> ExitCode {
    bellows_bench::end("counted", run())
}

fn run() -> Result<()> {
    let rounds = std::env::args().nth(1).ok_or("expected the number of rounds")?;
    let rounds: usize = rounds.parse().map_err(|error| format!("{rounds:?} rounds: {error}"))?;
    let image = Image::import()?;
    let source = artefact("BELLOWS_ALPINE_LIKE_IMAGE")?;
    // The first round does not count: it finds the caches of the host's kernel empty.
    for number in 0..=rounds {
        let report = |operation, cost: Cost| -> Result<()> {
            if number > 0 {
                print(&Sample { operation, cost })?;
            }
            Ok(())
        };
        in_a_vm(&image, &report)?;
        import(&source, &report)?;
    }
    Ok(())
}

/// Runs every operation once in a new VM.
fn in_a_vm(image: &Image, report: &dyn Fn(Operation, Cost) -> Result<()>) -> Result<()> {
    let partition = partition(1)?;

    let meter = Meter::start()?;
    let builder = VmBuilder::new(artefact("BELLOWS_KERNEL")?, BASE);
    let vm = image.boot(builder.partition(PARTITION).partition(ByteSize::mib(ZYGOTE_MIB)))?;
    report(Operation::Boot, meter.stop()?)?;
    image.mount(&vm)?;

    let meter = start_rested()?;
    vm.plug(partition, PARTITION, PATIENCE)?;
    report(Operation::FirstPlug, meter.stop()?)?;

    for (operation, command) in [(Operation::Echo, ECHO), (Operation::Python, &["/usr/bin/python3", "-c", "pass"])] {
        // The first run of a program reads its files from the layers.
        run_to_end(&vm, &spec(partition, command)?)?.remove(PATIENCE)?;
        let meter = start_rested()?;
        let instance = run_to_end(&vm, &spec(partition, command)?)?;
        report(operation, meter.stop()?)?;
        instance.remove(PATIENCE)?;
    }
    fork(&vm, partition, report)?;
    let fill = format!("memory = bytearray({FILLED_MIB} << 20); memory[::4096] = b'x' * ({FILLED_MIB} << 8)");
    run_to_end(&vm, &spec(partition, &["/usr/bin/python3", "-c", &fill])?)?.remove(PATIENCE)?;

    let meter = start_rested()?;
    let unplug = vm.unplug(partition, PATIENCE)?;
    vm.await_discard(partition, PATIENCE)?;
    let cost = meter.stop()?;
    report(Operation::Unplug, cost.part(unplug.unplug))?;
    report(Operation::Reclaim, cost)?;

    let meter = start_rested()?;
    let plug = vm.plug(partition, PARTITION, PATIENCE)?;
    let cost = meter.stop()?;
    report(Operation::ParkedPlug, cost)?;
    report(Operation::ParkedPlugAccepted, cost.part(plug.accepted))?;
    let meter = start_rested()?;
    let unplug = vm.unplug(partition, PATIENCE)?;
    report(Operation::UnplugUntouched, meter.stop()?.part(unplug.unplug))?;
    vm.await_discard(partition, PATIENCE)?;

    let echo = spec(partition, ECHO)?;
    let meter = start_rested()?;
    let (instance, _) = vm.plug_and_start(&echo, PARTITION, PATIENCE)?;
    end_well(&instance, &echo)?;
    report(Operation::PlugAndEcho, meter.stop()?)?;

    shutdown(&vm)
}

fn start_rested() -> Result<Meter> {
    thread::sleep(REST);
    Ok(Meter::start()?)
}

/// Counts a fork of a Python in a partition of its own.
fn fork(vm: &Vm, partition: PartitionId, report: &dyn Fn(Operation, Cost) -> Result<()>) -> Result<()> {
    let its_own = common::partition(2)?;
    vm.plug(its_own, ByteSize::mib(ZYGOTE_MIB), PATIENCE)?;
    let zygote = ZygoteSpec::python("zygote".parse()?, image_id()?, ["os"]).in_partition(its_own);
    let zygote = vm.start_zygote(&zygote)?;
    let spec = spec(partition, &["/usr/bin/python3", "-c", "pass"])?.forked_from("zygote".parse()?);
    run_to_end(vm, &spec)?.remove(PATIENCE)?;
    let meter = start_rested()?;
    let instance = run_to_end(vm, &spec)?;
    report(Operation::Fork, meter.stop()?)?;
    instance.remove(PATIENCE)?;
    fork_to_first_line(vm, &spec, report)?;
    zygote.remove(PATIENCE)?;
    vm.unplug(its_own, PATIENCE)?;
    vm.await_discard(its_own, PATIENCE)?;
    Ok(())
}

/// Counts a fork until its first line has come. It then rests, so that nothing of its end counts.
fn fork_to_first_line(vm: &Vm, spec: &InstanceSpec, report: &dyn Fn(Operation, Cost) -> Result<()>) -> Result<()> {
    let mut spec = spec.clone();
    spec.process.argv[2] = "print('ready', flush=True)\nimport signal\nsignal.pause()".into();
    let meter = start_rested()?;
    let instance = vm.start_instance(&spec)?;
    let mut line = String::new();
    BufReader::new(instance.init().connect(StreamName::Stdout)?).read_line(&mut line)?;
    report(Operation::ForkFirstLine, meter.stop()?)?;
    if line != "ready\n" {
        return Err(format!("a fork printed {line:?}: expected a line \"ready\"").into());
    }
    instance.signal(SIGKILL)?;
    instance.wait()?;
    Ok(instance.remove(PATIENCE)?)
}

fn spec(partition: PartitionId, command: &[&str]) -> Result<InstanceSpec> {
    Ok(InstanceSpec::new("counted".parse()?, image_id()?, command.iter().copied()).in_partition(partition))
}

fn run_to_end(vm: &Vm, spec: &InstanceSpec) -> Result<Instance> {
    let instance = vm.start_instance(spec)?;
    end_well(&instance, spec)?;
    Ok(instance)
}

fn end_well(instance: &Instance, spec: &InstanceSpec) -> Result<()> {
    match instance.wait()?.code {
        0 => Ok(()),
        code => Err(format!("{} ended with exit code {code}: expected 0", spec.process.argv.join(" ")).into()),
    }
}

fn import(source: &Path, report: &dyn Fn(Operation, Cost) -> Result<()>) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let meter = Meter::start()?;
    let store = Store::open(directory.path().join("store"))?;
    let image = OciLayout::open(source.to_owned())?.image(&Platform::host(), None)?;
    store.import(&image, None, &ImportOptions::default())?;
    report(Operation::Import, meter.stop()?)
}
