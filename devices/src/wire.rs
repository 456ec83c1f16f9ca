//! Structures that a driver and a device share, as the specifications lay them out.

/// Declares structures of a specification: `repr(C)`, fields in the specification's order and with its names, little-endian
/// numbers ([`Le32`](vm_memory::Le32) and its like). Each is [`ByteValued`](vm_memory::ByteValued): it can be read from
/// bytes and written as bytes. A structure with padding does not compile.
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
            const fn is_plain<T: vm_memory::ByteValued>() {}
            $(is_plain::<$type>();)*
            assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "the structure has padding");
        };

        // SAFETY: each field is `ByteValued`, so every pattern of bytes is valid for it; `repr(C)` fixes the layout, and the
        // sizes add up, so there is no padding: both checked above.
        unsafe impl vm_memory::ByteValued for $name {}
    )*};
}

pub(crate) use wire;
