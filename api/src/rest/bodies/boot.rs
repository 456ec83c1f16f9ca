//! `/boot-source`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::output::openable;
use crate::rest::fault::Fault;

/// What the guest boots from.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootSource {
    /// An ELF `vmlinux` or a `bzImage`.
    pub(crate) kernel_image_path: PathBuf,
    pub(crate) initrd_path: Option<PathBuf>,
    /// The kernel command line; without it Bellows' own.
    pub(crate) boot_args: Option<String>,
}

impl BootSource {
    /// Opens the files once.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        openable("kernel_image_path", &self.kernel_image_path, false)?;
        self.initrd_path.as_deref().map_or(Ok(()), |path: &Path| openable("initrd_path", path, false))
    }

    /// The line without what would hide all devices: they are on a PCI bus, which Firecracker's need not be.
    pub(crate) fn command_line(&self) -> Option<String> {
        let line = self.boot_args.as_deref()?;
        let (parameters, arguments) = line.split_once(" -- ").map_or((line, None), |(p, a)| (p, Some(a)));
        let words = parameters.split(' ').filter(|&word| word != "pci=off");
        let mut kept = words.collect::<Vec<_>>().join(" ");
        if let Some(arguments) = arguments {
            kept = format!("{kept} -- {arguments}");
        }
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(boot_args: &str) -> Option<String> {
        BootSource { kernel_image_path: "k".into(), initrd_path: None, boot_args: Some(boot_args.into()) }
            .command_line()
    }

    #[test]
    fn the_bus_of_all_devices_stays() {
        assert_eq!(line("console=ttyS0 pci=off panic=1").as_deref(), Some("console=ttyS0 panic=1"));
        assert_eq!(line("pci=off -- pci=off").as_deref(), Some(" -- pci=off"));
        assert_eq!(line("pci=nomsi").as_deref(), Some("pci=nomsi"));
        assert_eq!(line("").as_deref(), Some(""));
    }

    #[test]
    fn missing_files_are_named() {
        let source = BootSource { kernel_image_path: "/nowhere/k".into(), initrd_path: None, boot_args: None };
        let message = source.check().unwrap_err().message;
        assert!(message.contains("`kernel_image_path`") && message.contains("/nowhere/k"), "{message}");
        let source = BootSource {
            kernel_image_path: "/proc/version".into(),
            initrd_path: Some("/nowhere/i".into()),
            boot_args: None,
        };
        assert!(source.check().unwrap_err().message.contains("`initrd_path`"));
        assert_eq!(source.command_line(), None);
    }
}
