//! Files and folders as tar streams, between a host and an instance: [`pack`] on the side that reads them, [`Entries`] on the side that
//! writes them.
//!
//! A stream holds files, folders and symbolic links; devices, pipes and sockets are left out, and a file with several names is several
//! files. Its first component is the same in all names, so that the reader can call it anything.

mod entries;
mod pack;

pub use entries::{Entries, Entry, EntryError, Kind};
pub use pack::{Owner, pack};
