//! A client of the API that can send anything.

// Each of its users needs a part of it.
#![allow(dead_code)]

pub mod collector;

use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process with the API.
pub struct Api {
    process: Child,
    directory: TempDir,
    socket: PathBuf,
}

/// What the server has answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Api {
    /// Starts `program` with `options`, and waits until it listens.
    pub fn start(program: &Path, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("api.sock");
        let mut command = Command::new(program);
        command.args(options).arg("--api-sock").arg(&socket);
        Self::start_by(command, directory, socket)
    }

    /// Starts a process by `command`, with its log in `directory`, and waits until it listens on `socket`.
    pub fn start_by(mut command: Command, directory: TempDir, socket: PathBuf) -> Self {
        let log = fs::File::create(directory.path().join("stderr")).unwrap();
        let process = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let api = Self { process, directory, socket };
        let begun = Instant::now();
        while UnixStream::connect(api.socket()).is_err() {
            assert!(begun.elapsed() < PATIENCE, "no socket");
            thread::sleep(Duration::from_millis(5));
        }
        api
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub fn process(&self) -> u32 {
        self.process.id()
    }

    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes as they are; returns all that comes back. A server that has seen enough may close first.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn send_bytes(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: l\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(body);
        Answer::read(&mut stream)
    }

    pub fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        self.send_bytes(method, path, body.as_bytes())
    }

    /// The body of a `GET` that succeeds.
    pub fn get(&self, path: &str) -> Value {
        let answer = self.send("GET", path, "");
        assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
        answer.body
    }

    /// A `PUT` that succeeds.
    pub fn put(&self, path: &str, body: Value) {
        let answer = self.send("PUT", path, &body.to_string());
        assert_eq!(answer.status, 204, "PUT {path}: {answer:?}");
    }

    /// A `PATCH` that succeeds.
    pub fn patch(&self, path: &str, body: Value) {
        let answer = self.send("PATCH", path, &body.to_string());
        assert_eq!(answer.status, 204, "PATCH {path}: {answer:?}");
    }

    /// Why a request is refused with status 400.
    pub fn refused(&self, method: &str, path: &str, body: &str) -> String {
        let answer = self.send(method, path, body);
        assert_eq!(answer.status, 400, "{method} {path}: {answer:?}");
        answer.fault()
    }

    /// Waits for the end; returns the exit code, or `None` after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// The names of the files in the directory of the process.
    pub fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Sends a signal, and waits for the end; returns the exit code.
    pub fn end_by_signal(&mut self, signal: i32) -> Option<i32> {
        let process = nix::unistd::Pid::from_raw(self.process.id().try_into().unwrap());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::try_from(signal).unwrap()).unwrap();
        self.wait(PATIENCE)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.path("stderr")).unwrap_or_default());
        }
    }
}

impl Answer {
    /// Reads one answer, and no more than it.
    pub fn read(stream: &mut UnixStream) -> Self {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "no answer: {}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut body).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Self { status, body }
    }

    /// The text of a refusal.
    pub fn fault(&self) -> String {
        self.body["fault_message"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}
