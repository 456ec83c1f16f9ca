use std::fs::{self, File};

use serde_json::json;

use super::*;
use crate::Digest;
use crate::compression::Compression;
use crate::oci::spec;
use crate::testing::{Archive, LayoutBuilder};

fn host() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn layer(builder: &mut LayoutBuilder, compression: Compression, name: &str) -> Digest {
    builder.layer(&Archive::new().file(name, name).finish(), compression)
}

fn image(builder: &LayoutBuilder, reference: Option<&str>) -> Result<SourceImage, OciError> {
    OciLayout::open(builder.path())?.image(&host(), reference)
}

fn refused(builder: &LayoutBuilder) -> String {
    image(builder, None).expect_err("the layout is wrong").to_string()
}

#[test]
fn layers_and_configuration_of_an_image() {
    let mut builder = LayoutBuilder::new();
    let blobs: Vec<_> = [Compression::None, Compression::Gzip, Compression::Zstd]
        .into_iter()
        .map(|compression| layer(&mut builder, compression, &format!("{compression:?}")))
        .collect();
    let builder = builder.finish();
    let image = image(&builder, None).unwrap();
    assert_eq!(image.layers.iter().map(|layer| layer.digests.blob.unwrap()).collect::<Vec<_>>(), blobs);
    assert_eq!(image.config.argv(&[]), ["sh"]);
    assert_eq!(image.config.argv(&["ls".to_owned()]), ["ls"]);
    assert_eq!(
        (image.config.env.join(","), image.config.working_dir.as_str(), image.config.user.as_str()),
        ("A=1".to_owned(), "/w", "7:8")
    );
}

#[test]
fn the_hosts_platform_is_chosen() {
    let mut builder = LayoutBuilder::new();
    layer(&mut builder, Compression::None, "x");
    let platform = |mut descriptor: serde_json::Value, architecture: &str| {
        let variant = (architecture == "arm64").then_some("v8");
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
        descriptor
    };
    let (amd64, arm64) = (builder.manifest("amd64"), builder.manifest("arm64"));
    let list = json!({"schemaVersion": 2, "manifests": [
        platform(arm64.clone(), "arm64"), platform(amd64.clone(), "amd64"), platform(arm64.clone(), "unknown")]});
    let nested = builder.document(&list, "application/vnd.docker.distribution.manifest.list.v2+json");
    builder.index(&[nested]);
    assert_eq!(json!(image(&builder, None).unwrap().digest.unwrap()), amd64["digest"]);

    builder.index(&[platform(arm64.clone(), "arm64")]);
    let message = refused(&builder);
    assert!(
        message.contains("index.json") && message.contains("linux/amd64") && message.contains("linux/arm64"),
        "{message}"
    );

    // Where the index does not say, the configuration does.
    builder.index(&[arm64]);
    let message = refused(&builder);
    assert!(message.contains("linux/arm64") && message.contains("linux/amd64"), "{message}");
}

#[test]
fn one_of_several_images_is_named() {
    let mut builder = LayoutBuilder::new();
    layer(&mut builder, Compression::None, "x");
    let mut first = builder.manifest("amd64");
    first["annotations"] = json!({"org.opencontainers.image.ref.name": "one"});
    layer(&mut builder, Compression::None, "y");
    let mut second = builder.manifest("amd64");
    second["annotations"] = json!({"org.opencontainers.image.ref.name": "two"});
    builder.index(&[first, second.clone()]);
    let message = refused(&builder);
    assert!(message.contains("`one`") && message.contains("`two`"), "{message}");
    assert_eq!(json!(image(&builder, Some("two")).unwrap().digest.unwrap()), second["digest"]);
    let message = image(&builder, Some("three")).unwrap_err().to_string();
    assert!(message.contains("`three`") && message.contains("`one`"), "{message}");
}

