//! The balloon in a configuration.

use bellows_devices::virtio::balloon::BalloonSettings;
use bellows_memory::{Backing, ByteSize};
use serde::{Deserialize, Serialize};

use super::{ConfigError, error};

/// A balloon: base memory that the guest can do without goes back to the host while it runs. The names are Firecracker's.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalloonConfig {
    /// The size in MiB that the balloon is to have when the VM boots: at most base memory.
    pub amount_mib: u32,
    /// Whether the guest takes memory out of the balloon where its kernel would otherwise kill a process for want of memory.
    pub deflate_on_oom: bool,
    /// Seconds between statistics of the guest's memory; 0 for none.
    pub stats_polling_interval_s: u16,
    /// Whether the host may ask the guest for its free memory ([`Balloon::start_hinting`](crate::Balloon::start_hinting)).
    pub free_page_hinting: bool,
    /// Whether the guest reports memory as it becomes free, which the host then takes.
    pub free_page_reporting: bool,
}

impl BalloonConfig {
    pub(super) fn check(&self, memory: ByteSize, backing: Backing) -> Result<(), ConfigError> {
        if backing == Backing::Hugetlbfs {
            let expected = "no balloon with the `backing` `hugetlbfs`, whose pages stay reserved: `none` or `thp`";
            return Err(error("balloon", "set", expected));
        }
        if self.settings().target > memory {
            let expected = format!("at most the {} of `memory`", memory.get() >> 20);
            return Err(error("balloon.amount_mib", self.amount_mib, expected));
        }
        Ok(())
    }

    /// What the device is made with.
    pub(crate) fn settings(&self) -> BalloonSettings {
        BalloonSettings {
            target: ByteSize::mib(self.amount_mib.into()),
            deflate_on_oom: self.deflate_on_oom,
            stats_polling_interval_s: self.stats_polling_interval_s,
            free_page_hinting: self.free_page_hinting,
            free_page_reporting: self.free_page_reporting,
        }
    }

    /// Interrupt vectors: one for each queue and one for the configuration.
    pub(crate) fn vectors(&self) -> usize {
        self.settings().queues() + 1
    }
}
