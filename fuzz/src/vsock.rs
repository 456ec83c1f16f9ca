//! Guest packets and host socket events, against a model of every stream.

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    bellows_devices::virtio::vsock::exercise::exercise(data);
}
