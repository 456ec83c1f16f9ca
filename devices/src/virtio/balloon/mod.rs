//! virtio-balloon, VIRTIO 1.2 section 5.5: base memory that the guest can do without goes back to the host.
//!
//! It goes in three ways: the guest puts pages into the balloon until it has the size that the host wants (inflate, deflate),
//! it reports pages as they become free (free page reporting), or it names free pages when the host asks (free page hinting).
//! It also reports statistics of its memory. Partitions have devices of their own: [`Mem`](super::Mem).

use std::sync::Arc;

use bellows_memory::{BaseDiscard, ByteSize, field};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::QueueState;
use vm_memory::ByteValued as _;

use self::handler::Handler;
use self::hinting::Hinting;
use self::shared::Shared;
use self::wire::{F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_REPORTING, F_STATS_VQ, VirtioBalloonConfig};
use super::device::read_bytes;
use super::state::{BalloonState, DeviceState};
use super::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::OnLoop;
use crate::state::{RestoreError, Version, expect};

mod control;
mod handler;
pub mod hinting;
mod report;
mod shared;
pub mod statistics;
pub mod wire;

pub use self::control::{BalloonError, BalloonHandle};
pub use self::hinting::HintingStatus;
pub use self::report::{Discards, Report};
pub use self::statistics::MemoryStatistics;

/// For each queue. Linux wants 32 descriptors for reports, and gives up hints that find no room.
const QUEUE_SIZES: &[u16] = &[256; 5];

/// What a balloon is made with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BalloonSettings {
    /// Its first target.
    pub target: ByteSize,
    /// The driver takes pages back where the guest's kernel would kill for want of memory.
    pub deflate_on_oom: bool,
    /// Seconds between statistics; 0 for none.
    pub stats_polling_interval_s: u16,
    /// Free page hinting.
    pub free_page_hinting: bool,
    /// Free page reporting.
    pub free_page_reporting: bool,
}

impl BalloonSettings {
    /// Feature bits offered.
    fn features(&self) -> u64 {
        [
            (self.deflate_on_oom, F_DEFLATE_ON_OOM),
            (self.stats_polling_interval_s != 0, F_STATS_VQ),
            (self.free_page_hinting, F_FREE_PAGE_HINT),
            (self.free_page_reporting, F_REPORTING),
        ]
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(0, |features, (_, feature)| features | feature)
    }

    /// Number of queues.
    #[must_use]
    pub fn queues(&self) -> usize {
        handler::queues(self.features())
    }
}

/// A balloon.
pub struct Balloon {
    base: BaseDiscard,
    features: u64,
    shared: Arc<Shared>,
    active: Option<OnLoop<Handler>>,
}

impl Balloon {
    /// A balloon for the memory of `base`, not active yet.
    ///
    /// # Errors
    /// The target is invalid, or the system has no timer.
    pub fn new(settings: &BalloonSettings, base: BaseDiscard) -> Result<Self, BalloonError> {
        let pages = control::pages(settings.target, base.base())?;
        let shared = Shared::new(base.base(), pages, settings.stats_polling_interval_s).map_err(BalloonError::Timer)?;
        Ok(Self { base, features: settings.features(), shared: Arc::new(shared), active: None })
    }

    /// The host's control of this device.
    #[must_use]
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle::new(self.shared.clone(), self.features)
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        VIRTIO_ID_BALLOON as u16
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..handler::queues(self.features)]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn config_generation(&self) -> u8 {
        self.shared.state().generation
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.shared.state();
        let config = VirtioBalloonConfig {
            num_pages: state.num_pages.into(),
            actual: state.actual.into(),
            free_page_hint_cmd_id: state.hinting.host_cmd().into(),
            ..Default::default()
        };
        drop(state);
        read_bytes(config.as_slice(), offset, data);
    }

    /// The driver says how large the balloon is.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let actual = field!(VirtioBalloonConfig, actual);
        self.shared.change(|state| {
            let mut bytes = state.actual.to_le_bytes();
            for (at, byte) in (0..).map_while(|index| offset.checked_add(index)).zip(data) {
                if (u64::from(actual.start)..u64::from(actual.end)).contains(&at) {
                    bytes[(at - u64::from(actual.start)) as usize] = *byte;
                }
            }
            state.actual = u32::from_le_bytes(bytes);
        });
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let handler = Handler::new(&mut activation, &self.shared, &self.base)?;
        self.active = Some(activation.event_loop.add(handler).map_err(ActivateError::EventLoop)?);
        self.shared.activated(activation.interrupt, activation.features);
        Ok(())
    }

    /// Targets and runs of hinting may be set meanwhile. The buffer with statistics stays the driver's next one.
    fn suspend(&mut self) -> Vec<Option<QueueState>> {
        let count = self.queue_max_sizes().len();
        match self.active.take().and_then(OnLoop::take_back) {
            Some(handler) => handler.into_states(count),
            None => vec![None; count],
        }
    }

    /// The balloon of the driver is gone, with its pages; the target stays.
    fn reset(&mut self) {
        self.active = None;
        self.shared.reset();
    }

    /// What has been discarded, and the statistics, which the driver's buffer holds, are not part of it.
    fn save(&self) -> DeviceState {
        let state = self.shared.state();
        DeviceState::Balloon(BalloonState {
            version: Version,
            features: self.features,
            num_pages: state.num_pages,
            actual: state.actual,
            hinting: state.hinting.save(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Balloon(saved) = state else { return expect("device state", state, &self.save()) };
        expect("features of the balloon", &saved.features, &self.features)?;
        let largest = self.base.base().get() >> wire::PAGE_SHIFT;
        if u64::from(saved.num_pages) > largest {
            let expected = format!("at most the {largest} pages of base memory");
            return Err(RestoreError::new("num_pages of the balloon", saved.num_pages, expected));
        }
        let hinting = Hinting::restore(saved.hinting)?;
        self.shared.change(|state| {
            (state.num_pages, state.actual, state.hinting) = (saved.num_pages, saved.actual, hinting);
        });
        Ok(())
    }
}

#[cfg(test)]
#[path = "balloon_test.rs"]
mod tests;
