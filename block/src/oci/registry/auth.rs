//! What a server demands that answers "unauthorized", and the tokens that satisfy it.

use std::io::Read as _;

use serde::Deserialize;
use ureq::http::{HeaderMap, header};

use super::credentials::Credentials;
use crate::oci::error::RegistryError;
use crate::oci::words::quoted;

/// Bytes of a token's document.
pub(super) const MAX_TOKEN: u64 = 256 << 10;

/// An authentication scheme that a server offers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Demand {
    /// A token that `realm` gives.
    Bearer { realm: String, service: Option<String> },
    /// A user and a password with each request.
    Basic,
}

impl Demand {
    /// The best of what `headers` offer, in however many headers and in whatever order: a token, which may be had without a
    /// password, before a password.
    pub fn of(headers: &HeaderMap) -> Result<Self, RegistryError> {
        let mut seen = Vec::new();
        let mut basic = false;
        for value in headers.get_all(header::WWW_AUTHENTICATE) {
            let text = value.to_str().unwrap_or_default();
            let Ok(challenges) = http_auth::parse_challenges(text) else {
                seen.push(text.to_owned());
                continue;
            };
            for challenge in challenges {
                let parameter = |name: &str| {
                    let mut parameters = challenge.params.iter();
                    parameters.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    match parameter("realm") {
                        Some(realm) => return Ok(Self::Bearer { realm, service: parameter("service") }),
                        None => seen.push(text.to_owned()),
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = true;
                } else {
                    seen.push(challenge.scheme.to_owned());
                }
            }
        }
        if basic { Ok(Self::Basic) } else { Err(RegistryError::Challenge(quoted(seen.join(", ")))) }
    }
}

/// What is sent to get a token.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum TokenRequest {
    /// A query, with a password if there is one.
    Get { query: Vec<(&'static str, String)>, authorization: Option<String> },
    /// A form, with an identity token (the distribution project's `oauth2` specification).
    Post { form: Vec<(&'static str, String)> },
}

impl TokenRequest {
    /// For `scope` and nothing else, whatever the registry would like to have.
    pub fn new(service: Option<&str>, scope: &str, credentials: Option<&Credentials>) -> Self {
        let named = [("scope", Some(scope)), ("service", service)];
        let mut fields: Vec<_> = named.iter().filter_map(|(name, value)| Some((*name, (*value)?.to_owned()))).collect();
        match credentials {
            Some(Credentials::IdentityToken(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token".to_owned()),
                    ("client_id", "bellows".to_owned()),
                    ("refresh_token", token.clone()),
                ]);
                Self::Post { form: fields }
            }
            other => Self::Get { query: fields, authorization: other.and_then(Credentials::basic) },
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The header's value that a token's document means.
pub(super) fn bearer(document: impl std::io::Read) -> Result<String, RegistryError> {
    let mut data = Vec::new();
    document.take(MAX_TOKEN).read_to_end(&mut data).map_err(RegistryError::Transport)?;
    let Token { token, access_token } =
        serde_json::from_slice(&data).map_err(|error| RegistryError::Json(quoted(error)))?;
    let token = [token, access_token].into_iter().flatten().find(|token| !token.is_empty());
    match token {
        Some(token) if token.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(format!("Bearer {token}")),
        Some(_) => Err(RegistryError::Challenge("a token that is not printable".to_owned())),
        None => Err(RegistryError::Challenge("no token".to_owned())),
    }
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The first error that a registry's answer names (OCI distribution specification, "error codes"); empty where it names none.
pub(super) fn first_error(answer: &[u8]) -> String {
    let said = serde_json::from_slice(answer).ok().and_then(|Errors { errors }| errors.into_iter().next());
    said.map_or_else(String::new, |entry| quoted(format_args!("{}: {}", entry.code, entry.message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(values: &[&str]) -> Result<Demand, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Demand::of(&headers).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_comes_first_wherever_it_stands() {
        let bearer = |service: Option<&str>| {
            Ok(Demand::Bearer { realm: "https://t/x?a=b,c".to_owned(), service: service.map(str::to_owned) })
        };
        let token = r#"Bearer realm="https://t/x?a=b,c""#;
        let with_service = r#"bearer service="a \"b\"",realm="https://t/x?a=b,c",scope="x""#;
        for values in [
            vec![token],
            vec![r#"Basic realm="x", Bearer realm="https://t/x?a=b,c""#],
            vec![r#"Bearer realm="https://t/x?a=b,c", Basic realm="x""#],
            vec!["Basic realm=\"x\"", token],
            vec!["Negotiate", token],
            vec!["Negotiate, Basic realm=x", token],
            vec!["Negotiate YII=", token],
            vec!["=;,", token],
            vec!["Bearer service=\"x\"", token],
        ] {
            assert_eq!(demand(&values), bearer(None), "{values:?}");
        }
        assert_eq!(demand(&[with_service]), bearer(Some("a \"b\"")));
        assert_eq!(demand(&["Digest realm=x, nonce=y", "BASIC realm=\"x\""]), Ok(Demand::Basic));
    }

    #[test]
    fn what_is_not_understood_is_quoted() {
        for (values, expected) in [
            (vec!["Digest realm=x"], "`Digest`"),
            (vec!["Negotiate", "NTLM"], "`Negotiate, NTLM`"),
            (vec!["Bearer service=x"], "`Bearer service=x`"),
            (vec![], "``"),
        ] {
            let message = demand(&values).unwrap_err();
            assert!(message.contains(expected), "{values:?}: {message}");
        }
        assert!(demand(&[&"x".repeat(5000)]).unwrap_err().len() < 400);
    }

    #[test]
    fn who_has_an_identity_token_sends_a_form() {
        let password = Credentials::Password { user: "u".to_owned(), password: "p".to_owned() };
        let identity = Credentials::IdentityToken("i".to_owned());
        let fields = |request: &[(&str, String)]| {
            request.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
        };
        match TokenRequest::new(Some("s"), "repository:a:pull", Some(&password)) {
            TokenRequest::Get { query, authorization } => {
                assert_eq!(fields(&query), "scope=repository:a:pull&service=s");
                assert_eq!(authorization.as_deref(), Some("Basic dTpw"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(
            TokenRequest::new(None, "x", None),
            TokenRequest::Get { query: vec![("scope", "x".to_owned())], authorization: None }
        );
        match TokenRequest::new(None, "x", Some(&identity)) {
            TokenRequest::Post { form } => {
                assert_eq!(fields(&form), "scope=x&grant_type=refresh_token&client_id=bellows&refresh_token=i");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tokens_have_two_names() {
        let read = |text: &str| bearer(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(read(r#"{"token": "a"}"#).unwrap(), "Bearer a");
        assert_eq!(read(r#"{"token": "", "access_token": "b", "expires_in": 5}"#).unwrap(), "Bearer b");
        for (text, word) in [("{}", "no token"), ("<html>", "not valid"), ("{\"token\": \"a\\nb\"}", "not printable")] {
            assert!(read(text).unwrap_err().contains(word), "{text}");
        }
        assert!(bearer(std::io::repeat(b' ')).is_err());
    }
}
