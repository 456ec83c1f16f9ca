//! Writes an OCI image layout: blobs by digest, config, manifest, index.
//!
//! Source: OCI image specification, `image-layout.md`, `manifest.md`, `config.md`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// How a layer's blob is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `tar+gzip`
    Gzip,
    /// `tar+zstd`
    Zstd,
}

/// An image layout under construction.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
    history: Vec<Value>,
}

impl Layout {
    /// Starts an image with no layers in a new directory.
    pub fn create(root: &Path) -> Result<Self> {
        let blobs = root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(Error::at(&blobs))?;
        Ok(Self { root: root.to_path_buf(), layers: Vec::new(), diff_ids: Vec::new(), history: Vec::new() })
    }

    /// Puts a layer, an uncompressed tar, on top.
    pub fn add_layer(&mut self, tar: &[u8], compression: Compression, comment: &str) -> Result<()> {
        let (media_type, blob) = match compression {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                let blob = encoder.write_all(tar).and_then(|()| encoder.finish()).map_err(Error::at("gzip"))?;
                ("application/vnd.oci.image.layer.v1.tar+gzip", blob)
            }
            Compression::Zstd => {
                let blob = zstd::encode_all(tar, 3).map_err(Error::at("zstd"))?;
                ("application/vnd.oci.image.layer.v1.tar+zstd", blob)
            }
        };
        self.layers.push(self.blob(media_type, &blob)?);
        self.diff_ids.push(digest(tar));
        self.history.push(json!({ "created": CREATED, "comment": comment }));
        Ok(())
    }

    /// Writes config, manifest and index. `process` is the config's `config` object.
    pub fn finish(self, process: &Value) -> Result<()> {
        let config = json!({
            "created": CREATED,
            "architecture": "amd64",
            "os": "linux",
            "config": process,
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids },
            "history": self.history,
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config,
            "layers": self.layers,
        });
        let mut manifest = self.blob(media_type, manifest.to_string().as_bytes())?;
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest],
        });
        self.write("index.json", index.to_string().as_bytes())?;
        self.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
    }

    /// Stores a blob and returns its descriptor.
    fn blob(&self, media_type: &str, data: &[u8]) -> Result<Value> {
        let digest = digest(data);
        self.write(&format!("blobs/{}", digest.replace(':', "/")), data)?;
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": data.len() }))
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        fs::write(&path, data).map_err(Error::at(&path))
    }
}

/// A layer of an image layout.
#[derive(Debug)]
pub struct LayerBlob {
    /// The file.
    pub path: PathBuf,
    /// Its media type, which says how it is compressed.
    pub media_type: String,
}

/// The layers of the image layout at `root`, which has one image, lowest first.
pub fn layers(root: &Path) -> Result<Vec<LayerBlob>> {
    let document = |path: &Path| -> Result<Value> {
        let data = fs::read(path).map_err(Error::at(path))?;
        serde_json::from_slice(&data).map_err(|error| Error::other(format!("{}: {error}", path.display())))
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let blob = |descriptor: &Value| root.join("blobs").join(text(&descriptor["digest"]).replace(':', "/"));
    let index = document(&root.join("index.json"))?;
    let manifest = document(&blob(&index["manifests"][0]))?;
    let layers = manifest["layers"].as_array().into_iter().flatten();
    Ok(layers.map(|layer| LayerBlob { path: blob(layer), media_type: text(&layer["mediaType"]) }).collect())
}

const CREATED: &str = "2023-11-14T22:13:20Z";

fn digest(data: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_leads_to_its_blob() {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::create(directory.path()).unwrap();
        layout.add_layer(b"one", Compression::Gzip, "1").unwrap();
        layout.add_layer(b"two", Compression::Zstd, "2").unwrap();
        layout.finish(&json!({ "Cmd": ["true"] })).unwrap();

        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let data = fs::read(directory.path().join("blobs").join(digest.replace(':', "/"))).unwrap();
            assert_eq!(super::digest(&data), digest);
            assert_eq!(descriptor["size"], data.len());
            data
        };
        let index: Value = serde_json::from_slice(&fs::read(directory.path().join("index.json")).unwrap()).unwrap();
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(b"one"), digest(b"two")]));
        assert_eq!(zstd::decode_all(blob(&manifest["layers"][1]).as_slice()).unwrap(), b"two");
    }
}
