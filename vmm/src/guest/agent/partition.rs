//! The guest's answers about its partitions, checked.

use std::time::Duration;

use bellows_protocol::agent::{self, DriverState};

use super::{AgentError, answer_error, expect, shown};
use crate::config::PartitionMode;
use crate::model::{GuestDriver, GuestState, GuestTimes, Holder, PartitionUse};

/// Most holders of a partition that are kept; the same limit holds for its mounts.
const MAX_HOLDERS: usize = 256;

impl PartitionUse {
    pub(super) fn parse(call: &'static str, node: u32, answer: agent::PartitionMemory) -> Result<Self, AgentError> {
        expect(call, "node", answer.node, node)?;
        if answer.free_bytes > answer.total_bytes {
            return Err(answer_error(call, "free bytes", answer.free_bytes, format!("at most {}", answer.total_bytes)));
        }
        let holder = |holder: agent::Holder| {
            let instance = Some(&holder.instance_id).filter(|id| !id.is_empty());
            let instance = instance
                .map(|id| id.parse())
                .transpose()
                .map_err(|_| answer_error(call, "instance", shown(&holder.instance_id), "an identifier".into()))?;
            Ok(Holder { pid: holder.pid, command: shown(&holder.command), instance, bytes: holder.bytes })
        };
        let holders = answer.holders.into_iter().take(MAX_HOLDERS).map(holder).collect::<Result<_, _>>()?;
        Ok(Self {
            total_bytes: answer.total_bytes,
            free_bytes: answer.free_bytes,
            anonymous_bytes: answer.anonymous_bytes,
            file_bytes: answer.file_bytes,
            holders,
            tmpfs_mounts: answer.tmpfs_mounts.iter().take(MAX_HOLDERS).map(|point| shown(point)).collect(),
            driver: answer.driver.as_ref().map(|driver| GuestDriver::parse(call, driver)).transpose()?,
        })
    }
}

impl GuestDriver {
    /// What a driver's report about `node` says of it; `None` if the driver does not say.
    pub(super) fn reported(
        call: &'static str,
        node: u32,
        answer: &agent::DriverReport,
    ) -> Result<Option<Self>, AgentError> {
        expect(call, "node", answer.node, node)?;
        answer.driver.as_ref().map(|driver| Self::parse(call, driver)).transpose()
    }

    pub(super) fn parse(call: &'static str, answer: &agent::PartitionDriver) -> Result<Self, AgentError> {
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
    fn a_drivers_answer_is_understood() {
        let driver = PartitionUse::parse("X", 1, answer(parked())).unwrap().driver.unwrap();
        assert_eq!((driver.state, driver.mode), (GuestState::Parked, PartitionMode::Extension));
        assert_eq!(driver.last_unplug.guest(), Duration::from_micros(2));
        let stock = agent::PartitionDriver { private: false, ..parked() };
        let driver = PartitionUse::parse("X", 1, answer(stock)).unwrap().driver.unwrap();
        assert_eq!(driver.mode, PartitionMode::Stock);
        let report = agent::DriverReport { node: 1, driver: Some(parked()).into(), ..Default::default() };
        assert_eq!(
            GuestDriver::reported("X", 1, &report).unwrap().map(|driver| driver.state),
            Some(GuestState::Parked)
        );
        let other = GuestDriver::reported("X", 2, &report).unwrap_err().to_string();
        assert!(other.contains("node 1"), "{other}");
        let silent = agent::PartitionMemory { node: 1, ..Default::default() };
        assert_eq!(PartitionUse::parse("X", 1, silent).unwrap(), PartitionUse::default());
    }

    #[test]
    fn impossible_answers_of_a_driver_are_refused() {
        let text = |driver| PartitionUse::parse("X", 1, answer(driver)).unwrap_err().to_string();
        let error = text(agent::PartitionDriver { state: protobuf::EnumOrUnknown::from_i32(9), ..parked() });
        assert!(error.contains("driver state 9"), "{error}");
        let error = text(agent::PartitionDriver::new());
        assert!(error.contains("driver state 0"), "{error}");
        let error = text(agent::PartitionDriver { last_plug_host_ns: 1, ..parked() });
        assert!(error.contains("nanoseconds of the host 1"), "{error}");
    }

    #[test]
    fn holders_belong_to_instances() {
        let holders = |id: &str| {
            let holder = agent::Holder { pid: 7, instance_id: id.into(), ..Default::default() };
            PartitionUse::parse("X", 1, agent::PartitionMemory { node: 1, holders: vec![holder], ..Default::default() })
        };
        assert_eq!(holders("").unwrap().holders[0].instance, None);
        assert_eq!(holders("f-1").unwrap().holders[0].instance, Some("f-1".parse().unwrap()));
        let error = holders("\x1b[2J").unwrap_err().to_string();
        assert!(error.contains("instance") && !error.contains('\x1b'), "{error}");
    }

    #[test]
    fn lists_are_bounded_and_printable() {
        let mounts = vec!["/a\n".to_owned(); MAX_HOLDERS + 1];
        let answer = agent::PartitionMemory { node: 1, tmpfs_mounts: mounts, ..Default::default() };
        let usage = PartitionUse::parse("X", 1, answer).unwrap();
        assert_eq!((usage.tmpfs_mounts.len(), usage.tmpfs_mounts[0].as_str()), (MAX_HOLDERS, "/a\\n"));
    }
}
