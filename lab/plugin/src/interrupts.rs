//! Has QEMU deliver an injected interrupt once.
//!
//! VMRUN can inject an interrupt into the guest. QEMU 10.0 (`helper_vmrun` in `target/i386/tcg/system/svm_helper.c`) delivers it at once,
//! but leaves its vector in `exception_index`, as if it were still to be delivered. Should the emulated processor be stopped before the
//! guest is left again, because a timer expires or another thread wants something, QEMU delivers it a second time, whether the guest
//! takes interrupts or not. Linux then waits in its handler for a lock that the interrupted handler holds, for ever.
//!
//! So VMRUN ends here as it does in QEMU when it injects an exception: it leaves the translated code, and no exception is left.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;

type Vmrun = unsafe extern "C" fn(state: *mut c_void, address_size: c_int, length: c_int);
type FindProcessor = unsafe extern "C" fn(index: c_int) -> *mut c_void;
type LeaveCode = unsafe extern "C" fn(processor: *mut c_void);

/// QEMU's own functions.
struct Functions {
    vmrun: Vmrun,
    find_processor: FindProcessor,
    leave_code: LeaveCode,
}

static QEMU: OnceLock<Functions> = OnceLock::new();

/// Mends the QEMU that has loaded this. One that is built in another way stays as it is, and the lab's console says so.
pub fn deliver_once() {
    if mend().is_none() {
        eprintln!("this QEMU is not built as expected: injected interrupts may be delivered twice");
    }
}

fn mend() -> Option<()> {
    let vmrun = symbol(c"helper_vmrun")?;
    let find_processor = symbol(c"qemu_get_cpu")?;
    let leave_code = symbol(c"cpu_loop_exit_noexc")?;
    let table = symbol(c"helper_info_vmrun")?;
    let entry: *mut *mut c_void = table.cast();
    // SAFETY: `helper_info_vmrun` is a `TCGHelperInfo`, which begins with a pointer to the function. Nothing has been translated
    // yet, so nothing else uses it. If it does not begin so in this QEMU, nothing is changed.
    if unsafe { *entry } != vmrun {
        return None;
    }
    // SAFETY: the names are those of functions with these types, in all versions of QEMU since 8.0.
    let functions = unsafe {
        Functions {
            vmrun: std::mem::transmute::<*mut c_void, Vmrun>(vmrun),
            find_processor: std::mem::transmute::<*mut c_void, FindProcessor>(find_processor),
            leave_code: std::mem::transmute::<*mut c_void, LeaveCode>(leave_code),
        }
    };
    QEMU.get_or_init(|| functions);
    // SAFETY: as above. Code that is translated from now on calls the function below.
    unsafe { *entry = run_guest as *mut c_void };
    Some(())
}

/// In the place of `helper_vmrun`.
unsafe extern "C" fn run_guest(state: *mut c_void, address_size: c_int, length: c_int) {
    let Some(qemu) = QEMU.get() else { return };
    // SAFETY: translated code calls this with what it would call `helper_vmrun` with. Both calls may jump back to QEMU's loop, over
    // this frame, which has nothing to drop. The emulated host has one processor, the first.
    unsafe {
        (qemu.vmrun)(state, address_size, length);
        (qemu.leave_code)((qemu.find_processor)(0));
    }
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a string; what is found is only compared here.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}
