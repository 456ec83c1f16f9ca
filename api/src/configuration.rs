//! VMs' configurations in files.

use std::fs;
use std::path::Path;

use bellows_vmm::VmConfig;

use crate::error::{CliError, io_error};

/// Reads a VM's configuration from a file.
///
/// # Errors
/// It cannot be read, or is none.
pub(crate) fn read_configuration(path: &Path) -> Result<VmConfig, CliError> {
    let text = fs::read_to_string(path).map_err(io_error("read", path))?;
    serde_json::from_str(&text).map_err(|source| CliError::Json { path: path.to_owned(), source })
}
