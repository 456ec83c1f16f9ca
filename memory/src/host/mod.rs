//! Host memory behind guest memory.

mod fault;
mod mapping;
mod pieces;
mod scan;
mod shown;
mod sys;

pub use fault::{WatchedArea, catch_faults, faults_are_caught};
pub(crate) use mapping::STEP;
pub use mapping::{Backing, HostMapping, MapError};
pub use pieces::TooManyPieces;
pub use shown::ShownPages;
pub use sys::{Access, Area, residency, resident_bytes};
pub(crate) use sys::{PAGE, give_way};
