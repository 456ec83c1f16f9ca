//! A blob as a stream that resumes where its connection broke.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::client::Client;
use super::retry::{Tries, is_broken_connection};
use crate::digest::Digest;
use crate::oci::error::OciError;

/// A stream of known length, whatever the server says. Its content is not checked.
pub(super) struct BlobReader {
    client: Arc<Client>,
    path: String,
    bytes: u64,
    /// Bytes that have come.
    at: u64,
    body: Box<dyn Read + Send>,
    tries: Tries,
}

impl BlobReader {
    /// Begins to read a blob of `bytes` bytes, which messages call `name`.
    pub fn open(client: &Arc<Client>, name: &Path, digest: &Digest, bytes: u64) -> Result<Self, OciError> {
        let path = format!("blobs/{digest}");
        let tries = Tries::new(client.retries());
        let response = client.get(&path, "*/*", 0, false)?;
        match response.body().content_length() {
            Some(actual) if actual != bytes => {
                return Err(OciError::Size { path: name.to_owned(), expected: bytes, actual });
            }
            _ => {}
        }
        let body = Box::new(response.into_body().into_reader());
        Ok(Self { client: Arc::clone(client), path, bytes, at: 0, body, tries })
    }

    /// Resumes over another connection, unless too many tries failed.
    fn resume(&mut self, broken: io::Error) -> io::Result<()> {
        let client = &self.client;
        self.tries.progressed(self.at);
        let missing = self.bytes - self.at;
        let ends = |error: &io::Error| {
            let message = format!("it ends {missing} bytes before the size that its descriptor says: {error}");
            io::Error::new(error.kind(), message)
        };
        let url = client.url(&self.path);
        if !self.tries.again(&url, &broken, None, client.cancel()) {
            return Err(ends(&broken));
        }
        let part = |from| match client.get(&self.path, "*/*", from, false) {
            Ok(response) => Ok(skipped(&response, self.at, self.bytes).map(|skip| (response, skip))),
            Err(error) if error.is_of_range() => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        };
        // A server that does not send the rest alone sends all of it again.
        let (response, skip) = match part(self.at)? {
            Some(rest) => rest,
            None => part(0)?
                .ok_or_else(|| io::Error::other("the registry goes on with another part of it than was asked for"))?,
        };
        let mut body = response.into_body().into_reader();
        let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink());
        // If it breaks again, the next read fails.
        self.body = match skipped {
            Ok(count) if count == skip => Box::new(body),
            _ => Box::new(io::empty()),
        };
        Ok(())
    }
}

/// Bytes that an answer has before the byte `at`; `None` where it does not have that.
fn skipped(response: &Response<Body>, at: u64, bytes: u64) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        // All of it, from the first byte.
        return response.body().content_length().is_none_or(|length| length == bytes).then_some(at);
    }
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let is_it = first.parse() == Ok(at) && last.parse::<u64>().is_ok_and(|last| last < bytes);
    (is_it && (total == "*" || total.parse() == Ok(bytes))).then_some(0)
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            let left = self.bytes - self.at;
            if left == 0 {
                return match self.body.read(&mut [0]) {
                    Ok(1..) => Err(io::Error::other("it goes on beyond the size that its descriptor says")),
                    // All is there, however the connection ends.
                    Ok(0) | Err(_) => Ok(0),
                };
            }
            let most = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
            let broken = match self.body.read(&mut into[..most]) {
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(count) => {
                    self.at += count as u64;
                    return Ok(count);
                }
                Err(error) if is_broken_connection(&error) => error,
                Err(error) => return Err(error),
            };
            self.resume(broken)?;
        }
    }
}
