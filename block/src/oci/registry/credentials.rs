//! What a registry wants to know of a user.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// Authenticates a user to a registry.
#[derive(Clone, Eq, PartialEq)]
pub enum Credentials {
    /// A user and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// What a registry gave for a password, to get its own tokens with.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    /// Without secrets, so that no log has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Self::IdentityToken(_) => f.debug_struct("IdentityToken").finish_non_exhaustive(),
        }
    }
}

impl Credentials {
    /// Whether they are empty, as some helpers answer for an unknown registry.
    pub(super) fn are_empty(&self) -> bool {
        match self {
            Self::Password { user, password } => user.is_empty() || password.is_empty(),
            Self::IdentityToken(token) => token.is_empty(),
        }
    }

    /// The value for HTTP's basic authentication; `None` for a token.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Self::Password { user, password } => {
                Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
            }
            Self::IdentityToken(_) => None,
        }
    }
}
