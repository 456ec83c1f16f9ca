//! Registries on this host: a real one, and one that answers what a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use super::LayoutBuilder;

/// `docker-registry`, empty at first.
pub struct RegistryServer {
    child: Child,
    address: String,
    authorization: Option<&'static str>,
    directory: Arc<TempDir>,
}

impl RegistryServer {
    /// The user and the password of [`RegistryServer::with_password`].
    pub const USER: (&str, &str) = ("user", "pass:word");
    const PASSWORD_FILE: &str = "user:$2b$04$XE4fkVcfqPbItZ8wqJrMoeIMbKWN1aU3.kX/.UdHm/uCeXtVxMoWu\n";

    /// One for everybody.
    pub fn start() -> Self {
        Self::serve(Self::directory(), "plain.yml", "", "")
    }

    /// One that has to be told a user and a password.
    pub fn with_password() -> Self {
        let directory = Self::directory();
        let passwords = directory.path().join("passwords");
        std::fs::write(&passwords, Self::PASSWORD_FILE).unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", passwords.display());
        let mut server = Self::serve(directory, "password.yml", "", &auth);
        server.authorization = Some("Basic dXNlcjpwYXNzOndvcmQ=");
        server
    }

    /// The same images over TLS, by a server whose name is `name`; and the file with the certificate of its authority.
    pub fn over_tls(&self, name: &str) -> (Self, PathBuf) {
        let path = |kind: &str| self.directory.path().join(format!("{name}.{kind}")).display().to_string();
        let (authority, certificate, key) = (path("authority"), path("certificate"), path("key"));
        let make = |subject: &str, key: &str, certificate: &str, more: &[&str]| {
            let mut command = Command::new("openssl");
            command.args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ]);
            command.args(["-subj", &format!("/CN={subject}"), "-keyout", key, "-out", certificate]).args(more);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let authority_key = path("authority-key");
        make("authority", &authority_key, &authority, &[]);
        let alternative = format!("subjectAltName=DNS:{name}");
        let signed = ["-CA", &authority, "-CAkey", &authority_key, "-addext", &alternative];
        make(name, &key, &certificate, &[&signed[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat());
        let tls = format!(", tls: {{certificate: {certificate}, key: {key}}}");
        (Self::serve(Arc::clone(&self.directory), "tls.yml", &tls, ""), authority.into())
    }

    fn directory() -> Arc<TempDir> {
        Arc::new(tempfile::tempdir().unwrap())
    }

    /// With more in the configuration: of `http`, and beside that.
    fn serve(directory: Arc<TempDir>, config: &str, http: &str, more: &str) -> Self {
        let (config, data) = (directory.path().join(config), directory.path().join("data"));
        let data = data.display();
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\nhttp: {{addr: '127.0.0.1:0'{http}}}\n{more}"
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = |line: std::io::Result<String>| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.split(['"', ',']).next()?.to_owned())
        };
        let found = log.by_ref().find_map(listening);
        let address = found.expect("docker-registry listens");
        // It would block if its output was not read.
        thread::spawn(move || log.for_each(drop));
        Self { child, address, authorization: None, directory }
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Uploads all blobs of `layout`, and `manifests` as what they are called.
    pub fn push(&self, layout: &LayoutBuilder, name: &str, manifests: &[(&Value, &str)]) {
        for entry in std::fs::read_dir(layout.path().join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let start = self.send("POST", &format!("/v2/{name}/blobs/uploads/"), "", b"");
            let location = start.lines().find_map(|line| line.strip_prefix("Location: ")).expect(&start);
            let location = location.split_once(&self.address).unwrap().1;
            let digest = path.file_name().unwrap().to_str().unwrap();
            let target = format!("{location}&digest=sha256%3A{digest}");
            self.send("PUT", &target, "application/octet-stream", &std::fs::read(&path).unwrap());
        }
        for (descriptor, tag) in manifests {
            let text = |key: &str| descriptor[key].as_str().unwrap();
            let data = std::fs::read(layout.blob_path(&text("digest").parse().unwrap())).unwrap();
            self.send("PUT", &format!("/v2/{name}/manifests/{tag}"), text("mediaType"), &data);
        }
    }

