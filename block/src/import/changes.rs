//! Applies archive entries to a tree, the later to what the earlier made, and keeps them as the layer's journal.
//!
//! The tree is what overlayfs gets. It has each entry where it belongs as far as that can be told from this layer: symbolic links
//! that the layer has itself are followed, and directories that it does not describe are taken for directories. The journal says
//! what the archive said, for code that knows the layers below.

use std::collections::{BTreeMap, HashMap};

use tracing::debug;

use super::LayerError;
use crate::archive::{ArchiveError, EntryName, EntryProblem, Limits, Meaning, TarEntry, TarKind, components, meaning};
use crate::erofs::{Change, Content, Directory, FileData, InodeId, Metadata, Step, Tree, XattrName};
use crate::path::{Followed, Walk};

/// What an inode, its name and its step of the journal take in memory beside the names' and the attributes' own bytes.
const INODE_COST: u64 = 256;

/// The tree of a layer while its archive is read.
#[derive(Debug)]
pub(super) struct Changes {
    tree: Tree,
    journal: Vec<Step>,
    /// The last step of the journal that describes a directory.
    described: HashMap<InodeId, usize>,
    limits: Limits,
    entries: u64,
    metadata_bytes: u64,
    followed: Followed,
}

/// Where a path leads within the layer.
enum Place {
    Directory(InodeId),
    /// Layers below decide.
    Unknown,
}

impl Changes {
    pub fn new(limits: Limits) -> Self {
        let (tree, followed) = (Tree::default(), Followed::default());
        Self { tree, journal: Vec::new(), described: HashMap::new(), limits, entries: 0, metadata_bytes: 0, followed }
    }

