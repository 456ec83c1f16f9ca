//! One vCPU: runs the guest and answers its exits.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bellows_devices::bus::Bus;
use bellows_memory::limited;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::exit::{ExitReason, VcpuError};
use super::gate::Gate;
use super::kick::{Kick, RunPage, immediate_exit};
use super::statistics::{VcpuStatistics, count};

/// A vCPU, made by [`super::VcpuPool`] and run on a thread of its own.
pub(crate) struct Vcpu {
    pub(crate) index: u16,
    pub(crate) fd: VcpuFd,
    pub(crate) ports: Arc<Bus>,
    pub(crate) mmio: Arc<Bus>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) kick: Arc<Kick>,
    pub(crate) page: RunPage,
    pub(crate) statistics: Arc<VcpuStatistics>,
}

/// What an exit leads to.
enum Next {
    Enter,
    End(ExitReason),
    /// Failed; the registers tell the rest.
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
    /// Runs until the VM stops: `None` when that was asked for through the gate, else why it must stop.
    ///
    /// # Errors
    /// The vCPU can't go on.
    pub(crate) fn run(mut self) -> Result<Option<ExitReason>, VcpuError> {
        let run = self.page.as_ptr();
        let kick = self.kick.clone();
        // SAFETY: `self.page`, which maps the page, is dropped at the end of this function, after the guard; the guard doesn't
        // leave the function either.
        let attached = unsafe { kick.attach(run) };
        let _attached = attached.map_err(|source| VcpuError::Signal { vcpu: self.index, source })?;
        loop {
            // A kick after this line is either seen by the gate or makes the entry return at once.
            immediate_exit(&run).store(0, Ordering::SeqCst);
            if !self.gate.enter(&self.kick) {
                return Ok(None);
            }
            let exit = self.fd.run();
            self.gate.leave(&self.kick);
            let next = match exit {
                Ok(exit) => Answer { ports: &self.ports, mmio: &self.mmio, statistics: &self.statistics, run }.to(exit),
                Err(error) => match error.errno() {
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
                Next::Fail(failure) => return Err(self.error(failure)),
            }
        }
    }

    fn error(&mut self, failure: Failure) -> VcpuError {
        let vcpu = self.index;
        // Where even that fails, zero stands for "unknown".
        let rip = self.fd.get_regs().map(|registers| registers.rip).unwrap_or_default();
        match failure {
            Failure::Internal => internal_error(vcpu, rip, self.fd.get_kvm_run()),
            Failure::Entry(reason) => VcpuError::Entry { vcpu, reason, rip },
            Failure::HostMemory(guest_address, source) => VcpuError::HostMemory { vcpu, rip, guest_address, source },
            Failure::Run(source) => VcpuError::Run { vcpu, rip, source },
            Failure::Unexpected(exit) => VcpuError::Unexpected { vcpu, exit, rip },
        }
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
        limited!(debug, "the guest read {what} {address:#x}, where nothing is");
    }

    fn unclaimed_write(&self, what: &'static str, address: u64) {
        count(&self.statistics.unclaimed_writes);
        limited!(debug, "the guest wrote to {what} {address:#x}, where nothing takes it");
    }
}

/// An access that straddles a page comes in two parts of any length; odd ones are answered byte by byte.
fn access_width(bytes: usize) -> usize {
    if bytes.is_power_of_two() { bytes } else { 1 }
}

/// Reads what KVM says about an internal error (`Documentation/virt/kvm/api.rst`, `KVM_EXIT_INTERNAL_ERROR`).
fn internal_error(vcpu: u16, rip: u64, run: &kvm_run) -> VcpuError {
    // SAFETY: the vCPU left with an internal error, which is what makes `internal` the valid field of the union; it is plain
    // data in any case.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let data = &internal.data[..internal.data.len().min(internal.ndata as usize)];
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return VcpuError::Internal { vcpu, suberror: internal.suberror, rip, data: data.to_vec() };
    }
    let (instruction, guest_address) = emulation_data(data);
    VcpuError::Emulation { vcpu, rip, guest_address, instruction }
}

/// The data of an emulation failure: flags; if flag 0 is set, a length byte and 15 instruction bytes; then the exit
/// reason and two words of exit information of the host's CPU.
fn emulation_data(data: &[u64]) -> (Vec<u8>, Option<u64>) {
    const HAS_INSTRUCTION: u64 = 1;
    /// SVM's nested page fault; its second word of information is the guest-physical address (AMD APM vol. 2, 15.25.6).
    const SVM_NESTED_PAGE_FAULT: u64 = 0x400;
    let Some((flags, mut rest)) = data.split_first() else { return (Vec::new(), None) };
    let mut instruction = Vec::new();
    if flags & HAS_INSTRUCTION != 0 && rest.len() >= 2 {
        let bytes: Vec<u8> = rest[..2].iter().flat_map(|word| word.to_le_bytes()).collect();
        instruction = bytes[1..=usize::from(bytes[0]).min(15)].to_vec();
        rest = &rest[2..];
    }
    let address = match rest {
        [SVM_NESTED_PAGE_FAULT, _, address, ..] => Some(*address),
        _ => None,
    };
    (instruction, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulation_failure_names_instruction_and_address() {
        let instruction = u64::from_le_bytes([3, 0x0f, 0x6f, 0x07, 0x90, 0x90, 0x90, 0x90]);
        let data = [1, instruction, 0x9090_9090_9090_9090, 0x400, 0x1_0000_0006, 0x2_4000_0000, 0, 0];
        assert_eq!(emulation_data(&data), (vec![0x0f, 0x6f, 0x07], Some(0x2_4000_0000)));
        assert_eq!(emulation_data(&[0, 48, 0x181, 0, 0, 0]), (vec![], None));
        assert_eq!(emulation_data(&[]), (vec![], None));
        assert_eq!(emulation_data(&[1, 0xff]), (vec![], None));
        assert_eq!(emulation_data(&[1, u64::MAX, u64::MAX]).0.len(), 15);
    }

    #[test]
    fn odd_lengths_are_answered_by_bytes() {
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8].map(access_width), [1, 2, 1, 4, 1, 1, 1, 8]);
    }
}
