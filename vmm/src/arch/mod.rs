//! What differs from one architecture to another. The rest of the monitor names the architecture by this module alone.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
