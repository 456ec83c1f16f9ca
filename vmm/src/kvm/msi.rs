//! MSI vectors: a GSI and an irqfd each, and the routing table that gives GSIs their messages.
//!
//! Setting the routing table is expensive (KVM waits for a grace period), and during a driver's probe routes change often
//! before the first interrupt. So a route is only recorded when the guest writes it; KVM gets all recorded routes at once when
//! the first of them is used. All interrupts go through [`MsiVector::trigger`], so the guest sees no difference. A masked
//! vector is simply not triggered: masking and unmasking cost nothing. An event that others signal ([`MsiVector::wire`]) has an
//! irqfd of its own instead, which comes and goes with the mask.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bellows_devices::interrupt::{MsiController, MsiMessage, MsiVector};
use bellows_memory::sync::Mutex;
use kvm_bindings::KvmIrqRouting;
use kvm_ioctls::{Cap, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::interrupts;
use crate::arch::layout::INTERRUPT_LINES;

/// [`MsiController`] over KVM's GSI routing and irqfd.
pub struct KvmMsi(Arc<Table<VmRoutes>>);

impl KvmMsi {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        let gsis = u32::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0);
        Self(Arc::new(Table::new(VmRoutes(vm), gsis)))
    }
}

impl MsiController for KvmMsi {
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        let vectors = Table::allocate(&self.0, count)?;
        Ok(vectors.into_iter().map(|vector| Arc::new(vector) as Arc<dyn MsiVector>).collect())
    }
}

/// The calls of KVM that the table needs; tests have a fake.
trait Routes: Send + Sync {
    /// Replaces the whole table: the initial lines of the I/O APIC and PIC, and these messages.
    fn set(&self, messages: &[(u32, MsiMessage)]) -> io::Result<()>;
    fn assign(&self, fd: &EventFd, gsi: u32) -> io::Result<()>;
    fn deassign(&self, fd: &EventFd, gsi: u32) -> io::Result<()>;
}

struct VmRoutes(Arc<VmFd>);

impl Routes for VmRoutes {
    fn set(&self, messages: &[(u32, MsiMessage)]) -> io::Result<()> {
        let entries: Vec<_> = interrupts::lines()
            .chain(messages.iter().map(|(gsi, message)| interrupts::message(*gsi, *message)))
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.0.set_gsi_routing(&routing).map_err(io::Error::from)
    }

    fn assign(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        self.0.register_irqfd(fd, gsi).map_err(io::Error::from)
    }

    fn deassign(&self, fd: &EventFd, gsi: u32) -> io::Result<()> {
        self.0.unregister_irqfd(fd, gsi).map_err(io::Error::from)
    }
}

/// Nothing is sent.
const MASKED: u8 = 0;
/// KVM does not know the route yet.
const NOTED: u8 = 1;
/// KVM knows the route: the eventfd sends the message.
const LIVE: u8 = 2;

struct Table<R> {
    routes: R,
    inner: Mutex<Inner>,
}

struct Inner {
    vectors: BTreeMap<u32, Arc<Shared>>,
    free: Vec<u32>,
    next: u32,
    gsis: u32,
}

/// Shared by a vector and the table.
struct Shared {
    fd: EventFd,
    state: AtomicU8,
    /// Changed under the table's lock.
    route: Mutex<Route>,
}

#[derive(Clone, Copy, Default)]
struct Route {
    /// The guest's latest route, masked or not.
    wanted: Option<MsiMessage>,
    /// The route in KVM's table.
    known: Option<MsiMessage>,
    /// The eventfd is wired to the GSI.
    assigned: bool,
}

impl<R: Routes> Table<R> {
    fn new(routes: R, gsis: u32) -> Self {
        let inner = Inner { vectors: BTreeMap::new(), free: Vec::new(), next: INTERRUPT_LINES, gsis };
        Self { routes, inner: Mutex::new(inner) }
    }