    /// Makes a request that the server must carry out; the head of its answer.
    fn send(&self, method: &str, target: &str, media_type: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let proof = self.authorization.map_or_else(String::new, |proof| format!("Authorization: {proof}\r\n"));
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{proof}Content-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{method} {target}: {answer}");
        answer.replace('\r', "")
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A proxy that leads each connection to one place, whatever host it is asked for. Serves until the test's process ends.
pub struct Tunnel {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tunnel {
    /// To `place`, host and port.
    pub fn to(place: &str) -> Self {
        let (place, asked) = (place.to_owned(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&asked);
        let address = listen(move |mut client| {
            let Some(request) = read_request(&client) else { return };
            seen.lock().unwrap().push(request.target);
            let server = TcpStream::connect(&place).unwrap();
            // The other side is gone: nothing is left to copy.
            let _ = client.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            let copy = |mut from: &TcpStream, mut to: &TcpStream| {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            };
            thread::scope(|scope| {
                scope.spawn(|| copy(&client, &server));
                copy(&server, &client);
            });
        });
        Self { address, asked }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Hosts and ports that it was asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// What a registry is asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path and query.
    pub target: String,
    /// The header of this name.
    pub authorization: Option<String>,
    /// All headers, their names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The header `name`, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What it answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Status, further headers and content. A `Content-Length` is added where none is among them.
    Content(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Content of the type `.0` that never ends.
    Endless(&'static str),
    /// The first bytes of content that should have more, and nothing after that.
    Stalled(Vec<u8>, u64),
    /// The first bytes of content that should have more, and the connection's end.
    Cut(Vec<u8>, u64),
    /// These bytes instead of an answer, and the connection's end.
    Broken(Vec<u8>),
    /// Nothing at all.
    Silent,
}

impl Answer {
    /// Content of a type.
    pub fn ok(media_type: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::Content(200, vec![("Content-Type", media_type.to_owned())], content.into())
    }

    fn write(self, stream: &mut TcpStream) -> std::io::Result<()> {
        match self {
            Self::Content(status, headers, content) => {
                write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\n")?;
                for (name, value) in &headers {
                    write!(stream, "{name}: {value}\r\n")?;
                }
                if !headers.iter().any(|(name, _)| ["Content-Length", "Transfer-Encoding"].contains(name)) {
                    write!(stream, "Content-Length: {}\r\n", content.len())?;
                }
                stream.write_all(b"\r\n")?;
                stream.write_all(&content)
            }
            Self::Endless(media_type) => {
                write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {media_type}\r\n\r\n")?;
                loop {
                    stream.write_all(&[b' '; 4096])?;
                }
            }
            Self::Stalled(content, bytes) => {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n")?;
                stream.write_all(&content)?;
                until_the_other_side_ends(stream)
            }
            Self::Cut(content, bytes) => {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n")?;
                stream.write_all(&content)
            }
            Self::Broken(bytes) => stream.write_all(&bytes),
            Self::Silent => until_the_other_side_ends(stream),
        }
    }
}

fn until_the_other_side_ends(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.read(&mut [0]).map(drop)
}

/// A registry made of a function. Serves until the test's process ends.
pub struct FakeRegistry {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeRegistry {
    /// Answers with what `answer` says.
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let address = listen(move |mut stream| {
            let Some(request) = read_request(&stream) else { return };
            seen.lock().unwrap().push(request.clone());
            // Whoever was refused goes away early.
            let _ = answer(&request).write(&mut stream);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read(&mut [0]);
        });
        Self { address, requests }
    }

    /// One that has `layout`'s blobs, and its documents too; `wrong` answers first.
    pub fn of(layout: &Path, wrong: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let blobs = layout.join("blobs/sha256");
        Self::start(move |request| {
            let path = request.target.split('?').next().unwrap_or_default();
            let name = path.rsplit("sha256:").next().unwrap_or_default();
            let found = || match std::fs::read(blobs.join(name)) {
                Ok(data) if request.target.contains("/manifests/") => {
                    let document: Value = serde_json::from_slice(&data).unwrap();
                    Answer::ok(document["mediaType"].as_str().unwrap(), data)
                }
                Ok(data) => Answer::ok("application/octet-stream", data),
                Err(_) => Answer::Content(404, Vec::new(), Vec::new()),
            };
            wrong(request).unwrap_or_else(found)
        })
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What it was asked for so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Has each connection served on a thread of its own, until the test's process ends.
fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(|line| line.ok());
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let head = lines.take_while(|line| !line.is_empty());
    let header =
        |line: String| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers: Vec<_> = head.filter_map(header).collect();
    let authorization = headers.iter().find(|(name, _)| name == "authorization").map(|(_, value)| value.clone());
    Some(Request { target, authorization, headers })
}
