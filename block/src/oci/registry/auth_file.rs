//! Where credentials for registries come from: the files that `docker login` and `podman login` write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs, io};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::credentials::Credentials;
use super::helper;
use crate::oci::error::{OciError, RegistryError};
use crate::oci::spec::parse;

/// The registry of names without one, and what credential helpers know it by.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// Where credentials come from.
#[derive(Clone, Debug, Default)]
pub enum CredentialSource {
    /// None: requests are anonymous.
    #[default]
    Nobody,
    /// These, for the registry and not for its mirrors.
    Fixed(Credentials),
    /// The first of these files that knows a server; looked into when a server asks.
    Files(Arc<[AuthFile]>),
}

impl CredentialSource {
    /// What there is for `repository` at `server`, host and port; `is_mirror` where that only mirrors the registry meant.
    pub(super) fn find(
        &self,
        server: &str,
        repository: &str,
        is_mirror: bool,
    ) -> Result<Option<Credentials>, RegistryError> {
        match self {
            Self::Nobody => Ok(None),
            Self::Fixed(credentials) => Ok((!is_mirror).then(|| credentials.clone())),
            Self::Files(files) => {
                for file in &**files {
                    let found = file.credentials(server, repository)?;
                    if let Some(credentials) = found.filter(|credentials| !credentials.are_empty()) {
                        return Ok(Some(credentials));
                    }
                }
                Ok(None)
            }
        }
    }
}

/// A file of credentials: Docker's `config.json` or `auth.json` (containers-auth.json(5)).
#[derive(Debug)]
pub struct AuthFile {
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

impl AuthFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It is missing, or not such a file.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, OciError> {
        let path = path.into();
        let data = fs::read(&path).map_err(|source| OciError::Read { path: path.clone(), source })?;
        let content = parse(&path, &data)?;
        Ok(Self { path, content })
    }

    /// What it has for `repository` of `registry`; of several entries the one that names most of it. A credential helper is
    /// asked where the file says so.
    fn credentials(&self, registry: &str, repository: &str) -> Result<Option<Credentials>, RegistryError> {
        self.credentials_by(registry, repository, |program, server| helper::ask(program, server, None))
    }