    fn allocate(self: &Arc<Self>, count: u16) -> io::Result<Vec<Vector<R>>> {
        let mut inner = self.inner.lock();
        let left = inner.free.len() + (inner.gsis.saturating_sub(inner.next)) as usize;
        if left < usize::from(count) {
            return Err(io::Error::other(format!("{count} MSI vectors requested, {left} left")));
        }
        // Descriptors first: if they fail, nothing has been taken.
        let fds = (0..count).map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)).collect::<io::Result<Vec<_>>>()?;
        Ok(fds
            .into_iter()
            .map(|fd| {
                let gsi = inner.free.pop().unwrap_or_else(|| {
                    inner.next += 1;
                    inner.next - 1
                });
                let shared = Arc::new(Shared { fd, state: AtomicU8::new(MASKED), route: Mutex::default() });
                inner.vectors.insert(gsi, shared.clone());
                Vector { gsi, shared, table: self.clone() }
            })
            .collect())
    }

    /// Gives KVM all recorded routes. If KVM refuses an eventfd, only that of `wanted` is an error: the others stay recorded
    /// and are tried again when they are used.
    fn flush(&self, wanted: u32) -> io::Result<()> {
        let inner = self.inner.lock();
        let messages: Vec<_> = inner
            .vectors
            .iter()
            .filter_map(|(gsi, vector)| vector.route.lock().wanted.map(|message| (*gsi, message)))
            .collect();
        let stale = inner.vectors.values().any(|vector| {
            let route = vector.route.lock();
            route.wanted.is_some() && route.wanted != route.known
        });
        if stale {
            self.routes.set(&messages)?;
        }
        let mut result = Ok(());
        for (gsi, vector) in &inner.vectors {
            let mut route = vector.route.lock();
            if stale {
                route.known = route.wanted;
            }
            if vector.state.load(Ordering::Acquire) == NOTED {
                let assigned = if route.assigned { Ok(()) } else { self.routes.assign(&vector.fd, *gsi) };
                route.assigned = assigned.is_ok();
                match assigned {
                    Ok(()) => vector.state.store(LIVE, Ordering::Release),
                    Err(error) if *gsi == wanted => result = Err(error),
                    Err(_) => {}
                }
            }
        }
        result
    }
}

struct Vector<R: Routes> {
    gsi: u32,
    shared: Arc<Shared>,
    table: Arc<Table<R>>,
}

impl<R: Routes> MsiVector for Vector<R> {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let _table = self.table.inner.lock();
        let mut route = self.shared.route.lock();
        let state = match message {
            None => MASKED,
            Some(message) => {
                route.wanted = Some(message);
                if route.assigned && route.known == Some(message) { LIVE } else { NOTED }
            }
        };
        self.shared.state.store(state, Ordering::Release);
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        match self.shared.state.load(Ordering::Acquire) {
            MASKED => return Ok(()),
            LIVE => {}
            _ => self.table.flush(self.gsi)?,
        }
        match self.shared.fd.write(1) {
            // The counter is full: the interrupt is pending anyway.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    fn wire(&self, call: &EventFd) -> io::Result<()> {
        // Nobody triggers what `call` sends, so KVM has to know the route.
        if self.shared.state.load(Ordering::Acquire) == NOTED {
            self.table.flush(self.gsi)?;
        }
        self.table.routes.assign(call, self.gsi)
    }

    fn unwire(&self, call: &EventFd) -> io::Result<()> {
        self.table.routes.deassign(call, self.gsi)
    }
}

impl<R: Routes> Drop for Vector<R> {
    fn drop(&mut self) {
        let mut inner = self.table.inner.lock();
        if self.shared.route.lock().assigned
            && let Err(error) = self.table.routes.deassign(&self.shared.fd, self.gsi)
        {
            tracing::warn!(gsi = self.gsi, %error, "cannot take back an MSI vector");
            // Its number stays taken, so that no other device's interrupts get lost.
            inner.vectors.remove(&self.gsi);
            return;
        }
        inner.vectors.remove(&self.gsi);
        inner.free.push(self.gsi);
    }
}

#[cfg(test)]
#[path = "msi_test.rs"]
mod tests;
