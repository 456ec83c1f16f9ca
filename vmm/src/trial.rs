//! A trial of a host: whether its KVM does with memory and doorbells what VMs rely on, shown by a guest of a few instructions.

use std::error::Error;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use bellows_devices::bus::{Bus, Doorbells as _};
use bellows_devices::legacy::{PowerPorts, PowerRequest};
use bellows_memory::layout::Layout;
use bellows_memory::slots::{Slot, SlotTable as _};
use bellows_memory::{ByteSize, GuestAddress, GuestMemory};
use serde::Serialize;
use tempfile::NamedTempFile;
use vm_memory::{Bytes as _, GuestMemoryBackend as _};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::trial::{BELLS, RESULTS, STEP, UNCLAIMED, WINDOW, kernel};
use crate::arch::{BootSource, Buses, Firmware, RootBus, layout, load};
use crate::command_line::CommandLine;
use crate::kvm::{ExitNotice, ExitReason, Host, Machine, VcpuPool, Vcpus};

const BASE: ByteSize = ByteSize::mib(32);
const WINDOW_BYTES: u64 = 2 << 20;
/// What the window holds.
const PATTERN: u64 = 0x0123_4567_89ab_cdef;
/// Time for each step, which takes microseconds.
const LIMIT: Duration = Duration::from_secs(60);

/// What the guest saw, and the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct HostTrial {
    /// What the guest read of its memory.
    pub plugged: u64,
    /// What it read where that memory had been taken away: with one instruction, and with one for strings.
    pub unplugged: [u64; 3],
    /// What the host has in the memory that was taken away, once the guest has written there.
    pub kept: u64,
    /// What the guest read when its memory was back.
    pub replugged: u64,
    /// Reads and writes of the guest that found no memory.
    pub unclaimed: (u64, u64),
    /// How often a doorbell rang at its first place, and at its second: it moves with the BAR that it is in.
    pub rings: [u64; 2],
}

/// Why a host cannot be tried.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct TrialError {
    step: &'static str,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

impl HostTrial {
    /// Runs the guest.
    ///
    /// # Errors
    /// KVM is not usable, or the guest does not come to its end.
    pub fn run() -> Result<Self, TrialError> {
        Guest::new()?.run()
    }

    /// What is not as VMs need it; empty on a good host.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let (writes, reads) = UNCLAIMED;
        let checks = [
            (self.plugged == PATTERN, format!("memory reads {:#x}: expected {PATTERN:#x}", self.plugged)),
            (self.unplugged == [u64::MAX; 3], format!("unplugged memory reads {:x?}: expected ones", self.unplugged)),
            (self.kept == PATTERN, format!("a write to unplugged memory arrived: {:#x}", self.kept)),
            (
                self.replugged == PATTERN,
                format!("memory that is back reads {:#x}: expected {PATTERN:#x}", self.replugged),
            ),
            (
                self.unclaimed == (reads, writes),
                format!("{:?} reads and writes were counted: expected {:?}", self.unclaimed, (reads, writes)),
            ),
            (
                self.rings == [1, 1],
                format!("a doorbell that moved rang {:?} times: expected once at each place", self.rings),
            ),
        ];
        checks.into_iter().filter(|(is_right, _)| !is_right).map(|(_, fault)| fault).collect()
    }
}

struct Guest {
    machine: Machine,
    memory: GuestMemory,
    pool: VcpuPool,
    ended: Receiver<ExitReason>,
    window: Slot,
}

