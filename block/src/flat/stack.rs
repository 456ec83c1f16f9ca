//! The tree that overlayfs shows of layers. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::unpack::Source;
use crate::erofs::{Content, Directory, InodeId, LayerTree, Metadata, Tree, WHITEOUT};

/// What a name stands for, as far as it is known from the layers looked at so far.
struct Found {
    /// The topmost first; more than one for directories only.
    sources: Vec<Source>,
    /// Whatever layers below have is hidden.
    closed: bool,
}

/// What overlayfs shows.
pub(super) struct Stack {
    pub tree: Tree,
    /// Where its inodes are from; of directories the topmost.
    pub sources: HashMap<InodeId, Source>,
    /// Directories that only one layer has: overlayfs lists the whiteouts in them.
    pub littered: HashSet<InodeId>,
}

/// Stacks `layers`, lowest first. Of a directory the topmost layer's attributes count.
pub(super) fn stack(layers: &[LayerTree]) -> Stack {
    let mut stack = Stack { tree: Tree::default(), sources: HashMap::new(), littered: HashSet::new() };
    let mut known: HashMap<Source, InodeId> = HashMap::new();
    // A mark that a root is opaque means nothing there.
    let root: Vec<Source> = (0..layers.len()).rev().map(|number| (number, Tree::ROOT)).collect();
    let mut pending = vec![(Tree::ROOT, root)];
    while let Some((target, sources)) = pending.pop() {
        *stack.tree.metadata_mut(target) = attributes(layers, &sources);
        stack.sources.extend(sources.first().map(|source| (target, *source)));
        let mut directory = Directory::default();
        for (name, found) in merge(layers, &sources) {
            let Some(&source) = found.sources.first() else {
                if sources.len() == 1 {
                    stack.littered.insert(target);
                }
                continue;
            };
            let content = layers[source.0].tree.content(source.1);
            let child = if matches!(content, Content::Directory(_)) {
                let child = stack.tree.add(Metadata::default(), Content::Directory(Directory::default()));
                pending.push((child, found.sources));
                child
            } else {
                let new = || stack.tree.add(attributes(layers, &[source]), content.clone());
                *known.entry(source).or_insert_with(new)
            };
            stack.sources.insert(child, source);
            directory.entries.insert(name.into(), child);
        }
        if let Some(place) = stack.tree.directory_mut(target) {
            *place = directory;
        }
    }
    stack
}

/// The names in a directory that several layers have.
fn merge<'a>(layers: &'a [LayerTree], sources: &[Source]) -> BTreeMap<&'a [u8], Found> {
    let mut names: BTreeMap<&[u8], Found> = BTreeMap::new();
    for &(number, id) in sources {
        let layer = &layers[number].tree;
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

/// The attributes of the topmost, without overlayfs's own.
fn attributes(layers: &[LayerTree], sources: &[Source]) -> Metadata {
    let topmost = sources.first().map(|&(number, id)| layers[number].tree.metadata(id).clone());
    let mut metadata = topmost.unwrap_or_else(Tree::implied);
    metadata.xattrs.retain(|name, _| !name.is_overlay());
    metadata
}
