//! What is left for the event loop where the kernel serves the queues: commands of the driver, and bad ends.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use bellows_memory::view::Following;
use bellows_memory::{GuestView, limited};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::QueueState;

use super::Vhost;
use super::ring::Ring;
use super::served::{BeginError, Rings, Served};
use crate::interrupt::Interrupt;
use crate::virtio::net::control::{Control, InUse};
use crate::virtio::net::link::{Link, is_gone};
use crate::virtio::net::pair::{QUEUES, is_enabled};
use crate::virtio::net::shared::Shared;
use crate::virtio::net::wire::feature;
use crate::virtio::net::{RX, TX};
use crate::virtio::queue::DeviceQueue;
use crate::virtio::{ActivateError, Activation};

/// Data of events other than kicks, which have the queue's number. Those of links are from `LINK` on, in the order of the pairs.
const FAILED: u32 = 1 << 16;
const LINK: u32 = FAILED + 1;

/// The handler of an active device. Its queues are served as long as it exists.
pub(in crate::virtio::net) struct KernelHandler {
    served: Arc<Served>,
    memory: GuestView,
    /// The kernel's table has what devices see.
    following: Option<Following>,
    shared: Arc<Shared>,
    interrupt: Arc<dyn Interrupt>,
    /// All that the driver may use: one, if it knows of no more.
    pairs: Vec<KernelPair>,
    /// How many of them it uses.
    used: u16,
    /// A call has found a link gone.
    gone: Option<io::Error>,
    control: Option<DeviceQueue>,
    /// The number of the control queue, whether or not it is enabled.
    control_number: u16,
    /// Positions of queues that have no use with the features that were accepted, by number.
    idle: Vec<(usize, QueueState)>,
}

/// A pair of queues.
struct KernelPair {
    index: usize,
    served: Arc<Served>,
    link: Arc<dyn Link>,
    is_enabled: bool,
    is_used: bool,
    /// Whether the loop listens to the link.
    is_watched: bool,
}

impl KernelHandler {
    /// Takes the queues out of `activation`: there is a link for each pair that the device has, and `used` of them were used before.
    ///
    /// # Errors
    /// The driver did not enable a queue that it needs, or put it where there is no memory; or the kernel does not serve it.
    pub(in crate::virtio::net) fn new(
        activation: &mut Activation,
        vhost: &Vhost,
        links: &[Arc<dyn Link>],
        shared: &Arc<Shared>,
        (features, used): (u64, u16),
    ) -> Result<Self, ActivateError> {
        let served = &vhost.served;
        let count = if features & feature::MQ == 0 { 1 } else { links.len() };
        let rings = (0..count as u16).map(|index| take_pair(activation, index)).collect::<Result<Vec<_>, _>>()?;
        let pair = |(index, (link, rings)): (usize, (&Arc<dyn Link>, &Rings))| KernelPair {
            index,
            served: served.clone(),
            link: link.clone(),
            is_enabled: rings.iter().all(Option::is_some),
            is_used: false,
            is_watched: false,
        };
        let pairs: Vec<_> = links.iter().zip(&rings).enumerate().map(pair).collect();
        let control_number = QUEUES * count as u16;
        let has_control = features & feature::CTRL_VQ != 0 && is_enabled(activation, control_number);
        let control = has_control.then(|| DeviceQueue::take(activation, control_number)).transpose()?;
        let idle = activation.queues.iter().enumerate();
        let idle = idle.filter_map(|(number, queue)| Some((number, queue.as_ref()?.queue.state()))).collect();
        let following = activation.memory.follow(served.clone());
        let following = following.map_err(ActivateError::Kernel)?;
        // From here on its end is seen to when it is dropped.
        let mut handler = Self {
            served: served.clone(),
            memory: activation.memory.clone(),
            following: Some(following),
            shared: shared.clone(),
            interrupt: activation.interrupt.clone(),
            pairs,
            used: used.min(count as u16),
            gone: None,
            control,
            control_number,
            idle,
        };
        served.begin(&handler.interrupt, features, rings).map_err(|error| match error {
            BeginError::Kernel { what, source } => ActivateError::Host { what, source },
            misplaced => ActivateError::Kernel(misplaced.into()),
        })?;
        for pair in &mut handler.pairs[..usize::from(handler.used)] {
            match pair.set_used(true) {
                Ok(()) => {}
                Err(error) if is_gone(&error) => handler.gone = Some(error),
                Err(source) => return Err(ActivateError::Host { what: "the use of its queues", source }),
            }
        }
        Ok(handler)
    }

    /// How far the queues of a device with `queues` queues were served, by number, and how many pairs the driver uses.
    pub(in crate::virtio::net) fn into_parts(mut self, queues: usize) -> (Vec<Option<QueueState>>, u16) {
        let mut states = vec![None; queues];
        let control = self.control.as_ref().map(|queue| (usize::from(self.control_number), queue.state()));
        for (number, state) in std::mem::take(&mut self.idle).into_iter().chain(control) {
            states[number] = Some(state);
        }
        for (pair, states) in self.end().into_iter().zip(states.chunks_mut(usize::from(QUEUES))) {
            for (state, own) in states.iter_mut().zip(pair) {
                *state = own.or(state.take());
            }
        }
        (states, self.used)
    }

