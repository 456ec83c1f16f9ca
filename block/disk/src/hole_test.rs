use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use proptest::prelude::*;

use super::*;

/// A file of ones, on a file system that has holes.
fn ones(bytes: usize) -> File {
    let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.write_all_at(&vec![1; bytes], 0).unwrap();
    file.sync_all().unwrap();
    file
}

fn content(file: &File, bytes: usize) -> Vec<u8> {
    let mut content = vec![0xff; bytes];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

#[test]
fn a_hole_gives_blocks_back_and_the_size_stays() {
    let file = ones(1 << 20);
    let before = file.metadata().unwrap();
    punch(&file, 64 << 10, 512 << 10).unwrap();
    let after = file.metadata().unwrap();
    assert_eq!(after.len(), before.len());
    assert!(after.blocks() + 512 <= before.blocks(), "{} of {}", after.blocks(), before.blocks());
    let content = content(&file, 1 << 20);
    assert!(content[64 << 10..576 << 10].iter().all(|byte| *byte == 0));
    assert!(content[..64 << 10].iter().chain(&content[576 << 10..]).all(|byte| *byte == 1));
    // Beyond the end, and nothing at all.
    punch(&file, 1 << 20, 4096).unwrap();
    punch(&file, 5, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
}

#[test]
fn ranges_that_no_file_has_are_refused() {
    let file = ones(4096);
    for (offset, bytes) in [(u64::MAX, 1), (0, u64::MAX), (i64::MAX as u64, 4096)] {
        assert!(punch(&file, offset, bytes).is_err(), "{offset} {bytes}");
        assert!(zero(&file, offset, bytes).is_err(), "{offset} {bytes}");
    }
    assert_eq!(content(&file, 4096), [1; 4096]);
}

proptest! {
    /// However the writes are cut, all bytes of the range are written once, in order.
    #[test]
    fn zeros_cover_the_range_exactly(offset in 0_u64..1 << 40, bytes in 0_u64..2 << 20) {
        let mut next = offset;
        write_zeros(offset, bytes, |at, buffers| {
            assert_eq!(at, next);
            for buffer in buffers {
                let mut copy = [1_u8; ZEROS];
                assert_eq!(buffer.copy_to(&mut copy), buffer.len());
                assert!(!buffer.is_empty() && copy[..buffer.len()] == [0; ZEROS][..buffer.len()]);
                next += buffer.len() as u64;
            }
            Ok(())
        }).unwrap();
        prop_assert_eq!(next, offset + bytes);
    }
}
