//! State of a virtio device on PCI, all of it: configuration space, registers, interrupts, queues, the device's own.

use serde::{Deserialize, Serialize};

use super::VirtioPci;
use super::common_config::CommonConfigState;
use super::interrupts::{ISR_CONFIG, InterruptsState};
use super::pci_function::{Run, lock};
use super::ring_position::RingPosition;
use crate::pci::config_space::ConfigSpaceState;
use crate::pci::msix::{Delivery, MsixState};
use crate::state::{RestoreError, Version, expect};
use crate::virtio::state::DeviceState;

/// State of a [`VirtioPci`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VirtioPciState {
    /// Version of this type.
    pub version: Version<1>,
    /// Configuration space.
    pub config_space: ConfigSpaceState,
    /// The common configuration.
    pub common: CommonConfigState,
    /// The MSI-X table.
    pub msix: MsixState,
    /// ISR, `DEVICE_NEEDS_RESET` and pending interrupts.
    pub interrupts: InterruptsState,
    /// How far each queue that the driver enabled was served. `None` if the driver has not started the device.
    pub queues: Option<Vec<Option<RingPosition>>>,
    /// The device itself.
    pub device: DeviceState,
}

/// The function runs, so its state changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a device runs whose state is to be saved: expected a suspended one")]
pub struct NotSuspended;

impl VirtioPci {
    /// The state of a function that is suspended.
    ///
    /// # Errors
    /// It is not.
    pub fn save(&self) -> Result<VirtioPciState, NotSuspended> {
        let config_space = lock(&self.space).save();
        let msix = lock(&self.msix).save();
        let state = lock(&self.state);
        let queues = match &state.run {
            _ if !state.suspended => return Err(NotSuspended),
            Run::Active => return Err(NotSuspended),
            Run::Idle => None,
            Run::Suspended(positions) => Some(positions.clone()),
        };
        Ok(VirtioPciState {
            version: Version,
            config_space,
            common: state.common.save(),
            msix,
            interrupts: self.interrupts.save(),
            queues,
            device: state.device.save(),
        })
    }

    /// Becomes what a function of a device like this one was. This one is new; it is suspended afterwards, and goes on from
    /// there when it is resumed.
    ///
    /// # Errors
    /// The state is that of another device, or impossible; nothing changed.
    pub fn restore(&self, saved: &VirtioPciState) -> Result<(), RestoreError> {
        let mut space = lock(&self.space);
        let mut restored_space = space.clone();
        restored_space.restore(&saved.config_space)?;
        let mut msix = lock(&self.msix).clone();
        msix.restore(&saved.msix)?;
        msix.set_control(restored_space.u16_at(self.capabilities.message_control.start));

        let mut state = lock(&self.state);
        let mut common = state.common.clone();
        common.restore(&saved.common)?;
        let is_new = matches!(state.run, Run::Idle) && !state.is_removed();
        expect("newness of the function", &is_new, &true)?;
        check_positions(saved.queues.as_deref(), common.driver_ok(), common.queue_sizes())?;
        let InterruptsState { isr, pending_vectors, .. } = &saved.interrupts;
        expect("ISR status", &(isr & !ISR_CONFIG), &0)?;
        for &vector in pending_vectors {
            if msix.delivery(vector) != Delivery::Masked {
                return Err(RestoreError::new("pending interrupt", vector, "a vector that is masked"));
            }
        }
        state.device.restore(&saved.device)?;

        *space = restored_space;
        let (config_vector, queue_vectors) = common.vectors();
        self.interrupts.set_config_vector(config_vector);
        (0..).zip(queue_vectors).for_each(|(queue, vector)| self.interrupts.set_queue_vector(queue, vector));
        self.interrupts.restore(&saved.interrupts);
        state.common = common;
        state.suspended = true;
        state.restored = true;
        state.run = saved.queues.clone().map_or(Run::Idle, Run::Suspended);
        drop(state);
        *lock(&self.msix) = msix;
        self.update_msix(space.u16_at(self.capabilities.message_control.start));
        self.interrupts.raise(pending_vectors);
        Ok(())
    }
}

/// Checks `positions` against the queues' sizes, and whether the driver has enabled them.
fn check_positions(
    positions: Option<&[Option<RingPosition>]>,
    driver_ok: bool,
    queues: impl Iterator<Item = (u16, bool)>,
) -> Result<(), RestoreError> {
    let Some(positions) = positions else { return Ok(()) };
    expect("DRIVER_OK of a device that the driver has started", &driver_ok, &true)?;
    let queues: Vec<_> = queues.collect();
    expect("number of queues served", &positions.len(), &queues.len())?;
    for (number, (position, (size, enabled))) in positions.iter().zip(queues).enumerate() {
        expect(&format!("whether queue {number} is served"), &position.is_some(), &enabled)?;
        if let Some(RingPosition { next_avail, next_used }) = *position
            && next_avail.wrapping_sub(next_used) > size
        {
            let expected = format!("at most {size} behind {next_avail}, the available ring's");
            return Err(RestoreError::new(format!("used ring position of queue {number}"), next_used, expected));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "state_test.rs"]
mod tests;
