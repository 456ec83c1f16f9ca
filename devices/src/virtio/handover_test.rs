//! The hand-over of queues between a device and its event loop, and of a vsock device's streams, in many orders of threads
//! from a scheduler.
//!
//! The queues, the muxer and the guest's side are the real ones. The event loop is a model: one thread that serves kicked
//! queues, and gives its handler back on request. A thread that waits for an event that never comes is a deadlock, which
//! the scheduler reports.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;
use virtio_queue::QueueState;
use vm_memory::ByteValued as _;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::Chain;
use super::queue::{DeviceQueue, Outcome, QueueHandler, Snapshot};
use super::testing::{Bell, DriverQueue, FakeGuest, QueueInterrupts};
use super::vsock::muxer::{ConnectionId, Event, Muxer, Outgoing};
use super::vsock::packet::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM, VirtioVsockHdr};
use super::{Activation, ActiveQueue};
use crate::interrupt::Interrupt;

/// Orders of threads to try: they take some seconds.
const ITERATIONS: usize = 300;
/// Times that the device is suspended in each.
const SUSPENDS: usize = 2;

static GUEST: LazyLock<FakeGuest> = LazyLock::new(FakeGuest::new);

/// Interrupts of queues 0 and 1.
#[derive(Default)]
struct Interrupts {
    counts: Mutex<[u64; 2]>,
    raised: Condvar,
}

impl Interrupt for Interrupts {
    fn queue(&self, queue: u16) {
        self.counts.lock().unwrap()[usize::from(queue)] += 1;
        self.raised.notify_all();
    }

    fn wire(&self, _: u16, _: Option<&std::sync::Arc<EventFd>>) -> std::io::Result<()> {
        Ok(())
    }

    fn config(&self) {}

    fn needs_reset(&self) {
        panic!("the driver keeps to the rules");
    }
}

impl QueueInterrupts for Interrupts {
    fn count(&self, queue: u16) -> u64 {
        self.counts.lock().unwrap()[usize::from(queue)]
    }

    fn wait(&self, queue: u16, count: u64) {
        let mut counts = self.counts.lock().unwrap();
        while counts[usize::from(queue)] < count {
            counts = self.raised.wait(counts).unwrap();
        }
    }
}

/// A handler on the loop.
trait Handler: Send + 'static {
    fn queues(&mut self) -> Vec<&mut DeviceQueue>;
    /// Queue `queue` was kicked, or the host has data (`None`).
    fn event(&mut self, queue: Option<usize>);
}

/// The model of an event loop.
struct Loop<H> {
    state: Mutex<State<H>>,
    changed: Condvar,
    kicks: Vec<std::sync::Arc<EventFd>>,
}

struct State<H> {
    handler: Option<H>,
    /// A request to give the handler back.
    remove: bool,
    removed: Option<H>,
    /// The host has data for the guest.
    host: bool,
    ended: bool,
}

impl<H: Handler> Loop<H> {
    fn new(queues: &[DriverQueue]) -> Arc<Self> {
        let state = State { handler: None, remove: false, removed: None, host: false, ended: false };
        let kicks = queues.iter().map(|queue| queue.device_side(true).kick).collect();
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), kicks })
    }

    /// The loop's thread: events first, then requests to give the handler back, as in the event manager.
    fn run(&self) {
        let mut state = self.state.lock().unwrap();
        while !state.ended {
            let kicked = (0..self.kicks.len()).find(|queue| self.is_kicked(*queue));
            let host = kicked.is_none() && state.host;
            if let Some(mut handler) = state.handler.take_if(|_| kicked.is_some() || host) {
                state.host &= !host;
                drop(state);
                handler.event(kicked);
                state = self.state.lock().unwrap();
                state.handler = Some(handler);
            } else if !state.remove {
                state = self.changed.wait(state).unwrap();
            }
            if std::mem::take(&mut state.remove) {
                state.removed = state.handler.take();
                self.changed.notify_all();
            }
        }
    }

    fn is_kicked(&self, queue: usize) -> bool {
        let kicked = self.kicks[queue].read().is_ok();
        if kicked {
            self.kicks[queue].write(1).unwrap();
        }
        kicked
    }

    fn change(&self, change: impl FnOnce(&mut State<H>)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// The steps of a device's suspend.
    fn take_back(&self) -> H {
        let mut state = self.state.lock().unwrap();
        state.remove = true;
        self.changed.notify_all();
        loop {
            if let Some(handler) = state.removed.take() {
                return handler;
            }
            state = self.changed.wait(state).unwrap();
        }
    }
}