    fn end(&mut self) -> Vec<[Option<QueueState>; QUEUES as usize]> {
        let states = self.served.end();
        self.following = None;
        states
    }

    /// Stops the traffic for good: where one link is gone, so is the interface.
    fn link_is_gone(&mut self, reason: Option<io::Error>, ops: &mut EventOps) {
        self.served.stop();
        self.pairs.iter_mut().for_each(|pair| pair.unwatch(ops));
        if self.shared.link_down() {
            let reason = reason.map_or_else(|| "it has hung up".into(), |reason| reason.to_string());
            let mac = self.shared.mac();
            limited!(warn, %mac, %reason, "the host's end of a network interface is gone: the VM goes on without it");
            self.interrupt.config();
        }
    }

    /// Has the queues go on behind chains that the kernel has stopped at.
    ///
    /// # Errors
    /// There are no such chains, or the system's. A queue that was served may not be.
    fn repair(&mut self) -> io::Result<()> {
        let mut skipped = false;
        for pair in self.pairs.iter_mut().filter(|pair| pair.is_used) {
            skipped |= self.served.repair(pair.index, &self.memory)?;
            pair.set_used(true)?;
        }
        if skipped { Ok(()) } else { Err(io::Error::other("no chain is malformed")) }
    }

    fn command(&mut self, ops: &mut EventOps) {
        let Some(queue) = &mut self.control else { return };
        queue.kicked(&mut Control { pairs: &mut self.pairs, used: &mut self.used });
        self.follow_links(ops);
    }

    /// Listens to the links of pairs that are used: one that is not looks like one that is gone.
    fn follow_links(&mut self, ops: &mut EventOps) {
        if !self.shared.is_up() {
            return;
        }
        for pair in &mut self.pairs {
            if let Err(error) = pair.watch(ops) {
                limited!(error, %error, "cannot listen to a network interface's end on the host");
                self.interrupt.needs_reset();
            }
        }
    }
}

impl Drop for KernelHandler {
    fn drop(&mut self) {
        self.end();
    }
}

impl MutEventSubscriber for KernelHandler {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            FAILED => {
                let _ = self.served.failed().read();
                if let Err(error) = self.repair() {
                    let mac = self.shared.mac();
                    limited!(warn, %mac, %error, "the driver broke a queue: it must reset the device");
                    self.served.break_off();
                }
            }
            data if data >= LINK => {
                let is_used = self.pairs.get((data - LINK) as usize).is_some_and(|pair| pair.is_used);
                // One that is not used may be left over from when it was.
                if is_used && events.event_set().intersects(EventSet::ERROR | EventSet::HANG_UP) {
                    self.link_is_gone(None, ops);
                }
            }
            _ => self.command(ops),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Some(control) = &self.control {
            control.listen(u32::from(self.control_number), ops);
        }
        if let Err(error) = ops.add(Events::with_data(self.served.failed(), FAILED, EventSet::IN)) {
            limited!(error, %error, "cannot listen to vhost-net");
            self.interrupt.needs_reset();
        }
        match self.gone.take() {
            Some(reason) => self.link_is_gone(Some(reason), ops),
            None => self.follow_links(ops),
        }
    }
}

impl KernelPair {
    fn watch(&mut self, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        if !self.is_used {
            self.unwatch(ops);
        } else if !self.is_watched {
            ops.add(self.link_events())?;
            self.is_watched = true;
        }
        Ok(())
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if std::mem::take(&mut self.is_watched) {
            // If it fails, the descriptor is no longer there to be watched.
            let _ = ops.remove(self.link_events());
        }
    }

    /// Errors, once each, and nothing else.
    fn link_events(&self) -> Events {
        Events::with_data_raw(self.link.descriptor().as_raw_fd(), LINK + self.index as u32, EventSet::EDGE_TRIGGERED)
    }
}

impl InUse for KernelPair {
    fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    fn set_used(&mut self, used: bool) -> io::Result<()> {
        if !used {
            self.is_used = false;
            self.served.serve(self.index, None)?;
            return self.link.set_used(false);
        }
        self.link.set_used(true)?;
        let served = self.served.serve(self.index, Some(self.link.descriptor()));
        self.is_used = served.is_ok();
        served.inspect_err(|_| {
            // What is not read is to be sent through other queues; the first one has to be there. If it fails, the link is gone.
            let _ = if self.index == 0 { Ok(()) } else { self.link.set_used(false) };
        })
    }
}

/// Takes the queues of pair `index` out of `activation`.
///
/// # Errors
/// It is the first, and the driver did not enable one of its queues.
fn take_pair(activation: &mut Activation, index: u16) -> Result<Rings, ActivateError> {
    let mut take = |number: u16| {
        let queue = activation.queues.get_mut(usize::from(number)).and_then(Option::take);
        if index == 0 && queue.is_none() { Err(ActivateError::MissingQueue(number)) } else { Ok(queue.map(Ring::new)) }
    };
    Ok([take(QUEUES * index + RX)?, take(QUEUES * index + TX)?])
}
