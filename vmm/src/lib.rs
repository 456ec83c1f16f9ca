//! The embeddable Bellows microVM monitor.

#[cfg(target_arch = "x86_64")]
pub mod machine;
