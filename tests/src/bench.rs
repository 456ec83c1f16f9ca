//! What the benchmarks' two halves share: the program that runs where KVM is, and the command that makes a report of what
//! it prints.

pub mod boot;
pub mod exits;
pub mod load;
pub mod reclaim;
pub mod smaps;
