//! `bellows partition`: the partitions of VMs in the background.

use bellows_memory::ByteSize;
use serde_json::{Value, json};

use super::memory::{Partition, VmMemory};
use super::place::{Place, Seat};
use super::table::{short, short_if_known, table};
use crate::error::CliError;
use crate::guest::whole_blocks;
use crate::options::detached::{PartitionArgs, PartitionCommand};
use crate::output::{print, say};

/// Carries a command out.
pub(crate) fn partition(command: &PartitionCommand) -> Result<u8, CliError> {
    match command {
        PartitionCommand::Ls { vms, json } => list(vms, *json),
        PartitionCommand::Resize { which, size } => Chosen::of(which)?.resize(*size, which.json),
        PartitionCommand::Plug { which, size } => {
            let chosen = Chosen::of(which)?;
            let size = size.unwrap_or(ByteSize::bytes(chosen.partition.memory.window));
            chosen.check_growth(size)?;
            chosen.resize(size, which.json)
        }
        PartitionCommand::Unplug { which } => Chosen::of(which)?.unplug(which.json),
    }?;
    Ok(0)
}

fn list(names: &[String], as_json: bool) -> Result<(), CliError> {
    let place = Place::of_user()?;
    let seats = match names {
        [] => place.all()?,
        names => names.iter().map(|name| place.find(name)).collect::<Result<_, _>>()?,
    };
    let mut rows = Vec::new();
    for seat in seats {
        let said = match seat.client().call("GET", "/memory", None) {
            Ok(said) => said,
            // It may be on its way out.
            Err(error) if names.is_empty() => {
                say(error.chain());
                continue;
            }
            Err(error) => return Err(error),
        };
        if as_json {
            for mut partition in said["partitions"].as_array().cloned().unwrap_or_default() {
                partition["vm"] = json!(seat.name);
                partition["state"] = json!(known::<Partition>(&seat, partition.clone())?.state());
                print(partition)?;
            }
            continue;
        }
        let memory: VmMemory = known(&seat, said)?;
        rows.extend(memory.partitions.iter().map(|partition| row(&seat.name, partition)));
    }
    if as_json {
        return Ok(());
    }
    let head =
        ["VM", "PARTITION", "INSTANCE", "STATE", "WINDOW", "ASKED", "PLUGGED", "USED", "PARKED", "RETURNED", "HOST"];
    print(table(head, rows.into_iter()))
}

fn row(vm: &str, partition: &Partition) -> [String; 11] {
    let sizes = &partition.memory;
    [
        vm.to_owned(),
        sizes.id.to_string(),
        partition.instance.clone().unwrap_or_else(|| "-".into()),
        partition.state().to_owned(),
        short(sizes.window),
        short(partition.asked()),
        short(sizes.plugged),
        short_if_known(partition.used_bytes),
        short(partition.parked()),
        short(sizes.unplugged),
        short_if_known(partition.resident_bytes),
    ]
}

/// The answer of a VM as what it is expected to be.
fn known<T: serde::de::DeserializeOwned>(seat: &Seat, said: Value) -> Result<T, CliError> {
    let wrong = |error| CliError::Conflict(format!("VM `{}` says what this version does not know: {error}", seat.name));
    serde_json::from_value(said).map_err(wrong)
}

/// A partition of a VM.
struct Chosen {
    seat: Seat,
    partition: Partition,
}

impl Chosen {
    fn of(args: &PartitionArgs) -> Result<Self, CliError> {
        let seat = Place::of_user()?.find(&args.vm)?;
        let memory: VmMemory = known(&seat, seat.client().call("GET", "/memory", None)?)?;
        let partition = choose(memory.partitions, &seat.name, args.partition.map(|id| id.get()))?;
        Ok(Self { seat, partition })
    }

    fn path(&self) -> String {
        format!("/partitions/{}", self.partition.memory.id)
    }

