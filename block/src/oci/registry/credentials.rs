//! Who to be at a registry: the files that `docker login` and `podman login` write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::reference::RegistryReference;
use crate::oci::error::{OciError, RegistryError};
use crate::oci::spec::parse;

/// A user and a password.
#[derive(Clone, Eq, PartialEq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    /// Without the password, so that no log has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    /// What HTTP's basic authentication sends.
    pub(super) fn basic(&self) -> String {
        format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", self.user, self.password)))
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
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
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

    /// What it has for the registry of `reference`; of several entries the one that names most of it.
    ///
    /// # Errors
    /// What it has is no user and password: a program is to be asked for them (a credential helper), or it is a token of
    /// another kind, or damaged.
    pub fn credentials(&self, reference: &RegistryReference) -> Result<Option<Credentials>, OciError> {
        let names = names(reference);
        let error = |source| OciError::Registry { url: reference.registry().to_owned(), source };
        let helper = |helper: &str| {
            let (path, helper) = (self.path.clone(), helper.to_owned());
            error(RegistryError::Helper { path, helper })
        };
        let by_name = |name: &String| self.content.auths.iter().find(|(key, _)| normalized(key) == name);
        let entry = names.iter().find_map(by_name).map(|(_, entry)| entry);
        if let Some(entry) = entry {
            let damaged = || error(RegistryError::Credentials { path: self.path.clone() });
            match entry {
                Entry { identity_token: Some(token), .. } if !token.is_empty() => return Err(damaged()),
                Entry { auth: Some(auth), .. } if !auth.is_empty() => {
                    return decode(auth).map(Some).ok_or_else(damaged);
                }
                Entry { username: Some(user), password: Some(password), .. } => {
                    return Ok(Some(Credentials { user: user.clone(), password: password.clone() }));
                }
                _ => {}
            }
        }
        let content = &self.content;
        if let Some((_, program)) =
            content.cred_helpers.iter().find(|(key, _)| names.iter().any(|n| n == normalized(key)))
        {
            return Err(helper(program));
        }
        // `docker login` leaves an empty entry where it gave the password to a program.
        match (&content.creds_store, entry) {
            (Some(program), Some(_)) => Err(helper(program)),
            _ => Ok(None),
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
    Some(Credentials { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() })
}

/// What entries for `reference` may be called: its repository, what that is in, and its registry last.
fn names(reference: &RegistryReference) -> Vec<String> {
    let mut name = format!("{}/{}", reference.registry(), reference.repository());
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
    if ["index.docker.io", "registry-1.docker.io"].contains(&key) { "docker.io" } else { key }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lookup(content: &Value, reference: &str) -> Result<Option<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, content.to_string()).unwrap();
        let found = AuthFile::read(&path).and_then(|file| file.credentials(&reference.parse().unwrap()));
        let found = found.map_err(|error| format!("{error}: {}", std::error::Error::source(&error).unwrap()))?;
        Ok(found.map(|credentials| format!("{} {}", credentials.user, credentials.password)))
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
    fn what_is_no_password_is_refused_and_said() {
        let helpers = json!({"credHelpers": {"r.io": "cloud"}, "credsStore": "desktop", "auths": {"s.io": {}}});
        assert!(lookup(&helpers, "r.io/a").unwrap_err().contains("`docker-credential-cloud`"));
        assert!(lookup(&helpers, "s.io/a").unwrap_err().contains("`docker-credential-desktop`"));
        // Nobody logged in there.
        assert_eq!(lookup(&helpers, "t.io/a").unwrap(), None);
        for entry in [json!({"auth": "?"}), auth("nocolon"), json!({"auth": "", "identitytoken": "x"})] {
            let message = lookup(&json!({"auths": {"r.io": entry}}), "r.io/a").unwrap_err();
            assert!(message.contains("r.io") && message.contains("config.json"), "{message}");
        }
    }

    #[test]
    fn passwords_are_in_no_log() {
        let credentials = Credentials { user: "u".to_owned(), password: "secret".to_owned() };
        assert!(!format!("{credentials:?}").contains("secret"));
        assert_eq!(credentials.basic(), "Basic dTpzZWNyZXQ=");
    }
}
