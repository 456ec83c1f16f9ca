use bellows_block::Digest;

use super::*;

fn layer(name: &str, bytes: u64) -> LayerConfig {
    LayerConfig { path: name.into(), digest: Digest::of(name.as_bytes()), bytes }
}

fn image() -> ImageConfig {
    let layers = [layer("a", 8192), layer("b", 4096), layer("c", 12288)];
    let flat = FlatConfig {
        path: "flat".into(),
        digest: Digest::of(b"flat"),
        bytes: 4096,
        starts: vec![2 << 20, 4 << 20, 6 << 20],
    };
    ImageConfig { flat: Some(flat), ..ImageConfig::new("python".parse().unwrap(), layers) }
}

/// Layers with a fix-up on top.
fn stacked(id: ImageId, layers: usize) -> ImageConfig {
    let below = (0..layers).map(|number| layer(&number.to_string(), 4096));
    ImageConfig { fixup: Some(layer("fixup", 4096)), ..ImageConfig::new(id, below) }
}

#[test]
fn a_fixup_is_on_top_of_layers_but_not_in_a_flat_image() {
    let stacked = stacked("x".parse().unwrap(), 127);
    stacked.check("i").unwrap();
    assert_eq!((stacked.disks(), stacked.stack().last()), (128, stacked.fixup.as_ref()));
    let both = ImageConfig { fixup: Some(layer("fixup", 4096)), ..image() };
    both.check("i").unwrap();
    assert_eq!((both.disks(), both.flat_image().unwrap().layers.len()), (1, 3));
    assert_eq!(serde_json::from_value::<ImageConfig>(serde_json::to_value(&both).unwrap()).unwrap(), both);
}

#[test]
fn an_image_survives_json() {
    let profile = serde_json::json!({ Digest::of(b"a").to_string(): [[0, 1], [7, 2]] });
    let profile = serde_json::from_value(profile).unwrap();
    let image = image().shape(Shape::Flat).transport(Transport::Pmem).profile(profile);
    image.check("images[0]").unwrap();
    let json = serde_json::to_value(&image).unwrap();
    assert_eq!((&json["id"], &json["shape"]), (&"python".into(), &"flat".into()));
    assert_eq!(serde_json::from_value::<ImageConfig>(json).unwrap(), image);
    let least = serde_json::json!({ "id": "x", "layers": [] });
    let least: ImageConfig = serde_json::from_value(least).unwrap();
    assert_eq!((least.flat, least.shape, least.transport, least.profile), (None, None, Transport::Blk, None));
}

#[test]
fn names_have_one_spelling_everywhere() {
    for shape in [Shape::Layers, Shape::Flat] {
        assert_eq!(shape.to_string().parse(), Ok(shape));
        assert_eq!(serde_json::to_value(shape).unwrap(), shape.to_string());
    }
    for transport in [Transport::Blk, Transport::Pmem] {
        assert_eq!(transport.to_string().parse(), Ok(transport));
        assert_eq!(serde_json::to_value(transport).unwrap(), transport.to_string());
    }
    assert!("scsi".parse::<Transport>().unwrap_err().to_string().contains("\"scsi\""));
    assert!("round".parse::<Shape>().unwrap_err().to_string().contains("\"round\""));
    let bad = serde_json::json!({ "id": "../x", "layers": [] });
    assert!(serde_json::from_value::<ImageConfig>(bad).unwrap_err().to_string().contains("../x"));
}

#[test]
fn an_image_with_metadata_begins_flat() {
    assert_eq!((image().first_shape(), image().disks()), (Shape::Flat, 1));
    let stacked = image().shape(Shape::Layers);
    assert_eq!((stacked.first_shape(), stacked.disks()), (Shape::Layers, 3));
    let without = ImageConfig { flat: None, ..image() };
    assert_eq!(without.first_shape(), Shape::Layers);
    let flat = image().flat_image().unwrap();
    assert_eq!((flat.layers[2].0, flat.layers[2].1.path.as_path()), (6 << 20, std::path::Path::new("c")));
}

#[test]
fn an_error_names_a_bad_value() {
    type Change = fn(&mut ImageConfig);
    let table: &[(Change, &str, &str)] = &[
        (|i| i.layers.clear(), "i.layers", "0 entries"),
        (|i| i.layers = vec![layer("a", 1); 1025], "i.layers", "1025 entries"),
        (|i| *i = ImageConfig::new(i.id.clone(), vec![layer("a", 1); 129]), "i.layers", "129 entries"),
        (|i| *i = stacked(i.id.clone(), 128), "i.fixup", "on top of 128 entries"),
        (|i| i.fixup = Some(layer("", 1)), "i.fixup.path", "empty"),
        (|i| i.fixup = Some(layer("a", 1)), "i.fixup.digest", "sha256:"),
        (|i| i.layers[1].path = "".into(), "i.layers[1].path", "empty"),
        (|i| i.layers[2].digest = Digest::of(b"a"), "i.layers[2].digest", "sha256:"),
        (|i| (i.flat, i.shape) = (None, Some(Shape::Flat)), "i.shape", "flat"),
        (|i| i.flat.as_mut().unwrap().path = "".into(), "i.flat.path", "empty"),
        (|i| i.flat.as_mut().unwrap().starts.truncate(2), "i.flat.starts", "2 entries"),
        (|i| i.flat.as_mut().unwrap().starts[0] = 0, "i.flat.starts[0]", "0"),
        (|i| i.flat.as_mut().unwrap().starts[1] += 512, "i.flat.starts[1]", "4194816"),
        (|i| i.flat.as_mut().unwrap().starts[1] = (2 << 20) + 4096, "i.flat.starts[1]", "2101248"),
        (|i| i.flat.as_mut().unwrap().starts[2] = u64::MAX - 4095, "i.flat.starts[2]", "18446744073709547520"),
    ];
    for (index, (change, field, value)) in table.iter().enumerate() {
        let mut image = image();
        change(&mut image);
        let error = image.check("i").expect_err(&format!("row {index} ({field})"));
        assert_eq!(error.field, *field, "row {index}: {error}");
        assert!(error.value.contains(value), "row {index}: {error}");
    }
}
