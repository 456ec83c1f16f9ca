//! What the guest says of its partitions, checked.

use std::time::Duration;

use bellows_protocol::agent::{self, DriverState};

use super::{AgentError, answer_error, expect, shown};
use crate::config::PartitionMode;

/// Most holders of a partition that are kept, and most mounts.
const MAX_HOLDERS: usize = 256;

/// What a partition's memory is used for, as the guest says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PartitionUse {
    /// Memory of the node; none while it is parked.
    pub total_bytes: u64,
    /// Free memory of the node.
    pub free_bytes: u64,
    /// Anonymous memory and shared memory.
    pub anonymous_bytes: u64,
    /// Page cache.
    pub file_bytes: u64,
    /// Processes with memory there.
    pub holders: Vec<Holder>,
    /// Where tmpfs are mounted that belong to the partition, with the extension.
    pub tmpfs_mounts: Vec<String>,
    /// What the guest's driver says; `None` with a stock kernel.
    pub driver: Option<GuestDriver>,
}

/// A process that has memory in a partition.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Its number in the guest.
    pub pid: u32,
    /// Its command.
    pub command: String,
    /// How much.
    pub bytes: u64,
}

/// What the guest kernel's driver says of a partition's device. Nothing on the host depends on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GuestDriver {
    /// What it is doing.
    pub state: GuestState,
    /// Who keeps the partition's memory apart.
    pub mode: PartitionMode,
    /// 4 KiB pages in use, with the extension.
    pub allocated_pages: u64,
    /// How often it was parked.
    pub parks: u64,
    /// How often it was plugged from there.
    pub unparks: u64,
    /// How often a park found pages in use.
    pub park_misses: u64,
    /// The last plug request that was complete.
    pub last_plug: GuestTimes,
    /// The last unplug request that was complete.
    pub last_unplug: GuestTimes,
}

/// What a driver is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuestState {
    /// Taking memory.
    Plugging,
    /// Nothing: all that it is to have is there.
    Online,
    /// Giving memory back.
    Draining,
    /// Nothing: all memory is back, and it kept its memory map.
    Parked,
    /// Nothing: all memory is back.
    Empty,
    /// Nothing any more.
    Broken,
}

/// What a request took, by the guest's clock.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GuestTimes {
    /// From when the driver started to work to when the host had acknowledged all of it.
    pub total: Duration,
    /// Of that, waiting for the host.
    pub host: Duration,
}

impl GuestTimes {
    /// The guest's own part.
    #[must_use]
    pub fn guest(&self) -> Duration {
        self.total.saturating_sub(self.host)
    }
}

impl PartitionUse {
    pub(super) fn parse(call: &'static str, node: u32, answer: agent::PartitionMemory) -> Result<Self, AgentError> {
        expect(call, "node", answer.node, node)?;
        if answer.free_bytes > answer.total_bytes {
            return Err(answer_error(call, "free bytes", answer.free_bytes, format!("at most {}", answer.total_bytes)));
        }
        let holder =
            |holder: agent::Holder| Holder { pid: holder.pid, command: shown(&holder.command), bytes: holder.bytes };
        Ok(Self {
            total_bytes: answer.total_bytes,
            free_bytes: answer.free_bytes,
            anonymous_bytes: answer.anonymous_bytes,
            file_bytes: answer.file_bytes,
            holders: answer.holders.into_iter().take(MAX_HOLDERS).map(holder).collect(),
            tmpfs_mounts: answer.tmpfs_mounts.iter().take(MAX_HOLDERS).map(|point| shown(point)).collect(),
            driver: answer.driver.as_ref().map(|driver| GuestDriver::parse(call, driver)).transpose()?,
        })
    }
}

impl GuestDriver {
    fn parse(call: &'static str, answer: &agent::PartitionDriver) -> Result<Self, AgentError> {
        let state = match answer.state.enum_value() {
            Ok(DriverState::PLUGGING) => GuestState::Plugging,
            Ok(DriverState::ONLINE) => GuestState::Online,
            Ok(DriverState::DRAINING) => GuestState::Draining,
            Ok(DriverState::PARKED) => GuestState::Parked,
            Ok(DriverState::EMPTY) => GuestState::Empty,
            Ok(DriverState::BROKEN) => GuestState::Broken,
            Ok(DriverState::UNKNOWN) | Err(_) => {
                return Err(answer_error(call, "driver state", answer.state.value(), "1 to 6".into()));
            }
        };
        Ok(Self {
            state,
            mode: if answer.private { PartitionMode::Extension } else { PartitionMode::Stock },
            allocated_pages: answer.allocated_pages,
            parks: answer.parks,
            unparks: answer.unparks,
            park_misses: answer.park_misses,
            last_plug: times(call, answer.last_plug_ns, answer.last_plug_host_ns)?,
            last_unplug: times(call, answer.last_unplug_ns, answer.last_unplug_host_ns)?,
        })
    }
}

fn times(call: &'static str, total: u64, host: u64) -> Result<GuestTimes, AgentError> {
    if host > total {
        return Err(answer_error(call, "nanoseconds of the host", host, format!("at most {total}, the whole")));
    }
    Ok(GuestTimes { total: Duration::from_nanos(total), host: Duration::from_nanos(host) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(driver: agent::PartitionDriver) -> agent::PartitionMemory {
        agent::PartitionMemory { node: 1, driver: Some(driver).into(), ..Default::default() }
    }

    fn parked() -> agent::PartitionDriver {
        agent::PartitionDriver {
            state: DriverState::PARKED.into(),
            private: true,
            last_unplug_ns: 5000,
            last_unplug_host_ns: 3000,
            ..Default::default()
        }
    }

    #[test]
    fn what_the_driver_says_is_understood() {
        let driver = PartitionUse::parse("X", 1, answer(parked())).unwrap().driver.unwrap();
        assert_eq!((driver.state, driver.mode), (GuestState::Parked, PartitionMode::Extension));
        assert_eq!(driver.last_unplug.guest(), Duration::from_micros(2));
        let stock = agent::PartitionDriver { private: false, ..parked() };
        let driver = PartitionUse::parse("X", 1, answer(stock)).unwrap().driver.unwrap();
        assert_eq!(driver.mode, PartitionMode::Stock);
        let silent = agent::PartitionMemory { node: 1, ..Default::default() };
        assert_eq!(PartitionUse::parse("X", 1, silent).unwrap(), PartitionUse::default());
    }

    #[test]
    fn what_the_driver_can_not_say_is_refused() {
        let text = |driver| PartitionUse::parse("X", 1, answer(driver)).unwrap_err().to_string();
        let error = text(agent::PartitionDriver { state: protobuf::EnumOrUnknown::from_i32(9), ..parked() });
        assert!(error.contains("driver state 9"), "{error}");
        let error = text(agent::PartitionDriver::new());
        assert!(error.contains("driver state 0"), "{error}");
        let error = text(agent::PartitionDriver { last_plug_host_ns: 1, ..parked() });
        assert!(error.contains("nanoseconds of the host 1"), "{error}");
    }

    #[test]
    fn lists_are_bounded_and_printable() {
        let mounts = vec!["/a\n".to_owned(); MAX_HOLDERS + 1];
        let answer = agent::PartitionMemory { node: 1, tmpfs_mounts: mounts, ..Default::default() };
        let usage = PartitionUse::parse("X", 1, answer).unwrap();
        assert_eq!((usage.tmpfs_mounts.len(), usage.tmpfs_mounts[0].as_str()), (MAX_HOLDERS, "/a\\n"));
    }
}
