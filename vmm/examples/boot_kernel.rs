//! Boots a kernel with only a serial console, then prints how the guest ended and which exits its vCPUs took:
//!
//! ```text
//! boot_kernel KERNEL INITRAMFS [MEMORY [VCPUS [PARTITIONS [PARAMETERS]]]]
//! ```
//!
//! Needs `/dev/kvm`. The smallest use of the machine without the rest of the monitor.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use bellows_devices::bus::Bus;
use bellows_devices::legacy::{PowerPorts, PowerRequest, SerialPort};
use bellows_memory::layout::Layout;
use bellows_memory::slots::{Slot, SlotTable};
use bellows_memory::{ByteSize, GuestMemory};
use bellows_vmm::machine::layout::{self, COM1_PORT, POWER_PORT, SERIAL_LINE};
use bellows_vmm::machine::{
    BootSource, Buses, CommandLine, ExitNotice, ExitReason, Firmware, Host, Machine, RootBus, VcpuPool, Vcpus, load,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn main() {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    if let Err(error) = run() {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        eprintln!("boot_kernel: {text}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let begin = Instant::now();
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |index: usize, default: &'static str| arguments.get(index).map_or(default, String::as_str);
    let (Some(kernel), Some(initramfs)) = (arguments.get(1), arguments.get(2)) else {
        return Err("expected: boot_kernel KERNEL INITRAMFS [MEMORY [VCPUS [PARTITIONS [PARAMETERS]]]]".into());
    };
    let base: ByteSize = argument(3, "256M").parse()?;
    let count: u16 = argument(4, "1").parse()?;
    let partitions: usize = argument(5, "2").parse()?;

    let host = Host::open()?;
    let machine = Machine::new(&host)?;
    let windows = vec![ByteSize::mib(512); partitions];
    let layout = Layout::new(&layout::spec(base, windows, host.physical_address_bits()))?;
    let ranges: Vec<_> = layout.base().map(|range| (range.start(), range.bytes() as usize)).collect();
    let memory = GuestMemory::from_ranges(&ranges)?;
    for region in memory.iter() {
        let host = region.get_host_address(MemoryRegionAddress(0))? as u64;
        machine.slots().set(Slot { guest: region.start_addr(), host, bytes: region.len(), read_only: false })?;
    }

    let buses: Vec<_> = (0..4u8)
        .map(|number| {
            let start = 0xc000_0000 + (u32::from(number) << 26);
            RootBus { number, mmio32: start..start + (1 << 26), mmio64: None }
        })
        .collect();
    let firmware = Firmware { vcpus: count, layout: &layout, buses: &buses, serial: true };
    let mut command_line = CommandLine::new();
    command_line.set("console", "ttyS0")?.set("swiotlb", "noforce")?.text(argument(6, "panic=-1"))?;
    let source =
        BootSource { kernel: Path::new(kernel), initramfs: Some(Path::new(initramfs)), command_line: &command_line };
    let entry = load(&memory, firmware, source)?;
    let loaded = begin.elapsed();

    let (sender, ended) = mpsc::channel();
    let notice = ExitNotice::new(machine.gate(), move |reason| {
        // After a failure of `run` the receiver is gone.
        let _ = sender.send(reason);
    });
    let interrupt = EventFd::new(EFD_NONBLOCK)?;
    machine.wire_line(&interrupt, SERIAL_LINE)?;
    let ports = Arc::new(Bus::new());
    let serial = SerialPort::new(Box::new(io::stdout()), interrupt);
    ports.insert(COM1_PORT.into(), SerialPort::LEN, Arc::new(serial))?;
    let power = PowerPorts::new({
        let notice = notice.clone();
        move |request| {
            notice.report(match request {
                PowerRequest::Shutdown => ExitReason::Shutdown,
                PowerRequest::Reset => ExitReason::Reset,
            });
        }
    });
    ports.insert(POWER_PORT.into(), PowerPorts::LEN, Arc::new(power))?;
    let pool = VcpuPool::new(
        &host,
        &machine,
        Vcpus { count, entry, buses: Buses { ports, mmio: Arc::new(Bus::new()) }, notice },
    )?;
    pool.start()?;
    let started = begin.elapsed();
    let reason = ended.recv()?;
    pool.stop();
    let all = begin.elapsed();
    eprintln!("loaded after {loaded:?}, started after {started:?}, ended after {all:?}: {reason:?}");
    for (index, counts) in pool.counts().iter().enumerate() {
        eprintln!("vCPU {index}: {counts:?}");
    }
    match reason {
        ExitReason::Error(error) => Err(error),
        _ => Ok(()),
    }
}
