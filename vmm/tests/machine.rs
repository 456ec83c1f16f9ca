//! The machine with guests of a few instructions instead of a kernel. These tests need KVM.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bellows_block::{Digest, ImageMapping, StoredFile};
use bellows_devices::bus::{Bus, BusDevice, Doorbells};
use bellows_devices::interrupt::{MsiController, MsiMessage};
use bellows_devices::legacy::{PowerPorts, PowerRequest};
use bellows_memory::layout::Layout;
use bellows_memory::slots::{Slot, SlotTable};
use bellows_memory::{ByteSize, GuestAddress, GuestMemory};
use bellows_vmm::ExitCounts;
use bellows_vmm::machine::{
    BootSource, Buses, CommandLine, ExitNotice, ExitReason, Firmware, Host, Machine, RootBus, StateError, VcpuError,
    VcpuPool, VcpuState, Vcpus, VmState, layout, load,
};
use kvm_bindings::{kvm_regs, kvm_vcpu_events};
use vm_memory::{Bytes, GuestMemoryBackend, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BASE: ByteSize = ByteSize::mib(32);
const ENTRY: u64 = 0x100_0000;
/// The address of the guests' results.
const RESULT: u64 = 0x180_0000;
/// Above base memory, within what the boot page tables map.
const OUTSIDE: u64 = 0x400_0000;
/// Far longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(60);

/// mov edi, OUTSIDE
const EDI_OUTSIDE: &[u8] = &[0xbf, 0, 0, 0, 4];
/// mov esi, RESULT
const ESI_RESULT: &[u8] = &[0xbe, 0, 0, 0x80, 1];
/// Writes to the sleep control register: mov dx, 0x600; mov al, 0x34; out dx, al; again: jmp again
const SWITCH_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe];

struct Vm {
    machine: Machine,
    memory: GuestMemory,
    pool: VcpuPool,
    ended: Receiver<ExitReason>,
}

impl Vm {
    /// A VM whose first vCPU runs `code`; more devices can be put on its buses by `devices`.
    fn with(code: &[&[u8]], devices: impl FnOnce(&Bus, &Bus)) -> Self {
        let host = Host::open().unwrap();
        let machine = Machine::new(&host).unwrap();
        let layout = Layout::new(&layout::spec(BASE, vec![], host.physical_address_bits())).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), BASE.get() as usize)]).unwrap();
        let base = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        machine.slots().set(Slot { guest: GuestAddress(0), host: base, bytes: BASE.get(), read_only: false }).unwrap();

        let mut kernel = tempfile::NamedTempFile::new().unwrap();
        kernel.write_all(&elf(&code.concat())).unwrap();
        let buses = [RootBus { number: 0, mmio32: 0xc000_0000..0xd000_0000, mmio64: None }];
        let firmware = Firmware { vcpus: 1, layout: &layout, buses: &buses, serial: false };
        let command_line = CommandLine::new();
        let source = BootSource { kernel: kernel.path(), initramfs: None, command_line: &command_line };
        let entry = load(&memory, firmware, source).unwrap();

        let (sender, ended) = mpsc::channel();
        let notice = ExitNotice::new(machine.gate(), move |reason| sender.send(reason).unwrap());
        let (ports, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let power = PowerPorts::new({
            let notice = notice.clone();
            move |request| {
                notice.report(match request {
                    PowerRequest::Shutdown => ExitReason::Shutdown,
                    PowerRequest::Reset => ExitReason::Reset,
                });
            }
        });
        ports.insert(layout::POWER_PORT.into(), PowerPorts::LEN, Arc::new(power)).unwrap();
        devices(&ports, &mmio);
        let pool =
            VcpuPool::new(&host, &machine, Vcpus { count: 1, entry, buses: Buses { mmio, ports }, notice }).unwrap();
        Self { machine, memory, pool, ended }
    }

    fn new(code: &[&[u8]]) -> Self {
        Self::with(code, |_, _| {})
    }

    /// Runs it to its end.
    fn run(&self) -> ExitReason {
        self.pool.start().unwrap();
        let reason = self.ended.recv_timeout(LONG).unwrap();
        self.pool.stop();
        reason
    }

    fn counts(&self) -> ExitCounts {
        self.pool.counts()[0]
    }

    fn result(&self) -> u64 {
        self.memory.read_obj(GuestAddress(RESULT)).unwrap()
    }
}

