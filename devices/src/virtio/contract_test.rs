//! The contract of every device: a test for each duty, and one line for each device at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bellows_memory::GuestMemory;
use vm_memory::GuestAddress;

use self::subjects::{
    BalloonSubject, BlkSubject, DiscardSubject, MemSubject, NetSubject, PairsSubject, PmemSubject, RngSubject,
    VsockSubject, low_limit,
};
use super::limits::RateLimit;
use super::testing::{Completion, DriverQueue, FakeGuest, FakeInterrupt, PciDriver, PciMachine, Pending};
use super::transport::common_config::status;
use super::transport::{VirtioPci, VirtioPciState};
use super::{ActivateError, Activation, VirtioDevice};
use crate::pci::{PciFunction, SegmentState};

mod subjects;

/// A kind of device, with its needs on the host.
trait Subject {
    /// A device, made the same way each time.
    fn device(&self) -> Box<dyn VirtioDevice>;

    /// The queue that takes requests.
    fn queue(&self) -> usize {
        0
    }

    /// A request: bytes to read, and lengths to write. It may be made any number of times.
    fn request(&self) -> (Vec<u8>, Vec<u32>);

    /// Checks the result of a request.
    fn check(&self, done: &Completion);
}

/// A device on a bus, and its driver.
struct Started {
    machine: PciMachine,
    function: Arc<VirtioPci>,
    driver: PciDriver,
    queues: Vec<DriverQueue>,
    queue: usize,
}

impl Started {
    fn new(subject: &impl Subject, guest: FakeGuest) -> Self {
        let machine = PciMachine::with_guest(guest);
        let function = machine.function(subject.device());
        let address = machine.segment.add(function.clone()).unwrap();
        let mut driver = PciDriver::probe(&machine, address);
        let queues = driver.start(&machine);
        Self { machine, function, driver, queues, queue: subject.queue() }
    }

    fn queue(&mut self) -> &mut DriverQueue {
        &mut self.queues[self.queue]
    }

    /// Makes a request available, without a kick.
    fn publish(&mut self, subject: &impl Subject) -> Pending {
        let (readable, writable) = subject.request();
        self.queue().begin(&[&readable], &writable)
    }

    /// Waits for the oldest request that is not finished.
    fn finish(&mut self, subject: &impl Subject, pending: Pending) {
        let done = self.queue().finish(pending);
        subject.check(&done);
    }

    /// Makes a request and waits for it.
    fn ask(&mut self, subject: &impl Subject) {
        let pending = self.publish(subject);
        self.queue().kick();
        self.finish(subject, pending);
    }

    /// The state of the function and of its segment, converted through JSON.
    fn save(&self) -> (VirtioPciState, SegmentState) {
        let state = self.function.save().unwrap();
        let text = serde_json::to_string(&(&state, self.machine.segment.save())).unwrap();
        let (read, segment) = serde_json::from_str(&text).unwrap();
        assert_eq!(state, read, "{text}");
        (state, segment)
    }

    /// Puts a new device, restored from the state of this one, on the bus of another machine with the same memory. It is not
    /// resumed yet.
    fn restore(self, subject: &impl Subject) -> Self {
        let (state, segment) = self.save();
        let machine = PciMachine::with_guest(self.machine.guest.twin());
        drop(self.machine);
        drop(self.function);
        let function = machine.function(subject.device());
        function.restore(&state).unwrap();
        let functions: [Arc<dyn PciFunction>; 1] = [function.clone()];
        machine.segment.restore(&segment, &functions).unwrap();
        let mut restored = Self { machine, function, driver: self.driver, queues: self.queues, queue: self.queue };
        restored.driver.move_to(&restored.machine);
        for queue in &mut restored.queues {
            restored.driver.connect(queue, &restored.machine);
        }
        assert_eq!(restored.save(), (state, segment), "a restored device saves what it was restored from");
        restored
    }
}

/// Requests that are made available while others are being served, at whatever point the device is suspended: no request is
/// lost or served twice, and nothing happens while the device is suspended.
fn suspends_at_any_point_of_a_request(subject: &impl Subject) {
    let mut started = Started::new(subject, FakeGuest::new());
    for round in 0..60 {
        // Before and after the kick; with none, some and many requests; at once and a moment later.
        let mut pending: Vec<_> = (0..round % 6).map(|_| started.publish(subject)).collect();
        if round % 2 == 0 {
            started.queue().kick();
            (0..round % 7 * 20).for_each(|_| std::hint::spin_loop());
        }
        started.function.suspend();
        let used = started.queue().used_index();
        pending.push(started.publish(subject));
        started.queue().kick();
        started.machine.guest.drain();
        assert_eq!(started.queue().used_index(), used, "a request was served while the device was suspended");
        started.function.resume();
        for pending in pending {
            started.finish(subject, pending);
        }
        assert_eq!(started.queue().pop_used(), None, "a request was served twice");
    }
}

