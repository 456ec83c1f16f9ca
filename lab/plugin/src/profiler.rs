//! Samples where the lab's processor is, by counted instructions.
//!
//! QEMU adds up the instructions of the blocks of code that it runs. Whenever the sum has reached the period, the block that
//! runs next is written to a file, with the sum, and counting begins again: so every instruction is in one sample. The lab does
//! not notice.

use std::collections::HashMap;
use std::ffi::{CStr, c_uint, c_void};
use std::fs::File;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bellows_lab::sample::{PAGE, Sample, fingerprint, little_endian};

use crate::qemu::{self, Array, Block, PerProcessor, Register};

/// QEMU's registers for the two addresses that the `swapgs` instruction exchanges.
const GS_BASES: [&CStr; 2] = [c"gs_base", c"k_gs_base"];

/// All that callbacks need. QEMU runs the lab's processor on one thread, so that nothing waits for the locks.
struct Profiler {
    period: u64,
    /// Instructions since the last sample.
    counted: PerProcessor,
    samples: Mutex<File>,
    /// Blocks by their address and where their first byte lies here. They stay: QEMU keeps pointers to them.
    blocks: Mutex<HashMap<(u64, usize), &'static Place>>,
    registers: OnceLock<Registers>,
}

/// Where a block begins.
struct Place {
    address: u64,
    /// The same in this process; null where it is not in RAM.
    host: *const u8,
}

/// The handles of [`GS_BASES`], and a buffer for their values.
struct Registers {
    bases: [*mut Register; 2],
    buffer: *mut Array<u8>,
}

// SAFETY: the pointers are handles for QEMU's functions, or lead to the lab's memory, which QEMU keeps mapped at one place for as
// long as it runs. Only the thread of the lab's one processor uses them.
unsafe impl Send for Profiler {}
// SAFETY: as above.
unsafe impl Sync for Profiler {}

static PROFILER: OnceLock<Profiler> = OnceLock::new();

/// Starts sampling, where `arguments` say so.
///
/// # Errors
/// An argument is missing or wrong, or the file of samples cannot be made.
pub fn start<S: AsRef<str>>(id: u64, arguments: impl Iterator<Item = S>) -> Result<(), String> {
    let Some(profiler) = Profiler::new(arguments)? else { return Ok(()) };
    PROFILER.get_or_init(|| profiler);
    // SAFETY: both callbacks have the types that QEMU expects and stay loaded with this library.
    unsafe {
        qemu::qemu_plugin_register_vcpu_init_cb(id, find_registers);
        qemu::qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    }
    Ok(())
}

impl Profiler {
    fn new<S: AsRef<str>>(arguments: impl Iterator<Item = S>) -> Result<Option<Self>, String> {
        let (mut samples, mut period) = (None, None);
        for argument in arguments {
            let argument = argument.as_ref();
            match argument.split_once('=') {
                Some(("samples", path)) => {
                    samples = Some(File::create(path).map_err(|error| format!("{path}: {error}"))?);
                }
                Some(("period", number)) => period = number.parse().ok().filter(|period| *period > 0),
                _ => return Err(format!("`{argument}`: expected samples=FILE or period=INSTRUCTIONS")),
            }
        }
        let (samples, period) = match (samples, period) {
            (None, None) => return Ok(None),
            (Some(samples), Some(period)) => (samples, period),
            _ => return Err("expected both samples=FILE and period=INSTRUCTIONS, a number above 0".to_owned()),
        };
        // SAFETY: it only allocates.
        let scoreboard = unsafe { qemu::qemu_plugin_scoreboard_new(size_of::<u64>()) };
        Ok(Some(Self {
            period,
            counted: PerProcessor { scoreboard, offset: 0 },
            samples: Mutex::new(samples),
            blocks: Mutex::default(),
            registers: OnceLock::new(),
        }))
    }

    /// The one place for all translations of a block: QEMU translates many again and again.
    fn place(&self, address: u64, host: *const u8) -> &'static Place {
        lock(&self.blocks).entry((address, host.addr())).or_insert_with(|| Box::leak(Box::new(Place { address, host })))
    }
}

