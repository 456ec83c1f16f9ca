//! Registries that fail for a while, redirect, or have mirrors.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::testing::{Answer, FakeRegistry, RegistryServer, Request};

/// What a layout's first layer is asked for as.
fn first_blob(builder: &LayoutBuilder) -> Digest {
    expected(builder).layers[0].digests.blob.unwrap()
}

fn pinned(registry: &FakeRegistry, manifest: &Value) -> String {
    format!("{}/a@{}", registry.address(), manifest["digest"].as_str().unwrap())
}

/// A function's answers, the first to the first call.
fn in_turn(answers: Vec<Option<Answer>>) -> impl Fn() -> Option<Answer> + Send + Sync {
    let next = AtomicUsize::new(0);
    move || answers.get(next.fetch_add(1, Ordering::Relaxed)).cloned().flatten()
}

fn status(status: u16) -> Option<Answer> {
    Some(Answer::Content(status, vec![("Retry-After", "0".to_owned())], Vec::new()))
}

fn notes(place: &mut Place) -> Arc<Mutex<Vec<Retry>>> {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&notes);
    place.options.retries.notice = Arc::new(move |retry: &Retry| kept.lock().unwrap().push(retry.clone()));
    notes
}

#[test]
fn what_passes_is_tried_again_and_said() {
    let (builder, manifest) = layout();
    for (wrong, answers) in [
        ("/manifests/", vec![status(429), status(503)]),
        ("/blobs/", vec![status(502), status(504)]),
        ("/manifests/", vec![Some(Answer::Broken(Vec::new())), status(429)]),
        ("/manifests/", vec![Some(Answer::Cut(b"{\"schema".to_vec(), 500)), Some(Answer::Cut(b"{".to_vec(), 500))]),
    ] {
        let next = in_turn(answers);
        let registry =
            FakeRegistry::of(builder.path(), move |request| request.target.contains(wrong).then(&next).flatten());
        let mut place = Place::new();
        let notes = notes(&mut place);
        place.import(&pinned(&registry, &manifest)).unwrap();
        let notes = notes.lock().unwrap();
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes.iter().all(|note| note.url.contains(wrong) && note.tries == 3), "{notes:?}");
    }
}

#[test]
fn what_does_not_pass_is_given_up() {
    let (builder, manifest) = layout();
    let asked = |answer: Answer, part: &'static str| {
        let registry =
            FakeRegistry::of(builder.path(), move |request| request.target.contains(part).then(|| answer.clone()));
        let message = Place::new().refused(&pinned(&registry, &manifest));
        (registry.requests().iter().filter(|request| request.target.contains(part)).count(), message)
    };
    let wait = |text: &str| Answer::Content(429, vec![("Retry-After", text.to_owned())], Vec::new());
    let (count, message) = asked(wait("0"), "/manifests/");
    assert!(count == 3 && message.contains("status 429"), "{count}: {message}");
    let (count, message) = asked(wait("86400"), "/manifests/");
    assert!(count == 1 && message.contains("86400 s"), "{count}: {message}");
    let (count, message) = asked(Answer::Content(500, Vec::new(), Vec::new()), "/manifests/");
    assert!(count == 1 && message.contains("status 500"), "{count}: {message}");
    let (count, message) = asked(Answer::Broken(Vec::new()), "/manifests/");
    assert!(count == 3 && message.contains("does not answer as it should"), "{count}: {message}");
}

/// The first answer to a blob breaks off after some bytes; what is asked for then.
fn broken_once(builder: &LayoutBuilder, then: impl Fn(&[u8], u64) -> Answer + Send + Sync + 'static) -> FakeRegistry {
    let blob = first_blob(builder);
    let data = std::fs::read(builder.blob_path(&blob)).unwrap();
    let broken = Answer::Cut(data[..1_000_001].to_vec(), data.len() as u64);
    let next = in_turn(vec![Some(broken)]);
    FakeRegistry::of(builder.path(), move |request: &Request| {
        if !request.target.ends_with(&blob.to_string()) {
            return None;
        }
        let from = |range: &str| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok();
        next().or_else(|| Some(then(&data, request.header("range").and_then(from)?)))
    })
}

