//! What registries, their mirrors, token servers and stores answer, against pulls. Every pull ends after a bounded number of
//! requests; secrets go nowhere but to the registry and to where it says that tokens are; what is got by a digest is what has
//! that digest.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use crate::{Input, check_message, filled};
use bellows_block::oci::{CredentialSource, Credentials, ImageSource, OciError, RegistryOptions, Retries, SourceImage};
use bellows_block::{Cancel, Digest};

/// The registry, and another host. Both are in a network of their own, so that the numbers are free and no text leads elsewhere.
const HOSTS: [&str; 2] = ["127.0.0.1:5000", "127.0.0.1:5001"];
const REPOSITORY: &str = "a/b";
const SECRET: &str = "secret";
/// `user:secret` in base 64.
const PASSWORD: &str = "dXNlcjpzZWNyZXQ=";
const MAX_DOCUMENTS: usize = 6;
const MAX_ANSWERS: usize = 16;
/// Layers that are read, and how much of each.
const LAYERS: (usize, u64) = (4, 1 << 20);
const TRIES: u32 = 3;
/// Most requests to one server for one thing: without a token, to get one, and with it, where each try follows five redirects.
const REQUESTS: usize = 3 * 6 * TRIES as usize;
/// Most requests of a pull: of as many documents as are looked through, which are manifests and configurations, and of layers. Each
/// may break off as often as is tried, and is asked of a mirror first.
const MAX_REQUESTS: usize = 2 * REQUESTS * TRIES as usize * (2 * 256 + LAYERS.0);

static LISTENERS: LazyLock<[TcpListener; 2]> =
    LazyLock::new(|| HOSTS.map(|host| TcpListener::bind(host).expect("nobody else is in this network")));
/// Says that the other host is a mirror of the registry.
static MIRRORED: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = folder.path().join(HOSTS[0]);
    std::fs::create_dir(&registry).expect("an empty folder");
    let hosts = format!("[host.\"http://{}\"]\n", HOSTS[1]);
    std::fs::write(registry.join("hosts.toml"), hosts).expect("a new file");
    folder
});

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = input.byte();
    let credentials = match flags % 4 {
        0 => CredentialSource::Nobody,
        1 => CredentialSource::Fixed(Credentials::IdentityToken(SECRET.to_owned())),
        _ => CredentialSource::Fixed(Credentials::Password { user: "user".to_owned(), password: SECRET.to_owned() }),
    };
    let (is_pinned, is_mirrored, for_ever) = (flags & 4 != 0, flags & 8 != 0, flags & 16 != 0);
    let mut documents: Vec<Vec<u8>> = Vec::new();
    for _ in 0..usize::from(input.byte()) % (MAX_DOCUMENTS + 1) {
        let length = usize::from(input.u16());
        documents.push(filled(input.bytes(length), |n| documents.get(n).map(Vec::as_slice)));
    }
    let mut answers = Vec::new();
    while !input.is_empty() && answers.len() < MAX_ANSWERS {
        answers.push(Answer::read(&mut input, &documents));
    }
    let top = Digest::of(documents.last().map(Vec::as_slice).unwrap_or_default());
    let reference = format!("{}/{REPOSITORY}{}", HOSTS[0], if is_pinned { format!("@{top}") } else { String::new() });
    let pull = Pull {
        reference,
        credentials,
        hosts_folders: is_mirrored.then(|| MIRRORED.path().to_owned()).into_iter().collect(),
    };
    let script =
        Script { documents, answers, for_ever, next: 0, requests: 0, named: Vec::new(), is_mirrored, demanded: false };
    let script = Mutex::new(script);
    let Some(image) = serve(&script, || pull.run()) else { return };
    let mut script = script.into_inner().expect("nobody panics with it");
    if is_pinned && script.next > 0 {
        // Whatever was said, it is the image that an honest registry has under that digest.
        script.answers.clear();
        let honest = serve(&Mutex::new(script), || pull.run());
        assert!(honest.is_some_and(|honest| is_same(&honest, &image)), "another image than {top}: {image:?}");
    }
}

fn is_same(one: &SourceImage, other: &SourceImage) -> bool {
    let layers = |image: &SourceImage| image.layers.iter().map(|layer| layer.digests).collect::<Vec<_>>();
    (one.digest, &one.config, layers(one)) == (other.digest, &other.config, layers(other))
}

struct Pull {
    reference: String,
    credentials: CredentialSource,
    hosts_folders: Vec<PathBuf>,
}

