//! The further processes of an instance.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bellows_protocol::values::{MAX_PROCESSES, ProcessId, ValueError};

use crate::container::Process;
use crate::error::{AgentError, Result};
use crate::sync::{Condvar, Mutex};

/// Processes that were started in an existing container, until they are removed.
#[derive(Debug, Default)]
pub struct Others {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// `None` while the process is being started.
    table: HashMap<ProcessId, Option<Arc<Process>>>,
    /// Whether further starts are refused.
    closed: bool,
}

/// The place of a process that is being started; free again if it is dropped before it is filled.
#[derive(Debug)]
pub struct Place<'a> {
    others: &'a Others,
    id: ProcessId,
}

impl Others {
    /// A process that has been started.
    ///
    /// # Errors
    /// [`AgentError::Unknown`], [`AgentError::InUse`].
    pub fn get(&self, id: &ProcessId) -> Result<Arc<Process>> {
        match self.state.lock().table.get(id) {
            Some(Some(process)) => Ok(Arc::clone(process)),
            Some(None) => Err(AgentError::InUse { what: format!("process {id}"), by: "its start".into() }),
            None => Err(AgentError::Unknown { kind: "process", name: id.to_string() }),
        }
    }

    /// Reserves a place for another process.
    ///
    /// # Errors
    /// [`AgentError::Exists`], [`AgentError::InUse`] while the instance is removed, [`ValueError::TooMany`].
    pub fn begin(&self, id: &ProcessId) -> Result<Place<'_>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(AgentError::InUse { what: "the instance".into(), by: "its removal".into() });
        }
        if state.table.contains_key(id) {
            return Err(AgentError::Exists { kind: "process", name: id.to_string() });
        }
        let count = state.table.len() + 1;
        if count > MAX_PROCESSES {
            return Err(ValueError::TooMany { what: "processes", count, limit: MAX_PROCESSES }.into());
        }
        state.table.insert(id.clone(), None);
        Ok(Place { others: self, id: id.clone() })
    }

    /// Removes a process that has ended.
    pub fn forget(&self, id: &ProcessId) {
        self.state.lock().table.remove(id);
    }

    /// Refuses further starts, waits for those in progress, and ends the streams of all processes.
    ///
    /// # Errors
    /// [`AgentError::TimedOut`].
    pub fn close(&self, limit: Duration) -> Result<()> {
        let mut state = self.state.lock();
        state.closed = true;
        let starting = |state: &mut State| state.table.values().any(Option::is_none);
        let (mut state, started) = self.changed.wait_timeout_while(state, limit, starting);
        if !started {
            return Err(AgentError::TimedOut { what: "end of the start of a process".into(), after: limit });
        }
        for (_, process) in state.table.drain() {
            process.iter().for_each(|process| process.streams.close());
        }
        Ok(())
    }
}

impl Place<'_> {
    /// The process that was started.
    pub fn fill(self, process: Process) {
        if let Some(place) = self.others.state.lock().table.get_mut(&self.id) {
            *place = Some(Arc::new(process));
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.others.state.lock();
        if matches!(state.table.get(&self.id), Some(None)) {
            state.table.remove(&self.id);
        }
        self.others.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ProcessId {
        format!("p-{number}").parse().unwrap()
    }

    #[test]
    fn a_place_is_free_again_after_a_failed_start() {
        let others = Others::default();
        let place = others.begin(&id(1)).unwrap();
        assert!(matches!(others.begin(&id(1)), Err(AgentError::Exists { .. })));
        assert!(matches!(others.get(&id(1)), Err(AgentError::InUse { .. })));
        drop(place);
        assert!(matches!(others.get(&id(1)), Err(AgentError::Unknown { .. })));
        others.begin(&id(1)).unwrap();
    }

    #[test]
    fn processes_have_a_limit() {
        let others = Others::default();
        let _places: Vec<_> = (0..MAX_PROCESSES).map(|number| others.begin(&id(number)).unwrap()).collect();
        let error = others.begin(&id(MAX_PROCESSES)).unwrap_err();
        assert!(error.to_string().contains("257 processes"), "{error}");
    }

    #[test]
    fn closing_waits_for_starts_in_progress() {
        let others = Others::default();
        let place = others.begin(&id(1)).unwrap();
        assert!(matches!(others.close(Duration::from_millis(5)), Err(AgentError::TimedOut { .. })));
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| others.close(Duration::from_secs(30)));
            drop(place);
            closing.join().unwrap().unwrap();
        });
        assert!(matches!(others.begin(&id(2)), Err(AgentError::InUse { .. })));
    }
}