    /// Adds an entry. `data` is asked for where a regular file's data was put; it is not asked for other entries.
    pub fn apply(
        &mut self,
        entry: &TarEntry,
        data: impl FnOnce() -> Result<FileData, LayerError>,
    ) -> Result<(), LayerError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(entry.error(EntryProblem::Count(self.limits.entries)).into());
        }
        let link = match &entry.kind {
            TarKind::Symlink(target) | TarKind::HardLink(target) => target.len(),
            _ => 0,
        };
        let attributes = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        self.charge(entry, (2 * entry.name.len() + link + attributes) as u64)?;
        match meaning(&entry.name).map_err(|problem| entry.error(problem))? {
            Meaning::Ignored => {}
            Meaning::Root if entry.kind == TarKind::Directory => {
                *self.tree.metadata_mut(Tree::ROOT) = self.metadata(entry, self.tree.is_opaque(Tree::ROOT));
                self.note(&[], Change::Put(Tree::ROOT));
            }
            Meaning::Root => return Err(entry.error(EntryProblem::Root).into()),
            Meaning::Opaque { directory } => {
                if let Place::Directory(id) = self.walk(entry, &directory, true)? {
                    self.tree.set_opaque(id);
                }
                self.note(&directory, Change::Opaque);
            }
            Meaning::Whiteout { parent, name } => {
                if let Place::Directory(id) = self.walk(entry, &parent, true)?
                    && let Some(directory) = self.tree.directory_mut(id)
                {
                    directory.whiteouts.insert(name.into());
                }
                self.note(&[&parent[..], &[name]].concat(), Change::Whiteout);
            }
            Meaning::Present { parent, name } => {
                let place = self.walk(entry, &parent, true)?;
                let change = match &entry.kind {
                    TarKind::HardLink(target) => self.link(entry, &place, name, target)?,
                    _ => Change::Put(self.put(entry, &place, name, data)?),
                };
                if let (Change::Put(id), TarKind::Directory) = (&change, &entry.kind) {
                    self.described.insert(*id, self.journal.len());
                }
                self.note(&[&parent[..], &[name]].concat(), change);
            }
        }
        Ok(())
    }

    /// The finished tree, whiteouts in overlayfs form, and the journal.
    pub fn finish(mut self) -> (Tree, Vec<Step>) {
        self.tree.resolve_whiteouts();
        self.tree.forget_unnamed();
        (self.tree, self.journal)
    }

    /// Names what an entry other than a hard link describes.
    fn put(
        &mut self,
        entry: &TarEntry,
        place: &Place,
        name: &[u8],
        data: impl FnOnce() -> Result<FileData, LayerError>,
    ) -> Result<InodeId, LayerError> {
        let content = match &entry.kind {
            TarKind::Directory => {
                if let Some(id) = self.named(place, name).filter(|id| self.tree.directory(*id).is_some()) {
                    self.describe_again(id, entry);
                    return Ok(id);
                }
                Content::Directory(Directory::default())
            }
            TarKind::File(_) => Content::File(data()?),
            TarKind::Symlink(target) => Content::Symlink(target.as_slice().into()),
            TarKind::CharDevice(device) => Content::CharDevice(*device),
            TarKind::BlockDevice(device) => Content::BlockDevice(*device),
            TarKind::Fifo => Content::Fifo,
            TarKind::Socket | TarKind::HardLink(_) => Content::Socket,
        };
        let id = self.tree.add(self.metadata(entry, false), content);
        if let Place::Directory(parent) = place {
            self.name(*parent, name, id);
        }
        Ok(id)
    }

    /// Gives a directory the attributes of a later entry. Over the layers below, the path of the earlier one may lead to another
    /// directory, which keeps those that it was given.
    fn describe_again(&mut self, id: InodeId, entry: &TarEntry) {
        let new = self.metadata(entry, self.tree.is_opaque(id));
        if *self.tree.metadata(id) == new {
            return;
        }
        let old = std::mem::replace(self.tree.metadata_mut(id), new);
        if let Some(step) = self.described.get(&id).and_then(|step| self.journal.get_mut(*step)) {
            step.change = Change::Put(self.tree.add(old, Content::Directory(Directory::default())));
        }
    }

    /// Gives another name to the file that `target` leads to, where this layer has that.
    fn link(&mut self, entry: &TarEntry, place: &Place, name: &[u8], target: &[u8]) -> Result<Change, LayerError> {
        let problem = || entry.error(EntryProblem::HardLink(EntryName::new(target)));
        let names = components(target).map_err(|_| problem())?;
        let Some((last, parents)) = names.split_last() else { return Err(problem().into()) };
        let found = match self.walk(entry, parents, false)? {
            Place::Directory(parent) => self.tree.directory(parent).and_then(|directory| directory.entries.get(*last)),
            Place::Unknown => None,
        };
        let found = found.copied().filter(|id| self.tree.directory(*id).is_none());
        match (place, found) {
            (Place::Directory(parent), Some(id)) => self.name(*parent, name, id),
            (Place::Directory(parent), None) => {
                if let Some(directory) = self.tree.directory_mut(*parent) {
                    directory.entries.remove(name);
                }
            }
            (Place::Unknown, _) => {}
        }
        Ok(Change::Link(names.join(&b'/').into()))
    }

    /// Counts the memory of an inode with `bytes` bytes of names and attributes.
    fn charge(&mut self, entry: &TarEntry, bytes: u64) -> Result<(), ArchiveError> {
        self.metadata_bytes += INODE_COST + bytes;
        if self.metadata_bytes > self.limits.metadata_bytes {
            return Err(entry.error(EntryProblem::Metadata(self.limits.metadata_bytes)));
        }
        Ok(())
    }

    fn note(&mut self, path: &[&[u8]], change: Change) {
        self.journal.push(Step { path: path.join(&b'/').into(), change });
    }

    fn named(&self, place: &Place, name: &[u8]) -> Option<InodeId> {
        match place {
            Place::Directory(parent) => self.tree.directory(*parent)?.entries.get(name).copied(),
            Place::Unknown => None,
        }
    }

    fn name(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        if let Some(directory) = self.tree.directory_mut(parent) {
            directory.entries.insert(name.into(), id);
        }
    }

    /// Follows `names` from the root, through the links of this layer; directories that are missing are made if `make` says so.
    /// What seems to be wrong with a name here may be right with layers below.
    fn walk(&mut self, entry: &TarEntry, names: &[&[u8]], make: bool) -> Result<Place, ArchiveError> {
        let mut walk = Walk::new(names);
        let mut ids = vec![Tree::ROOT];
        while let Some(name) = walk.next() {
            let id = ids.last().copied().unwrap_or(Tree::ROOT);
            if *name == *b".." {
                // Nor is it known what is above a directory that may be a link below.
                if ids.len() > 1 && self.tree.metadata(id).implied {
                    return Ok(Place::Unknown);
                }
                ids.truncate(ids.len().saturating_sub(1).max(1));
                continue;
            }
            let child = self.tree.directory(id).and_then(|directory| directory.entries.get(&*name).copied());
            match child {
                Some(child) if self.tree.directory(child).is_some() => ids.push(child),
                Some(child) => {
                    let Content::Symlink(target) = self.tree.content(child) else { return Ok(Place::Unknown) };
                    let is_absolute = target.starts_with(b"/");
                    if walk.follow(target, &mut self.followed).is_err() {
                        return Ok(Place::Unknown);
                    }
                    if is_absolute {
                        ids.truncate(1);
                    }
                }
                None if make => {
                    self.charge(entry, name.len() as u64)?;
                    let child = self.tree.add(Tree::implied(), Content::Directory(Directory::default()));
                    self.name(id, &name, child);
                    ids.push(child);
                }
                None => return Ok(Place::Unknown),
            }
        }
        Ok(ids.last().map_or(Place::Unknown, |id| Place::Directory(*id)))
    }

    fn metadata(&self, entry: &TarEntry, opaque: bool) -> Metadata {
        let mut xattrs = BTreeMap::new();
        for (name, value) in &entry.xattrs {
            match XattrName::new(name) {
                // An image must not give the guest's overlayfs instructions (redirects, for one).
                Some(name) if !name.is_overlay() => {
                    xattrs.insert(name, value.clone());
                }
                _ => debug!(
                    entry = %EntryName::new(&entry.name),
                    attribute = %EntryName::new(name),
                    "left out an extended attribute that does not belong in a layer"
                ),
            }
        }
        if opaque {
            xattrs.insert(XattrName::overlay_opaque(), b"y".to_vec());
        }
        let TarEntry { permissions, uid, gid, mtime, .. } = *entry;
        Metadata { permissions, uid, gid, mtime, xattrs, implied: false }
    }
}
