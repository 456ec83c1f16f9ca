//! The JSON documents of the OCI image specification 1.1, as far as an import needs them.
//!
//! Unknown fields are ignored, as the specification demands; known ones must have the right type.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::OciError;
use crate::digest::LayerDigest;

pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Whether a media type is that of a layer that can be read. How it is packed its first bytes tell.
pub(super) fn is_layer(media_type: &str) -> bool {
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    ]
    .contains(&media_type)
}

/// What an image was built for, written `linux/amd64` or `linux/arm/v7`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Platform {
    /// Operating system, in Go's words: `linux`.
    pub os: String,
    /// Processor, in Go's words: `amd64`.
    pub architecture: String,
    /// Which one of its kind: `v7`.
    #[serde(default)]
    pub variant: Option<String>,
}

/// A text that is no platform.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a platform: expected OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64")]
pub struct ParsePlatformError(String);

impl Platform {
    /// The platform of guests on this host.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// How well an image for `offered` fits who wants this platform: not at all, or the less the better.
    pub(super) fn rank(&self, offered: &Self) -> Option<u8> {
        if (&self.os, &self.architecture) != (&offered.os, &offered.architecture) {
            return None;
        }
        let usual = match self.architecture.as_str() {
            "amd64" => Some("v1"),
            "arm" => Some("v7"),
            "arm64" => Some("v8"),
            _ => None,
        };
        match (self.variant.as_deref(), offered.variant.as_deref()) {
            (wanted, offered) if wanted.or(usual) == offered.or(usual) => Some(0),
            (None, _) => Some(1),
            (Some(_), _) => None,
        }
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let words: Vec<_> = text.split('/').collect();
        let valid = |word: &&str| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let (os, architecture, variant) = match words[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => ("", "", None),
        };
        if words.iter().all(valid) && !os.is_empty() {
            return Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant });
        }
        Err(ParsePlatformError(text.chars().take(100).collect()))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub media_type: String,
    pub digest: LayerDigest,
    pub size: u64,
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The tag in an image layout's index.
    pub fn reference(&self) -> Option<&str> {
        self.annotations.get("org.opencontainers.image.ref.name").map(String::as_str)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayoutFile {
    pub image_layout_version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub schema_version: u32,
    pub manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub schema_version: u32,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(flatten)]
    pub platform: Platform,
    pub config: Option<RawConfig>,
    pub rootfs: RootFs,
}

impl ConfigFile {
    /// Checks it against what was asked for; the digests of the layers' archives.
    pub fn check(
        &self,
        path: &Path,
        platform: &Platform,
        image: LayerDigest,
        layers: usize,
    ) -> Result<&[LayerDigest], OciError> {
        if platform.rank(&self.platform).is_none() {
            expect_field(path, "platform", &self.platform, &platform.to_string())?;
        }
        expect_field(path, "rootfs.type", &self.rootfs.kind, "layers")?;
        let diff_ids = self.rootfs.diff_ids.len();
        if layers != diff_ids {
            return Err(OciError::LayerCount { manifest: image, layers, diff_ids });
        }
        Ok(&self.rootfs.diff_ids)
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<LayerDigest>,
}

/// Lists are `null` as often as they are missing: both mean empty.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RawConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// What an image says about running it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// First words of the command, which arguments don't replace.
    pub entrypoint: Vec<String>,
    /// The rest of the command unless the user gives another.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Directory the command starts in; empty means `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    pub user: String,
}

impl ImageConfig {
    /// The command to run: the entrypoint, then `arguments`, or the image's own where there are none.
    #[must_use]
    pub fn argv(&self, arguments: &[String]) -> Vec<String> {
        let rest = if arguments.is_empty() { &self.cmd } else { arguments };
        self.entrypoint.iter().chain(rest).cloned().collect()
    }
}

impl From<RawConfig> for ImageConfig {
    fn from(raw: RawConfig) -> Self {
        Self {
            entrypoint: raw.entrypoint.unwrap_or_default(),
            cmd: raw.cmd.unwrap_or_default(),
            env: raw.env.unwrap_or_default(),
            working_dir: raw.working_dir.unwrap_or_default(),
            user: raw.user.unwrap_or_default(),
        }
    }
}

pub(super) fn expect_field(
    path: &Path,
    field: &'static str,
    actual: &impl std::fmt::Display,
    expected: &str,
) -> Result<(), OciError> {
    let actual = actual.to_string();
    if actual == expected {
        return Ok(());
    }
    Err(OciError::Field { path: path.to_owned(), field, actual, expected: expected.to_owned() })
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, data: &[u8]) -> Result<T, OciError> {
    serde_json::from_slice(data).map_err(|source| OciError::Json { path: path.to_owned(), source })
}
