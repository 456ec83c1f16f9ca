//! Layers and flat images for a guest: as disks, or as memory.
//!
//! - [`LayerDisk`] serves one layer's file.
//! - [`FlatDisk`] puts the files of a flat image behind each other.
//! - [`ImageMapping`] maps either into this process, to be given to the guest as memory (virtio-pmem).

mod flat;
mod layer;
mod mapped;
mod mapping;

pub use flat::FlatDisk;
pub use layer::LayerDisk;
pub use mapping::ImageMapping;

#[cfg(test)]
#[path = "serve_test.rs"]
mod tests;