/// A new device goes on from the state of a suspended one: with requests that were kicked but not yet served.
fn goes_on_in_a_new_device(subject: &impl Subject) {
    let mut started = Started::new(subject, FakeGuest::new());
    for requests in 0..4 {
        started.ask(subject);
        started.function.suspend();
        let pending: Vec<_> = (0..requests).map(|_| started.publish(subject)).collect();
        started.queue().kick();
        started = started.restore(subject);
        assert_eq!(started.queue().pop_used(), None, "a restored device waits until it is resumed");
        started.function.resume();
        for pending in pending {
            started.finish(subject, pending);
        }
        started.ask(subject);
    }
    started.driver.reset();
    started.queues = started.driver.start(&started.machine);
    started.ask(subject);
}

/// An interrupt that came while the driver had masked it waits as long as the device is suspended, and in a new device.
fn keeps_an_interrupt_that_is_pending(subject: &impl Subject) {
    let mut started = Started::new(subject, FakeGuest::new());
    let vector = started.queue().index + 1;
    for anew in [false, true] {
        started.driver.mask_vector(vector, true);
        let pending = started.publish(subject);
        started.queue().kick();
        while !started.driver.is_pending(vector) {
            thread::yield_now();
        }
        started.function.suspend();
        if anew {
            started = started.restore(subject);
        }
        started.function.resume();
        assert!(started.driver.is_pending(vector), "anew: {anew}");
        let message = started.driver.message(vector);
        let before = started.machine.msi.count(message);
        started.driver.mask_vector(vector, false);
        started.machine.msi.wait(message, before + 1);
        started.finish(subject, pending);
    }
}

/// Suspend, resume and reset are harmless where they change nothing, in any order.
fn takes_calls_in_any_order(subject: &impl Subject) {
    let mut device = subject.device();
    let queues = device.queue_max_sizes().len();
    for _ in 0..2 {
        assert_eq!(device.suspend(), vec![None; queues], "a device that never was active");
        device.reset();
    }
    let guest = FakeGuest::new();
    for _ in 0..2 {
        let mut driver = guest.activate(&mut *device);
        let (readable, writable) = subject.request();
        subject.check(&driver.queues[subject.queue()].request(&[&readable], &writable));
        let states = device.suspend();
        assert!(states.len() == queues && states.iter().all(Option::is_some), "{states:?}");
        let served = states[subject.queue()].unwrap();
        assert_eq!(served.next_avail, 1);
        assert_eq!(served.next_used, 1);
        assert_eq!(device.suspend(), vec![None; queues], "there is nothing left to suspend");
        device.reset();
        device.reset();
    }

    let mut started = Started::new(subject, FakeGuest::new());
    started.function.resume();
    started.ask(subject);
    assert!(started.function.save().is_err(), "a device that runs has no state");
    started.function.suspend();
    started.function.suspend();
    started.function.resume();
    started.function.resume();
    started.ask(subject);
}

/// A driver may reset a device that is suspended, and start it: then it starts when it is resumed.
fn starts_when_it_is_resumed(subject: &impl Subject) {
    let mut started = Started::new(subject, FakeGuest::new());
    started.ask(subject);
    started.function.suspend();
    started.driver.reset();
    started.queues = started.driver.start(&started.machine);
    let pending = started.publish(subject);
    started.queue().kick();
    started.machine.guest.drain();
    assert_eq!(started.queue().pop_used(), None);
    started.function.resume();
    started.finish(subject, pending);
    started.function.suspend();
    started.driver.reset();
    started.function.resume();
    assert_eq!(started.driver.status(), 0);
}

/// A device names the missing queue, and can be activated afterwards.
fn names_a_missing_queue(subject: &impl Subject) {
    let guest = FakeGuest::new();
    let mut device = subject.device();
    let queues = device.queue_max_sizes().len();
    let error = device.activate(Activation {
        memory: guest.view().clone(),
        queues: (0..queues).map(|_| None).collect(),
        interrupt: Arc::new(FakeInterrupt::new(queues)),
        features: FakeGuest::all_features(&*device),
        event_loop: guest.event_loop().handle(),
    });
    assert!(matches!(error, Err(ActivateError::MissingQueue(0))), "{error:?}");
    device.reset();
    let mut driver = guest.activate(&mut *device);
    let (readable, writable) = subject.request();
    subject.check(&driver.queues[subject.queue()].request(&[&readable], &writable));
}

