//! The device on its event loop: it serves the queues on kicks of the driver and events of the links.
//!
//! Links are watched edge-triggered: that one can be read or written is remembered until a call says otherwise. So a driver that
//! leaves no buffers stops the reading, and costs nothing meanwhile but one event for each packet that the link still takes in. That
//! it can be written to again is of interest only while something waits for that.
//!
//! One thread serves all pairs of queues: each has its turn when it is kicked or its link has an event, and a turn ends after so many
//! packets. What is held back by a rate limit goes on with another pair each time.

use std::sync::Arc;
use std::time::Duration;

use bellows_memory::limited;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_queue::QueueState;
use vmm_sys_util::timerfd::TimerFd;

use super::control::{Control, InUse as _};
use super::limits::Limiters;
use super::link::Link;
use super::mmds::Mmds;
use super::pair::{self, Pair, QUEUES};
use super::receive::Waiting;
use super::shared::Shared;
use super::wire::feature;
use crate::interrupt::Interrupt;
use crate::virtio::queue::DeviceQueue;
use crate::virtio::{ActivateError, Activation};

/// Data of events other than kicks, which have the queue's number. Those of links are from `LINK` on, in the order of the pairs.
const LIMITS: u32 = 1 << 16;
const TIMER: u32 = LIMITS + 1;
const LINK: u32 = LIMITS + 2;

/// The handler of an active device.
pub(super) struct Handler {
    shared: Arc<Shared>,
    interrupt: Arc<dyn Interrupt>,
    /// All that the driver may use: one, if it knows of no more.
    pairs: Vec<Pair>,
    /// How many of them it uses.
    used: u16,
    /// The pair that is served first when a limit lets packets pass.
    first: usize,
    control: Option<DeviceQueue>,
    /// The number of the control queue, whether or not it is enabled.
    control_number: u16,
    /// Positions of queues that have no use with the features that were accepted, by number.
    idle: Vec<(usize, QueueState)>,
    limiters: Limiters,
    /// Expires when a packet need no longer wait for its limit, or the metadata service has something to do.
    timer: TimerFd,
    mmds: Option<Arc<Mmds>>,
}

/// What of a handler goes on in the next one.
pub(super) struct Parts {
    /// How far the queues were served, by number.
    pub(super) queues: Vec<Option<QueueState>>,
    /// Packets that wait for room in the guest's buffers, by pair.
    pub(super) waiting: Vec<Option<Waiting>>,
    /// How many pairs the driver uses.
    pub(super) used: u16,
    pub(super) limiters: Limiters,
}

impl Handler {
    /// Takes the queues out of `activation`: there is a link for each pair that the device has, and `used` of them were used before.
    ///
    /// # Errors
    /// The driver did not enable a queue that it needs, the host's end does not go on, or the system has no timer.
    pub(super) fn new(
        activation: &mut Activation,
        links: &[Arc<dyn Link>],
        shared: &Arc<Shared>,
        (features, mtu): (u64, Option<u16>),
        used: u16,
    ) -> Result<Self, ActivateError> {
        let count = if features & feature::MQ == 0 { 1 } else { links.len() };
        let pairs = (0..)
            .zip(&links[..count])
            .map(|(index, link)| Pair::take(activation, index, link, shared, (features, mtu)));
        let mut pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let used = used.min(count as u16);
        for pair in &mut pairs[..usize::from(used)] {
            match pair.set_used(true) {
                Ok(()) => {}
                // It will be found out.
                Err(error) if super::link::is_gone(&error) => pair.receiver.gone = true,
                Err(source) => return Err(ActivateError::Host { what: "the use of its queues", source }),
            }
        }
        let control_number = QUEUES * count as u16;
        let has_control = features & feature::CTRL_VQ != 0 && pair::is_enabled(activation, control_number);
        let control = has_control.then(|| DeviceQueue::take(activation, control_number)).transpose()?;
        let idle = activation.queues.iter().enumerate();
        let idle = idle.filter_map(|(number, queue)| Some((number, queue.as_ref()?.queue.state()))).collect();
        let timer = TimerFd::new()
            .map_err(|error| ActivateError::Host { what: "the timer of its limits", source: error.into() })?;
        Ok(Self {
            shared: shared.clone(),
            interrupt: activation.interrupt.clone(),
            pairs,
            used,
            first: 0,
            control,
            control_number,
            idle,
            limiters: Limiters::default(),
            timer,
            mmds: None,
        })
    }

    /// Goes on with packets that waited for room.
    pub(super) fn wait_again(&mut self, waiting: Vec<Option<Waiting>>) {
        for (pair, waiting) in self.pairs.iter_mut().zip(waiting) {
            waiting.into_iter().for_each(|waiting| pair.receiver.wait_again(waiting));
        }
    }

    /// Has the metadata service on the interface. Its answers come on the first pair, which is always used.
    pub(super) fn serve_metadata(&mut self, mmds: &Arc<Mmds>) {
        self.mmds = Some(mmds.clone());
        self.pairs[0].receiver.mmds = Some(mmds.clone());
        for pair in &mut self.pairs {
            pair.transmitter.mmds = Some(mmds.clone());
        }
    }

    /// Goes on with these limiters.
    pub(super) fn set_limiters(&mut self, limiters: Limiters) {
        self.limiters = limiters;
    }

