use super::*;

#[test]
fn damaged_blobs_are_told_apart() {
    let archive = Archive::new().file("a", vec![1; 100_000]).finish();
    let blob = compress(&archive, Compression::Gzip);
    let good = digests(&archive, &blob);
    let fail = |blob: &[u8], layer: Digests| chain(&import_blob(blob, layer).err().expect("it was imported"));

    // Damage that breaks decompression is still reported as damage.
    let mut damaged = blob.clone();
    damaged[40] ^= 0xff;
    let message = fail(&damaged, good);
    assert!(message.contains(&good.blob.unwrap().to_string()) && message.contains(&Digest::of(&damaged).to_string()));

    // A blob that was cut short before its digest was taken.
    let cut = &blob[..blob.len() - 20];
    let message = fail(cut, digests(&archive, cut));
    assert!(message.contains("cannot unpack the archive after"), "{message}");

    let other = Digests { diff_id: Some(Digest::of(b"other")), ..good };
    let message = fail(&blob, other);
    assert!(
        message.contains(&other.diff_id.unwrap().to_string()) && message.contains(&good.diff_id.unwrap().to_string()),
        "{message}"
    );

    for length in [1, 511, 513, 60_000] {
        let cut = &archive[..length];
        let message = fail(cut, digests(cut, cut));
        assert!(message.contains(&format!("after {length} bytes")), "{message}");
    }
    let message = fail(&[b'x'; 2048], digests(&[b'x'; 2048], &[b'x'; 2048]));
    assert!(message.contains("header at byte 0"), "{message}");
}

fn limited(archive: &[u8], compression: Compression, limits: Limits) -> String {
    let blob = compress(archive, compression);
    let file = tempfile::tempfile().unwrap();
    let error = import_layer(&blob[..], Digests::default(), limits, &file).expect_err("the archive was imported");
    assert!(file.metadata().unwrap().len() < 20 << 20);
    chain(&error)
}

#[test]
fn bombs_are_refused_by_name() {
    let default = Limits::default();
    let zeros = Archive::new().file("small", "x").file("bomb", vec![0; 16 << 20]).finish();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let message = limited(&zeros, compression, Limits { unpacked_bytes: 1 << 20, ratio: 100_000, ..default });
        assert!(message.contains("`bomb`") && message.contains("1048576 bytes"), "{message}");
        let message = limited(&zeros, compression, Limits { unpacked_bytes: 32 << 20, ratio: 20, ..default });
        assert!(message.contains("`bomb`") && message.contains("more than 20 times"), "{message}");
    }
    let message = limited(&zeros, Compression::None, Limits { unpacked_bytes: 1 << 20, ratio: 100_000, ..default });
    assert!(message.contains("`bomb`") && message.contains("1048576 bytes"), "{message}");

    // Stored densely this file would take an exbibyte.
    let sparse = |map: String, size: u64, data: &str| {
        let entry = Entry { data: data.into(), ..Entry::new("vast", EntryType::Regular) };
        let entry = entry.pax("GNU.sparse.size", size.to_string()).pax("GNU.sparse.map", map);
        Archive::new().add(entry).finish()
    };
    let spread: Vec<_> = (0..60_u64).map(|n| format!("{},1", n << 54)).collect();
    let message = limited(&sparse(spread.join(","), 60 << 54, &"x".repeat(60)), Compression::None, default);
    assert!(message.contains("`vast`") && message.contains("too large"), "{message}");
    let message = limited(&sparse("5,1,3,1".into(), 10, "xx"), Compression::None, default);
    assert!(message.contains("`vast`") && message.contains("map of holes"), "{message}");
    let message = limited(&sparse("5,1".into(), 10, "xx"), Compression::None, default);
    assert!(message.contains("`vast`") && message.contains("map of holes"), "{message}");
}

#[test]
fn too_many_names_are_refused_by_name() {
    let default = Limits::default();
    let many = (0..2000).fold(Archive::new(), |archive, n| archive.file(format!("f{n}"), "")).finish();
    let message = limited(&many, Compression::Gzip, Limits { entries: 1000, ..default });
    assert!(message.contains("`f1000`") && message.contains("limit of 1000 entries"), "{message}");
    let message = limited(&many, Compression::Gzip, Limits { metadata_bytes: 100_000, ..default });
    assert!(message.contains("`f37") && message.contains("limit of 100000 bytes of names"), "{message}");
    // One name of many components makes many directories.
    let deep = Archive::new().file(b"a/".repeat(2000), "").finish();
    let message = limited(&deep, Compression::None, Limits { metadata_bytes: 100_000, ..default });
    assert!(message.contains("`a/a/a/") && message.contains("limit of 100000 bytes"), "{message}");
}

#[test]
fn other_compressions_are_named() {
    for (magic, name) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh91AY", "bzip2"), (b"\x04\x22\x4d\x18aa", "lz4")] {
        let message = chain(&import_blob(magic, digests(magic, magic)).err().unwrap());
        assert!(message.contains(&format!("compressed with {name}, which is not supported")), "{message}");
    }
}

#[test]
fn damaged_data_is_named_by_its_entry() {
    let archive = Archive::new().file("first", "x").file("second", vec![7; 100_000]).finish();
    let cut = &archive[..archive.len() - 60_000];
    let message = chain(&import_blob(cut, digests(cut, cut)).err().unwrap());
    assert!(message.contains("at entry `second`"), "{message}");
}
