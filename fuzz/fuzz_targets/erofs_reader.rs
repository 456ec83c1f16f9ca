//! An EROFS image that somebody has changed: its tree is read, or it is refused; what is read can be unpacked, or that is refused.
#![no_main]

use std::cell::RefCell;

use bellows_block::erofs::{Origin, read_layer};
use bellows_block::flat::unpack;
use bellows_fuzz::{Scratch, sign_erofs};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static IMAGE: RefCell<Scratch> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
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
});
