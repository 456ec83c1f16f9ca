//! Runs of free page hinting, VIRTIO 1.2 section 5.5.6.5, as plain data.
//!
//! The host starts a run with a number of its own. The driver repeats the number, names free pages, which it keeps allocated,
//! and says when it has no more. It uses the pages again once the host has said that it is done.

use serde::Serialize;

use super::wire::{CMD_ID_DONE, CMD_ID_STOP, FIRST_RUN};
use crate::state::RestoreError;
use crate::virtio::state::HintingState;

/// Where host and guest stand.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Hinting(HintingState);

impl Hinting {
    /// Starts a run, in place of one that goes on.
    pub fn start(&mut self, acknowledge_on_stop: bool) {
        let run = self.0.last_run.wrapping_add(1).max(FIRST_RUN);
        self.0 = HintingState { host_cmd: run, guest_cmd: None, last_run: run, acknowledge_on_stop };
    }

    /// Ends the run, if there is one: no more pages are taken, and the guest may use those that it named.
    pub fn stop(&mut self) {
        self.0.host_cmd = CMD_ID_DONE;
    }

    /// The driver is gone, and its run with it.
    pub fn reset(&mut self) {
        self.0 = HintingState { last_run: self.0.last_run, ..HintingState::default() };
    }

    /// Takes a command of the guest. Returns whether the host's has changed by that.
    pub fn command(&mut self, command: u32) -> bool {
        if command >= FIRST_RUN {
            self.0.guest_cmd = Some(command);
            return false;
        }
        // The end of an earlier run is not that of this one.
        if self.0.guest_cmd != Some(self.0.last_run) {
            return false;
        }
        self.0.guest_cmd = Some(CMD_ID_STOP);
        let done = self.0.acknowledge_on_stop && self.0.host_cmd == self.0.last_run;
        if done {
            self.stop();
        }
        done
    }

    /// Whether the pages that the guest names now belong to the run that the host wants.
    #[must_use]
    pub fn takes_pages(&self) -> bool {
        self.0.host_cmd >= FIRST_RUN && self.0.guest_cmd == Some(self.0.host_cmd)
    }

    /// The host's command.
    #[must_use]
    pub const fn host_cmd(&self) -> u32 {
        self.0.host_cmd
    }

    /// What the host sees of it.
    #[must_use]
    pub const fn status(&self) -> HintingStatus {
        HintingStatus { host_cmd: self.0.host_cmd, guest_cmd: self.0.guest_cmd }
    }

    /// Where host and guest stand, as plain data.
    #[must_use]
    pub const fn save(&self) -> HintingState {
        self.0
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    /// No device has come to this state.
    pub fn restore(state: HintingState) -> Result<Self, RestoreError> {
        if state.host_cmd < FIRST_RUN || state.host_cmd == state.last_run {
            return Ok(Self(state));
        }
        Err(RestoreError::new(
            "host_cmd of the balloon",
            state.host_cmd,
            format!("0, 1 or the last run, {}", state.last_run),
        ))
    }
}

/// A run of free page hinting.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct HintingStatus {
    /// The host's last command: 0 before the first run, 1 when the guest may use its pages again, otherwise the number of the
    /// run that goes on.
    pub host_cmd: u32,
    /// The guest's last command: `None` until it has taken up the last run, then the run's number, then 0 when it has named
    /// all pages that it can.
    pub guest_cmd: Option<u32>,
}

impl HintingStatus {
    /// Whether the guest has named all pages that it can in the last run.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.guest_cmd == Some(CMD_ID_STOP)
    }
}

#[cfg(test)]
#[path = "hinting_test.rs"]
mod tests;
