//! Host memory behind guest memory.

mod mapping;
mod pieces;
mod sys;

pub use mapping::{Backing, HostMapping, MapError};
pub use pieces::TooManyPieces;
pub(crate) use sys::give_way;
pub use sys::{Access, Area, residency};
