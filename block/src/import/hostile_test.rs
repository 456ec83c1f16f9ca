//! Archives that are wrong in ways nobody thought of.

use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::testing::{Archive, Entry, check_with_fsck, compress};

/// One of everything, so that every field has a place to be wrong in; `old_sparse` for a sparse file of GNU's old format
/// that has no map.
fn archive(old_sparse: bool) -> Vec<u8> {
    let sparse = Entry { data: vec![1; 700], ..Entry::new("sparse", EntryType::Regular) }
        .pax("GNU.sparse.size", "9000")
        .pax("GNU.sparse.map", "0,200,5000,500");
    let mapped =
        Entry { data: [b"2\n0\n100\n6000\n50\n".to_vec(), vec![0; 496], vec![7; 150]].concat(), ..sparse.clone() };
    let mapped = Entry { pax: Vec::new(), name: b"mapped".to_vec(), ..mapped };
    let mapped = mapped.pax("GNU.sparse.major", "1").pax("GNU.sparse.realsize", "8000").pax("GNU.sparse.name", "real");
    let attributes = Entry::new("d/", EntryType::Directory)
        .pax("SCHILY.xattr.user.a", "value")
        .pax("SCHILY.acl.access", "user::rwx,user:5:r--,group::r--,mask::r--,other::---")
        .pax("mtime", "1.5")
        .pax("uid", "70000");
    let archive = Archive::new()
        .add(attributes)
        .file("d/file", vec![3; 1000])
        .file([b"long/".repeat(40), b"x".to_vec()].concat(), "x")
        .hard_link("link", "d/file")
        .symlink("symlink", b"t/".repeat(100))
        .device("char", EntryType::Char, 5, 1)
        .add(Entry::new("fifo", EntryType::Fifo))
        .add(sparse)
        .add(mapped)
        .file("d/.wh.gone", "")
        .file("d/.wh..wh..opq", "");
    let old = Entry { data: vec![9; 512], ..Entry::new("old-sparse", EntryType::GNUSparse) };
    if old_sparse { archive.add(old).finish() } else { archive.finish() }
}

/// Whatever comes in, nothing panics, and what is imported is a sound image of limited size.
fn survives(blob: &[u8]) -> Result<(), TestCaseError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let limits = Limits { unpacked_bytes: 8 << 20, entries: 1000, metadata_bytes: 1 << 20, ..Limits::default() };
    if import_layer(blob, Digests::default(), limits, file.as_file()).is_ok() {
        check_with_fsck(file.path());
    }
    prop_assert!(file.as_file().metadata().unwrap().len() <= 10 << 20);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The checksum is right all the same: it keeps accidents out, not authors.
    #[test]
    fn changed_blocks_are_survived(
        old_sparse in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..512_usize, any::<u8>()), 1..8)) {
        let mut data = archive(old_sparse);
        let blocks = data.len() / 512;
        for (block, offset, value) in changes {
            let block = &mut data[block.index(blocks) * 512..][..512];
            block[offset] = value;
            if block[257..262] == *b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        survives(&data)?;
    }

    #[test]
    fn changed_compressed_bytes_are_survived(
        gzip in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let compression = if gzip { crate::compression::Compression::Gzip } else { crate::compression::Compression::Zstd };
        let mut blob = compress(&archive(false), compression);
        for (index, value) in changes {
            let at = index.index(blob.len());
            blob[at] = value;
        }
        survives(&blob)?;
    }

    #[test]
    fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..3000)) {
        survives(&data)?;
    }
}

#[test]
fn unchanged_it_is_imported() {
    survives(&archive(false)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let import = |data: &[u8]| import_layer(data, Digests::default(), Limits::default(), file.as_file());
    let error = import(&archive(true)).unwrap_err();
    assert!(error.to_string().contains("`old-sparse` has an invalid map of holes"), "{error}");
    import(&archive(false)).unwrap();
}
