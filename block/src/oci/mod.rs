//! OCI image layouts: `oci-layout`, `index.json`, manifests, configurations and blobs, every one checked by its digest.

mod blob;
mod layout;
mod spec;

pub use blob::{BlobError, VerifyingReader};
pub use layout::{OciError, OciImage, OciLayer, OciLayout};
pub use spec::{Compression, ImageConfig, Platform};
