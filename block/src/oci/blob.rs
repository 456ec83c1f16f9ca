//! Content that is checked while it is read.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// What a layer is known to be before it is read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Digests {
    /// Digest of the blob as it is stored.
    pub blob: Option<Digest>,
    /// Digest of the uncompressed archive.
    pub diff_id: Option<Digest>,
}

/// Content that is not what its descriptor says.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// Reading failed.
    #[error("cannot read it to its end")]
    Read(#[source] io::Error),
    /// Other content.
    #[error("its content has the digest {actual}, expected {expected}")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What is there.
        actual: Digest,
    },
}

impl BlobError {
    /// Compares a digest with the one that is expected, if one is.
    ///
    /// # Errors
    /// It is another.
    pub fn check(expected: Option<Digest>, actual: Digest) -> Result<(), Self> {
        match expected {
            Some(expected) if expected != actual => Err(Self::Digest { expected, actual }),
            _ => Ok(()),
        }
    }
}

/// Passes a stream through and computes its digest; nothing read from it is to be trusted before that was compared.
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> HashingReader<R> {
    /// Reads `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new() }
    }

    /// Reads what is left; the digest of all.
    ///
    /// # Errors
    /// Reading failed.
    pub fn finish(mut self) -> Result<Digest, BlobError> {
        io::copy(&mut self, &mut io::sink()).map_err(BlobError::Read)?;
        Ok(Digest::finish(self.hasher))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(into)?;
        self.hasher.update(&into[..bytes]);
        Ok(bytes)
    }
}
