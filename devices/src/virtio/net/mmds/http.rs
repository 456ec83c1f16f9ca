//! The service's HTTP: from the bytes of a request to those of an answer. Paths, headers, codes and texts are those of Firecracker 1.16.1
//! (`src/vmm/src/mmds`, `docs/mmds/mmds-user-guide.md`).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Instant;

use super::Version;
use super::store::{Format, Missing, Store};
use super::tokens::{BYTES, LIVES_S, Tokens};

/// Most bytes of a request.
pub(super) const MAX_REQUEST: usize = 4096;
const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN: &[&str] = &["X-metadata-token", "X-aws-ec2-metadata-token"];
const LIFE: &[&str] = &["X-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token-ttl-seconds"];

const NO_TOKEN: &str =
    "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token.";
const NO_LIFE: &str = "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.";

/// What the service knows.
pub(super) struct Service {
    pub(super) store: Store,
    pub(super) tokens: Tokens,
    pub(super) version: Version,
    /// Whether values are told as EC2's service does, whatever the client accepts.
    pub(super) imds_compat: bool,
    /// Gives random bytes.
    pub(super) random: fn() -> Option<[u8; BYTES]>,
}

/// What is to be sent.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Answer {
    /// Bytes of the request.
    pub(super) taken: usize,
    pub(super) bytes: Vec<u8>,
    /// Whether the connection ends with it.
    pub(super) last: bool,
}

/// A request. None has a body.
struct Request<'a> {
    method: Method,
    path: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    protocol: &'static str,
}

/// What the service has a word for.
enum Method {
    Get,
    Put,
    Other,
}

struct Reply {
    status: u16,
    json: bool,
    body: Cow<'static, str>,
    header: Option<(String, String)>,
}

impl Service {
    /// Answers the first request in `received`; `None` while it is not whole.
    pub(super) fn answer(&mut self, received: &[u8], now: Instant) -> Option<Answer> {
        let Some(head) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            let is_full = received.len() >= MAX_REQUEST;
            return is_full.then(|| bad("Invalid request.").last(received.len()));
        };
        let request = match Request::parse(&received[..head]) {
            Ok(request) => request,
            // Where the next request begins is not known either.
            Err(reply) => return Some(reply.last(received.len())),
        };
        let wants_end = request.header(&["Connection"]).is_some_and(|(_, value)| value.eq_ignore_ascii_case("close"));
        let last = wants_end || request.protocol == "HTTP/1.0";
        let bytes = self.reply(&request, now).bytes(request.protocol, last);
        Some(Answer { taken: head + 4, bytes, last })
    }

    fn reply(&mut self, request: &Request<'_>, now: Instant) -> Reply {
        if request.path.is_empty() {
            return bad("Invalid URI.");
        }
        match request.method {
            Method::Get => self.get(request, now),
            Method::Put => self.put(request, now),
            Method::Other => {
                Reply { header: Some(("Allow".into(), "GET, PUT".into())), ..plain(405, "Not allowed HTTP method.") }
            }
        }
    }

    fn get(&self, request: &Request<'_>, now: Instant) -> Reply {
        match (self.version, request.header(TOKEN)) {
            // The first version answers without a token, and with a wrong one.
            (Version::V1, _) => {}
            (Version::V2, None) => return plain(401, NO_TOKEN),
            (Version::V2, Some((_, token))) if self.tokens.is_valid(token, now) => {}
            (Version::V2, Some(_)) => return plain(401, "MMDS token not valid."),
        }
        let json = !self.imds_compat && request.header(&["Accept"]).is_some_and(|(_, kind)| kind == "application/json");
        let format = if json { Format::Json } else { Format::Lines };
        match self.store.tell(&single_slashes(request.path), format) {
            Ok(body) => Reply { json, ..plain(200, body) },
            Err(Missing::Nowhere) => not_found(request),
            Err(Missing::Kind) => plain(501, "Cannot retrieve value. The value has an unsupported type."),
        }
    }

    fn put(&mut self, request: &Request<'_>, now: Instant) -> Reply {
        if let Some((name, _)) = request.header(&["X-Forwarded-For"]) {
            return bad(format!("Invalid header. Reason: Unsupported header name. Key: {name}"));
        }
        if single_slashes(request.path) != TOKEN_PATH {
            return not_found(request);
        }
        let Some((name, life)) = request.header(LIFE) else { return bad(NO_LIFE) };
        let Ok(seconds) = life.parse::<u32>() else {
            return bad(format!("Invalid header. Reason: Invalid value. Key:{name}; Value:{life}"));
        };
        if !LIVES_S.contains(&seconds) {
            let (least, most) = LIVES_S.into_inner();
            return bad(format!(
                "Invalid time to live value provided for token: {seconds}. Please provide a value between {least} and {most}."
            ));
        }
        let Some(random) = (self.random)() else { return bad("Failed to encrypt token.") };
        let token = self.tokens.give(random, seconds, now);
        Reply { header: Some((name.into(), seconds.to_string())), ..plain(200, token) }
    }
}

