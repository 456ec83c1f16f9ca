//! End-to-end tests, the lab they run in, and benchmarks.

pub mod bench;
pub mod lab;
pub mod mount;
