//! Tar archives: read entry by entry, or made from a directory.
//!
//! Names in an archive never become names of host files.

mod acl;
mod directory;
mod gnu_sparse;
mod header;
mod limits;
mod name;
mod pax;
mod tar_stream;

pub(crate) use directory::{DirectoryArchive, FileId};
pub use limits::Limits;
pub(crate) use limits::{Bounded, Counted};
pub use name::EntryName;
pub(crate) use name::{Meaning, components, meaning};
pub(crate) use tar_stream::{TarEntry, TarKind, TarStream};

/// A damaged or unsupported archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Decompression failed, or the archive ends early.
    #[error("cannot unpack the archive after {offset} bytes{}", .entry.as_ref().map(|name| format!(", at entry `{name}`")).unwrap_or_default())]
    Read {
        /// How much of the uncompressed archive had been read.
        offset: u64,
        /// The last entry seen.
        entry: Option<EntryName>,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An invalid tar header.
    #[error("the archive has no valid header at byte {offset}{}: {reason}", .last.as_ref().map(|name| format!(", behind entry `{name}`")).unwrap_or_default())]
    Header {
        /// Where in the uncompressed archive.
        offset: u64,
        /// The last entry seen.
        last: Option<EntryName>,
        /// The cause.
        reason: String,
    },
    /// An invalid entry.
    #[error("entry `{name}` {reason}")]
    Entry {
        /// The entry's name.
        name: EntryName,
        /// The cause.
        reason: EntryProblem,
    },
}

/// What is wrong with an entry.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum EntryProblem {
    /// The name leads out of the root with `..`.
    #[error("has a name that leaves the image")]
    ParentReference,
    /// The name or one of its components is too long, or has a zero byte.
    #[error("has a name that no file can have")]
    InvalidName,
    /// A whiteout of nothing, of `.` or `..`, or one with files below it.
    #[error("is a whiteout that names no file")]
    InvalidWhiteout,
    /// A hard link with an invalid target.
    #[error("is a hard link to `{0}`, which is not the name of a file")]
    HardLink(EntryName),
    /// The root of the image as anything but a directory.
    #[error("would replace the root directory")]
    Root,
    /// A type of entry that a layer cannot have.
    #[error("has the unsupported type {}", .0.escape_ascii())]
    Type(u8),
    /// One more than an archive may have.
    #[error("is one more than the limit of {0} entries")]
    Count(u64),
    /// It would take too much memory.
    #[error("exceeds the limit of {0} bytes of names and attributes")]
    Metadata(u64),
    /// An owner or a group that no file can have.
    #[error("has the {field} {value}: expected 0 to 4294967294, or from -2 down to -2147483648")]
    Id {
        /// Which of the two.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// A field with an invalid value.
    #[error("has an invalid {0}")]
    Field(&'static str),
}
