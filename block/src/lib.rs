//! OCI images as content-addressed EROFS layers, and the disks that serve them.
//!
//! From an image to a guest: [`oci`] finds an image in whatever it comes as and checks its documents, [`import`] turns each
//! layer's tar stream into an [`erofs`] image, [`store`] keeps those by digest, and a [`Disk`](bellows_disk::Disk) serves one to a guest, or a [`flat`]
//! image of all of them.
//!
//! A [`scratch`] disk is the other way round: it comes from nowhere, and an instance writes to it.

mod advice;
pub mod archive;
mod cancel;
mod compression;
pub mod digest;
pub mod erofs;
pub mod ext4;
pub mod flat;
mod host_disk;
pub mod import;
pub mod model;
pub mod oci;
pub mod page_cache;
mod path;
pub mod read_set;
pub mod scratch;
pub mod serve;
pub mod store;
mod stored_file;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use cancel::Cancel;
pub use digest::Digest;
pub use flat::FlatImage;
pub use host_disk::HostDisk;
pub use oci::{ImageSource, OciLayout};
pub use read_set::{Prefetch, ReadSet, Reads, Recorded};
pub use scratch::{ScratchDisk, ScratchError};
pub use serve::{FlatDisk, ImageMapping, LayerDisk};
pub use store::{Image, ImageName, ImportOptions, NamedImage, Stack, Store, StoreError};
pub use stored_file::StoredFile;
