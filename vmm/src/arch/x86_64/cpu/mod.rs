//! What a vCPU is set up with before it first runs.

pub(crate) mod cpuid;
pub(crate) mod msrs;
pub(crate) mod registers;
