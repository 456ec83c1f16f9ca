//! What instances need done with the VM: each function waits for the guest, and leaves nothing half done.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use bellows_vmm::{
    Forwarding, Instance, InstanceError, InstanceSpec, PartitionError, PartitionId, PartitionReport, PlugReport,
    StreamName, Vm, Volume, ZygoteRuntime, ZygoteSpec,
};
use serde_json::{Value, json};

use super::OwnApi;
use super::bodies::NewScratch;
use super::images::Held;
use super::log::LogWriter;
use super::request::Output;
use super::table::{Entry, Phase, Room, Started};
use crate::environment::environment;
use crate::partition::take_back;
use crate::rest::fault::Fault;

/// Time for the guest to do its part of one step.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The partitions that an instance can have.
pub(crate) fn rooms(vm: &Vm) -> Vec<Room> {
    let room = |info: bellows_vmm::PartitionInfo| Room {
        id: info.memory.id,
        window: info.memory.window,
        ready: info.added,
        plugged: info.memory.plugged.get() != 0 && !info.memory.preparing,
    };
    vm.partitions().into_iter().map(room).collect()
}

/// Starts an instance, with its image and its partition; or leaves nothing of it.
pub(crate) fn start(api: &Arc<OwnApi>, vm: &Arc<Vm>, entry: &Arc<Entry>) -> Result<(), Fault> {
    let _turn = entry.turn.lock();
    let begun = Instant::now();
    let image = api.images.hold(vm, &entry.wanted.image)?;
    let volumes = hold_volumes(api, vm, entry).inspect_err(|_| api.images.release(vm, &image, false))?;
    let attached = begun.elapsed();
    let result =
        start_in(vm, entry, &image, &volumes).and_then(|started| run(api, vm, entry, started, attached, begun));
    if result.is_err() {
        volumes.iter().chain([&image]).for_each(|held| api.images.release(vm, held, false));
    } else {
        // There is one start.
        let _ = (entry.image.set(image), entry.volumes.set(volumes));
    }
    result
}

/// Attaches what is missing of an instance's volumes, or nothing.
fn hold_volumes(api: &OwnApi, vm: &Vm, entry: &Entry) -> Result<Vec<Held>, Fault> {
    let mut held = Vec::new();
    for volume in &entry.wanted.volumes {
        match api.images.hold(vm, &volume.image) {
            Ok(image) => held.push(image),
            Err(fault) => {
                held.iter().for_each(|held| api.images.release(vm, held, false));
                return Err(fault);
            }
        }
    }
    Ok(held)
}

fn start_in(vm: &Vm, entry: &Entry, image: &Held, volumes: &[Held]) -> Result<Started, Fault> {
    let wanted = &entry.wanted;
    let spec = spec(entry, image, volumes)?;
    let memory = wanted.memory();
    let (instance, plug) = match (&wanted.python_zygote, entry.partition) {
        (None, None) => (vm.start_instance(&spec).map_err(of_instance)?, None),
        (None, Some(_)) => {
            let (instance, plug) = vm.plug_and_start(&spec, memory, LIMIT).map_err(of_instance)?;
            (instance, Some(plug))
        }
        (Some(modules), partition) => {
            let plug =
                partition.map(|partition| vm.plug(partition, memory, LIMIT)).transpose().map_err(of_partition)?;
            let runtime = ZygoteRuntime::Python { modules: modules.clone() };
            let zygote = ZygoteSpec { instance: spec, runtime };
            match vm.start_zygote(&zygote) {
                Ok(instance) => (instance, plug),
                Err(error) => {
                    give_back(vm, entry);
                    return Err(of_instance(error));
                }
            }
        }
    };
    Ok(Started { instance: Arc::new(instance), plug })
}

