use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bellows_disk::Disk;
use vm_memory::VolatileSlice;

use super::*;
use crate::flat::FlatImage;
use crate::page_cache::{evict, resident};
use crate::stored_file::StoredFile;
use crate::{FlatDisk, ImageMapping, LayerDisk};

const MIB: u64 = 1 << 20;

fn directory() -> tempfile::TempDir {
    // Next to the sources: /tmp may be a tmpfs, whose pages stay in memory.
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
}

fn layer(directory: &Path, name: &str, bytes: u64) -> StoredFile {
    let path = directory.join(name);
    fs::write(&path, vec![1; bytes as usize]).unwrap();
    StoredFile { digest: Digest::of(name.as_bytes()), path, bytes }
}

fn pages(pairs: &[(u64, u64)]) -> PageRanges {
    pairs.to_vec().try_into().unwrap()
}

fn flat(directory: &Path) -> FlatImage {
    let metadata = layer(directory, "metadata", 8192);
    let layers = vec![(2 * MIB, layer(directory, "first", 3 * MIB)), (6 * MIB, layer(directory, "second", 8704))];
    FlatImage { digest: metadata.digest, path: metadata.path, bytes: metadata.bytes, layers }
}

#[test]
fn a_disk_knows_what_was_read_of_it() {
    let directory = directory();
    let layer = layer(directory.path(), "layer", MIB);
    let read = |disk: &dyn Disk, offset, bytes: usize| {
        let mut data = vec![0; bytes];
        disk.read_at(offset, &[VolatileSlice::from(&mut data[..])])
    };
    let disk = LayerDisk::open(&layer).unwrap();
    read(&disk, 0, 512).unwrap();
    let disk = disk.recorded();
    assert!(disk.reads().read_set().is_empty(), "what was read before is not recorded");
    for (offset, bytes) in [(512, 512), (4096 * 7, 8192), (4096 * 9 - 512, 1024), (MIB - 512, 512)] {
        read(&disk, offset, bytes).unwrap();
    }
    read(&disk, MIB - 4096 * 4, 4096 * 8).unwrap_err();
    let touched = disk.reads().read_set();
    assert_eq!(touched.pages(&layer.digest), Some(&pages(&[(0, 1), (7, 3), (255, 1)])));
    assert_eq!((touched.files().count(), touched.bytes()), (1, 5 * 4096));
}

#[test]
fn a_flat_disk_knows_the_files_that_were_read() {
    let directory = directory();
    let image = flat(directory.path());
    let disk = FlatDisk::open(&image).unwrap().recorded();
    let mut data = vec![0; 8 << 20];
    // Over the end of the first layer and the gap behind it; then one sector of the metadata.
    disk.read_at(5 * MIB - 4096, &[VolatileSlice::from(&mut data[..MIB as usize + 4096 + 512])]).unwrap();
    disk.read_at(4096, &[VolatileSlice::from(&mut data[..512])]).unwrap();
    let touched = disk.reads().read_set();
    let expected = [(image.digest, (1, 1)), (image.layers[0].1.digest, (767, 1)), (image.layers[1].1.digest, (0, 1))];
    for (digest, range) in expected {
        assert_eq!(touched.pages(&digest), Some(&pages(&[range])), "{digest}");
    }
}

#[test]
fn a_mapping_knows_what_was_touched() {
    let directory = directory();
    let image = flat(directory.path());
    let mapping = ImageMapping::flat(&image).unwrap();
    assert!(mapping.read_set().unwrap().is_empty());
    // Cold, and without reading ahead, so that there are no neighbours to map.
    let first = &image.layers[0].1;
    evict(&first.path).unwrap();
    let start = mapping.address() + 2 * MIB;
    // SAFETY: the range is the mapping's, and the advice changes nothing in it.
    let advised = unsafe { libc::madvise(start as *mut libc::c_void, 3 << 20, libc::MADV_RANDOM) };
    assert_eq!(advised, 0);
    let mut data = [0; 8192];
    for page in [3, 200] {
        let to = VolatileSlice::from(&mut data[..]);
        bellows_disk::io::copy_mapping(start, page * PAGE_SIZE, &[to]).unwrap();
    }
    let touched = mapping.read_set().unwrap();
    assert_eq!(touched.pages(&first.digest), Some(&pages(&[(3, 2), (200, 2)])));
    assert_eq!(touched.files().count(), 1);
}

#[test]
fn exactly_the_pages_of_a_profile_are_read_ahead() {
    let directory = directory();
    let layers = ["a", "b", "c"].map(|name| layer(directory.path(), name, 2 * MIB + 512));
    layers.iter().for_each(|layer| evict(&layer.path).unwrap());
    // One page, more than is asked for at once, and the end.
    let wanted = pages(&[(3, 1), (100, 300), (512, 1)]);
    let mut read_set = ReadSet::default();
    read_set.insert(layers[0].digest, wanted.clone());
    // Beyond the end of the file, and of a file that is not there.
    read_set.insert(layers[1].digest, pages(&[(0, 2), (511, 1 << 40)]));
    read_set.insert(Digest::of(b"other"), pages(&[(0, 5)]));
    let mut files = layers.to_vec();
    files.push(StoredFile { digest: Digest::of(b"other"), path: directory.path().join("other"), bytes: 4096 });
    Prefetch::start(files, read_set).unwrap().finish();

    // What was asked for may still be on its way from the disk.
    let arrived = |layer: &StoredFile, expected: &PageRanges| {
        let limit = Instant::now() + Duration::from_secs(60);
        while resident(&layer.path).unwrap().bytes() < expected.bytes() && Instant::now() < limit {
            std::thread::yield_now();
        }
        assert_eq!(&resident(&layer.path).unwrap(), expected, "{}", layer.path.display());
    };
    arrived(&layers[0], &wanted);
    arrived(&layers[1], &pages(&[(0, 2), (511, 2)]));
    assert!(resident(&layers[2].path).unwrap().is_empty());
}

#[test]
fn a_prefetch_that_nobody_wants_any_more_ends() {
    let directory = directory();
    let path = directory.path().join("layer");
    // A hole, of which more could be read than anybody has time or memory for.
    let layer = StoredFile { digest: Digest::of(b"layer"), path, bytes: 8 << 40 };
    fs::File::create(&layer.path).unwrap().set_len(layer.bytes).unwrap();
    let mut read_set = ReadSet::default();
    read_set.insert(layer.digest, pages(&[(0, (1 << 52) - 1)]));
    drop(Prefetch::start(vec![layer], read_set).unwrap());
}
