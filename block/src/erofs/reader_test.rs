use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::digest::Digest;
use crate::erofs::{Device, ImageWriter, SparseMap, Timestamp, XattrName};
use crate::testing::{Mount, Node, check_with_fsck, difference, read_independently, snapshot};

/// What a tree says, in the form that the other readers of an image give.
fn describe(tree: &Tree, image: &File) -> BTreeMap<Vec<u8>, Node> {
    let mut nodes = BTreeMap::new();
    let mut names: BTreeMap<InodeId, Vec<u8>> = BTreeMap::new();
    let mut links: BTreeMap<InodeId, u64> = BTreeMap::new();
    let mut pending = vec![(Vec::new(), Tree::ROOT)];
    let mut found = Vec::new();
    while let Some((path, id)) = pending.pop() {
        *links.entry(id).or_insert(if tree.directory(id).is_some() { 1 } else { 0 }) += 1;
        for (name, child) in tree.directory(id).map(|directory| &directory.entries).into_iter().flatten() {
            let path = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
            pending.push((path, *child));
            if tree.directory(*child).is_some() {
                *links.entry(id).or_default() += 1;
            }
        }
        found.push((path, id));
    }
    found.sort();
    for (path, id) in found {
        let metadata = tree.metadata(id);
        let (kind, device, data, target) = match tree.content(id) {
            Content::Directory(_) => (libc::S_IFDIR, 0, None, None),
            Content::File(data) => (libc::S_IFREG, 0, Some(data), None),
            Content::Symlink(target) => (libc::S_IFLNK, 0, None, Some(target.to_vec())),
            Content::CharDevice(device) => (libc::S_IFCHR, libc::makedev(device.major, device.minor), None, None),
            Content::BlockDevice(device) => (libc::S_IFBLK, libc::makedev(device.major, device.minor), None, None),
            Content::Fifo => (libc::S_IFIFO, 0, None, None),
            Content::Socket => (libc::S_IFSOCK, 0, None, None),
        };
        let node = Node {
            mode: kind | u32::from(metadata.permissions),
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: (metadata.mtime.seconds, metadata.mtime.nanoseconds.into()),
            links: links[&id],
            device,
            bytes: data.map_or(0, |data| data.bytes),
            data: data.map(|data| Digest::of(&read(data, image))),
            target,
            xattrs: metadata.xattrs.iter().map(|(name, value)| (name.to_bytes(), value.clone())).collect(),
            same_as: names.entry(id).or_insert_with(|| path.clone()).clone(),
        };
        nodes.insert(path, node);
    }
    nodes
}

fn read(data: &FileData, image: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(data.bytes).unwrap()];
    let offset = |block: u32| u64::from(block) * BLOCK_SIZE;
    match &data.blocks {
        Blocks::Contiguous(block) => image.read_exact_at(&mut bytes, offset(*block)).unwrap(),
        Blocks::Chunks { bits, first } => {
            for (chunk, block) in bytes.chunks_mut(usize::try_from(BLOCK_SIZE << bits).unwrap()).zip(first) {
                if let Some(block) = block {
                    image.read_exact_at(chunk, offset(*block)).unwrap();
                }
            }
        }
        Blocks::Tail { .. } => panic!("the writer makes none"),
    }
    bytes
}

/// A step that adds to a tree.
#[derive(Clone, Debug)]
struct Step {
    parent: prop::sample::Index,
    name: Vec<u8>,
    kind: u8,
    number: u32,
    bytes: u16,
    metadata: Metadata,
}

