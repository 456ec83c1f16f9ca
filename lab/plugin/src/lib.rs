//! What the lab adds to QEMU, as a plugin: `interrupts`, and where it is asked for, `profiler`.
//!
//! ```text
//! -plugin libbellows_lab_plugin.so[,samples=FILE,period=INSTRUCTIONS]
//! ```

mod interrupts;
mod profiler;
mod qemu;

use std::ffi::{CStr, c_char, c_int, c_void};

/// Tells QEMU which version of its interface this is written for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = qemu::VERSION;

/// Called by QEMU as it loads the plugin; anything but 0 ends QEMU.
///
/// # Safety
/// As `qemu-plugin.h` says: `arguments` are `count` strings of the form `name=value`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _machine: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the caller guarantees that so many pointers to strings are there.
    let arguments = (0..count).map(|at| unsafe { CStr::from_ptr(*arguments.add(at)) }.to_string_lossy());
    interrupts::deliver_once();
    match profiler::start(id, arguments) {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("profiler: {message}");
            1
        }
    }
}
