//! A stand-in for a TAP, for tests and fuzzing: a pair of sockets, whose other end is the host.

// An error in here must fail the test that uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use bellows_memory::sync::Mutex;
use vm_memory::ByteValued as _;

use super::link::{Link, Offloads, Written, read_whole, write_whole};
use super::pieces::{Room, Source};
use super::wire::{HEADER_BYTES, MAX_FRAME, VirtioNetHdr, feature};
use crate::virtio::testing::PATIENCE;

/// The end that a device has.
pub struct FakeLink {
    socket: UnixDatagram,
    state: Arc<State>,
}

/// The end that the host has. Cheap to clone, as a second process with the same TAP would be.
pub struct FakeHost {
    socket: UnixDatagram,
    device: UnixDatagram,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    offloads: Mutex<Option<Offloads>>,
    /// One of several links that is not used, as a queue of a TAP.
    unused: AtomicBool,
    /// Every call fails with this, unless it is 0.
    error: AtomicI32,
    /// Calls so far.
    reads: AtomicU64,
    writes: AtomicU64,
}

/// A link, and the host behind it.
#[must_use]
pub fn pair() -> (FakeLink, FakeHost) {
    let (device, host) = UnixDatagram::pair().unwrap();
    device.set_nonblocking(true).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let state = Arc::<State>::default();
    let host = FakeHost { socket: host, device: device.try_clone().unwrap(), state: state.clone() };
    (FakeLink { socket: device, state }, host)
}

/// `count` links to the same host, the first of which is used.
#[must_use]
pub fn queues(count: usize) -> (Vec<FakeLink>, Vec<FakeHost>) {
    let (links, hosts): (Vec<_>, Vec<_>) = (0..count).map(|_| pair()).unzip();
    hosts.iter().skip(1).for_each(|host| host.state.unused.store(true, Ordering::SeqCst));
    (links, hosts)
}

impl FakeLink {
    /// The same end once more, for another device.
    #[must_use]
    pub fn again(&self) -> Self {
        Self { socket: self.socket.try_clone().unwrap(), state: self.state.clone() }
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        match self.error.load(Ordering::SeqCst) {
            0 if self.unused.load(Ordering::SeqCst) => Err(io::Error::from_raw_os_error(libc::EBADFD)),
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Link for FakeLink {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn offloads(&self) -> u64 {
        feature::OFFLOADS
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.state.check()?;
        *self.state.offloads.lock() = Some(offloads);
        Ok(())
    }

    fn set_used(&self, used: bool) -> io::Result<()> {
        match self.state.error.load(Ordering::SeqCst) {
            0 => self.state.unused.store(!used, Ordering::SeqCst),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        Ok(())
    }

    fn read(&self, header: &mut VirtioNetHdr, room: &mut Room<'_>) -> io::Result<usize> {
        self.state.reads.fetch_add(1, Ordering::SeqCst);
        self.state.check()?;
        read_whole(self.descriptor(), header, room)
    }

    fn write(&self, header: &VirtioNetHdr, frame: &mut Source<'_>) -> io::Result<Written> {
        self.state.writes.fetch_add(1, Ordering::SeqCst);
        self.state.check()?;
        write_whole(self.descriptor(), header, frame)
    }
}

impl FakeHost {
    /// Sends a packet to the guest.
    pub fn send(&self, header: VirtioNetHdr, frame: &[u8]) {
        self.send_raw(&[header.as_slice(), frame].concat());
    }

    /// Sends a packet that is not to be segmented and has its checksum.
    pub fn send_frame(&self, frame: &[u8]) {
        self.send(VirtioNetHdr::default(), frame);
    }

    /// Sends header and packet of any shape.
    pub fn send_raw(&self, bytes: &[u8]) {
        assert_eq!(self.socket.send(bytes).unwrap(), bytes.len());
    }

    /// The same, if there is room for it.
    #[must_use]
    pub fn try_send_raw(&self, bytes: &[u8]) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let sent = self.socket.send(bytes);
        self.socket.set_nonblocking(false).unwrap();
        sent.is_ok()
    }

    /// Waits for a packet of the guest.
    #[must_use]
    pub fn receive(&self) -> (VirtioNetHdr, Vec<u8>) {
        self.take().unwrap()
    }

    /// A packet of the guest that is there already.
    #[must_use]
    pub fn try_receive(&self) -> Option<(VirtioNetHdr, Vec<u8>)> {
        self.socket.set_nonblocking(true).unwrap();
        let taken = self.take();
        self.socket.set_nonblocking(false).unwrap();
        taken.ok()
    }

    fn take(&self) -> io::Result<(VirtioNetHdr, Vec<u8>)> {
        let mut bytes = vec![0; HEADER_BYTES + MAX_FRAME + 1];
        let received = self.socket.recv(&mut bytes)?;
        bytes.truncate(received);
        let frame = bytes.split_off(HEADER_BYTES);
        let mut header = VirtioNetHdr::default();
        header.as_mut_slice().copy_from_slice(&bytes);
        Ok((header, frame))
    }

    /// Whether there is a packet of the guest; takes it.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        self.try_receive().is_some()
    }

    /// Whether the device uses the link.
    #[must_use]
    pub fn is_used(&self) -> bool {
        !self.state.unused.load(Ordering::SeqCst)
    }

    /// What the device has set last.
    #[must_use]
    pub fn offloads(&self) -> Option<Offloads> {
        *self.state.offloads.lock()
    }

    /// Has every call of the device fail from now on, or succeed again with 0.
    pub fn fail(&self, error: i32) {
        self.state.error.store(error, Ordering::SeqCst);
    }

    /// Hangs up, of which the device hears by an event.
    pub fn hang_up(&self) {
        self.device.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// How often the device has tried to read and to write.
    #[must_use]
    pub fn calls(&self) -> (u64, u64) {
        (self.state.reads.load(Ordering::SeqCst), self.state.writes.load(Ordering::SeqCst))
    }
}
