//! A driver's side of a split virtqueue, VIRTIO 1.2 section 2.7.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use bellows_memory::GuestView;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::EventFd;

use super::FakeGuest;
use crate::virtio::ActiveQueue;

/// One descriptor of a chain.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// Bytes for the device to read, copied into the queue's own buffers.
    Readable(&'a [u8]),
    /// Bytes for the device to write, in the queue's own buffers.
    Writable(u32),
    /// Guest memory for the device to read, as it is: any address, any length.
    ReadableAt(GuestAddress, u32),
    /// Guest memory for the device to write, as it is.
    WritableAt(GuestAddress, u32),
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Used {
    /// Head of the chain that was used.
    pub head: u32,
    /// Bytes written, by the device's account.
    pub len: u32,
}

/// The result of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Completion {
    /// Bytes that the device says it wrote.
    pub len: u32,
    /// The writable buffers, whole, in order.
    pub written: Vec<Vec<u8>>,
}

/// A request in flight.
#[derive(Debug)]
pub struct Pending {
    head: u16,
    /// Address and length of each writable buffer.
    writable: Vec<(GuestAddress, u32)>,
}

/// The interrupts of a device's queues, as a driver sees them.
pub trait QueueInterrupts: Send + Sync {
    /// Interrupts of `queue` so far.
    fn count(&self, queue: u16) -> u64;
    /// Waits until there were `count` of them.
    fn wait(&self, queue: u16, count: u64);
}

/// How a driver kicks the device.
pub enum Bell {
    /// The device's eventfd.
    Direct(Arc<EventFd>),
    /// The transport's doorbell.
    Transport(Box<dyn Fn() + Send + Sync>),
}

/// A virtqueue as its driver sees it.
///
/// The queue's own buffers are a ring: a request's buffers stay valid until [`DriverQueue::BUFFERS`] bytes more were used.
pub struct DriverQueue {
    pub index: u16,
    pub size: u16,
    pub descriptors: GuestAddress,
    pub available: GuestAddress,
    pub used: GuestAddress,
    bell: Bell,
    view: GuestView,
    interrupts: Arc<dyn QueueInterrupts>,
    buffers: GuestAddress,
    buffer_bytes: u64,
    next_buffer: u64,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

impl DriverQueue {
    /// Bytes of the queue's own buffers.
    pub const BUFFERS: usize = 1 << 20;

    /// A queue of `size` descriptors in memory of `guest`.
    pub fn new(guest: &FakeGuest, index: u16, size: u16, interrupts: Arc<dyn QueueInterrupts>, bell: Bell) -> Self {
        Self::with_buffers(guest, index, size, interrupts, bell, Self::BUFFERS)
    }

    /// Like [`DriverQueue::new`], with `bytes` of buffers.
    pub fn with_buffers(
        guest: &FakeGuest,
        index: u16,
        size: u16,
        interrupts: Arc<dyn QueueInterrupts>,
        bell: Bell,
        bytes: usize,
    ) -> Self {
        let n = usize::from(size);
        Self {
            index,
            size,
            descriptors: guest.allocate(n * 16),
            available: guest.allocate(6 + n * 2),
            used: guest.allocate(6 + n * 8),
            bell,
            view: guest.view().clone(),
            interrupts,
            buffers: guest.allocate(bytes),
            buffer_bytes: bytes as u64,
            next_buffer: 0,
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// The queue as the transport would hand it to the device.
    #[must_use]
    pub fn device_side(&self, event_idx: bool) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(self.descriptors).unwrap();
        queue.try_set_avail_ring_address(self.available).unwrap();
        queue.try_set_used_ring_address(self.used).unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&*self.view.memory()));
        let Bell::Direct(kick) = &self.bell else { panic!("the transport made the device's side") };
        ActiveQueue { queue, kick: kick.clone() }
    }

    /// The queue as the transport would hand it to a device that goes on from `state`.
    ///
    /// # Panics
    /// The state is not one of this queue's.
    #[must_use]
    pub fn resumed_side(&self, state: QueueState) -> ActiveQueue {
        let Bell::Direct(kick) = &self.bell else { panic!("the transport made the device's side") };
        assert_eq!(state.avail_ring, self.available.0);
        assert_eq!(state.used_ring, self.used.0);
        ActiveQueue { queue: state.try_into().unwrap(), kick: kick.clone() }
    }

