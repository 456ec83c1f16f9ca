//! Images of a VM, and how they reach its guest.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use bellows_block::{Digest, FlatImage, ReadSet, Stack, StoredFile};
use bellows_protocol::values::{ImageId, MAX_LAYERS};
use serde::{Deserialize, Serialize};

use super::{ConfigError, check_path, count, error};
use crate::kind::ErrorKind;

/// Most layers of a flat image.
pub const MAX_FLAT_LAYERS: usize = 1024;
/// Alignment of the files of a flat image: a page.
const PAGE: u64 = 4096;

/// An image: layers that instances see as one file system.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// The name by which instances refer to it.
    #[serde(with = "super::text")]
    pub id: ImageId,
    /// Its layers, lowest first.
    pub layers: Vec<LayerConfig>,
    /// A layer on top of the others in the shape `layers` only, so that the stack shows the same files as unpacking does
    /// ([`bellows_block::Stack::fixup`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixup: Option<LayerConfig>,
    /// Metadata of all layers as one file system, which the shape `flat` needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flat: Option<FlatConfig>,
    /// How the layers are put together. Without it, the shape is `flat` if there is metadata for it and the guest's kernel
    /// can mount it (Linux 6.4), else `layers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Shape>,
    /// How its disks reach the guest.
    #[serde(default)]
    pub transport: Transport,
    /// The read set of an earlier run ([`crate::Vm::profile`]): the host reads these pages ahead, in the background, when
    /// the VM gets the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ReadSet>,
}

/// How a disk with layers reaches the guest.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// virtio-blk: the guest copies what it reads to its own page cache. Every guest can do that, and a file that fails gives
    /// it an I/O error.
    #[default]
    Blk,
    /// virtio-pmem: the guest uses the host's page cache in place (DAX) and has none of its own. Its kernel keeps 64 bytes for
    /// each 4 KiB of the disk in base memory, and a file that fails ends the VM.
    Pmem,
}

/// How the layers of an image are put together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Each is a disk of its own, and the guest stacks them with overlayfs.
    Layers,
    /// All layers are one disk with one file system: the host has already applied each layer to those below it.
    Flat,
}

/// A read-only layer, in the guest a disk whose serial number is the start of the digest ([`crate::serial_of`]).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LayerConfig {
    /// The layer's EROFS file.
    pub path: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Size of the file; another size is an error.
    pub bytes: u64,
}

/// The metadata of a flat image.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FlatConfig {
    /// The file.
    pub path: PathBuf,
    /// Its digest; the disk's serial number is the start of it.
    pub digest: Digest,
    /// Size of the file; another size is an error.
    pub bytes: u64,
    /// The byte of the disk that each layer begins at.
    pub starts: Vec<u64>,
}

impl ImageConfig {
    /// An image of `layers`, lowest first, that has only the shape `layers`.
    pub fn new(id: ImageId, layers: impl IntoIterator<Item = impl Into<LayerConfig>>) -> Self {
        Self {
            id,
            layers: layers.into_iter().map(Into::into).collect(),
            fixup: None,
            flat: None,
            shape: None,
            transport: Transport::Blk,
            profile: None,
        }
    }

    /// An image of the store that has both shapes.
    #[must_use]
    pub fn flat(id: ImageId, image: &FlatImage) -> Self {
        let flat = FlatConfig {
            path: image.path.clone(),
            digest: image.digest,
            bytes: image.bytes,
            starts: image.layers.iter().map(|(start, _)| *start).collect(),
        };
        Self { flat: Some(flat), ..Self::new(id, image.layers.iter().map(|(_, layer)| layer)) }
    }

    /// An image of the store that has only the shape `layers`.
    #[must_use]
    pub fn stacked(id: ImageId, stack: &Stack) -> Self {
        Self::new(id, &stack.layers).fixup(stack.fixup.as_ref())
    }

    /// The same with a fix-up for the shape `layers`.
    #[must_use]
    pub fn fixup(mut self, fixup: Option<&StoredFile>) -> Self {
        self.fixup = fixup.map(LayerConfig::from);
        self
    }