#[test]
fn a_blob_goes_on_where_it_broke() {
    let (builder, manifest) = layout();
    let part = |data: &[u8], from: u64, claimed: u64| {
        let range = format!("bytes {claimed}-{}/{}", data.len() - 1, data.len());
        let from = usize::try_from(from).unwrap();
        Answer::Content(206, vec![("Content-Range", range)], data[from..].to_vec())
    };
    let expected = expected(&builder).digest;
    let registry = broken_once(&builder, move |data, from| part(data, from, from));
    let mut place = Place::new();
    let notes = notes(&mut place);
    assert_eq!(Some(place.import(&pinned(&registry, &manifest)).unwrap().digest), expected);
    let ranges: Vec<_> = registry.requests().iter().filter_map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=1000001-"]);
    let notes = notes.lock().unwrap();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].url.contains("/a/blobs/sha256:") && !notes[0].reason.is_empty(), "{notes:?}");

    // A registry that knows no ranges sends all of it again.
    let registry = broken_once(&builder, |data, _| Answer::ok(TAR, data));
    assert_eq!(Some(Place::new().import(&pinned(&registry, &manifest)).unwrap().digest), expected);

    // One that sends another part than it was asked for, and one that says so.
    let registry = broken_once(&builder, move |data, from| part(&[&[7], data].concat()[..data.len()], from, from));
    assert!(Place::new().refused(&pinned(&registry, &manifest)).contains("has the digest"));

    // One that does not give the rest by itself, and one that does not say what it gives.
    let registry = broken_once(&builder, |_, _| Answer::Content(416, Vec::new(), Vec::new()));
    assert_eq!(Some(Place::new().import(&pinned(&registry, &manifest)).unwrap().digest), expected);
    let registry = broken_once(&builder, |data, _| Answer::Content(206, Vec::new(), data.to_vec()));
    assert_eq!(Some(Place::new().import(&pinned(&registry, &manifest)).unwrap().digest), expected);
    let registry = broken_once(&builder, move |data, from| part(data, from, from + 1));
    assert_eq!(Some(Place::new().import(&pinned(&registry, &manifest)).unwrap().digest), expected);
    let blob = first_blob(&builder);
    let bytes = std::fs::metadata(builder.blob_path(&blob)).unwrap().len();
    let next = in_turn(vec![Some(Answer::Cut(vec![0; 1_000_000], bytes))]);
    let registry = FakeRegistry::of(builder.path(), move |request| {
        let wrong = || Answer::Content(206, vec![("Content-Range", "bytes 7-8/9".to_owned())], Vec::new());
        request.target.ends_with(&blob.to_string()).then(|| next().unwrap_or_else(wrong))
    });
    assert!(Place::new().refused(&pinned(&registry, &manifest)).contains("another part"));
}

#[test]
fn the_stored_bytes_are_asked_for() {
    let (builder, manifest) = layout();
    let registry = FakeRegistry::of(builder.path(), |_| None);
    Place::new().import(&pinned(&registry, &manifest)).unwrap();
    for request in registry.requests() {
        assert_eq!(request.header("accept-encoding"), Some("identity"), "{request:?}");
    }
    // What a registry says of an encoding all the same means nothing.
    let blob = first_blob(&builder);
    let data = std::fs::read(builder.blob_path(&blob)).unwrap();
    let registry = FakeRegistry::of(builder.path(), move |request| {
        let encoded = || Answer::Content(200, vec![("Content-Encoding", "x-gzip".to_owned())], data.clone());
        request.target.ends_with(&blob.to_string()).then(encoded)
    });
    Place::new().import(&pinned(&registry, &manifest)).unwrap();
}