fn metadata() -> impl Strategy<Value = Metadata> {
    // Few times and values, so that the short form and shared attributes occur, and extremes.
    let time = prop_oneof![
        4 => Just(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 }),
        1 => (any::<i64>(), 0..1_000_000_000_u32)
            .prop_map(|(seconds, nanoseconds)| Timestamp { seconds: seconds >> 20, nanoseconds }),
    ];
    let id = || prop_oneof![3 => 0..3_u32, 1 => any::<u32>().prop_map(|id| id.min(u32::MAX - 1))];
    let name = prop_oneof!["user[.][a-c]{1,2}", "trusted[.][a-z]{1,9}", Just("security.thing".to_owned())];
    let value = prop_oneof![Just(b"shared".to_vec()), prop::collection::vec(any::<u8>(), 0..600)];
    let xattrs = prop::collection::btree_map(name, value, 0..4);
    (0..0o10000_u16, id(), id(), time, xattrs).prop_map(|(permissions, uid, gid, mtime, xattrs)| Metadata {
        permissions,
        uid,
        gid,
        mtime,
        xattrs: xattrs.into_iter().map(|(name, value)| (XattrName::new(name.as_bytes()).unwrap(), value)).collect(),
        implied: false,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let letter = any::<u8>().prop_map(|byte| if [0, b'/'].contains(&byte) { b'_' } else { byte });
    let name =
        prop_oneof![3 => prop::collection::vec(letter.clone(), 3..9), 1 => prop::collection::vec(letter, 200..=255)];
    (any::<prop::sample::Index>(), name, 0..10_u8, any::<u32>(), any::<u16>(), metadata())
        .prop_map(|(parent, name, kind, number, bytes, metadata)| Step { parent, name, kind, number, bytes, metadata })
}

/// Writes the tree that `steps` make; the image and the tree.
fn build(steps: &[Step]) -> (NamedTempFile, Tree) {
    let file = NamedTempFile::new().unwrap();
    let mut writer = ImageWriter::new(file.as_file().try_clone().unwrap()).unwrap();
    let mut tree = Tree::default();
    let mut directories = vec![Tree::ROOT];
    let mut files = Vec::new();
    for step in steps {
        let parent = directories[step.parent.index(directories.len())];
        let device = Device { major: step.number & 0xfff, minor: step.number >> 12 };
        let data = step.number.to_le_bytes().repeat(usize::from(step.bytes) / 4);
        let content = match step.kind {
            0 | 1 => Content::Directory(Directory::default()),
            2 | 3 => Content::File(writer.append(&mut data.as_slice()).unwrap()),
            4 => {
                let hole = u64::from(step.number >> 13);
                let map = SparseMap::new(hole * 2, vec![(hole, (data.len() as u64).min(hole))]).unwrap();
                Content::File(writer.append_sparse(&map, &mut data.as_slice()).unwrap())
            }
            5 => Content::Symlink(vec![b'l'; usize::from(step.bytes % 4094) + 1].into()),
            6 => Content::CharDevice(device),
            7 => Content::BlockDevice(device),
            8 if step.number & 1 == 0 => Content::Fifo,
            8 => Content::Socket,
            _ => match files.get(step.number as usize % files.len().max(1)) {
                Some(file) => {
                    let directory = tree.directory_mut(parent).unwrap();
                    directory.entries.entry(step.name.clone().into()).or_insert(*file);
                    continue;
                }
                None => Content::Fifo,
            },
        };
        if tree.directory(parent).unwrap().entries.contains_key(&*step.name)
            || [&b"."[..], b".."].contains(&&*step.name)
        {
            continue;
        }
        let is_directory = matches!(content, Content::Directory(_));
        let mut metadata = step.metadata.clone();
        if !matches!(content, Content::Directory(_) | Content::File(_)) {
            // The kernel shows those of files and directories only.
            metadata.xattrs.retain(|name, _| !name.to_bytes().starts_with(b"user."));
        }
        let id = tree.add(metadata, content);
        tree.directory_mut(parent).unwrap().entries.insert(step.name.clone().into(), id);
        if is_directory { directories.push(id) } else { files.push(id) }
    }
    let written = writer.finish(&tree, [7; 16]).unwrap();
    assert_eq!(written.bytes, file.as_file().metadata().unwrap().len());
    (file, tree)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The kernel, erofs-utils, another reader and our own see in an image the tree that it was made of.
    #[test]
    fn all_readers_see_the_tree_that_was_written(steps in prop::collection::vec(step(), 0..120)) {
        let (file, tree) = build(&steps);
        let expected = describe(&tree, file.as_file());
        check_with_fsck(file.path());
        let read = describe(&read_tree(file.as_file(), 0).unwrap(), file.as_file());
        prop_assert_eq!(difference(&read, &expected), None);
        prop_assert_eq!(difference(&read_independently(file.path(), &[]), &expected), None);
        if let Some(mount) = Mount::new(file.path()) {
            prop_assert_eq!(difference(&snapshot(mount.path()), &expected), None);
        }
        let (again, _) = build(&steps);
        prop_assert!(std::fs::read(again.path()).unwrap() == std::fs::read(file.path()).unwrap());
    }

    /// Damage gives errors or other trees, and nothing else.
    #[test]
    fn damaged_metadata_is_survived(
        steps in prop::collection::vec(step(), 20..60),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let (file, _) = build(&steps);
        let mut bytes = std::fs::read(file.path()).unwrap();
        let start = usize::try_from(superblock::decode(bytes.first_chunk().unwrap()).unwrap().meta_blkaddr.get()).unwrap();
        let length = bytes.len() - start * 4096;
        for (index, value) in damage {
            bytes[start * 4096 + index.index(length)] = value;
        }
        std::fs::write(file.path(), bytes).unwrap();
        let _ = read_tree(file.as_file(), 1);
    }
}

#[test]
fn what_is_no_layer_is_refused() {
    let (file, _) = build(&[]);
    let good = std::fs::read(file.path()).unwrap();
    for (offset, value) in [(1024, 0), (1030, 1), (1024 + 80, 0xff)] {
        let mut bytes = good.clone();
        bytes[offset] = value;
        std::fs::write(file.path(), bytes).unwrap();
        assert!(matches!(read_tree(file.as_file(), 0), Err(ReadError::Superblock(_))), "{offset}");
    }
    std::fs::write(file.path(), &good[..good.len() - 4096]).unwrap();
    assert!(read_tree(file.as_file(), 0).is_err());
}