impl Pull {
    /// Finds the image and reads what it is made of.
    fn run(&self) -> Option<SourceImage> {
        let cancel = Cancel::default();
        let wish = cancel.clone();
        // A wait that a registry asks for has tests of its own.
        let notice = Arc::new(move |retry: &bellows_block::oci::Retry| {
            check_message(&retry.to_string());
            if !retry.wait.is_zero() {
                wish.cancel();
            }
        });
        let options = RegistryOptions {
            credentials: self.credentials.clone(),
            hosts_folders: self.hosts_folders.clone(),
            patience: Duration::from_secs(20),
            retries: Retries { tries: TRIES, backoff: Duration::ZERO, notice },
            ..RegistryOptions::default()
        };
        let reference = self.reference.parse().expect("a reference");
        let platform = "linux/amd64".parse().expect("a platform");
        let image = said(ImageSource::registry(&reference, &options, &cancel))?;
        let image = said(image.image(&platform, None))?;
        for layer in image.layers.iter().take(LAYERS.0) {
            if let Some((bytes, blob)) = said(layer.open()) {
                let bytes = bytes.expect("its descriptor says it");
                match io::copy(&mut blob.take(LAYERS.1), &mut io::sink()) {
                    Ok(read) => assert_eq!(read, bytes.min(LAYERS.1), "a layer has the length that it is said to have"),
                    Err(error) => check_message(&error.to_string()),
                }
            }
        }
        Some(image)
    }
}

fn said<T>(result: Result<T, OciError>) -> Option<T> {
    result.map_err(|error| crate::check_error(&error)).ok()
}

enum Answer {
    /// What is asked for.
    Right,
    /// That, but only so many bytes of it.
    Cut(usize),
    /// That, with more headers.
    Decorated(Vec<u8>),
    /// A status, headers and content.
    Content(u16, Vec<u8>, Vec<u8>),
    /// Headers, and content without end.
    Endless(Vec<u8>),
    /// Something.
    Raw(Vec<u8>),
}

impl Answer {
    fn read(input: &mut Input<'_>, documents: &[Vec<u8>]) -> Self {
        const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
        let document = |n: usize| documents.get(n).map(Vec::as_slice);
        let text = |input: &mut Input<'_>| {
            let length = usize::from(input.byte());
            filled(input.bytes(length), document)
        };
        match input.byte() % 8 {
            0 => Self::Right,
            1 => Self::Cut(input.u16().into()),
            2 => Self::Decorated(text(input)),
            3 => {
                let (status, headers) = (input.u16() % 600, text(input));
                Self::Content(status, headers, document(input.byte().into()).unwrap_or_default().to_vec())
            }
            4 => {
                let status = REDIRECTS[usize::from(input.byte()) % REDIRECTS.len()];
                Self::Content(status, [b"Location: ".to_vec(), text(input)].concat(), Vec::new())
            }
            5 => Self::Content(401, [b"WWW-Authenticate: ".to_vec(), text(input)].concat(), Vec::new()),
            6 => Self::Endless(text(input)),
            _ => Self::Raw(text(input)),
        }
    }
}

/// What the hosts answer, and what they have seen.
struct Script {
    documents: Vec<Vec<u8>>,
    /// To the first requests, whichever host gets them.
    answers: Vec<Answer>,
    /// The last is the answer to all that follow; otherwise those are answered as they should be.
    for_ever: bool,
    next: usize,
    requests: usize,
    /// What the registry has answered so far, as far as it may say where tokens are.
    named: Vec<Vec<u8>>,
    /// The other host mirrors the registry,
    is_mirrored: bool,
    /// and has wanted to know who asks, so that it may get a token of its own.
    demanded: bool,
}

impl Script {
    fn answer(&mut self, host: usize, request: &Request) -> Vec<u8> {
        self.requests += 1;
        assert!(self.requests <= MAX_REQUESTS, "a pull makes {} requests", self.requests);
        self.check(host, request);
        let last = self.answers.len().checked_sub(1);
        let index = if self.for_ever { last.map(|last| last.min(self.next)) } else { Some(self.next) };
        let right = || self.right(request);
        let answer = match index.and_then(|index| self.answers.get(index)) {
            None | Some(Answer::Right) => response(right(), b""),
            Some(Answer::Cut(most)) => {
                let mut whole = response(right(), b"");
                whole.truncate(*most);
                whole
            }
            Some(Answer::Decorated(headers)) => response(right(), headers),
            Some(Answer::Content(status, headers, content)) => {
                response((*status, String::new(), content.clone()), headers)
            }
            Some(Answer::Endless(headers)) => {
                [b"HTTP/1.1 200 X\r\nConnection: close\r\n", headers.as_slice(), b"\r\n\r\n"].concat()
            }
            Some(Answer::Raw(bytes)) => bytes.clone(),
        };
        self.next += 1;
        if host == 0 {
            self.named.push(answer.clone());
        } else {
            self.demanded |= contains(&answer, b"www-authenticate");
        }
        answer
    }

