//! State of the common configuration.

use serde::{Deserialize, Serialize};

use super::{CommonConfig, NO_VECTOR, QueueConfig, status};
use crate::state::{RestoreError, Version, expect};

/// State of a [`CommonConfig`]: what the driver wrote.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CommonConfigState {
    /// Version of this type.
    pub version: Version<1>,
    /// Which half of the offered features is shown.
    pub device_feature_select: u32,
    /// Which half of the accepted features is written.
    pub driver_feature_select: u32,
    /// Features that the driver accepts.
    pub driver_feature: u64,
    /// Vector for changes of the configuration.
    pub config_msix_vector: u16,
    /// Status, without `DEVICE_NEEDS_RESET`.
    pub device_status: u8,
    /// Which queue is shown.
    pub queue_select: u16,
    /// All queues.
    pub queues: Vec<QueueConfigState>,
}

/// What a driver wrote of one queue.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct QueueConfigState {
    /// Number of descriptors.
    pub queue_size: u16,
    /// Vector for used buffers.
    pub queue_msix_vector: u16,
    /// The driver has enabled the queue.
    pub queue_enable: bool,
    /// Address of the descriptor table.
    pub queue_desc: u64,
    /// Address of the available ring.
    pub queue_driver: u64,
    /// Address of the used ring.
    pub queue_device: u64,
}

impl CommonConfig {
    /// The state.
    #[must_use]
    pub fn save(&self) -> CommonConfigState {
        CommonConfigState {
            version: Version,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_feature: self.accepted,
            config_msix_vector: self.config_vector,
            device_status: self.status,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(QueueConfig::save).collect(),
        }
    }

    /// Becomes what the configuration of a device like this one was.
    ///
    /// # Errors
    /// A driver cannot have written that; nothing changed.
    pub fn restore(&mut self, state: &CommonConfigState) -> Result<(), RestoreError> {
        expect("number of queues", &state.queues.len(), &self.queues.len())?;
        let queues = (0..).zip(&self.queues).zip(&state.queues);
        let restored = Self {
            offered: self.offered,
            accepted: state.driver_feature,
            vectors: self.vectors,
            status: state.device_status,
            device_feature_select: state.device_feature_select,
            driver_feature_select: state.driver_feature_select,
            config_vector: state.config_msix_vector,
            queue_select: state.queue_select,
            queues: queues.map(|((number, queue), state)| queue.restored(number, state)).collect::<Result<_, _>>()?,
        };
        if !restored.status_is_possible() {
            let expected = "a set of bits that a driver reaches in order, with features that are offered";
            return Err(RestoreError::new("device_status", state.device_status, expected));
        }
        for vector in restored.queues.iter().map(|queue| queue.vector).chain([restored.config_vector]) {
            if vector >= restored.vectors && vector != NO_VECTOR {
                let expected = format!("below {}, or {NO_VECTOR} for no vector", restored.vectors);
                return Err(RestoreError::new("an MSI-X vector of the common configuration", vector, expected));
            }
        }
        *self = restored;
        Ok(())
    }

    /// Whether [`CommonConfig::write_status`] lets a driver come to this status.
    const fn status_is_possible(&self) -> bool {
        const KNOWN: u8 =
            status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;
        let features_ok = self.status & status::FEATURES_OK != 0;
        (!features_ok || self.accepts_features()) && (!self.driver_ok() || features_ok) && self.status & !KNOWN == 0
    }
}

impl QueueConfig {
    fn save(&self) -> QueueConfigState {
        QueueConfigState {
            queue_size: self.size,
            queue_msix_vector: self.vector,
            queue_enable: self.enabled,
            queue_desc: self.descriptors,
            queue_driver: self.available,
            queue_device: self.used,
        }
    }

    fn restored(&self, number: u16, state: &QueueConfigState) -> Result<Self, RestoreError> {
        let size = state.queue_size;
        if !size.is_power_of_two() || size > self.max_size {
            let expected = format!("a power of two up to {}", self.max_size);
            return Err(RestoreError::new(format!("size of queue {number}"), size, expected));
        }
        Ok(Self {
            max_size: self.max_size,
            size,
            vector: state.queue_msix_vector,
            enabled: state.queue_enable,
            descriptors: state.queue_desc,
            available: state.queue_driver,
            used: state.queue_device,
        })
    }
}
