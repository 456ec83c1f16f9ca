//! What a guest asks a partition for, and what it is answered: VIRTIO 1.2 section 5.15.6.

use crate::blocks::BlockRange;

/// A request of the guest, with a range that has been parsed but not checked against the partition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Request {
    /// Make unplugged blocks usable.
    Plug(BlockRange),
    /// Take plugged blocks back.
    Unplug(BlockRange),
    /// Take everything back.
    UnplugAll,
    /// Say whether blocks are plugged.
    State(BlockRange),
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Done: what the request asked for holds now.
    Done,
    /// Done: the state that [`Request::State`] asked for.
    State(BlockState),
    /// The host does not want this much plugged.
    Nack,
    /// Not now.
    Busy,
    /// The request is invalid: blocks out of range or in the wrong state.
    Error,
}

/// What [`Request::State`] answers about a range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BlockState {
    /// All are plugged.
    Plugged,
    /// All are unplugged.
    Unplugged,
    /// Some are.
    Mixed,
}
