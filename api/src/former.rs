//! Options of earlier versions, to be refused by name.

use std::ffi::OsString;

use clap::Args;

/// The way that version 0.1 took an image: `--memory BASE --partition SIZE --image IMAGE -- CMD`.
#[derive(Args, Debug)]
pub struct FormerArgs {
    #[arg(long, hide = true, value_name = "IMAGE")]
    image: Option<OsString>,
    #[arg(long, hide = true, value_name = "SIZE")]
    partition: Vec<OsString>,
    /// `--` stood before the command, or before the image.
    #[arg(skip)]
    pub(crate) escape: bool,
}

impl FormerArgs {
    /// Whether the command line was written for an earlier version.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.image.is_some() || !self.partition.is_empty() || self.escape
    }
}
