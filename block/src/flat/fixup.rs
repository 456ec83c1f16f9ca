//! A layer on top of others that makes a stack of them show what unpacking them gives. Pure, but for the data that it copies.
//!
//! Layers are independent of those below them, so a stack is wrong where a name leads through a link of another layer, where a
//! hard link means a file of another layer, and where a directory that a layer does not describe hides what describes it below.

use std::collections::{HashMap, HashSet};

use super::stack::{Stack, stack};
use super::unpack::{Source, Unpacked};
use crate::erofs::{Content, Directory, FileData, InodeId, LayerTree, Metadata, Tree, WHITEOUT};

/// What has to be put on top of a stack.
pub struct Fixup<'a> {
    truth: &'a Unpacked,
    stack: Stack,
    /// Directories, parents before what is in them.
    visits: Vec<Visit>,
    /// Files that a stack does not show, or not under each of their names.
    moved: HashSet<InodeId>,
}

/// A directory of the truth.
struct Visit {
    truth: InodeId,
    /// What the stack shows there, if that is a directory too.
    shown: Option<InodeId>,
    /// The directory that it is in, by its place in the list, and its name there.
    parent: Option<(usize, Box<[u8]>)>,
    needed: bool,
}

impl<'a> Fixup<'a> {
    /// Compares what `layers` show with what unpacking them gave; `None` if that is the same.
    #[must_use]
    pub fn new(layers: &[LayerTree], truth: &'a Unpacked) -> Option<Self> {
        let root = Visit { truth: Tree::ROOT, shown: Some(Tree::ROOT), parent: None, needed: false };
        let mut fixup = Self { truth, stack: stack(layers), visits: vec![root], moved: HashSet::new() };
        let mut next = 0;
        while next < fixup.visits.len() {
            fixup.visit(next);
            next += 1;
        }
        for visit in 0..fixup.visits.len() {
            let needed = fixup.is_needed(visit);
            fixup.visits[visit].needed = needed;
        }
        for visit in (1..fixup.visits.len()).rev() {
            if let (true, Some((parent, _))) = (fixup.visits[visit].needed, &fixup.visits[visit].parent) {
                let parent = *parent;
                fixup.visits[parent].needed = true;
            }
        }
        fixup.visits[0].needed.then_some(fixup)
    }

    /// The layer's tree. `copy` is asked to copy the data of the files in it, each once.
    ///
    /// # Errors
    /// Those of `copy`.
    pub fn build<E>(&self, mut copy: impl FnMut(&FileData) -> Result<FileData, E>) -> Result<Tree, E> {
        let truth = &self.truth.tree;
        let mut tree = Tree::default();
        let mut made: HashMap<usize, InodeId> = HashMap::new();
        let mut files: HashMap<InodeId, InodeId> = HashMap::new();
        for (number, visit) in self.visits.iter().enumerate().filter(|(_, visit)| visit.needed) {
            let metadata = described(truth.metadata(visit.truth));
            let id = match &visit.parent {
                None => Tree::ROOT,
                Some((parent, name)) => {
                    let id = tree.add(Metadata::default(), Content::Directory(Directory::default()));
                    name_in(&mut tree, made.get(parent).copied(), name, id);
                    id
                }
            };
            *tree.metadata_mut(id) = metadata;
            made.insert(number, id);
            for (name, child) in names(truth, visit.truth).filter(|(_, child)| self.moved.contains(child)) {
                let copied = match files.get(child) {
                    Some(copied) => *copied,
                    None => {
                        let content = match truth.content(*child) {
                            Content::File(data) => Content::File(copy(data)?),
                            other => other.clone(),
                        };
                        let copied = tree.add(truth.metadata(*child).clone(), content);
                        files.insert(*child, copied);
                        copied
                    }
                };
                name_in(&mut tree, Some(id), name, copied);
            }
            for name in self.surplus(visit) {
                let hidden = tree.add(Metadata::default(), WHITEOUT);
                name_in(&mut tree, Some(id), name, hidden);
            }
        }
        Ok(tree)
    }

    /// Finds the directories in a directory, and the files that the stack does not show there.
    fn visit(&mut self, number: usize) {
        let Visit { truth, shown, .. } = self.visits[number];
        let tree = &self.truth.tree;
        for (name, &child) in names(tree, truth) {
            let other = shown.and_then(|shown| self.stack.tree.directory(shown)?.entries.get(name).copied());
            if tree.directory(child).is_some() {
                let shown = other.filter(|other| self.stack.tree.directory(*other).is_some());
                let parent = Some((number, name.clone()));
                self.visits.push(Visit { truth: child, shown, parent, needed: false });
            } else {
                let source = |sources: &HashMap<InodeId, Source>, id| sources.get(&id).copied();
                let shown = other.and_then(|other| source(&self.stack.sources, other));
                if shown != source(&self.truth.sources, child) {
                    self.moved.insert(child);
                }
            }
        }
    }

    fn is_needed(&self, number: usize) -> bool {
        let visit = &self.visits[number];
        let Some(shown) = visit.shown else { return true };
        let mut shown_there = described(self.stack.tree.metadata(shown));
        let expected = described(self.truth.tree.metadata(visit.truth));
        // The mount above has its own root with its own time, and most layers don't describe one: that needs no fix-up.
        if visit.parent.is_none() {
            shown_there.mtime = expected.mtime;
        }
        shown_there != expected
            || self.stack.littered.contains(&shown)
            || names(&self.truth.tree, visit.truth).any(|(_, child)| self.moved.contains(child))
            || self.surplus(visit).next().is_some()
    }

    /// The names that the stack has in a directory and unpacking does not give.
    fn surplus(&self, visit: &Visit) -> impl Iterator<Item = &[u8]> {
        let truth = self.truth.tree.directory(visit.truth);
        let shown = visit.shown.and_then(|shown| self.stack.tree.directory(shown));
        let names = shown.into_iter().flat_map(|directory| directory.entries.keys());
        names.map(|name| &**name).filter(move |name| truth.is_some_and(|truth| !truth.entries.contains_key(*name)))
    }
}

fn names(tree: &Tree, id: InodeId) -> impl Iterator<Item = (&Box<[u8]>, &InodeId)> {
    tree.directory(id).into_iter().flat_map(|directory| &directory.entries)
}

fn name_in(tree: &mut Tree, directory: Option<InodeId>, name: &[u8], id: InodeId) {
    if let Some(directory) = directory.and_then(|directory| tree.directory_mut(directory)) {
        directory.entries.insert(name.into(), id);
    }
}

/// The attributes that can be seen.
fn described(metadata: &Metadata) -> Metadata {
    Metadata { implied: false, ..metadata.clone() }
}

#[cfg(test)]
#[path = "fixup_test.rs"]
mod tests;