    /// Builds a chain of `parts` and makes it available, without a kick; the head's number.
    pub fn add(&mut self, parts: &[Part<'_>]) -> u16 {
        let (head, _) = self.build(parts);
        self.publish(head);
        head
    }

    /// Like [`DriverQueue::add`] through one indirect descriptor.
    pub fn add_indirect(&mut self, parts: &[Part<'_>]) -> u16 {
        let table = self.buffer(parts.len() as u64 * 16);
        for (n, &part) in (1..).zip(parts) {
            let (address, len, flags, _) = self.resolve(part);
            let flags = if usize::from(n) < parts.len() { flags | VRING_DESC_F_NEXT as u16 } else { flags };
            self.write(table.0 + u64::from(n - 1) * 16, &encode(address.0, len, flags, n));
        }
        let head = self.take_descriptor();
        self.set_descriptor(head, table, parts.len() as u32 * 16, VRING_DESC_F_INDIRECT as u16, 0);
        self.publish(head);
        head
    }

    /// Writes descriptor `index` of the table, even an invalid one.
    pub fn set_descriptor(&self, index: u16, address: GuestAddress, len: u32, flags: u16, next: u16) {
        self.write(self.descriptors.0 + u64::from(index) * 16, &encode(address.0, len, flags, next));
    }

    /// Makes the chain that begins at `head` available, valid or not.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.write(self.available.0 + 4 + slot * 2, &head.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    /// Writes the available ring's index, even an invalid one.
    pub fn set_available_index(&self, index: u16) {
        fence(Ordering::SeqCst);
        self.view.memory().store(index.to_le(), self.available.unchecked_offset(2), Ordering::Release).unwrap();
    }

    /// Asks for an interrupt once the used index passes `index` (with `VIRTIO_RING_F_EVENT_IDX`).
    pub fn set_used_event(&self, index: u16) {
        self.write(self.available.0 + 4 + u64::from(self.size) * 2, &index.to_le_bytes());
    }

    /// Kicks the device.
    pub fn kick(&self) {
        match &self.bell {
            Bell::Direct(kick) => kick.write(1).unwrap(),
            Bell::Transport(ring) => ring(),
        }
    }

    /// The next entry of the used ring, if the device added one.
    pub fn pop_used(&mut self) -> Option<Used> {
        let memory = self.view.memory();
        let index: u16 = memory.load(self.used.unchecked_offset(2), Ordering::Acquire).unwrap();
        if u16::from_le(index) == self.next_used {
            return None;
        }
        let entry = self.used.unchecked_offset(4 + u64::from(self.next_used % self.size) * 8);
        let [head, len]: [u32; 2] = memory.read_obj(entry).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        self.set_used_event(self.next_used);
        Some(Used { head: u32::from_le(head), len: u32::from_le(len) })
    }

    /// The next entry of the used ring, waiting for interrupts until there is one.
    pub fn wait_used(&mut self) -> Used {
        loop {
            let seen = self.interrupts.count(self.index);
            if let Some(used) = self.pop_used() {
                return used;
            }
            self.interrupts.wait(self.index, seen + 1);
        }
    }

    /// The used ring's index.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.view.memory().load(self.used.unchecked_offset(2), Ordering::Acquire).unwrap())
    }

    /// Makes one request available, without a kick.
    pub fn begin(&mut self, readable: &[&[u8]], writable: &[u32]) -> Pending {
        let parts: Vec<_> = readable
            .iter()
            .map(|bytes| Part::Readable(bytes))
            .chain(writable.iter().map(|&len| Part::Writable(len)))
            .collect();
        self.begin_parts(&parts)
    }

    fn begin_parts(&mut self, parts: &[Part<'_>]) -> Pending {
        let (head, addresses) = self.build(parts);
        self.publish(head);
        let writable = parts.iter().zip(addresses).filter_map(|(part, address)| match part {
            Part::Writable(len) => Some((address, *len)),
            _ => None,
        });
        Pending { head, writable: writable.collect() }
    }

    /// Waits until the device used the oldest request, which is `pending`.
    pub fn finish(&mut self, pending: Pending) -> Completion {
        let used = self.wait_used();
        assert_eq!(used.head, u32::from(pending.head), "another request was answered");
        let memory = self.view.memory();
        let read = |(address, len)| {
            let mut data = vec![0; len as usize];
            memory.read_slice(&mut data, address).unwrap();
            data
        };
        Completion { len: used.len, written: pending.writable.into_iter().map(read).collect() }
    }

    /// From now on kicks the device by `bell`, and takes interrupts from `interrupts`.
    pub fn connect(&mut self, bell: Bell, interrupts: Arc<dyn QueueInterrupts>) {
        self.bell = bell;
        self.interrupts = interrupts;
    }

    /// Makes one request and waits until the device used it.
    pub fn request(&mut self, readable: &[&[u8]], writable: &[u32]) -> Completion {
        let pending = self.begin(readable, writable);
        self.kick();
        self.finish(pending)
    }

    /// Makes one request of any parts and waits until the device used it.
    pub fn request_parts(&mut self, parts: &[Part<'_>]) -> Completion {
        let pending = self.begin_parts(parts);
        self.kick();
        self.finish(pending)
    }

    /// Builds a chain without making it available: its head and each part's address.
    pub fn build(&mut self, parts: &[Part<'_>]) -> (u16, Vec<GuestAddress>) {
        assert!(parts.len() <= usize::from(self.size), "a chain is no longer than the queue");
        let mut numbers: Vec<_> = parts.iter().map(|_| self.take_descriptor()).collect();
        numbers.push(0);
        let mut addresses = Vec::new();
        for (&part, pair) in parts.iter().zip(numbers.windows(2)) {
            let (address, len, flags, _) = self.resolve(part);
            let last = addresses.len() + 1 == parts.len();
            let flags = if last { flags } else { flags | VRING_DESC_F_NEXT as u16 };
            self.set_descriptor(pair[0], address, len, flags, pair[1]);
            addresses.push(address);
        }
        (numbers[0], addresses)
    }

    fn resolve(&mut self, part: Part<'_>) -> (GuestAddress, u32, u16, bool) {
        const WRITE: u16 = VRING_DESC_F_WRITE as u16;
        match part {
            Part::Readable(bytes) => {
                let address = self.buffer(bytes.len() as u64);
                self.write(address.0, bytes);
                (address, bytes.len() as u32, 0, false)
            }
            Part::Writable(len) => {
                let address = self.buffer(u64::from(len));
                self.write(address.0, &vec![0; len as usize]);
                (address, len, WRITE, true)
            }
            Part::ReadableAt(address, len) => (address, len, 0, false),
            Part::WritableAt(address, len) => (address, len, WRITE, true),
        }
    }

    fn buffer(&mut self, len: u64) -> GuestAddress {
        let all = self.buffer_bytes;
        assert!(len <= all, "{len} bytes do not fit the queue's buffers: use guest memory of your own");
        if self.next_buffer + len > all {
            self.next_buffer = 0;
        }
        let address = GuestAddress(self.buffers.0 + self.next_buffer);
        self.next_buffer = (self.next_buffer + len).next_multiple_of(16);
        address
    }

    fn take_descriptor(&mut self) -> u16 {
        let taken = self.next_descriptor;
        self.next_descriptor = (taken + 1) % self.size;
        taken
    }

    fn write(&self, address: u64, data: &[u8]) {
        self.view.memory().write_slice(data, GuestAddress(address)).unwrap();
    }
}

fn encode(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let raw = RawDescriptor::from(Descriptor::new(address, len, flags, next));
    vm_memory::ByteValued::as_slice(&raw).try_into().unwrap()
}

/// Addresses that the test allocated itself, so they cannot overflow.
trait UncheckedOffset {
    fn unchecked_offset(self, offset: u64) -> GuestAddress;
}

impl UncheckedOffset for GuestAddress {
    fn unchecked_offset(self, offset: u64) -> GuestAddress {
        GuestAddress(self.0 + offset)
    }
}