    /// Whether the answer to the next request has no end.
    fn is_endless(&self) -> bool {
        let last = if self.for_ever { self.answers.len().saturating_sub(1) } else { usize::MAX };
        matches!(self.answers.get(self.next.min(last)), Some(Answer::Endless(_)))
    }

    /// Nobody but the registry learns what proves who asks, unless it has named them as who gives tokens.
    fn check(&self, host: usize, request: &Request) {
        let holds = |text: &str| contains(&request.bytes, text.as_bytes());
        if host == 0 {
            return;
        }
        let may_be_its_own = self.is_mirrored && self.demanded;
        assert!(may_be_its_own || !holds("authorization: Bearer"), "{HOSTS:?}[{host}] gets a token: {request:?}");
        let is_named = self.named.iter().any(|answer| contains(answer, HOSTS[host].as_bytes()));
        assert!(is_named || !(holds(SECRET) || holds(PASSWORD)), "{HOSTS:?}[{host}] gets the password: {request:?}");
    }

    /// Status, headers and content of what a registry has.
    fn right(&self, request: &Request) -> (u16, String, Vec<u8>) {
        let path = request.target.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let found = match name.parse::<Digest>() {
            Ok(digest) => self.documents.iter().find(|document| Digest::of(document) == digest),
            Err(_) => self.documents.last().filter(|_| path.contains("/manifests/")),
        };
        match found {
            None if path.ends_with("/token") => (200, String::new(), br#"{"token": "t"}"#.to_vec()),
            None => (404, String::new(), Vec::new()),
            Some(document) => match request.from.filter(|from| *from < document.len()) {
                Some(from) => {
                    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", document.len() - 1, document.len());
                    (206, range, document[from..].to_vec())
                }
                None => (200, String::new(), document.clone()),
            },
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

/// A response with further headers, which may say anything about the content too.
fn response((status, known, content): (u16, String, Vec<u8>), headers: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status:03} X\r\nConnection: close\r\n{known}").into_bytes();
    if !headers.is_empty() {
        head.extend(headers);
        head.extend(b"\r\n");
    }
    if !contains(headers, b"content-length") && !contains(headers, b"transfer-encoding") {
        head.extend(format!("Content-Length: {}\r\n", content.len()).as_bytes());
    }
    [head, b"\r\n".to_vec(), content].concat()
}

#[derive(Debug)]
struct Request {
    /// Path and query.
    target: String,
    /// First byte that is wanted.
    from: Option<usize>,
    /// All of it.
    bytes: Vec<u8>,
}

impl Request {
    /// Reads one; `None` where it is not HTTP.
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut stream = BufReader::new(stream);
        let mut bytes = Vec::new();
        if !stream.fill_buf().ok()?.first()?.is_ascii_uppercase() {
            return None;
        }
        while !bytes.ends_with(b"\r\n\r\n") {
            if stream.read_until(b'\n', &mut bytes).ok()? == 0 {
                return None;
            }
        }
        let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let target = head.split(' ').nth(1)?.to_owned();
        let from = header("range: bytes=").and_then(|range| range.trim_end_matches('-').parse().ok());
        let length = header("content-length: ").and_then(|length| length.parse().ok()).unwrap_or(0);
        stream.take(length).read_to_end(&mut bytes).ok()?;
        Some(Self { target, from, bytes })
    }
}

/// Does `work` while both hosts answer with what `script` says.
fn serve<T>(script: &Mutex<Script>, work: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (host, listener) in LISTENERS.iter().enumerate() {
            let is_over = &is_over;
            scope.spawn(move || {
                for stream in listener.incoming() {
                    if is_over.load(Ordering::Acquire) {
                        return;
                    }
                    scope.spawn(move || connection(host, &stream.expect("a connection"), script));
                }
            });
        }
        let done = work();
        is_over.store(true, Ordering::Release);
        // Wakes those who wait for somebody to serve.
        for host in HOSTS {
            TcpStream::connect(host).expect("it listens");
        }
        done
    })
}

fn connection(host: usize, stream: &TcpStream, script: &Mutex<Script>) {
    let Some(request) = Request::read(stream) else { return };
    let lock = || -> MutexGuard<'_, Script> { script.lock().expect("nobody panics with it") };
    let (is_endless, answer) = {
        let mut script = lock();
        (script.is_endless(), script.answer(host, &request))
    };
    // Who was refused goes away early.
    let mut sent = (&mut &*stream).write_all(&answer);
    while is_endless && sent.is_ok() {
        sent = (&mut &*stream).write_all(&[b' '; 4096]);
    }
    let _ = stream.shutdown(Shutdown::Write);
}
