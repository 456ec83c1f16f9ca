//! Host memory behind guest memory.

mod mapping;
mod pieces;
mod sys;

pub(crate) use mapping::STEP;
pub use mapping::{Backing, HostMapping, MapError};
pub use pieces::TooManyPieces;
pub use sys::{Access, Area, residency};
pub(crate) use sys::{PAGE, give_way};