    /// The same in a shape of the caller's choice.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = Some(shape);
        self
    }

    /// The same over another transport.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// The same with pages that are read ahead.
    #[must_use]
    pub fn profile(mut self, profile: ReadSet) -> Self {
        self.profile = Some(profile);
        self
    }

    /// The shape to begin with, before the guest's abilities are known.
    pub(crate) fn first_shape(&self) -> Shape {
        self.shape.unwrap_or(if self.flat.is_some() { Shape::Flat } else { Shape::Layers })
    }

    /// The stack of the shape `layers`, lowest first.
    pub(crate) fn stack(&self) -> impl Iterator<Item = &LayerConfig> + Clone {
        self.layers.iter().chain(&self.fixup)
    }

    /// The number of disks in its first shape.
    pub(crate) fn disks(&self) -> usize {
        match self.first_shape() {
            Shape::Layers => self.stack().count(),
            Shape::Flat => 1,
        }
    }

    /// The content of its disks in its first shape. Images share disks of the same content and transport.
    pub(crate) fn contents(&self) -> impl Iterator<Item = (Digest, Transport)> {
        let flat = self.flat.iter().map(|flat| flat.digest).filter(|_| self.first_shape() == Shape::Flat);
        let layers = self.layers.iter().map(|layer| layer.digest).filter(|_| self.first_shape() == Shape::Layers);
        flat.chain(layers).map(|digest| (digest, self.transport))
    }

    /// The flat image, where there is metadata for one.
    pub(crate) fn flat_image(&self) -> Option<FlatImage> {
        let flat = self.flat.as_ref()?;
        let layers = flat.starts.iter().copied().zip(self.layers.iter().map(StoredFile::from)).collect();
        Some(FlatImage { digest: flat.digest, path: flat.path.clone(), bytes: flat.bytes, layers })
    }

    /// Checks the values of the image that the configuration calls `field`.
    pub(crate) fn check(&self, field: &str) -> Result<(), ConfigError> {
        let layers = format!("{field}.layers");
        let most = if self.first_shape() == Shape::Flat { MAX_FLAT_LAYERS } else { MAX_LAYERS };
        if !(1..=most).contains(&self.layers.len()) {
            return Err(error(layers, count(self.layers.len()), format!("1 to {most}")));
        }
        if let (Some(fixup), Shape::Layers) = (&self.fixup, self.first_shape())
            && self.stack().count() > MAX_LAYERS
        {
            let value = format!("`{}` on top of {}", fixup.digest, count(self.layers.len()));
            let expected = format!("at most {} layers below it, or the shape `flat`", MAX_LAYERS - 1);
            return Err(error(format!("{field}.fixup"), value, expected));
        }
        let mut digests = HashMap::new();
        for (index, layer) in self.layers.iter().enumerate() {
            check_path(&format!("{layers}[{index}].path"), &layer.path)?;
            if let Some(other) = digests.insert(layer.digest, index) {
                let expected = format!("another digest than that of `{layers}[{other}]`");
                return Err(error(format!("{layers}[{index}].digest"), format!("`{}`", layer.digest), expected));
            }
        }
        if let Some(fixup) = &self.fixup {
            check_path(&format!("{field}.fixup.path"), &fixup.path)?;
            if let Some(other) = digests.get(&fixup.digest) {
                let expected = format!("another digest than that of `{layers}[{other}]`");
                return Err(error(format!("{field}.fixup.digest"), format!("`{}`", fixup.digest), expected));
            }
        }
        match (&self.flat, self.shape) {
            (Some(flat), _) => flat.check(&format!("{field}.flat"), &self.layers),
            (None, Some(Shape::Flat)) => {
                Err(error(format!("{field}.shape"), Shape::Flat, "`layers`, or the metadata in `flat`"))
            }
            (None, _) => Ok(()),
        }
    }
}

impl FlatConfig {
    fn check(&self, field: &str, layers: &[LayerConfig]) -> Result<(), ConfigError> {
        check_path(&format!("{field}.path"), &self.path)?;
        let starts = format!("{field}.starts");
        if self.starts.len() != layers.len() {
            return Err(error(starts, count(self.starts.len()), format!("{}, as in `layers`", layers.len())));
        }
        let mut end = self.bytes;
        for (index, (&start, layer)) in self.starts.iter().zip(layers).enumerate() {
            let next = start.checked_add(layer.bytes).filter(|_| start >= end && start.is_multiple_of(PAGE));
            let expected = || format!("a multiple of {PAGE} from {end} on, where what is before it ends");
            end = next.ok_or_else(|| error(format!("{starts}[{index}]"), start, expected()))?;
        }
        Ok(())
    }
}

impl From<&StoredFile> for LayerConfig {
    fn from(layer: &StoredFile) -> Self {
        Self { path: layer.path.clone(), digest: layer.digest, bytes: layer.bytes }
    }
}

impl From<&LayerConfig> for StoredFile {
    fn from(layer: &LayerConfig) -> Self {
        Self { path: layer.path.clone(), digest: layer.digest, bytes: layer.bytes }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layers => "layers",
            Self::Flat => "flat",
        })
    }
}

/// A text that does not name a shape.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a shape: expected `layers` or `flat`")]
pub struct ParseShapeError(String);

impl ParseShapeError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl FromStr for Shape {
    type Err = ParseShapeError;

    fn from_str(text: &str) -> Result<Self, ParseShapeError> {
        match text {
            "layers" => Ok(Self::Layers),
            "flat" => Ok(Self::Flat),
            _ => Err(ParseShapeError(text.to_owned())),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blk => "blk",
            Self::Pmem => "pmem",
        })
    }
}

/// A text that does not name a transport.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a transport: expected `blk` or `pmem`")]
pub struct ParseTransportError(String);

impl ParseTransportError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl FromStr for Transport {
    type Err = ParseTransportError;

    fn from_str(text: &str) -> Result<Self, ParseTransportError> {
        match text {
            "blk" => Ok(Self::Blk),
            "pmem" => Ok(Self::Pmem),
            _ => Err(ParseTransportError(text.to_owned())),
        }
    }
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
