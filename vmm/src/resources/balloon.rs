//! The balloon of a VM: what the host asks of it, and what it reports.

use std::time::Duration;

use bellows_devices::event_loop::EventLoop;
use bellows_devices::virtio::balloon::{self, Discards, HintingStatus, MemoryStatistics};
use bellows_devices::virtio::{Balloon as Device, BalloonHandle};
use bellows_memory::{BaseDiscard, ByteSize};
use serde::Serialize;

use crate::config::BalloonConfig;
use crate::end::EndSignal;
use crate::kind::ErrorKind;
use crate::milliseconds;
use crate::virtio_bus::{DeviceError, VirtioBus};

/// The balloon of a VM ([`Vm::balloon`](crate::Vm::balloon)). All methods may be called from any thread, and also while the VM
/// is paused: then the guest hears of it when the VM goes on.
pub struct Balloon {
    handle: BalloonHandle,
    /// Freeing memory takes time, which no other device shall wait for.
    _event_loop: EventLoop,
}

impl Balloon {
    /// Puts a balloon for the memory of `base` on the bus.
    pub(crate) fn add(
        bus: &VirtioBus,
        base: BaseDiscard,
        config: &BalloonConfig,
        end: &EndSignal,
    ) -> Result<Self, BalloonError> {
        let device = Device::new(&config.settings(), base)?;
        let handle = device.handle();
        let event_loop = bus.event_loop("balloon")?;
        bus.add("balloon", device, event_loop.handle())?;
        end.on_end({
            let handle = handle.clone();
            move || handle.end()
        });
        Ok(Self { handle, _event_loop: event_loop })
    }

    /// Sets the size that the balloon is to have: a multiple of 4 KiB, at most base memory. The guest's driver works on it in
    /// its own time, and does not give up while the guest has too little memory; [`Balloon::wait`] waits for it.
    ///
    /// # Errors
    /// The size is invalid; the old one stands.
    pub fn set_target(&self, target: ByteSize) -> Result<(), BalloonError> {
        Ok(self.handle.set_target(target)?)
    }

    /// The guest's memory by its own account, as of the last time that the driver was asked. Nothing on the host depends on
    /// it.
    ///
    /// # Errors
    /// The balloon has no statistics.
    pub fn statistics(&self) -> Result<BalloonStatistics, BalloonError> {
        let report = self.handle.report();
        if report.polling_interval_s == 0 {
            return Err(balloon::BalloonError::NoStatistics.into());
        }
        Ok(BalloonStatistics::new(&report))
    }

    /// Sets how often the driver is asked for statistics, in seconds.
    ///
    /// # Errors
    /// The balloon has no statistics, or the interval is 0: they can be turned on and off only before the VM boots.
    pub fn set_polling_interval(&self, seconds: u16) -> Result<(), BalloonError> {
        Ok(self.handle.set_polling_interval(seconds)?)
    }

    /// Starts a run of free page hinting, in place of one that goes on: the guest names the free pages that it has, and the
    /// host discards them. The guest keeps them allocated; it may use them again when it has named all
    /// (`acknowledge_on_stop`), or else after [`Balloon::stop_hinting`].
    ///
    /// The interface was made for migration, and has a gap: a guest that runs short of memory during a run takes pages back
    /// before the host has seen that they were named, and may find them discarded while it uses them. Start a run only while
    /// the guest has memory to spare, or use free page reporting, which has no such gap.
    ///
    /// # Errors
    /// The balloon has no hinting, or the guest has no driver for it.
    pub fn start_hinting(&self, acknowledge_on_stop: bool) -> Result<(), BalloonError> {
        Ok(self.handle.start_hinting(acknowledge_on_stop)?)
    }

    /// The last run of free page hinting.
    ///
    /// # Errors
    /// The balloon has no hinting.
    pub fn hinting(&self) -> Result<HintingStatus, BalloonError> {
        self.handle.check_hinting()?;
        Ok(self.handle.report().hinting)
    }

    /// Ends the run of free page hinting: no page is discarded any more when this returns.
    ///
    /// # Errors
    /// The balloon has no hinting.
    pub fn stop_hinting(&self) -> Result<(), BalloonError> {
        Ok(self.handle.stop_hinting()?)
    }

    /// Where the balloon stands, and what has come back to the host.
    #[must_use]
    pub fn report(&self) -> BalloonReport {
        BalloonReport::new(&self.handle.report())
    }

    /// Waits until the balloon's report is as `wanted`, which is asked after each change.
    ///
    /// # Errors
    /// It is not after `timeout`, or the VM has ended.
    pub fn wait(
        &self,
        timeout: Duration,
        wanted: impl Fn(&BalloonReport) -> bool,
    ) -> Result<BalloonReport, BalloonError> {
        let report = self.handle.wait(timeout, |report| wanted(&BalloonReport::new(report)))?;
        Ok(BalloonReport::new(&report))
    }
}

