//! How an archive is packed, told by its first bytes: names and media types are often wrong.

use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// How a tar stream is packed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// zstd, possibly of several frames.
    Zstd,
}

/// A compression that is known but not read.
#[derive(Debug, thiserror::Error)]
#[error("it is compressed with {0}, which is not supported; supported: gzip, zstd")]
pub struct UnsupportedCompression(&'static str);

impl Compression {
    /// Bytes that [`Compression::detect`] wants to see.
    const PREFIX: usize = 6;

    /// What a stream is that begins with `prefix`.
    ///
    /// # Errors
    /// It is compressed in a way that is not supported.
    pub fn detect(prefix: &[u8]) -> Result<Self, UnsupportedCompression> {
        match prefix {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A frame, or one to be skipped as parallel compressors put before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(UnsupportedCompression("xz")),
            [b'B', b'Z', b'h', ..] => Err(UnsupportedCompression("bzip2")),
            [0x04, 0x22, 0x4d, 0x18, ..] => Err(UnsupportedCompression("lz4")),
            _ => Ok(Self::None),
        }
    }
}

/// Unpacks `stream`, whatever it is packed with.
///
/// # Errors
/// Its start cannot be read, or its compression is not supported.
pub fn unpack<'a>(mut stream: impl Read + 'a) -> io::Result<(Compression, Box<dyn Read + 'a>)> {
    let mut prefix = Vec::with_capacity(Compression::PREFIX);
    (&mut stream).take(Compression::PREFIX as u64).read_to_end(&mut prefix)?;
    let compression = Compression::detect(&prefix).map_err(io::Error::other)?;
    let whole = Cursor::new(prefix).chain(stream);
    let buffered = BufReader::with_capacity(128 << 10, whole);
    Ok((
        compression,
        match compression {
            Compression::None => Box::new(buffered),
            Compression::Gzip => Box::new(MultiGzDecoder::new(buffered)),
            // The library's own limit for the window, 128 MiB, is what this may take in memory.
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered)?),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::compress;

    #[test]
    fn streams_may_have_several_parts() {
        let (gzip, zstd) = (compress(b"data", Compression::Gzip), compress(b"data", Compression::Zstd));
        // A frame of three bytes that readers skip.
        let skipped: &[u8] = b"\x5e\x2a\x4d\x18\x03\0\0\0abc";
        for (stream, compression, expected) in [
            ([&gzip[..], &gzip].concat(), Compression::Gzip, &b"datadata"[..]),
            ([&zstd[..], skipped, &zstd].concat(), Compression::Zstd, b"datadata"),
            ([skipped, &zstd, skipped].concat(), Compression::Zstd, b"data"),
            (skipped.to_vec(), Compression::Zstd, b""),
            (b"da".to_vec(), Compression::None, b"da"),
            (Vec::new(), Compression::None, b""),
        ] {
            let (found, mut unpacked) = unpack(stream.as_slice()).unwrap();
            let mut data = Vec::new();
            unpacked.read_to_end(&mut data).unwrap();
            assert_eq!((found, data.as_slice()), (compression, expected));
        }
    }

    #[test]
    fn what_ends_early_or_is_packed_otherwise_is_refused() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let whole = compress(&[7; 1000], compression);
            for length in [8, whole.len() / 2, whole.len() - 1] {
                let unpacked = unpack(&whole[..length]).and_then(|(_, mut stream)| stream.read_to_end(&mut Vec::new()));
                assert!(unpacked.is_err(), "{compression:?}: {length} of {}", whole.len());
            }
        }
        for (prefix, name) in [(&b"\xfd7zXZ\0"[..], "xz"), (b"BZh9", "bzip2"), (b"\x04\x22\x4d\x18", "lz4")] {
            let Err(error) = unpack(prefix) else { panic!("{name} was taken") };
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
