//! What `bellows image --json` prints.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bellows_block::oci::ImageConfig;
use bellows_block::{Digest, ImageName};
use serde::Serialize;

/// An image as `--json` prints it, with what there is to say of each layer.
#[derive(Debug, Serialize)]
pub(super) struct ImageReport<L> {
    pub(super) digest: Digest,
    pub(super) names: Vec<ImageName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<ImageConfig>,
    pub(super) layers: Vec<L>,
    /// Which of the layers, the topmost, is none of the image's own, but makes a stack of the others show what unpacking them gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fixup: Option<Digest>,
    /// Where it is mounted on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mounts: Option<Vec<MountReport>>,
}

/// A mount on this host, and what it keeps in memory beside the page cache of the layers' files.
#[derive(Debug, Serialize)]
pub(super) struct MountReport {
    pub(super) directory: PathBuf,
    pub(super) cached_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct LayerReport {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct DetailsReport {
    pub(super) digest: Digest,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) sha256: Digest,
    /// `null` where the file system has none.
    pub(super) verity: Option<Digest>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct UsageReport {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    pub(super) resident_bytes: u64,
    /// Processes, each of which is a VM.
    pub(super) users: BTreeSet<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct RemovedReport {
    pub(super) name: ImageName,
    /// Nothing is left of the image but its layers.
    pub(super) image_removed: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct CollectedReport {
    pub(super) layers: Vec<Digest>,
    pub(super) in_use: Vec<Digest>,
    pub(super) bytes: u64,
}
