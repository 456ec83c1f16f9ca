//! How partitions are kept apart, as a configuration says it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::kind::ErrorKind;

/// How partitions are kept apart in the guest.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionMode {
    /// With the means of stock kernels: cpusets and memory policies.
    Stock,
    /// With the guest memory extension if the guest's kernel has it, else as `Stock`.
    #[default]
    Extension,
}

impl fmt::Display for PartitionMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stock => "stock",
            Self::Extension => "extension",
        })
    }
}

/// A text that does not name a partition mode.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a partition mode: expected `stock` or `extension`")]
pub struct ParsePartitionModeError(String);

impl ParsePartitionModeError {
    /// The kind of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl FromStr for PartitionMode {
    type Err = ParsePartitionModeError;

    fn from_str(text: &str) -> Result<Self, ParsePartitionModeError> {
        match text {
            "stock" => Ok(Self::Stock),
            "extension" => Ok(Self::Extension),
            _ => Err(ParsePartitionModeError(text.to_owned())),
        }
    }
}
