use serde_json::{Value, json};

use super::*;
use crate::compression::Compression;
use crate::oci::OciLayout;
use crate::testing::{Archive, LayoutBuilder};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Documents of an image with one layer, to be changed before they are written.
struct Image {
    config: Value,
    manifest: Value,
    config_type: &'static str,
}

impl Image {
    fn new(builder: &LayoutBuilder, name: &str) -> Self {
        let archive = Archive::new().file(name, name).finish();
        let digest = builder.blob(&archive);
        let layer = json!({"mediaType": LAYER, "digest": digest, "size": archive.len()});
        Self {
            config: json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest]}}),
            manifest: json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer]}),
            config_type: CONFIG,
        }
    }

    /// With `change` made to its manifest, in which null takes a field away.
    fn manifest(mut self, change: Value) -> Self {
        merge(&mut self.manifest, change);
        self
    }

    fn config(mut self, change: Value) -> Self {
        merge(&mut self.config, change);
        self
    }

    /// Writes it; its descriptor.
    fn write(mut self, builder: &LayoutBuilder) -> Value {
        if self.manifest.get("config").is_none() {
            self.manifest["config"] = builder.document(&self.config, self.config_type);
        }
        builder.document(&self.manifest, MANIFEST)
    }
}

fn merge(into: &mut Value, change: Value) {
    for (key, value) in change.as_object().unwrap() {
        into[key] = value.clone();
    }
}

fn with(mut descriptor: Value, change: Value) -> Value {
    merge(&mut descriptor, change);
    descriptor
}

fn find(builder: &LayoutBuilder, manifests: &[Value], reference: Option<&str>) -> Result<SourceImage, OciError> {
    builder.index(manifests);
    OciLayout::open(builder.path()).unwrap().image(&"linux/amd64".parse().unwrap(), reference)
}

fn found(builder: &LayoutBuilder, manifests: &[Value], expected: &Value) -> SourceImage {
    let image = find(builder, manifests, None).unwrap();
    assert_eq!(json!(image.digest), expected["digest"]);
    image
}

fn alone(builder: &LayoutBuilder, image: &Value) -> SourceImage {
    found(builder, std::slice::from_ref(image), image)
}

fn refused(builder: &LayoutBuilder, manifests: &[Value], words: &[&str]) {
    let error = find(builder, manifests, None).unwrap_err();
    let message = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
    assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
}

