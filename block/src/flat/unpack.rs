//! The tree that unpacking layers one over the other into a directory would give. Pure: no file is made.
//!
//! Names are taken as containerd takes them (`pkg/archive`): symbolic links in the way of a name are followed inside the root,
//! its last component is not. So an entry `bin/tool` of a layer lands in `usr/bin` where a layer below has the link
//! `bin -> usr/bin`, while a directory entry `bin/` replaces that link. Directories that are missing in the way are made, also
//! where a link leads to nothing. Whiteouts and opaque markers hide what layers below have, and nothing of their own layer, in
//! whatever order they come (OCI image specification, "Representing Changes").

use std::collections::{BTreeMap, HashMap};

use crate::archive::EntryName;
use crate::erofs::{Change, Content, Directory, InodeId, LayerTree, Metadata, Step, Tree, WHITEOUT};
use crate::path::{Followed, LinkProblem, Walk};

/// Deepest directory: what a path of 4,096 bytes can name.
const MAX_DEPTH: u32 = 2048;

/// An inode of one of the layers, by the layer's index.
pub(super) type Source = (usize, InodeId);

/// A layer that cannot be unpacked over those below it.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("entry `{path}` {problem}")]
pub struct UnpackError {
    /// Which of the layers it is in, from 0 for the lowest.
    pub layer: usize,
    /// The entry.
    pub path: EntryName,
    /// The cause.
    pub problem: UnpackProblem,
}

/// What is wrong with an entry.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnpackProblem {
    /// A component of the path is not a directory.
    #[error("lies below `{0}`, which is not a directory")]
    NotDirectory(EntryName),
    /// A hard link to a directory or to nothing.
    #[error("is a hard link to `{0}`, which is not a file of its layer or of one below")]
    HardLink(EntryName),
    /// Deeper than a path can name.
    #[error("lies more than {MAX_DEPTH} directories deep")]
    Depth,
    /// Symbolic links in the path cannot be followed.
    #[error(transparent)]
    Links(#[from] LinkProblem),
}

/// What came of unpacking.
#[derive(Debug)]
pub struct Unpacked {
    /// The tree, without whiteouts.
    pub tree: Tree,
    /// The origin of its inodes. Directories without an entry of their own have none.
    pub(super) sources: HashMap<InodeId, Source>,
}

/// Unpacks `layers` in the order `order`, the lowest first; a layer may come several times.
///
/// Directories without an entry of their own stay as they were. A hard link counts the names that are left of it.
///
/// # Errors
/// An entry cannot have its path, or is a hard link to a missing file.
pub fn unpack(layers: &[LayerTree], order: &[usize]) -> Result<Unpacked, UnpackError> {
    let mut root = Root::new(layers);
    for (number, &layer) in order.iter().enumerate() {
        let mut applied = Applied { root: &mut root, number, layer, parent: None };
        match &layers[layer].journal {
            Some(journal) => applied.journal(journal)?,
            None => applied.tree(&layers[layer].tree)?,
        }
    }
    Ok(root.finish())
}

type NodeId = usize;
const ROOT: NodeId = 0;

struct Root<'a> {
    layers: &'a [LayerTree],
    nodes: Vec<Node>,
    /// The nodes made of inodes other than directories.
    known: HashMap<Source, NodeId>,
    followed: Followed,
}

struct Node {
    /// The inode that says what it is.
    source: Option<Source>,
    folder: Option<Folder>,
}

struct Folder {
    names: BTreeMap<Box<[u8]>, Name>,
    parent: NodeId,
    depth: u32,
    /// The last layer that there is nothing below of, counted from 1.
    cleared: usize,
}

#[derive(Clone, Copy)]
struct Name {
    node: NodeId,
    /// The layer that put it there.
    by: usize,
}

impl<'a> Root<'a> {
    fn new(layers: &'a [LayerTree]) -> Self {
        let folder = Folder { names: BTreeMap::new(), parent: ROOT, depth: 0, cleared: 0 };
        let nodes = vec![Node { source: None, folder: Some(folder) }];
        Self { layers, nodes, known: HashMap::new(), followed: Followed::default() }
    }

    fn folder(&self, id: NodeId) -> Option<&Folder> {
        self.nodes[id].folder.as_ref()
    }

