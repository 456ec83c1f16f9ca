//! What a guest's agent answers, against the monitor's calls.

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    bellows_vmm::exercise_agent_client(data);
}