/// An ELF kernel that consists of `code`.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (file[16], file[18], file[20], file[32], file[52], file[54], file[56]) = (2, 62, 1, 64, 64, 56, 1);
    file[24..32].copy_from_slice(&ENTRY.to_le_bytes());
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0x1000, ENTRY, ENTRY, code.len() as u64, code.len() as u64, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend(code);
    file
}

/// Memory of 4 MiB for a slot at [`OUTSIDE`], and the slot.
fn outside() -> (MmapRegion, Slot) {
    let memory = MmapRegion::new(4 << 20).unwrap();
    let slot = Slot { guest: GuestAddress(OUTSIDE), host: memory.as_ptr() as u64, bytes: 4 << 20, read_only: false };
    (memory, slot)
}

#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

impl BusDevice for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0x10 + offset as u8);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((offset, data.to_vec()));
    }
}

#[test]
fn a_guest_switches_itself_off() {
    assert!(matches!(Vm::new(&[SWITCH_OFF]).run(), ExitReason::Shutdown));
}

#[test]
fn a_paused_guest_stands_still_and_its_state_can_be_set_again() {
    // again: inc qword [rsi]; inc rbx; jmp again
    let vm = Vm::new(&[ESI_RESULT, &[0x48, 0xff, 0x06, 0x48, 0xff, 0xc3, 0xeb, 0xf8]]);
    let counts_beyond = |count| {
        while vm.result() <= count {
            thread::yield_now();
        }
    };
    vm.pool.start().unwrap();
    counts_beyond(1000);
    assert!(matches!(vm.pool.save(), Err(StateError::Running)));
    assert!(vm.pool.pause());
    let count = vm.result();
    let saved = serde_json::to_string(&(vm.pool.save().unwrap(), vm.machine.save().unwrap())).unwrap();
    (0..1000).for_each(|_| thread::yield_now());
    assert_eq!(vm.result(), count);
    vm.pool.resume();
    counts_beyond(count + 1000);

    assert!(vm.pool.pause());
    let (vcpus, machine): (Vec<VcpuState>, VmState) = serde_json::from_str(&saved).unwrap();
    vm.machine.restore(&machine).unwrap();
    vm.pool.restore(&vcpus).unwrap();
    let registers = |states: &[VcpuState]| serde_json::to_value(states).unwrap()[0]["regs"].clone();
    assert_eq!(registers(&vm.pool.save().unwrap()), registers(&vcpus));
    let count = vm.result();
    vm.pool.resume();
    counts_beyond(count + 1000);
    vm.pool.stop();
}

#[test]
fn a_state_that_kvm_refuses_changes_nothing() {
    // again: inc qword [rsi]; inc rbx; jmp again
    let vm = Vm::new(&[ESI_RESULT, &[0x48, 0xff, 0x06, 0x48, 0xff, 0xc3, 0xeb, 0xf8]]);
    let counts_beyond = |count| {
        while vm.result() <= count {
            thread::yield_now();
        }
    };
    vm.pool.start().unwrap();
    counts_beyond(1000);
    assert!(vm.pool.pause());
    let mut state = serde_json::to_value(vm.pool.save().unwrap()).unwrap();
    let before = state[0]["regs"].clone();
    // KVM takes these registers, and then refuses the events, which come last, for a flag that it does not know.
    state[0]["regs"] = serde_json::to_value(kvm_regs::default()).unwrap();
    state[0]["events"] = serde_json::to_value(kvm_vcpu_events { flags: u32::MAX, ..Default::default() }).unwrap();
    let state: Vec<VcpuState> = serde_json::from_value(state).unwrap();
    let error = vm.pool.restore(&state).unwrap_err();
    assert!(matches!(error, StateError::Kvm { component: "events", .. }), "{error}");
    assert_eq!(serde_json::to_value(vm.pool.save().unwrap()).unwrap()[0]["regs"], before);
    let count = vm.result();
    vm.pool.resume();
    counts_beyond(count + 1000);
    vm.pool.stop();
}

