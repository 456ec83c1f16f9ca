//! What was found, as a line for people and as JSON.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

/// The state of one thing that VMs use.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Finding {
    name: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Something is missing, and VMs run without it.
    Lacks,
    /// No VM runs.
    Stops,
}

impl Finding {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), remedy: None }
    }

    /// VMs run without it; `remedy` says how to get it.
    pub(super) fn lacks(name: &'static str, found: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, state: State::Lacks, found: found.into(), remedy: Some(remedy) }
    }

    /// No VM runs without it.
    pub(super) fn stopping(name: &'static str, found: impl Into<String>, remedy: &'static str) -> Self {
        Self { name, state: State::Stops, found: found.into(), remedy: Some(remedy) }
    }

    pub(super) fn stops(&self) -> bool {
        self.state == State::Stops
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Lacks => "lacks",
            State::Stops => "STOPS",
        };
        write!(f, "{state:<6} {:<15} {}", self.name, self.found)?;
        self.remedy.map_or(Ok(()), |remedy| write!(f, "\n{:<23}to get it: {remedy}", ""))
    }
}
