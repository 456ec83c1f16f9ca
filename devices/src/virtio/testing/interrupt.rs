//! Interrupts, MSI vectors and doorbells that record their calls.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::{PATIENCE, QueueInterrupts};
use crate::bus::Doorbells;
use crate::interrupt::{Interrupt, MsiController, MsiMessage, MsiVector};

/// Counts interrupts and lets a test wait for them.
pub struct FakeInterrupt {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Default)]
struct Counts {
    queues: Vec<u64>,
    config: u64,
    needs_reset: u64,
    wired: HashMap<u16, Arc<EventFd>>,
}

impl FakeInterrupt {
    #[must_use]
    pub fn new(queues: usize) -> Self {
        let counts = Counts { queues: vec![0; queues], ..Counts::default() };
        Self { counts: Mutex::new(counts), changed: Condvar::new() }
    }

    /// Interrupts for `queue` so far.
    #[must_use]
    pub fn queue_count(&self, queue: u16) -> u64 {
        self.counts.lock().unwrap().queues[usize::from(queue)]
    }

    #[must_use]
    pub fn config_count(&self) -> u64 {
        self.counts.lock().unwrap().config
    }

    #[must_use]
    pub fn needs_reset_count(&self) -> u64 {
        self.counts.lock().unwrap().needs_reset
    }

    /// The event whose signals are interrupts of `queue`.
    #[must_use]
    pub fn wired(&self, queue: u16) -> Option<Arc<EventFd>> {
        self.counts.lock().unwrap().wired.get(&queue).cloned()
    }

    /// Waits until there were `count` interrupts for `queue` in all.
    pub fn wait_queue(&self, queue: u16, count: u64) {
        self.wait_for(&format!("{count} interrupts of queue {queue}"), |counts| {
            counts.queues[usize::from(queue)] >= count
        });
    }

    /// Waits until the configuration changed `count` times in all.
    pub fn wait_config(&self, count: u64) {
        self.wait_for(&format!("{count} configuration changes"), |counts| counts.config >= count);
    }

    /// Waits until the device asked for a reset.
    pub fn wait_needs_reset(&self) {
        self.wait_for("a request for a reset", |counts| counts.needs_reset > 0);
    }

    fn wait_for(&self, what: &str, enough: impl Fn(&Counts) -> bool) {
        let counts = self.counts.lock().unwrap();
        let (_guard, result) = self.changed.wait_timeout_while(counts, PATIENCE, |counts| !enough(counts)).unwrap();
        assert!(!result.timed_out(), "no {what} in time");
    }

    fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.counts.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Interrupt for FakeInterrupt {
    fn queue(&self, queue: u16) {
        self.count(|counts| counts.queues[usize::from(queue)] += 1);
    }

    fn wire(&self, queue: u16, call: Option<&Arc<EventFd>>) -> io::Result<()> {
        self.count(|counts| match call {
            Some(call) => drop(counts.wired.insert(queue, call.clone())),
            None => drop(counts.wired.remove(&queue)),
        });
        Ok(())
    }

    fn config(&self) {
        self.count(|counts| counts.config += 1);
    }

    fn needs_reset(&self) {
        self.count(|counts| counts.needs_reset += 1);
    }
}

impl QueueInterrupts for FakeInterrupt {
    fn count(&self, queue: u16) -> u64 {
        self.queue_count(queue)
    }

    fn wait(&self, queue: u16, count: u64) {
        self.wait_queue(queue, count);
    }
}

/// A supply of [`FakeMsiVector`]s.
#[derive(Default)]
pub struct FakeMsi {
    delivered: Arc<Delivered>,
    live: Arc<AtomicUsize>,
    wired: Arc<Wired>,
}

/// Events that are wired to a vector, by their descriptors, with copies and the vectors' routes.
type Wired = Mutex<HashMap<i32, (EventFd, Route)>>;
type Route = Arc<Mutex<Option<MsiMessage>>>;

/// Messages that reached the guest.
#[derive(Default)]
struct Delivered {
    counts: Mutex<HashMap<(u64, u32), u64>>,
    changed: Condvar,
}

impl FakeMsi {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How often `message` reached the guest.
    #[must_use]
    pub fn count(&self, message: MsiMessage) -> u64 {
        self.delivered.counts.lock().unwrap().get(&(message.address, message.data)).copied().unwrap_or(0)
    }