impl Guest {
    fn new() -> Result<Self, TrialError> {
        let host = Host::open().map_err(because("open KVM"))?;
        let machine = Machine::new(&host).map_err(because("make a VM"))?;
        let layout = Layout::new(&layout::spec(BASE, vec![], host.physical_address_bits()));
        let layout = layout.map_err(because("lay memory out"))?;
        let ranges = [(GuestAddress(0), BASE.get() as usize), (GuestAddress(WINDOW), WINDOW_BYTES as usize)];
        let memory = GuestMemory::from_ranges(&ranges).map_err(because("map memory"))?;
        let slot = |guest, bytes| {
            let host = memory.get_host_address(guest).map_err(because("find memory"))? as u64;
            let slot = Slot { guest, host, bytes, read_only: false };
            machine.slots().set(slot).map_err(because("give memory to the guest"))?;
            Ok(slot)
        };
        slot(GuestAddress(0), BASE.get())?;
        let window = slot(GuestAddress(WINDOW), WINDOW_BYTES)?;
        memory.write_obj(PATTERN, GuestAddress(WINDOW)).map_err(because("write memory"))?;

        let mut file = NamedTempFile::new().map_err(because("make a file for the guest"))?;
        file.write_all(&kernel()).map_err(because("write the guest"))?;
        let buses = [RootBus { number: 0, mmio32: 0xc000_0000..0xd000_0000, mmio64: None }];
        let firmware = Firmware { vcpus: 1, layout: &layout, buses: &buses, serial: false };
        let command_line = CommandLine::new();
        let source = BootSource { kernel: file.path(), initramfs: None, command_line: &command_line };
        let entry = load(&memory, firmware, source).map_err(because("load the guest"))?;

        let (sender, ended) = mpsc::channel();
        let notice = ExitNotice::new(machine.gate(), move |reason| {
            let _ = sender.send(reason);
        });
        let power = PowerPorts::new({
            let notice = notice.clone();
            move |request| {
                notice.report(match request {
                    PowerRequest::Shutdown => ExitReason::Shutdown,
                    PowerRequest::Reset => ExitReason::Reset,
                });
            }
        });
        let (ports, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let added = ports.insert(layout::POWER_PORT.into(), PowerPorts::LEN, Arc::new(power));
        added.map_err(because("add a device"))?;
        let vcpus = Vcpus { count: 1, entry, buses: Buses { mmio, ports }, notice };
        let pool = VcpuPool::new(&host, &machine, vcpus).map_err(because("make a vCPU"))?;
        Ok(Self { machine, memory, pool, ended, window })
    }

    fn run(&self) -> Result<HostTrial, TrialError> {
        self.pool.start().map_err(because("start the vCPU"))?;
        let result = self.steps();
        self.pool.stop();
        result
    }

    fn steps(&self) -> Result<HostTrial, TrialError> {
        let (slots, doorbells) = (self.machine.slots(), self.machine.doorbells());
        let bell = EventFd::new(EFD_NONBLOCK).map_err(because("make a doorbell"))?;
        doorbells.wire(BELLS[0], &bell).map_err(because("wire a doorbell"))?;
        self.await_step(1)?;
        slots.delete(self.window).map_err(because("take memory away"))?;
        self.next(1)?;
        self.await_step(2)?;
        let rings = |bell: &EventFd| bell.read().unwrap_or(0);
        let first = rings(&bell);
        let kept = self.read(WINDOW)?;
        doorbells.unwire(BELLS[0], &bell).map_err(because("move a doorbell"))?;
        doorbells.wire(BELLS[1], &bell).map_err(because("move a doorbell"))?;
        slots.set(self.window).map_err(because("give memory back to the guest"))?;
        self.next(2)?;
        match self.ended.recv_timeout(LIMIT) {
            Ok(ExitReason::Shutdown) => {}
            Ok(reason) => return Err(because("run the guest")(io::Error::other(format!("it ended: {reason:?}")))),
            Err(error) => return Err(because("run the guest")(error)),
        }
        let counts = self.pool.counts().first().copied().unwrap_or_default();
        Ok(HostTrial {
            plugged: self.read(RESULTS)?,
            unplugged: [self.read(RESULTS + 8)?, self.read(RESULTS + 16)?, self.read(RESULTS + 24)?],
            kept,
            replugged: self.read(RESULTS + 32)?,
            unclaimed: (counts.unclaimed_reads, counts.unclaimed_writes),
            rings: [first, rings(&bell)],
        })
    }

    /// Waits until the guest has done a step.
    fn await_step(&self, step: u8) -> Result<(), TrialError> {
        let begun = Instant::now();
        loop {
            let at: u8 = self.memory.load(GuestAddress(STEP), Ordering::SeqCst).map_err(because("read memory"))?;
            if at == step {
                return Ok(());
            }
            if let Ok(reason) = self.ended.try_recv() {
                return Err(because("run the guest")(io::Error::other(format!("it ended: {reason:?}"))));
            }
            if begun.elapsed() > LIMIT {
                return Err(because("run the guest")(RecvTimeoutError::Timeout));
            }
            thread::yield_now();
        }
    }

    fn next(&self, step: u8) -> Result<(), TrialError> {
        self.memory.store(step, GuestAddress(STEP + 1), Ordering::SeqCst).map_err(because("write memory"))
    }

    fn read(&self, address: u64) -> Result<u64, TrialError> {
        self.memory.read_obj(GuestAddress(address)).map_err(because("read memory"))
    }
}

fn because<E: Into<Box<dyn Error + Send + Sync>>>(step: &'static str) -> impl Fn(E) -> TrialError {
    move |source| TrialError { step, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: HostTrial = HostTrial {
        plugged: PATTERN,
        unplugged: [u64::MAX; 3],
        kept: PATTERN,
        replugged: PATTERN,
        unclaimed: (UNCLAIMED.1, UNCLAIMED.0),
        rings: [1, 1],
    };

    #[test]
    fn each_thing_that_is_not_as_it_should_be_is_said() {
        assert!(GOOD.faults().is_empty());
        for (bad, part) in [
            (HostTrial { plugged: 0, ..GOOD }, "memory reads 0x0"),
            (HostTrial { unplugged: [u64::MAX, 0, u64::MAX], ..GOOD }, "unplugged memory reads"),
            (HostTrial { kept: 1, ..GOOD }, "arrived"),
            (HostTrial { replugged: 2, ..GOOD }, "memory that is back"),
            (HostTrial { unclaimed: (3, 0), ..GOOD }, "were counted"),
            (HostTrial { rings: [1, 0], ..GOOD }, "a doorbell that moved"),
        ] {
            let faults = bad.faults();
            assert!(faults.len() == 1 && faults[0].contains(part), "{faults:?}");
        }
    }
}
