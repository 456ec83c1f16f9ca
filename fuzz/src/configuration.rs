//! A VM's configuration, and the texts that are parsed beside it. A text that is accepted is written as it was read.

use std::fmt::Display;
use std::str::FromStr;

use bellows_block::ImageName;
use bellows_block::oci::{Platform, RegistryReference};
use bellows_vmm::{ByteSize, VmConfig};

/// Tries one input.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let Ok(text) = str::from_utf8(rest) else { return };
    match kind % 8 {
        0 => drop(text.parse::<ByteSize>()),
        1 => round_trip::<Platform>(text),
        2 => round_trip::<RegistryReference>(text),
        3 => round_trip::<ImageName>(text),
        _ => configuration(text),
    }
}

fn round_trip<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(value.to_string().parse().is_ok_and(|again: T| again == value), "{text:?} became {value}");
    }
}

fn configuration(text: &str) {
    let Ok(config) = serde_json::from_str::<VmConfig>(text) else { return };
    if let Err(error) = config.validate() {
        assert!(!error.field.is_empty() && !error.expected.is_empty());
    }
    let written = serde_json::to_string(&config).expect("what was read can be written");
    assert_eq!(serde_json::from_str::<VmConfig>(&written).expect("and read again"), config);
}