impl<'a> Request<'a> {
    /// Reads all of a request but the empty line at its end.
    fn parse(head: &'a [u8]) -> Result<Self, Reply> {
        let head = std::str::from_utf8(head).map_err(|_| bad("Invalid request."))?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().splitn(3, ' ');
        let (Some(method), Some(target), Some(protocol)) = (words.next(), words.next(), words.next()) else {
            return Err(bad("Invalid request."));
        };
        let method = match method {
            "GET" => Method::Get,
            "PUT" => Method::Put,
            "PATCH" | "DELETE" => Method::Other,
            _ => return Err(plain(501, "Unsupported HTTP method.")),
        };
        if target.is_empty() {
            return Err(bad("Empty URI not allowed."));
        }
        let protocol = match protocol {
            "HTTP/1.0" => "HTTP/1.0",
            "HTTP/1.1" => "HTTP/1.1",
            _ => return Err(plain(501, "Unsupported HTTP version.")),
        };
        let header = |line: &'a str| match line.split_once(':') {
            Some((name, value)) => Ok((name.trim(), value.trim())),
            None => Err(bad(format!("Header is incorrectly formatted. Key: {line}"))),
        };
        let headers = lines.map(header).collect::<Result<_, _>>()?;
        let request = Self { method, path: path(target), headers, protocol };
        let has_body = request.header(&["Content-Length"]).is_some_and(|(_, length)| length.parse() != Ok(0_u32));
        if has_body || request.header(&["Transfer-Encoding"]).is_some_and(|(_, value)| value != "identity") {
            return Err(bad("Invalid request."));
        }
        Ok(request)
    }

    /// The first header with one of these names, as the client spells it, and its value.
    fn header(&self, names: &[&str]) -> Option<(&'a str, &'a str)> {
        let is_named = |name: &str| names.iter().any(|wanted| wanted.eq_ignore_ascii_case(name));
        self.headers.iter().copied().find(|(name, _)| is_named(name))
    }
}

/// The path of a target; empty if it has none. A client that takes the service for a proxy names the host, too.
fn path(target: &str) -> &str {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("", |at| &rest[at..]),
        None => target,
    };
    if path.starts_with('/') { path } else { "" }
}

fn single_slashes(path: &str) -> String {
    let mut single = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !single.ends_with('/') {
            single.push(character);
        }
    }
    single
}

fn plain(status: u16, body: impl Into<Cow<'static, str>>) -> Reply {
    Reply { status, json: false, body: body.into(), header: None }
}

fn bad(body: impl Into<Cow<'static, str>>) -> Reply {
    plain(400, body)
}

fn not_found(request: &Request<'_>) -> Reply {
    plain(404, format!("Resource not found: {}.", request.path))
}

impl Reply {
    fn bytes(self, protocol: &str, last: bool) -> Vec<u8> {
        let connection = if last { "close" } else { "keep-alive" };
        let kind = if self.json { "application/json" } else { "text/plain" };
        let Self { status, body, header, .. } = self;
        let reason = match status {
            200 => "OK",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            501 => "Not Implemented",
            _ => "Bad Request",
        };
        let mut text = format!(
            "{protocol} {status} {reason}\r\nServer: Bellows\r\nConnection: {connection}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n",
            body.len()
        );
        if let Some((name, value)) = header {
            let _ = write!(text, "{name}: {value}\r\n");
        }
        text.push_str("\r\n");
        text.push_str(&body);
        text.into_bytes()
    }

    /// The answer to something after which nothing is understood.
    fn last(self, taken: usize) -> Answer {
        Answer { taken, bytes: self.bytes("HTTP/1.1", true), last: true }
    }
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
