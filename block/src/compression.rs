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
#[error("it is compressed with {0}, which is not supported; gzip and zstd are")]
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
/// Its start can't be read, or its compression is not supported.
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
