use std::io::Read as _;

use proptest::prelude::*;
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

    fn config(diff_ids: &[Digest], architecture: &str) -> (String, String) {
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let text = config.to_string();
        (Digest::of(text.as_bytes()).hex(), text)
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
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let image = image(&compress(data, compression), reference).unwrap();
        let (hex, _) = Saved::config(&diff_ids, "amd64");
        assert_eq!(image.digest.unwrap().hex(), hex);
        assert_eq!(image.config.argv(&[]), ["sh"]);
        for (source, expected) in image.layers.iter().zip(&layers) {
            assert_eq!(source.digests.diff_id, Some(Digest::of(expected)));
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
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
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
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
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

/// As crane, ko and kaniko write it, and as buildpacks do, who call layers by absolute names.
#[test]
fn names_of_digests_and_absolute_ones() {
    let layers = layers();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let (hex, text) = Saved::config(&diff_ids, "amd64");
    for (prefix, ending) in [("", ".tar.gz"), ("./", ".tar"), ("/", ".tar"), ("layers/", "")] {
        let names: Vec<_> = diff_ids.iter().map(|digest| format!("{prefix}{}{ending}", digest.hex())).collect();
        let mut saved = Saved::new();
        saved.archive = Archive::new().file(format!("sha256:{hex}"), &text);
        for (name, layer) in names.iter().zip(&layers) {
            saved.archive = saved.archive.file(name, layer);
        }
        saved.manifest = vec![json!({"Config": format!("sha256:{hex}"), "RepoTags": ["a:1"], "Layers": names})];
        check(&saved.finish(), None);
    }
}

/// The same content in any order, under names written in any way.
fn shuffled(seed: usize, prefix: &str) -> Vec<u8> {
    let layers = layers();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let (hex, text) = Saved::config(&diff_ids, "amd64");
    let names: Vec<_> = diff_ids.iter().map(|digest| format!("{}.tar", digest.hex())).collect();
    let manifest = json!([{"Config": format!("{hex}.json"), "RepoTags": ["a:1"], "Layers": names}]).to_string();
    let mut files = vec![
        (names[0].clone(), layers[0].clone()),
        (names[1].clone(), layers[1].clone()),
        (format!("{hex}.json"), text.into_bytes()),
        ("manifest.json".to_owned(), manifest.into_bytes()),
        ("repositories".to_owned(), b"{}".to_vec()),
    ];
    let mut archive = Archive::new();
    let mut seed = seed;
    while !files.is_empty() {
        let (name, data) = files.remove(seed % files.len());
        seed /= files.len() + 1;
        archive = archive.file(format!("{prefix}{name}"), data);
    }
    archive.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn order_and_spelling_change_nothing(seed in 0..120_usize, prefix in "(/|\\./|a/\\.\\./)?") {
        check(&shuffled(seed, &prefix), None);
    }
}

#[test]
fn of_images_for_several_platforms_the_hosts_is_taken() {
    let layers = layers();
    let diff_ids = [Digest::of(&layers[0])];
    let mut saved = Saved::new();
    saved.archive = Archive::new().file("layer.tar", &layers[0]);
    for architecture in ["arm64", "amd64"] {
        let (hex, text) = Saved::config(&diff_ids, architecture);
        saved.archive = saved.archive.file(format!("{hex}.json"), text);
        saved.manifest.push(json!({"Config": format!("{hex}.json"), "RepoTags": null, "Layers": ["layer.tar"]}));
    }
    // The same one again, under another name.
    saved.manifest.push(saved.manifest[1].clone());
    saved.manifest[2]["RepoTags"] = json!(["a:1", "docker.io/b/c:2"]);
    let (hex, _) = Saved::config(&diff_ids, "amd64");
    let (other_hex, _) = Saved::config(&diff_ids, "arm64");
    let data = saved.finish();
    for reference in [None, Some("a:1"), Some("a:1"), Some("b/c:2"), Some("2"), Some(&*format!("sha256:{hex}"))] {
        assert_eq!(image(&data, reference).unwrap().digest.unwrap().hex(), hex, "{reference:?}");
    }
    let message = image(&data, Some(&format!("sha256:{other_hex}"))).unwrap_err().to_string();
    assert!(message.contains("(linux/arm64)") && message.contains("linux/amd64"), "{message}");
}

#[test]
fn an_image_may_have_no_layers() {
    for (layers, rootfs) in [(json!([]), json!({"type": "layers", "diff_ids": null})), (json!(null), json!(null))] {
        let mut saved = Saved::new();
        let config = json!({"os": "", "architecture": null, "rootfs": rootfs}).to_string();
        saved.archive = Archive::new().file("config", config);
        saved.manifest = vec![json!({"Config": "config", "RepoTags": [], "Layers": layers})];
        let data = saved.finish();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("saved.tar"), data).unwrap();
        let source = ImageSource::open(
            &directory.path().join("saved.tar"),
            directory.path(),
            Limits::default(),
            &Cancel::default(),
        );
        assert!(source.unwrap().image(&Platform::host(), None).unwrap().layers.is_empty());
    }
}

/// What `docker save` writes is that when it was unpacked, too.
#[test]
fn a_directory_of_it_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("saved.tar");
    std::fs::write(&archive, shuffled(0, "")).unwrap();
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let tar = std::process::Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&root).status().unwrap();
    assert!(tar.success());
    let source = ImageSource::open(&root, directory.path(), Limits::default(), &Cancel::default()).unwrap();
    assert!(matches!(source, ImageSource::Docker(_)));
    let image = source.image(&"linux/amd64".parse().unwrap(), Some("a")).err().map(|error| error.to_string());
    assert!(image.unwrap().contains("`a:1`"));
    for layer in source.image(&"linux/amd64".parse().unwrap(), Some("a:1")).unwrap().layers {
        let mut data = Vec::new();
        layer.open().unwrap().1.read_to_end(&mut data).unwrap();
        assert_eq!(layer.digests.diff_id, Some(Digest::of(&data)));
    }
}

#[test]
fn what_is_wrong_is_named() {
    let layers = layers();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
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
    let words = message(saved(&format!("{hex}.json"), &text, &["a", ""]));
    assert!(words.contains("no name for layer 2"), "{words}");
    // Names that lead elsewhere lead nowhere.
    let image = saved(&format!("{hex}.json"), &text, &["../../etc/passwd", "/etc/passwd"]).unwrap();
    for layer in &image.layers {
        assert!(matches!(layer.open(), Err(OciError::Read { .. })));
    }
}
