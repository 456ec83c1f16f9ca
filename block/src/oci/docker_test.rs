use std::io::Read as _;

use serde_json::{Value, json};

use super::*;
use crate::compression::Compression;
use crate::oci::ImageSource;
use crate::testing::{Archive, compress};
use crate::{Cancel, archive::Limits};

/// An archive of two images with a layer in common, the way old and new tools put it.
struct Saved {
    archive: Archive,
    manifest: Vec<Value>,
}

impl Saved {
    fn new() -> Self {
        Self { archive: Archive::new(), manifest: Vec::new() }
    }

    fn config(diff_ids: &[LayerDigest], architecture: &str) -> (String, String) {
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let text = config.to_string();
        (LayerDigest::of(text.as_bytes()).hex(), text)
    }

    fn finish(self) -> Vec<u8> {
        self.archive.file("manifest.json", json!(self.manifest).to_string()).finish()
    }
}

fn layers() -> [Vec<u8>; 2] {
    ["one", "two"].map(|name| Archive::new().file(name, name).finish())
}

fn image(data: &[u8], reference: Option<&str>) -> Result<SourceImage, OciError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("saved.tar");
    std::fs::write(&path, data).unwrap();
    let source = ImageSource::open(&path, directory.path(), Limits::default(), &Cancel::default())?;
    assert!(matches!(source, ImageSource::Docker(_)));
    source.image(&"linux/amd64".parse().unwrap(), reference)
}

fn check(data: &[u8], reference: Option<&str>) {
    let layers = layers();
    let diff_ids: Vec<_> = layers.iter().map(|layer| LayerDigest::of(layer)).collect();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let image = image(&compress(data, compression), reference).unwrap();
        let (hex, _) = Saved::config(&diff_ids, "amd64");
        assert_eq!(image.digest.unwrap().hex(), hex);
        assert_eq!(image.config.argv(&[]), ["sh"]);
        for (source, expected) in image.layers.iter().zip(&layers) {
            assert_eq!(source.digests.diff_id, Some(LayerDigest::of(expected)));
            let mut data = Vec::new();
            source.open().unwrap().1.read_to_end(&mut data).unwrap();
            assert!(data == *expected);
        }
    }
}

/// As Docker wrote it up to version 24: a directory for each layer, links where two images share one.
#[test]
fn directories_of_layers_and_links_between_them() {
    let layers = layers();
    let diff_ids: Vec<_> = layers.iter().map(|layer| LayerDigest::of(layer)).collect();
    let (hex, text) = Saved::config(&diff_ids, "amd64");
    let (other_hex, other_text) = Saved::config(&diff_ids[..1], "amd64");
    let ids = ["a", "b", "c"].map(|id| id.repeat(64));
    let mut saved = Saved::new();
    saved.archive = saved
        .archive
        .directory(format!("{}/", ids[0]))
        .file(format!("{}/VERSION", ids[0]), "1.0")
        .file(format!("{}/json", ids[0]), "{}")
        .file(format!("{}/layer.tar", ids[0]), &layers[0])
        .symlink(format!("{}/layer.tar", ids[1]), format!("../{}/layer.tar", ids[0]))
        .file(format!("{}/layer.tar", ids[2]), &layers[1])
        .file(format!("{hex}.json"), text)
        .file(format!("{other_hex}.json"), other_text)
        .file("repositories", "{}");
    let names = ids.map(|id| format!("{id}/layer.tar"));
    saved.manifest = vec![
        json!({"Config": format!("{other_hex}.json"), "RepoTags": ["base:1"], "Layers": [names[0]]}),
        json!({"Config": format!("{hex}.json"), "RepoTags": ["app:2", "app:latest"], "Layers": [names[1], names[2]]}),
    ];
    let data = saved.finish();
    check(&data, Some("app:latest"));
    check(&data, Some("2"));
    let message = image(&data, None).unwrap_err().to_string();
    assert!(message.contains("`base:1`, `app:2`; name one of them"), "{message}");
    let message = image(&data, Some("app:9")).unwrap_err().to_string();
    assert!(message.contains("`app:9`") && message.contains("`base:1`"), "{message}");
}

/// As skopeo, podman and buildah write it: one file for each layer, without compression.
#[test]
fn files_of_layers() {
    let layers = layers();
    let diff_ids: Vec<_> = layers.iter().map(|layer| LayerDigest::of(layer)).collect();
    let (hex, text) = Saved::config(&diff_ids, "amd64");
    let names: Vec<_> = diff_ids.iter().map(|digest| format!("{}.tar", digest.hex())).collect();
    let mut saved = Saved::new();
    for (name, layer) in names.iter().zip(&layers) {
        saved.archive = saved.archive.file(name, layer);
    }
    saved.archive = saved.archive.file(format!("{hex}.json"), text);
    saved.manifest = vec![json!({"Config": format!("{hex}.json"), "RepoTags": null, "Layers": names})];
    check(&saved.finish(), None);
}

#[test]
fn what_is_wrong_is_named() {
    let layers = layers();
    let diff_ids: Vec<_> = layers.iter().map(|layer| LayerDigest::of(layer)).collect();
    let saved = |config: &str, text: &str, layers: &[&str]| {
        let mut saved = Saved::new();
        saved.archive = Archive::new().file("repositories", "{}").file(config, text);
        saved.manifest = vec![json!({"Config": config, "Layers": layers})];
        image(&saved.finish(), None)
    };
    let message = |result: Result<SourceImage, OciError>| result.unwrap_err().to_string();
    let (hex, text) = Saved::config(&diff_ids, "arm64");
    let words = message(saved(&format!("{hex}.json"), &text, &["a", "b"]));
    assert!(words.contains("linux/arm64") && words.contains("linux/amd64"), "{words}");
    let (hex, text) = Saved::config(&diff_ids, "amd64");
    let words = message(saved(&format!("{hex}.json"), &text, &["a"]));
    assert!(words.contains("1 layers but 2 diff_ids"), "{words}");
    let words = message(saved(&format!("{hex}.json"), &text.replace("sh", "zsh"), &["a", "b"]));
    assert!(words.contains(&hex) && words.contains("damaged"), "{words}");
    // Names that lead elsewhere lead nowhere.
    let image = saved(&format!("{hex}.json"), &text, &["../../etc/passwd", "/etc/passwd"]).unwrap();
    for layer in &image.layers {
        assert!(matches!(layer.open(), Err(OciError::Read { .. })));
    }
}