/// The instance as the library takes it: what the request leaves out is the image's.
fn spec(entry: &Entry, image: &Held, volumes: &[Held]) -> Result<InstanceSpec, Fault> {
    let (wanted, defaults) = (&entry.wanted, &image.defaults);
    let argv = match &wanted.python_zygote {
        Some(_) if wanted.argv.is_empty() => vec!["python3".to_owned()],
        Some(_) => wanted.argv.clone(),
        None => defaults.argv(&wanted.argv),
    };
    if argv.is_empty() {
        return Err(Fault::value("argv", "empty", "a command, for the image has none of its own"));
    }
    let mut spec = InstanceSpec::new(entry.id.clone(), image.id.clone(), argv);
    spec.process.env = variables(&defaults.env, &wanted.env)?;
    spec.process.cwd = wanted.cwd.clone().unwrap_or_else(|| defaults.working_dir.clone());
    let user = wanted.user.as_ref().unwrap_or(&defaults.user);
    spec.process.user = user.parse().map_err(|error| Fault::of(&error))?;
    spec.partition = entry.partition;
    spec.network = wanted.network.clone();
    spec.base_limit = wanted.base_limit_mib.map(|mib| bellows_vmm::ByteSize::mib(mib.into()));
    spec.pids_max = wanted.pids_max.unwrap_or(spec.pids_max);
    let zygote = wanted.fork_of.as_ref().map(|zygote| zygote.parse()).transpose();
    spec.fork_of = zygote.map_err(|error: bellows_vmm::ValueError| Fault::of(&error))?;
    for (wanted, held) in wanted.volumes.iter().zip(volumes) {
        let path = wanted.path.parse().map_err(|error: bellows_vmm::ValueError| Fault::of(&error))?;
        spec.volumes.push(Volume { image: held.id.clone(), path });
    }
    spec.scratch = wanted.scratch.as_ref().map(NewScratch::spec).transpose()?;
    spec.validate().map_err(|error| Fault::of(&error))?;
    Ok(spec)
}

/// Environment variables; a name alone has no value here.
pub(crate) fn variables(image: &[String], given: &[String]) -> Result<Vec<String>, Fault> {
    environment(image, &[], given, |_| None).map_err(|error| Fault::of(&error))
}

/// Follows a started instance: its output goes to its log, and its end to its status.
fn run(
    api: &Arc<OwnApi>,
    vm: &Arc<Vm>,
    entry: &Arc<Entry>,
    started: Started,
    attached: Duration,
    begun: Instant,
) -> Result<(), Fault> {
    let instance = started.instance.clone();
    let followed = follow(api.clone(), vm.clone(), entry.clone(), &instance);
    if let Err(fault) = followed {
        if let Err(error) = instance.remove(LIMIT) {
            tracing::warn!(%error, instance = %entry.id, "an instance that cannot be followed stays");
        }
        give_back(vm, entry);
        return Err(fault);
    }
    let figures = json!({
        "image_ms": milliseconds(attached),
        "plug": started.plug,
        "total_ms": milliseconds(begun.elapsed()),
    });
    api.figures.start.add(begun.elapsed());
    api.table.started.fetch_add(1, Ordering::Relaxed);
    if let Some(plug) = &started.plug {
        api.figures.plug.add(plug.usable);
    }
    // There is one start.
    let _ = entry.handle.set(started);
    entry.status.send_modify(|status| {
        status.started = figures;
        // It may have ended already.
        if status.is_starting() {
            status.phase = Phase::Running;
        }
    });
    api.events.tell("instance", json!({ "id": entry.id.as_str(), "state": "Running" }));
    Ok(())
}

fn follow(api: Arc<OwnApi>, vm: Arc<Vm>, entry: Arc<Entry>, instance: &Arc<Instance>) -> Result<(), Fault> {
    entry.log.await_first(tracing::debug_span!("first byte", instance = %entry.id));
    let forward = |stream, output| {
        let writer = LogWriter { log: entry.log.clone(), stream: output };
        instance.forward(stream, writer).map_err(of_instance)
    };
    let outputs = [forward(StreamName::Stdout, Output::Stdout)?, forward(StreamName::Stderr, Output::Stderr)?];
    let (instance, followed) = (instance.clone(), entry.clone());
    let wait = move || {
        let status = instance.wait();
        outputs.into_iter().map(Forwarding::join).filter_map(Result::err).for_each(|error| {
            tracing::debug!(%error, instance = %followed.id, "output of an instance is lost");
        });
        let phase = match status {
            Ok(status) => Phase::Exited(status.into()),
            Err(error) => Phase::Lost(error.to_string()),
        };
        followed.log.end();
        let mut event = json!({ "id": followed.id.as_str(), "state": "Exited" });
        if let Phase::Exited(ended) = &phase {
            event["ended"] = json!(ended);
            api.table.oom_killed.fetch_add(ended.oom_killed.into(), Ordering::Relaxed);
        }
        let was_there = followed.status.send_if_modified(|status| {
            let goes_on = !status.is_over();
            if goes_on {
                status.phase = phase;
            }
            goes_on
        });
        if was_there {
            api.events.tell("instance", event);
        }
        if was_there
            && followed.wanted.shutdown_at_exit
            && let Err(error) = vm.power_off(LIMIT)
        {
            tracing::warn!(%error, "the guest cannot be asked to switch itself off");
            vm.stop();
        }
    };
    let spawned = thread::Builder::new().name("instance".into()).spawn(wait);
    spawned.map(drop).map_err(|error| Fault::with_status(503, format!("cannot follow the instance: {error}")))
}

