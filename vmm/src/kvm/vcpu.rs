//! One vCPU: runs the guest and answers its exits.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bellows_devices::bus::Bus;
use bellows_memory::limited;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::error::VcpuError;
use super::exit::ExitReason;
use super::gate::{Entry, Gate};
use super::kick::{Kick, RunPage, immediate_exit};
use super::statistics::{VcpuStatistics, count};
use crate::arch::{Buses, cpu};

/// A vCPU, made by [`super::VcpuPool`] and run on a thread of its own.
pub(crate) struct Vcpu {
    pub(crate) index: u16,
    pub(crate) fd: Arc<Mutex<VcpuFd>>,
    pub(crate) buses: Buses,
    pub(crate) gate: Arc<Gate>,
    pub(crate) kick: Arc<Kick>,
    pub(crate) page: RunPage,
    pub(crate) statistics: Arc<VcpuStatistics>,
}

/// The next step after an exit.
enum Next {
    Enter,
    End(ExitReason),
    /// It failed; the registers tell the rest.
    Fail(Failure),
}

enum Failure {
    Internal,
    Entry(u64),
    HostMemory(Option<u64>, io::Error),
    Run(io::Error),
    Unexpected(String),
}

impl Vcpu {
    /// Runs until the VM stops: `None` if the gate stopped it, else the reason to stop.
    ///
    /// # Errors
    /// The vCPU cannot go on.
    pub(crate) fn run(self) -> Result<Option<ExitReason>, VcpuError> {
        let run = self.page.as_ptr();
        let kick = self.kick.clone();
        // SAFETY: `self.page`, which maps the page, is dropped at the end of this function, after the guard; the guard doesn't
        // leave the function either.
        let attached = unsafe { kick.attach(run) };
        let _attached = attached.map_err(|source| VcpuError::Signal { vcpu: self.index, source })?;
        // Held except during pauses, so that other threads reach the vCPU's state only then.
        let handle = self.fd.clone();
        let mut fd = lock(&handle);
        // The last exit is finished: KVM has no part of it left to do.
        let mut finished = true;
        loop {
            // A kick after this line is either seen by the gate or makes the entry return at once.
            immediate_exit(&run).store(0, Ordering::SeqCst);
            let entry = self.gate.enter(&self.kick, finished);
            match entry {
                Entry::Guest => {}
                // KVM completes the exit and returns before the guest's next instruction.
                Entry::Finish => immediate_exit(&run).store(1, Ordering::SeqCst),
                Entry::Park => {
                    note_pause(&fd);
                    drop(fd);
                    self.gate.park();
                    fd = lock(&handle);
                    continue;
                }
                Entry::Stop => return Ok(None),
            }
            let exit = fd.run();
            self.gate.leave(&self.kick);
            finished = false;
            let next = match exit {
                Ok(exit) => {
                    Answer { ports: &self.buses.ports, mmio: &self.buses.mmio, statistics: &self.statistics, run }
                        .to(exit)
                }
                Err(error) => match error.errno() {
                    libc::EINTR if entry == Entry::Finish => {
                        finished = true;
                        Next::Enter
                    }
                    libc::EINTR => {
                        count(&self.statistics.interrupted);
                        Next::Enter
                    }
                    // A vCPU that waits to be started was woken for another reason.
                    libc::EAGAIN => Next::Enter,
                    // The second is for architectures whose KVM does not send SIGBUS for broken memory.
                    libc::EFAULT | libc::EHWPOISON => Next::Fail(Failure::HostMemory(None, error.into())),
                    _ => Next::Fail(Failure::Run(error.into())),
                },
            };
            match next {
                Next::Enter => {}
                Next::End(reason) => return Ok(Some(reason)),
                Next::Fail(failure) => return Err(self.error(&mut fd, failure)),
            }
        }
    }

    fn error(&self, fd: &mut VcpuFd, failure: Failure) -> VcpuError {
        let vcpu = self.index;
        let pc = cpu::program_counter(fd);
        match failure {
            Failure::Internal => internal_error(vcpu, pc, fd.get_kvm_run()),
            Failure::Entry(reason) => VcpuError::Entry { vcpu, reason, pc },
            Failure::HostMemory(guest_address, source) => VcpuError::HostMemory { vcpu, pc, guest_address, source },
            Failure::Run(source) => VcpuError::Run { vcpu, pc, source },
            Failure::Unexpected(exit) => VcpuError::Unexpected { vcpu, exit, pc },
        }
    }
}

/// A vCPU's descriptor, once its thread has parked it.
pub(crate) fn lock(fd: &Mutex<VcpuFd>) -> MutexGuard<'_, VcpuFd> {
    fd.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the guest that it did not run for a while, so that its watchdogs do not report a hang. A guest without KVM's clock
