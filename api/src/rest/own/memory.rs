//! What the VM and its instances have of the host's memory, as one answer.

use std::sync::{Arc, Mutex, TryLockError};

use bellows_vmm::{ByteSize, InstanceId, InstanceMemory, PartitionId, Vm};
use serde_json::{Value, json};

use super::OwnApi;
use super::table::Entry;

/// One request at a time asks the guest: others do without its figures, however long it takes.
#[derive(Default)]
pub(super) struct Measuring(Mutex<()>);

impl Measuring {
    /// What instances have allocated; `None` if the guest does not say, or is being asked.
    fn measure(&self, vm: &Vm) -> Option<Vec<InstanceMemory>> {
        let _turn = match self.0.try_lock() {
            Err(TryLockError::WouldBlock) => return None,
            turn => turn,
        };
        let measured = vm.measure_instances();
        measured.inspect_err(|error| tracing::debug!(%error, "the guest does not say what instances have")).ok()
    }
}

/// The figures of a VM.
pub(super) fn report(api: &OwnApi, vm: &Vm) -> Value {
    let measured = api.measuring.measure(vm);
    let entries = api.table.all();
    let instances: Vec<_> = entries.iter().map(|entry| of_instance(entry, measured.as_deref())).collect();
    let partitions: Vec<_> = vm
        .partitions()
        .iter()
        .map(|info| {
            let mut said = api.partition(info);
            said["resident_bytes"] = json!(vm.resident_bytes_of(info).ok());
            said["used_bytes"] = json!(used(&entries, info.memory.id, measured.as_deref()));
            said
        })
        .collect();
    let layers = vm.layers().into_iter().map(|layer| {
        let path = layer.path.to_string_lossy().into_owned();
        json!({ "digest": layer.digest, "bytes": layer.bytes, "path": path })
    });
    json!({
        "base_bytes": vm.config().memory,
        "resident_bytes": vm.resident_bytes().ok(),
        "resident_partition_bytes": vm.resident_partition_bytes().ok(),
        "partitions": partitions,
        "instances": instances,
        "layers": layers.collect::<Vec<_>>(),
    })
}

fn of_instance(entry: &Entry, measured: Option<&[InstanceMemory]>) -> Value {
    let memory = measured.and_then(|all| all.iter().find(|memory| memory.instance == entry.id));
    json!({
        "id": entry.id.as_str(),
        "image": entry.wanted.image,
        "labels": entry.wanted.labels,
        "state": entry.status.borrow().name(),
        "partition": entry.partition.map(PartitionId::get),
        "allocated_bytes": memory.map(|memory| memory.allocated),
        "limited_bytes": memory.map(|memory| memory.limited),
    })
}

/// What the instance has that has the partition.
fn used(entries: &[Arc<Entry>], partition: PartitionId, measured: Option<&[InstanceMemory]>) -> Option<ByteSize> {
    let holder: Option<&InstanceId> =
        entries.iter().find(|entry| entry.partition == Some(partition)).map(|entry| &entry.id);
    let Some(holder) = holder else { return Some(ByteSize::bytes(0)) };
    let found = measured?.iter().find(|memory| memory.instance == *holder);
    found.map(|memory| memory.allocated)
}
