//! Finds a user's numbers in an image's `/etc/passwd` and `/etc/group`.
//!
//! As in Docker, a listed user gets the groups listed for them, unless the request names a group; an unlisted user can only
//! be a number, in group 0. Lines that break the format of passwd(5) and group(5) are skipped. A reserved number is refused
//! where it would be used: setuid(2) ignores it, which would leave the program with the rights of root.

use bellows_protocol::user::{Account, User};
use bellows_protocol::values::ValueError;
use thiserror::Error;

/// Most groups of a process (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// The credentials of a user's processes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups: the primary one, then the supplementary ones. The primary group must be among them: a process could
    /// otherwise drop it, and so read a file that denies that group.
    pub groups: Vec<u32>,
    /// Home directory; `/` for a user who is not listed.
    pub home: String,
}

/// Why a user could not be resolved.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AccountError {
    /// The name is not listed.
    #[error("no user {0:?} in the image's /etc/passwd")]
    UnknownUser(String),
    /// The name is not listed.
    #[error("no group {0:?} in the image's /etc/group")]
    UnknownGroup(String),
    /// The user or one of their groups has a reserved number.
    #[error("user {user} cannot be run as: {source}")]
    Number {
        /// The user requested.
        user: String,
        /// The reserved number.
        source: ValueError,
    },
    /// More groups than a process can have.
    #[error("user {user} is in {count} groups: expected at most {MAX_GROUPS}")]
    TooManyGroups {
        /// The user that was asked for.
        user: String,
        /// Number of groups.
        count: usize,
    },
}

/// Looks a user up in the contents of the two files; a missing file counts as empty.
///
/// # Errors
/// [`AccountError`].
pub fn resolve(user: &User, passwd: &[u8], group: &[u8]) -> Result<Credentials, AccountError> {
    let usable = |number: Number| number.map_err(|source| AccountError::Number { user: user.to_string(), source });
    let listed = users(passwd).find(|entry| is(&user.user, entry.name, &entry.uid));
    let name = listed.as_ref().map(|entry| entry.name);
    let (uid, primary) = match (listed, &user.user) {
        (Some(entry), _) => (usable(entry.uid)?, entry.gid),
        (None, Account::Number(uid)) => (*uid, Ok(0)),
        (None, Account::Name(name)) => return Err(AccountError::UnknownUser(name.clone())),
    };
    let (gid, supplementary) = match &user.group {
        Some(wanted) => match (groups(group).find(|entry| is(wanted, entry.name, &entry.gid)), wanted) {
            (Some(entry), _) => (usable(entry.gid)?, Vec::new()),
            (None, Account::Number(gid)) => (*gid, Vec::new()),
            (None, Account::Name(name)) => return Err(AccountError::UnknownGroup(name.clone())),
        },
        None => {
            let joined = groups(group).filter(|entry| name.is_some_and(|name| entry.has_member(name)));
            (usable(primary)?, joined.map(|entry| usable(entry.gid)).collect::<Result<_, _>>()?)
        }
    };
    let mut groups = supplementary;
    groups.sort_unstable();
    groups.dedup();
    groups.retain(|&other| other != gid);
    groups.insert(0, gid);
    if groups.len() > MAX_GROUPS {
        return Err(AccountError::TooManyGroups { user: user.to_string(), count: groups.len() });
    }
    Ok(Credentials { uid, gid, groups, home: home(passwd, uid) })
}

/// By number, as runtimes look it up: of two names for one user the first gives the home directory.
fn home(passwd: &[u8], uid: u32) -> String {
    let listed = users(passwd).find(|entry| entry.uid == Ok(uid));
    let home = listed.and_then(|entry| std::str::from_utf8(entry.home).ok()).unwrap_or_default();
    if home.is_empty() { "/".into() } else { home.into() }
}

/// Parses a number of one of the files, or says why it is invalid.
type Number = Result<u32, ValueError>;

struct UserEntry<'a> {
    name: &'a [u8],
    uid: Number,
    gid: Number,
    home: &'a [u8],
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: Number,
    members: &'a [u8],
}

impl GroupEntry<'_> {
    fn has_member(&self, name: &[u8]) -> bool {
        self.members.split(|&byte| byte == b',').any(|member| member == name)
    }
}

fn is(wanted: &Account, name: &[u8], number: &Number) -> bool {
    match wanted {
        Account::Number(wanted) => *number == Ok(*wanted),
        Account::Name(wanted) => name == wanted.as_bytes(),
    }
}

/// `name:password:UID:GID:GECOS:directory:shell`, of which the last three may be missing.
fn users(text: &[u8]) -> impl Iterator<Item = UserEntry<'_>> {
    lines(text).filter_map(|mut fields| {
        let name = fields.next()?;
        let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
        Some(UserEntry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// `group_name:password:GID:user_list`, of which the last may be missing.
fn groups(text: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(text).filter_map(|mut fields| {
        let name = fields.next()?;
        let gid = number(fields.nth(1)?)?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// The fields of each line that has a name and is no comment.
fn lines(text: &[u8]) -> impl Iterator<Item = impl Iterator<Item = &[u8]>> {
    let lines = text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let named = lines.filter(|line| !matches!(line.first(), None | Some(b'#' | b':')));
    named.map(|line| line.split(|&byte| byte == b':'))
}

fn number(field: &[u8]) -> Option<Number> {
    Account::number(std::str::from_utf8(field).ok()?)
}

#[cfg(test)]
#[path = "accounts_test.rs"]
mod tests;