/// KVM completes a read of a port when the vCPU enters the guest again: none is lost or done twice.
#[test]
fn pauses_leave_every_exit_as_it_is() {
    const READS: u64 = 20_000;
    // mov ecx, READS; xor ebx, ebx
    let count: &[u8] = &[0xb9, 0x20, 0x4e, 0, 0, 0x31, 0xdb];
    // again: xor eax, eax; mov dx, 0x700; in al, dx; add rbx, rax; loop again
    let read: &[u8] = &[0x31, 0xc0, 0x66, 0xba, 0x00, 0x07, 0xec, 0x48, 0x01, 0xc3, 0xe2, 0xf4];
    // mov [rsi], rbx
    let vm = Vm::with(&[ESI_RESULT, count, read, &[0x48, 0x89, 0x1e], SWITCH_OFF], |ports, _| {
        ports.insert(0x700, 1, Arc::new(Recorder::default())).unwrap();
    });
    vm.pool.start().unwrap();
    let mut pauses = 0;
    while vm.pool.pause() {
        vm.pool.resume();
        pauses += 1;
    }
    assert!(matches!(vm.ended.recv_timeout(LONG).unwrap(), ExitReason::Shutdown));
    vm.pool.stop();
    println!("{pauses} pauses");
    assert_eq!((vm.result(), vm.counts().port_reads), (READS * 0x10, READS));
}

#[test]
fn a_triple_fault_ends_the_vm() {
    // ud2, with no handler for it.
    assert!(matches!(Vm::new(&[&[0x0f, 0x0b]]).run(), ExitReason::TripleFault));
}

#[test]
fn memory_without_a_slot_reads_ones_and_takes_nothing() {
    // mov rax, [rdi]; mov [rsi], rax; mov [rdi], rax
    let vm = Vm::new(&[EDI_OUTSIDE, ESI_RESULT, &[0x48, 0x8b, 0x07, 0x48, 0x89, 0x06, 0x48, 0x89, 0x07], SWITCH_OFF]);
    assert!(matches!(vm.run(), ExitReason::Shutdown));
    assert_eq!(vm.result(), u64::MAX);
    let counts = vm.counts();
    assert_eq!((counts.unclaimed_reads, counts.unclaimed_writes), (1, 1));
}

/// A file of a layer, mapped for a slot at [`OUTSIDE`], and the slot.
fn mapped_layer(file: &tempfile::NamedTempFile) -> (ImageMapping, Slot) {
    let path = file.path().to_owned();
    let layer = StoredFile { digest: Digest::of(b"layer"), bytes: std::fs::metadata(&path).unwrap().len(), path };
    let mapping = ImageMapping::layer(&layer).unwrap();
    let slot = Slot { guest: GuestAddress(OUTSIDE), host: mapping.address(), bytes: mapping.bytes(), read_only: true };
    (mapping, slot)
}

#[test]
fn a_guest_reads_a_mapped_file_and_its_writes_go_nowhere() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0x5a; 8192]).unwrap();
    let (mapping, slot) = mapped_layer(&file);
    // mov rcx, 1000; again: mov [rdi], rcx; lock add [rdi + 8], rcx; movnti [rdi + 16], rcx; mov [rdi + 0x1fff], cl; loop again
    let writes: &[u8] = &[
        0xb9, 0xe8, 3, 0, 0, 0x48, 0x89, 0x0f, 0xf0, 0x48, 0x01, 0x4f, 0x08, 0x48, 0x0f, 0xc3, 0x4f, 0x10, 0x88, 0x8f,
        0xff, 0x1f, 0, 0, 0xe2, 0xeb,
    ];
    // mov rax, [rdi]; mov [rsi], rax
    let vm = Vm::new(&[EDI_OUTSIDE, ESI_RESULT, writes, &[0x48, 0x8b, 0x07, 0x48, 0x89, 0x06], SWITCH_OFF]);
    vm.machine.slots().set(slot).unwrap();
    let reason = vm.run();
    assert!(matches!(reason, ExitReason::Shutdown), "{reason:?}");
    assert_eq!(vm.result(), 0x5a5a_5a5a_5a5a_5a5a);
    assert_eq!(vm.counts().unclaimed_writes, 4000);
    assert_eq!(std::fs::read(file.path()).unwrap(), [0x5a; 8192]);
    vm.machine.slots().delete(slot).unwrap();
    drop(mapping);
}