    fn name(&self, folder: NodeId, name: &[u8]) -> Option<Name> {
        self.folder(folder)?.names.get(name).copied()
    }

    fn content(&self, id: NodeId) -> Option<&'a Content> {
        let (layer, inode) = self.nodes[id].source?;
        Some(self.layers[layer].tree.content(inode))
    }

    fn finish(self) -> Unpacked {
        let mut tree = Tree::default();
        let mut sources = HashMap::new();
        let mut made = HashMap::from([(ROOT, Tree::ROOT)]);
        let mut pending = vec![(ROOT, Tree::ROOT)];
        while let Some((node, id)) = pending.pop() {
            *tree.metadata_mut(id) = self.metadata(node);
            sources.extend(self.nodes[node].source.map(|source| (id, source)));
            let Some(folder) = self.folder(node) else { continue };
            let mut directory = Directory::default();
            for (name, child) in &folder.names {
                let id = *made.entry(child.node).or_insert_with(|| {
                    let content = match self.content(child.node) {
                        Some(content) if self.folder(child.node).is_none() => content.clone(),
                        _ => Content::Directory(Directory::default()),
                    };
                    let id = tree.add(Metadata::default(), content);
                    pending.push((child.node, id));
                    id
                });
                directory.entries.insert(name.clone(), id);
            }
            if let Some(place) = tree.directory_mut(id) {
                *place = directory;
            }
        }
        Unpacked { tree, sources }
    }

    /// The attributes of a node, without overlayfs's own.
    fn metadata(&self, node: NodeId) -> Metadata {
        let Some((layer, id)) = self.nodes[node].source else { return Tree::implied() };
        let mut metadata = self.layers[layer].tree.metadata(id).clone();
        metadata.xattrs.retain(|name, _| !name.is_overlay());
        metadata
    }
}

/// Where a path leads.
struct Place {
    node: NodeId,
    /// It leads there until a name on the way is replaced. Otherwise a new name may lead it elsewhere, too.
    lasts: bool,
}

/// A layer that is being unpacked.
struct Applied<'r, 'a> {
    root: &'r mut Root<'a>,
    /// How many were unpacked before.
    number: usize,
    /// Its index in the layers.
    layer: usize,
    /// The last parent path that was followed, and where it leads; entries of a directory often follow each other.
    parent: Option<(Vec<u8>, NodeId)>,
}

impl Applied<'_, '_> {
    fn journal(&mut self, journal: &[Step]) -> Result<(), UnpackError> {
        let layer = self.number;
        journal
            .iter()
            .try_for_each(|step| self.step(step).map_err(|problem| UnpackError { layer, path: shown(step), problem }))
    }

    fn step(&mut self, step: &Step) -> Result<(), UnpackProblem> {
        if step.change == Change::Opaque {
            let folder = self.parent(&step.path)?;
            self.clear(folder);
            return Ok(());
        }
        let Some((parent, name)) = split(&step.path) else {
            if let Change::Put(id) = step.change {
                self.root.nodes[ROOT].source = Some((self.layer, id));
            }
            return Ok(());
        };
        let folder = self.parent(parent)?;
        match &step.change {
            Change::Put(id) => self.put(folder, name, *id).map(drop),
            Change::Link(target) => {
                let node = self.target(target)?.ok_or_else(|| UnpackProblem::HardLink(EntryName::new(target)))?;
                self.set(folder, name, node);
                Ok(())
            }
            Change::Whiteout => {
                self.hide(folder, name);
                Ok(())
            }
            Change::Opaque => Ok(()),
        }
    }

    /// Unpacks a layer of which only the tree is known: one that came as an EROFS image, or that has no journal yet.
    fn tree(&mut self, tree: &Tree) -> Result<(), UnpackError> {
        let mut pending = vec![(Tree::ROOT, ROOT)];
        while let Some((id, folder)) = pending.pop() {
            if tree.is_opaque(id) {
                self.clear(folder);
            }
            if id == Tree::ROOT && !tree.metadata(id).implied {
                self.root.nodes[ROOT].source = Some((self.layer, id));
            }
            let entries = || tree.directory(id).into_iter().flat_map(|directory| &directory.entries);
            for (name, _) in entries().filter(|(_, child)| *tree.content(**child) == WHITEOUT) {
                self.hide(folder, name);
            }
            for (name, child) in entries().filter(|(_, child)| *tree.content(**child) != WHITEOUT) {
                let implied = tree.metadata(*child).implied;
                let node = if implied { self.enter(folder, name) } else { self.put(folder, name, *child) };
                let error = |problem| UnpackError { layer: self.number, path: self.path(folder, name), problem };
                let node = node.map_err(error)?;
                if tree.directory(*child).is_some() {
                    pending.push((*child, node));
                }
            }
        }
        Ok(())
    }

