//! An EROFS image that somebody has changed: its tree is read, or it is refused.
#![no_main]

use std::cell::RefCell;

use bellows_block::erofs::read_tree;
use bellows_fuzz::{Scratch, sign_erofs};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static IMAGE: RefCell<Scratch> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
    let mut image = data.to_vec();
    sign_erofs(&mut image);
    IMAGE.with_borrow_mut(|file| drop(read_tree(file.holding(&image), 1)));
});