#[test]
fn a_truncated_mapped_file_ends_the_vm() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[0x5a; 8192]).unwrap();
    let (mapping, slot) = mapped_layer(&file);
    // mov rax, [rdi]; mov [rsi], rax; mov rax, [rdi + 0x1000]
    let code: &[u8] = &[0x48, 0x8b, 0x07, 0x48, 0x89, 0x06, 0x48, 0x8b, 0x87, 0, 0x10, 0, 0];
    let vm = Vm::new(&[EDI_OUTSIDE, ESI_RESULT, code, SWITCH_OFF]);
    vm.machine.slots().set(slot).unwrap();
    file.as_file().set_len(4096).unwrap();
    let ExitReason::Error(error) = vm.run() else { panic!("no error") };
    assert_eq!(vm.result(), 0x5a5a_5a5a_5a5a_5a5a, "the pages before the cut can be read");
    let error = error.downcast::<VcpuError>().unwrap();
    let VcpuError::HostMemory { guest_address, .. } = *error else { panic!("{error}") };
    // Most hosts do not report the address.
    assert!(guest_address.is_none_or(|address| address == OUTSIDE + 4096), "{error}");
    println!("{error}");
    drop(mapping);
}

#[test]
fn an_instruction_that_cannot_be_emulated_ends_the_vm_and_is_located() {
    // jmp rdi: there are no instructions to fetch.
    let ExitReason::Error(error) = Vm::new(&[EDI_OUTSIDE, &[0xff, 0xe7]]).run() else { panic!("no error") };
    assert!(error.to_string().contains("RIP 0x4000000"), "{error}");
    println!("{error}");
}

#[test]
fn ports_and_device_memory_reach_their_devices() {
    let (ports, mmio) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let code: &[&[u8]] = &[
        EDI_OUTSIDE,
        ESI_RESULT,
        // mov eax, [rdi + 8]; mov [rsi], eax
        &[0x8b, 0x47, 0x08, 0x89, 0x06],
        // mov word [rdi + 2], 0x1234
        &[0x66, 0xc7, 0x47, 0x02, 0x34, 0x12],
        // mov dx, 0x701; in al, dx; mov [rsi + 4], al
        &[0x66, 0xba, 0x01, 0x07, 0xec, 0x88, 0x46, 0x04],
        // mov ecx, 3; rep outsw: three words from the result area
        &[0xb9, 3, 0, 0, 0, 0xf3, 0x66, 0x6f],
        SWITCH_OFF,
    ];
    let vm = Vm::with(code, |port_bus, mmio_bus| {
        port_bus.insert(0x700, 4, ports.clone()).unwrap();
        mmio_bus.insert(OUTSIDE, 0x1000, mmio.clone()).unwrap();
    });
    assert!(matches!(vm.run(), ExitReason::Shutdown));
    assert_eq!(vm.result(), 0x11_1818_1818);
    assert_eq!(*mmio.0.lock().unwrap(), [(2, vec![0x34, 0x12])]);
    assert_eq!(*ports.0.lock().unwrap(), [(1, vec![0x18, 0x18]), (1, vec![0x18, 0x18]), (1, vec![0x11, 0])]);
    assert_eq!(vm.counts().unclaimed_reads + vm.counts().unclaimed_writes, 0);
}