/// A processor has started.
extern "C" fn find_registers(_id: u64, _processor: c_uint) {
    let Some(profiler) = PROFILER.get() else { return };
    profiler.registers.get_or_init(|| {
        // SAFETY: this is the callback that it may be called in. It returns an array of descriptors, of which every processor of
        // x86-64 has some, and which stays as it is.
        let registers = unsafe {
            let array = qemu::qemu_plugin_get_registers();
            std::slice::from_raw_parts((*array).data, (*array).length as usize)
        };
        let find = |name: &CStr| {
            // SAFETY: names of registers are strings that live as long as QEMU.
            let named = registers.iter().find(|register| unsafe { CStr::from_ptr(register.name) } == name);
            named.map_or(std::ptr::null_mut(), |register| register.register)
        };
        // SAFETY: it only allocates.
        Registers { bases: GS_BASES.map(find), buffer: unsafe { qemu::g_byte_array_new() } }
    });
}

/// QEMU has translated a block: from now on it is counted, and sampled when the count is high enough.
extern "C" fn translated(_id: u64, block: *mut Block) {
    let Some(profiler) = PROFILER.get() else { return };
    // SAFETY: `block` and its first instruction, which every block has, are valid during this call; the place stays for ever.
    unsafe {
        let first = qemu::qemu_plugin_tb_get_insn(block, 0);
        let host = qemu::qemu_plugin_insn_haddr(first).cast_const().cast();
        let place = profiler.place(qemu::qemu_plugin_tb_vaddr(block), host);
        let count = qemu::qemu_plugin_tb_n_insns(block) as u64;
        qemu::qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(block, qemu::ADD, profiler.counted, count);
        qemu::qemu_plugin_register_vcpu_tb_exec_cond_cb(
            block,
            sample,
            qemu::READS_REGISTERS,
            qemu::AT_LEAST,
            profiler.counted,
            profiler.period,
            std::ptr::from_ref(place).cast_mut().cast(),
        );
    }
}

/// A block runs that is to be a sample.
extern "C" fn sample(processor: c_uint, place: *mut c_void) {
    let Some(profiler) = PROFILER.get() else { return };
    // SAFETY: `translated` gave QEMU a place, which stays for ever.
    let place = unsafe { &*place.cast_const().cast::<Place>() };
    // SAFETY: the scoreboard has a number for each processor.
    let instructions = unsafe {
        let counted = qemu::qemu_plugin_u64_get(profiler.counted, processor);
        qemu::qemu_plugin_u64_set(profiler.counted, processor, 0);
        counted
    };
    let gs_bases =
        profiler.registers.get().map_or([0; 2], |registers| registers.bases.map(|base| registers.read(base)));
    let sample = Sample { instructions, address: place.address, gs_bases, page: place.fingerprint() };
    // Where the disk is full, the profile ends early.
    let _ = sample.write(&mut *lock(&profiler.samples));
}

impl Place {
    fn fingerprint(&self) -> u64 {
        if self.host.is_null() {
            return 0;
        }
        let page = self.host.map_addr(|address| address & !(PAGE - 1));
        // SAFETY: the page is one of the lab's RAM, whose pages QEMU has mapped whole, for as long as it runs. The one processor
        // that could write to it is busy with this call.
        fingerprint(unsafe { std::slice::from_raw_parts(page, PAGE) })
    }
}

impl Registers {
    fn read(&self, register: *mut Register) -> u64 {
        if register.is_null() {
            return 0;
        }
        // SAFETY: the handle is one of this processor's, the callback asked for access to registers, and the buffer has so many
        // bytes of the processor's, which is little endian.
        unsafe {
            qemu::g_byte_array_set_size(self.buffer, 0);
            if qemu::qemu_plugin_read_register(register, self.buffer) <= 0 {
                return 0;
            }
            let bytes = std::slice::from_raw_parts((*self.buffer).data, (*self.buffer).length as usize);
            little_endian(bytes)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
