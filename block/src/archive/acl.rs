//! Access control lists as GNU tar and star write them, in text, to the kernel's binary attribute
//! (`include/uapi/linux/posix_acl_xattr.h`).

const VERSION: u32 = 2;
const UNDEFINED_ID: u32 = u32::MAX;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Translates a list; `None` if it is invalid, or names users without their numbers, which mean nothing here. An empty answer
/// says no more than the permissions do.
pub(super) fn from_text(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for line in text.split([',', '\n']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            entries.push(entry(line)?);
        }
    }
    // The order that the kernel demands.
    entries.sort_unstable();
    if entries.iter().all(|(tag, ..)| [USER_OBJ, GROUP_OBJ, OTHER].contains(tag)) {
        return Some(Vec::new());
    }
    let mut binary = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        binary.extend(tag.to_le_bytes());
        binary.extend(permissions.to_le_bytes());
        binary.extend(id.to_le_bytes());
    }
    Some(binary)
}

/// `tag:who:rwx`, perhaps with the number of who behind it.
fn entry(line: &str) -> Option<(u16, u32, u16)> {
    let line = line.strip_prefix("default:").unwrap_or(line);
    let mut fields = line.split(':');
    let (tag, who, permissions, number) = (fields.next()?, fields.next()?, fields.next()?, fields.next());
    let id = || number.unwrap_or(who).parse().ok().filter(|id| *id != UNDEFINED_ID);
    let (tag, id) = match (tag, who) {
        ("user" | "u", "") => (USER_OBJ, UNDEFINED_ID),
        ("user" | "u", _) => (USER, id()?),
        ("group" | "g", "") => (GROUP_OBJ, UNDEFINED_ID),
        ("group" | "g", _) => (GROUP, id()?),
        ("mask" | "m", "") => (MASK, UNDEFINED_ID),
        ("other" | "o", "") => (OTHER, UNDEFINED_ID),
        _ => return None,
    };
    let permissions = permissions.bytes().try_fold(0, |all, letter| match letter {
        b'r' => Some(all | 4),
        b'w' => Some(all | 2),
        b'x' => Some(all | 1),
        b'-' => Some(all),
        _ => None,
    })?;
    Some((tag, id, permissions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_what_the_kernel_reads() {
        let expected = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\x0a\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
            \x10\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
        for text in [
            "user::rwx,user:10:r-x,group::r-x,mask::r-x,other::r-x",
            "user::rwx\nuser:joe:r-x:10\nother::r-x\nmask::r-x #effective\ngroup::r-x\n",
            "u::rwx,u:10:rx,g::rx,m::rx,o::rx",
        ] {
            assert_eq!(from_text(text.as_bytes()).unwrap(), expected, "{text}");
        }
        assert_eq!(from_text(b"user::rwx,group::r-x,other::r-x").unwrap(), b"");
    }

    #[test]
    fn lists_that_mean_nothing_here_are_refused() {
        for text in ["user:joe:rwx", "user:1", "x::rwx", "user::rwz", "user:4294967295:r", "user:-1:r", "mask:5:r"] {
            assert_eq!(from_text(text.as_bytes()), None, "{text}");
        }
        assert_eq!(from_text(b"\xff"), None);
    }
}