#[test]
fn a_doorbell_rings_without_an_exit() -> io::Result<()> {
    // mov word [rdi], 7; mov word [rdi], 8
    let vm = Vm::new(&[EDI_OUTSIDE, &[0x66, 0xc7, 0x07, 7, 0, 0x66, 0xc7, 0x07, 8, 0], SWITCH_OFF]);
    let bell = EventFd::new(EFD_NONBLOCK)?;
    vm.machine.doorbells().wire(OUTSIDE, &bell)?;
    assert!(vm.machine.doorbells().wire(OUTSIDE, &bell).is_err());
    assert!(matches!(vm.run(), ExitReason::Shutdown));
    assert_eq!((bell.read()?, vm.counts().mmio_writes), (2, 0));
    vm.machine.doorbells().unwire(OUTSIDE, &bell)?;
    assert!(vm.machine.doorbells().unwire(OUTSIDE, &bell).is_err());
    Ok(())
}

#[test]
fn kvm_takes_routes_and_gives_vectors_back() -> io::Result<()> {
    let vm = Vm::new(&[SWITCH_OFF]);
    for _ in 0..3 {
        let vectors = vm.machine.msi().allocate(600)?;
        for (vector, data) in vectors.iter().zip(0x20..) {
            vector.route(Some(MsiMessage { address: 0xfee0_0000, data: data & 0xff }))?;
        }
        vectors[0].trigger()?;
        vectors[599].trigger()?;
    }
    Ok(())
}

#[test]
fn a_slot_is_replaced_without_a_gap() {
    // again: inc qword [rdi]; inc qword [rdi + 0x200000]; jmp again
    let vm = Vm::new(&[EDI_OUTSIDE, &[0x48, 0xff, 0x07, 0x48, 0xff, 0x87, 0, 0, 0x20, 0, 0xeb, 0xf4]]);
    let (memory, whole) = outside();
    let half = Slot { bytes: 2 << 20, ..whole };
    let other = Slot { guest: GuestAddress(OUTSIDE + (2 << 20)), host: half.host + (2 << 20), ..half };
    let slots = vm.machine.slots();
    slots.set(whole).unwrap();
    vm.pool.start().unwrap();
    let progress = || {
        let counts = [0, 2 << 20].map(|at| memory.get_atomic_ref::<AtomicU64>(at).unwrap());
        let before = counts.map(|count| count.load(Ordering::SeqCst));
        while counts.iter().zip(before).any(|(count, before)| count.load(Ordering::SeqCst) == before) {
            std::thread::yield_now();
        }
    };
    for _ in 0..100 {
        slots.replace(whole, &[whole]).unwrap();
        progress();
    }
    slots.replace(whole, &[half, other]).unwrap();
    progress();
    let counts = vm.counts();
    assert_eq!((counts.unclaimed_reads, counts.unclaimed_writes), (0, 0));
    // The deleted half is gone at once, and the other half is still there.
    slots.delete(half).unwrap();
    let last = memory.get_atomic_ref::<AtomicU64>(0).unwrap().load(Ordering::SeqCst);
    while vm.counts().unclaimed_writes < 10 {
        std::thread::yield_now();
    }
    assert_eq!(memory.get_atomic_ref::<AtomicU64>(0).unwrap().load(Ordering::SeqCst), last);
    vm.pool.stop();
    drop(memory);
}

#[test]
fn a_guest_in_a_loop_stops_at_once_and_two_vms_run_side_by_side() {
    let looping = [Vm::new(&[&[0xeb, 0xfe]]), Vm::new(&[&[0xeb, 0xfe]])];
    looping.iter().for_each(|vm| vm.pool.start().unwrap());
    assert!(matches!(Vm::new(&[SWITCH_OFF]).run(), ExitReason::Shutdown));
    for vm in &looping {
        // Kicked out and let in again, many times.
        for _ in 0..200 {
            drop(vm.machine.gate().close());
        }
        vm.pool.stop();
        assert!(vm.ended.try_recv().is_err(), "a stop does not count as an end of the guest's own");
    }
}
