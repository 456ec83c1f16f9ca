//! The balloon on its event loop: it serves the queues, and asks for statistics when its timer expires.
//!
//! The driver uses a page again once the host has given back the request that names it, so each is discarded before that.

use std::sync::Arc;
use std::time::Instant;

use bellows_memory::{BaseDiscard, ByteSize, DiscardError, GuestAddress, limited};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::QueueState;
use vm_memory::Le32;

use super::report::Discards;
use super::shared::Shared;
use super::statistics;
use super::wire::{F_FREE_PAGE_HINT, F_REPORTING, F_STATS_VQ, PAGE_SHIFT};
use crate::virtio::chain::Chain;
use crate::virtio::queue::{DeviceQueue, Outcome, QueueHandler, Snapshot};
use crate::virtio::{ActivateError, Activation};

/// The use of a queue, in the specification's order and with its numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    Inflate = 0,
    Deflate = 1,
    Statistics = 2,
    Hints = 3,
    Reports = 4,
}

impl Role {
    const ALL: [Self; 5] = [Self::Inflate, Self::Deflate, Self::Statistics, Self::Hints, Self::Reports];

    /// Whether a driver that accepted `features` has such a queue.
    const fn is_among(self, features: u64) -> bool {
        match self {
            Self::Inflate | Self::Deflate => true,
            Self::Statistics => features & F_STATS_VQ != 0,
            Self::Hints => features & F_FREE_PAGE_HINT != 0,
            Self::Reports => features & F_REPORTING != 0,
        }
    }
}

/// Queues of a device that offers `features`.
pub(super) fn queues(features: u64) -> usize {
    Role::ALL.into_iter().filter(|role| role.is_among(features)).map(|role| role as usize + 1).max().unwrap_or(0)
}

/// Data of the timer's events; those of a queue are its place in the handler.
const TIMER: u32 = u32::MAX;

/// The handler of an active balloon.
pub(super) struct Handler {
    shared: Arc<Shared>,
    /// In order of their roles.
    queues: Vec<Served>,
}

/// A queue with its use.
struct Served {
    number: u16,
    queue: DeviceQueue,
    requests: Requests,
}

impl Handler {
    /// Takes the queues out of `activation`.
    ///
    /// Drivers do not agree on the numbers of the last two: in the specification each is fixed, while Linux leaves no gap for
    /// queues of features that were not accepted. Their order is the same.
    ///
    /// # Errors
    /// The driver did not enable a queue that it needs.
    pub(super) fn new(
        activation: &mut Activation,
        shared: &Arc<Shared>,
        base: &BaseDiscard,
    ) -> Result<Self, ActivateError> {
        let enabled: Vec<_> =
            (0..).zip(&activation.queues).filter(|(_, queue)| queue.is_some()).map(|(number, _)| number).collect();
        let mut numbers = enabled.into_iter();
        let mut queues = Vec::with_capacity(Role::ALL.len());
        let features = activation.features;
        for role in Role::ALL.into_iter().filter(|role| role.is_among(features)) {
            let number = numbers.next().ok_or(ActivateError::MissingQueue(role as u16))?;
            let queue = DeviceQueue::take(activation, number)?;
            let requests = Requests { role, base: base.clone(), shared: shared.clone(), statistics_due: false };
            queues.push(Served { number, queue, requests });
        }
        Ok(Self { shared: shared.clone(), queues })
    }

    /// How far each of `count` queues was served, by number.
    pub(super) fn into_states(self, count: usize) -> Vec<Option<QueueState>> {
        let mut states = vec![None; count];
        for served in self.queues {
            if let Some(state) = states.get_mut(usize::from(served.number)) {
                *state = Some(served.queue.state());
            }
        }
        states
    }

    /// The queue of the statistics, if the driver has one.
    fn statistics(&mut self) -> Option<&mut Served> {
        self.queues.iter_mut().find(|served| served.requests.role == Role::Statistics)
    }

