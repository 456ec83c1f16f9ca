//! An EROFS image that somebody has changed: its tree is read, or it is refused; what is read can be unpacked, or that is refused.

use std::cell::RefCell;

use crate::{Scratch, sign_erofs};
use bellows_block::erofs::{Origin, read_layer};
use bellows_block::flat::unpack;

thread_local! {
    static IMAGE: RefCell<Scratch> = RefCell::default();
}

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let mut image = data.to_vec();
    sign_erofs(&mut image);
    IMAGE.with_borrow_mut(|file| {
        let file = file.holding(&image);
        for origin in [Origin::Import, Origin::Native] {
            if let Ok(layer) = read_layer(file, origin, 1) {
                drop(unpack(&[layer], &[0, 0]));
            }
        }
    });
}
