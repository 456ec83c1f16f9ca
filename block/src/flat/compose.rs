//! The tree that overlayfs would show of layers, as one tree without whiteouts. Pure.

use std::collections::{BTreeMap, HashMap};

use crate::erofs::{Content, Directory, InodeId, Metadata, Tree, WHITEOUT};

/// An inode of one of the layers.
type Source = (usize, InodeId);

/// What a name stands for, as far as it is known from the layers looked at so far.
struct Found {
    /// The topmost first; more than one for directories only.
    sources: Vec<Source>,
    /// Whatever layers below have is hidden.
    closed: bool,
}

/// Lays `layers`, lowest first, over each other.
///
/// Directories that nobody described ([`Metadata::implied`]) take the attributes of the one below. A hard link has as many
/// names as there are left of it.
#[must_use]
pub fn compose(layers: &[Tree]) -> Tree {
    let mut tree = Tree::default();
    let mut known: HashMap<Source, InodeId> = HashMap::new();
    let mut root = Vec::new();
    for (number, layer) in layers.iter().enumerate().rev() {
        root.push((number, Tree::ROOT));
        if layer.is_opaque(Tree::ROOT) {
            break;
        }
    }
    let mut pending = vec![(Tree::ROOT, root)];
    while let Some((target, sources)) = pending.pop() {
        *tree.metadata_mut(target) = attributes(layers, &sources);
        let mut directory = Directory::default();
        for (name, found) in merge(layers, &sources) {
            let Some(&(number, id)) = found.sources.first() else { continue };
            let content = layers[number].content(id);
            let child = if matches!(content, Content::Directory(_)) {
                let child = tree.add(Metadata::default(), Content::Directory(Directory::default()));
                pending.push((child, found.sources));
                child
            } else {
                let add = || tree.add(attributes(layers, &found.sources), content.clone());
                *known.entry((number, id)).or_insert_with(add)
            };
            directory.entries.insert(name.into(), child);
        }
        if let Some(place) = tree.directory_mut(target) {
            *place = directory;
        }
    }
    tree
}

/// The names in a directory that several layers have.
fn merge<'a>(layers: &'a [Tree], sources: &[Source]) -> BTreeMap<&'a [u8], Found> {
    let mut names: BTreeMap<&[u8], Found> = BTreeMap::new();
    for &(number, id) in sources {
        let layer = &layers[number];
        for (name, &child) in layer.directory(id).map(|directory| &directory.entries).into_iter().flatten() {
            let is_directory = layer.directory(child).is_some();
            let found = names.entry(name).or_insert_with(|| Found { sources: Vec::new(), closed: false });
            let first = found.sources.is_empty();
            if found.closed {
                continue;
            }
            if is_directory || (first && *layer.content(child) != WHITEOUT) {
                found.sources.push((number, child));
            }
            found.closed = !is_directory || layer.is_opaque(child);
        }
    }
    names
}

/// The attributes of the topmost that has any, without overlayfs's own.
fn attributes(layers: &[Tree], sources: &[Source]) -> Metadata {
    let metadata = |&(number, id): &Source| layers[number].metadata(id);
    let described = sources.iter().map(metadata).find(|metadata| !metadata.implied);
    let mut metadata = described.or_else(|| sources.first().map(metadata)).cloned().unwrap_or_else(Tree::implied);
    metadata.xattrs.retain(|name, _| !name.is_overlay());
    metadata
}
