use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn service(version: Version) -> Service {
    let mut store = Store::new(1000);
    store.put(json!({ "latest": { "meta-data": { "ami-id": "ami-1" }, "n": 1 } })).unwrap();
    Service { store, tokens: Tokens::default(), version, imds_compat: false, random: || Some([0xa5; BYTES]) }
}

/// The status of the answer to a request, and its body.
fn ask(service: &mut Service, request: &str, now: Instant) -> (u16, String) {
    let answer = service.answer(request.as_bytes(), now).unwrap();
    assert_eq!(answer.taken, request.len());
    let text = String::from_utf8(answer.bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
}

#[test]
fn the_first_version_needs_no_token() {
    let (mut service, now) = (service(Version::V1), Instant::now());
    let mut ask = |request: &str| ask(&mut service, request, now);
    assert_eq!(ask(&get("/latest/meta-data", "")), (200, "ami-id".into()));
    assert_eq!(ask(&get("//latest///meta-data/", "X-metadata-token: wrong\r\n")), (200, "ami-id".into()));
    assert_eq!(ask(&get("http://169.254.169.254/latest/n", "Accept: application/json\r\n")), (200, "1".into()));
    for other in ["*/*", "text/plain", "application/json2", "text/plain, application/json"] {
        assert_eq!(ask(&get("/latest/n", &format!("Accept: {other}\r\n"))).0, 501, "{other}");
    }
    assert_eq!(ask(&get("/none", "")), (404, "Resource not found: /none.".into()));
    assert_eq!(ask(&get("/latest/n?x", "accept: application/json\r\n")).0, 404);
    assert_eq!(ask(&get("none", "")), (400, "Invalid URI.".into()));
    assert_eq!(ask("DELETE / HTTP/1.1\r\n\r\n"), (405, "Not allowed HTTP method.".into()));
    assert_eq!(ask("POST / HTTP/1.1\r\n\r\n"), (501, "Unsupported HTTP method.".into()));
    assert_eq!(ask("GET /latest/meta-data/ami-id HTTP/1.0\r\n\r\n"), (200, "ami-1".into()));
}

#[test]
fn answers_say_what_they_are() {
    let (mut service, now) = (service(Version::V1), Instant::now());
    let mut head = |request: &str| {
        let text = String::from_utf8(service.answer(request.as_bytes(), now).unwrap().bytes).unwrap();
        text.split_once("\r\n\r\n").unwrap().0.to_owned()
    };
    let json = "Accept: application/json\r\n";
    let expected = "HTTP/1.1 200 OK\r\nServer: Bellows\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 7";
    assert_eq!(head(&get("/latest/meta-data/ami-id", json)), expected);
    assert!(head(&get("/latest/meta-data/ami-id", "")).contains("Content-Type: text/plain\r\nContent-Length: 5"));
    assert!(head(&get("/none", json)).contains("Content-Type: text/plain"));
    assert!(head("PATCH / HTTP/1.1\r\n\r\n").ends_with("\r\nAllow: GET, PUT"));
    assert!(head("GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 200 OK\r\nServer: Bellows\r\nConnection: close\r\n"));
    service.imds_compat = true;
    let text = String::from_utf8(service.answer(get("/latest", json).as_bytes(), now).unwrap().bytes).unwrap();
    assert!(text.contains("Content-Type: text/plain\r\n") && text.ends_with("\r\n\r\nmeta-data/\nn"), "{text}");
}

fn put(headers: &str) -> String {
    format!("PUT /latest/api/token HTTP/1.1\r\n{headers}\r\n")
}

#[test]
fn a_wish_for_a_token_that_is_wrong_is_refused() {
    let (mut service, now) = (service(Version::V2), Instant::now());
    for (headers, expected) in [
        ("", NO_LIFE),
        (
            "X-metadata-token-ttl-seconds: 0\r\n",
            "Invalid time to live value provided for token: 0. Please provide a value between 1 and 21600.",
        ),
        (
            "X-metadata-token-ttl-seconds: 21601\r\n",
            "Invalid time to live value provided for token: 21601. Please provide a value between 1 and 21600.",
        ),
        (
            "x-Metadata-token-ttl-seconds: soon\r\n",
            "Invalid header. Reason: Invalid value. Key:x-Metadata-token-ttl-seconds; Value:soon",
        ),
        (
            "X-metadata-token-ttl-seconds: 60\r\nx-forwarded-for: a\r\n",
            "Invalid header. Reason: Unsupported header name. Key: x-forwarded-for",
        ),
    ] {
        assert_eq!(ask(&mut service, &put(headers), now), (400, expected.into()));
    }
    let other = "PUT /latest/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n";
    assert_eq!(ask(&mut service, other, now), (404, "Resource not found: /latest/token.".into()));
    service.random = || None;
    assert_eq!(ask(&mut service, &put("X-metadata-token-ttl-seconds: 60\r\n"), now).0, 400);
}

#[test]
fn the_second_version_needs_a_token_that_lives() {
    let (mut service, now) = (service(Version::V2), Instant::now());
    let path = "/latest/meta-data/ami-id";
    assert_eq!(ask(&mut service, &get(path, ""), now), (401, NO_TOKEN.into()));
    for (life, token) in LIFE.iter().zip(TOKEN) {
        let answer = service.answer(put(&format!("{life}: 60\r\n")).as_bytes(), now).unwrap();
        let text = String::from_utf8(answer.bytes).unwrap();
        assert!(text.contains(&format!("{life}: 60\r\n")), "{text}");
        let given = text.rsplit("\r\n").next().unwrap();
        assert_eq!(given, "a5".repeat(BYTES));
        let request = get(path, &format!("{token}: {given}\r\n"));
        // As often as it is wanted, until its time has come.
        for seconds in [0, 30, 59] {
            assert_eq!(ask(&mut service, &request, now + Duration::from_secs(seconds)), (200, "ami-1".into()));
        }
        let refused = (401, "MMDS token not valid.".to_owned());
        assert_eq!(ask(&mut service, &request, now + Duration::from_secs(60)), refused);
        for wrong in [format!("{given}0"), given[1..].into(), "A5".repeat(BYTES), "a4".repeat(BYTES), String::new()] {
            assert_eq!(ask(&mut service, &get(path, &format!("{token}: {wrong}\r\n")), now), refused, "{wrong:?}");
        }
    }
}

#[test]
fn requests_may_come_in_pieces_and_behind_each_other() {
    let (mut service, now) = (service(Version::V1), Instant::now());
    let first = get("/latest/n", "Content-Length: 0\r\n");
    let two = format!("{first}{}", get("/", "Connection: close\r\n"));
    let first = first.len();
    for part in 0..first {
        assert_eq!(service.answer(&two.as_bytes()[..part], now), None, "{part}");
    }
    let answer = service.answer(two.as_bytes(), now).unwrap();
    assert_eq!((answer.taken, answer.last), (first, false));
    let answer = service.answer(&two.as_bytes()[first..], now).unwrap();
    assert_eq!((answer.taken, answer.last), (two.len() - first, true));
}

#[test]
fn what_is_too_large_or_no_request_ends_the_connection() {
    let (mut service, now) = (service(Version::V1), Instant::now());
    for (request, status) in [
        (vec![b'a'; MAX_REQUEST], 400),
        (get("/", &"a: b\r\n".repeat(700)).into_bytes(), 200),
        (get("/", "no colon\r\n").into_bytes(), 400),
        (get("/", "Content-Length: 1\r\n").into_bytes(), 400),
        (get("/", "Content-Length: -1\r\n").into_bytes(), 400),
        (get("/", "Transfer-Encoding: chunked\r\n").into_bytes(), 400),
        (b"GET  HTTP/1.1\r\n\r\n".to_vec(), 400),
        (b"GET /\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/2\r\n\r\n".to_vec(), 501),
        (b"get / HTTP/1.1\r\n\r\n".to_vec(), 501),
        (b"\xff\xfe / HTTP/1.1\r\n\r\n".to_vec(), 400),
    ] {
        let answer = service.answer(&request, now).unwrap();
        let text = String::from_utf8_lossy(&answer.bytes).into_owned();
        assert_eq!(answer.last, status != 200, "{}", String::from_utf8_lossy(&request));
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{}: {text}", String::from_utf8_lossy(&request));
        assert_eq!(answer.taken, request.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes: no panic, an answer once it is too much, and never more taken than there is.
    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3_usize, copies in 1..40_usize) {
        let (mut service, now) = (service(Version::V2), Instant::now());
        let begin: &[u8] = [&b""[..], b"GET /latest HTTP/1.1\r\n", b"PUT /latest/api/token HTTP/1.1\r\n"][kind];
        let end: &[u8] = if copies % 2 == 0 { b"\r\n\r\n" } else { b"" };
        let all = [begin, &bytes.repeat(copies), end].concat();
        match service.answer(&all, now) {
            Some(answer) => prop_assert!(answer.taken <= all.len() && answer.bytes.starts_with(b"HTTP/1.")),
            None => prop_assert!(all.len() < MAX_REQUEST),
        }
    }
}
