//! A kernel that notes what it is told, for tests.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bellows_memory::sync::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::engine::Engine;
use super::ring::Ring;
use super::table::Piece;

/// What the kernel knows of a pair of queues.
#[derive(Default)]
pub(super) struct Known {
    pub(super) features: u64,
    pub(super) memory: Vec<Piece>,
    /// Whether each queue was served when it was told of memory, each time that it was.
    pub(super) served_at: Vec<[bool; 2]>,
    pub(super) served: [bool; 2],
    pub(super) positions: [u16; 2],
    /// Events of the queues, and that of errors.
    pub(super) calls: [Option<EventFd>; 2],
    pub(super) error: Option<EventFd>,
    /// The call that is refused.
    pub(super) refuses: Option<&'static str>,
}

/// A pair of queues, and whoever looks at it.
#[derive(Clone, Default)]
pub(super) struct FakeEngine(Arc<Mutex<Known>>);

impl FakeEngine {
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.0.lock())
    }

    fn call(&self, name: &str, call: impl FnOnce(&mut Known)) -> io::Result<()> {
        self.look(|known| match known.refuses {
            Some(refused) if refused == name => Err(io::ErrorKind::OutOfMemory.into()),
            _ => {
                call(known);
                Ok(())
            }
        })
    }
}

impl Engine for FakeEngine {
    fn set_features(&self, features: u64) -> io::Result<()> {
        self.call("features", |known| known.features = features)
    }

    fn set_memory(&self, pieces: &[Piece]) -> io::Result<()> {
        self.call("memory", |known| {
            known.memory = pieces.to_vec();
            known.served_at.push(known.served);
        })
    }

    fn set_ring(&self, queue: usize, ring: &Ring, call: &EventFd, error: &EventFd) -> io::Result<()> {
        self.call("ring", |known| {
            assert!(!known.served[queue], "a queue that is served");
            known.positions[queue] = ring.position();
            known.calls[queue] = call.try_clone().ok();
            known.error = error.try_clone().ok();
        })
    }

    fn serve(&self, queue: usize, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
        // It always stops.
        let name = if tap.is_some() { "serve" } else { "" };
        self.call(name, |known| known.served[queue] = tap.is_some())
    }

    fn position(&self, queue: usize) -> io::Result<u16> {
        self.look(|known| {
            assert!(!known.served[queue], "a queue that is served");
            Ok(known.positions[queue])
        })
    }
}