fn stop_flags(handler: &mut impl Handler) -> Vec<std::sync::Arc<AtomicBool>> {
    handler.queues().iter().map(|queue| queue.stop_flag()).collect()
}

fn activation(queues: Vec<ActiveQueue>, interrupts: &std::sync::Arc<Interrupts>) -> Activation {
    Activation {
        memory: GUEST.view().clone(),
        queues: queues.into_iter().map(Some).collect(),
        interrupt: interrupts.clone(),
        features: 0,
        event_loop: GUEST.event_loop().handle(),
    }
}

/// Runs `driver` against a handler that `make` builds from an activation, while another thread suspends and resumes it.
fn race<H: Handler, T: 'static>(
    queues: u16,
    make: impl Fn(&mut Activation, Option<H>) -> H + Send + 'static,
    host: impl FnOnce(&dyn Fn()) + Send + 'static,
    driver: impl FnOnce(&mut [DriverQueue], &dyn Fn(&DriverQueue)) -> T + Send + 'static,
) -> T {
    let interrupts = std::sync::Arc::new(Interrupts::default());
    let bell = || Bell::Direct(std::sync::Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let mut queues: Vec<_> = (0..queues)
        .map(|index| DriverQueue::with_buffers(&GUEST, index, 8, interrupts.clone(), bell(), 4096))
        .collect();
    let event_loop: Arc<Loop<H>> = Loop::new(&queues);
    let fresh = queues.iter().map(|queue| queue.device_side(true)).collect();
    let mut handler = make(&mut activation(fresh, &interrupts), None);
    let mut stops = stop_flags(&mut handler);
    event_loop.change(|state| state.handler = Some(handler));

    let runs = {
        let event_loop = event_loop.clone();
        thread::spawn(move || event_loop.run())
    };
    let kicks = event_loop.kicks.clone();
    let suspender = {
        let event_loop = event_loop.clone();
        thread::spawn(move || {
            for _ in 0..SUSPENDS {
                stops.iter().for_each(|stop| stop.store(true, Ordering::Release));
                thread::yield_now();
                let mut handler = event_loop.take_back();
                let states: Vec<QueueState> = handler.queues().iter().map(|queue| queue.state()).collect();
                thread::yield_now();
                let resumed = states.into_iter().zip(&kicks);
                let resumed = resumed.map(|(state, kick)| {
                    // As the transport does, regardless of earlier kicks.
                    let _ = kick.read();
                    ActiveQueue { queue: state.try_into().unwrap(), kick: kick.clone() }
                });
                let mut handler = make(&mut activation(resumed.collect(), &interrupts), Some(handler));
                stops = stop_flags(&mut handler);
                event_loop.change(|state| state.handler = Some(handler));
            }
        })
    };
    let hosts = {
        let event_loop = event_loop.clone();
        thread::spawn(move || host(&|| event_loop.change(|state| state.host = true)))
    };
    let kick = |queue: &DriverQueue| {
        queue.kick();
        event_loop.change(|_| {});
    };
    let result = driver(&mut queues, &kick);
    suspender.join().unwrap();
    hosts.join().unwrap();
    event_loop.change(|state| state.ended = true);
    runs.join().unwrap();
    assert!(queues.iter_mut().all(|queue| queue.pop_used().is_none()), "a request was served twice");
    result
}

/// Serves requests of one queue.
struct Server {
    queue: DeviceQueue,
    requests: Requests,
}

#[derive(Default)]
struct Requests {
    served: u32,
}

impl QueueHandler for Requests {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        thread::yield_now();
        self.served += 1;
        Outcome::Used(chain.writable.write(&memory, 0, &[1]) as u32)
    }
}