/// Rings in memory that is gone at the resume are the driver's fault: it must reset the device.
fn survives_rings_in_memory_that_is_gone(subject: &impl Subject) {
    let stays = (GuestAddress(1 << 32), 1 << 20);
    let guest = FakeGuest::with_memory(&[(GuestAddress(0), 1 << 30), stays]);
    let mut started = Started::new(subject, guest);
    started.ask(subject);
    let whole = started.machine.guest.memory().into_inner();
    let replace = |started: &Started, memory: GuestMemory| {
        started.machine.guest.view().lock().unwrap().replace(memory);
    };
    for suspended in [true, false] {
        if suspended {
            started.function.suspend();
        }
        let message = started.driver.message(0);
        let before = started.machine.msi.count(message);
        replace(&started, GuestMemory::from_ranges(&[stays]).unwrap());
        started.queue().kick();
        started.function.resume();
        started.machine.msi.wait(message, before + 1);
        assert_ne!(started.driver.status() & status::NEEDS_RESET, 0, "suspended: {suspended}");
        replace(&started, (*whole).clone());
        started.driver.reset();
        started.queues = started.driver.start(&started.machine);
        started.ask(subject);
    }
}

/// A driver makes requests on one thread as fast as it can, while another thread suspends and resumes the device.
fn loses_nothing_to_threads_that_race(subject: &impl Subject) {
    const DEPTH: usize = 16;
    let limit = match std::env::var("BELLOWS_CONTRACT_MINUTES") {
        Ok(minutes) => Duration::from_secs(60 * minutes.parse::<u64>().unwrap()),
        Err(_) => Duration::from_millis(300),
    };
    let mut started = Started::new(subject, FakeGuest::new());
    let function = started.function.clone();
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (served, suspended) = thread::scope(|scope| {
        let suspender = scope.spawn(|| {
            let mut times = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                function.suspend();
                function.resume();
                times += 1;
                thread::yield_now();
            }
            times
        });
        let mut served = 0_u64;
        while start.elapsed() < limit {
            let pending: Vec<_> = (0..1 + served as usize % DEPTH)
                .map(|_| {
                    let pending = started.publish(subject);
                    started.queue().kick();
                    pending
                })
                .collect();
            for pending in pending {
                started.finish(subject, pending);
                served += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        (served, suspender.join().unwrap())
    });
    assert!(served > 0 && suspended > 0, "{served} requests, suspended {suspended} times");
    assert_eq!(started.queue().pop_used(), None, "a request was served twice");
}

/// Every test for every device.
macro_rules! contract {
    ($($device:ident: $subject:expr,)*) => {$(
        mod $device {
            use super::*;

            contract!(@tests $subject,
                suspends_at_any_point_of_a_request,
                goes_on_in_a_new_device,
                keeps_an_interrupt_that_is_pending,
                takes_calls_in_any_order,
                starts_when_it_is_resumed,
                names_a_missing_queue,
                survives_rings_in_memory_that_is_gone,
                loses_nothing_to_threads_that_race,
            );
        }
    )*};
    (@tests $subject:expr, $($test:ident,)*) => {$(
        #[test]
        fn $test() {
            super::$test(&$subject);
        }
    )*};
}

contract! {
    rng: RngSubject,
    blk: BlkSubject(None),
    blk_limited: BlkSubject(Some(low_limit())),
    blk_discards: DiscardSubject,
    mem: MemSubject::new(),
    pmem: PmemSubject,
    vsock: VsockSubject::new(),
    balloon_inflate: BalloonSubject::new(0),
    balloon_hints: BalloonSubject::new(3),
    balloon_reports: BalloonSubject::new(4),
    net_receive: NetSubject::new(0, RateLimit::default()),
    net_receive_limited: NetSubject::new(0, low_limit()),
    net_transmit: NetSubject::new(1, RateLimit::default()),
    net_transmit_limited: NetSubject::new(1, low_limit()),
    net_pairs_receive: PairsSubject::new(0),
    net_pairs_transmit: PairsSubject::new(1),
    net_pairs_control: PairsSubject::new(4),
}
