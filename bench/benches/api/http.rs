//! HTTP/1.1 on a Unix socket: requests of a client that stays connected.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::{PATIENCE, Result};

pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request, whose answer must have this status; returns its body, or null if that is not JSON.
    pub fn send(&mut self, method: &str, path: &str, body: Option<&Value>, status: u16) -> Result<Value> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let length = if text.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", text.len()) };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: l\r\n{length}\r\n{text}");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (found, length) = self.head()?;
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        if found != status {
            let answer = String::from_utf8_lossy(&answer);
            return Err(format!("{method} {path}: {found} {answer}, expected status {status}").into());
        }
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }

    /// Returns once the first byte of an answer's body is there that goes on.
    pub fn first_byte(mut self, path: &str) -> Result<()> {
        self.stream.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: l\r\n\r\n").as_bytes())?;
        let (status, _) = self.head()?;
        // The line with the length of a part comes with the part.
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        self.stream.read_exact(&mut [0])?;
        if status == 200 { Ok(()) } else { Err(format!("GET {path}: {status}, expected status 200").into()) }
    }

    /// The status of an answer, and the length of its body if it says that.
    fn head(&mut self) -> Result<(u16, usize)> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).ok_or_else(|| format!("no status in {line:?}"))?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? <= "\r\n".len() {
                return Ok((status, length));
            }
            if let Some((name, value)) =
                line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            {
                length = value.trim().parse().map_err(|error| format!("{name}: {error}"))?;
            }
        }
    }
}
