//! A layer's archive, plain or compressed: it becomes an image of limited size that reads back, or it is refused.

use std::cell::RefCell;

use crate::{Scratch, sign_tar_headers};
use bellows_block::archive::Limits;
use bellows_block::erofs::{Origin, read_layer};
use bellows_block::flat::unpack;
use bellows_block::import::import_layer;
use bellows_block::oci::Digests;

/// What a layer may cost here.
const LIMITS: Limits = Limits { unpacked_bytes: 4 << 20, ratio: 200, entries: 1000, metadata_bytes: 1 << 20 };

thread_local! {
    static IMAGE: RefCell<Scratch> = RefCell::default();
}

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let mut archive = data.to_vec();
    sign_tar_headers(&mut archive);
    IMAGE.with_borrow_mut(|image| {
        let image = image.holding(&[]);
        let imported = import_layer(archive.as_slice(), Digests::default(), LIMITS, image);
        let bytes = image.metadata().expect("it is open").len();
        assert!(bytes <= 2 * LIMITS.unpacked_bytes, "{bytes} bytes");
        if let Ok(layer) = imported {
            assert_eq!(bytes, layer.bytes);
            let origin = if layer.native { Origin::Native } else { Origin::Import };
            let layer = read_layer(image, origin, 1).expect("what was written is read back");
            drop(unpack(&[layer], &[0, 0]));
        }
    });
}