/// Ends an instance, takes it apart, and gives its partition back: in the order that makes that cheap.
pub(crate) fn remove(api: &OwnApi, vm: &Vm, entry: &Entry) -> Result<Value, Fault> {
    let _turn = entry.turn.lock();
    if let Phase::Removed(report) = &entry.status.borrow().phase {
        return Ok(report.clone());
    }
    let started = entry.started()?;
    let begun = Instant::now();
    entry.status.send_modify(|status| status.removing = true);
    let removed = started.instance.remove(LIMIT).map_err(of_instance);
    let taken_apart = begun.elapsed();
    let given_back = removed.and_then(|()| match (entry.partition, &started.plug) {
        (Some(partition), Some(plug)) => return_partition(api, vm, partition, plug).map(Some),
        _ => Ok(None),
    });
    let partition = given_back.inspect_err(|_| entry.status.send_modify(|status| status.removing = false))?;
    let report = json!({
        "remove_ms": milliseconds(taken_apart),
        "total_ms": milliseconds(begun.elapsed()),
        "partition": partition,
    });
    for held in entry.image.get().into_iter().chain(entry.volumes.get().into_iter().flatten()) {
        api.images.release(vm, held, true);
    }
    api.table.forget(entry);
    entry.status.send_modify(|status| status.phase = Phase::Removed(report.clone()));
    entry.log.end();
    api.events.tell("instance", json!({ "id": entry.id.as_str(), "state": "Removed" }));
    Ok(report)
}

/// Gives a partition back, and says how it went.
fn return_partition(
    api: &OwnApi,
    vm: &Vm,
    partition: PartitionId,
    plug: &PlugReport,
) -> Result<PartitionReport, Fault> {
    let report = take_back(vm, partition, plug, LIMIT).map_err(of_partition)?;
    api.has_unplugged(partition, report.unplug, report.discard, report.left);
    Ok(report)
}

/// Gives the partition of an instance back that has not started.
fn give_back(vm: &Vm, entry: &Entry) {
    if let Some(partition) = entry.partition
        && let Err(error) = vm.unplug(partition, LIMIT)
    {
        tracing::warn!(%error, %partition, "memory of a partition stays plugged");
    }
}

/// Freezes an instance; answers what that has given back.
pub(crate) fn freeze(entry: &Entry) -> Result<Value, Fault> {
    let _turn = entry.turn.lock();
    let report = entry.started()?.instance.freeze(LIMIT).map_err(of_instance)?;
    entry.status.send_modify(|status| status.frozen = true);
    Ok(json!(report))
}

/// Has a frozen instance go on.
pub(crate) fn thaw(entry: &Entry) -> Result<Value, Fault> {
    let _turn = entry.turn.lock();
    let report = entry.started()?.instance.thaw(LIMIT).map_err(of_instance)?;
    entry.status.send_modify(|status| status.frozen = false);
    Ok(json!(report))
}

pub(crate) fn of_instance(error: InstanceError) -> Fault {
    Fault::of_kind(error.kind(), &error)
}

pub(crate) fn of_partition(error: PartitionError) -> Fault {
    Fault::of_kind(error.kind(), &error)
}

fn milliseconds(time: Duration) -> f64 {
    // To the microsecond, as all reports.
    time.as_micros() as f64 / 1e3
}
