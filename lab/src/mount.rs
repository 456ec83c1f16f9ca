//! Mounts, for the first processes of machines.

use std::ffi::CString;
use std::io;

/// Mounts `source` at the directory `target`, which is made where it is missing.
///
/// # Errors
/// The kernel's, with both names.
pub fn mount(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    let [source_c, target_c, kind_c, options_c] =
        [source, target, kind, options].map(|text| CString::new(text).unwrap_or_default());
    // SAFETY: all four point to strings that end with NUL and live through the call.
    let result =
        unsafe { libc::mount(source_c.as_ptr(), target_c.as_ptr(), kind_c.as_ptr(), 0, options_c.as_ptr().cast()) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("mount {source} at {target}: {error}")))
}
