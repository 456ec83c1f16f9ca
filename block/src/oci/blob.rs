//! Content that is checked while it is read.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use crate::digest::LayerDigest;

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
        expected: LayerDigest,
        /// What is there.
        actual: LayerDigest,
    },
}

/// Passes a stream through and computes its digest; nothing read from it is to be trusted before
/// [`VerifyingReader::finish`] said so.
pub struct VerifyingReader<R> {
    inner: R,
    hasher: Sha256,
    expected: LayerDigest,
}

impl<R: Read> VerifyingReader<R> {
    /// Reads `inner`, whose whole content should have the digest `expected`.
    pub fn new(inner: R, expected: LayerDigest) -> Self {
        Self { inner, hasher: Sha256::new(), expected }
    }

    /// Reads what is left and compares.
    ///
    /// # Errors
    /// Reading failed or the digest is another.
    pub fn finish(mut self) -> Result<(), BlobError> {
        io::copy(&mut self, &mut io::sink()).map_err(BlobError::Read)?;
        let actual = LayerDigest::finish(self.hasher);
        if actual == self.expected { Ok(()) } else { Err(BlobError::Digest { expected: self.expected, actual }) }
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(into)?;
        self.hasher.update(&into[..bytes]);
        Ok(bytes)
    }
}
