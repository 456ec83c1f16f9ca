//! Extended attributes: those of one inode behind it, those of several in an area of their own.

use std::collections::BTreeMap;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::format::{XattrEntry, XattrIbodyHeader};

const HEADER_SIZE: usize = size_of::<XattrIbodyHeader>();
/// Also the unit of the numbers of shared attributes.
const ENTRY_SIZE: usize = size_of::<XattrEntry>();

/// Largest area of extended attributes whose size an inode can state.
pub(super) const MAX_XATTR_BYTES: u64 = bytes(u16::MAX);

/// Size of an inode's extended attributes from the number that states it.
pub(super) const fn bytes(count: u16) -> u64 {
    if count == 0 { 0 } else { (HEADER_SIZE + ENTRY_SIZE * (count as usize - 1)) as u64 }
}

/// The number that states the size of an inode's extended attributes: one for the header, and one more for each four bytes
/// behind it.
#[allow(clippy::cast_possible_truncation, reason = "the layout checks MAX_XATTR_BYTES")]
pub(super) const fn count(bytes: u64) -> u16 {
    if bytes == 0 { 0 } else { ((bytes - HEADER_SIZE as u64) / ENTRY_SIZE as u64 + 1) as u16 }
}

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

    /// The full name.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let prefix = PREFIXES.iter().find(|(_, number, _)| *number == self.prefix).map_or(&b""[..], |(text, ..)| text);
        [prefix, &self.suffix].concat()
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

/// An attribute with its value.
type Pair<'a> = (&'a XattrName, &'a [u8]);

/// Attributes that several inodes have, stored once.
#[derive(Debug, Default)]
pub(super) struct SharedXattrs<'a> {
    /// Where each is in the area, in units of four bytes.
    places: BTreeMap<Pair<'a>, u32>,
    /// The area.
    pub area: Vec<u8>,
}

impl<'a> SharedXattrs<'a> {
    /// Finds what inodes with these attributes have in common.
    pub fn new(inodes: impl Iterator<Item = &'a BTreeMap<XattrName, Vec<u8>>>) -> Self {
        let mut counts: BTreeMap<Pair<'a>, u32> = BTreeMap::new();
        for (name, value) in inodes.flatten() {
            *counts.entry((name, value)).or_default() += 1;
        }
        let mut shared = Self::default();
        for (pair, _) in counts.into_iter().filter(|(_, count)| *count > 1) {
            // Beyond what a place can say they are simply not shared.
            let Ok(place) = u32::try_from(shared.area.len() / ENTRY_SIZE) else { break };
            encode_entry(pair, &mut shared.area);
            shared.places.insert(pair, place);
        }
        shared
    }

    /// Sorts an inode's attributes into those that are shared, by place, and those that are its own.
    fn split<'b>(&self, xattrs: &'b BTreeMap<XattrName, Vec<u8>>) -> (Vec<u32>, Vec<Pair<'b>>) {
        let mut places = Vec::new();
        let mut own = Vec::new();
        for (name, value) in xattrs {
            match self.places.get(&(name, value.as_slice())) {
                Some(place) if places.len() < usize::from(u8::MAX) => places.push(*place),
                _ => own.push((name, value.as_slice())),
            }
        }
        (places, own)
    }

    /// Size in bytes of the area behind the inode that `xattrs` need.
    pub fn size(&self, xattrs: &BTreeMap<XattrName, Vec<u8>>) -> u64 {
        if xattrs.is_empty() {
            return 0;
        }
        let (places, own) = self.split(xattrs);
        let entries = own.into_iter().map(|pair| entry_size(pair) as u64).sum::<u64>();
        (HEADER_SIZE + ENTRY_SIZE * places.len()) as u64 + entries
    }

    /// Appends the area behind the inode; values are at most 65,535 bytes long, which the layout has checked.
    pub fn encode(&self, xattrs: &BTreeMap<XattrName, Vec<u8>>, into: &mut Vec<u8>) {
        if xattrs.is_empty() {
            return;
        }
        let (places, own) = self.split(xattrs);
        #[allow(clippy::cast_possible_truncation, reason = "`split` shares no more than fit one byte")]
        let header = XattrIbodyHeader { h_shared_count: places.len() as u8, ..XattrIbodyHeader::new_zeroed() };
        into.extend(header.as_bytes());
        places.iter().for_each(|place| into.extend(place.to_le_bytes()));
        own.into_iter().for_each(|pair| encode_entry(pair, into));
    }
}

/// Reads the area behind an inode; `shared` reads so many bytes from a byte of the shared attributes on. `None` if it is damaged.
pub(super) fn decode<E>(
    mut area: &[u8],
    mut shared: impl FnMut(u64, u64) -> Result<Option<Vec<u8>>, E>,
) -> Result<Option<BTreeMap<XattrName, Vec<u8>>>, E> {
    let mut xattrs = BTreeMap::new();
    if area.is_empty() {
        return Ok(Some(xattrs));
    }
    let Ok((header, rest)) = XattrIbodyHeader::read_from_prefix(area) else { return Ok(None) };
    let Ok((places, own)) = <[U32]>::ref_from_prefix_with_elems(rest, header.h_shared_count.into()) else {
        return Ok(None);
    };
    for place in places {
        let offset = u64::from(place.get()) * ENTRY_SIZE as u64;
        let Some(head) = shared(offset, ENTRY_SIZE as u64)? else { return Ok(None) };
        let Ok(head) = XattrEntry::read_from_bytes(&head) else { return Ok(None) };
        let bytes = ENTRY_SIZE as u64 + u64::from(head.e_name_len) + u64::from(head.e_value_size.get());
        let Some(entry) = shared(offset, bytes)? else { return Ok(None) };
        let Some((name, value, _)) = decode_entry(&entry) else { return Ok(None) };
        xattrs.insert(name, value);
    }
    area = own;
    while !area.is_empty() {
        let Some((name, value, size)) = decode_entry(area) else { return Ok(None) };
        xattrs.insert(name, value);
        let Some(rest) = area.get(size..) else { return Ok(None) };
        area = rest;
    }
    Ok(Some(xattrs))
}

#[allow(clippy::cast_possible_truncation, reason = "XattrName and the layout limit both lengths")]
fn encode_entry((name, value): Pair<'_>, into: &mut Vec<u8>) {
    let end = into.len() + entry_size((name, value));
    let entry = XattrEntry {
        e_name_len: name.suffix.len() as u8,
        e_name_index: name.prefix,
        e_value_size: U16::new(value.len() as u16),
    };
    into.extend(entry.as_bytes());
    into.extend(&*name.suffix);
    into.extend(value);
    into.resize(end, 0);
}

fn decode_entry(entry: &[u8]) -> Option<(XattrName, Vec<u8>, usize)> {
    let (head, rest) = XattrEntry::read_from_prefix(entry).ok()?;
    let (suffix, rest) = rest.split_at_checked(head.e_name_len.into())?;
    let name = XattrName { prefix: head.e_name_index, suffix: suffix.into() };
    // A prefix that is not known, or one that the image itself defines.
    XattrName::new(&name.to_bytes()).filter(|known| *known == name)?;
    let value = rest.get(..usize::from(head.e_value_size))?;
    let size = entry_size((&name, value));
    Some((name, value.to_owned(), size))
}

fn entry_size((name, value): Pair<'_>) -> usize {
    (ENTRY_SIZE + name.suffix.len() + value.len()).next_multiple_of(4)
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
