use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::Client;
use super::*;
use crate::cancel::Cancel;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::oci::{ImageSource, OciLayout, Platform, SourceImage};
use crate::store::{Progress, ProgressKind};
use crate::testing::{Answer, Archive, FakeRegistry, LayoutBuilder, RegistryServer, Request};
use crate::{Image, ImportOptions, Store, StoreError};

const LAYERS: usize = 4;
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image of four layers, and its manifest's descriptor. The first layer has bytes that don't compress.
fn layout() -> (LayoutBuilder, Value) {
    let mut builder = LayoutBuilder::new();
    let noise: Vec<_> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    builder.layer(&Archive::new().file("noise", noise).finish(), Compression::None);
    for (n, compression) in [(1, Compression::Gzip), (2, Compression::Zstd), (3, Compression::None)] {
        builder.layer(&Archive::new().file(format!("file{n}"), vec![n; 100_000]).finish(), compression);
    }
    let manifest = builder.manifest("amd64");
    builder.index(std::slice::from_ref(&manifest));
    (builder, manifest)
}

/// `u` and `p`.
fn password() -> CredentialSource {
    CredentialSource::Fixed(Credentials::Password { user: "u".to_owned(), password: "p".to_owned() })
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// What the layout itself gives.
fn expected(builder: &LayoutBuilder) -> SourceImage {
    OciLayout::open(builder.path()).unwrap().image(&amd64(), None).unwrap()
}

struct Place {
    directory: tempfile::TempDir,
    store: Store,
    options: RegistryOptions,
    platform: Platform,
    cancel: Cancel,
    reports: Mutex<Vec<Progress>>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        // Patience with a test's registry is not worth waiting for.
        let retries = Retries { tries: 3, backoff: Duration::from_millis(1), ..Retries::default() };
        let (options, cancel) = (RegistryOptions { retries, ..RegistryOptions::default() }, Cancel::default());
        Self { directory, store, options, platform: amd64(), cancel, reports: Mutex::new(Vec::new()) }
    }

    fn import(&self, reference: &str) -> Result<Image, StoreError> {
        let options = ImportOptions {
            progress: &|step| self.reports.lock().unwrap().push(step),
            cancel: self.cancel.clone(),
            ..ImportOptions::default()
        };
        let source = ImageSource::registry(&reference.parse().unwrap(), &self.options, &self.cancel)?;
        self.store.import(&source.image(&self.platform, None)?, None, &options)
    }

    fn reports(&self) -> Vec<Progress> {
        std::mem::take(&mut *self.reports.lock().unwrap())
    }

    fn files(&self, name: &str) -> usize {
        std::fs::read_dir(self.directory.path().join(name)).unwrap().count()
    }

    /// The whole message of an import that fails and leaves nothing.
    fn refused(&self, reference: &str) -> String {
        let error = self.import(reference).expect_err(reference);
        assert_eq!(["images", "tmp"].map(|name| self.files(name)), [0; 2], "{error}");
        chain(&error)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let errors = std::iter::successors(Some(error), |error| error.source());
    errors.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Layer blobs that were asked for.
fn fetched(registry: &FakeRegistry, image: &SourceImage) -> Vec<Digest> {
    let asked = registry.requests();
    let is_asked = |digest: &Digest| asked.iter().any(|request| request.target.ends_with(&digest.to_string()));
    image.layers.iter().filter_map(|layer| layer.digests.blob).filter(is_asked).collect()
}

#[test]
fn a_pulled_image_is_the_pushed_one() {
    let server = RegistryServer::start();
    let (builder, manifest) = layout();
    server.push(&builder, "some/image", &[(&manifest, "1.0")]);
    let expected = expected(&builder);
    let place = Place::new();
    let image = place.import(&format!("{}/some/image:1.0", server.address())).unwrap();
    assert_eq!((Some(image.digest), &image.config), (expected.digest, &expected.config));
    let diff_ids: Vec<_> = expected.layers.iter().map(|layer| layer.digests.diff_id.unwrap()).collect();
    assert_eq!(image.layers, diff_ids);
    assert!(image.layers.iter().all(|layer| place.store.verify(layer).is_ok()));

    // Bytes and totals for the bars.
    let mut last = BTreeMap::new();
    for report in place.reports() {
        if let ProgressKind::Reading { bytes, total } = report.kind {
            last.insert(report.index, (bytes, total));
        }
    }
    assert_eq!(last.len(), LAYERS);
    assert!(last.values().all(|(bytes, total)| Some(*bytes) == *total), "{last:?}");
    assert!(last[&0].0 > 3_000_000);

    // By its digest; nothing is read again.
    let digest = format!("{}/some/image@{}", server.address(), image.digest);
    assert_eq!(place.import(&digest).unwrap(), image);
    assert!(place.reports().iter().all(|report| report.kind == ProgressKind::Present));

    let place = Place::new();
    let message = place.refused(&format!("{}/some/image:2.0", server.address()));
    let wanted = format!("http://{}/v2/some/image/manifests/2.0", server.address());
    assert!(message.contains(&wanted) && message.contains("404 (MANIFEST_UNKNOWN: "), "{message}");
}

#[test]
fn an_index_has_an_image_for_each_platform() {
    let server = RegistryServer::start();
    let mut builder = LayoutBuilder::new();
    builder.layer(&Archive::new().file("a", "a").finish(), Compression::Gzip);
    let mut manifests = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let mut manifest = builder.manifest(architecture);
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifests.push(manifest);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    let index = builder.document(&index, media_type);
    let tags: Vec<_> = manifests.iter().map(|manifest| (manifest, manifest["digest"].as_str().unwrap())).collect();
    server.push(&builder, "multi", &tags);
    server.push(&builder, "multi", &[(&index, "latest")]);
    let reference = format!("{}/multi", server.address());
    for (platform, manifest) in [("linux/amd64", &manifests[0]), ("linux/arm64", &manifests[1])] {
        let place = Place { platform: platform.parse().unwrap(), ..Place::new() };
        assert_eq!(place.import(&reference).unwrap().digest.to_string(), manifest["digest"].as_str().unwrap());
    }
    let place = Place { platform: "linux/s390x".parse().unwrap(), ..Place::new() };
    let message = place.refused(&reference);
    assert!(message.contains("linux/s390x") && message.contains("linux/arm64"), "{message}");
}

#[test]
fn a_registry_with_a_password_is_told_it() {
    let server = RegistryServer::with_password();
    let (builder, manifest) = layout();
    server.push(&builder, "private", &[(&manifest, "latest")]);
    let reference = format!("{}/private", server.address());
    let mut place = Place::new();
    let message = place.refused(&reference);
    assert!(message.contains("wants a user and a password"), "{message}");
    let credentials = |password: &str| {
        let (user, password) = (RegistryServer::USER.0.to_owned(), password.to_owned());
        CredentialSource::Fixed(Credentials::Password { user, password })
    };
    place.options.credentials = credentials("wrong");
    let message = place.refused(&reference);
    assert!(message.contains("status 401") && !message.contains("wrong"), "{message}");
    place.options.credentials = credentials(RegistryServer::USER.1);
    assert_eq!(Some(place.import(&reference).unwrap().digest), expected(&builder).digest);
}

/// Tokens are fetched when they are asked for, run out, and go to nobody else.
#[test]
fn tokens_are_fetched_as_often_as_it_takes() {
    let (builder, manifest) = layout();
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let issued = AtomicUsize::new(0);
    let used = AtomicUsize::new(0);
    let registry = FakeRegistry::of(builder.path(), move |request| {
        let host = "127.0.0.1";
        if request.target.starts_with("/token") {
            let token = json!({"access_token": format!("t{}", issued.fetch_add(1, Ordering::Relaxed))});
            return Some(Answer::ok("application/json", token.to_string()));
        }
        // Each token is good for three requests.
        let valid = format!("Bearer t{}", issued.load(Ordering::Relaxed).wrapping_sub(1));
        if request.authorization.as_ref() == Some(&valid) && used.fetch_add(1, Ordering::Relaxed) % 4 != 3 {
            return None;
        }
        let port = request.target.split("/port").nth(1).unwrap().split('/').next().unwrap();
        let challenge =
            format!("Negotiate, Bearer realm=\"http://{host}:{port}/token?a=1\",service=\"a b\",scope=\"everything\"");
        Some(Answer::Content(401, vec![("WWW-Authenticate", challenge)], Vec::new()))
    });
    let port = registry.address().split_once(':').unwrap().1.to_owned();
    let mut place = Place::new();
    place.options.credentials = password();
    let options = ImportOptions { threads: std::num::NonZero::<usize>::MIN, ..ImportOptions::default() };
    let reference = format!("{}/port{port}/image@{digest}", registry.address());
    let source = ImageSource::registry(&reference.parse().unwrap(), &place.options, &place.cancel).unwrap();
    let image = place.store.import(&source.image(&amd64(), None).unwrap(), None, &options).unwrap();
    assert_eq!(image.digest.to_string(), digest);
    let requests = registry.requests();
    let tokens: Vec<_> = requests.iter().filter(|request| request.target.starts_with("/token")).collect();
    assert!(tokens.len() >= 2, "{requests:?}");
    for request in tokens {
        let target = &request.target;
        assert!(
            target.starts_with("/token?a=1&scope=repository%3Aport") && target.contains("%3Apull&service=a"),
            "{target}"
        );
        assert_eq!(request.authorization.as_deref(), Some("Basic dTpw"));
    }
    // The password goes to who gives tokens only.
    let others = requests.iter().filter(|request| !request.target.starts_with("/token"));
    assert!(others.filter_map(|request| request.authorization.as_ref()).all(|proof| proof.starts_with("Bearer t")));
}

#[test]
fn a_redirect_is_followed_without_the_token() {
    let (builder, manifest) = layout();
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let storage = FakeRegistry::of(builder.path(), |_| None);
    let target = storage.address();
    let registry = FakeRegistry::of(builder.path(), move |request| {
        if request.authorization.is_none() {
            return Some(Answer::Content(401, vec![("WWW-Authenticate", "Basic realm=x".to_owned())], Vec::new()));
        }
        let location = format!("http://{target}{}", request.target);
        request.target.contains("/blobs/").then(|| Answer::Content(307, vec![("Location", location)], Vec::new()))
    });
    let mut place = Place::new();
    place.options.credentials = password();
    place.import(&format!("{}/a@{digest}", registry.address())).unwrap();
    let requests = storage.requests();
    assert_eq!(requests.len(), LAYERS + 1);
    assert!(requests.iter().all(|request| request.authorization.is_none()), "{requests:?}");
}

/// Whatever the registry does: a message that says it, and no image.
#[test]
fn a_hostile_registry_is_refused() {
    let (builder, manifest) = layout();
    let expected = expected(&builder);
    let blob = |index: usize| expected.layers[index].digests.blob.unwrap();
    let data = |index: usize| std::fs::read(builder.blob_path(&blob(index))).unwrap();
    let digest = manifest["digest"].as_str().unwrap();
    let mut other = data(0);
    other[1_500_000] ^= 1;
    let short = data(0)[..1_000_000].to_vec();
    let chunked = |data: &[u8]| {
        let mut body = format!("{:x}\r\n", data.len()).into_bytes();
        body.extend(data);
        body.extend(b"\r\n0\r\n\r\n");
        Answer::Content(200, vec![("Transfer-Encoding", "chunked".to_owned())], body)
    };
    let cut = Answer::Content(200, vec![("Content-Length", data(0).len().to_string())], short.clone());
    let huge = |length: &str| Answer::Content(200, vec![("Content-Length", length.to_owned())], b"{}".to_vec());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let config: Value =
        serde_json::from_slice(&std::fs::read(builder.blob_path(&digest.parse().unwrap())).unwrap()).unwrap();
    let config = config["config"]["digest"].as_str().unwrap();
    let (first, at_tag, pinned) = (blob(0).to_string(), "latest", format!("@{digest}"));
    let (first, pinned) = (first.as_str(), pinned.as_str());
    let circle = Answer::Content(302, vec![("Location", format!("/v2/a/blobs/{first}"))], Vec::new());
    let evil = "\u{1b}[31mred\u{7}";
    let denied = json!({"errors": [{"code": "DENIED", "message": evil}]}).to_string();
    let challenge = |text: &str| Answer::Content(401, vec![("WWW-Authenticate", text.to_owned())], Vec::new());
    let oversized = json!({"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": first, "size": 1_u64 << 40}, "layers": []});
    let cases: Vec<(&str, &str, Answer, Vec<&str>)> = vec![
        // A layer.
        (pinned, first, Answer::ok(TAR, other), vec![first, "has the digest sha256:"]),
        (pinned, first, cut, vec![first, "it ends 2001856 bytes before the size"]),
        (pinned, first, Answer::ok(TAR, short.clone()), vec![first, "has 1000000 bytes, its descriptor says"]),
        (pinned, first, chunked(&short), vec![first, "bytes before the size that its descriptor says"]),
        (pinned, first, chunked(&[data(0), vec![0; 100]].concat()), vec![first, "beyond the size"]),
        (pinned, first, Answer::Endless(TAR), vec![first]),
        (pinned, first, Answer::Content(500, Vec::new(), vec![b'x'; 1 << 20]), vec![first, "status 500"]),
        (pinned, first, Answer::Content(200, Vec::new(), Vec::new()), vec![first, "it ends 3001856 bytes before"]),
        (pinned, first, circle, vec![first, "redirects"]),
        // Documents.
        (pinned, digest, Answer::ok(media_type, "{}"), vec![digest, "is damaged", "has the digest"]),
        (pinned, digest, Answer::Endless(media_type), vec!["4194305 bytes", "at most 4194304"]),
        (pinned, config, Answer::ok("x/y", "{}"), vec![config, "has 2 bytes, its descriptor says"]),
        (pinned, config, chunked(b"{}"), vec![config, "before the size"]),
        (at_tag, "/latest", Answer::Endless(media_type), vec![":latest", "4194305 bytes", "at most 4194304"]),
        (at_tag, "/latest", huge("99999999999"), vec![":latest", "99999999999 bytes"]),
        (at_tag, "/latest", Answer::ok(media_type, "not JSON"), vec!["is not valid: expected"]),
        (at_tag, "/latest", Answer::ok("text/html", "<html>"), vec!["is not valid"]),
        (at_tag, "/latest", Answer::ok("", "<html>"), vec!["is not valid"]),
        (at_tag, "/latest", Answer::ok(media_type, oversized.to_string()), vec![first, "1099511627776 bytes"]),
        // Refusals.
        (at_tag, "/latest", Answer::Content(403, Vec::new(), denied.into()), vec!["403 (DENIED:  [31mred )"]),
        (at_tag, "/latest", challenge("Digest realm=x"), vec!["unsupported authentication `Digest`"]),
        (at_tag, "/latest", challenge("Bearer service=x"), vec!["unsupported authentication `Bearer service=x`"]),
        (at_tag, "/latest", challenge("Bearer realm=\"ftp://x/\""), vec!["token from `ftp://x/`"]),
        (at_tag, "/latest", challenge(""), vec!["unsupported authentication"]),
        (at_tag, "/latest", Answer::Content(204, Vec::new(), Vec::new()), vec!["status 204"]),
    ];
    for (version, wrong, answer, messages) in cases {
        let wrong_target = wrong.to_owned();
        let registry = FakeRegistry::of(builder.path(), move |request: &Request| {
            request.target.ends_with(&wrong_target).then(|| answer.clone())
        });
        let separator = if version.starts_with('@') { "" } else { ":" };
        let reference = format!("{}/a{separator}{version}", registry.address());
        let place = Place::new();
        let message = place.refused(&reference);
        assert!(!message.contains('\u{1b}'), "{message:?}");
        for part in messages {
            assert!(message.contains(part), "{version}, {wrong}: `{part}` is not in: {message}");
        }
    }
}

/// One layer fails: those that were complete are not asked for again.
#[test]
fn a_repeat_goes_on_where_the_first_try_ended() {
    let (builder, manifest) = layout();
    let expected = expected(&builder);
    let digest = manifest["digest"].as_str().unwrap();
    let last = expected.layers[LAYERS - 1].digests.blob.unwrap().to_string();
    let broken = FakeRegistry::of(builder.path(), move |request| {
        request.target.ends_with(&last).then(|| Answer::Content(503, Vec::new(), Vec::new()))
    });
    let place = Place::new();
    let options = ImportOptions { threads: std::num::NonZero::<usize>::MIN, ..ImportOptions::default() };
    let import = |registry: &FakeRegistry| {
        let reference = format!("{}/a@{digest}", registry.address()).parse().unwrap();
        let source = ImageSource::registry(&reference, &place.options, &place.cancel).unwrap();
        place.store.import(&source.image(&amd64(), None).unwrap(), None, &options)
    };
    assert!(chain(&import(&broken).unwrap_err()).contains("status 503"));
    assert_eq!(place.files("images"), 0);
    let registry = FakeRegistry::of(builder.path(), |_| None);
    assert_eq!(Some(import(&registry).unwrap().digest), expected.digest);
    assert_eq!(fetched(&registry, &expected), [expected.layers[LAYERS - 1].digests.blob.unwrap()]);
}

/// A registry that says nothing more is given up in the end, and at once where somebody wants that.
#[test]
fn silence_is_not_waited_for_forever() {
    let (builder, manifest) = layout();
    let first = expected(&builder).layers[0].digests.blob.unwrap();
    let bytes = std::fs::metadata(builder.blob_path(&first)).unwrap().len();
    let reference =
        |registry: &FakeRegistry| format!("{}/a@{}", registry.address(), manifest["digest"].as_str().unwrap());
    let serve = |answer: Answer| {
        let (sender, asked) = mpsc::channel();
        let registry = FakeRegistry::of(builder.path(), move |request| {
            request.target.ends_with(&first.to_string()).then(|| {
                sender.send(()).unwrap();
                answer.clone()
            })
        });
        (registry, asked)
    };
    let (registry, asked) = serve(Answer::Stalled(vec![0; 1024], bytes));
    let mut place = Place::new();
    // Enough for what the registry does answer, on a busy machine too.
    place.options.patience = Duration::from_secs(1);
    let message = place.refused(&reference(&registry));
    assert!(message.contains(&first.to_string()) && message.contains("timeout"), "{message}");
    asked.recv().unwrap();

    let (registry, asked) = serve(Answer::Silent);
    let place = Place::new();
    let (result, time) = std::thread::scope(|scope| {
        let import = scope.spawn(|| place.import(&reference(&registry)));
        asked.recv().unwrap();
        let start = Instant::now();
        place.cancel.cancel();
        (import.join().unwrap(), start.elapsed())
    });
    assert!(matches!(result, Err(StoreError::Cancelled)), "{result:?}");
    assert!(time < place.options.patience / 2, "{time:?}");
    assert_eq!(["images", "tmp"].map(|name| place.files(name)), [0; 2]);
    // It holds for what comes later too.
    assert!(place.import(&reference(&registry)).is_err());
}

#[test]
fn other_hosts_are_spoken_to_in_private_unless_that_is_said() {
    let place = Place::new();
    let client =
        |options: &RegistryOptions, text: &str| Client::new(&text.parse().unwrap(), options, &place.cancel).unwrap();
    assert_eq!(client(&place.options, "r.io:5000/a").url("x"), "https://r.io:5000/v2/a/x");
    assert_eq!(client(&place.options, "a").url("x"), "https://registry-1.docker.io/v2/library/a/x");
    let plain = RegistryOptions { plain_http: true, ..RegistryOptions::default() };
    assert_eq!(client(&plain, "r.io/a").url("x"), "http://r.io/v2/a/x");
    assert_eq!(client(&place.options, "localhost:1/a").url("x"), "http://localhost:1/v2/a/x");
    // Port 1 has no server.
    let message = place.refused("localhost:1/a");
    assert!(message.contains("`http://localhost:1/v2/a/manifests/latest`") && message.contains("refused"), "{message}");
}

#[path = "patience_test.rs"]
mod patience;