    /// The directory that is meant by a name without an entry of its own.
    fn enter(&mut self, folder: NodeId, name: &[u8]) -> Result<NodeId, UnpackProblem> {
        match self.walk(folder, &[name], true) {
            Ok(Some(place)) => Ok(place.node),
            // Layers without a journal were made when it was the directory that counted.
            Err(UnpackProblem::NotDirectory(_)) | Ok(None) => self.make(folder, name),
            Err(problem) => Err(problem),
        }
    }

    /// The path of a name, to be shown.
    fn path(&self, mut folder: NodeId, name: &[u8]) -> EntryName {
        let mut parts = vec![name];
        while folder != ROOT {
            let Some(parent) = self.root.folder(folder).map(|folder| folder.parent) else { break };
            let mut names = self.root.folder(parent).into_iter().flat_map(|parent| &parent.names);
            let found = names.find(|(_, name)| name.node == folder);
            parts.extend(found.map(|(name, _)| &**name));
            folder = parent;
        }
        parts.reverse();
        EntryName::new(&parts.join(&b'/'))
    }

    /// The directory of the path `path`, made where it is missing.
    fn parent(&mut self, path: &[u8]) -> Result<NodeId, UnpackProblem> {
        match &self.parent {
            Some((known, node)) if known == path => return Ok(*node),
            _ => {}
        }
        let Place { node, lasts } =
            self.walk(ROOT, &components(path), true)?.unwrap_or(Place { node: ROOT, lasts: false });
        self.parent = lasts.then(|| (path.to_owned(), node));
        Ok(node)
    }

    /// The file that a hard link means; its last component is not followed.
    fn target(&mut self, path: &[u8]) -> Result<Option<NodeId>, UnpackProblem> {
        let names = components(path);
        let Some((name, parents)) = names.split_last() else { return Ok(None) };
        let place = match self.walk(ROOT, parents, false) {
            Err(UnpackProblem::NotDirectory(_)) => None,
            found => found?,
        };
        let found = place.and_then(|place| self.root.name(place.node, name));
        Ok(found.map(|name| name.node).filter(|node| self.root.folder(*node).is_none()))
    }

    /// Follows `names` from a directory. `None` if something is missing and is not to be made.
    fn walk(&mut self, from: NodeId, names: &[&[u8]], make: bool) -> Result<Option<Place>, UnpackProblem> {
        let mut walk = Walk::new(names);
        let mut at = from;
        // What comes after something that is missing is missing as well.
        let mut missing = Vec::new();
        let mut lasts = true;
        while let Some(name) = walk.next() {
            if *name == *b".." {
                match missing.pop() {
                    // It is not made. What is put there later may be no directory.
                    Some(_) => lasts = false,
                    None => at = self.root.folder(at).map_or(ROOT, |folder| folder.parent),
                }
                continue;
            }
            let found = if missing.is_empty() { self.root.name(at, &name) } else { None };
            match found.map(|name| name.node) {
                Some(node) if self.root.folder(node).is_some() => at = node,
                Some(node) => match self.root.content(node) {
                    Some(Content::Symlink(target)) => {
                        walk.follow(target, &mut self.root.followed)?;
                        if target.starts_with(b"/") {
                            at = ROOT;
                        }
                    }
                    _ => return Err(UnpackProblem::NotDirectory(EntryName::new(&walk.taken()))),
                },
                None => missing.push(name),
            }
        }
        if !make && !missing.is_empty() {
            return Ok(None);
        }
        let node = missing.iter().try_fold(at, |at, name| self.make(at, name))?;
        Ok(Some(Place { node, lasts }))
    }

