//! The user that an instance runs as, in the words of an image's `User`: `user[:group]`, each by number or by name.
//!
//! Numbers are numbers, as Docker and containerd have it by now: a user who is *called* `1234` in the image's `/etc/passwd` cannot
//! be meant by `1234`, so that the image does not decide which number that is. Only the guest, which has the image's files, knows whose
//! names they are.
//!
//! ```
//! use bellows_protocol::user::User;
//!
//! let user: User = "nobody:100".parse()?;
//! assert_eq!(user.to_string(), "nobody:100");
//! assert!("a:b:c".parse::<User>().is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::str::FromStr;

pub use crate::values::MAX_ACCOUNT;
use crate::values::{ValueError, excerpt};

/// Longest name of a user or group, in bytes.
const MAX_NAME: usize = 256;

/// A user or a group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Account {
    /// By number, at most [`MAX_ACCOUNT`].
    Number(u32),
    /// By the name that it has in the image.
    Name(String),
}

/// The user that an instance runs as; root by default.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// The user.
    pub user: Account,
    /// The group; without one the user's own groups, as the image lists them.
    pub group: Option<Account>,
}

impl Account {
    /// The number that `text` is, if it is one: digits, perhaps after a sign.
    ///
    /// # Errors
    /// [`ValueError::AccountNumber`]: a reserved number.
    #[must_use]
    pub fn number(text: &str) -> Option<Result<u32, ValueError>> {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number = text.parse().ok().filter(|&number| number <= MAX_ACCOUNT);
        Some(number.ok_or_else(|| ValueError::AccountNumber(excerpt(text))))
    }
}

impl Default for User {
    fn default() -> Self {
        Self { user: Account::Number(0), group: None }
    }
}

impl FromStr for User {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let account = |part: &str| match Account::number(part) {
            _ if part.is_empty() => Ok(None),
            Some(number) => Ok(Some(Account::Number(number?))),
            None if part.len() > MAX_NAME || part.contains(|c: char| c == ':' || c.is_control()) => {
                Err(ValueError::User(excerpt(text)))
            }
            None => Ok(Some(Account::Name(part.to_owned()))),
        };
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        // Docker, too, takes what is left out to be root, or the user's own group.
        Ok(Self { user: account(user)?.unwrap_or(Account::Number(0)), group: account(group)? })
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.user.fmt(f)?;
        self.group.as_ref().map_or(Ok(()), |group| write!(f, ":{group}"))
    }
}

#[cfg(test)]
#[path = "user_test.rs"]
mod tests;
