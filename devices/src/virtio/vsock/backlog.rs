//! Bytes on their way to a host socket that would block.

/// A queue of bytes that holds memory only while it holds bytes, and never more than its limit.
#[derive(Debug)]
pub struct Backlog {
    bytes: Vec<u8>,
    /// Bytes at the start of `bytes` that have already left.
    start: usize,
    limit: usize,
}

impl Backlog {
    /// An empty backlog of at most `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, limit }
    }

    /// Bytes waiting.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The waiting bytes, oldest first.
    #[must_use]
    pub fn front(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Bytes of memory held.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Adds `count` bytes and returns the place for them, or `None` if they do not fit.
    pub fn extend(&mut self, count: usize) -> Option<&mut [u8]> {
        let len = self.len().checked_add(count).filter(|len| *len <= self.limit)?;
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        if self.bytes.capacity() < len {
            let capacity = len.max(2 * self.bytes.capacity()).min(self.limit);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        let tail = self.bytes.len();
        self.bytes.resize(len, 0);
        Some(&mut self.bytes[tail..])
    }

    /// Removes the oldest `count` bytes; all of them if fewer wait.
    pub fn consume(&mut self, count: usize) {
        self.start += count.min(self.len());
        if self.is_empty() {
            self.clear();
        }
    }

    /// Removes everything and frees the memory.
    pub fn clear(&mut self) {
        self.bytes = Vec::new();
        self.start = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_limit() {
        let mut backlog = Backlog::new(10);
        backlog.extend(6).unwrap().copy_from_slice(b"abcdef");
        assert!(backlog.extend(5).is_none());
        backlog.consume(4);
        backlog.extend(8).unwrap().copy_from_slice(b"ghijklmn");
        assert_eq!(backlog.front(), b"efghijklmn");
        assert!(backlog.capacity() <= 10);
        backlog.consume(10);
        assert!(backlog.is_empty());
        assert_eq!(backlog.capacity(), 0);
    }
}
