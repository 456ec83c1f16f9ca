//! A block of a tar archive as a header: that of version 7, of ustar (POSIX.1-2017, pax, "ustar Interchange Format"), or of GNU
//! tar. Numbers are read as GNU tar and Go's `archive/tar` do.

use std::ops::Range;

/// Size of a header and unit of an archive in bytes.
pub(super) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const CHECKSUM: Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK_NAME: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..262;
const MAGIC_END: usize = 262;
const PREFIX: Range<usize> = 345..500;

/// A field that holds a number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Number {
    Mode,
    Uid,
    Gid,
    Size,
    ModificationTime,
    DeviceMajor,
    DeviceMinor,
}

impl Number {
    const fn range(self) -> Range<usize> {
        match self {
            Self::Mode => 100..108,
            Self::Uid => 108..116,
            Self::Gid => 116..124,
            Self::Size => 124..136,
            Self::ModificationTime => 136..148,
            Self::DeviceMajor => 329..337,
            Self::DeviceMinor => 337..345,
        }
    }

    /// What messages call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Uid => "owner (uid)",
            Self::Gid => "group (gid)",
            Self::Size => "size",
            Self::ModificationTime => "modification time",
            Self::DeviceMajor | Self::DeviceMinor => "device number",
        }
    }
}

/// A header whose checksum is right.
#[derive(Debug)]
pub(super) struct Header([u8; BLOCK]);

impl Header {
    /// Takes a block for a header.
    ///
    /// # Errors
    /// Why it is not one.
    pub fn new(block: [u8; BLOCK]) -> Result<Self, String> {
        let stated = number(&block[CHECKSUM]).ok_or("its checksum is not a number")?;
        // The sum of all bytes, those of the checksum itself taken for spaces. Some old archives have summed signed ones.
        let rest = || block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
        let spaces = 8 * i64::from(b' ');
        let unsigned = spaces + rest().map(|byte| i64::from(*byte)).sum::<i64>();
        let signed = spaces + rest().map(|byte| i64::from(byte.cast_signed())).sum::<i64>();
        if [unsigned, signed].contains(&stated) {
            return Ok(Self(block));
        }
        Err(format!("its checksum is {unsigned}, it states {stated}"))
    }

    /// The whole block.
    pub fn block(&self) -> &[u8; BLOCK] {
        &self.0
    }

    /// What kind of entry it begins.
    pub fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    /// The entry's name; long ones have their beginning in a field of its own in ustar.
    pub fn name(&self) -> Vec<u8> {
        let name = until_zero(&self.0[NAME]);
        match until_zero(&self.0[PREFIX]) {
            prefix if !prefix.is_empty() && self.is_ustar() => [prefix, name].join(&b'/'),
            _ => name.to_owned(),
        }
    }

    /// The target of a link.
    pub fn link_name(&self) -> &[u8] {
        until_zero(&self.0[LINK_NAME])
    }

    /// The value of a field; `None` if that is not a number, or one of more than 63 bits.
    pub fn number(&self, field: Number) -> Option<i64> {
        number(&self.0[field.range()])
    }

    /// Whether the fields behind the magic number are those of ustar; GNU tar ends it with a space, and has others there.
    fn is_ustar(&self) -> bool {
        self.0[MAGIC] == *b"ustar" && self.0[MAGIC_END] == 0
    }
}

/// Reads a number: octal digits among spaces and zero bytes, where none mean 0; or, if the first bit is set, a binary one (two's
/// complement, big-endian, without that bit).
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let sign_extended = i128::from((first << 1).cast_signed() >> 1);
        let value = rest.iter().try_fold(sign_extended, |value, byte| {
            let next = value.checked_mul(256)? | i128::from(*byte);
            Some(next)
        })?;
        return i64::try_from(value).ok();
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Some(0) };
    let digits = until_zero(&field[start..]).trim_ascii_end();
    digits.iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// A text that ends before the first zero byte.
pub(super) fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_binary_or_missing() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"\0 \0     ", Some(0)),
            (b"777777777777", Some((1 << 36) - 1)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xfe\x6a\xf6\xf7\x1d\0\0\0", Some(-6_795_364_579 << 24)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"-0000001", None),
            (b"0000648\0", None),
            (b"64 4\0\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    fn header(fill: impl Fn(&mut [u8; BLOCK]), signed: bool) -> Result<Header, String> {
        let mut block = [0; BLOCK];
        fill(&mut block);
        block[CHECKSUM].fill(b' ');
        let byte = |byte: &u8| if signed { i64::from(byte.cast_signed()) } else { i64::from(*byte) };
        let sum: i64 = block.iter().map(byte).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Header::new(block)
    }

    #[test]
    fn prefixes_are_of_ustar_only() {
        let named = |magic: &'static [u8; 8]| {
            let header = header(
                |block| {
                    block[..4].copy_from_slice(b"name");
                    block[257..265].copy_from_slice(magic);
                    block[345..351].copy_from_slice(b"prefix");
                },
                false,
            );
            header.unwrap().name()
        };
        assert_eq!(named(b"ustar\x0000"), b"prefix/name");
        assert_eq!(named(b"ustar\0\0\0"), b"prefix/name");
        assert_eq!(named(b"ustar  \0"), b"name");
        assert_eq!(named(b"\0\0\0\0\0\0\0\0"), b"name");
    }

    #[test]
    fn checksums_of_signed_bytes_count_too() {
        let name = |block: &mut [u8; BLOCK]| {
            block[..4].copy_from_slice(b"\xc3\xa4\xc3\xb6");
            block[100..148].fill(b'0');
        };
        for signed in [false, true] {
            assert_eq!(header(name, signed).unwrap().name(), b"\xc3\xa4\xc3\xb6");
        }
        assert!(Header::new([b'x'; BLOCK]).unwrap_err().contains("not a number"));
        assert!(Header::new([b'1'; BLOCK]).unwrap_err().contains("states"));
    }
}
