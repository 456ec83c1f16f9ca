//! Names of VMs, as Firecracker's programs take them.

/// Reads the name of a VM.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    let is_word = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if (1..=64).contains(&text.len()) && is_word {
        Ok(text.into())
    } else {
        Err("expected 1 to 64 letters, digits and `-`".into())
    }
}
