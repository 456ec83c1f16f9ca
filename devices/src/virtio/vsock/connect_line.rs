//! The line with which a host client asks for a guest port: `CONNECT <port>\n`.

/// Longest valid line, with its end: `CONNECT 4294967295\r\n`.
pub const MAX_LINE: usize = 20;

/// The part of a client's line that has arrived.
#[derive(Debug, Default)]
pub struct ConnectLine {
    bytes: [u8; MAX_LINE],
    len: usize,
}

/// The client does not speak the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected a line `CONNECT <port>`")]
pub struct NoConnectLine;

impl ConnectLine {
    /// Bytes of room that are left.
    #[must_use]
    pub const fn room(&self) -> usize {
        MAX_LINE - self.len
    }

    /// How many of the received `bytes`, at most [`Self::room`], belong to the line.
    #[must_use]
    pub fn wanted(bytes: &[u8]) -> usize {
        bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1)
    }

    /// Adds `bytes`, which all belong to the line. Returns the port once the line is complete.
    ///
    /// # Errors
    /// The line is not a valid one.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<u32>, NoConnectLine> {
        let place = self.bytes.get_mut(self.len..self.len + bytes.len()).ok_or(NoConnectLine)?;
        place.copy_from_slice(bytes);
        self.len += bytes.len();
        let Some(line) = self.bytes[..self.len].strip_suffix(b"\n") else {
            return if self.room() == 0 { Err(NoConnectLine) } else { Ok(None) };
        };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let port = line.strip_prefix(b"CONNECT ").ok_or(NoConnectLine)?;
        if !port.iter().all(u8::is_ascii_digit) {
            return Err(NoConnectLine);
        }
        let port = std::str::from_utf8(port).ok().and_then(|port| port.parse().ok());
        port.map(Some).ok_or(NoConnectLine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(line: &[u8]) -> Result<Option<u32>, NoConnectLine> {
        ConnectLine::default().push(line)
    }

    #[test]
    fn reads_proper_lines_only() {
        assert_eq!(whole(b"CONNECT 52\n"), Ok(Some(52)));
        assert_eq!(whole(b"CONNECT 4294967295\r\n"), Ok(Some(u32::MAX)));
        assert_eq!(whole(b"CONNECT 5"), Ok(None));
        for bad in [
            &b"\n"[..],
            b"CONNECT \n",
            b"CONNECT +5\n",
            b"CONNECT -5\n",
            b"CONNECT 4294967296\n",
            b"connect 52\n",
            b"CONNECT 52 \n",
            b"\xff\xfe\n",
            b"CONNECT 0000000000000000000052\n",
            b"xxxxxxxxxxxxxxxxxxxx",
        ] {
            assert_eq!(whole(bad), Err(NoConnectLine), "{bad:?}");
        }
    }

    #[test]
    fn comes_in_pieces_and_leaves_what_follows() {
        let mut line = ConnectLine::default();
        for byte in b"CONNECT 7" {
            assert_eq!(line.push(&[*byte]), Ok(None));
        }
        let rest = b"\nhello";
        let wanted = ConnectLine::wanted(rest);
        assert_eq!(wanted, 1);
        assert_eq!(line.push(&rest[..wanted]), Ok(Some(7)));
    }
}