#[test]
fn media_types_are_hints() {
    let builder = LayoutBuilder::new();
    let types = [
        json!("application/octet-stream"),
        json!("text/html"),
        json!(""),
        Value::Null,
        json!("application/vnd.oci.image.config.v1+json"),
    ];
    for kind in types {
        let mut image = Image::new(&builder, "x");
        image.manifest["layers"][0]["mediaType"] = kind.clone();
        image.manifest["config"] = with(builder.document(&image.config, CONFIG), json!({"mediaType": kind}));
        let image = image.manifest(json!({"mediaType": Value::Null, "schemaVersion": Value::Null})).write(&builder);
        for described in [json!({"mediaType": kind}), json!({"mediaType": "application/vnd.oci.image.index.v1+json"})] {
            let layers = found(&builder, &[with(image.clone(), described)], &image).layers;
            assert_eq!(layers.len(), 1);
            layers[0].open().unwrap();
        }
    }
    // Layers that were not to be given away, and are there.
    let mut image = Image::new(&builder, "foreign");
    image.manifest["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    let image = image.write(&builder);
    alone(&builder, &image).layers[0].open().unwrap();
}

#[test]
fn a_document_is_one_thing() {
    let builder = LayoutBuilder::new();
    let (index, docker_index) =
        ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json");
    for change in [
        json!({"manifests": []}),
        json!({"manifests": [], "layers": Value::Null}),
        json!({"manifests": [], "mediaType": index}),
        json!({"mediaType": index}),
        json!({"mediaType": docker_index}),
    ] {
        let image = Image::new(&builder, "x").manifest(change).write(&builder);
        refused(
            &builder,
            std::slice::from_ref(&image),
            &["a manifest and an index at once", image["digest"].as_str().unwrap().split_at(7).1],
        );
    }
    let list = builder.document(&json!({"schemaVersion": 2, "mediaType": MANIFEST, "manifests": []}), index);
    refused(&builder, &[list], &["a manifest and an index at once"]);
    let first = builder.document(&json!({"schemaVersion": 1, "fsLayers": [], "history": []}), MANIFEST);
    refused(&builder, &[first], &["schemaVersion is `1`, expected `2`"]);
    let artifact = builder.document(&json!({"artifactType": "x/y", "blobs": []}), MANIFEST);
    refused(&builder, &[artifact], &["neither a manifest nor an index", "`layers`"]);
    refused(
        &builder,
        &[Image::new(&builder, "x").manifest(json!({"config": Value::Null})).write(&builder)],
        &["without `config`"],
    );
}

#[test]
fn lists_may_be_null_or_missing() {
    let builder = LayoutBuilder::new();
    for (layers, rootfs) in [
        (json!([]), json!({"type": "layers", "diff_ids": []})),
        (Value::Null, json!({"type": "layers", "diff_ids": Value::Null})),
        (Value::Null, json!({"type": ""})),
        (json!([]), Value::Null),
    ] {
        let image = Image::new(&builder, "x")
            .manifest(json!({"layers": layers}))
            .config(json!({"rootfs": rootfs}))
            .write(&builder);
        assert!(alone(&builder, &image).layers.is_empty());
    }
    let running = json!({"Entrypoint": Value::Null, "Cmd": "a word", "Env": Value::Null, "User": Value::Null, "Volumes": Value::Null});
    let image = Image::new(&builder, "x").config(json!({"config": running, "history": Value::Null})).write(&builder);
    assert_eq!(alone(&builder, &image).config.argv(&[]), ["a word"]);
    let nulls = json!({"platform": Value::Null, "annotations": Value::Null, "artifactType": Value::Null});
    found(&builder, &[with(image.clone(), nulls)], &image);
    refused(
        &builder,
        &[Image::new(&builder, "x").manifest(json!({"layers": Value::Null})).write(&builder)],
        &["0 layers but 1 diff_ids"],
    );
    let rootfs = json!({"rootfs": {"type": "layers", "diff_ids": Value::Null}});
    refused(&builder, &[Image::new(&builder, "x").config(rootfs).write(&builder)], &["1 layers but 0 diff_ids"]);
    refused(&builder, &[], &["it has: nothing"]);
}

#[test]
fn a_platform_that_is_left_out_is_the_hosts() {
    if Platform::host() != "linux/amd64".parse().unwrap() {
        return;
    }
    let builder = LayoutBuilder::new();
    for missing in [json!(""), Value::Null] {
        let image = Image::new(&builder, "x").config(json!({"architecture": missing, "os": missing})).write(&builder);
        alone(&builder, &image);
        found(&builder, &[with(image.clone(), json!({"platform": {"os": missing, "architecture": missing}}))], &image);
    }
}

#[test]
fn what_is_attached_to_an_image_does_not_get_in_its_way() {
    let builder = LayoutBuilder::new();
    let image = Image::new(&builder, "image").write(&builder);
    let unknown = json!({"platform": {"os": "unknown", "architecture": "unknown"}});
    let attestation = Image::new(&builder, "attestation").write(&builder);
    let attested = json!({"annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
    // As cosign keeps it: it has the configuration of an image.
    let mut signature = Image::new(&builder, "signature").config(json!({"os": "", "architecture": ""}));
    signature.manifest["layers"][0]["mediaType"] = json!("application/vnd.dev.cosign.simplesigning.v1+json");
    let signature = signature.write(&builder);
    let typed =
        Image::new(&builder, "typed").manifest(json!({"artifactType": "application/spdx+json"})).write(&builder);
    let subject = json!({"subject": {"digest": image["digest"], "size": image["size"]}});
    let referring = Image::new(&builder, "referring").manifest(subject).write(&builder);
    let mut empty = Image::new(&builder, "empty");
    empty.config_type = "application/vnd.oci.empty.v1+json";
    empty.config = json!({});
    let empty = empty.write(&builder);
    let chart = Image::new(&builder, "chart").config(json!({"rootfs": Value::Null, "name": "chart"})).write(&builder);
    let other = builder.document(&json!(["something", "else"]), "application/json");
    let beside = [
        with(attestation.clone(), unknown),
        with(attestation, attested),
        signature.clone(),
        typed.clone(),
        with(Image::new(&builder, "stated").write(&builder), json!({"artifactType": "application/vnd.example+json"})),
        referring.clone(),
        empty.clone(),
        chart,
        other,
    ];
    for attached in &beside {
        found(&builder, &[attached.clone(), image.clone()], &image);
        found(&builder, &[image.clone(), attached.clone()], &image);
    }
    let mut all = beside.to_vec();
    all.push(image.clone());
    found(&builder, &all, &image);
    let nested =
        builder.document(&json!({"schemaVersion": 2, "manifests": all}), "application/vnd.oci.image.index.v1+json");
    found(&builder, &[signature.clone(), nested], &image);
    // Alone they are told from images, or taken for the images that they may be.
    refused(&builder, &[typed], &["application/spdx+json", "no image for linux/amd64"]);
    refused(&builder, &[empty], &["application/vnd.oci.empty.v1+json"]);
    alone(&builder, &referring);
    refused(&builder, &[referring, signature], &["several images"]);
}

#[test]
fn the_best_image_that_is_there_is_taken() {
    let builder = LayoutBuilder::new();
    let variant = |name: &str, variant: Value| {
        let image = Image::new(&builder, name).write(&builder);
        with(image, json!({"platform": {"os": "linux", "architecture": "amd64", "variant": variant}}))
    };
    let usual = variant("usual", Value::Null);
    let second = variant("second", json!("v2"));
    let impossible = variant("impossible", json!("v9"));
    let special = with(
        Image::new(&builder, "special").write(&builder),
        json!({"platform": {"os": "linux", "architecture": "amd64", "variant": "v2", "os.features": ["special"]}}),
    );
    let all = [usual.clone(), impossible.clone(), second.clone(), special.clone()];
    let image = |wanted: &str| {
        builder.index(&all);
        OciLayout::open(builder.path()).unwrap().image(&wanted.parse().unwrap(), None).map(|image| json!(image.digest))
    };
    assert_eq!(image("linux/amd64/v1").unwrap(), usual["digest"]);
    assert_eq!(image("linux/amd64/v3").unwrap(), second["digest"]);
    refused(&builder, std::slice::from_ref(&impossible), &["linux/amd64/v9"]);
    // What a registry has for others need not have been saved.
    let gone = json!({"digest": crate::Digest::of(b"gone")});
    found(&builder, &[with(second.clone(), gone.clone()), usual.clone()], &usual);
    found(&builder, &[with(impossible, gone.clone()), usual.clone()], &usual);
    refused(&builder, &[with(usual.clone(), gone)], &[&crate::Digest::of(b"gone").hex(), "No such file"]);
    // But damage is not passed over.
    std::fs::write(builder.blob_path(&serde_json::from_value(usual["digest"].clone()).unwrap()), "{}").unwrap();
    refused(&builder, &[usual, Image::new(&builder, "other").write(&builder)], &["has 2 bytes"]);
}

#[test]
fn several_images_are_told_apart_by_names_and_digests() {
    let builder = LayoutBuilder::new();
    let [a, b] = ["a", "b"].map(|name| {
        let names = json!({"io.containerd.image.name": format!("docker.io/library/app-{name}:latest"),
            "org.opencontainers.image.ref.name": "latest"});
        with(Image::new(&builder, name).write(&builder), json!({"annotations": names}))
    });
    let all = [a.clone(), b.clone()];
    let digest = |reference: &str| find(&builder, &all, Some(reference)).map(|image| json!(image.digest));
    for reference in ["app-b:latest", "app-b", "docker.io/library/app-b:latest", b["digest"].as_str().unwrap()] {
        assert_eq!(digest(reference).unwrap(), b["digest"], "{reference}");
    }
    let names = "`docker.io/library/app-a:latest`, `docker.io/library/app-b:latest`";
    for reference in [None, Some("latest")] {
        let message = find(&builder, &all, reference).unwrap_err().to_string();
        assert!(message.contains("several images") && message.contains(names), "{message}");
    }
    let message = digest("app-c").unwrap_err().to_string();
    assert!(message.contains("called `app-c`") && message.contains(names), "{message}");
    // Names that say nothing are not all there is.
    let tag = json!({"annotations": {"org.opencontainers.image.ref.name": "latest"}});
    let message = find(&builder, &[with(a.clone(), tag.clone()), with(b.clone(), tag)], None).unwrap_err().to_string();
    assert!(
        message.contains(a["digest"].as_str().unwrap()) && message.contains(b["digest"].as_str().unwrap()),
        "{message}"
    );
}

#[test]
fn an_index_is_looked_through_only_so_far() {
    let mut builder = LayoutBuilder::new();
    builder.layer(&Archive::new().file("x", "x").finish(), Compression::None);
    let many: Vec<_> = (0..300)
        .map(|number| builder.document(&json!({"schemaVersion": 2, "manifests": [], "number": number}), MANIFEST))
        .collect();
    refused(&builder, &many, &["more than 256 entries"]);
}
