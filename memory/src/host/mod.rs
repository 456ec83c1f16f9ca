//! Host memory behind guest memory.

mod mapping;
mod pieces;

pub use mapping::{Backing, HostMapping, MapError};
pub use pieces::TooManyPieces;
