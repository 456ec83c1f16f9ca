//! A partition's figures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Inner, PartitionMemory};
use crate::ByteSize;
use crate::layout::{PartitionId, Window};

/// A partition's figures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Report {
    /// The partition.
    pub id: PartitionId,
    /// Size of its window: the most it can ever have.
    pub window: ByteSize,
    /// What the host wants plugged.
    pub target: ByteSize,
    /// How far into its addresses the guest may plug. It only shrinks when the guest gives everything back at once.
    pub usable: ByteSize,
    /// What is plugged now.
    pub plugged: ByteSize,
    /// What is plugged, or is to be, only prepares the partition: no instance can use it, and any target replaces it.
    pub preparing: bool,
    /// What the guest has given back and the host has not yet freed.
    pub discarding: ByteSize,
    /// Slots there are now.
    pub slots: usize,
    /// Blocks the guest has ever given back, in bytes.
    pub unplugged: ByteSize,
    /// Bytes with pages that ever went back to the host.
    pub discarded: ByteSize,
    /// Of the last target. Not written: reports of plugging and unplugging have it.
    #[serde(skip)]
    pub phases: Phases,
}

/// Where the time went since a target was last set. Times of several requests of the guest add up.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Phases {
    /// Requests of the guest that were granted.
    pub requests: u32,
    /// Until as much was plugged as the target says; zero before that.
    pub reached: Duration,
    /// Taking memory out of the devices' view and waiting for requests in flight.
    pub drain: Duration,
    /// Setting, replacing and deleting slots.
    pub slots: Duration,
    /// Freeing memory, on the discard thread.
    pub discard: Duration,
    /// Bytes that had pages and went back to the host.
    pub discarded: ByteSize,
}

impl PartitionMemory {
    /// The figures now. Never waits for an operation.
    #[must_use]
    pub fn report(&self) -> Report {
        self.turns.look(|inner| inner.report(self.window))
    }
}

impl Inner {
    pub(super) fn report(&self, window: Window) -> Report {
        let partition = &self.partition;
        Report {
            id: window.id(),
            window: partition.window(),
            target: partition.target(),
            usable: partition.usable(),
            plugged: partition.plugged(),
            preparing: self.is_being_prepared(),
            discarding: partition.discarding(),
            slots: partition.slots().len(),
            unplugged: self.unplugged,
            discarded: self.discarded,
            phases: self.phases,
        }
    }
}