    /// Asks the driver for statistics by giving its buffer back.
    fn poll(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.shared.arm() {
            limited!(error, %error, "the balloon's statistics stay as they are");
            let _ = ops.remove(Events::with_data(&*self.shared.timer(), TIMER, EventSet::IN));
        }
        if let Some(served) = self.statistics() {
            served.requests.statistics_due = true;
            served.queue.serve(&mut served.requests);
            // A driver that has no buffer there is about to report anyway.
            served.requests.statistics_due = false;
        }
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self.queues.get_mut(events.data() as usize) {
            Some(served) => served.queue.kicked(&mut served.requests),
            None => self.poll(ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (index, served) in (0..).zip(&self.queues) {
            served.queue.listen(index, ops);
        }
        if self.statistics().is_some() {
            let armed = self.shared.arm();
            let listening = ops.add(Events::with_data(&*self.shared.timer(), TIMER, EventSet::IN));
            if armed.is_err() || listening.is_err() {
                limited!(error, ?armed, ?listening, "the balloon's statistics stay as they are");
            }
        }
    }
}

/// Most pages of one request to inflate; Linux names 256 at a time. Those beyond it stay as they are, which a device may do.
const MAX_PAGES: usize = 1024;
/// Most bytes of one request with free memory; Linux names 32 times 4 MiB. Ranges beyond it stay as they are.
const MAX_FREE_BYTES: u64 = 1 << 30;

/// Serves the requests of one queue.
struct Requests {
    role: Role,
    base: BaseDiscard,
    shared: Arc<Shared>,
    /// Whether the buffer of the statistics goes back to the driver, so that it reports again.
    statistics_due: bool,
}

impl QueueHandler for Requests {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        if let Some(defect) = chain.defect() {
            limited!(debug, role = ?self.role, %defect, "a request to the balloon is malformed");
            self.shared.change(|state| state.discarded.refused += 1);
            return Outcome::Used(0);
        }
        match self.role {
            Role::Inflate => self.inflate(chain, memory),
            // Pages come back when they are touched.
            Role::Deflate => {}
            Role::Statistics => return self.take_statistics(chain, &memory),
            Role::Hints => self.take_hints(chain, memory),
            Role::Reports => {
                drop(memory);
                let tally = discard_free(chain, |start, bytes| Some(self.base.discard(start, bytes)));
                self.count(tally, |discarded| &mut discarded.reported);
            }
        }
        Outcome::Used(0)
    }
}

impl Requests {
    /// Discards pages that the driver has allocated for the balloon: a list of their numbers.
    fn inflate(&self, chain: &Chain, memory: Snapshot) {
        let mut bytes = [0; MAX_PAGES * size_of::<u32>()];
        let wanted = bytes.len().min(usize::try_from(chain.readable.bytes()).unwrap_or(usize::MAX));
        let read = chain.readable.read(&memory, &mut bytes[..wanted]);
        drop(memory);
        let (numbers, rest) = bytes[..wanted].as_chunks();
        let mut tally = Tally::default();
        if read < wanted || !rest.is_empty() {
            limited!(debug, wanted, read, "a list of pages for the balloon is malformed");
            tally.refused += 1;
            return self.count(tally, |discarded| &mut discarded.inflated);
        }
        let mut pages = [0; MAX_PAGES];
        let pages = &mut pages[..numbers.len()];
        for (page, number) in pages.iter_mut().zip(numbers) {
            *page = u32::from_le_bytes(*number);
        }
        // Neighbours go together, and a page that comes twice goes once.
        pages.sort_unstable();
        for run in pages.chunk_by(|page, next| next - page <= 1) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let bytes = (u64::from(last - first) + 1) << PAGE_SHIFT;
            tally.add(self.base.discard(GuestAddress(u64::from(*first) << PAGE_SHIFT), bytes));
        }
        self.count(tally, |discarded| &mut discarded.inflated);
    }

    /// Takes a command of the guest, and discards the pages that it names in the run that the host wants.
    fn take_hints(&self, chain: &Chain, memory: Snapshot) {
        let length = chain.readable.bytes();
        let command = chain.readable.read_obj::<Le32>(&memory).filter(|_| length == size_of::<Le32>() as u64);
        drop(memory);
        if let Some(command) = command {
            self.shared.guest_command(command.to_native());
        }
        let mut tally = discard_free(chain, |start, bytes| self.shared.in_run(|| self.base.discard(start, bytes)));
        tally.refused += u64::from(length != 0 && command.is_none());
        self.count(tally, |discarded| &mut discarded.hinted);
    }

    /// Reads statistics, and keeps the driver's buffer until new ones are due.
    fn take_statistics(&mut self, chain: &Chain, memory: &Snapshot) -> Outcome {
        if std::mem::take(&mut self.statistics_due) {
            return Outcome::Used(0);
        }
        let mut buffer = [0; statistics::MAX_BYTES];
        let read = chain.readable.read(memory, &mut buffer);
        self.shared.change(|state| {
            state.statistics.update(&buffer[..read]);
            state.reported = Some(Instant::now());
        });
        Outcome::NotYet
    }

    fn count(&self, tally: Tally, cause: impl FnOnce(&mut Discards) -> &mut ByteSize) {
        self.shared.change(|state| {
            let total = cause(&mut state.discarded);
            *total = total.plus(tally.freed);
            state.discarded.refused += tally.refused;
        });
    }
}

/// Has `discard` free what the driver names as free memory, unless it has a reason not to.
fn discard_free(
    chain: &Chain,
    mut discard: impl FnMut(GuestAddress, u64) -> Option<Result<ByteSize, DiscardError>>,
) -> Tally {
    let mut tally = Tally::default();
    let mut left = MAX_FREE_BYTES;
    for piece in chain.writable.part(0, u64::MAX) {
        let bytes = u64::from(piece.bytes);
        match left.checked_sub(bytes) {
            Some(rest) => {
                left = rest;
                if let Some(discarded) = discard(piece.address, bytes) {
                    tally.add(discarded);
                }
            }
            None => tally.refused += 1,
        }
    }
    tally
}

/// What a request has done.
#[derive(Default)]
struct Tally {
    freed: ByteSize,
    refused: u64,
}

impl Tally {
    fn add(&mut self, discarded: Result<ByteSize, DiscardError>) {
        match discarded {
            Ok(freed) => self.freed = self.freed.plus(freed),
            Err(error @ DiscardError::Outside { .. }) => {
                limited!(debug, %error, "the balloon cannot give this memory back");
                self.refused += 1;
            }
            Err(DiscardError::Host(error)) => {
                limited!(warn, %error, "the host does not take memory of the balloon back");
                self.refused += 1;
            }
        }
    }
}
