//! The control queue (VIRTIO 1.2, section 5.1.6.5): commands of the driver to the device, which answers each with one byte.

use std::io;

use bellows_memory::{GuestMemory, limited};

use super::wire::{CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET, ERR, OK, VirtioNetCtrl, VirtioNetCtrlMq};
use crate::virtio::chain::{Chain, Defect, Segments};
use crate::virtio::queue::{Outcome, QueueHandler, Snapshot};

/// A command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Command {
    /// Use so many pairs of queues, from the first one on: at least one.
    UsePairs(u16),
}

/// Why a command is not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Chain(#[from] Defect),
    #[error("it has no byte for the answer in guest memory")]
    Answer,
    #[error("it is not all in guest memory, or has {0} bytes: expected {expected}", expected = COMMAND_BYTES)]
    Size(u64),
    #[error("the device has no command {command} of class {class}")]
    Unknown { class: u8, command: u8 },
    #[error("it is to use {pairs} pairs of queues: expected 1 to {most}")]
    Pairs { pairs: u16, most: usize },
    #[error("it is to use {pairs} pairs of queues: the driver did not enable the queues of pair {missing}")]
    NotEnabled { pairs: u16, missing: usize },
    #[error("the host's end cannot use {pairs} pairs of queues")]
    Host {
        pairs: u16,
        #[source]
        source: io::Error,
    },
}

/// Bytes of the only command there is.
const COMMAND_BYTES: u64 = (size_of::<VirtioNetCtrl>() + size_of::<VirtioNetCtrlMq>()) as u64;

/// A pair of queues that the driver may use.
pub(super) trait InUse {
    /// Whether the driver has enabled both queues.
    fn is_enabled(&self) -> bool;

    /// Has the queues served from now on, or not. A packet that waits for room is lost in a pair that is left.
    ///
    /// # Errors
    /// The link's. The pair is not served.
    fn set_used(&mut self, used: bool) -> io::Result<()>;

    /// Leaves the queues alone.
    fn leave(&mut self) {
        if let Err(error) = self.set_used(false) {
            // Nobody reads from it any more.
            limited!(debug, %error, "the host's end keeps a pair of queues that is not used");
        }
    }
}

/// Carries commands out.
pub(super) struct Control<'a, P> {
    pub(super) pairs: &'a mut [P],
    /// How many pairs the driver uses.
    pub(super) used: &'a mut u16,
}

impl<P: InUse> Control<'_, P> {
    fn carry_out(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<(), Refusal> {
        if let Some(defect) = chain.defect() {
            return Err(defect.into());
        }
        // What cannot be answered is not done.
        if chain.writable.bytes() == 0 || !chain.writable.are_in(memory) {
            return Err(Refusal::Answer);
        }
        match parse(&chain.readable, memory)? {
            Command::UsePairs(pairs) => self.use_pairs(pairs),
        }
    }

    /// Uses the first `wanted` pairs, all of them or, with an error, those that were used before.
    fn use_pairs(&mut self, wanted: u16) -> Result<(), Refusal> {
        let (most, count) = (self.pairs.len(), usize::from(wanted));
        if !(1..=most).contains(&count) {
            return Err(Refusal::Pairs { pairs: wanted, most });
        }
        if let Some(missing) = self.pairs[..count].iter().position(|pair| !pair.is_enabled()) {
            return Err(Refusal::NotEnabled { pairs: wanted, missing });
        }
        let before = usize::from(*self.used);
        for index in before..count {
            if let Err(source) = self.pairs[index].set_used(true) {
                self.pairs[before..index].iter_mut().for_each(P::leave);
                return Err(Refusal::Host { pairs: wanted, source });
            }
        }
        self.pairs[count..].iter_mut().take(before.saturating_sub(count)).for_each(P::leave);
        *self.used = wanted;
        Ok(())
    }
}

fn parse(bytes: &Segments, memory: &GuestMemory) -> Result<Command, Refusal> {
    let size = || Refusal::Size(bytes.bytes());
    let header: VirtioNetCtrl = bytes.read_obj(memory).ok_or_else(size)?;
    match (header.class, header.command) {
        (CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET) if bytes.bytes() == COMMAND_BYTES => {
            let mut command = [0; COMMAND_BYTES as usize];
            if bytes.read(memory, &mut command) < command.len() {
                return Err(size());
            }
            let [_, _, low, high] = command;
            Ok(Command::UsePairs(u16::from_le_bytes([low, high])))
        }
        (CTRL_MQ, CTRL_MQ_VQ_PAIRS_SET) => Err(size()),
        (class, command) => Err(Refusal::Unknown { class, command }),
    }
}

impl<P: InUse> QueueHandler for Control<'_, P> {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let answer = match self.carry_out(chain, &memory) {
            Ok(()) => OK,
            Err(refusal) => {
                let cause = &refusal as &dyn std::error::Error;
                limited!(debug, head = chain.head(), cause, "a command to a network interface was refused");
                ERR
            }
        };
        // Not all of a chain with a defect is there to be written to.
        let sound = chain.defect().is_none();
        Outcome::Used(if sound { chain.writable.write(&memory, 0, &[answer]) as u32 } else { 0 })
    }
}