/// cannot be told.
fn note_pause(fd: &VcpuFd) {
    if let Err(error) = fd.kvmclock_ctrl() {
        tracing::trace!(%error, "cannot tell the guest of the pause");
    }
}

/// Answers exits with the devices on the two buses.
struct Answer<'a> {
    ports: &'a Bus,
    mmio: &'a Bus,
    statistics: &'a VcpuStatistics,
    run: NonNull<kvm_run>,
}

impl Answer<'_> {
    fn to(&self, exit: VcpuExit<'_>) -> Next {
        match exit {
            VcpuExit::IoIn(port, data) => {
                count(&self.statistics.port_reads);
                for item in data.chunks_mut(self.port_width()) {
                    if !self.ports.read(port.into(), item) {
                        item.fill(0xff);
                        self.unclaimed_read("port", port.into());
                    }
                }
            }
            VcpuExit::IoOut(port, data) => {
                count(&self.statistics.port_writes);
                for item in data.chunks(self.port_width()) {
                    if !self.ports.write(port.into(), item) {
                        self.unclaimed_write("port", port.into());
                    }
                }
            }
            VcpuExit::MmioRead(address, data) => {
                count(&self.statistics.mmio_reads);
                let width = access_width(data.len());
                for (address, item) in (address..).step_by(width).zip(data.chunks_mut(width)) {
                    if !self.mmio.read(address, item) {
                        item.fill(0xff);
                        self.unclaimed_read("address", address);
                    }
                }
            }
            VcpuExit::MmioWrite(address, data) => {
                count(&self.statistics.mmio_writes);
                let width = access_width(data.len());
                for (address, item) in (address..).step_by(width).zip(data.chunks(width)) {
                    if !self.mmio.write(address, item) {
                        self.unclaimed_write("address", address);
                    }
                }
            }
            VcpuExit::Intr => {
                count(&self.statistics.interrupted);
            }
            VcpuExit::Shutdown => return Next::End(ExitReason::TripleFault),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => return Next::End(ExitReason::Shutdown),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_CRASH, _) => {
                return Next::End(ExitReason::Reset);
            }
            VcpuExit::InternalError => return Next::Fail(Failure::Internal),
            VcpuExit::FailEntry(reason, _) => return Next::Fail(Failure::Entry(reason)),
            VcpuExit::MemoryFault { gpa, .. } => {
                let source = io::Error::from_raw_os_error(libc::EFAULT);
                return Next::Fail(Failure::HostMemory(Some(gpa), source));
            }
            other => return Next::Fail(Failure::Unexpected(format!("{other:?}"))),
        }
        Next::Enter
    }

    /// Bytes per item of a port access: a string instruction moves several items in one exit.
    fn port_width(&self) -> usize {
        // SAFETY: `run` is the page of the vCPU that has just left with a port exit, in a mapping of its own, and the port exit is
        // what makes `io` the valid field of the union; the vCPU's own thread is here, so the kernel doesn't write it.
        let size = unsafe { (*self.run.as_ptr()).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    fn unclaimed_read(&self, what: &'static str, address: u64) {
        count(&self.statistics.unclaimed_reads);
        limited!(debug, "the guest read {what} {address:#x}, where no device is");
    }

    fn unclaimed_write(&self, what: &'static str, address: u64) {
        count(&self.statistics.unclaimed_writes);
        limited!(debug, "the guest wrote to {what} {address:#x}, where no device is");
    }
}

/// An access across a page boundary comes in two parts of any length; odd lengths are answered byte by byte.
fn access_width(bytes: usize) -> usize {
    if bytes.is_power_of_two() { bytes } else { 1 }
}

/// Reads the details of an internal error (`Documentation/virt/kvm/api.rst`, `KVM_EXIT_INTERNAL_ERROR`).
fn internal_error(vcpu: u16, pc: u64, run: &kvm_run) -> VcpuError {
    // SAFETY: the vCPU left with an internal error, which is what makes `internal` the valid field of the union; it is plain
    // data in any case.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let data = &internal.data[..internal.data.len().min(internal.ndata as usize)];
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return VcpuError::Internal { vcpu, suberror: internal.suberror, pc, data: data.to_vec() };
    }
    let (instruction, guest_address) = cpu::emulation_data(data);
    VcpuError::Emulation { vcpu, pc, guest_address, instruction }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_lengths_are_answered_by_bytes() {
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8].map(access_width), [1, 2, 1, 4, 1, 1, 1, 8]);
    }
}