/// Where a balloon stands, and what has come back to the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct BalloonReport {
    /// The size that it is to have.
    #[serde(rename = "target_bytes")]
    pub target: ByteSize,
    /// Its size, by the guest's account.
    #[serde(rename = "actual_bytes")]
    pub actual: ByteSize,
    /// The last run of free page hinting.
    pub hinting: HintingStatus,
    /// What has come back, by cause.
    pub discarded: Discards,
}

impl BalloonReport {
    fn new(report: &balloon::Report) -> Self {
        let balloon::Report { target, actual, hinting, discarded, .. } = *report;
        Self { target, actual, hinting, discarded }
    }
}

/// The guest's memory by its own account. The names are Firecracker's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct BalloonStatistics {
    /// The size that the balloon is to have, in pages of 4 KiB.
    pub target_pages: u64,
    /// Its size by the guest's account, in pages of 4 KiB.
    pub actual_pages: u64,
    /// The size that it is to have, in MiB, rounded down.
    pub target_mib: u64,
    /// Its size by the guest's account, in MiB, rounded down.
    pub actual_mib: u64,
    /// What the driver has reported.
    #[serde(flatten)]
    pub memory: MemoryStatistics,
    /// How long ago it did so; `None` before the first time.
    #[serde(rename = "age_ms", serialize_with = "milliseconds::serialize_option")]
    pub age: Option<Duration>,
}

impl BalloonStatistics {
    fn new(report: &balloon::Report) -> Self {
        let (target, actual) = (report.target.get(), report.actual.get());
        Self {
            target_pages: target >> 12,
            actual_pages: actual >> 12,
            target_mib: target >> 20,
            actual_mib: actual >> 20,
            memory: report.statistics,
            age: report.statistics_age,
        }
    }
}

/// Why a balloon did not do what the host asked for.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// It cannot.
    #[error(transparent)]
    Refused(#[from] balloon::BalloonError),
    /// The device could not be put in place.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl BalloonError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        use balloon::BalloonError as Refused;
        match self {
            Self::Refused(Refused::Target { .. } | Refused::PollingInterval) => ErrorKind::Invalid,
            Self::Refused(Refused::NoStatistics | Refused::NoHinting | Refused::Ended) => ErrorKind::Conflict,
            Self::Refused(Refused::NoDriver | Refused::Late { .. }) => ErrorKind::Guest,
            Self::Refused(Refused::Timer(_)) => ErrorKind::Host,
            Self::Device(error) => error.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_have_firecrackers_names_and_units_in_their_own() {
        let mut memory = MemoryStatistics::default();
        memory.update(&[&4_u16.to_le_bytes()[..], &4096_u64.to_le_bytes()].concat());
        let report = balloon::Report {
            target: ByteSize::mib(3),
            actual: ByteSize::kib(2044),
            statistics: memory,
            statistics_age: Some(Duration::from_millis(1500)),
            polling_interval_s: 1,
            hinting: HintingStatus { host_cmd: 1, guest_cmd: Some(0) },
            discarded: Discards { inflated: ByteSize::mib(1), refused: 2, ..Discards::default() },
        };
        assert_eq!(
            serde_json::to_value(BalloonStatistics::new(&report)).unwrap(),
            serde_json::json!({
                "target_pages": 768, "actual_pages": 511, "target_mib": 3, "actual_mib": 1, "free_memory": 4096,
                "age_ms": 1500.0,
            })
        );
        assert_eq!(
            serde_json::to_value(BalloonReport::new(&report)).unwrap(),
            serde_json::json!({
                "target_bytes": 3 << 20, "actual_bytes": 2044 << 10, "hinting": { "host_cmd": 1, "guest_cmd": 0 },
                "discarded": { "inflated_bytes": 1 << 20, "reported_bytes": 0, "hinted_bytes": 0, "refused": 2 },
            })
        );
    }

    #[test]
    fn an_error_says_whose_fault_it_is() {
        let report = balloon::Report {
            target: ByteSize::mib(3),
            actual: ByteSize::mib(1),
            statistics: MemoryStatistics::default(),
            statistics_age: None,
            polling_interval_s: 0,
            hinting: HintingStatus { host_cmd: 0, guest_cmd: None },
            discarded: Discards::default(),
        };
        let late = balloon::BalloonError::Late { waited: Duration::from_secs(1), report: Box::new(report) };
        for (error, kind) in [
            (balloon::BalloonError::PollingInterval, ErrorKind::Invalid),
            (balloon::BalloonError::NoHinting, ErrorKind::Conflict),
            (balloon::BalloonError::NoDriver, ErrorKind::Guest),
            (late, ErrorKind::Guest),
        ] {
            assert_eq!(BalloonError::from(error).kind(), kind);
        }
    }
}
