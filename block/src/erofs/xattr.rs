//! Extended attributes, stored behind their inode.

use std::collections::BTreeMap;

use super::format::{XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE};

/// Name of an extended attribute that EROFS can store: a known prefix by its number, and the rest.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct XattrName {
    prefix: u8,
    suffix: Box<[u8]>,
}

/// Prefixes and their numbers (`EROFS_XATTR_INDEX_*`). The two ACLs are whole names.
const PREFIXES: [(&[u8], u8, bool); 5] = [
    (b"user.", 1, false),
    (b"system.posix_acl_access", 2, true),
    (b"system.posix_acl_default", 3, true),
    (b"trusted.", 4, false),
    (b"security.", 6, false),
];

impl XattrName {
    /// Takes a full name such as `security.capability` apart; `None` if EROFS has no place for it.
    #[must_use]
    pub fn new(name: &[u8]) -> Option<Self> {
        PREFIXES.iter().find_map(|(text, prefix, whole)| {
            let suffix = name.strip_prefix(*text)?;
            let valid = if *whole { suffix.is_empty() } else { !suffix.is_empty() && suffix.len() <= 255 };
            (valid && !suffix.contains(&0)).then(|| Self { prefix: *prefix, suffix: suffix.into() })
        })
    }

    /// What marks a directory that hides the one below it (overlayfs, `trusted.overlay.opaque`).
    #[must_use]
    pub fn overlay_opaque() -> Self {
        Self { prefix: 4, suffix: b"overlay.opaque"[..].into() }
    }

    /// Whether overlayfs takes its own instructions from this attribute.
    #[must_use]
    pub fn is_overlay(&self) -> bool {
        self.prefix == 4 && self.suffix.starts_with(b"overlay.")
    }
}

/// Size in bytes of the area behind the inode that `xattrs` need.
pub(super) fn size(xattrs: &BTreeMap<XattrName, Vec<u8>>) -> u64 {
    if xattrs.is_empty() {
        return 0;
    }
    let entries = xattrs.iter().map(|(name, value)| entry_size(name, value) as u64).sum::<u64>();
    XATTR_HEADER_SIZE as u64 + entries
}

/// Appends the area; values are at most 65,535 bytes long, which the layout has checked.
#[allow(clippy::cast_possible_truncation, reason = "XattrName and the layout limit both lengths")]
pub(super) fn encode(xattrs: &BTreeMap<XattrName, Vec<u8>>, into: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    into.extend([0; XATTR_HEADER_SIZE]);
    for (name, value) in xattrs {
        let end = into.len() + entry_size(name, value);
        into.push(name.suffix.len() as u8);
        into.push(name.prefix);
        into.extend((value.len() as u16).to_le_bytes());
        into.extend(&*name.suffix);
        into.extend(value);
        into.resize(end, 0);
    }
}

fn entry_size(name: &XattrName, value: &[u8]) -> usize {
    (XATTR_ENTRY_SIZE + name.suffix.len() + value.len()).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_the_known_prefixes_have_no_place() {
        for good in ["user.a", "trusted.x", "security.capability", "system.posix_acl_access"] {
            assert!(XattrName::new(good.as_bytes()).is_some(), "{good}");
        }
        for bad in ["", "user.", "system.nfs4_acl", "system.posix_acl_access.", "com.apple.x", "user.a\0b"] {
            assert!(XattrName::new(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
