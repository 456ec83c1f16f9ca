//! A collector of spans: OTLP over HTTP, in protocol buffers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

/// It takes the first batches, and refuses all after them.
pub struct Collector {
    port: u16,
    batches: Receiver<Vec<u8>>,
    got: Vec<u8>,
}

impl Collector {
    pub fn start(accepted: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (send, batches) = channel();
        // It ends when nobody asks for batches any more, or with the test.
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let status = if number < accepted { "200 OK" } else { "503 Service Unavailable" };
                if send.send(take(stream.unwrap(), status)).is_err() {
                    return;
                }
            }
        });
        Self { port, batches, got: Vec::new() }
    }

    pub fn endpoint(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Waits until all of `wanted` have been in batches: texts and numbers of traces stand there as they are.
    pub fn await_all(&mut self, wanted: &[&[u8]]) {
        let is_there = |got: &[u8], part: &[u8]| got.windows(part.len()).any(|window| window == part);
        while !wanted.iter().all(|part| is_there(&self.got, part)) {
            self.got.extend(self.batches.recv().unwrap());
        }
    }
}

fn take(stream: TcpStream, status: &str) -> Vec<u8> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert_eq!(line, "POST /v1/traces HTTP/1.1\r\n");
    let (mut length, mut kind) = (0, String::new());
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        match line.to_ascii_lowercase().trim_end().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(("content-type", value)) => value.clone_into(&mut kind),
            Some(_) => {}
            None => break,
        }
    }
    assert_eq!(kind, "application/x-protobuf");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    write!(stream.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
    body
}