impl Handler for Server {
    fn queues(&mut self) -> Vec<&mut DeviceQueue> {
        vec![&mut self.queue]
    }

    fn event(&mut self, _: Option<usize>) {
        self.queue.kicked(&mut self.requests);
    }
}

#[test]
fn no_request_is_lost_by_a_hand_over() {
    let one_order = || {
        let make = |activation: &mut Activation, before: Option<Server>| {
            let requests = before.map(|server| server.requests).unwrap_or_default();
            Server { queue: DeviceQueue::take(activation, 0).unwrap(), requests }
        };
        race(
            1,
            make,
            |_| {},
            |queues, kick| {
                for _ in 0..2 {
                    let pending = [queues[0].begin(&[], &[1]), queues[0].begin(&[], &[1])];
                    thread::yield_now();
                    kick(&queues[0]);
                    for pending in pending {
                        assert_eq!(queues[0].finish(pending).written, [[1]]);
                    }
                }
            },
        );
    };
    shuttle::check_random(one_order, ITERATIONS);
}

/// A packet to the guest: operation and data.
type Packet = (u16, Vec<u8>);

const GUEST_CID: u64 = 3;
const TO_GUEST: [u8; 6] = *b"abcdef";
const FROM_GUEST: [u8; 6] = *b"uvwxyz";

/// A vsock device with one connection, whose host socket is a pair of buffers.
struct Carrier {
    rx: DeviceQueue,
    tx: DeviceQueue,
    streams: Streams,
}

struct Streams {
    muxer: Muxer,
    socket: std::sync::Arc<Socket>,
    id: Option<ConnectionId>,
}

#[derive(Default)]
struct Socket {
    to_guest: Mutex<VecDeque<u8>>,
    from_guest: Mutex<Vec<u8>>,
}

struct FromGuest<'a>(&'a mut Streams);

impl QueueHandler for FromGuest<'_> {
    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        let header: VirtioVsockHdr = chain.readable.read_obj(&memory).unwrap();
        let header = Header::from(header);
        let mut bytes = vec![0; HEADER_BYTES + header.len as usize];
        assert_eq!(chain.readable.read(&memory, &mut bytes), bytes.len());
        match self.0.muxer.receive(&header, header.len as usize) {
            Event::Connect { id, .. } => {
                self.0.id = Some(id);
                self.0.muxer.host_accepted(id);
                self.0.muxer.host_readable(id);
            }
            Event::Payload(id) => {
                self.0.socket.from_guest.lock().unwrap().extend(&bytes[HEADER_BYTES..]);
                self.0.muxer.forwarded(id, header.len);
            }
            Event::None => {}
            event => panic!("{event:?}"),
        }
        Outcome::Used(0)
    }
}

struct ToGuest<'a>(&'a mut Streams);

impl QueueHandler for ToGuest<'_> {
    fn is_ready(&mut self) -> bool {
        self.0.muxer.has_outgoing()
    }

    fn handle(&mut self, chain: &Chain, memory: Snapshot) -> Outcome {
        loop {
            let (header, data) = match self.0.muxer.next_outgoing() {
                None => return Outcome::NotYet,
                Some(Outgoing::Control(header)) => (header, Vec::new()),
                Some(Outgoing::Data { id, limit }) => {
                    let mut socket = self.0.socket.to_guest.lock().unwrap();
                    let count = socket.len().min(limit as usize).min(2);
                    let data: Vec<_> = socket.drain(..count).collect();
                    drop(socket);
                    if data.is_empty() {
                        self.0.muxer.host_blocked(id);
                        continue;
                    }
                    (self.0.muxer.host_sent(id, data.len() as u32).unwrap(), data)
                }
            };
            let packet = [VirtioVsockHdr::from(header).as_slice(), &data].concat();
            return Outcome::Used(chain.writable.write(&memory, 0, &packet) as u32);
        }
    }
}

