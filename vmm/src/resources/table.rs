//! One table for everything that comes and goes while a VM runs: disks, images, partitions.
//!
//! A change waits for the guest, so it holds a turn and not the table's lock: readers go on meanwhile. Only the turn,
//! [`Change`], has methods that change the table, so a change without a turn does not compile.

use std::collections::BTreeMap;

use bellows_memory::sync::{Mutex, MutexGuard};

/// Entries by name.
pub(crate) struct Hotplug<Id, D> {
    turn: Mutex<()>,
    entries: Mutex<BTreeMap<Id, D>>,
}

/// The right to change a table. One thread has it at a time, through the whole change.
pub(crate) struct Change<'a, Id, D> {
    table: &'a Hotplug<Id, D>,
    _turn: MutexGuard<'a, ()>,
}

impl<Id: Ord, D> Hotplug<Id, D> {
    /// Waits for the turn. A thread that has it must not ask again.
    pub(crate) fn change(&self) -> Change<'_, Id, D> {
        Change { table: self, _turn: self.turn.lock() }
    }

    /// Looks at one entry, under the lock: `read` must not wait for the guest.
    pub(crate) fn read<T>(&self, id: &Id, read: impl FnOnce(&D) -> T) -> Option<T> {
        self.entries.lock().get(id).map(read)
    }

    /// Looks at all entries, in order; as [`Hotplug::read`].
    pub(crate) fn map<T>(&self, read: impl FnMut(&D) -> T) -> Vec<T> {
        self.entries.lock().values().map(read).collect()
    }

    pub(crate) fn contains(&self, id: &Id) -> bool {
        self.entries.lock().contains_key(id)
    }
}

impl<Id: Ord, D: Clone> Hotplug<Id, D> {
    pub(crate) fn get(&self, id: &Id) -> Option<D> {
        self.read(id, D::clone)
    }
}

impl<Id: Ord, D> Change<'_, Id, D> {
    /// Adds an entry, or replaces the one with that name.
    pub(crate) fn insert(&self, id: Id, entry: D) {
        self.table.entries.lock().insert(id, entry);
    }

    /// Changes an entry, if it is there; as [`Hotplug::read`].
    pub(crate) fn update(&self, id: &Id, update: impl FnOnce(&mut D)) {
        self.table.entries.lock().get_mut(id).map(update);
    }

    /// Changes an entry and its name, if it is there; as [`Hotplug::read`].
    pub(crate) fn rename(&self, id: &Id, new: Id, update: impl FnOnce(&mut D)) {
        let mut entries = self.table.entries.lock();
        if let Some(mut entry) = entries.remove(id) {
            update(&mut entry);
            entries.insert(new, entry);
        }
    }

    /// Takes an entry out. The caller drops it, outside the lock.
    pub(crate) fn remove(&self, id: &Id) -> Option<D> {
        self.table.entries.lock().remove(id)
    }
}

impl<Id, D> Default for Hotplug<Id, D> {
    fn default() -> Self {
        Self { turn: Mutex::default(), entries: Mutex::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn changes_take_turns_while_others_read() {
        let table = Hotplug::<u8, &str>::default();
        let change = table.change();
        change.insert(1, "one");
        thread::scope(|scope| {
            let (done, is_done) = mpsc::channel();
            let second = &table;
            scope.spawn(move || {
                second.change().update(&1, |entry| *entry = "changed");
                done.send(()).unwrap();
            });
            let reader = scope.spawn(|| table.get(&1));
            assert_eq!(reader.join().unwrap(), Some("one"), "a reader does not wait for a change");
            assert!(is_done.try_recv().is_err(), "a second change does");
            drop(change);
            is_done.recv().unwrap();
        });
        assert_eq!(table.map(|entry| *entry), ["changed"]);
        table.change().rename(&1, 2, |entry| *entry = "renamed");
        assert_eq!((table.get(&1), table.get(&2)), (None, Some("renamed")));
        table.change().rename(&2, 1, |entry| *entry = "changed");
        assert_eq!((table.change().remove(&1), table.contains(&1)), (Some("changed"), false));
    }
}