#[test]
fn what_is_wrong_is_named() {
    let good = || {
        let mut builder = LayoutBuilder::new();
        layer(&mut builder, Compression::None, "x");
        builder.finish()
    };
    let contains = |message: String, words: &[&str]| {
        assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    };

    let builder = good();
    fs::remove_file(builder.path().join("oci-layout")).unwrap();
    contains(refused(&builder), &["oci-layout"]);
    fs::write(builder.path().join("oci-layout"), r#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    contains(refused(&builder), &["oci-layout", "imageLayoutVersion", "9.0.0", "1.0.0"]);

    let builder = good();
    let index = builder.path().join("index.json");
    fs::write(&index, "{").unwrap();
    contains(refused(&builder), &["index.json", "EOF"]);
    fs::write(
        &index,
        r#"{"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:../../x", "size": 1}]}"#,
    )
    .unwrap();
    contains(refused(&builder), &["index.json", "sha256:../../x"]);
    fs::write(&index, vec![b' '; 5 << 20]).unwrap();
    contains(refused(&builder), &["index.json", "5242880", "4194304"]);
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    contains(refused(&builder), &["index.json", "not a regular file"]);

    // A manifest that is missing, has another size, or other content.
    let builder = good();
    let digest = image(&builder, None).unwrap().digest.unwrap();
    let path = builder.blob_path(&digest);
    let mut data = fs::read(&path).unwrap();
    data[3] ^= 1;
    fs::write(&path, &data).unwrap();
    let error = image(&builder, None).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    contains(format!("{error}: {source}"), &[&digest.to_string(), &Digest::of(&data).to_string()]);
    data.push(b' ');
    fs::write(&path, &data).unwrap();
    contains(refused(&builder), &[&digest.hex(), &data.len().to_string(), &(data.len() - 1).to_string()]);
    fs::remove_file(&path).unwrap();
    contains(refused(&builder), &[&digest.hex()]);

    let builder = LayoutBuilder::new();
    let list = json!({"schemaVersion": 2, "manifests": []});
    let nested = (0..6).fold(builder.document(&list, spec::INDEX), |inner, _| {
        builder.document(&json!({"schemaVersion": 2, "manifests": [inner]}), spec::INDEX)
    });
    builder.index(&[nested]);
    contains(refused(&builder), &["nest deeper"]);
}

#[test]
fn a_layer_blob_of_another_size_is_refused_before_it_is_read() {
    let mut builder = LayoutBuilder::new();
    let digest = layer(&mut builder, Compression::None, "x");
    let builder = builder.finish();
    let layer = image(&builder, None).unwrap().layers.remove(0);
    let bytes = layer.open().unwrap().0.unwrap();
    File::options().write(true).open(builder.blob_path(&digest)).unwrap().set_len(700).unwrap();
    let message = layer.open().err().unwrap().to_string();
    assert!(message.contains("700") && message.contains(&bytes.to_string()), "{message}");
}

#[test]
fn another_platform_and_its_variants() {
    let mut builder = LayoutBuilder::new();
    layer(&mut builder, Compression::None, "x");
    let arm = builder.manifest("arm");
    layer(&mut builder, Compression::None, "y");
    let arm64 = builder.manifest("arm64");
    let platform = |mut descriptor: serde_json::Value, architecture: &str, variant: &str| {
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture, "variant": variant});
        descriptor
    };
    let v6 = builder.document(&json!({"schemaVersion": 2, "manifests": []}), spec::INDEX);
    builder.index(&[
        platform(v6, "arm", "v6"),
        platform(arm.clone(), "arm", "v7"),
        platform(arm64.clone(), "arm64", "v8"),
    ]);
    let layout = OciLayout::open(builder.path()).unwrap();
    let digest = |text: &str| {
        let platform: Platform = text.parse().unwrap();
        assert_eq!(platform.to_string(), text);
        layout.image(&platform, None).map(|image| json!(image.digest))
    };
    for (wanted, expected) in
        [("linux/arm", &arm), ("linux/arm/v7", &arm), ("linux/arm64", &arm64), ("linux/arm64/v8", &arm64)]
    {
        assert_eq!(digest(wanted).unwrap(), expected["digest"], "{wanted}");
    }
    for wanted in ["linux/arm64/v7", "linux/386", "windows/arm64"] {
        let message = digest(wanted).unwrap_err().to_string();
        assert!(message.contains(wanted) && message.contains("linux/arm64/v8"), "{message}");
    }
    for bad in ["", "linux", "linux/", "/arm", "a/b/c/d", "linux/a m"] {
        let message = bad.parse::<Platform>().unwrap_err().to_string();
        assert!(message.contains(bad) && message.contains("linux/arm64"), "{message}");
    }
}