impl Handler for Carrier {
    fn queues(&mut self) -> Vec<&mut DeviceQueue> {
        vec![&mut self.rx, &mut self.tx]
    }

    fn event(&mut self, queue: Option<usize>) {
        match queue {
            Some(1) => self.tx.kicked(&mut FromGuest(&mut self.streams)),
            Some(_) => {}
            None => self.streams.id.into_iter().for_each(|id| self.streams.muxer.host_readable(id)),
        }
        match queue {
            Some(0) => self.rx.kicked(&mut ToGuest(&mut self.streams)),
            _ => self.rx.serve(&mut ToGuest(&mut self.streams)),
        }
    }
}

#[test]
fn no_byte_of_a_stream_is_lost_by_a_hand_over() {
    let one_order = || {
        let socket = std::sync::Arc::new(Socket::default());
        let (device, host, guest) = (socket.clone(), socket.clone(), socket);
        let make = move |activation: &mut Activation, before: Option<Carrier>| {
            let new = || Streams { muxer: Muxer::new(GUEST_CID), socket: device.clone(), id: None };
            let streams = before.map_or_else(new, |carrier| carrier.streams);
            let (rx, tx) = (DeviceQueue::take(activation, 0).unwrap(), DeviceQueue::take(activation, 1).unwrap());
            Carrier { rx, tx, streams }
        };
        let host = move |readable: &dyn Fn()| {
            for bytes in TO_GUEST.chunks(3) {
                host.to_guest.lock().unwrap().extend(bytes);
                readable();
            }
        };
        let driver = move |queues: &mut [DriverQueue], kick: &dyn Fn(&DriverQueue)| {
            let header = |op: Op, len| Header {
                src_cid: GUEST_CID,
                dst_cid: HOST_CID,
                src_port: 7,
                dst_port: 9,
                kind: TYPE_STREAM,
                op: op.number(),
                buf_alloc: 64,
                len,
                ..Header::default()
            };
            let mut heard = Vec::new();
            let mut listen = |queues: &mut [DriverQueue], enough: &dyn Fn(&[Packet]) -> bool| {
                while !enough(&heard) {
                    let buffer = queues[0].begin(&[], &[64]);
                    kick(&queues[0]);
                    let done = queues[0].finish(buffer);
                    let header = Header::from_bytes(done.written[0][..HEADER_BYTES].try_into().unwrap());
                    heard.push((header.op, done.written[0][HEADER_BYTES..done.len as usize].to_vec()));
                }
            };
            let speak = |queues: &mut [DriverQueue], op, data: &[u8]| {
                let sent = queues[1].begin(&[&header(op, data.len() as u32).to_bytes(), data], &[]);
                thread::yield_now();
                kick(&queues[1]);
                queues[1].finish(sent);
            };
            speak(queues, Op::Request, &[]);
            listen(queues, &|heard| heard.iter().any(|(op, _)| *op == Op::Response.number()));
            FROM_GUEST.chunks(3).for_each(|data| speak(queues, Op::ReadWrite, data));
            listen(queues, &|heard| heard.iter().map(|(_, data)| data.len()).sum::<usize>() == TO_GUEST.len());
            let data: Vec<u8> = heard.into_iter().flat_map(|(_, data)| data).collect();
            assert_eq!(data, TO_GUEST);
            assert_eq!(*guest.from_guest.lock().unwrap(), FROM_GUEST);
        };
        race(2, make, host, driver);
    };
    shuttle::check_random(one_order, ITERATIONS);
}
