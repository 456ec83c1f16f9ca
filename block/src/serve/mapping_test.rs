use std::fs;
use std::path::Path;

use bellows_disk::io::copy_mapping;
use vm_memory::VolatileSlice;

use super::*;
use crate::digest::Digest;

fn layer(directory: &Path, name: &str, fill: u8, bytes: u64) -> StoredFile {
    let path = directory.join(name);
    fs::write(&path, vec![fill; usize::try_from(bytes).unwrap()]).unwrap();
    StoredFile { digest: Digest::of(name.as_bytes()), path, bytes }
}

/// A flat image of two layers with gaps behind each file.
fn image(directory: &Path) -> FlatImage {
    let metadata = layer(directory, "metadata", 1, 4096);
    let layers = vec![(2 << 20, layer(directory, "first", 2, 3 << 20)), (6 << 20, layer(directory, "second", 3, 8704))];
    FlatImage { digest: metadata.digest, path: metadata.path, bytes: metadata.bytes, layers }
}

/// Reads as a guest does: with the kernel's help, which answers for pages that are not there.
fn read(mapping: &ImageMapping, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0xff; bytes];
    copy_mapping(mapping.address(), offset, &[VolatileSlice::from(&mut data[..])])?;
    Ok(data)
}

#[test]
fn files_lie_where_the_image_has_them_and_zeros_in_between() {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path());
    let mapping = ImageMapping::flat(&image).unwrap();
    assert_eq!((mapping.bytes(), mapping.address() % (2 << 20)), (8 << 20, 0));
    let whole = read(&mapping, 0, 8 << 20).unwrap();
    for (start, fill, bytes) in [(0, 1, 4096), (2 << 20, 2, 3 << 20), (6 << 20, 3, 8704)] {
        assert!(whole[start..start + bytes].iter().all(|byte| *byte == fill), "{start:#x}");
    }
    assert_eq!(whole.iter().filter(|byte| **byte == 0).count(), (8 << 20) - 4096 - (3 << 20) - 8704);
}

#[test]
fn files_are_known_by_their_place() {
    let directory = tempfile::tempdir().unwrap();
    let mapping = ImageMapping::flat(&image(directory.path())).unwrap();
    let name = |offset| mapping.file_at(offset).map(|layer| layer.path.file_name().unwrap().to_str().unwrap());
    assert_eq!((name(0), name(4095), name(4096)), (Some("metadata"), Some("metadata"), None));
    assert_eq!((name((2 << 20) - 1), name(2 << 20), name((5 << 20) - 1)), (None, Some("first"), Some("first")));
    // Up to the end of its last page.
    assert_eq!((name((6 << 20) + 12287), name((6 << 20) + 12288), name(u64::MAX)), (Some("second"), None, None));
}

#[test]
fn a_layer_is_mapped_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let layer = layer(directory.path(), "layer", 7, 5120);
    let mapping = ImageMapping::layer(&layer).unwrap();
    assert_eq!(mapping.bytes(), 2 << 20);
    let data = read(&mapping, 0, 2 << 20).unwrap();
    assert!(data[..5120].iter().all(|byte| *byte == 7) && data[5120..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_file_that_was_cut_short_is_named_and_raises_no_signal() {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path());
    let mapping = ImageMapping::flat(&image).unwrap();
    assert!(mapping.cut_short().is_none() && mapping.unreadable().is_none());
    let first = &image.layers[0].1;
    File::options().write(true).open(&first.path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!((mapping.cut_short(), mapping.unreadable()), (Some(first), Some(first)));
    assert!(read(&mapping, 3 << 20, 4096).is_err(), "a page beyond the end");
    assert!(read(&mapping, (3 << 20) - 4096, 4096).is_ok() && read(&mapping, 6 << 20, 4096).is_ok());
}

#[test]
fn a_mapped_layer_is_in_use_until_it_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let layer = layer(directory.path(), "layer", 7, 4096);
    let mapping = ImageMapping::layer(&layer).unwrap();
    let other = File::open(&layer.path).unwrap();
    assert!(other.try_lock().is_err());
    drop(mapping);
    other.lock().unwrap();
}

#[test]
fn what_can_not_be_mapped_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut image = image(directory.path());
    image.layers[1].1.bytes = 8192;
    let error = ImageMapping::flat(&image).unwrap_err().to_string();
    assert!(error.contains("second") && error.contains("8704") && error.contains("8192"), "{error}");
    image.layers[1].1.bytes = 8704;
    image.layers[1].0 = (6 << 20) + 512;
    let error = ImageMapping::flat(&image).unwrap_err().to_string();
    assert!(error.contains("cannot map") && error.contains("second"), "{error}");
    image.layers[1].0 = u64::MAX - 4096;
    let error = ImageMapping::flat(&image).unwrap_err().to_string();
    assert!(error.contains("cannot reserve"), "{error}");
}
