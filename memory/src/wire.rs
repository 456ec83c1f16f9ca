//! Structures that two sides share, as a specification lays them out.

pub use vm_memory::ByteValued;
use vm_memory::{Le16, Le32, Le64};

/// Declares structures of a specification: `repr(C)`, fields in the specification's order and with its names, little-endian
/// numbers ([`Le32`] and its like). Each is [`ByteValued`]: it can be read from bytes and written as bytes. A structure with
/// padding does not compile.
#[macro_export]
macro_rules! wire {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field:ident: $type:ty,)*
        }
    )*) => {$(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        $visibility struct $name {
            $($(#[$field_attribute])* pub $field: $type,)*
        }

        const _: () = {
            const fn is_plain<T: $crate::wire::Plain>() {}
            $(is_plain::<$type>();)*
            assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "the structure has padding");
        };

        // SAFETY: each field is `Plain`, so every pattern of bytes is valid for it; `repr(C)` fixes the layout, and the sizes
        // add up, so there is no padding: both checked above.
        unsafe impl $crate::wire::ByteValued for $name {}
        // SAFETY: as above.
        unsafe impl $crate::wire::Plain for $name {}
    )*};
}

/// The bytes of a field in a structure, as a range of `u16`.
#[macro_export]
macro_rules! field {
    ($structure:ty, $field:ident) => {{
        const BYTES: std::ops::Range<u16> = {
            const fn size<T>(_: fn(&$structure) -> &T) -> usize {
                size_of::<T>()
            }
            let first = std::mem::offset_of!($structure, $field);
            first as u16..(first + size(|structure| &structure.$field)) as u16
        };
        BYTES
    }};
}

/// What a field of a structure can be that [`wire!`](crate::wire!) declares.
///
/// # Safety
/// Every pattern of bytes is a value of the type, and the type has no padding.
pub unsafe trait Plain: Copy {}

// SAFETY: a number.
unsafe impl Plain for u8 {}
// SAFETY: a number.
unsafe impl Plain for Le16 {}
// SAFETY: a number.
unsafe impl Plain for Le32 {}
// SAFETY: a number.
unsafe impl Plain for Le64 {}
// SAFETY: elements that lie side by side.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

#[cfg(test)]
mod tests {
    use super::*;

    wire! {
        struct Inner {
            a: u8,
            b: [u8; 3],
        }

        struct Outer {
            inner: Inner,
            c: [Le16; 2],
            d: Le64,
        }
    }

    #[test]
    fn a_structure_is_its_bytes() {
        let bytes: [u8; 16] = std::array::from_fn(|index| index as u8);
        let mut outer = Outer::default();
        outer.as_mut_slice().copy_from_slice(&bytes);
        assert_eq!((outer.inner, outer.c[1].to_native()), (Inner { a: 0, b: [1, 2, 3] }, 0x0706));
        assert_eq!(outer.d.to_native(), 0x0f0e_0d0c_0b0a_0908);
        assert_eq!((field!(Outer, inner), field!(Outer, c), field!(Outer, d)), (0..4, 4..8, 8..16));
    }
}
