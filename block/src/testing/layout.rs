//! OCI image layouts.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::compression::Compression;
use crate::digest::Digest;

/// An image layout in a directory of its own.
pub struct LayoutBuilder {
    directory: TempDir,
    layers: Vec<Value>,
    diff_ids: Vec<Digest>,
}

impl Default for LayoutBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayoutBuilder {
    /// One without layers.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { directory, layers: Vec::new(), diff_ids: Vec::new() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Adds a blob; its digest.
    pub fn blob(&self, data: &[u8]) -> Digest {
        let digest = Digest::of(data);
        fs::write(self.blob_path(&digest), data).unwrap();
        digest
    }

    /// Where a blob is.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path().join("blobs/sha256").join(digest.hex())
    }

    /// Adds a layer; the digest of its blob.
    pub fn layer(&mut self, archive: &[u8], compression: Compression) -> Digest {
        let media_type = match compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        self.blob_layer(&compress(archive, compression), Digest::of(archive), media_type)
    }

    /// Adds a layer whose blob and media type need not fit; the digest of its blob.
    pub fn blob_layer(&mut self, blob: &[u8], diff_id: Digest, media_type: &str) -> Digest {
        let digest = self.blob(blob);
        self.layers.push(json!({"mediaType": media_type, "digest": digest, "size": blob.len()}));
        self.diff_ids.push(diff_id);
        digest
    }

    /// Writes configuration and manifest; the manifest's descriptor.
    pub fn manifest(&self, architecture: &str) -> Value {
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": {"Cmd": ["sh"], "Env": ["A=1"], "WorkingDir": "/w", "User": "7:8", "Entrypoint": null, "Labels": {}},
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
            "history": []
        });
        let config = descriptor(self, &config, "application/vnd.oci.image.config.v1+json");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": self.layers
        });
        descriptor(self, &manifest, "application/vnd.oci.image.manifest.v1+json")
    }

    /// Adds a document; its descriptor.
    pub fn document(&self, document: &Value, media_type: &str) -> Value {
        descriptor(self, document, media_type)
    }

    /// Writes the index.
    pub fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    /// Writes everything for an image of one platform.
    pub fn finish(self) -> Self {
        let manifest = self.manifest("amd64");
        self.index(&[manifest]);
        self
    }
}

fn descriptor(layout: &LayoutBuilder, document: &Value, media_type: &str) -> Value {
    let text = document.to_string();
    json!({"mediaType": media_type, "digest": layout.blob(text.as_bytes()), "size": text.len()})
}

/// Compresses as a layer says it is.
pub fn compress(data: &[u8], compression: Compression) -> Vec<u8> {
    use std::io::Write as _;
    match compression {
        Compression::None => data.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(data, 1).unwrap(),
    }
}
