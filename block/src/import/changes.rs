//! Applies archive entries to a tree, the later to what the earlier made.

use std::collections::BTreeMap;

use tracing::debug;

use super::LayerError;
use crate::archive::{ArchiveError, EntryName, EntryProblem, Limits, Meaning, TarEntry, TarKind, components, meaning};
use crate::erofs::{Content, Directory, FileData, InodeId, Metadata, Tree, XattrName};

/// What an inode and its name take in memory beside the name's and the attributes' own bytes.
const INODE_COST: u64 = 256;

/// The tree of a layer while its archive is read.
#[derive(Debug)]
pub(super) struct Changes {
    tree: Tree,
    limits: Limits,
    entries: u64,
    metadata_bytes: u64,
}

impl Changes {
    pub fn new(limits: Limits) -> Self {
        Self { tree: Tree::default(), limits, entries: 0, metadata_bytes: 0 }
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
            TarKind::Symlink(target) => target.len(),
            _ => 0,
        };
        let attributes = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        self.charge(entry, (entry.name.len() + link + attributes) as u64)?;
        match meaning(&entry.name).map_err(|problem| entry.error(problem))? {
            Meaning::Ignored => Ok(()),
            Meaning::Root if entry.kind == TarKind::Directory => {
                *self.tree.metadata_mut(Tree::ROOT) = self.metadata(entry, self.tree.is_opaque(Tree::ROOT));
                Ok(())
            }
            Meaning::Root => Err(entry.error(EntryProblem::Root).into()),
            Meaning::Opaque { directory } => {
                let directory = self.directory(entry, &directory)?;
                self.tree.set_opaque(directory);
                Ok(())
            }
            Meaning::Whiteout { parent, name } => {
                let parent = self.directory(entry, &parent)?;
                if let Some(directory) = self.tree.directory_mut(parent) {
                    directory.whiteouts.insert(name.into());
                }
                Ok(())
            }
            Meaning::Present { parent, name } => {
                let parent = self.directory(entry, &parent)?;
                self.present(entry, parent, name, data)
            }
        }
    }

    /// The finished tree, whiteouts in overlayfs form.
    pub fn finish(mut self) -> Tree {
        self.tree.resolve_whiteouts();
        self.tree
    }

    fn present(
        &mut self,
        entry: &TarEntry,
        parent: InodeId,
        name: &[u8],
        data: impl FnOnce() -> Result<FileData, LayerError>,
    ) -> Result<(), LayerError> {
        let earlier = self.tree.directory(parent).and_then(|directory| directory.entries.get(name).copied());
        let content = match &entry.kind {
            TarKind::Directory => {
                if let Some(id) = earlier.filter(|id| self.tree.directory(*id).is_some()) {
                    *self.tree.metadata_mut(id) = self.metadata(entry, self.tree.is_opaque(id));
                    return Ok(());
                }
                Content::Directory(Directory::default())
            }
            TarKind::HardLink(target) => {
                let problem = || entry.error(EntryProblem::HardLink(EntryName::new(target)));
                let names = components(target).map_err(|_| problem())?;
                let id = self.tree.lookup(names).filter(|id| self.tree.directory(*id).is_none()).ok_or_else(problem)?;
                self.name(parent, name, id);
                return Ok(());
            }
            TarKind::File(_) => Content::File(data()?),
            TarKind::Symlink(target) => Content::Symlink(target.as_slice().into()),
            TarKind::CharDevice(device) => Content::CharDevice(*device),
            TarKind::BlockDevice(device) => Content::BlockDevice(*device),
            TarKind::Fifo => Content::Fifo,
            TarKind::Socket => Content::Socket,
        };
        let id = self.tree.add(self.metadata(entry, false), content);
        self.name(parent, name, id);
        Ok(())
    }

    /// Counts the memory of an inode with `bytes` bytes of names and attributes.
    fn charge(&mut self, entry: &TarEntry, bytes: u64) -> Result<(), ArchiveError> {
        self.metadata_bytes += INODE_COST + bytes;
        if self.metadata_bytes > self.limits.metadata_bytes {
            return Err(entry.error(EntryProblem::Metadata(self.limits.metadata_bytes)));
        }
        Ok(())
    }

    fn name(&mut self, parent: InodeId, name: &[u8], id: InodeId) {
        if let Some(directory) = self.tree.directory_mut(parent) {
            directory.entries.insert(name.into(), id);
        }
    }

    /// Follows `names` from the root and makes the directories that are missing. Symbolic links are not followed: where
    /// they lead depends on layers that are not here.
    fn directory(&mut self, entry: &TarEntry, names: &[&[u8]]) -> Result<InodeId, ArchiveError> {
        let mut id = Tree::ROOT;
        for (depth, name) in names.iter().enumerate() {
            let not_directory = || {
                let parent = EntryName::new(&names[..depth].join(&b'/'));
                entry.error(EntryProblem::ParentNotDirectory(parent))
            };
            let directory = self.tree.directory(id).ok_or_else(not_directory)?;
            id = match directory.entries.get(*name) {
                Some(id) => *id,
                None => {
                    self.charge(entry, name.len() as u64)?;
                    let child = self.tree.add(Tree::implied(), Content::Directory(Directory::default()));
                    self.name(id, name, child);
                    child
                }
            };
        }
        match self.tree.directory(id) {
            Some(_) => Ok(id),
            None => Err(entry.error(EntryProblem::ParentNotDirectory(EntryName::new(&names.join(&b'/'))))),
        }
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