    /// What goes on in the next handler, of a device with `queues` queues.
    pub(super) fn into_parts(self, queues: usize) -> Parts {
        let mut states = vec![None; queues];
        let mut waiting = Vec::with_capacity(self.pairs.len());
        let control = self.control.map(|queue| (usize::from(self.control_number), queue.state()));
        for (number, state) in self.idle.into_iter().chain(control) {
            states[number] = Some(state);
        }
        for (pair, states) in self.pairs.into_iter().zip(states.chunks_mut(usize::from(QUEUES))) {
            let (own, packet) = pair.into_parts();
            states.copy_from_slice(&own);
            waiting.push(packet);
        }
        Parts { queues: states, waiting, used: self.used, limiters: self.limiters }
    }

    /// Serves both queues of all pairs.
    fn serve_all(&mut self) {
        let count = self.pairs.len();
        self.first = (self.first + 1) % count;
        for index in (self.first..count).chain(0..self.first) {
            self.serve(index);
        }
    }

    fn serve(&mut self, index: usize) {
        let pair = &mut self.pairs[index];
        pair.serve_rx(&mut self.limiters);
        pair.serve_tx(&mut self.limiters);
    }

    /// Serves the control queue, and the pairs that came into use.
    fn command(&mut self) {
        let Some(queue) = &mut self.control else { return };
        let before = usize::from(self.used);
        queue.kicked(&mut Control { pairs: &mut self.pairs, used: &mut self.used });
        for index in before..usize::from(self.used) {
            self.serve(index);
        }
    }

    fn kicked(&mut self, queue: u16) {
        if queue == self.control_number {
            self.command();
        } else if let Some(pair) = self.pairs.get_mut(usize::from(queue / QUEUES)) {
            pair.kicked(queue % QUEUES, &mut self.limiters);
        }
    }

    fn link_event(&mut self, index: usize, events: EventSet) {
        // One that is not used may be left over from when it was.
        if let Some(pair) = self.pairs.get_mut(index).filter(|pair| pair.is_used()) {
            pair.link_event(events);
            self.serve(index);
        }
    }

    fn set_limits(&mut self) {
        let limits = self.shared.limits();
        self.limiters.receive.set(limits.receive);
        self.limiters.transmit.set(limits.transmit);
    }

    /// Has the timer expire when the first packet may pass that waits now, or the metadata service would go on by itself.
    fn arm(&mut self) {
        let Limiters { receive, transmit } = &mut self.limiters;
        // The limit may have changed its mind since a pair was told to wait.
        let held = |held: bool, limiter: &mut crate::virtio::limits::Limiter| {
            held.then(|| if limiter.is_ready() { Duration::ZERO } else { limiter.wait().unwrap_or_default() })
        };
        let receive = held(self.pairs.iter().any(|pair| pair.receiver.held), receive);
        let transmit = held(self.pairs.iter().any(|pair| pair.transmitter.held), transmit);
        let metadata = self.mmds.as_ref().and_then(|mmds| mmds.wait());
        let Some(wait) = [receive, transmit, metadata].into_iter().flatten().min() else { return };
        // Zero would turn it off.
        let wait = wait.max(Duration::from_nanos(1));
        if let Err(error) = self.timer.reset(wait, None) {
            limited!(error, %error, "packets wait for their rate limit until others come");
        }
    }

    /// Stops the traffic for good: where one link is gone, so is the interface.
    fn link_is_gone(&mut self, ops: &mut EventOps) {
        let reasons: Vec<_> = self.pairs.iter_mut().filter_map(|pair| pair.end(ops)).collect();
        if self.shared.link_down() {
            let reason = reasons.first().map_or_else(|| "it has hung up".into(), ToString::to_string);
            let mac = self.shared.mac();
            limited!(warn, %mac, %reason, "the host's end of a network interface is gone: the VM goes on without it");
            self.interrupt.config();
        }
        // What waits is dropped.
        for pair in &mut self.pairs {
            pair.serve_tx(&mut self.limiters);
        }
    }

    /// Stops the traffic if a call has found a link gone, and listens to those that are used otherwise.
    fn follow_links(&mut self, ops: &mut EventOps) {
        if self.pairs.iter().any(Pair::is_gone) {
            if self.shared.is_up() {
                self.link_is_gone(ops);
            }
            return;
        }
        for (data, pair) in (LINK..).zip(&mut self.pairs) {
            if let Err(error) = pair.watch(data, ops) {
                limited!(error, %error, "cannot listen to a network interface's end on the host");
                self.interrupt.needs_reset();
            }
        }
    }
}

impl MutEventSubscriber for Handler {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            LIMITS => {
                let _ = self.shared.changed().read();
                self.set_limits();
                self.serve_all();
            }
            TIMER => {
                let _ = self.timer.wait();
                if let Some(mmds) = &self.mmds {
                    mmds.expire();
                }
                self.serve_all();
            }
            link @ LINK.. => self.link_event((link - LINK) as usize, events.event_set()),
            // Queues have numbers of 16 bits.
            queue => self.kicked(queue as u16),
        }
        if self.pairs[0].receiver.is_answered() {
            self.pairs[0].serve_rx(&mut self.limiters);
        }
        self.follow_links(ops);
        self.arm();
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.set_limits();
        for (index, pair) in (0..).zip(&self.pairs) {
            pair.listen(index, ops);
        }
        if let Some(control) = &self.control {
            control.listen(self.control_number.into(), ops);
        }
        let limits = ops.add(Events::with_data(self.shared.changed(), LIMITS, EventSet::IN));
        let timer = ops.add(Events::with_data(&self.timer, TIMER, EventSet::IN));
        if limits.is_err() || timer.is_err() {
            limited!(error, ?limits, ?timer, "rate limits of a network interface do not work");
        }
        if !self.shared.is_up() {
            return;
        }
        for pair in self.pairs.iter_mut().filter(|pair| pair.is_used()) {
            // An earlier handler may have begun a packet.
            pair.transmitter.flush();
        }
        self.follow_links(ops);
    }
}