    /// Makes a directory, in the place of what may be there.
    fn make(&mut self, folder: NodeId, name: &[u8]) -> Result<NodeId, UnpackProblem> {
        let depth = self.root.folder(folder).map_or(0, |folder| folder.depth) + 1;
        if depth > MAX_DEPTH {
            return Err(UnpackProblem::Depth);
        }
        // Nothing below is in it.
        let made = Folder { names: BTreeMap::new(), parent: folder, depth, cleared: self.number + 1 };
        self.root.nodes.push(Node { source: None, folder: Some(made) });
        let node = self.root.nodes.len() - 1;
        self.set(folder, name, node);
        Ok(node)
    }

    /// Puts an inode of the layer in the place of what may be there; a directory keeps what it has.
    fn put(&mut self, folder: NodeId, name: &[u8], id: InodeId) -> Result<NodeId, UnpackProblem> {
        let source = (self.layer, id);
        match self.root.layers[self.layer].tree.content(id) {
            Content::Directory(_) => {
                let present = self.root.name(folder, name).map(|name| name.node);
                let node = match present.filter(|node| self.root.folder(*node).is_some()) {
                    Some(node) => {
                        self.set(folder, name, node);
                        node
                    }
                    None => self.make(folder, name)?,
                };
                self.root.nodes[node].source = Some(source);
                Ok(node)
            }
            // An archive of an overlay's upper directory has them as they are.
            content if *content == WHITEOUT => {
                self.remove(folder, name);
                Ok(folder)
            }
            _ => {
                let new = self.root.nodes.len();
                let node = *self.root.known.entry(source).or_insert(new);
                if node == new {
                    self.root.nodes.push(Node { source: Some(source), folder: None });
                }
                self.set(folder, name, node);
                Ok(node)
            }
        }
    }

    fn set(&mut self, folder: NodeId, name: &[u8], node: NodeId) {
        let by = self.number;
        let Some(folder) = self.root.nodes[folder].folder.as_mut() else { return };
        match folder.names.get_mut(name) {
            Some(place) => {
                if place.node != node {
                    // Paths may lead elsewhere now.
                    self.parent = None;
                }
                *place = Name { node, by };
            }
            None => drop(folder.names.insert(name.into(), Name { node, by })),
        }
    }

    fn remove(&mut self, folder: NodeId, name: &[u8]) {
        self.parent = None;
        if let Some(folder) = self.root.nodes[folder].folder.as_mut() {
            folder.names.remove(name);
        }
    }

    /// Removes what layers below have under this name.
    fn hide(&mut self, folder: NodeId, name: &[u8]) {
        let Some(Name { node, by }) = self.root.name(folder, name) else { return };
        let left = self.root.folder(node).is_some() && self.clear(node);
        if by != self.number {
            if left {
                // Nothing of the directory is left but what this layer put in it.
                self.root.nodes[node].source = None;
                self.set(folder, name, node);
            } else {
                self.remove(folder, name);
            }
        }
    }

    /// Removes what layers below have in a directory; whether anything is left. Done once for each layer and directory.
    fn clear(&mut self, id: NodeId) -> bool {
        self.parent = None;
        let number = self.number;
        let Some(folder) = self.root.nodes[id].folder.as_mut() else { return false };
        if folder.cleared == number + 1 {
            return !folder.names.is_empty();
        }
        folder.cleared = number + 1;
        let mut names = std::mem::take(&mut folder.names);
        names.retain(|_, name| {
            let left = self.clear(name.node);
            if name.by != number && left {
                *name = Name { node: name.node, by: number };
                self.root.nodes[name.node].source = None;
            }
            name.by == number
        });
        let left = !names.is_empty();
        if let Some(folder) = self.root.nodes[id].folder.as_mut() {
            folder.names = names;
        }
        left
    }
}

/// A step as its archive has it.
fn shown(step: &Step) -> EntryName {
    let (parent, name) = split(&step.path).unwrap_or_default();
    let inside = |parent: &[u8], name: &[u8]| match parent {
        [] => EntryName::new(name),
        _ => EntryName::new(&[parent, b"/", name].concat()),
    };
    match step.change {
        Change::Put(_) | Change::Link(_) => EntryName::new(&step.path),
        Change::Whiteout => inside(parent, &[b".wh.", name].concat()),
        Change::Opaque => inside(&step.path, b".wh..wh..opq"),
    }
}

fn components(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect()
}

/// A path's parent and its last component; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None if path.is_empty() => None,
        None => Some((&[], path)),
    }
}

#[cfg(test)]
#[path = "unpack_test.rs"]
pub(super) mod tests;