/// A registry with a token for each request, and blobs elsewhere.
fn with_token(
    builder: &LayoutBuilder,
    location: impl Fn(&Request) -> Option<String> + Send + Sync + 'static,
) -> FakeRegistry {
    FakeRegistry::of(builder.path(), move |request| {
        if request.target.starts_with("/token") {
            return Some(Answer::ok("application/json", r#"{"token": "t"}"#));
        }
        if request.authorization.as_deref() != Some("Bearer t") {
            let host = request.header("host").unwrap();
            let challenge = format!("Basic realm=\"x\", Bearer realm=\"http://{host}/token\"");
            return Some(Answer::Content(401, vec![("WWW-Authenticate", challenge)], Vec::new()));
        }
        location(request).map(|location| Answer::Content(307, vec![("Location", location)], Vec::new()))
    })
}

#[test]
fn a_token_goes_along_to_the_same_server_only() {
    let (builder, manifest) = layout();
    let moved = |request: &Request| {
        let moved = request.target.replace("/v2/a/blobs/", "/files/");
        (moved != request.target && !request.target.starts_with("/files/")).then_some(moved)
    };
    let registry = with_token(&builder, moved);
    Place::new().import(&pinned(&registry, &manifest)).unwrap();
    let requests = registry.requests();
    let files: Vec<_> = requests.iter().filter(|request| request.target.starts_with("/files/")).collect();
    assert_eq!(files.len(), LAYERS + 1);
    assert!(files.iter().all(|request| request.authorization.as_deref() == Some("Bearer t")));

    // Another port is another server. What it demands is its own affair.
    let storage = FakeRegistry::of(builder.path(), |request| {
        let challenge = "Basic realm=\"give me\"".to_owned();
        let denied = Answer::Content(401, vec![("WWW-Authenticate", challenge)], Vec::new());
        request.authorization.is_none().then_some(denied)
    });
    let place = storage.address();
    let registry = with_token(&builder, move |request| {
        request.target.contains("/blobs/").then(|| format!("http://{place}{}", request.target))
    });
    let mut place = Place::new();
    place.options.credentials = password();
    let message = place.refused(&pinned(&registry, &manifest));
    assert!(message.contains("status 401"), "{message}");
    assert!(storage.requests().iter().all(|request| request.authorization.is_none()));
}

/// A registry that wants a token which `tokens` gives.
fn with_tokens_from(builder: &LayoutBuilder, tokens: &FakeRegistry) -> FakeRegistry {
    let realm = format!("http://{}/token", tokens.address());
    FakeRegistry::of(builder.path(), move |request| {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
        let denied = Answer::Content(401, vec![("WWW-Authenticate", challenge)], Vec::new());
        (request.authorization.as_deref() != Some("Bearer t")).then_some(denied)
    })
}

fn token() -> Answer {
    Answer::ok("application/json", r#"{"token": "t"}"#)
}

#[test]
fn a_token_is_worth_several_tries() {
    let (builder, manifest) = layout();
    let next = in_turn(vec![status(429), Some(Answer::Cut(b"{\"token\": \"".to_vec(), 500))]);
    let tokens = FakeRegistry::start(move |_| next().unwrap_or_else(token));
    let registry = with_tokens_from(&builder, &tokens);
    let mut place = Place::new();
    let notes = notes(&mut place);
    place.import(&pinned(&registry, &manifest)).unwrap();
    let notes = notes.lock().unwrap();
    assert!(notes.len() == 2 && notes.iter().all(|note| note.url.ends_with("/token")), "{notes:?}");
}

/// The password goes along to the same server and nowhere else.
#[test]
fn who_gives_tokens_may_redirect() {
    let (builder, manifest) = layout();
    let elsewhere = FakeRegistry::start(|_| token());
    for (location, proof) in [
        ("/moved?scope=x".to_owned(), Some("Basic dTpw")),
        (format!("http://{}/moved?scope=x", elsewhere.address()), None),
    ] {
        let moved = vec![("Location", location.clone())];
        let tokens = FakeRegistry::start(move |request| match request.target.starts_with("/token?") {
            true => Answer::Content(301, moved.clone(), Vec::new()),
            false => token(),
        });
        let registry = with_tokens_from(&builder, &tokens);
        let mut place = Place::new();
        place.options.credentials = password();
        place.import(&pinned(&registry, &manifest)).unwrap();
        let asked = [tokens.requests(), elsewhere.requests()].concat();
        assert_eq!(asked[0].target, "/token?scope=repository%3Aa%3Apull&service=s");
        assert_eq!(asked[0].authorization.as_deref(), Some("Basic dTpw"));
        assert_eq!((asked[1].target.as_str(), asked[1].authorization.as_deref()), ("/moved?scope=x", proof));
    }
}

#[test]
fn a_redirect_leads_somewhere() {
    let (builder, manifest) = layout();
    for (location, words) in [
        ("ftp://x/", "`ftp://x/`, which is not the URL"),
        ("", "more than 5 redirects"),
        ("http://a b/", "`http://a b/`, which is not the URL"),
    ] {
        let registry = FakeRegistry::of(builder.path(), move |request| {
            let answer = || Answer::Content(302, vec![("Location", location.to_owned())], Vec::new());
            request.target.contains("/blobs/").then(answer)
        });
        let message = Place::new().refused(&pinned(&registry, &manifest));
        assert!(message.contains(words), "{location:?}: {message}");
    }
}

/// The folder of a registry with a `hosts.toml`.
fn hosts_folder(registry: &str, content: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(registry)).unwrap();
    std::fs::write(folder.path().join(registry).join("hosts.toml"), content).unwrap();
    folder
}

#[test]
fn mirrors_are_asked_first() {
    let (builder, manifest) = layout();
    let missing = first_blob(&builder).to_string();
    let mirror = FakeRegistry::of(builder.path(), move |request| {
        request.target.contains(&missing).then(|| Answer::Content(404, Vec::new(), Vec::new()))
    });
    let registry = FakeRegistry::of(builder.path(), |request| {
        let tag = || Answer::Content(401, vec![("WWW-Authenticate", "Basic realm=x".to_owned())], Vec::new());
        request.authorization.is_none().then(tag)
    });
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let content = format!(
        "server = \"http://{}\"\n[host.\"http://{gone}\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        registry.address(),
        mirror.address()
    );
    let folder = hosts_folder("r.example", &content);
    let mut place = Place::new();
    place.options.hosts_folders = vec![folder.path().into()];
    place.options.credentials = password();
    let digest = manifest["digest"].as_str().unwrap();
    let image = place.import(&format!("r.example/some/a@{digest}")).unwrap();
    assert_eq!(image.digest.to_string(), digest);
    let asked = mirror.requests();
    assert!(asked.iter().all(|request| request.authorization.is_none()), "{asked:?}");
    assert!(asked.iter().all(|request| request.target.ends_with("?ns=r.example")), "{asked:?}");
    let fetched: Vec<_> = registry.requests().into_iter().filter(|request| request.authorization.is_some()).collect();
    assert_eq!(fetched.len(), 1, "{fetched:?}");
    assert!(fetched[0].target.contains(&first_blob(&builder).to_string()) && !fetched[0].target.contains('?'));

    // What a tag stands for only the registry may say.
    let message = Place { options: place.options.clone(), ..Place::new() }.refused("r.example/some/a:tag");
    assert!(message.contains(&registry.address()), "{message}");
    assert_eq!(mirror.requests().len(), asked.len());
}

#[test]
fn a_private_authority_vouches_for_its_registry() {
    let plain = RegistryServer::start();
    let (builder, manifest) = layout();
    plain.push(&builder, "a", &[(&manifest, "1")]);
    let (server, authority) = plain.over_tls("localhost");
    let port = server.address().rsplit_once(':').unwrap().1;
    let url = format!("https://localhost:{port}");
    let mut place = Place::new();
    let reference = "r.example/a:1";
    let folder = hosts_folder("r.example", &format!("server = \"{url}\"\n"));
    place.options.hosts_folders = vec![folder.path().into()];
    let message = place.refused(reference);
    assert!(message.contains("invalid peer certificate"), "{message}");
    let folder = hosts_folder("r.example", &format!("server = \"{url}\"\nca = \"{}\"\n", authority.display()));
    place.options.hosts_folders = vec![folder.path().into()];
    assert_eq!(Some(place.import(reference).unwrap().digest), expected(&builder).digest);
}