    /// Waits until `message` reached the guest `count` times in all.
    pub fn wait(&self, message: MsiMessage, count: u64) {
        let counts = self.delivered.counts.lock().unwrap();
        let few =
            |counts: &mut HashMap<_, _>| counts.get(&(message.address, message.data)).copied().unwrap_or(0) < count;
        let (_guard, result) = self.delivered.changed.wait_timeout_while(counts, PATIENCE, few).unwrap();
        assert!(!result.timed_out(), "{message:x?} did not come {count} times in time");
    }

    /// Sends the messages of wired events that were signalled, as the hypervisor does at once.
    pub fn carry(&self) {
        for (call, route) in self.wired.lock().unwrap().values() {
            if call.read().is_ok() {
                self.delivered.add(*route.lock().unwrap());
            }
        }
    }

    /// Events that are wired.
    #[must_use]
    pub fn wired(&self) -> usize {
        self.wired.lock().unwrap().len()
    }

    /// Vectors taken and not given back.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

impl MsiController for FakeMsi {
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        self.live.fetch_add(usize::from(count), Ordering::SeqCst);
        let vector = || FakeMsiVector {
            route: Arc::default(),
            delivered: self.delivered.clone(),
            live: self.live.clone(),
            wired: self.wired.clone(),
        };
        Ok((0..count).map(|_| Arc::new(vector()) as Arc<dyn MsiVector>).collect())
    }
}

/// A vector of [`FakeMsi`].
pub struct FakeMsiVector {
    route: Route,
    delivered: Arc<Delivered>,
    live: Arc<AtomicUsize>,
    wired: Arc<Wired>,
}

impl MsiVector for FakeMsiVector {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.route.lock().unwrap() = message;
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        self.delivered.add(*self.route.lock().unwrap());
        Ok(())
    }

    fn wire(&self, call: &EventFd) -> io::Result<()> {
        assert!(self.route.lock().unwrap().is_some(), "a vector without a route");
        let wired = (call.try_clone()?, self.route.clone());
        assert!(self.wired.lock().unwrap().insert(call.as_raw_fd(), wired).is_none(), "wired twice");
        Ok(())
    }

    fn unwire(&self, call: &EventFd) -> io::Result<()> {
        let (call, route) = self.wired.lock().unwrap().remove(&call.as_raw_fd()).expect("a wired event");
        if call.read().is_ok() {
            self.delivered.add(*route.lock().unwrap());
        }
        Ok(())
    }
}

impl Delivered {
    fn add(&self, message: Option<MsiMessage>) {
        if let Some(message) = message {
            *self.counts.lock().unwrap().entry((message.address, message.data)).or_default() += 1;
            self.changed.notify_all();
        }
    }
}

impl Drop for FakeMsiVector {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Doorbells that ring when the test says so.
#[derive(Default)]
pub struct FakeDoorbells {
    wired: Mutex<HashMap<u64, Bell>>,
}

struct Bell {
    /// The caller's descriptor, to compare.
    raw: i32,
    fd: EventFd,
}

impl FakeDoorbells {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A guest write to `address`; `false` if no doorbell is wired there.
    pub fn ring(&self, address: u64) -> bool {
        match self.wired.lock().unwrap().get(&address) {
            Some(bell) => {
                bell.fd.write(1).unwrap();
                true
            }
            None => false,
        }
    }

    /// Addresses that are wired, in order.
    #[must_use]
    pub fn addresses(&self) -> Vec<u64> {
        let mut addresses: Vec<_> = self.wired.lock().unwrap().keys().copied().collect();
        addresses.sort_unstable();
        addresses
    }
}

impl Doorbells for FakeDoorbells {
    fn wire(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        let mut wired = self.wired.lock().unwrap();
        if wired.contains_key(&address) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        wired.insert(address, Bell { raw: fd.as_raw_fd(), fd: fd.try_clone()? });
        Ok(())
    }

    fn unwire(&self, address: u64, fd: &EventFd) -> io::Result<()> {
        let mut wired = self.wired.lock().unwrap();
        match wired.get(&address) {
            Some(bell) if bell.raw == fd.as_raw_fd() => {
                wired.remove(&address);
                Ok(())
            }
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }
}