    /// The same; `ask` asks a program for a server's credentials.
    fn credentials_by(
        &self,
        registry: &str,
        repository: &str,
        ask: impl Fn(&str, &str) -> io::Result<Option<Credentials>>,
    ) -> Result<Option<Credentials>, RegistryError> {
        let names = names(registry, repository);
        let server = if registry == DOCKER_HUB { DOCKER_HUB_SERVER } else { registry };
        let ask = |name: &str| {
            let error = |source| RegistryError::Helper { path: self.path.clone(), helper: name.to_owned(), source };
            // A name is not a path.
            if name.is_empty() || name.contains('/') {
                return Err(error(io::ErrorKind::InvalidFilename.into()));
            }
            ask(&format!("docker-credential-{name}"), server).map_err(error)
        };
        let content = &self.content;
        let mut helpers = content.cred_helpers.iter().flatten();
        if let Some((_, program)) = helpers.find(|(key, _)| names.iter().any(|name| name == normalized(key))) {
            return ask(program);
        }
        let by_name = |name: &String| content.auths.iter().flatten().find(|(key, _)| normalized(key) == name);
        let empty = Entry::default();
        let entry = names.iter().find_map(by_name).map(|(_, entry)| entry.as_ref().unwrap_or(&empty));
        match entry {
            Some(Entry { identity_token: Some(token), .. }) if !token.is_empty() => {
                return Ok(Some(Credentials::IdentityToken(token.clone())));
            }
            Some(Entry { auth: Some(auth), .. }) if !auth.is_empty() => {
                let damaged = || RegistryError::Credentials { path: self.path.clone() };
                return decode(auth).map(Some).ok_or_else(damaged);
            }
            Some(Entry { username: Some(user), password: Some(password), .. }) => {
                return Ok(Some(Credentials::Password { user: user.clone(), password: password.clone() }));
            }
            _ => {}
        }
        match (content.creds_store.as_deref().filter(|program| !program.is_empty()).map(ask), entry) {
            (None, _) => Ok(None),
            // `docker login` leaves an empty entry where it gave the password to a program.
            (Some(answer), Some(_)) => answer,
            // No user has logged in here: if the helper fails, the request stays anonymous.
            (Some(answer), None) => Ok(answer.unwrap_or_else(|error| {
                tracing::warn!(%error, "asking without credentials");
                None
            })),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn decode(auth: &str) -> Option<Credentials> {
    let text = String::from_utf8(BASE64_STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    // Some writers end it with zeros.
    Some(Credentials::Password { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

/// What entries for a repository may be called: itself, what it is in, and its registry last.
fn names(registry: &str, repository: &str) -> Vec<String> {
    let mut name = format!("{registry}/{repository}");
    let mut names = vec![name.clone()];
    while let Some(end) = name.rfind('/') {
        name.truncate(end);
        names.push(name.clone());
    }
    names
}

/// An entry's name without what older versions of Docker put around it.
fn normalized(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    if ["index.docker.io", "registry-1.docker.io"].contains(&key) { DOCKER_HUB } else { key }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::registry::RegistryReference;

    /// What a file has, where helpers answer with what they were asked, but for one that fails.
    fn lookup(content: &Value, reference: &str) -> Result<Option<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, content.to_string()).unwrap();
        let reference: RegistryReference = reference.parse().unwrap();
        let ask = |program: &str, server: &str| match program {
            "docker-credential-missing" => Err(io::ErrorKind::NotFound.into()),
            "docker-credential-empty" => Ok(None),
            _ => Ok(Some(Credentials::Password { user: program.to_owned(), password: server.to_owned() })),
        };
        let file = AuthFile::read(&path).map_err(|error| error.to_string())?;
        let found = file.credentials_by(reference.registry(), reference.repository(), ask);
        let found = found.map_err(|error| format!("{error}: {:?}", std::error::Error::source(&error)))?;
        Ok(found.map(|credentials| match credentials {
            Credentials::Password { user, password } => format!("{user} {password}"),
            Credentials::IdentityToken(token) => format!("token {token}"),
        }))
    }

    fn auth(text: &str) -> Value {
        json!({"auth": BASE64_STANDARD.encode(text)})
    }

    #[test]
    fn the_entry_that_names_most_counts() {
        let content = json!({"auths": {
            "https://index.docker.io/v1/": auth("docker:a:b"),
            "quay.io": auth("quay:x"),
            "quay.io/team/app": auth("team:y"),
            "http://localhost:5000": {"username": "plain", "password": "z"},
        }, "HttpHeaders": {}});
        for (reference, expected) in [
            ("busybox", Some("docker a:b")),
            ("quay.io/team/app:1", Some("team y")),
            ("quay.io/team/other", Some("quay x")),
            ("localhost:5000/a", Some("plain z")),
            ("localhost:5001/a", None),
            ("evil.quay.io/a", None),
        ] {
            assert_eq!(lookup(&content, reference).unwrap().as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn programs_are_asked_where_the_file_says_so() {
        let content = json!({
            "credHelpers": {"r.io": "cloud", "docker.io": "hub", "e.io": "empty", "evil.io": "../x"},
            "credsStore": "desktop",
            "auths": {"r.io": auth("not:this"), "s.io": {}, "t.io": auth("u:p")},
        });
        for (reference, expected) in [
            ("r.io/a", Some("docker-credential-cloud r.io")),
            ("busybox", Some("docker-credential-hub https://index.docker.io/v1/")),
            ("e.io/a", None),
            ("s.io/a", Some("docker-credential-desktop s.io")),
            ("t.io/a", Some("u p")),
            ("other.io/a", Some("docker-credential-desktop other.io")),
        ] {
            assert_eq!(lookup(&content, reference).unwrap().as_deref(), expected, "{reference}");
        }
        let message = lookup(&content, "evil.io/a").unwrap_err();
        assert!(message.contains("docker-credential-../x") && message.contains("config.json"), "{message}");
    }

    #[test]
    fn null_is_as_good_as_nothing() {
        let none = json!({"auths": null, "credHelpers": null, "credsStore": null});
        for content in [none, json!({}), json!({"auths": {"r.io": null}}), json!({"auths": {"r.io": {"auth": null}}})] {
            assert_eq!(lookup(&content, "r.io/a"), Ok(None), "{content}");
        }
        // Somebody has logged in there.
        let content = json!({"auths": {"r.io": null}, "credsStore": "missing"});
        assert!(lookup(&content, "r.io/a").is_err());
    }

    #[test]
    fn a_program_that_fails_is_named_where_somebody_logged_in() {
        let content = json!({"credHelpers": {"r.io": "missing"}, "credsStore": "missing", "auths": {"s.io": {}}});
        for reference in ["r.io/a", "s.io/a"] {
            let message = lookup(&content, reference).unwrap_err();
            assert!(message.contains("`docker-credential-missing`") && message.contains("config.json"), "{message}");
        }
        assert_eq!(lookup(&content, "t.io/a"), Ok(None));
    }

    #[test]
    fn identity_tokens_are_kept_apart_from_passwords() {
        let entry = json!({"auth": auth("u:p")["auth"], "identitytoken": "x"});
        assert_eq!(lookup(&json!({"auths": {"r.io": entry}}), "r.io/a").unwrap().as_deref(), Some("token x"));
        for entry in [json!({"auth": "?"}), auth("nocolon")] {
            let message = lookup(&json!({"auths": {"r.io": entry}}), "r.io/a").unwrap_err();
            assert!(message.contains("config.json"), "{message}");
        }
    }

    #[test]
    fn a_mirror_is_not_shown_the_registrys_password() {
        let fixed = CredentialSource::Fixed(Credentials::IdentityToken("x".to_owned()));
        assert!(fixed.find("r.io", "a", false).unwrap().is_some());
        assert_eq!(fixed.find("m.io", "a", true).unwrap(), None);
        let content = json!({"auths": {"m.io": auth("m:p"), "r.io": auth("r:p")}});
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, content.to_string()).unwrap();
        let files = CredentialSource::Files([AuthFile::read(&path).unwrap()].into());
        let found = files.find("m.io", "a", true).unwrap();
        assert_eq!(found, Some(Credentials::Password { user: "m".to_owned(), password: "p".to_owned() }));
        assert_eq!(files.find("x.io", "a", true).unwrap(), None);
    }

    #[test]
    fn who_has_no_name_or_no_password_is_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, json!({"auths": {"r.io": auth(text)}}).to_string()).unwrap();
            AuthFile::read(path).unwrap()
        };
        let find = |files: Vec<AuthFile>| CredentialSource::Files(files.into()).find("r.io", "a", false).unwrap();
        for empty in [":", "u:", ":p"] {
            assert_eq!(find(vec![file("a", empty)]), None, "{empty}");
            assert!(find(vec![file("a", empty), file("b", "u:p")]).is_some(), "{empty}");
        }
    }

    #[test]
    fn passwords_are_in_no_log() {
        let password = Credentials::Password { user: "u".to_owned(), password: "secret".to_owned() };
        let token = Credentials::IdentityToken("secret".to_owned());
        assert!(!format!("{password:?}{token:?}").contains("secret"));
        assert_eq!(password.basic().as_deref(), Some("Basic dTpzZWNyZXQ="));
        assert_eq!(token.basic(), None);
    }
}