    fn check_growth(&self, size: ByteSize) -> Result<(), CliError> {
        let asked = self.partition.asked();
        if size.get() >= asked {
            return Ok(());
        }
        let number = self.partition.memory.id;
        Err(CliError::Taken(format!(
            "partition {number} of VM `{}` has {}, more than {size}: expected `bellows partition resize` to shrink it",
            self.seat.name,
            ByteSize::bytes(asked)
        )))
    }

    fn resize(&self, size: ByteSize, as_json: bool) -> Result<(), CliError> {
        let size = whole_blocks("the size", size);
        let window = self.partition.memory.window;
        if size.get() > window {
            return Err(CliError::Conflict(format!(
                "size {size}: expected at most {}, the window of partition {}",
                ByteSize::bytes(window),
                self.partition.memory.id
            )));
        }
        let report = self.seat.client().call("PATCH", &self.path(), Some(&json!({ "size_mib": size.get() >> 20 })))?;
        self.print(&report, as_json)
    }

    fn unplug(&self, as_json: bool) -> Result<(), CliError> {
        let report = self.seat.client().call("DELETE", &self.path(), None)?;
        self.print(&report, as_json)
    }

    /// Prints the report, or what it comes to.
    fn print(&self, report: &Value, as_json: bool) -> Result<(), CliError> {
        if as_json {
            return print(report);
        }
        let now: Partition = known(&self.seat, self.seat.client().call("GET", &self.path(), None)?)?;
        let number = now.memory.id;
        print(format_args!(
            "partition {number} of {}: {} of {} plugged",
            self.seat.name,
            short(now.memory.plugged),
            short(now.memory.window)
        ))
    }
}

/// The partition that is meant: the one of that number; else the only one, or that of the instance with the VM's name.
fn choose(partitions: Vec<Partition>, vm: &str, number: Option<u16>) -> Result<Partition, CliError> {
    let count = partitions.len();
    let is_it = |partition: &Partition| match number {
        Some(number) => partition.memory.id == number,
        None => count == 1 || partition.instance.as_deref() == Some(vm),
    };
    partitions.into_iter().find(is_it).ok_or_else(|| match number {
        Some(number) => CliError::NotThere(format!("VM `{vm}` has no partition {number}: expected 1 to {count}")),
        None if count == 0 => CliError::NotThere(format!("VM `{vm}` has no partition")),
        None => CliError::NotThere(format!("VM `{vm}` has {count} partitions: expected one of them, by --partition N")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(instances: &[Option<&str>]) -> Vec<Partition> {
        let partition = |(instance, id): (&Option<&str>, u16)| {
            let mut partition = Partition { instance: instance.map(str::to_owned), ..Partition::default() };
            partition.memory.id = id;
            partition
        };
        instances.iter().zip(1..).map(partition).collect()
    }

    #[test]
    fn a_partition_is_meant_by_its_number_or_goes_without_saying() {
        let chosen = |instances: &[Option<&str>], number| {
            choose(partitions(instances), "web", number).map(|chosen| chosen.memory.id).map_err(|error| error.chain())
        };
        assert_eq!(chosen(&[None], None), Ok(1));
        assert_eq!(chosen(&[Some("other"), Some("web")], None), Ok(2));
        assert_eq!(chosen(&[Some("web"), None], Some(2)), Ok(2));
        for (instances, number, part) in
            [(&[None, None][..], None, "--partition N"), (&[], None, "no partition"), (&[None], Some(2), "1 to 1")]
        {
            let refused = chosen(instances, number).unwrap_err();
            assert!(refused.contains(part) && refused.contains("`web`"), "{refused}");
        }
    }

    #[test]
    fn a_row_says_what_is_asked_used_and_held() {
        let mut partition = partitions(&[Some("web")]).remove(0);
        partition.memory.window = 1 << 30;
        partition.memory.target = 128 << 20;
        partition.memory.plugged = 128 << 20;
        partition.used_bytes = Some(20 << 20);
        partition.resident_bytes = None;
        let row = row("vm", &partition);
        assert_eq!(row, ["vm", "1", "web", "Plugged", "1G", "128M", "128M", "20M", "0", "0", "?"]);
    }
}
