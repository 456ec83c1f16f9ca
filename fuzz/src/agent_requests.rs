//! What the monitor, or an impostor, asks of a guest's agent.

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    bellows_agent::server::exercise::exercise(data);
}
