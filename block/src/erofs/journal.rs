//! A layer's journal: the entries of its archive in their order, behind the last block of the file system.
//!
//! For overlayfs the tree is enough. But where a path through a symbolic link leads, and which file a hard link means, depends on
//! the layers below and on the order of entries. Code that unpacks layers over each other reads that here.
//!
//! ```text
//! header   magic, version, number of steps, bytes of steps
//! step     kind, length of what its path has in common with the one before, length of the rest, the rest,
//!          then the inode's number, or length and path of what a hard link means
//! ```

use super::format::BLOCK_SIZE;
use super::tree::InodeId;

const MAGIC: [u8; 8] = *b"bellows\0";
const VERSION: u32 = 1;
/// Magic, version, reserved, number of steps, bytes of steps.
const HEADER: usize = 32;
/// Longest path of a step.
const MAX_PATH: usize = 4096;
/// Most bytes that all paths of a journal may have.
const MAX_PATHS: u64 = 2 << 30;

/// One change that a layer makes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// The path: components, separated by slashes; empty for the root.
    pub path: Box<[u8]>,
    /// The change.
    pub change: Change,
}

/// What a step does to its path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Puts this inode there; a directory keeps its entries.
    Put(InodeId),
    /// Makes it another name of the file at this path.
    Link(Box<[u8]>),
    /// Removes what layers below have there.
    Whiteout,
    /// Removes what layers below have in this directory.
    Opaque,
}

const PUT: u8 = 0;
const LINK: u8 = 1;
const WHITEOUT: u8 = 2;
const OPAQUE: u8 = 3;

/// The journal, whole blocks of it; `number` gives an inode's number in the image.
pub(super) fn encode(steps: &[Step], number: impl Fn(InodeId) -> u64) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    let mut last: &[u8] = &[];
    for step in steps {
        let common = step.path.iter().zip(last).take_while(|(a, b)| a == b).count();
        bytes.push(match step.change {
            Change::Put(_) => PUT,
            Change::Link(_) => LINK,
            Change::Whiteout => WHITEOUT,
            Change::Opaque => OPAQUE,
        });
        put_length(&mut bytes, common);
        put_text(&mut bytes, &step.path[common..]);
        match &step.change {
            Change::Put(id) => bytes.extend(number(*id).to_le_bytes()),
            Change::Link(target) => put_text(&mut bytes, target),
            Change::Whiteout | Change::Opaque => {}
        }
        last = &step.path;
    }
    let length = (bytes.len() - HEADER) as u64;
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&(steps.len() as u64).to_le_bytes());
    bytes[24..32].copy_from_slice(&length.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE as usize), 0);
    bytes
}

/// Reads what [`encode`] wrote; `inode` finds an inode by its number. `None` if it is damaged.
pub(super) fn decode(bytes: &[u8], mut inode: impl FnMut(u64) -> Option<InodeId>) -> Option<Vec<Step>> {
    let mut header = Fields(bytes);
    if header.take::<8>()? != MAGIC || u32::from_le_bytes(header.take()?) != VERSION {
        return None;
    }
    header.take::<4>()?;
    let (count, length) = (u64::from_le_bytes(header.take()?), u64::from_le_bytes(header.take()?));
    let mut fields = Fields(header.0.get(..usize::try_from(length).ok()?)?);
    let mut steps = Vec::new();
    let mut paths = 0;
    let mut last: Box<[u8]> = Box::default();
    for _ in 0..count {
        let [kind] = fields.take()?;
        let common = usize::from(u16::from_le_bytes(fields.take()?));
        let path = [last.get(..common)?, fields.text()?].concat();
        paths += path.len() as u64;
        if path.len() > MAX_PATH || paths > MAX_PATHS {
            return None;
        }
        let path = path.into_boxed_slice();
        let change = match kind {
            PUT => Change::Put(inode(u64::from_le_bytes(fields.take()?))?),
            LINK => Change::Link(fields.text()?.into()),
            WHITEOUT => Change::Whiteout,
            OPAQUE => Change::Opaque,
            _ => return None,
        };
        last.clone_from(&path);
        steps.push(Step { path, change });
    }
    fields.0.is_empty().then_some(steps)
}

/// What is left of the fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }
}

fn put_length(bytes: &mut Vec<u8>, length: usize) {
    // Names of entries and links have at most 4,096 bytes.
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &[u8]) {
    put_length(bytes, text.len());
    bytes.extend(text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::erofs::{Content, Metadata, Tree};

    fn step(id: InodeId) -> impl Strategy<Value = Step> {
        let path = || "[a-c/]{0,12}".prop_map(|path| path.into_bytes().into_boxed_slice());
        let change = prop_oneof![
            Just(Change::Put(id)),
            path().prop_map(Change::Link),
            Just(Change::Whiteout),
            Just(Change::Opaque)
        ];
        (path(), change).prop_map(|(path, change)| Step { path, change })
    }

    proptest! {
        #[test]
        fn comes_back_as_it_was(
            steps in prop::collection::vec(step(Tree::default().add(Metadata::default(), Content::Fifo)), 0..20),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let id = Tree::default().add(Metadata::default(), Content::Fifo);
            let mut bytes = encode(&steps, |_| 77);
            prop_assert!(bytes.len().is_multiple_of(4096));
            let inode = |number| (number == 77).then_some(id);
            prop_assert_eq!(decode(&bytes, inode).unwrap(), &*steps);
            if let Some(fewer) = (steps.len() as u64).checked_sub(1) {
                let mut bytes = bytes.clone();
                bytes[16..24].copy_from_slice(&fewer.to_le_bytes());
                prop_assert_eq!(decode(&bytes, inode), None, "what is behind the last step");
            }
            for (index, value) in damage {
                let index = index.index(bytes.len().min(400));
                bytes[index] = value;
            }
            let _ = decode(&bytes, inode);
        }
    }
}
